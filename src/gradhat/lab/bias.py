"""`gradhat lab bias`: where each estimator points, and what its noise costs."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from gradhat.lab.figure import BLUE, FAINT, FONT, INK, RED, End, label_ends, name_axes, panels
from gradhat.lab.microscope import Finding, Specimen, World, examine
from gradhat.lab.report import Column, Report, Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNBIASED = 1e-9
"""A relative bias below this is rounding."""
SAMPLES = (16, 256, 4096)
"""Numbers of trajectories for which the mean squared error is listed."""
RIGHT = 0.05
"""Degrees: a smaller angle is not written."""
SAME_END = 1.04
"""Lines whose ends differ by less than this factor share a label."""

COLUMNS = (
    Column("name", "estimator", ""),
    Column("what", "credit", ""),
    Column("norm_ratio", "length", ".4f"),
    Column("cosine", "cosine", ".5f"),
    Column("relative_bias", "bias", ".4f"),
    Column("variance", "variance", ".2f"),
)
SAMPLED_COLUMN = Column("error", "±", ".2g")
"""Shown where some numbers come from a sample."""
SAMPLED_COLUMNS = (COLUMNS[0], *COLUMNS[2:5], SAMPLED_COLUMN, COLUMNS[5], COLUMNS[1])
"""The same with ±, in an order in which a narrow window leaves out words and no number."""
FAR = 3
"""A sampled E ĝ that is nearer to ∇J than so many times its error is not told apart from it."""


def bias(worlds: dict[str, World], specimens: dict[str, list[Specimen]], *, group_size: int) -> Report:
    """Return what each estimator estimates in each world, in batches of `group_size` trajectories."""
    found = {
        name: [examine(world, specimen, group_size=group_size) for specimen in specimens[name]]
        for name, world in worlds.items()
    }
    return Report(
        question="What does each estimator estimate, and how noisily?",
        tables=tuple(
            Table(name, f"{name}: {described(worlds[name])}", columns(findings), tuple(map(row, findings)))
            for name, findings in found.items()
        ),
        notes=(
            f"Batches of {group_size} trajectories. length = ‖Eĝ‖/‖∇J‖, cosine = that between Eĝ and ∇J, "
            "bias = ‖Eĝ − ∇J‖/‖∇J‖, variance = total variance of ĝ per trajectory in units of ‖∇J‖².",
            *(sampling_note(name, findings) for name, findings in found.items() if not all_exact(findings)),
        ),
        figures={f"bias_{name}": figure(name, findings) for name, findings in found.items()},
    )


def described(world: World) -> str:
    """Return one line about a world."""
    mdp = world.mdp
    number = "too many trajectories to list" if world.paths is None else f"{len(world.paths):,} trajectories"
    return (
        f"{mdp.num_states} states, {mdp.num_actions} actions, γ = {mdp.gamma:g}, {number}, "
        f"‖∇J‖ = {float(world.gradient.norm()):.4g}"
    )


def row(finding: Finding) -> Row:
    """Return a finding as a row of a table."""
    errors = {f"mse_{n}": finding.squared_error(n) for n in SAMPLES}
    return {**asdict(finding), "angle": finding.angle, **errors}


def columns(findings: Sequence[Finding]) -> tuple[Column, ...]:
    """Return the columns that people see."""
    return COLUMNS if all_exact(findings) else SAMPLED_COLUMNS


def all_exact(findings: Sequence[Finding]) -> bool:
    """Whether every expectation was enumerated."""
    return all(finding.error == 0 for finding in findings)


def sampling_note(name: str, findings: Sequence[Finding]) -> str:
    """Return the sentence that says which numbers come from a sample."""
    names = ", ".join(finding.name for finding in findings if finding.error)
    return (
        f"{name}: not enumerated but sampled, with ± the root mean squared error of Eĝ in units of "
        f"‖∇J‖: {names}."
    )


def figure(name: str, findings: Sequence[Finding]) -> "Figure":
    """Draw where each estimator points, and its error by the number of samples."""
    drawn, (directions, errors) = panels(
        2, title=f"Estimators against the exact gradient ({name})", width=5.6
    )
    _draw_directions(directions, findings)
    _draw_errors(errors, findings)
    return drawn


def _draw_directions(ax: "Axes", findings: Sequence[Finding]) -> None:
    """A row per estimator: its part along ∇J as a stem from 0, and the angle between the two."""
    ax.axvline(1, color=FAINT, lw=1)
    ax.axvline(0, color=FAINT, lw=0.6)
    for y, f in enumerate(reversed(findings)):
        along = 0.0 if math.isnan(f.cosine) else f.norm_ratio * f.cosine
        ax.plot([0, along], [y, y], color=_colour(f), lw=1)
        ax.plot([along], [y], "o", color=_colour(f), ms=5)
        ax.text(1.02, y, _angle(f), transform=ax.get_yaxis_transform(), va="center", fontsize=FONT, color=INK)
    ax.set_yticks(range(len(findings)), [f.name for f in reversed(findings)])
    name_axes(
        ax,
        title="E ĝ along ∇J, and the angle between them",
        x="part of E ĝ along ∇J, in units of ‖∇J‖: 1 is right",
        y="",
    )


def _angle(finding: Finding) -> str:
    if math.isnan(finding.cosine):
        return "E ĝ = 0"
    return f"{finding.angle:.1f}°" if finding.angle >= RIGHT else ""


def _draw_errors(ax: "Axes", findings: Sequence[Finding]) -> None:
    numbers = [10 ** (k / 4) for k in range(4, 21)]
    ends: list[End] = []
    for f in findings:
        errors = [f.squared_error(n) for n in numbers]
        ax.loglog(numbers, errors, color=_colour(f), lw=1.2)
        ends.append(End(numbers[-1], errors[-1], f.name, _colour(f)))
    within = "" if all_exact(findings) else f" within {FAR} ±"
    name_axes(
        ax,
        title=f"Error by the number of samples: blue is unbiased{within}, red keeps a bias",
        x="trajectories",
        y="mean squared error / ‖∇J‖²",
    )
    label_ends(ax, _joined(ends))


def _joined(ends: Sequence[End]) -> list[End]:
    """Give lines that end together one label."""
    joined: list[End] = []
    for end in sorted(ends, key=lambda end: end.y):
        if joined and end.y < SAME_END * joined[-1].y and end.colour == joined[-1].colour:
            joined[-1] = joined[-1]._replace(text=f"{joined[-1].text}, {end.text}")
        else:
            joined.append(end)
    return joined


def _colour(finding: Finding) -> str:
    return BLUE if finding.relative_bias < max(UNBIASED, FAR * finding.error) else RED
