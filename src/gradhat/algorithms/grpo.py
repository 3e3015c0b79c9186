"""The group family: several samples of one prompt are each other's baseline.

    A_i = (R_i − baseline(R, group)) / scale(R, group)
    maximise Σ_i Σ_t  w_it · c_it · [surrogate(ratio_it, A_i)  −  β · KL_it]

w are the weights of the reduction, c those between the sampler and the policy (`mismatch`; 1 without).

GRPO, RLOO, Dr. GRPO and the rest are choices of the functions in it: `grpo_family.py` is the table. This page
is what they share. Silent groups (all rewards equal) have zero advantage: they stay in the denominators and
are not computed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from gradhat.algorithms.ascend import Optimizer, ascend, beyond_bounds
from gradhat.algorithms.reference import old
from gradhat.estimators.kl import in_reward
from gradhat.policies.policy import Evaluation, Policy
from gradhat.trajectories import Trajectories


class Counts(NamedTuple):
    """The denominators: counted over the whole optimiser step, over every micro-batch."""

    num_trajectories: int
    num_tokens: int
    length: int
    """The longest completion that the limits allow, in tokens."""


@dataclass(frozen=True)
class Settings:
    """The numbers of the group family."""

    length: int
    """Completion limit in tokens: the constant denominator of Dr. GRPO."""
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0
    num_epochs: int = 1
    """Passes over the batch, one optimiser step each."""
    mismatch_cap: float = 2.0
    """The largest weight of a step under truncated weights between sampler and policy."""
    mismatch_low: float = 0.5
    mismatch_high: float = 5.0
    """Under masked ones a step outside `[mismatch_low, mismatch_high]` has weight 0."""


Mismatch = Callable[[Tensor, Tensor, Tensor, Settings], Tensor]
"""(logp_old, logp as sampled, mask) → weight per step `[B, T]`."""


@dataclass(frozen=True)
class Row:
    """One algorithm of the family: seven choices."""

    baseline: Callable[[Tensor, Tensor], Tensor]
    """(returns `[B]`, group `[B]`) → `[B]`."""
    scale: Callable[[Tensor, Tensor], Tensor]
    """(returns `[B]`, group `[B]`) → divisor `[B]`."""
    ratio: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(logp, logp_old, mask) → log-ratio `[B, T]` or `[B, 1]`."""
    surrogate: Callable[[Tensor, Tensor, Settings], Tensor]
    """(log-ratio, adv `[B, T]`) → objective per step `[B, T]`."""
    reduce: Callable[[Tensor, Counts], Tensor]
    """mask `[B, T]` → weight per step `[B, T]`."""
    kl_reward: Callable[[Tensor, Tensor], Tensor] | None = None
    """(logp, logp_ref) → penalty per step, subtracted from the rewards; None: no such penalty."""
    kl_loss: Callable[[Tensor, Tensor], Tensor] | None = None
    """(logp, logp_ref) → term per step, subtracted from the objective; None: no such term."""
    mismatch: Mismatch | None = None
    """Weights between sampler and policy; None: the sampler is taken at its word."""


def advantages(row: Row, returns: Tensor, group: Tensor) -> Tensor:
    """Return the credit of each trajectory, `[B]`. `returns` and `group` are `[B]`."""
    return (returns - row.baseline(returns, group)) / row.scale(returns, group)


def credit(row: Row, settings: Settings, trajectories: Trajectories) -> Trajectories:
    """Attach the advantages `[B, T]`: each trajectory's on all of its own steps.

    A row with KL in the reward reads `logp_ref` (`reference.refer`) when `settings.kl_coef` is not 0.
    """
    returns = trajectories.returns()
    if row.kl_reward is not None and settings.kl_coef != 0:
        penalty = row.kl_reward(old(trajectories), _reference(trajectories))
        rewards = in_reward(trajectories.rewards, penalty, trajectories.mask, coef=settings.kl_coef)
        returns = replace(trajectories, rewards=rewards).returns()
    adv = advantages(row, returns, trajectories.group)
    return replace(trajectories, adv=adv[:, None] * trajectories.mask)


def update(
    policy: Policy, optimizer: Optimizer, trajectories: Trajectories, row: Row, settings: Settings
) -> dict[str, float]:
    """Follow the gradient of `row` on one batch that carries its credit; return metrics.

    A row with KL in the loss reads `logp_ref` when `settings.kl_coef` is not 0, and then computes silent
    groups too; one with weights between sampler and policy reads `logp_old` (`reference.recall`). A batch in
    which no step carries a gradient changes nothing: no optimiser step is taken.

    Metrics are those of the first pass, where the policy is still the one that sampled. But `clip_ratio/*`
    and `grad_norm` are means over all passes, `skipped` and `num_updates` count them.
    """
    adv = trajectories.adv
    if adv is None:
        raise ValueError(
            "update: found trajectories without credit. Attach it first: credit(row, settings, trajectories)."
        )
    counts = Counts(len(trajectories), int(trajectories.mask.sum()), settings.length)
    kl_loss = row.kl_loss if settings.kl_coef != 0 else None
    carries = (adv != 0).any(-1) if kl_loss is None else torch.ones(len(trajectories), dtype=torch.bool)
    active = trajectories.select(carries.nonzero()[:, 0])
    metrics = {"frac_tokens_with_gradient": int(active.mask.sum()) / max(1, counts.num_tokens)}
    if trajectories.logp_ref is not None:
        gap = (old(trajectories) - trajectories.logp_ref)[trajectories.mask]
        metrics["kl"] = float(gap.mean())
    if len(active) == 0:
        return metrics
    if row.mismatch is not None:
        metrics |= _corrected(row.mismatch, active, settings)

    held: list[Tensor] = []

    def objective(evaluation: Evaluation, part: Trajectories) -> Tensor:
        assert part.adv is not None
        log_ratio = row.ratio(evaluation.logp, old(part), part.mask)
        beyond = beyond_bounds(log_ratio.detach(), part.adv, low=settings.clip_low, high=settings.clip_high)
        held.append(beyond[:, part.mask])
        gain = row.surrogate(log_ratio, part.adv.to(log_ratio.dtype), settings)
        if kl_loss is not None:
            gain = gain - settings.kl_coef * kl_loss(evaluation.logp, _reference(part))
        if row.mismatch is not None:
            gain = gain * row.mismatch(_recalled(part), part.logp, part.mask, settings)
        return torch.where(part.mask, gain * row.reduce(part.mask.to(gain.dtype), counts), 0).sum()

    passes = [ascend(policy, optimizer, active, objective) for _ in range(settings.num_epochs)]
    skipped = sum(one["skipped"] for one in passes)
    metrics |= passes[0] | {
        "grad_norm": sum(one["grad_norm"] for one in passes) / len(passes),
        "skipped": skipped,
        "num_updates": len(passes) - skipped,
    }
    low, high = torch.cat(held, dim=1).double().mean(1).tolist()
    bounds = {"low_mean": low, "high_mean": high, "region_mean": low + high}
    return metrics | {f"clip_ratio/{name}": share for name, share in bounds.items()}


def _corrected(mismatch: Mismatch, trajectories: Trajectories, settings: Settings) -> dict[str, float]:
    """Return the mean weight between sampler and policy, and the share of steps whose weight is bounded."""
    recalled, mask = _recalled(trajectories), trajectories.mask
    weight = mismatch(recalled, trajectories.logp, mask, settings)[mask]
    bounded = weight != (recalled - trajectories.logp)[mask].exp()
    return {
        "mismatch/weight_mean": float(weight.mean()),
        "mismatch/frac_bounded": float(bounded.double().mean()),
    }


def _recalled(trajectories: Trajectories) -> Tensor:
    if trajectories.logp_old is None:
        raise ValueError(
            "weights between sampler and policy: found trajectories without logp_old. "
            "Attach it first: recall(policy, trajectories)."
        )
    return trajectories.logp_old


def _reference(trajectories: Trajectories) -> Tensor:
    if trajectories.logp_ref is None:
        raise ValueError(
            "kl_coef is not 0: found trajectories without logp_ref. "
            "Attach it first: refer(reference, trajectories)."
        )
    return trajectories.logp_ref
