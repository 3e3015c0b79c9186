"""Recipes are found by looking, and each is a config that can be launched."""

import pytest

from gradhat.cli.main import main
from gradhat.recipes.first_light import first_light
from gradhat.training.text.config import learning_rate


def test_every_recipe_is_listed_with_its_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("first_light     One-digit sums, differences and products")
    assert lines[1].startswith("two_digit_sums  Two-digit sums")


def test_tuned_pairs_are_listed_by_algorithm(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["ppo", "CartPole-v1", "Acrobot-v1", "LunarLander-v3"] in lines


def test_an_unknown_name_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "firstlight"]) == 2
    said = capsys.readouterr().err
    assert (
        "Did you mean first_light?" in said and "two_digit_sums" in said and "Algorithms: reinforce" in said
    )
    assert main(["train", "pppo", "--env", "CartPole-v1"]) == 2
    assert "Did you mean ppo?" in capsys.readouterr().err


def test_recipes_takes_no_argument() -> None:
    assert main(["recipes", "--all"]) == 2


def test_the_learning_rate_of_the_first_recipe_falls_to_nothing() -> None:
    """As README says: what is left to learn at the end would push too hard."""
    config = first_light()
    assert learning_rate(config, config.lr_warmup_steps) == config.lr
    assert learning_rate(config, config.num_steps) == pytest.approx(0.0, abs=1e-20)
