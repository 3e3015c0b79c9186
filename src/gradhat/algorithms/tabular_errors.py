"""How far a table of action values is from the truth, so that convergence is seen and not believed."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from gradhat.exact.mdp import TabularMDP, leads_to, tabular
from gradhat.exact.solve import Optimum, evaluate, expected_return, value_iteration
from gradhat.policies.action_values import epsilon_greedy


class Truth(NamedTuple):
    """A world and its optimum. `truth` finds it once; `errors` asks it at every measurement."""

    world: TabularMDP
    """Without a horizon, and ended where no trajectory comes."""
    optimum: Optimum
    acts: Tensor
    """bool `[S]`: states that can be reached in which the policy acts."""
    horizon: int | None


def truth(mdp: TabularMDP) -> Truth:
    """Return V* and Q* of `mdp` without its horizon, over the states that can be reached from the start.

    A time limit is no part of the problem that a table solves: with one, Q* would depend on the step. Failure
    case: a state that only a longer trajectory comes to is never learned from. ValueError where two such
    states look alike, so that Q* is none of observations; and where γ = 1 and nothing ends without the limit.
    """
    reached = leads_to(mdp.start > 0, (mdp.transition > 0).any(1).T)
    acts = reached & mdp.own & ~mdp.terminal
    numbers, counts = mdp.observation[acts].unique(return_counts=True)
    if bool((counts > 1).any()):
        shown = int(numbers[counts > 1][0])
        alike = (acts & (mdp.observation == shown)).nonzero()[:, 0].tolist()
        raise ValueError(
            f"the error of Q by observation was asked for: found states {alike} that all show {shown}, so Q* "
            "of an observation is not defined. Use a world whose observations tell its states apart."
        )
    world = _within(mdp, reached)
    return Truth(world, value_iteration(world), acts, mdp.horizon)


def errors(truth: Truth, q: Tensor) -> dict[str, float]:
    """Return how far Q, float64 `[O, A]`, is from the truth.

        q_error/max      max |Q − Q*| over the pairs that can be reached
        v_error/max      max |V_π − V*| over these states, of the greedy policy π, ties drawn uniformly
        greedy_return    J(π), over the horizon where the world has one

    nan where π may never end and γ = 1: from one of these states there is no V_π, and from a start no J. An
    error is in the unit of the rewards.
    """
    world, acts = truth.world, truth.acts
    greedy = epsilon_greedy(q, 0.0)[world.observation]
    v = _values(world, greedy)
    if truth.horizon is None:
        visited = leads_to(world.start > 0, _step(world, greedy).T)
        found = world.start @ _values(_within(world, visited), greedy)
    else:
        found = expected_return(replace(world, horizon=truth.horizon), greedy)
    return {
        "q_error/max": float((q[world.observation] - truth.optimum.q)[acts].abs().max()),
        "v_error/max": float((v - truth.optimum.v)[acts].abs().max()),
        "greedy_return": float(found),
    }


def _within(mdp: TabularMDP, reached: Tensor) -> TabularMDP:
    """Return the world that ends outside of `reached` `[S]`, without a horizon."""
    return tabular(
        mdp.transition,
        mdp.reward,
        mdp.start,
        gamma=mdp.gamma,
        terminal=mdp.terminal | ~reached,
        observation=mdp.observation,
        own=mdp.own,
    )


def _values(world: TabularMDP, policy: Tensor) -> Tensor:
    """Return V_π `[S]`; nan everywhere where γ = 1 and π does not end from everywhere."""
    if world.gamma == 1 and not bool(leads_to(world.terminal, _step(world, policy)).all()):
        return torch.full_like(world.start, torch.nan)
    return evaluate(world, policy).v


def _step(world: TabularMDP, policy: Tensor) -> Tensor:
    """Return bool `[S, S]`: one step may lead from s to s′. Rarer ones are lost in `evaluate`."""
    return torch.einsum("sa,sap->sp", policy, world.transition) > torch.finfo(torch.float64).eps
