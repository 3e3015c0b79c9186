"""TD3: DDPG with three remedies against values that are too high.

    ã = clip(μ′(s′) + clip(ε, −c, c), low, high)        ε ~ N(0, σ̃²)               (target smoothing)
    y = r + γ^k (1 − terminated) min_c Q′_c(s′, ã)                                  (clipped double Q)
    minimise Σ_c mean w (Q_c(s, a) − y)² / 2
    every `actor_every` updates: maximise mean Q_1(s, μ(s)), and let the copies follow       (delay)

Source: Fujimoto et al. 2018, sections 4.2 (clipped double Q), 5.2 (delay) and 5.3 (smoothing), algorithm 1.
Failure case: the minimum of two makes values too low, and what is rarely tried stays so.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradhat.algorithms.ddpg import climb
from gradhat.algorithms.off_policy import Update, adam, fit, follow, twin
from gradhat.estimators import bootstrap
from gradhat.policies.continuous import Box, ContinuousQ, Deterministic
from gradhat.trajectories import Transitions


@dataclass(frozen=True)
class Settings:
    """The numbers of TD3. Noise is a share of half the width of the box."""

    lr: float = 1e-3
    """Of the critics and the actor."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers."""
    gamma: float = 0.99
    """Discount γ, of the replay."""
    n_step: int = 1
    """Most rewards in one transition, of the replay."""
    tau: float = 0.005
    """How far the lagging networks move when they do."""
    noise: float = 0.1
    """σ of the exploration."""
    target_noise: float = 0.2
    """σ̃ of the smoothing."""
    target_clip: float = 0.5
    """c: the largest noise of the smoothing."""
    actor_every: int = 2
    """Updates of the critics for one of the actor and the lagging networks."""


@dataclass
class State:
    """What an update changes."""

    actor: Deterministic
    critics: ContinuousQ
    """Two critics."""
    actor_target: Deterministic
    critics_target: ContinuousQ
    actor_optimizer: Optimizer
    critics_optimizer: Optimizer
    generator: torch.Generator
    """Draws the noise of the smoothing."""
    num_updates: int = 0


def init(num_inputs: int, low: Tensor, high: Tensor, settings: Settings, generator: torch.Generator) -> State:
    """Return the networks for observations `[B, num_inputs]` and actions between `low` and `high`, `[A]`."""
    hidden = settings.hidden
    box = Box(low, high)
    actor = Deterministic(num_inputs, box, hidden=hidden, generator=generator)
    critics = ContinuousQ(num_inputs, box, num_critics=2, hidden=hidden, generator=generator)
    return State(
        actor,
        critics,
        twin(actor),
        twin(critics),
        adam(actor, lr=settings.lr),
        adam(critics, lr=settings.lr),
        generator,
    )


def update(state: State, batch: Transitions, settings: Settings) -> Update:
    """Take one step of the critics and, when it is due, one of the actor."""
    with torch.no_grad():
        next_actions = smoothed(state, batch.next_observations, settings)
        next_values = state.critics_target(batch.next_observations, next_actions).amin(0)
        y = bootstrap.value(batch.rewards, next_values, batch.terminated, batch.discounts)
    metrics, td_errors = fit(state.critics, state.critics_optimizer, batch, y)
    state.num_updates += 1
    if state.num_updates % settings.actor_every == 0:
        metrics["actor_q"] = climb(state.actor, state.critics, state.actor_optimizer, batch.observations)
        follow(state.critics_target, state.critics, settings.tau)
        follow(state.actor_target, state.actor, settings.tau)
    return Update(metrics, td_errors)


def smoothed(state: State, observations: Tensor, settings: Settings) -> Tensor:
    """Return ã `[B, A]`, an action near that of the lagging actor: a narrow peak of Q′ then counts less."""
    actions, box = state.actor_target(observations), state.actor_target.box
    noise = torch.randn(actions.shape, dtype=actions.dtype, generator=state.generator)
    bounded = (settings.target_noise * noise).clamp(-settings.target_clip, settings.target_clip)
    return box.clip(torch.addcmul(actions, box.scale, bounded))
