"""A world of sums and products alone: the same numbers on every machine, which sines would not give."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

ENV = "Drift-v0"


class Drift(gymnasium.Env[Any, Any]):
    """A point is pushed along a line and pays for its distance from 0. It terminates far out, and is
    truncated after nine steps.
    """

    observation_space = Box(-np.inf, np.inf, (3,), np.float32)

    def __init__(self, continuous: bool = False, render_mode: str | None = None) -> None:
        self.continuous, self.render_mode = continuous, render_mode
        self.action_space = Box(-1.0, 1.0, (2,), np.float32) if continuous else Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.v = (float(u) - 0.5 for u in self.np_random.random(2))
        self.t = 0
        return self.seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        push = float(action[0]) - 0.25 * float(action[1]) if self.continuous else float(action) - 1.0
        self.v = 0.75 * self.v + 0.5 * push
        self.x = self.x + 0.5 * self.v
        self.t += 1
        reward = 1.0 - self.x * self.x - 0.125 * push * push
        return self.seen(), reward, abs(self.x) > 1.25, self.t == 9, {}

    def seen(self) -> Any:
        return np.array([self.x, self.v, self.t * 0.125], np.float32)


if ENV not in gymnasium.registry:
    gymnasium.register(ENV, entry_point=Drift)
