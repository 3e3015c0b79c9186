"""`gradhat recipes`: the runs that are known to work.

A recipe is a module of the package `gradhat.recipes` with a function of its own name.
"""

import inspect
import pkgutil
from collections.abc import Callable
from importlib import import_module

import gradhat.recipes
from gradhat.errors import ConfigError
from gradhat.training.text.config import TrainConfig

Recipe = Callable[[], TrainConfig]

HELP = """usage: gradhat recipes

Lists the recipes, one line each, and the environments that algorithms are tuned to. gradhat train RECIPE
--dry-run shows all settings of one."""


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
    print("\nAlgorithms with settings tuned to an environment, gradhat train ALGORITHM --env ID:\n")
    for name, envs in tuned().items():
        print(f"{name:<{width}}  {'  '.join(envs)}")
    return 0


def tuned() -> dict[str, list[str]]:
    """Return the environments that each algorithm has tuned settings for."""
    from gradhat.recipes.tuned import TUNED

    names = dict.fromkeys(config.algorithm for config in TUNED)
    return {name: [config.env for config in TUNED if config.algorithm == name] for name in names}


def find() -> dict[str, Recipe]:
    """Return the recipes of the package `gradhat.recipes` by name."""
    modules = sorted(module.name for module in pkgutil.iter_modules(gradhat.recipes.__path__))
    found = {name: getattr(import_module(f"gradhat.recipes.{name}"), name, None) for name in modules}
    return {name: recipe for name, recipe in found.items() if recipe is not None}
