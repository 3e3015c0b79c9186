"""The state of an object as data: it comes back equal, and what cannot be written down is named."""

import io
import json
import random
from collections import UserDict, deque
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
from gymnasium.spaces import Box
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from gradhat.envs.gym_state import Unsavable, captured, dumps, loads, put_back

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
ARRAYS = arrays.arrays(
    st.sampled_from(["f4", "f8", "i8", "u1", "?", ">i2"]),
    arrays.array_shapes(min_dims=0, min_side=0, max_side=3),
)
VALUES = st.recursive(
    SCALARS | ARRAYS,
    lambda inner: (
        st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text() | st.integers(), inner)
    ),
    max_leaves=8,
)


class Point(NamedTuple):
    x: Any
    y: Any


class Thing:
    def __init__(self, **fields: Any) -> None:
        vars(self).update(fields)


def again(value: Any, fresh: Any = None) -> Any:
    return put_back(fresh, loads(dumps(captured(value))))


def assert_equal(found: Any, wanted: Any) -> None:
    assert type(found) is type(wanted)
    if isinstance(wanted, np.ndarray):
        assert found.dtype == wanted.dtype and found.shape == wanted.shape
        assert found.tobytes("A") == wanted.tobytes("A")
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_equal(one, other)
    elif isinstance(wanted, dict):
        assert list(found) == list(wanted)
        assert_equal(list(found.values()), list(wanted.values()))
    else:
        assert repr(found) == repr(wanted)


@given(VALUES)
@settings(max_examples=100, deadline=None)
def test_plain_values_come_back_equal(value: Any) -> None:
    assert_equal(again(value), value)


@pytest.mark.parametrize("number", [np.float32(0.1), np.int16(-3), np.bool_(True)])
def test_a_number_of_numpy_keeps_its_type(number: Any) -> None:
    found = again(number)
    assert found == number and type(found) is type(number)


def test_an_array_keeps_its_order_in_memory() -> None:
    """Products round by it."""
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    assert again(array).flags.f_contiguous and not again(array).flags.c_contiguous
    assert again(array).flags.writeable


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_a_generator_goes_on(bits: Any) -> None:
    mine = np.random.Generator(bits(3))
    mine.random(5)
    found = again({"numpy": mine, "python": (python := random.Random(3))})
    assert found["numpy"].random(9).tolist() == mine.random(9).tolist()
    assert found["python"].random() == python.random()


def test_an_object_gets_its_fields_back_in_one_made_like_it() -> None:
    space, code = Box(0, 1), partial(print)
    old = Thing(
        t=7, space=space, hook=code, point=Point(1, np.ones(2)), parts=[Thing(x=1), Thing(x=2)], new=5
    )
    fresh = Thing(
        t=0, space=(mine := Box(0, 2)), hook=None, point=Point(0, 0), parts=[Thing(x=0), Thing(x=0)]
    )
    parts = fresh.parts
    assert again(old, fresh) is fresh
    assert (fresh.t, fresh.space, fresh.hook, fresh.new) == (7, mine, None, 5)
    assert type(fresh.point) is Point and fresh.point.x == 1
    assert [part.x for part in fresh.parts] == [1, 2] and fresh.parts[1] is parts[1]


class Slots:
    __slots__ = ("__dict__", "x")


class Rows(list[int]):
    pass


class Ring:
    def __init__(self) -> None:
        self.next = self


array = np.arange(6)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"file": io.StringIO()}, r"it\['file'\], a _io.StringIO"),
        (Thing(world=memoryview(b"")), "it.world, a builtins.memoryview"),
        (Thing(queue=deque([1])), "it.queue, a collections.deque"),
        (Thing(rows=Rows()), r"it.rows, a .*Rows"),
        (Thing(slots=Slots()), r"it.slots, a .*Slots"),
        (Thing(parts=[{1, 2}]), r"it.parts\[0\], a builtins.set"),
        (Thing(objects=np.array([None])), "it.objects, an array of objects"),
        (Thing(keys={(1, 2): 3}), r"it.keys, with the key \(1, 2\)"),
        (Thing(old=np.random.RandomState(1)), "it.old, a numpy.random.mtrand.RandomState"),
        (Ring(), "it.next holds itself"),
        (Thing(rows=array, view=array[2:]), "it.view, which shares its memory with it.rows"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_written_down_is_named(value: Any, named: str) -> None:
    with pytest.raises(Unsavable, match=named):
        captured(value)


def test_a_class_of_ones_own_on_a_python_class_is_an_object() -> None:
    class Mine(UserDict[str, int]):
        pass

    fresh = Mine()
    again(Mine(a=1), fresh)
    assert fresh == {"a": 1}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from(
                ["array", "number", "bytes", "generator", "random", "list", "tuple", "dict", "fields", "x"]
            ),
            inner,
            max_size=2,
        )
    ),
    max_leaves=10,
)


@given(JSON)
@settings(max_examples=100, deadline=None)
def test_any_json_is_a_value_or_a_plain_error(saved: Any) -> None:
    fresh = Thing(x=1, parts=[Thing()])
    with suppress(ValueError, KeyError, TypeError, IndexError, AttributeError):
        put_back(fresh, loads(json.dumps(saved).encode()))


def test_bytes_of_another_kind_are_an_error() -> None:
    with pytest.raises(ValueError, match="Expecting value"):
        loads(b"cos\nsystem\n(S'true'\ntR.")
