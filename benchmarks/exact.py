"""How long the exact moments of 12 estimators take on the token MDP: 4 words, length 6, 5,461 completions.

python benchmarks/exact.py [--runs 3]

Estimators of one trajectory are evaluated on every completion; those of a group of 4 or 8 by counting classes
of completions with equal rewards and lengths. Prints a Markdown table of medians, and the peak memory.
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from gradhat.estimators import group
from gradhat.exact.enumerate import Batch, draws, paths
from gradhat.exact.mdp import softmax_policy
from gradhat.exact.moments import Moments, Weights, classes, counted, moments, weighted
from gradhat.exact.solve import Values, evaluate
from gradhat.exact.zoo import token_mdp

T = TypeVar("T")
Compare = Callable[[Tensor, Tensor], Tensor]
"""(rewards, group) → a baseline or a scale, each `[B]`."""


def of_one(values: Values) -> dict[str, Weights]:
    """Estimators that judge a completion by itself. γ = 1."""
    return {
        "total return": lambda batch: spread(batch, batch.returns()),
        "total return − J": lambda batch: spread(batch, batch.returns() - values.expected_return),
        "reward to go": to_go,
        "reward to go − V(s)": lambda batch: to_go(batch) - values.v[batch.paths.states],
    }


def of_group() -> dict[str, Weights]:
    """Estimators that compare the completions of one prompt."""
    return {
        "group mean": compared(group.group_mean, group.no_scale),
        "leave one out": compared(group.leave_one_out, group.no_scale),
        "group mean, ÷ std": compared(group.group_mean, group.group_std),
        "group mean, ÷ mean": compared(group.group_mean, group.group_mean_scale),
    }


def to_go(batch: Batch) -> Tensor:
    return batch.rewards.flip(1).cumsum(1).flip(1)


def compared(baseline: Compare, scale: Compare) -> Weights:
    def weights(batch: Batch) -> Tensor:
        r = batch.returns()
        size = len(batch.draw) // batch.num_draws
        return spread(batch, (r - baseline(r, batch.group)) / scale(r, batch.group) / size)

    return weights


def spread(batch: Batch, per_trajectory: Tensor) -> Tensor:
    """Return the same weight for every step."""
    return per_trajectory[:, None].expand(batch.rewards.shape)


class Watch:
    """Seconds of each stage, run after run."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    def time(self, stage: str, call: Callable[[], T]) -> T:
        start = time.perf_counter()
        answer = call()
        self.seconds.setdefault(stage, []).append(time.perf_counter() - start)
        return answer


def run(watch: Watch) -> dict[str, Moments]:
    """Do everything once and return the moments of each estimator."""
    mdp = watch.time("build the world", lambda: token_mdp(4, 6))
    shape = (mdp.num_observations, mdp.num_actions)
    theta = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    every = watch.time("list all completions", lambda: paths(mdp))
    by_class = watch.time("sort them into classes", lambda: classes(every, theta))
    values = watch.time("solve for V", lambda: evaluate(mdp, softmax_policy(mdp, theta)))
    found: dict[str, Moments] = {}
    for name, weights in of_one(values).items():
        found[name] = watch.time(
            name, lambda weights=weights: moments(draws(every, theta, group_size=1), weighted(weights))
        )
    for group_size in (4, 8):
        for name, weights in of_group().items():
            name = f"{name}, G = {group_size}"
            found[name] = watch.time(
                name, lambda weights=weights, size=group_size: counted(by_class, weights, group_size=size)
            )
    return found


def main(runs: int) -> None:
    watch, before = Watch(), memory()
    for _ in range(runs):
        found = watch.time("everything", lambda: run(watch))
    print(f"{torch.get_num_threads()} threads, medians of {runs} runs\n")
    print("| stage | seconds | total variance |\n|---|---|---|")
    for stage, seconds in sorted(watch.seconds.items(), key=lambda item: item[0] == "everything"):
        variance = f"{found[stage].variance:.4g}" if stage in found else ""
        print(f"| {stage} | {statistics.median(seconds):.3f} | {variance} |")
    print(f"\npeak memory {memory():.2f} GiB, of which {before:.2f} GiB before the first run")


def memory() -> float:
    """Peak memory of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=3)
    main(parser.parse_args().runs)
