"""Bytes and Parquet columns that nobody meant."""

from decimal import Decimal
from typing import Any

import pyarrow as arrow
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st


def trials(examples: int) -> settings:
    """So many examples, the same ones every time if they are few."""
    quiet = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=examples, deadline=None, derandomize=examples < 100, suppress_health_check=quiet
    )


def damaged(contents: bytes, data: st.DataObject) -> bytes:
    """Some bytes are others, or the end is missing, or something stands in between. The start is hit most."""
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, min(400, len(contents))) | st.integers(0, len(contents)))
        new = data.draw(st.binary(max_size=8) | st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\x7f\xff", b"["]))
        stop = data.draw(st.sampled_from([start, start + len(new), len(contents)]))
        contents = contents[:start] + new + contents[stop:]
    return contents


def no_text() -> Any:
    """Three strings, none of which is UTF-8."""
    offsets = arrow.array([0, 1, 2, 3], arrow.int32()).buffers()[1]
    return arrow.Array.from_buffers(arrow.string(), 3, [None, offsets, arrow.py_buffer(b"\xff\xc0\x80")])


MESSAGE = arrow.struct([("role", arrow.string()), ("content", arrow.string())])
MOST = 2**63 - 1
COLUMNS: list[Any] = [
    no_text(),
    arrow.nulls(3),
    *(
        arrow.array(values, kind)
        for kind, values in (
            (arrow.string(), ["3 + 4?", "", "1"]),
            (arrow.string(), ["A", "B", "\0"]),
            (arrow.large_string(), ["7", None, "x"]),
            (arrow.int64(), [1, -(2**63), MOST]),
            (arrow.uint64(), [0, 2**64 - 1, None]),
            (arrow.float64(), [7.0, float("nan"), float("-inf")]),
            (arrow.float64(), [1e300, 7.5, 2.0]),
            (arrow.bool_(), [True, None, False]),
            (arrow.binary(), [b"7", b"\xff", None]),
            (arrow.decimal128(38, 2), [Decimal("7.00"), Decimal("-1e35"), None]),
            (arrow.date32(), [0, 2**31 - 1, -(2**31)]),
            (arrow.time64("ns"), [1, 0, None]),
            (arrow.timestamp("ns"), [1, MOST, None]),
            (arrow.timestamp("us"), [0, MOST, -MOST]),
            (arrow.timestamp("ms", tz="Mars/Olympus"), [0, 1, None]),
            (arrow.duration("ns"), [1, MOST, None]),
            (arrow.duration("s"), [MOST, 0, None]),
            (arrow.list_(arrow.string()), [["7"], [], None]),
            (arrow.list_(arrow.float32()), [[7.0], [float("nan")], None]),
            (arrow.list_(MESSAGE), [[{"role": "user", "content": "Hi?"}], [], [{"role": None}]]),
            (arrow.list_(MESSAGE), [[{"role": "user", "content": "3 + 4?"}]] * 3),
            (arrow.map_(arrow.string(), arrow.int64()), [[("a", 1), ("a", 2)], [], None]),
            (arrow.dictionary(arrow.int8(), arrow.string()), ["7", "7", None]),
        )
    ),
]
"""Of three rows each: every kind of column, with values at the ends of what it can hold."""
