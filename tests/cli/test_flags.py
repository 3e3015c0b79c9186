"""A flag that is given several times is one flag with several values. Each flag is explained."""

import re
from dataclasses import dataclass

import pytest

from gradhat.cli.experiments import EXPERIMENTS
from gradhat.cli.flags import gathered, parse
from gradhat.cli.main import main
from gradhat.training.control.algorithms import ALGORITHMS


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["--reward", "a", "--lr", "1"], ["--reward", "a", "--lr", "1"]),
        (["--reward", "a", "--lr", "1", "--reward", "b", "c"], ["--reward", "a", "b", "c", "--lr", "1"]),
        (["--lr", "1", "--reward=a", "--reward=b", "--x"], ["--lr", "1", "--reward", "a", "b", "--x"]),
        (["--lr", "1"], ["--lr", "1"]),
        (["--reward"], ["--reward"]),
    ],
)
def test_values_of_a_repeated_flag_stand_together(argv: list[str], wanted: list[str]) -> None:
    assert gathered(argv, "--reward") == wanted


EMPTY_HELP = re.compile(r"^. (--[\w-]+)(?: \S+)* *.?\n?.? +\(default:", re.MULTILINE)
"""A flag whose default follows where its explanation belongs."""
COMMANDS = (
    *(("train", name) for name in ("first_light", *ALGORITHMS)),
    *((verb,) for verb in ("train", "eval", "chat", "play", "watch", "plot", "sweep")),
    *(("lab", name) for name in EXPERIMENTS),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_flag_is_explained(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    said = capsys.readouterr().out
    assert "(default:" in said
    assert EMPTY_HELP.findall(said) == []


@dataclass(frozen=True)
class Two:
    """Two lines in the code."""

    often: int = 1
    """A first line that goes to its end,
    and a second one."""


def test_help_is_broken_where_the_window_ends_and_not_where_the_code_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse(Two(), ["--help"], prog="two", description="")
    assert "A first line that goes to its end, and a second one." in capsys.readouterr().out
