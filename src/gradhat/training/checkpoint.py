"""Checkpoints: folders that hold what training needs to go on to the bit.

checkpoints/step_000010/
    *.safetensors and others    what the kind of run writes: text/model_checkpoint.py, control/session.py
    state.json                  the data cursor; size and checksum of every other file; whether it is light

A light checkpoint has lost what only training needs: it can be looked at, but no run goes on from it.

A checkpoint appears whole or not at all. One that was damaged later (a truncated file, a flipped bit) is
found by its checksums, and the one before it is used. One that cannot be read (no right to it, a disk that
fails) is no damage: it may be whole, so whoever asked for it is told, and nothing is changed.
"""

import json
import os
import zlib
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gradhat.errors import DamagedError, RunError
from gradhat.training.run_folder import (
    PARTIAL,
    discard,
    publish,
    reading,
    remove,
    standing,
    step_of,
    whole_file,
    writing,
)

CHUNK = 1 << 24
"""Bytes read at once for a checksum."""
STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose checksums were right when it was found."""

    path: Path
    step: int
    cursor: dict[str, Any]
    """Plain values: where the data stands, and everything else that is no tensor."""
    light: bool = False
    """Whether what only training needs was taken from it."""


def save(
    folder: Path, step: int, write: Callable[[Path], None], cursor: Mapping[str, Any], *, keep: int
) -> Path:
    """Write the checkpoint of `step` into `folder`, then remove all but the `keep` newest. Returns its path.

    `write` puts everything but the cursor into the folder it is given. RunError when the disk is full or
    read-only; the checkpoints that were there stay.
    """
    path = folder / f"step_{step:06d}"
    partial = folder / f"{PARTIAL}{path.name}"
    try:
        with writing(path):
            remove(partial)
            partial.mkdir()
            write(partial)
            state = {"step": step, "light": False, "cursor": dict(cursor), "files": _sums(partial)}
            (partial / STATE).write_text(_text(state))
            if path.exists():
                discard(path)
            publish(partial, path)
            for old in steps(folder)[keep:]:
                discard(old)
    except BaseException:
        remove(partial)
        raise
    return path


def lighten(path: Path, name: str) -> None:
    """Take the file `name`, which only training needs, from the checkpoint at `path`.

    A kill half-way leaves a light checkpoint, and a file that the next call removes. One that is damaged
    stays as it is: nothing is to be trusted that its state.json says.
    """
    with suppress(DamagedError), writing(path):
        state = _state(path)
        if state["files"].pop(name, None) is not None:
            with whole_file(path / STATE) as partial:
                partial.write_text(_text({**state, "light": True}))
        remove(path / name)


def steps(folder: Path) -> list[Path]:
    """Return the checkpoint folders in `folder`, newest first, damaged ones included. RunError for a file."""
    if not folder.exists():
        return []
    try:
        with reading(folder):
            found = [p for p in folder.iterdir() if p.is_dir() and step_of(p) >= 0]
    except NotADirectoryError as error:
        raise RunError(f"read {folder}: {standing(error)}. Move it away.") from error
    return sorted(found, key=step_of, reverse=True)


def newest(folder: Path, *, to_train: bool = False) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest whole checkpoint in `folder`, or None, and a line about each that was passed over:
    damaged, or, where it is `to_train` from, light.

    RunError where one cannot be read.
    """
    passed: list[str] = []
    for path in steps(folder):
        try:
            found = read(path)
        except DamagedError as error:
            passed.append(str(error))
            continue
        if not (to_train and found.light):
            return found, passed
        passed.append(
            f"{path} holds weights only: a new run can begin with them, this one not go on from them."
        )
    return None, passed


def read(path: Path) -> Checkpoint:
    """Return the checkpoint at `path`.

    DamagedError names the file that is missing, cut short or changed, RunError the one that cannot be read.
    """
    state = _state(path)
    for name, wanted in state["files"].items():
        found = _sum(path / name)
        if found != wanted:
            raise DamagedError(
                f"read the checkpoint {path}: {name} is damaged: wanted {wanted}, "
                f"found {found or 'no file'}. Use the one before."
            )
    return Checkpoint(path, state["step"], state["cursor"], state["light"])


@contextmanager
def fitting(found: Checkpoint) -> Generator[None]:
    """Turn what goes wrong while a checkpoint is put into a session into a RunError: it is whole, and of
    another kind of run than its config says.
    """
    try:
        yield
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        raise RunError(
            f"use the checkpoint {found.path}: found that it does not fit the run's config: {error}. Use the "
            "config.json that it was trained with."
        ) from error


def check_alike(found: Any, wanted: Any, name: str = "cursor") -> None:
    """Raise ValueError unless plain values are of the kinds of `wanted`, all the way down.

    A cursor stands in a file that may come from anywhere; that of a fresh session shows what belongs there.
    """
    if isinstance(wanted, dict):
        if not isinstance(found, dict) or found.keys() != wanted.keys():
            raise ValueError(f"{name} is {found!r}, wanted the keys {', '.join(map(str, wanted))}")
        for key, value in wanted.items():
            check_alike(found[key], value, f"{name}.{key}")
        return
    kinds = (int, float) if isinstance(wanted, float) else (type(wanted),)
    if type(found) not in kinds or (isinstance(found, int) and not 0 <= abs(found) < 2**63):
        raise ValueError(f"{name} is {found!r}, wanted something like {wanted!r}")


def _state(path: Path) -> dict[str, Any]:
    """Return what `save` wrote into state.json. DamagedError where it is something else."""
    file = path / STATE
    try:
        with reading(file):
            state = json.loads(file.read_text(encoding="utf-8"))
        files, step, cursor = state["files"], state["step"], state["cursor"]
        fits = step == step_of(path) and isinstance(cursor, dict) and all(map(_is_inside, files))
        # Checkpoints from before there were light ones are full.
        light = state.setdefault("light", False)
        sums = all(isinstance(wanted, dict) for wanted in files.values())
        if not (fits and sums and isinstance(light, bool)):
            raise TypeError("its values are of other kinds")
    except FileNotFoundError as error:
        raise DamagedError(f"read the checkpoint {path}: found no state.json. Use the one before.") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, IsADirectoryError) as error:
        raise DamagedError(
            f"read the checkpoint {path}: state.json is damaged ({error}). Use the one before."
        ) from error
    return state


def _text(state: Mapping[str, Any]) -> str:
    return json.dumps(state, indent=2) + "\n"


def _is_inside(name: str) -> bool:
    """Return whether `name` is that of a file in the folder it is joined to."""
    return b"\0" not in os.fsencode(name) and not Path(name).is_absolute() and ".." not in Path(name).parts


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors by name as a safetensors file, for all who may read its folder. OSError when it cannot be
    written.
    """
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    # The library makes the file readable for its owner alone.
    file.chmod(file.parent.stat().st_mode & 0o666)


def _sums(folder: Path) -> dict[str, dict[str, int] | None]:
    """Return the sums of every file but state.json."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != STATE)
    return {str(p.relative_to(folder)): _sum(p) for p in files}


def _sum(file: Path) -> dict[str, int] | None:
    """Return size and CRC-32 of a file, or None. CRC-32 finds damage, not forgery, at 6 GB/s."""
    value = size = 0
    try:
        with reading(file), file.open("rb") as content:
            while chunk := content.read(CHUNK):
                value, size = zlib.crc32(chunk, value), size + len(chunk)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    return {"bytes": size, "crc32": value}
