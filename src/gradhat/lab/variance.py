"""`gradhat lab variance`: what takes noise out of ĝ, and what that costs in bias."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from gradhat.errors import ConfigError
from gradhat.estimators import group
from gradhat.exact.enumerate import Batch, Outcomes
from gradhat.exact.mdp import softmax_policy
from gradhat.exact.moments import Credit, Weights
from gradhat.exact.solve import expected_return
from gradhat.lab import shelf
from gradhat.lab.bias import SAMPLED_COLUMN, UNBIASED, all_exact, described, row, sampling_note
from gradhat.lab.figure import (
    BLUE,
    COLOURS,
    FAINT,
    FONT,
    INK,
    NOISE,
    End,
    label_ends,
    log_axis,
    name_axes,
    panels,
)
from gradhat.lab.microscope import Finding, Specimen, World, examine, listed
from gradhat.lab.report import Column, Report, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUMBERS = (16, 64, 256, 1024)
"""Numbers of trajectories whose mean squared error is listed and drawn against λ."""
LARGEST_ERROR = 1e6
"""Of the wrong V: with more of it, what is left of the return is lost in rounding."""
EXACT_V, WRONG_V, NO_V = "exact V", "V with an error", "V = 0"
LEFT_OUT, RESCALED = "leave one out", "group mean ÷ (G − 1)/G"
TRACE = "λ   (0: one reward, then V; 1: all rewards)"


class Settings(NamedTuple):
    """What is varied."""

    group_size: int = 4
    """Of the groups in the comparison of baselines."""
    sizes: tuple[int, ...] = (2, 4, 8, 16)
    """Group sizes that are compared with each other."""
    lams: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
    """Values of λ."""
    error: float = 0.5
    """Standard deviation of the fixed error of the wrong V, in standard deviations of the return."""
    decay: float = 0.9
    """Of the moving average, which moves after every trajectory."""


class Return(NamedTuple):
    """What a step's score is multiplied with, before a baseline is taken off."""

    name: str
    gain: Credit
    unit: Credit
    """What a baseline of 1 takes off, per step: γ^t under the return to go."""


class Seen(NamedTuple):
    """A finding, and what was varied."""

    key: str
    """The baseline, or what V is."""
    x: float
    """λ, or the size of the group."""
    finding: Finding


SHARED = (
    Column("norm_ratio", "length", ".4f"),
    Column("relative_bias", "bias", ".4f"),
    Column("variance", "variance", ".3f"),
)
BASELINES = (Column("key", "baseline", ""), Column("what", "credit", ""), *SHARED)
LAMBDAS = (
    Column("key", "V", ""),
    Column("x", "λ", "g"),
    *SHARED[1:],
    *(Column(f"mse_{n}", f"MSE {n}", ".4f") for n in NUMBERS),
)
SIZES = (Column("key", "estimator", ""), Column("x", "G", "g"), *SHARED)


def variance(worlds: dict[str, World], settings: Settings | None = None) -> Report:
    """Return how the variance of ĝ falls with baselines, with λ and with the size of the group.

    ConfigError for a world with too many trajectories to list, and for settings out of range.
    """
    settings = settings or Settings()
    check(settings)
    tables: list[Table] = []
    said: list[str] = []
    figures: dict[str, Figure] = {}
    for name, world in worlds.items():
        listed(world)
        baselines, lams = by_baseline(world, settings), by_lambda(world, settings)
        sizes = by_size(world, settings)
        tables += [
            table(f"{name}_baselines", f"{name}: {described(world)}", BASELINES, baselines),
            shortened(table(f"{name}_lambda", f"{name}: GAE, by λ and by what V is", LAMBDAS, lams)),
            table(f"{name}_group_size", f"{name}: R(τ) less a baseline of the group", SIZES, sizes),
        ]
        said += findings_of(name, world, baselines, lams, sizes)
        figures[f"variance_{name}"] = baseline_figure(name, settings, baselines, sizes, references(world))
        figures[f"variance_lambda_{name}"] = lambda_figure(name, lams)
    return Report(
        question="What takes noise out of ĝ, and what does it cost?",
        tables=tuple(tables),
        notes=(*notes(settings), *said),
        figures=figures,
    )


def check(settings: Settings) -> None:
    """ConfigError for settings that cannot be honoured."""
    sizes = (settings.group_size, *settings.sizes)
    if not settings.sizes or min(sizes) < 2:
        raise ConfigError(
            f"--group-size {settings.group_size} --sizes {' '.join(map(str, settings.sizes))}: found one "
            "below 2, or none to compare. A trajectory is compared with others of its group: use sizes of 2 "
            "or more."
        )
    if not settings.lams or not all(0 <= lam <= 1 for lam in settings.lams):
        raise ConfigError(
            f"--lams {' '.join(f'{lam:g}' for lam in settings.lams)}: found none, or one outside [0, 1]. λ "
            "weighs the future: use values from 0 to 1."
        )
    if not 0 <= settings.error <= LARGEST_ERROR:
        raise ConfigError(
            f"--error {settings.error:g}: found a value out of range. Use 0 to {LARGEST_ERROR:g} standard "
            "deviations of the return."
        )
    if not 0 <= settings.decay < 1:
        raise ConfigError(f"--decay {settings.decay:g}: found a value out of range. Use 0 to below 1.")


def by_baseline(world: World, settings: Settings) -> list[Seen]:
    """Return every baseline under the total return and under the return to go."""
    to_go = Return("return to go", shelf.return_to_go(world.mdp.gamma), shelf.discounts)
    return [
        *_with_baselines(world, settings, total_return(world)),
        *_with_baselines(world, settings, to_go),
    ]


def total_return(world: World) -> Return:
    """Return R(τ), from which a baseline is taken as it is."""
    return Return("total return", shelf.total_return(world.mdp.gamma, 0.0), _ones)


def _ones(outcomes: Outcomes) -> Tensor:
    return torch.ones_like(outcomes.rewards)


def _with_baselines(world: World, settings: Settings, of: Return) -> list[Seen]:
    size = settings.group_size
    v = shelf.state_values(world.mdp, world.theta)
    mean = expected_return(world.mdp, softmax_policy(world.mdp, world.theta))

    def found(name: str, weights: Weights, by_class: bool = True) -> Finding:
        return examine(world, Specimen(name, of.name, weights, "one", by_class), group_size=1)

    def of_group(name: str, rule: shelf.Baseline) -> Finding:
        credit = less(of, lambda b: rule(b.returns(), b.group)[:, None])
        return examine(world, Specimen(name, of.name, credit, "group", by_class=True), group_size=size)

    constant = found("constant J", less(of, lambda _: mean))
    score = found("", lambda b: of.unit(b) * shelf.per_trajectory(b))
    findings = (
        found("none", of.gain),
        of_group("group mean", group.group_mean),
        of_group(LEFT_OUT, group.leave_one_out),
        wandering(world, settings.decay, constant, score),
        constant,
        found("exact V(s)", less_value(of, v), by_class=False),
    )
    return [Seen(f.name, f.num_samples, f) for f in findings]


def less(of: Return, baseline: Credit) -> Credit:
    """Return the weights of a return less a baseline, `[B, T]`, `[B, 1]` or a number."""
    return lambda b: of.gain(b) - of.unit(b) * baseline(b) * shelf.per_trajectory(b)


def less_value(of: Return, v: Tensor) -> Weights:
    """Return the weights of a return less V(s_t), with the values `v` `[T + 1, S]`."""

    def weights(batch: Batch) -> Tensor:
        states = batch.paths.states
        return less(of, lambda _: v[torch.arange(states.shape[1]), states])(batch)

    return weights


def wandering(world: World, decay: float, constant: Finding, score: Finding) -> Finding:
    """Return the finding of a moving average b of earlier returns, from that of the constant J.

    b ← decay · b + (1 − decay) · R after every trajectory. In the long run E b = J and
    Var b = (1 − decay) / (1 + decay) · Var R, independent of the trajectory that b judges. So the mean of ĝ
    is that with J, and Var b · E‖Σ_t ∇ log π‖² is added to the variance: `score` has that.
    """
    noise = (1 - decay) / (1 + decay) * float(return_deviation(world)) ** 2
    return replace(constant, name="moving average", variance=constant.variance + noise * score.variance)


def return_deviation(world: World) -> Tensor:
    """Return the standard deviation of R(τ)."""
    paths = listed(world)
    chance, r = paths.probability(world.theta_old).detach(), paths.returns()
    return (chance @ (r - chance @ r).square()).sqrt()


def by_lambda(world: World, settings: Settings) -> list[Seen]:
    """Return GAE with the exact V, with a V that has a fixed random error, and with V = 0."""
    v = shelf.state_values(world.mdp, world.theta)
    # The world's own seed made θ: an error of the same numbers would be correlated with the policy.
    generator = torch.Generator().manual_seed(world.seed + 1)
    error = torch.randn(v.shape[1], generator=generator, dtype=v.dtype)
    wrong = v + settings.error * return_deviation(world) * error
    return [
        Seen(key, lam, examine(world, _gae(world, key, lam, values), group_size=1))
        for key, values in ((EXACT_V, v), (WRONG_V, wrong), (NO_V, torch.zeros_like(v)))
        for lam in sorted(settings.lams)
    ]


def _gae(world: World, name: str, lam: float, values: Tensor) -> Specimen:
    return Specimen(name, f"GAE, λ = {lam:g}", shelf.gae_weights(world.mdp.gamma, lam, values), "one")


def by_size(world: World, settings: Settings) -> list[Seen]:
    """Return R(τ) less a baseline of the group, for every size of it."""

    def seen(name: str, size: int, shrink: float, rule: shelf.Baseline) -> Seen:
        weights = shelf.compared(rule, group.no_scale, shelf.per_trajectory)
        scaled = Specimen(
            f"{name} (G = {size})",
            "total return",
            lambda b: weights(b) / shrink,
            "group",
            by_class=True,
            by_return=True,
        )
        return Seen(name, size, examine(world, scaled, group_size=size))

    return [
        *(seen(LEFT_OUT, n, 1.0, group.leave_one_out) for n in sorted(settings.sizes)),
        *(seen("group mean", n, 1.0, group.group_mean) for n in sorted(settings.sizes)),
        *(seen(RESCALED, n, (n - 1) / n, group.group_mean) for n in sorted(settings.sizes)),
    ]


def references(world: World) -> list[Finding]:
    """Return what groups are compared with: trajectories that are judged by themselves."""
    v = shelf.state_values(world.mdp, world.theta)
    total = total_return(world)

    def less_start(batch: Batch) -> Tensor:
        start = v[0, batch.paths.states[:, :1]]
        return less(total, lambda _: start)(batch)

    return [
        examine(world, specimen, group_size=1)
        for specimen in (
            Specimen("no baseline", "R(τ)", total.gain, "one", by_class=True),
            Specimen("V of the start", "R(τ) − V(s₀)", less_start, "one"),
            Specimen(
                "V of every step", "return to go − V(s)", shelf.against_value(world.mdp.gamma, v), "one"
            ),
        )
    ]


def table(name: str, title: str, columns: tuple[Column, ...], seen: Sequence[Seen]) -> Table:
    """Return findings as a table, in which ± marks what was sampled."""
    exact = all_exact([s.finding for s in seen])
    rows = tuple(
        {
            "key": s.key,
            "x": s.x,
            **row(s.finding),
            **{f"mse_{n}": s.finding.squared_error(n) for n in NUMBERS},
        }
        for s in seen
    )
    return Table(name, title, columns if exact else (*columns, SAMPLED_COLUMN), rows)


def shortened(lambdas: Table) -> Table:
    """Show people every third λ and the largest."""
    values = sorted({float(row["x"]) for row in lambdas.rows})
    some = {*values[::3], values[-1]}
    return lambdas._replace(few=tuple(row for row in lambdas.rows if row["x"] in some))


def notes(settings: Settings) -> tuple[str, ...]:
    """Return how to read the numbers."""
    return (
        "length = ‖Eĝ‖/‖∇J‖, bias = ‖Eĝ − ∇J‖/‖∇J‖, variance = total variance of ĝ per trajectory and MSE n "
        "= mean squared error over n trajectories, both in units of ‖∇J‖².",
        "A baseline helps the credit whose mean it is: J and the group mean the total return, V(s) the "
        "return to go. The two credits differ where rewards come along the way.",
        f"Groups of baselines have {settings.group_size} trajectories. The moving average has the decay "
        f"{settings.decay:g}. The V with an error is off by {settings.error:g} standard deviations of the "
        "return, at random in every state.",
        "The group mean contains the trajectory's own return. Taken off the total return it shortens ĝ to "
        "(G − 1)/G and is no quieter for it: divided by that factor it is leave one out. The return to go is "
        "shortened alike where nothing is discounted, and by another factor with a discount.",
    )


def findings_of(
    name: str, world: World, baselines: Sequence[Seen], lams: Sequence[Seen], sizes: Sequence[Seen]
) -> list[str]:
    """Return what the numbers of one world say."""
    raw, best = baselines[0].finding, min((s.finding for s in baselines), key=_noise)
    where = ", ".join(f"{best_lambda(lams, WRONG_V, n):g} for {n}" for n in NUMBERS)
    found = [s.finding for s in (*baselines, *sizes)]
    said = [
        f"{name}: the {raw.what} without a baseline needs {_noise(raw) / _noise(best):.3g} times as many "
        f"trajectories as the {best.what} with {best.name}, for the same noise. The best λ for {WRONG_V} is "
        f"{where} trajectories."
    ]
    if (starts := int((world.mdp.start > 0).sum())) > 1:
        said.append(
            f"{name}: {starts} start states. A larger group is also a batch with fewer of them, which adds "
            "noise."
        )
    if not all_exact(found):
        said.append(sampling_note(name, found))
    return said


def _noise(finding: Finding) -> float:
    """Variance relative to the length of E ĝ: a shorter ĝ is not a quieter one."""
    return finding.variance / finding.norm_ratio**2


def best_lambda(lams: Sequence[Seen], key: str, num_samples: int) -> float:
    """Return the λ with the least mean squared error over `num_samples` trajectories."""
    return min((s for s in lams if s.key == key), key=lambda s: s.finding.squared_error(num_samples)).x


def baseline_figure(
    name: str,
    settings: Settings,
    baselines: Sequence[Seen],
    sizes: Sequence[Seen],
    lines: Sequence[Finding],
) -> "Figure":
    """Draw the variance by baseline and by the size of the group."""
    drawn, (left, right) = panels(2, title=f"What takes noise out of ĝ ({name})", width=5.4)
    _draw_baselines(left, settings, baselines)
    _draw_sizes(right, sizes, lines)
    return drawn


def _draw_baselines(ax: "Axes", settings: Settings, baselines: Sequence[Seen]) -> None:
    seen = [s for s in baselines if s.key != "group mean"]
    half = len(seen) // 2
    places = [-k for k in range(half)]
    for place, total, to_go in zip(places, seen[:half], seen[half:], strict=True):
        ax.plot([total.finding.variance, to_go.finding.variance], [place] * 2, color=FAINT, lw=0.8, zorder=1)
    right = 1 if seen[0].finding.variance >= seen[half].finding.variance else -1
    for part, colour, side in ((seen[:half], INK, right), (seen[half:], BLUE, -right)):
        ax.plot([s.finding.variance for s in part], places, "o", color=colour, ms=6)
        ax.annotate(
            part[0].finding.what,
            (part[0].finding.variance, 0),
            xytext=(8 * side, 0),
            textcoords="offset points",
            ha="left" if side == 1 else "right",
            va="center",
            fontsize=FONT,
            color=colour,
        )
    labels = {LEFT_OUT: f"{LEFT_OUT}, G = {settings.group_size}"}
    ax.set_yticks(places, [labels.get(s.key, s.key) for s in seen[:half]])
    ax.tick_params(left=False)
    ax.spines["left"].set_visible(False)
    ax.set_ylim(0.5 - half, 0.5)
    log_axis(ax, "x")
    name_axes(ax, title="What is taken off the return", x=NOISE, y="")


def _draw_sizes(ax: "Axes", sizes: Sequence[Seen], lines: Sequence[Finding]) -> None:
    ends: list[End] = []
    for key, line, size, fill in ((LEFT_OUT, "o-", 4, BLUE), (RESCALED, "o", 9, "none")):
        seen = [s for s in sizes if s.key == key]
        x, y = [s.x for s in seen], [s.finding.variance for s in seen]
        ax.plot(x, y, line, color=BLUE, markersize=size, markerfacecolor=fill)
        ends = [End(x[-1], y[-1], f"{LEFT_OUT} (dots) = {RESCALED} (rings)", BLUE)]
    last = ends[0].x
    for f in lines:
        ax.axhline(f.variance, color=FAINT, lw=0.8)
        ends.append(End(last, f.variance, f"{f.name}: {f.what}", INK))
    log_axis(ax, "y")
    ax.set_xscale("log", base=2)
    ticks = sorted({s.x for s in sizes})
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    name_axes(ax, title="Size of the group", x="G, trajectories of one start", y=NOISE)
    label_ends(ax, ends)


def lambda_figure(name: str, lams: Sequence[Seen]) -> "Figure":
    """Draw bias, variance and mean squared error against λ."""
    drawn, (left, middle, right) = panels(3, title=f"GAE: bias against variance ({name})", width=4.9)
    ends = _draw_by_lambda(left, lams, "relative_bias")
    name_axes(left, title="Bias comes from V", x=TRACE, y="‖Eĝ − ∇J‖ / ‖∇J‖")
    label_ends(left, ends)
    ends = _draw_by_lambda(middle, lams, "variance")
    log_axis(middle, "y")
    name_axes(middle, title="Variance comes from the rewards", x=TRACE, y=NOISE)
    label_ends(middle, ends)
    _draw_errors(right, [s for s in lams if s.key == WRONG_V])
    return drawn


def _draw_by_lambda(ax: "Axes", lams: Sequence[Seen], value: str) -> list[End]:
    ends: list[End] = []
    # Those that end in one point are labelled from below in the order that they come from: exact V first.
    for key, colour in zip((EXACT_V, WRONG_V, NO_V), COLOURS, strict=False):
        seen = [s for s in lams if s.key == key]
        found: list[float] = [getattr(s.finding, value) for s in seen]
        y = [0.0 if number < UNBIASED else number for number in found]
        ax.plot([s.x for s in seen], y, "o-", color=colour, lw=1.2, ms=3)
        ends.append(End(seen[-1].x, y[-1], key, colour))
    return ends


def _draw_errors(ax: "Axes", seen: Sequence[Seen]) -> None:
    ends: list[End] = []
    for n, colour in zip(NUMBERS, COLOURS, strict=False):
        y = [s.finding.squared_error(n) for s in seen]
        ax.plot([s.x for s in seen], y, color=colour, lw=1.2)
        best = min(range(len(y)), key=y.__getitem__)
        ax.plot(seen[best].x, y[best], "o", color=colour, ms=5)
        ends.append(End(seen[-1].x, y[-1], f"{n} trajectories", colour))
    log_axis(ax, "y")
    title = f"Error of the mean, {WRONG_V} (dots: best λ)"
    name_axes(ax, title=title, x=TRACE, y="mean squared error / ‖∇J‖²")
    label_ends(ax, ends)
