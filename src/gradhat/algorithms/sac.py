"""SAC: TD3's critics under a random actor, that is paid for staying random.

    a′ ~ π(· | s′)        y = r̂ + γ^k (1 − terminated) [min_c Q′_c(s′, a′) − α log π(a′ | s′)]
    r̂ = Σ_{i<k} γ^i r_i − α Σ_{0<i<k} γ^i log π(a_i | s_i)
    minimise Σ_c mean w (Q_c(s, a) − y)² / 2
    maximise mean [min_c Q_c(s, a_θ) − α log π(a_θ | s)]        a_θ = f(s, ε; θ), reparametrised
    minimise −log α · mean [log π(a_θ | s) + H]                 so that the entropy of π comes to H

Here log π is measured with actions in (−1, 1): the same policy is as random whatever the unit of its actions.
What a transition of k steps pays for its later steps is −α times the log-probability with which each was
sampled; the first action is Q's own, and owes nothing.

Sources: Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications", section 5 for the temperature
α (log α in place of α is their code's), appendix C for the bounds; Fujimoto et al. 2018 for the min of two.
Failure cases: what is maximised is not the return, and where actions must be exact H forbids it: lower it.
With k > 1 rewards and log-probabilities in between are those of older policies.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradhat.algorithms.off_policy import Update, adam, descend, fit, follow, twin
from gradhat.estimators import bootstrap
from gradhat.policies.continuous import Box, ContinuousQ, SquashedGaussian
from gradhat.trajectories import Transitions


@dataclass(frozen=True)
class Settings:
    """The numbers of SAC."""

    lr: float = 3e-4
    """Of the critics, the actor and the temperature."""
    hidden: tuple[int, ...] = (256, 256)
    """Widths of the hidden layers."""
    gamma: float = 0.99
    """Discount γ, of the replay."""
    n_step: int = 1
    """Most rewards in one transition, of the replay."""
    tau: float = 0.005
    """How far the lagging critics move in each update."""
    temperature: float = 1.0
    """α at the start."""
    entropy_per_component: float = -1.0
    """H, the entropy to come to, divided by the number of components of an action; log 2 is the most."""


@dataclass
class State:
    """What an update changes."""

    actor: SquashedGaussian
    critics: ContinuousQ
    """Two critics."""
    critics_target: ContinuousQ
    log_temperature: nn.Parameter
    actor_optimizer: Optimizer
    """Of the actor and the temperature."""
    critics_optimizer: Optimizer
    generator: torch.Generator
    """Draws the actions in an update."""
    num_updates: int = 0


def init(num_inputs: int, low: Tensor, high: Tensor, settings: Settings, generator: torch.Generator) -> State:
    """Return the networks for observations `[B, num_inputs]` and actions between `low` and `high`, `[A]`."""
    hidden = settings.hidden
    box = Box(low, high)
    actor = SquashedGaussian(num_inputs, box, hidden=hidden, generator=generator)
    critics = ContinuousQ(num_inputs, box, num_critics=2, hidden=hidden, generator=generator)
    log_temperature = nn.Parameter(torch.tensor(math.log(settings.temperature)))
    return State(
        actor,
        critics,
        twin(critics),
        log_temperature,
        adam(actor, log_temperature, lr=settings.lr),
        adam(critics, lr=settings.lr),
        generator,
    )


def update(state: State, batch: Transitions, settings: Settings) -> Update:
    """Take one step of the critics, then one of the actor and the temperature."""
    temperature = state.log_temperature.detach().exp()
    with torch.no_grad():
        next_actions, next_logp = sample(state, batch.next_observations)
        next_q = state.critics_target(batch.next_observations, next_actions).amin(0)
        next_values = next_q - temperature * next_logp
        rewards = batch.rewards - temperature * later_logp(state, batch)
        y = bootstrap.value(rewards, next_values, batch.terminated, batch.discounts)
    fitted = fit(state.critics, state.critics_optimizer, batch, y)

    actions, logp = sample(state, batch.observations)
    q = state.critics(batch.observations, actions).amin(0).mean()
    entropy = -logp.mean()
    excess = entropy.detach() - settings.entropy_per_component * actions.shape[-1]
    descend(state.actor_optimizer, -(q + temperature * entropy) + state.log_temperature * excess)
    follow(state.critics_target, state.critics, settings.tau)
    state.num_updates += 1
    actor = {"actor_q": q.detach(), "entropy": entropy.detach(), "temperature": temperature}
    return Update(fitted.metrics | actor, fitted.td_errors)


def later_logp(state: State, batch: Transitions) -> Tensor:
    """Return Σ_{0<i<k} γ^i log π(a_i | s_i), `[B]`, of actions in (−1, 1): the memory's are in the box."""
    return batch.later_logp + batch.later * state.actor.box.scale.log().sum()


def sample(state: State, observations: Tensor) -> tuple[Tensor, Tensor]:
    """Draw actions `[B, A]` and log π of the same actions in (−1, 1), `[B]`, both with gradient."""
    actions, logp = state.actor.sample(observations, state.generator)
    return actions, logp + state.actor.box.scale.log().sum()
