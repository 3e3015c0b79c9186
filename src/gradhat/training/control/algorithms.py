"""The algorithms of the control worlds as a table: the settings of each, and how an agent is made of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from gradhat.algorithms import a2c, critic, ddpg, dqn, ppo, reinforce, sac, td3, trpo
from gradhat.envs.gym import World
from gradhat.errors import ConfigError
from gradhat.policies.continuous import Noisy, Uniform
from gradhat.policies.policy import Actor
from gradhat.policies.q_network import EpsilonGreedy
from gradhat.training.control import hogwild, on_policy, settings, worlds
from gradhat.training.control.agent import Agent
from gradhat.training.control.config import ControlConfig, from_json
from gradhat.training.control.off_policy import OffPolicyAgent, Parts
from gradhat.training.control.on_policy import Gather, Learn, Network, OnPolicyAgent
from gradhat.training.control.tabular import TabularAgent
from gradhat.training.run_folder import RunFolder
from gradhat.training.seed import derive
from gradhat.trajectories import Trajectories, Transitions

Config = ControlConfig[Any]


def make_reinforce(config: Config, world: World) -> Agent:
    """Return a REINFORCE agent in `world`."""
    learning: settings.Reinforce = config.learning
    page = learning.settings

    def learn(agent: OnPolicyAgent, batch: Trajectories) -> dict[str, float]:
        average = float(agent.memory.get("average", torch.tensor(reinforce.init(), dtype=torch.float64)))
        credited, following = reinforce.credit(page, average, batch, agent.policy)
        agent.memory["average"] = torch.tensor(following, dtype=torch.float64)
        metrics = reinforce.update(agent.policy, agent.optimizer, credited)
        if page.baseline != "critic":
            return metrics | {"baseline": average}
        fitted = critic.fit(
            agent.policy,
            agent.optimizer,
            credited,
            num_epochs=learning.value_epochs,
            num_minibatches=learning.value_minibatches,
            generator=agent.generator,
        )
        return metrics | fitted

    gather = on_policy.episodes(learning.episodes_per_env)
    return _on_policy(config, world, learning.network, gather, learn, critic=page.baseline == "critic")


def make_a2c(config: Config, world: World) -> Agent:
    """Return an A2C agent in `world`."""
    page: a2c.Settings = config.learning.settings
    return _batches(config, world, lambda a, batch: a2c.update(a.policy, a.optimizer, batch, page))


def make_ppo(config: Config, world: World) -> Agent:
    """Return a PPO agent in `world`."""
    page: ppo.Settings = config.learning.settings
    return _batches(
        config, world, lambda a, batch: ppo.update(a.policy, a.optimizer, batch, page, a.generator)
    )


def make_trpo(config: Config, world: World) -> Agent:
    """Return a TRPO agent in `world`."""
    page: trpo.Settings = config.learning.settings
    return _batches(
        config, world, lambda a, batch: trpo.update(a.policy, a.optimizer, batch, page, a.generator)
    )


def _batches(config: Config, world: World, update: Learn) -> Agent:
    """Return an agent that updates on batches of steps, to which a critic gave credit."""
    page = config.learning.settings

    def learn(agent: OnPolicyAgent, batch: Trajectories) -> dict[str, float]:
        return update(agent, critic.credit(agent.policy, batch, gamma=page.gamma, lam=page.lam))

    return _on_policy(
        config, world, config.learning.network, on_policy.steps(config.learning.num_steps), learn
    )


def _on_policy(
    config: Config, world: World, network: Network, gather: Gather, learn: Learn, *, critic: bool = True
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


def make_dqn(config: Config, world: World) -> Agent:
    """Return a DQN agent in `world`. ConfigError where its atoms have no range."""
    learning: settings.DQN = config.learning
    page = learning.settings
    if page.num_atoms > 1 and not page.low < page.high:
        raise ConfigError(
            f"num_atoms={page.num_atoms} with low={page.low} and high={page.high}: found no range of returns "
            "between them. Use low < high."
        )
    state = dqn.init(world.num_inputs, world.actions.size, page, _weights(config))
    actor = EpsilonGreedy(state.online, page.epsilon_start)

    def at(num_frames: int) -> Actor:
        actor.epsilon = dqn.epsilon(num_frames, page)
        return actor

    parts = Parts(
        state=state,
        actor=at,
        greedy=actor.greedy,
        update=lambda batch: dqn.update(state, batch, page),
        optimizers=(state.optimizer,),
        lr=page.lr,
        gamma=page.gamma,
        n_step=page.n_step,
        alpha=page.alpha,
        beta=page.beta,
    )
    return _off_policy(config, world, parts)


def make_ddpg(config: Config, world: World) -> Agent:
    """Return a DDPG agent in `world`."""
    page: ddpg.Settings = config.learning.settings
    state = ddpg.init(world.num_inputs, *_bounds(config, world), page, _weights(config))
    return _continuous(
        config, world, state, Noisy(state.actor, page.noise), lambda batch: ddpg.update(state, batch, page)
    )


def make_td3(config: Config, world: World) -> Agent:
    """Return a TD3 agent in `world`."""
    page: td3.Settings = config.learning.settings
    state = td3.init(world.num_inputs, *_bounds(config, world), page, _weights(config))
    return _continuous(
        config, world, state, Noisy(state.actor, page.noise), lambda batch: td3.update(state, batch, page)
    )


def make_sac(config: Config, world: World) -> Agent:
    """Return a SAC agent in `world`."""
    page: sac.Settings = config.learning.settings
    state = sac.init(world.num_inputs, *_bounds(config, world), page, _weights(config))
    return _continuous(config, world, state, state.actor, lambda batch: sac.update(state, batch, page))


def _continuous(
    config: Config, world: World, state: Any, actor: Actor, update: Callable[[Transitions], Any]
) -> Agent:
    """Return an agent that acts at random until the first update."""
    page, first = config.learning.settings, config.learning.memory.first_frames
    anything = Uniform(state.actor.box)
    parts = Parts(
        state=state,
        actor=lambda num_frames: anything if num_frames < first else actor,
        greedy=state.actor.greedy,
        update=update,
        optimizers=(state.actor_optimizer, state.critics_optimizer),
        lr=page.lr,
        gamma=page.gamma,
        n_step=page.n_step,
    )
    return _off_policy(config, world, parts)


def _off_policy(config: Config, world: World, parts: Parts) -> Agent:
    return OffPolicyAgent(
        world,
        memory=config.learning.memory,
        parts=parts,
        generator=torch.Generator().manual_seed(derive(config.seed, "policy")),
        seed=config.seed,
        last_frame=config.num_frames,
    )


def make_tabular(config: Config, world: World) -> Agent:
    """Return an agent with a table in `world`."""
    page = config.learning.settings
    return TabularAgent(
        world,
        worlds.exact(config, page.gamma),
        rule=config.algorithm,
        settings=page,
        num_steps=config.learning.num_steps,
        seed=config.seed,
    )


def _weights(config: Config) -> torch.Generator:
    return torch.Generator().manual_seed(derive(config.seed, "weights"))


def _bounds(config: Config, world: World) -> tuple[torch.Tensor, torch.Tensor]:
    low, high = world.actions.low, world.actions.high
    if low is None or high is None or not np.isfinite([low, high]).all():
        raise ConfigError(
            f"{config.algorithm} in {config.env}: found actions without bounds, between which it has to lie. "
            "Use ppo, trpo, a2c or reinforce, or give each component finite bounds."
        )
    return torch.from_numpy(low), torch.from_numpy(high)


@dataclass(frozen=True)
class Row:
    """One algorithm."""

    learning: Any
    """Its settings with their defaults: a dataclass of settings.py."""
    make: Callable[[Config, World], Agent]
    serves: Literal["discrete", "continuous", "both"]
    """Which actions it can choose."""
    draws: bool
    """Whether its policy draws actions, and not only what it explores with."""
    what: str
    """One line for people."""


ROWS = (
    Row(settings.Reinforce(), make_reinforce, "both", True, "one step along ĝ on whole episodes"),
    Row(settings.A2C(), make_a2c, "both", True, "one step on each batch, credit by a critic"),
    Row(hogwild.A3C(), hogwild.make, "both", True, "the steps of A2C, by several workers at once"),
    Row(settings.PPO(), make_ppo, "both", True, "several passes over a batch, held near by a clip"),
    Row(settings.TRPO(), make_trpo, "both", True, "one natural step on each batch, within a KL ball"),
    Row(settings.DQN(), make_dqn, "discrete", False, "action values from a memory of old steps"),
    Row(settings.DDPG(), make_ddpg, "continuous", False, "an actor that climbs its critic"),
    Row(settings.TD3(), make_td3, "continuous", False, "DDPG with two critics and a slower actor"),
    Row(settings.SAC(), make_sac, "continuous", True, "a random actor that is paid for its entropy"),
    Row(settings.MonteCarlo(), make_tabular, "discrete", False, "a table, returns seen to the end"),
    Row(settings.Sarsa(), make_tabular, "discrete", False, "a table, the value of the next action taken"),
    Row(
        settings.ExpectedSarsa(),
        make_tabular,
        "discrete",
        False,
        "a table, the mean value of the next action",
    ),
    Row(settings.QLearning(), make_tabular, "discrete", False, "a table, the value of the best next action"),
)
ALGORITHMS = {row.learning.name: row for row in ROWS}


def check_actions(config: Config, world: World) -> None:
    """ConfigError for actions that the algorithm cannot choose, and for a setting that they leave unread.

    It names the algorithms that can serve the world: those with a table only if it has tables.
    """
    if hasattr(config.learning, "network"):
        on_policy.check_deviation(config.learning.network, world)
    kind = "discrete" if world.actions.discrete else "continuous"
    if ALGORITHMS[config.algorithm].serves in (kind, "both"):
        return
    tables = worlds.has_tables(config)
    can = [
        name
        for name, row in ALGORITHMS.items()
        if row.serves in (kind, "both") and (tables or row.make is not make_tabular)
    ]
    what = f"a choice of {world.actions.size}" if world.actions.discrete else "vectors of numbers"
    raise ConfigError(
        f"{config.algorithm} in {config.env}: its actions are {what}, which {config.algorithm} cannot "
        f"choose. Use one of {', '.join(can)}."
    )


def read(run: Path) -> Config:
    """Return the config of the run folder `run`. RunError when it is none, ConfigError when it is unknown."""
    values = RunFolder(run).config()
    name = values.get("algorithm")
    if not isinstance(name, str) or name not in ALGORITHMS:
        raise ConfigError(
            f"read the config of {run}: found the algorithm {name!r}. Known: {', '.join(ALGORITHMS)}."
        )
    return from_json(values, ControlConfig(ALGORITHMS[name].learning), str(run))
