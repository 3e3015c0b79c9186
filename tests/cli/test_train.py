"""`gradhat train`: flags from the config, wrong ones refused, nothing left behind, the same run resumed."""

import io
import json
import shutil
from pathlib import Path

import pytest

from gradhat.cli.main import main
from gradhat.cli.recipes import find
from gradhat.training.run_folder import RunFolder
from gradhat.training.text.config import TrainConfig, from_json, to_json


@pytest.fixture
def tiny(tiny_model: Path, letters_task: str) -> list[str]:
    """Flags of a run that takes a second."""
    flags = f"--task {letters_task} --model {tiny_model} --num-threads 1 --dtype float32"
    flags += " --num-steps 2 --num-prompts 2 --group-size 2 --max-new-tokens 4 --checkpoint-every 1"
    flags += " --eval-questions 2 --final-questions 2 --final-samples 1"
    return flags.split()


def test_a_dry_run_prints_the_resolved_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "train",
                "two_digit_sums",
                "--lr",
                "3e-5",
                "--curriculum",
                "arithmetic",
                "--no-replace-silent",
                "--dry-run",
            ]
        )
        == 0
    )
    printed = from_json(json.loads(capsys.readouterr().out), "here")
    recipe = find()["two_digit_sums"]()
    assert (printed.lr, printed.curriculum, printed.replace_silent) == (3e-5, ("arithmetic",), False)
    assert (printed.task, printed.num_prompts) == (recipe.task, recipe.num_prompts)


def test_files_are_named_from_the_root(
    tiny_model: Path,
    letters_task: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A config with relative paths could not be resumed from another folder.
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model, tmp_path / "tiny")
    (tmp_path / "sub").mkdir()
    for place in ("my_task.py", "sub/other.py"):
        shutil.copy(letters_task.rpartition(":")[0], tmp_path / place)
    tasks = ["my_task.py:Letters", "--curriculum", "sub/other.py:Letters", "arithmetic:digits=1"]
    assert main(["train", "--model", "tiny", "--task", *tasks, "--dry-run"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["task"] == f"{tmp_path}/my_task.py:Letters"
    assert printed["curriculum"] == [f"{tmp_path}/sub/other.py:Letters", "arithmetic:digits=1"]
    assert printed["model"] == f"{tmp_path}/tiny"


def test_a_folder_named_like_an_alias_does_not_hide_the_alias(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m").mkdir()
    assert main(["train", "first_light", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "smollm2-135m"


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (
            ["first_light", "--lrr", "1"],
            ["--lrr: no such flag", "Did you mean --lr", "Known flags: --task --reward", "--dry-run"],
        ),
        (["first_light", "more"], ["more: no such argument"]),
        (["frist_light"], ["Did you mean first_light?", "Recipes: first_light, two_digit_sums"]),
        (["--num-steps", "3"], ["found no task", "gradhat recipes"]),
        (["first_light", "--group-size", "1"], ["group_size=1 with algorithm=rloo", "leave_one_out"]),
        (["first_light", "--lr", "-1"], ["lr=-1.0"]),
    ],
)
def test_a_wrong_command_is_refused(
    argv: list[str], wanted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *argv, "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("ConfigError: ")
    for text in wanted:
        assert text in error


def test_a_value_of_the_wrong_type_names_its_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train", "first_light", "--lr", "fast"])
    assert "Error parsing --lr: could not convert string to float: 'fast'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flag", "value", "kind"),
    [
        ("--task", "arithmetik", "TaskError"),
        ("--task", "reasoning_gym:gdc", "TaskError"),
        ("--model", "gpt-9", "ModelError"),
    ],
)
def test_an_unknown_task_or_model_leaves_nothing_behind(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, value: str, kind: str
) -> None:
    assert main(["train", *tiny, flag, value, "--out", str(tmp_path / "run")]) == 1
    assert capsys.readouterr().err.startswith(f"{kind}: ")
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_trained_evaluated_and_talked_to(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    assert main(["train", *tiny, "--out", str(run)]) == 0
    out = capsys.readouterr().out
    assert "step 0/2  held-out" in out and "step 2/2  held-out" in out
    assert f"gradhat chat {run}" in out
    assert main(["eval", str(run), "--n", "2", "--samples", "1", "--trust"]) == 0
    assert "checkpoints/step_000002\ntask     " in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert main(["chat", str(run), "--max-new-tokens", "2"]) == 0


def test_a_run_is_not_overwritten(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunFolder.create(tmp_path / "run", to_json(TrainConfig())).close()
    assert main(["train", *tiny, "--out", str(tmp_path / "run")]) == 1
    assert f"gradhat train --resume {tmp_path / 'run'}" in capsys.readouterr().err


def test_a_resume_with_other_settings_names_them(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    assert main(["train", *tiny, "--out", run]) == 0
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert main(["train", "--resume", run, "--lr", "3e-5", "--seed", "9"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("RunError: resume")
    assert "lr is 1e-05 there and 3e-05 here, seed is 0 there and 9 here" in error
    assert main(["train", "--resume", run, "--num-steps", "1"]) == 1
    assert "num_steps is 2 there and 1 here" in capsys.readouterr().err
    assert main(["train", "first_light", "--resume", run]) == 1
    assert "task is " in capsys.readouterr().err
    assert main(["train", "--resume", run]) == 1
    assert "--num-steps MORE" in capsys.readouterr().err
    assert main(["train", "--resume", run, "--out", "elsewhere"]) == 2
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before


def test_a_finished_run_goes_on_with_more_steps(tiny: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", *tiny, "--out", str(run)]) == 0
    assert main(["train", "--resume", str(run), "--num-steps", "3"]) == 0
    lines = RunFolder(run).read_metrics()
    # What was measured when two steps were all is not the end any more.
    assert [(line["step"], "final" in line) for line in lines] == [*((n, False) for n in range(4)), (3, True)]
    assert RunFolder(run).config()["num_steps"] == 3
    assert RunFolder(run).read_json("summary.json")["steps"] == 3


def test_a_folder_that_is_no_run_cannot_be_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--resume", str(tmp_path)]) == 1
    assert "config.json cannot be read" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_says_so(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["train", *tiny, "--out", str(tmp_path / "file" / "run")]) == 1
    assert "Not a directory. Choose an --out that can be written." in capsys.readouterr().err


def test_a_file_of_questions_and_reward_functions_reach_the_run(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns, scorer, weights and the sampled tokens: each part of a reward is a metric of its own."""
    rows = [{"ask": f"Say {n}", "gold": str(n)} for n in range(40)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.py").write_text(
        "def tokens(completion_ids, **_):\n    return [len(ids) for ids in completion_ids]\n"
        "async def gold_length(completions, gold, **_):\n    return [len(g) for g in gold]\n"
    )
    monkeypatch.chdir(tmp_path)
    flags = [*tiny[2:], "--task", "q.jsonl", "--question-column", "ask", "--answer-column", "gold"]
    rewards = ["--reward", "mine.py:tokens=0.5", "--reward", "mine.py:gold_length=2", "task=3"]
    assert main(["train", *flags, "--scorer", "contains", *rewards, "--out", "run"]) == 0
    run = RunFolder(tmp_path / "run")
    assert run.config()["task"] == f"{tmp_path}/q.jsonl:question=ask,answer=gold,scorer=contains"
    line = run.read_metrics()[1]
    parts = {name: line[f"rewards/{name}/mean"] for name in ("tokens", "gold_length", "task")}
    assert parts["tokens"] == line["completions/mean_length"] > 0
    assert 1 <= parts["gold_length"] <= 2
    assert line["reward"] == pytest.approx(
        0.5 * parts["tokens"] + 2 * parts["gold_length"] + 3 * parts["task"]
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--task", "arithmetic", "--scorer", "exact"], "flags of a file of questions, and this is none"),
        (["--task", "q.jsonl", "--key-column", "a,b"], "found a comma in the name of a column"),
    ],
)
def test_columns_belong_to_a_file_of_questions(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *flags, "--dry-run"]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["jsonl", "py"])
def test_a_link_to_itself_is_no_file(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = tmp_path / f"loop.{suffix}"
    link.symlink_to(link)
    assert main(["train", "--task", str(link), "--dry-run"]) in (1, 2)
    said = capsys.readouterr().err
    # From Python 3.13 on such a link is its own end, and no file lies there.
    assert said.count("\n") == 1 and ("links that lead nowhere" in said or "there is no" in said)


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("grpo", "train --task TASK --algorithm grpo"),
        ("rloo --task arithmetic", "train --task arithmetic --algorithm rloo"),
        ("reinforce --task=arithmetic", "train --task arithmetic --algorithm reinforce"),
        ("ppo --task q.jsonl", "train --task q.jsonl --algorithm reinforce or rloo or grpo or dr_grpo"),
    ],
)
def test_an_algorithm_of_text_is_a_flag(words: str, advice: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *words.split()]) == 2
    said = capsys.readouterr().err
    assert said.endswith(f"gradhat {advice}\n") and "Did you mean" not in said


def test_a_folder_that_is_taken_is_refused_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(config: object) -> None:
        pytest.fail("it was loaded")

    monkeypatch.setattr("gradhat.training.control.session.prepare", prepare)
    (tmp_path / "thesis.tex").write_text("x")
    assert main(["train", "ppo", "--env", "CartPole-v1", "--out", str(tmp_path)]) == 1
    assert "thesis.tex" in capsys.readouterr().err


def test_a_tilde_is_the_home_folder_in_every_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir("/")
    flags = "--num-envs 2 --num-steps 8 --num-minibatches 1 --hidden 4 --num-frames 32 --log-every 16"
    flags += " --eval-every 0 --eval-episodes 2 --eval-max-steps 5"
    assert main(["train", "ppo", *flags.split(), "--out=~/run"]) == 0
    assert (tmp_path / "run/summary.json").exists()
    assert main(["train", "--resume=~/run", "--num-frames", "48"]) == 0
    assert main(["eval", "~/run", "--episodes", "2"]) == 0
    assert main(["plot", "~/run", "--out=~/curve"]) == 0
    assert (tmp_path / "curve.png").exists()
    assert main(["watch", "~/run", "--max-steps", "2", "--out=~/film.gif"]) == 0
    assert (tmp_path / "film.gif").exists()
