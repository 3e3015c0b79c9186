"""What people read: cells, and the report on a language model's gradients."""

import json
import math
from dataclasses import replace

import pytest
import torch

from gradhat.intervals import Interval
from gradhat.lab.figure import COLOURS
from gradhat.lab.model import COLUMNS, INTERVALS, Line, as_row, report
from gradhat.lab.report import Column, shown


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (".3f", 1.23456, "1.235"),
        (".2g", 0.000123, "0.00012"),
        ("d", 7, "7"),
        ("g", 0.95, "0.95"),
        ("", "a name", "a name"),
        ("", True, "True"),
        (".3f", math.nan, "–"),
        ("", math.nan, "–"),
        (".0f", math.inf, "inf"),
    ],
)
def test_a_cell_is_written_in_the_form_of_its_column(form: str, value: float | str, text: str) -> None:
    assert shown(Column("key", "header", form), {"key": value, "other": 0.0}) == text


def test_numbers_have_three_decimals_unless_said_otherwise() -> None:
    assert shown(Column("key", "header"), {"key": 2.0}) == "2.000"


def line(name: str, size: int, snr: tuple[float, float, float], shift: float = 0.0) -> Line:
    return Line(
        estimator=name,
        group_size=size,
        num_groups=3,
        gram=torch.eye(5, dtype=torch.float64),
        silent=Interval(0.25, 0.125, 0.375),
        norm=Interval(1.0 + shift, 0.5, 1.5),
        signal=Interval(2.0 + shift, 1.75, 2.25),
        variance_per_sample=Interval(3.0 + shift, 2.0, 4.0),
        variance_per_group=Interval(4.0 + shift, 3.5, 4.5),
        snr=Interval(*snr),
        cosine=Interval(0.5, -0.25 - shift, 0.75),
    )


CLEAR = [
    line("grpo", 2, (0.2, 0.1, 0.3)),
    line("rloo", 4, (0.3, 0.05, 0.6), shift=1.0),
    line("far but unclear", 2, (9.0, -0.5, 20.0)),
]


def test_a_row_holds_every_number_with_its_interval() -> None:
    row = as_row(CLEAR[1])
    assert (row["estimator"], row["group_size"], row["num_groups"]) == ("rloo", 4, 3)
    for name in INTERVALS:
        found: Interval = getattr(CLEAR[1], name)
        assert (row[name], row[f"{name}_low"], row[f"{name}_high"]) == found
    # 12 trajectories in a batch: signal equals noise after 12 / 0.3 of them.
    assert row["noise_scale"] == pytest.approx(40)
    assert (row["noise_scale_low"], row["noise_scale_high"]) == (pytest.approx(20), pytest.approx(240))
    assert as_row(CLEAR[2])["noise_scale_high"] == math.inf
    assert len(row) == 3 + 3 * len(INTERVALS)
    assert {column.key for column in COLUMNS} <= set(row)


def test_the_report_is_made_of_the_lines() -> None:
    found = report(CLEAR, Interval(0.5, 0.25, 0.75), subject="tiny on letters")
    (table,) = found.tables
    assert (table.name, table.title, list(found.figures)) == ("model", "tiny on letters", ["model"])
    assert list(table.rows) == [as_row(one) for one in CLEAR]
    assert found.notes[0].startswith("5 batches, mean reward 0.500 [0.250, 0.750].")
    json.dumps([dict(row) for row in table.rows])
    for column in COLUMNS:
        assert [shown(column, row) for row in table.rows]


def test_the_best_is_the_one_with_the_fewest_samples_among_those_clear_of_zero() -> None:
    """2 · 3 / 0.2 = 30 samples and 4 · 3 / 0.3 = 40: the smaller group is the cheaper one."""
    verdict = report(CLEAR, Interval(0.5, 0, 1), subject="").notes[-1]
    assert verdict.startswith("Clear of 0: grpo (G = 2), rloo (G = 4). ")
    assert "fewest samples: grpo with groups of 2." in verdict
    assert "unclear" not in verdict


@pytest.mark.parametrize(
    "snr", [(0.1, -0.1, 0.3), (-0.2, -0.4, -0.1), (math.nan, math.nan, math.nan), (0.1, 0.0, 0.2)]
)
def test_where_no_interval_lies_above_zero_no_estimator_is_named(snr: tuple[float, float, float]) -> None:
    lines = [line("grpo", 2, snr), line("rloo", 2, snr)]
    verdict = report(lines, Interval(0.5, 0, 1), subject="").notes[-1]
    assert verdict.startswith("No interval of the signal-to-noise ratio lies above 0: these batches separate")
    assert "Take more --batches" in verdict
    assert "grpo" not in verdict and "rloo" not in verdict


def test_the_figure_draws_each_line_at_its_name() -> None:
    lines = [*CLEAR, replace(CLEAR[0], estimator="dr_grpo", snr=Interval(0.4, 0.3, 0.5))]
    drawn = report(lines, Interval(0.5, 0, 1), subject="").figures["model"]
    for ax, name in zip(drawn.axes, ("snr", "cosine"), strict=True):
        names = [text.get_text() for text in ax.get_yticklabels()]
        assert names == [f"{x.estimator}, G = {x.group_size}" for x in reversed(lines)]
        bars, dots = ax.lines[0:-1:2], ax.lines[1:-1:2]
        for one, bar, dot in zip(reversed(lines), bars, dots, strict=True):
            found: Interval = getattr(one, name)
            assert list(bar.get_xdata()) == [found.low, found.high]
            assert list(dot.get_xdata()) == [found.mean]
            assert bar.get_color() == dot.get_color() == COLOURS[one.group_size // 2 - 1]
            (y,) = dot.get_ydata()
            assert set(bar.get_ydata()) == {y}
            assert names[list(ax.get_yticks()).index(y)].startswith(one.estimator)
        assert set(ax.lines[-1].get_xdata()) == {0}
        assert ax.get_xlabel().startswith(name)
