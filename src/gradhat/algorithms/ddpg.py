"""DDPG: a critic fitted as in DQN, and an actor that climbs it, for actions in a box.

    y = r + γ^k (1 − terminated) Q′(s′, μ′(s′))        minimise mean w (Q(s, a) − y)² / 2
    maximise mean Q(s, μ(s)) over the actor's parameters

The actor stands in for the max over actions. Q′ and μ′ are copies that lag behind. Exploration is Gaussian
noise on μ(s); the paper's noise is correlated in time.

Sources: Lillicrap et al. 2016, algorithm 1; the actor's gradient is that of Silver et al. 2014. Failure case:
the actor finds where Q is too high by mistake; TD3 and SAC are two answers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradhat.algorithms.off_policy import Update, adam, descend, fit, follow, twin
from gradhat.estimators import bootstrap
from gradhat.policies.continuous import Box, ContinuousQ, Deterministic
from gradhat.trajectories import Transitions


@dataclass(frozen=True)
class Settings:
    """The numbers of DDPG."""

    lr: float = 1e-3
    """Of the critic and the actor."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers."""
    gamma: float = 0.99
    """Discount γ, of the replay."""
    n_step: int = 1
    """Most rewards in one transition, of the replay."""
    tau: float = 0.005
    """How far the lagging networks move in each update."""
    noise: float = 0.1
    """σ of the exploration, as a share of half the width of the box."""


@dataclass
class State:
    """What an update changes."""

    actor: Deterministic
    critics: ContinuousQ
    """One critic."""
    actor_target: Deterministic
    critics_target: ContinuousQ
    actor_optimizer: Optimizer
    critics_optimizer: Optimizer
    num_updates: int = 0


def init(num_inputs: int, low: Tensor, high: Tensor, settings: Settings, generator: torch.Generator) -> State:
    """Return the networks for observations `[B, num_inputs]` and actions between `low` and `high`, `[A]`."""
    hidden = settings.hidden
    box = Box(low, high)
    actor = Deterministic(num_inputs, box, hidden=hidden, generator=generator)
    critics = ContinuousQ(num_inputs, box, num_critics=1, hidden=hidden, generator=generator)
    return State(
        actor,
        critics,
        twin(actor),
        twin(critics),
        adam(actor, lr=settings.lr),
        adam(critics, lr=settings.lr),
    )


def update(state: State, batch: Transitions, settings: Settings) -> Update:
    """Take one step of the critic, then one of the actor."""
    with torch.no_grad():
        next_actions = state.actor_target(batch.next_observations)
        next_values = state.critics_target.first(batch.next_observations, next_actions)
        y = bootstrap.value(batch.rewards, next_values, batch.terminated, batch.discounts)
    fitted = fit(state.critics, state.critics_optimizer, batch, y)
    climbed = climb(state.actor, state.critics, state.actor_optimizer, batch.observations)
    follow(state.critics_target, state.critics, settings.tau)
    follow(state.actor_target, state.actor, settings.tau)
    state.num_updates += 1
    return Update(fitted.metrics | {"actor_q": climbed}, fitted.td_errors)


def climb(actor: Deterministic, critics: ContinuousQ, optimizer: Optimizer, observations: Tensor) -> Tensor:
    """Take one step up mean Q_1(s, μ(s)), which is returned: ∇_θ μ(s) ∇_a Q_1(s, a) at a = μ(s)."""
    q = critics.first(observations, actor(observations)).mean()
    descend(optimizer, -q)
    return q.detach()
