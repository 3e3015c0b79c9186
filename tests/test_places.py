"""Any text may stand where a path belongs."""

import os
from pathlib import Path

import pytest

from gradhat.places import exists, home, is_file, is_folder

NONE = ["a" * 300, "a\0b", "~nobody_of_that_name/x", "nothing"]


@pytest.mark.parametrize("name", NONE)
def test_a_name_that_no_file_can_have_names_none(name: str) -> None:
    path = home(name)
    assert not exists(path) and not is_file(path) and not is_folder(path)


def test_a_pipe_and_a_device_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert exists(tmp_path / "pipe") and is_folder(tmp_path)
    assert not is_file(tmp_path / "pipe") and not is_file(Path("/dev/zero")) and is_file(Path(__file__))


def test_the_home_folder_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert home("~/x") == Path("/somewhere/x")


@pytest.mark.parametrize(
    "argv",
    [
        ["play", "a" * 300],
        ["play", f"{'a' * 300}.jsonl"],
        ["play", "~nobody_of_that_name/x.jsonl"],
        ["play", "arithmetic", "--reward", f"{'a' * 300}.py:fn"],
        ["plot", "~nobody_of_that_name/run"],
        ["train", "--resume", "~nobody_of_that_name/run"],
        ["watch", "~nobody_of_that_name/run"],
        ["watch", "run", "--out", "~nobody_of_that_name/film.gif"],
        ["lab", "mine", "~nobody_of_that_name/x.py:fn"],
    ],
)
def test_every_door_says_that_there_is_nothing(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gradhat.cli import main as cli

    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) in (1, 2)
    assert "Error: " in capsys.readouterr().err
