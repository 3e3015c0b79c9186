"""What a process may still do that parses text somebody else wrote: compute, for a while, and answer.

Loaded by its path from the scripts that run as such a process; it needs nothing of gradhat. The process has
no environment, may not write, start programs, or open sockets, and its time and memory are limited.
"""

import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any, TextIO

MEMORY_BYTES = 2 << 30

# Everything of `os` and its like that has an audit event is refused, but for what imports need.
_REFUSED = (
    "os.",
    "subprocess.",
    "socket.",
    "shutil.",
    "ctypes.",
    "pty.",
    "signal.",
    "fcntl.",
    "tempfile.",
    "mmap.",
)
_ALLOWED = frozenset({"os.listdir", "os.scandir", "os.walk"})
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def refuse(event: str, details: tuple[Any, ...]) -> None:
    """The audit hook: raise PermissionError for what changes anything outside this process."""
    writes = event == "open" and isinstance(details[2], int) and details[2] & _WRITING
    if writes or (event.startswith(_REFUSED) and event not in _ALLOWED):
        raise PermissionError(f"{event} is refused here")


def confine() -> None:
    """Give up what scoring does not need. There is no way back: hard limits and audit hooks stay."""
    for limit, value in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        try:
            resource.setrlimit(limit, (value, value))
        except (ValueError, OSError):
            continue  # macOS knows no RLIMIT_AS; the audit hook and the time limit remain
    sys.addaudithook(refuse)


def limit_time(seconds: float) -> None:
    """Let the kernel end this process when it computes for more than `seconds`, rounded up, from now."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(usage.ru_utime + usage.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def answered(answer: Callable[[dict[str, Any]], dict[str, Any]], request: dict[str, Any]) -> dict[str, Any]:
    """Return the reply to one request within its time; an exception becomes its text.

    A package or a file that is missing, or may not be touched, is a scorer that is broken, whatever it was
    given. Any other exception may be the fault of the text.
    """
    limit_time(request["seconds"])
    try:
        return answer(request)
    except (ImportError, OSError) as error:
        return {"broken": f"{type(error).__name__}: {error}"[:200]}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:200]}


def replies() -> TextIO:
    """Return where replies go. What the libraries print from now on goes nowhere."""
    kept = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return kept


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]], out: TextIO) -> None:
    """Give up what answering does not need, then answer requests from standard input until it ends."""
    confine()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps({**answered(answer, request), "id": request["id"]}), file=out, flush=True)
