"""The nouns that travel between rooms: on-policy experience, and what a person reads of it.

Shapes: `B` trajectories, `T` steps. In the text world a step is a token, and `B` is prompts × samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor


class Verdict(NamedTuple):
    """What a task says of one answer. `parts` are the reward's components, `why` is one line for people."""

    reward: float
    parts: dict[str, float]
    why: str


class Record(NamedTuple):
    """The text world's record of one trajectory, for people. `stop` is "end", "string" or "length"."""

    prompt: str
    completion: str
    verdict: Verdict
    stop: str


@dataclass(frozen=True)
class Trajectories:
    """On-policy experience. Per-step tensors are `[B, T]`: batch first, time last.

    `mask` is true where the step is the policy's own action: not padding, not text that the environment
    inserted. `terminated` zeroes the bootstrap, `truncated` does not; both are true at most at a
    trajectory's last step.
    """

    observations: Sequence[tuple[int, ...]]
    """The start states. In the text world: the prompt's token ids, one tuple per trajectory."""
    actions: Tensor
    """int64 `[B, T]`. In the text world: the sampled token ids, never retokenised; 0 where padded."""
    mask: Tensor
    """bool `[B, T]`."""
    logp: Tensor
    """float32 `[B, T]`: log-probability under the distribution actually sampled; 0 where masked."""
    rewards: Tensor
    """float32 `[B, T]`."""
    terminated: Tensor
    """bool `[B, T]`."""
    truncated: Tensor
    """bool `[B, T]`."""
    group: Tensor
    """int64 `[B]`: which start state (prompt) the trajectory began from."""
    version: Tensor
    """int64 `[B]`: which weights sampled it (the number of optimiser steps they had seen)."""
    records: tuple[Record, ...] = ()
    """For people. Empty in worlds without text."""
    adv: Tensor | None = None
    """float32 `[B, T]`: the credit, attached by an algorithm."""
    logp_ref: Tensor | None = None
    """float32 `[B, T]`: log-probability under a reference policy, attached where an algorithm measures the
    distance to one."""

    def __len__(self) -> int:
        return self.actions.shape[0]

    def select(self, rows: Sequence[int] | Tensor) -> Self:
        """Return the trajectories at `rows` (int `[N]`), in that order."""
        index = torch.as_tensor(rows, dtype=torch.long)
        places = [int(i) for i in index]
        return replace(
            self,
            observations=[self.observations[i] for i in places],
            actions=self.actions[index],
            mask=self.mask[index],
            logp=self.logp[index],
            rewards=self.rewards[index],
            terminated=self.terminated[index],
            truncated=self.truncated[index],
            group=self.group[index],
            version=self.version[index],
            records=tuple(self.records[i] for i in places) if self.records else (),
            adv=None if self.adv is None else self.adv[index],
            logp_ref=None if self.logp_ref is None else self.logp_ref[index],
        )

    def returns(self) -> Tensor:
        """Undiscounted return of each trajectory, float32 `[B]`."""
        return (self.rewards * self.mask).sum(-1)
