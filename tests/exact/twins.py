"""Naive twins of the enumeration: plain Python, one trajectory and one step at a time."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor
from worlds import worlds

from gradhat.exact.enumerate import Batch, Paths
from gradhat.exact.mdp import TabularMDP


class Step(NamedTuple):
    state: int
    observation: int
    action: int
    reward: float
    own: bool
    terminated: bool
    truncated: bool


class Path(NamedTuple):
    start: int
    world: float
    """Probability of the start and of every transition."""
    steps: tuple[Step, ...]
    final: int
    """The state after the last step."""


@st.composite
def lively_worlds(draw: st.DrawFn, *, max_horizon: int = 3) -> TabularMDP:
    """A random world, some with a state where the world moves by itself, with a horizon, a time limit or
    both."""
    mdp = draw(worlds(horizons=st.integers(1, max_horizon)))
    if draw(st.booleans()):
        mdp = replace(mdp, time_limit=draw(st.integers(1, max_horizon)))
    if mdp.time_limit is not None and mdp.gamma < 1 and draw(st.booleans()):
        mdp = replace(mdp, horizon=None)
    if draw(st.booleans()) and not bool(mdp.terminal[0]):
        own, transition, reward = mdp.own.clone(), mdp.transition.clone(), mdp.reward.clone()
        own[0] = False
        transition[0], reward[0] = transition[0, 0].clone(), reward[0, 0].clone()
        mdp = replace(mdp, own=own, transition=transition, reward=reward)
    return mdp


def all_paths(mdp: TabularMDP) -> list[Path]:
    """Every trajectory, by recursion over what may come next."""

    def onward(start: int, world: float, state: int, steps: tuple[Step, ...]) -> Iterator[Path]:
        if bool(mdp.terminal[state]) or len(steps) in (mdp.horizon, mdp.time_limit):
            yield Path(start, world, steps, state)
            return
        own = bool(mdp.own[state])
        for action in range(mdp.num_actions) if own else [0]:
            for following in range(mdp.num_states):
                chance = float(mdp.transition[state, action, following])
                if chance > 0:
                    ends = bool(mdp.terminal[following]) or len(steps) + 1 == mdp.horizon
                    step = Step(
                        state,
                        int(mdp.observation[state]) if own else 0,
                        action,
                        float(mdp.reward[state, action, following]),
                        own,
                        ends,
                        not ends and len(steps) + 1 == mdp.time_limit,
                    )
                    yield from onward(start, world * chance, following, (*steps, step))

    starts = [s for s in range(mdp.num_states) if float(mdp.start[s]) > 0]
    return [path for s in starts for path in onward(s, float(mdp.start[s]), s, ())]


def read(paths: Paths) -> list[Path]:
    """The rows of `paths` as plain trajectories. Fails where anything but 0 follows the end."""
    found: list[Path] = []
    for i in range(len(paths)):
        columns = [
            column[i].tolist()
            for column in (
                paths.states,
                paths.observations,
                paths.actions,
                paths.rewards,
                paths.mask,
                paths.terminated,
                paths.truncated,
            )
        ]
        steps = [Step(*step) for step in zip(*columns, strict=True)]
        length = next((t + 1 for t, step in enumerate(steps) if step.terminated or step.truncated), 0)
        assert all(not any(step[0 if t else 1 :]) for t, step in enumerate(steps) if t >= length)
        start, final = int(paths.states[i, 0]), int(paths.final[i])
        found.append(Path(start, float(paths.world[i]), tuple(steps[:length]), final))
    return found


def policy_chance(path: Path, theta: Tensor) -> float:
    """The probability of the path's actions under the logits θ."""
    chance = 1.0
    for step in path.steps:
        if step.own:
            row = [math.exp(x) for x in theta[step.observation].tolist()]
            chance *= row[step.action] / sum(row)
    return chance


def discounted(path: Path, gamma: float) -> float:
    return sum(gamma**t * step.reward for t, step in enumerate(path.steps))


def score(path: Path, theta: Tensor, weights: list[float]) -> Tensor:
    """Σ_t w_t ∇ log π(a_t | o_t), flat, by automatic differentiation one step at a time."""
    leaf = theta.detach().clone().requires_grad_()
    total = (leaf * 0).sum()
    for step, weight in zip(path.steps, weights, strict=True):
        if step.own:
            total = total + weight * (
                leaf[step.observation, step.action] - leaf[step.observation].logsumexp(0)
            )
    (gradient,) = torch.autograd.grad(total, leaf)
    return gradient.flatten()


def true_gradient(found: list[Path], theta: Tensor, gamma: float) -> Tensor:
    """∇ Σ_τ p(τ) R(τ), flat, by automatic differentiation of the sum."""
    leaf = theta.detach().clone().requires_grad_()
    total = (leaf * 0).sum()
    for path in found:
        chance = torch.tensor(path.world, dtype=torch.float64)
        for step in path.steps:
            if step.own:
                chance = chance * leaf[step.observation].softmax(0)[step.action]
        total = total + chance * discounted(path, gamma)
    (gradient,) = torch.autograd.grad(total, leaf)
    return gradient.flatten()


PlainWeights = Callable[[list[Path]], list[list[float]]]
"""The weight of every step of every trajectory of one batch of a single group."""


def by_brute_force(
    found: list[Path], theta: Tensor, group_size: int, weights: PlainWeights
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of Σ_i Σ_t w_it ∇ log π over every ordered group that shares a start."""
    chances = [path.world * policy_chance(path, theta) for path in found]
    of_start: dict[int, float] = {}
    for path, chance in zip(found, chances, strict=True):
        of_start[path.start] = of_start.get(path.start, 0.0) + chance
    mean, second = torch.zeros(theta.numel(), dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    for start, of_pool in of_start.items():
        pool = [(path, chance) for path, chance in zip(found, chances, strict=True) if path.start == start]
        for members in itertools.product(pool, repeat=group_size):
            chance = of_pool
            for _, of_member in members:
                chance *= of_member / of_pool
            group = [path for path, _ in members]
            gradient = torch.zeros_like(mean)
            for path, w in zip(group, weights(group), strict=True):
                gradient = gradient + score(path, theta, w)
            mean = mean + chance * gradient
            second = second + chance * torch.outer(gradient, gradient)
    return mean, second - torch.outer(mean, mean)


def plainly(weights: PlainWeights) -> Callable[[Batch], Tensor]:
    """The weights of a batch of single groups `[B, T]`, from the same plain function."""

    def of_batch(batch: Batch) -> Tensor:
        answer = torch.zeros_like(batch.rewards)
        rows = read(batch.paths)
        for draw in range(batch.num_draws):
            here = (batch.draw == draw).nonzero()[:, 0].tolist()
            for i, w in zip(here, weights([rows[i] for i in here]), strict=True):
                answer[i, : len(w)] = torch.tensor(w, dtype=torch.float64)
        return answer

    return of_batch
