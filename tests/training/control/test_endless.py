"""An environment that pays 1 for ever and is looked at for five steps at a time: V = 1 / (1 − γ).

Beside it one that pays 1 twice and is then over.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from inline import Inline

from gradhat.algorithms import a2c, critic, ddpg, dqn, ppo, sac, tabular_control, td3, trpo
from gradhat.envs.gym import GymSpec, make
from gradhat.exact.mdp import tabular
from gradhat.exact.zoo import ZOO
from gradhat.policies.mlp import ActorCritic, MLPPolicy
from gradhat.rollouts.vector import Collector
from gradhat.training.control import hogwild, settings, worlds
from gradhat.training.control.algorithms import ALGORITHMS
from gradhat.training.control.config import ControlConfig
from gradhat.training.control.hogwild import A3C
from gradhat.training.control.off_policy import Memory, OffPolicyAgent
from gradhat.training.control.on_policy import Network
from gradhat.training.optim import SmallAdam
from gradhat.trajectories import Trajectories

ENV = "Endless-v0"
GAMMA, LIMIT = 0.9, 5
MODES = ("next_step", "same_step", "disabled")


class Endless(gymnasium.Env[Any, Any]):
    observation_space = Box(-1, 1, (1,), np.float32)
    action_space = Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.ones(1, np.float32), 1.0, False, False, {}


class Pushed(Endless):
    """The same, with an action that is a number."""

    action_space = Box(-1, 1, (1,), np.float32)


class Twice(Pushed):
    """It pays 1 in each of two states, and that is all. What is seen behind the end is the first state."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.left = 2
        return super().reset(seed=seed)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return np.full(1, SECOND if self.left else FIRST, np.float32), 1.0, not self.left, False, {}


FIRST, SECOND = 1.0, -1.0
"""What is seen in the two states."""
for name, kind in ((ENV, Endless), ("Pushed-v0", Pushed), ("Twice-v0", Twice)):
    if name not in gymnasium.registry:
        gymnasium.register(name, entry_point=kind, max_episode_steps=LIMIT)


def value(mode: Any, *, deadly: bool) -> float:
    """Learn V with A2C. `deadly`: with truncation taken for death."""
    collector = Collector(make(GymSpec(ENV, 4, "sync", {}, mode)), seed=0)
    generator = torch.Generator().manual_seed(0)
    module = ActorCritic(1, 2, hidden=(8,), continuous=False, log_std=0.0, generator=generator)
    policy, given = MLPPolicy(module), a2c.Settings(gamma=GAMMA, lam=0.9, value_coef=1.0)
    optimizer = SmallAdam(module.parameters(), lr=0.1, max_grad_norm=100.0)
    for i in range(200):
        optimizer.lr = 0.1 * (1 - i / 200)
        batch = collector.collect(policy, 6, generator, version=i)
        if deadly:
            nothing = torch.zeros_like(batch.truncated)
            batch = replace(batch, terminated=batch.terminated | batch.truncated, truncated=nothing)
        a2c.update(policy, optimizer, critic.credit(policy, batch, gamma=GAMMA, lam=given.lam), given)
    return float(policy.values(torch.ones(1, 1)).detach())


@pytest.mark.parametrize("mode", MODES)
def test_a_time_limit_is_no_end_of_the_value(mode: str) -> None:
    assert value(mode, deadly=False) == pytest.approx(1 / (1 - GAMMA), rel=1e-2)


def test_truncation_taken_for_death_gives_a_wrong_value() -> None:
    """The planted fault: no state is then worth more than five steps."""
    assert value("disabled", deadly=True) < (1 - GAMMA**LIMIT) / (1 - GAMMA)


NETWORK = Network(hidden=(8,), lr=0.1, max_grad_norm=100.0)
MEMORY = Memory(capacity=400, first_frames=40, num_steps=2, num_updates=2, batch_size=32, lr_end=1e-4)
FRAMES = 4_000


def learning(name: str, gamma: float) -> Any:
    """Settings under which the value of one state is found quickly."""
    off: dict[str, Any] = {"gamma": gamma, "hidden": (8,), "lr": 0.02}
    table = tabular_control.Settings(gamma, alpha=5.0, omega=1.0, epsilon_end=1.0)
    return {
        "a2c": lambda: settings.A2C(6, NETWORK, a2c.Settings(gamma, 0.9, 1.0)),
        "a3c": lambda: A3C(2, 6, NETWORK, a2c.Settings(gamma, 0.9, 1.0)),
        "ppo": lambda: settings.PPO(24, NETWORK, ppo.Settings(gamma, 0.9, value_coef=1.0)),
        "trpo": lambda: settings.TRPO(24, NETWORK, trpo.Settings(gamma, 0.9, value_epochs=4)),
        "dqn": lambda: settings.DQN(MEMORY, dqn.Settings(target_every=8, epsilon_end=1.0, **off)),
        "monte_carlo": lambda: settings.MonteCarlo(6, table),
        "sarsa": lambda: settings.Sarsa(6, table),
        "expected_sarsa": lambda: settings.ExpectedSarsa(6, table),
        "q_learning": lambda: settings.QLearning(6, table),
    }[name]()


def learned(name: str, agent: Any) -> float:
    """V, or Q of an action, in the one state there is."""
    seen = torch.ones(1, 1)
    match name:
        case "a2c" | "a3c" | "ppo" | "trpo":
            agent.greedy()  # A3C's weights are shared ones until they are asked for.
            return float(agent.policy.values(seen).detach())
        case "dqn":
            return float(agent.parts.state.online.q(seen).max().detach())
        case _:
            return float(agent.table.q.max())


@pytest.mark.parametrize("gamma", [0.5, pytest.param(0.9, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [
        *("a2c", "dqn", "q_learning"),
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("a3c", "ppo", "trpo", "monte_carlo", "sarsa", "expected_sarsa")
        ),
    ],
)
def test_every_algorithm_finds_the_value_of_its_own_discount(
    name: str, gamma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the table of algorithms. REINFORCE's critic learns the return up to the cut, another number;
    DDPG, TD3 and SAC, whose actions are continuous, follow below.
    """
    monkeypatch.setattr(hogwild, "Process", Inline)
    once = torch.ones(1, 2, 1)
    alone = torch.ones(1)
    monkeypatch.setitem(
        ZOO, "endless", lambda: tabular(once, once[..., 0], alone, gamma=0.7, time_limit=LIMIT)
    )
    tables = name in ("monte_carlo", "sarsa", "expected_sarsa", "q_learning")
    config = ControlConfig(
        learning(name, gamma),
        "zoo:endless" if tables else ENV,
        num_envs=4,
        num_frames=FRAMES,
    )
    agent = ALGORITHMS[name].make(config, worlds.make(config, 4))
    agent.advance(FRAMES)
    assert learned(name, agent) == pytest.approx(1 / (1 - gamma), rel=0.06 if tables else 0.03)
    agent.close()


BOX_MEMORY = Memory(400, first_frames=40, num_steps=2, num_updates=2, batch_size=32, lr_end=1e-4)
TEMPERATURE = 0.5
CONTINUOUS: dict[str, Callable[[float], Any]] = {
    "ddpg": lambda gamma: settings.DDPG(BOX_MEMORY, ddpg.Settings(0.02, (8,), gamma, n_step=2, tau=0.3)),
    "td3": lambda gamma: settings.TD3(BOX_MEMORY, td3.Settings(0.02, (8,), gamma, n_step=2, tau=0.3)),
    "sac": lambda gamma: settings.SAC(
        BOX_MEMORY, sac.Settings(0.02, (8,), gamma, n_step=2, tau=0.3, temperature=TEMPERATURE)
    ),
}


def as_it_is(lived: Trajectories) -> Trajectories:
    return lived


def a_cut_is_an_end(lived: Trajectories) -> Trajectories:
    nothing = torch.zeros_like(lived.truncated)
    return replace(lived, terminated=lived.terminated | lived.truncated, truncated=nothing)


def an_end_is_a_cut(lived: Trajectories) -> Trajectories:
    nothing = torch.zeros_like(lived.terminated)
    return replace(lived, truncated=lived.terminated | lived.truncated, terminated=nothing)


def trained(name: str, env: str, gamma: float, taken: Callable[[Trajectories], Trajectories]) -> Any:
    """Return the state of an algorithm whose memory is given what `taken` makes of what was lived."""
    num_frames = 800 if gamma < 0.9 else 3_200
    config = ControlConfig(CONTINUOUS[name](gamma), env, num_envs=4, num_frames=num_frames)
    agent: Any = ALGORITHMS[name].make(config, worlds.make(config, 4))
    assert isinstance(agent, OffPolicyAgent)
    state, add = agent.parts.state, agent.replay.add
    agent.replay.add = lambda lived: add(taken(lived))  # pyright: ignore[reportAttributeAccessIssue]
    if name == "sac":
        # α stays where it is, and the soft value with it.
        state.actor_optimizer.param_groups[0]["params"].pop()
    agent.advance(num_frames)
    agent.close()
    return state


@torch.no_grad()
def value_in(state: Any, seen: float) -> float:
    """Q of the actor's own actions where `seen` is seen."""
    rows = torch.full((400, 1), seen)
    actions = sac.sample(state, rows)[0] if isinstance(state, sac.State) else state.actor(rows)
    return float(state.critics(rows, actions).mean())


@torch.no_grad()
def bonus(state: Any, seen: float) -> float:
    """What SAC pays in a state for the randomness of its policy there: α times the entropy."""
    if not isinstance(state, sac.State):
        return 0.0
    assert float(state.log_temperature.exp()) == pytest.approx(TEMPERATURE)
    return -TEMPERATURE * float(sac.sample(state, torch.full((4_000, 1), seen))[1].mean())


@pytest.mark.parametrize("gamma", [0.5, pytest.param(0.9, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_critic_of_continuous_actions_looks_behind_a_cut(name: str, gamma: float) -> None:
    """Q = 1 + γ (Q + α H): the first action's own entropy is not in it, that of all later ones is."""
    state = trained(name, "Pushed-v0", gamma, as_it_is)
    wanted = (1 + gamma * bonus(state, FIRST)) / (1 - gamma)
    assert value_in(state, FIRST) == pytest.approx(wanted, rel=0.03)
    if name == "sac":
        assert abs(wanted - 1 / (1 - gamma)) > 0.1 * wanted, "the soft terms are large enough to be seen"
    # Planted: four of five steps are then followed by something.
    deadly = value_in(trained(name, "Pushed-v0", gamma, a_cut_is_an_end), FIRST)
    assert deadly != pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize("gamma", [0.5, pytest.param(0.9, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_critic_of_continuous_actions_sees_nothing_behind_an_end(name: str, gamma: float) -> None:
    """Q = 1 in the second state, 1 + γ (1 + α H) in the first."""
    state = trained(name, "Twice-v0", gamma, as_it_is)
    assert value_in(state, SECOND) == pytest.approx(1, rel=0.03)
    assert value_in(state, FIRST) == pytest.approx(1 + gamma * (1 + bonus(state, SECOND)), rel=0.03)
    # Planted: the first state stands behind the end, and is worth something.
    endless = value_in(trained(name, "Twice-v0", gamma, an_end_is_a_cut), SECOND)
    assert endless != pytest.approx(1, rel=0.1)
