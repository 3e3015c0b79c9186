"""From the name of a task to the task: `arithmetic`, `reasoning_gym:NAME`, or a class in a user's file."""

import ast
import difflib
import importlib.util
import re
import sys
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

from gradhat.envs.text.task import TIME_LIMIT, Task, guarded
from gradhat.errors import TaskError

FORMS = "arithmetic[:key=value,...], reasoning_gym:NAME[:key=value,...] or path/to/my_task.py:MyTask"


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
        return _own(Path(path), class_name)
    if spec.endswith(".py"):
        return _own(Path(spec), "")
    near = difflib.get_close_matches(kind, ["arithmetic", "reasoning_gym"], 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise TaskError(f"task {spec!r} is unknown.{hint} Use {FORMS}.")


def _arithmetic(text: str) -> Task:
    from gradhat.envs.text.arithmetic import Arithmetic

    kinds = {field.name: type(field.default) for field in fields(Arithmetic)}
    values: dict[str, Any] = {}
    for key, value in _settings("arithmetic", text).items():
        if key not in kinds:
            raise TaskError(f"arithmetic has no setting {key!r}. Known: {', '.join(kinds)}.")
        try:
            values[key] = kinds[key](value)
        except ValueError:
            raise TaskError(f"arithmetic: {key}={value!r}: use {kinds[key].__name__}.") from None
    return Arithmetic(**values)


def _reasoning_gym(text: str) -> Task:
    from gradhat.envs.text.reasoning_gym import ReasoningGym

    name, _, rest = text.partition(":")
    settings = _settings(f"reasoning_gym:{name}", rest)
    return ReasoningGym(name, {key: _literal(value) for key, value in settings.items()})


def _settings(task: str, text: str) -> dict[str, str]:
    """Return the `key=value` pairs of "a=1,b=[2,3]": commas inside brackets belong to the value."""
    settings: dict[str, str] = {}
    for pair in filter(None, re.split(r",(?![^\[(]*[\])])", text)):
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise TaskError(f"{task}: the setting {pair!r} has no value. Write key=value,key=value.")
        settings[key.strip()] = value
    return settings


def _literal(value: str) -> Any:
    """Return the Python literal that `value` spells (3, 0.5, True, [1, 2]), else the text itself."""
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(value.strip().lower(), value)


def _own(path: Path, class_name: str) -> Task:
    """Return an instance of a class in a file. TaskError when file, class or method is missing or broken."""
    asked = f"task {path}:{class_name}"
    if not path.is_file():
        raise TaskError(f"{asked}: there is no file {path}. Check the path; a task is named {FORMS}.")
    with guarded(f"{asked}: importing {path}", TIME_LIMIT):
        module = _import(path)
    found: Any = getattr(module, class_name, None)
    if not isinstance(found, type):
        classes = [name for name, value in vars(module).items() if isinstance(value, type) and _fits(value)]
        there = f"Classes with question and score there: {', '.join(classes) or 'none'}."
        raise TaskError(f"{asked}: {path} has no class {class_name!r}. {there} Write {path}:ClassName.")
    if not _fits(found):
        missing = " and ".join(
            name for name in ("question", "score") if not callable(getattr(found, name, None))
        )
        raise TaskError(
            f"{asked}: the class has no method {missing}. "
            "Give it question(self, seed) -> Question and score(self, question, completion) -> float."
        )
    with guarded(f"{asked}: {class_name}()", TIME_LIMIT):
        return found()


def _fits(kind: Any) -> bool:
    return callable(getattr(kind, "question", None)) and callable(getattr(kind, "score", None))


def _import(path: Path) -> ModuleType:
    """Import a file as a module of its own name; a module that fails half-way is forgotten."""
    name = f"gradhat_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
