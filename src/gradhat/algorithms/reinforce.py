"""REINFORCE: the formula ĝ itself.

    ĝ = 1/|D| · Σ_τ Σ_t ∇ log π(a_t | s_t) · Ψ_t        Ψ_t = w_t · (R_t − b_t)

`CREDIT` lists what R_t and w_t can be, `BASELINES` what b_t can be. Every row is one whole trajectory.

Source: Williams 1992, section 2. No baseline here depends on the actions of the batch, so none makes ĝ
biased. Where γ < 1, `total` and `discounted` give ∇J; `to_go` leaves γ^t out, as most people do, and is then
the gradient of no objective. A trajectory that was cut counts as it is: J is the return until the cut.
Failure case: a batch that is collected until it holds N steps has a random |D|, and the quotient is biased.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gradhat.algorithms.ascend import Optimizer, ascend
from gradhat.estimators import baseline as baselines
from gradhat.estimators import returns
from gradhat.losses import reduce, surrogate
from gradhat.policies.policy import Critic, Evaluation, Policy
from gradhat.trajectories import Trajectories


@dataclass(frozen=True)
class Settings:
    """`decay` is of the moving average: b ← decay · b + (1 − decay) · mean return. At 1 it stays 0.

    The average starts at 0, so the first baselines are too small in size. That costs variance, not bias.
    """

    decay: float = 0.9
    """How much of the moving average each batch leaves as it was."""
    gamma: float = 1.0
    """Discount γ."""
    credit: Literal["total", "to_go", "discounted"] = "to_go"
    """What a step is credited with, a name in `CREDIT`: the return of the whole episode, the reward that
    followed, or that times γ^t."""
    baseline: Literal["none", "moving_average", "critic"] = "moving_average"
    """What is subtracted from it, a name in `BASELINES`."""


class Credit(NamedTuple):
    """What a step is credited with: `received` is R, `weight` is w, both `[B, T]` for a given γ."""

    received: Callable[[Trajectories, float], Tensor]
    weight: Callable[[Trajectories, float], Tensor]


def total(trajectories: Trajectories, gamma: float) -> Tensor:
    """Return R(τ) = Σ_u γ^u r_u for every step, `[B, T]`: also what came before it."""
    return returns.total(trajectories.rewards, trajectories.mask, gamma=gamma)[:, None] * trajectories.mask


def to_go(trajectories: Trajectories, gamma: float) -> Tensor:
    """Return R_t = Σ_{u ≥ t} γ^(u − t) r_u, `[B, T]`: what an action can still change."""
    ended = trajectories.terminated | trajectories.truncated
    return returns.to_go(trajectories.rewards, ended, trajectories.mask, gamma=gamma)


def even(trajectories: Trajectories, _gamma: float) -> Tensor:
    """Return 1 for every step, `[B, T]`."""
    return torch.ones_like(trajectories.rewards)


def from_start(trajectories: Trajectories, gamma: float) -> Tensor:
    """Return γ^t, `[B, T]`: how much a step counts in J, seen from the start."""
    return returns.discounts(trajectories.mask.to(trajectories.rewards.dtype), gamma=gamma)


CREDIT = {
    "total": Credit(total, even),
    "to_go": Credit(to_go, even),
    "discounted": Credit(to_go, from_start),
}


def nothing(trajectories: Trajectories, _average: float, _critic: Critic | None) -> Tensor:
    """Return the baseline 0, `[B, T]`."""
    return torch.zeros_like(trajectories.rewards)


def past(trajectories: Trajectories, average: float, _critic: Critic | None) -> Tensor:
    """Return the average return of the batches before this one, `[B, T]`."""
    return baselines.constant(trajectories.rewards, trajectories.mask, value=average)


def value_of_state(trajectories: Trajectories, _average: float, critic: Critic | None) -> Tensor:
    """Return V(s_t) of the present weights, `[B, T]`. `critic.fit` improves it, after the credit."""
    if critic is None or not isinstance(trajectories.observations, Tensor):
        raise ValueError(
            "baseline=critic: found no critic, or observations that are no tensor. "
            "Pass a policy with values and a batch it can read, or use another baseline."
        )
    with torch.no_grad():
        return baselines.value_function(critic.values(trajectories.observations), trajectories.mask)


BASELINES = {"none": nothing, "moving_average": past, "critic": value_of_state}


def init() -> float:
    """Return the first moving average."""
    return 0.0


def credit(
    settings: Settings, average: float, trajectories: Trajectories, critic: Critic | None = None
) -> tuple[Trajectories, float]:
    """Attach Ψ_t and, for a critic, the targets R_t; return the next moving average beside.

    ValueError for a row of several episodes, and for `baseline="critic"` without one.
    """
    _check_whole(trajectories)
    mask, gamma = trajectories.mask, settings.gamma
    chosen, baseline = CREDIT[settings.credit], BASELINES[settings.baseline]
    gain = chosen.received(trajectories, gamma) - baseline(trajectories, average, critic)
    adv = torch.where(mask, chosen.weight(trajectories, gamma) * gain, 0)
    scores = returns.total(trajectories.rewards, mask, gamma=gamma)
    following = baselines.moving_average(average, scores, decay=settings.decay)
    return replace(trajectories, adv=adv, targets=to_go(trajectories, gamma)), following


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


def _check_whole(trajectories: Trajectories) -> None:
    ends = (trajectories.terminated | trajectories.truncated).sum(1)
    if bool((ends > 1).any()):
        row = int(ends.argmax())
        raise ValueError(
            f"REINFORCE on rows of whole trajectories: found {int(ends[row])} ends in row {row}. "
            "Collect one episode for each row."
        )
