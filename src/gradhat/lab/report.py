"""What an experiment found: tables for people and programs, figures, and how to read them."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Value = str | float | int | bool
Row = Mapping[str, Value]


class Column(NamedTuple):
    """One column as people see it. Files hold every key of a row, this one or not, in full precision."""

    key: str
    header: str
    form: str = ".3f"
    """A format of Python's `format`; text columns take ""."""


class Table(NamedTuple):
    """Rows that share their keys."""

    name: str
    """The file name, without its ending."""
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    few: tuple[Row, ...] = ()
    """The rows that people see, where all are too many to read; the files hold all."""


class Report(NamedTuple):
    """One experiment."""

    question: str
    """One sentence."""
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    """How to read the numbers, one sentence each; what was sampled, not enumerated, is said here."""
    figures: Mapping[str, "Figure"]
    """File name without its ending → figure."""


def shown(column: Column, row: Row) -> str:
    """Return one cell as text; a dash for what does not exist: the angle of a zero vector."""
    value = row[column.key]
    if isinstance(value, float) and math.isnan(value):
        return "–"
    return format(value, column.form) if column.form else str(value)
