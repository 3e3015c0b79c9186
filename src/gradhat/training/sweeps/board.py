"""What a person sees of a sweep: one live line for the whole on a terminal, plain lines elsewhere."""

import math
import time
from collections.abc import Callable
from typing import NamedTuple, TextIO

from gradhat.training.log import Screen, duration

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


class Board(Screen):
    """Prints a sweep."""

    def __init__(self, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(out)
        self._clock = clock
        self._due = clock()

    def say(self, text: str) -> None:
        """Print lines that stay, and the state of the whole at the next chance."""
        super().say(text)
        self._due = self._clock()

    def show(self, progress: Callable[[], Progress]) -> None:
        """Show the state of the whole when it is time to."""
        if self._clock() < self._due:
            return
        self.state(line(progress()))
        self._due = self._clock() + (LIVE if self.is_live else PLAIN)


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
