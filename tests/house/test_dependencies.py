"""What the package imports is declared, what is declared is pinned and has a reason."""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from reading import ROOT, imports, project_files

EXACT = re.compile(r"^[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*$")

PACKAGES = {"PIL": "pillow"}
"""Import name → package, where they differ."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "_", name).lower()


def declared(project: dict[str, Any]) -> tuple[list[Requirement], list[Requirement]]:
    """Return what the package itself requires, and what its extras add."""
    extras = project.get("optional-dependencies", {})
    core = [Requirement(text) for text in project["dependencies"]]
    return core, [Requirement(text) for texts in extras.values() for text in texts]


def undeclared(files: dict[str, str], core: set[str], optional: set[str]) -> list[str]:
    """Return a line for every third-party import in `files` (path → text) that pyproject.toml does not cover.

    A core dependency may be imported anywhere, an optional one only inside a function.
    """
    found: list[str] = []
    for file, source in files.items():
        module = ".".join(Path(file).with_suffix("").parts[1:])
        for path, line, at_import in imports(source, module):
            top = path.split(".")[0]
            if top in sys.stdlib_module_names or top == "gradhat" or normal(top) in core:
                continue
            if normal(PACKAGES.get(top, top)) not in optional:
                found.append(f"{file}:{line} imports {top}, which pyproject.toml does not declare")
            elif at_import:
                found.append(
                    f"{file}:{line} imports {top} at its top; it is optional, so import it where it is used"
                )
    return found


def unpinned(requirements: list[Requirement], lines: list[str]) -> list[str]:
    """Return a line for every pin that is not exact, and for every requirement without a pin in its range."""
    pins = [line for line in lines if line.strip() and not line.startswith("#")]
    found = [
        f"constraints.txt: {pin!r} is not an exact public version" for pin in pins if not EXACT.match(pin)
    ]
    versions = {normal(name): version for name, _, version in (pin.partition("==") for pin in pins)}
    for need in requirements:
        version = versions.get(normal(need.name))
        if version is None or not need.specifier.contains(version):
            found.append(f"pyproject.toml asks for {need}, constraints.txt pins {version}")
    return found


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE, OPTIONAL = declared(PROJECT)


def test_every_import_is_declared() -> None:
    files = {f: (ROOT / f).read_text() for f in project_files() if f.startswith("src/") and f.endswith(".py")}
    core, optional = ({normal(need.name) for need in group} for group in (CORE, OPTIONAL))
    found = undeclared(files, core, optional)
    assert not found, "\n".join(found)


def test_every_requirement_is_used() -> None:
    text = "\n".join(
        (ROOT / f).read_text() for f in project_files() if f.startswith("src/") and f.endswith(".py")
    )
    used = {normal(path.split(".")[0]) for path, *_ in imports(text, "gradhat")}
    assert not {normal(need.name) for need in CORE} - used


def test_every_requirement_is_pinned() -> None:
    found = unpinned([*CORE, *OPTIONAL], (ROOT / "constraints.txt").read_text().splitlines())
    assert not found, "\n".join(found)


def test_every_requirement_has_its_reason() -> None:
    decisions = (ROOT / "docs/decisions.md").read_text()
    assert not [need.name for need in [*CORE, *OPTIONAL] if f"`{need.name}`" not in decisions]


@pytest.mark.parametrize(
    ("torch", "inside"), [("2.11.0", True), ("2.13.0", True), ("2.10.2", False), ("3.0", False)]
)
def test_the_range_of_torch(torch: str, inside: bool) -> None:
    need = next(need for need in CORE if need.name == "torch")
    assert need.specifier.contains(torch) == inside


@pytest.mark.parametrize(
    ("source", "wrong"),
    [
        ("import torch, json, gradhat.errors", 0),
        ("def f():\n    import ray", 0),
        ("import ray", 1),
        ("def f():\n    from pandas import DataFrame", 1),
    ],
)
def test_an_undeclared_import_is_found(source: str, wrong: int) -> None:
    assert len(undeclared({"src/gradhat/a.py": source}, {"torch"}, {"ray"})) == wrong


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("torch==2.13.0", 0),
        ("torch==2.13.0+cpu", 1),
        ("torch==2.10.0", 1),
        ("torch>=2.13", 2),
        ("numpy==2.4.6", 1),
        ("torch @ file:///wheels/torch.whl", 2),
    ],
)
def test_a_pin_that_does_not_hold_is_found(line: str, wrong: int) -> None:
    found = unpinned([Requirement("torch>=2.11,<3")], ["# a comment", line])
    assert len(found) == wrong, found
