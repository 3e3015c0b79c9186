"""`gradhat lab kl`: which KL estimator, put where, gives the gradient of which divergence."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from gradhat.errors import ConfigError
from gradhat.estimators import kl as kl_room
from gradhat.estimators import ratios, returns
from gradhat.exact.enumerate import Batch, Paths, draws
from gradhat.exact.moments import moments, weighted
from gradhat.lab.figure import BLUE, FAINT, FONT, INK, RED, name_axes, panels
from gradhat.lab.microscope import NO_SLOPE, World, ascent, check_lr, listed
from gradhat.lab.report import Column, Report, Row, Table
from gradhat.losses import regularizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

EQUAL = 1e-9
"""Two gradients nearer than this, relative to the truth, are equal up to rounding."""
ROW_HEIGHT = 0.23
"""Inches of one row of the matrix."""
LONG = 1e4
"""A larger variance is drawn in powers of ten."""
SOFT = "#6a6a6a"
"""For what is read second."""

Kind = Callable[[Tensor, Tensor], Tensor]
"""(logp, logp_ref) → the estimate per step: a function of `estimators.kl`."""

KINDS: dict[str, Kind] = {"k1": kl_room.k1, "k2": kl_room.k2, "k3": kl_room.k3}


class Setting(NamedTuple):
    """A policy that moved away from its reference."""

    paths: Paths
    theta: Tensor
    theta_ref: Tensor


class Truth(NamedTuple):
    """A divergence whose gradient is meant."""

    title: str
    value: Callable[[Setting, Tensor], Tensor]
    """(setting, θ) → the divergence in nats, with gradient to θ. States stay those of the setting's θ."""


class Place(NamedTuple):
    """Where the estimate is put."""

    what: str
    weights: Callable[[Kind, Batch, Tensor], Tensor]
    """(kind, batch, logp_ref) → the weight of every step's score `[B, T]`."""


def kl(worlds: dict[str, World], *, updates: int, lr: float) -> Report:
    """Return which divergence each estimator and placement follows, in each world.

    π_ref is the world's θ; the policy is what `updates` exact gradient steps of size `lr` make of it.
    ConfigError for settings out of range, where the trajectories cannot be listed, and where a divergence
    has no gradient: the policy is still the reference, or always acts alike.
    """
    check(updates=updates, lr=lr)
    tables: list[Table] = []
    figures: dict[str, Figure] = {}
    bounded: list[str] = []
    for name, world in worlds.items():
        setting = moved(world, updates=updates, lr=lr)
        rows = gradient_rows(setting)
        gap = float(forward(setting, setting.theta))
        title = f"{name}: {len(setting.paths):,} trajectories, KL(π‖ref) = {gap:.3g} nats"
        tables += [
            Table(f"{name}_gradients", title, COLUMNS, tuple(rows)),
            Table(
                f"{name}_values", f"{name}: what the sum itself estimates", VALUES, tuple(value_rows(setting))
            ),
        ]
        figures[f"kl_{name}"] = figure(name, rows)
        bounded += bound_notes(name, setting)
    return Report(
        question="Which KL estimator, put where, gives the gradient of which divergence?",
        tables=tuple(tables),
        notes=(
            f"π is π_ref after {updates} exact gradient steps of size {lr:g} on J; samples come from π. A "
            "penalty in the reward multiplies the score, a term in the loss is differentiated with the "
            "samples held fixed. Nothing is discounted.",
            "per step: the sum of ∇ of each step's own divergence over the states that π visits. How the "
            "policy changes which states those are is left out; in a world of one step nothing is.",
            "norm and variance (the total variance of ĝ from one trajectory) are in units of the norm and "
            "squared norm of ∇KL(π‖ref).",
            "k2 in the loss, k3 × ratio in the loss and k1 as the reward of its own step are one and the "
            "same estimate. k3 in the reward, total or to go, follows ∇KL(π‖ref) − ∇KL(ref‖π) per step, and "
            "on its own step the difference of the two per step: near π_ref they cancel.",
            *bounded,
        ),
        figures=figures,
    )


def check(*, updates: int, lr: float) -> None:
    """ConfigError for settings out of range."""
    if updates < 1:
        raise ConfigError(f"--updates {updates}: without a step π is still π_ref. Use 1 or more.")
    check_lr(lr)


def bound_notes(name: str, setting: Setting) -> list[str]:
    """Return the sentence that says where k3 is held, if it is."""
    paths = setting.paths
    log_ratio = (paths.logp(setting.theta_ref) - paths.logp(setting.theta)).detach()
    step, whole = float(log_ratio.max()), float(log_ratio.sum(-1).max())
    if max(step, whole) <= kl_room.LOG_RATIO_MAX:
        return []
    return [
        f"{name}: log(ref/π) reaches {step:.3g} in a step and {whole:.3g} over a trajectory. k3 follows it "
        f"to {kl_room.LOG_RATIO_MAX:g} only and stands still beyond. Where that happens its mean is below "
        "the KL, and its gradient in the loss is not that of KL(ref‖π)."
    ]


def moved(world: World, *, updates: int, lr: float) -> Setting:
    """Return the policy that `updates` exact gradient steps make of the world's θ, the reference."""
    paths = listed(world)
    return Setting(paths, ascent(paths, world.theta, lr=lr, updates=updates)[-1], world.theta)


def forward(setting: Setting, theta: Tensor) -> Tensor:
    """Return KL(π_θ ‖ π_ref) = Σ_τ p_θ(τ) Σ_t log π_θ(a_t | s_t) / π_ref(a_t | s_t)."""
    paths = setting.paths
    return paths.probability(theta) @ (paths.logp(theta) - paths.logp(setting.theta_ref)).sum(-1)


def reverse(setting: Setting, theta: Tensor) -> Tensor:
    """Return KL(π_ref ‖ π_θ) over trajectories."""
    paths = setting.paths
    return paths.probability(setting.theta_ref) @ (paths.logp(setting.theta_ref) - paths.logp(theta)).sum(-1)


def forward_per_step(setting: Setting, theta: Tensor) -> Tensor:
    """Return Σ_t E[KL(π_θ(·|s_t) ‖ π_ref(·|s_t))] over the states that the setting's policy visits."""
    seen = setting.paths.observations
    return _visited(setting, regularizer.kl(theta[seen], setting.theta_ref[seen]))


def reverse_per_step(setting: Setting, theta: Tensor) -> Tensor:
    """Return Σ_t E[KL(π_ref(·|s_t) ‖ π_θ(·|s_t))] over the states that the setting's policy visits."""
    seen = setting.paths.observations
    return _visited(setting, regularizer.kl(setting.theta_ref[seen], theta[seen]))


def _visited(setting: Setting, per_step: Tensor) -> Tensor:
    return setting.paths.probability(setting.theta) @ torch.where(setting.paths.mask, per_step, 0).sum(-1)


TRUTHS = {
    "forward": Truth("KL(π‖ref)", forward),
    "reverse": Truth("KL(ref‖π)", reverse),
    "forward_per_step": Truth("KL(π‖ref) per step", forward_per_step),
    "reverse_per_step": Truth("KL(ref‖π) per step", reverse_per_step),
}


def reward_total(kind: Kind, batch: Batch, logp_ref: Tensor) -> Tensor:
    """Every step answers for the whole trajectory's estimate."""
    mask = batch.mask
    return returns.total(kind(batch.logp, logp_ref), mask, gamma=1.0)[:, None].expand(mask.shape)


def reward_to_go(kind: Kind, batch: Batch, logp_ref: Tensor) -> Tensor:
    """A step answers for its own estimate and those after it."""
    paths = batch.paths
    ended = paths.terminated | paths.truncated
    return returns.to_go(kind(batch.logp, logp_ref), ended, paths.mask, gamma=1.0)


def reward_own_step(kind: Kind, batch: Batch, logp_ref: Tensor) -> Tensor:
    """A step answers for its own estimate alone."""
    return kind(batch.logp, logp_ref)


def loss(kind: Kind, batch: Batch, logp_ref: Tensor) -> Tensor:
    """The derivative of each step's estimate, the samples held fixed."""
    return _slope(lambda logp: kind(logp, logp_ref), batch.logp)


def loss_times_ratio(kind: Kind, batch: Batch, logp_ref: Tensor) -> Tensor:
    """As `loss`, times π / π_old, which is 1 but has a gradient: samples answer for how likely they are.

    Source: DeepSeek-AI 2025 (DeepSeek-V3.2), eq. 7, with k3.
    """

    def weighed(logp: Tensor) -> Tensor:
        return ratios.token(logp, batch.logp_old, batch.mask).exp() * kind(logp, logp_ref)

    return _slope(weighed, batch.logp)


def loss_whole(kind: Kind, batch: Batch, logp_ref: Tensor) -> Tensor:
    """The derivative of one estimate per trajectory, from the ratio of the whole."""
    return _slope(lambda logp: kind(logp.sum(-1, keepdim=True), logp_ref.sum(-1, keepdim=True)), batch.logp)


def _slope(estimate: Callable[[Tensor], Tensor], logp: Tensor) -> Tensor:
    leaf = logp.detach().requires_grad_()
    return torch.autograd.grad(estimate(leaf).sum(), leaf)[0]


PLACES = {
    "reward_total": Place("reward, total", reward_total),
    "reward_to_go": Place("reward, to go", reward_to_go),
    "reward_own_step": Place("reward, own step", reward_own_step),
    "loss": Place("loss, per step", loss),
    "loss_times_ratio": Place("loss, per step × ratio", loss_times_ratio),
    "loss_whole": Place("loss, whole trajectory", loss_whole),
}

COLUMNS = (
    Column("kind", "estimator", ""),
    Column("place", "placed in", ""),
    Column("equals", "equals ∇ of", ""),
    Column("variance", "variance", ".2f"),
    Column("norm_forward", "norm", ".4f"),
    *(Column(f"cosine_{key}", f"cos {truth.title}", ".4f") for key, truth in TRUTHS.items()),
)
VALUES = (
    Column("kind", "estimator", ""),
    Column("of", "of", ""),
    Column("mean", "mean, nats", ".5f"),
    Column("truth", "KL(π‖ref)", ".5f"),
    Column("ratio", "mean / KL", ".4f"),
    Column("deviation", "std of one", ".4f"),
)


def gradient_rows(setting: Setting) -> list[Row]:
    """Return a row for every placement and estimator. ConfigError where a truth is zero."""
    gradients = {key: _gradient(truth, setting) for key, truth in TRUTHS.items()}
    return [row(setting, gradients, kind, place) for place in PLACES for kind in KINDS]


def row(setting: Setting, gradients: dict[str, Tensor], kind: str, place: str) -> Row:
    """Return what one estimator follows from one place, held against the true gradients `[P]`."""
    every = draws(setting.paths, setting.theta, group_size=1)

    def weights(batch: Batch) -> Tensor:
        return PLACES[place].weights(KINDS[kind], batch, batch.paths.logp(setting.theta_ref))

    seen = moments(every, weighted(weights))
    norm = float(seen.mean.norm())
    unit = float(gradients["forward"].norm())
    zero = norm < EQUAL * unit
    found: dict[str, str | float] = {"kind": kind, "place": PLACES[place].what}
    equal: list[str] = []
    for key, gradient in gradients.items():
        length = float(gradient.norm())
        found[f"cosine_{key}"] = math.nan if zero else float(seen.mean @ gradient) / (norm * length)
        found[f"norm_{key}"] = norm / length
        found[f"distance_{key}"] = distance = float((seen.mean - gradient).norm()) / length
        if distance < EQUAL:
            equal.append(TRUTHS[key].title)
    found["equals"] = "zero" if zero else ", ".join(equal) or "none"
    found["variance"] = seen.variance / unit**2
    return found


def value_rows(setting: Setting) -> list[Row]:
    """Return the mean and the standard deviation of each sum of estimates over one trajectory of π."""
    paths = setting.paths
    chance = paths.probability(setting.theta)
    logp, logp_ref = paths.logp(setting.theta), paths.logp(setting.theta_ref)
    truth = float(forward(setting, setting.theta))
    rows: list[Row] = []
    for of, (a, b) in {
        "steps, summed": (logp, logp_ref),
        "whole trajectory": (logp.sum(-1, keepdim=True), logp_ref.sum(-1, keepdim=True)),
    }.items():
        for name, kind in KINDS.items():
            value = kind(a, b).sum(-1)
            mean = float(chance @ value)
            spread = math.sqrt(float(chance @ (value - mean).square()))
            rows.append(
                {
                    "kind": name,
                    "of": of,
                    "mean": mean,
                    "truth": truth,
                    "ratio": mean / truth,
                    "deviation": spread,
                }
            )
    return rows


def _gradient(truth: Truth, setting: Setting) -> Tensor:
    leaf = setting.theta.detach().clone().requires_grad_()
    gradient = torch.autograd.grad(truth.value(setting, leaf), leaf)[0].flatten()
    # Not a number, from a θ that overflows, is no gradient either.
    if not float(gradient.norm()) >= NO_SLOPE:
        still = float(forward(setting, setting.theta)) < NO_SLOPE
        why, use = (
            ("π is still π_ref", "a larger --lr, more --updates, or another --mdp")
            if still
            else ("π has moved so far that it always acts alike", "a smaller --lr or fewer --updates")
        )
        raise ConfigError(
            f"compare with the gradient of {truth.title}: found that it is zero, since {why}. Use {use}."
        )
    return gradient


def figure(name: str, rows: Sequence[Row]) -> "Figure":
    """Draw the cosines as a matrix, a line per estimator and placement, and its noise beside it."""
    title = f"A KL estimate follows one divergence or another, by where it is put ({name})"
    drawn, (matrix, noise) = panels(2, title=title)
    drawn.set_size_inches(9.6, ROW_HEIGHT * len(rows) + 1.5)
    grid = matrix.get_gridspec()
    assert grid is not None
    grid.set_width_ratios((1.5, 1))
    _draw_matrix(matrix, rows)
    _draw_noise(noise, rows)
    return drawn


def _draw_matrix(ax: "Axes", rows: Sequence[Row]) -> None:
    cosines = [[float(row[f"cosine_{key}"]) for key in TRUTHS] for row in rows]
    ax.imshow(cosines, cmap=_tint(), vmin=-1, vmax=1, aspect="auto")
    for i, row in enumerate(rows):
        for j, key in enumerate(TRUTHS):
            _write_cell(ax, i, j, row, key)
    _name_rows(ax, rows)
    ax.set_xticks(range(len(TRUTHS)), [f"∇{t.title}".replace(" per", "\nper") for t in TRUTHS.values()])
    ax.tick_params(length=0)
    ax.tick_params(axis="x", top=True, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    ax.set_title(
        "Mean against each true gradient: cosine × length; solid: equal",
        loc="left",
        fontsize=FONT + 0.5,
        color=INK,
    )


def _write_cell(ax: "Axes", i: int, j: int, row: Row, key: str) -> None:
    """Write the cosine, and faintly the length; a word where the mean is the truth, or nothing."""

    def write(x: float, text: str, colour: str, align: str = "center") -> None:
        ax.text(x, i, text, ha=align, va="center", fontsize=FONT - 0.5, color=colour)

    cosine = float(row[f"cosine_{key}"])
    if float(row[f"distance_{key}"]) < EQUAL:
        ax.fill([j - 0.5, j + 0.5, j + 0.5, j - 0.5], [i - 0.5, i - 0.5, i + 0.5, i + 0.5], color=BLUE, lw=0)
        write(j, "equal", "white")
    elif math.isnan(cosine):
        write(j, "mean 0", FAINT)
    else:
        write(j, f"{cosine:.2f}".replace("-", "−"), INK, "right")
        write(j + 0.06, f"× {row[f'norm_{key}']:#.2g}".rstrip("."), SOFT, "left")


def _name_rows(ax: "Axes", rows: Sequence[Row]) -> None:
    """Write the estimator at each row, and the placement once for its rows, with a gap between placements."""
    ax.set_yticks(range(len(rows)), [str(row["kind"]) for row in rows])
    across = ax.get_yaxis_transform()
    for first in range(0, len(rows), len(KINDS)):
        middle = first + (len(KINDS) - 1) / 2
        ax.text(
            -0.09, middle, str(rows[first]["place"]), transform=across, ha="right", va="center", fontsize=FONT
        )
        ax.axhline(first - 0.5, color="white", lw=4)


def _draw_noise(ax: "Axes", rows: Sequence[Row]) -> None:
    variances = [float(row["variance"]) for row in rows]
    colours = [FAINT if row["equals"] == "zero" else RED if row["equals"] == "none" else BLUE for row in rows]
    ax.set_xscale("log")
    ax.scatter(variances, range(len(rows)), c=colours, s=16)
    for i, variance in enumerate(variances):
        ax.annotate(
            f"{variance:.0f}" if 100 <= variance <= LONG else f"{variance:.2g}",
            (variance, i),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=FONT - 0.5,
            color=colours[i],
        )
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    low, high = ax.get_xlim()
    ax.set_xlim(right=high * max(3, (high / low) ** 0.2))  # Room for the number of the last point.
    name_axes(
        ax,
        title="Noise. The mean is a true gradient (blue),\nnone of them (red), zero (grey)",
        x="variance of one trajectory / ‖∇KL(π‖ref)‖²",
        y="",
    )
    for first in range(len(KINDS), len(rows), len(KINDS)):
        ax.axhline(first - 0.5, color=FAINT, lw=0.4)


def _tint() -> "LinearSegmentedColormap":
    """Red, white, blue: pale enough that a number stays readable, grey where there is none."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("tint", ("#f0b9ae", "#ffffff", "#b9d0ec"))
