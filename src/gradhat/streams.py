"""What is printed for people never ends what it tells of: a narrow encoding, a reader that went away."""

import io
import os
import select
import sys
from contextlib import suppress
from typing import TextIO


def forgive(stream: TextIO | None) -> None:
    """Let `stream` have "?" where its encoding has no sign for a letter, or no letter for what is read."""
    if (
        isinstance(stream, io.TextIOWrapper)
        and not stream.closed
        and (stream.errors == "strict" or (stream.errors == "surrogateescape" and stream.readable()))
    ):
        stream.reconfigure(errors="replace")


def flush(stream: TextIO | None) -> None:
    """Write out what is left of a stream. None is one that was closed before the program began."""
    if stream is not None:
        stream.flush()


def is_closed(stream: TextIO | None) -> bool:
    """Return whether somebody closed `stream`, or what it writes to."""
    number = _number(stream)
    return (stream is not None and stream.closed) if number is None else _tells(number, select.POLLNVAL)


def is_unread(stream: TextIO | None) -> bool:
    """Return whether `stream` is a pipe that nobody reads any more, as after `| head`."""
    number = _number(stream)
    return number is not None and _tells(number, select.POLLERR | select.POLLHUP)


def _tells(number: int, events: int) -> bool:
    poll = select.poll()
    poll.register(number, 0)
    return any(event & events for _, event in poll.poll(0))


def silence(stream: TextIO | None) -> None:
    """Send what is and will be written to `stream` nowhere: Python would complain about it at its end."""
    number = _number(stream)
    if number is not None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        if nowhere != number:  # it has that of a stream that was closed
            os.dup2(nowhere, number)
            os.close(nowhere)


def complain(text: str) -> None:
    """Say `text` on stderr, if anybody hears it."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def _number(stream: TextIO | None) -> int | None:
    """Return the descriptor of a stream, None where it has none."""
    if stream is None:
        return None
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None
