"""An environment that shows all it knows, so that nothing can be mistaken for something else."""

import os
import signal
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Space, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper

ENV = "Telltale-v0"
TROUBLE = 2
"""The action on which a `fault` shows."""


class Telltale(gymnasium.Env[Any, Any]):
    """Shows a number drawn at the reset, the step, the last action, a number drawn at the step, and which of
    its episodes this is (0 unless it `counts`). An episode has 1 to 5 steps and ends by terminating, by
    truncating, or by both. The reward is 10 × step + action.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 7}  # noqa: RUF012

    def __init__(
        self,
        actions: Space[Any] | None = None,
        fault: str = "",
        counts: bool = False,
        render_mode: str | None = None,
    ) -> None:
        if fault == "make":
            raise RuntimeError("no parts")
        self.render_mode = render_mode
        self.observation_space = Box(-np.inf, np.inf, (5,), np.float64)
        self.action_space = actions or Discrete(3)
        self.fault, self.counts, self.episode, self.spoilt = fault, counts, 0, False

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if self.spoilt:
            raise RuntimeError("the reset broke")
        self.mark, self.end, self.kind = (int(n) for n in self.np_random.integers([100, 6, 3]))
        self.t, self.end, self.episode = 0, max(1, self.end), self.episode + self.counts
        return self.seen(0, 0.0), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.t += 1
        first = float(np.ravel(action)[0])
        trouble = self.fault if first == TROUBLE else ""
        if trouble == "raise":
            raise RuntimeError("the wheel came off")
        if trouble == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        self.spoilt = trouble == "reset"
        observation = self.seen(first, self.np_random.random())
        if trouble == "observation":
            observation[3] = np.nan
        if trouble == "shape":
            observation = observation[:4]
        reward = {"reward": np.inf, "no reward": None}.get(trouble, 10.0 * self.t + first)
        over = self.t >= self.end or self.spoilt
        return observation, reward, over and self.kind != 1, over and self.kind != 0, {}

    def render(self) -> Any:
        return None

    def seen(self, action: float, drawn: float) -> Any:
        return np.array([self.mark, self.t, action, drawn, self.episode], dtype=np.float64)


class Odd(gymnasium.Env[Any, Any]):
    """Random observations of any space, which it lists."""

    def __init__(self, space: Space[Any], render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space, self.action_space = space, Discrete(2)
        self.shown: list[Any] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        return self.show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.show(), 0.0, len(self.shown) % 4 == 0, False, {}

    def show(self) -> Any:
        self.shown.append(self.observation_space.sample())
        return self.shown[-1]


SPACES = {
    "Box of pictures": Box(0, 255, (2, 3), np.uint8),
    "Box of doubles": Box(-1.0, 1.0, (3,), np.float64),
    "Discrete": Discrete(4, start=2),
    "Dict": Dict({"b": Discrete(3), "a": Box(-1.0, 1.0, (2, 2))}),
    "Tuple": Tuple((Discrete(2), Box(0.0, 9.0, (1,)))),
}


def native(
    num_envs: int, mode: AutoresetMode = AutoresetMode.NEXT_STEP, **kwargs: Any
) -> VectorEnv[Any, Any, Any]:
    """A vector version of its own."""
    return VectorWrapper(SyncVectorEnv([partial(Telltale, **kwargs)] * num_envs, autoreset_mode=mode))


if ENV not in gymnasium.registry:
    gymnasium.register(ENV, entry_point=Telltale, vector_entry_point=native)
    gymnasium.register("Odd-v0", entry_point=Odd)
