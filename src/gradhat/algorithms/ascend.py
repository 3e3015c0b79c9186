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
    surrogate, entropy, count = 0.0, 0.0, 0
    gaps: list[Tensor] = []
    for rows in policy.split(trajectories):
        part = trajectories.select(rows)
        evaluation = policy.evaluate(part)
        value = objective(evaluation, part)
        (-value).backward()
        optimizer.accumulate()
        surrogate += float(value.detach())
        entropy += float((evaluation.entropy.detach() * part.mask).sum())
        count += int(part.mask.sum())
        gaps.append((evaluation.logp.detach() - part.logp)[part.mask])
    step = optimizer.step()
    gap = torch.cat(gaps)
    return {
        "diagnostics/surrogate_loss": -surrogate,
        "entropy": entropy / count,
        "grad_norm": step.grad_norm,
        "skipped": float(step.skipped),
        "sampling/sampling_logp_difference/mean": float(gap.abs().mean()),
        "sampling/sampling_logp_difference/max": float(gap.abs().max()),
        "sampling/importance_sampling_ratio/min": float(gap.min().exp()),
        "sampling/importance_sampling_ratio/mean": float(gap.exp().mean()),
        "sampling/importance_sampling_ratio/max": float(gap.max().exp()),
    }
