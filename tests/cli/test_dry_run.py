"""`--dry-run`: the errors of a run, what was found on stderr, the config alone on stdout, nothing on disk."""

import json
import shutil
from pathlib import Path

import pytest

from gradhat.cli.main import main
from gradhat.training.run_folder import RunFolder
from gradhat.training.text.config import from_json

SHORT = "--num-steps 1 --num-prompts 2 --group-size 2 --max-new-tokens 4 --checkpoint-every 1 --num-threads 1"
SHORT += " --eval-questions 2 --final-questions 2 --final-samples 1 --dtype float32 --eval-every 99"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def here(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The present folder: a model, a file of questions."""
    shutil.copytree(tiny_model, tmp_path / "tiny")
    rows = [{"question": f"Say {n}", "answer": str(n)} for n in range(40)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "loud.py").write_text(
        "from gradhat.envs.text.arithmetic import Arithmetic\nprint('hello')\nclass Loud(Arithmetic): pass\n"
    )
    (tmp_path / "rewards.py").write_text("def one(completions, **_): return [1.0] * len(completions)\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where weights are read."""

    def load(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("gradhat.policies.language.weights.load", load)


@pytest.mark.usefixtures("no_weights")
def test_what_was_found_is_said_and_the_config_stands_alone(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(here)
    flags = ["--task", "loud.py:Loud", "--model", "tiny", "--out", "run", "--final-questions", "5"]
    assert main(["train", *flags, "--dtype", "float32", "--dry-run"]) == 0
    said = capsys.readouterr()
    assert from_json(json.loads(said.out), "here").task == f"{here}/loud.py:Loud"
    assert said.err.splitlines() == [
        "hello",
        f"model  {here}/tiny: 0M parameters in float32",
        f"task   {here}/loud.py:Loud: 5 questions held out",
        "check  its own answers score 1, the empty completion scores 0",
    ]
    assert tree(here) == before


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ("--task empty.jsonl", "TaskError: HERE/empty.jsonl holds no question"),
        ("--task q.jsonl --answer-column gold", "the column 'gold' was asked for"),
        ("--task q.jsonl --reward rewards.py:two", "has no function 'two'"),
        ("--task nowhere.py:Mine", "there is no file HERE/nowhere.py"),
        ("--task q.jsonl --curriculum arithmetik", "task 'arithmetik' is unknown"),
        ("--task q.jsonl --model gpt-9", "ModelError: The model 'gpt-9' is unknown"),
        ("--task q.jsonl --model tiny --max-new-tokens 9999", "the model's context holds"),
        ("--task q.jsonl --model tiny --template-args loud", "template_args"),
    ],
)
def test_the_errors_are_those_of_the_run(
    flags: str, wanted: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["train", "--model", "tiny", *flags.split()]
    code = main([*asked, "--dry-run"])
    said = capsys.readouterr()
    assert code in (1, 2) and said.out == ""
    assert main(asked) == code
    assert said.err == capsys.readouterr().err
    assert wanted.replace("HERE", str(here)) in said.err.replace("--template-args", "template_args")


@pytest.mark.usefixtures("no_weights")
def test_the_shape_of_the_weights_is_looked_at(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((here / "tiny/config.json").read_text())
    asked = ["train", "--model", "tiny", "--task", "q.jsonl", "--dry-run"]
    for changes, wanted in (
        ({"num_hidden_layers": 3}, "lack model.layers.2."),
        ({"vocab_size": config["vocab_size"] - 1}, "has the shape"),
        ({"num_hidden_layers": 3000}, "promises"),
    ):
        (here / "tiny/config.json").write_text(json.dumps(config | changes))
        assert main(asked) == 1
        error = capsys.readouterr().err
        assert error.splitlines()[-1].startswith("ModelError") and wanted in error


def test_nothing_is_fetched(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADHAT_CACHE", str(here / "cache"))
    (here / "torn.gguf").write_bytes(b"GGUF")
    for model, wanted in (("torn.gguf", "as GGUF failed"), ("hf:", "is written hf:owner/name")):
        assert main(["train", "--task", "q.jsonl", "--model", model, "--dry-run"]) == 1
        assert wanted in capsys.readouterr().err
    (here / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("gradhat.policies.language.weights.described", lambda file: None)
    for model in ("smollm2-135m", "hf:owner/name", "model.gguf"):
        assert main(["train", "--task", "q.jsonl", "--model", model, "--dry-run"]) == 0
        assert "not ready on this machine" in capsys.readouterr().err
    assert not (here / "cache").exists()


def test_an_environment_is_made_as_in_a_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "ppo", "--env", "CartPole-v1", "--num-envs", "3", "--dry-run"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["num_envs"] == 3
    assert said.err.startswith("env    CartPole-v1: 4 numbers seen, 2 actions; 3 at once\nagent  ppo: ")
    for flags, wanted in (
        (["ppo", "--env", "CartPol-v1"], "found no such id in Gymnasium"),
        (["sac"], "sac in CartPole-v1: its actions are a choice of 2"),
        (["q_learning", "--env", "CartPole-v1"], "found no P and initial_state_distrib"),
    ):
        assert main(["train", *flags, "--dry-run"]) == 2
        said = capsys.readouterr()
        assert said.out == "" and wanted in said.err


@pytest.mark.parametrize("asked", [["ppo"], ["--task", "q.jsonl", "--model", "tiny"]])
def test_a_folder_that_is_taken_is_refused_at_once(
    asked: list[str], here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def tried(config: object, run: object = None) -> None:
        pytest.fail("it was tried")

    monkeypatch.setattr("gradhat.training.control.session.prepare", tried)
    monkeypatch.setattr("gradhat.training.text.trial.rehearse", tried)
    assert main(["train", *asked, "--out", str(here), "--dry-run"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and "Choose an empty --out" in said.err
    assert main(["train", *asked, "--restart", "--dry-run"]) == 2
    assert "--restart without --resume" in capsys.readouterr().err


def test_a_resume_is_tried_without_touching_the_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["train", "--task", "q.jsonl", "--model", "tiny", *SHORT.split(), "--out", "run"]
    assert main(asked) == 0
    before = tree(here / "run")
    resume = ["train", "--resume", "run", "--num-steps", "2", "--dry-run"]
    capsys.readouterr()
    assert main([*resume, "--num-slots", "3"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["num_slots"] == 3 and "2 questions held out" in said.err
    assert said.err.startswith("run    run, from step 1\n")
    assert main([*resume, "--seed", "1"]) == 1
    assert "seed is 0 there and 1 here" in capsys.readouterr().err
    shutil.rmtree(here / "tiny")
    assert main(resume) == 0
    assert "run/checkpoints/step_000001 has what it takes" in capsys.readouterr().err
    assert main([*resume, "--restart"]) == 1
    (here / "q.jsonl").rename(here / "moved.jsonl")
    capsys.readouterr()
    assert main(resume) == 1
    assert "--task FOLDER/q.jsonl" in capsys.readouterr().err
    assert main([*resume, "--task", "moved.jsonl"]) == 0
    assert tree(here / "run") == before


def test_a_config_without_a_task_is_said_as_such(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunFolder.create(here / "run", {}).close()
    assert main(["train", "--resume", "run", "--dry-run"]) == 1
    assert "read the run in run: config.json names no task" in capsys.readouterr().err


def test_a_resume_that_cannot_be_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [
        "--num-envs",
        "2",
        "--num-steps",
        "8",
        "--num-minibatches",
        "1",
        "--hidden",
        "4",
        "--eval-every",
        "0",
    ]
    flags += ["--num-frames", "32", "--log-every", "16", "--eval-episodes", "2", "--eval-max-steps", "5"]
    assert main(["train", "ppo", *flags, "--out", "run"]) == 0
    resume = ["train", "--resume", "run", "--dry-run"]
    capsys.readouterr()
    assert main(resume) == 1
    said = capsys.readouterr()
    assert "resume run: it is finished. Go on with --num-frames MORE" in said.err and said.out == ""
    assert main([*resume, "--restart"]) == 0
    assert "run    run, from step 0\nenv " in capsys.readouterr().err
    (checkpoint,) = (here / "run/checkpoints").iterdir()
    (checkpoint / "state.safetensors").write_bytes(b"")
    before = tree(here / "run")
    assert main([*resume, "--num-frames", "64"]) == 1
    assert "state.safetensors is damaged" in capsys.readouterr().err
    assert tree(here / "run") == before


def test_code_is_named_before_it_is_executed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"task": f"{here}/loud.py:Loud", "model": f"{here}/tiny"}
    RunFolder.create(here / "run", config).close()
    assert main(["train", "--resume", "run", "--dry-run"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"executes task {here}/loud.py:Loud, which run/config.json names"
    assert said.index("hello") > 0
