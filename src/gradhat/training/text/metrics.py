"""What a batch of experience says in numbers, under TRL's names where they exist."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping

from gradhat.envs.text import solved
from gradhat.envs.text.task import Task
from gradhat.intervals import FEWEST
from gradhat.rollouts.episodes import Experience
from gradhat.training.text.evaluate import Scale, reward_interval
from gradhat.trajectories import Trajectories


def of_experience(experience: Experience, scale: Scale) -> dict[str, float]:
    """Return the metrics of one step's samples.

    Rewards, lengths, silence and entropy are those of the first draw. Prompts are drawn until enough groups
    differ, so over everything sampled the mean reward is a quotient that is drawn to the middle, and in the
    chosen batch it is a choice: only the first draw is fixed before any reward is known. Completions that
    nobody could judge are counted, and are in none of the other numbers; what is said of groups is said of
    those that are whole. `scale` has seen the rewards.
    """
    drawn = experience.sampled.select(experience.first)
    sampled, first = judged(experience.sampled), judged(drawn)
    metrics = {
        "num_replaced": float(len(_sizes(experience.sampled)) - len(_sizes(drawn))),
        "num_unjudged": float(len(experience.sampled) - len(sampled)),
    }
    return metrics | (_of_judged(sampled, first, _sizes(drawn), scale) if len(first) else {})


def _of_judged(
    sampled: Trajectories, first: Trajectories, sizes: Mapping[int, int], scale: Scale
) -> dict[str, float]:
    """Return the metrics of what could be judged; `sizes` are those of the groups as they were drawn."""
    by_group = _by_group(first)
    rewards = list(by_group.values())
    whole = [group for number, group in by_group.items() if len(group) == sizes[number]]
    interval = reward_interval(rewards, scale)
    lengths = [int(n) for n in first.mask.sum(-1)]
    metrics = {
        "num_groups": float(len(rewards)),
        "reward": interval.mean,
        "sampled/reward": float(sampled.returns().mean()),
        "completions/mean_length": sum(lengths) / len(lengths),
        "completions/min_length": float(min(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": sum(r.stop == "length" for r in first.records) / len(first),
        "entropy": -float(first.logp[first.mask].mean()),
    }
    if len(rewards) >= FEWEST:
        metrics |= {"reward_low": interval.low, "reward_high": interval.high}
    if whole:
        metrics["reward_std"] = sum(map(_deviation, whole)) / len(whole)
        metrics["frac_reward_zero_std"] = sum(min(group) == max(group) for group in whole) / len(whole)
    return metrics | _parts(first)


def judged(trajectories: Trajectories) -> Trajectories:
    """Return the trajectories that have a reward."""
    return trajectories.select([i for i, r in enumerate(trajectories.records) if r.verdict.judged])


def of_update(learned: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of an algorithm's update, named for what they are in a run of text.

    It computes only the rows that carry a gradient, and its entropy is theirs.
    """
    return {"trained/entropy" if key == "entropy" else key: value for key, value in learned.items()}


def marks(task: Task, experience: Experience) -> list[float]:
    """Return the mean mark of each prompt of the first draw, in the order of drawing.

    That is the share of completions that solve it where `task` says what that is, else the mean reward.
    """
    first = judged(experience.sampled.select(experience.first))
    found = solved.marks(task, [record.verdict for record in first.records])
    groups: defaultdict[int, list[float]] = defaultdict(list)
    for group, mark in zip(first.group.tolist(), found, strict=True):
        groups[group].append(mark)
    return [sum(group) / len(group) for group in groups.values()]


def num_tokens(sampled: Trajectories) -> int:
    """Return the tokens of prompts and completions; a prompt counts once for each completion, as in TRL."""
    return sum(map(len, sampled.numbers())) + int(sampled.mask.sum())


def _sizes(sampled: Trajectories) -> Counter[int]:
    """Return the size of each group, by its number."""
    return Counter(sampled.group.tolist())


def _by_group(sampled: Trajectories) -> dict[int, list[float]]:
    groups: defaultdict[int, list[float]] = defaultdict(list)
    for group, reward in zip(sampled.group.tolist(), sampled.returns().tolist(), strict=True):
        groups[group].append(reward)
    return groups


def _deviation(rewards: list[float]) -> float:
    """Return the sample standard deviation; 0 for a group of one."""
    mean = sum(rewards) / len(rewards)
    return math.sqrt(sum((r - mean) ** 2 for r in rewards) / max(1, len(rewards) - 1))


def _parts(sampled: Trajectories) -> dict[str, float]:
    """Return the mean of each component of the reward, over the completions whose verdict names it."""
    parts: defaultdict[str, list[float]] = defaultdict(list)
    for record in sampled.records:
        for name, value in record.verdict.parts.items():
            parts[name].append(value)
    return {f"rewards/{name}/mean": sum(values) / len(values) for name, values in parts.items()}
