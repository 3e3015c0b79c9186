"""The greedy return: episodes are shared out, so short ones do not crowd out the long."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

from gradhat.envs.gym import GymSpec, World, make
from gradhat.errors import ConfigError
from gradhat.intervals import Seen, mean_interval
from gradhat.policies.mlp import MLPPolicy
from gradhat.rollouts.normalize import normalise
from gradhat.training.control import evaluate, session, settings, worlds
from gradhat.training.control.config import ControlConfig
from gradhat.training.control.evaluate import Played, play
from gradhat.training.control.on_policy import Network, OnPolicyAgent
from gradhat.training.run_folder import RunFolder

SHORT, LONG = 1, 12
LIMIT = 100


class Uneven(gymnasium.Env[Any, Any]):
    """Half of the episodes have one step and pay 10, half have twelve and pay 1 for the last."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Discrete(2)

    def __init__(self, endless: bool = False, render_mode: str | None = None) -> None:
        self.endless, self.render_mode = endless, render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.mark = 0, float(self.np_random.random())
        self.length = SHORT if self.np_random.random() < 0.5 else LONG
        return self.seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        over = self.t == self.length and not self.endless
        pays = (10.0 if self.length == SHORT else 1.0) + self.mark * 1e-3 + action * 1e-6
        return self.seen(), pays if over or self.endless else 0.0, over, False, {}

    def seen(self) -> Any:
        return np.array([self.mark, self.t], np.float32)


gymnasium.register("Uneven-v0", Uneven)


def uneven(num_envs: int, mode: Any = "auto", **kwargs: Any) -> World:
    return make(GymSpec("Uneven-v0", num_envs, "sync", kwargs, mode))


def act(seen: Tensor) -> Tensor:
    return (seen[:, 0] * 64).long() % 2


def by_hand(num_envs: int, rounds: int, seed: int) -> list[float]:
    """One environment after the other within a step; those that are done early go on and do not count."""
    envs = [Uneven() for _ in range(num_envs)]
    seeds: list[int | None] = [int(s) for s in np.random.SeedSequence(seed).generate_state(num_envs)]
    found: list[float] = []
    for _ in range(rounds):
        seen = [env.reset(seed=s)[0] for env, s in zip(envs, seeds, strict=True)]
        seeds = [None] * num_envs
        first: dict[int, float] = {}
        while len(first) < num_envs:
            for i, env in enumerate(envs):
                seen[i], pays, over, _, _ = env.step(int(act(torch.from_numpy(seen[i])[None])[0]))
                if over:
                    first.setdefault(i, pays)
                    seen[i] = env.reset()[0]
        found += [first[i] for i in range(num_envs)]
    return found


def test_every_environment_plays_its_share_to_the_end() -> None:
    played = play(uneven(4), act, 12, seed=3, max_steps=LIMIT)
    assert played == Played(by_hand(4, 3, seed=3), 0)


@pytest.mark.parametrize("mode", ["next_step", "same_step", "disabled"])
def test_the_autoreset_mode_changes_nothing(mode: str) -> None:
    """The dummy step of next-step autoreset pays nothing and begins no episode."""
    assert play(uneven(6, mode), act, 6, seed=3, max_steps=LIMIT).returns == by_hand(6, 1, seed=3)
    more = play(uneven(6, mode), act, 18, seed=3, max_steps=LIMIT)
    assert len(more.returns) == 18 and min(more.returns) >= 1


def first_to_finish(world: World, num_episodes: int, seed: int) -> list[float]:
    """What others do: stop when so many episodes have ended, wherever."""
    found: list[float] = []
    seen, running = world.reset(seed), np.zeros(world.num_envs)
    while len(found) < num_episodes:
        step = world.step(act(torch.from_numpy(seen)).numpy())
        seen, running = step.observations, running + step.rewards
        ended = step.terminated | step.truncated
        found += running[ended].tolist()
        running[ended] = 0
    return found[:num_episodes]


def test_the_first_episodes_to_finish_are_not_the_policys() -> None:
    """The truth is 5.5, with a standard error of 0.7 here."""
    right = play(uneven(40), act, 40, seed=1, max_steps=LIMIT).returns
    assert abs(np.mean(right) - 5.5) < 1.5
    assert np.mean(first_to_finish(uneven(40), 40, seed=1)) > 7.5


def test_the_seed_decides_and_nothing_else() -> None:
    world = uneven(4)
    first = play(world, act, 8, seed=1, max_steps=LIMIT)
    other = play(world, act, 8, seed=2, max_steps=LIMIT)
    world.step(np.zeros(4, np.int64))
    assert play(world, act, 8, seed=1, max_steps=LIMIT) == first != other


def test_a_policy_that_never_ends_is_cut_and_says_so() -> None:
    played = play(uneven(3, endless=True), act, 6, seed=1, max_steps=7)
    assert played.num_cut == 6 and len(played.returns) == 6
    assert all(7 <= ret < 70.1 for ret in played.returns)
    metrics = evaluate.summary(Played([1.0, 2.0, 3.0, 6.0], 1), "greedy", Seen())
    assert metrics["greedy/cut"] == 0.25


def test_a_summary_has_the_interval_of_the_episodes() -> None:
    interval = mean_interval([1.0, 2.0, 3.0, 6.0])
    seen = Seen()
    assert evaluate.summary(Played([1.0, 2.0, 3.0, 6.0], 0), "greedy", seen) == {
        "greedy/return": 3.0,
        "greedy/cut": 0.0,
        "greedy/low": interval.low,
        "greedy/high": interval.high,
    }
    assert (seen.least, seen.most, seen.count) == (1.0, 6.0, 4)
    for few in ([4.0], [500.0, 500.0], [118.7, 460.2], [1.0, 2.0, 3.0]):
        mean = sum(few) / len(few)
        assert evaluate.summary(Played(few, 0), "greedy", Seen()) == {
            "greedy/return": mean,
            "greedy/cut": 0.0,
        }


def test_the_interval_stays_within_the_returns_that_were_seen() -> None:
    returns = [500.0, 500.0, 500.0, 120.0]
    assert evaluate.summary(Played(returns, 0), "greedy", Seen())["greedy/high"] > 500
    cart_pole = Seen(8.0, 500.0, 300)
    found = evaluate.summary(Played(returns, 0), "greedy", cart_pole)
    assert found["greedy/low"] > 8 and 495 < found["greedy/high"] <= 500


def test_episodes_that_cannot_be_shared_out_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"7 episodes over 3 environments.*Use a multiple of 3"):
        play(uneven(3), act, 7, seed=1, max_steps=LIMIT)


def test_a_judge_can_share_out_any_number(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr(worlds, "make", lambda config, num_envs: made.append(num_envs))
    for count in range(1, 251):
        session.judge(replace(ControlConfig(settings.PPO()), eval_episodes=count))
        assert count % made[-1] == 0 and made[-1] <= ControlConfig(settings.PPO()).eval_envs
    assert made[6] == 7 and made[99] == 100 and made[249] == 50


def test_returns_are_raw_and_normalisers_stay_as_they_are() -> None:
    """A policy that reads normalised observations, in a loop over single environments."""
    network = Network(hidden=(8,), normalize_observations=True, normalize_rewards=True)
    config = ControlConfig(
        settings.PPO(num_steps=16, network=network), "Pendulum-v1", num_envs=2, eval_episodes=3, seed=4
    )
    prepared = session.prepare(config)
    agent = prepared.agent
    assert isinstance(agent, OnPolicyAgent) and agent.collector.moments is not None
    agent.advance(64)
    moments = agent.collector.moments
    kept = {name: tensor.clone() for name, tensor in moments.state().items()}
    found = play(prepared.judge, agent.greedy(), 3, seed=5, max_steps=LIMIT)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in moments.state().items())
    policy, wanted = MLPPolicy(agent.module), []
    for seed in np.random.SeedSequence(5).generate_state(3):
        env = gymnasium.make("Pendulum-v1")
        seen, total = env.reset(seed=int(seed))[0], 0.0
        for _ in range(LIMIT):
            normal = torch.from_numpy(normalise(seen, moments))
            action = policy.greedy(normal[None])[0].numpy()
            seen, reward, *_ = env.step(action.clip(-2, 2))
            total += float(reward)
        wanted.append(total)
    assert found.returns == pytest.approx(wanted, rel=1e-5) and found.num_cut == 3
    assert min(wanted) < -100, "raw rewards are as low as -16"
    greedy, seen = agent.greedy(), torch.tensor([[0.3, -0.9, 4.0]])
    before = greedy(seen)
    moments.update(np.full((500, 3), 9.0))
    assert torch.equal(greedy(seen), before), "what is measured is the policy of its moment"


@pytest.mark.parametrize(
    ("stepped", "eval_envs", "made"), [("sync", 100, 6), ("sync", 4, 3), ("async", 100, 2), ("native", 1, 1)]
)
def test_measuring_makes_as_many_environments_as_it_may_and_steps_them_as_training_does(
    monkeypatch: pytest.MonkeyPatch, stepped: Any, eval_envs: int, made: int
) -> None:
    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(worlds, "make", lambda config, n: asked.append((config.vectorization, n)))
    learning = settings.PPO()
    config = ControlConfig(learning, num_envs=2, vectorization=stepped, eval_episodes=6, eval_envs=eval_envs)
    session.judge(config)
    assert asked == [(stepped, made)]


def test_no_second_world_is_made_before_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """A world that holds a port, or all of the memory, trains alone."""
    made: list[int] = []
    make = worlds.make
    monkeypatch.setattr(worlds, "make", lambda config, n: (made.append(n), make(config, n))[1])
    config = ControlConfig(settings.PPO(num_steps=4), num_envs=2, eval_every=0, eval_episodes=3)
    run = session.prepare(config)
    assert run.before(RunFolder(Path())) == {} and made == [2]
    assert run.judge is run.judge and made == [2, 3]
    run.close()
