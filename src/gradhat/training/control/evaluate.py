"""The greedy return: what a control run is judged by."""

from collections.abc import Sequence

import numpy as np
import torch

from gradhat.envs.gym import World
from gradhat.errors import ConfigError
from gradhat.intervals import mean_interval
from gradhat.training.control.agent import Greedy


@torch.no_grad()
def returns(world: World, act: Greedy, num_episodes: int, seed: int) -> list[float]:
    """Return the undiscounted returns of `num_episodes` episodes, as many of every environment.

    The first episodes to finish would be the short ones, so their mean would not be the policy's: each
    environment plays its share to the end, and what it plays beyond is not counted. ConfigError when the
    episodes cannot be shared out equally.
    """
    per_env, rest = divmod(num_episodes, world.num_envs)
    if rest:
        raise ConfigError(
            f"{num_episodes} episodes over {world.num_envs} environments: each plays as many. "
            f"Use a multiple of {world.num_envs}."
        )
    observations = world.reset(seed)
    running = np.zeros(world.num_envs)
    found: list[list[float]] = [[] for _ in range(world.num_envs)]
    while any(len(mine) < per_env for mine in found):
        step = world.step(act(torch.from_numpy(observations)).numpy())
        observations = step.observations
        running += step.rewards * step.live
        for i in ((step.terminated | step.truncated) & step.live).nonzero()[0]:
            found[i].append(float(running[i]))
            running[i] = 0.0
    return [ret for mine in found for ret in mine[:per_env]]


def summary(found: Sequence[float]) -> dict[str, float]:
    """Return the mean with its 95 % interval as metrics."""
    interval = mean_interval(found)
    metrics = {"greedy/return": interval.mean}
    if len(found) > 1:
        metrics |= {"greedy/low": interval.low, "greedy/high": interval.high}
    return metrics
