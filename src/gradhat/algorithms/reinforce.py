"""REINFORCE: the formula ĝ itself, with a moving average of past returns as its baseline.

    ĝ = 1/|D| · Σ_τ Σ_t ∇ log π(a_t | s_t) · (R_t − b)        R_t = Σ_{u ≥ t} r_u

Source: Williams 1992, section 2. b is the average before this batch, so it does not depend on the batch's
actions and ĝ stays unbiased. Failure case: start states of unequal difficulty, whose returns one number
cannot centre.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradhat.algorithms.ascend import Optimizer, ascend
from gradhat.estimators import baseline as baselines
from gradhat.estimators import returns
from gradhat.losses import reduce, surrogate
from gradhat.policies.policy import Evaluation, Policy
from gradhat.trajectories import Trajectories


@dataclass(frozen=True)
class Settings:
    """`decay` of the moving average: b ← decay · b + (1 − decay) · mean return. At 1 it stays 0: no baseline.

    The average starts at 0, so the first baselines are too small in size. That costs variance, not bias.
    """

    decay: float = 0.9


def init() -> float:
    """Return the first baseline."""
    return 0.0


def credit(settings: Settings, baseline: float, trajectories: Trajectories) -> tuple[Trajectories, float]:
    """Attach R_t − b to every step of the policy's own; return the next baseline beside."""
    mask, ended = trajectories.mask, trajectories.terminated | trajectories.truncated
    to_go = returns.to_go(trajectories.rewards, ended, mask, gamma=1.0)
    adv = torch.where(mask, to_go - baseline, 0)
    following = baselines.moving_average(baseline, trajectories.returns(), decay=settings.decay)
    return replace(trajectories, adv=adv), following


def update(policy: Policy, optimizer: Optimizer, trajectories: Trajectories) -> dict[str, float]:
    """Take one step along ĝ; return metrics."""
    if trajectories.adv is None:
        raise ValueError(
            "update: found trajectories without credit. "
            "Attach it first: credit(settings, baseline, trajectories)."
        )
    num_trajectories = len(trajectories)

    def objective(evaluation: Evaluation, part: Trajectories) -> Tensor:
        assert part.adv is not None
        gain = surrogate.reinforce(evaluation.logp, part.adv)
        weight = reduce.per_trajectory(part.mask.to(gain.dtype), num_trajectories=num_trajectories)
        return torch.where(part.mask, gain * weight, 0).sum()

    return ascend(policy, optimizer, trajectories, objective)
