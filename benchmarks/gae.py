"""GAE on [4096, 2048] masked steps, against a plain cumulative sum of the same shape, and against peers.

    python benchmarks/gae.py [--runs 15] [--rows 4096] [--steps 2048] [--peers-rows 512]

Ours and each other one run in turn in one process, with torch's default threads; the figures are medians.
The peers know no masks: Stable-Baselines3's is its loop over numpy [T, B] as it stands, torchrl's is the
vectorised one. They run on `--peers-rows` rows, ours beside them on the same. Prints one JSON line.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from gradhat.estimators.gae import gae

GAMMA, LAM = 0.99, 0.95


def experience(rows: int, steps: int) -> dict[str, Tensor]:
    """Return random rows like dialogues: runs of own tokens and of the environment's, then padding."""
    generator = torch.Generator().manual_seed(0)
    rewards, values, next_values = torch.randn(3, rows, steps, generator=generator).unbind(0)
    lengths = torch.randint(steps // 4, steps + 1, (rows, 1), generator=generator)
    time_step = torch.arange(steps)
    ended = time_step == lengths - 1
    return {
        "rewards": rewards.clone(),
        "values": values.clone(),
        "next_values": next_values.clone(),
        "terminated": ended & (torch.rand(rows, 1, generator=generator) < 0.5),
        "ended": ended,
        "mask": (time_step < lengths) & (time_step // 100 % 4 != 3),
    }


def scattered(rows: int, steps: int) -> dict[str, Tensor]:
    """Return random rows whose holes and ends lie anywhere: the processor cannot foresee a mask."""
    generator = torch.Generator().manual_seed(1)
    hole, end, dead = torch.rand(3, rows, steps, generator=generator).unbind(0)
    ended = end < 0.02
    return experience(rows, steps) | {
        "terminated": ended & (dead < 0.5),
        "ended": ended,
        "mask": hole < 0.9,
    }


def in_turn(jobs: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Return the median seconds of each job; they run one after the other, `runs` times, after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(runs + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(all_runs) for name, all_runs in seconds.items()}


def peers(data: dict[str, Tensor]) -> dict[str, Callable[[], object]]:
    """Return the peers' jobs on the same data, in the layout that each of them keeps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from gymnasium.spaces import Discrete
        from stable_baselines3.common.buffers import RolloutBuffer
        from torchrl.objectives.value.functional import vec_generalized_advantage_estimate

    rows, steps = data["rewards"].shape
    buffer = RolloutBuffer(steps, Discrete(2), Discrete(2), "cpu", gae_lambda=LAM, gamma=GAMMA, n_envs=rows)
    buffer.rewards, buffer.values = (np.ascontiguousarray(data[k].T.numpy()) for k in ("rewards", "values"))
    starts = torch.nn.functional.pad(data["ended"][:, :-1].float(), (1, 0), value=1.0)
    buffer.episode_starts = np.ascontiguousarray(starts.T.numpy())
    last_values, dones = data["next_values"][:, -1], data["ended"][:, -1].numpy()
    order = ("values", "next_values", "rewards", "ended", "terminated")
    columns = [data[name][..., None] for name in order]
    return {
        "stable_baselines3": lambda: buffer.compute_returns_and_advantage(last_values, dones),
        "torchrl_vectorised": lambda: vec_generalized_advantage_estimate(GAMMA, LAM, *columns),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=2048)
    parser.add_argument("--peers-rows", type=int, default=512)
    args = parser.parse_args()
    found: dict[str, object] = {"shape": [args.rows, args.steps], "threads": torch.get_num_threads()}
    for name, make in (("runs of holes", experience), ("scattered holes", scattered)):
        data = make(args.rows, args.steps)
        took = in_turn(
            {
                "cumsum": lambda data=data: torch.cumsum(data["rewards"], dim=1),
                "gae": lambda data=data: gae(**data, gamma=GAMMA, lam=LAM),
            },
            args.runs,
        )
        milliseconds = {job: round(1000 * seconds, 1) for job, seconds in took.items()}
        found[name] = milliseconds | {"gae / cumsum": round(took["gae"] / took["cumsum"], 2)}
    data = experience(args.peers_rows, args.steps)
    jobs = {"gae": lambda: gae(**data, gamma=GAMMA, lam=LAM), **peers(data)}
    took = in_turn(jobs, args.runs)
    found[f"milliseconds on [{args.peers_rows}, {args.steps}]"] = {
        job: round(1000 * seconds, 1) for job, seconds in took.items()
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
