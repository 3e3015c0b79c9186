"""Tuned settings are found by algorithm and environment, and every one can be launched."""

import json

import pytest

from gradhat.cli.main import main
from gradhat.recipes.tuned import TUNED, control
from gradhat.training.control.algorithms import ALGORITHMS
from gradhat.training.control.config import ControlConfig, check, from_json, to_json

PAIRS = [(config.algorithm, config.env) for config in TUNED]


def test_no_pair_is_tuned_twice() -> None:
    assert len(set(PAIRS)) == len(PAIRS)


@pytest.mark.parametrize(("algorithm", "env"), PAIRS)
def test_the_command_starts_from_the_tuned_settings(
    algorithm: str, env: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = control(algorithm, env)
    check(tuned)
    assert (tuned.algorithm, tuned.env) == (algorithm, env)
    assert main(["train", algorithm, "--env", env, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out) == to_json(tuned)
    assert from_json(to_json(tuned), ControlConfig(ALGORITHMS[algorithm].learning), "here") == tuned


def test_other_environments_get_the_defaults() -> None:
    found = control("ppo", "MountainCar-v0")
    assert found.env == "MountainCar-v0" and found.learning == ALGORITHMS["ppo"].learning
