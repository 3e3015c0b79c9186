"""What runs left behind: their settings, their curves and their final numbers. Writes nothing."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gradhat.errors import RunError
from gradhat.training.run_folder import RunFolder, is_run
from gradhat.training.sweeps.grid import flat

LAST = 0.1
"""The part of a run over which the training average is taken."""

Axis = Literal["frames", "steps", "time"]


class Kind(NamedTuple):
    """What runs of one kind are judged by."""

    name: str
    scores: tuple[str, ...]
    """The metrics of the finished policy, the first that is measured is the one that counts."""
    training: str
    """The metric of the policy while it explores."""
    rate: str
    """The metric of speed."""
    busy: tuple[str, ...]
    """The metrics of the seconds in which it was reached."""
    unit: str
    """What is counted by `rate`."""
    length: str
    """The setting that says how long the run is."""
    done: str
    """The metric that says how much of it is done."""
    place: str
    """The setting that says where it is trained: numbers of different places cannot be averaged."""


CONTROL = Kind(
    "control",
    ("sampled/return", "greedy/return"),
    "episode/return",
    "frames_per_second",
    ("time/train",),
    "frames",
    "num_frames",
    "num_frames",
    "env",
)
TEXT = Kind(
    "text",
    ("held_out/accuracy", "held_out/reward"),
    "reward",
    "tokens_per_second",
    ("time/sample", "time/update"),
    "tokens",
    "num_steps",
    "step",
    "task",
)


class Run(NamedTuple):
    """One run folder."""

    path: Path
    settings: dict[str, Any]
    """By whole names, such as learning.network.lr."""
    kind: Kind
    lines: list[dict[str, Any]]
    """The lines of metrics.jsonl."""
    summary: dict[str, Any] | None
    """None while it is not finished."""


class Outcome(NamedTuple):
    """The final numbers of a run; NaN for one that was not measured."""

    score: float
    training: float
    """Mean over the last tenth of the run."""
    rate: float
    """Per second of training, measurements not counted."""


def kind_of(config: Mapping[str, Any]) -> Kind:
    """Return the kind of run that a config is of."""
    return CONTROL if "env" in config else TEXT


def read(path: Path) -> Run:
    """Read the run at `path`. RunError when it is none or has no metrics yet."""
    folder = RunFolder(path)
    config, lines = folder.config(), folder.read_metrics()
    if not lines:
        raise RunError(
            f"read the metrics of {path}: found none: the run has not begun. Train on first: "
            f"gradhat train --resume {path}"
        )
    summary = folder.read_json("summary.json") if finished(path) else None
    settings, kind = flat(config), kind_of(config)
    for key, types in ((kind.place, str), (kind.length, int)):
        if (key in settings and not isinstance(settings[key], types)) or kind.place not in settings:
            raise RunError(
                f"read the run in {path}: config.json holds no {types.__name__} for {key}. Use the "
                "config.json that it was trained with."
            )
    return Run(path, settings, kind, lines, summary)


def finished(path: Path) -> bool:
    """Return whether the run at `path` came to its end."""
    return (path / "summary.json").exists()


def find(path: Path) -> list[Path]:
    """Return the run folder `path` itself, or those in it. RunError when there is none."""
    if is_run(path):
        return [path]
    found = sorted(p for p in path.iterdir() if is_run(p)) if path.is_dir() else []
    if not found:
        raise RunError(f"find runs in {path}: found none. Name a run folder, or a folder of them.")
    return found


def judged_by(runs: Sequence[Run]) -> str:
    """Return the metric that runs of one kind are judged by: the first of their kind's that the last
    measurement of every one of them has. An expected return is always there, an accuracy is not.

    Where some runs measure one policy and some another, such as greedy/return and sampled/return, it is what
    these have in common: "return" is that of each run's own policy. Where a run measured nothing it is what
    all of them have, the metric of training.
    """
    scores, training = runs[0].kind.scores, runs[0].kind.training
    last = [_last_measured(run) for run in runs]
    if not all(last) and all(any(line.get(training) is not None for line in run.lines) for run in runs):
        return training
    for score in scores:
        if all(line.get(score) is not None for line in last):
            return score
    own = {next((score for score in scores if score in line), scores[-1]) for line in last}
    names = {score.rpartition("/")[2] for score in own}
    return names.pop() if len(names) == 1 and len(own) > 1 else scores[-1]


def value(line: Mapping[str, Any], metric: str, kind: Kind) -> Any:
    """Return what a line of a run says of `metric`, which may be a name that scores of its kind share."""
    named = [metric, *(score for score in kind.scores if score.endswith(f"/{metric}"))]
    return next((line[name] for name in named if name in line), None)


def possible(metric: str) -> tuple[float, float]:
    """Return the least and the greatest value that a metric can have, as far as its name says it."""
    return (0.0, 1.0) if metric.endswith("/accuracy") else (-math.inf, math.inf)


def _last_measured(run: Run) -> dict[str, Any]:
    """Return the last line in which the policy was measured, nothing where it never was."""
    measured = (line for line in reversed(run.lines) if any(score in line for score in run.kind.scores))
    return next(measured, {})


def outcome(run: Run, score: str) -> Outcome:
    """Return the final numbers of a run, which is judged by `score`. They come from its metrics, so that a
    table and a plot say the same.

    A run that is judged by its training is judged by the mean over its end, not by its last line.
    """
    steps = [line for line in run.lines if line["step"] > 0]
    last = [line for line in steps if line["step"] > (1 - LAST) * steps[-1]["step"]]
    # A line holds the mean over the episodes that ended in it.
    training = _mean([(line.get(run.kind.training), line.get("num_episodes", 1.0)) for line in last])
    rate = _mean([(line.get(run.kind.rate), _busy(run.kind, line)) for line in steps])
    if score == run.kind.training:
        return Outcome(training, training, rate)
    found = value(_last_measured(run), score, run.kind)
    return Outcome(math.nan if found is None else found, training, rate)


def _busy(kind: Kind, line: Mapping[str, Any]) -> float:
    return sum(line.get(part) or 0.0 for part in kind.busy)


def _mean(weighted: Sequence[tuple[float | None, float | None]]) -> float:
    """Return the weighted mean of what was measured."""
    known = [(value, weight) for value, weight in weighted if value is not None and weight is not None]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else math.nan


def curve(run: Run, x: Axis, y: str) -> tuple[list[float], list[float]]:
    """Return where the metric `y` was measured, and its values there.

    x is frames of the environment, steps (lines of metrics), or seconds of training. Both lists are empty
    where `y`, or the frames of a run that counts none, were never measured.
    """
    xs: list[float] = []
    ys: list[float] = []
    seconds = 0.0
    for line in run.lines:
        seconds += line.get("step_time") or 0.0
        start = 0.0 if line["step"] == 0 else None
        place = {"frames": line.get("num_frames", start), "steps": float(line["step"]), "time": seconds}[x]
        found = value(line, y, run.kind)
        if place is None or not isinstance(found, int | float):
            continue
        if xs and xs[-1] == place:
            # What is measured after the last step takes the place of what was measured in it.
            ys[-1] = float(found)
        else:
            xs.append(place)
            ys.append(float(found))
    return xs, ys


def metrics(run: Run) -> list[str]:
    """Return the names of all metrics of a run."""
    return list(dict.fromkeys(key for line in run.lines for key, value in line.items() if value is not None))
