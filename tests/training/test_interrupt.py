"""The first Ctrl-C is noted, the second is obeyed, and afterwards all is as it was."""

import os
import signal
import threading
from types import FrameType

import pytest

from gradhat.training.interrupt import Interrupt


def test_the_first_is_noted_and_the_second_stops() -> None:
    notes: list[str] = []
    with Interrupt(lambda: notes.append("x")) as interrupt:
        assert not interrupt.asked
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.asked and notes == ["x"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert notes == ["x"]


def test_the_handler_before_comes_back() -> None:
    def own(signum: int, frame: FrameType | None) -> None: ...

    before = signal.signal(signal.SIGINT, own)
    try:
        with Interrupt(lambda: None):
            os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is own
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_it_does_nothing() -> None:
    failures: list[BaseException] = []

    def use() -> None:
        try:
            with Interrupt(lambda: None):
                pass
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert failures == []
