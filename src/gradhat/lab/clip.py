"""`gradhat lab clip`: what several epochs on one batch make of the policy, by surrogate."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from gradhat.errors import ConfigError
from gradhat.estimators import group, ratios
from gradhat.exact.enumerate import CHUNK, Batch, Draws, Paths
from gradhat.lab.bias import described
from gradhat.lab.figure import COLOURS, FAINT, INK, End, label_ends, name_axes, panels
from gradhat.lab.microscope import World, ascent, check_lr, listed, some_draws
from gradhat.lab.report import Column, Report, Row, Table
from gradhat.losses import reduce, surrogate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WORSE = 1e-12
"""J must fall by more than this before a batch has done harm."""
FURTHEST = 1e100
"""The square of a longer step may overflow, that of one shorter than 1 / FURTHEST may vanish."""
SAME = 0.005
"""Lines that stay nearer than this, relative to the height of the panel, share a label."""
EPOCHS = "epochs on the batch"


class Choice(NamedTuple):
    """A surrogate with its bounds."""

    label: str
    """In figures."""
    objective: Callable[[Tensor, Tensor], Tensor]
    """(log_ratio `[B, T]`, adv `[B, 1]`) → `[B, T]`."""


SURROGATES = {
    "reinforce": Choice("REINFORCE", surrogate.reinforce),
    "importance_weighted": Choice("ratio, no clip", surrogate.importance_weighted),
    "clip_0.1": Choice("clip 0.1", partial(surrogate.clipped, low=0.1, high=0.1)),
    "clip_0.2": Choice("clip 0.2", partial(surrogate.clipped, low=0.2, high=0.2)),
    "clip_0.4": Choice("clip 0.4", partial(surrogate.clipped, low=0.4, high=0.4)),
    "clip_higher": Choice("clip 0.2, 0.28", partial(surrogate.clipped, low=0.2, high=0.28)),
    "dual_clip": Choice("dual clip 0.2, 3", partial(surrogate.dual_clipped, low=0.2, high=0.2, dual=3.0)),
    "cispo": Choice("CISPO ≤ 1.2", partial(surrogate.clipped_weight, low=1.0, high=0.2)),
    "sapo": Choice("SAPO", partial(surrogate.soft_gate, tau_positive=1.0, tau_negative=1.05)),
}


@dataclass(frozen=True)
class Epoch:
    """What is expected after one more epoch, over all batches."""

    gain: float
    """E[J(θ_e)] − J(θ_0), in the unit of the rewards."""
    worse: float
    """The probability that J(θ_e) < J(θ_0)."""
    norm_ratio: float
    """‖E[θ_e − θ_0]‖ / ‖θ*_e − θ_0‖, where θ* climbs by the exact gradient."""
    cosine: float
    distance: float
    """‖E[θ_e] − θ*_e‖ / ‖θ*_e − θ_0‖."""
    variance: float
    """The total variance of θ_e, in units of ‖θ*_e − θ_0‖²."""
    silenced: float
    """Share of the own steps with credit that had no gradient in this epoch."""
    error: float
    """Root mean squared error of E[θ_e], in units of ‖θ*_e − θ_0‖: 0 where all batches were enumerated."""
    gain_error: float
    """The same of `gain`, in its unit."""


def clip(worlds: dict[str, World], *, group_size: int, epochs: int, lr: float) -> Report:
    """Return where `epochs` steps of size `lr` on one batch lead on average, for every surrogate.

    A batch is a group of `group_size` trajectories of the world's policy, their credit R(τ) minus the mean of
    the others, so that the first epoch is the exact gradient on average. ConfigError for settings out of
    range, and for worlds whose trajectories cannot be listed.
    """
    check(group_size=group_size, epochs=epochs, lr=lr)
    tables: list[Table] = []
    figures: dict[str, Figure] = {}
    notes: list[str] = []
    for name, world in worlds.items():
        what = described(world)
        found, exact = climbs(world, group_size=group_size, epochs=epochs, lr=lr)
        tables += [last_table(name, what, found, exact), epochs_table(name, found, exact)]
        figures[f"clip_{name}"] = figure(name, found, exact)
        notes += sampling_notes(name, [epoch for climb in found.values() for epoch in climb])
    return Report(
        question="What do several epochs on one batch make of the policy, and what does clipping change?",
        tables=tuple(tables),
        notes=(
            f"{epochs} epochs of gradient ascent with lr = {lr:g} on one batch of {group_size}, averaged "
            "over all batches. The first epoch is the exact gradient for every surrogate; from the second "
            "on a batch is biased by its reuse, and a clip by what it holds back.",
            "exact ascent takes as many steps of the same size along ∇J itself. gain = E[J(θ)] − J(θ_0). "
            "norm, cosine and distance hold E[θ − θ_0] against that of exact ascent; variance is that of θ, "
            "in units of the exact ascent's squared length.",
            "silenced = share of the steps with credit that had no gradient in that epoch. worse = the "
            "probability that the batch lowers J.",
            *notes,
        ),
        figures=figures,
    )


def climbs(
    world: World, *, group_size: int, epochs: int, lr: float
) -> tuple[dict[str, list[Epoch]], list[float]]:
    """Return every surrogate's epochs, and the gain of the exact ascent after each.

    ConfigError where `lr` is so small or so large that numbers of double precision cannot follow.
    """
    path = ascent(listed(world), world.theta, lr=lr, updates=epochs)
    length = float((path[1] - path[0]).norm())
    if not 1 / FURTHEST < length < FURTHEST:
        raise ConfigError(
            f"--lr {lr:g}: found that the first step has the length {length:g}, which numbers of double "
            "precision cannot follow. Use 1 or so."
        )
    batches = some_draws(world, num_groups=1, group_size=group_size)
    j = expected_returns(batches.paths, path)
    found = {name: climb(batches, choice, path, lr=lr) for name, choice in SURROGATES.items()}
    return found, (j[1:] - j[0]).tolist()


def climb(batches: Draws, choice: Choice, path: Tensor, *, lr: float) -> list[Epoch]:
    """Return the epochs of one surrogate against the exact ascent `path` `[epochs + 1, O, A]`."""
    start, exact = path[0], (path[1:] - path[0]).flatten(1)
    j = float(expected_returns(batches.paths, path[:1]))
    mean, sums = torch.zeros_like(exact), exact.new_zeros(len(exact), 6)
    for chance, batch in batches.batches():
        for e, (theta, silenced, credited) in enumerate(
            ascend(batch, choice, start, lr=lr, epochs=len(exact))
        ):
            step = (theta - start).flatten(1)
            gain = expected_returns(batches.paths, theta) - j
            mean[e] += chance @ step
            seen = (gain, gain.square(), (gain < -WORSE).double(), step.square().sum(-1), silenced, credited)
            sums[e] += chance @ torch.stack(seen, -1)
    return [
        _epoch(m, x, s, num_sampled=0 if batches.exact else len(batches.rows))
        for m, x, s in zip(mean, exact, sums.tolist(), strict=True)
    ]


def ascend(
    batch: Batch, choice: Choice, start: Tensor, *, lr: float, epochs: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield after each epoch: θ `[M, O, A]` of every draw, its steps without a gradient, those with credit.

    The two numbers of steps are `[M]`.
    """
    mask, num_draws = batch.mask, batch.num_draws
    r = batch.returns()
    adv = (r - group.leave_one_out(r, batch.group))[:, None]
    weight = reduce.per_trajectory(mask.double(), num_trajectories=len(mask) // num_draws)
    place = (batch.paths.observations * start.shape[1] + batch.paths.actions).reshape(num_draws, -1)
    credited = mask & (adv != 0)
    theta = start.expand(num_draws, *start.shape)
    for _ in range(epochs):
        theta = theta.detach().requires_grad_()
        logp = theta.log_softmax(-1).flatten(1).gather(1, place).reshape(mask.shape)
        log_ratio = ratios.token(logp, batch.logp_old, mask)
        objective = (weight * choice.objective(log_ratio, adv)).sum()
        gradient, by_step = torch.autograd.grad(objective, (theta, log_ratio))
        theta = (theta + lr * gradient).detach()
        silenced = credited & (by_step == 0)
        yield theta, _per_draw(silenced, num_draws), _per_draw(credited, num_draws)


def _per_draw(steps: Tensor, num_draws: int) -> Tensor:
    return steps.reshape(num_draws, -1).sum(-1).double()


def expected_returns(paths: Paths, theta: Tensor) -> Tensor:
    """Return the exact J `[M]` of every θ `[M, O, A]`."""
    num_observations, num_actions = theta.shape[1:]
    counts = theta.new_zeros(len(paths), num_observations * num_actions)
    counts.scatter_add_(1, paths.observations * num_actions + paths.actions, paths.mask.double())
    worth = paths.world * paths.returns()
    parts = theta.detach().log_softmax(-1).flatten(1).split(max(1, CHUNK // len(paths)))
    return torch.cat([(logp @ counts.T).exp() @ worth for logp in parts])


def _epoch(mean: Tensor, exact: Tensor, sums: Sequence[float], *, num_sampled: int) -> Epoch:
    gain, gain_square, worse, square, silenced, credited = sums
    length, norm = float(exact.norm()), float(mean.norm())
    variance = max(0.0, square - norm**2) / length**2
    return Epoch(
        gain=gain,
        worse=worse,
        norm_ratio=norm / length,
        cosine=float(mean @ exact) / (norm * length),
        distance=float((mean - exact).norm()) / length,
        variance=variance,
        silenced=silenced / credited,
        error=math.sqrt(variance / num_sampled) if num_sampled else 0.0,
        gain_error=math.sqrt(max(0.0, gain_square - gain**2) / num_sampled) if num_sampled else 0.0,
    )


def sampling_notes(name: str, found: Sequence[Epoch]) -> list[str]:
    """Return the sentence that says how good the numbers are where not every batch was seen."""
    error, gain_error = max(e.error for e in found), max(e.gain_error for e in found)
    if error == 0:
        return []
    return [
        f"{name}: batches are sampled, not enumerated. The root mean squared error is at most {error:.2g} "
        f"for E[θ], in units of the exact ascent's length, and {gain_error:.2g} for the gain."
    ]


def check(*, group_size: int, epochs: int, lr: float) -> None:
    """ConfigError for settings out of range."""
    for flag, value, least in (("group-size", group_size, 2), ("epochs", epochs, 1)):
        if value < least:
            raise ConfigError(f"--{flag} {value}: found less than {least}. Use {least} or more.")
    check_lr(lr)


LAST = (
    Column("label", "surrogate", ""),
    Column("gain", "gain", ".4f"),
    Column("worse", "worse", ".3f"),
    Column("norm_ratio", "norm", ".4f"),
    Column("cosine", "cosine", ".5f"),
    Column("distance", "distance", ".4f"),
    Column("variance", "variance", ".3f"),
    Column("silenced", "silenced", ".3f"),
)


def last_table(name: str, what: str, found: dict[str, list[Epoch]], exact: Sequence[float]) -> Table:
    """Return a row per surrogate with what is true after the last epoch."""
    rows: list[Row] = [
        {"name": s, "label": SURROGATES[s].label, **asdict(climb[-1]), "exact_gain": exact[-1]}
        for s, climb in found.items()
    ]
    title = f"{name}, after epoch {len(exact)}: {what}; exact ascent gains {exact[-1]:.4f}"
    return Table(f"{name}_last", title, LAST, tuple(rows))


def epochs_table(name: str, found: dict[str, list[Epoch]], exact: Sequence[float]) -> Table:
    """Return a row per epoch: the gains for people, every number of every surrogate in the keys."""
    rows: list[Row] = []
    for e, gain in enumerate(exact):
        row: dict[str, float | int] = {"epoch": e + 1, "gain_exact": gain}
        for s, climb in found.items():
            row |= {f"{key}_{s}": value for key, value in asdict(climb[e]).items()}
        rows.append(row)
    columns = (
        Column("epoch", "epoch", "d"),
        Column("gain_exact", "exact ascent", ".4f"),
        *(Column(f"gain_{s}", SURROGATES[s].label, ".4f") for s in found),
    )
    return Table(f"{name}_epochs", f"{name}: gain by epoch", columns, tuple(rows))


def figure(name: str, found: dict[str, list[Epoch]], exact: Sequence[float]) -> "Figure":
    """Draw the gain, the distance from the exact ascent and the silenced steps against the epochs."""
    drawn, (gain, distance, silenced) = panels(3, title=f"Several epochs on one batch ({name})", width=4.5)
    gain.axhline(0, color=FAINT, lw=0.6)
    gain.plot(range(1, len(exact) + 1), exact, color=INK, lw=1.4, ls="--")
    name_axes(gain, title="What a batch gains on average", x=EPOCHS, y="E J(θ) − J(θ₀), in reward")
    _draw(gain, found, "gain", [End(len(exact), exact[-1], "exact ascent", INK)])
    name_axes(
        distance,
        title="Distance from exact ascent",
        x=EPOCHS,
        y="‖E θ − θ*‖ / ‖θ* − θ₀‖",
    )
    _draw(distance, found, "distance", [])
    name_axes(silenced, title="Steps left without a gradient", x=EPOCHS, y="share of steps with credit")
    _draw(
        silenced, {s: climb for s, climb in found.items() if any(e.silenced for e in climb)}, "silenced", []
    )
    return drawn


def _draw(ax: "Axes", found: dict[str, list[Epoch]], key: str, ends: list[End]) -> None:
    """Draw a line per surrogate and label its end; lines that cover each other share a label."""
    colours = dict(zip(SURROGATES, COLOURS, strict=False))
    curves = {s: [float(getattr(epoch, key)) for epoch in climb] for s, climb in found.items()}
    for s, curve in curves.items():
        ax.plot(range(1, len(curve) + 1), curve, color=colours[s], lw=1.3)
    ax.locator_params(axis="x", integer=True)
    ax.margins(y=0.14)
    low, high = ax.get_ylim()
    clusters: list[list[str]] = []
    for s, curve in curves.items():
        near = (c for c in clusters if _furthest(curves[c[0]], curve) < SAME * (high - low))
        if (cluster := next(near, None)) is None:
            clusters.append([s])
        else:
            cluster.append(s)
    for cluster in clusters:
        curve, text = curves[cluster[0]], " = ".join(SURROGATES[s].label for s in cluster)
        ends.append(End(len(curve), curve[-1], text, colours[cluster[-1]]))
    label_ends(ax, ends)


def _furthest(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))
