"""One place decides what solving a question means, for rewards of every scale."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from gradhat.envs.text.arithmetic import Arithmetic
from gradhat.envs.text.reasoning_gym import ReasoningGym
from gradhat.envs.text.solved import at_least, is_right_or_wrong, marks, own, solves
from gradhat.envs.text.task import Question, check
from gradhat.errors import TaskError
from gradhat.trajectories import Verdict

ALMOST = 0.7 + 0.2 + 0.1
"""0.9999999999999999."""


class Silent:
    """A task that says nothing of what solves it."""

    def question(self, seed: int) -> Question:
        return Question(f"Say {seed}", str(seed))

    def score(self, question: Question, completion: str) -> float:
        return float(completion == question.answer)


def saying(value: Any) -> Silent:
    task = Silent()
    task.solved = value  # pyright: ignore[reportAttributeAccessIssue]
    return task


def verdict(reward: float, **parts: float) -> Verdict:
    return Verdict(reward, parts, "")


@pytest.mark.parametrize(
    ("rewards", "binary"),
    [
        ([0.0, 1.0, 1.0], True),
        ([0.0, 0.0], True),
        ([ALMOST, 0.0], True),
        ([float(np.float32(ALMOST)), float(np.float32(0.1) + np.float32(0.9)), 1e-9], True),
        ([-1.0, 1.0], False),
        ([0.0, 10.0], False),
        ([0.0, -3.5], False),
        ([0.0, 0.25, 1.0], False),
        ([1.0, 1.001], False),
    ],
)
def test_rewards_of_right_and_wrong_are_told_from_all_others(rewards: list[float], binary: bool) -> None:
    assert is_right_or_wrong(rewards) == binary


def test_where_nobody_says_it_a_reward_of_one_solves_and_graded_rewards_solve_nothing() -> None:
    rule = solves(Silent(), graded=False)
    assert rule is not None
    assert [rule(verdict(r)) for r in (0.0, ALMOST, 1.0)] == [False, True, True]
    assert solves(Silent(), graded=True) is None


@pytest.mark.parametrize("said", [0.5, np.float32(0.5), Fraction(1, 2), Decimal("0.5"), torch.tensor(0.5)])
@pytest.mark.parametrize("graded", [False, True])
def test_a_threshold_is_any_number(said: Any, graded: bool) -> None:
    rule = solves(saying(said), graded=graded)
    assert rule is not None
    assert [rule(verdict(r)) for r in (-1.0, 0.49, 0.5, 10.0)] == [False, False, True, True]


@pytest.mark.parametrize("threshold", [0.3, -0.3, 7.1, 1e6 / 3, 0.0])
def test_single_and_double_precision_agree_about_a_threshold(threshold: float) -> None:
    rule = at_least(threshold)
    assert rule(verdict(threshold)) and rule(verdict(float(np.float32(threshold))))
    assert not rule(verdict(threshold - 1e-3 * max(1.0, abs(threshold))))


@pytest.mark.parametrize("kind", [bool, np.bool_, torch.tensor, int])
def test_a_method_sees_the_whole_verdict(kind: Any) -> None:
    rule = solves(saying(lambda v: kind(v.parts["format"] > 0 and v.reward > 0)), graded=True)
    assert rule is not None
    assert rule(verdict(2.5, format=1.0)) is True
    assert rule(verdict(2.5, format=0.0)) is False


@pytest.mark.parametrize("said", [True, "0.5", "all", float("nan"), float("inf"), [0.5, 1.0], object()])
def test_a_rule_that_is_none_is_refused_before_training(said: Any) -> None:
    with pytest.raises(TaskError, match=r"task Silent: solved was asked for, found .*solved = 0.5"):
        check(saying(said))


@pytest.mark.parametrize("answer", [None, 0.7, "yes", 2, np.zeros(2)])
def test_a_method_that_answers_nonsense_is_named(answer: Any) -> None:
    rule = own(saying(lambda _: answer))
    assert rule is not None
    with pytest.raises(TaskError, match=r"task Silent: solved\(Verdict"):
        rule(verdict(1.0))


def test_a_method_that_raises_or_hangs_is_found_before_training() -> None:
    def broken(verdict: Verdict) -> bool:
        return verdict.parts["format"] > 0

    with pytest.raises(TaskError, match=r"task Silent: solved\(Verdict.* raised KeyError"):
        check(saying(broken))


def test_the_tasks_of_the_house_say_what_solves_them() -> None:
    for task in (Arithmetic(), ReasoningGym.__new__(ReasoningGym)):
        rule = own(task)
        assert rule is not None and rule(verdict(1.0)) and not rule(verdict(0.99))


def test_a_curriculum_follows_solutions_where_they_are_said_and_rewards_elsewhere() -> None:
    verdicts = [verdict(r) for r in (-1.0, 0.25, 8.0)]
    assert marks(Silent(), verdicts) == [-1.0, 0.25, 8.0]
    assert marks(saying(0.25), verdicts) == [0.0, 1.0, 1.0]
    # Right and wrong are both at once.
    binary = [verdict(r) for r in (0.0, ALMOST)]
    assert marks(Silent(), binary) == pytest.approx(marks(saying(1.0), binary))


def test_a_property_that_raises_is_a_task_error() -> None:
    class Raises(Silent):
        @property
        def solved(self) -> float:
            raise KeyError("level")

    with pytest.raises(TaskError, match="task Raises: reading solved raised KeyError: 'level'"):
        own(Raises())
