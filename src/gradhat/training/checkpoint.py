"""Checkpoints: folders that hold what training needs to go on to the bit.

checkpoints/step_000010/
    *.safetensors and others    what the kind of run writes: text/model_checkpoint.py, control/session.py
    state.json                  the data cursor; size and checksum of every other file

A checkpoint appears whole or not at all. One that was damaged later (a truncated file, a flipped bit) is
found by its checksums, and the one before it is used.
"""

import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gradhat.errors import RunError
from gradhat.training.run_folder import PARTIAL, discard, publish, remove, step_of, writing

CHUNK = 1 << 24
"""Bytes read at once for a checksum."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk whose checksums were right when it was found."""

    path: Path
    step: int
    cursor: dict[str, Any]
    """Plain values: where the data stands, and everything else that is no tensor."""


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
            state = {"step": step, "cursor": dict(cursor), "files": _sums(partial)}
            (partial / "state.json").write_text(json.dumps(state, indent=2, allow_nan=False) + "\n")
            if path.exists():
                discard(path)
            publish(partial, path)
            for old in steps(folder)[keep:]:
                discard(old)
    except BaseException:
        remove(partial)
        raise
    return path


def steps(folder: Path) -> list[Path]:
    """Return the checkpoint folders in `folder`, newest first, damaged ones included."""
    found = [p for p in folder.iterdir() if p.is_dir() and step_of(p) >= 0] if folder.is_dir() else []
    return sorted(found, key=step_of, reverse=True)


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest whole checkpoint in `folder`, or None, and a line about each damaged one after it."""
    damage: list[str] = []
    for path in steps(folder):
        try:
            return read(path), damage
        except RunError as error:
            damage.append(str(error))
    return None, damage


def read(path: Path) -> Checkpoint:
    """Return the checkpoint at `path`. RunError names the file that is missing, cut short or changed."""
    try:
        state = json.loads((path / "state.json").read_text())
        files: dict[str, Any] = state["files"]
        found = _sums(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"read the checkpoint {path}: state.json cannot be read ({error}). Use the one before."
        ) from error
    for name, wanted in files.items():
        if found.get(name) != wanted:
            raise RunError(
                f"read the checkpoint {path}: {name} is damaged: wanted {wanted}, "
                f"found {found.get(name, 'no file')}. Use the one before."
            )
    return Checkpoint(path, state["step"], state["cursor"])


def save_tensors(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Write tensors by name as a safetensors file. OSError when it cannot be written."""
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, file)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _sums(folder: Path) -> dict[str, dict[str, int]]:
    """Return size and CRC-32 of every file but state.json. CRC-32 finds damage, not forgery, at 6 GB/s."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "state.json")
    return {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "crc32": _crc32(p)} for p in files}


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            value = zlib.crc32(chunk, value)
    return value
