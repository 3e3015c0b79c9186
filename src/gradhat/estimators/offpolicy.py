"""Credit and returns for a policy π from trajectories of another policy μ.

All per-step tensors are `[B, T]`; `rewards`, `values` and all that is estimated have the unit of the rewards.
`log_ratio` is log π(a | s) - log μ(a | s) of the step, in nats, from `ratios.token`. Everything here is data:
no gradient flows.

`mask` (bool or 0/1), `terminated` and `ended` mean what they mean in `returns`. A masked step is passed over:
only its `ended` is read, the answer there is 0, and γ and λ count own steps; a reward on it is lost.
`terminated` zeroes the bootstrap, `ended` (terminated or truncated) cuts the recursion: where a function
takes them, a row may hold several episodes. `next_values` is the value of the step's true successor: inside
an episode of the state in which the policy acts next, at a truncation of the final observation. It is not
read where `terminated`.

Common assumption: μ gives weight wherever π does. ValueError for shapes that do not match, numbers that are
not floating, flags that are not bool, a mask that is not 0/1, γ or λ outside [0, 1], and a step that is
terminated and not ended.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from gradhat.estimators.returns import accumulate, check_ends, check_rates, discounts, own_steps, total

LOG_RATIO_MAX = 20.0
"""Largest logarithm of a weight that is exponentiated, of a step or of a product of steps. Beyond it the
weight stands still at 4.9e8: an infinite weight makes NaN of a zero reward (0 · inf)."""


class VTrace(NamedTuple):
    """`vs` `[B, T]` is the target of the value, `adv` `[B, T]` the credit of the step, its ratio included."""

    vs: Tensor
    adv: Tensor


@torch.no_grad()
def vtrace(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    next_values: Float[Tensor, "B T"],
    log_ratio: Float[Tensor, "B T"],
    terminated: Bool[Tensor, "B T"],
    ended: Bool[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    gamma: float,
    rho_max: float,
    c_max: float,
    lam: float = 1.0,
) -> VTrace:
    """Return the V-trace targets and the policy-gradient advantages.

    With ρ_t = min(ρ̄, π/μ), c_t = λ min(c̄, π/μ) and δ_t = ρ_t (r_t + γ V(s_{t+1}) - V(s_t)):
        vs_t  = V(s_t) + δ_t + γ c_t (vs_{t+1} - V(s_{t+1}))
        adv_t = ρ_t (r_t + γ vs_{t+1} - V(s_t))

    Source: Espeholt et al. 2018 (IMPALA), eq. 1 in the recursive form of remark 1, λ of remark 2, `adv` of
    section 4.2. `adv` carries the ratio ρ_t: weigh it with ∇ log π (surrogate `reinforce`), not with another
    ratio. What is left uncorrected there is how often μ visits the state.

    On-policy with ρ̄, c̄ >= 1 the target is the λ-return. Off-policy ρ̄ decides what is learned: the fixed point
    is the value of the policy ∝ min(ρ̄ μ, π) (eq. 3), which is π only where no ratio exceeds ρ̄; c̄ and λ decide
    how fast. The paper assumes ρ̄ >= c̄. Failure case: ρ̄ = 1 far off-policy evaluates a policy close to μ.
    ValueError also for ρ̄ <= 0 and c̄ < 0.
    """
    per_step = {"rewards": rewards, "values": values, "next_values": next_values, "log_ratio": log_ratio}
    own = own_steps(mask, **per_step)
    check_rates(gamma=gamma, lam=lam)
    check_ends(mask, terminated, ended)
    if rho_max <= 0 or c_max < 0:
        raise ValueError(
            f"vtrace with rho_max={rho_max:g}, c_max={c_max:g}: they bound positive ratios from above. "
            "Use rho_max > 0 and c_max >= 0."
        )
    ratio = _exp(_read(log_ratio, own))
    rho, rate = ratio.clamp(max=rho_max), gamma * lam * ratio.clamp(max=c_max)
    rewards, values = _read(rewards, own), _read(values, own)
    bootstrap = _read(next_values, own & ~terminated)
    delta = rho * (rewards + gamma * bootstrap - values)
    ahead = _ahead(delta, rate, own, ended)
    adv = rho * (rewards + gamma * (bootstrap + ahead) - values)
    return VTrace(vs=_read(values + delta + rate * ahead, own), adv=_read(adv, own))


@torch.no_grad()
def retrace(
    rewards: Float[Tensor, "B T"],
    q: Float[Tensor, "B T"],
    next_values: Float[Tensor, "B T"],
    log_ratio: Float[Tensor, "B T"],
    terminated: Bool[Tensor, "B T"],
    ended: Bool[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    gamma: float,
    lam: float,
) -> Float[Tensor, "B T"]:
    """Return the Retrace(λ) targets of Q(s_t, a_t), `[B, T]`.

    `q` is Q of the action taken, `next_values` is E_π Q(s_{t+1}, ·). With c_t = λ min(1, π/μ):
        target_t = Q_t + δ_t + γ c_{t+1} (target_{t+1} - Q_{t+1}),  δ_t = r_t + γ E_π Q(s_{t+1}, ·) - Q_t

    Source: Munos et al. 2016, Retrace(λ). The ratio of the step itself does not enter: its action is given.
    For any μ and any λ the fixed point is Q^π: a cut trace costs speed, never bias. Assumes that
    `next_values` is the expectation over π, not the Q of the next action of μ. Failure case: far off-policy
    the trace is cut at once and the target is a one-step one.
    """
    per_step = {"rewards": rewards, "q": q, "next_values": next_values, "log_ratio": log_ratio}
    own = own_steps(mask, **per_step)
    check_rates(gamma=gamma, lam=lam)
    check_ends(mask, terminated, ended)
    trace = lam * _exp(_read(log_ratio, own)).clamp(max=1)
    q = _read(q, own)
    delta = _read(rewards, own) + gamma * _read(next_values, own & ~terminated) - q
    ahead = _ahead(trace * delta, gamma * trace, own, ended)
    return _read(q + delta + gamma * ahead, own)


@torch.no_grad()
def per_trajectory(
    rewards: Float[Tensor, "B T"],
    log_ratio: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    gamma: float,
) -> Float[Tensor, " B"]:
    """Return ρ(τ) R(τ), `[B]`: the return, weighted with the product of all ratios of the trajectory.

    Source: importance sampling, Precup, Sutton & Singh 2000; Sutton & Barto 2018, eq. 5.5. Its expectation
    over trajectories of μ is J(π). Assumes that a row is one trajectory, seen to its end. Failure case: the
    variance grows exponentially
    with the number of steps. A product beyond exp(LOG_RATIO_MAX) is held there, a bias towards 0.
    """
    own = own_steps(mask, rewards=rewards, log_ratio=log_ratio)
    weight = _exp(_read(log_ratio, own).sum(-1))
    return weight * total(rewards, own, gamma=gamma)


@torch.no_grad()
def weighted_per_trajectory(
    rewards: Float[Tensor, "B T"],
    log_ratio: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    gamma: float,
) -> Float[Tensor, " B"]:
    """Return B ρ(τ) R(τ) / Σ ρ, `[B]`, whose *mean over the batch* is the weighted estimate of J(π).

    Source: weighted importance sampling, Precup, Sutton & Singh 2000; Sutton & Barto 2018, eq. 5.6. The
    weights sum to B, so the estimate lies between the least and the largest return and a constant added to
    all returns moves it by that constant. Biased, by order 1/B: with B = 1 it is the return under μ. Assumes
    that a row is one trajectory, and a whole batch in one call: means of parts are not the mean of the whole.
    Failure case: far off-policy one trajectory carries all the weight, and the estimate is its return. The
    weights are never exponentiated alone, so no bound applies. ValueError where all of them are 0.
    """
    own = own_steps(mask, rewards=rewards, log_ratio=log_ratio)
    log_weight = _read(log_ratio, own).sum(-1)
    if bool((log_weight == -torch.inf).all()):
        raise ValueError(
            f"weighted_per_trajectory with {len(log_weight)} weights that are all 0: the policy cannot have "
            "made any of these trajectories, and 0 / 0 is no estimate. Sample from a policy closer to it."
        )
    return len(log_weight) * log_weight.softmax(-1) * total(rewards, own, gamma=gamma)


@torch.no_grad()
def per_decision(
    rewards: Float[Tensor, "B T"],
    log_ratio: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    gamma: float,
) -> Float[Tensor, "B T"]:
    """Return γ^t ρ_{0:t} r_t, `[B, T]`: each reward, weighted with the ratios up to its step alone.

    Source: per-decision importance sampling, Precup, Sutton & Singh 2000. The sum over a row estimates J(π)
    without bias, as `per_trajectory` does: a reward does not depend on the ratios after it, whose mean is 1.
    The sum from step t on is the credit Ψ_t of that step, ratio included: Σ_t ∇log π(a_t | s_t) Ψ_t is an
    unbiased estimate of ∇J(π). Assumes that a row is one trajectory. Failure case: the variance still grows
    exponentially
    with t. A product beyond exp(LOG_RATIO_MAX) is held there, a bias towards 0.
    """
    own = own_steps(mask, rewards=rewards, log_ratio=log_ratio)
    weight = _exp(_read(log_ratio, own).cumsum(-1))
    return weight * discounts(own.to(rewards.dtype), gamma=gamma) * _read(rewards, own)


@torch.no_grad()
def truncate(weights: Float[Tensor, "B #T"], *, high: float) -> Float[Tensor, "B #T"]:
    """Return min(weight, high), for weights of steps `[B, T]` or of trajectories `[B, 1]`.

    Source: Ionides 2008, truncated importance sampling (TIS), with high = √B. Biased: E_μ of min(π/μ, high) f
    is E_π f less Σ_x max(π(x) - high · μ(x), 0) f(x), which only weights above `high` add to. In return no
    sample counts more than `high` times. Assumes weights, not their logarithms. Failure case: what μ hardly
    plays and π often is what loses most, so a policy that moved on is not told. ValueError for high <= 0.
    """
    if high <= 0:
        raise ValueError(f"truncate with high={high:g}: no weight would be left. Use high > 0.")
    return weights.clamp(max=high)


@torch.no_grad()
def mask_outside(weights: Float[Tensor, "B #T"], *, low: float, high: float) -> Float[Tensor, "B #T"]:
    """Return the weight where low <= weight <= high and 0 elsewhere, for weights `[B, T]` or `[B, 1]`.

    Source: Zhao et al. 2025 (IcePop), per step; also called masked importance sampling (MIS). Biased: E_μ of
    the answer times f is E_π f less Σ π(x) f(x) over the x outside, from both ends. Assumes that what the
    policies disagree about is a fault and not news: it is left out instead of weighed. Failure case: as they
    drift apart ever more of the batch is silently dropped. ValueError unless 0 <= low <= high.
    """
    if not 0 <= low <= high:
        raise ValueError(
            f"mask_outside with low={low:g}, high={high:g}: weights in [low, high] are kept. "
            "Use 0 <= low <= high."
        )
    return torch.where((weights >= low) & (weights <= high), weights, torch.zeros_like(weights))


@torch.no_grad()
def effective_sample_size(weights: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Return (Σ w)² / Σ w², a scalar: how many samples of π the B weighted samples of μ are worth.

    Source: Kish 1965. From 1 (one weight carries all) to B (all weights equal). Assumes independent samples,
    and an f that has nothing to do with the weights. Failure case: it knows the weights that came, not those
    of the rare samples that did not: far off-policy it looks better than it is. ValueError
    for weights that are negative, infinite or NaN, and where none is positive.
    """
    if not bool((weights.isfinite() & (weights >= 0)).all()):
        wrong = weights[~(weights.isfinite() & (weights >= 0))][0].item()
        raise ValueError(
            f"effective_sample_size with a weight of {wrong:g}: weights are finite and not negative. "
            "Pass weights, not their logarithms, and bound those that overflow with truncate."
        )
    if not bool((weights > 0).any()):
        raise ValueError(
            f"effective_sample_size of {len(weights)} weights of which none is positive: 0 / 0 is no size. "
            "Sample from a policy closer to the one that is evaluated."
        )
    share = weights / weights.max()
    return share.sum().square() / share.square().sum()


def _read(x: Tensor, where: Tensor) -> Tensor:
    """Return `x` where true and 0 elsewhere: NaN there is not multiplied with 0, but not read."""
    return torch.where(where, x, torch.zeros_like(x))


def _exp(log_weight: Tensor) -> Tensor:
    return log_weight.clamp(max=LOG_RATIO_MAX).exp()


def _ahead(delta: Tensor, rate: Tensor, own: Tensor, ended: Tensor) -> Tensor:
    """Return x of the next own step of the same episode, 0 where there is none, for x_t = δ_t + rate_t · x.

    δ is 0 on masked steps. With the rate 1 they hand on the x of the next own step, which is what the step
    before them asks for: so here they count as the policy's own.
    """
    rate = rate.masked_fill(~own, 1)
    x = accumulate(
        lambda steps: delta[:, steps].clone(),
        ended,
        torch.ones_like(own),
        like=delta,
        rate=lambda steps: rate[:, steps],
    )
    return torch.nn.functional.pad(x[:, 1:], (0, 1)).masked_fill_(ended, 0)
