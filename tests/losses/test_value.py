"""Value losses: by hand, in closed form, and what their minimum is."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradhat.losses import value

F64 = torch.float64
few = settings(max_examples=80, deadline=None, derandomize=True)
numbers = st.floats(-10, 10, allow_subnormal=False)
widths = st.floats(0.01, 5)


def one(x: float) -> Tensor:
    return torch.tensor([[x]], dtype=F64)


def loss_and_gradient(loss: Callable[..., Tensor], v: float, *others: float) -> tuple[float, float]:
    values = one(v).requires_grad_()
    found = loss(values, *(one(x) for x in others))
    found.sum().backward()
    assert values.grad is not None
    return found.item(), values.grad.item()


@few
@given(numbers, numbers)
def test_the_gradient_of_the_square_is_the_error(v: float, target: float) -> None:
    found = loss_and_gradient(value.squared, v, target)
    assert found == pytest.approx(((v - target) ** 2 / 2, v - target), abs=1e-12)


@pytest.mark.parametrize(
    ("v", "old", "target", "loss", "gradient"),
    [
        (1.1, 1.0, 3.0, 1.805, -1.9),  # within clip of the old value: as squared
        (2.0, 1.0, 3.0, 1.62, 0.0),  # moved far enough towards its target: (1.2 - 3)² / 2
        (0.0, 1.0, 3.0, 4.5, -3.0),  # moved away: the full square
        (0.0, 1.0, -3.0, 7.22, 0.0),  # the same downwards: (0.8 + 3)² / 2
        (3.5, 1.0, 3.0, 1.62, 0.0),  # overshot its target, and gets no gradient back either
    ],
)
def test_clipped_by_hand(v: float, old: float, target: float, loss: float, gradient: float) -> None:
    clipped = partial(value.clipped, clip=0.2)
    assert loss_and_gradient(clipped, v, old, target) == pytest.approx((loss, gradient), abs=1e-12)


@few
@given(numbers, numbers, numbers, widths)
def test_clipped_is_the_larger_square_and_never_pulls_further_than_squared(
    v: float, old: float, target: float, clip: float
) -> None:
    loss, gradient = loss_and_gradient(partial(value.clipped, clip=clip), v, old, target)
    kept = min(max(v, old - clip), old + clip)
    assert loss == pytest.approx(max((v - target) ** 2, (kept - target) ** 2) / 2, abs=1e-12)
    if abs(abs(v - target) - abs(kept - target)) > 1e-9:
        expected = v - target if abs(v - target) > abs(kept - target) else 0.0
        assert gradient == pytest.approx(expected, abs=1e-12)
    if abs(v - old) < clip - 1e-9:
        assert gradient == pytest.approx(v - target, abs=1e-12)


@few
@given(numbers, numbers, widths)
def test_the_gradient_of_huber_is_the_error_held_within_delta(v: float, target: float, delta: float) -> None:
    loss, gradient = loss_and_gradient(partial(value.huber, delta=delta), v, target)
    error = v - target
    inside = abs(error) <= delta
    assert loss == pytest.approx(error**2 / 2 if inside else delta * (abs(error) - delta / 2), abs=1e-12)
    assert gradient == pytest.approx(min(max(error, -delta), delta), abs=1e-12)


def test_the_square_finds_the_expected_return_and_huber_does_not() -> None:
    # One success in ten: V = 0.1. Huber of a narrow width stays near the median, 0.
    targets = torch.tensor([[1.0] + [0.0] * 9], dtype=F64)

    def minimum(loss: Callable[[Tensor, Tensor], Tensor]) -> float:
        grid = torch.linspace(0, 1, 1001, dtype=F64)
        total = torch.stack([loss(torch.full_like(targets, v.item()), targets).sum() for v in grid])
        return grid[total.argmin()].item()

    assert minimum(value.squared) == pytest.approx(0.1, abs=1e-9)
    # 9 v = delta · 1: the nine errors of v balance one that is cut at delta.
    assert minimum(partial(value.huber, delta=0.09)) == pytest.approx(0.01, abs=1e-9)


def test_the_expected_gradient_of_clipped_leaves_out_the_targets_already_moved_towards() -> None:
    # Chance, target, and by hand whether the gradient V - target counts; V moved from 1 to 1.5, clip is 0.2.
    cases = [
        (0.2, 3.0, 0.0),  # above: moved towards it and past the clip
        (0.1, 1.5, 0.0),  # reached: the kept 1.2 is further away, and stands still
        (0.3, 1.4, 0.0),  # passed: |1.2 - 1.4| > |1.5 - 1.4|
        (0.15, 1.3, 1.0),  # passed by more: |1.5 - 1.3| > |1.2 - 1.3|
        (0.25, -2.0, 1.0),  # below: moved away from it
    ]
    chance, targets, counts = torch.tensor(cases, dtype=F64).T[:, None]
    v = torch.tensor(1.5, dtype=F64, requires_grad=True)
    loss = value.clipped(v.expand(1, 5), torch.ones(1, 5, dtype=F64), targets, clip=0.2)
    (found,) = torch.autograd.grad((chance * loss).sum(), v)
    # 0.15 · 0.2 + 0.25 · 3.5; of the square alone it would be 1.5 - E[target] = 0.635.
    assert found.item() == pytest.approx(0.905, abs=1e-12)
    assert found.item() == pytest.approx(float((chance * counts * (1.5 - targets)).sum()), abs=1e-12)


FUNCTIONS: list[tuple[Callable[..., Tensor], dict[str, Any], int]] = [
    (value.squared, {}, 1),
    (value.huber, {"delta": 1.0}, 1),
    (value.clipped, {"clip": 0.2}, 2),
]


@pytest.mark.parametrize(("loss", "arguments", "others"), FUNCTIONS)
def test_targets_and_old_values_are_data(
    loss: Callable[..., Tensor], arguments: dict[str, Any], others: int
) -> None:
    data = [torch.randn(2, 3, requires_grad=True) for _ in range(others)]
    values = torch.randn(2, 3, requires_grad=True)
    loss(values, *data, **arguments).sum().backward()
    assert values.grad is not None and all(x.grad is None for x in data)


@pytest.mark.parametrize(("loss", "arguments", "others"), FUNCTIONS)
def test_one_target_per_trajectory_is_refused(
    loss: Callable[..., Tensor], arguments: dict[str, Any], others: int, unchecked: None
) -> None:
    # [3] against [3, 3] would fit every step to the returns of three trajectories.
    with pytest.raises(ValueError, match=r"^targets \(3,\) with values \(3, 3\)"):
        data = [torch.zeros(3, 3)] * (others - 1) + [torch.zeros(3)]
        loss(torch.zeros(3, 3), *data, **arguments)
    if others == 2:
        with pytest.raises(ValueError, match=r"^values_old \(3, 1\) with values \(3, 3\)"):
            loss(torch.zeros(3, 3), torch.zeros(3, 1), torch.zeros(3, 3), **arguments)


@pytest.mark.parametrize("width", [0.0, -1.0, math.nan])
def test_a_width_that_is_not_positive_is_refused(width: float) -> None:
    zeros = torch.zeros(1, 1)
    with pytest.raises(ValueError, match=r"^value clip="):
        value.clipped(zeros, zeros, zeros, clip=width)
    with pytest.raises(ValueError, match=r"^huber with delta="):
        value.huber(zeros, zeros, delta=width)
