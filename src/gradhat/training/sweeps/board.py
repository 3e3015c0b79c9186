"""What a person sees of a sweep: one live line for the whole on a terminal, plain lines elsewhere."""

import math
import sys
import time
from collections.abc import Callable
from typing import NamedTuple, Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from gradhat.training.log import duration

LIVE = 1.0
"""Seconds between two looks at the whole on a terminal."""
PLAIN = 60.0
"""Seconds between two lines elsewhere, where nothing else is printed."""


class Progress(NamedTuple):
    """Where a sweep stands."""

    total: int
    done: int
    running: int
    failed: int
    rate: float
    """Frames or tokens a second, of all that are running."""
    unit: str
    seconds_left: float


class Board:
    """Prints a sweep. A context: inside it the live line is on the screen."""

    def __init__(self, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = Console(file=out or sys.stdout, highlight=False, markup=False, soft_wrap=True)
        self._clock = clock
        self._due = clock()
        live = Live(console=self.console, auto_refresh=False, transient=True)
        self._live = live if self.console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print lines that stay, and the state of the whole at the next chance."""
        self.console.print(text)
        self._due = self._clock()

    def show(self, progress: Callable[[], Progress]) -> None:
        """Show the state of the whole when it is time to."""
        if self._clock() < self._due:
            return
        text = line(progress())
        if self._live is not None:
            self._live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
        else:
            self.console.print(text)
        self._due = self._clock() + (PLAIN if self._live is None else LIVE)


def line(progress: Progress) -> str:
    """Return the one line of progress. What is not known yet is left out."""
    parts = [
        f"{progress.done}/{progress.total} done",
        f"{progress.running} running",
        f"{progress.failed} failed",
    ]
    if progress.rate > 0:
        parts.append(f"{progress.unit}/s {progress.rate:,.0f}")
    if math.isfinite(progress.seconds_left):
        parts.append(f"{duration(progress.seconds_left)} left")
    return "  ".join(parts)
