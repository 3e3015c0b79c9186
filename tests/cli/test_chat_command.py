"""`gradhat chat`: one conversation, from a pipe or a prompt."""

import io
import json
import shutil
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gradhat.cli.main import main
from gradhat.policies.language.chat import Chat
from gradhat.rollouts.engine import Completion, Engine, Limits
from gradhat.rollouts.sampling import Draw
from gradhat.training import checkpoint
from gradhat.training.run_folder import RunFolder
from gradhat.training.text.config import TrainConfig, to_json

FLAGS = ["--max-new-tokens", "4", "--dtype", "float32", "--num-threads", "1"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> list[list[dict[str, str]]]:
    """The conversations that the model is given."""
    conversations: list[list[dict[str, str]]] = []
    real = Chat.encode

    def encode(self: Chat, messages: list[dict[str, str]], answers: list[list[int]] = []) -> list[int]:  # noqa: B006
        conversations.append(list(messages))
        return real(self, messages, answers)

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
    assert "Did you mean --stop or --top-p or --top-k?" in capsys.readouterr().err


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[int], Limits, Completion]]:
    """Every prompt that the engine is given, within which limits, and what it answers."""
    calls: list[tuple[list[int], Limits, Completion]] = []
    real = Engine.sample

    def sample(self: Engine, prompts: list[list[int]], n: int, limits: Limits) -> list[list[Completion]]:
        found = real(self, prompts, n, limits)
        calls.append((list(prompts[0]), limits, found[0][0]))
        return found

    monkeypatch.setattr(Engine, "sample", sample)
    return calls


Sampled = list[tuple[list[int], Limits, Completion]]


def test_what_was_said_is_never_tokenised_again(
    tiny_model: Path, sampled: Sampled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a letter as an answer: read as text and tokenised again it would be three other tokens."""
    half = Chat.read(tiny_model).tokenizer.encode("é", add_special_tokens=False).ids[0]
    monkeypatch.setattr(
        "gradhat.rollouts.engine.draw",
        lambda logits, *_, **__: Draw(torch.full((len(logits),), half), torch.zeros(len(logits))),
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo <|im_end|>\n"))
    assert main(["chat", str(tiny_model), *FLAGS]) == 0
    (first, _, answer), (second, _, _) = sampled
    assert answer.tokens == (half,) * 4
    assert second[: len(first) + 4] == [*first, *answer.tokens]
    chat = Chat.read(tiny_model)
    end = chat.whole_token("<|im_end|>")
    assert second.count(end) == 3, "what the person typed is none"


FLAGS_OF_LIMITS = [
    ("--temperature", "0.3", "temperature", 0.3),
    ("--top-p", "0.4", "top_p", 0.4),
    ("--top-k", "5", "top_k", 5),
    ("--min-p", "0.2", "min_p", 0.2),
    ("--stop", "a b", "stop_strings", ("a b",)),
    ("--max-new-tokens", "3", "max_new_tokens", 3),
]


@pytest.mark.parametrize(("flag", "value", "name", "wanted"), FLAGS_OF_LIMITS)
def test_every_limit_reaches_the_engine(
    tiny_model: Path,
    sampled: Sampled,
    monkeypatch: pytest.MonkeyPatch,
    flag: str,
    value: str,
    name: str,
    wanted: object,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n"))
    assert main(["chat", str(tiny_model), *FLAGS, flag, value]) == 0
    ((_, limits, _),) = sampled
    assert getattr(limits, name) == wanted
    plain = Limits(4, 0.7, seed=limits.seed)
    assert {f.name for f in fields(Limits) if getattr(limits, f.name) != getattr(plain, f.name)} == {name}


def test_several_stop_strings(tiny_model: Path, sampled: Sampled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n"))
    assert main(["chat", str(tiny_model), *FLAGS, "--stop", "a", "--stop", "<|im_start|>", "c"]) == 0
    assert sampled[0][1].stop_strings == ("a", "<|im_start|>", "c")


@pytest.mark.parametrize(
    "wrong", [["--top-p", "0"], ["--min-p", "1"], ["--stop", ""], ["--max-new-tokens", "0"]]
)
def test_a_limit_out_of_range_is_refused_before_the_model_is_read(
    wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", str(tmp_path / "no model"), *wrong]) == 2
    assert "out of range" in capsys.readouterr().err


def test_switches_of_the_template_reach_and_a_run_brings_its_own(
    tiny_model: Path, tmp_path: Path, sampled: Sampled, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] += "{% if loud is defined and loud %}!{% endif %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = TrainConfig(task="arithmetic", template_args=("loud=true",))
    run = tmp_path / "run"
    RunFolder.create(run, to_json(config)).close()
    shutil.copytree(folder, run / "checkpoints" / "step_000001")
    monkeypatch.setattr(
        checkpoint, "newest", lambda _: (SimpleNamespace(path=run / "checkpoints" / "step_000001"), [])
    )
    ends: list[str] = []
    for place, flags in (
        (folder, []),
        (folder, ["--template-args", "loud=true"]),
        (run, []),
        (run, ["--template-args", "loud=false"]),
    ):
        monkeypatch.setattr("sys.stdin", io.StringIO("one\n"))
        assert main(["chat", str(place), *FLAGS, *flags]) == 0
        ends.append(Chat.read(folder).decode(sampled[-1][0][-1:]))
    assert ends == ["\n", "!", "!", "\n"]
