"""What a run folder names that is code. A folder may come from anybody, so reading it executes none of that.

docs/security.md says what is safe to open.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradhat.errors import ConfigError

FILE = re.compile(r"\.py(:|$)")
"""A task, a reward or another function in a file of one's own, such as my_task.py:MyTask."""
BRIDGES = ("GymV21Environment-v0", "GymV26Environment-v0")
"""Environments of Gymnasium that make one of another library, whose arguments name a module."""


def code_in(config: Mapping[str, Any]) -> list[str]:
    """Return, in words, what a run's config.json names whose use executes code from outside of gradhat."""
    return [f"{name} {value}" for name, value in _texts(config, "") if _is_code(name, value)]


def allow(verb: str, config: Mapping[str, Any], names: Sequence[str], flag: str, *, trusted: bool) -> None:
    """Raise ConfigError where a setting of `names` in a run's config names code, unless it is trusted.

    `flag` is what names it anew.
    """
    code = [found for found in code_in({name: config[name] for name in names}) if not trusted]
    if code:
        raise ConfigError(
            f"{verb}: found code in the run's config.json, which would be executed here: {', '.join(code)}. "
            f"Name it yourself with {flag}, or add --trust if you trust whoever made the run."
        )


def announce(run: Path, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for everything named in a config that going on with the run executes."""
    for found in code_in(config):
        yield f"executes {found}, which {run / 'config.json'} names"


def _is_code(name: str, value: str) -> bool:
    if name == "env":
        return ":" in value.removeprefix("zoo:") or value in BRIDGES
    return bool(FILE.search(value)) or (name == "env_args" and ":" in value)


def _texts(value: Any, name: str) -> Iterator[tuple[str, str]]:
    """Yield every text of a config with the name of its setting."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():  # pyright: ignore[reportUnknownVariableType]
            yield from _texts(item, str(key))
    elif isinstance(value, list | tuple):
        for item in value:  # pyright: ignore[reportUnknownVariableType]
            yield from _texts(item, name)
