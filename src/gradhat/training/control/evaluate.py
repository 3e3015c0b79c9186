"""The return of a measured policy: what a control run is judged by."""

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch

from gradhat.envs.gym import Float32, World
from gradhat.errors import ConfigError
from gradhat.intervals import FEWEST, Seen, range_interval
from gradhat.training.control.agent import Choice

Measured = Literal["sampled", "greedy"]
"""Which policy: the one that draws its actions, or the one that takes the action it holds best."""


class Played(NamedTuple):
    """Episodes of a policy that does not learn meanwhile."""

    returns: list[float]
    """Undiscounted, in the environment's own unit."""
    num_cut: int
    """How many of them were cut, and count as far as they came."""


@torch.no_grad()
def play(world: World, act: Choice, num_episodes: int, seed: int, *, max_steps: int) -> Played:
    """Play `num_episodes` episodes, as many in every environment, cut after `max_steps`.

    The first episodes to finish would be the short ones, so their mean would not be the policy's: they are
    played in rounds, one of every environment to its end. A pure function of the seed, and of that of `act`
    where it draws. The cut is for worlds
    without a time limit, where a bad policy never ends. ConfigError when the episodes cannot be shared out
    equally.
    """
    rounds, rest = divmod(num_episodes, world.num_envs)
    if rest:
        raise ConfigError(
            f"{num_episodes} episodes over {world.num_envs} environments: each plays as many. "
            f"Use a multiple of {world.num_envs}."
        )
    returns, num_cut = list[float](), 0
    for i in range(rounds):
        found, cut = _round(world, act, world.reset(None if i else seed), max_steps)
        returns += found
        num_cut += cut
    return Played(returns, num_cut)


def _round(world: World, act: Choice, observations: Float32, max_steps: int) -> Played:
    """Play one episode of every environment, from its first observation on."""
    returns = np.zeros(world.num_envs)
    plays = np.ones(world.num_envs, dtype=np.bool_)
    for _ in range(max_steps):
        step = world.step(act(torch.from_numpy(observations)).numpy())
        observations = step.observations
        returns += np.where(plays, step.rewards, 0)
        plays &= ~(step.terminated | step.truncated)
        if not plays.any():
            break
    return Played(returns.tolist(), int(plays.sum()))


def summary(played: Played, measured: Measured, seen: Seen) -> dict[str, float]:
    """Return the mean with its 95 % interval, and the share that was cut, as metrics of what was measured.

    `seen` sees the returns. The interval stays within all that it has seen, and from fewer than four episodes
    there is none.
    """
    seen.take(played.returns)
    interval = range_interval(played.returns, *seen.bounds())
    metrics = {"return": interval.mean, "cut": played.num_cut / len(played.returns)}
    if len(played.returns) >= FEWEST:
        metrics |= {"low": interval.low, "high": interval.high}
    return {f"{measured}/{name}": value for name, value in metrics.items()}


def found_in(metrics: Mapping[str, float]) -> Measured | None:
    """Return which policy's return is among `metrics`, or None where there is none."""
    return next((name for name in get_args(Measured) if f"{name}/return" in metrics), None)
