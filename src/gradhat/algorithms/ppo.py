"""PPO: several passes over one batch, held near the policy that sampled it by a clip.

    r_t = π(a_t | s_t) / π_old(a_t | s_t)
    g_t = min(r_t A_t, clip(r_t, 1 − ε, 1 + ε) A_t)
    maximise  1/N · Σ_t [ g_t  −  c_V · (V(s_t) − y_t)² / 2  +  c_H · H(π(· | s_t)) ]

by one optimiser step for each minibatch. A_t and y_t are data, from `critic.credit`; π_old is the probability
that was recorded when the action was sampled. N counts the policy's own steps of the minibatch.

Source: Schulman et al. 2017, eq. 7 and 9, algorithm 1. In the first step of a batch r is 1 and the gradient
is that of A2C; from then on it is not ∇J of any policy. Failure case: the clip stops gradients and not the
policy, which other samples and the optimiser's momentum carry further out; `approx_kl` shows how far.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradhat.algorithms import critic
from gradhat.algorithms.ascend import Optimizer, ascend, beyond_bounds
from gradhat.estimators import kl, ratios
from gradhat.losses import reduce, surrogate
from gradhat.policies.policy import Evaluation, Policy
from gradhat.trajectories import Trajectories

MEASURED = (
    "diagnostics/value_loss",
    "approx_kl",
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    "clip_ratio/region_mean",
)


@dataclass(frozen=True)
class Settings:
    """The numbers of PPO."""

    gamma: float = 0.99
    """Discount γ, of `critic.credit`."""
    lam: float = 0.95
    """Trace λ, of `critic.credit`: 1 trusts rewards only, 0 the critic's next value."""
    clip_low: float = 0.2
    """How far below 1 the ratio of a bad action may fall before its gradient stops."""
    clip_high: float = 0.2
    """How far above 1 the ratio of a good action may rise. Above `clip_low`: clip-higher."""
    num_epochs: int = 4
    """Passes over the batch."""
    num_minibatches: int = 4
    """Optimiser steps in each pass."""
    value_coef: float = 0.5
    """c_V, the weight of the critic's loss."""
    entropy_coef: float = 0.0
    """c_H, the weight of the policy's entropy."""
    normalize_adv: bool = True
    """Whether advantages are shifted and scaled to mean 0 and deviation 1 over each minibatch: a bias."""
    target_kl: float | None = None
    """Passes end when the mean of `approx_kl` over one exceeds this, in nats."""


def update(
    policy: Policy,
    optimizer: Optimizer,
    trajectories: Trajectories,
    settings: Settings,
    generator: torch.Generator,
) -> dict[str, float]:
    """Take the steps of every pass on a batch that carries its credit; return metrics.

    Each pass shuffles what the policy can evaluate apart (`policy.examples`) with `generator`, and every row
    is in exactly one of its minibatches. Metrics are means over all steps, but `sampling/*`, which are those
    of the first: there the policy is still the one that sampled, and the ratio 1 up to rounding.
    """
    explained = critic.explained_variance(trajectories)
    rows = policy.examples(replace(trajectories, next_observations=None))
    steps: list[dict[str, float]] = []
    passes = 0
    for _ in range(settings.num_epochs):
        minibatches = critic.minibatches(rows, settings.num_minibatches, generator)
        one = [_step(policy, optimizer, minibatch, settings) for minibatch in minibatches]
        steps, passes = steps + one, passes + 1
        if settings.target_kl is not None and _mean(one, "approx_kl") > settings.target_kl:
            break
    first = {name: number for name, number in steps[0].items() if name.startswith("sampling/")}
    means = {name: _mean(steps, name) for name in steps[0]}
    return means | first | {"explained_variance": explained, "num_epochs": float(passes)}


def _step(
    policy: Policy, optimizer: Optimizer, minibatch: Trajectories, settings: Settings
) -> dict[str, float]:
    """Take one optimiser step. Advantages and denominators are those of the minibatch."""
    batch = critic.normalised(minibatch) if settings.normalize_adv else minibatch
    num_tokens = int(batch.mask.sum())
    low, high = settings.clip_low, settings.clip_high
    seen: list[Tensor] = []

    def objective(evaluation: Evaluation, part: Trajectories) -> Tensor:
        adv = critic.credited(part)[0]
        log_ratio = ratios.token(evaluation.logp, part.logp, part.mask)
        gain = surrogate.clipped(log_ratio, adv, low=low, high=high)
        error = critic.value_loss(evaluation, part)
        weight = reduce.per_token(part.mask.to(gain.dtype), num_tokens=num_tokens)
        with torch.no_grad():
            # KL(π_old ‖ π): the samples are π_old's, so π stands in the place of the reference.
            distance = kl.k3(torch.zeros_like(log_ratio), log_ratio)
            below, above = beyond_bounds(log_ratio, adv, low=low, high=high)
            measured = torch.stack([error, distance, below, above, below | above])
            seen.append((measured * weight).sum((1, 2)))
        gain = gain - settings.value_coef * error + settings.entropy_coef * evaluation.entropy
        return (gain * weight).sum()

    metrics = ascend(policy, optimizer, batch, objective)
    return metrics | dict(zip(MEASURED, torch.stack(seen).sum(0).tolist(), strict=True))


def _mean(steps: list[dict[str, float]], name: str) -> float:
    return sum(step[name] for step in steps) / len(steps)
