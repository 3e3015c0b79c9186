"""What the house tests read: the files of the project, and the imports of a source without running it."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


def project_files(root: Path = ROOT) -> list[str]:
    """Return the paths that a commit of `root` as it stands would hold: tracked or new, and not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout.decode()
    return sorted(name for name in listing.split("\0") if name and (root / name).is_file())


class Import(NamedTuple):
    """One imported module or name, as a full dotted path."""

    path: str
    line: int
    at_import: bool
    """Whether it is imported as soon as the file is; false inside a function or under TYPE_CHECKING."""


def imports(source: str, module: str, *, is_package: bool = False) -> list[Import]:
    """Return every import of `source`, the text of `module` (dotted), relative ones resolved."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    return [
        Import(path, node.lineno, at_import)
        for node, at_import in _statements(ast.parse(source), True)
        for path in _paths(node, package)
    ]


def _statements(parent: ast.AST, at_import: bool) -> Iterator[tuple[ast.stmt | ast.Call, bool]]:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Call):
            yield node, at_import
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or (
            isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        )
        yield from _statements(node, at_import and not deferred)


def _paths(node: ast.stmt | ast.Call, package: list[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        above = package[: len(package) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        return [f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in {
        "import_module",
        "__import__",
    }:
        return [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)][:1]
    return []
