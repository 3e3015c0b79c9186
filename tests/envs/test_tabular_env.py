"""A finite world through Gymnasium's doors: the same chances as its tables, and the same ends."""

from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from scipy.stats import chisquare

from gradhat.envs.tabular import TabularEnv, TabularVectorEnv
from gradhat.errors import TaskError
from gradhat.exact.mdp import TabularMDP, tabular


def corridor(
    *,
    limit: int | None = 5,
    horizon: int | None = None,
    own: tuple[bool, ...] = (True,) * 4,
    aliased: bool = False,
) -> TabularMDP:
    """Deterministic: four states in a row, action 1 goes right and pays, action 0 stays. The last ends."""
    P = torch.zeros(4, 2, 4)
    reward = torch.zeros(4, 2)
    for s in range(4):
        P[s, 0, s] = P[s, 1, min(s + 1, 3)] = 1
        reward[s] = torch.tensor([-0.1, s + 1.0])
        if not own[s]:
            P[s, 0], reward[s, 0] = P[s, 1], reward[s, 1]
    return tabular(
        P,
        reward,
        torch.tensor([1.0, 0, 0, 0]),
        gamma=1.0,
        terminal=torch.tensor([False, False, False, True]),
        observation=torch.tensor([0, 1, 1, 0]) if aliased else None,
        own=torch.tensor(own),
        horizon=horizon,
        time_limit=limit,
    )


def weather(*, num_states: int = 5, limit: int | None = 6) -> TabularMDP:
    """Stochastic, with chances of 0 here and there, rewards of s′, random starts and one terminal state."""
    g = torch.Generator().manual_seed(3)
    P = torch.rand(num_states, 3, num_states, generator=g, dtype=torch.float64)
    P = torch.where(torch.rand(P.shape, generator=g) < 0.4, 0, P)
    P[:, :, 0] += 0.2
    start = torch.tensor([0.5, 0.3, *[0.0] * (num_states - 3), 0.2], dtype=torch.float64)
    terminal = torch.arange(num_states) == num_states - 1
    reward = torch.randn(P.shape, generator=g, dtype=torch.float64)
    return tabular(P / P.sum(-1, keepdim=True), reward, start, gamma=0.9, terminal=terminal, time_limit=limit)


def alone() -> TabularMDP:
    """One state, one action, no end."""
    return tabular(torch.ones(1, 1, 1), torch.ones(1, 1), torch.ones(1), gamma=0.5)


WORLDS = {
    "alone": alone(),
    "corridor": corridor(),
    "partially observed": corridor(aliased=True, limit=None),
    "moves by itself": corridor(own=(True, False, False, True)),
    "stochastic": weather(),
    "endless": weather(limit=None),
    "shortest": weather(limit=2),
    "ends by itself": corridor(horizon=4),
}


@pytest.mark.parametrize("name", WORLDS)
def test_gymnasiums_own_checker_is_content(name: str) -> None:
    check_env(TabularEnv(WORLDS[name]), skip_render_check=True)


Step = tuple[int, int, float, int, bool, bool]
"""State, action, reward, next state, terminated, truncated."""


def single(mdp: TabularMDP, num_steps: int) -> list[list[Step]]:
    """One stream of steps, under the uniform policy."""
    env, actions = TabularEnv(mdp), np.random.default_rng(1)
    _, info = env.reset(seed=7)
    steps: list[Step] = []
    for _ in range(num_steps):
        action = int(actions.integers(mdp.num_actions))
        before = info["state"]
        _, reward, terminated, truncated, info = env.step(action)
        steps.append((before, action, reward, info["state"], terminated, truncated))
        if terminated or truncated:
            _, info = env.reset()
    return [steps]


def vector(mdp: TabularMDP, num_steps: int, num_envs: int = 250) -> list[list[Step]]:
    """A stream of steps of each copy, without its resets."""
    env, actions = TabularVectorEnv(mdp, num_envs), np.random.default_rng(1)
    _, info = env.reset(seed=7)
    ended = np.zeros(num_envs, dtype=bool)
    streams: list[list[Step]] = [[] for _ in range(num_envs)]
    for _ in range(num_steps // num_envs):
        action = actions.integers(mdp.num_actions, size=num_envs)
        before = info["state"]
        _, reward, terminated, truncated, info = env.step(action)
        for copy in np.flatnonzero(~ended):
            columns = (before, action, reward, info["state"], terminated, truncated)
            streams[copy].append(tuple(column[copy] for column in columns))  # type: ignore[arg-type]
        ended = terminated | truncated
    return streams


@pytest.mark.parametrize("walk", [single, vector])
def test_next_states_and_rewards_are_those_of_the_tables(walk: Any) -> None:
    mdp = weather()
    count = np.zeros(mdp.transition.shape)
    for s, a, reward, after, *_ in chain.from_iterable(walk(mdp, 20_000)):
        count[s, a, after] += 1
        assert reward == float(mdp.reward[s, a, after])
    P = mdp.transition.numpy()
    assert (count[P == 0] == 0).all()
    visits = count.sum(-1)
    assert (visits[:-1] > 300).all()
    for s, a in np.argwhere(visits > 0):
        possible = P[s, a] > 0
        if possible.sum() > 1:
            assert chisquare(count[s, a][possible], P[s, a][possible] * visits[s, a]).pvalue > 1e-3


@pytest.mark.parametrize("walk", [single, vector])
def test_the_mean_return_is_the_exact_one(walk: Any) -> None:
    """Undiscounted, under the uniform policy, over the first six steps or until the terminal state."""
    mdp = weather()
    expected = float(mdp.start @ value_of_uniform(mdp))
    streams = walk(mdp, 30_000)
    returns = list(chain.from_iterable(first_returns(steps, 4000 // len(streams)) for steps in streams))
    error = np.std(returns) / np.sqrt(len(returns))
    assert error < 0.05
    assert abs(np.mean(returns) - expected) < 3 * error


def first_returns(steps: list[Step], number: int) -> list[float]:
    """Of a number of trajectories fixed in advance: all that ended would be too many short ones."""
    returns = [0.0]
    for *_, reward, _, terminated, truncated in steps:
        returns[-1] += reward
        if terminated or truncated:
            returns.append(0.0)
    assert len(returns) > number
    return returns[:number]


def value_of_uniform(mdp: TabularMDP) -> torch.Tensor:
    value = torch.zeros(mdp.num_states, dtype=torch.float64)
    for _ in range(mdp.time_limit or 0):
        value = (mdp.transition * (mdp.reward + value)).sum(-1).mean(-1)
    return value


@pytest.mark.parametrize("make", [lambda m: TabularEnv(m), lambda m: TabularVectorEnv(m, 50)])
def test_start_states_are_those_of_the_table(make: Any) -> None:
    mdp = weather()
    env = make(mdp)
    seen = [env.reset(seed=0)[1]["state"], *(env.reset()[1]["state"] for _ in range(1000))]
    count = np.bincount(np.concatenate([np.atleast_1d(s) for s in seen]), minlength=5)
    assert (count[mdp.start.numpy() == 0] == 0).all()
    possible = mdp.start.numpy() > 0
    assert chisquare(count[possible], mdp.start.numpy()[possible] * count.sum()).pvalue > 1e-3


@pytest.mark.parametrize(
    "mdp",
    [
        corridor(),
        corridor(limit=None),
        corridor(limit=2, aliased=True),
        corridor(limit=1),
        corridor(horizon=2),
        corridor(horizon=3, limit=2),
        corridor(own=(False, True, False, True)),
    ],
)
def test_many_copies_are_gymnasiums_many_copies_step_by_step(mdp: TabularMDP) -> None:
    ours, theirs = TabularVectorEnv(mdp, 4), SyncVectorEnv([lambda: TabularEnv(mdp)] * 4)
    assert ours.metadata["autoreset_mode"] is theirs.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    actions, ends = np.random.default_rng(0), 0
    same(ours.reset(seed=1), theirs.reset(seed=1))
    for _ in range(60):
        action = actions.integers(2, size=4)
        left, right = ours.step(action), theirs.step(action)
        same(left, right)
        ends += int((left[2] | left[3]).sum())
    assert ends > 10


def same(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> None:
    *ours, infos = ours
    *theirs, their_infos = theirs
    assert infos.keys() == their_infos.keys()
    for left, right in [*zip(ours, theirs, strict=True), *((infos[k], their_infos[k]) for k in infos)]:
        np.testing.assert_array_equal(left, right)
        assert left.dtype == right.dtype


def test_the_step_after_an_end_ignores_the_action_and_starts_anew() -> None:
    env = TabularVectorEnv(corridor(), 2)
    env.reset()
    for _ in range(3):
        answer = env.step(np.array([1, 0]))
    assert answer[2].tolist() == [True, False]
    assert answer[4]["own"].tolist() == [False, True]
    observations, rewards, terminated, _, infos = env.step(np.array([99, 1]))
    assert observations.tolist() == [0, 1]
    assert rewards.tolist() == [0.0, 1.0]
    assert not terminated.any()
    assert infos["own"].all()
    assert env.step(np.array([1, 1]))[1].tolist() == [1.0, 2.0]


def test_what_was_returned_does_not_change_later() -> None:
    env = TabularVectorEnv(weather(), 8)
    first = env.reset(seed=0)
    kept = [first[0].copy(), first[1]["state"].copy()]
    second = env.step(np.zeros(8, dtype=int))
    frozen = [array.copy() for array in second[:4]]
    first[1]["state"][:] = 3
    env.step(np.ones(8, dtype=int))
    np.testing.assert_array_equal(first[0], kept[0])
    for array, copy in zip(second[:4], frozen, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_the_end_of_the_world_is_not_the_end_of_looking() -> None:
    """Three steps right reach the terminal state: at the time limit too that is a termination, and so is the
    horizon, wherever one is."""
    for horizon, limit, action, terminated, truncated in [
        (None, 3, 1, True, False),
        (None, 3, 0, False, True),
        (None, 5, 1, True, False),
        (3, None, 0, True, False),
        (3, 5, 0, True, False),
        (3, 3, 0, True, False),
        (5, 3, 0, False, True),
    ]:
        env = TabularEnv(corridor(horizon=horizon, limit=limit))
        many = TabularVectorEnv(corridor(horizon=horizon, limit=limit), 2)
        env.reset(), many.reset()
        for step in range(3):
            expected = (terminated, truncated) if step == 2 else (False, False)
            assert env.step(action)[2:4] == expected
            answer = many.step(np.array([action, action]))
            assert [flags.tolist() for flags in answer[2:4]] == [[flag] * 2 for flag in expected]
        assert not answer[4]["own"].any()


def test_a_trajectory_that_starts_at_the_end_has_one_step_that_is_not_the_policys() -> None:
    mdp = tabular(
        torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]]]),
        torch.tensor([[5.0], [0.0]]),
        torch.tensor([0.0, 1.0]),
        gamma=1.0,
        terminal=torch.tensor([False, True]),
    )
    env = TabularEnv(mdp)
    assert env.reset() == (1, {"state": 1, "own": False})
    assert env.step(0) == (1, 0.0, True, False, {"state": 1, "own": False})


def test_info_shows_the_state_and_whose_turn_it_is() -> None:
    env = TabularEnv(corridor(aliased=True, own=(True, False, True, True)))
    assert env.reset() == (0, {"state": 0, "own": True})
    assert env.step(1)[4] == {"state": 1, "own": False}
    observation, reward, *_, info = env.step(0)
    assert (observation, reward, info) == (1, 2.0, {"state": 2, "own": True})  # the world went on by itself
    assert env.step(1)[4] == {"state": 3, "own": False}


class Highest:
    """A stream whose numbers are the largest below 1."""

    def random(self, size: int | None = None) -> Any:
        highest = float(np.nextafter(1.0, 0.0))
        return highest if size is None else np.full(size, highest)


def test_a_rounded_sum_never_leads_to_a_state_of_chance_zero() -> None:
    """Ten times 0.1 adds up to the largest number below 1; the eleventh state has no chance."""
    row = torch.tensor([0.1] * 10 + [0.0], dtype=torch.float64)
    mdp = tabular(row.expand(11, 1, 11), torch.zeros(11, 1), row, gamma=0.9)
    one, many = TabularEnv(mdp), TabularVectorEnv(mdp, 3)
    one.reset(), many.reset()
    one._np_random = many._np_random = Highest()  # type: ignore[assignment]
    assert one.reset()[0] == one.step(0)[0] == 9
    assert many.reset()[0].tolist() == many.step(np.zeros(3, dtype=int))[0].tolist() == [9, 9, 9]


@pytest.mark.parametrize("make", [TabularEnv, lambda m: TabularVectorEnv(m, 6)])
def test_the_same_seed_gives_the_same_trajectory(make: Any) -> None:
    def walk(seed: int) -> list[Any]:
        env = make(mdp)
        return [
            np.asarray(x).tolist() for x in (env.reset(seed=seed)[0], env.step(zero)[0], env.step(zero)[0])
        ]

    mdp = endless()
    zero = np.zeros_like(make(mdp).action_space.sample())
    assert walk(3) == walk(3)
    assert walk(3) != walk(4)


def endless() -> TabularMDP:
    """Thirty states, one as likely as the other at every step."""
    row = torch.full((30,), 1 / 30, dtype=torch.float64)
    return tabular(row.expand(30, 1, 30), torch.zeros(30, 1), row, gamma=0.9)


def test_a_step_that_cannot_be_taken_is_an_error() -> None:
    env = TabularEnv(corridor())
    with pytest.raises(TaskError, match=r"step\(1\) was asked for, but found no open .* Call reset\(\)"):
        env.step(1)
    env.reset()
    for wrong in (2, -1, 0.0, "left"):
        with pytest.raises(TaskError, match=r"found no such action\. Use an integer from 0 to 1"):
            env.step(wrong)  # type: ignore[arg-type]
    for _ in range(3):
        env.step(1)
    with pytest.raises(TaskError, match="after every end"):
        env.step(1)


def test_a_step_of_many_that_cannot_be_taken_is_an_error() -> None:
    with pytest.raises(TaskError, match="num_envs=0: found no environment"):
        TabularVectorEnv(corridor(), 0)
    env = TabularVectorEnv(corridor(), 3)
    with pytest.raises(TaskError, match="Call reset"):
        env.step(np.zeros(3, dtype=int))
    env.reset()
    for wrong, found in (
        (np.zeros(2, dtype=int), r"int64 of shape \(2,\). Pass integers of shape \(3,\)"),
        (np.zeros(3), "float64 of shape"),
        (np.array([0, 2, 0]), "found 2 in place 1. Use integers from 0 to 1"),
        (np.array([0, 0, -1]), "found -1 in place 2"),
    ):
        with pytest.raises(TaskError, match=found):
            env.step(wrong)
