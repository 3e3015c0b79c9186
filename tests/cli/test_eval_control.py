"""`gradhat eval` of a control run: greedy episodes of its newest checkpoint."""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from gradhat.cli.main import main
from gradhat.intervals import interquartile_mean, mean_interval, number, written
from gradhat.training import checkpoint
from gradhat.training.control.algorithms import read
from gradhat.training.control.session import STATE, playing
from gradhat.training.run_folder import RunFolder
from gradhat.training.seed import derive


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("eval") / "run"
    flags = "--num-envs 2 --num-steps 8 --hidden 8 --num-frames 64 --log-every 32 --eval-every 0"
    flags += " --eval-episodes 4 --eval-max-steps 30 --normalize-observations"
    assert main(["train", "a2c", "--env", "CartPole-v1", *flags.split(), "--out", str(run)]) == 0
    return run


def test_it_prints_the_numbers_of_the_newest_checkpoint(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    with playing(trained, replace(read(trained), eval_episodes=4)) as session:
        returns = session.play(derive(7, "eval")).returns
    interval = mean_interval(returns)
    assert main(["eval", str(trained), "--episodes", "4", "--seed", "7"]) == 0
    printed = capsys.readouterr().out
    assert f"{trained}, step 2\n" in printed and "CartPole-v1: 4 episodes, greedy" in printed
    scale = max(returns)
    assert f"mean {written(interval, 4, scale)}\n" in printed and "[" in written(interval, 4, scale)
    middle, least = number(interquartile_mean(returns), scale), number(min(returns), scale)
    assert f"interquartile mean {middle}, least {least}" in printed
    assert main(["eval", str(trained), "--episodes", "4", "--seed", "8"]) == 0
    assert capsys.readouterr().out != printed
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before, "nothing is written"


def test_cut_episodes_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--env CliffWalking-v1 --num-envs 2 --num-frames 20 --eval-episodes 1 --eval-max-steps 6 --out"
    run = tmp_path / "run"
    assert main(["train", "sarsa", *flags.split(), str(run)]) == 0
    capsys.readouterr()
    assert main(["eval", str(run), "--episodes", "3"]) == 0
    assert "3 episodes were cut after 6 steps" in capsys.readouterr().out
    assert main(["eval", str(run), "--episodes", "1"]) == 0
    printed = capsys.readouterr().out
    assert "mean -6.00 (n=1)\n" in printed and not math.isnan(float(printed.split("mean ")[1].split()[0]))


def test_what_cannot_be_measured_is_said(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunFolder.create(tmp_path / "new", RunFolder(trained).config()).close()
    RunFolder.create(tmp_path / "odd", RunFolder(trained).config()).close()
    (tmp_path / "odd" / "checkpoints").rmdir()
    (tmp_path / "odd" / "checkpoints").touch()
    for words, code, wanted in (
        ([tmp_path / "new"], 1, "found none yet. Train on first: gradhat train --resume"),
        (
            [tmp_path / "odd"],
            1,
            f"found a file at {tmp_path / 'odd/checkpoints'}, where a folder belongs. Move it away.",
        ),
        ([trained, "--episodes", "0"], 2, "--episodes 0: found no episode to play"),
        ([trained, "--task", "arithmetic"], 2, "--task: no such flag"),
    ):
        assert main(["eval", *map(str, words)]) == code
        error = capsys.readouterr().err
        assert wanted in error and "Traceback" not in error


@pytest.mark.parametrize("verb", ["eval", "watch"])
def test_an_environment_with_other_spaces_is_named_with_those_that_the_policy_knows(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    assert main([verb, str(trained), "--env", "Acrobot-v1"]) == 2
    said = capsys.readouterr().err
    assert f"use the policy of {trained} in Acrobot-v1: it was trained in CartPole-v1 (4 numbers " in said
    assert "(4 numbers seen, 2 actions), but Acrobot-v1 has 6 numbers seen, 3 actions. Name an --env" in said
    assert "size mismatch" not in said
    # Where its own environment is code that nobody trusts, or is gone, nobody looks at its spaces.
    for own in ("no_such_module:Own-v0", "Gone-v0"):
        run = Path(shutil.copytree(trained, tmp_path / own))
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps(config | {"env": own}))
        assert main([verb, str(run), "--env", "Acrobot-v1"]) == 2
        said = capsys.readouterr().err
        assert f"it was trained in {own}, but Acrobot-v1 has 6 numbers seen, 3 actions" in said


@pytest.mark.parametrize(
    ("algorithm", "own", "other"),
    [
        ("q_learning", "FrozenLake-v1", "CliffWalking-v1"),
        ("dqn", "CartPole-v1", "Acrobot-v1"),
        ("sac", "Pendulum-v1", "MountainCarContinuous-v0"),
    ],
)
def test_other_spaces_are_named_whatever_the_policy_is_made_of(
    algorithm: str, own: str, other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    flags = "--num-envs 1 --num-frames 20 --eval-episodes 1 --eval-max-steps 6"
    flags += "" if algorithm == "q_learning" else " --first-frames 10 --hidden 4"
    assert main(["train", algorithm, "--env", own, *flags.split(), "--out", str(run)]) == 0
    capsys.readouterr()
    assert main(["eval", str(run), "--env", other, "--episodes", "1"]) == 2
    assert f"in {other}: it was trained in {own} (" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (
            lambda name, t: t * math.nan if name.startswith("weights/") else t,
            "found weights that are not finite",
        ),
        (lambda name, t: t.half() if t.is_floating_point() else t, "torch.float16, wanted torch.float32"),
    ],
    ids=["nan", "half"],
)
def test_a_whole_checkpoint_that_no_policy_comes_from_is_refused_whoever_asks(
    change: Callable[[str, Tensor], Tensor],
    wanted: str,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    found = checkpoint.read(run / "checkpoints/step_000002")
    tensors = {name: change(name, tensor) for name, tensor in load_file(found.path / STATE).items()}
    for step in (1, 2):
        checkpoint.save(
            run / "checkpoints",
            step,
            lambda path: checkpoint.save_tensors(tensors, path / STATE),
            found.cursor,
            keep=2,
        )
    for words in (["eval", str(run)], ["train", "--resume", str(run), "--num-frames", "96"]):
        assert main(words) == 1
        said = capsys.readouterr().err
        assert f"use the checkpoint {found.path}: found" in said and wanted in said


def test_the_memory_and_the_environments_of_training_are_not_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A memory and a number of environments that no machine has, and a world that cannot be restored."""
    run = tmp_path / "run"
    flags = (
        "--num-envs 2 --capacity 64 --first-frames 8 --hidden 8 --num-frames 64 --log-every 32 --eval-every 0"
    )
    flags += " --eval-episodes 2 --eval-max-steps 30"
    assert main(["train", "dqn", "--env", "CartPole-v1", *flags.split(), "--out", str(run)]) == 0
    assert main(["eval", str(run), "--episodes", "2"]) == 0
    printed = capsys.readouterr().out.splitlines()[-4:]
    config = json.loads((run / "config.json").read_text())
    config["learning"]["memory"]["capacity"], config["num_envs"] = 10**13, 10**9
    (run / "config.json").write_text(json.dumps(config))
    state = load_file(file := run / "checkpoints/step_000002" / STATE)
    checkpoint.save_tensors({k: t for k, t in state.items() if "world" not in k and "replay" not in k}, file)
    sums = json.loads((file.parent / "state.json").read_text())
    sums["files"][STATE] = checkpoint._sum(file)  # pyright: ignore[reportPrivateUsage]
    (file.parent / "state.json").write_text(json.dumps(sums))
    assert main(["eval", str(run), "--episodes", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[-4:] == printed
