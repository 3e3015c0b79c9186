"""A policy as a table: π_θ(a | o) = softmax(θ_o)_a, one row of logits for each observation.

Its trajectories carry the observation of every step: `Trajectories.observations` is a tuple of T numbers
for each trajectory, 0 where padded.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradhat.errors import ModelError
from gradhat.policies.policy import Evaluation
from gradhat.trajectories import Trajectories


class Logits(nn.Module):
    """The table θ `[O, A]`, the only parameter. It keeps the dtype it was made with."""

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        if theta.dim() != 2 or not theta.is_floating_point():
            raise ModelError(
                f"a table of logits: found {tuple(theta.shape)} of {theta.dtype}. Pass floats [O, A]: one "
                "row for each observation, one column for each action."
            )
        self.theta = nn.Parameter(theta.detach().clone())


@dataclass(frozen=True)
class TabularPolicy:
    """A softmax over `module.theta`. Assumes that the observation is all the policy may know: no memory."""

    module: Logits
    num_rows: int | None = None
    """The trajectories of one micro-batch; None: all in one."""

    def split(self, trajectories: Trajectories) -> list[list[int]]:
        """Cut into micro-batches of `num_rows`, in order. Returns the rows of each."""
        rows = list(range(len(trajectories)))
        size = max(1, len(rows)) if self.num_rows is None else self.num_rows
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    def examples(self, trajectories: Trajectories) -> Trajectories:
        """Return every own step as a row: without memory each can be evaluated alone."""
        return trajectories.steps()

    def evaluate(self, trajectories: Trajectories) -> Evaluation:
        """Return log π(a_t | o_t) and the entropy Σ_a −π log π in nats, both `[B, T]` and 0 where masked.

        Raises ModelError for observations that are not T numbers in [0, O) for each trajectory, and for
        actions outside [0, A). A masked step may show any observation and action of the table.
        """
        observations = _observations(trajectories)
        self._check("an observation", observations, 0)
        self._check("an action", trajectories.actions, 1)
        logp = self.module.theta.log_softmax(-1)[observations]
        mask = trajectories.mask
        # An action that is never taken, θ = −inf, adds 0 to the entropy, not 0 · −inf.
        entropy = -(logp.exp() * logp.nan_to_num(neginf=0.0)).sum(-1)
        taken = logp.gather(-1, trajectories.actions[..., None])[..., 0]
        return Evaluation(torch.where(mask, taken, 0), torch.where(mask, entropy, 0), None)

    @torch.no_grad()
    def act(self, observations: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw one action for each of `observations` (int64 `[N]`): int64 `[N]`, and its log π `[N]`."""
        self._check("an observation", observations, 0)
        logp = self.module.theta.log_softmax(-1)[observations]
        actions = torch.multinomial(logp.exp(), 1, generator=generator)
        return actions[:, 0], logp.gather(-1, actions)[:, 0]

    def _check(self, what: str, numbers: Tensor, axis: int) -> None:
        count = self.module.theta.shape[axis]
        if bool(((numbers < 0) | (numbers >= count)).any()):
            raise ModelError(
                f"a table of logits {tuple(self.module.theta.shape)} was asked for {what} it has not: found "
                f"numbers from {int(numbers.min())} to {int(numbers.max())}. Make the table for the world at "
                f"hand, or use numbers from 0 to {count - 1}."
            )


def _observations(trajectories: Trajectories) -> Tensor:
    """Return int64 `[B, T]`."""
    length, seen = trajectories.actions.shape[1], trajectories.numbers()
    found = sorted({len(o) for o in seen} - {length})
    if found:
        raise ModelError(
            f"a tabular policy reads one observation a step: found tuples of {found} with {length} steps. "
            f"Pass {length} numbers for each trajectory, 0 where padded."
        )
    return torch.tensor(list(seen), dtype=torch.long).reshape(-1, length)
