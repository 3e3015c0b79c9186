"""An environment that pays 1 for ever and is looked at for five steps at a time: V = 1 / (1 − γ)."""

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from gradhat.algorithms import a2c, critic
from gradhat.envs.gym import GymSpec, make
from gradhat.policies.mlp import ActorCritic, MLPPolicy
from gradhat.rollouts.vector import Collector
from gradhat.training.optim import SmallAdam

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


if ENV not in gymnasium.registry:
    gymnasium.register(ENV, entry_point=Endless, max_episode_steps=LIMIT)


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
