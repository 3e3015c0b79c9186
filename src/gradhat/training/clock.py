"""Where the seconds of a run go: each belongs to one line of metrics, and to one of its parts."""

import time
from collections.abc import Mapping

PART = "time/"
"""Prefix of the metric of a part."""
REST = "time/rest"
"""What is in none of the other parts: metrics, lines, the screen."""


class Clock:
    """Measures parts, one after the other, without a gap between them."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """End a stretch of the part `name`; the next stretch begins."""
        now = time.perf_counter()
        self._laps[name] = self._laps.get(name, 0.0) + now - self._last
        self._last = now

    def parts(self) -> dict[str, float]:
        """Return the seconds of each part as metrics."""
        return {PART + name: seconds for name, seconds in self._laps.items()}

    def line(self, values: Mapping[str, float]) -> dict[str, float]:
        """Return the seconds since the last line and their parts, and begin the next line.

        `values` may know parts of the stretches of "rest". What is in none of the parts stays there, so that
        the parts add up to `step_time`, and the times of all lines to the time of the run.
        """
        self.lap("rest")
        known = {key: value for key, value in values.items() if key.startswith(PART) and key != REST}
        total, parts = sum(self._laps.values()), self.parts()
        self._laps = {}
        return {"step_time": total, **known, **parts, REST: max(0.0, parts[REST] - sum(known.values()))}

    def pending(self) -> float:
        """Return the seconds since the last line."""
        self.lap("rest")
        return sum(self._laps.values())
