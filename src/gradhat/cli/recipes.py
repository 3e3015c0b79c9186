"""`gradhat recipes`: the runs that are known to work.

A recipe is a module of the package `gradhat.recipes` with a function of its own name.
"""

import inspect
import pkgutil
from collections.abc import Callable
from importlib import import_module

import gradhat.recipes
from gradhat.cli.flags import near
from gradhat.errors import ConfigError
from gradhat.training.text.config import TrainConfig

Recipe = Callable[[], TrainConfig]

HELP = """usage: gradhat recipes

Lists the recipes, one line each. gradhat train RECIPE --dry-run shows all settings of one."""


def main(argv: list[str]) -> int:
    """Print each recipe with the first line of its docstring."""
    if argv and argv[0] in ("-h", "--help"):
        print(HELP)
        return 0
    if argv:
        raise ConfigError(f"gradhat recipes {argv[0]}: found an argument. It takes none: gradhat recipes")
    recipes = find()
    width = max(map(len, recipes))
    for name, recipe in recipes.items():
        print(f"{name:<{width}}  {(inspect.getdoc(recipe) or '').partition(chr(10))[0]}")
    return 0


def find() -> dict[str, Recipe]:
    """Return the recipes of the package `gradhat.recipes` by name."""
    modules = sorted(module.name for module in pkgutil.iter_modules(gradhat.recipes.__path__))
    found = {name: getattr(import_module(f"gradhat.recipes.{name}"), name, None) for name in modules}
    return {name: recipe for name, recipe in found.items() if recipe is not None}


def get(name: str) -> TrainConfig:
    """Return the config of the recipe `name`. ConfigError lists the recipes when there is none."""
    recipes = find()
    if name not in recipes:
        raise ConfigError(
            f"recipe {name!r}: no such recipe.{near(name, list(recipes))} Known: {', '.join(recipes)}."
        )
    return recipes[name]()
