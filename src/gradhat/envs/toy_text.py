"""FrozenLake, CliffWalking and Taxi as exact worlds, with the states and actions that Gymnasium numbers."""

from collections.abc import Mapping
from typing import Any

import gymnasium
import torch
from torch import Tensor

from gradhat.envs.gym_registry import making, registered
from gradhat.errors import ConfigError
from gradhat.exact.mdp import TabularMDP, leads_to, tabular


def tables(
    env_id: str, kwargs: Mapping[str, Any] | None = None, *, gamma: float = 1.0, limited: bool = False
) -> TabularMDP:
    """Return the tables of an environment that has them: `P[s][a]`, rows (probability, s′, reward,
    terminated), and `initial_state_distrib`.

    `limited`: with the environment's time limit, which cuts its episodes and is no part of J; otherwise
    without one. A state is terminal when coming there ends the episode. ConfigError for an environment
    without tables, without the limit that was asked for, and where coming to a state ends only some episodes.
    """
    made = _made(env_id, kwargs)
    env = made.unwrapped
    if not hasattr(env, "P") or not hasattr(env, "initial_state_distrib"):
        raise ConfigError(
            f"the tables of {env_id}: found no P and initial_state_distrib in it. Use an environment that "
            "has them, such as FrozenLake, CliffWalking or Taxi."
        )
    limit = made.spec.max_episode_steps if limited else None
    if limited and limit is None:
        raise ConfigError(f"the time limit of {env_id}: found none. Use its tables without a limit.")
    start = torch.tensor(env.initial_state_distrib, dtype=torch.float64)
    transition, reward, ending = _read(env.P, len(start))
    terminal = _terminal(transition, ending, start, env_id)
    return tabular(transition, reward, start / start.sum(), gamma=gamma, terminal=terminal, time_limit=limit)


def time_limit(env_id: str, kwargs: Mapping[str, Any] | None = None) -> int | None:
    """Return after how many steps an episode is cut, or None where none is."""
    return _made(env_id, kwargs).spec.max_episode_steps


def _made(env_id: str, kwargs: Mapping[str, Any] | None) -> Any:
    found = registered(env_id)
    with making(env_id, found, kwargs or {}):
        return gymnasium.make(found, disable_env_checker=True, **(kwargs or {}))


def _read(P: Mapping[int, Mapping[int, Any]], num_states: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return P(s′ | s, a), E[r | s, a, s′] and the probability of ending in s′, each `[S, A, S]`."""
    shape = (num_states, len(P[0]), num_states)
    transition, paid, ending = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
    for s, row in P.items():
        for a, outcomes in row.items():
            for probability, after, reward, terminated in outcomes:
                transition[s, a, after] += probability
                paid[s, a, after] += probability * reward
                ending[s, a, after] += probability * bool(terminated)
    reward = torch.where(transition > 0, paid / transition.clamp(min=torch.finfo(paid.dtype).tiny), 0.0)
    # Thirds are written as rounded numbers.
    return transition / transition.sum(-1, keepdim=True), reward, ending


def _terminal(transition: Tensor, ending: Tensor, start: Tensor, env_id: str) -> Tensor:
    """Return the states `[S]` where an episode ends. ConfigError if a visit does not always end there."""
    terminal = (ending > 0).any(0).any(0)
    moves = (transition > 0).any(1) & ~terminal[:, None]
    visited = leads_to(start > 0, moves.T) & ~terminal
    goes_on = (transition > ending + 1e-12).any(1) & visited[:, None]
    wrong = (goes_on.any(0) & terminal).nonzero()[:, 0].tolist()
    if wrong:
        raise ConfigError(
            f"the tables of {env_id}: found that coming to state {wrong[0]} ends some episodes and not "
            "others. Use an environment whose ends are states."
        )
    return terminal
