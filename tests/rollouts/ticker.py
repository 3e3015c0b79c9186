"""An environment whose every number can be told from every other, and a loop that lives in one of them."""

from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

ENV = "Ticker-v0"


class Ticker(gymnasium.Env[Any, Any]):
    """Shows a number drawn at the reset, the step, the last action, and a number drawn at the step. An
    episode has 1 to 5 steps and ends by terminating, by truncating, or by both. Rewards are drawn.
    """

    observation_space = Box(-np.inf, np.inf, (4,), np.float32)
    action_space = Discrete(3)

    def __init__(self, endless: bool = False, render_mode: str | None = None) -> None:
        self.endless, self.render_mode = endless, render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.mark, self.kind, self.t = self.np_random.integers(100), self.np_random.integers(3), 0
        self.end = 10**9 if self.endless else self.np_random.integers(1, 6)
        return self.seen(0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        over = bool(self.t >= self.end)
        reward = float(self.np_random.normal(3.0, 2.0) + action)
        return self.seen(action), reward, over and self.kind != 1, over and self.kind != 0, {}

    def seen(self, action: Any) -> Any:
        return np.array([self.mark, self.t, action, self.np_random.random()], np.float32)


if ENV not in gymnasium.registry:
    gymnasium.register(ENV, entry_point=Ticker)


class Lived(NamedTuple):
    """One own step."""

    seen: Any
    action: int
    reward: float
    successor: Any
    terminated: bool
    truncated: bool


def seeds_of(seed: int, num_envs: int) -> list[int]:
    """The seeds of environments that are stepped one by one."""
    return [int(s) for s in np.random.SeedSequence(seed).generate_state(num_envs)]


def choice(seen: Any) -> int:
    """The action of `Chooser`."""
    return int(seen.astype(np.float64).sum() * 1000) % 3


class Chooser:
    """An actor whose action and logp are functions of what it sees. It keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[Tensor] = []

    def act(self, observations: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        del generator
        self.shown.append(observations.clone())
        actions = torch.tensor([choice(seen) for seen in observations.numpy()])
        return actions, -observations.abs().sum(-1)


class Dice:
    """A random actor of `size` discrete actions."""

    def __init__(self, size: int) -> None:
        self.size = size

    def act(self, observations: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.randint(self.size, (len(observations),), generator=generator), torch.rand(
            len(observations), generator=generator
        )


def alone(env: Ticker, num_steps: int, *, seed: int | None) -> list[Lived]:
    """Live `num_steps` own steps in one environment, resetting it where an episode ends."""
    lived: list[Lived] = []
    seen, _ = env.reset(seed=seed)
    for _ in range(num_steps):
        action = choice(seen)
        successor, reward, terminated, truncated, _ = env.step(action)
        lived.append(Lived(seen, action, reward, successor, terminated, truncated and not terminated))
        seen = env.reset()[0] if terminated or truncated else successor
    return lived
