"""What somebody else's code may leave otherwise than it was, and what is put back after it."""

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

STANDARD = (0, 1, 2)
"""The descriptors of input, output and errors."""


@contextmanager
def left_as_found(*, folder: bool = True) -> Generator[None]:
    """Put back what the rest of the program relies on, after code that may have left it anywhere.

    That are the standard streams, torch's switches (`_switches`) and, where `folder` says so, the working
    folder. A standard stream cannot be closed meanwhile.
    """
    streams, place = (sys.stdin, sys.stdout, sys.stderr), _working_folder()
    copies, switch_back = _copies(), _switches()
    held = _hold_open(streams)
    try:
        yield
    finally:
        sys.stdin, sys.stdout, sys.stderr = streams
        for stream in held:
            vars(stream).pop("close", None)
        _open_again(copies)
        now = _working_folder()
        # A folder that is gone is no place to stay, whoever went there.
        if place is not None and now != place and (folder or now is None):
            with suppress(OSError):
                os.chdir(place)
        switch_back()


def _working_folder() -> Path | None:
    try:
        return Path.cwd()
    except OSError:
        return None


def _hold_open(streams: tuple[object, ...]) -> list[object]:
    """Let `close()` of a stream close nothing: whoever holds it could print no more. Return those that it is
    new to."""
    held: list[object] = []
    for stream in streams:
        with suppress(TypeError):  # one that has no attributes of its own
            if "close" not in vars(stream):
                vars(stream)["close"] = _close_nothing
                held.append(stream)
    return held


def _close_nothing() -> None:
    """Stand in for the `close` of a stream."""


def _copies() -> dict[int, int]:
    """Return a copy of every standard descriptor that is open."""
    copies: dict[int, int] = {}
    for number in STANDARD:
        with suppress(OSError):
            copies[number] = os.dup(number)
    return copies


def _open_again(copies: dict[int, int]) -> None:
    """Open what was closed: the next file, a checkpoint, would have its number, and be printed into."""
    for number, copy in copies.items():
        if not _is_open(number):
            with suppress(OSError):
                os.dup2(copy, number)
        with suppress(OSError):
            os.close(copy)


def _is_open(number: int) -> bool:
    try:
        os.get_inheritable(number)
    except OSError:
        return False
    return True


def _switches() -> Callable[[], None]:
    """Return what turns torch's switches to where they are now: gradients, default type, default device.

    Torch is not imported for it. Where nobody did so far, they are where it begins.
    """
    grads, made = True, None
    if sys.modules.get("torch") is not None:
        import torch

        # An empty tensor tells of both defaults, in a tenth of the time that asking for them takes.
        grads, made = torch.is_grad_enabled(), torch.empty(0)

    def back() -> None:
        if sys.modules.get("torch") is None:
            return
        import torch

        torch.set_grad_enabled(grads)
        dtype, device = (
            (made.dtype, made.device) if made is not None else (torch.float32, torch.device("cpu"))
        )
        now = torch.empty(0)
        if now.dtype != dtype:
            torch.set_default_dtype(dtype)
        if now.device != device:
            # None is the processor without torch's detour for a default of one's own.
            torch.set_default_device(None if device.type == "cpu" else device)

    return back
