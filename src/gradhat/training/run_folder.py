"""The run folder: the contract between training, evaluation and other tools.

config.json                      the resolved config; `gradhat train --resume` starts from it
env.json                         what the numbers were made with: versions, processor, threads, hashes
metrics.jsonl                    one object a line, flushed after each step
rollouts/step_000012.parquet     every sampled trajectory of step 12 of a text run, token by token
evals/step_000010.parquet        every completion of a held-out question before, during and after a text run
checkpoints/step_000010/         see checkpoint.py
summary.json                     written at the end
aside/1/, aside/2/, ...          what a resume took out of the way, under the same names; nothing reads it

Every file but metrics.jsonl appears whole or not at all: it is written under a temporary name, synced, then
renamed. A resume deletes nothing: what lies after the step it goes on from is moved aside.
"""

import errno
import json
import math
import os
import re
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, Self

from gradhat.errors import RunError
from gradhat.streams import complain

PARTIAL = ".partial-"
"""Prefix of a name that is still being written."""

REPAIRED = "Make room or make it writable"

LATER = (
    f"{REPAIRED}, then go on: gradhat train --resume RUN, with --restart where no checkpoint was written. "
    "What was complete stays as it is."
)
"""What to do when a write fails in the middle of a run."""

ELSEWHERE = "Choose an --out that can be written."
"""What to do when nothing was written yet."""

AGAIN = f"{REPAIRED}, then give the same command again: what is done stays."
"""What to do when the same command goes on where it stopped."""

ASIDE = "aside"
"""The folder that holds what a resume took out of the way."""

FINAL = "final"
"""The metric that marks the line of what was measured after the last step."""

KEPT = "surrogateescape"
"""Bytes that are no UTF-8 come through reading and writing as they were."""

Metrics = Mapping[str, float | str | list[str]]


class RunFolder:
    """One run folder. `create` and `open` take a lock for the process that trains, `close` frees it.

    A context. The system frees the lock of a process that dies.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.rollouts = path / "rollouts"
        self.metrics = path / "metrics.jsonl"
        self._lock: int | None = None

    @classmethod
    def create(cls, path: Path, config: Mapping[str, Any]) -> Self:
        """Make a new run folder with `config`, plain values.

        RunError if something is at `path` already or it cannot be written.
        """
        refuse_taken(path)
        with writing(path, todo=ELSEWHERE):
            path.mkdir(parents=True, exist_ok=True)
        run = cls(path)
        run._acquire(ELSEWHERE)
        run._clean()
        with writing(path, todo=ELSEWHERE):
            run.checkpoints.mkdir()
        run.write_json("config.json", config, ELSEWHERE)
        return run

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the run at `path` to train on in it, and clear what a killed process left half-written."""
        run = cls(path)
        run.config()
        run._acquire(LATER)
        run._clean()
        with writing(path):
            run.checkpoints.mkdir(exist_ok=True)
        return run

    def config(self) -> dict[str, Any]:
        """Return the config the run was started with, as plain values."""
        return self.read_json("config.json")

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the object in `name`. RunError when it is missing or is no JSON object."""
        file = self.path / name
        try:
            values = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_json)
            if not isinstance(values, dict):
                raise ValueError("it is no JSON object")
        except (OSError, ValueError, RecursionError) as error:
            other = "Name the folder of a run, the one that `gradhat train` printed when it started."
            # A folder without a config is none of a run; beside one any other file is.
            todo = other if name == "config.json" else "Repair it, or move it away."
            raise RunError(f"read the run in {self.path}: {name} cannot be read ({error}). {todo}") from error
        return values  # pyright: ignore[reportUnknownVariableType]

    def write_json(self, name: str, values: Mapping[str, Any], todo: str = LATER) -> None:
        """Write one object to `name`, whole or not at all."""
        with whole_file(self.path / name, todo) as partial:
            partial.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")

    def append_metrics(self, values: Metrics) -> None:
        """Add one line and flush it. Numbers that are not finite become null: JSON has no word for them."""
        finite = {
            key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()
        }
        with writing(self.metrics), self.metrics.open("a") as file:
            file.write(json.dumps(finite, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read_metrics(self) -> list[dict[str, Any]]:
        """Return every whole line of metrics.jsonl; a line cut by a kill is left out.

        RunError for one that holds anything but numbers, and for lines that cannot be read.
        """
        lines = [_parsed(line) for line in self._lines()]
        for number, line in enumerate(lines, 1):
            wrong = [] if line is None else [key for key, value in line.items() if not _is_metric(key, value)]
            if wrong:
                raise RunError(
                    f"read the metrics of {self.path}: line {number} of metrics.jsonl holds no number for "
                    f"{wrong[0]!r}. Repair or remove that line."
                )
        return [line for line in lines if line is not None]

    def _lines(self) -> list[str]:
        """Return the lines of metrics.jsonl as they stand there. RunError where they cannot be read."""
        try:
            with reading(self.metrics):
                text = self.metrics.read_text(encoding="utf-8", errors=KEPT)
        except FileNotFoundError:
            return []
        except IsADirectoryError as error:
            raise RunError(f"read {self.metrics}: {standing(error)}. Move it away.") from error
        return [line for line in text.split("\n") if line]

    def rewind(self, step: int) -> Path | None:
        """Move aside what lies after `step`: the run that goes on writes it again.

        That is lines of metrics (cut ones too), all that is named after a later step, and the summary.
        Returns the folder that holds it, None where there was nothing. A kill half-way loses nothing: the
        next rewind moves the rest.
        """
        self.read_metrics()  # RunError before anything is moved.
        kept: list[str] = []
        later: list[str] = []
        for line in self._lines():
            known = _parsed(line)
            # What was measured after the last step belongs to the end, which the run that goes on has not.
            earlier = known is not None and known["step"] <= step and FINAL not in known
            (kept if earlier else later).append(line)
        with writing(self.path):
            rooms = [p for p in self.path.iterdir() if p.is_dir() and p.name != ASIDE]
            items = [item for room in rooms for item in room.iterdir() if step_of(item) > step]
            items += [file for file in [self.path / "summary.json"] if file.exists()]
            if not items and not later:
                return None
            aside = self._new_aside()
            if later:
                _write_lines(aside / self.metrics.name, later)
                _write_lines(self.metrics, kept)
            for item in items:
                to = aside / item.relative_to(self.path)
                to.parent.mkdir(exist_ok=True)
                item.rename(to)
        return aside

    def begun(self) -> bool:
        """Return whether steps were done in this run, as its metrics and the names of its checkpoints say."""
        saved = self.checkpoints.is_dir() and any(step_of(p) >= 0 for p in self.checkpoints.iterdir())
        return saved or any(line["step"] > 0 for line in self.read_metrics())

    def _new_aside(self) -> Path:
        """Make the next folder of what is moved aside."""
        home = self.path / ASIDE
        home.mkdir(exist_ok=True)
        taken = [int(path.name) for path in home.iterdir() if path.name.isdecimal()]
        new = home / str(max(taken, default=0) + 1)
        new.mkdir()
        return new

    def _acquire(self, todo: str) -> None:
        self._lock = lock(
            self.path,
            f"train in {self.path}: another process is training there. "
            "Wait for it, stop it, or choose another --out.",
            todo,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _clean(self) -> None:
        with writing(self.path):
            for partial in self.path.rglob(f"{PARTIAL}*"):
                remove(partial)


def refuse_taken(path: Path) -> None:
    """Raise RunError where a new run cannot begin at `path`, because something is there. Writes nothing."""
    with reading(path):
        if not os.path.lexists(path):
            return
        if not path.is_dir():
            there = "a file" if path.exists() else "a link to nothing"
            raise RunError(
                f"write a run to {path}: found {there} there. Move it away, or choose another --out."
            )
        taken = sorted(p.name for p in path.iterdir() if not p.name.startswith(PARTIAL))
    if "config.json" in taken:
        raise RunError(
            f"start a run in {path}: found a run there. Choose another --out, or go on with it: "
            f"gradhat train --resume {path}"
        )
    if taken:
        raise RunError(f"start a run in {path}: found other files there ({taken[0]}). Choose an empty --out.")


def reserved(base: Path) -> Path:
    """Make a new, empty folder `base`, or base-2, base-3 ... where that is taken, and return it."""
    for number in count(1):
        path = base if number == 1 else base.with_name(f"{base.name}-{number}")
        with writing(path, todo=ELSEWHERE):
            path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                path.mkdir()
                return path
    raise AssertionError


def lock(folder: Path, busy: str, todo: str) -> int:
    """Keep other processes out of `folder` until the descriptor that is returned is closed.

    RunError `busy` where another process has it, one that says `todo` where it cannot be opened. Some file
    systems (NFS among them) know no locks of folders: there nobody is kept out, which stderr is told.
    """
    import fcntl

    with writing(folder, todo):
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            os.close(descriptor)
            raise RunError(busy) from error
        complain(
            f"warning: {folder} cannot be locked ({error.strerror}): make sure that nobody else works there"
        )
    return descriptor


def is_run(path: Path) -> bool:
    """Return whether `path` is a run folder, not a model folder: both have a config.json."""
    return (path / "config.json").is_file() and (path / "checkpoints").exists()


def step_of(path: Path) -> int:
    """Return 12 for "step_000012" and "step_000012.parquet", -1 for a name of another kind."""
    match = re.fullmatch(r"step_(\d+)(\.parquet)?", path.name)
    return int(match[1]) if match else -1


@contextmanager
def writing(place: Path, todo: str = LATER) -> Generator[None]:
    """Turn an OSError into a RunError that says what to do: the folder is read-only, the disk is full.

    What stands in the way in a run folder is to be moved away: no room helps there.
    """
    try:
        yield
    except (FileExistsError, IsADirectoryError) as error:
        # Somebody who can choose another place may have named one of a file that is to stay.
        raise RunError(
            f"write {place}: {standing(error)}. {todo.replace(REPAIRED, 'Move it away')}"
        ) from error
    except OSError as error:
        raise RunError(f"write {place}: {error.strerror or error}. {todo}") from error


def standing(error: OSError) -> str:
    """Return what stands where something of another kind belongs, from the error of whoever met it."""
    place = Path(error.filename2 or error.filename or "")
    if place.is_dir():
        return f"found a folder at {place}, where a file belongs"
    return f"found {'a file' if place.exists() else 'a link to nothing'} at {place}, where a folder belongs"


@contextmanager
def reading(place: Path) -> Generator[None]:
    """Turn an OSError into a RunError that names the file; what is not there stays a FileNotFoundError.

    So do a folder in a file's place, and a file in a folder's.
    """
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise
    except OSError as error:
        raise RunError(
            f"read {place}: {error.strerror or error}. It may be whole: make it readable, then try again. "
            "Nothing was changed."
        ) from error


@contextmanager
def whole_file(path: Path, todo: str = LATER) -> Generator[Path]:
    """Yield a temporary path to write. It is renamed to `path` on success and removed on failure, which is a
    RunError that says `todo`."""
    partial = path.with_name(PARTIAL + path.name)
    try:
        with writing(path, todo):
            yield partial
            publish(partial, path)
    except BaseException:
        # What went wrong first is what is reported.
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def publish(partial: Path, path: Path) -> None:
    """Sync the file or folder `partial`, rename it to `path`: after a power cut `path` is whole or absent."""
    for item in [*partial.rglob("*"), partial]:
        sync(item)
    partial.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until the file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some file systems (FUSE, SMB) sync files only.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)):
            raise
    finally:
        os.close(descriptor)


def discard(path: Path) -> None:
    """Remove `path` so that a kill half-way leaves a name that the next start clears, never half a folder."""
    condemned = path.with_name(f"{PARTIAL}old-{path.name}")
    remove(condemned)
    path.rename(condemned)
    remove(condemned)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _no_json(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _write_lines(file: Path, lines: list[str]) -> None:
    with whole_file(file) as partial:
        partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors=KEPT)


def _parsed(line: str) -> dict[str, Any] | None:
    """Return the object in a line, None where it was cut."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return {"step": None} | (values if isinstance(values, dict) else {})  # pyright: ignore[reportUnknownVariableType]


def _is_metric(key: str, value: object) -> bool:
    if key == "step":
        return type(value) is int and 0 <= value < 2**63
    if key == "non_finite":
        return isinstance(value, list)
    return value is None or ((isinstance(value, int | float) and abs(value) < 1e300) or value != value)
