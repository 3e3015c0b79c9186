"""The settings of a control run: there and back as JSON, differences, arguments of an environment."""

import json
from dataclasses import replace

import pytest

from gradhat.errors import ConfigError
from gradhat.recipes.tuned import TUNED, control
from gradhat.training.control import settings, worlds
from gradhat.training.control.algorithms import ALGORITHMS
from gradhat.training.control.config import ControlConfig, check, differences, env_kwargs, from_json, to_json
from gradhat.training.control.on_policy import Network

PPO = ControlConfig(settings.PPO())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_config_comes_back_from_json(name: str) -> None:
    default = ControlConfig(ALGORITHMS[name].learning)
    check(default)
    other = replace(default, env="Acrobot-v1", env_args=("a=1", "b=2"), num_envs=3, seed=9)
    values = json.loads(json.dumps(to_json(other)))
    assert values["algorithm"] == name
    assert from_json(values, default, "here") == other != default


def test_tuned_settings_are_valid_and_found_by_their_names() -> None:
    for config in TUNED:
        check(config)
        assert control(config.algorithm, config.env) == config
    assert control("sac", "Nowhere-v0") == ControlConfig(ALGORITHMS["sac"].learning, "Nowhere-v0")


def test_what_lies_deep_inside_comes_back() -> None:
    learning = settings.PPO(num_steps=5, network=Network(hidden=(3, 2), lr=0.5))
    config = replace(PPO, learning=learning)
    assert from_json(json.loads(json.dumps(to_json(config))), PPO, "here") == config
    values = to_json(config)
    values["learning"]["network"]["widht"] = 3
    with pytest.raises(ConfigError, match=r"read the config of runs/x: found the unknown keys widht.*hidden"):
        from_json(values, PPO, "runs/x")


def test_a_config_of_an_older_version_takes_the_defaults_it_lacks() -> None:
    values = to_json(PPO)
    del values["num_threads"], values["learning"]["settings"]["gamma"]
    assert from_json(values, PPO, "here") == PPO


def test_differences_are_named_however_deep() -> None:
    learning = replace(PPO.learning, num_steps=7, network=Network(lr=0.5))
    other = replace(PPO, learning=learning, seed=3)
    assert differences(PPO, other) == differences(other, PPO) == ["lr", "num_steps", "seed"]
    assert differences(PPO, PPO) == []


def test_arguments_of_an_environment_are_values_of_python_or_text() -> None:
    texts = ("continuous=True", "gravity=-9.8", "map_name=8x8", "desc=['SF', 'HG']", "note=a=b", "empty=")
    # What a shell's user writes for truth and for nothing; "false" as a text would be true.
    texts += ("is_slippery=false", "wind=TRUE", "goal=null", "start=none", "mode='none'")
    assert env_kwargs(replace(PPO, env_args=texts)) == {
        "continuous": True,
        "gravity": -9.8,
        "map_name": "8x8",
        "desc": ["SF", "HG"],
        "note": "a=b",
        "empty": "",
        "is_slippery": False,
        "wind": True,
        "goal": None,
        "start": None,
        "mode": "none",
    }
    for text in ("continuous", "=3", "a b=3", "3=a"):
        with pytest.raises(ConfigError, match="found no NAME=VALUE"):
            env_kwargs(replace(PPO, env_args=(text,)))


def test_arguments_reach_the_world_and_its_tables() -> None:
    config = replace(PPO, env="FrozenLake-v1", env_args=("map_name=8x8", "is_slippery=False"))
    world = worlds.make(config, 2)
    mdp = worlds.exact(config, 0.5)
    world.close()
    assert world.num_inputs == mdp.num_observations == 64 and mdp.gamma == 0.5 and mdp.time_limit == 100
    assert set(mdp.transition.unique().tolist()) == {0.0, 1.0}
    assert worlds.exact(replace(PPO, env="zoo:chain"), 0.25).gamma == 0.25
