"""What learns: an algorithm's page bound to a policy, an optimiser and its numbers.

A run trains with these, and `gradhat lab algorithm` looks at these.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from gradhat.algorithms import grpo, reinforce
from gradhat.algorithms.ascend import Optimizer
from gradhat.algorithms.reference import recall, refer
from gradhat.estimators.group import silent
from gradhat.policies.policy import Policy
from gradhat.trajectories import Trajectories


class Learner(Protocol):
    """A batch in, a better policy and metrics out. All that a run knows of an algorithm."""

    def silent(self, returns: Tensor, group: Tensor) -> Tensor:
        """Return which groups carry no gradient, bool `[B]`: the same for all members of a group."""
        ...

    def learn(self, batch: Trajectories) -> tuple[Trajectories, dict[str, float]]:
        """Move the policy; return the batch with its credit, and metrics.

        `num_updates` among them counts the optimiser steps that moved the policy, `skipped` those left out
        because the gradient was not finite. Both are absent where no step carries a gradient.
        """
        ...

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs besides weights and moments, as plain values."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Stand where `state` was taken."""
        ...


@dataclass(frozen=True)
class GroupLearner:
    """A row of the group family. It remembers nothing between batches."""

    policy: Policy
    optimizer: Optimizer
    row: grpo.Row
    settings: grpo.Settings
    reference: Policy | None

    def silent(self, returns: Tensor, group: Tensor) -> Tensor:
        """Return the groups of equal rewards, whole. A KL term still pulls on them, but teaches nothing."""
        return silent(returns, group)

    def learn(self, batch: Trajectories) -> tuple[Trajectories, dict[str, float]]:
        known = batch if self.reference is None else refer(self.reference, batch)
        known = known if self.row.mismatch is None else recall(self.policy, known)
        credited = grpo.credit(self.row, self.settings, known)
        return credited, grpo.update(self.policy, self.optimizer, credited, self.row, self.settings)

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


@dataclass
class ReinforceLearner:
    """REINFORCE with its moving average."""

    policy: Policy
    optimizer: Optimizer
    settings: reinforce.Settings
    baseline: float

    def silent(self, returns: Tensor, group: Tensor) -> Tensor:
        """None: a group of equal rewards still differs from the average of the past."""
        return torch.zeros_like(group, dtype=torch.bool)

    def learn(self, batch: Trajectories) -> tuple[Trajectories, dict[str, float]]:
        before = self.baseline
        credited, self.baseline = reinforce.credit(self.settings, before, batch)
        metrics = reinforce.update(self.policy, self.optimizer, credited)
        return credited, metrics | {"num_updates": 1 - metrics["skipped"], "baseline": before}

    def state(self) -> dict[str, Any]:
        return {"baseline": self.baseline}

    def restore(self, state: dict[str, Any]) -> None:
        self.baseline = state["baseline"]
