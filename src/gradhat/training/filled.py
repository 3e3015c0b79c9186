"""Settings from plain values, such as a config.json holds them: every field gets a value of its own type.

A file may come from anywhere, so that nothing of it is taken on trust: a text where a number belongs is an
error here and not, hours later, in a matrix product.
"""

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from gradhat.errors import ConfigError

D = TypeVar("D")

LARGEST = 2**63
"""Whole numbers are smaller: they become those of tensors."""
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", NoneType: "null"}


class Unfit(Exception):
    """A value is not of the type of its field. The text says what belongs there."""


def filled(default: D, values: Any, origin: str, place: str = "") -> D:
    """Return the dataclass `default` with `values` in place of its own; one inside it takes an object.

    A key that it does not have, and a value of another type, is a ConfigError that names `origin`.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"read the config of {origin}: {place or 'all of it'} is {_shown(values)}. Write an object."
        )
    assert is_dataclass(default) and not isinstance(default, type)
    known = [field.name for field in fields(default)]
    unknown = sorted(str(key) for key in set(values) - set(known))
    if unknown:
        raise ConfigError(
            f"read the config of {origin}: found the unknown keys {', '.join(unknown)}. Remove them, "
            f"or use the version of gradhat that wrote it. Known keys: {', '.join(known)}."
        )
    types = get_type_hints(type(default))
    settings: dict[str, Any] = {}
    for name, value in values.items():
        present = getattr(default, name)
        if is_dataclass(present):
            settings[name] = filled(present, value, origin, f"{place}{name}")
            continue
        try:
            settings[name] = fitted(value, types[name])
        except Unfit as error:
            raise ConfigError(
                f"read the config of {origin}: {name} is {_shown(value)}. Write {error}, such as "
                f"{_shown(present)}."
            ) from error
    return replace(default, **settings)


def fitted(value: Any, kind: Any) -> Any:
    """Return a plain value as one of the type `kind`. Unfit where it is of another."""
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        if not any(value == choice and type(value) is type(choice) for choice in args):
            raise Unfit(f"one of {', '.join(map(str, args))}")
        return value
    if origin in (Union, UnionType):
        return _of_union(value, args)
    if origin is tuple:
        return _of_tuple(value, args)
    if kind is float and type(value) is int and abs(value) < LARGEST:
        return float(value)
    if type(value) is not kind or not _is_usable(value):
        raise Unfit(WORDS[kind])
    return value


def _of_union(value: Any, kinds: tuple[Any, ...]) -> Any:
    found: list[str] = []
    for kind in kinds:
        try:
            return fitted(value, kind)
        except Unfit as error:
            found.append(str(error))
    raise Unfit(" or ".join(found))


def _of_tuple(value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(kinds) == 2 and kinds[1] is ...:
        if not isinstance(value, list | tuple):
            raise Unfit(f"a list, of {WORDS.get(kinds[0], 'values')} each")
        return tuple(fitted(item, kinds[0]) for item in value)  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(value, list | tuple) or len(value) != len(kinds):  # pyright: ignore
        raise Unfit(f"a list of {len(kinds)} values")
    return tuple(fitted(item, kind) for item, kind in zip(value, kinds, strict=True))  # pyright: ignore


def _is_usable(value: Any) -> bool:
    """Return whether a value of the right type is one that can be worked with."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
        # It may be the name of a file.
        return "\0" not in value
    if isinstance(value, float):
        return not math.isnan(value)
    return not isinstance(value, int) or abs(value) < LARGEST


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def check_size(name: str, value: object) -> None:
    """Raise ConfigError for a whole number that no run folder could be read back with."""
    parts: tuple[object, ...] = value if isinstance(value, tuple) else (value,)
    if any(isinstance(part, int) and abs(part) >= LARGEST for part in parts):
        raise ConfigError(f"{name}={value}: found a value out of range. Use less than 2^63.")
