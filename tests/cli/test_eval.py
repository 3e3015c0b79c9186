"""`gradhat eval`: a run's own settings, and numbers that agree with the samples."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from gradhat.cli import eval as evaluation
from gradhat.cli.main import main
from gradhat.policies.language.chat import Chat
from gradhat.rollouts.engine import Completion, Engine, Limits
from gradhat.training.run_folder import RunFolder
from gradhat.training.text.config import TrainConfig, to_json

TINY = ["--n", "6", "--samples", "3", "--max-new-tokens", "8", "--dtype", "float32", "--num-threads", "1"]


def test_a_model_is_measured_sampled_and_greedy(
    tiny_model: Path, letters_task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(tiny_model), "--task", letters_task, *TINY]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith(": 6 held-out questions")
    accuracy = float(lines[2].split("accuracy ")[1].split(" ")[0])
    assert 0 < accuracy < 1
    assert f"pass@1 {accuracy:.3f}  pass@2 " in lines[3] and "pass@3" in lines[3] and "pass@4" not in lines[3]
    assert lines[4].startswith("greedy   accuracy ")


def test_questions_that_are_too_long_are_left_out_and_counted(
    tiny_model: Path, letters_task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model's context holds 512 tokens, one a byte; the system prompt leaves room for two digits."""
    command = ["eval", str(tiny_model), "--task", letters_task, *TINY, "--n", "200"]
    around = 29  # tokens of the chat template
    assert main([*command, "--system", "x" * (512 - 8 - around - len("Say 12"))]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    found = re.search(r": (\d+) held-out questions, (\d+) more are too long$", line)
    assert found is not None and int(found[1]) > 5 and int(found[2]) > 100, line
    assert main([*command, "--system", "x" * 600]) == 1
    assert "held-out questions: found prompts of " in capsys.readouterr().err


def test_the_same_command_gives_the_same_numbers(
    tiny_model: Path, letters_task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", str(tiny_model), "--task", letters_task, *TINY]
    main(command)
    first = capsys.readouterr().out
    main(command)
    assert capsys.readouterr().out == first


def test_a_run_brings_its_own_settings(tmp_path: Path) -> None:
    config = TrainConfig(task="arithmetic:digits=2", temperature=0.8, max_new_tokens=17, system="Be brief.")
    RunFolder.create(tmp_path / "run", to_json(config)).close()
    flags = evaluation.defaults(str(tmp_path / "run"))
    assert (flags.task, flags.temperature, flags.max_new_tokens, flags.system) == (
        "arithmetic:digits=2",
        0.8,
        17,
        "Be brief.",
    )


def test_k_doubles_up_to_the_samples() -> None:
    assert [evaluation.powers(n) for n in (1, 4, 6)] == [[1], [1, 2, 4], [1, 2, 4, 6]]


@pytest.mark.parametrize(
    ("argv", "code", "wanted"),
    [
        ([], 2, "found no run or model"),
        (["{model}"], 2, "found no task"),
        (["{model}", "--task", "arithmetic", "--n", "0"], 2, "n=0"),
        (["{model}", "--task", "arithmetic", "--temperature", "0"], 2, "Greedy is measured anyway"),
        (["{model}", "--task", "arithmetic", "--num", "3"], 2, "--num: no such flag"),
        (["{model}", "--task", "nothing"], 1, "TaskError"),
        (["no/such/model/at/all", "--task", "arithmetic"], 1, "ModelError"),
        (["{run}"], 1, "found none yet. Train on first: gradhat train --resume"),
    ],
)
def test_a_wrong_command_is_refused(
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    code: int,
    wanted: str,
) -> None:
    RunFolder.create(tmp_path / "run", to_json(TrainConfig(task="arithmetic"))).close()
    places = {"model": str(tiny_model), "run": str(tmp_path / "run")}
    assert main(["eval", *(word.format(**places) for word in argv)]) == code
    assert wanted in capsys.readouterr().err


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
    letters_task: str,
    monkeypatch: pytest.MonkeyPatch,
    flag: str,
    value: str,
    name: str,
    wanted: object,
) -> None:
    seen: list[Limits] = []
    real = Engine.sample

    def sample(self: Engine, prompts: list[list[int]], n: int, limits: Limits) -> list[list[Completion]]:
        seen.append(limits)
        return real(self, prompts, n, limits)

    monkeypatch.setattr(Engine, "sample", sample)
    assert main(["eval", str(tiny_model), "--task", letters_task, *TINY, flag, value]) == 0
    sampled, greedy = seen
    assert getattr(sampled, name) == wanted
    plain = Limits(8, 1.0, seed=sampled.seed)
    assert {f.name for f in fields(Limits) if getattr(sampled, f.name) != getattr(plain, f.name)} == {name}
    assert greedy.temperature == 0.0


def test_switches_of_the_template_reach_the_prompts(
    tiny_model: Path, letters_task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, ...]] = []
    real = Chat.read.__func__

    def read(cls: type[Chat], folder: Path, template_args: tuple[str, ...] = ()) -> Chat:
        given.append(tuple(template_args))
        return real(cls, folder, template_args)

    monkeypatch.setattr(Chat, "read", classmethod(read))
    flags = ["--template-args", "loud=true", "--template-args", "level=3", "x=y"]
    assert main(["eval", str(tiny_model), "--task", letters_task, *TINY, *flags]) == 0
    assert given == [("loud=true", "level=3", "x=y")]


@pytest.mark.parametrize(
    "wrong", [["--top-p", "0"], ["--min-p", "1"], ["--stop", ""], ["--template-args", "loud"]]
)
def test_a_limit_out_of_range_is_refused(
    wrong: list[str], tiny_model: Path, letters_task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(tiny_model), "--task", letters_task, *TINY, *wrong]) == 2
    assert "found" in capsys.readouterr().err


def test_columns_and_reward_functions_reach(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(f'{{"ask": "Say {n}", "gold": "{n}"}}\n' for n in range(40))
    (tmp_path / "q.jsonl").write_text(rows)
    (tmp_path / "mine.py").write_text("def fixed(completions, **_):\n    return [3.25] * len(completions)\n")
    flags = ["--question-column", "ask", "--answer-column", "gold", "--reward", f"{tmp_path}/mine.py:fixed"]
    more = TINY
    assert main(["eval", str(tiny_model), "--task", str(tmp_path / "q.jsonl"), *flags, *more]) == 0
    assert "3.25" in capsys.readouterr().out
