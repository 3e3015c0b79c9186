"""The unit of the actions is nobody's business: a box a thousand times as wide gives the same run."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gradhat.algorithms import ddpg, sac, td3
from gradhat.training.control import settings, worlds
from gradhat.training.control.algorithms import ALGORITHMS
from gradhat.training.control.config import ControlConfig
from gradhat.training.control.off_policy import Memory

MEMORY = Memory(capacity=200, first_frames=20, num_steps=2, num_updates=2, batch_size=16)
LEARNING = (
    settings.DDPG(MEMORY, ddpg.Settings(hidden=(8,))),
    settings.TD3(MEMORY, td3.Settings(hidden=(8,))),
    settings.SAC(MEMORY, sac.Settings(hidden=(8,))),
    settings.SAC(MEMORY, sac.Settings(hidden=(8,), n_step=3)),
)


@pytest.fixture(autouse=True)
def doubles() -> Any:
    """Networks in float64: what differs is then no accident of rounding."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def run(learning: Any, unit: float) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The last line and the networks of a run in which an action of `unit` pushes as 1 does elsewhere."""
    args = ("continuous=True", f"unit={unit}")
    config = ControlConfig(learning, "pushing:Pushing-v0", args, num_envs=2, num_frames=100)
    agent = ALGORITHMS[learning.name].make(config, worlds.make(config, 2))
    line = agent.advance(100)
    learned = {k: t for k, t in agent.state().items() if k.startswith("algorithm/") and ".weights" in k}
    agent.close()
    return line, learned


@pytest.mark.parametrize("learning", LEARNING, ids=["ddpg", "td3", "sac", "sac of three steps"])
def test_a_box_a_thousand_times_as_wide_gives_the_same_run(learning: Any) -> None:
    (line, mine), (other, theirs) = (run(learning, unit) for unit in (1.0, 1000.0))
    assert line == pytest.approx(other, rel=1e-3, abs=1e-5)
    assert mine.keys() == theirs.keys() and len(mine) >= 6
    for name, weights in mine.items():
        torch.testing.assert_close(theirs[name], weights, rtol=1e-3, atol=1e-4)
