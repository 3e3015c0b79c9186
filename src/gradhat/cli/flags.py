"""Command-line flags from a dataclass: its fields are the names and defaults, its docstrings the help."""

import difflib
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gradhat.errors import ConfigError
from gradhat.places import home

if TYPE_CHECKING:
    from tyro.constructors import ConstructorRegistry

F = TypeVar("F")


def parse(default: F, argv: list[str], *, prog: str, description: str, kind: Any = None) -> F:
    """Return `default` with the flags of `argv` applied. A dataclass inside it gives flags of its own.

    `kind` is the type of `default` where its class leaves one open, such as Launch[TrainConfig].

    ConfigError for a flag that no field has, listing the known ones. A value of the wrong type ends the
    command with exit code 2 and says which.
    """
    import tyro

    flags, rest = tyro.cli(
        kind or type(default),
        prog=prog,
        description=description,
        args=argv,
        default=default,
        return_unknown_args=True,
        config=(tyro.conf.OmitArgPrefixes,),
        registry=_whole_paragraphs(),
    )
    if rest:
        known = names(default)
        wrong = next((word for word in rest if word.startswith("--")), rest[0])
        raise ConfigError(
            f"{prog} {wrong}: no such {'flag' if wrong.startswith('-') else 'argument'}.{near(wrong, known)} "
            f"Known flags: {' '.join(known)}."
        )
    return at_home(flags)


def _whole_paragraphs() -> "ConstructorRegistry":
    """Return how tyro reads a dataclass, but for the help of flags, which it breaks where the code does."""
    from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructTypeInfo

    registry = ConstructorRegistry()
    asking = False

    def read(info: StructTypeInfo) -> StructConstructorSpec | None:
        nonlocal asking
        if asking:
            return None
        asking = True
        try:
            found = ConstructorRegistry.get_struct_spec(info)
        finally:
            asking = False
        if not isinstance(found, StructConstructorSpec):
            return None
        whole = tuple(replace(one, helptext=partial(_paragraph, one.helptext)) for one in found.fields)
        return replace(found, fields=whole)

    registry.struct_rule(read)
    return registry


def _paragraph(helptext: str | Callable[[], str | None] | None) -> str | None:
    said = helptext() if callable(helptext) else helptext
    return said and " ".join(said.split())


def at_home(flags: F) -> F:
    """Return `flags` with the home folder in place of "~" in every path."""
    assert is_dataclass(flags)
    changed: dict[str, Any] = {}
    for field in fields(flags):
        value = getattr(flags, field.name)
        if isinstance(value, Path):
            changed[field.name] = home(str(value))
        elif is_dataclass(value):
            changed[field.name] = at_home(value)
    return replace(flags, **changed)  # pyright: ignore[reportReturnType, reportArgumentType]


def gathered(argv: list[str], flag: str) -> list[str]:
    """Return `argv` with all values of a flag that is given several times behind its first one."""
    values: list[str] = []
    rest: list[str] = []
    place = len(argv)
    taking = False
    for word in argv:
        name, equals, value = word.partition("=")
        if name == flag:
            place, taking = min(place, len(rest)), not equals
            values += [value] if equals else []
        elif taking and not word.startswith("--"):
            values.append(word)
        else:
            taking = False
            rest.append(word)
    return [*rest[:place], flag, *values, *rest[place:]] if values else argv


def names(flags: object) -> list[str]:
    """Return the flags that the fields of a dataclass make, those of dataclasses inside it included."""
    found: list[str] = []
    assert is_dataclass(flags)
    for field in fields(flags):
        value = getattr(flags, field.name)
        found += names(value) if is_dataclass(value) else [f"--{field.name.replace('_', '-')}"]
    return found


def target(argv: list[str], what: str, usage: str) -> tuple[str, list[str]]:
    """Split the leading positional argument from the flags. ConfigError when there is none."""
    if not argv or argv[0].startswith("-"):
        raise ConfigError(f"{usage}: found no {what}. Name it first, then the flags.")
    return argv[0], argv[1:]


def near(name: str, known: list[str]) -> str:
    """Return " Did you mean X?" for the known names most like `name`, or nothing."""
    matches = difflib.get_close_matches(name, known, n=3)
    return f" Did you mean {' or '.join(matches)}?" if matches else ""
