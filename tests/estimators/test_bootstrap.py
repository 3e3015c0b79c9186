"""Targets for Q out of single transitions: by hand, against the loop of the paper, bugs of the wild."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradhat.estimators import bootstrap

F64 = torch.float64
few = settings(max_examples=100, deadline=None, derandomize=True)


def row(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=F64)


# --- a number ----------------------------------------------------------------------------------------------

R, V, GONE, DISCOUNTS = (
    row(1, 2, 3, 4),
    row(10, 20, math.nan, 40),
    torch.tensor([False, False, True, False]),
    row(0.5, 0.125, 0.5, 1),
)
"""An ordinary row, one of three steps (γ = 1/2), a terminated one, and a truncated one: ordinary too."""


def test_a_value_by_hand() -> None:
    assert bootstrap.value(R, V, GONE, DISCOUNTS).tolist() == [6, 4.5, 3, 44]


def test_truncation_is_not_death() -> None:
    planted = bootstrap.value(R, V, GONE | torch.tensor([False, False, False, True]), DISCOUNTS)
    assert planted.tolist() == [6, 4.5, 3, 4]


def test_a_target_is_data() -> None:
    values = V.clone().requires_grad_()
    assert not bootstrap.value(R, values, GONE, DISCOUNTS).requires_grad
    probs = torch.full((4, 3), 1 / 3, dtype=F64, requires_grad=True)
    assert not bootstrap.distribution(R, probs, GONE, DISCOUNTS, low=-1.0, high=1.0).requires_grad


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"next_values": row(1)}, r"next_values \(1,\) with rewards \(4,\)"),
        ({"discounts": row(1)[:, None]}, r"discounts \(1, 1\) with rewards \(4,\)"),
        ({"terminated": row(0, 0, 1, 0)}, r"terminated torch.float64: .* terminated.bool\(\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_arguments_of_a_value_are_named(changed: dict[str, Tensor], message: str) -> None:
    arguments = {"rewards": R, "next_values": V, "terminated": GONE, "discounts": DISCOUNTS}
    with pytest.raises(ValueError, match=message):
        bootstrap.value(**(arguments | changed))


# --- a distribution ----------------------------------------------------------------------------------------


def by_the_letter(
    reward: float, probs: list[float], discount: float, low: float, high: float, *, whole: bool = True
) -> list[float]:
    """Algorithm 1 of Bellemare, Dabney & Munos 2017, one row. `whole` keeps what falls exactly on an atom."""
    last = len(probs) - 1
    width = (high - low) / last
    m = [0.0] * (last + 1)
    for j, p in enumerate(probs):
        moved = min(high, max(low, reward + discount * (low + j * width)))
        b = min(last, max(0.0, (moved - low) / width))
        below, above = math.floor(b), math.ceil(b)
        m[below] += p * (above - b)
        m[above] += p * (b - below)
        if whole and below == above:
            m[below] += p
    return m


@few
@given(
    st.lists(st.floats(-6, 6), min_size=1, max_size=4),
    st.integers(2, 9),
    st.sampled_from([0.0, 0.25, 0.9, 1.0]),
    st.integers(0, 10_000),
)
def test_a_distribution_is_that_of_the_paper(
    rewards: list[float], num_atoms: int, discount: float, seed: int
) -> None:
    size = len(rewards)
    generator = torch.Generator().manual_seed(seed)
    probs = torch.randn(size, num_atoms, dtype=F64, generator=generator).softmax(-1)
    terminated = torch.rand(size, generator=generator) < 0.3
    discounts = torch.full((size,), discount, dtype=F64)
    found = bootstrap.distribution(row(*rewards), probs, terminated, discounts, low=-3.0, high=5.0)
    for i, reward in enumerate(rewards):
        rate = 0.0 if terminated[i] else discount
        assert found[i].tolist() == pytest.approx(
            by_the_letter(reward, probs[i].tolist(), rate, -3, 5), abs=1e-9
        )
    torch.testing.assert_close(found.sum(-1), torch.ones(size, dtype=F64), atol=1e-12, rtol=0)
    assert bool((found >= 0).all())


def test_the_mean_is_kept_inside_the_bounds() -> None:
    atoms, probs = torch.linspace(-2, 2, 5, dtype=F64), row(0.1, 0.2, 0.3, 0.4, 0)[None]
    found = bootstrap.distribution(row(0.3), probs, torch.tensor([False]), row(0.7), low=-2.0, high=2.0)
    assert float(found @ atoms) == pytest.approx(0.3 + 0.7 * float(probs @ atoms), abs=1e-12)


def test_nothing_is_lost_that_falls_exactly_on_an_atom() -> None:
    # Planted: the algorithm after the letter, where l = u takes the probability away.
    probs = [0.2, 0.3, 0.5]
    assert sum(by_the_letter(1, probs, 1, -1, 1, whole=False)) == 0
    found = bootstrap.distribution(
        row(1), row(*probs)[None], torch.tensor([False]), row(1), low=-1.0, high=1.0
    )
    assert found.tolist() == [[0, 0.2, 0.8]]


def test_a_terminated_row_is_its_reward_alone() -> None:
    probs = row(0, 0, 1).expand(2, 3)
    ended = torch.tensor([True, False])
    found = bootstrap.distribution(row(0.5, 0.5), probs, ended, row(0.5, 0.5), low=-1.0, high=1.0)
    assert found.tolist() == [[0, 0.5, 0.5], [0, 0, 1]]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"next_probs": torch.ones(3, 3)}, r"next_probs \(3, 3\) on \[-1, 1\] with rewards \(4,\)"),
        ({"next_probs": torch.ones(4)}, r"next_probs \(4,\) .* \[B, K\]"),
        ({"next_probs": torch.ones(4, 1)}, r"next_probs \(4, 1\) .* K >= 2"),
        ({"low": 2.0}, r"on \[2, 1\] .* low < high"),
        ({"discounts": row(1)}, r"discounts \(1,\) with rewards \(4,\)"),
        ({"terminated": row(0, 0, 1, 0)}, r"terminated torch.float64"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_arguments_of_a_distribution_are_named(changed: dict[str, object], message: str) -> None:
    arguments = {
        "rewards": R,
        "next_probs": torch.full((4, 2), 0.5),
        "terminated": GONE,
        "discounts": DISCOUNTS,
        "low": -1.0,
        "high": 1.0,
    }
    with pytest.raises(ValueError, match=message):
        bootstrap.distribution(**(arguments | changed))  # pyright: ignore[reportArgumentType]
