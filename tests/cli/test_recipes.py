"""Recipes are found by looking, and each is a config that can be launched."""

import pytest

from gradhat.cli import recipes
from gradhat.cli.main import main
from gradhat.errors import ConfigError


def test_every_recipe_is_listed_with_its_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("first_light     One-digit sums, differences and products")
    assert lines[1].startswith("two_digit_sums  Two-digit sums")


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean first_light\? Known: first_light, two_digit_sums"):
        recipes.get("firstlight")


def test_recipes_takes_no_argument() -> None:
    assert main(["recipes", "--all"]) == 2
