"""A grid of runs from the words of a command: every flag may have several values.

`--lr 1e-3 3e-4 --seed 0..4` is ten runs. A flag that takes several words at once, such as `--hidden 64 64`,
is given once for every value. A switch is given in both spellings, or with true and false.
"""

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gradhat.errors import ConfigError

RANGE = re.compile(r"(-?\d{1,30})\.\.(-?\d{1,30})")
MOST = 10_000
"""Most runs of a grid. Reading the command of one takes a fraction of a second."""
NAME = 180
"""Most letters of a folder's name: file systems take 255 bytes."""


class Flag(NamedTuple):
    """One flag of a grid."""

    key: str
    """The setting, with underscores."""
    values: tuple[tuple[str, ...], ...]
    """The words of the command that give each of its values, the flag itself included."""


class Point(NamedTuple):
    """One run of a grid."""

    words: tuple[str, ...]
    """Of `gradhat train`."""
    config: dict[str, Any]
    """What they resolve to: the content of config.json."""


def spoken(words: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return each flag of a command with the words after it. ConfigError for words before the first flag."""
    found: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            found.append((flag, [value] if equals else []))
        elif found:
            found[-1][1].append(word)
        else:
            raise ConfigError(f"a grid with {word!r}: found it before the first flag. Write --FLAG {word}.")
    return found


def flags(words: Sequence[str], defaults: Mapping[str, Any]) -> list[Flag]:
    """Return the flags of a grid, each with all its values.

    `defaults` is the config without any flag: what is a list or a switch there takes its words otherwise. A
    flag that is not there takes one word; the command it becomes is refused later, by its own parser.
    """
    kinds = {name.rpartition(".")[2]: value for name, value in flat(defaults).items()}
    found: dict[str, list[tuple[str, ...]]] = {}
    for flag, values in spoken(words):
        key = flag.removeprefix("--").replace("-", "_")
        if key.startswith("no_") and isinstance(kinds.get(key[3:]), bool):
            key = key[3:]
        found.setdefault(key, []).extend(_values(flag, key, values, kinds.get(key)))
    return [Flag(key, tuple(values)) for key, values in found.items()]


def _values(flag: str, key: str, words: list[str], default: Any) -> Iterator[tuple[str, ...]]:
    """Yield the words of each value that one mention of a flag gives."""
    if isinstance(default, list) or not words:
        yield (flag, *words)
        return
    for word in words:
        if isinstance(default, bool) and word.lower() in ("true", "false"):
            name = key.replace("_", "-")
            yield (f"--{name}" if word.lower() == "true" else f"--no-{name}",)
        else:
            yield from ((flag, value) for value in _range(flag, word))


def _range(flag: str, word: str) -> list[str]:
    match = RANGE.fullmatch(word)
    if match is None:
        return [word]
    first, last = int(match[1]), int(match[2])
    if last < first:
        raise ConfigError(f"{flag} {word}: found a range that ends before it begins. Write {last}..{first}.")
    _check_count(f"{flag} {word}", last - first + 1)
    return [str(value) for value in range(first, last + 1)]


def commands(found: Sequence[Flag]) -> list[tuple[str, ...]]:
    """Return the words of every run of the grid. The last flag changes fastest. ConfigError for too many."""
    _check_count("a grid", math.prod(len(flag.values) for flag in found))
    choices = itertools.product(*(flag.values for flag in found))
    return [tuple(itertools.chain.from_iterable(chosen)) for chosen in choices]


def _check_count(what: str, runs: int) -> None:
    if runs > MOST:
        raise ConfigError(f"{what}: found {runs:,} runs; a sweep has at most {MOST:,}. Give fewer values.")


def check_once(found: Sequence[Flag], points: Sequence[Point]) -> None:
    """Raise ConfigError where two runs of the grid are the same, with the values that make them so.

    `points` are those of `commands`, in its order.
    """
    seen: dict[str, tuple[int, ...]] = {}
    places = itertools.product(*(range(len(flag.values)) for flag in found))
    for place, point in zip(places, points, strict=True):
        first = seen.setdefault(json.dumps(point.config, sort_keys=True), place)
        same = [
            (flag.values[i], flag.values[j]) for flag, i, j in zip(found, first, place, strict=True) if i != j
        ]
        if same:
            one, other = (" ".join(itertools.chain.from_iterable(words)) for words in zip(*same, strict=True))
            raise ConfigError(
                f"a grid with {one} and {other}: found the same run twice. Give every value once."
            )


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the settings of a config by their whole names: learning.network.lr."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def varying(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the whole names of the settings in which flat configs differ. One may lack what another has."""
    names = dict.fromkeys(name for config in configs for name in config)
    return [name for name in names if len({json.dumps(config.get(name)) for config in configs}) > 1]


def swept(found: Sequence[Flag], points: Sequence[Point]) -> list[str]:
    """Return the whole names of the settings that the flags vary, in the order of the flags."""
    differ = varying([flat(point.config) for point in points])
    return [name for flag in found for name in differ if name.rpartition(".")[2] == flag.key]


def setting(name: str, value: Any) -> str:
    """Return "lr=0.001" for learning.network.lr."""
    return f"{name.rpartition('.')[2]}={shown(value)}"


def shown(value: Any) -> str:
    """Return a value as people write it: 64-64 for a list."""
    return "-".join(map(shown, value)) if isinstance(value, list) else str(value)  # pyright: ignore[reportUnknownVariableType]


def name_of(config: Mapping[str, Any], keys: Sequence[str]) -> str:
    """Return the name of the folder of a run: lr=0.001,seed=0, without what folders cannot be called."""
    settings = flat(config)
    name = ",".join(setting(key, settings[key]) for key in keys)
    return re.sub(r"[^\w.,=+:-]+", "-", name, flags=re.ASCII)[:NAME] or "run"
