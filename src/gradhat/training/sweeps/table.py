"""The table of a sweep: for every setting, its runs of all seeds pooled, with intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradhat.errors import ConfigError
from gradhat.intervals import Interval, interquartile_interval, mean_interval
from gradhat.training.sweeps.grid import shown
from gradhat.training.sweeps.results import Run, judged_by, outcome, possible

SEED = "seed"

Values = tuple[Any, ...]
"""Of the settings that a group of runs shares, in the order of the names it was grouped by."""


def value_of(settings: Mapping[str, Any], key: str) -> Any:
    """Return the setting `key`, by its whole name or by its last part; None where there is no such setting.

    ConfigError where several settings end in `key`.
    """
    if key in settings:
        return settings[key]
    found = [name for name in settings if name.endswith(f".{key}")]
    if len(found) > 1:
        raise ConfigError(f"{key}: found {len(found)} settings of that name. Name one: {', '.join(found)}.")
    return settings[found[0]] if found else None


def grouped(runs: Sequence[Run], keys: Sequence[str]) -> dict[Values, list[Run]]:
    """Return the runs by their values of `keys`: numbers in order, then texts in order."""
    groups: dict[str, tuple[Values, list[Run]]] = {}
    for run in runs:
        values = tuple(value_of(run.settings, key) for key in keys)
        groups.setdefault(repr(values), (values, []))[1].append(run)
    return dict(sorted(groups.values(), key=lambda group: [_order(value) for value in group[0]]))


def _order(value: Any) -> tuple[bool, float, str]:
    is_number = isinstance(value, int | float)
    return not is_number, value if is_number else 0.0, shown(value)


def without_seed(keys: Sequence[str]) -> list[str]:
    """Return the names of settings but the seed, over which runs are averaged."""
    return [key for key in keys if key != SEED]


def rows(runs: Sequence[Run], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for every setting of finished runs: means over seeds with 95 % t-intervals, interquartile
    means with bootstrap intervals. Few runs have none: see `gradhat.intervals`.
    """
    judged = judged_by(runs)
    found: list[dict[str, Any]] = []
    for values, group in grouped(runs, keys).items():
        outcomes = [outcome(run, judged) for run in group]
        scores = [one.score for one in outcomes]
        found.append(
            _named(keys, values)
            | {"runs": len(group)}
            | _numbers("score", mean_interval(scores, *possible(judged)))
            | _numbers("iqm", interquartile_interval([scores]))
            | _numbers("training", mean_interval([one.training for one in outcomes]))
            | {"rate": sum(one.rate for one in outcomes) / len(outcomes)}
        )
    return found


def rows_over_places(runs: Sequence[Run], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for every setting, environments or tasks pooled; `keys` has none of them.

    Scores of different places are brought to one scale: 0 is the worst run of the sweep there, 1 the best.
    Places are the strata of the bootstrap: how much they differ is no noise.
    """
    place, judged = runs[0].kind.place, judged_by(runs)
    scaled: dict[str, float] = {}
    for there in grouped(runs, [place]).values():
        scores = {str(run.path): outcome(run, judged).score for run in there}
        low, high = min(scores.values()), max(scores.values())
        scaled |= {
            path: (score - low) / (high - low) if high > low else 1.0 for path, score in scores.items()
        }
    found: list[dict[str, Any]] = []
    for values, group in grouped(runs, keys).items():
        strata = [[scaled[str(run.path)] for run in there] for there in grouped(group, [place]).values()]
        found.append(
            _named(keys, values) | {"runs": len(group)} | _numbers("iqm", interquartile_interval(strata))
        )
    return found


def _named(keys: Sequence[str], values: Values) -> dict[str, Any]:
    return {key.rpartition(".")[2]: shown(value) for key, value in zip(keys, values, strict=True)}


def _numbers(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
