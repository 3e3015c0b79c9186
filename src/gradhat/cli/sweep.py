"""`gradhat sweep`: a grid of runs over the cores, that goes on where it stopped."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradhat.cli.flags import parse
from gradhat.errors import ConfigError, RunError

if TYPE_CHECKING:
    from gradhat.training.sweeps.grid import Point
    from gradhat.training.sweeps.plan import Plan
    from gradhat.training.sweeps.results import Run

USAGE = "gradhat sweep ALGORITHM|RECIPE"
DESCRIPTION = """gradhat sweep ppo --env CartPole-v1 --lr 1e-3 3e-4 --seed 0..4: a grid of runs on all cores.

Takes the flags of gradhat train, each with several values; a..b are the integers from a to b. A flag of
several words is given once for every value: --hidden 64 64 --hidden 256 256. A switch is given in both
spellings: --normalize-adv --no-normalize-adv.

The same command goes on with a sweep that was stopped. Values may be added to it."""
GROUP = 4
"""Most runs that are listed by name where they failed alike."""


@dataclass(frozen=True)
class Flags:
    """Where the sweep is kept, and how it runs. All other flags are those of gradhat train."""

    out: Path | None = None
    """The sweep's folder, new or one to go on with. None makes one in sweeps/, named after the command."""
    jobs: int | None = None
    """Runs at once, one thread each. None takes the number of cores."""
    dry_run: bool = False
    """Print the command of every run and stop. Tasks are loaded and environments made, nothing is asked of
    them."""


def main(argv: list[str]) -> int:
    """Run the grid and print its table. Returns 0, 128 + N after signal N, 1 when a run failed or
    cannot be read."""
    from gradhat.training import machine

    own, words = split(argv)
    flags = parse(Flags(), own, prog=USAGE, description=DESCRIPTION)
    jobs = machine.cores() if flags.jobs is None else flags.jobs
    if jobs < 1:
        raise ConfigError(f"jobs={jobs}: found less than one run at once. Use 1 or more.")
    found = planned(words, flags.out)
    if flags.dry_run:
        for cell in found.cells:
            print("gradhat train", *cell.point.words, "--out", cell.path)
        return 0
    return run(found, words, jobs)


def split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Return the flags of the sweep itself, and the words that are those of its runs."""
    from gradhat.training.sweeps.grid import spoken

    if not argv or "-h" in argv or "--help" in argv:
        return ["--help"], []
    subject, rest = ([], argv) if argv[0].startswith("-") else (argv[:1], argv[1:])
    mine = {"--out", "--jobs", "--dry-run"}
    own, words = [], subject
    for flag, values in spoken(rest):
        if flag == "--resume":
            raise ConfigError(
                "gradhat sweep --resume: found a flag of gradhat train. A sweep goes on by itself: give the "
                "command it was started with."
            )
        (own if flag in mine else words).extend([flag, *values])
    return own, words


def planned(words: list[str], out: Path | None) -> "Plan":
    """Return the runs of the grid.

    gradhat train itself reads each command: a wrong one fails here, as does an environment that cannot be
    made, a task that cannot be loaded, and a model that is none.
    """
    from gradhat.training.sweeps import grid
    from gradhat.training.sweeps import plan as planning

    subject, rest = (words[:1], words[1:]) if words and not words[0].startswith("-") else ([], words)
    flags = grid.flags(rest, defaults(subject))
    commands = [(*subject, *command) for command in grid.commands(flags)]
    points = [grid.Point(command, resolved(command)) for command in commands]
    grid.check_once(flags, points)
    check_worlds(points)
    check_tasks(points)
    keys = grid.swept(flags, points)
    return planning.plan(out or Path("sweeps") / place(subject, points[0].config, keys), points, keys)


def defaults(subject: Sequence[str]) -> dict[str, Any]:
    """Return the config of `subject` without any flag. Only the types of its values are of interest."""
    from gradhat.training.text.config import TrainConfig, to_json

    return resolved(subject) if subject else json.loads(json.dumps(to_json(TrainConfig())))


def resolved(words: Sequence[str]) -> dict[str, Any]:
    """Return the config that a command of gradhat train resolves to. ConfigError where it is a wrong one."""
    from gradhat.cli import train

    _, kind, launch = train.launched(list(words))
    return kind.to_json(launch.config)


def check_worlds(points: "Sequence[Point]") -> None:
    """Make every environment of control runs once.

    ConfigError for one that is not there, lacks a package or takes other arguments, or whose actions the
    algorithm cannot choose with the settings of every run.
    """
    controls = [point.config for point in points if "learning" in point.config]
    if not controls:
        return
    from gradhat.training.control import worlds
    from gradhat.training.control.algorithms import ALGORITHMS, check_actions
    from gradhat.training.control.config import ControlConfig, from_json

    asked: dict[str, dict[str, ControlConfig[Any]]] = {}
    for values in controls:
        place = json.dumps([values["env"], values["env_args"], values["vectorization"]])
        config = from_json(values, ControlConfig(ALGORITHMS[values["algorithm"]].learning), "the sweep")
        asked.setdefault(place, {})[json.dumps(values["learning"])] = config
    for configs in asked.values():
        first = next(iter(configs.values()))
        # The same environment, without a process of its own.
        stepped = "sync" if first.vectorization == "async" else first.vectorization
        with closing(worlds.make(replace(first, vectorization=stepped), 1)) as world:
            for config in configs.values():
                check_actions(config, world)


def check_tasks(points: "Sequence[Point]") -> None:
    """Load the task of every text run once, with its rewards and levels, and look where its model is.

    TaskError and ModelError as in a run. No question is asked.
    """
    texts = [point.config for point in points if "learning" not in point.config]
    if not texts:
        return
    from gradhat.policies.language.weights import at_hand
    from gradhat.training.text.config import from_json
    from gradhat.training.text.trial import levels

    names = ("task", "reward", "curriculum", "model")
    asked = {json.dumps([values[name] for name in names]): values for values in texts}
    for values in asked.values():
        config = from_json(values, "the sweep")
        levels(config)
        at_hand(config.model)


def place(subject: Sequence[str], config: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Return the name of a sweep: what is trained, where, and what varies but the seed."""
    env = [config["env"]] if "env" in config and "env" not in keys else []
    names = [key.rpartition(".")[2] for key in keys if key != "seed"]
    return re.sub(r"[^\w.-]+", "-", "-".join([*(subject or ["run"]), *env, *names]))


def run(found: "Plan", words: list[str], jobs: int) -> int:
    """Run what is not finished; print what came out."""
    from gradhat.training.interrupt import SIGNAL_EXIT
    from gradhat.training.sweeps import plan as planning
    from gradhat.training.sweeps.board import Board
    from gradhat.training.sweeps.run import Sweep

    with planning.begun(found, words) as found:
        with Board() as board:
            sweep = Sweep(found, jobs, board)
            board.say(f"sweep  {found.folder}: {len(found.cells)} runs, {sweep.done} of them finished before")
            ended = sweep.run()
        if ended.interrupted:
            print(f"stopped. Go on with the same command. So far: gradhat plot {found.folder}")
            return SIGNAL_EXIT + ended.interrupted
        runs, unread = finished_runs(found)
        report(found, runs)
    return listed("unreadable", unread) | listed("failed", ended.failed)


def finished_runs(found: "Plan") -> "tuple[list[Run], dict[str, str]]":
    """Return the runs that came to their end, and the name of each that cannot be read with what is wrong."""
    from gradhat.training.sweeps.results import finished, read

    runs: list[Run] = []
    unread: dict[str, str] = {}
    for cell in found.cells:
        try:
            runs += [read(cell.path)] if finished(cell.path) else []
        except RunError as error:
            unread[cell.name] = str(error)
    return runs, unread


def report(found: "Plan", runs: "Sequence[Run]") -> None:
    """Print and write the tables of the finished runs."""
    from gradhat.training.sweeps.results import judged_by
    from gradhat.training.sweeps.table import rows, rows_over_places, without_seed

    if not runs:
        return
    keys, kind = without_seed(found.keys), runs[0].kind
    names = {"score": judged_by(runs), "training": kind.training, "rate": f"{kind.unit}/s"}
    title = "by setting: mean and interquartile mean (iqm) over runs, with 95 % intervals"
    show(found.folder / "table.csv", title, rows(runs, keys), names)
    if kind.place in keys:
        title = f"every {kind.place} pooled: 0 is the worst run of the sweep in each, 1 the best"
        pooled = rows_over_places(runs, [key for key in keys if key != kind.place])
        show(found.folder / "pooled.csv", title, pooled, names)
    print(f"\ndraw it: gradhat plot {found.folder}")


def show(file: Path, title: str, rows: list[dict[str, Any]], names: Mapping[str, str]) -> None:
    """Print a table as people read it, and write `file` in full precision."""
    from gradhat.cli.lab import as_csv
    from gradhat.lab.report import Table
    from gradhat.training.run_folder import AGAIN, whole_file

    with whole_file(file, AGAIN) as partial:
        partial.write_text(as_csv(Table(file.stem, title, (), tuple(rows))))
    scales = {key: max(abs(row[key]) for row in rows) for key in rows[0] if f"{key}_low" in rows[0]}
    print_rows(title, [readable(row, names, scales) for row in rows], rest=file)


def readable(row: Mapping[str, Any], names: Mapping[str, str], scales: Mapping[str, float]) -> dict[str, str]:
    """Return a row as people read it: a mean and its interval in one cell, with the digits of its column."""
    from gradhat.intervals import Interval, written

    found: dict[str, str] = {}
    for key, value in row.items():
        if key in scales:
            interval = Interval(value, row[f"{key}_low"], row[f"{key}_high"])
            found[names.get(key, key)] = written(interval, row["runs"], scales[key])
        elif key == "rate":
            found[names[key]] = f"{value:,.0f}"
        elif not key.endswith(("_low", "_high")):
            found[names.get(key, key)] = str(value)
    return found


def print_rows(title: str, rows: Sequence[Mapping[str, str]], rest: Path | None = None) -> None:
    """Print rows that share their keys. What does not fit is named, with the file that holds it."""
    from rich.console import Console

    from gradhat.cli.lab import fitted
    from gradhat.lab.report import Column, Table

    columns = tuple(Column(key, key, "") for key in rows[0])
    console = Console(highlight=False, markup=False)
    lines, left = fitted(Table("", title, columns, tuple(rows)), console.width)
    console.print(f"\n{title}")
    console.print("\n".join(lines), no_wrap=True, overflow="crop")
    if left:
        console.print(f"  (left out: {', '.join(left)}{f'; {rest} has all' if rest else ''})")


def listed(what: str, found: Mapping[str, str]) -> int:
    """List runs with what is wrong with them, those alike together. Returns the exit code, 0 without any."""
    alike: dict[str, list[str]] = {}
    for name, said in found.items():
        alike.setdefault(said, []).append(name)
    for said, names in alike.items():
        more = f" and {len(names) - GROUP} more" if len(names) > GROUP else ""
        print(f"\n{what}: {'; '.join(names[:GROUP])}{more}\n  " + said.replace("\n", "\n  "), file=sys.stderr)
    return 1 if found else 0
