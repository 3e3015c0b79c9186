"""`gradhat lab algorithm`: what trains a language model, under the microscope. What is E[update]?

Every batch goes through the `Learner` of a run, on a tabular policy, with plain gradient ascent as the
optimiser. The estimate is the change of θ divided by the learning rate and the number of passes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from gradhat.algorithms import grpo, reinforce
from gradhat.algorithms.ascend import Step
from gradhat.algorithms.grpo_family import FAMILY
from gradhat.algorithms.learner import GroupLearner, Learner, ReinforceLearner
from gradhat.errors import ConfigError
from gradhat.exact.enumerate import Batch, Draws
from gradhat.exact.mdp import softmax_policy
from gradhat.exact.moments import one_by_one, tabulated
from gradhat.exact.solve import expected_return
from gradhat.lab.bias import columns, described, figure, row, sampling_note
from gradhat.lab.microscope import Finding, Specimen, World, finding, some_draws
from gradhat.lab.report import Report, Table
from gradhat.lab.shelf import ALGORITHM_OF
from gradhat.policies.tabular import Logits, TabularPolicy
from gradhat.trajectories import Trajectories

REINFORCE = "reinforce"
ALGORITHMS = (REINFORCE, *FAMILY)
"""The page of REINFORCE with its moving average, and the rows of the group family."""

Make = Callable[[TabularPolicy, "Ascent"], Learner]
"""Returns the learner that moves a policy by an optimiser."""


@dataclass
class Ascent:
    """Plain gradient ascent: θ ← θ + lr · gradient."""

    module: nn.Module
    lr: float
    gradient: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def accumulate(self) -> None:
        """Add the module's gradient to the sum and clear it."""
        for name, weight in self.module.named_parameters():
            if weight.grad is not None:
                self.gradient[name] = self.gradient.get(name, 0) - weight.grad
                weight.grad = None

    def step(self) -> Step:
        """Move the parameters and clear the sum."""
        norm = torch.stack([g.norm() for g in self.gradient.values()]).norm()
        with torch.no_grad():
            for name, weight in self.module.named_parameters():
                weight += self.lr * self.gradient.pop(name)
        return Step(float(norm), skipped=False)


@dataclass(frozen=True)
class Settings:
    """The numbers of an algorithm under the microscope."""

    group_size: int = 4
    num_groups: int = 1
    """Start states in a batch."""
    num_epochs: int = 1
    """Passes over a batch."""
    lr: float = 0.1
    """Of plain gradient ascent; with more than one pass it says how far a batch is followed."""
    clip_low: float = 0.2
    clip_high: float = 0.2


def algorithm(name: str, world: World, of: str, settings: Settings) -> Report:
    """Return what the update of `name` is in expectation, on all batches and as the trainer draws them.

    ConfigError for a name that is not in `ALGORITHMS` and for settings out of range.
    """
    check(name, settings)
    draws = some_draws(world, num_groups=settings.num_groups, group_size=settings.group_size, one_by_one=True)
    make = learner_of(name, world, settings, length=draws.paths.actions.shape[1])

    def change(batch: Batch) -> Tensor:
        return _change(batch, world, make, settings)

    each = one_by_one(change)
    changes = torch.cat([each(part) for _, part in draws.batches()])
    size = settings.num_groups * settings.group_size
    plain = Specimen(name, "every batch", lambda batch: batch.logp, "group")
    found = [finding(world, plain, tabulated(changes, draws.probability, draws.exact), size)]
    if name in FAMILY:
        refilled = replace(plain, name=f"{name}_refilled", what="silent groups replaced")
        chances = refilled_probability(draws, make(*_start(world, settings)))
        kept = tabulated(changes, chances, draws.exact)
        found.append(finding(world, refilled, kept, size))
    return Report(
        question=f"What is the expected update of {name}?",
        tables=(Table(of, f"{of}: {described(world)}", columns(found), tuple(map(row, found))),),
        notes=(
            f"Update = change of θ / (lr · passes), with lr = {settings.lr:g} and {settings.num_epochs} "
            f"{'pass' if settings.num_epochs == 1 else 'passes'} over batches of {settings.num_groups} × "
            f"{settings.group_size} trajectories.",
            *_notes(of, world, found),
        ),
        figures={f"algorithm_{name}": figure(of, found)},
    )


def check(name: str, settings: Settings) -> None:
    """ConfigError for a name that is not in `ALGORITHMS` and for settings out of range."""
    if name not in ALGORITHMS:
        other = f" The algorithm of this estimator is {ALGORITHM_OF[name]}." if name in ALGORITHM_OF else ""
        raise ConfigError(f"lab algorithm {name}: no such algorithm.{other} Known: {', '.join(ALGORITHMS)}.")
    for of in ("group_size", "num_groups", "num_epochs"):
        if getattr(settings, of) < 1:
            raise ConfigError(f"{of}={getattr(settings, of)}: found a value out of range. Use 1 or more.")
    if not 0 < settings.lr < math.inf:
        raise ConfigError(f"lr={settings.lr:g}: the update is divided by it. Use more than 0.")
    if not (0 <= settings.clip_low <= 1 and settings.clip_high >= 0):
        raise ConfigError(
            f"clip_low={settings.clip_low:g}, clip_high={settings.clip_high:g}: found one out of range. Use "
            "a clip_low of 0 to 1 and a clip_high of 0 or more."
        )
    if name not in FAMILY and settings.num_epochs > 1:
        raise ConfigError(
            f"num_epochs={settings.num_epochs} with {name}: the page takes one step on a batch. Use "
            f"num_epochs=1, or one of {', '.join(FAMILY)}."
        )


def _notes(of: str, world: World, found: list[Finding]) -> list[str]:
    notes = [sampling_note(of, found)] if any(f.error for f in found) else []
    if found[0].name == REINFORCE:
        notes.append("The moving average stands at J, where it settles: it has seen many batches.")
    else:
        notes.append("Without a KL term: --kl-coef 0 of gradhat train.")
    if world.mdp.gamma < 1:
        notes.append(f"The page does not discount: it is held against the ∇J of γ = {world.mdp.gamma:g}.")
    return notes


def learner_of(name: str, world: World, settings: Settings, *, length: int) -> Make:
    """Return (policy, optimizer) → what a run of `name` would learn with.

    `length` is the longest that a trajectory can be.
    """
    if name == REINFORCE:
        j = float(expected_return(world.mdp, softmax_policy(world.mdp, world.theta)))
        return lambda policy, optimizer: ReinforceLearner(policy, optimizer, reinforce.Settings(), j)
    numbers = grpo.Settings(
        length=length,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        num_epochs=settings.num_epochs,
    )
    return lambda policy, optimizer: GroupLearner(policy, optimizer, FAMILY[name], numbers, None)


def refilled_probability(draws: Draws, learner: Learner) -> Tensor:
    """Return the probability `[M]` of each batch when the groups that `learner` calls silent are replaced by
    fresh ones, to the end.

    A batch with a silent group never remains; the others keep their proportions. As in training, returns are
    not discounted. ConfigError if no batch is left.
    """
    returns = torch.where(draws.paths.mask, draws.paths.rewards, 0).sum(-1)[draws.rows].flatten()
    group = torch.arange(len(returns)) // draws.group_size
    kept = ~learner.silent(returns, group).reshape(len(draws.rows), -1).any(1)
    if not bool(kept.any()):
        raise ConfigError(
            "lab algorithm: found only silent groups: all trajectories of a start pay the same. "
            "Use another world or a larger --group-size."
        )
    probability = torch.where(kept, draws.probability, 0)
    return probability / probability.sum()


def trajectories(batch: Batch) -> Trajectories:
    """Return a batch as the noun that algorithms take."""
    paths = batch.paths
    return Trajectories(
        observations=[tuple(o) for o in paths.observations.tolist()],
        actions=paths.actions,
        mask=paths.mask,
        logp=batch.logp_old,
        rewards=paths.rewards,
        terminated=paths.terminated,
        truncated=paths.truncated,
        group=batch.group,
        version=torch.zeros(len(paths), dtype=torch.long),
    )


def _start(world: World, settings: Settings) -> tuple[TabularPolicy, Ascent]:
    policy = TabularPolicy(Logits(world.theta))
    return policy, Ascent(policy.module, settings.lr)


def _change(batch: Batch, world: World, make: Make, settings: Settings) -> Tensor:
    policy, optimizer = _start(world, settings)
    make(policy, optimizer).learn(trajectories(batch))
    moved = policy.module.theta.detach() - world.theta
    return moved.flatten() / (settings.lr * settings.num_epochs)
