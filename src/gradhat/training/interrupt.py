"""Ctrl-C as a request: the first is answered at the end of the step, the second at once."""

import signal
import threading
from collections.abc import Callable
from types import FrameType


class Interrupt:
    """Inside this context the first Ctrl-C only sets `asked` and calls `notify`. The second raises
    KeyboardInterrupt.

    Signals reach the main thread only; in another thread Ctrl-C is left as it is.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        self.asked = False
        self.notify = notify
        self._previous: Callable[[int, FrameType | None], object] | int | None = None

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._previous)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.notify()
