"""A table of action values as a policy: the best action, and now and then any other."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gradhat.errors import ModelError


def epsilon_greedy(q: Tensor, epsilon: float) -> Tensor:
    """Return π(a | s) `[*N, A]` of the values Q `[*N, A]`: ε uniformly, 1 − ε uniformly among the best.

    Ties are drawn, not broken: the lowest of equals would never leave the first action of an empty table.
    Assumes 0 ≤ ε ≤ 1. ε = 0 is the greedy policy.
    """
    best = (q == q.amax(-1, keepdim=True)).to(q.dtype)
    return epsilon / q.shape[-1] + (1 - epsilon) * best / best.sum(-1, keepdim=True)


@dataclass(frozen=True)
class EpsilonGreedyTable:
    """The actor of a table of values Q `[O, A]`, read as it stands at each call."""

    q: Tensor
    epsilon: float

    def act(self, observations: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw one action for each of `observations` (int64 `[N]`): int64 `[N]`, and its log π `[N]`.

        Raises ModelError for observations that the table has not.
        """
        self._check(observations)
        pi = epsilon_greedy(self.q, self.epsilon)
        running = pi.cumsum(-1)
        # The sum rounds: a uniform number just below 1 must not fall behind the last action that is played.
        running = torch.where(running == running[:, -1:], 1, running)
        uniforms = torch.rand(len(observations), 1, dtype=pi.dtype, generator=generator)
        actions = (running[observations] <= uniforms).sum(-1)
        return actions, pi[observations, actions].log()

    def greedy(self, observations: Tensor) -> Tensor:
        """Return the best action for each of `observations` (int64 `[N]`), the lowest of those that tie."""
        self._check(observations)
        return self.q.argmax(-1)[observations]

    def _check(self, observations: Tensor) -> None:
        count = len(self.q)
        if bool(((observations < 0) | (observations >= count)).any()):
            raise ModelError(
                f"a table of values {tuple(self.q.shape)} was asked for an observation it has not: found "
                f"numbers from {int(observations.min())} to {int(observations.max())}. Make the table for "
                f"the world at hand, or use numbers from 0 to {count - 1}."
            )
