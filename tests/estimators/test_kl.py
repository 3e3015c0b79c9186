"""k1, k2, k3: by hand, and in expectation on a categorical distribution, where the KL is a finite sum.

The laws tested: which of them is unbiased in value, and whose gradient each has when it stands in the loss.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gradhat.estimators import kl

F64 = torch.float64
Estimator = Callable[[Tensor, Tensor], Tensor]

LOGITS = torch.tensor([0.2, -1.3, 0.8, 0.1], dtype=F64)
REF = torch.tensor([-0.5, 0.4, 0.3, -2.0], dtype=F64).log_softmax(0)


def divergence(logp: Tensor, other: Tensor) -> Tensor:
    return (logp.exp() * (logp - other)).sum()


def gradient(of: Callable[[Tensor], Tensor]) -> Tensor:
    logits = LOGITS.clone().requires_grad_()
    of(logits.log_softmax(0)).backward()
    assert logits.grad is not None
    return logits.grad


def in_the_loss(estimator: Estimator) -> Tensor:
    """The expected gradient of the estimator at samples held fixed."""
    return gradient(lambda logp: (logp.exp().detach() * estimator(logp, REF)).sum())


def test_values_by_hand() -> None:
    # π_θ = 1/2 and π_ref = 1/4: the ratio π_ref / π_θ is 1/2.
    logp, ref = torch.tensor([[0.5]], dtype=F64).log(), torch.tensor([[0.25]], dtype=F64).log()
    assert kl.k1(logp, ref).item() == pytest.approx(math.log(2), abs=1e-15)
    assert kl.k2(logp, ref).item() == pytest.approx(math.log(2) ** 2 / 2, abs=1e-15)
    assert kl.k3(logp, ref).item() == pytest.approx(0.5 - 1 + math.log(2), abs=1e-15)
    assert kl.k3(ref, logp).item() == pytest.approx(2 - 1 - math.log(2), abs=1e-15)


def test_k1_and_k3_are_unbiased_and_k2_is_not() -> None:
    logp = LOGITS.log_softmax(0)
    exact = divergence(logp, REF).item()
    assert (logp.exp() @ kl.k1(logp, REF)).item() == pytest.approx(exact, abs=1e-12)
    assert (logp.exp() @ kl.k3(logp, REF)).item() == pytest.approx(exact, abs=1e-12)
    assert abs((logp.exp() @ kl.k2(logp, REF)).item() - exact) > 0.01


def test_k3_is_never_negative_and_has_less_variance_than_k1_nearby() -> None:
    logp = LOGITS.log_softmax(0)
    near = (LOGITS + 0.1 * torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=F64)).log_softmax(0)
    assert (kl.k3(logp, REF) >= 0).all() and (kl.k1(logp, REF) < 0).any()
    assert logp.exp() @ kl.k3(logp, near).square() < 0.1 * (logp.exp() @ kl.k1(logp, near).square())


def test_in_the_loss_k1_has_no_gradient() -> None:
    torch.testing.assert_close(in_the_loss(kl.k1), torch.zeros(4, dtype=F64), atol=1e-12, rtol=0)


def test_in_the_loss_k2_has_the_gradient_of_the_divergence() -> None:
    torch.testing.assert_close(
        in_the_loss(kl.k2), gradient(lambda logp: divergence(logp, REF)), atol=1e-12, rtol=0
    )


def test_in_the_loss_k3_has_the_gradient_of_the_reversed_divergence() -> None:
    # Σ π_ref log(π_ref / π_θ): its gradient with respect to the logits is π_θ - π_ref.
    torch.testing.assert_close(in_the_loss(kl.k3), LOGITS.softmax(0) - REF.exp(), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        in_the_loss(kl.k3), gradient(lambda logp: divergence(REF, logp)), atol=1e-12, rtol=0
    )


def test_in_the_reward_k1_has_the_gradient_of_the_divergence() -> None:
    found = gradient(lambda logp: (logp.exp().detach() * kl.k1(logp, REF).detach() * logp).sum())
    torch.testing.assert_close(found, gradient(lambda logp: divergence(logp, REF)), atol=1e-12, rtol=0)


@pytest.mark.parametrize("estimator", [kl.k1, kl.k2, kl.k3])
def test_the_reference_gets_no_gradient_and_the_dtype_is_kept(estimator: Estimator) -> None:
    logp, ref = torch.zeros(2, 3, requires_grad=True), torch.ones(2, 3, requires_grad=True)
    found = estimator(logp, ref)
    assert found.dtype is torch.float32
    found.sum().backward()
    assert logp.grad is not None and ref.grad is None
    assert estimator(logp.double(), ref.double()).dtype is F64


def test_k3_keeps_its_digits_when_the_policies_nearly_agree() -> None:
    # In float32 the plain exp(d) - 1 - d gives 0 or 6e-8 here; the true value is d² / 2 = 5e-9.
    d = torch.tensor([1e-4], dtype=torch.float32)
    assert kl.k3(torch.zeros(1), d).item() == pytest.approx(5e-9, rel=1e-2)


def test_k3_stays_finite_when_the_policy_has_ruled_an_action_out() -> None:
    logp = torch.tensor([-200.0], requires_grad=True)
    found = kl.k3(logp, torch.tensor([0.0]))
    found.backward()
    assert found.item() == pytest.approx(math.expm1(20) - 20, rel=1e-6)
    assert logp.grad is not None and logp.grad.item() == 0.0
