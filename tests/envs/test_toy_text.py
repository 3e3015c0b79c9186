"""Gymnasium's worlds of tables are the exact ones: known optima, and the chances of play."""

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from gradhat.envs.toy_text import tables
from gradhat.errors import ConfigError
from gradhat.exact.solve import backward_induction, policy_iteration, value_iteration

TAXI = max(name for name in gymnasium.registry if name.startswith("Taxi-v"))


def test_the_optimum_of_frozen_lake() -> None:
    """Gymnasium names 0.74 within 100 steps, and 0.91 within 200 on the larger map."""
    limited = tables("FrozenLake-v1", limited=True)
    assert (limited.horizon, limited.time_limit) == (None, 100)
    within = replace(limited, horizon=100)
    assert float(within.start @ backward_induction(within).v[0]) == pytest.approx(0.744, abs=5e-4)
    larger = replace(tables("FrozenLake8x8-v1"), horizon=200)
    assert float(larger.start @ backward_induction(larger).v[0]) == pytest.approx(0.913, abs=5e-4)
    endless = tables("FrozenLake-v1")
    assert endless.max_steps is None
    assert torch.equal(policy_iteration(limited).v, policy_iteration(endless).v)
    assert float(endless.start @ policy_iteration(endless).v) == pytest.approx(14 / 17, abs=1e-9)


def test_the_optimum_of_cliff_walking() -> None:
    mdp = tables("CliffWalking-v1")
    best = policy_iteration(mdp)
    assert float(mdp.start @ best.v) == pytest.approx(-13)
    assert (mdp.num_states, mdp.num_actions, mdp.terminal.nonzero().tolist()) == (48, 4, [[47]])
    # Start (36), down and left: nothing moves. Right: the cliff, and back.
    assert best.q[36].tolist() == pytest.approx([-13, -113, -14, -14])


def test_the_optimum_of_taxi_is_the_mean_length_of_its_errands() -> None:
    """20 for the passenger, and -1 for every step before: the shortest way by breadth-first search."""
    mdp = tables(TAXI)
    assert (mdp.start > 0).sum() == 300 and mdp.terminal.sum() == 4
    best = value_iteration(mdp)
    steps = distances(mdp.transition, mdp.terminal)
    expected = torch.where(mdp.start > 0, 21.0 - steps, 0.0)
    torch.testing.assert_close(torch.where(mdp.start > 0, best.v, 0.0), expected.double())
    assert float(mdp.start @ best.v) == pytest.approx(7.93, abs=1e-9)


def distances(transition: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    """The number of steps to the goal in a world without chance."""
    after = transition.argmax(-1)
    steps = torch.where(goal, 0, 10_000)
    for _ in range(100):
        steps = torch.minimum(steps, 1 + steps[after].amin(1))
    return steps


@pytest.mark.parametrize(
    ("env_id", "kwargs"),
    [("FrozenLake-v1", {"is_slippery": False}), ("CliffWalking-v1", {}), (TAXI, {"is_rainy": True})],
)
def test_what_is_played_has_the_chances_of_the_tables(env_id: str, kwargs: dict[str, Any]) -> None:
    """Every step of random play is possible in the tables, with their reward and their end."""
    mdp = tables(env_id, kwargs, gamma=0.9)
    assert mdp.gamma == 0.9
    env = gymnasium.make(env_id, **kwargs)
    rng = np.random.default_rng(0)
    state, _ = env.reset(seed=0)
    expected = paid = 0.0
    for _ in range(3000):
        action = int(rng.integers(mdp.num_actions))
        after, reward, terminated, truncated, _ = env.step(action)
        row = mdp.transition[state, action]
        assert row[after] > 0 and float(mdp.reward[state, action, after]) == pytest.approx(float(reward))
        assert bool(mdp.terminal[after]) == terminated
        expected += float(row @ torch.arange(mdp.num_states).double())
        paid += after
        state = env.reset()[0] if terminated or truncated else after
    assert paid / 3000 == pytest.approx(expected / 3000, abs=0.01 * mdp.num_states)


def test_what_has_no_tables_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"tables of Acrobot-v1: found no P"):
        tables("Acrobot-v1")
    with pytest.raises(ConfigError, match=r"time limit of CliffWalking-v1: found none"):
        tables("CliffWalking-v1", limited=True)
    with pytest.raises(ConfigError, match=r"Did you mean FrozenLake-v1"):
        tables("FrozenLakes-v1")
    with pytest.raises(ConfigError, match="wheels"):
        tables("FrozenLake-v1", {"wheels": 3})


def test_an_end_that_is_no_state_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Going right ends in state 1 at once, going left comes there and goes on."""

    class TwoWays(gymnasium.Env[Any, Any]):
        P = {  # noqa: RUF012
            0: {0: [(1.0, 1, 0.0, False)], 1: [(1.0, 1, 1.0, True)]},
            1: {0: [(1.0, 0, 0.0, False)], 1: [(1.0, 0, 0.0, False)]},
        }
        initial_state_distrib = np.array([1.0, 0.0])
        observation_space = action_space = gymnasium.spaces.Discrete(2)

    monkeypatch.setitem(
        gymnasium.registry, "TwoWays-v0", gymnasium.envs.registration.EnvSpec("TwoWays-v0", TwoWays)
    )
    with pytest.raises(ConfigError, match="coming to state 1 ends some episodes and not others"):
        tables("TwoWays-v0")


def test_two_ways_to_the_same_state_pay_their_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lottery(gymnasium.Env[Any, Any]):
        P = {  # noqa: RUF012
            0: {0: [(0.1, 1, 10.0, True), (0.3, 1, 2.0, True), (0.6, 0, -1.0, False)]},
            1: {0: [(1.0, 1, 0.0, True)]},
        }
        initial_state_distrib = np.array([3.0, 0.0])
        observation_space = action_space = gymnasium.spaces.Discrete(2)

    monkeypatch.setitem(
        gymnasium.registry, "Lottery-v0", gymnasium.envs.registration.EnvSpec("Lottery-v0", Lottery)
    )
    mdp = tables("Lottery-v0")
    assert mdp.transition[0, 0].tolist() == pytest.approx([0.6, 0.4])
    assert mdp.reward[0, 0].tolist() == pytest.approx([-1.0, 4.0])
    assert mdp.start.tolist() == [1.0, 0.0]
