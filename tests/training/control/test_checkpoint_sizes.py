"""What a run says at its start of its checkpoints' size is what lies on the disk at its end."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gradhat.recipes.tuned import control
from gradhat.training.control.config import to_json
from gradhat.training.control.session import prepare
from gradhat.training.loop import train
from gradhat.training.run_folder import RunFolder

SHORT: dict[str, Any] = {
    **{"num_envs": 4, "num_frames": 900, "log_every": 450, "checkpoint_every": 450},
    **{"eval_every": 0, "eval_episodes": 2, "eval_max_steps": 5},
}


def small(name: str, env: str) -> Any:
    config = control(name, env)
    learning: Any = config.learning
    if hasattr(learning, "memory"):
        memory = replace(learning.memory, capacity=512, first_frames=100, num_updates=1)
        learning = replace(learning, memory=memory)
    return replace(config, learning=learning, **SHORT)


@pytest.mark.parametrize(
    ("name", "env"), [("a2c", "CartPole-v1"), ("dqn", "CartPole-v1"), ("sac", "Pendulum-v1")]
)
def test_the_size_that_is_said_is_that_on_the_disk(name: str, env: str, tmp_path: Path) -> None:
    """Before the optimiser has moments, and the memory anything in it."""
    config = small(name, env)
    session = prepare(config)
    said = session.checkpoint_sizes()
    with RunFolder.create(tmp_path / "run", to_json(config)) as run:
        assert train(run, session) == 0
    session.close()
    found = [file.stat().st_size for file in (tmp_path / "run/checkpoints").glob("*/state.safetensors")]
    assert len(said) == len(found) == 2
    assert said == pytest.approx(found, rel=0.15)


def test_no_more_checkpoints_are_told_than_are_kept_or_written() -> None:
    config = small("a2c", "CartPole-v1")
    for keep, frames, wanted in ((1, 900, 1), (9, 900, 2), (9, 451, 2), (9, 450, 1)):
        session = prepare(replace(config, keep_checkpoints=keep, num_frames=frames))
        assert len(session.checkpoint_sizes()) == wanted
        session.close()
