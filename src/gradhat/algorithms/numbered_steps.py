"""Experience of a world that numbers what it shows, and the part of it that waits for what comes next."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from gradhat.trajectories import Trajectories


class Steps(NamedTuple):
    """Steps in the order they were lived, all `[B, T]`; 0 and false where masked."""

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    """float64."""
    next_observations: Tensor
    terminated: Tensor
    ended: Tensor
    mask: Tensor

    def after(self, earlier: Self | None) -> Self:
        """Return these steps behind `earlier` ones of the same lanes. ValueError unless as many."""
        if earlier is None:
            return self
        if len(earlier.mask) != len(self.mask):
            raise ValueError(
                f"a chunk of {len(self.mask)} rows: found steps of {len(earlier.mask)} rows that wait for "
                "what comes next. Pass the same lanes in the same order, or start with a new state."
            )
        return type(self)(*(torch.cat(pair, dim=1) for pair in zip(earlier, self, strict=True)))

    def waiting(self, ready: Tensor) -> Self | None:
        """Return a copy of the own steps that are not `ready` `[B, T]`, from the first on; None without."""
        wait = self.mask & ~ready
        columns = wait.any(0).nonzero()
        if len(columns) == 0:
            return None
        first = int(columns[0])
        return type(self)(*(part[:, first:] * wait[:, first:] for part in self))


def steps_of(trajectories: Trajectories, num_observations: int, num_actions: int) -> Steps:
    """Return the steps of `trajectories`, whose observations are numbers: int64 `[B, T]`, with successors.

    Nothing of a masked step is read. ValueError for other observations, for numbers outside the table, and
    for an end on a masked step: an end belongs to the own step that led there.
    """
    mask, ended = trajectories.mask, trajectories.terminated | trajectories.truncated
    seen, following = trajectories.observations, trajectories.next_observations
    for name, tensor in (("observations", seen), ("next_observations", following)):
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.long or tensor.shape != mask.shape:
            found = f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor)
            raise ValueError(
                f"{name} of a table: found {found}. Pass int64 {tuple(mask.shape)}, one number per step; for "
                f"one-hot vectors, {name}.argmax(-1)."
            )
    assert isinstance(seen, Tensor) and following is not None
    if bool((ended & ~mask).any()):
        row, step = (ended & ~mask).nonzero()[0].tolist()
        raise ValueError(
            f"an end on the masked step {step} of row {row}: found nothing to learn it from. Write it on the "
            "policy's own step that led there."
        )
    for name, numbers, count in (
        ("observations", seen, num_observations),
        ("next_observations", following, num_observations),
        ("actions", trajectories.actions, num_actions),
    ):
        if bool((mask & ((numbers < 0) | (numbers >= count))).any()):
            raise ValueError(
                f"{name} from {int(numbers[mask].min())} to {int(numbers[mask].max())}: found a table "
                f"{(num_observations, num_actions)}. Make it for the world at hand, or count from 0."
            )
    return Steps(
        torch.where(mask, seen, 0),
        torch.where(mask, trajectories.actions, 0),
        torch.where(mask, trajectories.rewards, 0).double(),
        torch.where(mask, following, 0),
        trajectories.terminated & mask,
        ended,
        mask,
    )
