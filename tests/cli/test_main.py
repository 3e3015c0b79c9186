"""The front door: fast, without torch, and every wrong command ends in one clear message."""

import os
import signal
import subprocess
import sys

import pytest

from gradhat.cli import main as cli
from gradhat.errors import GradhatError, ModelError


def gradhat(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "gradhat.cli.main", *args], capture_output=True, text=True)


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from gradhat.cli.main import main; code = main(['--help']);"
        "heavy = ('torch', 'tyro', 'transformers', 'numpy', 'rich', 'pyarrow');"
        "print(code, [m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    for verb in ("train", "sweep", "plot", "watch", "recipes", "eval", "chat", "play"):
        assert f"\n  {verb} " in done.stdout


def test_help_is_fast() -> None:
    # Processor time: the time on the clock also counts what else the machine is doing.
    before = os.times()
    gradhat("--help")
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 0.4


def test_an_unknown_command_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trian"]) == 2
    error = capsys.readouterr().err
    assert "Did you mean train?" in error
    assert "Known: train, sweep, plot, watch, recipes, eval, chat, lab, play." in error


def test_no_command_prints_the_usage_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert capsys.readouterr().out.startswith("usage: gradhat COMMAND")


@pytest.mark.parametrize("verb", ["train", "sweep", "plot", "watch", "recipes", "eval", "chat"])
def test_every_command_explains_itself(verb: str) -> None:
    done = gradhat(verb, "--help")
    assert done.returncode == 0
    assert f"gradhat {verb}" in done.stdout


def test_a_users_error_is_one_message_and_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(argv: list[str]) -> int:
        raise GradhatError("asked, found, do")

    monkeypatch.setattr("gradhat.cli.recipes.main", fails)
    assert cli.main(["recipes"]) == 1
    assert capsys.readouterr().err == "GradhatError: asked, found, do\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(argv: list[str]) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("gradhat.cli.recipes.main", fails)
    with pytest.raises(ZeroDivisionError):
        cli.main(["recipes"])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            PermissionError(13, "Permission denied", "/closed"),
            "found [Errno 13] Permission denied: '/closed'",
        ),
        (MemoryError("8 GiB"), "found too little memory for it (8 GiB)"),
        (RuntimeError("can't allocate memory: you tried 9 bytes"), "found too little memory for it"),
    ],
)
def test_what_the_machine_refuses_is_one_sentence(
    error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr("gradhat.cli.recipes.main", fails)
    assert cli.main(["recipes", "now"]) == 1
    assert capsys.readouterr().err.startswith(f"gradhat recipes now: {said}")


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("a bug")])
def test_no_other_bug_is_taken_for_that(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr("gradhat.cli.recipes.main", fails)
    with pytest.raises(type(error), match="a bug"):
        cli.main(["recipes"])


@pytest.mark.parametrize(("args", "code"), [((), 130), ((signal.SIGTERM,), 143), ((signal.SIGHUP,), 129)])
def test_a_signal_has_its_own_exit_code(
    args: tuple[int, ...], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(argv: list[str]) -> int:
        raise KeyboardInterrupt(*args)

    monkeypatch.setattr("gradhat.cli.recipes.main", interrupted)
    assert cli.main(["recipes"]) == code


def test_a_model_error_is_not_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(argv: list[str]) -> int:
        raise ModelError("x")

    monkeypatch.setattr("gradhat.cli.recipes.main", fails)
    assert cli.main(["recipes"]) == 1
