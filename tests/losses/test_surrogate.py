"""Surrogates: values and gradients by hand, the common gradient at ratio 1, off-policy truth on a bandit."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradhat.estimators import ratios
from gradhat.losses import surrogate

F64 = torch.float64
Surrogate = Callable[[Tensor, Tensor], Tensor]
clipped = partial(surrogate.clipped, low=0.2, high=0.3)
ALL: list[Surrogate] = [surrogate.reinforce, surrogate.importance_weighted, clipped]


def value_and_gradient(objective: Surrogate, ratio: float, adv: float) -> tuple[float, float]:
    """The value, and the derivative with respect to the log-ratio."""
    log_ratio = torch.tensor([[math.log(ratio)]], dtype=F64, requires_grad=True)
    found = objective(log_ratio, torch.tensor([[adv]], dtype=F64))
    found.sum().backward()
    assert log_ratio.grad is not None
    return found.item(), log_ratio.grad.item()


@pytest.mark.parametrize(
    ("ratio", "adv", "value", "gradient"),
    [
        (1.0, 2.0, 2.0, 2.0),
        (1.25, 2.0, 2.5, 2.5),  # inside: below 1 + high
        (1.5, 2.0, 2.6, 0.0),  # a good action is likely enough
        (0.5, 2.0, 1.0, 1.0),  # a good action became unlikely: push back with full force
        (1.0, -2.0, -2.0, -2.0),
        (0.85, -2.0, -1.7, -1.7),  # inside: above 1 - low
        (0.75, -2.0, -1.6, 0.0),  # a bad action is unlikely enough; low = high = 0.3 would still push
        (0.5, -2.0, -1.6, 0.0),
        (1.5, -2.0, -3.0, -3.0),  # a bad action became likely: push back with full force
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_clipped_by_hand(ratio: float, adv: float, value: float, gradient: float) -> None:
    assert value_and_gradient(clipped, ratio, adv) == pytest.approx((value, gradient), abs=1e-14)


def test_the_other_two_by_hand() -> None:
    assert value_and_gradient(surrogate.reinforce, math.e, -3.0) == pytest.approx((-3.0, -3.0))
    assert value_and_gradient(surrogate.importance_weighted, 1.5, -3.0) == pytest.approx((-4.5, -4.5))


numbers = st.floats(-5, 5, allow_subnormal=False)
few = settings(max_examples=60, deadline=None, derandomize=True)


@few
@given(st.lists(st.tuples(st.floats(-8, 0), numbers), min_size=1, max_size=8))
def test_at_ratio_one_every_surrogate_has_the_reinforce_gradient(steps: list[tuple[float, float]]) -> None:
    adv = torch.tensor([[a for _, a in steps]], dtype=F64)
    mask = torch.ones_like(adv, dtype=torch.bool)
    for objective in ALL:
        for ratio in (ratios.on_policy, ratios.token):
            logp = torch.tensor([[p for p, _ in steps]], dtype=F64, requires_grad=True)
            objective(ratio(logp, logp.detach(), mask), adv).sum().backward()
            torch.testing.assert_close(logp.grad, adv, atol=1e-14, rtol=0)


@few
@given(numbers, numbers, st.floats(0, 1), st.floats(0, 2))
def test_clipped_is_a_lower_bound_and_wide_bounds_do_nothing(
    log_ratio: float, adv: float, low: float, high: float
) -> None:
    x, a = torch.tensor([[log_ratio]], dtype=F64), torch.tensor([[adv]], dtype=F64)
    free = surrogate.importance_weighted(x, a)
    assert surrogate.clipped(x, a, low=low, high=high) <= free
    assert torch.equal(surrogate.clipped(x, a, low=1.0, high=1e9), free)
    inside = max(0.0, 1 - low) <= math.exp(log_ratio) <= 1 + high
    assert not inside or torch.equal(surrogate.clipped(x, a, low=low, high=high), free)


def test_off_policy_importance_weights_are_exact_on_a_bandit_and_reinforce_is_not() -> None:
    old = torch.tensor([0.1, 0.7, -0.6], dtype=F64).log_softmax(0)
    arms = torch.tensor([1.0, 0.2, -0.5], dtype=F64)

    def expected_gradient(of: Callable[[Tensor], Tensor]) -> Tensor:
        logits = torch.tensor([0.9, -0.4, 0.2], dtype=F64, requires_grad=True)
        of(logits.log_softmax(0)).backward()
        assert logits.grad is not None
        return logits.grad

    exact = expected_gradient(lambda logp: logp.exp() @ arms)
    weighted = expected_gradient(lambda logp: old.exp() @ surrogate.importance_weighted(logp - old, arms))
    plain = expected_gradient(lambda logp: old.exp() @ surrogate.reinforce(logp - old, arms))
    torch.testing.assert_close(weighted, exact, atol=1e-12, rtol=0)
    assert (plain - exact).abs().max() > 0.05


@pytest.mark.parametrize("objective", ALL)
def test_no_gradient_flows_into_the_advantages(objective: Surrogate) -> None:
    log_ratio = torch.tensor([[0.1, -0.1]], requires_grad=True)
    adv = torch.tensor([[1.0, -1.0]], requires_grad=True)
    objective(log_ratio, adv).sum().backward()
    assert adv.grad is None and log_ratio.grad is not None


@pytest.mark.parametrize("objective", ALL)
def test_a_sequence_ratio_serves_every_step(objective: Surrogate) -> None:
    log_ratio = torch.tensor([[0.1], [-0.4]], dtype=F64)
    adv = torch.tensor([[1.0, -2.0, 3.0], [-1.0, 0.5, 2.0]], dtype=F64)
    assert torch.equal(objective(log_ratio, adv), objective(log_ratio.expand(2, 3), adv))


@pytest.mark.parametrize("objective", ALL)
def test_one_advantage_per_trajectory_must_be_a_column(objective: Surrogate) -> None:
    # [B] against [B, T] with B = T would weigh steps by the advantages of other trajectories.
    with pytest.raises(ValueError, match=r"adv \(3,\).*\[B, 1\]"):
        objective(torch.zeros(3, 3), torch.zeros(3))


def test_a_negative_bound_is_refused() -> None:
    with pytest.raises(ValueError, match=r"low=-0\.1"):
        surrogate.clipped(torch.zeros(1, 1), torch.zeros(1, 1), low=-0.1, high=0.2)
    with pytest.raises(ValueError, match=r"high=-0\.2"):
        surrogate.clipped(torch.zeros(1, 1), torch.zeros(1, 1), low=0.1, high=-0.2)


@pytest.mark.parametrize("objective", [surrogate.importance_weighted, clipped])
@pytest.mark.parametrize("size", [100.0, 1e4, math.inf])
@pytest.mark.parametrize("adv", [0.0, 1.0, -1.0])
def test_a_huge_ratio_never_makes_nan(objective: Surrogate, size: float, adv: float) -> None:
    # Without a bound exp(100) is inf in float32, and inf · 0 is NaN: in the value, and in the gradient of the
    # side that the minimum did not take.
    log_ratio = torch.tensor([[size, -size]], requires_grad=True)
    found = objective(log_ratio, torch.full((1, 2), adv))
    found.sum().backward()
    assert found.isfinite().all()
    assert log_ratio.grad is not None and log_ratio.grad.isfinite().all()


@pytest.mark.parametrize("objective", ALL)
def test_dtype_is_kept(objective: Surrogate) -> None:
    assert objective(torch.zeros(1, 2), torch.zeros(1, 2)).dtype is torch.float32
    assert objective(torch.zeros(1, 2, dtype=F64), torch.zeros(1, 2, dtype=F64)).dtype is F64
