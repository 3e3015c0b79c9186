"""Which room may open which door, read from the imports. Imports go down."""

import sys
from pathlib import Path

import pytest

from reading import ROOT, imports

NOUNS = frozenset({"trajectories", "errors", "verdicts", "importing", "places", "worker"})
MATHS = frozenset({"exact", "estimators", "losses"})
FLOOR_0 = NOUNS | MATHS | {"shapes", "streams", "intervals"}
FLOOR_1 = frozenset({"policies", "envs"})
FLOOR_2 = frozenset({"rollouts", "algorithms"})
FLOOR_3 = frozenset({"training", "lab"})
FLOOR_4 = frozenset({"recipes"})

DOORS: dict[str, frozenset[str]] = {
    "trajectories": NOUNS,
    "errors": NOUNS,
    "verdicts": NOUNS,
    "importing": frozenset(),
    "places": frozenset(),
    "worker": frozenset(),
    "shapes": frozenset(),
    "streams": frozenset(),
    "intervals": frozenset(),
    "exact": frozenset({"shapes"}),
    "estimators": frozenset({"shapes"}),
    "losses": frozenset({"shapes"}),
    "policies": NOUNS,
    "envs": NOUNS | {"exact"},
    "rollouts": NOUNS | FLOOR_1,
    "algorithms": NOUNS | MATHS | {"policies"},
    "training": FLOOR_0 | FLOOR_1 | FLOOR_2,
    "lab": FLOOR_0 | FLOOR_1 | FLOOR_2,
    "recipes": FLOOR_0 | FLOOR_1 | FLOOR_2 | FLOOR_3,
    "cli": FLOOR_0 | FLOOR_1 | FLOOR_2 | FLOOR_3 | FLOOR_4,
}
"""Room → the other rooms it may import. `gradhat/__init__.py` imports none."""

FRONT_DOOR = {"gradhat.cli", "gradhat.cli.main"}
"""Loaded by every command, `gradhat --help` included. Another file of `cli` is loaded by its command."""


def violations(src: Path) -> list[str]:
    """Return a line for every import below `src`/gradhat that the floor plan forbids."""
    found: list[str] = []
    for file in sorted((src / "gradhat").rglob("*.py")):
        parts = file.relative_to(src).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        module = ".".join(parts[:-1] if is_package else parts)
        room = second(module)
        if room and room not in DOORS:
            found.append(f"{module}: the room '{room}' is not on the floor plan; give it a floor in DOORS")
            continue
        for path, line, at_import in imports(file.read_text(), module, is_package=is_package):
            reason = forbidden(module, path, at_import)
            if reason:
                found.append(f"{'/'.join(parts)}.py:{line} imports {path}: {reason}")
    return found


def forbidden(module: str, path: str, at_import: bool) -> str | None:
    """Return why `module` may not import `path`, or None when it may."""
    room, other = second(module), second(path)
    top = path.split(".")[0]
    if top != "gradhat":
        return forbidden_package(room, top)
    if module in FRONT_DOOR and at_import and other not in {"cli", "errors", "streams"}:
        return "the command line imports the other rooms inside its functions"
    doors = DOORS.get(room, frozenset[str]())
    if other not in doors and not (room and other == room):
        return f"{room or 'the package itself'} opens onto {', '.join(sorted(doors)) or 'no other room'}"
    return None


def forbidden_package(room: str, package: str) -> str | None:
    """Return why `room` may not import a package that is not gradhat, or None when it may."""
    maths = room in MATHS or room == "shapes"
    if maths and package not in {"torch", "numpy", "jaxtyping"} and package not in sys.stdlib_module_names:
        return f"{room} needs torch, numpy, jaxtyping and the standard library only"
    return None


def second(path: str) -> str:
    """Return the room in a dotted path: its second part."""
    return [*path.split("."), ""][1]


def test_imports_go_down() -> None:
    found = violations(ROOT / "src")
    assert not found, "\n".join(found)


def test_every_room_of_the_plan_is_there() -> None:
    there = {path.stem for path in (ROOT / "src/gradhat").iterdir() if path.stem != "__init__"}
    assert there >= set(DOORS)


def plan_of(tmp_path: Path, file: str, source: str) -> list[str]:
    path = tmp_path / "gradhat" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
    return violations(tmp_path)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("__init__.py", "from gradhat.errors import ConfigError"),
        ("estimators/group.py", "from gradhat.trajectories import Trajectories"),
        ("estimators/group.py", "from gradhat.errors import ConfigError"),
        ("estimators/group.py", "import scipy"),
        ("losses/reduce.py", "from ..estimators import group"),
        ("exact/mdp.py", "import gymnasium as gym"),
        ("policies/tabular.py", "import gradhat.exact.mdp"),
        ("policies/language/chat.py", "from ...envs.text import task"),
        ("envs/gym.py", "from gradhat import policies"),
        ("algorithms/grpo.py", "def update():\n    from gradhat.envs.text.env import SingleTurn"),
        ("algorithms/grpo.py", "from gradhat.rollouts.engine import Engine"),
        ("rollouts/episodes.py", "from gradhat.estimators.group import silent"),
        ("lab/bias.py", "from gradhat.training.text.loop import train"),
        (
            "training/loop.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import gradhat.recipes",
        ),
        ("recipes/one.py", "import importlib\nimportlib.import_module('gradhat.cli.main')"),
        ("cli/main.py", "from gradhat.training.text.loop import train"),
        ("attic/old.py", ""),
    ],
)
def test_a_wrong_door_is_found(tmp_path: Path, file: str, source: str) -> None:
    found = plan_of(tmp_path, file, source)
    assert len(found) == 1, found
    assert found[0].startswith(f"gradhat/{file}" if source else "gradhat.attic.old")


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (
            "estimators/gae.py",
            "import math\nimport numpy as np\nimport torch.nn.functional as F\nfrom . import returns",
        ),
        (
            "policies/language/policy.py",
            "from gradhat.trajectories import Trajectories\nfrom .chat import Chat",
        ),
        ("losses/reduce.py", "from gradhat.shapes import zero_one\nfrom jaxtyping import Float"),
        ("envs/tabular.py", "from gradhat.exact.mdp import MDP\nimport gymnasium"),
        (
            "algorithms/grpo.py",
            "from gradhat.estimators import group\nfrom gradhat.policies.language import policy",
        ),
        ("recipes/one.py", "from gradhat.training.text.loop import train"),
        ("cli/train.py", "from gradhat.training.text.loop import train"),
        (
            "cli/main.py",
            "import typing\nif typing.TYPE_CHECKING:\n    from gradhat.training.log import Log",
        ),
        (
            "cli/main.py",
            "from gradhat.errors import GradhatError\ndef main():\n    from gradhat.recipes import one",
        ),
    ],
)
def test_a_right_door_is_left_alone(tmp_path: Path, file: str, source: str) -> None:
    assert plan_of(tmp_path, file, source) == []
