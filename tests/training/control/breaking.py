"""An environment that can be broken in the middle of a run, and repaired: "breaking:Breaking-v0"."""

from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete


class Fault(NamedTuple):
    """What goes wrong, in which of the environments in the order they were made, at which of its steps."""

    what: str
    index: int
    step: int


class Shop:
    """Where environments are made."""

    fault: Fault | None = None
    num_made = 0


class Breaking(gymnasium.Env[Any, Any]):
    """Episodes of six steps that pay for the right one of two actions."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.index, self.steps = Shop.num_made, 0
        Shop.num_made += 1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if self.faulty() == "reset":
            raise RuntimeError("nobody knows where to begin")
        self.t = 0
        return self.seen(), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        right = int(self.mark > 0)
        self.t, self.steps = self.t + 1, self.steps + 1
        observation, reward, fault = self.seen(), float(action == right), self.faulty()
        if fault == "raise":
            raise RuntimeError("the wheel came off")
        if fault == "observation":
            observation[1] = np.nan
        if fault == "shape":
            observation = np.zeros(3, np.float32)
        return observation, np.nan if fault == "reward" else reward, False, self.t == 6, {}

    def seen(self) -> Any:
        self.mark = float(self.np_random.normal())
        return np.array([self.mark, self.t], np.float32)

    def faulty(self) -> str:
        fault = Shop.fault
        return fault.what if fault is not None and (self.index, self.steps) == fault[1:] else ""


class Boundless(Breaking):
    """Takes any number."""

    action_space = Box(-np.inf, np.inf, (1,), np.float32)


gymnasium.register("Breaking-v0", Breaking)
gymnasium.register("Boundless-v0", Boundless)
