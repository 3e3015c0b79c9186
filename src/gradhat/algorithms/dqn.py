"""DQN: fit Q(s, a) to the reward plus the value of the best next action, on old experience.

    y = r + γ^k (1 − terminated) Q′(s′, a*)        minimise mean w · huber(Q(s, a) − y)

Q′ is a copy of Q that lags behind. Improvements are choices of the functions in these lines, made once from
the settings: who picks a* (double), how the network is built (dueling), whether Q is a number or the mean of
a distribution (C51). How many rewards r holds (n-step) and which transitions are drawn (prioritised) is the
replay's business: it hands out r, γ^k and w.

Sources: Mnih et al. 2015; van Hasselt et al. 2016 (double); Wang et al. 2016 (dueling); Schaul et al. 2016
(prioritised); Bellemare et al. 2017 (C51); Hessel et al. 2018 (all of them). Failure case: nothing here is
sure to converge. Bootstrapping on old experience through a network can diverge, and a max over noisy values
is too high. A target network that moves rarely is slow, one that moves often unstable.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from gradhat.algorithms.off_policy import Update, adam, descend, follow, twin
from gradhat.estimators import bootstrap
from gradhat.losses import categorical, value
from gradhat.policies.q_network import Dueling, Mean, Number, Plain, QNetwork
from gradhat.trajectories import Transitions


@dataclass(frozen=True)
class Settings:
    """The numbers of DQN and the choices of its family."""

    lr: float = 1e-3
    """Adam's learning rate at the start."""
    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    gamma: float = 0.99
    """Discount γ, of the replay."""
    double: bool = True
    """Whether Q picks a*, and not Q′: the same noise then does not both pick an action and value it."""
    dueling: bool = False
    """Whether the network splits into a value of the state and advantages of the actions."""
    n_step: int = 1
    """Most rewards in one transition, of the replay."""
    alpha: float | None = None
    """Exponent of the priorities, of the replay. None: a uniform draw."""
    beta: float = 0.4
    """Exponent of the weights that undo the priorities, of the replay."""
    num_atoms: int = 1
    """1: Q is a number. More: the mean of a distribution over so many returns."""
    low: float = -10.0
    """The lowest of them, discounted as the return is."""
    high: float = 10.0
    """The highest."""
    delta: float = 1.0
    """The error at which the Huber loss of a number turns from a square into a line."""
    target_every: int = 250
    """Updates between two moves of the target network."""
    tau: float = 1.0
    """How far it moves: 1 copies."""
    epsilon_start: float = 1.0
    """ε, the share of actions drawn at random, in the first frame."""
    epsilon_end: float = 0.05
    """ε from `epsilon_frames` on."""
    epsilon_frames: int = 10_000
    """Environment steps over which ε falls from the one to the other."""


class Choices(NamedTuple):
    """What the settings choose, as functions. Scores are `[B, A, K]`, those of one action `[B, K]`."""

    best: Callable[["State", Tensor, Tensor], Tensor]
    """(state, next observations, their scores by Q′) → a* `[B]`."""
    target: Callable[[Transitions, Tensor], Tensor]
    """(batch, scores of a* by Q′) → what should have been said of (s, a), `[B, K]`."""
    loss: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """(scores of (s, a), target) → loss and error of each transition, `[B]` both."""


@dataclass
class State:
    """What an update changes, and the choices made for it."""

    online: QNetwork
    target: QNetwork
    optimizer: Optimizer
    choices: Choices
    num_updates: int = 0


def init(num_inputs: int, num_actions: int, settings: Settings, generator: torch.Generator) -> State:
    """Return the networks for observations `[B, num_inputs]` and `num_actions` actions."""
    streams = Dueling if settings.dueling else Plain
    scores = streams(num_inputs, (num_actions, settings.num_atoms), settings.hidden, generator)
    distributional = settings.num_atoms > 1
    read = Mean(settings.low, settings.high, settings.num_atoms) if distributional else Number()
    online = QNetwork(scores, read)
    return State(online, twin(online), adam(online, lr=settings.lr), _choices(settings))


def update(state: State, batch: Transitions, settings: Settings) -> Update:
    """Take one step on a batch. `td_errors` are y − Q, and the divergence in nats for a distribution."""
    best, target, loss = state.choices
    with torch.no_grad():
        following = state.target(batch.next_observations)
        y = target(batch, _of(following, best(state, batch.next_observations, following)))
    scores = _of(state.online(batch.observations), batch.actions)
    losses, errors = loss(scores, y)
    mean = (batch.weights * losses).mean()
    descend(state.optimizer, mean)
    state.num_updates += 1
    if state.num_updates % settings.target_every == 0:
        follow(state.target, state.online, settings.tau)
    with torch.no_grad():
        q = state.online.read(scores)
        metrics = {"diagnostics/value_loss": mean.detach(), "q": q.mean(), "td_error": errors.abs().mean()}
    return Update(metrics, errors)


def epsilon(num_frames: int, settings: Settings) -> float:
    """Return the ε of exploration after `num_frames` environment steps: a line, then its end."""
    share = min(1.0, num_frames / settings.epsilon_frames)
    return settings.epsilon_start + share * (settings.epsilon_end - settings.epsilon_start)


def _choices(settings: Settings) -> Choices:
    best = _best_of_online if settings.double else _best_of_target
    if settings.num_atoms == 1:
        return Choices(best, _number, partial(_huber, delta=settings.delta))
    return Choices(best, partial(_distribution, low=settings.low, high=settings.high), _divergence)


def _best_of_online(state: State, observations: Tensor, _scores: Tensor) -> Tensor:
    """a* = argmax_a Q(s′, a). Source: van Hasselt et al. 2016, eq. 4."""
    return state.online.q(observations).argmax(-1)


def _best_of_target(state: State, _observations: Tensor, scores: Tensor) -> Tensor:
    """a* = argmax_a Q′(s′, a), so that y holds max_a Q′(s′, a)."""
    return state.target.read(scores).argmax(-1)


def _number(batch: Transitions, scores: Tensor) -> Tensor:
    return bootstrap.value(batch.rewards, scores[:, 0], batch.terminated, batch.discounts)[:, None]


def _distribution(batch: Transitions, scores: Tensor, *, low: float, high: float) -> Tensor:
    probs = scores.softmax(-1)
    return bootstrap.distribution(batch.rewards, probs, batch.terminated, batch.discounts, low=low, high=high)


def _huber(scores: Tensor, target: Tensor, *, delta: float) -> tuple[Tensor, Tensor]:
    return value.huber(scores, target, delta=delta)[:, 0], (target - scores.detach())[:, 0]


def _divergence(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    loss = categorical.divergence(scores.log_softmax(-1), target)
    return loss, loss.detach()


def _of(scores: Tensor, actions: Tensor) -> Tensor:
    """Return the scores `[B, K]` of one action in each row of `[B, A, K]`."""
    index = actions[:, None, None].expand(-1, -1, scores.shape[-1])
    return scores.gather(1, index)[:, 0]
