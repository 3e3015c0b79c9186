"""What environments can do wrong in the middle of a run, said in words."""

import sys
from collections.abc import Mapping, Sequence
from multiprocessing import connection
from typing import Any

import numpy as np
from gymnasium.error import DependencyNotInstalled
from gymnasium.vector import AsyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from gradhat.envs.gym_recorder import TROUBLE
from gradhat.errors import ConfigError, GradhatError, TaskError
from gradhat.verdicts import LIMIT, MAX_REWARD

PATIENCE = 5.0
"""Seconds to wait for the operating system to say which worker process has died."""


def check_finite(numbers: NDArray[Any], what: str, name: str, asked: str) -> None:
    """Raise TaskError, naming the first wrong environment, unless all numbers `[N, ...]` are finite."""
    if np.isfinite(numbers).all():
        return
    rows = np.asarray(numbers).reshape(len(numbers), -1)
    wrong = int(np.flatnonzero(~np.isfinite(rows).all(-1))[0])
    raise TaskError(
        f"{name}, environment {wrong}, {asked}: found the {what} {rows[wrong].tolist()}, which is not "
        "finite in float32. Repair the environment."
    )


def check_rewards(rewards: NDArray[Any], name: str, asked: str) -> None:
    """Raise TaskError, naming the first wrong environment, unless rewards `[N]` are finite as float32."""
    check_finite(rewards, "reward", name, asked)
    large = np.flatnonzero(np.abs(rewards) > MAX_REWARD)
    if large.size:
        first = large[0]
        raise TaskError(
            f"{name}, environment {first}, {asked}: found the reward {rewards[first]:.3g}, but {LIMIT}. "
            "Repair the environment."
        )


def check_trouble(infos: Mapping[str, Any]) -> None:
    """Raise TaskError where an environment said how it broke."""
    if TROUBLE in infos:
        raise TaskError(next(trouble for trouble in infos[TROUBLE] if trouble is not None))


def check_shapes(arrays: Sequence[NDArray[Any]], num_envs: int, name: str, asked: str) -> None:
    """Raise TaskError unless rewards, terminated and truncated hold a number for each environment."""
    shapes = [array.shape for array in arrays]
    if shapes != [(num_envs,)] * len(shapes):
        raise TaskError(
            f"{name}, {asked}: found rewards, terminated and truncated of shapes {shapes}, but there are "
            f"{num_envs} environments. Repair the environment."
        )


def check_turns(
    infos: Mapping[str, Any], asked_of: NDArray[np.bool_], turns: bool | None, name: str, asked: str
) -> None:
    """Raise TaskError where the info "own", which says whose the next action is, is no bool; or where it is
    not there from all environments `asked_of` `[N]`, or from none: as `turns` says, where that is known."""
    own = np.asarray(infos.get("own", asked_of))
    if own.dtype != np.bool_ or own.shape != asked_of.shape:
        raise TaskError(
            f"{name}, {asked}: found the info own={own.tolist()}, which says whether the next action is the "
            "policy's own. Make it True or False, or give it another name."
        )
    # A vector of single environments marks those that said it; the others have False there.
    said = np.asarray(infos.get("_own", np.full(asked_of.shape, "own" in infos)))[asked_of]
    if said.any() != said.all() or turns not in (None, said.any()):
        raise TaskError(
            f"{name}, {asked}: found the info own, which says whether the next action is the policy's own, "
            f"{'here only' if turns is False else 'missing'}. Let every reset and every step of all "
            "environments say it, or none."
        )


def explained(error: BaseException, vector: VectorEnv[Any, Any, Any], asked: str) -> GradhatError:
    """Return an error that says what `asked` met. A vector with a dead worker is closed first."""
    if isinstance(error, DependencyNotInstalled):
        return ConfigError(f"{asked}: found a missing package: {error}. Run: pip install 'gradhat[video]'")
    if isinstance(vector, AsyncVectorEnv) and isinstance(error, EOFError | OSError):
        return TaskError(f"{asked}: {_buried(vector)}")
    return TaskError(f"{asked}: found {type(error).__name__}: {error}. Repair the environment.")


def close(vector: VectorEnv[Any, Any, Any], name: str) -> None:
    """Close the vector, also where a worker died of which nobody has heard.

    TaskError where it raises, unless something else ends the work already: that is what is reported.
    """
    ended = sys.exception()
    try:
        vector.close()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if isinstance(vector, AsyncVectorEnv) and isinstance(error, EOFError | OSError):
            _buried(vector)
        elif ended is None:
            found = f"{type(error).__name__}: {error}"
            raise TaskError(f"{name}, close(): found {found}. Repair the environment.") from error


def _buried(vector: AsyncVectorEnv[Any, Any]) -> str:
    """Close a vector that lost a worker; say what became of it. Its own `close` would ask the dead."""
    # A process that closed its pipe may still be on its way out.
    for sentinel in connection.wait([process.sentinel for process in vector.processes], PATIENCE):
        next(process for process in vector.processes if process.sentinel == sentinel).join(PATIENCE)
    dead = [(i, process.exitcode) for i, process in enumerate(vector.processes) if not process.is_alive()]
    for process in vector.processes:
        process.terminate()
        process.join()
    vector.closed = True
    found = ", ".join(f"of environment {i} dead with exit code {code}" for i, code in dead)
    return (
        f"found the worker process {found}. A negative code is the signal that killed it: -9 is often a lack "
        "of memory. Use fewer environments, or go on from the last checkpoint."
    )
