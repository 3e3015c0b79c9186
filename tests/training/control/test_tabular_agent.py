"""Agents with a table, through the real worlds and the real collector: they reach Q*."""

import pytest
import torch
from pytest import CaptureFixture

from gradhat.algorithms.tabular_control import Settings
from gradhat.cli.main import main
from gradhat.errors import ConfigError
from gradhat.exact.mdp import with_time
from gradhat.exact.zoo import ZOO
from gradhat.training.control import worlds
from gradhat.training.control.config import ControlConfig
from gradhat.training.control.evaluate import play
from gradhat.training.control.settings import QLearning
from gradhat.training.control.tabular import TabularAgent

DETERMINISTIC = Settings(gamma=1.0, alpha=1.0, omega=0.0, epsilon_end=1.0)
AVERAGE = Settings(gamma=1.0, alpha=2.0, omega=1.0, epsilon_end=1.0)


def agent(env: str, given: Settings, *, num_envs: int, num_steps: int = 5) -> TabularAgent:
    config = ControlConfig(QLearning(settings=given), env=env, num_envs=num_envs)
    mdp = worlds.exact(config, given.gamma)
    world = worlds.make(config, num_envs)
    return TabularAgent(world, mdp, rule="q_learning", settings=given, num_steps=num_steps, seed=0)


CASES = {
    "zoo:chain": (DETERMINISTIC, 8, 4_000),
    "zoo:small": (DETERMINISTIC, 8, 8_000),
    "zoo:turn": (AVERAGE, 500, 400_000),
}


@pytest.mark.parametrize("env", CASES)
def test_q_learning_reaches_the_optimum(env: str) -> None:
    """`turn`: the world adds a word at random after the second. A successor in which the world moves has no
    action values, so the error would stay 1."""
    given, num_envs, num_frames = CASES[env]
    learner = agent(env, given, num_envs=num_envs, num_steps=3)
    found = learner.advance(num_frames)
    assert found["q_error/max"] <= 1e-2 and found["v_error/max"] <= 1e-2


@pytest.mark.slow
def test_the_greedy_return_is_that_of_greedy_episodes() -> None:
    """Frozen lake, half learned: undiscounted and within 100 steps, as it is measured."""
    given = Settings(gamma=0.9, alpha=10.0, omega=1.0, epsilon_end=1.0)
    learner = agent("FrozenLake-v1", given, num_envs=200)
    exact = learner.advance(100_000)["greedy_return"]
    world = worlds.make(ControlConfig(QLearning(), env="FrozenLake-v1"), 100)
    played = play(world, learner.greedy(), 1000, 3, max_steps=1000).returns
    assert exact > 0.3 and sum(played) / 1000 == pytest.approx(exact, abs=4 * 0.5 / 1000**0.5)


def test_an_own_time_limit_is_that_of_the_tables() -> None:
    config = ControlConfig(QLearning(), env="CliffWalking-v1", env_args=("max_episode_steps=20",))
    assert worlds.exact(config, 0.9).time_limit == 20
    assert worlds.exact(ControlConfig(QLearning(), env="CliffWalking-v1"), 0.9).time_limit is None


def test_a_horizon_is_shown_where_the_state_is_and_a_time_limit_never() -> None:
    """A table learns what an action is worth at every step; look-alike states stay what they are."""
    names = ("random", "corridor", "tiger", "hurry")
    shown = {name: worlds.exact(ControlConfig(QLearning(), env=f"zoo:{name}"), 0.5) for name in names}
    timed = with_time(ZOO["random"]())
    assert torch.equal(shown["random"].observation, timed.observation) and shown["random"].horizon is None
    assert shown["corridor"].horizon == 8 and shown["tiger"].horizon == 4
    assert shown["hurry"].time_limit == 2 and shown["hurry"].num_observations == 7
    world = worlds.make(ControlConfig(QLearning(), env="zoo:random"), 2)
    assert world.num_inputs == 15


def test_a_discount_of_the_worlds_own_steps_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"q_learning in zoo:turn: .*moves by itself.* Use gamma=1"):
        agent("zoo:turn", Settings(gamma=0.9), num_envs=2)


def test_tables_are_advised_where_there_are_some(capsys: CaptureFixture[str]) -> None:
    for env, advised in (("zoo:chain", True), ("FrozenLake-v1", True), ("CartPole-v1", False)):
        assert main(["train", "sac", "--env", env]) == 2
        error = capsys.readouterr().err
        assert "dqn" in error and ("q_learning" in error) == advised, error


@pytest.mark.parametrize("name", ["q", "visits"])
def test_no_table_is_made_to_fit(name: str) -> None:
    learner = agent("zoo:chain", DETERMINISTIC, num_envs=2)
    learner.advance(20)
    kept = learner.state()
    changed = [kept[name].T, kept[name].half()]
    for table in changed:
        with pytest.raises(ValueError, match=rf"{name} is \[.*\] of torch\..*, wanted \["):
            learner.restore(kept | {name: table})
    learner.restore(kept)
