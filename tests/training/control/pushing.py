"""A world of sums and products with everything in it: "pushing:Pushing-v0"."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete


class Pushing(gymnasium.Env[Any, Any]):
    """A point on a line is pushed, and pays for its distance from 0. It terminates far out, and is truncated
    after seven steps.
    """

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)

    def __init__(
        self,
        continuous: bool = False,
        strength: float = 1.0,
        unit: float = 1.0,
        render_mode: str | None = None,
    ) -> None:
        """An action of `unit` pushes as 1 does in a world of unit 1."""
        self.continuous, self.strength, self.unit, self.render_mode = continuous, strength, unit, render_mode
        self.action_space = Box(-unit, unit, (2,), np.float32) if continuous else Discrete(3)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.t = float(self.np_random.random()) - 0.5, 0
        return self.seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        push = (float(action[0]) - 0.25 * float(action[1])) / self.unit if self.continuous else action - 1.0
        self.x = 0.75 * self.x + 0.5 * self.strength * float(push)
        self.t += 1
        return self.seen(), 1.0 - 2 * self.x * self.x, abs(self.x) > 1.0, self.t == 7, {}

    def seen(self) -> Any:
        return np.array([self.x, self.t * 0.125], np.float32)


gymnasium.register("Pushing-v0", Pushing)
