"""Settings that learn, by algorithm and environment; `gradhat train ALGORITHM --env ID` starts from them."""

from dataclasses import replace
from typing import Any

from gradhat.training.control.algorithms import ALGORITHMS
from gradhat.training.control.config import ControlConfig


def control(algorithm: str, env: str) -> ControlConfig[Any]:
    """Return the settings of `algorithm` that are tuned to `env`, or its defaults with that environment."""
    tuned = TUNED.get((algorithm, env))
    return tuned or replace(ControlConfig(ALGORITHMS[algorithm].learning), env=env)


TUNED: dict[tuple[str, str], ControlConfig[Any]] = {}
