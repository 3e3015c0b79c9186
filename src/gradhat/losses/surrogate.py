"""Surrogate objectives per step, to be maximised: the gradient is meant, the value means nothing.

`log_ratio` is `[B, T]`, or `[B, 1]` for a sequence ratio, from `estimators.ratios`; the ratio is its
exponential. `adv` is `[B, T]` or `[B, 1]`, in the unit of the rewards, and counts as data: no gradient flows
into it. The answer is `[B, T]` or broadcasts to it, to be multiplied by a weight of `losses.reduce` and
summed. Masked steps must hold finite numbers: 0 · inf is NaN.

At ratio 1 all have the same gradient, adv · ∇ log π. Away from it they differ in which steps still count:

    reinforce            every step, at weight 1
    importance_weighted  every step, at weight ratio
    clipped              none that moved past its bound in the direction of its advantage, else weight ratio
    dual_clipped         as clipped, and no bad action that became more than `dual` times as likely
    clipped_weight       every step, at weight clip(ratio)
    soft_gate            every step, at weight ratio · a bell that is 1 at ratio 1
    divergence_masked    none that moved too far in probability (`tv_mask`, `kl_mask`), else weight ratio

ValueError for arguments that are not `[B, T]` or `[B, 1]` of the same B: advantages `[B]` against `[B, T]`
broadcast along the wrong dimension, and each step gets the credit of another trajectory.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gradhat.shapes import check_same

LOG_RATIO_MAX = 20.0
"""Largest log-ratio that is exponentiated. Beyond it the ratio stands still, without gradient, at 4.9e8:
an infinite ratio makes NaN of a zero advantage (0 · inf), and of the gradient of a step that the clip had
switched off."""


def reinforce(log_ratio: Float[Tensor, "B #T"], adv: Float[Tensor, "B #T"]) -> Float[Tensor, "B #T"]:
    """Return log_ratio · adv, whose gradient is adv · ∇ log π at any ratio.

    Source: Williams 1992. Assumes fresh samples: there is no correction for the policy that sampled. Failure
    case: on stale samples it follows the credit of actions that the policy no longer plays.
    """
    _check(log_ratio=log_ratio, adv=adv)
    return log_ratio * adv.detach()


def importance_weighted(
    log_ratio: Float[Tensor, "B #T"], adv: Float[Tensor, "B #T"]
) -> Float[Tensor, "B #T"]:
    """Return ratio · adv.

    Source: Schulman et al. 2017 (PPO), eq. 6, after Kakade & Langford 2002. Assumes a policy near the one
    that sampled. Failure case: nothing bounds the ratio but LOG_RATIO_MAX, so stale samples give it a heavy
    tail, and a few of them outweigh the batch.
    """
    _check(log_ratio=log_ratio, adv=adv)
    return _ratio(log_ratio) * adv.detach()


def clipped(
    log_ratio: Float[Tensor, "B #T"], adv: Float[Tensor, "B #T"], *, low: float, high: float
) -> Float[Tensor, "B #T"]:
    """Return min(ratio · adv, clip(ratio, 1 - low, 1 + high) · adv).

    Source: Schulman et al. 2017 (PPO), eq. 7, where low = high = ε; Yu et al. 2025 (DAPO), eq. 10, for
    two bounds: high > low is their clip-higher, which leaves unlikely actions more room to grow. A step that
    already moved past its bound in the direction of its advantage gets no gradient; one that moved the wrong
    way keeps the full one. Assumes a ratio that says how far the policy moved; for an action of probability
    1e-6 it says little (see `tv_mask`). Failure case: a bad action that became likely has an unbounded weight
    (see `dual_clipped`). ValueError for a negative bound.
    """
    _check(log_ratio=log_ratio, adv=adv)
    _check_bounds(low=low, high=high)
    ratio = _ratio(log_ratio)
    adv = adv.detach()
    return torch.minimum(ratio * adv, ratio.clamp(1 - low, 1 + high) * adv)


def dual_clipped(
    log_ratio: Float[Tensor, "B #T"], adv: Float[Tensor, "B #T"], *, low: float, high: float, dual: float
) -> Float[Tensor, "B #T"]:
    """Return max(clipped, dual · adv) where adv < 0, and `clipped` elsewhere.

    Source: Ye et al. 2020 (dual-clip PPO), eq. 5, where dual = c = 3. A bad action whose ratio exceeds `dual`
    gets no gradient: `clipped` bounds a step in the direction of its advantage only, so a few stale samples
    of huge ratio could outweigh the batch. Assumes that such samples are noise. Failure case: if the action
    really became likely, nothing pushes it back. ValueError for dual <= 1 or a negative bound.
    """
    if not dual > 1:
        raise ValueError(
            f"dual_clipped with dual={dual:g}: a bound on the ratio of bad actions lies above 1, where fresh "
            "samples are. Use dual > 1; 3 is usual."
        )
    objective = clipped(log_ratio, adv, low=low, high=high)
    adv = adv.detach()
    return torch.where((adv < 0) & (_ratio(log_ratio) > dual), dual * adv, objective)


def clipped_weight(
    log_ratio: Float[Tensor, "B #T"], adv: Float[Tensor, "B #T"], *, low: float, high: float
) -> Float[Tensor, "B #T"]:
    """Return sg(clip(ratio, 1 - low, 1 + high)) · adv · log_ratio, where sg stops the gradient.

    Source: MiniMax 2025 (MiniMax-M1, CISPO), eq. 4 and 5. They write log π in the place of the log-ratio,
    which has the same gradient. The weight is clipped, not the step: every step keeps a gradient, also the
    rare words whose ratio moves first. low >= 1 is no lower bound, as they train. Assumes finite log-ratios.
    Failure case: nothing stops a policy from moving on; the weight is bounded, the distance is not.
    ValueError for a negative bound.
    """
    _check(log_ratio=log_ratio, adv=adv)
    _check_bounds(low=low, high=high)
    weight = _ratio(log_ratio.detach()).clamp(1 - low, 1 + high)
    return weight * adv.detach() * log_ratio


def soft_gate(
    log_ratio: Float[Tensor, "B #T"],
    adv: Float[Tensor, "B #T"],
    *,
    tau_positive: float,
    tau_negative: float,
) -> Float[Tensor, "B #T"]:
    """Return 4 / τ · σ(τ · (ratio - 1)) · adv, with τ = tau_positive where adv > 0, else tau_negative.

    Source: Gao et al. 2025 (SAPO), who train with 1 and 1.05. With p = σ(τ · (ratio - 1)) the gradient is
    4 · p · (1 - p) · ratio · adv · ∇ log π: the factor 4 · p · (1 - p) is 1 at ratio 1 and falls smoothly
    on both sides, so no step is cut off. The larger τ, the faster. Assumes that negative advantages need the
    faster fall, since they raise many unsampled actions. Failure case: it also damps steps that moved the
    wrong way, which `clipped` pushes back with full force. ValueError for τ <= 0.
    """
    _check(log_ratio=log_ratio, adv=adv)
    for name, tau in (("tau_positive", tau_positive), ("tau_negative", tau_negative)):
        if not tau > 0:
            raise ValueError(
                f"soft_gate with {name}={tau:g}: the gate falls off on both sides of ratio 1 at the rate τ. "
                "Use τ > 0; 1 is usual."
            )
    adv = adv.detach()
    tau = torch.full_like(adv, tau_negative, dtype=torch.promote_types(adv.dtype, log_ratio.dtype))
    tau = tau.masked_fill(adv > 0, tau_positive)
    return torch.sigmoid(tau * (_ratio(log_ratio) - 1)) * 4 / tau * adv


def divergence_masked(
    log_ratio: Float[Tensor, "B #T"], adv: Float[Tensor, "B #T"], keep: Bool[Tensor, "B #T"]
) -> Float[Tensor, "B #T"]:
    """Return ratio · adv where `keep`, and 0 without gradient elsewhere.

    Source: Qi et al. 2026 (DPPO). `keep` is `tv_mask` or `kl_mask`: which steps stay is decided by how far
    the policy moved in probability, not in ratio. Assumes that it was computed at the same policy as
    `log_ratio`. Failure case: the weight of a step that is kept is unbounded, as an unlikely action may grow
    a thousandfold within the bound; `clipped_weight(low=1, ...)` where `keep` has a cap. ValueError for a
    `keep` that is not bool.
    """
    _check(log_ratio=log_ratio, adv=adv, keep=keep)
    if keep.dtype is not torch.bool:
        raise ValueError(
            f"keep {keep.dtype}: a step stays or goes, so this is bool. Pass tv_mask, kl_mask or keep.bool()."
        )
    return torch.where(keep, _ratio(log_ratio) * adv.detach(), 0)


def tv_mask(
    logp: Float[Tensor, "B T"],
    logp_old: Float[Tensor, "B T"],
    adv: Float[Tensor, "B #T"],
    *,
    low: float,
    high: float,
) -> Bool[Tensor, "B T"]:
    """Return false where |π - π_old| of the sampled action exceeds its bound on the side of the advantage.

    The bound is `high` for a good action that became likelier and `low` for a bad one that became less
    likely, in probability. Every other step is kept: one that moved the wrong way has to come back.

    Source: Qi et al. 2026 (DPPO), the binary total variation: that between two coins, the sampled action
    against all others. Assumes `logp_old` of the policy that really sampled; recomputed by the trainer, it
    hides the distance between the two. Failure case: it is a lower bound of the total variation over the
    vocabulary, so mass that moved among the other actions goes unseen. ValueError for a negative bound.
    """
    _check_bounds(low=low, high=high)
    _check_same_steps(logp, logp_old, adv)
    p, p_old = logp.detach().exp(), logp_old.detach().exp()
    return _within((p - p_old).abs(), p - p_old, adv, low, high)


def kl_mask(
    logp: Float[Tensor, "B T"],
    logp_old: Float[Tensor, "B T"],
    adv: Float[Tensor, "B #T"],
    *,
    low: float,
    high: float,
) -> Bool[Tensor, "B T"]:
    """Return false where KL(π_old ‖ π) of the sampled action exceeds its bound on the side of the advantage.

    As `tv_mask`, with q · log(q / p) + (1 - q) · log((1 - q) / (1 - p)) in nats for the distance, where p and
    q are the probabilities of the sampled action under the policy and under the old one. It is stricter near
    0 and 1, where a small shift is a large surprise.

    Source: Qi et al. 2026 (DPPO), the binary KL. Assumes `logp_old` of the policy that really sampled.
    Failure case: as for `tv_mask`, mass that moved among the other actions goes unseen; and a tiny shift of
    an action that was nearly certain drops its step. ValueError for a negative bound.
    """
    _check_bounds(low=low, high=high)
    _check_same_steps(logp, logp_old, adv)
    logp, logp_old = logp.detach(), logp_old.detach()
    p, q = logp.exp(), logp_old.exp()
    rest, rest_old = -torch.expm1(logp), -torch.expm1(logp_old)
    # xlogy makes 0 · log 0 = 0: an action that was certain leaves nothing to the others.
    divergence = (torch.xlogy(q, q) - torch.xlogy(q, p)) + (
        torch.xlogy(rest_old, rest_old) - torch.xlogy(rest_old, rest)
    )
    return _within(divergence, logp - logp_old, adv, low, high)


def _within(divergence: Tensor, change: Tensor, adv: Tensor, low: float, high: float) -> Tensor:
    too_high = (adv > 0) & (change > 0) & (divergence > high)
    too_low = (adv < 0) & (change < 0) & (divergence > low)
    return ~(too_high | too_low)


def _ratio(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(max=LOG_RATIO_MAX).exp()


def _check(**tensors: Tensor) -> None:
    """ValueError unless all are `[B, T]` or `[B, 1]`. `[1, T]` is refused: it may be a `[B]` turned over."""
    (first, reference), *others = tensors.items()
    expected = tuple(reference.shape)
    for name, tensor in others:
        shape = tuple(tensor.shape)
        same_rows = len(shape) == len(expected) == 2 and shape[0] == expected[0]
        if not (same_rows and (shape[1] == expected[1] or 1 in (shape[1], expected[1]))):
            raise ValueError(
                f"{name} {shape} with {first} {expected}: each trajectory needs its own row. "
                f"Pass {name} as [B, T] or [B, 1]."
            )


def _check_same_steps(logp: Tensor, logp_old: Tensor, adv: Tensor) -> None:
    check_same(logp=logp, logp_old=logp_old)
    _check(logp=logp, adv=adv)


def _check_bounds(*, low: float, high: float) -> None:
    if not (low >= 0 and high >= 0):
        raise ValueError(
            f"bounds low={low:g}, high={high:g}: each is a distance from where the samples were drawn. "
            "Use bounds >= 0."
        )
