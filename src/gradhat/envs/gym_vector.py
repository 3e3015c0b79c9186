"""Which Gymnasium environments, how many, and how they are stepped: a vector of them, made as asked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import gymnasium
from gymnasium.envs.registration import EnvSpec
from gymnasium.spaces import Box, Discrete, Space
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import FlattenObservation, TransformObservation

from gradhat.envs.gym_recorder import Recorder
from gradhat.envs.gym_registry import making, registered
from gradhat.envs.gym_spaces import actions_of, flat_size, is_flat, one_hot
from gradhat.envs.gym_state import Unsavable, captured
from gradhat.errors import ConfigError


@dataclass(frozen=True)
class GymSpec:
    """Which environment, how many of it, and how they are stepped."""

    env: str
    """Gymnasium's id, such as CartPole-v1; or module:Env-v0, which imports the module first."""
    num_envs: int = 1
    vectorization: Literal["auto", "native", "sync", "async"] = "auto"
    """native: the environment's own vector version. sync: one after the other, in this process. async: a
    process for each. auto: native where the environment has one whose state can be saved, otherwise sync."""
    kwargs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Arguments of gymnasium.make, such as {"continuous": True}."""
    autoreset: Literal["auto", "next_step", "same_step", "disabled"] = "auto"
    """Gymnasium's mode. auto: that of a native version; otherwise disabled, where the world itself begins
    the next episode and no step is lost. Any other: not native, unless that is asked for."""


def vector_of(spec: GymSpec) -> VectorEnv[Any, Any, Any]:
    """Return the environments of `spec`. Those that are stepped one by one are flat and recorded.

    ConfigError for an unknown id, a missing package, arguments that the environment does not take, and a way
    of stepping that it does not have. TaskError where it raises.
    """
    if spec.num_envs < 1:
        raise ConfigError(f"num_envs={spec.num_envs}: found no environment to step. Use 1 or more.")
    found = registered(spec.env)
    with making(spec.env, found, spec.kwargs):
        if not _native(spec, found):
            return _one_by_one(spec, found)
        vector = gymnasium.make_vec(found, spec.num_envs, "vector_entry_point", **spec.kwargs)
        try:
            captured(vector)
        except Unsavable as error:
            vector.close()
            if spec.vectorization == "auto":
                return _one_by_one(spec, found)
            raise ConfigError(
                f"vectorization='native' of {spec.env}: found an attribute whose state cannot be written "
                f"down: {error}. A run there could not go on from a checkpoint. Use 'sync' or 'async'."
            ) from error
    mode = vector.metadata.get("autoreset_mode")
    if spec.autoreset != "auto" and mode is not AutoresetMode[spec.autoreset.upper()]:
        raise ConfigError(
            f"autoreset={spec.autoreset!r} of {spec.env}: found {mode} in its native version. "
            "Use autoreset='auto', or vectorization='sync'."
        )
    return vector


def _native(spec: GymSpec, found: EnvSpec) -> bool:
    has_one = found.vector_entry_point is not None and not found.additional_wrappers
    if spec.vectorization == "native" and not has_one:
        raise ConfigError(
            f"vectorization='native' of {spec.env}: found no vector version of it. Use 'sync' or 'async'."
        )
    return spec.vectorization == "native" or (
        spec.vectorization == "auto" and has_one and spec.autoreset == "auto"
    )


def _one_by_one(spec: GymSpec, found: EnvSpec) -> VectorEnv[Any, Any, Any]:
    makers = [partial(_single, found, spec.env, dict(spec.kwargs), i) for i in range(spec.num_envs)]
    mode = AutoresetMode["DISABLED" if spec.autoreset == "auto" else spec.autoreset.upper()]
    if spec.vectorization != "async":
        return SyncVectorEnv(makers, copy=False, autoreset_mode=mode)
    vector = AsyncVectorEnv(makers, copy=False, autoreset_mode=mode)
    vector.call("ignore_interrupts")
    return vector


def _single(found: EnvSpec, name: str, kwargs: dict[str, Any], index: int) -> Recorder:
    env: gymnasium.Env[Any, Any] = gymnasium.make(found, disable_env_checker=True, **kwargs)
    # Before any worker process is started.
    flat_size(env.observation_space, name)
    actions_of(env.action_space, name)
    return Recorder(_flat(env), name, index)


def _flat(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    """Return the same environment, whose observations are flat."""
    space: Space[Any] = env.observation_space
    if is_flat(space):
        return env
    if isinstance(space, Discrete):
        # Gymnasium's own takes a number below the first one for one from the end.
        return TransformObservation(env, one_hot(space), Box(0, 1, (int(space.n),)))
    return FlattenObservation(env)
