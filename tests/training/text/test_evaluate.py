"""Intervals cover what they promise to cover, and pass@k is unbiased."""

import math
import random
from itertools import combinations

import pytest
from scipy import stats

from gradhat.intervals import mean_interval
from gradhat.training.text.evaluate import (
    Measurement,
    accuracy_interval,
    pass_at_k,
    wilson,
)
from gradhat.trajectories import Record, Verdict


def test_wilson_equals_the_reference() -> None:
    for solved, n in ((0, 10), (3, 10), (10, 10), (49, 100)):
        ours = wilson(solved / n, n)
        theirs = stats.binomtest(solved, n).proportion_ci(0.95, method="wilson")
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_one_sample_for_each_question_is_wilson() -> None:
    assert accuracy_interval([1, 0, 0, 1, 1, 0, 1], 1) == wilson(4 / 7, 7)


def test_samples_that_always_agree_count_once() -> None:
    # 4 equal samples of each of 7 questions are 7 trials; a formula that ignores clusters says 28.
    ours, once = accuracy_interval([4, 0, 0, 4, 4, 0, 4], 4), wilson(4 / 7, 7)
    assert (ours.low, ours.high) == pytest.approx((once.low, once.high))


def test_samples_that_spread_evenly_count_each_but_never_more() -> None:
    assert accuracy_interval([2] * 10, 4) == wilson(0.5, 40)


def test_nothing_solved_keeps_an_interval_of_the_number_of_questions() -> None:
    assert accuracy_interval([0] * 20, 4) == wilson(0.0, 20)


def test_the_interval_covers_the_truth_when_questions_differ() -> None:
    # Questions differ in difficulty, mostly all or nothing. Wilson on all samples covers far too little.
    rng = random.Random(0)
    trials, hits, naive = 600, 0, 0
    for _ in range(trials):
        chances = [rng.betavariate(0.5, 0.5) for _ in range(45)]
        solved = [sum(rng.random() < c for _ in range(4)) for c in chances]
        ours, ignorant = accuracy_interval(solved, 4), wilson(sum(solved) / 180, 180)
        hits += ours.low <= 0.5 <= ours.high
        naive += ignorant.low <= 0.5 <= ignorant.high
    assert 0.93 <= hits / trials <= 0.975
    assert naive / trials < 0.85


def test_the_mean_of_groups_has_the_t_interval() -> None:
    groups = [0.25, 1.0, 0.5, 0.0, 0.75, 0.5, 0.125, 0.25]
    low, high = stats.t.interval(0.95, 7, loc=stats.tmean(groups), scale=stats.sem(groups))
    ours = mean_interval(groups)
    assert (ours.low, ours.high) == pytest.approx((low, high), rel=1e-3)
    assert mean_interval([0.5]).high == math.inf


def test_pass_at_k_is_the_share_of_subsets_with_a_solution() -> None:
    # Enumerates every way to choose k of n: 1 - (1 - c/n)^k, the biased estimate, differs.
    for n, c, k in ((5, 2, 2), (6, 1, 3), (4, 0, 2), (4, 4, 1), (5, 4, 3)):
        outcomes = [True] * c + [False] * (n - c)
        subsets = list(combinations(outcomes, k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    with pytest.raises(ValueError, match="at least 5"):
        pass_at_k(4, 1, 5)


def test_a_measurement_counts_full_reward_only_as_solved() -> None:
    def records(*rewards: float) -> list[Record]:
        return [Record("", "", Verdict(reward, {}, ""), "end") for reward in rewards]

    measured = Measurement([records(1.0, 0.5), records(0.0, 0.99), records(1.0, 1.0)])
    assert measured.solved() == [1, 0, 2]
    assert measured.accuracy().mean == pytest.approx(0.5)
    assert measured.reward() == pytest.approx(4.49 / 6)
    assert measured.pass_at(1) == pytest.approx(0.5)
    assert measured.pass_at(2) == pytest.approx(2 / 3)
