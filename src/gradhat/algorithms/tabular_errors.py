"""How far a table of action values is from the truth, so that convergence is seen and not believed."""

from typing import NamedTuple

import torch
from torch import Tensor

from gradhat.exact.mdp import TabularMDP, leads_to, reachable, tabular
from gradhat.exact.solve import EPSILON, Optimum, evaluate, expected_return, value_iteration
from gradhat.policies.action_values import epsilon_greedy


class Truth(NamedTuple):
    """A world and its optimum. `truth` finds it once; `errors` asks it at every measurement."""

    world: TabularMDP
    """Without a horizon; its time limit is no part of V* and Q*."""
    optimum: Optimum
    acts: Tensor
    """bool `[S]`: states that can be reached in which the policy acts."""


def truth(mdp: TabularMDP) -> Truth:
    """Return V* and Q* of `mdp`, over the states that can be reached from the start.

    A time limit is no part of the problem that a table solves: what is cut goes on. Failure case: a state
    that only a longer trajectory comes to is never learned from. ValueError where two such states look alike,
    so that Q* is none of observations; with a horizon, where Q* depends on the step; and where γ < 1 in a
    world that moves by itself: here its own steps take time, for a learner they do not.
    """
    reached = reachable(mdp)
    acts = reached & mdp.own & ~mdp.terminal
    numbers, counts = mdp.observation[acts].unique(return_counts=True)
    if bool((counts > 1).any()):
        shown = int(numbers[counts > 1][0])
        alike = (acts & (mdp.observation == shown)).nonzero()[:, 0].tolist()
        raise ValueError(
            f"the error of Q by observation was asked for: found states {alike} that all show {shown}, so Q* "
            "of an observation is not defined. Use a world whose observations tell its states apart."
        )
    if mdp.gamma < 1 and bool((reached & ~mdp.own & ~mdp.terminal).any()):
        raise ValueError(
            f"the error of Q with gamma={mdp.gamma:g} was asked for: found a world that moves by itself. Its "
            "tables discount those steps, and learners see own steps alone. Use gamma=1."
        )
    if mdp.horizon is not None:
        raise ValueError(
            f"the error of Q with horizon={mdp.horizon} was asked for: found that an action is worth another "
            "number at every step. Use mdp.with_time(world), which shows the step."
        )
    return Truth(mdp, value_iteration(mdp), acts)


def errors(truth: Truth, q: Tensor) -> dict[str, float]:
    """Return how far Q, float64 `[O, A]`, is from the truth.

        q_error/max      max |Q − Q*| over the pairs that can be reached
        v_error/max      max |V_π − V*| over these states, of the greedy policy π, ties drawn uniformly
        greedy_return    E Σ_t r_t over an episode, of the policy that takes the first of the best actions

    The errors are those of the world's J, with its γ and without its time limit. The return is what an
    episode pays: undiscounted, within the limit. nan where γ = 1 and π may never end, so that there is no
    V_π; and for the return where there is no limit and an episode may never end. An error is in the unit of
    the rewards.
    """
    world, acts = truth.world, truth.acts
    greedy = epsilon_greedy(q, 0.0)[world.observation]
    v = _values(world, greedy)
    return {
        "q_error/max": float((q[world.observation] - truth.optimum.q)[acts].abs().max()),
        "v_error/max": float((v - truth.optimum.v)[acts].abs().max()),
        "greedy_return": _paid(world, q.argmax(-1)[world.observation]),
    }


def best_return(truth: Truth) -> float:
    """Return what an episode pays the optimal policy: undiscounted, within the time limit.

    The errors of a table go to 0 as its greedy return goes there. nan as for `greedy_return`. Failure case:
    with γ < 1 or a time limit another policy may be paid more.
    """
    return _paid(truth.world, truth.optimum.policy.argmax(-1))


def _paid(world: TabularMDP, actions: Tensor) -> float:
    """Return the undiscounted return, up to the time limit, of the policy that takes `actions` int64 `[S]`.

    nan if it is not sure to end. The world with these actions and no others is a chain: that has a return.
    """
    states = torch.arange(world.num_states)
    P, r = (table[states, actions][:, None] for table in (world.transition, world.reward))
    visited = leads_to(world.start > 0, (P[:, 0] > 0).T)
    if world.time_limit is None and not bool(leads_to(world.terminal, P[:, 0] > EPSILON)[visited].all()):
        return torch.nan
    chain = tabular(P, r, world.start, gamma=1.0, terminal=world.terminal, horizon=world.time_limit)
    return float(expected_return(chain, torch.ones(world.num_states, 1, dtype=torch.float64)))


def _values(world: TabularMDP, policy: Tensor) -> Tensor:
    """Return V_π `[S]`; nan everywhere where γ = 1 and π does not end from wherever one may come."""
    step = torch.einsum("sa,sap->sp", policy, world.transition)
    ends = leads_to(world.terminal, step > EPSILON)
    if world.gamma == 1 and not bool(ends[reachable(world)].all()):
        return torch.full_like(world.start, torch.nan)
    return evaluate(world, policy).v
