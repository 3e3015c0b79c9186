"""Pages stay short, names say something, nothing fails in silence."""

import ast
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import PurePath

import pytest

from reading import ROOT, project_files

PAGE = 200
FUNCTION = 70
NAMELESS = re.compile(r"(^|_)util(s|ities)?$|^legacy$")
CATCHES_ALL = {"Exception", "BaseException"}


def long_pages(path: str, source: str) -> Iterator[str]:
    """An algorithm is one page."""
    lines = len(source.splitlines())
    if path.startswith("src/gradhat/algorithms/") and lines > PAGE:
        yield f"{path}: {lines} lines; an algorithm page has at most {PAGE}"


def long_functions(path: str, source: str) -> Iterator[str]:
    """A function fits a screen, docstring included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION:
                yield f"{path}:{node.lineno} {node.name}: {lines} lines; a function has at most {FUNCTION}"


def nameless_rooms(path: str, source: str) -> Iterator[str]:
    """A file or folder is named after what it holds."""
    del source
    for part in PurePath(path).with_suffix("").parts:
        if NAMELESS.search(part):
            yield f"{path}: '{part}' says nothing of what is inside"


def swallowed_errors(path: str, source: str) -> Iterator[str]:
    """An error is handled or passed on, never dropped."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler) and all(_does_nothing(s) for s in node.body):
            yield f"{path}:{node.lineno} an except that does nothing; handle the error or suppress it by name"
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "suppress":
            for error in node.args:
                if ast.unparse(error) in CATCHES_ALL:
                    yield f"{path}:{node.lineno} suppresses every error; name the one that is expected"


def _does_nothing(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def work_at_import(path: str, source: str) -> Iterator[str]:
    """Importing a module of the package does nothing but define names."""
    if path.startswith("src/"):
        for node in ast.parse(source).body:
            does = isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant)
            if does or isinstance(node, ast.For | ast.While | ast.With):
                yield f"{path}:{node.lineno} runs at import time: {ast.unparse(node).splitlines()[0]}"


Check = Callable[[str, str], Iterator[str]]
CHECKS: list[Check] = [long_pages, long_functions, nameless_rooms, swallowed_errors, work_at_import]


@pytest.mark.parametrize("check", CHECKS)
def test_the_project_keeps_its_shape(check: Check) -> None:
    python = [path for path in project_files() if path.endswith(".py")]
    assert python
    found = [line for path in python for line in check(path, (ROOT / path).read_text())]
    assert not found, "\n".join(found)


def test_files_of_tests_have_names_of_their_own() -> None:
    """pytest imports them by their name alone: the second of two is never run together with the first."""
    paths = [PurePath(path) for path in project_files() if path.startswith("tests/") and path.endswith(".py")]
    counted = Counter(path.name for path in paths if path.name != "conftest.py")
    assert not [name for name, count in counted.items() if count > 1]


def function_of(lines: int) -> str:
    return "class A:\n    async def f(self):\n" + "        x = 1\n" * (lines - 1)


@pytest.mark.parametrize(
    ("check", "path", "source", "wrong"),
    [
        (long_pages, "src/gradhat/algorithms/grpo.py", "x = 1\n" * 200, 0),
        (long_pages, "src/gradhat/algorithms/grpo.py", "x = 1\n" * 201, 1),
        (long_pages, "src/gradhat/rollouts/engine.py", "x = 1\n" * 201, 0),
        (long_functions, "src/gradhat/a.py", function_of(70), 0),
        (long_functions, "src/gradhat/a.py", function_of(71), 1),
        (nameless_rooms, "src/gradhat/utils/shapes.py", "", 1),
        (nameless_rooms, "src/gradhat/rollouts/text_utils.py", "", 1),
        (nameless_rooms, "tests/util.py", "", 1),
        (nameless_rooms, "src/gradhat/legacy/a.py", "", 1),
        (nameless_rooms, "src/gradhat/lab/utility.py", "", 0),
        (swallowed_errors, "a.py", "try:\n    f()\nexcept ValueError:\n    pass", 1),
        (swallowed_errors, "a.py", "try:\n    f()\nexcept:\n    ...", 1),
        (swallowed_errors, "a.py", "with contextlib.suppress(ValueError, Exception):\n    f()", 1),
        (swallowed_errors, "a.py", "try:\n    f()\nexcept ValueError:\n    'why'\n    g()", 0),
        (swallowed_errors, "a.py", "with suppress(ValueError):\n    f()", 0),
        (swallowed_errors, "a.py", "try:\n    f()\nexcept ValueError as e:\n    raise E() from e", 0),
        (work_at_import, "src/gradhat/a.py", "import torch\ntorch.manual_seed(0)", 1),
        (work_at_import, "src/gradhat/a.py", "for x in y:\n    f(x)", 1),
        (work_at_import, "src/gradhat/a.py", '"""What it is."""\nX = 1\n"""What X is."""', 0),
    ],
)
def test_a_wrong_shape_is_found(check: Check, path: str, source: str, wrong: int) -> None:
    assert len(list(check(path, source))) == wrong
