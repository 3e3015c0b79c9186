"""What a sweep runs, and where: its folder and its `sweep.json`.

sweep.json         the command, what all runs share, and every run with what is its own
lr=0.001,seed=0/   a run folder
logs/              what each run printed
"""

import json
import os
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from gradhat.errors import ConfigError, RunError
from gradhat.training.run_folder import AGAIN, ELSEWHERE, PARTIAL, lock, whole_file, writing
from gradhat.training.sweeps.grid import NAME, Point, flat, name_of, shown, varying

PLAN = "sweep.json"
LOGS = "logs"


class Cell(NamedTuple):
    """One run of a sweep."""

    name: str
    path: Path
    point: Point


class Plan(NamedTuple):
    """The runs of a sweep."""

    folder: Path
    cells: list[Cell]
    keys: list[str]
    """The whole names of the settings that its flags vary."""


def plan(folder: Path, points: Sequence[Point], keys: Sequence[str]) -> Plan:
    """Give every point its folder: the one it has already where the sweep was begun before. Writes nothing.

    RunError says what differs where another sweep is there. One that lacks some of these points is the same.
    """
    known = _known(folder)
    contents = [_content(flat(point.config)) for point in points]
    names = {_content(settings): name for name, settings in known.items()}
    if names.keys() - set(contents):
        differ = _differences(list(known.values()), [flat(point.config) for point in points])
        raise RunError(
            f"sweep in {folder}: found another grid there: {differ}. "
            "Choose another --out, or give all its values again and add to them."
        )
    cells: dict[str, Cell] = {}
    for content, point in zip(contents, points, strict=True):
        name = names.get(content) or name_of(point.config, keys)
        if name in cells:
            raise ConfigError(
                f"sweep: found two runs with the folder {name}. Give every value once, and vary fewer "
                f"settings where their names do not fit into {NAME} letters."
            )
        cells[name] = Cell(name, folder / name, point)
    return Plan(folder, list(cells.values()), list(keys))


@contextmanager
def begun(found: Plan, command: Sequence[str]) -> Generator[Plan]:
    """Make the sweep's folder, keep other sweeps out of it, write what it is for, and yield the plan.

    RunError when another sweep is running there, whose sweep.json is left as it is, or when the folder cannot
    be written. What another sweep has added since `found` was made counts: the plan is made again inside.
    """
    with writing(found.folder, todo=ELSEWHERE):
        found.folder.mkdir(parents=True, exist_ok=True)
    with locked(found.folder):
        inside = plan(found.folder, [cell.point for cell in found.cells], found.keys)
        write(inside, command)
        yield inside


def write(found: Plan, command: Sequence[str]) -> None:
    """Write what the sweep is for into its folder. RunError when it cannot be written."""
    settings = {cell.name: flat(cell.point.config) for cell in found.cells}
    differ = varying(list(settings.values()))
    first = next(iter(settings.values()))
    values = {
        "command": list(command),
        "keys": found.keys,
        "settings": {key: value for key, value in first.items() if key not in differ},
        "cells": {name: {key: own[key] for key in differ if key in own} for name, own in settings.items()},
    }
    with whole_file(found.folder / PLAN, AGAIN) as partial:
        partial.write_text(json.dumps(values, indent=2) + "\n")
    with writing(found.folder, AGAIN):
        (found.folder / LOGS).mkdir(exist_ok=True)


def keys_of(folder: Path) -> list[str] | None:
    """Return the settings that the sweep in `folder` varies, None where there is no sweep."""
    return _read(folder)["keys"] if (folder / PLAN).exists() else None


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Keep other sweeps out of `folder`. RunError when one is running there."""
    descriptor = lock(
        folder,
        f"sweep in {folder}: another sweep is running there. Wait for it, stop it, or choose another --out.",
        AGAIN,
    )
    try:
        yield
    finally:
        os.close(descriptor)


def _known(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the flat config of every run of the sweep in `folder`, by its name."""
    if (folder / PLAN).exists():
        values = _read(folder)
        return {name: values["settings"] | own for name, own in values["cells"].items()}
    if folder.exists() and (not folder.is_dir() or _taken(folder)):
        raise RunError(f"sweep in {folder}: found something else there. Choose another --out.")
    return {}


def _taken(folder: Path) -> bool:
    """Return whether there is more in `folder` than a sweep leaves that is killed while it begins."""
    return any(not path.name.startswith(PARTIAL) for path in folder.iterdir())


def _read(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        if wrong := _misfit(values):
            raise ValueError(wrong)
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(
            f"read the sweep in {folder}: {PLAN} cannot be read ({error}). Repair it, or move it away."
        ) from error
    return values


def _misfit(values: Any) -> str:
    """Say what in a sweep.json is none of what `write` puts there, or nothing: people edit it."""
    if not isinstance(values, dict):
        return "it is no JSON object"
    keys, settings, cells = (values.get(key) for key in ("keys", "settings", "cells"))
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        return "it holds no list of names for 'keys'"
    if not isinstance(settings, dict):
        return "it holds no object for 'settings'"
    if not isinstance(cells, dict) or not all(isinstance(own, dict) for own in cells.values()):
        return "it holds no object of objects for 'cells'"
    outside = next((name for name in cells if name in ("", ".", "..") or "/" in name or "\0" in name), None)
    return "" if outside is None else f"{outside!r} among its 'cells' is no name of a folder"


def _content(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)


def _differences(there: Sequence[Mapping[str, Any]], here: Sequence[Mapping[str, Any]]) -> str:
    """Say which settings have lost values, and which values they have."""
    found: list[str] = []
    for key in varying([*there, *here]):
        theirs, mine = (list(dict.fromkeys(shown(one.get(key)) for one in group)) for group in (there, here))
        if set(theirs) - set(mine):
            found.append(f"{key.rpartition('.')[2]} is {', '.join(theirs)} there and {', '.join(mine)} here")
    return "; ".join(found)
