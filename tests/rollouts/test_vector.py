"""The collector against a loop over one environment, in every autoreset mode; dummy steps; whole episodes;
normalisers; going on in the middle of episodes.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from ticker import ENV, Chooser, Dice, Lived, Ticker, alone, seeds_of
from torch import Tensor

from gradhat.envs.gym import GymSpec, World, make
from gradhat.envs.tabular import TabularVectorEnv
from gradhat.errors import TaskError
from gradhat.exact.mdp import tabular
from gradhat.exact.zoo import ZOO
from gradhat.policies.mlp import ActorCritic, MLPPolicy
from gradhat.rollouts import vector
from gradhat.rollouts.normalize import CLIP, RunningMoments, normalise
from gradhat.rollouts.vector import Collector, Episode
from gradhat.trajectories import Trajectories

MODES = ("next_step", "same_step", "disabled")
N, T, SEED = 3, 40, 7


def ticker(mode: Any = "auto", num_envs: int = N, **kwargs: Any) -> World:
    return make(GymSpec(ENV, num_envs, "sync", kwargs, mode))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(trajectories: Trajectories) -> dict[str, Tensor]:
    found = {field.name: getattr(trajectories, field.name) for field in fields(trajectories)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def assert_same(found: Trajectories, wanted: Trajectories) -> None:
    mine, theirs = numbers(found), numbers(wanted)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name]), name


def assert_lived(row: Trajectories, wanted: list[Lived]) -> None:
    """Compare the own steps of one row with a loop's."""
    own = row.mask[0]
    seen, following = row.observations, row.next_observations
    assert isinstance(seen, Tensor) and following is not None
    assert seen.dtype == torch.float32 and len(wanted) == int(own.sum())
    assert np.array_equal(seen[0][own], np.stack([step.seen for step in wanted]))
    assert np.array_equal(following[0][own], np.stack([step.successor for step in wanted]))
    assert row.actions[0][own].tolist() == [step.action for step in wanted]
    assert row.terminated[0][own].tolist() == [step.terminated for step in wanted]
    assert row.truncated[0][own].tolist() == [step.truncated for step in wanted]
    assert np.array_equal(row.rewards[0][own], np.array([step.reward for step in wanted], np.float32))
    assert torch.equal(row.logp[0][own], -seen[0][own].abs().sum(-1))


def episodes_of(lived: list[Lived]) -> list[list[Lived]]:
    found: list[list[Lived]] = [[]]
    for step in lived:
        found[-1].append(step)
        if step.terminated or step.truncated:
            found.append([])
    return found[:-1]


@pytest.mark.parametrize("mode", MODES)
def test_every_field_is_that_of_a_loop_over_one_environment(mode: str) -> None:
    collector = Collector(ticker(mode), seed=SEED)
    found = collector.collect(Chooser(), T, generator(), version=5)
    assert found.mask.shape == (N, T) and found.actions.dtype == torch.int64
    assert found.group.tolist() == [0, 1, 2] and found.version.tolist() == [5, 5, 5]
    ended = found.terminated | found.truncated
    assert int(found.terminated.sum()) > 5 and int(found.truncated.sum()) > 5
    assert not (found.terminated & found.truncated).any() and not (ended & ~found.mask).any()
    for i, seed in enumerate(seeds_of(SEED, N)):
        assert_lived(found.select([i]), alone(Ticker(), int(found.mask[i].sum()), seed=seed))
    dummy = torch.zeros_like(found.mask)
    dummy[:, 1:] = ended[:, :-1]
    assert torch.equal(~found.mask, dummy if mode == "next_step" else torch.zeros_like(dummy))


def test_the_dummy_step_shows_the_final_observation_and_pays_nothing() -> None:
    collector = Collector(ticker("next_step"), seed=SEED)
    found = collector.collect(Chooser(), T, generator(), version=0)
    assert isinstance(found.observations, Tensor) and found.next_observations is not None
    dummy = ~found.mask
    before = dummy.roll(-1, 1)
    before[:, -1] = False
    assert dummy.any() and torch.equal(found.observations[dummy], found.next_observations[before])
    assert not found.rewards[dummy].any()


def test_a_native_vector_is_lived_in_like_any_other() -> None:
    """CartPole's own vector version, which resets itself in a step of its own, stepped by hand beside."""
    num_steps = 120
    collector = Collector(make(GymSpec("CartPole-v1", N)), seed=SEED)
    found = collector.collect(Dice(2), num_steps, generator(3), version=0)
    env = gymnasium.make_vec("CartPole-v1", N, vectorization_mode="vector_entry_point")
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    draws, ended = generator(3), np.zeros(N, np.bool_)
    seen, _ = env.reset(seed=SEED)
    assert isinstance(found.observations, Tensor) and found.next_observations is not None
    for t in range(num_steps):
        actions, logp = Dice(2).act(torch.zeros(N, 4), draws)
        successors, rewards, terminated, truncated, _ = env.step(actions.numpy())
        assert np.array_equal(found.observations[:, t], seen)
        assert np.array_equal(found.actions[:, t], actions) and torch.equal(found.logp[:, t], logp)
        assert np.array_equal(found.mask[:, t], ~ended)
        assert np.array_equal(found.next_observations[:, t], successors)
        assert np.array_equal(found.rewards[:, t], rewards) and np.array_equal(rewards == 0, ended)
        assert np.array_equal(found.terminated[:, t], terminated)
        assert np.array_equal(found.truncated[:, t], truncated & ~terminated)
        seen, ended = successors, terminated | truncated
    assert int(found.terminated.sum()) > 5
    assert collector.num_frames == int(found.mask.sum()) < N * num_steps


@pytest.mark.parametrize("mode", MODES)
def test_only_own_steps_are_frames_and_returns_are_raw(mode: str) -> None:
    collector = Collector(ticker(mode), seed=SEED, normalize_rewards=True)
    lived, masks = 0, []
    for num_steps in (T // 2, T // 2):
        masks.append(collector.collect(Chooser(), num_steps, generator(), version=0).mask)
        lived += int(masks[-1].sum())
        assert collector.num_frames == lived
    own = torch.cat(masks, 1).sum(1).tolist()
    whole = [
        episodes_of(alone(Ticker(), steps, seed=seed))
        for steps, seed in zip(own, seeds_of(SEED, N), strict=True)
    ]
    wanted = [Episode(sum(s.reward for s in one), len(one)) for mine in whole for one in mine]
    found = collector.drain()
    assert sorted(e.length for e in found) == sorted(e.length for e in wanted)
    assert sorted(e.ret for e in found) == pytest.approx(sorted(e.ret for e in wanted), rel=1e-12)
    assert collector.drain() == []


def test_a_step_of_the_world_itself_is_no_frame() -> None:
    """Between two tokens of the policy the world writes one of its own."""
    collector = Collector(World(TabularVectorEnv(ZOO["turn"](), N), "zoo:turn"), seed=SEED)
    found = collector.collect(Dice(3), T, generator(), version=0)
    assert isinstance(found.observations, Tensor)
    shown = found.observations.argmax(-1)
    mdp = ZOO["turn"]()
    own = (mdp.own & ~mdp.terminal)[mdp.observation.argsort()]
    assert bool(own[shown[found.mask]].all())
    assert int((own[shown] & ~found.mask).sum()) > 3, "steps that waited for the world"
    assert collector.num_frames == int(found.mask.sum())


def test_an_end_without_an_own_step_is_none_of_the_policys() -> None:
    """Half the trajectories of this bandit begin where they end."""
    bandit = ZOO["bandit"]()
    mdp = tabular(
        bandit.transition, bandit.reward, torch.full((2,), 0.5), gamma=1.0, terminal=bandit.terminal
    )
    collector = Collector(World(TabularVectorEnv(mdp, N), "bandit"), seed=SEED)
    found = collector.collect(Dice(3), T, generator(), version=0)
    assert 10 < int(found.mask.sum()) < N * T / 2
    assert torch.equal(found.terminated, found.mask) and len(collector.drain()) == int(found.mask.sum())


@pytest.mark.parametrize("mode", MODES)
def test_a_call_goes_on_where_the_last_one_was_cut(mode: str) -> None:
    whole, parts = Collector(ticker(mode), seed=SEED), Collector(ticker(mode), seed=SEED)
    wanted = whole.collect(Chooser(), 12, generator(), version=0)
    found = [parts.collect(Chooser(), num_steps, generator(), version=0) for num_steps in (1, 4, 7)]
    for name, tensor in numbers(wanted).items():
        if tensor.dim() > 1:
            assert torch.equal(torch.cat([numbers(part)[name] for part in found], 1), tensor), name
    assert whole.drain() == parts.drain()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("per_env", [1, 3])
def test_episodes_are_the_first_whole_ones_of_each_environment(mode: str, per_env: int) -> None:
    collector = Collector(ticker(mode), seed=SEED)
    found = collector.episodes(Chooser(), per_env, generator(), version=2)
    assert len(found) == N * per_env and found.version.tolist() == [2] * len(found)
    assert found.group.tolist() == [i for i in range(N) for _ in range(per_env)]
    for i, seed in enumerate(seeds_of(SEED, N)):
        env = Ticker()
        env.reset(seed=seed)  # The collector's first; its episodes begin with a reset of their own.
        wanted = episodes_of(alone(env, 5 * per_env, seed=None))[:per_env]
        for k, one in enumerate(wanted):
            assert_lived(found.select([i * per_env + k]), one)
    lengths = found.mask.sum(1)
    assert found.mask.shape[1] == int(lengths.max()) > int(lengths.min())
    assert torch.equal(found.mask, torch.arange(int(lengths.max())) < lengths[:, None])
    for name, tensor in numbers(found).items():
        if tensor.dim() > 1:
            assert not tensor[~found.mask].any(), name
    ended = found.terminated | found.truncated
    assert torch.equal(ended.sum(1), torch.ones(len(found), dtype=torch.long))


def test_episodes_begin_anew_each_time() -> None:
    """What was going on is given up: neither its reward nor its length comes into the next episode."""
    collector = Collector(ticker(), seed=SEED, normalize_rewards=True, gamma=0.9)
    for _ in range(3):
        collector.collect(Chooser(), 2, generator(), version=0)
        collector.drain()
        found = collector.episodes(Chooser(), 1, generator(), version=0)
        assert isinstance(found.observations, Tensor)
        assert not found.observations[:, 0, 1].any(), "an episode begins at its step 0"
        lengths = sorted(e.length for e in collector.drain())
        assert max(lengths) <= 5 and set(found.mask.sum(1).tolist()) <= set(lengths)


def test_an_endless_episode_is_an_error_and_not_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vector, "LONGEST", 20)
    collector = Collector(ticker(endless=True), seed=SEED)
    with pytest.raises(TaskError, match=r"Ticker-v0: 1 whole episodes .* goes on after 20 steps.*a2c or ppo"):
        collector.episodes(Chooser(), 1, generator(), version=0)


class Plain(Chooser):
    """Always the same action: normalised or not, the world answers the same."""

    def act(self, observations: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        self.shown.append(observations.clone())
        return torch.zeros(len(observations), dtype=torch.long), torch.zeros(len(observations))


@pytest.mark.parametrize("mode", MODES)
def test_the_moments_are_those_of_the_observations_acted_on(mode: str) -> None:
    """In every mode the same: no final observation, no observation twice."""
    collector = Collector(ticker(mode), seed=SEED, normalize_observations=True)
    raw = Collector(ticker(mode), seed=SEED)
    found = collector.collect(Plain(), T, generator(), version=0)
    plain = raw.collect(Plain(), T, generator(), version=0)
    assert isinstance(plain.observations, Tensor) and collector.moments is not None
    present = torch.from_numpy(raw._observations)  # pyright: ignore[reportPrivateUsage]
    if mode == "next_step":
        present = present[~(found.terminated | found.truncated)[:, -1]]
    rows = torch.cat([plain.observations[plain.mask], present]).double().numpy()
    assert collector.moments.count == len(rows)
    np.testing.assert_allclose(collector.moments.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(collector.moments.variance, rows.var(0), rtol=1e-10)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_stored_is_what_the_policy_saw(mode: str) -> None:
    actor = Plain()
    collector = Collector(ticker(mode), seed=SEED, normalize_observations=True)
    found = collector.collect(actor, T, generator(), version=0)
    assert isinstance(found.observations, Tensor) and found.next_observations is not None
    assert torch.equal(found.observations, torch.stack(actor.shown, 1))
    ended = found.terminated | found.truncated
    goes_on = ~ended[:, :-1] & found.mask[:, :-1]
    following = found.observations[:, 1:]
    assert torch.equal(found.next_observations[:, :-1][goes_on], following[goes_on])
    if mode == "next_step":
        at = ended[:, :-1]
        assert torch.equal(found.next_observations[:, :-1][at], following[at])


@pytest.mark.parametrize("mode", MODES)
def test_a_successor_is_normalised_by_the_moments_of_its_step(mode: str) -> None:
    """The twin feeds moments of its own, one step after the other."""
    collector = Collector(ticker(mode), seed=SEED, normalize_observations=True)
    found = collector.collect(Plain(), T, generator(), version=0)
    assert isinstance(found.observations, Tensor) and found.next_observations is not None
    world, moments = ticker(mode), RunningMoments((4,))
    seen = world.reset(SEED)
    moments.update(seen)
    for t in range(T):
        assert np.array_equal(found.observations[:, t], normalise(seen, moments))
        step = world.step(np.zeros(N, np.int64))
        ended = step.terminated | step.truncated
        moments.update(step.observations, ~ended if mode == "next_step" else None)
        assert np.array_equal(found.next_observations[:, t], normalise(step.successors, moments))
        seen = step.observations


@pytest.mark.parametrize("mode", MODES)
def test_rewards_are_divided_by_the_deviation_of_the_discounted_return(mode: str) -> None:
    gamma = 0.8
    collector = Collector(ticker(mode), seed=SEED, normalize_rewards=True, gamma=gamma)
    raw = Collector(ticker(mode), seed=SEED)
    scaled = collector.collect(Plain(), T, generator(), version=0)
    plain = raw.collect(Plain(), T, generator(), version=0)
    running, all_of_them = np.zeros(N), list[float]()
    for t in range(T):
        for i in range(N):
            if plain.mask[i, t]:
                running[i] = gamma * running[i] + float(plain.rewards[i, t])
                all_of_them.append(running[i])
        deviation = np.std(all_of_them) or 1.0
        wanted = (plain.rewards[:, t] / deviation).clamp(-CLIP, CLIP) * plain.mask[:, t]
        np.testing.assert_allclose(scaled.rewards[:, t], wanted, rtol=1e-5)
        running[(plain.terminated | plain.truncated)[:, t].numpy()] = 0
    assert torch.equal(scaled.mask, plain.mask) and collector.drain() == raw.drain()


def test_a_discounted_return_does_not_reach_over_a_reset() -> None:
    scaled = Collector(ticker(), seed=SEED, normalize_rewards=True, gamma=0.9)
    raw = Collector(ticker(), seed=SEED)
    (cut, first), (plain, rewards) = (
        (c.collect(Plain(), 1, generator(), version=0), c.episodes(Plain(), 1, generator(), version=0))
        for c in (scaled, raw)
    )
    assert not (cut.terminated | cut.truncated).all(), "some episodes were going on"
    seen = np.concatenate([plain.rewards[:, 0], rewards.rewards[:, 0]])
    np.testing.assert_allclose(first.rewards[:, 0], rewards.rewards[:, 0] / np.std(seen), rtol=1e-5)


def native() -> World:
    return make(GymSpec("CartPole-v1", N))


def of_tables() -> World:
    return World(TabularVectorEnv(ZOO["chain"](), N), "zoo:chain")


WORLDS: dict[str, Callable[[], World]] = {
    **{mode: lambda mode=mode: ticker(mode) for mode in MODES},
    "native": native,
    "tables": of_tables,
}


@pytest.mark.parametrize("name", WORLDS)
def test_what_is_restored_goes_on_to_the_bit(name: str) -> None:
    """In the middle of episodes, with every normaliser, in a collector that had seen something else."""

    def made(seed: int) -> Collector:
        world = WORLDS[name]()
        return Collector(world, seed=seed, normalize_observations=True, normalize_rewards=True, gamma=0.9)

    first, second = made(1), made(2)
    actor = Dice(first.world.actions.size)
    first.collect(actor, 33, generator(), version=0)
    first.drain()
    state = {key: tensor.clone() for key, tensor in first.state().items()}
    wanted = [first.collect(actor, 40, generator(4), version=1)]
    wanted.append(first.episodes(actor, 2, generator(5), version=2))
    second.collect(actor, 20, generator(9), version=0)
    second.drain()
    second.restore(state)
    found = [second.collect(actor, 40, generator(4), version=1)]
    found.append(second.episodes(actor, 2, generator(5), version=2))
    for mine, theirs in zip(found, wanted, strict=True):
        assert_same(mine, theirs)
    assert int((wanted[0].terminated | wanted[0].truncated).sum()) > 3
    assert second.num_frames == first.num_frames
    assert second.drain() == first.drain() != []
    assert all(torch.equal(t, second.state()[key]) for key, t in first.state().items() if key != "world")


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_logp_is_that_of_the_stored_action_for_the_stored_observation(env: str) -> None:
    """Ratio 1, also where a normaliser stands between, and where the world clips the action."""
    world = make(GymSpec(env, N))
    module = ActorCritic(
        world.num_inputs,
        world.actions.size,
        hidden=(16,),
        continuous=not world.actions.discrete,
        log_std=1.0,
        generator=generator(),
    )
    module.actor.weights[-1].data *= 100
    policy = MLPPolicy(module)
    collector = Collector(world, seed=SEED, normalize_observations=True)
    found = collector.collect(policy, T, generator(), version=0)
    with torch.no_grad():
        logp = policy.evaluate(found).logp
    assert (logp - found.logp)[found.mask].abs().max() < 1e-5
    assert found.logp[found.mask].std() > 0.1
    if not world.actions.discrete:
        assert found.actions.shape == (N, T, 1) and (found.actions.abs() > 2).any(), "as sampled, not clipped"
