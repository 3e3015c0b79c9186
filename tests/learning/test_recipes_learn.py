"""The recipes reach what the README says, on held-out questions, at temperature 1. Minutes each."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gradhat.recipes.first_light import first_light
from gradhat.recipes.two_digit_sums import two_digit_sums
from gradhat.training.loop import train
from gradhat.training.run_folder import RunFolder
from gradhat.training.text.config import TrainConfig, to_json
from gradhat.training.text.session import prepare

pytestmark = pytest.mark.learning


@pytest.mark.parametrize(
    ("recipe", "at_most_before", "at_least_after"),
    [(first_light(), 0.25, 0.85), (two_digit_sums(), 0.06, 0.5)],
    ids=["first_light", "two_digit_sums"],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_a_recipe_learns(
    recipe: TrainConfig, at_most_before: float, at_least_after: float, seed: int, tmp_path: Path
) -> None:
    config = replace(recipe, seed=seed, checkpoint_every=recipe.num_steps)
    session = prepare(config)
    with RunFolder.create(tmp_path / "run", to_json(config)) as run:
        assert train(run, session) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["before"]["held_out/accuracy"] <= at_most_before
    assert summary["after"]["held_out/accuracy"] >= at_least_after
