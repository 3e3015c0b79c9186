"""What learns in a run: an algorithm's page bound to a policy, an optimiser and the numbers of a config."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gradhat.algorithms import grpo, reinforce
from gradhat.algorithms.ascend import Optimizer
from gradhat.algorithms.grpo_family import FAMILY
from gradhat.estimators.group import silent
from gradhat.policies.language import weights
from gradhat.policies.language.policy import LanguagePolicy
from gradhat.policies.language.transformer import Transformer
from gradhat.policies.policy import Policy
from gradhat.training.text.config import TrainConfig
from gradhat.training.text.model import compute_dtype
from gradhat.trajectories import Trajectories


class Learner(Protocol):
    """A batch in, a better policy and metrics out. All that the loop knows of an algorithm."""

    def silent(self, returns: Tensor, group: Tensor) -> Tensor:
        """Return which groups carry no gradient, bool `[B]`: the same for all members of a group."""
        ...

    def learn(self, batch: Trajectories) -> tuple[Trajectories, dict[str, float]]:
        """Move the policy; return the batch with its credit, and metrics."""
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
        known = batch if self.reference is None else grpo.refer(self.reference, batch)
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
        return credited, metrics | {"baseline": before}

    def state(self) -> dict[str, Any]:
        return {"baseline": self.baseline}

    def restore(self, state: dict[str, Any]) -> None:
        self.baseline = state["baseline"]


def make_learner(config: TrainConfig, network: Transformer, optimizer: Optimizer, model: Path) -> Learner:
    """Return the learner that `config.algorithm` names; the folder `model` holds KL's reference."""
    policy = LanguagePolicy(network, config.temperature, config.token_budget)
    if config.algorithm == "reinforce":
        return ReinforceLearner(
            policy, optimizer, reinforce.Settings(config.baseline_decay), reinforce.init()
        )
    settings = grpo.Settings(
        length=config.max_new_tokens,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        kl_coef=config.kl_coef,
        num_epochs=config.num_epochs,
    )
    reference = None
    if config.kl_coef > 0:
        frozen = weights.load(model, compute_dtype(config.dtype)).requires_grad_(False)
        reference = LanguagePolicy(frozen, config.temperature, config.token_budget)
    return GroupLearner(policy, optimizer, FAMILY[config.algorithm], settings, reference)
