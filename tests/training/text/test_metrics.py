"""Metrics are those of what was sampled, by group, under TRL's names."""

import pytest
import torch

from gradhat.rollouts.engine import Completion
from gradhat.rollouts.episodes import Experience, pack
from gradhat.training.text import metrics
from gradhat.trajectories import Record, Verdict


def experience() -> Experience:
    """Three prompts of two samples: rewards (1, 0), (0, 0), (1, 1). The first group is learned from."""
    rewards, lengths = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0], [1, 2, 3, 4, 2, 4]
    stops = ["end", "end", "end", "length", "string", "length"]
    sampled = pack(
        [(1, 2, 3)] * 6,
        [Completion((7,) * n, (-1.0,) * n, stop, "") for n, stop in zip(lengths, stops, strict=True)],
        [
            Record("", "", Verdict(reward, {"right": reward} | ({"brief": 0.5} if i < 2 else {}), ""), stop)
            for i, (reward, stop) in enumerate(zip(rewards, stops, strict=True))
        ],
        torch.tensor([0, 0, 1, 1, 2, 2]),
        version=0,
    )
    return Experience(sampled, torch.tensor([0, 1]))


def test_the_numbers_of_a_step() -> None:
    values = metrics.of_experience(experience(), num_prompts=1)
    assert values["reward"] == pytest.approx(
        0.5
    )  # of all that was sampled; chosen groups alone are drawn to the middle
    assert values["reward_std"] == pytest.approx((0.5**0.5) / 3)  # mean over groups of the sample deviation
    assert values["frac_reward_zero_std"] == pytest.approx(2 / 3)
    assert values["num_replaced"] == 2
    assert values["completions/mean_length"] == pytest.approx(16 / 6)
    assert (values["completions/min_length"], values["completions/max_length"]) == (1, 4)
    assert values["completions/clipped_ratio"] == pytest.approx(2 / 6)
    assert values["rewards/right/mean"] == pytest.approx(0.5)
    assert values["rewards/brief/mean"] == pytest.approx(0.5)


def test_the_interval_is_between_prompts_not_between_samples() -> None:
    # Prompt means 0.5, 0, 1: deviation 0.5, t(2) = 4.303. Six samples taken for independent give 0.575.
    values = metrics.of_experience(experience(), num_prompts=1)
    assert values["reward_high"] - 0.5 == pytest.approx(4.303 * 0.5 / 3**0.5, rel=1e-3)
    assert values["reward_low"] - 0.5 == pytest.approx(-4.303 * 0.5 / 3**0.5, rel=1e-3)


def test_one_prompt_has_no_interval() -> None:
    whole = experience()
    one = Experience(whole.sampled.select([0, 1]), torch.tensor([0, 1]))
    assert "reward_low" not in metrics.of_experience(one, num_prompts=1)


def test_success_is_counted_for_each_prompt() -> None:
    assert metrics.success_rates(experience().sampled) == [0.5, 0.0, 1.0]


def test_tokens_count_the_prompt_of_every_completion() -> None:
    assert metrics.num_tokens(experience().sampled) == 6 * 3 + 16


def test_the_clock_gives_every_part_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([10.0, 12.0, 15.0, 19.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    clock = metrics.Clock()
    for name in ("sample", "update", "evaluate"):
        clock.lap(name)
    assert clock.times(100) == {
        "step_time": 9.0,
        "tokens_per_second": 20.0,
        "time/sample": 2.0,
        "time/update": 3.0,
        "time/evaluate": 4.0,
    }
