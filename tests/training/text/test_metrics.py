"""Metrics are those of what was sampled, by group, under TRL's names."""

import math
import random
from collections.abc import Sequence
from itertools import count
from typing import Any

import pytest
import torch

from gradhat.envs.text.arithmetic import Arithmetic
from gradhat.envs.text.task import Question
from gradhat.estimators.group import silent
from gradhat.intervals import share_interval
from gradhat.rollouts.engine import Completion, Limits
from gradhat.rollouts.episodes import Experience, Start, collect, pack
from gradhat.training.text import metrics
from gradhat.training.text.evaluate import Scale
from gradhat.trajectories import Record, Verdict


def experience() -> Experience:
    """Three prompts of two samples: rewards (1, 0), (0, 0), (1, 1). The first group is learned from.

    The first two are drawn first, the third in the place of the silent one.
    """
    rewards, lengths = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0], [1, 2, 3, 4, 2, 4]
    stops = ["end", "end", "end", "length", "string", "length"]
    sampled = pack(
        [(1, 2, 3)] * 6,
        [Completion((7,) * n, (-1.0 * n,) * n, stop, "") for n, stop in zip(lengths, stops, strict=True)],
        [
            Record("", "", Verdict(reward, {"right": reward} | ({"brief": 0.5} if i < 2 else {}), ""), stop)
            for i, (reward, stop) in enumerate(zip(rewards, stops, strict=True))
        ],
        torch.tensor([0, 0, 1, 1, 2, 2]),
        version=0,
    )
    return Experience(sampled, torch.tensor([0, 1]), torch.arange(4))


def binary() -> Scale:
    scale = Scale()
    scale.take([0.0, 1.0])
    return scale


def test_the_numbers_of_a_step_are_those_of_the_first_draw() -> None:
    values = metrics.of_experience(experience(), binary())
    assert values["reward"] == pytest.approx(1 / 4)
    assert values["sampled/reward"] == pytest.approx(1 / 2)
    assert values["reward_std"] == pytest.approx((0.5**0.5) / 2)  # mean over groups of the sample deviation
    assert values["frac_reward_zero_std"] == pytest.approx(1 / 2)
    assert values["num_replaced"] == 1
    assert values["completions/mean_length"] == pytest.approx(10 / 4)
    assert (values["completions/min_length"], values["completions/max_length"]) == (1, 4)
    assert values["completions/clipped_ratio"] == pytest.approx(1 / 4)
    assert values["rewards/right/mean"] == pytest.approx(1 / 4)
    assert values["rewards/brief/mean"] == pytest.approx(0.5)
    assert values["entropy"] == pytest.approx((1 + 2 * 2 + 3 * 3 + 4 * 4) / 10)


class Coins:
    """A world of prompts whose answers are right with a chance of p, whatever is said."""

    def __init__(self, p: float) -> None:
        self.p, self.draw = p, random.Random(0)

    def reset(self, seed: int) -> tuple[list[dict[str, str]], dict[str, Any]]:
        return [{"role": "user", "content": str(seed)}], {}

    def step(self, _answer: str) -> Any:
        verdict = Verdict(float(self.draw.random() < self.p), {}, "")
        return [], verdict.reward, True, False, {"verdict": verdict}

    def encode(self, messages: list[dict[str, str]]) -> list[int]:
        return [1, int(messages[0]["content"])]

    def sample(self, prompts: Sequence[Sequence[int]], n: int, limits: Limits) -> list[list[Completion]]:
        return [[Completion((7,), (-1.0,), "end", "")] * n for _ in prompts]


def test_the_mean_reward_is_not_drawn_to_the_middle_by_replacements() -> None:
    """Of what was sampled until one group differs, the mean is a quotient with a random denominator.

    Two samples of one prompt, p = 1/4: a group differs with 3/8 and then pays 1/2, else 1/10 on average. With
    K silent ones before it the mean is (1/2 + K/10) / (1 + K): 0.3 and more, not 1/4.
    """
    world: Any = Coins(0.25)
    steps = [
        metrics.of_experience(
            collect(
                (Start(lambda: world, seed) for seed in count()),
                world,
                world,
                Limits(1),
                num_prompts=1,
                group_size=2,
                version=0,
                silent=silent,
                max_replacements=1000,
            ),
            binary(),
        )
        for _ in range(600)
    ]
    quotient = sum((5 / 8) ** k * (3 / 8) * (0.5 + 0.1 * k) / (1 + k) for k in range(100))
    error = 3 * (0.25 * 0.75 / 2 / len(steps)) ** 0.5
    unbiased, biased = (sum(step[key] for step in steps) / len(steps) for key in ("reward", "sampled/reward"))
    assert abs(unbiased - 0.25) < error
    assert abs(biased - quotient) < error
    assert quotient - 0.25 > 2 * error


def test_what_nobody_could_judge_is_counted_and_in_no_other_number() -> None:
    nan = math.nan
    found = metrics.of_experience(
        four_prompts(1, 0, nan, 1, 0.5, 0.5, nan, nan), Scale(0.0, 1.0, 5, graded=True)
    )
    known = metrics.of_experience(two_prompts(1, 0, 0.5, 0.5), Scale(0.0, 1.0, 5, graded=True))
    assert found["num_unjudged"] == 3
    assert known["num_unjudged"] == 0
    assert found["reward"] == pytest.approx((0.5 + 1 + 0.5) / 3)  # a mean over prompts; the last has none
    assert (found["num_groups"], known["num_groups"]) == (3, 2)
    assert found["sampled/reward"] == pytest.approx(3 / 5)
    for key in ("reward_std", "frac_reward_zero_std"):  # of the two groups that are whole
        assert found[key] == known[key]
    assert found["num_replaced"] == 0
    assert all(map(math.isfinite, found.values()))


def test_a_step_of_which_the_first_draw_failed_has_counts_and_no_reward() -> None:
    first = four_prompts(*[math.nan] * 8)
    assert metrics.of_experience(first, Scale()) == {"num_replaced": 0.0, "num_unjudged": 8.0}
    assert metrics.marks(Coins(0.5), first) == []  # type: ignore[arg-type]


def test_a_curriculum_follows_what_could_be_judged() -> None:
    task: Any = Coins(0.5)
    assert metrics.marks(task, four_prompts(1, 0, math.nan, 1, 1, 1, math.nan, math.nan)) == [0.5, 1.0, 1.0]


def two_prompts(*rewards: float) -> Experience:
    """The first and the third of four prompts."""
    sampled = four_prompts(*rewards[:2], 0, 0, *rewards[2:], 0, 0).sampled.select([0, 1, 4, 5])
    return Experience(sampled, torch.arange(4), torch.arange(4))


def four_prompts(*rewards: float) -> Experience:
    """Four prompts of two samples."""
    sampled = pack(
        [(1, 2, 3)] * 8,
        [Completion((7,), (-1.0,), "end", "")] * 8,
        [Record("", "", Verdict(reward, {}, ""), "end") for reward in rewards],
        torch.arange(8) // 2,
        version=0,
    )
    return Experience(sampled, torch.arange(8), torch.arange(8))


def test_the_interval_is_between_prompts_not_between_samples() -> None:
    # Prompt means 0.5, 0, 1, 0.5: deviation 0.408, t(3) = 3.182. Eight independent samples would give less.
    graded = Scale(-99.0, 100.0, 100, graded=True)
    values = metrics.of_experience(four_prompts(1, 0, 0, 0, 1, 1, 0.5, 0.5), graded)
    half = 3.182 * (1 / 6) ** 0.5 / 2
    assert values["reward_high"] - 0.5 == pytest.approx(half, rel=0.01)
    assert values["reward_low"] - 0.5 == pytest.approx(-half, rel=0.01)


def test_rewards_of_right_and_wrong_have_the_interval_of_a_share() -> None:
    rewards = (1.0, 0.0, 0.0, 0.0, 0.7 + 0.2 + 0.1, 1.0, 0.0, 0.0)
    values = metrics.of_experience(four_prompts(*rewards), binary())
    share = share_interval([0.5, 0.0, 1.0, 0.0], 8)
    assert (values["reward"], values["reward_low"], values["reward_high"]) == pytest.approx(share)
    none = metrics.of_experience(four_prompts(*[0.0] * 8), binary())
    assert none["reward_low"] == 0 and 0.5 < none["reward_high"] < 1


def test_a_mean_of_graded_rewards_stays_within_those_that_were_seen() -> None:
    rewards = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.25)
    values = metrics.of_experience(four_prompts(*rewards), Scale(0.0, 1.0, 64, graded=True))
    assert 0.0 <= values["reward_low"] < 0.01 and 0.1 < values["reward_high"] < 1.0


def test_fewer_than_four_prompts_have_no_interval() -> None:
    assert "reward_low" not in metrics.of_experience(experience(), binary())


def test_marks_are_solutions_where_the_task_says_what_these_are() -> None:
    # Of the first draw: not of the chosen batch, and not of what replaced silent groups.
    assert metrics.marks(Arithmetic(), experience()) == [0.5, 0.0]
    graded = four_prompts(-1, 1, 0, 10, 0.5, 0.25, 2, 2)
    assert metrics.marks(Arithmetic(), graded) == [0.5, 0.5, 0.0, 1.0]
    assert metrics.marks(Unsaid(), graded) == [0.0, 5.0, 0.375, 2.0]


class Unsaid:
    """A task that does not say what solves it."""

    def question(self, seed: int) -> Question:
        return Question(str(seed), "")

    def score(self, question: Question, completion: str) -> float:
        return 0.0


def test_the_entropy_of_an_update_is_that_of_the_rows_it_computes() -> None:
    assert metrics.of_update({"entropy": 1.5, "skipped": 0.0}) == {"trained/entropy": 1.5, "skipped": 0.0}


def test_tokens_count_the_prompt_of_every_completion() -> None:
    assert metrics.num_tokens(experience().sampled) == 6 * 3 + 16
