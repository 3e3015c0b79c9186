"""Agents that learn from what their present policy has just lived: REINFORCE, A2C, PPO, TRPO."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gradhat.envs.gym import World
from gradhat.errors import ConfigError
from gradhat.policies.mlp import ActorCritic, MLPPolicy
from gradhat.rollouts.normalize import RunningMoments, normalise
from gradhat.rollouts.vector import Collector, Episode
from gradhat.training.control.agent import Choice, Means, acted, copies, drawing, joined, num_bytes, part
from gradhat.training.optim import SmallAdam
from gradhat.training.seed import derive
from gradhat.trajectories import Trajectories


@dataclass(frozen=True)
class Network:
    """The policy's network and how it is moved."""

    hidden: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers, of the actor and of the critic."""
    log_std: float = 0.0
    """The first log σ of a continuous policy."""
    lr: float = 1e-3
    """Adam's learning rate at the start."""
    lr_end: float = 0.0
    """The learning rate after the last frame; it goes there in a straight line."""
    max_grad_norm: float = 0.5
    """The gradient is scaled down to this norm when it is longer."""
    normalize_observations: bool = False
    """Show the policy observations of mean 0 and deviation 1."""
    normalize_rewards: bool = False
    """Divide rewards by the deviation of the discounted return."""


Learn = Callable[["OnPolicyAgent", Trajectories], dict[str, float]]
Gather = Callable[["OnPolicyAgent"], Trajectories]


class OnPolicyAgent:
    """Gather a batch, learn from it, forget it."""

    def __init__(
        self,
        world: World,
        *,
        network: Network,
        gather: Gather,
        learn: Learn,
        gamma: float,
        critic: bool,
        seed: int,
        last_frame: int,
    ) -> None:
        self.network, self.gather, self.learn = network, gather, learn
        self.last_frame = last_frame
        self.generator = torch.Generator().manual_seed(derive(seed, "policy"))
        self.module = actor_critic(world, network, critic=critic, seed=seed)
        self.policy = MLPPolicy(self.module)
        self.optimizer = SmallAdam(
            self.module.parameters(), lr=network.lr, max_grad_norm=network.max_grad_norm
        )
        self.collector = Collector(
            world,
            seed=derive(seed, "world"),
            normalize_observations=network.normalize_observations,
            normalize_rewards=network.normalize_rewards,
            gamma=gamma,
        )
        self.version = 0
        """Batches that were learned from."""
        self.memory: dict[str, Tensor] = {}
        """What an algorithm keeps between batches beside weights and moments."""

    @property
    def num_frames(self) -> int:
        return self.collector.num_frames

    def advance(self, num_frames: int) -> dict[str, float]:
        means, last = Means(), dict[str, float]()
        while self.num_frames < num_frames:
            left = max(0.0, 1 - self.num_frames / self.last_frame)
            self.optimizer.lr = self.network.lr_end + (self.network.lr - self.network.lr_end) * left
            batch = self.gather(self)
            if not acted(batch, means):
                continue
            means.add(self.learn(self, batch))
            last = {"learning_rate": self.optimizer.lr}
            self.version += 1
        return means.take() | last

    def greedy(self) -> Choice:
        return normalised(self.policy.greedy, self.collector.moments)

    def sampled(self, generator: torch.Generator) -> Choice:
        return normalised(drawing(self.policy, generator), self.collector.moments)

    def holds(self) -> str:
        return ""

    def drain(self) -> list[Episode]:
        return self.collector.drain()

    def state(self) -> dict[str, Tensor]:
        return joined(
            weights=copies(self.module.state_dict()),
            optimizer=copies(self.optimizer.state()),
            collector=self.collector.state(),
            memory=self.memory,
        ) | {"generator": self.generator.get_state(), "version": torch.tensor(self.version)}

    def saved_bytes(self) -> int:
        # The optimiser makes its two moments at its first step.
        coming = 0 if self.optimizer.state() else 2 * num_bytes(self.module.parameters())
        return num_bytes(self.state().values()) + coming

    def restore(self, state: dict[str, Tensor]) -> None:
        self.module.load_state_dict(part(state, "weights"))
        self.optimizer.restore(part(state, "optimizer"))
        self.collector.restore(part(state, "collector"))
        self.memory = part(state, "memory")
        self.generator.set_state(state["generator"])
        self.version = int(state["version"])

    def restore_policy(self, state: dict[str, Tensor]) -> None:
        self.module.load_state_dict(part(state, "weights"))
        self.collector.restore_moments(part(state, "collector"))

    def close(self) -> None:
        self.collector.world.close()


def check_deviation(network: Network, world: World) -> None:
    """ConfigError for a deviation where no action has one."""
    if world.actions.discrete and network.log_std != Network.log_std:
        raise ConfigError(
            f"log_std={network.log_std} with discrete actions: nothing reads this setting. "
            f"Leave it at {Network.log_std}, or use an environment with continuous actions."
        )


def actor_critic(world: World, network: Network, *, critic: bool, seed: int) -> ActorCritic:
    """Return the first network of a run."""
    return ActorCritic(
        world.num_inputs,
        world.actions.size,
        hidden=network.hidden,
        continuous=not world.actions.discrete,
        critic=critic,
        log_std=network.log_std,
        generator=torch.Generator().manual_seed(derive(seed, "weights")),
    )


def normalised(choose: Choice, moments: RunningMoments | None) -> Choice:
    """Return a choice that sees observations through a normaliser, as it is now."""
    if moments is None:
        return choose
    frozen = moments.frozen()
    return lambda seen: choose(torch.from_numpy(normalise(seen.numpy(), frozen)))


def steps(num_steps: int) -> Gather:
    """Gather `num_steps` steps of every environment, going on where the last batch was cut."""
    return lambda agent: agent.collector.collect(agent.policy, num_steps, agent.generator, agent.version)


def episodes(per_env: int) -> Gather:
    """Gather `per_env` whole episodes of every environment."""
    return lambda agent: agent.collector.episodes(agent.policy, per_env, agent.generator, agent.version)
