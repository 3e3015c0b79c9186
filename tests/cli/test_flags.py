"""A flag that is given several times is one flag with several values."""

import pytest

from gradhat.cli.flags import gathered


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
