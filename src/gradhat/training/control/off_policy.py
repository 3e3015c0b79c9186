"""Agents that learn from a memory of what they lived: DQN, DDPG, TD3, SAC."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradhat.algorithms import off_policy
from gradhat.algorithms.off_policy import Update
from gradhat.envs.gym import World
from gradhat.errors import ConfigError
from gradhat.policies.policy import Actor
from gradhat.policies.q_network import EpsilonGreedy
from gradhat.rollouts.replay import Replay
from gradhat.rollouts.vector import Collector, Episode
from gradhat.training.control.agent import (
    Choice,
    Means,
    acted,
    drawing,
    joined,
    num_bytes,
    packed,
    part,
    unpacked,
)
from gradhat.training.seed import derive
from gradhat.trajectories import Transitions


@dataclass(frozen=True)
class Memory:
    """How experience is stored and drawn, and how often it is learned from."""

    capacity: int = 100_000
    """Steps that are kept. The memory for them is asked of the machine before the run begins."""
    first_frames: int = 1_000
    """Frames before the first update."""
    num_steps: int = 4
    """Steps of every environment between two rounds of updates."""
    num_updates: int = 4
    """Gradient steps of a round."""
    batch_size: int = 64
    """Transitions of an update."""
    lr_end: float | None = None
    """The learning rate after the last frame; it goes there in a straight line. None keeps it as it is."""


@dataclass(frozen=True)
class Parts:
    """What an algorithm's page brings. `state` is what its updates change."""

    state: Any
    actor: Callable[[int], Actor]
    """Frames so far → who acts next."""
    greedy: Choice
    update: Callable[[Transitions], Update]
    optimizers: tuple[torch.optim.Optimizer, ...]
    lr: float
    gamma: float
    n_step: int
    alpha: float | None = None
    beta: float = 0.4
    """Goes to 1 in a straight line."""


class OffPolicyAgent:
    """Live a few steps, store them, learn from what is drawn."""

    def __init__(
        self,
        world: World,
        *,
        memory: Memory,
        parts: Parts,
        generator: torch.Generator,
        seed: int,
        last_frame: int,
    ) -> None:
        room = memory.capacity // world.num_envs
        if room < memory.num_steps:
            raise ConfigError(
                f"capacity={memory.capacity} with num_envs={world.num_envs} and num_steps="
                f"{memory.num_steps}: found room for {room} of each environment's steps. Use a capacity of "
                f"{memory.num_steps * world.num_envs} or more."
            )
        self.memory, self.parts, self.generator, self.last_frame = memory, parts, generator, last_frame
        self.collector = Collector(world, seed=derive(seed, "world"))
        self.draws = np.random.default_rng(derive(seed, "replay"))
        self.replay = Replay(
            memory.capacity,
            world.num_envs,
            (world.num_inputs,),
            () if world.actions.discrete else (world.actions.size,),
            action_dtype=np.int64 if world.actions.discrete else np.float32,
            gamma=parts.gamma,
            n_step=parts.n_step,
            alpha=parts.alpha,
        )
        self.version = 0
        """Rounds of updates."""

    @property
    def num_frames(self) -> int:
        return self.collector.num_frames

    def advance(self, num_frames: int) -> dict[str, float]:
        means, last = Means(), dict[str, float]()
        while self.num_frames < num_frames:
            actor = self.parts.actor(self.num_frames)
            if isinstance(actor, EpsilonGreedy):
                last["epsilon"] = actor.epsilon
            lived = self.collector.collect(actor, self.memory.num_steps, self.generator, self.version)
            if not acted(lived, means):
                continue
            self.replay.add(lived)
            if self.num_frames >= self.memory.first_frames:
                last |= self._learn(means)
        return means.take() | last

    def _learn(self, means: Means) -> dict[str, float]:
        """Take a round of updates; return what they were taken with."""
        share = min(1.0, self.num_frames / self.last_frame)
        rate = self._anneal(share)
        beta = self.parts.beta + (1 - self.parts.beta) * share
        for _ in range(self.memory.num_updates):
            batch = self.replay.sample(self.memory.batch_size, self.draws, beta=beta)
            update = self.parts.update(batch)
            if self.parts.alpha is not None:
                self.replay.prioritise(batch.index, update.td_errors)
            means.add(update.metrics)
        self.version += 1
        return rate

    def _anneal(self, share: float) -> dict[str, float]:
        """Set the learning rate where it is annealed, and return it."""
        end = self.memory.lr_end
        if end is None:
            return {}
        rate = self.parts.lr + (end - self.parts.lr) * share
        for optimizer in self.parts.optimizers:
            optimizer.param_groups[0]["lr"] = rate
        return {"learning_rate": rate}

    def greedy(self) -> Choice:
        return self.parts.greedy

    def sampled(self, generator: torch.Generator) -> Choice:
        # Before it learns it may act by another rule, which is not its policy.
        return drawing(self.parts.actor(max(self.num_frames, self.memory.first_frames)), generator)

    def holds(self) -> str:
        return f"memory {self.replay.capacity:,} steps, {self.replay.num_bytes / 2**20:,.0f} MiB"

    def drain(self) -> list[Episode]:
        return self.collector.drain()

    def state(self) -> dict[str, Tensor]:
        replay = self.replay.state()
        stored = {name: value for name, value in replay.items() if isinstance(value, Tensor)}
        plain = {name: value for name, value in replay.items() if name not in stored}
        return joined(
            algorithm=off_policy.tensors(self.parts.state), collector=self.collector.state(), replay=stored
        ) | {
            "generator": self.generator.get_state(),
            "plain": packed(
                {"replay": plain, "draws": self.draws.bit_generator.state, "version": self.version}
            ),
        }

    def saved_bytes(self) -> int:
        without = [tensor for name, tensor in self.state().items() if not name.startswith("replay/")]
        return num_bytes(without) + off_policy.coming_bytes(self.parts.state) + self.replay.num_bytes

    def restore(self, state: dict[str, Tensor]) -> None:
        plain = unpacked(state["plain"])
        off_policy.load(self.parts.state, part(state, "algorithm"))
        self.collector.restore(part(state, "collector"))
        self.replay.restore({**part(state, "replay"), **plain["replay"]})
        self.generator.set_state(state["generator"])
        self.draws.bit_generator.state = plain["draws"]
        self.version = plain["version"]

    def restore_policy(self, state: dict[str, Tensor]) -> None:
        off_policy.load(self.parts.state, part(state, "algorithm"))

    def close(self) -> None:
        self.collector.world.close()
