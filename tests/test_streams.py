"""What is printed for people never ends what it tells of."""

import errno
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from gradhat.cli import main as cli
from gradhat.streams import forgive, is_closed, is_unread
from gradhat.training.log import Screen


@pytest.fixture
def unread() -> Iterator[TextIO]:
    """A pipe whose reader has gone, as after `| head`."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:  # noqa: PTH123
        yield stream


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_letter_that_the_encoding_lacks_is_replaced(encoding: str) -> None:
    content = io.BytesIO()
    stream = io.TextIOWrapper(content, encoding=encoding)
    screen = Screen(stream)
    screen.say("ĝ is 1")
    screen.state("and goes on")
    assert content.getvalue().decode(encoding) in ("? is 1\nand goes on\n", "ĝ is 1\nand goes on\n")


def test_what_a_user_chose_stays() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="backslashreplace")
    forgive(stream)
    forgive(io.StringIO())
    forgive(None)
    assert stream.errors == "backslashreplace"


def test_a_screen_goes_on_when_nobody_reads_it(unread: TextIO, capsys: pytest.CaptureFixture[str]) -> None:
    with Screen(unread) as screen:
        for number in range(3):
            screen.say(f"line {number}")
            screen.state("state")
    said = capsys.readouterr().err
    assert said.count("nobody reads what is printed any more; the work goes on") == 1
    unread.write("more")
    unread.flush()


def test_a_screen_goes_on_where_it_was_closed() -> None:
    stream = io.StringIO()
    screen = Screen(stream)
    stream.close()
    screen.say("a line")
    screen.state("another")


def test_a_program_without_output_does_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)  # as after `gradhat recipes >&-`
    assert cli.main(["recipes"]) == 0


def test_output_that_somebody_closed_is_an_error_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr("sys.stdout", stream)
    stream.close()
    assert cli.main(["recipes"]) == 1
    assert "gradhat recipes: found that standard output takes nothing any more" in capsys.readouterr().err


BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
CLOSES = """
import os, sys
from gradhat.cli import main
def closes(argv):
    print("a line")
    os.close(1)
main.import_module = lambda name: type("Verb", (), {"main": staticmethod(closes)})
sys.exit(main.main(["recipes"]))
"""


def test_a_descriptor_that_somebody_closed_is_an_error_and_no_traceback() -> None:
    call = [sys.executable, "-c", CLOSES]
    done = subprocess.run(call, capture_output=True, text=True, check=False, env=BUFFERED)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "takes nothing any more ([Errno 9]" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_full_disk_is_an_error_and_no_traceback() -> None:
    with Path("/dev/full").open("w") as full:
        call = [sys.executable, "-m", "gradhat.cli.main", "--help"]
        done = subprocess.run(call, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=BUFFERED)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "takes nothing any more ([Errno 28]" in done.stderr


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_typed_bytes_that_are_no_text_are_read(
    errors: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = io.TextIOWrapper(io.BytesIO(b"\xff 1\n"), encoding="utf-8", errors=errors)
    monkeypatch.setattr("sys.stdin", typed)
    assert cli.main(["play", "arithmetic"]) == 0
    assert "1 answer: mean reward" in capsys.readouterr().out


def test_nothing_is_typed_where_the_input_is_closed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert cli.main(["play", "arithmetic"]) == 0
    assert capsys.readouterr().out.endswith("0 answers\n")


def test_a_screen_goes_on_where_the_disk_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    screen = Screen(Full())
    screen.say("a line")
    screen.state("another")


def test_a_closed_pipe_is_known(unread: TextIO) -> None:
    reading, writing = os.pipe()
    with open(reading), open(writing, "w") as stream:  # noqa: PTH123
        assert not is_unread(stream) and not is_closed(stream)
        os.close(writing)
        assert is_closed(stream) and not is_unread(stream)
        os.dup2(reading, writing)
    assert is_unread(unread) and not is_closed(unread)
    assert not is_closed(io.StringIO()) and not is_closed(None) and not is_unread(None)


@pytest.mark.parametrize(
    "argv", [["--help"], ["recipes"], ["train", "--help"], ["train", "ppo", "--help"], ["plot", "--help"]]
)
def test_a_listing_ends_quietly_where_its_reader_has_enough(
    argv: list[str], unread: TextIO, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout", unread)
    assert cli.main(argv) == 141
    assert capsys.readouterr().err == ""


def test_a_pipe_of_somebody_else_that_breaks_is_no_closed_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(argv: list[str]) -> int:
        raise BrokenPipeError

    monkeypatch.setattr("gradhat.cli.recipes.main", breaks)
    with pytest.raises(BrokenPipeError):
        cli.main(["recipes"])


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("argv", [["--help"], ["recipes"], ["train", "ppo", "--help"]])
def test_help_is_printed_in_every_encoding(
    argv: list[str], encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(content, encoding=encoding))
    try:
        assert cli.main(argv) == 0
    except SystemExit as end:
        assert not end.code
    assert len(content.getvalue()) > 100
