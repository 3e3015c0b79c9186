"""Configs survive the disk, name what differs, and refuse what cannot work."""

import inspect
import json
import math
from dataclasses import fields, replace
from typing import Any

import pytest

from gradhat.errors import ConfigError
from gradhat.training.text.config import TrainConfig, check, differences, from_json, to_json

GOOD = TrainConfig(task="arithmetic")


def test_a_config_survives_json_to_the_bit() -> None:
    config = replace(GOOD, curriculum=("a", "b"), lr=0.1 + 0.2, betas=(0.9, 0.999), num_threads=2)
    assert from_json(json.loads(json.dumps(to_json(config))), "here") == config


def test_an_unknown_key_is_named_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"config of /run: found the unknown keys lrr\..*Known keys: task, .*lr, "
    ):
        from_json({**to_json(GOOD), "lrr": 1}, "/run")


def test_differences_are_named() -> None:
    assert differences(GOOD, replace(GOOD, lr=1e-4, curriculum=("x",))) == ["curriculum", "lr"]
    assert differences(GOOD, replace(GOOD)) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task", ""),
        ("lr", -1e-5),
        ("lr", math.nan),
        ("temperature", 0.0),
        ("temperature", math.inf),
        ("num_steps", 0),
        ("group_size", 0),
        ("betas", (0.9, 1.0)),
        ("clip_low", 1.5),
        ("curriculum_threshold", math.nan),
        ("max_grad_norm", 0.0),
        ("mismatch_cap", 0.0),
        ("mismatch_low", 1.5),
        ("mismatch_high", 0.5),
        ("keep_checkpoints", 0),
        ("seed", 2**63),
        ("num_steps", 10**30),
        ("num_threads", 0),
        ("max_replacements", -1),
        ("algorithm", "grop"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        check(replace(GOOD, **{name: value}))


@pytest.mark.parametrize("algorithm", ["reinforce", "rloo", "grpo", "dr_grpo"])
def test_every_algorithm_passes_with_the_defaults(algorithm: str) -> None:
    check(replace(GOOD, algorithm=algorithm))


@pytest.mark.parametrize("algorithm", ["rloo", "grpo", "dr_grpo"])
def test_a_group_of_one_has_no_group_baseline(algorithm: str) -> None:
    with pytest.raises(ConfigError, match=f"group_size=1 with algorithm={algorithm}.*at least 2"):
        check(replace(GOOD, algorithm=algorithm, group_size=1, replace_silent=False))


def test_reinforce_takes_a_group_of_one() -> None:
    """It compares with the past, and replaces no group."""
    check(replace(GOOD, algorithm="reinforce", group_size=1))


@pytest.mark.parametrize(
    ("given", "name", "value", "reader"),
    [
        ("algorithm=rloo", "clip_low", 0.1, "algorithm=grpo"),
        ("algorithm=reinforce", "clip_high", 0.3, "algorithm=grpo"),
        ("algorithm=rloo", "baseline_decay", 0.5, "algorithm=reinforce"),
        ("algorithm=dr_grpo", "baseline_decay", 1.0, "algorithm=reinforce"),
        ("algorithm=reinforce", "mismatch", "masked", "algorithm=rloo"),
        ("algorithm=reinforce", "max_replacements", 3, "algorithm=rloo"),
        ("algorithm=reinforce", "replace_silent", False, "algorithm=rloo"),
        ("mismatch=none", "mismatch_cap", 3.0, "mismatch=truncated"),
        ("mismatch=masked", "mismatch_cap", 3.0, "mismatch=truncated"),
        ("mismatch=none", "mismatch_low", 0.1, "mismatch=masked"),
        ("mismatch=truncated", "mismatch_high", 9.0, "mismatch=masked"),
    ],
)
def test_a_setting_that_nothing_reads_is_refused(given: str, name: str, value: Any, reader: str) -> None:
    settings, repaired = ({key: word} for key, _, word in (text.partition("=") for text in (given, reader)))
    with pytest.raises(ConfigError, match=f"{name}={value} with {given}: nothing reads .*{reader}"):
        check(replace(GOOD, **settings, **{name: value}))
    check(replace(GOOD, **repaired, **{name: value}))


def test_replacements_need_their_switch() -> None:
    with pytest.raises(ConfigError, match=r"max_replacements=3 with replace_silent=False: nothing reads"):
        check(replace(GOOD, max_replacements=3, replace_silent=False))
    check(replace(GOOD, max_replacements=3))


def test_a_threshold_needs_a_curriculum() -> None:
    with pytest.raises(ConfigError, match=r"curriculum_threshold=0.9 with curriculum=\(\): nothing reads"):
        check(replace(GOOD, curriculum_threshold=0.9))
    check(replace(GOOD, curriculum_threshold=0.9, curriculum=("arithmetic:digits=1",)))


def test_more_epochs_need_a_ratio() -> None:
    check(replace(GOOD, algorithm="grpo", num_epochs=2))
    with pytest.raises(ConfigError, match="off-policy"):
        check(replace(GOOD, algorithm="rloo", num_epochs=2))
    with pytest.raises(ConfigError, match=r"num_epochs=2 with algorithm=reinforce.*off-policy"):
        check(replace(GOOD, algorithm="reinforce", num_epochs=2))


def test_a_kl_coefficient_needs_a_kl_term() -> None:
    check(replace(GOOD, algorithm="grpo", kl_coef=0.1))
    with pytest.raises(ConfigError, match=r"no KL term.*rloo, grpo"):
        check(replace(GOOD, algorithm="dr_grpo", kl_coef=0.1))


def test_every_setting_is_documented() -> None:
    # The docstring under a field is its help on the command line; a field without one has an empty help.
    source = inspect.getsource(TrainConfig)
    for field in fields(TrainConfig):
        after = source.partition(f"\n    {field.name}: ")[2].split("\n", 2)[1]
        assert after.strip().startswith('"""'), field.name
