"""Learning curves: the mean of several runs with its interval, a line per setting."""

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradhat.intervals import FEWEST, student_t
from gradhat.lab.figure import COLOURS, End, label_ends, name_axes, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Numbers = NDArray[np.float64]
SHADE = 0.16
"""Of the interval around a line, 0 to 1."""
MARGIN = 0.02
"""Of the axis beyond what is possible, so that a line at its edge is seen whole."""
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
    """Lower end of the 95 % t-interval of the mean, at each x on its own; of two or three runs, the least of
    them; −∞ for a single run."""
    high: Numbers
    last: Sequence[float]
    """The last value of each run, wherever that was."""

    @property
    def num_runs(self) -> int:
        """Runs that are averaged over."""
        return len(self.last)


def pooled(name: str, curves: Sequence[Curve], least: float = -math.inf, most: float = math.inf) -> Line:
    """Return the mean of the curves with its interval, over the stretch that all of them cover.

    Between its points a curve is a straight line, so the mean is known everywhere from its values at all
    points of all curves. No interval leaves `least` to `most`, the possible values. ValueError where there is
    no common stretch.
    """
    first, end = max(curve.x[0] for curve in curves), min(curve.x[-1] for curve in curves)
    if end < first:
        raise ValueError(f"{name}: its {len(curves)} curves share no stretch: one ends before another begins")
    x = np.unique(np.concatenate([np.asarray(curve.x, np.float64) for curve in curves]))
    x = x[(first <= x) & (x <= end)]
    ys = np.stack([np.interp(x, curve.x, curve.y) for curve in curves])
    mean, count = ys.mean(0), len(curves)
    if count == 1:
        low, high = np.full_like(mean, -np.inf), np.full_like(mean, np.inf)
    elif count < FEWEST:
        low, high = ys.min(0), ys.max(0)
    else:
        half = student_t(count - 1) * ys.std(0, ddof=1) / np.sqrt(count)
        low, high = np.maximum(least, mean - half), np.minimum(most, mean + half)
    return Line(name, x, mean, low, high, [curve.y[-1] for curve in curves])


def figure(
    lines: Sequence[Line],
    *,
    title: str,
    panel: str,
    x: str,
    y: str,
    possible: tuple[float, float] = (-math.inf, math.inf),
) -> "Figure":
    """Draw a line for each setting with its interval as a band; a single run has no band.

    The axis shows little of what is not `possible`.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

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
    ax.xaxis.set_major_formatter(FuncFormatter(partial(ticked, right=right)))
    bottom, top = ax.get_ylim()
    spare = MARGIN * (top - bottom)
    ax.set_ylim(max(bottom, possible[0] - spare), min(top, possible[1] + spare))
    name_axes(ax, title=panel, x=x, y=y)
    label_ends(ax, ends)
    return drawn


def ticked(value: float, _: int | None = None, *, right: float) -> str:
    """Return the label of a tick of an axis that ends at `right`: all of them in thousands or in millions
    where it is long, "0.5M" and "1M"."""
    for least, size, letter in ((1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if right >= least:
            return f"{value / size:,.6g}{letter if value else ''}"
    return f"{value:,g}"
