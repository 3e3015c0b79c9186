"""What learns in a control run: an algorithm's page with its world, its policy and its memory."""

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from gradhat.policies.policy import Actor
from gradhat.rollouts.vector import Episode
from gradhat.trajectories import Trajectories

Choice = Callable[[Tensor], Tensor]
"""Observations `[N, O]` → an action for each."""


class Agent(Protocol):
    """All that the session knows of an algorithm."""

    @property
    def num_frames(self) -> int:
        """Environment steps so far."""
        ...

    def advance(self, num_frames: int) -> dict[str, float]:
        """Go on until so many frames in all were lived and learned from; return the means of the metrics."""
        ...

    def greedy(self) -> Choice:
        """Return what takes the action that the present policy holds best, with its normaliser frozen."""
        ...

    def sampled(self, generator: torch.Generator) -> Choice:
        """Return what draws its actions as in training, with its normaliser frozen: from the present policy,
        or from what it explores with where the policy itself leaves nothing to chance."""
        ...

    def holds(self) -> str:
        """Return a line about memory that is taken up front, or nothing."""
        ...

    def drain(self) -> list[Episode]:
        """Return the training episodes that ended since the last call."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return copies of everything that going on to the bit needs."""
        ...

    def saved_bytes(self) -> int:
        """Return how many bytes `state()` takes at the end of a run, its memory full."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Stand where `state` was taken."""
        ...

    def restore_policy(self, state: dict[str, Tensor]) -> None:
        """Stand where `state` was taken, as far as acting goes: weights and normaliser.

        Whoever only plays needs no more, and the environments that were trained in may be gone.
        """
        ...

    def close(self) -> None:
        """Free processes and windows."""
        ...


class Means:
    """Means of metrics over the updates between two lines. Tensors are converted once, at the end."""

    def __init__(self) -> None:
        self._sums: dict[str, float | Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, metrics: dict[str, float] | dict[str, Tensor] | dict[str, float | Tensor]) -> None:
        """Take in the metrics of one update. A name may be absent from some."""
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """Return the mean of each."""
        return {name: float(value) / self._counts[name] for name, value in self._sums.items()}


def acted(batch: Trajectories, means: Means) -> bool:
    """Return whether any environment acted in `batch`, and count those in which none did.

    Such a batch holds resets, or the world's own turn: there is nothing in it to learn from.
    """
    some = bool(batch.mask.any())
    means.add({"empty_batches": float(not some)})
    return some


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the same tensors, which later steps do not change."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def drawing(actor: Actor, generator: torch.Generator) -> Choice:
    """Return the choice of what acts in training, with its random numbers from `generator`."""
    return lambda seen: actor.act(seen, generator)[0]


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """Return how many bytes the numbers in `tensors` take."""
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def joined(**parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of several states under names of their own."""
    return {f"{name}/{key}": tensor for name, found in parts.items() for key, tensor in found.items()}


def part(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return what `joined` was given as `name`."""
    prefix = f"{name}/"
    return {key.removeprefix(prefix): t for key, t in state.items() if key.startswith(prefix)}


def packed(values: dict[str, Any]) -> Tensor:
    """Return plain values as bytes, uint8 `[N]`."""
    return torch.frombuffer(bytearray(json.dumps(values).encode()), dtype=torch.uint8)


def unpacked(tensor: Tensor) -> dict[str, Any]:
    """Return what `packed` was given."""
    return json.loads(tensor.numpy().tobytes())
