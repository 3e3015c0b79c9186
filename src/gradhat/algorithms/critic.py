"""Credit by a critic, and the critic's own lessons: what A2C, PPO, TRPO and REINFORCE with a value share.

    δ_t = r_t + γ (1 − terminated_t) V(s_{t+1}) − V(s_t)
    A_t = δ_t + γλ (1 − ended_t) A_{t+1}                    y_t = A_t + V(s_t)

A_t is the credit of a step, y_t is what V should have said there (a λ-return).
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from gradhat.algorithms.ascend import WHOLE, Optimizer
from gradhat.estimators.gae import gae
from gradhat.losses import reduce, value
from gradhat.policies.policy import Critic, Evaluation, Policy
from gradhat.trajectories import Trajectories

SCALE_EPS = 1e-8
"""Added to a standard deviation before dividing by it."""


class ActorCritic(Policy, Critic, Protocol):
    """A policy that says what states are worth."""


def credit(policy: Critic, trajectories: Trajectories, *, gamma: float, lam: float) -> Trajectories:
    """Attach the advantages of GAE and the critic's targets y, both `[B, T]` and 0 where masked.

    Source: Schulman et al. 2016, eq. 16. V comes from the present weights, of the observations and of their
    true successors, in one pass without gradient. A terminated step has no successor's value; a truncated one
    has that of the final observation, and so has the last column, where the row is cut. The trace ends at
    each of the three. ValueError for a policy without a critic and a batch without successors.
    """
    observations, following = trajectories.observations, trajectories.next_observations
    if not isinstance(observations, Tensor) or following is None:
        raise ValueError(
            "credit by a critic: found a batch without the true successor of each step. "
            "Attach next_observations [B, T, *O] beside observations of that shape."
        )
    with torch.no_grad():
        values, next_values = policy.values(torch.stack([observations, following])).unbind()
    terminated, mask = trajectories.terminated, trajectories.mask
    adv = gae(
        trajectories.rewards.to(values.dtype),
        values,
        next_values,
        terminated,
        terminated | trajectories.truncated,
        mask,
        gamma=gamma,
        lam=lam,
    )
    return replace(trajectories, adv=adv, targets=torch.where(mask, adv + values, 0))


def credited(trajectories: Trajectories) -> tuple[Tensor, Tensor]:
    """Return (adv, targets), both `[B, T]`. ValueError where they are missing."""
    if trajectories.adv is None or trajectories.targets is None:
        raise ValueError(
            "update: found trajectories without credit and targets. "
            "Attach them first: critic.credit(policy, trajectories, gamma=..., lam=...)."
        )
    return trajectories.adv, trajectories.targets


def normalised(trajectories: Trajectories) -> Trajectories:
    """Shift and scale the advantages of these trajectories to mean 0 and deviation 1 over own steps.

    Both are read off the batch itself, so the expected gradient changes in length and in direction. The
    deviation is that of the batch (divided by N): a lone step gets 0. Failure case: where every step of a
    batch was as good as any other, the advantages are errors of the critic, and move the policy at full
    length. In a world that is solved, a policy that still learns walks at random until it fails.
    """
    adv, mask = credited(trajectories)[0], trajectories.mask
    own = adv[mask]
    centred = torch.where(mask, adv - own.mean(), 0)
    return replace(trajectories, adv=centred / (own.std(correction=0) + SCALE_EPS))


def value_loss(evaluation: Evaluation, part: Trajectories) -> Tensor:
    """Return (V(s_t) − y_t)² / 2 of each step, `[B, T]`, with gradient through V only."""
    if evaluation.values is None:
        raise ValueError(
            "a critic's loss was asked for: found a policy without a critic. Make the policy with one."
        )
    return value.squared(evaluation.values, credited(part)[1])


def explained_variance(trajectories: Trajectories) -> float:
    """Return 1 − Var[y − V] / Var[y] over own steps: 1 for a perfect critic, 0 for a constant one.

    V is what it was when the credit was computed: y − V is the advantage. 0 where y does not vary.
    ValueError for a batch without an own step.
    """
    _check_some(trajectories)
    adv, targets = (tensor[trajectories.mask] for tensor in credited(trajectories))
    spread = targets.var(correction=0).item()
    return 1 - adv.var(correction=0).item() / spread if spread > 0 else 0.0


def minibatches(
    rows: Trajectories, num_minibatches: int, generator: torch.Generator
) -> Iterator[Trajectories]:
    """Cut the rows, shuffled anew, into parts of nearly equal size: each row is in exactly one."""
    shuffled = rows.select(torch.randperm(len(rows), generator=generator))
    first = 0
    for part in torch.arange(len(rows)).tensor_split(min(num_minibatches, len(rows))):
        yield shuffled.select(slice(first, first + len(part)))
        first += len(part)


def fit(
    policy: ActorCritic,
    optimizer: Optimizer,
    trajectories: Trajectories,
    *,
    num_epochs: int,
    num_minibatches: int,
    generator: torch.Generator,
) -> dict[str, float]:
    """Move V towards the targets, one optimiser step for each minibatch; return the mean loss before them.

    No gradient reaches the actor. Fit after the credit was computed: a V that knows the batch is a baseline
    that depends on its actions. Failure case: an optimiser that has also stepped the actor, and whose
    momentum moves weights without a gradient, drags the actor along; give the critic one of its own.
    ValueError for a batch without an own step.
    """
    credited(trajectories)
    _check_some(trajectories)
    rows = policy.examples(replace(trajectories, next_observations=None))
    losses: list[float] = []
    for _ in range(num_epochs):
        for minibatch in minibatches(rows, num_minibatches, generator):
            losses.append(_fit_step(policy, optimizer, minibatch))
    return {"diagnostics/value_loss": sum(losses) / max(1, len(losses))}


def _check_some(trajectories: Trajectories) -> None:
    if not bool(trajectories.mask.any()):
        raise ValueError(
            f"learn from {tuple(trajectories.mask.shape)} steps: found none that is the policy's own. "
            "Skip a batch in which nobody acted."
        )


def _fit_step(policy: ActorCritic, optimizer: Optimizer, minibatch: Trajectories) -> float:
    num_tokens, loss = int(minibatch.mask.sum()), 0.0
    for rows in policy.split(minibatch):
        part = minibatch if rows == WHOLE else minibatch.select(rows)
        assert isinstance(part.observations, Tensor)
        values = policy.values(part.observations)
        weight = reduce.per_token(part.mask.to(values.dtype), num_tokens=num_tokens)
        error = (value.squared(values, credited(part)[1]) * weight).sum()
        error.backward()
        optimizer.accumulate()
        loss += error.item()
    optimizer.step()
    return loss
