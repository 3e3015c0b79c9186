"""Worlds that move by themselves: what is collected against a loop over one environment, in every autoreset
mode and however it is cut into chunks.
"""

from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from ticker import seeds_of
from torch import Tensor

from gradhat.envs.gym import GymSpec, World, make
from gradhat.envs.tabular import TabularEnv, TabularVectorEnv
from gradhat.exact.mdp import TabularMDP, tabular
from gradhat.rollouts.vector import Collector, Episode
from gradhat.trajectories import Trajectories

ENV = "WorldTurns-v0"
MODES = ("next_step", "same_step", "disabled")
N, T, SEED = 3, 200, 5


def talk() -> TabularMDP:
    """The policy acts in 0 and 2; the world in 1 and 3, up to two steps in a row, and in 4, where half the
    episodes begin. 5 is the end: an own step or the world's leads there. Cut after 7 steps. Every move pays
    another number."""
    P = torch.zeros(6, 2, 6, dtype=torch.float64)
    P[0, 0, 1] = P[0, 1, 2] = P[2, 0, 1] = 1
    P[2, 1, 0], P[2, 1, 5] = 0.7, 0.3
    P[1, :, 3], P[1, :, 2], P[1, :, 5] = 0.5, 0.3, 0.2
    P[3, :, 0], P[3, :, 2], P[3, :, 5] = 0.4, 0.4, 0.2
    P[4, :, 0] = 1
    paid = 2.0 ** torch.arange(36).reshape(6, 1, 6).expand(6, 2, 6).remainder(11)
    return tabular(
        P,
        paid,
        torch.tensor([0.5, 0, 0, 0, 0.5, 0]),
        gamma=1.0,
        terminal=torch.arange(6) == 5,
        own=torch.tensor([True, False, True, False, False, True]),
        time_limit=7,
    )


class Talk(TabularEnv):
    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(talk())


if ENV not in gymnasium.registry:
    gymnasium.register(ENV, entry_point=Talk)


class Own(NamedTuple):
    """A step of the policy, with what the world made of it until the policy acts again."""

    state: int
    action: int
    reward: float
    successor: int
    terminated: bool
    truncated: bool


def choice(state: int) -> int:
    return int(state == 2)


class Reader:
    """Acts on the number of the state alone."""

    def act(self, observations: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        del generator
        states = observations.argmax(-1)
        return (states == 2).long(), -states.float()


def alone(num_steps: int, seed: int) -> tuple[list[Own], list[Episode]]:
    """Live `num_steps` own steps in one environment; return them, and the episodes that ended by then."""
    env, steps, episodes = Talk(), list[Own](), list[Episode]()
    state, info = env.reset(seed=seed)
    taken: tuple[int, int] | None = None
    paid, ret, length = 0.0, 0.0, 0
    while len(steps) < num_steps:
        if info["own"]:
            taken, paid, length = (state, choice(state)), 0.0, length + 1
        state, reward, terminated, truncated, info = env.step(choice(state))
        paid, ret = paid + reward, ret + reward
        if taken is not None and (info["own"] or terminated or truncated):
            steps.append(Own(*taken, paid, state, terminated, truncated))
            taken = None
        if terminated or truncated:
            episodes.append(Episode(ret, length))
            state, info = env.reset()
            ret, length = 0.0, 0
    return steps, episodes


def own_steps(row: Trajectories) -> list[Own]:
    seen, following = row.observations, row.next_observations
    assert isinstance(seen, Tensor) and following is not None
    own = row.mask[0]
    columns = (seen[0].argmax(-1), row.actions[0], row.rewards[0], following[0].argmax(-1))
    flags = (row.terminated[0], row.truncated[0])
    assert torch.equal(row.logp[0][own], -seen[0].argmax(-1).float()[own])
    return [Own(*step) for step in zip(*(c[own].tolist() for c in (*columns, *flags)), strict=True)]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def world(mode: Any) -> World:
    return make(GymSpec(ENV, N, "sync", {}, mode))


@pytest.mark.parametrize("mode", MODES)
def test_the_worlds_own_steps_belong_to_the_own_step_before(mode: str) -> None:
    collector = Collector(world(mode), seed=SEED)
    found = collector.collect(Reader(), T, generator(), version=0)
    episodes: list[Episode] = []
    for i, seed in enumerate(seeds_of(SEED, N)):
        steps, ended = alone(int(found.mask[i].sum()), seed)
        assert own_steps(found.select([i])) == steps
        assert sum(s.truncated for s in steps) > 3 and sum(s.terminated and s.state == 0 for s in steps) > 3
        episodes += ended
    assert collector.num_frames == int(found.mask.sum())
    # The last episodes may end after the last own step that is known.
    assert sorted(collector.drain()) == sorted(episodes)
    assert not found.rewards[~found.mask].any() and not (found.terminated & ~found.mask).any()


@pytest.mark.parametrize("mode", MODES)
def test_a_chunk_may_end_in_the_middle_of_the_worlds_turn(mode: str) -> None:
    whole, parts = Collector(world(mode), seed=SEED), Collector(world(mode), seed=SEED)
    wanted = whole.collect(Reader(), 30, generator(), version=0)
    chunks = [parts.collect(Reader(), 1, generator(), version=0) for _ in range(30)]
    for i in range(N):
        pieces = [step for chunk in chunks for step in own_steps(chunk.select([i]))]
        assert pieces == own_steps(wanted.select([i]))
    assert parts.num_frames == whole.num_frames == sum(int(chunk.mask.sum()) for chunk in chunks)


@pytest.mark.parametrize("kind", ["tables", *MODES])
def test_what_is_restored_in_the_worlds_turn_goes_on_to_the_bit(kind: str) -> None:
    def made(seed: int) -> Collector:
        found = World(TabularVectorEnv(talk(), N), "talk") if kind == "tables" else world(kind)
        return Collector(found, seed=seed, normalize_observations=True, normalize_rewards=True)

    for num_steps in (1, 2, 3):
        first, second = made(1), made(2)
        first.collect(Reader(), num_steps, generator(), version=0)
        state = {key: tensor.clone() for key, tensor in first.state().items()}
        wanted = first.collect(Reader(), 30, generator(), version=0)
        second.collect(Reader(), 5, generator(), version=0)
        second.restore(state)
        found = second.collect(Reader(), 30, generator(), version=0)
        for name in ("observations", "actions", "rewards", "mask", "logp", "next_observations"):
            assert torch.equal(getattr(found, name), getattr(wanted, name)), name
        assert first.num_frames == second.num_frames


@pytest.mark.parametrize("mode", MODES)
def test_whole_episodes_hold_what_the_world_pays(mode: str) -> None:
    collector = Collector(world(mode), seed=SEED)
    collector.collect(Reader(), 2, generator(), version=0)
    collector.drain()
    found = collector.episodes(Reader(), 4, generator(), version=0)
    assert torch.equal((found.terminated | found.truncated).sum(1), torch.ones(4 * N, dtype=torch.long))
    drained = collector.drain()
    assert sorted(e.length for e in drained) == sorted(found.mask.sum(1).tolist())
    # What is paid in state 4, before the first own step, is of the episode and of none of its steps.
    before = float(talk().reward[4, 0, 0])
    apart = sum(e.ret for e in drained) - float(found.returns().sum())
    assert apart > 0 and apart % before == 0


def test_normalisers_see_own_steps_alone() -> None:
    collector = Collector(world("disabled"), seed=SEED, normalize_observations=True, normalize_rewards=True)
    raw = Collector(world("disabled"), seed=SEED)
    assert collector.moments is not None and collector.reward_scale is not None

    class Same(Reader):
        def act(self, observations: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            return torch.zeros(len(observations), dtype=torch.long), torch.zeros(len(observations))

    found = raw.collect(Same(), T, generator(), version=0)
    scaled = collector.collect(Same(), T, generator(), version=0)
    assert isinstance(found.observations, Tensor) and torch.equal(scaled.mask, found.mask)
    # One more for each environment in which the policy acts, or waits for the world.
    seen = found.observations[found.mask].double().sum(0).numpy()
    apart = collector.moments.mean * collector.moments.count - seen
    assert (apart > -1e-6).all() and apart.sum() <= N + 1e-6 and np.allclose(apart[[1, 3, 4, 5]], 0)
    assert collector.reward_scale.moments.count == int(found.mask.sum())
