"""A separate process that answers JSON questions within a time limit: where untrusted text may be parsed.

The process inherits no environment, no working folder and no terminal. Requests and replies are single lines
of JSON, never pickles: whatever happens in the process, all it can send back is data.
"""

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

START_SECONDS = 60.0
"""Time to start the process and open it."""
PATIENCE = 4
"""On a busy machine a process waits for the processor: a request may take this many times its own time."""
MAX_REPLY = 1 << 22
"""Bytes of the longest reply."""

# A fixed hash seed: some generators iterate over sets. One thread: the trainer owns the cores.
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class WorkerLost(Exception):
    """The process died, ran out of time, or answered something else. It starts afresh at its next use."""


class Worker:
    """Runs `script` in a process of its own: started at first use, killed and started again when it overruns.

    `opening` is the first request after every start. The process ends with this object, or with this program.
    """

    def __init__(self, script: Path, opening: dict[str, Any]) -> None:
        self._script = script
        self._opening = opening
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[Any, Any] | None = None
        self._num_requests = 0

    def start(self) -> dict[str, Any]:
        """Start the process if it does not run; returns the reply to the opening, {} when it runs already.

        WorkerLost where it cannot be started or does not answer.
        """
        if self._process is not None and self._process.poll() is None:
            return {}
        self.stop()
        if os.name == "nt":
            raise WorkerLost("it needs Linux or macOS: here nothing could end it in time")
        # -P: the script's own folder holds a `reasoning_gym.py` that must not shadow the package.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-B", str(self._script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_ENVIRONMENT,
            cwd=tempfile.gettempdir(),
            start_new_session=True,  # Ctrl-C is for the trainer alone
        )
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        self._end = weakref.finalize(self, _end, self._process)
        return self._exchange(self._process, self._opening, START_SECONDS)

    def call(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Return the reply to `request`, which the process may compute for `seconds`.

        Raises WorkerLost when none comes within `PATIENCE` times that, by the clock on the wall, and when the
        process had to be started again and refused its opening with an "error".
        """
        opening = self.start()
        if "error" in opening:
            self.stop()
            raise WorkerLost(f"it did not start again: {opening.get('cause', opening['error'])}")
        assert self._process is not None
        return self._exchange(self._process, {**request, "seconds": seconds}, PATIENCE * seconds)

    def stop(self) -> None:
        """Kill the process if it runs."""
        if self._end is not None:
            self._end()
        self._process = self._end = None

    def _exchange(
        self, process: subprocess.Popen[bytes], request: dict[str, Any], seconds: float
    ) -> dict[str, Any]:
        """Send one line and read one line. On any exception, Ctrl-C included, no half-read reply survives."""
        assert process.stdin is not None and process.stdout is not None
        self._num_requests += 1
        try:
            deadline = time.monotonic() + seconds
            line = json.dumps({**request, "id": self._num_requests}).encode() + b"\n"
            _write(process.stdin.fileno(), line, deadline, seconds)
            reply = json.loads(_read_line(process.stdout.fileno(), deadline, seconds))
            if not isinstance(reply, dict) or reply.pop("id", None) != self._num_requests:
                raise WorkerLost("it answered something else")
        except BrokenPipeError as error:
            self.stop()
            raise WorkerLost("it broke off") from error
        except (ValueError, RecursionError) as error:
            self.stop()
            raise WorkerLost("it answered something else") from error
        except BaseException:
            self.stop()
            raise
        return reply


def _write(descriptor: int, line: bytes, deadline: float, seconds: float) -> None:
    """Write to a pipe that does not block; WorkerLost where nobody has read it all by the deadline."""
    left = memoryview(line)
    while left:
        _, ready, _ = select.select([], [descriptor], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise WorkerLost(f"it took more than {seconds:g} s to read")
        left = left[os.write(descriptor, left) :]


def _read_line(descriptor: int, deadline: float, seconds: float) -> bytes:
    """Return the next line of a pipe; raises WorkerLost at the deadline or at the end of the pipe."""
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise WorkerLost(f"it took more than {seconds:g} s")
        chunk = os.read(descriptor, 1 << 16)
        line += chunk
        if not chunk or len(line) > MAX_REPLY:
            raise WorkerLost("its answer has no end" if chunk else "it died")
    return line


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and close its pipes."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # what was still unsent is for nobody
                pipe.close()
