"""A time limit that somebody else's code can neither swallow nor switch off, and that leaves no trace."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from gradhat.envs.text.guard import PAUSE, TimeUp, attribute, guarded, settled, shown, within
from gradhat.errors import TaskError

# ruff: noqa: E722


def sleep() -> None:
    time.sleep(30)


def spin() -> None:
    while True:
        pass


def lives_on() -> None:
    going = True
    while going:
        try:
            time.sleep(30)
        except:
            going = True


def spins_on() -> None:
    going = True
    while going:
        try:
            while True:
                pass
        except BaseException:
            going = True


def lives_on_thrice() -> None:
    going = True
    while going:
        try:
            while going:
                try:
                    lives_on()
                except:
                    going = True
        except:
            going = True


def generator_lives_on() -> None:
    def forever() -> Generator[None]:
        going = True
        while going:
            try:
                yield time.sleep(30)
            except:
                going = True

    for _ in forever():
        pass


def returns_all_the_same() -> float:
    try:
        time.sleep(30)
        return 1.0
    except:
        return 0.25


def raises_something_else() -> None:
    try:
        time.sleep(30)
    except BaseException as error:
        raise ValueError("no answer") from error


def switches_alarms_off() -> None:
    previous = signal.signal(signal.SIGALRM, lambda signum, frame: None)
    signal.alarm(5)
    signal.alarm(0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)
    time.sleep(30)


def waits_for_a_thread() -> None:
    threading.Event().wait()


async def never() -> None:
    await asyncio.sleep(30)


async def busy() -> None:
    while True:
        pass


def awaits() -> None:
    settled(never())


def awaits_what_is_busy() -> None:
    settled(busy())


HANGS: list[Callable[[], Any]] = [
    *(sleep, spin, lives_on, spins_on, lives_on_thrice, generator_lives_on),
    *(returns_all_the_same, raises_something_else, switches_alarms_off, waits_for_a_thread),
    *(awaits, awaits_what_is_busy),
]


@pytest.mark.parametrize("hang", HANGS)
def test_what_hangs_is_stopped(hang: Callable[[], Any]) -> None:
    began = time.monotonic()
    with pytest.raises(TaskError, match=r"my task took more than 0\.05 s"):
        guarded("my task", 0.05, hang)
    assert time.monotonic() - began < 5
    assert within(5, lambda: 3) == 3


def test_one_that_keeps_what_it_swallowed_is_stopped_again() -> None:
    kept: list[BaseException] = []

    def keeps() -> None:
        for _ in range(2):
            try:
                time.sleep(30)
            except BaseException as error:
                kept.append(error)

    began = time.monotonic()
    with pytest.raises(TimeUp):
        within(0.05, keeps)
    assert [type(error) for error in kept] == [TimeUp, TimeUp]
    assert PAUSE <= time.monotonic() - began < 5


def test_clean_up_has_its_time() -> None:
    done: list[bool] = []

    def tidies() -> None:
        try:
            time.sleep(30)
        finally:
            time.sleep(PAUSE / 4)
            done.append(True)

    with pytest.raises(TimeUp):
        within(0.05, tidies)
    assert done == [True]


def test_a_result_in_time_is_returned_and_an_exception_passes() -> None:
    assert guarded("my task", 5, lambda: 3) == 3
    with pytest.raises(TaskError, match=r"^my task raised KeyError: 'colour'\. Fix the task") as caught:
        guarded("my task", 5, lambda: {}["colour"])
    assert isinstance(caught.value.__cause__, KeyError)
    with pytest.raises(KeyboardInterrupt):
        guarded("my task", 5, interrupted)
    with pytest.raises(TaskError, match="SystemExit"):
        guarded("my task", 5, lambda: exit(0))


def interrupted() -> None:
    raise KeyboardInterrupt


# Time may be up while a callback of the garbage collector runs, from which Python lets no error out: it tells
# of it, and the next alarm stops the task.
@pytest.mark.filterwarnings("ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_in_a_late_task_is_ctrl_c() -> None:
    def late() -> None:
        with suppress(TimeUp):
            time.sleep(30)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        within(0.05, late)


def test_limits_nest() -> None:
    def swallows_the_inner() -> int:
        with suppress(TimeUp):
            within(0.05, lives_on)
        return 3

    assert within(5, swallows_the_inner) == 3
    began = time.monotonic()
    with pytest.raises(TaskError, match=r"outer took more than 0\.05 s"):
        guarded("outer", 0.05, lambda: guarded("inner", 20, lives_on))
    with pytest.raises(TaskError, match=r"outer took more than 0\.3 s"):
        guarded("outer", 0.3, lambda: (swallows_the_inner(), lives_on()))
    assert time.monotonic() - began < 5


def test_alarms_of_others_ring_as_they_would() -> None:
    rang: list[int] = []
    previous = signal.signal(signal.SIGALRM, lambda signum, frame: rang.append(signum))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(TimeUp):
            within(0.2, sleep)
        assert rang == [signal.SIGALRM]
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_the_signal_from_elsewhere_is_no_time_limit() -> None:
    def signalled() -> int:
        os.kill(os.getpid(), signal.SIGURG)
        return 3

    assert within(5, signalled) == 3
    signalled()


def test_other_threads_run_without_a_limit() -> None:
    found: list[object] = []

    def run() -> None:
        found.append(within(0.01, lambda: time.sleep(0.1) or 3))

        async def three() -> int:
            return 3

        found.append(settled(three()))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [3, 3]


def test_coroutines_share_a_loop_and_one_that_was_stopped_is_cancelled() -> None:
    ended: list[str] = []

    async def loop() -> int:
        return id(asyncio.get_running_loop())

    async def tidies() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.append("tidied")

    first = settled(loop())
    with pytest.raises(TimeUp):
        within(0.05, lambda: settled(tidies()))
    assert ended == ["tidied"]
    assert settled(loop()) == first
    assert settled(3) == 3


BACKGROUND = """
import asyncio, gc
from gradhat.envs.text.guard import guarded, settled
from gradhat.errors import TaskError

async def ends(error):
    await asyncio.sleep(0)
    raise error

async def starts(error):
    asyncio.ensure_future(ends(error))
    return 3

async def three():
    return 3

for error in (SystemExit(7), KeyError("level")):
    print(settled(starts(error)))
    for _ in range(2):
        try:
            print(guarded("my task", 5, lambda: settled(three())))
        except TaskError as error:
            print(error)
    gc.collect()
"""


def test_an_exit_in_the_background_is_one_error_and_another_exception_is_told() -> None:
    done = subprocess.run([sys.executable, "-c", BACKGROUND], capture_output=True, text=True, check=True)
    first, error, *rest = done.stdout.splitlines()
    assert (first, rest) == ("3", ["3"] * 4) and error.startswith("my task raised SystemExit: 7. Fix")
    assert "never awaited" not in done.stderr and "SystemExit" not in done.stderr
    assert done.stderr.count("exception=KeyError('level')") == 1


def test_in_a_running_loop_a_coroutine_is_run_all_the_same() -> None:
    async def three() -> int:
        return 3

    async def notebook() -> object:
        return settled(three())

    assert asyncio.run(notebook()) == 3


def test_a_missing_module_gets_its_own_advice() -> None:
    def imports() -> None:
        import no_such_module  # noqa: F401 # type: ignore[import-not-found]

    with pytest.raises(TaskError, match=r"ModuleNotFoundError.*beside the task file"):
        guarded("my task", 5, imports)


def test_an_attribute_that_raises_is_a_task_error() -> None:
    class Raises:
        three = 3

        @property
        def solved(self) -> float:
            raise KeyError("level")

    assert attribute("my task", Raises(), "three") == 3
    assert attribute("my task", Raises(), "four") is None
    with pytest.raises(TaskError, match="my task: reading solved raised KeyError: 'level'"):
        attribute("my task", Raises(), "solved")


class Own(BaseException):
    """No Exception: what a library of somebody else's may raise to get past `except Exception`."""


@pytest.mark.parametrize("error", [Own("boo"), SystemExit(3), GeneratorExit(), asyncio.CancelledError()])
def test_whatever_is_raised_is_a_task_error(error: BaseException) -> None:
    def raises() -> None:
        raise error

    with pytest.raises(TaskError, match=f"my task raised {type(error).__name__}"):
        guarded("my task", 5, raises)


def test_ctrl_c_in_a_task_is_ctrl_c() -> None:
    def raises() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guarded("my task", 5, raises)


def test_the_folder_the_streams_and_gradients_are_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Path.cwd()
    streams = sys.stdin, sys.stdout, sys.stderr

    def strays() -> None:
        os.chdir(tmp_path)
        monkeypatch.setattr("sys.stdout", None)
        monkeypatch.setattr("sys.stderr", 5)
        monkeypatch.setattr("sys.stdin", None)
        torch.set_grad_enabled(False)

    guarded("my task", 5, strays)
    assert torch.is_grad_enabled()
    assert Path.cwd() == before
    assert streams == (sys.stdin, sys.stdout, sys.stderr)


def test_a_file_may_settle_in_a_folder_of_its_own_if_that_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, gone = tmp_path / "here", tmp_path / "gone"
    here.mkdir()
    gone.mkdir()
    monkeypatch.chdir(tmp_path)
    guarded("my task", 5, lambda: os.chdir(here), loading=True)
    assert Path.cwd() == here

    def leaves() -> None:
        os.chdir(gone)
        gone.rmdir()

    guarded("my task", 5, leaves, loading=True)
    assert Path.cwd() == here


def test_what_cannot_be_shown_is_named_by_its_class() -> None:
    class Shy(Exception):
        def __repr__(self) -> str:
            raise SystemExit(3)

        __str__ = __repr__

    def raises() -> None:
        raise Shy

    assert shown(Shy()) == "an object of the class Shy"
    with pytest.raises(TaskError, match="my task raised Shy: its text cannot be read"):
        guarded("my task", 5, raises)


def test_ctrl_c_while_something_is_shown_is_ctrl_c() -> None:
    class Slow(Exception):
        def __repr__(self) -> str:
            raise KeyboardInterrupt

        __str__ = __repr__

    def raises() -> None:
        raise Slow

    with pytest.raises(KeyboardInterrupt):
        shown(Slow())
    with pytest.raises(KeyboardInterrupt):
        guarded("my task", 5, raises)
