"""The nouns that travel between rooms: experience, on-policy and replayed, and what a person reads of it.

Shapes: `B` trajectories, `T` steps, `*O` the shape of one observation, `*A` of one action (empty for discrete
actions). In the text world a step is a token, and `B` is prompts × samples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor


class Verdict(NamedTuple):
    """What a task says of one answer. `parts` are the reward's components, `why` is one line for people.

    The reward is NaN where no verdict came: the task raised, hung or answered nonsense. Nobody knows what
    such an answer is worth, so it is counted and left out; it is never worth 0.
    """

    reward: float
    parts: dict[str, float]
    why: str

    @property
    def judged(self) -> bool:
        """Whether there is a reward."""
        return not math.isnan(self.reward)


class Record(NamedTuple):
    """The text world's record of one trajectory, for people. `stop` is "end", "string" or "length"."""

    prompt: str
    completion: str
    verdict: Verdict
    stop: str


@dataclass(frozen=True)
class Trajectories:
    """Experience in the order it was lived. Per-step tensors are `[B, T]`: batch first, time last.

    `mask` is true where the step is the policy's own action: not padding, not text that the environment
    inserted, not the step in which a vectorised environment resets itself. `terminated` zeroes the bootstrap,
    `truncated` does not; they are never both true. A row of text is one trajectory, and they are true at most
    at its last step; a row of a vectorised environment is several episodes one after the other.
    """

    observations: Sequence[tuple[int, ...]] | Tensor
    """In the text world: the prompt's token ids, one tuple per trajectory. In a tabular world: T observation
    numbers per trajectory. In a Gymnasium world: what was seen before each step, float32 `[B, T, *O]`."""
    actions: Tensor
    """int64 `[B, T]`, or float32 `[B, T, *A]` for continuous ones, as sampled: not clipped to their bounds.
    In the text world: the sampled token ids, never retokenised; 0 where padded."""
    mask: Tensor
    """bool `[B, T]`."""
    logp: Tensor
    """float32 `[B, T]`: log-probability under the distribution actually sampled; 0 where masked."""
    rewards: Tensor
    """float32 `[B, T]`. NaN at the end of a completion that nobody could judge."""
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
    logp_old: Tensor | None = None
    """float32 `[B, T]`: log-probability under the policy that is improved upon, attached where the one that
    sampled is not quite the same. None: it is `logp`."""
    logp_ref: Tensor | None = None
    """float32 `[B, T]`: log-probability under a reference policy, attached where an algorithm measures the
    distance to one."""
    next_observations: Tensor | None = None
    """`[B, T, *O]`: the true successor of each own step: the final observation where the episode ends, not
    the first one of the next. Anything finite where masked. None in worlds without a value to bootstrap."""
    targets: Tensor | None = None
    """float32 `[B, T]`: what a critic should have said of each own step, attached by an algorithm."""

    def __len__(self) -> int:
        return self.actions.shape[0]

    def select(self, rows: Sequence[int] | Tensor | slice) -> Self:
        """Return the trajectories at `rows` (int `[N]`), in that order. A slice shares the memory."""
        index = rows if isinstance(rows, slice) else torch.as_tensor(rows, dtype=torch.long)

        def part(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[index]

        return replace(
            self,
            observations=_rows(self.observations, index),
            actions=self.actions[index],
            mask=self.mask[index],
            logp=self.logp[index],
            rewards=self.rewards[index],
            terminated=self.terminated[index],
            truncated=self.truncated[index],
            group=self.group[index],
            version=self.version[index],
            records=tuple(_rows(self.records, index)) if self.records else (),
            adv=part(self.adv),
            logp_old=part(self.logp_old),
            logp_ref=part(self.logp_ref),
            next_observations=part(self.next_observations),
            targets=part(self.targets),
        )

    def steps(self) -> Self:
        """Return every own step as a row of its own, `[N, 1]`, in order: what a policy without memory needs.

        Observations must hold one entry for each step, `[B, T, *O]` or T numbers.
        """
        own = self.mask.flatten().nonzero()[:, 0]
        width = self.mask.shape[1]

        def row(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.flatten(0, 1)[own, None]

        def rows(tensor: Tensor) -> Tensor:
            return tensor.flatten(0, 1)[own, None]

        seen = self.observations
        return replace(
            self,
            observations=rows(seen)
            if isinstance(seen, Tensor)
            else [(seen[i // width][i % width],) for i in own.tolist()],
            actions=rows(self.actions),
            mask=rows(self.mask),
            logp=rows(self.logp),
            rewards=rows(self.rewards),
            terminated=rows(self.terminated),
            truncated=rows(self.truncated),
            group=self.group[own // width],
            version=self.version[own // width],
            records=(),
            adv=row(self.adv),
            logp_old=row(self.logp_old),
            logp_ref=row(self.logp_ref),
            next_observations=row(self.next_observations),
            targets=row(self.targets),
        )

    def numbers(self) -> Sequence[tuple[int, ...]]:
        """Return the observations of a world that numbers what it shows: token ids, rows of a table.

        ValueError where they are a tensor, as in a Gymnasium world.
        """
        if isinstance(self.observations, Tensor):
            raise ValueError(
                f"numbered observations were asked for: found a tensor {tuple(self.observations.shape)}. "
                "Use a policy that reads such observations, or a world of text or of tables."
            )
        return self.observations

    def returns(self) -> Tensor:
        """Undiscounted return of each trajectory, float32 `[B]`."""
        return (self.rewards * self.mask).sum(-1)


@dataclass(frozen=True)
class Transitions:
    """Off-policy experience: `B` steps out of a replay buffer, in no order.

    A transition may span k steps of the policy's own (n-step returns): `rewards` is then Σ_{i<k} γ^i r_i,
    `next_observations` the state k steps later, and `discounts` γ^k. `terminated` zeroes the bootstrap; a
    truncated step is an ordinary one, whose successor is the final observation.
    """

    observations: Tensor
    """float32 `[B, *O]`."""
    actions: Tensor
    """int64 `[B]`, or float32 `[B, *A]`."""
    rewards: Tensor
    """float32 `[B]`."""
    next_observations: Tensor
    """float32 `[B, *O]`."""
    terminated: Tensor
    """bool `[B]`."""
    discounts: Tensor
    """float32 `[B]`: the weight of the successor's value."""
    later: Tensor
    """float32 `[B]`: Σ_{0<i<k} γ^i, the weight of the own steps behind the first; 0 where there is none."""
    later_logp: Tensor
    """float32 `[B]`: Σ_{0<i<k} γ^i log π(a_i | s_i) of the same steps, as each was sampled."""
    weights: Tensor
    """float32 `[B]`: importance weights that undo a prioritised draw; 1 in a uniform one."""
    index: Tensor
    """int64 `[B]`: where each lies in its buffer, to set its priority."""


def _rows(items: Any, index: Tensor | slice) -> Any:
    if isinstance(items, Tensor) or isinstance(index, slice):
        return items[index]
    return [items[i] for i in index.tolist()]
