"""One style for every figure: no box, no legend, no grid; lines and points carry their own names."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#222222"
FAINT = "#9a9a9a"
BLUE = "#1f5fa8"
RED = "#c2402b"
COLOURS = (BLUE, RED, "#3a8a4d", "#8a5aa8", "#b7791f", "#2a9d9d", "#7a4a2b", "#d0539a", "#5b6b7a", "#8c8c1f")
"""Told apart in print and by most colour-blind readers, in this order."""
FONT = 8.5
PANEL = (4.6, 3.7)
"""Inches of one panel, labels included."""
LINE_GAP = 1.25
"""Distance of two labels, in heights of a letter."""
NOISE = "variance / ‖∇J‖²: trajectories until noise = ∇J"
"""Names the axis of a total variance per trajectory: averaged over so many, the noise is as long as ∇J."""
SHORT = 3
"""A logarithmic axis from 1 to less than this has evenly spaced ticks."""
FEW = 6
"""Most parts that those divide it into."""
LEAD = 14
"""Points between the end of a line and its label."""


class End(NamedTuple):
    """A label for the end of a line, in the units of the axes."""

    x: float
    y: float
    text: str
    colour: str


def panels(count: int, *, title: str, width: float = PANEL[0]) -> "tuple[Figure, list[Axes]]":
    """Return a figure with `count` panels side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * count, PANEL[1]), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=FONT + 2, color=INK, fontweight="bold")
    axes = [figure.add_subplot(1, count, i + 1) for i in range(count)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(FAINT)
        ax.tick_params(labelsize=FONT, colors=INK, color=FAINT)
    return figure, axes


def name_axes(ax: "Axes", *, title: str, x: str, y: str) -> None:
    """Name a panel and its axes."""
    ax.set_title(title, loc="left", fontsize=FONT + 0.5, color=INK)
    ax.set_xlabel(x, fontsize=FONT, color=INK)
    ax.set_ylabel(y, fontsize=FONT, color=INK)


def label_ends(ax: "Axes", ends: Sequence[End]) -> None:
    """Write each label right of its line's end, moved up or down so that none covers another.

    They stay within the height of the panel, if it is high enough for all. A thin line leads from a label
    that was moved back to its end. Call it last: the limits must stand.
    """
    if not ends:
        return
    dpi = _laid_out(ax).dpi
    to_pixels, height = ax.transData, FONT * LINE_GAP * dpi / 72
    placed = sorted(ends, key=lambda end: end.y)
    wanted = [float(to_pixels.transform((end.x, end.y))[1]) for end in placed]
    panel = ax.get_window_extent()
    found = spread(wanted, height, low=panel.y0 + height / 2, high=panel.y1 - height / 2)
    for end, y, was in zip(placed, found, wanted, strict=True):
        ax.annotate(
            end.text,
            (end.x, end.y),
            xytext=(LEAD, (y - was) * 72 / dpi),
            textcoords="offset points",
            fontsize=FONT,
            color=end.colour,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": end.colour,
                "lw": 0.5,
                "alpha": 0.6,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 0,
            },
        )


def _laid_out(ax: "Axes") -> "Figure":
    """Return the figure of `ax`, its layout computed, so that positions in pixels are final."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    return figure


def spread(
    wanted: Sequence[float], gap: float, *, low: float = -math.inf, high: float = math.inf
) -> list[float]:
    """Return the ascending positions moved as little as needed to lie `gap` apart (least squares).

    They lie within [low, high]. Where that is too short for all, they go beyond both ends by the same length.
    """
    blocks: list[tuple[float, int]] = []
    for i, y in enumerate(wanted):
        blocks.append((y - i * gap, 1))
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (a, n), (b, m) = blocks[-2], blocks[-1]
            blocks[-2:] = [((a * n + b * m) / (n + m), n + m)]
    # Limits of the first and the last are those of all, once the gaps are taken off: the best then is the
    # best without limits, cut off at them.
    last = high - (len(wanted) - 1) * gap
    if last < low:
        low = last = (low + last) / 2
    flat = [min(max(mean, low), last) for mean, count in blocks for _ in range(count)]
    return [y + i * gap for i, y in enumerate(flat)]


def log_axis(ax: "Axes", which: Literal["x", "y"]) -> None:
    """Make an axis logarithmic, with ticks in plain numbers, more of them where it is short.

    An axis that is too short for round numbers of a fixed list has evenly spaced ones. Call it when
    everything is drawn.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    low, high = ax.get_xlim() if which == "x" else ax.get_ylim()
    axis = ax.xaxis if which == "x" else ax.yaxis
    spans = ((10, (1, 1.5, 2, 3, 4, 5, 6, 8)), (300, (1, 2, 5)), (math.inf, (1,)))
    subs = next(subs for span, subs in spans if high < low * span)
    axis.set_major_locator(
        MaxNLocator(FEW, steps=(1, 2, 2.5, 4, 5, 10)) if high < low * SHORT else LogLocator(subs=subs)
    )
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())
