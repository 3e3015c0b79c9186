"""`gradhat plot`: learning curves of runs, the mean over seeds with its interval for every setting."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gradhat.cli.flags import near, parse
from gradhat.cli.sweep import print_rows
from gradhat.errors import ConfigError, RunError
from gradhat.places import home

if TYPE_CHECKING:
    from gradhat.lab.curves import Curve, Line
    from gradhat.training.sweeps.results import Axis, Kind, Run

USAGE = "gradhat plot RUN ..."
DESCRIPTION = """gradhat plot RUN ... [FLAGS]: learning curves of runs, or of all runs in a folder.

Runs that share the settings named by --by are one line: their mean, with its 95 % t-interval over seeds."""
ENDINGS = (".png", ".svg")


@dataclass(frozen=True)
class Flags:
    """What is drawn against what."""

    x: Literal["auto", "frames", "steps", "time"] = "auto"
    """frames of the environment, steps (lines of metrics) or seconds of training; auto: frames where runs
    count them, else steps."""
    y: str = ""
    """A metric of metrics.jsonl; empty is what the runs are judged by: greedy/return, sampled/return,
    held_out/accuracy, or held_out/reward where nothing says what solves a question; episode/return where
    nothing was measured."""
    by: tuple[str, ...] = ()
    """Settings of config.json, each combination of values a line; empty: all that differ, but the seed."""
    out: Path | None = None
    """The picture, .png; the same as .svg is written beside it. None names it after what is drawn."""


def main(argv: list[str]) -> int:
    """Draw, write both pictures, print where every line ends."""
    count = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    if not count:
        parse(
            Flags(), [word for word in argv if word in ("-h", "--help")], prog=USAGE, description=DESCRIPTION
        )
        raise ConfigError(
            f"{USAGE}: found no run. Name run folders or a folder of them first, then the flags."
        )
    places = [home(word) for word in argv[:count]]
    flags = parse(Flags(), argv[count:], prog=USAGE, description=DESCRIPTION)
    from gradhat.training.sweeps.results import judged_by

    stem = stem_of(flags.out)
    runs = read_all(places)
    kind = runs[0].kind
    x, y = axis(flags.x, kind), flags.y or judged_by(runs)
    keys = list(flags.by) or default_keys(places, runs)
    check_keys(runs, keys)
    lines, notes = drawn(runs, keys, x, y)
    if stem is None:
        stem = (places[0] if len(places) == 1 else Path()) / f"{y}-{x}".replace("/", "_")
    write(lines, stem, runs, keys, x, y)
    report(lines, x, y)
    for note in [*notes, *unfinished(runs), f"written to {stem}.png and {stem.name}.svg"]:
        print(note)
    return 0


def stem_of(out: Path | None) -> Path | None:
    """Return the picture's path without its ending. ConfigError for an ending other than .png and .svg."""
    if out is None or out.suffix not in ("", *ENDINGS):
        if out is None:
            return None
        raise ConfigError(f"--out {out}: found the ending {out.suffix}. Use .png or .svg: both are written.")
    return out.with_suffix("") if out.suffix else out


def read_all(places: Sequence[Path]) -> "list[Run]":
    """Return the runs in `places`. ConfigError where they are of different kinds."""
    from gradhat.training.sweeps.results import find, read

    runs = [read(path) for path in dict.fromkeys(path for place in places for path in find(place))]
    other = next((run for run in runs if run.kind != runs[0].kind), None)
    if other is not None:
        raise ConfigError(
            f"gradhat plot: found a {runs[0].kind.name} run, {runs[0].path}, and a {other.kind.name} run, "
            f"{other.path}. They are judged by different metrics: draw them apart."
        )
    return runs


def axis(asked: str, kind: "Kind") -> "Axis":
    """Return what lies along x. ConfigError where runs of this kind do not count it."""
    has_frames = kind.length == "num_frames"
    if asked == "frames" and not has_frames:
        raise ConfigError(f"--x frames: found {kind.name} runs, which count none. Use --x steps or --x time.")
    if asked == "steps" or (asked == "auto" and not has_frames):
        return "steps"
    return "time" if asked == "time" else "frames"


def default_keys(places: Sequence[Path], runs: "Sequence[Run]") -> list[str]:
    """Return what a sweep varies, or all that differs between runs; not the seed."""
    from gradhat.training.sweeps.grid import varying
    from gradhat.training.sweeps.plan import keys_of
    from gradhat.training.sweeps.table import without_seed

    swept = keys_of(places[0]) if len(places) == 1 else None
    differ = varying([run.settings for run in runs])
    if "algorithm" in differ:
        # Settings that only one of the algorithms has tell no more than its name.
        differ = [key for key in differ if all(key in run.settings for run in runs)]
    return without_seed(differ if swept is None else swept)


def check_keys(runs: "Sequence[Run]", keys: Sequence[str]) -> None:
    """ConfigError for a setting that no run has."""
    from gradhat.training.sweeps.table import value_of

    for key in keys:
        if all(value_of(run.settings, key) is None for run in runs):
            known = sorted({name for run in runs for name in run.settings})
            last = list(dict.fromkeys(name.rpartition(".")[2] for name in known))
            raise ConfigError(
                f"--by {key}: no such setting.{near(key, [*last, *known])} Known: {', '.join(last)}."
            )


def drawn(runs: "Sequence[Run]", keys: Sequence[str], x: "Axis", y: str) -> "tuple[list[Line], list[str]]":
    """Return a line for every setting, and notes about settings over which it is averaged beside the seed."""
    from gradhat.lab.curves import pooled
    from gradhat.training.sweeps.grid import setting
    from gradhat.training.sweeps.results import possible
    from gradhat.training.sweeps.table import grouped

    lines: list[Line] = []
    notes: dict[str, None] = {}
    for values, group in grouped(runs, keys).items():
        name = ", ".join(setting(key, value) for key, value in zip(keys, values, strict=True))
        notes |= dict.fromkeys(mixed(group, name))
        curves = [points(run, x, y) for run in group]
        try:
            lines.append(pooled(name or counted(len(group)), curves, *possible(y)))
        except ValueError as error:
            raise RunError(f"gradhat plot: {error}. Draw fewer runs, or train them on.") from error
    return lines, list(notes)


def counted(runs: int) -> str:
    """Return "1 run" or "3 runs"."""
    return "1 run" if runs == 1 else f"{runs} runs"


def points(run: "Run", x: "Axis", y: str) -> "Curve":
    """Return the curve of a run. ConfigError where it has no such metric, which names near ones, or nowhere
    the x beside it."""
    from gradhat.lab.curves import Curve
    from gradhat.training.sweeps.results import curve, metrics

    found = Curve(*curve(run, x, y))
    if not found.x and curve(run, "steps", y)[0]:
        raise ConfigError(
            f"--x {x}: found no num_frames in any line of {run.path} that has {y}. Use --x steps or --x time."
        )
    if not found.x:
        known = metrics(run)
        raise ConfigError(
            f"--y {y}: found no such metric in {run.path}.{near(y, known)} It has: {', '.join(known)}."
        )
    return found


def mixed(group: "Sequence[Run]", name: str) -> list[str]:
    """Return a note for settings, other than the seed, that differ within a line.

    ConfigError where that is the environment or the task: their numbers have no common scale.
    """
    from gradhat.training.sweeps.grid import shown, varying
    from gradhat.training.sweeps.table import without_seed

    differ = without_seed(varying([run.settings for run in group]))
    place = group[0].kind.place
    if place in differ:
        found = ", ".join(dict.fromkeys(shown(run.settings[place]) for run in group))
        raise ConfigError(
            f"gradhat plot: found different settings of {place} in one line: {found}. Add --by {place}."
        )
    notes: list[str] = []
    if differ:
        last = [key.rpartition(".")[2] for key in differ]
        notes.append(f"note: {name or 'the line'} is an average over different {', '.join(last)}")
    return notes


def unfinished(runs: "Sequence[Run]") -> list[str]:
    """Return a note where a run has not come to its end: lines end where their shortest run does."""
    count = sum(run.summary is None for run in runs)
    return (
        [f"note: {count} of {counted(len(runs))} not finished; a line ends with its shortest run"]
        if count
        else []
    )


def write(
    lines: "Sequence[Line]", stem: Path, runs: "Sequence[Run]", keys: Sequence[str], x: "Axis", y: str
) -> None:
    """Draw the figure and write it twice."""
    from gradhat.lab.curves import figure
    from gradhat.training.run_folder import ELSEWHERE, whole_file, writing
    from gradhat.training.sweeps.results import possible

    names = {"frames": "environment frames", "steps": "steps", "time": "seconds of training"}
    made = figure(lines, title=title(runs, y), panel=panel(lines), x=names[x], y=y, possible=possible(y))
    with writing(stem.parent, todo=ELSEWHERE):
        stem.parent.mkdir(parents=True, exist_ok=True)
    for ending in ENDINGS:
        with whole_file(stem.with_name(stem.name + ending), ELSEWHERE) as partial:
            made.savefig(partial, format=ending[1:], dpi=160)


def panel(lines: "Sequence[Line]") -> str:
    """Return what the lines and their bands are."""
    from gradhat.intervals import FEWEST

    counts = [line.num_runs for line in lines]
    if max(counts) == 1:
        return "one run" if len(lines) == 1 else "one run each"
    if max(counts) < FEWEST:
        return "mean over runs; the band is the least and the most of them"
    few = any(1 < count < FEWEST for count in counts)
    return "mean over runs, and its 95 % t-interval" + (
        "; below four runs the least and the most" if few else ""
    )


def title(runs: "Sequence[Run]", y: str) -> str:
    """Return the metric with what all runs share of algorithm and place."""
    from gradhat.training.sweeps.grid import shown

    def common(key: str) -> str:
        values = {shown(run.settings.get(key)) for run in runs}
        return values.pop() if len(values) == 1 else ""

    algorithm, place = common("algorithm"), common(runs[0].kind.place)
    return y + (f" of {algorithm}" if algorithm else "") + (f" in {place}" if place else "")


def report(lines: "Sequence[Line]", x: "Axis", y: str) -> None:
    """Print what every line ends with: the last value of each of its runs, as in the table of a sweep."""
    from gradhat.intervals import mean_interval, written
    from gradhat.training.sweeps.results import possible

    found = [mean_interval(line.last, *possible(y)) for line in lines]
    scale = max(abs(one.mean) for one in found)
    rows = [
        {
            "line": line.name,
            "runs": str(line.num_runs),
            x: f"{line.x[-1]:,.0f}",
            y: written(one, line.num_runs, scale),
        }
        for line, one in zip(lines, found, strict=True)
    ]
    print_rows(f"{y} where the lines end, with 95 % t-intervals over runs", rows)
