"""Calling somebody else's code: a time limit that it cannot swallow, and errors that name what was asked.

The limit holds where Python can interrupt a call: in the main thread, on systems with signals (Linux, macOS).
In other threads and on Windows a call takes as long as it takes. A call into C that never returns to Python
cannot be interrupted anywhere.
"""

import _thread
import asyncio
import atexit
import functools
import inspect
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any, TypeVar, cast

from gradhat.envs.left_as_found import left_as_found
from gradhat.envs.text.verify import shorten
from gradhat.errors import TaskError

T = TypeVar("T")

SIGNAL = int(getattr(signal, "SIGURG", 0))
"""Not SIGALRM: tasks use that one themselves. The system ignores this one where nobody asks for it."""
FIX = "Fix the task; a wrong answer is a reward, not an error."
"""What to do about an exception, where a task raised it."""
SECONDS = 60.0
"""That reading an attribute may take."""
PAUSE = 1.0
"""Seconds that clean-up in the interrupted code has, between one interruption and the next."""


def guarded(
    asked: str, seconds: float, function: Callable[[], T], *, loading: bool = False, todo: str = FIX
) -> T:
    """Return `function()`; an exception, an exit or an overrun is a TaskError that begins with `asked`, and
    ends with `todo`.

    The working folder, the standard streams and torch's switches are then what they were before
    (`left_as_found`). `loading` a file leaves the folder where the file put it: it may read there later.
    """
    try:
        with left_as_found(folder=not loading):
            return within(seconds, function)
    except TimeUp:
        raise TaskError(f"{asked} took more than {seconds:g} s. Make it faster, or end it sooner.") from None
    except (TaskError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise TaskError(f"{asked} raised {_cause(error, todo)}") from error


class Named:
    """A task that says itself what errors call it. Others are called by their class."""

    title: str


def name_of(task: object) -> str:
    """Return what errors call a task."""
    return task.title if isinstance(task, Named) else f"task {type(task).__name__}"


def attribute(asked: str, owner: object, name: str) -> Any:
    """Return what somebody else's object has under `name`, None where it has nothing. Properties are code."""
    return guarded(f"{asked}: reading {name}", SECONDS, lambda: getattr(owner, name, None))


def shown(found: object) -> str:
    """Return how an object of somebody else's looks, on one line; its own way to say so may fail."""
    try:
        return shorten(repr(found))
    except KeyboardInterrupt:
        raise
    except BaseException:
        return f"an object of the class {type(found).__name__}"


def _cause(error: BaseException, todo: str) -> str:
    """Return what was raised, and what to do about it."""
    cause = f"{type(error).__name__}: {shorten(_said(error))}"
    if isinstance(error, ModuleNotFoundError):
        return f"{cause}. Install it, or put it beside the task file and import it at the top of that file."
    return f"{cause}. {todo}"


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except KeyboardInterrupt:
        raise
    except BaseException:
        return "its text cannot be read"


class TimeUp(BaseException):
    """The time limit. No Exception, so that `except Exception` lets it pass.

    A bare `except` does swallow it. Its end, there, asks for the next one: the loop around dies of that.
    """

    # In C from end to end: Python code here would itself be where the signal is looked at, and lost.
    __del__ = staticmethod(functools.partial(_thread.interrupt_main, signal.Signals(SIGNAL or signal.SIGINT)))


def within(seconds: float, function: Callable[[], T]) -> T:
    """Return `function()`, or raise TimeUp once it has taken `seconds`, whatever it returned or raised then.

    Limits nest. Alarms and timers are left alone.
    """
    if not SIGNAL or threading.current_thread() is not threading.main_thread():
        return function()
    limit = _limit(os.getpid())
    outer, nested = (limit.deadline if limit.armed else math.inf), limit.armed
    deadline = time.monotonic() + seconds
    limit.armed = False
    try:
        limit.set(min(deadline, outer))
        limit.armed = True
        return function()
    finally:
        limit.armed = False
        late = time.monotonic() >= deadline
        limit.set(outer)
        limit.armed = nested
        if late and not isinstance(sys.exception(), KeyboardInterrupt):
            raise TimeUp


class _Limit:
    """The time limit in force, and a thread that interrupts the main thread then and every `PAUSE` seconds.

    A timer of the system would be simpler, but there is one of each kind, and the code inside may take it.
    """

    def __init__(self) -> None:
        self.deadline = math.inf
        """By time.monotonic()."""
        self.armed = False
        """Whether the code inside is running."""
        self._wakes = math.inf
        self._news = threading.Condition()
        # It stays: put back, it could be missing when a late signal comes. The system's own would do nothing.
        self._previous = signal.signal(SIGNAL, self._stop)
        threading.Thread(target=self._run, name="gradhat time limit", daemon=True).start()

    def set(self, deadline: float) -> None:
        """Interrupt from `deadline` on; infinity is never."""
        with self._news:
            self.deadline = deadline
            if deadline < self._wakes:
                self._news.notify()

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        if callable(self._previous):
            self._previous(signum, frame)
        # `within` itself is not to be interrupted: it has to put things back.
        inside = self.armed and frame is not None and frame.f_code is not within.__code__
        if inside and time.monotonic() >= self.deadline:
            raise TimeUp

    def _run(self) -> None:
        with self._news:
            while True:
                now = time.monotonic()
                late = now >= self.deadline
                if late:
                    signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)
                self._wakes = now + PAUSE if late else self.deadline
                self._news.wait(None if self._wakes == math.inf else self._wakes - now)


@functools.cache
def _limit(process: int) -> _Limit:
    """Return the limit of a process; a forked one has none of its parent's threads."""
    return _Limit()


def settled(found: object) -> object:
    """Return what an awaitable comes to, and anything else as it is.

    All of them run in one event loop, so that what they share (a client, its connections) goes on living.
    Where this thread already runs a loop, as in a notebook, each runs in a loop and a thread of its own.
    """
    if not inspect.isawaitable(found):
        return found
    awaitable = cast(Awaitable[object], found)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run(_loop(os.getpid(), threading.get_ident()), awaitable)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(_result(awaitable))).result()


async def _result(awaitable: Awaitable[object]) -> object:
    return await awaitable


def _run(loop: asyncio.AbstractEventLoop, awaitable: Awaitable[object]) -> object:
    """Return what `awaitable` comes to; one that is interrupted is cancelled."""
    work = loop.create_task(_result(awaitable))
    try:
        return loop.run_until_complete(work)
    except BaseException:
        if work.cancel():
            loop.call_soon(loop.stop)
            loop.run_forever()  # once around: the task takes the cancellation in
        # What an older task of the loop raised comes before this one has begun.
        if inspect.iscoroutine(awaitable) and inspect.getcoroutinestate(awaitable) == inspect.CORO_CREATED:
            awaitable.close()
        raise


@functools.cache
def _loop(process: int, thread: int) -> asyncio.AbstractEventLoop:
    """Return the event loop of a thread."""
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(_tell)
    atexit.register(loop.close)
    return loop


def _tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Tell of what a task raised that nobody waits for. An exit came out of the loop itself and is known."""
    if isinstance(context.get("exception", Exception()), Exception):
        loop.default_exception_handler(context)
