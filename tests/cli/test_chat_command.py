"""`gradhat chat`: one conversation, from a pipe or a prompt."""

import io
from pathlib import Path

import pytest

from gradhat.cli.main import main
from gradhat.policies.language.chat import Chat

FLAGS = ["--max-new-tokens", "4", "--dtype", "float32", "--num-threads", "1"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, str]]]:
    """The conversations that the model is given."""
    conversations: list[list[dict[str, str]]] = []
    real = Chat.encode

    def encode(self: Chat, messages: list[dict[str, str]]) -> list[int]:
        conversations.append(list(messages))
        return real(self, messages)

    monkeypatch.setattr(Chat, "encode", encode)
    return conversations


def test_a_pipe_is_one_conversation(
    tiny_model: Path,
    heard: list[list[dict[str, str]]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\n"))
    assert main(["chat", str(tiny_model), "--system", "Be brief.", *FLAGS]) == 0
    answers = capsys.readouterr().out
    assert [m["content"] for m in heard[0]] == ["Be brief.", "one"]
    assert [m["role"] for m in heard[1]] == ["system", "user", "assistant", "user"]
    assert heard[1][3]["content"] == "two"
    assert answers.startswith(heard[1][2]["content"] + "\n")


def test_a_person_ends_with_an_empty_line(
    tiny_model: Path, heard: list[list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal("one\n\ntwo\n"))
    assert main(["chat", str(tiny_model), *FLAGS]) == 0
    assert [[m["content"] for m in messages] for messages in heard] == [["one"]]


def test_the_end_of_input_ends_the_conversation(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(""))
    assert main(["chat", str(tiny_model), *FLAGS]) == 0


def test_a_message_beyond_the_context_is_an_error(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("x" * 600 + "\n"))
    assert main(["chat", str(tiny_model), *FLAGS]) == 1
    assert capsys.readouterr().err.startswith("ModelError: ")


def test_a_wrong_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat"]) == 2
    assert "gradhat chat RUN|MODEL: found no run or model" in capsys.readouterr().err
    assert main(["chat", "x", "--num-threads", "0"]) == 2
    assert main(["chat", "x", "--top", "1"]) == 2
    assert "Did you mean --top-p" in capsys.readouterr().err
