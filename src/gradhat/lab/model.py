"""The microscope on a language model: how much of a sampled gradient is signal, for each estimator.

The exact gradient of a language model is out of reach, but its sampled gradients can be compared with each
other. K batches of prompts × samples are sampled once, and every estimator turns each of them into one
gradient ĝ_k of a chosen part of the parameters. All that follows is in the K × K dot products (the Gram
matrix) of those gradients:

    signal   ‖E ĝ‖²        estimated by the mean of ĝ_j · ĝ_k over j ≠ k, which is unbiased
    noise    tr Cov(ĝ)     estimated by Σ_k ‖ĝ_k − ḡ‖² / (K − 1), which is unbiased
    snr      signal / noise, of one batch; the mean of K batches has K times as much

Every trajectory's gradient is taken at ratio 1: the policy that sampled is the policy that learns.
Letters: `K` batches, `B` trajectories in one, in groups of `G` samples; `P` chosen parameters.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gradhat.algorithms.grpo import Counts, Row, Settings, credit
from gradhat.algorithms.grpo_family import FAMILY
from gradhat.errors import ConfigError
from gradhat.estimators.group import group_mean, group_std, none, silent
from gradhat.intervals import Interval
from gradhat.lab.figure import COLOURS, FAINT, PANEL, name_axes, panels
from gradhat.lab.gram import MEMORY, cosine, gram_matrices, halvings, jackknife, mean, noise, signal
from gradhat.lab.report import Column, Report, Table
from gradhat.lab.report import Row as TableRow
from gradhat.policies.language.chat import Chat
from gradhat.policies.policy import Policy
from gradhat.rollouts.engine import Limits, Sampler
from gradhat.rollouts.episodes import Start, play
from gradhat.trajectories import Trajectories

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RETURN = replace(FAMILY["rloo"], baseline=none, kl_reward=None)
ESTIMATORS: Mapping[str, Row] = {
    "reinforce": _RETURN,
    **FAMILY,
    "group_mean": replace(_RETURN, baseline=group_mean),
    "group_std": replace(_RETURN, baseline=group_mean, scale=group_std),
}
"""The family, and what it has not: the return alone, its baseline and its scale, each with the reduction of
REINFORCE."""

FEWEST = 4
"""Batches: a jackknife over fewer leaves no two halves to compare."""
SAME = 1e-9
"""Relative difference below which two estimators are the same up to a factor. Rounding is 1e-16."""


COLUMNS = (
    Column("estimator", "estimator", ""),
    Column("group_size", "G", "d"),
    Column("noise_scale", "samples", ".0f"),
    Column("snr", "snr", ".4f"),
    Column("snr_low", "from", ".4f"),
    Column("snr_high", "to", ".4f"),
    Column("cosine", "cosine", ".3f"),
    Column("cosine_low", "from", ".3f"),
    Column("cosine_high", "to", ".3f"),
    Column("silent", "silent", ".2f"),
)
INTERVALS = (
    "snr",
    "cosine",
    "noise_scale",
    "norm",
    "signal",
    "variance_per_sample",
    "variance_per_group",
    "silent",
)
"""The numbers of a line that come with an interval."""


@dataclass(frozen=True)
class Line:
    """One estimator at one group size. Gradients have the unit of the estimator: compare `snr`, `cosine` and
    `noise_scale` between estimators, not norms and variances."""

    estimator: str
    group_size: int
    num_groups: int
    """In one batch."""
    gram: Tensor
    """float64 `[K, K]`: the dot products of the batches' gradients."""
    silent: Interval
    """The share of groups whose rewards are all equal."""
    norm: Interval
    """‖ḡ‖, of the mean over the batches. Noise makes it longer than ‖E ĝ‖."""
    signal: Interval
    """‖E ĝ‖², unbiased, so it can come out negative: then the signal drowns."""
    variance_per_sample: Interval
    """tr Cov(ĝ) of one batch times its trajectories."""
    variance_per_group: Interval
    """tr Cov(ĝ) of one batch times its groups."""
    snr: Interval
    """‖E ĝ‖² / tr Cov(ĝ) of one batch."""
    cosine: Interval
    """Between the gradients of two halves of the K batches, mean over halvings."""

    @property
    def noise_scale(self) -> Interval:
        """The number of trajectories at which signal equals noise: variance per sample / ‖E ĝ‖².

        Source: McCandlish et al. 2018, the simple noise scale. It compares group sizes at equal cost: the
        smaller, the better. Infinite where the signal is not distinct from 0.
        """
        num_samples = self.num_groups * self.group_size
        value, high, low = (num_samples / x if x > 0 else math.inf for x in self.snr)
        return Interval(value if not math.isnan(self.snr.mean) else math.nan, low, high)


def sample(
    starts: Iterator[Start],
    chat: Chat,
    sampler: Sampler,
    limits: Limits,
    *,
    num_batches: int,
    num_prompts: int,
    group_size: int,
) -> Iterator[Trajectories]:
    """Yield batches of `num_prompts` groups, one after the other, each with samples of its own.

    Silent groups are kept and none is replaced: the batches are what the task gives. Assumes that `starts`
    are drawn independently; a start that comes again in another batch is answered anew.
    """
    for k in range(num_batches):
        opened = list(itertools.islice(starts, num_prompts))
        fresh = replace(limits, seed=limits.seed + k)
        yield play(opened, chat, sampler, fresh, group_size=group_size)


def choose(module: nn.Module, pattern: str) -> dict[str, nn.Parameter]:
    """Return the parameters whose names fit a shell `pattern`, such as "blocks.29.*".

    ConfigError that lists what exists when none fits.
    """
    chosen = {name: p for name, p in module.named_parameters() if fnmatchcase(name, pattern)}
    if not chosen:
        numbers = [int(n) for name, _ in module.named_parameters() for n in re.findall(r"\.(\d+)\.", name)]
        names = sorted({re.sub(r"\.\d+\.", ".N.", name) for name, _ in module.named_parameters()})
        where = f" with N from 0 to {max(numbers)}" if numbers else ""
        raise ConfigError(
            f"parameters {pattern!r}: found none of that name. The model has {', '.join(names)}{where}. "
            "Use one of these, or a pattern with *."
        )
    return chosen


def measure(
    policy: Policy,
    batches: Sequence[Trajectories],
    settings: Settings,
    chosen: Mapping[str, nn.Parameter],
    *,
    rows: Mapping[str, Row] = ESTIMATORS,
    group_sizes: Sequence[int],
    memory: int = MEMORY,
) -> list[Line]:
    """Put each estimator under the microscope at each group size: a line for each.

    Smaller groups are the first members of those sampled. One forward serves all estimators; each that is
    not a multiple of another costs one backward to the chosen parameters. At least K · P numbers are held.
    The KL terms of a row are left out: they are of the objective, not of the sampled reward.
    Raises ConfigError for fewer than 4 batches, groups of unequal size, a group size that was not sampled and
    one that an estimator cannot use; ModelError for gradients that are not finite.
    """
    members = [_members(batch) for batch in batches]
    _check(members, group_sizes)
    settings = replace(settings, kl_coef=0.0)
    keys = list(itertools.product(rows, group_sizes))
    weights = [
        [
            _weights(name, rows[name], settings, batch, m[:, :size])
            for batch, m in zip(batches, members, strict=True)
        ]
        for name, size in keys
    ]
    distinct, multiple = _distinct(weights)
    grams = gram_matrices(policy, batches, distinct, list(chosen.values()), memory=memory)
    return [
        line(name, batches, [m[:, :size] for m in members], grams[i] * factor**2)
        for (name, size), (i, factor) in zip(keys, multiple, strict=True)
    ]


def line(estimator: str, batches: Sequence[Trajectories], members: Sequence[Tensor], gram: Tensor) -> Line:
    """Return what a Gram matrix `[K, K]` says. `members` are the rows of each batch's groups, `[N, G]`."""
    num_groups, group_size = members[0].shape

    left = halvings(len(gram))

    def of_gram(statistic: Callable[[Tensor], Tensor], factor: int = 1) -> Interval:
        return jackknife(lambda kept: float(statistic(gram[kept][:, kept])) * factor, len(gram))

    shares = [_silent_share(batch, m) for batch, m in zip(batches, members, strict=True)]
    return Line(
        estimator=estimator,
        group_size=group_size,
        num_groups=num_groups,
        gram=gram,
        silent=mean(shares),
        norm=of_gram(lambda g: g.sum().clamp(min=0).sqrt() / len(g)),
        signal=of_gram(signal),
        variance_per_sample=of_gram(noise, num_groups * group_size),
        variance_per_group=of_gram(noise, num_groups),
        snr=of_gram(lambda g: signal(g) / noise(g)),
        # The same halvings without the batch left out: others would add their own noise to the interval.
        cosine=jackknife(lambda kept: float(cosine(gram[kept][:, kept], left[:, kept])), len(gram)),
    )


def reward(batches: Sequence[Trajectories]) -> Interval:
    """Return the mean return of a trajectory, with the interval over batches."""
    return mean([float(batch.returns().mean()) for batch in batches])


def _weights(name: str, row: Row, settings: Settings, batch: Trajectories, members: Tensor) -> Tensor:
    """Return w `[B, T]` with ĝ = Σ_it w_it ∇ log π(a_it | s_it), float64: the row at ratio 1.

    Only the trajectories at `members` `[N, G]` count; the others have weight 0.
    """
    part = batch.select(members.flatten())
    part = replace(part, rewards=part.rewards.double(), logp=part.logp.double())
    logp = part.logp.requires_grad_()
    try:
        adv = credit(row, settings, part).adv
        assert adv is not None
        gain = row.surrogate(row.ratio(logp, logp.detach(), part.mask), adv, settings)
    except ValueError as error:
        raise ConfigError(f"estimator {name} with groups of {members.shape[1]}: {error}") from error
    counts = Counts(len(part), int(part.mask.sum()), settings.length)
    objective = torch.where(part.mask, gain * row.reduce(part.mask.double(), counts), 0).sum()
    weights = torch.zeros(batch.mask.shape, dtype=torch.float64)
    weights[members.flatten()] = torch.autograd.grad(objective, logp)[0]
    return weights


def _distinct(
    weights: Sequence[Sequence[Tensor]],
) -> tuple[list[Sequence[Tensor]], list[tuple[int, float]]]:
    """Return the estimators that are no multiple of another, and which one each is, times what.

    With equal groups leave-one-out is G / (G − 1) times the group mean, and a constant divisor is a factor.
    """
    distinct: list[tuple[Tensor, Sequence[Tensor]]] = []
    multiple: list[tuple[int, float]] = []
    for of_batches in weights:
        flat = torch.cat([w.flatten() for w in of_batches])
        for i, (other, _) in enumerate(distinct):
            factor = float(flat @ other / (other @ other).clamp(min=torch.finfo(flat.dtype).tiny))
            if float((flat - factor * other).norm()) <= SAME * float(flat.norm()):
                multiple.append((i, factor))
                break
        else:
            multiple.append((len(distinct), 1.0))
            distinct.append((flat, of_batches))
    return [of_batches for _, of_batches in distinct], multiple


def _members(batch: Trajectories) -> Tensor:
    """Return the rows of each group, int64 `[N, G]`, in the order sampled."""
    sizes = torch.unique(batch.group, return_counts=True)[1]
    if int(sizes.min()) != int(sizes.max()):
        raise ConfigError(
            f"variance by group size: found groups of {int(sizes.min())} to {int(sizes.max())} samples. "
            "Sample equally many for each prompt."
        )
    return batch.group.argsort(stable=True).reshape(len(sizes), -1)


def _check(members: Sequence[Tensor], group_sizes: Sequence[int]) -> None:
    if len(members) < FEWEST:
        raise ConfigError(
            f"batches={len(members)}: an interval over batches needs {FEWEST} or more. Sample more batches."
        )
    shapes = sorted({tuple(m.shape) for m in members})
    if len(shapes) > 1:
        raise ConfigError(
            f"variance over batches: found batches of {shapes} prompts and samples. Sample equal batches."
        )
    sampled = members[0].shape[1]
    wrong = [size for size in group_sizes if not 1 <= size <= sampled]
    if wrong:
        raise ConfigError(f"group size {wrong[0]}: found groups of {sampled}. Use 1 to {sampled}.")


def _silent_share(batch: Trajectories, members: Tensor) -> float:
    rows = members.flatten()
    return float(silent(batch.returns()[rows], batch.group[rows]).double().mean())


def report(lines: Sequence[Line], rewards: Interval, *, subject: str) -> Report:
    """Return what was measured as a table, a figure and how to read them."""
    first = lines[0]
    rows = [as_row(line) for line in lines]
    return Report(
        question="How much of the sampled gradient is signal?",
        tables=(Table("model", subject, COLUMNS, tuple(rows)),),
        notes=(
            f"{len(first.gram)} batches, mean reward {rewards.mean:.3f} "
            f"[{rewards.low:.3f}, {rewards.high:.3f}]. samples = trajectories at which signal equals noise: "
            "fewer is better, at any G. snr = ‖E ĝ‖² / tr Cov(ĝ) of one batch; cosine of the sums over two "
            "halves of the batches; both with 95 % intervals. silent = share of groups whose rewards are all "
            "equal.",
            verdict(lines),
        ),
        figures={"model": figure(lines)},
    )


def verdict(lines: Sequence[Line]) -> str:
    """Return what the signal-to-noise ratios allow to say, in a sentence or three."""
    clear = [line for line in lines if line.snr.low > 0]
    if not clear:
        return (
            "No interval of the signal-to-noise ratio lies above 0: these batches separate no estimator from "
            "noise. Take more --batches."
        )
    best = min(clear, key=lambda line: line.noise_scale.mean)
    names = ", ".join(f"{line.estimator} (G = {line.group_size})" for line in clear)
    return (
        f"Clear of 0: {names}. The fewest samples: {best.estimator} with groups of {best.group_size}. "
        "An interval in forty lies above 0 by chance."
    )


def as_row(line: Line) -> TableRow:
    """Return a line as a row of a table: each number with its interval."""
    row: dict[str, str | float | int] = {
        "estimator": line.estimator,
        "group_size": line.group_size,
        "num_groups": line.num_groups,
    }
    for name in INTERVALS:
        found: Interval = getattr(line, name)
        row |= {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
    return row


def figure(lines: Sequence[Line]) -> "Figure":
    """Draw signal-to-noise ratio and half-batch cosine of each estimator, by group size."""
    drawn, axes = panels(2, title="Signal in the sampled gradient of a language model")
    sizes = sorted({line.group_size for line in lines})
    height = max(PANEL[1], 0.24 * len(lines) + 1.2)
    drawn.set_size_inches(drawn.get_figwidth(), height)
    for ax, name, title in zip(
        axes, ("snr", "cosine"), ("Signal / noise of one batch", "Cosine of halves"), strict=True
    ):
        for y, line in enumerate(reversed(lines)):
            found: Interval = getattr(line, name)
            colour = COLOURS[sizes.index(line.group_size) % len(COLOURS)]
            ax.plot([found.low, found.high], [y, y], color=colour, lw=1)
            ax.plot([found.mean], [y], "o", color=colour, ms=4)
        ax.axvline(0, color=FAINT, lw=0.8)
        ax.locator_params(axis="x", nbins=5)
        ax.set_yticks(range(len(lines)), [f"{x.estimator}, G = {x.group_size}" for x in reversed(lines)])
        name_axes(ax, title=title, x=f"{name}, with its 95 % interval", y="")
    return drawn
