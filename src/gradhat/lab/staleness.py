"""`gradhat lab staleness`: what each off-policy correction costs as the sampler falls behind."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from gradhat.errors import ConfigError
from gradhat.estimators import offpolicy, ratios
from gradhat.exact.enumerate import Batch, Paths, batch, score_dots, step_scores
from gradhat.exact.gradient import by_theorem
from gradhat.exact.moments import Moments, Weights
from gradhat.lab import shelf
from gradhat.lab.bias import SAMPLES, UNBIASED, described
from gradhat.lab.figure import COLOURS, INK, NOISE, End, label_ends, log_axis, name_axes, panels
from gradhat.lab.microscope import NO_SLOPE, Finding, Specimen, World, ascent, check_lr, finding, listed
from gradhat.lab.report import Column, Report, Row, Table, Value
from gradhat.losses import surrogate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BEHIND = "updates behind, and below KL(π‖old) per trajectory in nats"


class Bounds(NamedTuple):
    """Of the corrections that bound their weights."""

    clip: float = 0.2
    """PPO: a ratio beyond 1 ± clip, in the direction of its credit, gets no gradient."""
    cap: float = 2.0
    """Largest weight of the truncated ratios."""
    low: float = 0.5
    """Smallest ratio that the masked one keeps."""
    high: float = 5.0
    """Largest ratio that the masked one keeps."""


Ratio = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logp, logp_old, mask) → log-ratio `[N, T]` or `[N, 1]`: a function of `estimators.ratios`."""


@dataclass(frozen=True, eq=False)
class Stale:
    """Trajectories of the old policy, and what the learner makes of them."""

    batch: Batch
    logp: Tensor
    """Of the learner `[N, T]`, a leaf."""
    v: Tensor
    """The learner's exact V `[T + 1, S]`."""

    @cached_property
    def adv(self) -> Tensor:
        """R(τ) − V(s₀) `[N, 1]`: what all corrections but V-trace credit every step with."""
        return self.batch.returns()[:, None] - self.start_value

    @property
    def start_value(self) -> Tensor:
        """V(s₀) `[N, 1]`."""
        return self.v[0, self.batch.paths.states[:, :1]]

    @cached_property
    def steps(self) -> Tensor:
        """The steps before the end `[N, T]`, those included where the world moves by itself, at ratio 1."""
        return shelf.real_steps(self.batch)

    def log_ratio(self, of: Ratio) -> Tensor:
        """Return a log-ratio, with gradient."""
        return of(self.logp, self.batch.logp_old, self.batch.mask)


class Correction(NamedTuple):
    """An off-policy correction, as the objective whose gradient is taken."""

    name: str
    what: str
    objective: "Objective"


Objective = Callable[[Stale], Tensor]
"""What is to be summed and differentiated by `logp`: `[N, T]` or `[N, 1]`."""
FRESH = "fresh samples"
"""No correction of samples that need none, for comparison."""


def corrections(bounds: Bounds) -> list[Correction]:
    """Return every correction. The two exact ones come last."""
    clip, cap, low, high = bounds
    return [
        Correction("no correction", "1", uncorrected),
        Correction("clipped", f"ratio of the step, PPO's clip {clip:g}", clipped(clip)),
        Correction("masked", f"ratio of the step, 0 outside [{low:g}, {high:g}]", masked(low, high)),
        Correction("sequence", "geometric mean of the ratios (GSPO)", sequence),
        Correction("token", "ratio of the step", token),
        Correction("truncated token", f"ratio of the step, at most {cap:g}", truncated_token(cap)),
        Correction("V-trace", "IMPALA's credit, ρ̄ = c̄ = 1", vtrace),
        Correction("truncated trajectory", f"product of all, at most {cap:g}", truncated_trajectory(cap)),
        Correction("per decision", "product up to the step, then up to each reward", per_decision),
        Correction("trajectory", "product of all ratios", trajectory),
    ]


def uncorrected(stale: Stale) -> Tensor:
    """Treat stale samples as fresh ones."""
    return surrogate.reinforce(stale.log_ratio(ratios.token), stale.adv)


def token(stale: Stale) -> Tensor:
    """Weigh each step with its own ratio."""
    return surrogate.importance_weighted(stale.log_ratio(ratios.token), stale.adv)


def clipped(clip: float) -> Objective:
    """As `token`, without the steps that moved past 1 ± clip in the direction of their credit."""
    return lambda stale: surrogate.clipped(stale.log_ratio(ratios.token), stale.adv, low=clip, high=clip)


def truncated_token(cap: float) -> Objective:
    """As `token`, with ratios of at most `cap`."""

    def objective(stale: Stale) -> Tensor:
        log_ratio = stale.log_ratio(ratios.token)
        weight = offpolicy.truncate(log_ratio.exp(), high=cap)
        return surrogate.reinforce(log_ratio, stale.adv * weight)

    return objective


def masked(low: float, high: float) -> Objective:
    """As `token`, without the steps whose ratio lies outside [low, high]."""

    def objective(stale: Stale) -> Tensor:
        log_ratio = stale.log_ratio(ratios.token)
        weight = offpolicy.mask_outside(log_ratio.exp(), low=low, high=high)
        return surrogate.reinforce(log_ratio, stale.adv * weight)

    return objective


def sequence(stale: Stale) -> Tensor:
    """Weigh every step with the geometric mean of the ratios.

    The gradient of that mean is the mean of the steps' scores: summed over the steps it is their sum.
    """
    log_ratio = stale.log_ratio(ratios.sequence)
    return surrogate.importance_weighted(log_ratio, stale.adv) * stale.batch.mask


def trajectory(stale: Stale) -> Tensor:
    """Weigh the trajectory with the product of its ratios. Its return counts once, not once per step."""
    return surrogate.importance_weighted(stale.log_ratio(ratios.trajectory), stale.adv)


def truncated_trajectory(cap: float) -> Objective:
    """As `trajectory`, with products of at most `cap`."""

    def objective(stale: Stale) -> Tensor:
        log_ratio = stale.log_ratio(ratios.trajectory)
        weight = offpolicy.truncate(log_ratio.exp(), high=cap)
        return surrogate.reinforce(log_ratio, stale.adv * weight)

    return objective


def per_decision(stale: Stale) -> Tensor:
    """Weigh each step with the ratios up to it, and each later reward with those up to it as well.

    Rewards before the step are known when it acts, so they may stand in its baseline: the credit
    Σ_{k<t} γ^k r_k + Σ_{k≥t} γ^k ρ_{t+1:k} r_k − V(s₀) is R(τ) − V(s₀) where all ratios are 1.
    """
    batch = stale.batch
    step = stale.log_ratio(ratios.token).detach()
    weighted = offpolicy.per_decision(batch.rewards, step, stale.steps.double(), gamma=batch.gamma)
    prefix = stale.log_ratio(ratios.prefix)
    paid = shelf.discounts(batch) * batch.rewards
    before = paid.cumsum(-1) - paid
    ahead = weighted.flip(-1).cumsum(-1).flip(-1)
    # `ahead` has the ratios up to the step in it: a division by them would be by 0 where they underflow.
    psi = step.cumsum(-1).exp() * (before - stale.start_value) + ahead
    return surrogate.reinforce(prefix, psi) * batch.mask


def vtrace(stale: Stale) -> Tensor:
    """Take the credit γ^t ρ_t (r_t + γ vs_{t+1} − V(s_t)) of V-trace, with the learner's exact V."""
    batch = stale.batch
    log_ratio = stale.log_ratio(ratios.token)
    adv = offpolicy.vtrace(
        batch.rewards,
        *shelf.around(stale.v, batch.paths),
        log_ratio.detach(),
        batch.terminated,
        batch.terminated | batch.truncated,
        stale.steps,
        gamma=batch.gamma,
        rho_max=1.0,
        c_max=1.0,
    ).adv
    return surrogate.reinforce(log_ratio, shelf.discounts(batch) * adv)


class Point(NamedTuple):
    """What was seen where the learner is `updates` steps ahead of the sampler."""

    updates: int
    kl: float
    """KL(π_θ ‖ π_old) over trajectories, in nats."""
    ess: float
    """1 / E[ρ(τ)²]: how many samples of π_θ a stale one is worth under exact weights."""
    expected_return: float
    norm: float
    """‖∇J(θ)‖."""
    findings: tuple[Finding, ...]


SHOWN = 6
"""Numbers of updates that people see in the tables of bias and variance."""
DISTANCE = (
    Column("updates", "updates behind", "d"),
    Column("kl", "KL(π‖old)", ".4f"),
    Column("ess", "effective samples", ".4f"),
    Column("expected_return", "J", ".4f"),
    Column("norm", "‖∇J‖", ".4f"),
)


def staleness(
    worlds: dict[str, World], *, updates: int = 10, lr: float = 4.0, bounds: Bounds | None = None
) -> Report:
    """Return bias and variance of every correction, for a learner 0 to `updates` steps ahead of the sampler.

    A world's θ samples. The learner is where that many exact gradient steps of size `lr` lead. ConfigError
    for settings out of range, and for a world with too many trajectories to list.
    """
    bounds = bounds or Bounds()
    check(updates, lr, bounds)
    bias, noise = wide_columns("relative_bias", ".3f", updates), wide_columns("variance", ".1f", updates)
    tables: list[Table] = []
    said: list[str] = []
    figures: dict[str, Figure] = {}
    for name, world in worlds.items():
        points = along(world, updates, lr, corrections(bounds))
        rows = tuple(wide_row(points, i) for i in range(len(points[0].findings)))
        tables += [
            Table(f"{name}_distance", f"{name}: {described(world)}", DISTANCE, tuple(map(by_update, points))),
            Table(f"{name}_bias", f"{name}: bias, by updates behind", bias, rows),
            Table(f"{name}_variance", f"{name}: variance, by updates behind", noise, rows),
        ]
        said.append(verdict(name, points[-1]))
        figures[f"staleness_{name}"] = figure(name, points)
    return Report(
        question="What does each off-policy correction cost as the sampler falls behind?",
        tables=tuple(tables),
        notes=(*notes(updates, lr), *said),
        figures=figures,
    )


def along(world: World, updates: int, lr: float, tried: Sequence[Correction]) -> list[Point]:
    """Return what is seen at the world's θ and after each of the learner's updates.

    ConfigError where an update leaves no gradient to compare with.
    """
    paths = listed(world)
    points: list[Point] = []
    for k, theta in enumerate(ascent(paths, world.theta, lr=lr, updates=updates)):
        if k and not float(by_theorem(world.mdp, theta).norm()) >= NO_SLOPE:
            raise ConfigError(
                f"--lr {lr:g} with --updates {updates}: found that ∇J is zero after {k}, so nothing has a "
                "direction. Use a smaller --lr or fewer --updates."
            )
        points.append(point(World(world.mdp, theta, world.theta, world.seed), paths, k, tried))
    return points


def check(updates: int, lr: float, bounds: Bounds) -> None:
    """ConfigError for settings that cannot be honoured."""
    if updates < 1:
        raise ConfigError(f"--updates {updates}: so the sampler never falls behind. Use 1 or more.")
    check_lr(lr)
    for flag, value, good, use in (
        ("clip", bounds.clip, 0 <= bounds.clip < math.inf, "a finite number of 0 or more"),
        ("cap", bounds.cap, 0 < bounds.cap < math.inf, "a finite number above 0"),
        ("low", bounds.low, 0 <= bounds.low <= 1, "0 to 1"),
        ("high", bounds.high, 1 <= bounds.high < math.inf, "a finite number of 1 or more"),
    ):
        if not good:
            raise ConfigError(f"--{flag} {value:g}: found a value out of range. Use {use}.")


def point(world: World, paths: Paths, updates: int, tried: Sequence[Correction]) -> Point:
    """Return what every correction estimates, from trajectories of `world.theta_old`, at `world.theta`."""
    logp, logp_old = paths.logp(world.theta).detach(), paths.logp(world.theta_old).detach()
    chance, new = paths.probability(world.theta_old).detach(), paths.probability(world.theta).detach()
    v, dots = shelf.state_values(world.mdp, world.theta), score_dots(paths, step_scores(paths, world.theta))

    def seen(name: str, what: str, objective: Objective, old: Tensor, chance: Tensor) -> Finding:
        # A trajectory that is never sampled may have no ratio: its logp can be -inf under both policies.
        rows = chance.nonzero()[:, 0]
        each = batch(paths, world.theta, logp, old, rows[:, None], 1)
        specimen = Specimen(name, what, weights(objective, v), "one")
        return finding(world, specimen, moments(each, chance[rows], dots[rows], specimen.weights), 1)

    log_ratio = (logp - logp_old).sum(-1)
    return Point(
        updates=updates,
        kl=float(torch.where(new > 0, new * log_ratio, 0).sum()),
        ess=1 / float(torch.where(chance > 0, chance * (2 * log_ratio).exp(), 0).sum()),
        expected_return=float(new @ paths.returns()),
        norm=float(world.gradient.norm()),
        findings=(
            *(seen(c.name, c.what, c.objective, logp_old, chance) for c in tried),
            seen(FRESH, "1, sampled by the learner itself", uncorrected, logp, new),
        ),
    )


def weights(objective: Objective, v: Tensor) -> Weights:
    """Return w_it = ∂ objective / ∂ log π(a_it | s_it), the weights of the scores in its gradient."""

    def slope(batch: Batch) -> Tensor:
        logp = batch.logp.detach().clone().requires_grad_()
        return torch.autograd.grad(objective(Stale(batch, logp, v)).sum(), logp)[0]

    return slope


def moments(each: Batch, chance: Tensor, dots: Tensor, weights: Weights) -> Moments:
    """Return the moments of ĝ from one trajectory: those of `exact.moments`, without a gradient for each.

    `each` has every trajectory as a draw of its own, with the probability `chance` `[N]`. ValueError for a
    weight that is not finite.
    """
    w = weights(each)
    if not bool(w.isfinite().all()):
        wrong = (~w.isfinite()).nonzero()[0].tolist()
        raise ValueError(
            f"the correction returned {float(w[tuple(wrong)])} at {wrong}: every weight must be finite. Use "
            "policies that are nearer to each other."
        )
    together = replace(each, draw=torch.zeros_like(each.draw), num_draws=1)
    mean = together.score(chance[:, None] * w)[0]
    square = float(chance @ (w[:, None, :] @ dots @ w[:, :, None]).flatten())
    return Moments(mean, max(0.0, square - float(mean.square().sum())), 0.0)


def by_update(point: Point) -> Row:
    """Return how far the learner is from the sampler."""
    return {key: value for key, value in point._asdict().items() if key != "findings"}


def wide_row(points: Sequence[Point], index: int) -> Row:
    """Return one correction after every number of updates."""
    first = points[0].findings[index]
    wide: dict[str, Value] = {"name": first.name, "what": first.what}
    for p in points:
        found = p.findings[index]
        for key in ("relative_bias", "variance", "norm_ratio", "cosine"):
            wide[f"{key}_{p.updates}"] = getattr(found, key)
        for n in SAMPLES:
            wide[f"mse_{n}_{p.updates}"] = found.squared_error(n)
    return wide


def wide_columns(key: str, form: str, updates: int) -> tuple[Column, ...]:
    """Return a column for some numbers of updates, evenly spread; the rows have all."""
    few = sorted({round(k * updates / (SHOWN - 1)) for k in range(SHOWN)})
    behind = (Column(f"{key}_{k}", str(k), form) for k in few)
    return (Column("name", "correction", ""), *behind, Column("what", "weight", ""))


def notes(updates: int, lr: float) -> tuple[str, ...]:
    """Return how to read the numbers."""
    return (
        f"θ_old samples; the learner has since made 0 to {updates} exact gradient steps of size {lr:g}. "
        "bias = ‖Eĝ − ∇J‖/‖∇J‖; variance = total variance of ĝ per trajectory in units of ‖∇J‖²; ∇J is the "
        "learner's. ∇J and its noise change on the way even with fresh samples, which are shown beside.",
        "Every step is credited with R(τ) − V(s₀), by V-trace with its own credit from V(s), where V is the "
        "learner's and exact.",
        "per decision and trajectory are exact: unbiased at any distance, at the price of variance. The clip "
        "is no estimator of ∇J but a bound on the step: it drops what has moved.",
        "effective samples = 1/E[ρ(τ)²]: how many fresh trajectories a stale one is worth under exact "
        "weights.",
    )


def verdict(name: str, last: Point) -> str:
    """Return the sentence about a world after the last update."""
    stale = last.findings[:-1]
    best = ", ".join(f"{min(stale, key=lambda f: f.squared_error(n)).name} from {n}" for n in SAMPLES)
    return (
        f"{name}: {last.updates} updates behind, the stale estimator with the least mean squared error is "
        f"{best} trajectories."
    )


def figure(name: str, points: Sequence[Point]) -> "Figure":
    """Draw bias and variance against the updates that the sampler is behind."""
    drawn, (left, right) = panels(2, title=f"Learning from stale samples ({name})", width=5.6)
    # Fresh samples have no bias to show.
    biased = _draw(left, points, "relative_bias", len(points[0].findings) - 1)
    name_axes(left, title="Bias: the thick lines have none", x=BEHIND, y="‖Eĝ − ∇J‖ / ‖∇J‖")
    label_ends(left, biased)
    noisy = _draw(right, points, "variance", len(points[0].findings))
    log_axis(right, "y")
    name_axes(right, title="Variance: the price", x=BEHIND, y=NOISE)
    label_ends(right, noisy)
    return drawn


def _draw(ax: "Axes", points: Sequence[Point], key: str, count: int) -> list[End]:
    """Draw the first `count` findings and return the labels of the lines."""
    ends: list[End] = []
    x = [p.updates for p in points]
    for i, first in enumerate(points[0].findings[:count]):
        found: list[float] = [getattr(p.findings[i], key) for p in points]
        y = [0.0 if number < UNBIASED else number for number in found]
        fresh = first.name == FRESH
        exact = all(p.findings[i].relative_bias < UNBIASED for p in points)
        colour = INK if fresh else COLOURS[i]
        ax.plot(x, y, ":" if fresh else "-", color=colour, lw=2.2 if exact and not fresh else 1.2)
        ends.append(End(x[-1], y[-1], first.name, colour))
    ticks = points[:: max(1, math.ceil(len(points) / 7))]
    ax.set_xticks([p.updates for p in ticks], [f"{p.updates}\n{p.kl:.2g}" for p in ticks])
    return ends
