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
EVERY = torch.ones(1, 4, dtype=torch.bool)


def each(estimator: Estimator, logp: Tensor, ref: Tensor = REF) -> Tensor:
    """The estimator at every action, `[A]`: the actions stand side by side in one row."""
    return estimator(logp[None], ref[None])[0]


def divergence(logp: Tensor, other: Tensor) -> Tensor:
    return (logp.exp() * (logp - other)).sum()


def gradient(of: Callable[[Tensor], Tensor], logits: Tensor = LOGITS) -> Tensor:
    logits = logits.clone().requires_grad_()
    of(logits.log_softmax(0)).backward()
    assert logits.grad is not None
    return logits.grad


def in_the_loss(estimator: Estimator) -> Tensor:
    """The expected gradient of the estimator at samples held fixed."""
    return gradient(lambda logp: (logp.exp().detach() * each(estimator, logp)).sum())


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
    assert (logp.exp() @ each(kl.k1, logp)).item() == pytest.approx(exact, abs=1e-12)
    assert (logp.exp() @ each(kl.k3, logp)).item() == pytest.approx(exact, abs=1e-12)
    assert abs((logp.exp() @ each(kl.k2, logp)).item() - exact) > 0.01


def test_k3_is_never_negative_and_has_less_variance_than_k1_nearby() -> None:
    logp = LOGITS.log_softmax(0)
    near = (LOGITS + 0.1 * torch.tensor([1.0, -1.0, 0.5, 0.0], dtype=F64)).log_softmax(0)
    assert (each(kl.k3, logp) >= 0).all() and (each(kl.k1, logp) < 0).any()
    assert logp.exp() @ each(kl.k3, logp, near).square() < 0.1 * (
        logp.exp() @ each(kl.k1, logp, near).square()
    )


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


def in_the_reward(estimator: Estimator, logits: Tensor = LOGITS) -> Tensor:
    """What the penalty takes off the expected policy gradient: Σ_a π(a) ∇ log π(a) · (0 - reward(a))."""
    logp = logits.log_softmax(0)
    rewards = kl.in_reward(torch.zeros_like(EVERY, dtype=F64), each(estimator, logp)[None], EVERY, coef=1.0)
    return gradient(lambda logp: -(logp.exp().detach() * rewards[0] * logp).sum(), logits)


def mean_of(estimator: Estimator, logits: Tensor = LOGITS) -> Tensor:
    """∇E[k], through the samples and through k."""
    return gradient(lambda logp: (logp.exp() * each(estimator, logp)).sum(), logits)


def forward_and_reverse(logits: Tensor = LOGITS) -> tuple[Tensor, Tensor]:
    """∇KL(π_θ ‖ π_ref) and ∇KL(π_ref ‖ π_θ)."""
    return (
        gradient(lambda logp: divergence(logp, REF), logits),
        gradient(lambda logp: divergence(REF, logp), logits),
    )


def test_in_the_reward_k1_has_the_gradient_of_the_divergence() -> None:
    torch.testing.assert_close(in_the_reward(kl.k1), forward_and_reverse()[0], atol=1e-12, rtol=0)


def test_in_the_reward_k2_and_k3_have_the_gradient_of_neither_divergence() -> None:
    ours, theirs = forward_and_reverse()
    # By hand: the gradient of E_π[f] through the samples alone is π_a (f_a - E f).
    p = LOGITS.softmax(0)
    ratio = REF - p.log()
    for estimator, f in ((kl.k2, ratio.square() / 2), (kl.k3, ratio.exp() - 1 - ratio)):
        torch.testing.assert_close(in_the_reward(estimator), p * (f - p @ f), atol=1e-12, rtol=0)
    torch.testing.assert_close(in_the_reward(kl.k2), mean_of(kl.k2) - ours, atol=1e-12, rtol=0)
    torch.testing.assert_close(in_the_reward(kl.k3), ours - theirs, atol=1e-12, rtol=0)
    for estimator in (kl.k2, kl.k3):
        for divergent in (ours, theirs):
            assert (in_the_reward(estimator) - divergent).norm() > 0.1 * divergent.norm()


@pytest.mark.parametrize("estimator", [kl.k2, kl.k3])
def test_in_the_reward_k2_and_k3_hardly_hold_a_policy_near_the_reference(estimator: Estimator) -> None:
    # Ten times nearer, the gradient of the divergence is ten times smaller, theirs a hundred times.
    near, nearer = REF + 1e-2 * LOGITS, REF + 1e-3 * LOGITS
    assert (in_the_reward(estimator, near).norm() / in_the_reward(estimator, nearer).norm()) > 90
    assert forward_and_reverse(near)[0].norm() / forward_and_reverse(nearer)[0].norm() < 11


TABLE = torch.tensor([[0.3, -0.2, 0.5], [1.0, -1.0, 0.2], [0.1, 0.4, -0.6], [-0.3, 0.9, 0.0]], dtype=F64)
"""Logits of two tokens of three: row 0 for the first, row 1 + a for the second after the first token a."""
REFERENCE = torch.tensor([[0.0, 0.4, -0.1], [-0.5, 0.2, 0.3], [0.7, 0.0, 0.1], [0.2, -0.8, 0.5]], dtype=F64)
PAIRS = torch.tensor([(a, b) for a in range(3) for b in range(3)])


def of_pairs(table: Tensor) -> Tensor:
    """log π of both tokens of all nine texts, `[9, 2]`."""
    logp = table.log_softmax(-1)
    return torch.stack([logp[0, PAIRS[:, 0]], logp[1 + PAIRS[:, 0], PAIRS[:, 1]]], 1)


def table_gradient(of: Callable[[Tensor], Tensor]) -> Tensor:
    table = TABLE.clone().requires_grad_()
    of(of_pairs(table)).backward()
    assert table.grad is not None
    return table.grad


def state_by_state() -> Tensor:
    """Σ_s P(s) ∇KL(π_θ(· | s) ‖ π_ref(· | s)), the chance of a state held fixed."""
    table = TABLE.clone().requires_grad_()
    visits = torch.cat([torch.ones(1, dtype=F64), TABLE[0].softmax(0)])
    logp, ref = table.log_softmax(-1), REFERENCE.log_softmax(-1)
    (visits @ (logp.exp() * (logp - ref)).sum(1)).backward()
    assert table.grad is not None
    return table.grad


def test_over_two_steps_k1_in_the_reward_follows_the_trajectories_and_k2_in_the_loss_each_state() -> None:
    logp, ref = of_pairs(TABLE), of_pairs(REFERENCE)
    chance = logp.sum(1).exp()
    mask = torch.ones(9, 2, dtype=torch.bool)
    whole = table_gradient(lambda logp: logp.sum(1).exp() @ (logp - ref).sum(1))
    each_state = state_by_state()

    rewards = kl.in_reward(torch.zeros(9, 2, dtype=F64), kl.k1(logp, ref), mask, coef=1.0)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    found = table_gradient(lambda logp: -(chance[:, None] * to_go * logp).sum())
    torch.testing.assert_close(found, whole, atol=1e-12, rtol=0)

    found = table_gradient(lambda logp: (chance[:, None] * kl.k2(logp, ref)).sum())
    torch.testing.assert_close(found, each_state, atol=1e-12, rtol=0)
    assert (each_state - whole).norm() > 0.1 * whole.norm()


def test_a_penalty_is_taken_off_own_steps_only_and_counts_as_data() -> None:
    rewards = torch.tensor([[1.0, 2.0, 3.0]], dtype=F64)
    penalty = torch.tensor([[0.5, math.nan, -1.0]], dtype=F64, requires_grad=True)
    for mask in (torch.tensor([[True, False, True]]), torch.tensor([[1, 0, 1]])):
        found = kl.in_reward(rewards, penalty, mask, coef=0.1)
        assert found[0].tolist() == pytest.approx([0.95, 2.0, 3.1], abs=1e-15)
        assert not found.requires_grad


@pytest.mark.usefixtures("unchecked")
def test_wrong_arguments_are_named() -> None:
    ones, mask = torch.ones(2, 3), torch.ones(2, 3)
    for estimator in (kl.k1, kl.k2, kl.k3):
        with pytest.raises(ValueError, match=r"logp_ref \(2,\) with logp \(2, 3\)"):
            estimator(ones, torch.ones(2))
    with pytest.raises(ValueError, match=r"penalty \(2, 1\) with rewards \(2, 3\)"):
        kl.in_reward(ones, torch.ones(2, 1), mask, coef=0.1)
    with pytest.raises(ValueError, match="a mask is bool or holds only 0 and 1"):
        kl.in_reward(ones, ones, 0.5 * mask, coef=0.1)


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
    d = torch.tensor([[1e-4]], dtype=torch.float32)
    assert kl.k3(torch.zeros(1, 1), d).item() == pytest.approx(5e-9, rel=1e-2)


def test_k3_stays_finite_when_the_policy_has_ruled_an_action_out() -> None:
    logp = torch.tensor([[-200.0]], requires_grad=True)
    found = kl.k3(logp, torch.tensor([[0.0]]))
    found.backward()
    assert found.item() == pytest.approx(math.expm1(20) - 20, rel=1e-6)
    assert logp.grad is not None and logp.grad.item() == 0.0
