"""What every policy offers, tabular or network or language model."""

from typing import NamedTuple, Protocol

from torch import Tensor, nn

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

    def split(self, trajectories: Trajectories) -> list[list[int]]:
        """Cut a batch into micro-batches that fit in memory: the rows of each.

        Every row is in exactly one. An empty batch has none.
        """
        ...

    def evaluate(self, trajectories: Trajectories) -> Evaluation:
        """Log-probability and entropy of each action under the present weights, with gradient."""
        ...
