"""The group family: several samples of one prompt are each other's baseline.

    A_i = (R_i − baseline(R, group)) / scale(R, group)
    maximise Σ_i Σ_t  w_it · surrogate(ratio_it, A_i)  −  β · w_it · KL_it

GRPO, RLOO, Dr. GRPO and the rest are choices of the functions in it: `grpo_family.py` is the table. This page is what they
share. Silent groups (all rewards equal) have zero advantage: they stay in the denominators and are not computed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from gradhat.algorithms.ascend import Optimizer, ascend
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


@dataclass(frozen=True)
class Row:
    """One algorithm of the family: six choices."""

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


def advantages(row: Row, returns: Tensor, group: Tensor) -> Tensor:
    """Return the credit of each trajectory, `[B]`. `returns` and `group` are `[B]`."""
    return (returns - row.baseline(returns, group)) / row.scale(returns, group)


def update(
    policy: Policy,
    optimizer: Optimizer,
    trajectories: Trajectories,
    row: Row,
    settings: Settings,
    reference: Policy | None = None,
) -> dict[str, float]:
    """Follow the gradient of `row` on one batch; return metrics. Credit is attached by `credit` before.

    `reference` is read only when `settings.kl_coef` is not 0. A batch in which no step carries credit changes nothing.
    """
    if trajectories.adv is None:
        raise ValueError("update: trajectories without credit were given. Attach it with credit(row, settings, ...) first.")
    counts = Counts(len(trajectories), int(trajectories.mask.sum()), settings.length)
    in_loss = row.kl_loss is not None and settings.kl_coef != 0
    carries = torch.ones(len(trajectories), dtype=torch.bool) if in_loss else (trajectories.adv != 0).any(-1)
    metrics = {"frac_tokens_with_gradient": float(trajectories.mask[carries].sum()) / max(1, counts.num_tokens)}
    active = trajectories.select(carries.nonzero()[:, 0])
    if len(active) == 0:
        return metrics | {"skipped": 0.0}

    def objective(evaluation: Evaluation, part: Trajectories) -> Tensor:
        assert part.adv is not None
        log_ratio = row.ratio(evaluation.logp, part.logp, part.mask)
        gain = row.surrogate(log_ratio, part.adv, settings)
        if row.kl_loss is not None and reference is not None and in_loss:
            gain = gain - settings.kl_coef * row.kl_loss(evaluation.logp, reference_logp(reference, part))
        return torch.where(part.mask, gain * row.reduce(part.mask, counts), 0).sum()

    for _ in range(settings.num_epochs):
        metrics |= ascend(policy, optimizer, active, objective)
    return metrics


def credit(
    row: Row, settings: Settings, trajectories: Trajectories, reference: Policy | None = None
) -> tuple[Trajectories, dict[str, float]]:
    """Attach the advantages `[B, T]`, each trajectory's on all of its own steps; return metrics beside."""
    returns, metrics = trajectories.returns(), dict[str, float]()
    if row.kl_reward is not None and reference is not None and settings.kl_coef != 0:
        logp_ref = torch.cat([reference_logp(reference, trajectories.select([i])) for i in range(0)] or [])
        returns = returns - settings.kl_coef * (row.kl_reward(trajectories.logp, logp_ref) * trajectories.mask).sum(-1)
    adv = advantages(row, returns, trajectories.group)
    return replace(trajectories, adv=adv[:, None] * trajectories.mask), metrics


def reference_logp(reference: Policy, trajectories: Trajectories) -> Tensor:
    """Log-probability of each action under the reference, `[B, T]`, without gradient."""
    with torch.no_grad():
        return reference.evaluate(trajectories).logp
