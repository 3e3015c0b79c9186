"""The state of environments as plain values, so that a checkpoint holds data and no code.

A pickle would do the same in a line, and whoever opens it runs what it holds. Here an object is walked, its
numbers, texts, arrays and random generators are written down, and they are put into another object of the
same kind, made by its own code.

As text each value is JSON: null, true, 1, 0.5 and "a" stand for themselves, all else is an object of one key
that says what it is: {"array": ...}, {"tuple": [...]}, {"fields": {...}}.
"""

import base64
import json
import random
from collections.abc import Iterator
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, cast

import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Space
from numpy.typing import NDArray

FIXED = (Space, EnvSpec, Enum, type, FunctionType, MethodType, BuiltinFunctionType, ModuleType, partial)
"""Kinds of values that a step does not change, as long as it does not put others in their place. The random
numbers of a space are no part of the state: draw from `np_random`."""
GENERATORS = {name: getattr(np.random, name) for name in ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")}

Saved = Any
"""What JSON can hold."""


class Unsavable(Exception):
    """A value is of a kind whose state cannot be seen. The text names the attribute and its type."""


def dumps(saved: Saved) -> bytes:
    """Return `saved` as bytes."""
    return json.dumps(saved, separators=(",", ":")).encode()


def loads(content: bytes) -> Saved:
    """Return what `dumps` was given. ValueError for bytes that it has not written."""
    return json.loads(content)


def captured(value: Any) -> Saved:
    """Return the state of `value`, and of all that it holds.

    Unsavable names what has none that can be seen: an object of an extension module, a file, two arrays that
    share their memory.
    """
    walk = _Walk()
    saved = walk.capture(value, "it")
    walk.check_memory()
    return saved


def put_back(fresh: Any, saved: Saved) -> Any:
    """Return the value that `captured` saw, in `fresh` where that is an object.

    `fresh` was made as that value was: what is FIXED is taken from it. Raises ValueError, KeyError, TypeError
    or IndexError where `saved` is not of such a value.
    """
    if not isinstance(saved, dict):
        return saved
    [(kind, content)] = cast("dict[str, Any]", saved).items()
    match kind:
        case "fixed":
            return fresh
        case "array":
            return _array(content)
        case "number":
            return _array(content)[()]
        case "bytes":
            return base64.b64decode(content)
        case "generator":
            return _generator(content)
        case "random":
            made = random.Random()
            made.setstate(put_back(None, content))
            return made
        case "list":
            return list(_items(fresh, content))
        case "tuple":
            items = _items(fresh, content)
            return fresh._make(items) if hasattr(fresh, "_make") else tuple(items)
        case "dict":
            mine = fresh if isinstance(fresh, dict) else {}
            return {key: put_back(mine.get(key), item) for key, item in content}  # pyright: ignore
        case "fields":
            for name, item in content.items():
                vars(fresh)[name] = put_back(vars(fresh).get(name), item)
            return fresh
        case _:
            raise ValueError(f"{kind} is no kind of value")


class _Walk:
    """One pass over an object: what was seen, so that nothing is seen twice."""

    def __init__(self) -> None:
        self._open: list[int] = []
        self._arrays: list[tuple[str, NDArray[Any]]] = []

    def capture(self, value: Any, name: str) -> Saved:
        """Return the state of `value`, which errors call `name`."""
        if value is None or isinstance(value, Enum) or type(value) in (bool, int, float, str):
            return {"fixed": None} if isinstance(value, Enum) else value
        if isinstance(value, FIXED):
            return {"fixed": None}
        if isinstance(value, np.ndarray):
            self._arrays.append((name, cast("NDArray[Any]", value)))
            return {"array": _written(value, name)}  # pyright: ignore[reportUnknownArgumentType]
        if isinstance(value, np.generic):
            return {"number": _written(np.asarray(value), name)}
        if isinstance(value, bytes | bytearray):
            return {"bytes": base64.b64encode(value).decode()}
        return self._container(value, name)

    def _container(self, value: Any, name: str) -> Saved:
        if id(value) in self._open:
            raise Unsavable(f"{name} holds itself")
        self._open.append(id(value))
        try:
            match value:
                case np.random.Generator():
                    return {"generator": self.capture(value.bit_generator.state, name)}
                case random.Random():
                    return {"random": self.capture(value.getstate(), name)}
                case list() if type(value) is list:
                    return {"list": [self.capture(v, f"{name}[{i}]") for i, v in enumerate(value)]}
                case tuple() if type(value) is tuple or hasattr(value, "_make"):
                    return {"tuple": [self.capture(v, f"{name}[{i}]") for i, v in enumerate(value)]}
                case dict() if type(value) is dict:
                    return {
                        "dict": [[_key(k, name), self.capture(v, f"{name}[{k!r}]")] for k, v in value.items()]
                    }
                case _:
                    return {"fields": dict(self._fields(value, name))}
        finally:
            self._open.pop()

    def _fields(self, value: Any, name: str) -> Iterator[tuple[str, Saved]]:
        # A class of an extension module, of slots, or built on a builtin keeps more than its __dict__.
        kind = type(value)
        slots = {slot for base in kind.__mro__ for slot in _names(vars(base).get("__slots__", ()))}
        if kind.__basicsize__ != _Plain.__basicsize__ or slots - {"__dict__", "__weakref__"}:
            raise Unsavable(f"{name}, a {kind.__module__}.{kind.__qualname__}")
        for key, item in vars(value).items():
            yield key, self.capture(item, f"{name}.{key}")

    def check_memory(self) -> None:
        """Unsavable where two arrays share memory: they would come back as two."""
        for i, (name, array) in enumerate(self._arrays):
            for other, before in self._arrays[:i]:
                if np.may_share_memory(array, before):
                    raise Unsavable(f"{name}, which shares its memory with {other}")


class _Plain:
    """An object as a class statement makes it: all it has is in its __dict__."""


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _key(key: Any, name: str) -> Any:
    if key is None or type(key) in (bool, int, float, str):
        return key
    raise Unsavable(f"{name}, with the key {key!r}")


def _written(array: NDArray[Any], name: str) -> Saved:
    """Return an array in its order in memory, in which products round."""
    if array.dtype.hasobject:
        raise Unsavable(f"{name}, an array of objects")
    order = "C" if array.flags.c_contiguous or not array.flags.f_contiguous else "F"
    content = base64.b64encode(array.tobytes(order)).decode()
    return [array.dtype.str, list(array.shape), order, content]


def _array(written: Saved) -> NDArray[Any]:
    dtype, shape, order, content = written
    return np.frombuffer(base64.b64decode(content), np.dtype(dtype)).reshape(shape, order=order).copy(order)


def _generator(content: Saved) -> np.random.Generator:
    state = put_back(None, content)
    bits = GENERATORS[state["bit_generator"]]()
    bits.state = state
    return np.random.Generator(bits)


def _items(fresh: Any, content: list[Saved]) -> list[Any]:
    """Return the items of a list or tuple, each put into the one in its place in `fresh`, if there is one."""
    mine: list[Any] = list(fresh) if isinstance(fresh, list | tuple) else []  # pyright: ignore
    mine += [None] * (len(content) - len(mine))
    return [put_back(mine[i], item) for i, item in enumerate(content)]
