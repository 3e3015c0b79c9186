"""The runs of a sweep side by side, each `gradhat train` in a process of its own.

A sweep that was stopped goes on when the same command is given again: finished runs are left alone, half-done
ones are resumed, the others begin.
"""

import heapq
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gradhat import intervals
from gradhat.errors import RunError
from gradhat.training.interrupt import Interrupt
from gradhat.training.log import duration
from gradhat.training.run_folder import step_of
from gradhat.training.sweeps.board import Board, Progress
from gradhat.training.sweeps.plan import LOGS, Cell, Plan
from gradhat.training.sweeps.results import finished, judged_by, kind_of, outcome, read

TRAIN = (sys.executable, "-m", "gradhat.cli.main", "train")
POLL = 0.1
"""Seconds between two looks at the processes."""
TAIL = 1 << 14
"""Bytes at the end of a file in which its last lines are looked for."""
LAST_WORDS = 3
"""Lines that are shown of a run that failed."""


class Ended(NamedTuple):
    """How a sweep ended."""

    failed: dict[str, str]
    """Name of each run that failed → the last lines that it printed."""
    interrupted: int
    """The number of the signal that left something undone, or 0."""


@dataclass
class Child:
    """A process that trains one run."""

    cell: Cell
    process: subprocess.Popen[bytes]
    log: Path
    offset: int
    """Where its own lines begin in the log."""
    began: float
    share: float
    """How much of the run was done when it began, 0 to 1."""


class Sweep:
    """The processes of a sweep, at most `jobs` at once. `train` is the command of one run, TRAIN if None."""

    def __init__(self, found: Plan, jobs: int, board: Board, train: Sequence[str] | None = None) -> None:
        self.folder, self.jobs, self.board = found.folder, jobs, board
        self.train = tuple(train or TRAIN)
        self.total = len(found.cells)
        self.waiting = deque(cell for cell in found.cells if not finished(cell.path))
        self.done = self.total - len(self.waiting)
        self.running: list[Child] = []
        self.failed: dict[str, str] = {}
        self.kind = kind_of(found.cells[0].point.config)
        self._past = (0.0, 0.0)
        """Seconds of the processes that ended, and the runs, in parts, that they did."""

    def run(self) -> Ended:
        """Train all that is not finished.

        After Ctrl-C, SIGTERM or SIGHUP the runs save and stop; Ctrl-C after that kills them.

        A run that fails does not stop the others.
        """
        with Interrupt(self._notify) as interrupt:
            try:
                stopping = False
                while self.waiting or self.running:
                    if interrupt.asked and not stopping:
                        stopping = True
                        self._stop()
                    for child in [c for c in self.running if c.process.poll() is not None]:
                        self._end(child, stopping)
                    while self.waiting and len(self.running) < self.jobs:
                        self.running.append(self._start(self.waiting.popleft()))
                    self.board.show(self.progress)
                    time.sleep(POLL)
            finally:
                self._kill()
        left = self.done + len(self.failed) < self.total
        return Ended(self.failed, interrupt.asked if left else 0)

    def progress(self) -> Progress:
        """Return where the whole stands."""
        lines = [_last_line(child.cell.path) for child in self.running]
        rate = sum(line.get(self.kind.rate) or 0.0 for line in lines)
        left = self._seconds_left([self._share(child.cell) for child in self.running])
        unit = self.kind.unit
        return Progress(self.total, self.done, len(self.running), len(self.failed), rate, unit, left)

    def _start(self, cell: Cell) -> Child:
        if (cell.path / "config.json").exists():
            # One that was killed before its first checkpoint has nothing to go on from.
            again = [] if _is_saved(cell.path) else ["--restart"]
            command = [*self.train, "--resume", str(cell.path), *again]
        else:
            _clear(cell.path)
            command = [*self.train, *cell.point.words, "--out", str(cell.path)]
        log = self.folder / LOGS / f"{cell.name}.log"
        # A core for each: more threads would take turns on it. What a run prints is in order in its log.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with log.open("ab") as file:
            offset = file.tell()
            # A group of its own: Ctrl-C on the terminal reaches the sweep alone, which passes it on once.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                process_group=0,
            )
        return Child(cell, process, log, offset, time.monotonic(), self._share(cell))

    def _end(self, child: Child, stopping: bool) -> None:
        self.running.remove(child)
        cell, code = child.cell, child.process.returncode
        seconds = time.monotonic() - child.began
        self._past = (self._past[0] + seconds, self._past[1] + self._share(cell) - child.share)
        if code == 0 and finished(cell.path):
            self.done += 1
            self.board.say(f"{cell.name}  {_result(cell.path)}  {duration(seconds)}")
        elif not stopping:
            self.failed[cell.name] = _last_words(child)
            self.board.say(f"{cell.name}  failed after {duration(seconds)}; all it said is in {child.log}")

    def _share(self, cell: Cell) -> float:
        """Return how much of a run is done, 0 to 1."""
        done = _last_line(cell.path).get(self.kind.done) or 0.0
        return min(1.0, done / cell.point.config[self.kind.length])

    def _seconds_left(self, shares: Sequence[float]) -> float:
        """Return how long the rest takes, when every run takes as long as those so far."""
        now = time.monotonic()
        seconds = self._past[0] + sum(now - child.began for child in self.running)
        gained = self._past[1] + sum(
            share - child.share for share, child in zip(shares, self.running, strict=True)
        )
        if gained <= 0:
            return math.nan
        whole = seconds / gained
        ends = [whole * (1 - share) for share in shares]
        heapq.heapify(ends)
        for _ in self.waiting:
            first = heapq.heappop(ends) if len(ends) >= self.jobs else 0.0
            heapq.heappush(ends, first + whole)
        return max(ends, default=0.0)

    def _notify(self) -> None:
        self.board.say("the runs finish their step and save; Ctrl-C kills them")

    def _stop(self) -> None:
        self.waiting.clear()
        for child in self.running:
            child.process.send_signal(signal.SIGINT)

    def _kill(self) -> None:
        """Kill what still runs, with the processes that it has begun itself."""
        for child in self.running:
            with suppress(ProcessLookupError):
                os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()


def _result(path: Path) -> str:
    """Return what a finished run is judged by, in words."""
    try:
        run = read(path)
    except RunError as error:
        return str(error)
    score = judged_by([run])
    value = outcome(run, score).score
    return f"{score} {intervals.number(value, value)}"


def _clear(path: Path) -> None:
    """Remove the empty folders that a run leaves when it is killed before it has written its config."""
    for folder in (path / "checkpoints", path / "rollouts", path):
        with suppress(OSError):
            folder.rmdir()


def _is_saved(run: Path) -> bool:
    """Return whether the run has a checkpoint, whole or not."""
    folder = run / "checkpoints"
    return folder.is_dir() and any(step_of(path) >= 0 for path in folder.iterdir())


def _last_line(run: Path) -> dict[str, Any]:
    """Return the last whole line of a run's metrics, which may be in the middle of being written."""
    for line in reversed(_tail(run / "metrics.jsonl", 0).splitlines()):
        with suppress(ValueError):
            return json.loads(line)
    return {}


def _last_words(child: Child) -> str:
    """Return the last lines that a run printed, and the signal that killed it if one did."""
    said = [line for line in _tail(child.log, child.offset).splitlines() if line.strip()][-LAST_WORDS:]
    if child.process.returncode < 0:
        said.append(f"killed by {signal.Signals(-child.process.returncode).name}")
    return "\n".join(said) or f"exit code {child.process.returncode}, nothing printed"


def _tail(file: Path, first: int) -> str:
    """Return the end of a text file, nothing before the byte `first`; nothing of a file that is not there."""
    if not file.exists():
        return ""
    with file.open("rb") as content:
        content.seek(max(first, file.stat().st_size - TAIL))
        return content.read().decode(errors="replace")
