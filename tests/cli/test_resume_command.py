"""`gradhat train --resume`: settings that change no result, files that have moved, what is said of others."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import pytest
from safetensors.torch import load_file, save_file

from gradhat.cli.main import main
from gradhat.training import checkpoint
from gradhat.training.run_folder import RunFolder

SHORT = "--num-steps 2 --num-prompts 2 --group-size 2 --max-new-tokens 4 --checkpoint-every 1 --num-threads 1"
SHORT += " --eval-questions 2 --final-questions 2 --final-samples 1 --dtype float32 --eval-every 99"
CONTROL = (
    "train ppo --env pushing_copy:PushingCopy-v0 --num-envs 2 --num-steps 8 --num-minibatches 1 --hidden 4"
)
CONTROL += " --num-frames 64 --log-every 32 --eval-every 0 --eval-episodes 2 --eval-max-steps 5"
NOT_EXACT = "it goes on, but not to the bit"
OTHER = "may not compare with what was before"
TASK = """
import random

from gradhat.envs.text.task import Question


class Letters:
    def question(self, seed):
        return Question(f"Say {random.Random(seed).randrange(1000)}", "a")

    def score(self, question, completion):
        return float(any(letter in "abcdefghijklm" for letter in completion))


class Others(Letters):
    pass


def brief(completions, **_):
    return [-float(len(text)) for text in completions]
"""
Resume = Callable[..., tuple[int, str]]


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path) -> Path:
    """A folder with a task file and a model of its own."""
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "old" / "mine.py").write_text(TASK)
    shutil.copytree(tiny_model, tmp_path / "old" / "model")
    return tmp_path


@pytest.fixture
def run(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Path]:
    """Train for two steps with further flags."""

    def made(*flags: str) -> Path:
        path = place / "run"
        task, model = place / "old" / "mine.py", place / "old" / "model"
        argv = ["train", "--task", f"{task}:Letters", "--model", str(model), *SHORT.split(), *flags]
        assert main([*argv, "--out", str(path)]) == 0
        capsys.readouterr()
        return path

    return made


@pytest.fixture
def resumed(capsys: pytest.CaptureFixture[str]) -> Resume:
    """Go on with a run; return the exit code and all that was said."""

    def resume(path: Path, *flags: str) -> tuple[int, str]:
        code = main(["train", "--resume", str(path), *flags])
        said = capsys.readouterr()
        return code, said.out + said.err

    return resume


def lines(path: Path) -> list[dict[str, Any]]:
    clocks = ("step_time", "tokens_per_second", "time/")
    return [
        {k: v for k, v in line.items() if not k.startswith(clocks)} for line in RunFolder(path).read_metrics()
    ]


def moved(place: Path, name: str) -> Path:
    return Path(shutil.move(place / "old" / name, place / "new" / name))


def test_settings_that_change_no_result_may_be_given_anew(run: Any, resumed: Resume) -> None:
    path = run()
    anew = {"checkpoint_every": 3, "keep_checkpoints": 1, "max_unjudged": 3, "max_skipped_steps": 2}
    flags = [word for name, value in anew.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    code, said = resumed(path, "--num-steps", "3", *flags)
    assert code == 0 and NOT_EXACT not in said and OTHER not in said
    config = RunFolder(path).config()
    assert {name: config[name] for name in anew} == anew
    assert [p.name for p in checkpoint.steps(path / "checkpoints")] == ["step_000003"]


def test_rounding_is_said(run: Any, resumed: Resume) -> None:
    path = run()
    code, said = resumed(path, "--num-steps", "3", "--num-slots", "2", "--token-budget", "60")
    assert code == 0 and said.count(NOT_EXACT) == 1
    assert f"warning: token_budget, num_slots changed since the run stopped: {NOT_EXACT}" in said
    config = RunFolder(path).config()
    assert (config["num_slots"], config["token_budget"]) == (2, 60)


def test_what_changes_results_is_refused_as_ever(run: Any, resumed: Resume) -> None:
    path = run()
    before = (path / "config.json").read_bytes()
    code, said = resumed(path, "--num-steps", "3", "--num-slots", "2", "--seed", "9")
    assert code == 1 and "another config: seed is 0 there and 9 here. Resume" in said
    code, said = resumed(path, "--num-steps", "1")
    assert code == 1 and "num_steps is 2 there and 1 here. --num-steps may be larger than there, not" in said
    assert (path / "config.json").read_bytes() == before


def test_a_task_file_that_has_moved_is_named_anew(place: Path, run: Any, resumed: Resume) -> None:
    path = run()
    file = moved(place, "mine.py")
    code, said = resumed(path, "--num-steps", "3")
    assert code == 1
    assert (
        f"RunError: resume {path}: its task is to be in {place}/old/mine.py; found nothing there. Put it "
        f"back, or name its new place: gradhat train --resume {path} --task FOLDER/mine.py:Letters"
    ) in said
    code, said = resumed(path, "--num-steps", "3", "--task", f"{file}:Letters")
    assert code == 0 and OTHER not in said
    # Whoever names code answers for it: the run's config has not named this.
    assert "executes task" not in said
    assert RunFolder(path).config()["task"] == f"{file}:Letters"
    code, said = resumed(path, "--num-steps", "4")
    assert code == 0 and f"executes task {file}:Letters" in said


def test_rewards_and_levels_that_have_moved_are_named_anew(place: Path, run: Any, resumed: Resume) -> None:
    old = place / "old" / "mine.py"
    path = run("--reward", "task=2", "--reward", f"{old}:brief=0.1", "--curriculum", f"{old}:Letters")
    task, file = f"{place / 'new' / 'mine.py'}:Letters", moved(place, "mine.py")
    code, said = resumed(path, "--num-steps", "3", "--task", task)
    assert code == 1 and "--reward task=2 FOLDER/mine.py:brief=0.1" in said
    rewards = ["--reward", "task=2", "--reward", f"{file}:brief=0.1"]
    code, said = resumed(path, "--num-steps", "3", "--task", task, *rewards)
    assert code == 1 and "--curriculum FOLDER/mine.py:Letters" in said
    flags = ["--num-steps", "3", "--task", task, *rewards, "--curriculum", task]
    other = [word.replace("0.1", "0.2") for word in flags]
    code, said = resumed(path, *other)
    assert code == 1 and "another config: reward is" in said
    code, said = resumed(path, *flags)
    assert code == 0 and OTHER not in said


def test_another_task_is_no_moved_one(place: Path, run: Any, resumed: Resume) -> None:
    path = run()
    other = place / "new" / "mine.py"
    other.write_text(TASK + "# edited\n")
    for task in (f"{other}:Letters", f"{place}/old/mine.py:Others", "arithmetic"):
        code, said = resumed(path, "--num-steps", "3", "--task", task)
        assert code == 1 and "another config: task is" in said, task


def test_an_edited_task_is_said_and_the_run_goes_on(place: Path, run: Any, resumed: Resume) -> None:
    path = run()
    (place / "old" / "mine.py").write_text(TASK.replace("Say", "Tell"))
    code, said = resumed(path, "--num-steps", "3")
    assert code == 0
    (line,) = [line for line in said.splitlines() if OTHER in line]
    assert line.startswith("warning: task file (") and "held-out questions (" in line
    # It is said once.
    code, said = resumed(path, "--num-steps", "4")
    assert code == 0 and OTHER not in said


def test_a_model_that_is_gone_is_not_needed_again(place: Path, run: Any, resumed: Resume) -> None:
    path = run("--keep-checkpoints", "1")
    straight = Path(shutil.copytree(path, place / "straight"))
    assert resumed(straight, "--num-steps", "5")[0] == 0
    shutil.rmtree(place / "old" / "model")
    code, said = resumed(path, "--num-steps", "3")
    assert (
        code == 0 and f"{place}/old/model cannot be had any more: {path}/checkpoints/step_000002 has" in said
    )
    # The checkpoint that stood in is gone as well by then.
    code, said = resumed(path, "--num-steps", "5")
    assert code == 0 and lines(path)[-1]["step"] == 5
    newest = [checkpoint.steps(p / "checkpoints")[0] for p in (path, straight)]
    one, other = ({f.name: f.read_bytes() for f in folder.iterdir()} for folder in newest)
    assert one == other
    # To begin again it takes the model itself.
    code, said = resumed(path, "--restart", "--num-steps", "6")
    assert code == 1 and "ModelError" in said
    assert lines(path)[-1]["step"] == 5


def test_a_reference_that_is_gone_is_asked_for(place: Path, run: Any, resumed: Resume) -> None:
    path = run("--algorithm", "grpo", "--kl-coef", "0.1")
    folder = moved(place, "model")
    code, said = resumed(path, "--num-steps", "3")
    assert code == 1
    assert f"ModelError: resume {path}: with kl_coef=0.1 it needs the model that it started from" in said
    assert f"gradhat train --resume {path} --model FOLDER" in said
    code, said = resumed(path, "--num-steps", "3", "--model", str(folder))
    assert code == 0 and OTHER not in said
    assert RunFolder(path).config()["model"] == str(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] *= 1.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    code, said = resumed(path, "--num-steps", "4")
    assert code == 0 and "warning: model (" in said and OTHER in said


def test_a_model_is_compared_with_the_last_that_was_there(place: Path, run: Any, resumed: Resume) -> None:
    path = run()
    folder = moved(place, "model")
    assert resumed(path, "--num-steps", "3")[0] == 0
    assert "model" not in RunFolder(path).read_json("env.json")["sources"]
    other = Path(shutil.copytree(path, place / "other"))
    code, said = resumed(path, "--num-steps", "4", "--model", str(folder))
    assert code == 0 and OTHER not in said
    (folder / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text() + "\n")
    code, said = resumed(other, "--num-steps", "4", "--model", str(folder))
    assert code == 0 and "warning: model (" in said


# --- control runs ------------------------------------------------------------------------------------------


@pytest.fixture
def pushed(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run in a world of one's own, whose module lies in the present folder."""
    source = Path(__file__).parent.parent / "training" / "control" / "pushing.py"
    text = source.read_text().replace("pushing:", "pushing_copy:").replace("Pushing-v0", "PushingCopy-v0")
    (tmp_path / "pushing_copy.py").write_text(text)
    monkeypatch.delitem(gymnasium.registry, "PushingCopy-v0", raising=False)
    monkeypatch.delitem(sys.modules, "pushing_copy", raising=False)
    monkeypatch.chdir(tmp_path)
    assert main([*CONTROL.split(), "--out", "run"]) == 0
    capsys.readouterr()
    return tmp_path


def test_control_settings_that_change_no_result_may_be_given_anew(pushed: Path, resumed: Resume) -> None:
    flags = ["--num-frames", "128", "--keep-checkpoints", "9", "--checkpoint-every", "32"]
    code, said = resumed(pushed / "run", *flags)
    assert code == 0 and NOT_EXACT not in said and OTHER not in said
    config = RunFolder(pushed / "run").config()
    assert (config["keep_checkpoints"], config["checkpoint_every"]) == (9, 32)
    assert len(checkpoint.steps(pushed / "run" / "checkpoints")) == 3
    code, said = resumed(pushed / "run", "--num-frames", "160", "--num-threads", "2")
    assert code == 0 and f"threads changed since the run stopped: {NOT_EXACT}" in said
    code, said = resumed(pushed / "run", "--num-frames", "192", "--eval-episodes", "3")
    assert code == 1 and "eval_episodes is 2 there and 3 here" in said


def test_another_environment_of_the_same_name_is_said(pushed: Path, resumed: Resume) -> None:
    file = pushed / "pushing_copy.py"
    file.write_text(file.read_text() + "\n")
    code, said = resumed(pushed / "run", "--num-frames", "128")
    assert code == 0 and "warning: module pushing_copy (" in said and OTHER in said
    env = RunFolder(pushed / "run").read_json("env.json")
    env["packages"]["gymnasium"] = "0.1"
    (pushed / "run" / "env.json").write_text(json.dumps(env))
    code, said = resumed(pushed / "run", "--num-frames", "160")
    assert code == 0 and "warning: gymnasium (0.1 → " in said and NOT_EXACT in said and OTHER not in said
