"""What an estimator estimates: its exact mean and variance, held against the exact gradient."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, cast

import torch
from torch import Tensor

from gradhat.errors import ConfigError
from gradhat.exact import enumerate as every
from gradhat.exact.choices import MULTISETS, Listing, num_batches
from gradhat.exact.enumerate import Draws, Paths
from gradhat.exact.gradient import by_theorem
from gradhat.exact.mdp import TabularMDP
from gradhat.exact.moments import (
    Classes,
    Credit,
    Moments,
    Weights,
    classes,
    counted,
    moments,
    totals,
    weighted,
)

SAMPLED_DRAWS = 20_000
"""Batches drawn at random where they cannot be enumerated."""
SIMULATED_STEPS = 500
"""Longest trajectories that are drawn at random where they cannot be listed: all are held in memory."""
EXACT_DRAWS = 200_000
"""Most batches that are enumerated here; beyond it they are drawn at random."""
SINGLE_DRAWS = 20_000
"""The same where batches are handled one by one, some thousand a second."""
NO_SLOPE = 1e-12
"""A gradient shorter than this is zero: nothing can be compared with it."""


@dataclass(frozen=True, eq=False)
class World:
    """An MDP, the logits θ `[O, A]` where the gradient is taken, and those that sample."""

    mdp: TabularMDP
    theta: Tensor
    theta_old: Tensor
    seed: int = 0
    """Of the batches drawn at random where there are too many to enumerate."""

    @cached_property
    def gradient(self) -> Tensor:
        """∇J `[P]`, exact. ConfigError where it is zero."""
        gradient = by_theorem(self.mdp, self.theta).detach().flatten()
        if float(gradient.norm()) < NO_SLOPE:
            raise ConfigError(
                "compare with the exact gradient: found that it is zero at this policy, so nothing has a "
                "direction. Use another --seed, --spread or --mdp."
            )
        return gradient

    @cached_property
    def paths(self) -> Paths | None:
        """Every trajectory, or None where there are too many."""
        few = every.count_paths(self.mdp) <= every.PATHS_LIMIT
        return every.paths(self.mdp) if few else None

    @cached_property
    def classes(self) -> Classes | None:
        """The trajectories sorted by rewards and lengths; None where there are too many of either."""
        return _unless_too_many(classes, self)

    @cached_property
    def totals(self) -> Classes | None:
        """The trajectories sorted by return alone; None as for `classes`."""
        return _unless_too_many(totals, self)

    @cached_property
    def played(self) -> dict[tuple[int, int], Draws]:
        """Batches that were played, by number and size of their groups: every estimator sees the same."""
        return {}

    def generator(self) -> torch.Generator:
        """Return a fresh generator: every estimator sees the same batches."""
        return torch.Generator().manual_seed(self.seed)


def world(mdp: TabularMDP, *, seed: int, spread: float) -> World:
    """Return `mdp` with a softmax policy of random logits: normal, with standard deviation `spread`."""
    generator = torch.Generator().manual_seed(seed)
    shape = (mdp.num_observations, mdp.num_actions)
    theta = spread * torch.randn(shape, generator=generator, dtype=torch.float64)
    return World(mdp, theta, theta, seed)


@dataclass(frozen=True)
class Specimen:
    """An estimator under the microscope, as the weight of every step's score."""

    name: str
    what: str
    """One line for people."""
    weights: Weights
    sees: Literal["one", "group", "batch"]
    """What one estimate is made from: a trajectory, a group that shares its start, or independent
    trajectories."""
    by_class: bool = False
    """Whether the weights are `Credit`: they look at rewards, lengths and ends only."""
    listing: Listing = MULTISETS
    """TUPLES where the order of the trajectories counts."""
    by_return: bool = False
    """Whether the weights look at returns only and are the same on every step: lengths do not matter then."""
    one_by_one: bool = False
    """Whether batches are handled one by one: then fewer are enumerated."""
    num_samples: Callable[[int], float] | None = None
    """Size of a batch → trajectories that one estimate uses on average, where those are not all."""


@dataclass(frozen=True)
class Finding:
    """What was seen of one estimator."""

    name: str
    what: str
    num_samples: float
    """Trajectories in one estimate, on average."""
    norm_ratio: float
    """‖E ĝ‖ / ‖∇J‖."""
    cosine: float
    """Between E ĝ and ∇J."""
    relative_bias: float
    """‖E ĝ − ∇J‖ / ‖∇J‖."""
    variance: float
    """Total variance of ĝ times `num_samples`, in units of ‖∇J‖²: of one sample, if more are averaged."""
    error: float
    """Root mean squared error of E ĝ in units of ‖∇J‖: 0 where everything was enumerated."""

    @property
    def angle(self) -> float:
        """Between E ĝ and ∇J, in degrees; NaN where E ĝ is zero."""
        if math.isnan(self.cosine):
            return math.nan
        return math.degrees(math.acos(max(-1.0, min(1.0, self.cosine))))

    def squared_error(self, num_samples: float) -> float:
        """Mean squared error of the average over `num_samples` trajectories, in units of ‖∇J‖².

        Where E ĝ comes from a sample, its own squared error is taken off the squared bias.
        """
        return max(0.0, self.relative_bias**2 - self.error**2) + self.variance / num_samples


def examine(world: World, specimen: Specimen, *, group_size: int) -> Finding:
    """Return what the estimator estimates in this world, in batches of `group_size` trajectories."""
    num_groups, size = {"one": (1, 1), "group": (1, group_size), "batch": (group_size, 1)}[specimen.sees]
    seen = specimen_moments(world, specimen, num_groups, size)
    batch_size = num_groups * size
    used = batch_size if specimen.num_samples is None else specimen.num_samples(batch_size)
    return finding(world, specimen, seen, used)


def specimen_moments(world: World, specimen: Specimen, num_groups: int, group_size: int) -> Moments:
    """Return the moments of one estimate: exact where its batches can be enumerated or counted."""
    sorted_ = world.totals if specimen.by_return else world.classes if specimen.by_class else None
    if sorted_ is not None and world.theta is world.theta_old:
        start = sorted_.paths.states[:, 0]
        if num_batches(start, num_groups, group_size, specimen.listing) <= _limit(specimen.one_by_one):
            return counted(
                sorted_,
                cast(Credit, specimen.weights),
                num_groups=num_groups,
                group_size=group_size,
                listing=specimen.listing,
            )
    draws = some_draws(
        world,
        num_groups=num_groups,
        group_size=group_size,
        listing=specimen.listing,
        one_by_one=specimen.one_by_one,
    )
    return moments(draws, weighted(specimen.weights))


def some_draws(
    world: World,
    *,
    num_groups: int,
    group_size: int,
    listing: Listing = MULTISETS,
    one_by_one: bool = False,
) -> Draws:
    """Return all batches where they are not too many, else batches drawn at random (`exact` is false).

    ConfigError where trajectories can neither be listed nor be cut after `SIMULATED_STEPS` steps or fewer.
    """
    paths = world.paths
    if paths is None:
        return _played(world, num_groups, group_size)
    if num_batches(paths.states[:, 0], num_groups, group_size, listing) <= _limit(one_by_one):
        return every.draws(
            paths,
            world.theta,
            theta_old=world.theta_old,
            num_groups=num_groups,
            group_size=group_size,
            listing=listing,
        )
    return every.sampled(
        paths,
        world.theta,
        theta_old=world.theta_old,
        num_groups=num_groups,
        group_size=group_size,
        num_draws=SAMPLED_DRAWS,
        generator=world.generator(),
    )


def _limit(one_by_one: bool) -> int:
    return SINGLE_DRAWS if one_by_one else EXACT_DRAWS


def _played(world: World, num_groups: int, group_size: int) -> Draws:
    """Return batches played in a world whose trajectories are too many to list."""
    key = num_groups, group_size
    if key not in world.played:
        _check_short(world.mdp)
        world.played[key] = every.simulated(
            world.mdp,
            world.theta,
            theta_old=world.theta_old,
            num_groups=num_groups,
            group_size=group_size,
            num_draws=SAMPLED_DRAWS,
            max_steps=SIMULATED_STEPS,
            generator=world.generator(),
        )
    return world.played[key]


def _check_short(mdp: TabularMDP) -> None:
    if mdp.max_steps is None or mdp.max_steps > SIMULATED_STEPS:
        found = "no horizon" if mdp.max_steps is None else f"horizon={mdp.max_steps}"
        raise ConfigError(
            f"draw trajectories at random, as there are {_number(mdp)} and the limit of a list is "
            f"{every.PATHS_LIMIT}: found {found}. Use a --horizon of at most {SIMULATED_STEPS}."
        )


def _number(mdp: TabularMDP) -> str:
    number = every.count_paths(mdp)
    return "endlessly many" if number == math.inf else f"{number:.4g}"


def _unless_too_many(sort: Callable[[Paths, Tensor], Classes], world: World) -> Classes | None:
    if world.paths is None:
        return None
    try:
        return sort(world.paths, world.theta_old)
    except ValueError:
        return None


def finding(world: World, specimen: Specimen, seen: Moments, num_samples: float) -> Finding:
    """Hold the moments of one estimate against ∇J."""
    truth = world.gradient
    length = float(truth.norm())
    norm = float(seen.mean.norm())
    return Finding(
        name=specimen.name,
        what=specimen.what,
        num_samples=num_samples,
        norm_ratio=norm / length,
        cosine=float(seen.mean @ truth) / (norm * length) if norm > NO_SLOPE else math.nan,
        relative_bias=float((seen.mean - truth).norm()) / length,
        variance=num_samples * seen.variance / length**2,
        error=seen.error / length,
    )


def listed(world: World) -> Paths:
    """Return every trajectory of the world.

    ConfigError where there are too many, or where a time limit cuts them: then J is not what they pay.
    """
    if world.mdp.time_limit is not None:
        raise ConfigError(
            f"list every trajectory of this world to its end: found time_limit={world.mdp.time_limit}, "
            "behind which J goes on. Use another --mdp; lab bias and lab mine take this one."
        )
    if world.paths is None:
        raise ConfigError(
            f"list every trajectory of this world: found {_number(world.mdp)}, the limit is "
            f"{every.PATHS_LIMIT}. Use a smaller world or one with a horizon."
        )
    return world.paths


def ascent(paths: Paths, theta: Tensor, *, lr: float, updates: int) -> Tensor:
    """Return θ_0 = `theta` and θ_{k+1} = θ_k + lr · ∇J(θ_k), exact: `[updates + 1, O, A]`."""
    points = [theta.detach()]
    for _ in range(updates):
        leaf = points[-1].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(paths.probability(leaf) @ paths.returns(), leaf)
        points.append(points[-1] + lr * gradient)
    return torch.stack(points)


def check_lr(lr: float) -> None:
    """ConfigError for a learning rate that is no size of a step."""
    if not 0 < lr < math.inf:
        raise ConfigError(f"--lr {lr:g}: a step needs a positive, finite size. Use more than 0.")
