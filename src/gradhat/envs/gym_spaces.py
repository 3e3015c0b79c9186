"""Gymnasium's spaces as a policy sees them: flat float32 vectors in, one index or one vector out.

Letters: `N` environments, `O` the size of a flat observation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np
from gymnasium.spaces import Box, Discrete, Space
from gymnasium.spaces.utils import flatdim, flatten, flatten_space
from gymnasium.vector.utils import iterate
from numpy.typing import NDArray

from gradhat.errors import ConfigError, TaskError

Array = NDArray[Any]
Float32 = NDArray[np.float32]

MOST = 2**22
"""Numbers of one observation, and actions to choose from: a network has weights for each."""


class Actions(NamedTuple):
    """What a policy chooses from."""

    discrete: bool
    size: int
    """The number of actions, or of components where they are continuous."""
    low: Float32 | None
    """`[size]`, the least value of each component; -inf where there is none. None where discrete."""
    high: Float32 | None


def actions_of(space: Space[Any], name: str) -> Actions:
    """Describe the action space. ConfigError unless it is Discrete or a Box of real numbers."""
    if isinstance(space, Discrete):
        if space.n > MOST:
            raise ConfigError(
                f"{name}: found the action space {space}. Use at most {MOST:,} actions; wrap the environment."
            )
        return Actions(True, int(space.n), None, None)
    if isinstance(space, Box) and np.issubdtype(space.dtype, np.floating):
        low, high = space.low.ravel().astype(np.float32), space.high.ravel().astype(np.float32)
        return Actions(False, low.size, low, high)
    raise ConfigError(
        f"{name}: found the action space {space}. Policies choose from a Discrete space or from a Box of "
        "real numbers; wrap the environment so that it has one of these."
    )


def played(space: Space[Any], actions: Actions, num_envs: int, name: str) -> Callable[[Array], Array]:
    """Return what turns the policy's actions, int `[N]` or float `[N, size]`, into those of `space`.

    A Discrete space may begin elsewhere than at 0. Components are clipped to their bounds. TaskError for
    another shape, and for components that are not finite.
    """
    shape = (num_envs,) if actions.discrete else (num_envs, actions.size)

    def checked(chosen: Array) -> Array:
        if chosen.shape != shape:
            raise TaskError(
                f"{name}: actions of shape {shape} were asked for, but found {chosen.shape}. "
                "Pass one for each environment."
            )
        return chosen

    def clipped(chosen: Array) -> Array:
        if not np.isfinite(checked(chosen)).all():
            wrong = int(np.flatnonzero(~np.isfinite(chosen).all(-1))[0])
            raise TaskError(
                f"{name}, environment {wrong}: found the action {chosen[wrong].tolist()}, which is not "
                "finite. The policy has diverged; train it with a smaller learning rate."
            )
        return np.clip(chosen, actions.low, actions.high).astype(space.dtype).reshape(num_envs, *box)

    box = space.shape or ()
    first = int(space.start) if isinstance(space, Discrete) else 0
    if not actions.discrete:
        return clipped
    return checked if first == 0 else lambda chosen: checked(chosen) + first


def is_flat(space: Space[Any]) -> bool:
    """Return whether observations of `space` need no flattening."""
    return isinstance(space, Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating)


def flat_size(space: Space[Any], name: str) -> int:
    """Return O. ConfigError for a space without a fixed size."""
    try:
        size = flatdim(space)
    except (NotImplementedError, ValueError):
        size = None
    if size is not None and size > MOST:
        raise ConfigError(
            f"{name}: found the observation space {space}, which makes {size:,} numbers: Discrete is "
            f"one-hot. Use at most {MOST:,}; wrap the environment so that it shows less."
        )
    if size is not None and isinstance(flatten_space(space), Box):
        return size
    raise ConfigError(
        f"{name}: found the observation space {space}, whose observations have no fixed size. Wrap the "
        "environment so that it shows a Box, a Discrete, a MultiDiscrete, or a Dict or Tuple of these."
    )


def flat_one(space: Space[Any], seen: Any) -> Float32:
    """Return one observation as float32 `[O]`."""
    if isinstance(space, Discrete):
        return one_hot(space)(seen)
    return np.asarray(cast(Array, flatten(space, seen)), dtype=np.float32)


def flattened(space: Space[Any], batched: Space[Any]) -> Callable[[Any], Float32]:
    """Return what turns a batch of observations into float32 `[N, O]`, always in memory of its own."""
    if isinstance(space, Box) and len(space.shape) == 1:
        return lambda seen: np.array(seen, dtype=np.float32)
    if isinstance(space, Box):
        return lambda seen: np.array(seen, dtype=np.float32).reshape(len(seen), -1)
    if isinstance(space, Discrete):
        return one_hot(space)
    return lambda seen: np.stack([flat_one(space, one) for one in iterate(batched, seen)])


def one_hot(space: Discrete[Any]) -> Callable[[Any], Float32]:
    """Return what turns numbers of `space` into rows of zeros and a one. IndexError for other numbers."""
    rows, first = np.eye(int(space.n), dtype=np.float32), int(space.start)

    def shown(seen: Any) -> Float32:
        numbers = np.asarray(seen) - first
        # A negative one would count from the end.
        if (numbers < 0).any() or (numbers >= len(rows)).any():
            raise IndexError(f"the observation {np.asarray(seen).tolist()} is not in {space}")
        return rows[numbers]

    return shown
