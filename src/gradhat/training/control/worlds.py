"""From the settings of a run to its worlds: Gymnasium's, or the zoo's."""

from dataclasses import replace
from typing import Any

from gradhat.envs import gym
from gradhat.envs.gym import World
from gradhat.envs.gym_registry import sources_of
from gradhat.envs.gym_vector import GymSpec
from gradhat.envs.tabular import TabularVectorEnv
from gradhat.envs.toy_text import tables, time_limit
from gradhat.errors import ConfigError
from gradhat.exact.mdp import TabularMDP, with_time
from gradhat.exact.zoo import ZOO
from gradhat.training.control.config import ControlConfig, env_kwargs

ZOO_PREFIX = "zoo:"


def make(config: ControlConfig[Any], num_envs: int) -> World:
    """Return `num_envs` of the environments that the config names."""
    if config.env.startswith(ZOO_PREFIX):
        return World(TabularVectorEnv(_of_zoo(config), num_envs), config.env)
    return gym.make(
        GymSpec(
            env=config.env,
            num_envs=num_envs,
            vectorization=config.vectorization,
            kwargs=env_kwargs(config),
        )
    )


def sources(config: ControlConfig[Any]) -> dict[str, str]:
    """Return versions and hashes of what the environment is made of beside gradhat and Gymnasium."""
    return {} if config.env.startswith(ZOO_PREFIX) else sources_of(config.env)


def exact(config: ControlConfig[Any], gamma: float) -> TabularMDP:
    """Return the tables of the world, with the discount of the algorithm.

    ConfigError without tables.
    """
    if config.env.startswith(ZOO_PREFIX):
        return replace(_of_zoo(config), gamma=gamma)
    kwargs = env_kwargs(config)
    limited = time_limit(config.env, kwargs) is not None
    return tables(config.env, kwargs, gamma=gamma, limited=limited)


def has_tables(config: ControlConfig[Any]) -> bool:
    """Whether the world can be learned by an algorithm with a table."""
    try:
        exact(config, gamma=0.0)
    except ConfigError:
        return False
    return True


def _of_zoo(config: ControlConfig[Any]) -> TabularMDP:
    name = config.env.removeprefix(ZOO_PREFIX)
    if name not in ZOO:
        raise ConfigError(f"--env {config.env}: found no such world in the zoo. Known: {', '.join(ZOO)}.")
    if config.env_args:
        raise ConfigError(
            f"--env {config.env} --env-args {' '.join(config.env_args)}: found a world of the zoo, which "
            "takes no arguments. Drop --env-args."
        )
    if config.vectorization in ("sync", "async"):
        raise ConfigError(
            f"--env {config.env} --vectorization {config.vectorization}: found a world of the zoo, whose "
            "copies are always stepped as one array. Drop --vectorization."
        )
    mdp = ZOO[name]()
    # Where a horizon ends the problem, a state is none without the step. What is hidden stays hidden.
    return with_time(mdp) if mdp.fully_observed else mdp
