"""A run that takes a second: what the tests of the training room share."""

from pathlib import Path

import pytest

from gradhat.training.text.config import TrainConfig


@pytest.fixture(scope="module")
def config(tiny_model: Path, letters_task: str) -> TrainConfig:
    """Return six steps of two prompts on the tiny model."""
    return TrainConfig(
        task=letters_task,
        model=str(tiny_model),
        num_steps=6,
        num_prompts=2,
        group_size=4,
        max_new_tokens=8,
        lr=1e-3,
        lr_warmup_steps=5,
        max_replacements=2,
        eval_every=3,
        eval_questions=4,
        eval_samples=2,
        final_questions=6,
        final_samples=2,
        checkpoint_every=2,
        num_threads=1,
        dtype="float32",
    )
