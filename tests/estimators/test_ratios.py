"""Log-ratios: values by hand, where the gradient goes, what a masked step may not do, and what is exact."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from two_states import F64, GAMMA, HORIZON, LOGITS, MU, PI, objective, paths, q_of, values_to_go

from gradhat.estimators import offpolicy, ratios
from gradhat.losses.surrogate import importance_weighted

Ratio = Callable[[Tensor, Tensor, Tensor], Tensor]
ALL: list[Ratio] = [ratios.on_policy, ratios.token, ratios.sequence, ratios.prefix, ratios.trajectory]

LOGP = torch.tensor([[-1.0, -2.0, -4.0], [-3.0, -0.5, -9.0]], dtype=F64)
OLD = torch.tensor([[-1.5, -1.0, -2.0], [-1.0, -7.0, -8.0]], dtype=F64)
MASK = torch.tensor([[1, 1, 1], [1, 0, 0]], dtype=torch.bool)


def test_values_by_hand() -> None:
    assert ratios.on_policy(LOGP, OLD, MASK).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert ratios.token(LOGP, OLD, MASK).tolist() == [[0.5, -1, -2], [-2, 0, 0]]
    assert ratios.sequence(LOGP, OLD, MASK).flatten().tolist() == pytest.approx([-2.5 / 3, -2.0])
    assert ratios.prefix(LOGP, OLD, MASK).tolist() == [[0.5, -0.5, -2.5], [-2, 0, 0]]
    assert ratios.trajectory(LOGP, OLD, MASK).tolist() == [[-2.5], [-2]]


def test_a_prefix_passes_over_masked_steps() -> None:
    mask = torch.tensor([[1, 0, 1], [0, 1, 1]])
    assert ratios.prefix(LOGP, OLD, mask).tolist() == [[0.5, 0, -1.5], [0, 6.5, 5.5]]


def test_a_step_that_cannot_happen_takes_the_weight_of_all_that_follows() -> None:
    logp = torch.tensor([[-1.0, -math.inf, -1.0]], dtype=F64)
    found = ratios.prefix(logp, torch.full_like(logp, -1.0), torch.ones(1, 3))
    assert found.exp().tolist() == [[1, 0, 0]]


def test_the_sequence_ratio_is_the_geometric_mean_of_the_step_ratios() -> None:
    steps = ratios.token(LOGP, OLD, MASK).exp()[0].tolist()
    expected = math.prod(steps) ** (1 / 3)
    assert ratios.sequence(LOGP, OLD, MASK)[0].exp().item() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (ratios.on_policy, [[1, 1, 1], [1, 0, 0]]),
        (ratios.token, [[1, 1, 1], [1, 0, 0]]),
        (ratios.sequence, [[1 / 3, 1 / 3, 1 / 3], [1, 0, 0]]),
        (ratios.prefix, [[1, 1, 1], [1, 0, 0]]),
        (ratios.trajectory, [[1, 1, 1], [1, 0, 0]]),
    ],
)
def test_the_gradient_goes_to_the_own_steps_of_logp_alone(ratio: Ratio, expected: list[list[float]]) -> None:
    logp, old = LOGP.clone().requires_grad_(), OLD.clone().requires_grad_()
    ratio(logp, old, MASK).sum().backward()
    torch.testing.assert_close(logp.grad, torch.tensor(expected, dtype=F64))
    assert old.grad is None


@pytest.mark.parametrize("ratio", ALL)
@pytest.mark.parametrize("junk", [math.inf, -math.inf, math.nan, 1e300])
def test_a_masked_step_is_zero_whatever_stands_there(ratio: Ratio, junk: float) -> None:
    dirty = LOGP.clone()
    dirty[1, 1:] = junk
    dirty_old = OLD.clone()
    dirty_old[1, 1:] = -junk
    logp = dirty.requires_grad_()
    found = ratio(logp, dirty_old, MASK)
    assert torch.equal(found, ratio(LOGP, OLD, MASK))
    found.exp().sum().backward()
    assert logp.grad is not None and logp.grad[1, 1:].tolist() == [0.0, 0.0]
    assert logp.grad.isfinite().all()


@pytest.mark.parametrize("ratio", ALL)
def test_a_trajectory_without_steps_has_ratio_one(ratio: Ratio) -> None:
    assert not ratio(LOGP, OLD, torch.zeros_like(MASK)).any()


@pytest.mark.parametrize("ratio", ALL)
def test_mask_may_be_bool_or_zero_one_and_dtype_is_kept(ratio: Ratio) -> None:
    whole = ratio(LOGP, OLD, MASK)
    assert torch.equal(whole, ratio(LOGP, OLD, MASK.float()))
    assert whole.dtype is F64
    assert ratio(LOGP.float(), OLD.float(), MASK).dtype is torch.float32


@pytest.mark.parametrize("ratio", ALL)
def test_shapes_that_differ_are_refused(ratio: Ratio, unchecked: None) -> None:
    with pytest.raises(ValueError, match=r"logp_old \(2, 1\) with logp \(2, 3\)"):
        ratio(LOGP, OLD[:, :1], MASK)
    with pytest.raises(ValueError, match=r"mask \(1, 3\) with logp \(2, 3\)"):
        ratio(LOGP, OLD, MASK[:1])


@pytest.mark.parametrize("ratio", ALL)
def test_advantages_passed_as_the_mask_are_refused(ratio: Ratio) -> None:
    with pytest.raises(ValueError, match=r"mask with values from -9 to -0\.5"):
        ratio(LOGP, OLD, LOGP)


# What the importance-weighted surrogate differentiates to, in a world where every trajectory is listed.

PATHS = paths()
TIME = torch.arange(HORIZON).expand_as(PATHS.rewards)
DISCOUNT = GAMMA ** TIME.to(F64)
Q_TO_GO = torch.stack([q_of(values) for values in values_to_go(PI)[:HORIZON]])  # with 1, 2, 3 steps to go


def surrogate_gradient(ratio: Ratio, adv: Tensor) -> Tensor:
    """∇ of E_μ[Σ_t exp(log_ratio_t) adv_t], by the logits of π."""
    logits = LOGITS.clone().requires_grad_()
    logp = torch.where(PATHS.mask, logits.log_softmax(-1)[PATHS.states, PATHS.actions], 0.0)
    objectives = importance_weighted(ratio(logp, PATHS.logp(MU), PATHS.mask), adv)
    (PATHS.probability(MU) @ objectives.sum(-1)).backward()
    assert logits.grad is not None
    return logits.grad


def true_gradient() -> Tensor:
    logits = LOGITS.clone().requires_grad_()
    objective(logits.softmax(-1)).backward()
    assert logits.grad is not None
    return logits.grad


def exact_credit() -> Tensor:
    """γ^t Q^π(s_t, a_t)."""
    q = Q_TO_GO[HORIZON - 1 - TIME, PATHS.states, PATHS.actions]
    return torch.where(PATHS.mask, DISCOUNT * q, 0.0)


def baseline() -> Tensor:
    """γ^t V^π(s_t)."""
    return torch.where(PATHS.mask, DISCOUNT * (PI * Q_TO_GO).sum(-1)[HORIZON - 1 - TIME, PATHS.states], 0.0)


def sampled_credit() -> Tensor:
    """Σ_{k>=t} γ^k ρ_{t+1:k} r_k, with the ratios after the step."""
    each = offpolicy.per_decision(PATHS.rewards, PATHS.log_ratio(), PATHS.mask, gamma=GAMMA)
    to_go = each.flip(-1).cumsum(-1).flip(-1)
    return to_go / PATHS.log_ratio().cumsum(-1).exp()


def every_factor(logp: Tensor, logp_old: Tensor, mask: Tensor) -> Tensor:
    return ratios.token(logp, logp_old, mask).cumsum(-1)


def is_true(found: Tensor) -> bool:
    error = (found - true_gradient()).abs().max().item()
    assert error < 1e-12 or error > 1e-2, "neither exact nor clearly biased"
    return error < 1e-12


def test_the_prefix_makes_the_off_policy_gradient_exact() -> None:
    assert is_true(surrogate_gradient(ratios.prefix, exact_credit()))
    assert is_true(surrogate_gradient(ratios.prefix, exact_credit() - baseline()))
    assert is_true(surrogate_gradient(ratios.prefix, sampled_credit()))


def test_the_plain_return_to_go_has_the_mean_of_the_sampler() -> None:
    plain = (DISCOUNT * PATHS.rewards).flip(-1).cumsum(-1).flip(-1)
    assert not is_true(surrogate_gradient(ratios.prefix, plain))


def test_one_ratio_per_step_keeps_the_states_of_the_sampler() -> None:
    assert not is_true(surrogate_gradient(ratios.token, exact_credit()))
    assert not is_true(surrogate_gradient(ratios.sequence, exact_credit()))


def test_gradient_through_every_factor_wants_rewards_not_returns() -> None:
    rewards = DISCOUNT * PATHS.rewards
    assert is_true(surrogate_gradient(every_factor, rewards))
    assert not is_true(surrogate_gradient(every_factor, exact_credit()))
    assert not is_true(surrogate_gradient(ratios.prefix, rewards))


def test_the_weight_of_the_whole_trajectory_makes_the_gradient_exact() -> None:
    assert is_true(
        surrogate_gradient(lambda *x: ratios.trajectory(*x).expand(-1, HORIZON), DISCOUNT * PATHS.rewards)
    )
    returns = (DISCOUNT * PATHS.rewards).sum(-1, keepdim=True)
    assert is_true(surrogate_gradient(ratios.trajectory, returns))
    assert not is_true(
        surrogate_gradient(lambda *x: ratios.trajectory(*x).expand(-1, HORIZON), returns.expand(-1, HORIZON))
    )
