"""Every number of every algorithm has a range, and one outside it ends in a sentence."""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest

from gradhat.cli.main import main
from gradhat.errors import ConfigError
from gradhat.training.control.algorithms import ALGORITHMS
from gradhat.training.control.config import RANGES, ControlConfig, check


def numbers(part: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The paths to all settings that hold a number, or may."""
    for field in fields(part):
        value = getattr(part, field.name)
        if is_dataclass(value):
            yield from numbers(value, (*path, field.name))
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            yield *path, field.name


def put(part: Any, path: tuple[str, ...], value: Any) -> Any:
    first, *rest = path
    return replace(part, **{first: put(getattr(part, first), tuple(rest), value) if rest else value})


EVERY = [(name, path) for name, row in ALGORITHMS.items() for path in numbers(ControlConfig(row.learning))]


def test_every_number_has_one_range() -> None:
    listed = [name for names, _, _ in RANGES for name in names]
    assert len(set(listed)) == len(listed)
    assert {path[-1] for _, path in EVERY} | {"hidden"} == set(listed)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused(bad: float) -> None:
    for name, path in EVERY:
        with pytest.raises(ConfigError, match=path[-1]):
            check(put(ControlConfig(ALGORITHMS[name].learning), path, bad))


def test_negative_numbers_are_refused_but_where_they_mean_something() -> None:
    for name, path in EVERY:
        config = put(ControlConfig(ALGORITHMS[name].learning), path, -1)
        if path[-1] in ("low", "high"):
            config = put(config, (*path[:-1], "num_atoms"), 5)
        if path[-1] in ("log_std", "low", "high", "entropy_per_component"):
            check(config)
        else:
            with pytest.raises(ConfigError, match=f"{path[-1]}=-1.*Use"):
                check(config)


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ("dqn --num-atoms 51 --low 10 --high -10", "low=10.0 with high=-10.0"),
        ("dqn --first-frames 500 --num-frames 500", "first_frames=500 with num_frames=500"),
        ("ppo --clip-low -0.1", "clip_low=-0.1"),
        ("ppo --lr inf", "lr=inf"),
        ("reinforce --decay 1.5", "decay=1.5"),
        ("sac --entropy-per-component 0.7", "entropy_per_component=0.7"),
        ("trpo --backtrack-coef 3", "backtrack_coef=3.0"),
        ("q_learning --alpha -1", "alpha=-1.0"),
        ("a2c --hidden 0", "hidden=(0,)"),
        # In CartPole REINFORCE is tuned with a critic: a decay would change nothing.
        ("reinforce --decay 0.5", "decay=0.5 with baseline=critic: nothing reads this setting"),
        ("reinforce --baseline none --value-epochs 3", "Leave it at 10, or use baseline=critic"),
        ("reinforce --baseline none --value-minibatches 3", "value_minibatches=3 with baseline=none"),
        ("dqn --env Acrobot-v1 --beta 0.5", "beta=0.5 with alpha=None: nothing reads this setting"),
        ("dqn --low 0", "low=0.0 with num_atoms=1: nothing reads"),
        ("dqn --num-atoms 51 --delta 0.5", "Leave it at 1.0, or use num_atoms=1"),
        ("ppo --log-std -0.5", "log_std=-0.5 with discrete actions: nothing reads this setting"),
        ("a3c --log-std -0.5", "use an environment with continuous actions"),
        ("dqn --high 500", "Leave it at 10.0, or use num_atoms of 2 or more"),
    ],
)
def test_the_command_says_what_is_wrong(flags: str, wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *flags.split(), "--dry-run"]) == 2
    assert wanted in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        "reinforce --baseline moving_average --decay 0.5",
        "reinforce --value-epochs 3 --value-minibatches 2",
        "dqn --alpha 0.5 --beta 0.7",
        "dqn --num-atoms 51 --low 0 --high 500",
        "trpo --value-epochs 3",
        "dqn --delta 0.5",
        "trpo --env Pendulum-v1 --log-std -0.5",
    ],
)
def test_a_setting_that_something_reads_is_taken(flags: str) -> None:
    assert main(["train", *flags.split(), "--dry-run"]) == 0
