"""Control with a table: Monte Carlo, SARSA, expected SARSA and Q-learning are choices of two functions.

    Q(s, a) ← Q(s, a) + α_k (G − Q(s, a))        α_k = α / k^ω at the k-th visit of (s, a)

    monte_carlo      G = r_t + γ r_{t+1} + … to the end       Sutton & Barto 2018, section 5.4, every visit
    sarsa            G = r + γ Q(s′, a′)                      eq. 6.7; Rummery & Niranjan 1994
    expected_sarsa   G = r + γ Σ_a π(a | s′) Q(s′, a)         eq. 6.9; van Seijen et al. 2009
    q_learning       G = r + γ max_a Q(s′, a)                 eq. 6.8; Watkins 1989

`terminated` zeroes what follows. A truncated step goes on to its true successor, where no action was taken:
SARSA and Monte Carlo take Σ_a π(a | s′) Q(s′, a) there. So a time limit is no part of the problem, and Q* is
that of the world without one.

A step whose target is not known yet waits in the state: for SARSA the last one of a chunk, until its next
action is there; for Monte Carlo all of an episode, until it ends. Nothing is dropped: to learn only from
episodes that end inside a chunk favours short ones. Assumes that the observation is the state: where states
look alike there is no Q* of observations. Failure case: Monte Carlo where no episode ends waits for ever, and
its memory grows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from gradhat.algorithms.numbered_steps import Steps, steps_of
from gradhat.estimators import returns
from gradhat.policies.action_values import EpsilonGreedyTable, epsilon_greedy
from gradhat.trajectories import Trajectories


@dataclass(frozen=True)
class Settings:
    """Step size min(1, α / k^ω), and ε on a straight line from `epsilon_start` to `epsilon_end`.

    ½ < ω ≤ 1 are the conditions of Robbins & Monro 1951; ω = 0 is a constant step size, and α = 1 with it
    keeps the last sample alone, which is exact in a deterministic world. With ω = 1 and α = 1, the plain
    average, Q-learning can need a time exponential in 1 / (1 − γ), with ω < 1 a polynomial one (Even-Dar &
    Mansour 2003); so does ω = 1 with α about 1 / (1 − γ) (Wainwright 2019), and it ends with less noise.
    """

    gamma: float
    """Discount γ, that of the world."""
    alpha: float = 1.0
    """α of the step size at visit k."""
    omega: float = 0.8
    """ω, how fast the step size falls; 0 keeps it."""
    epsilon_start: float = 1.0
    """ε, the share of actions drawn at random, in the first step."""
    epsilon_end: float = 0.1
    """ε from `epsilon_frames` on."""
    epsilon_frames: int = 10_000
    """Own steps from the one to the other."""


@dataclass
class State:
    """What is learned: float64 and int64 `[O, A]`."""

    q: Tensor
    visits: Tensor
    """k: how often each pair was learned from."""
    num_frames: int = 0
    """Own steps so far."""
    pending: Steps | None = None
    """Those that wait for their target."""


class Backup(NamedTuple):
    """G = rewards + discounts · value(next_observations, next_actions). All `[B, T]`."""

    rewards: Tensor
    discounts: Tensor
    next_actions: Tensor
    """−1 where none was taken in the successor."""
    ready: Tensor
    """Own steps whose target is known."""


@dataclass(frozen=True)
class Rule:
    """One algorithm: two choices."""

    span: Callable[[Steps, Tensor, float, float], Backup]
    """(steps, Q, ε, γ) → what a target adds up before it asks what the successor is worth."""
    value: Callable[[Tensor, float, Tensor, Tensor], Tensor]
    """(Q, ε, successors s′ `[B]`, actions there `[B]`) → what they are worth, `[B]`."""


def init(num_observations: int, num_actions: int, *, initial: float = 0.0) -> State:
    """Return a fresh table. With `initial` above the true values everything is tried sooner or later."""
    shape = (num_observations, num_actions)
    return State(torch.full(shape, initial, dtype=torch.float64), torch.zeros(shape, dtype=torch.long))


def epsilon(settings: Settings, num_frames: int) -> float:
    """Return ε after `num_frames` own steps."""
    share = min(1.0, num_frames / max(1, settings.epsilon_frames))
    return (1 - share) * settings.epsilon_start + share * settings.epsilon_end


def actor(state: State, settings: Settings) -> EpsilonGreedyTable:
    """Return the policy π that collects the next chunk."""
    return EpsilonGreedyTable(state.q, epsilon(settings, state.num_frames))


def update(state: State, trajectories: Trajectories, rule: Rule, settings: Settings) -> dict[str, float]:
    """Learn from a chunk that `actor` collected, and from what waited for it; return metrics.

    Vector steps count one after the other, t = 0 … T − 1; with one lane this is the textbook's algorithm. n
    lanes at one pair in one vector step are n visits: their errors add up, α_k Σ (G − Q), but move Q no
    further than to the mean of their targets. Row i goes on where row i of the chunk before stopped, if
    something waits there. `td_error` is the mean of |G − Q| before each move; it is left out where nothing
    was learned.
    """
    at = epsilon(settings, state.num_frames)
    steps = steps_of(trajectories, *state.q.shape).after(state.pending)
    backup = rule.span(steps, state.q, at, settings.gamma)
    error, count = _learn(state, steps, backup, rule, at, settings), int(backup.ready.sum())
    state.pending = steps.waiting(backup.ready)
    state.num_frames += int(trajectories.mask.sum())
    return {"epsilon": at} | ({"td_error": error / count} if count else {})


def _learn(
    state: State, steps: Steps, backup: Backup, rule: Rule, epsilon: float, settings: Settings
) -> float:
    """Move the table, one vector step after the other; return Σ |G − Q|."""
    q, visits = state.q.view(-1), state.visits.view(-1)
    pairs = steps.observations * state.q.shape[1] + steps.actions
    columns = zip(
        *(x.T.contiguous() for x in (pairs, steps.next_observations, backup.next_actions)),
        *(x.T.contiguous() for x in (backup.rewards, backup.discounts, backup.ready.double())),
        strict=True,
    )
    moved = 0.0
    for pair, successors, actions, rewards, discounts, ready in columns:
        targets = rewards + discounts * rule.value(state.q, epsilon, successors, actions)
        errors = ready * (targets - q[pair])
        lanes = torch.bincount(pair, ready, len(q))
        at = lanes.nonzero()[:, 0]
        visits[at] += lanes[at].long()
        size = (lanes[at] * settings.alpha / visits[at].double() ** settings.omega).clamp(max=1)
        q[at] += size * torch.bincount(pair, errors, len(q))[at] / lanes[at]
        moved += float(errors.abs().sum())
    return moved


def _one_step(steps: Steps, q: Tensor, epsilon: float, gamma: float) -> Backup:
    del q, epsilon
    nowhere = torch.full_like(steps.actions, -1)
    return Backup(steps.rewards, gamma * (~steps.terminated).double(), nowhere, steps.mask)


def _next_action(steps: Steps, q: Tensor, epsilon: float, gamma: float) -> Backup:
    num_steps = steps.mask.shape[1]
    place = torch.where(steps.mask, torch.arange(num_steps), num_steps)
    following = pad(place.flip(1).cummin(1).values.flip(1), (0, 1), value=num_steps)[:, 1:]
    acts = (following < num_steps) & ~steps.ended
    taken = steps.actions.gather(1, following.clamp(max=num_steps - 1))
    ready = steps.mask & (acts | steps.ended)
    backup = _one_step(steps, q, epsilon, gamma)
    return backup._replace(next_actions=torch.where(acts, taken, -1), ready=ready)


def _to_the_end(steps: Steps, q: Tensor, epsilon: float, gamma: float) -> Backup:
    backup = _one_step(steps, q, epsilon, gamma)
    cut = _expected(q, epsilon, steps.next_observations, backup.next_actions)
    flags = (steps.terminated, steps.ended, steps.mask)
    to_go = returns.lambda_returns(steps.rewards, cut, *flags, gamma=gamma, lam=1.0)
    ready = steps.mask & (steps.ended.flip(1).cumsum(1).flip(1) > 0)
    return backup._replace(rewards=to_go, discounts=torch.zeros_like(to_go), ready=ready)


def _best(q: Tensor, epsilon: float, successors: Tensor, actions: Tensor) -> Tensor:
    del epsilon, actions
    return q.amax(-1)[successors]


def _expected(q: Tensor, epsilon: float, successors: Tensor, actions: Tensor) -> Tensor:
    del actions
    return (epsilon_greedy(q, epsilon) * q).sum(-1)[successors]


def _taken(q: Tensor, epsilon: float, successors: Tensor, actions: Tensor) -> Tensor:
    known = q[successors, actions.clamp(min=0)]
    return torch.where(actions >= 0, known, _expected(q, epsilon, successors, actions))


CONTROL = {
    "monte_carlo": Rule(_to_the_end, _expected),
    "sarsa": Rule(_next_action, _taken),
    "expected_sarsa": Rule(_one_step, _expected),
    "q_learning": Rule(_one_step, _best),
}
