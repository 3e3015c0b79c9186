"""`gradhat lab`: estimators under the microscope. Each experiment prints tables and leaves a folder."""

import csv
import io
import json
import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from gradhat.cli.experiments import EXPERIMENTS
from gradhat.cli.flags import near, parse, target
from gradhat.errors import ConfigError, RunError

if TYPE_CHECKING:
    from gradhat.lab.report import Report, Table

USAGE = "gradhat lab EXPERIMENT"
GAP = "  "
"""Between two columns of a table."""


def main(argv: list[str]) -> int:
    """Run one experiment: print its tables, write its folder."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    name, rest = argv[0], argv[1:]
    if name not in EXPERIMENTS:
        raise ConfigError(
            f"gradhat lab {name}: no such experiment.{near(name, list(EXPERIMENTS))} "
            f"Known: {', '.join(EXPERIMENTS)}."
        )
    experiment = EXPERIMENTS[name]
    prog = f"gradhat lab {name} {experiment.subject}".rstrip()
    subject = ""
    if experiment.subject and not (rest and rest[0] in ("-h", "--help")):
        subject, rest = target(rest, experiment.subject, prog)
        prog = f"gradhat lab {name} {subject}"
    flags = parse(experiment.flags(subject), rest, prog=prog, description=experiment.about)
    values = settings(flags)
    folder, made = prepare(values["out"], name)
    try:
        report = experiment.run(flags, subject)
        write(folder, report, {"experiment": name, "subject": subject, **plain(values)})
        show(report)
    except ValueError as error:
        # The rooms of maths say what was wrong with their arguments; those came from flags.
        raise ConfigError(f"{prog}: {error}") from error
    finally:
        for place in made:
            if not any(place.iterdir()):
                place.rmdir()
    print(f"\nwritten to {folder}: {', '.join(sorted(p.name for p in folder.iterdir()))}")
    return 0


def usage() -> str:
    """Return what `gradhat lab --help` prints."""
    rows = [(f"{name} {e.subject}".rstrip(), e.about) for name, e in EXPERIMENTS.items()]
    width = max(len(call) for call, _ in rows)
    return "\n".join(
        [
            f"usage: {USAGE} ...",
            "",
            "Estimators under the microscope: expectations are sums over all that can happen, not samples.",
            "",
            *(f"  {call:<{width}}  {about}" for call, about in rows),
            "",
            f"{USAGE} --help says more about each.",
        ]
    )


def settings(flags: Any) -> dict[str, Any]:
    """Return the flags by name, those of the bench beside the others."""
    values = asdict(flags)
    return values | values.pop("bench", {})


def show(report: "Report") -> None:
    """Print the tables and how to read them."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(report.question, style="bold")
    for table in report.tables:
        console.print(f"\n{table.title}")
        lines, left = fitted(table, console.width)
        console.print("\n".join(lines), no_wrap=True, overflow="crop", markup=False)
        more = [f"{len(table.rows) - len(table.few)} more rows"] if table.few else []
        if more + left:
            console.print(f"{GAP}({table.name}.csv has more: {'; '.join(more + left)})", markup=False)
    console.print()
    for note in report.notes:
        console.print(note, markup=False)


def fitted(table: "Table", width: int) -> tuple[list[str], list[str]]:
    """Return the lines of a table with the columns that fit, and the headers of those that do not."""
    from gradhat.lab.report import shown

    rows = table.few or table.rows
    lines = [""] * (len(rows) + 1)
    left: list[str] = []
    for column in table.columns:
        cells = [column.header, *(shown(column, row) for row in rows)]
        wide = max(map(len, cells))
        if left or len(lines[0]) + wide + len(GAP) > width:
            left.append(column.header)
            continue
        aligned = (cell.rjust(wide) if column.form else cell.ljust(wide) for cell in cells)
        lines = [line + GAP + cell for line, cell in zip(lines, aligned, strict=True)]
    return [line.rstrip() for line in lines], left


def prepare(out: Path | None, name: str) -> tuple[Path, list[Path]]:
    """Make the folder of an experiment before anything is computed: `out`, or one in runs/ of its own. Return
    it, and all that was made, the innermost first.

    RunError if it holds something, or cannot be made or written.
    """
    from gradhat.training.run_folder import ELSEWHERE, reserved, writing

    folder = out or Path("runs") / f"lab-{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if out is None:
        missing = [place for place in folder.parents if not place.exists()]
        folder = reserved(folder)
        return folder, [folder, *missing]
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"write results to {folder}: found something there. Choose another --out.")
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    with writing(folder, todo=ELSEWHERE):
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    return folder, missing


def write(folder: Path, report: "Report", config: dict[str, Any]) -> None:
    """Write config, environment, tables as CSV and JSON, and figures as PNG and SVG, each file whole."""
    from gradhat.training.machine import describe
    from gradhat.training.run_folder import ELSEWHERE, whole_file

    results = {
        "question": report.question,
        "notes": report.notes,
        "tables": {
            table.name: {"title": table.title, "rows": [plain(row) for row in table.rows]}
            for table in report.tables
        },
    }
    texts = {
        "config.json": json.dumps(config, indent=2) + "\n",
        "env.json": json.dumps(describe(), indent=2) + "\n",
        "results.json": json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
        **{f"{table.name}.csv": as_csv(table) for table in report.tables},
    }
    for name, text in texts.items():
        with whole_file(folder / name, ELSEWHERE) as partial:
            partial.write_text(text)
    for name, figure in report.figures.items():
        for kind in ("png", "svg"):
            with whole_file(folder / f"{name}.{kind}", ELSEWHERE) as partial:
                figure.savefig(partial, format=kind, dpi=160)


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values for JSON: paths as text, and null for numbers that are not finite."""
    return {k: _plain(v) for k, v in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def as_csv(table: "Table") -> str:
    """Return the rows as CSV, every key a column, in full precision."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(table.rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.rows)
    return text.getvalue()
