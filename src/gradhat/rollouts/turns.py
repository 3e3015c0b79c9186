"""Worlds that move by themselves between two actions: what they do belongs to the own step before.

Estimators read own steps alone. So what a world pays in its own steps is added to the reward of the own step
that led there, without discount, and an end there is the end of that step. Its successor is the state in
which the policy acts next, or the final one.

Letters: `N` environments, `*O` the shape of one observation, `*A` of one action.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Bools = NDArray[np.bool_]


class Moment(NamedTuple):
    """One step of all environments, as the policy lived it."""

    observations: NDArray[np.float32]
    """`[N, *O]`: what it acted on."""
    actions: NDArray[Any]
    """`[N, *A]`."""
    logp: NDArray[np.float32]
    rewards: NDArray[Any]
    terminated: Bools
    truncated: Bools
    successors: NDArray[np.float32]
    """`[N, *O]`: what truly followed."""
    live: Bools
    """Whether an own step stands here; the rest means nothing where not."""


class Turns:
    """Holds an own step back until its successor is known.

    It stands in the column after which the policy acts again or the episode is over, and those before it,
    back to where it was taken, are masked. So rows keep their length and the order of their own steps, and a
    chunk that ends in the middle of the world's turn leaves the step to the next chunk: it was sampled by the
    weights before, as its logp says.

    What a world pays before the policy's first action of an episode follows from no action, and is dropped.
    So is an episode in which the policy never acts.
    """

    def __init__(self) -> None:
        self._held: Moment | None = None

    def settle(self, present: Moment, acts: Bools) -> Moment:
        """Take in one step; return the own steps that are known by it.

        `acts` `[N]`: whether the policy acts next. The reset step of next-step autoreset follows an end,
        where nothing is held: it stays masked.
        """
        held = present if self._held is None else self._held
        own = present.live
        holds = own | held.live
        rewards = np.where(own, present.rewards, held.rewards + present.rewards)
        known = holds & (acts | present.terminated | present.truncated)
        taken = present._replace(
            observations=_where(own, present.observations, held.observations),
            actions=_where(own, present.actions, held.actions),
            logp=np.where(own, present.logp, held.logp),
            rewards=rewards,
        )
        self._held = taken._replace(live=holds & ~known)
        return taken._replace(rewards=np.where(known, rewards, 0.0), live=known)

    def begin_anew(self) -> None:
        """Drop what is held: all environments were reset."""
        self._held = None

    def state(self) -> dict[str, Tensor]:
        """Return copies of what `restore` needs."""
        held = {} if self._held is None else self._held._asdict()
        return {name: torch.from_numpy(array.copy()) for name, array in held.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state()` to the bit."""
        arrays = {name: tensor.numpy().copy() for name, tensor in state.items()}
        self._held = Moment(**arrays) if arrays else None


def _where(own: Bools, present: NDArray[Any], held: NDArray[Any]) -> NDArray[Any]:
    """Return the rows of `present` where `own` `[N]`, else of `held`; all `[N, ...]`."""
    return np.where(own.reshape(-1, *[1] * (present.ndim - 1)), present, held)
