"""Quantiles, means and intervals, against scipy and against what is known."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from gradhat.intervals import interquartile_interval, interquartile_mean, mean_interval, student_t


def test_the_quantile_of_student_is_within_a_percent() -> None:
    for freedom in range(1, 60):
        assert student_t(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=0.01)


def test_the_interval_of_a_mean_is_that_of_scipy() -> None:
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    found = mean_interval(values)
    wanted = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert found.mean == pytest.approx(2.8)
    assert (found.low, found.high) == pytest.approx(wanted, rel=0.01)


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


def test_one_value_leaves_the_interval_open() -> None:
    assert interquartile_interval([[4.0]]) == (4.0, -math.inf, math.inf)
    assert interquartile_interval([[4.0], [5.0, 6.0, 7.0]]) == (5.5, -math.inf, math.inf)


def test_the_bootstrap_is_that_of_scipy() -> None:
    generator = np.random.default_rng(3)
    strata = [generator.exponential(size=12), 4 + generator.normal(size=9)]

    def statistic(*drawn: np.ndarray, axis: int) -> np.ndarray:
        return stats.trim_mean(np.concatenate(drawn, axis=axis), 0.25, axis=axis)

    # scipy draws every sample anew from itself, as a stratified bootstrap does.
    wanted = stats.bootstrap(strata, statistic, n_resamples=20_000, method="percentile", rng=generator)
    found = interquartile_interval([list(values) for values in strata])
    width = wanted.confidence_interval.high - wanted.confidence_interval.low
    assert found.low == pytest.approx(wanted.confidence_interval.low, abs=0.05 * width)
    assert found.high == pytest.approx(wanted.confidence_interval.high, abs=0.05 * width)


def test_the_bootstrap_of_few_values_is_that_of_all_ways_to_draw_them() -> None:
    ways = np.array(list(itertools.product([1.0, 2.0, 3.0, 4.0, 5.0], repeat=5)))
    means = stats.trim_mean(ways, 0.25, axis=1)
    found = interquartile_interval([[4.0, 1.0, 5.0, 2.0, 3.0]])
    assert found == pytest.approx((3.0, *np.quantile(means, [0.025, 0.975])))
    assert found.low == pytest.approx(4 / 3)


def test_strata_that_differ_add_nothing_to_the_spread() -> None:
    # Drawn from all ten together, the mean of the middle would be anything between 0 and 100.
    assert interquartile_interval([[0.0] * 5, [100.0] * 5])[1:] == (50.0, 50.0)
    assert interquartile_interval([[0.0] * 5 + [100.0] * 5]).high > 60


def test_an_interval_depends_on_its_seed_alone_and_little_on_that() -> None:
    values = [list(np.random.default_rng(0).normal(size=20))]
    one, other = interquartile_interval(values), interquartile_interval(values, seed=1)
    assert one == interquartile_interval(values) and one != other
    assert one.low == pytest.approx(other.low, abs=0.05 * (one.high - one.low))


@pytest.mark.parametrize(("size", "least", "most"), [(40, 0.91, 0.98), (5, 0.70, 0.92)])
def test_how_often_the_interval_holds_the_truth(
    size: int, least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # About 95 % of the time with many values, less with five, as the docstring says.
    monkeypatch.setattr("gradhat.intervals.RESAMPLES", 400)
    generator = np.random.default_rng(0)
    found = [interquartile_interval([list(generator.normal(size=size))], seed=i) for i in range(400)]
    covered = sum(interval.low <= 0 <= interval.high for interval in found) / len(found)
    assert least < covered < most
