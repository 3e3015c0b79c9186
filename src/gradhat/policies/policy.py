"""What every policy offers, tabular or network or language model."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from gradhat.policies.distributions import Distribution
from gradhat.trajectories import Trajectories


class Evaluation(NamedTuple):
    """The policy's view of trajectories, with gradient. All `[B, T]`.

    `values` is None for a policy without a critic.
    """

    logp: Tensor
    entropy: Tensor
    values: Tensor | None


class Policy(Protocol):
    """A distribution over actions given observations."""

    @property
    def module(self) -> nn.Module:
        """The parameters θ."""
        ...

    def split(self, trajectories: Trajectories) -> Sequence[list[int] | slice]:
        """Cut a batch into micro-batches that fit in memory: the rows of each.

        Every row is in exactly one. An empty batch has none.
        """
        ...

    def examples(self, trajectories: Trajectories) -> Trajectories:
        """Return the rows that can be evaluated apart from each other, so that a batch can be shuffled and
        cut: single own steps for a policy without memory, whole trajectories for one with.
        """
        ...

    def evaluate(self, trajectories: Trajectories) -> Evaluation:
        """Log-probability and entropy of each action under the present weights, with gradient."""
        ...


class ExplicitPolicy(Policy, Protocol):
    """A policy whose distributions can be compared whole, not only through sampled actions."""

    def distribution(self, trajectories: Trajectories) -> Distribution:
        """Return π_θ(· | s) at every step, with gradient; parameters `[B, T, ...]`."""
        ...


class Critic(Protocol):
    """A policy that also says what states are worth."""

    def values(self, observations: Tensor) -> Tensor:
        """Return V(s) for observations `[..., *O]`, `[...]`, with gradient."""
        ...


class Actor(Protocol):
    """What collecting needs of a policy."""

    def act(self, observations: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw an action for each of `observations` `[N, *O]`: `[N]` or `[N, *A]`, and its log π `[N]`.

        No gradient.
        """
        ...
