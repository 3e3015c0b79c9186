"""Log-ratios between the policy being trained and the one that sampled: log π_θ(a | s) - log π_old(a | s).

`logp` and `logp_old` are float `[B, T]`, `mask` is bool or 0/1 `[B, T]`, in nats. Gradient flows through
`logp` only. A masked step gets a log-ratio of exactly 0 and no gradient, whatever stands there: 0 · inf
never becomes NaN later. A row is one trajectory. ValueError for shapes that do not match and for a mask that
is not 0/1.

Which ratio is exact depends on the credit. π stands for π_θ, μ for π_old, ρ_{0:t} for the product of the
ratios of the steps 0 to t; what `losses.surrogate.importance_weighted` then differentiates to, in expectation
over trajectories of μ at any distance of π from it, is

    prefix, adv = γ^t Q^π(s_t, a_t)     ∇J
    trajectory, adv = γ^t r_t           ∇J
    token, adv = γ^t Q^π(s_t, a_t)      not ∇J: the states are those that μ visits
    sequence                            not ∇J: no importance weight
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from gradhat.shapes import check_same, zero_one


def on_policy(
    logp: Float[Tensor, "B T"], logp_old: Float[Tensor, "B T"], mask: Shaped[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Return logp - stop_gradient(logp), `[B, T]`: the value 0 with the gradient of logp.

    Source: the score function of Williams 1992. Assumes that the samples come from the current weights;
    `logp_old` is taken for the common signature and only its shape is read. Failure case: stale samples are
    treated as fresh ones.
    """
    check_same(logp=logp, logp_old=logp_old, mask=mask)
    return _masked(logp - logp.detach(), mask)


def token(
    logp: Float[Tensor, "B T"], logp_old: Float[Tensor, "B T"], mask: Shaped[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Return the log-ratio of every step on its own, `[B, T]`.

    Source: Schulman et al. 2017 (PPO), section 3, r_t(θ). The exact correction of a step is `prefix`, the
    product over the steps up to it. Assumes policies close enough that the states of μ stand for those of π:
    one ratio per step drops the other factors, a bias that vanishes with the distance between the policies.
    Failure case: stale samples of long trajectories, whose later states π hardly visits.
    """
    check_same(logp=logp, logp_old=logp_old, mask=mask)
    return _masked(logp - logp_old.detach(), mask)


def sequence(
    logp: Float[Tensor, "B T"], logp_old: Float[Tensor, "B T"], mask: Shaped[Tensor, "B T"]
) -> Float[Tensor, "B 1"]:
    """Return the mean log-ratio of each trajectory, `[B, 1]`: the log of its ratios' geometric mean.

    Source: Zheng et al. 2025 (GSPO), eq. 7. Not an importance weight: the root of the product's length-th
    degree trades bias for variance. Assumes one credit for the whole trajectory, such as a score at its end.
    Failure case: one step whose ratio explodes hides among a thousand that stand still, and bounds made for
    `token` never bind. A trajectory without steps gets 0.
    """
    num_steps = zero_one(mask).bool().sum(-1, keepdim=True).clamp(min=1).to(logp.dtype)
    return trajectory(logp, logp_old, mask) / num_steps


def prefix(
    logp: Float[Tensor, "B T"], logp_old: Float[Tensor, "B T"], mask: Shaped[Tensor, "B T"]
) -> Float[Tensor, "B T"]:
    """Return log ρ_{0:t}, the sum of the log-ratios up to and including each step, `[B, T]`.

    The value is the exact weight of the step's past and present. The gradient is that of the step's own
    factor: the past is data, and `importance_weighted` differentiates to ρ_{0:t} ∇log π(a_t | s_t) A_t.
    Its mean over trajectories of μ is that of ∇log π(a_t | s_t) A_t over those of π: summed over t it is ∇J
    exactly where A_t has the mean γ^t Q^π(s_t, a_t), less a baseline b(s_t). From samples of μ such an A_t is
    Σ_{k>=t} γ^k ρ_{t+1:k} r_k; a plain sum of the rewards that follow has the mean of μ.

    With gradient through every factor, `token(...).cumsum(-1)`, the step would get
    ρ_{0:t} (Σ_{u<=t} ∇log π(a_u | s_u)) A_t. That is ∇J for A_t = γ^t r_t (the gradient of per-decision
    importance sampling), but counts a return to go once for every step before it.

    Source: the weight is that of per-decision importance sampling, Precup, Sutton & Singh 2000. Assumes that
    μ gives weight wherever π does. Failure case: the variance grows exponentially with the number of steps.
    """
    steps = token(logp, logp_old, mask)
    past = torch.nn.functional.pad(steps.detach().cumsum(-1)[:, :-1], (1, 0))
    return _masked(past + steps, mask)


def trajectory(
    logp: Float[Tensor, "B T"], logp_old: Float[Tensor, "B T"], mask: Shaped[Tensor, "B T"]
) -> Float[Tensor, "B 1"]:
    """Return log ρ(τ), the sum of the log-ratios of each trajectory, `[B, 1]`: the exact weight of the whole.

    Gradient flows through every factor: at a step, `importance_weighted` differentiates to
    ρ(τ) Σ_u ∇log π(a_u | s_u) A_t. With A_t = γ^t r_t the sum over t is ∇(ρ(τ) R(τ)), whose mean over
    trajectories of μ is ∇J exactly. A return in every step would be counted once per step.

    Source: importance sampling of whole trajectories, Precup, Sutton & Singh 2000. Assumes that μ gives
    weight wherever π does. Failure case: the variance grows exponentially with the number of steps, and every
    reward carries the noise of the ratios that come after it. A trajectory without steps gets 0.
    """
    return token(logp, logp_old, mask).sum(-1, keepdim=True)


def _masked(log_ratio: Tensor, mask: Tensor) -> Tensor:
    return torch.where(zero_one(mask).bool(), log_ratio, torch.zeros_like(log_ratio))
