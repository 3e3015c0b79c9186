"""Time gradhat on the jobs that benchmarks/peers times for others. Prints one JSON line.

python benchmarks/ours.py step|generate|train|long|ceiling|profile MODEL
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch

from gradhat.algorithms.grpo import Settings, credit, update
from gradhat.algorithms.grpo_family import FAMILY
from gradhat.envs.text.env import SingleTurn
from gradhat.envs.text.load import load_task
from gradhat.policies.language.chat import Chat
from gradhat.policies.language.policy import LanguagePolicy
from gradhat.policies.language.weights import load, resolve
from gradhat.rollouts.engine import Engine, Limits
from gradhat.rollouts.episodes import Experience, Start, collect
from gradhat.training.memory import keep_freed_memory
from gradhat.training.optim import MasterAdamW
from gradhat.training.text.model import compute_dtype
from gradhat.trajectories import Trajectories

TASK = "reasoning_gym:chain_sum:min_terms=2,max_terms=2,min_digits=1,max_digits=1"
PROMPTS, GROUP, NEW_TOKENS, LENGTH = 8, 8, 32, 66
FORWARD_BACKWARD = 3
"""Products of a training pass in units of the forward: the forward, the input and the weight gradients."""


def peak_gib() -> float:
    """Return the most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def median_seconds(work: Callable[[], object], runs: int) -> float:
    """Run once to warm up, then return the median of `runs`."""
    work()
    seconds: list[float] = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


class Job:
    """The reference job: 8 prompts x 8 completions of at most 32 tokens, one AdamW step on all of them."""

    def __init__(self, model: Path) -> None:
        self.network = load(model, compute_dtype("auto"))
        self.chat = Chat.read(model)
        self.policy = LanguagePolicy(self.network)
        self.engine = Engine(self.network, self.chat)
        self.optimizer = MasterAdamW(self.network, lr=1e-5)
        self.row, self.settings = FAMILY["grpo"], Settings(length=NEW_TOKENS)
        task = load_task(TASK)
        self.starts = (Start(lambda: SingleTurn(task), seed) for seed in count())
        self.steps = 0

    def sample(self) -> Experience:
        """Sample and judge the 64 completions."""
        self.steps += 1
        return collect(
            self.starts,
            self.chat,
            self.engine,
            Limits(NEW_TOKENS, seed=self.steps),
            num_prompts=PROMPTS,
            group_size=GROUP,
            version=self.steps,
            silent=lambda rewards, group: torch.zeros_like(rewards, dtype=torch.bool),
            max_replacements=0,
        )

    def learn(self, trajectories: Trajectories, *, every_group: bool) -> None:
        """One optimiser step. `every_group` makes up credit for silent groups, so that none is left out."""
        credited = credit(self.row, self.settings, trajectories)
        if every_group:
            made_up = torch.where(torch.arange(len(credited)) % 2 == 0, 1.0, -1.0)[:, None] * credited.mask
            credited = replace(credited, adv=made_up)
        update(self.policy, self.optimizer, credited, self.row, self.settings)


def step(model: Path, runs: int) -> dict[str, object]:
    """Seconds a step: sampling, and training on all 64 completions and on those that carry a gradient."""
    job = Job(model)
    rows: list[tuple[float, float, float, int]] = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        sampled = job.sample().sampled
        middle = time.perf_counter()
        job.learn(sampled, every_group=True)
        end = time.perf_counter()
        job.learn(sampled, every_group=False)
        rows.append((middle - start, end - middle, time.perf_counter() - end, int(sampled.mask.sum())))
    sampling, every, loud, tokens = (statistics.median(column) for column in zip(*rows[1:], strict=True))
    return {
        "step_seconds_median": round(sampling + every, 3),
        "step_seconds_median_silent_left_out": round(sampling + loud, 3),
        "sampling_seconds": round(sampling, 3),
        "training_seconds": round(every, 3),
        "completion_tokens": tokens,
        "peak_gib": round(peak_gib(), 2),
    }


def generate(model: Path, runs: int, batch: int = 64, new_tokens: int = 64) -> dict[str, object]:
    """Tokens a second, every sequence running to its limit."""
    job = Job(model)
    endless = Engine(job.network, replace(job.chat, stop_ids=frozenset()))
    question = "What is {} + 5? Answer with just the number."
    prompts = [job.chat.encode([{"role": "user", "content": question.format(i)}]) for i in range(batch)]
    seconds = median_seconds(lambda: endless.sample(prompts, 1, Limits(new_tokens)), runs)
    flop = 2 * sum(p.numel() for p in job.network.parameters()) * batch * new_tokens
    return {
        "tokens_per_second": round(batch * new_tokens / seconds),
        "tflops": round(flop / seconds / 1e12, 3),
    }


def train(model: Path, runs: int) -> dict[str, object]:
    """Padded-equivalent tokens a second of forward + backward: 64 sequences of 66 tokens, prompts shared."""
    job = Job(model)
    batch, answer = PROMPTS * GROUP, LENGTH - 45
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(job.network.config.vocab_size, (PROMPTS, 45), generator=generator).tolist()
    actions = torch.randint(job.network.config.vocab_size, (batch, answer), generator=generator)
    zeros, ends = torch.zeros(batch, answer), torch.zeros(batch, answer, dtype=torch.bool)
    group = torch.arange(batch) // GROUP
    trajectories = Trajectories(
        [tuple(prompts[g]) for g in group.tolist()], actions, ~ends, zeros, zeros, ends, ends, group, group
    )

    def forward_backward() -> None:
        job.policy.evaluate(trajectories).logp.sum().backward()
        job.network.zero_grad(set_to_none=False)

    seconds = median_seconds(forward_backward, runs)
    real = PROMPTS * 45 + batch * (answer - 1)
    body = sum(p.numel() for p in job.network.blocks.parameters())
    flop = 2 * FORWARD_BACKWARD * (body * real + job.network.head_weight.numel() * batch * answer)
    return {
        "tokens_per_second": round(batch * LENGTH / seconds),
        "real_tokens_per_second": round(real / seconds),
        "tflops": round(flop / seconds / 1e12, 3),
        "peak_gib": round(peak_gib(), 2),
    }


def long(model: Path, _runs: int) -> dict[str, object]:
    """Peak memory of one step on a completion of 480 tokens among 60 of 60, behind one prompt of 45."""
    job, lengths = Job(model), torch.tensor([480] + [60] * 60)
    before = peak_gib()
    mask = torch.arange(480) < lengths[:, None]
    draw = torch.Generator().manual_seed(0)
    vocabulary = job.network.config.vocab_size
    prompt = tuple(torch.randint(vocabulary, (45,), generator=draw).tolist())
    actions = torch.randint(vocabulary, mask.shape, generator=draw) * mask
    zeros, group = torch.zeros(mask.shape), torch.zeros(len(lengths), dtype=torch.long)
    ends = mask & (torch.arange(480) == lengths[:, None] - 1)
    batch = Trajectories(
        [prompt] * len(lengths), actions, mask, zeros, zeros, ends, ends & False, group, group
    )
    start = time.perf_counter()
    job.learn(batch, every_group=True)
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "loaded_gib": round(before, 2),
        "peak_gib": round(peak_gib(), 2),
    }


def ceiling(_model: Path, runs: int) -> dict[str, object]:
    """The machine's own rate of bfloat16 products, at the sizes of decoding and of training."""
    rates: dict[str, object] = {}
    for name, rows in (("decode", 64), ("train", 1700)):
        for inner, outer in ((576, 960), (576, 3072), (1536, 576), (576, 49152)):
            x, w = torch.randn(rows, inner).bfloat16(), torch.randn(outer, inner).bfloat16()
            seconds = median_seconds(lambda x=x, w=w: torch.nn.functional.linear(x, w), runs)
            rates[f"{name} {rows}x{inner}x{outer}"] = round(2 * rows * inner * outer / seconds / 1e12, 2)
    return rates


def profile(model: Path, _runs: int) -> dict[str, object]:
    """Where the time of one sampling and of one training pass goes, as torch's profiler sees it."""
    job = Job(model)
    sampled = job.sample().sampled
    job.learn(sampled, every_group=True)
    for name, work in (
        ("sampling", job.sample),
        ("training", lambda: job.learn(sampled, every_group=True)),
    ):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as record:
            work()
        print(f"== {name}")
        print(
            record.key_averages().table(sort_by="self_cpu_time_total", row_limit=16, max_name_column_width=40)
        )
    return {}


def main() -> None:
    """Run one measurement."""
    measurements = {f.__name__: f for f in (step, generate, train, long, ceiling, profile)}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=measurements)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    keep_freed_memory()
    result = measurements[args.what](resolve(args.model), args.runs)
    print(json.dumps({"ours": args.what, "threads": torch.get_num_threads()} | result))


if __name__ == "__main__":
    main()
