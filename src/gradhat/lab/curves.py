"""Learning curves: the mean of several runs with its interval, a line per setting."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradhat.intervals import student_t
from gradhat.lab.figure import COLOURS, End, label_ends, name_axes, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Numbers = NDArray[np.float64]
SHADE = 0.16
"""Of the interval around a line, 0 to 1."""
WIDTH = 7.2
"""Inches: curves are wider than other panels."""


class Curve(NamedTuple):
    """Where a run was measured, in ascending order, and what was found."""

    x: Sequence[float]
    y: Sequence[float]


class Line(NamedTuple):
    """Several runs of one setting. `mean`, `low` and `high` are as long as `x`."""

    name: str
    x: Numbers
    mean: Numbers
    low: Numbers
    """Lower end of the 95 % t-interval of the mean, at each x on its own; −∞ for a single run."""
    high: Numbers
    num_runs: int


def pooled(name: str, curves: Sequence[Curve]) -> Line:
    """Return the mean of the curves with its interval, over the stretch that all of them cover.

    Between its points a curve is a straight line, so the mean is known everywhere from its values at all
    points of all curves. ValueError where there is no common stretch.
    """
    first, last = max(curve.x[0] for curve in curves), min(curve.x[-1] for curve in curves)
    if last < first:
        raise ValueError(f"{name}: its {len(curves)} curves share no stretch: one ends before another begins")
    x = np.unique(np.concatenate([np.asarray(curve.x, np.float64) for curve in curves]))
    x = x[(first <= x) & (x <= last)]
    ys = np.stack([np.interp(x, curve.x, curve.y) for curve in curves])
    mean, count = ys.mean(0), len(curves)
    if count == 1:
        half = np.full_like(mean, np.inf)
    else:
        half = student_t(count - 1) * ys.std(0, ddof=1) / np.sqrt(count)
    return Line(name, x, mean, mean - half, mean + half, count)


def figure(lines: Sequence[Line], *, title: str, panel: str, x: str, y: str) -> "Figure":
    """Draw a line for each setting with its interval as a band; a single run has no band."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    drawn, (ax,) = panels(1, title=title, width=WIDTH)
    ends: list[End] = []
    right = max(float(line.x[-1]) for line in lines)
    for i, line in enumerate(lines):
        colour = COLOURS[i % len(COLOURS)]
        if line.num_runs > 1:
            ax.fill_between(line.x, line.low, line.high, color=colour, alpha=SHADE, lw=0)
        # A run that was measured once is a point.
        ax.plot(line.x, line.mean, color=colour, lw=1.4, marker="o" if len(line.x) == 1 else "", ms=4)
        last, y_last = float(line.x[-1]), float(line.mean[-1])
        if last < right:
            # All names stand right of all lines: a thread leads there.
            ax.hlines(y_last, last, right, colors=colour, lw=0.5, linestyles="dotted")
        ends.append(End(right, y_last, line.name, colour))
    ax.margins(x=0.01)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    name_axes(ax, title=panel, x=x, y=y)
    label_ends(ax, ends)
    return drawn
