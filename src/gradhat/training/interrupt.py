"""Requests to end, from a person or the system: the first is answered at the end of the step."""

import signal
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C; the wish of a scheduler or of the system that shuts down; the end of the terminal."""

SIGNAL_EXIT = 128
"""The exit code of a command that a signal ended is this and the number of the signal."""


class Interrupt:
    """Inside this context the first of `SIGNALS` only sets `asked` and calls `notify`. Ctrl-C after that
    raises KeyboardInterrupt with the number of the signal; others that follow mean the same as the first.

    SIGTERM and SIGHUP are left alone where they would not end the process: under nohup it outlives its
    terminal. SIGINT is taken also where it is ignored, as in a command that a script put in the background:
    whoever sends it means it.

    Signals reach the main thread only; in another thread all is left as it is.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        self.asked = 0
        """The number of the signal that came first, 0 before."""
        self.notify = notify
        self._at_once = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                before = signal.getsignal(number)
                if before is signal.SIG_DFL or (number is signal.SIGINT and before is not None):
                    self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    @contextmanager
    def at_once(self) -> Generator[None]:
        """Inside this context the first signal raises KeyboardInterrupt: there is nothing to save."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if self.asked and signum != signal.SIGINT:
            return
        again, self.asked = bool(self.asked), self.asked or signum
        if again or self._at_once:
            raise KeyboardInterrupt(signum)
        self.notify()
