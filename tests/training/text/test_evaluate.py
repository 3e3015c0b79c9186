"""What a measurement says of rewards of every scale, and that pass@k is unbiased."""

import math
import random
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from gradhat.envs.text.task import Question
from gradhat.errors import TaskError
from gradhat.intervals import mean_interval, share_interval
from gradhat.rollouts.engine import Completion, Limits
from gradhat.training.text.evaluate import (
    Measurement,
    Scale,
    accuracy_interval,
    measure,
    pass_at_k,
    reward_interval,
)
from gradhat.trajectories import Record, Verdict
from gradhat.verdicts import Failures


class Task:
    """Says nothing of what solves its questions, or what it is given."""

    def __init__(self, solved: Any = None) -> None:
        self.solved = solved

    def question(self, seed: int) -> Question:
        return Question(str(seed), "")

    def score(self, question: Question, completion: str) -> float:
        return 0.0


def measured(
    rewards: list[list[float]], solved: Any = None, before: list[float] | None = None
) -> Measurement:
    """What is measured where these rewards were sampled, after a run that has seen those of `before`."""
    scale = Scale()
    scale.take([*(before or []), *(x for group in rewards for x in group if not math.isnan(x))])
    records = [[Record("", "", Verdict(x, {}, ""), "end") for x in group] for group in rewards]
    questions = [Question(str(i), "") for i in range(len(rewards))]
    return Measurement(Task(solved), questions, [], [], records, scale)


def test_the_interval_covers_the_truth_when_questions_differ() -> None:
    # Questions differ in difficulty, mostly all or nothing. An interval of all samples covers far too little.
    rng = random.Random(0)
    trials, hits, naive = 600, 0, 0
    for _ in range(trials):
        chances = [rng.betavariate(0.5, 0.5) for _ in range(45)]
        solved = [[rng.random() < c for _ in range(4)] for c in chances]
        ours = accuracy_interval(solved)
        ignorant = share_interval([float(x) for group in solved for x in group], 180)
        hits += ours.low <= 0.5 <= ours.high
        naive += ignorant.low <= 0.5 <= ignorant.high
    assert 0.93 <= hits / trials <= 0.985
    assert naive / trials < 0.85


def test_a_failed_verdict_is_counted_and_left_out() -> None:
    nan = math.nan
    found = measured([[0.0, nan], [1.0, 1.0], [nan, nan], [1.0, 0.0], [1.0, nan]])
    assert found.rewards() == [[0.0], [1.0, 1.0], [1.0, 0.0], [1.0]]
    assert found.solved() == [[False], [True, True], [True, False], [True]]
    assert found.accuracy() == share_interval([0.0, 1.0, 0.5, 1.0], 6)
    values = found.metrics("held_out")
    assert (values["held_out/num_unjudged"], values["held_out/num_questions"]) == (4, 4)
    assert values["held_out/accuracy"] == values["held_out/reward"] == 2.5 / 4
    assert found.pass_at(1) == 2.5 / 4
    assert found.pass_at(2) == 1.0  # of the two questions with two verdicts
    assert found.pass_at(3) is None


def test_a_measurement_of_which_every_verdict_fails_is_an_error() -> None:
    class Silent:
        def encode(self, messages: Any) -> list[int]:
            return [1]

        def sample(self, prompts: Any, n: int, limits: Any) -> Any:
            return [[Completion((7,), (-1.0,), "end", "")] * n for _ in prompts]

    class Gone(Task):
        def score(self, question: Question, completion: str) -> float:
            raise ConnectionError("nobody there")

    world: Any = Silent()

    def tried(failures: Failures | None) -> Measurement:
        asked = [Question("a", ""), Question("b", "")]
        return measure(
            Gone(), asked, world, world, Limits(1), system="", num_samples=2, scale=Scale(), failures=failures
        )

    with pytest.raises(TaskError, match=r"all 4 verdicts failed.*nobody there"):
        tried(Failures(5))
    with pytest.raises(TaskError, match=r"nobody there.*4 times in a row"):
        tried(Failures(4))
    with pytest.raises(TaskError, match=r"^task Gone: score of .*nobody there"):
        tried(None)


def test_a_verdict_that_failed_is_none_of_the_rewards_that_a_run_has_seen() -> None:
    """It is NaN, which is neither 0 nor 1: digits and accuracy of all later lines hang on it."""

    class World:
        def encode(self, messages: Any) -> list[int]:
            return [1]

        def sample(self, prompts: Any, n: int, limits: Any) -> Any:
            return [[Completion((7,), (-1.0,), "end", text) for text in ("", "0", "1")] for _ in prompts]

    class Flaky(Task):
        def score(self, question: Question, completion: str) -> float:
            return float(completion)

    world: Any = World()
    scale, asked = Scale(), [Question("a", ""), Question("b", "")]
    for _ in range(2):
        found = measure(
            Flaky(),
            asked,
            world,
            world,
            Limits(1),
            system="",
            num_samples=3,
            scale=scale,
            failures=Failures(2),
        )
    assert (scale, found.scale) == (Scale(0.0, 1.0, 8), Scale(0.0, 1.0, 8))
    assert [[record.prompt for record in group] for group in found.records] == [["a"] * 3, ["b"] * 3]
    assert found.accuracy() is not None and found.num_unjudged() == 2


def test_rewards_of_zero_and_one_are_an_accuracy() -> None:
    found = measured([[0.0, 1.0], [0.7 + 0.2 + 0.1, 1.0], [0.0, 0.0], [0.0, 0.0]]).metrics("held_out")
    share = share_interval([0.5, 1.0, 0.0, 0.0], 8)
    for name in ("accuracy", "reward"):
        ends = (found[f"held_out/{name}{end}"] for end in ("", "_low", "_high"))
        assert tuple(ends) == pytest.approx(share)
    assert found["held_out/num_questions"] == 4


@pytest.mark.parametrize(
    "rewards",
    [
        [[0.0, 10.0], [10.0, 10.0], [4.0, 0.0], [0.0, 0.0]],
        [[-1.0, 1.0], [1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]],
        [[0.0, -3.0], [0.0, 0.0], [-1.0, -2.0], [0.0, 0.0]],
        [[0.0, 0.5], [1.0, 1.0], [0.25, 0.0], [0.0, 0.0]],
    ],
    ids=["to ten", "minus one", "at most zero", "partial"],
)
def test_other_rewards_have_an_expected_return_and_no_accuracy(rewards: list[list[float]]) -> None:
    found = measured(rewards)
    # Fewer than twenty rewards say no range.
    interval = mean_interval([sum(group) / 2 for group in rewards])
    values = found.metrics("held_out")
    assert values == {
        "held_out/num_questions": 4.0,
        "held_out/num_unjudged": 0.0,
        "held_out/reward": pytest.approx(interval.mean),
        "held_out/reward_low": pytest.approx(interval.low),
        "held_out/reward_high": pytest.approx(interval.high),
    }
    assert found.accuracy() is None and found.pass_at(1) is None and found.solved() is None


def test_a_run_that_has_seen_other_rewards_never_goes_back_to_accuracies() -> None:
    rewards = [[0.0, 0.0]] * 4
    assert measured(rewards).accuracy() is not None
    assert measured(rewards, before=[0.5]).accuracy() is None


def test_a_task_that_says_what_solves_it_has_both() -> None:
    rewards = [[-1.0, 2.0], [0.5, 0.49], [3.0, 3.0], [0.0, 0.0]]
    found = measured(rewards, solved=0.5)
    assert found.solved() == [[False, True], [True, False], [True, True], [False, False]]
    values = found.metrics("held_out")
    assert values["held_out/accuracy"] == 0.5 and values["held_out/reward"] == pytest.approx(7.99 / 8)
    by_method = measured(rewards, solved=lambda verdict: verdict.reward > 2)  # pyright: ignore[reportUnknownLambdaType, reportUnknownMemberType]
    assert by_method.metrics("held_out")["held_out/accuracy"] == 0.25
    assert by_method.pass_at(2) == 0.25


def test_fewer_than_four_questions_have_no_interval() -> None:
    values = measured([[0.0, 1.0]] * 3, solved=1.0).metrics("held_out")
    counts = {"held_out/num_questions": 3.0, "held_out/num_unjudged": 0.0}
    assert values == counts | {"held_out/reward": 0.5, "held_out/accuracy": 0.5}


def test_no_interval_leaves_the_rewards_that_a_run_has_seen() -> None:
    rewards = [[0.0], [0.0], [0.0], [5.0]]
    assert measured(rewards).reward().low < 0
    assert 0.0 <= measured(rewards, before=[10.0] + [0.0] * 30).reward().low < 0.1
    assert measured(rewards, before=[10.0] + [0.0] * 30).reward().high > 5.0


def test_pass_at_k_is_the_share_of_subsets_with_a_solution() -> None:
    # Enumerates every way to choose k of n: 1 - (1 - c/n)^k, the biased estimate, differs.
    for n, c, k in ((5, 2, 2), (6, 1, 3), (4, 0, 2), (4, 4, 1), (5, 4, 3)):
        outcomes = [True] * c + [False] * (n - c)
        subsets = list(combinations(outcomes, k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    with pytest.raises(ValueError, match="at least 5"):
        pass_at_k(4, 1, 5)


def test_a_measurement_counts_full_reward_only_as_solved() -> None:
    found = measured([[1.0, 0.5], [0.0, 0.99], [1.0, 1.0]], solved=1.0)
    accuracy = found.accuracy()
    assert accuracy is not None and accuracy.mean == pytest.approx(0.5)
    assert found.reward().mean == pytest.approx(4.49 / 6)
    assert found.pass_at(1) == pytest.approx(0.5)
    assert found.pass_at(2) == pytest.approx(2 / 3)


@pytest.mark.parametrize("num_questions", [4, 8, 40])
@pytest.mark.parametrize("values", [(-1.0, 2.0), (0.0, 0.25, 0.5, 0.75, 1.0)], ids=["two", "quarters"])
def test_how_often_the_interval_of_graded_rewards_holds_the_truth(
    values: tuple[float, ...], num_questions: int
) -> None:
    """Questions of one difficulty and of different ones, rewards that are rare or frequent."""
    trials, generator, parts = 300, np.random.default_rng(0), len(values) - 1
    for p in (0.05, 0.3, 0.5, 0.9):
        for alike in (0.0, 0.1, 0.3):
            shape = (trials, num_questions)
            spread = 1 / alike - 1 if alike else 0.0
            chances = generator.beta(p * spread, (1 - p) * spread, shape) if alike else np.full(shape, p)
            rewards = np.array(values)[generator.binomial(parts, chances[..., None], (*shape, 4))]
            truth, covered = values[0] + p * (values[-1] - values[0]), 0
            for sample in rewards:
                scale = Scale()
                scale.take([*values * 10, *sample.ravel()])
                found = reward_interval(sample.tolist(), scale)
                assert values[0] <= found.low <= found.mean <= found.high <= values[-1]
                covered += found.low <= truth + 1e-9 and truth - 1e-9 <= found.high
            # A t-interval covers 0.46 to 0.86 in such corners. The others are known.
            skewed = parts > 1 and alike == 0.3 and p in (0.05, 0.9)
            assert covered / trials >= (0.84 if skewed else 0.92), (p, alike)
