"""From the name of a task to the task: built in, a class in a user's file, or a file of questions."""

import ast
import difflib
import json
import re
from dataclasses import fields
from hashlib import file_digest, sha256
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from gradhat.envs.text.data import open_data
from gradhat.envs.text.guard import guarded
from gradhat.envs.text.question_files import is_questions
from gradhat.envs.text.task import TIME_LIMIT, Task
from gradhat.errors import TaskError
from gradhat.importing import found_beside, load_file
from gradhat.places import home, is_file

TRUTH = {"true": True, "false": False}
FORMS = (
    "arithmetic[:key=value,...], reasoning_gym:NAME[:key=value,...], path/to/my_task.py:MyTask "
    "or questions.jsonl[:key=value,...] (.csv, .parquet, a folder of datasets)"
)


def load_task(spec: str) -> Task:
    """Return the task that `spec` names, one of `FORMS`. Raises TaskError that says what is known instead.

    A file of one's own is imported, so its code runs with the rights of this program.
    """
    kind, _, rest = spec.partition(":")
    path, _, class_name = spec.rpartition(":")
    if kind == "arithmetic":
        return _arithmetic(rest)
    if kind == "reasoning_gym":
        return _reasoning_gym(rest)
    if path.endswith(".py"):
        return _own(path, class_name)
    if spec.endswith(".py"):
        return _own(spec, "")
    if is_questions(kind):
        return open_data(home(kind), _settings(kind, rest))
    near = difflib.get_close_matches(kind, ["arithmetic", "reasoning_gym"], 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise TaskError(f"task {spec!r} is unknown.{hint} Use {FORMS}.")


class File(NamedTuple):
    """The file, or the folder, that a task or a reward lies in."""

    path: Path
    rest: str
    """What the name says behind the file: the class or the function with its weight, the settings."""


def file_of(spec: str) -> File | None:
    """Return the file that the task or the reward `spec` lies in, there or not. None where it is in none."""
    head, _, rest = ("", "", "") if spec.endswith(".py") else spec.rpartition(":")
    if (head or spec).endswith(".py"):
        return File(home(head or spec), rest)
    name, _, rest = spec.partition(":")
    path = home(name)
    # A folder of datasets is known by what is in it: one that is gone, by its whole path.
    return File(path, rest) if is_questions(name) or path.is_absolute() else None


def source_hash(spec: str) -> str:
    """Return the SHA-256 of the file, of code or of questions, that the task or the reward `spec` lies in, ""
    where it lies in none. Of a folder that datasets saved it is "" too. With a file of code go the modules
    beside it that were imported so far.
    """
    file = file_of(spec)
    if file is None or not is_file(file.path):
        return ""
    beside = found_beside(file.path.parent) if file.path.suffix == ".py" else []
    found: list[str] = []
    for path in (file.path, *beside):
        with path.open("rb") as content:
            found.append(file_digest(content, "sha256").hexdigest())
    return found[0] if len(found) == 1 else sha256("".join(found).encode()).hexdigest()


def _arithmetic(text: str) -> Task:
    from gradhat.envs.text.arithmetic import Arithmetic

    kinds = {field.name: type(field.default) for field in fields(Arithmetic)}
    values: dict[str, Any] = {}
    for key, value in _settings("arithmetic", text).items():
        if key not in kinds:
            raise TaskError(f"arithmetic has no setting {key!r}. Known: {', '.join(kinds)}.")
        try:
            values[key] = TRUTH[value.strip().lower()] if kinds[key] is bool else kinds[key](value)
        except (ValueError, KeyError):
            wanted = " or ".join(TRUTH) if kinds[key] is bool else kinds[key].__name__
            raise TaskError(f"arithmetic: {key}={value!r}: use {wanted}.") from None
    return Arithmetic(**values)


def _reasoning_gym(text: str) -> Task:
    from gradhat.envs.text.reasoning_gym import ReasoningGym

    name, _, rest = text.partition(":")
    asked = f"reasoning_gym:{name}"
    settings = _settings(asked, rest)
    return ReasoningGym(name, {key: _literal(asked, key, value) for key, value in settings.items()})


def _settings(task: str, text: str) -> dict[str, str]:
    """Return the `key=value` pairs of "a=1,b=[2,3]": commas inside brackets belong to the value."""
    settings: dict[str, str] = {}
    for pair in filter(None, re.split(r",(?![^\[(]*[\])])", text)):
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise TaskError(f"{task}: the setting {pair!r} has no value. Write key=value,key=value.")
        if key.strip() in settings:
            raise TaskError(f"{task}: the setting {key.strip()!r} is given twice. Give it once.")
        settings[key.strip()] = value
    return settings


def _literal(task: str, key: str, value: str) -> Any:
    """Return the Python literal that `value` spells (3, 0.5, True, [1, 2]), else the text itself."""
    try:
        found = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return {"true": True, "false": False}.get(value.strip().lower(), value)
    try:
        json.dumps(found)
    except (ValueError, TypeError, RecursionError):
        raise TaskError(
            f"{task}: {key}={value!r}: found a value of a kind that no setting has. "
            "Use numbers, text, true, false, or lists of such."
        ) from None
    return found


def _own(file: str, class_name: str) -> Task:
    """Return an instance of a class in a file. TaskError when file, class or method is missing or broken."""
    path = home(file)
    asked = f"task {path}:{class_name}"
    if not is_file(path):
        raise TaskError(f"{asked}: there is no file {path}. Check the path; a task is named {FORMS}.")
    module = guarded(
        f"{asked}: importing {path}",
        TIME_LIMIT,
        lambda: load_file(path, f"gradhat_task_{path.stem}"),
        loading=True,
    )
    found: Any = guarded(asked, TIME_LIMIT, lambda: _class(asked, path, module, class_name))
    return guarded(f"{asked}: {class_name}()", TIME_LIMIT, found, loading=True)


def _class(asked: str, path: Path, module: ModuleType, class_name: str) -> Any:
    """Return the class of a task in a file. What its metaclass raises comes through."""
    found: Any = getattr(module, class_name, None)
    if not isinstance(found, type):
        classes = [name for name, value in vars(module).items() if _fits(value)]
        there = f"Classes with question and score there: {', '.join(classes) or 'none'}."
        raise TaskError(f"{asked}: {path} has no class {class_name!r}. {there} Write {path}:ClassName.")
    missing = _missing(found)
    if missing:
        raise TaskError(
            f"{asked}: the class has no method {' and '.join(missing)}. "
            "Give it question(self, seed) -> Question and score(self, question, completion) -> float."
        )
    return found


def _missing(kind: type) -> list[str]:
    return [name for name in ("question", "score") if not callable(getattr(kind, name, None))]


def _fits(found: object) -> bool:
    try:
        return isinstance(found, type) and not _missing(found)
    except Exception:  # its metaclass raises: it is no class to offer
        return False
