"""An environment that breaks, for processes that import this file by its name: "faulty:Faulty-v0"."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete


class Faulty(gymnasium.Env[Any, Any]):
    """Shows 0 and pays 0 until step `last`, which raises."""

    observation_space = Box(-1, 1, (1,), np.float32)
    action_space = Discrete(2)

    def __init__(self, last: int = 40) -> None:
        self.last, self.steps = last, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps == self.last:
            raise RuntimeError("the wheel came off")
        return np.zeros(1, np.float32), 0.0, False, False, {}


gymnasium.register("Faulty-v0", Faulty)
