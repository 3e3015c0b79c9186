"""Means and intervals, against scipy, against what is known, and by how often they hold the truth."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from gradhat.intervals import (
    Interval,
    Seen,
    binomial_interval,
    interquartile_interval,
    interquartile_mean,
    mean_interval,
    number,
    places,
    range_interval,
    share_interval,
    student_t,
    written,
)


def test_the_quantile_of_student_is_within_a_percent() -> None:
    for freedom in range(1, 60):
        assert student_t(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.01)


def test_the_interval_of_a_mean_is_that_of_scipy() -> None:
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    found = mean_interval(values)
    wanted = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert found.mean == pytest.approx(2.8)
    assert (found.low, found.high) == pytest.approx(wanted, rel=0.01)


@pytest.mark.parametrize("values", [[500.0], [500.0, 500.0], [460.2, 118.7], [1.0, 2.0, 3.0]])
def test_fewer_than_four_values_have_no_interval(values: list[float]) -> None:
    # Two equal returns said [500.0, 500.0], two that differ said [-117.6, 695.6] in a world that ends at 500.
    mean = sum(values) / len(values)
    assert mean_interval(values) == (mean, -math.inf, math.inf)
    assert mean_interval(values, 0.0, 500.0) == (mean, 0.0, 500.0)


def test_an_interval_does_not_leave_what_is_possible() -> None:
    returns = [500.0, 500.0, 500.0, 120.0]
    assert mean_interval(returns).high > 500
    assert mean_interval(returns, 0.0, 500.0).high == 500
    assert mean_interval(returns, 0.0, 500.0).low == mean_interval(returns).low
    assert mean_interval([0.0, 0.0, 0.0, 1.0], 0.0, 1.0).low == 0.0


def test_the_interval_of_a_share_is_that_of_scipy() -> None:
    for solved, n in ((0, 10), (3, 10), (10, 10), (49, 100)):
        ours = binomial_interval(solved / n, n)
        theirs = stats.binomtest(solved, n).proportion_ci(0.95, method="exact")
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def test_one_trial_of_each_question_pays_only_for_dividing_by_one_less() -> None:
    # Var(p) = Σ (p_q - p)² / (Q (Q - 1)) of single trials is p (1 - p) / (Q - 1).
    assert share_interval([1, 0, 0, 1, 1, 0, 1], 7) == pytest.approx(binomial_interval(4 / 7, 6))


def test_samples_that_always_agree_count_less_than_once() -> None:
    # 4 equal samples of each of 7 questions. A formula that ignores clusters counts 28 trials, one without
    # the quotient of quantiles 6.
    factor = (stats.t.ppf(0.975, 27) / stats.t.ppf(0.975, 6)) ** 2
    assert share_interval([1, 0, 0, 1, 1, 0, 1], 28) == pytest.approx(
        binomial_interval(4 / 7, 6 * factor), rel=0.01
    )


def test_samples_that_spread_evenly_count_each_but_never_more() -> None:
    assert share_interval([0.5] * 10, 40) == binomial_interval(0.5, 40)
    assert share_interval([0.5, 0.5, 0.5, 0.5, 0.25], 20).low >= binomial_interval(0.45, 20).low


def test_nothing_solved_keeps_an_interval_of_the_number_of_questions() -> None:
    assert share_interval([0.0] * 20, 80) == binomial_interval(0.0, 20)
    assert share_interval([1.0] * 20, 80) == binomial_interval(1.0, 20)


def test_fewer_than_four_questions_may_have_any_share() -> None:
    for count in (1, 2, 3):
        assert share_interval([0.5] * count, 64 * count) == (0.5, 0.0, 1.0)


@pytest.mark.parametrize("num_questions", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("num_samples", [1, 4, 16])
def test_how_often_the_interval_of_a_share_holds_the_truth(num_questions: int, num_samples: int) -> None:
    """Questions of one difficulty, of slightly different ones, and of nearly all or nothing."""
    trials, generator = 400, np.random.default_rng(0)
    for p in (0.05, 0.25, 0.5, 0.88):
        for alike in (0.0, 0.1, 0.5):
            shape = (trials, num_questions)
            spread = 1 / alike - 1 if alike else 0.0
            chances = generator.beta(p * spread, (1 - p) * spread, shape) if alike else np.full(shape, p)
            solved = generator.binomial(num_samples, chances)
            found = [share_interval(list(row / num_samples), row.size * num_samples) for row in solved]
            assert all(0 <= one.low <= one.mean <= one.high <= 1 for one in found)
            covered = sum(one.low <= p <= one.high for one in found) / trials
            # 400 trials of 95 % find less than 92 % once in 200; the tails of 16 unlike samples are known.
            skewed = num_samples == 16 and num_questions >= 5 and p in (0.05, 0.88)
            assert covered >= (0.87 if skewed else 0.92), (p, alike)


@pytest.mark.parametrize("size", [4, 5, 20])
def test_how_often_the_interval_of_a_mean_holds_the_truth(size: int) -> None:
    generator = np.random.default_rng(0)
    found = [mean_interval(list(generator.normal(size=size))) for _ in range(1000)]
    assert 0.93 < sum(one.low <= 0 <= one.high for one in found) / len(found) < 0.97


def test_within_a_range_the_interval_is_a_share_on_its_scale() -> None:
    """In the middle of the range it is as long as the t-interval; near an end it leans away from it."""
    values = [0.4, 0.5, 0.55, 0.6, 0.45, 0.5]
    found, plain = range_interval(values, 0.0, 1.0), mean_interval(values)
    assert found[1:] == pytest.approx(plain[1:], abs=3e-3)
    scaled = range_interval([30 * v - 10 for v in values], -10.0, 20.0)
    assert scaled == pytest.approx([30 * v - 10 for v in found])
    rare = [-1.0] * 7 + [2.0]
    found, plain = range_interval(rare, -1.0, 2.0), mean_interval(rare)
    # p (1 - p) / Var(p) is 7 for one of eight, and t of 7 degrees is 2.3646.
    share = binomial_interval(1 / 8, 7 * (1.959964 / 2.3646) ** 2)
    assert found == pytest.approx((-0.625, 3 * share.low - 1, 3 * share.high - 1), rel=1e-2)
    assert found.low > -1 > plain.low and found.high > plain.high


def test_without_a_range_or_a_spread_it_is_the_interval_of_a_mean() -> None:
    assert range_interval([1.0, 2.0, 3.0, 7.0], -math.inf, math.inf) == mean_interval([1.0, 2.0, 3.0, 7.0])
    assert range_interval([3.0] * 5, 0.0, 9.0) == (3.0, 3.0, 3.0)
    assert range_interval([3.0, 4.0], 0.0, 9.0) == (3.5, 0.0, 9.0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 2.0, 6.0], 3.0),
        # The lowest and the highest of four, and of seven, are left out; two at each end of eight.
        ([100.0, 1.0, 2.0, -50.0], 1.5),
        ([5.0, 1.0, 2.0, 3.0, 4.0, 99.0, -99.0], 3.0),
        ([1.0, 1.0, 2.0, 3.0, 4.0, 8.0, 9.0, 9.0], 17 / 4),
    ],
)
def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end(
    values: list[float], expected: float
) -> None:
    assert interquartile_mean(values) == pytest.approx(expected)
    assert interquartile_interval([values]).mean == interquartile_mean(values)


def test_few_values_leave_the_interval_open() -> None:
    for strata in ([[4.0]], [[4.0, 5.0, 6.0, 7.0]], [[4.0], [5.0, 6.0, 7.0, 8.0]], [[4.0, 4.0], [5.0, 6.0]]):
        assert interquartile_interval(strata)[1:] == (-math.inf, math.inf)


def tail(count: int, strata: int) -> float:
    """What is cut off at each end for `count` values."""
    freedom = count - strata
    return stats.norm.cdf(-math.sqrt(count / freedom) * stats.t.ppf(0.975, freedom))


def test_the_bootstrap_is_that_of_scipy() -> None:
    generator = np.random.default_rng(3)
    strata = [generator.exponential(size=12), 4 + generator.normal(size=9)]

    def statistic(*drawn: np.ndarray, axis: int) -> np.ndarray:
        return stats.trim_mean(np.concatenate(drawn, axis=axis), 0.25, axis=axis)

    # scipy draws every sample anew from itself, as a stratified bootstrap does.
    wanted = stats.bootstrap(
        strata,
        statistic,
        n_resamples=20_000,
        confidence_level=1 - 2 * tail(21, 2),
        method="percentile",
        rng=generator,
    )
    found = interquartile_interval([list(values) for values in strata])
    width = wanted.confidence_interval.high - wanted.confidence_interval.low
    assert found.low == pytest.approx(wanted.confidence_interval.low, abs=0.05 * width)
    assert found.high == pytest.approx(wanted.confidence_interval.high, abs=0.05 * width)


def test_the_bootstrap_of_few_values_is_that_of_all_ways_to_draw_them() -> None:
    ways = np.array(list(itertools.product([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], repeat=6)))
    means = stats.trim_mean(ways, 0.25, axis=1)
    found = interquartile_interval([[4.0, 1.0, 5.0, 2.0, 3.0, 6.0]])
    assert found == pytest.approx((3.5, *np.quantile(means, [tail(6, 1), 1 - tail(6, 1)])), abs=0.26)
    assert found.low < np.quantile(means, 0.025) and found.high > np.quantile(means, 0.975)


def test_strata_that_differ_add_nothing_to_the_spread() -> None:
    # Drawn from all ten together, the mean of the middle would be anything between 0 and 100.
    assert interquartile_interval([[0.0] * 5, [100.0] * 5])[1:] == (50.0, 50.0)
    assert interquartile_interval([[0.0] * 5 + [100.0] * 5]).high > 60


def test_an_interval_depends_on_its_seed_alone_and_little_on_that() -> None:
    values = [list(np.random.default_rng(0).normal(size=20))]
    one, other = interquartile_interval(values), interquartile_interval(values, seed=1)
    assert one == interquartile_interval(values) and one != other
    assert one.low == pytest.approx(other.low, abs=0.05 * (one.high - one.low))


@pytest.mark.parametrize(("size", "least", "most"), [(40, 0.93, 0.98), (5, 0.88, 0.96)])
def test_how_often_the_interval_of_the_middle_holds_the_truth(
    size: int, least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradhat.intervals.RESAMPLES", 1000)
    generator = np.random.default_rng(0)
    found = [interquartile_interval([list(generator.normal(size=size))], seed=i) for i in range(400)]
    covered = sum(interval.low <= 0 <= interval.high for interval in found) / len(found)
    assert least < covered < most


def test_the_range_of_what_was_seen_is_believed_once_enough_was_seen() -> None:
    seen = Seen()
    assert seen.scale() == 0 and seen.bounds() == (-math.inf, math.inf)
    seen.take([3.0, -7.0])
    assert seen.scale() == 7 and seen.bounds() == (-math.inf, math.inf)
    seen.take([5.0] * 18)
    assert (seen.bounds(), seen.scale(), seen.count) == ((-7.0, 5.0), 7.0, 20)


def test_digits_follow_the_scale_of_the_world() -> None:
    # FrozenLake's 0.73 and 0.75 differ; CartPole needs one decimal.
    assert [places(scale) for scale in (0.0, 0.74, 1.0, 7.3, -10.0, 500.0)] == [3, 3, 3, 2, 2, 1]
    assert number(0.73, 1.0) != number(0.75, 1.0)
    assert number(500.0, 500.0) == "500.0"


def test_there_is_no_negative_zero() -> None:
    assert number(-0.0, 500.0) == number(-0.04, 500.0) == "0.0"
    assert number(-0.06, 500.0) == "-0.1"


def test_an_estimate_is_written_with_its_interval_or_with_how_many_values_it_has() -> None:
    assert written(Interval(0.47, 0.41, 0.53), 64, 1.0) == "0.470 [0.410, 0.530]"
    assert written(Interval(-0.01, -0.04, 0.02), 64, 500.0) == "0.0 [0.0, 0.0]"
    for count in (1, 2, 3):
        assert written(mean_interval([290.0] * count), count, 500.0) == f"290.0 (n={count})"
        assert written(mean_interval([290.0] * count, 0.0, 500.0), count, 500.0) == f"290.0 (n={count})"
    assert written(Interval(7.0, -math.inf, math.inf), 4, 10.0) == "7.00 (n=4)"
    assert written(mean_interval([500.0] * 20), 20, 500.0) == "500.0 (all 20)"
