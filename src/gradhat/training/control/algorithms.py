"""The algorithms of the control worlds as a table: the settings of each, and how an agent is made of them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gradhat.algorithms import a2c, critic, ppo
from gradhat.envs.gym import World
from gradhat.training.control import on_policy
from gradhat.training.control.agent import Agent
from gradhat.training.control.config import ControlConfig
from gradhat.training.control.on_policy import Network, OnPolicyAgent
from gradhat.trajectories import Trajectories


@dataclass(frozen=True)
class A2C:
    """A2C's batch, network and page."""

    num_steps: int = 16
    """Steps of every environment in a batch."""
    network: Network = field(default_factory=Network)
    settings: a2c.Settings = field(default_factory=a2c.Settings)


@dataclass(frozen=True)
class PPO:
    """PPO's batch, network and page."""

    num_steps: int = 32
    """Steps of every environment in a batch."""
    network: Network = field(default_factory=Network)
    settings: ppo.Settings = field(default_factory=ppo.Settings)


def make_a2c(config: ControlConfig, world: World) -> Agent:
    """Return an A2C agent in `world`."""
    learning: A2C = config.learning

    def learn(agent: OnPolicyAgent, batch: Trajectories) -> dict[str, float]:
        settings = learning.settings
        credited = critic.credit(agent.policy, batch, gamma=settings.gamma, lam=settings.lam)
        return a2c.update(agent.policy, agent.optimizer, credited, settings)

    return _on_policy(config, world, learning.network, on_policy.steps(learning.num_steps), learn)


def make_ppo(config: ControlConfig, world: World) -> Agent:
    """Return a PPO agent in `world`."""
    learning: PPO = config.learning

    def learn(agent: OnPolicyAgent, batch: Trajectories) -> dict[str, float]:
        settings = learning.settings
        credited = critic.credit(agent.policy, batch, gamma=settings.gamma, lam=settings.lam)
        return ppo.update(agent.policy, agent.optimizer, credited, settings, agent.generator)

    return _on_policy(config, world, learning.network, on_policy.steps(learning.num_steps), learn)


def _on_policy(
    config: ControlConfig,
    world: World,
    network: Network,
    gather: on_policy.Gather,
    learn: on_policy.Learn,
    *,
    critic: bool = True,
) -> Agent:
    return OnPolicyAgent(
        world,
        network=network,
        gather=gather,
        learn=learn,
        gamma=config.learning.settings.gamma,
        critic=critic,
        seed=config.seed,
        last_frame=config.num_frames,
    )


@dataclass(frozen=True)
class Row:
    """One algorithm."""

    learning: Any
    """Its settings, a dataclass with their defaults."""
    make: Callable[[ControlConfig, World], Agent]
    discrete: bool = True
    """Whether it chooses from a number of actions."""
    continuous: bool = True
    """Whether it chooses vectors of numbers."""
    what: str = ""
    """One line for people."""


ALGORITHMS = {
    "a2c": Row(A2C(), make_a2c, what="one step on each batch, credit by a critic"),
    "ppo": Row(PPO(), make_ppo, what="several passes over a batch, held near by a clip"),
}
