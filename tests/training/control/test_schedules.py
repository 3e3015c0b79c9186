"""What changes while a run goes on: the learning rate, ε, β, and when a memory begins to be learned from."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from gradhat.algorithms import dqn, sac
from gradhat.policies.continuous import SquashedGaussian, Uniform
from gradhat.policies.q_network import EpsilonGreedy
from gradhat.rollouts.replay import Replay
from gradhat.training.control import hogwild, settings, worlds
from gradhat.training.control.agent import Agent
from gradhat.training.control.algorithms import ALGORITHMS
from gradhat.training.control.config import ControlConfig
from gradhat.training.control.off_policy import Memory, OffPolicyAgent
from gradhat.training.control.on_policy import Network

FRAMES = 80
NETWORK = Network(hidden=(4,), lr=0.01, lr_end=0.002)
MEMORY = Memory(capacity=60, first_frames=20, num_steps=2, num_updates=1, batch_size=8, lr_end=1e-4)
EPSILONS = dqn.Settings(
    hidden=(4,), alpha=0.6, beta=0.3, epsilon_start=0.9, epsilon_end=0.1, epsilon_frames=40
)


def made(learning: Any, **changes: Any) -> Agent:
    """An agent in a world where every step of the two environments is a frame."""
    continuous = ALGORITHMS[learning.name].serves == "continuous"
    env_args = ("continuous=True",) if continuous else ()
    config = ControlConfig(learning, "pushing:Pushing-v0", env_args, num_envs=2, num_frames=FRAMES)
    config = replace(config, **changes)
    return ALGORITHMS[learning.name].make(config, worlds.make(config, 2))


def line(start: float, end: float, share: float) -> float:
    return start + (end - start) * min(1.0, share)


@pytest.mark.parametrize(
    "learning",
    [settings.A2C(5, NETWORK), settings.PPO(5, NETWORK), settings.TRPO(5, NETWORK)],
    ids=lambda of: of.name,
)
def test_the_learning_rate_falls_in_a_line_from_batch_to_batch(learning: Any) -> None:
    agent = made(learning)
    found = [agent.advance(frames)["learning_rate"] for frames in range(10, FRAMES + 1, 10)]
    assert found == pytest.approx([line(0.01, 0.002, i / 8) for i in range(8)])
    agent.close()


def test_the_learning_rate_of_whole_episodes_falls_too() -> None:
    agent = made(settings.Reinforce(network=NETWORK))
    before = 0
    while before < FRAMES:
        found = agent.advance(before + 1)["learning_rate"]
        assert found == pytest.approx(line(0.01, 0.002, before / FRAMES))
        before = agent.num_frames
    agent.close()


def test_the_learning_rate_of_a_worker_falls_until_its_own_last_frame() -> None:
    """Two share the frames: each lives half of them."""
    learning = hogwild.A3C(2, 5, NETWORK)
    config = ControlConfig(learning, "pushing:Pushing-v0", num_envs=2, num_frames=FRAMES)
    agent: Any = ALGORITHMS["a3c"].make(config, worlds.make(config, 2))
    worker = hogwild.worker(config, 1, agent.shared, agent.seen)
    found = [worker.advance(frames)["learning_rate"] for frames in range(5, FRAMES // 2 + 1, 5)]
    assert found == pytest.approx([line(0.01, 0.002, i / 8) for i in range(8)])
    worker.close(), agent.close()


OFF_POLICY = [
    settings.DQN(MEMORY, EPSILONS),
    *(kind(MEMORY) for kind in (settings.DDPG, settings.TD3, settings.SAC)),
]


@pytest.mark.parametrize("learning", OFF_POLICY, ids=lambda of: of.name)
def test_the_learning_rate_on_old_experience_is_that_of_the_frames(learning: Any) -> None:
    agent = made(learning)
    assert isinstance(agent, OffPolicyAgent)
    assert "learning_rate" not in agent.advance(10)
    for frames in (40, 60, FRAMES):
        found = agent.advance(frames)["learning_rate"]
        for optimizer in agent.parts.optimizers:
            wanted = line(learning.settings.lr, 1e-4, frames / FRAMES)
            assert optimizer.param_groups[0]["lr"] == pytest.approx(wanted) == found
    agent.close()
    still = made(replace(learning, memory=replace(MEMORY, lr_end=None)))
    assert "learning_rate" not in still.advance(40)
    still.close()


def test_exploration_fades_over_its_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """One ε for a collection, that of the frames before it."""
    seen: list[float] = []
    act = EpsilonGreedy.act

    def acting(
        self: EpsilonGreedy, observations: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        seen.append(self.epsilon)
        return act(self, observations, generator)

    monkeypatch.setattr(EpsilonGreedy, "act", acting)
    agent = made(settings.DQN(MEMORY, EPSILONS))
    agent.advance(FRAMES)
    wanted = [line(0.9, 0.1, i * 4 / 40) for i in range(FRAMES // 4) for _ in range(2)]
    assert seen == pytest.approx(wanted)
    agent.close()


def test_the_weights_of_a_prioritised_draw_come_to_undo_it_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    sample = Replay.sample

    def sampling(self: Replay, size: int, draws: np.random.Generator, *, beta: float = 1.0) -> Any:
        seen.append(beta)
        return sample(self, size, draws, beta=beta)

    monkeypatch.setattr(Replay, "sample", sampling)
    agent = made(settings.DQN(MEMORY, EPSILONS))
    agent.advance(FRAMES)
    # The first round of updates is after frame 20, the last after the last.
    assert seen == pytest.approx([line(0.3, 1.0, frames / FRAMES) for frames in range(20, FRAMES + 1, 4)])
    agent.close()


@pytest.mark.parametrize("learning", OFF_POLICY, ids=lambda of: of.name)
def test_a_memory_is_learned_from_after_its_first_frames_and_not_before(
    learning: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then continuous actions are any in the box, all alike."""
    acted: list[str] = []

    def watched(kind: Any) -> None:
        act = kind.act

        def acting(self: Any, observations: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            acted.append(kind.__name__)
            return act(self, observations, generator)

        monkeypatch.setattr(kind, "act", acting)

    watched(Uniform)
    watched(SquashedGaussian)
    agent = made(learning)
    before = agent.state()
    said = agent.advance(16)
    assert said.keys() - {"epsilon"} == {"empty_batches"} and said["empty_batches"] == 0
    assert int(agent.state()["algorithm/num_updates"]) == 0
    after = agent.state()
    assert all(torch.equal(t, after[name]) for name, t in before.items() if name.startswith("algorithm/"))
    assert "td_error" in agent.advance(20) and int(agent.state()["algorithm/num_updates"]) == 1
    agent.advance(24)
    assert int(agent.state()["algorithm/num_updates"]) == 2
    if isinstance(learning, settings.SAC):
        assert acted == ["Uniform"] * 10 + ["SquashedGaussian"] * 2
    agent.close()


def test_a_temperature_starts_where_it_is_set() -> None:
    agent = made(settings.SAC(MEMORY, sac.Settings(hidden=(4,), temperature=0.25)))
    assert agent.advance(20)["temperature"] == pytest.approx(0.25)
    agent.close()
