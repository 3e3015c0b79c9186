"""Numbers of every library are floats, and what cannot be stored does not come in."""

import math
from decimal import Decimal
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch

from gradhat.trajectories import Verdict
from gradhat.verdicts import MAX_REWARD, number, plain, writable

HALVES = [
    0.5,
    Decimal("0.5"),
    Fraction(1, 2),
    np.float16(0.5),
    np.float32(0.5),
    np.float64(0.5),
    np.longdouble(0.5),
    np.array(0.5),
    np.array([[0.5]], dtype=np.float32),
    torch.tensor(0.5),
    torch.tensor([0.5], dtype=torch.bfloat16),
    torch.tensor(0.5, requires_grad=True),
    torch.nn.Parameter(torch.tensor([0.5])),
    np.ma.array([0.5]),
]
ONES = [1, True, np.True_, np.int64(1), np.uint8(1), np.array([True]), torch.tensor(True), torch.tensor([1])]


class Broken:
    def __float__(self) -> float:
        raise RuntimeError("no")


@pytest.mark.parametrize("found", HALVES, ids=repr)
def test_half_is_half_in_every_library(found: Any) -> None:
    assert number(found) == 0.5
    assert type(number(found)) is float


@pytest.mark.parametrize("found", ONES, ids=repr)
def test_truth_and_counts_are_numbers(found: Any) -> None:
    assert number(found) == 1.0
    assert type(number(found)) is float


@pytest.mark.parametrize(
    "found",
    [
        *(None, "1", b"1", [1.0], (1.0,), {}, {1.0}, 1j, np.complex64(1), torch.tensor(1j)),
        *(np.str_("1"), np.array("1"), np.array(["1"]), np.datetime64("2026-01-01"), object(), Broken()),
        *(math.nan, math.inf, -math.inf, 10**400, Fraction(10**400), Decimal("sNaN"), np.float32("nan")),
        *(np.ma.masked, np.ma.array([0.5], mask=True)),
        *(np.ones(2), np.ones(0), torch.ones(2), torch.ones(0), torch.tensor(math.inf), int, np.float64),
    ],
    # An address in a name would differ from process to process.
    ids=lambda found: repr(found).split(" at 0x")[0],
)
def test_what_is_no_finite_number_is_none(found: Any) -> None:
    assert number(found) is None


def test_zero_has_no_sign() -> None:
    assert str(number(-0.0)) == str(number(np.float32(-0.0))) == "0.0"


def test_a_verdict_is_made_of_floats_and_text() -> None:
    parts = MappingProxyType({np.str_("length"): np.float32(4), "ok": Fraction(1, 4), "\ud800": np.True_})
    found = plain(Verdict(np.float32(0.5), parts, np.str_("w\udfffy")))  # type: ignore[arg-type]
    assert found == Verdict(0.5, {"length": 4.0, "ok": 0.25, "?": 1.0}, "w?y")
    assert type(found.parts) is dict
    assert {type(key) for key in found.parts} == {str}
    assert {type(value) for value in (found.reward, *found.parts.values())} == {float}
    assert type(found.why) is str


def test_the_bound_is_that_of_float32() -> None:
    assert float(np.finfo(np.float32).max) == MAX_REWARD
    assert plain(-MAX_REWARD).reward == -MAX_REWARD
    for beyond in (1e39, -1e39, np.nextafter(MAX_REWARD, math.inf), 10**39, Decimal("1e39")):
        with pytest.raises(ValueError, match="float32"):
            plain(beyond)
    assert plain(Verdict(1.0, {"length": 1e39}, "")).parts == {
        "length": 1e39
    }  # read by people, never in float32


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, "finite number or a Verdict"),
        ((1.0, {}, ""), "finite number or a Verdict"),
        (Verdict(math.nan, {}, ""), "finite number or a Verdict"),
        (Verdict(1.0, None, ""), "parts are no dictionary"),
        (Verdict(1.0, [("a", 1.0)], ""), "parts are no dictionary"),
        (Verdict(1.0, {"a": "1"}, ""), "part 'a' is no finite number"),
        (Verdict(1.0, {3: 1.0}, ""), "names of parts are text"),
        (Verdict(1.0, {}, None), "text"),
        (Verdict(1.0, {}, b"why"), "text"),
    ],
)
def test_what_is_no_verdict_is_said(found: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plain(found)


def test_text_that_can_be_written_stays_as_it_is() -> None:
    assert writable("naïve 🙂\n") == "naïve 🙂\n"
    assert writable("a\ud83db") == "a?b"
