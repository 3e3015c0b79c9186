"""The settings of each algorithm of the control worlds: how it gathers experience, and its page's numbers."""

from dataclasses import dataclass, field
from typing import ClassVar

from gradhat.algorithms import a2c, ddpg, dqn, ppo, reinforce, sac, tabular_control, td3, trpo
from gradhat.training.control.off_policy import Memory
from gradhat.training.control.on_policy import Network


@dataclass(frozen=True)
class Reinforce:
    """REINFORCE: whole episodes, one step along ĝ."""

    name: ClassVar[str] = "reinforce"
    episodes_per_env: int = 1
    """Whole episodes of every environment in a batch: |D| is this times num_envs."""
    value_epochs: int = 10
    """Passes of the critic over a batch, where it is the baseline."""
    value_minibatches: int = 4
    """Optimiser steps in each."""
    network: Network = field(default_factory=Network)
    settings: reinforce.Settings = field(default_factory=lambda: reinforce.Settings(gamma=0.99))


@dataclass(frozen=True)
class A2C:
    """A2C: one step on each batch."""

    name: ClassVar[str] = "a2c"
    num_steps: int = 16
    """Steps of every environment in a batch."""
    network: Network = field(default_factory=Network)
    settings: a2c.Settings = field(default_factory=a2c.Settings)


@dataclass(frozen=True)
class PPO:
    """PPO: several passes over a batch."""

    name: ClassVar[str] = "ppo"
    num_steps: int = 128
    """Steps of every environment in a batch."""
    network: Network = field(default_factory=Network)
    settings: ppo.Settings = field(default_factory=ppo.Settings)


@dataclass(frozen=True)
class TRPO:
    """TRPO: one natural step on each batch."""

    name: ClassVar[str] = "trpo"
    num_steps: int = 128
    """Steps of every environment in a batch."""
    network: Network = field(default_factory=Network)
    settings: trpo.Settings = field(default_factory=trpo.Settings)


@dataclass(frozen=True)
class DQN:
    """DQN and its improvements."""

    name: ClassVar[str] = "dqn"
    memory: Memory = field(default_factory=Memory)
    settings: dqn.Settings = field(default_factory=dqn.Settings)


CONTINUOUS = Memory(num_steps=1, num_updates=1, batch_size=256)


@dataclass(frozen=True)
class DDPG:
    """DDPG: an actor that climbs its critic."""

    name: ClassVar[str] = "ddpg"
    memory: Memory = CONTINUOUS
    settings: ddpg.Settings = field(default_factory=ddpg.Settings)


@dataclass(frozen=True)
class TD3:
    """TD3: DDPG with two critics."""

    name: ClassVar[str] = "td3"
    memory: Memory = CONTINUOUS
    settings: td3.Settings = field(default_factory=td3.Settings)


@dataclass(frozen=True)
class SAC:
    """SAC: a random actor that is paid for its entropy."""

    name: ClassVar[str] = "sac"
    memory: Memory = CONTINUOUS
    settings: sac.Settings = field(default_factory=sac.Settings)


@dataclass(frozen=True)
class Table:
    """What the algorithms with a table share."""

    num_steps: int = 16
    """Steps of every environment between two updates."""
    settings: tabular_control.Settings = field(default_factory=lambda: tabular_control.Settings(gamma=0.99))


class MonteCarlo(Table):
    """Monte Carlo control."""

    name: ClassVar[str] = "monte_carlo"


class Sarsa(Table):
    """SARSA."""

    name: ClassVar[str] = "sarsa"


class ExpectedSarsa(Table):
    """Expected SARSA."""

    name: ClassVar[str] = "expected_sarsa"


class QLearning(Table):
    """Q-learning."""

    name: ClassVar[str] = "q_learning"
