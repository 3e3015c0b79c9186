"""The first request to end is noted, Ctrl-C after it is obeyed, and afterwards all is as it was."""

import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import pytest

from gradhat.training.interrupt import SIGNALS, Interrupt


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """As at the start of a command on a terminal, whatever started the tests."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def test_the_first_is_noted_and_the_second_stops() -> None:
    notes: list[str] = []
    with Interrupt(lambda: notes.append("x")) as interrupt:
        assert not interrupt.asked
        send(signal.SIGINT)
        assert interrupt.asked == signal.SIGINT and notes == ["x"]
        with pytest.raises(KeyboardInterrupt) as end:
            send(signal.SIGINT)
        assert end.value.args == (signal.SIGINT,)
    assert notes == ["x"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_wish_of_the_system_is_noted_once_however_often_it_comes(number: int) -> None:
    """A shell that loses its terminal passes SIGHUP on: it comes twice, and must not cut a save short."""
    notes: list[str] = []
    with Interrupt(lambda: notes.append("x")) as interrupt:
        for again in (number, number, signal.SIGTERM):
            send(again)
        assert interrupt.asked == number and notes == ["x"]
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert interrupt.asked == number


@pytest.mark.parametrize("number", SIGNALS)
def test_where_nothing_is_to_be_saved_the_first_stops(number: int) -> None:
    with Interrupt(lambda: pytest.fail("nothing is finished")) as interrupt:
        with pytest.raises(KeyboardInterrupt) as end, interrupt.at_once():
            send(number)
        assert end.value.args == (number,) and interrupt.asked == number


def test_nohup_is_left_alone_and_an_ignored_ctrl_c_is_heard() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupt(lambda: None) as interrupt:
        send(signal.SIGHUP)
        assert not interrupt.asked
        send(signal.SIGINT)
        assert interrupt.asked
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_the_handlers_before_come_back() -> None:
    def own(signum: int, frame: FrameType | None) -> None: ...

    signal.signal(signal.SIGINT, own)
    signal.signal(signal.SIGTERM, own)
    with Interrupt(lambda: None):
        send(signal.SIGINT)
        send(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGTERM) is own
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


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
