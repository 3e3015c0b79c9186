"""What lies beside a user's file is in reach while it is imported, and only then."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradhat.importing import beside, load_file


@pytest.fixture(autouse=True)
def forgets() -> Iterator[None]:
    """What a test imports is gone after it."""
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        del sys.modules[name]


def written(folder: Path, value: int) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "gradhat_test_helper.py").write_text(f"VALUE = {value}")
    file = folder / "mine.py"
    file.write_text("import gradhat_test_helper\ndef value(): return gradhat_test_helper.VALUE")
    return file


def test_the_folder_is_in_reach_only_while_the_file_is_imported(tmp_path: Path) -> None:
    before = list(sys.path)
    assert load_file(written(tmp_path, 3), "gradhat_test_mine").value() == 3
    assert sys.path == before


def test_helpers_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    first = load_file(written(tmp_path / "a", 1), "gradhat_test_a")
    second = load_file(written(tmp_path / "b", 2), "gradhat_test_b")
    assert [first.value(), second.value()] == [1, 2]
    helper = sys.modules["gradhat_test_helper"]
    load_file(written(tmp_path / "b", 2), "gradhat_test_b")
    assert sys.modules["gradhat_test_helper"] is helper  # of one folder: once


def test_what_was_imported_otherwise_is_left_alone(tmp_path: Path) -> None:
    import json

    (tmp_path / "json.py").write_text("raise RuntimeError")
    with beside(tmp_path):
        assert sys.modules["json"] is json


def test_a_relative_path_and_a_package_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "gradhat_test_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text("VALUE = 5")
    (tmp_path / "mine.py").write_text("from gradhat_test_package.part import VALUE")
    monkeypatch.chdir(tmp_path)
    assert load_file(Path("mine.py"), "gradhat_test_mine").VALUE == 5


def test_a_file_that_fails_is_forgotten_and_leaves_the_path(tmp_path: Path) -> None:
    before = list(sys.path)
    file = tmp_path / "mine.py"
    file.write_text("1 / 0")
    with pytest.raises(ZeroDivisionError):
        load_file(file, "gradhat_test_mine")
    assert "gradhat_test_mine" not in sys.modules
    assert sys.path == before
    with pytest.raises(ImportError, match="no Python file"):
        load_file(tmp_path / "mine.txt", "gradhat_test_mine")
