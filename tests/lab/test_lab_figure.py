"""Figures: labels that cover nothing, axes in plain numbers."""

import itertools
import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lived import check_labels
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from gradhat.exact.zoo import ZOO
from gradhat.lab.bias import bias
from gradhat.lab.figure import FONT, LINE_GAP, End, label_ends, log_axis, name_axes, panels, spread
from gradhat.lab.microscope import world
from gradhat.lab.shelf import shelf

POSITIONS = st.lists(st.floats(-100, 100), max_size=12).map(sorted)


def pooled(wanted: Sequence[float], gap: float) -> list[float]:
    """The least squares by isotonic regression: the max over beginnings of the min over ends of means."""
    flat = [y - i * gap for i, y in enumerate(wanted)]
    n = len(flat)
    return [
        max(min(sum(flat[j : k + 1]) / (k + 1 - j) for k in range(i, n)) for j in range(i + 1)) + i * gap
        for i in range(n)
    ]


@given(wanted=POSITIONS, gap=st.floats(0.01, 30))
@settings(max_examples=100, deadline=None)
def test_positions_keep_their_order_and_a_gap_and_move_as_little_as_possible(
    wanted: list[float], gap: float
) -> None:
    found = spread(wanted, gap)
    assert len(found) == len(wanted)
    assert all(b - a >= gap * (1 - 1e-9) - 1e-9 for a, b in itertools.pairwise(found))
    assert found == pytest.approx(pooled(wanted, gap), abs=1e-9)
    assert sum(found) == pytest.approx(sum(wanted), abs=1e-8)


@given(
    wanted=POSITIONS.filter(bool),
    gap=st.floats(0.01, 30),
    low=st.floats(-120, 120),
    room=st.floats(0, 300),
    other=st.lists(st.floats(0, 1), min_size=12, max_size=12),
)
@settings(max_examples=100, deadline=None)
def test_positions_stay_within_limits_and_no_others_there_are_nearer(
    wanted: list[float], gap: float, low: float, room: float, other: list[float]
) -> None:
    needed = (len(wanted) - 1) * gap
    high = low + needed + room
    found = spread(wanted, gap, low=low, high=high)
    assert low - 1e-9 <= found[0] and found[-1] <= high + 1e-9
    assert all(b - a >= gap - 1e-9 for a, b in itertools.pairwise(found))
    # Any other places that keep the gap and the limits.
    places = [low + i * gap + room * share for i, share in enumerate(sorted(other[: len(wanted)]))]
    assert squares(found, wanted) <= squares(places, wanted) + 1e-6


def squares(found: Sequence[float], wanted: Sequence[float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(found, wanted, strict=True))


def test_where_there_is_no_room_for_all_they_go_beyond_both_ends_alike() -> None:
    assert spread([0.0, 5.0, 9.0, 10.0], 4.0, low=0.0, high=10.0) == pytest.approx([-1, 3, 7, 11])
    assert spread([], 4.0, low=0.0, high=10.0) == []
    assert spread([-50.0, 70.0], 4.0, low=0.0, high=10.0) == [0.0, 10.0]


@given(wanted=POSITIONS, gap=st.floats(0.01, 30))
@settings(max_examples=50, deadline=None)
def test_positions_that_lie_apart_stay(wanted: list[float], gap: float) -> None:
    apart = [y + 2 * i * gap for i, y in enumerate(wanted)]
    assert spread(apart, gap) == pytest.approx(apart, abs=1e-9)
    once = spread(wanted, gap)
    assert spread(once, gap) == pytest.approx(once, abs=1e-8)


def axes_with(ends: Sequence[End], low: float, high: float) -> tuple[Figure, Axes]:
    drawn, (ax,) = panels(1, title="A title")
    for end in ends:
        ax.plot([0, end.x], [low, end.y], color=end.colour)
    ax.set_ylim(low, high)
    label_ends(ax, ends)
    drawn.draw_without_rendering()
    return drawn, ax


HEIGHTS = st.lists(st.floats(0, 1), min_size=2, max_size=10)


@given(heights=HEIGHTS)
@settings(max_examples=10, deadline=None)
def test_labels_of_lines_do_not_cover_each_other(heights: list[float]) -> None:
    ends = [End(1.0, y, f"line {i} gÅ", "#123456") for i, y in enumerate(heights)]
    drawn, ax = axes_with(ends, 0, 1)
    boxes = {text.get_text(): Text.get_window_extent(text) for text in ax.texts}
    assert set(boxes) == {end.text for end in ends}
    for a, b in itertools.combinations(boxes.values(), 2):
        assert not a.padded(-1).overlaps(b.padded(-1))  # their blank edges may meet
    # From low to high as their lines are, right of them, inside the picture.
    by_height = sorted(boxes, key=lambda text: boxes[text].y0)
    ordered = [next(end.y for end in ends if end.text == text) for text in by_height]
    assert ordered == sorted(ordered)
    right = ax.transData.transform((1.0, 0.5))[0]
    assert all(right < box.x0 and box.x1 <= drawn.bbox.x1 for box in boxes.values())
    panel = ax.get_window_extent()
    assert all(panel.y0 - 1 <= box.y0 and box.y1 <= panel.y1 + 1 for box in boxes.values())


def test_a_label_with_room_stands_at_its_line_and_others_are_led_back_to_theirs() -> None:
    near = 0.001
    ends = [
        End(1.0, 0.2, "alone", "#00ff00"),
        End(1.0, 0.7, "one", "#ff0000"),
        End(1.0, 0.7 + near, "other", "#0000ff"),
    ]
    drawn, ax = axes_with(ends, 0, 1)
    by_text = {text.get_text(): text for text in ax.texts}
    for end in ends:
        text = by_text[end.text]
        assert text.xy == (end.x, end.y) and text.get_color() == end.colour
        assert text.arrow_patch.get_edgecolor()[:3] == tuple(
            int(end.colour[i : i + 2], 16) / 255 for i in (1, 3, 5)
        )
    moved = {name: text.get_position()[1] for name, text in by_text.items()}
    assert moved["alone"] == pytest.approx(0, abs=1e-9)
    height = ax.get_window_extent().height * 72 / drawn.dpi
    # The two share what is missing, in points.
    missing = FONT * LINE_GAP - near * height
    assert moved["other"] == pytest.approx(-moved["one"], rel=1e-6)
    assert moved["other"] == pytest.approx(missing / 2, rel=0.02)


def test_no_line_no_label() -> None:
    _, ax = axes_with([], 0, 1)
    assert not ax.texts


@pytest.mark.parametrize("name", [pytest.param("two_states", marks=pytest.mark.slow), "prompts"])
def test_no_label_of_the_bias_figure_covers_another_or_is_cut_off(name: str) -> None:
    there = world(ZOO[name](), seed=0, spread=0.5)
    (drawn,) = bias({name: there}, {name: shelf(there)}, group_size=3).figures.values()
    check_labels(drawn)


@pytest.mark.parametrize("which", ["x", "y"])
@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1.0, 2.0, ["1", "1.2", "1.4", "1.6", "1.8", "2"]),
        (1.0, 8.0, ["1", "1.5", "2", "3", "4", "5", "6", "8"]),
        (1.0, 100.0, ["1", "2", "5", "10", "20", "50", "100"]),
        (0.1, 10000.0, ["0.1", "1", "10", "100", "1000", "10000"]),
    ],
)
def test_a_logarithmic_axis_has_plain_numbers(
    which: str, low: float, high: float, expected: list[str]
) -> None:
    drawn, (ax,) = panels(1, title="")
    ax.plot([low, high], [low, high])
    (ax.set_xlim if which == "x" else ax.set_ylim)(low, high)
    log_axis(ax, which)
    drawn.draw_without_rendering()
    axis = ax.xaxis if which == "x" else ax.yaxis
    assert axis.get_scale() == "log"
    shown = [
        tick.label1.get_text()
        for tick in axis.get_major_ticks()
        if low * (1 - 1e-9) <= tick.get_loc() <= high * (1 + 1e-9)
    ]
    assert shown == expected
    assert not axis.get_minor_ticks()
    assert (ax.yaxis if which == "x" else ax.xaxis).get_scale() == "linear"


def test_panels_stand_side_by_side_without_a_box() -> None:
    drawn, axes = panels(3, title="What is seen", width=2.0)
    assert drawn.get_figwidth() == 6 and drawn.get_suptitle() == "What is seen"
    drawn.draw_without_rendering()
    boxes = [ax.get_window_extent() for ax in axes]
    assert all(a.x1 < b.x0 and math.isclose(a.y0, b.y0) for a, b in itertools.pairwise(boxes))
    for ax in axes:
        seen = {name: spine.get_visible() for name, spine in ax.spines.items()}
        assert seen == {"left": True, "bottom": True, "top": False, "right": False}
        assert ax.get_legend() is None
    name_axes(axes[0], title="left", x="along", y="up")
    assert (axes[0]._left_title.get_text(), axes[0].get_xlabel(), axes[0].get_ylabel()) == (
        "left",
        "along",
        "up",
    )
