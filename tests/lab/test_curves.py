"""Learning curves: means and intervals at known points, and a picture that shows them."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from lived import check_labels
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from scipy import stats

from gradhat.lab.curves import Curve, Line, figure, pooled, ticked
from gradhat.lab.figure import COLOURS


def test_the_mean_is_exact_at_the_points_of_all_curves() -> None:
    line = pooled("a", [Curve([0, 10, 20], [0, 100, 100]), Curve([0, 5, 20], [0, 0, 30])])
    assert list(line.x) == [0, 5, 10, 20]
    # At 5 the first is half-way to 100; at 10 the second is a third of the way to 30.
    assert list(line.mean) == [0, (50 + 0) / 2, (100 + 10) / 2, (100 + 30) / 2]
    assert (line.name, line.num_runs, line.last) == ("a", 2, [100, 30])


def test_the_interval_is_that_of_student_over_the_runs() -> None:
    ys = np.array([[1.0, 2.0, 4.0, 7.0], [3.0, 3.0, 3.0, 3.0]]).T
    line = pooled("a", [Curve([0, 1], list(y)) for y in ys])
    half = stats.t.ppf(0.975, 3) * stats.sem(ys[:, 0])
    assert line.mean[0] - line.low[0] == pytest.approx(half, rel=1e-2)
    assert line.high[0] - line.mean[0] == pytest.approx(half, rel=1e-2)
    assert (line.low[1], line.mean[1], line.high[1]) == (3.0, 3.0, 3.0)


def test_two_or_three_runs_have_the_least_and_the_most_in_place_of_an_interval() -> None:
    # The t-interval of two runs of CartPole went from -500 to 850.
    line = pooled("a", [Curve([0, 1], [20, 120]), Curve([0, 1], [30, 480])])
    assert (list(line.low), list(line.high), line.last) == ([20, 120], [30, 480], [120, 480])


def test_a_band_does_not_leave_what_is_possible() -> None:
    curves = [Curve([0, 1], [0.0, y]) for y in (1.0, 1.0, 1.0, 0.6)]
    assert pooled("a", curves).high[1] > 1
    assert pooled("a", curves, 0.0, 1.0).high[1] == 1.0


def test_a_single_run_has_its_own_points_and_no_interval() -> None:
    line = pooled("a", [Curve([0, 3], [1, 5])])
    assert (list(line.x), list(line.mean)) == ([0, 3], [1, 5])
    assert list(line.low) == [-math.inf] * 2 and list(line.high) == [math.inf] * 2


def test_a_line_covers_what_all_its_runs_cover() -> None:
    line = pooled("a", [Curve([2, 4, 8], [0, 0, 0]), Curve([0, 4, 6], [2, 2, 2])])
    assert list(line.x) == [2, 4, 6]
    point = pooled("a", [Curve([2, 4], [0, 6]), Curve([0, 2], [2, 2])])
    assert (list(point.x), list(point.mean)) == ([2], [1])
    with pytest.raises(ValueError, match="a: its 2 curves share no stretch"):
        pooled("a", [Curve([2, 4], [0, 0]), Curve([0, 1], [0, 0])])


def drawn(lines: Sequence[Line]) -> Axes:
    made = figure(lines, title="T", panel="mean", x="environment frames", y="return")
    check_labels(made)
    return made.axes[0]


def test_every_setting_is_a_named_line_with_its_band() -> None:
    lines = [
        pooled("lr=0.1", [Curve([0, 5000, 10000], [0, 3 + i, 9]) for i in range(3)]),
        pooled("lr=0.2", [Curve([0, 9000], [1, 2])]),
        pooled("lr=0.3", [Curve([0], [4])]),
    ]
    ax = drawn(lines)
    assert {text.get_text() for text in ax.texts} == {"lr=0.1", "lr=0.2", "lr=0.3"}
    for line, seen, colour in zip(lines, ax.lines, COLOURS, strict=False):
        assert np.array_equal(seen.get_xydata(), np.stack([line.x, line.mean], 1))
        assert seen.get_color() == colour
    # Names stand at the right end of all, and what ends earlier is led there.
    assert {(text.xy[0], text.xy[1]) for text in ax.texts} == {(10000, 9), (10000, 2), (10000, 4)}
    threads = [
        thread.get_segments()[0].tolist() for thread in ax.collections if hasattr(thread, "get_segments")
    ]
    assert threads == [[[9000, 2], [10000, 2]], [[0, 4], [10000, 4]]]
    # A single run has no band, a single measurement is a point.
    bands = [band for band in ax.collections if isinstance(band, PolyCollection)]
    (band,) = bands
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices}
    assert {(5000.0, float(lines[0].low[1])), (5000.0, float(lines[0].high[1]))} <= corners
    assert [seen.get_marker() for seen in ax.lines] == ["", "", "o"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("environment frames", "return")
    assert "10k" in [tick.get_text() for tick in ax.get_xticklabels()]


def test_there_may_be_more_lines_than_colours() -> None:
    lines = [pooled(f"lr={i}", [Curve([0, 1], [i, i])]) for i in range(len(COLOURS) + 2)]
    assert [line.get_color() for line in drawn(lines).lines] == [*COLOURS, *COLOURS[:2]]


def test_ticks_of_one_axis_are_in_one_unit() -> None:
    values = (0.0, 200_000.0, 1_000_000.0, 1_250_000.0)
    assert [ticked(value, right=1_250_000) for value in values] == ["0", "0.2M", "1M", "1.25M"]
    assert [ticked(value, right=50_000) for value in (0.0, 2_500.0, 50_000.0)] == ["0", "2.5k", "50k"]
    assert [ticked(value, right=900) for value in (0.0, 0.5, 900.0)] == ["0", "0.5", "900"]


def test_an_axis_of_accuracies_ends_near_zero_and_one() -> None:
    lines = [pooled("a", [Curve([0, 1], [0.0, 0.0])])]
    low = figure(lines, title="T", panel="", x="steps", y="accuracy", possible=(0.0, 1.0)).axes[0].get_ylim()
    assert -0.01 < low[0] <= 0 and low[1] < 1.01
