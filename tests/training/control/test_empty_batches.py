"""A batch in which no environment acts is skipped and counted by every algorithm, and waiting has an end."""

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from gradhat.cli.main import main
from gradhat.envs.gym import World
from gradhat.envs.gym_vector import GymSpec, vector_of
from gradhat.errors import TaskError
from gradhat.rollouts import vector
from gradhat.training.control import settings, worlds
from gradhat.training.control.algorithms import ALGORITHMS
from gradhat.training.control.config import ControlConfig
from gradhat.training.control.hogwild import A3C
from gradhat.training.control.off_policy import Memory
from gradhat.training.control.on_policy import Network


class Flash(gymnasium.Env[Any, Any]):
    """Episodes of one step, with a force for an action."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.normal(size=2).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(2, np.float32), -(float(action[0]) ** 2), True, False, {}


gymnasium.register("Flash-v0", Flash)

NETWORK = Network(hidden=(4,), lr=0.01)
MEMORY = Memory(capacity=60, first_frames=4, num_steps=1, num_updates=1, batch_size=4)
LEARNING: dict[str, Any] = {
    "reinforce": settings.Reinforce(network=NETWORK),
    "a2c": settings.A2C(1, NETWORK),
    "a3c": A3C(1, 1, NETWORK),
    "ppo": settings.PPO(1, NETWORK),
    "trpo": settings.TRPO(1, NETWORK),
    "dqn": settings.DQN(MEMORY),
    "ddpg": settings.DDPG(MEMORY),
    "td3": settings.TD3(MEMORY),
    "sac": settings.SAC(MEMORY),
    "monte_carlo": settings.MonteCarlo(1),
    "sarsa": settings.Sarsa(1),
    "expected_sarsa": settings.ExpectedSarsa(1),
    "q_learning": settings.QLearning(1),
}


def learned(state: dict[str, Tensor]) -> list[Tensor]:
    chosen = [t for name, t in state.items() if name.startswith(("weights/", "algorithm/")) or name == "q"]
    return [tensor.clone() for tensor in chosen]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_batch_of_resets_teaches_nothing_and_stops_nobody(name: str) -> None:
    """Every second step is the reset of both environments. REINFORCE gathers whole episodes, which act."""
    config = ControlConfig(LEARNING[name], env="zoo:bandit", num_envs=2, num_frames=16)
    continuous = ALGORITHMS[name].serves == "continuous"
    flash = GymSpec("Flash-v0", 2, "sync", {}, "next_step")
    world = World(vector_of(flash), "Flash-v0") if continuous else worlds.make(config, 2)
    agent = ALGORITHMS[name].make(config, world)
    try:
        before = learned(agent.state())
        metrics = agent.advance(16)
        after = learned(agent.state())
    finally:
        agent.close()
    assert agent.num_frames == 16
    # Eight batches are lived, seven lie between them.
    assert metrics["empty_batches"] == pytest.approx(0 if name == "reinforce" else 7 / 15)
    assert all(np.isfinite(value) for value in metrics.values())
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True)) and len(before) > 0


@pytest.mark.parametrize(
    "flags",
    [
        "--env CartPole-v1 --num-envs 1 --num-steps 1",
        "--env zoo:bandit --num-envs 8 --num-steps 1",
        "--env zoo:turn --num-envs 1 --num-steps 1",
    ],
)
@pytest.mark.parametrize("algorithm", ["a2c", "ppo", "trpo"])
def test_batches_of_one_step_train(algorithm: str, flags: str, tmp_path: Path) -> None:
    short = "--num-frames 24 --log-every 12 --eval-every 0 --eval-episodes 2 --eval-max-steps 9 --hidden 4"
    argv = ["train", algorithm, *flags.split(), *short.split(), "--out", str(tmp_path / "run")]
    assert main(argv) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["num_frames"] >= 24 and any(line.get("empty_batches", 0) > 0 for line in lines)


def test_an_empty_batch_is_no_round_of_updates() -> None:
    """The memory has not grown, so its steps would be learned from twice as often."""
    config = ControlConfig(settings.DQN(MEMORY), env="zoo:bandit", num_envs=2, num_frames=16)
    agent = ALGORITHMS["dqn"].make(config, worlds.make(config, 2))
    agent.advance(16)
    # Rounds after frames 4, 6, ..., 16.
    assert int(agent.state()["algorithm/num_updates"]) == 7
    agent.close()


class Idle(VectorEnv[Any, Any, Any]):
    """A world that acts `awake` times and then moves by itself for ever."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, awake: int, *, continuous: bool) -> None:
        self.num_envs, self.awake, self.steps = 1, awake, 0
        self.single_observation_space = Box(-1, 1, (2,), np.float32)
        self.single_action_space = (
            Box(-1, 1, (1,), np.float32) if continuous else gymnasium.spaces.Discrete(2)
        )
        self.observation_space = Box(-1, 1, (1, 2), np.float32)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, 1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.answer()

    def step(self, actions: Any) -> Any:
        self.steps += 1
        seen, info = self.answer()
        nothing = np.zeros(1, np.bool_)
        return seen, np.zeros(1), nothing, nothing.copy(), info

    def answer(self) -> tuple[Any, dict[str, Any]]:
        return np.ones((1, 2), np.float32), {"own": np.array([self.steps < self.awake])}


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in LEARNING
        if name not in ("a3c", "monte_carlo", "sarsa", "expected_sarsa", "q_learning")
    ],
)
@pytest.mark.parametrize("awake", [0, 5])
def test_a_world_in_which_nobody_acts_ends_in_words(
    name: str, awake: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`advance` would wait for ever for the frames to grow. A3C's workers run the same lines."""
    monkeypatch.setattr(vector, "IDLE", 50)
    config = ControlConfig(LEARNING[name], env="idle", num_envs=1, num_frames=20)
    continuous = ALGORITHMS[name].serves == "continuous"
    agent = ALGORITHMS[name].make(config, World(Idle(awake, continuous=continuous), "idle"))
    with pytest.raises(TaskError, match=r"idle: an action of the policy was waited for.*none in the last 50"):
        agent.advance(20)
    assert agent.num_frames == max(0, awake - 1)
