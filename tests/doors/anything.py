"""What nobody meant: numbers of any library, values of any kind, text of every character, exceptions."""

import json
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gradhat.trajectories import Verdict
from gradhat.verdicts import MAX_REWARD


def either(*kinds: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """One of `kinds`, each as often as the others; `|` takes each of their own kinds as often."""
    return st.sampled_from(kinds).flatmap(lambda kind: kind)


class Broken:
    """An object of somebody else's, of which nothing works."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":  # Hypothesis looks at it
            return Broken
        raise RuntimeError("broken")

    def __repr__(self) -> str:
        raise RuntimeError("broken")


TEXT = either(
    st.sampled_from(["", "a\ud800", "\udfff\ud800", "\0", "🙂\n"]),
    st.text(st.characters(exclude_categories=[]), max_size=20),
)
"""Every character, half ones (surrogates) and NUL often."""
FLOATS = st.floats() | st.sampled_from([1e39, -1e39, 3.5e38, 5e-324, -0.0])
NUMBERS = st.one_of(
    FLOATS,
    st.integers(),
    st.booleans(),
    st.fractions(),
    st.decimals(),
    st.sampled_from([Fraction(10**400), Decimal("1e39")]),
    st.sampled_from([400, 5000]).map(lambda power: 10**power),  # one beyond float64, one that has no repr
    FLOATS.map(np.float64),
    st.floats(width=32).map(np.float32),
    st.floats(width=16).map(np.float16),
    st.booleans().map(np.bool_),
    st.integers(0, 255).map(np.uint8),
    FLOATS.map(lambda x: np.array([[x]])),
    FLOATS.map(lambda x: torch.tensor(x, dtype=torch.float64)),
    st.lists(FLOATS, max_size=3).map(torch.tensor),
    st.lists(FLOATS, max_size=3).map(np.array),
    st.booleans().map(torch.tensor),
)
ANYTHING = st.one_of(
    st.none(),
    NUMBERS,
    TEXT,
    st.binary(max_size=5),
    st.complex_numbers(),
    st.lists(NUMBERS, max_size=3),
    st.tuples(NUMBERS, st.just({}), TEXT),
    st.builds(Broken),
    st.sampled_from([object(), int, ..., np.datetime64("2026-01-01"), np.str_("1"), np.array("1"), {1: 2}]),
)
RAISED = TEXT.flatmap(
    lambda text: st.sampled_from(
        [ValueError(text), KeyError(text), SystemExit(text), RecursionError(), UnicodeError()]
    )
)


def tried(
    examples: int, *known: Mapping[str, Any], **strategies: st.SearchStrategy[Any]
) -> Callable[[Callable[..., None]], None]:
    """Run a function on the `known` examples and on so many others, the same ones every time if they are
    few."""

    def run(test: Callable[..., None]) -> None:
        quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]
        limits = settings(
            max_examples=examples, deadline=None, derandomize=examples < 100, suppress_health_check=quiet
        )
        held = given(**strategies)(test)
        for found in known:
            held = example(**found)(held)
        limits(held)()

    return run


def assert_plain(verdict: Verdict) -> None:
    """It can be computed with in float32, stored as JSON and written as UTF-8."""
    assert type(verdict.reward) is float
    assert abs(verdict.reward) <= MAX_REWARD
    assert math.isfinite(torch.tensor(verdict.reward, dtype=torch.float32).item())
    for name, value in verdict.parts.items():
        name.encode()
        assert type(value) is float
    json.dumps(verdict.parts, allow_nan=False)
    verdict.why.encode()
