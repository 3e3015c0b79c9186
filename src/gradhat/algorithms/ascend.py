"""One step up the gradient: every algorithm that follows ĝ shares these lines.

The objective is a sum over steps whose weights already hold the denominators of the whole optimiser step. So
micro-batches add up to the same gradient however the batch is cut.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gradhat.policies.policy import Evaluation, Policy
from gradhat.trajectories import Trajectories

Objective = Callable[[Evaluation, Trajectories], Tensor]
"""A micro-batch → the part of the objective, to be maximised, that its steps contribute (a scalar)."""
WHOLE = slice(None)


class Step(NamedTuple):
    """What an optimiser did. `skipped`: the gradient was not finite and nothing changed."""

    grad_norm: float
    skipped: bool


class Optimizer(Protocol):
    """Sums gradients over micro-batches, then steps."""

    def accumulate(self) -> None:
        """Add the module's gradient to the sum and clear it."""
        ...

    def step(self) -> Step:
        """Move the parameters along the summed gradient and clear it."""
        ...


def ascend(
    policy: Policy, optimizer: Optimizer, trajectories: Trajectories, objective: Objective
) -> dict[str, float]:
    """Take one optimiser step on `trajectories` and return its metrics.

    Entropy is the mean over the policy's own steps, in nats. The gap of `sampling/*` is logp here minus logp
    as sampled: 0 up to rounding before the first step on a batch, unless the sampler and this forward
    disagree.
    """
    surrogate, entropy = 0.0, 0.0
    gaps: list[Tensor] = []
    for rows in policy.split(trajectories):
        part = trajectories if rows == WHOLE else trajectories.select(rows)
        evaluation = policy.evaluate(part)
        value = objective(evaluation, part)
        value.neg().backward()
        optimizer.accumulate()
        surrogate += value.item()
        entropy += (evaluation.entropy.detach() * part.mask).sum().item()
        gaps.append((evaluation.logp.detach() - part.logp)[part.mask])
    step = optimizer.step()
    gap = gaps[0] if len(gaps) == 1 else torch.cat(gaps)
    return {
        "diagnostics/surrogate_loss": -surrogate,
        "entropy": entropy / len(gap),
        "grad_norm": step.grad_norm,
        "skipped": float(step.skipped),
        **agreement(gap),
    }


def agreement(gap: Tensor) -> dict[str, float]:
    """Return `sampling/*` of the gap `[N]` between logp here and logp as sampled, over own steps."""
    ratio = gap.exp()
    return {
        "sampling/sampling_logp_difference/mean": gap.abs().mean().item(),
        "sampling/sampling_logp_difference/max": gap.abs().max().item(),
        "sampling/importance_sampling_ratio/min": ratio.min().item(),
        "sampling/importance_sampling_ratio/mean": ratio.mean().item(),
        "sampling/importance_sampling_ratio/max": ratio.max().item(),
    }


def beyond_bounds(log_ratio: Tensor, adv: Tensor, *, low: float, high: float) -> Tensor:
    """Return where a clip stops the gradient, bool `[2, B, T]`: below the lower bound, above the upper one.

    Only the side on which the advantage pushes further out counts: a step that comes back is not held.
    """
    ratio = log_ratio.exp().expand_as(adv)
    return torch.stack([(ratio < 1 - low) & (adv < 0), (ratio > 1 + high) & (adv > 0)])
