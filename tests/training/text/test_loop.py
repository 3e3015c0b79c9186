"""The loop: a run that goes on is the run that never stopped, whatever a machine or a person did to it."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet
from rich.filesize import decimal

from gradhat.envs.text.task import held_out
from gradhat.errors import RunError, TaskError
from gradhat.training import checkpoint
from gradhat.training.loop import train
from gradhat.training.optim import MasterAdamW
from gradhat.training.run_folder import RunFolder
from gradhat.training.text import session
from gradhat.training.text import session as session_module
from gradhat.training.text.config import TrainConfig, to_json
from gradhat.training.text.rollouts import SCHEMA
from gradhat.training.text.session import Session, prepare

CLOCKS = ("step_time", "tokens_per_second", "time/")


@pytest.fixture(scope="module")
def straight(config: TrainConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps that nothing disturbs."""
    return start(config, tmp_path_factory.mktemp("straight") / "run")


def start(config: TrainConfig, path: Path) -> Path:
    made = prepare(config)
    with RunFolder.create(path, to_json(config)) as run:
        assert train(run, made) == 0
    return path


def resume(config: TrainConfig, path: Path, *, restart: bool = False) -> Path:
    with RunFolder.open(path) as run:
        assert train(run, prepare(config), restart=restart) == 0
    return path


def files(folder: Path) -> dict[str, bytes]:
    """All that a folder holds."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def lines(path: Path) -> list[dict[str, Any]]:
    """Metrics without what the clock decides."""
    read = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.startswith(CLOCKS)} for line in read]


def steps(path: Path) -> list[dict[str, Any]]:
    """The lines of steps: without what was measured before the first and after the last."""
    return [line for line in lines(path) if line["step"] > 0 and "final" not in line]


def assert_same(one: Path, other: Path) -> None:
    """Two runs are equal to the bit: metrics, weights, moments, cursor, every sampled token, its credit."""
    assert lines(one) == lines(other)
    for name in ("model.safetensors", "optimizer.safetensors"):
        file = Path("checkpoints/step_000006") / name
        assert (one / file).read_bytes() == (other / file).read_bytes()
    cursors = [checkpoint.read(path / "checkpoints/step_000006").cursor for path in (one, other)]
    assert cursors[0] == cursors[1]
    for step in range(1, 7):
        tables = [parquet.read_table(path / f"rollouts/step_{step:06d}.parquet") for path in (one, other)]
        assert tables[0].equals(tables[1])
    summaries = [json.loads((path / "summary.json").read_text()) | {"seconds": 0} for path in (one, other)]
    assert summaries[0] == summaries[1]


def launch(config: TrainConfig, path: Path, before: str = "") -> subprocess.Popen[str]:
    """Start `config` in a process of its own, after the statements `before`."""
    code = (
        "import json, os, signal, sys\n"
        "from pathlib import Path\n"
        "from gradhat.training import checkpoint\n"
        "from gradhat.training.loop import train\n"
        "from gradhat.training.text.session import prepare\n"
        "from gradhat.training.text.config import from_json, to_json\n"
        "from gradhat.training.run_folder import RunFolder\n"
        f"{before}\n"
        "config = from_json(json.loads(sys.argv[2]), '')\n"
        "sys.exit(train(RunFolder.create(Path(sys.argv[1]), to_json(config)), prepare(config)))\n"
    )
    command = [sys.executable, "-c", code, str(path), json.dumps(to_json(config))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_step(process: subprocess.Popen[str], path: Path, step: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (path / "metrics.jsonl").exists() and f'{{"step": {step},' in (path / "metrics.jsonl").read_text():
            return
        time.sleep(0.005)
    pytest.fail(f"step {step} was not reached: {process.communicate()[0]}")


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"dtype": "bfloat16"},
        {"algorithm": "grpo", "num_epochs": 2, "kl_coef": 0.1},
        {"system": "Be brief.", "curriculum": ("arithmetic:digits=1",), "seed": 3},
    ],
    ids=["float32", "bfloat16", "reference", "curriculum"],
)
def test_a_run_in_two_halves_is_the_run_in_one(
    config: TrainConfig, tmp_path: Path, change: dict[str, Any]
) -> None:
    # 3 steps are inside the warmup, and not a multiple of the checkpoint interval.
    whole = replace(config, **change)
    one = start(whole, tmp_path / "one")
    two = resume(whole, start(replace(whole, num_steps=3), tmp_path / "two"))
    assert_same(one, two)


def test_a_run_killed_in_the_middle_of_a_checkpoint_loses_only_the_steps_since_the_last(
    config: TrainConfig, straight: Path, tmp_path: Path
) -> None:
    kill = (
        "real = checkpoint.publish\n"
        "def publish(partial, path):\n"
        "    if path.name == 'step_000004':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    real(partial, path)\n"
        "checkpoint.publish = publish"
    )
    killed = tmp_path / "run"
    process = launch(config, killed, kill)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert sorted(p.name for p in (killed / "checkpoints").iterdir()) == [
        ".partial-step_000004",
        "step_000002",
    ]
    assert lines(killed) == lines(straight)[:5]
    assert_same(resume(config, killed), straight)


def test_a_run_killed_at_any_moment_can_be_read_and_resumed(
    config: TrainConfig, straight: Path, tmp_path: Path
) -> None:
    killed = tmp_path / "run"
    process = launch(config, killed)
    wait_for_step(process, killed, 3)
    process.kill()
    process.communicate()
    for line in (killed / "metrics.jsonl").read_text().splitlines():
        json.loads(line)
    assert checkpoint.newest(killed / "checkpoints")[1] == []
    assert_same(resume(config, killed), straight)


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_full_one_before(
    config: TrainConfig, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(config, full_checkpoints=2)
    path = start(replace(config, num_steps=4), tmp_path / "run")
    os.truncate(path / "checkpoints/step_000004/model.safetensors", 1000)
    resume(config, path)
    assert "warning: read the checkpoint" in (out := capsys.readouterr().out)
    assert "step_000004: model.safetensors is damaged" in out
    assert_same(path, straight)


def test_a_run_without_a_whole_checkpoint_is_left_alone_until_it_is_told_to_begin_again(
    config: TrainConfig, straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = start(replace(config, num_steps=2), tmp_path / "run")
    (path / "checkpoints/step_000002/optimizer.safetensors").unlink()
    before = files(path)
    with pytest.raises(RunError, match=r"optimizer\.safetensors is damaged.*found no file.*--restart moves"):
        resume(config, path)
    assert files(path) == before
    resume(config, path, restart=True)
    assert f"aside  {path}/aside/1 holds what was there" in capsys.readouterr().out
    assert_same(path, straight)
    kept = files(path / "aside/1")
    assert kept == {name: content for name, content in before.items() if name in kept}
    left = {"config.json", "env.json"}
    assert set(before) - set(kept) == left


def test_a_run_killed_before_its_first_step_just_begins(
    config: TrainConfig, straight: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    with RunFolder.create(path, to_json(config)) as run:
        run.append_metrics({"step": 0, "held_out/reward": 0.5, "held_out/num_questions": 9.0})
    assert_same(resume(config, path), straight)


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints/step_000002/optimizer.safetensors"])
def test_a_resume_of_what_cannot_be_read_changes_nothing(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = start(replace(config, num_steps=2), tmp_path / "run")
    before, opened = files(path), io.open

    def failing(file: Any, *args: Any, **kwargs: Any) -> Any:
        if Path(file) == path / name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opened(file, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(RunError, match=f"{name}: Input/output error"):
        patch.setattr(io, "open", failing)
        resume(config, path)
    assert files(path) == before


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(
    config: TrainConfig, straight: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    process = launch(replace(config, num_steps=100_000, checkpoint_every=100_000), path)
    wait_for_step(process, path, 1)
    process.send_signal(signal.SIGINT)
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 130, out
    last = lines(path)[-1]["step"]
    assert f"stopped after step {last}. Go on with: gradhat train --resume {path}" in out
    assert "Traceback" not in out
    found, _ = checkpoint.newest(path / "checkpoints")
    assert found is not None and found.step == last
    assert (path / f"rollouts/step_{last:06d}.parquet").exists()


SPARSE = {"checkpoint_every": 100}
"""No checkpoint is due before the end."""


def fail_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, error: BaseException) -> None:
    """Let the function `name` of `owner` raise the `call`-th time it is called."""
    real, count = getattr(owner, name), 0

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == call:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


BREAKS = {
    "a task that raises": (session, "collect", TaskError("score: found no mercy")),
    "too little memory for the gradient": (MasterAdamW, "step", MemoryError("the gradient")),
    "a task that leaves": (session, "collect", SystemExit(3)),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_ends_a_run_in_a_step_leaves_the_step_before_saved(
    config: TrainConfig,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    owner, function, error = BREAKS[name]
    sparse = replace(config, **SPARSE)
    with monkeypatch.context() as patch, pytest.raises(type(error)) as raised:
        fail_at(patch, owner, function, 4, error)
        start(sparse, tmp_path / "run")
    assert raised.value is error
    said = (
        f"step 3 is saved. Once what is wrong is repaired, go on with: gradhat train --resume {tmp_path}/run"
    )
    assert said in capsys.readouterr().out
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step_000003"]
    assert_same(resume(sparse, tmp_path / "run"), straight)


@pytest.mark.parametrize(
    ("owner", "function", "call", "step"),
    [(session, "measure", 2, 3), (session, "write_rollouts", 4, 4), (RunFolder, "append_metrics", 5, 4)],
)
def test_what_fails_after_the_update_leaves_the_step_itself_saved(
    config: TrainConfig,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    function: str,
    call: int,
    step: int,
) -> None:
    """With its line of metrics, as far as it is known: nothing that was learned is lost, and no reward."""
    sparse = replace(config, **SPARSE)
    with monkeypatch.context() as patch, pytest.raises(RunError, match="full"):
        fail_at(patch, owner, function, call, RunError("the disk is full"))
        start(sparse, tmp_path / "run")
    path = tmp_path / "run"
    assert [p.name for p in (path / "checkpoints").iterdir()] == [f"step_{step:06d}"]
    resume(sparse, path)
    for mine, theirs in zip(lines(path), lines(straight), strict=True):
        missing = {key for key in theirs if key.startswith("held_out") and mine["step"] == step}
        known = {key: value for key, value in theirs.items() if key not in missing or function != "measure"}
        assert mine == known
    for name in ("model.safetensors", "optimizer.safetensors"):
        file = Path("checkpoints/step_000006") / name
        assert (path / file).read_bytes() == (straight / file).read_bytes()


def test_a_step_that_half_moved_the_weights_is_not_saved(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second of its two epochs fails: the newest checkpoint is one that was due before."""
    twice = replace(config, algorithm="grpo", num_epochs=2)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        fail_at(patch, MasterAdamW, "step", 8, MemoryError())
        start(twice, tmp_path / "run")
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step_000002"]
    assert "step 2 is saved. Once" in capsys.readouterr().out
    assert_same(resume(twice, tmp_path / "run"), start(twice, tmp_path / "straight"))


@pytest.mark.parametrize(
    ("call", "error"), [(4, MemoryError()), (4, KeyboardInterrupt(2)), (1, MemoryError())]
)
def test_a_run_that_saved_nothing_says_so_and_how_to_begin_again(
    config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    call: int,
    error: BaseException,
) -> None:
    """The second of two epochs fails before any checkpoint: in the second step, or in the first."""
    twice = replace(config, algorithm="grpo", num_epochs=2, num_steps=2, **SPARSE)
    path = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(type(error)):
        fail_at(patch, MasterAdamW, "step", call, error)
        start(twice, path)
    out = capsys.readouterr().out
    assert "no step is saved" in out and "step 0 is saved" not in out
    command = again(path) if call > 2 else f"go on with: gradhat train --resume {path}"
    assert out.rstrip().endswith(command)
    resume(twice, path, restart="--restart" in out)
    assert [line["step"] for line in steps(path)] == [1, 2]


def again(path: Path) -> str:
    """The command of a run that has nothing to go on from."""
    return f"gradhat train --resume {path} --restart"


def test_a_disk_that_is_full_for_the_checkpoint_too_is_said(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        checkpoint, "save_file", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full"))
    )
    with pytest.raises(
        RunError, match=r"step_000002: full.*, with --restart where no checkpoint was written"
    ):
        start(config, tmp_path / "run")
    out = capsys.readouterr().out
    assert "the last whole step could not be saved: write" in out
    assert (
        f"no step is saved. Once what is wrong is repaired, begin again with: {again(tmp_path / 'run')}"
        in out
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_finishes_the_step_saves_and_shows_the_cursor_again(
    config: TrainConfig,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    real, count = session.collect, 0

    def collect(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            os.kill(os.getpid(), number)
        return real(*args, **kwargs)

    sparse, path, terminal = replace(config, **SPARSE), tmp_path / "run", Terminal()
    before = signal.signal(number, signal.SIG_DFL)
    with monkeypatch.context() as patch, RunFolder.create(path, to_json(sparse)) as run:
        patch.setattr(session, "collect", collect)
        patch.setattr(sys, "stdout", terminal)
        assert train(run, prepare(sparse)) == 128 + number
    signal.signal(number, before)
    assert f"stopped after step 3. Go on with: gradhat train --resume {path}" in terminal.getvalue()
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")
    assert_same(resume(sparse, path), straight)


def test_the_first_signal_stops_the_last_measurement_at_once(
    config: TrainConfig, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    made = prepare(config)

    def finish(run: RunFolder) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("it went on")

    monkeypatch.setattr(made, "finish", finish)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with RunFolder.create(path, to_json(config)) as run, pytest.raises(KeyboardInterrupt) as end:
        train(run, made)
    signal.signal(signal.SIGTERM, before)
    assert end.value.args == (signal.SIGTERM,)
    assert_same(resume(config, path), straight)


def test_a_finished_run_asks_for_more_steps(config: TrainConfig, straight: Path) -> None:
    before = (straight / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match=r"all its 6 steps are done.*--num-steps MORE"):
        resume(config, straight)
    assert (straight / "metrics.jsonl").read_bytes() == before
    assert (straight / "summary.json").exists()


def test_a_run_killed_in_its_last_measurement_finishes_it(
    config: TrainConfig, straight: Path, tmp_path: Path
) -> None:
    path = start(config, tmp_path / "run")
    (path / "summary.json").unlink()
    assert_same(resume(config, path), straight)


def test_the_policy_learns(config: TrainConfig, tmp_path: Path) -> None:
    # A gradient with the wrong sign, or one of the wrong samples, makes the reward fall or stand still.
    more = replace(config, num_steps=40, lr=1e-2, checkpoint_every=40, eval_every=40, num_prompts=4)
    rewards = [line["reward"] for line in steps(start(more, tmp_path / "run"))]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.3


def test_the_reference_is_the_model_the_run_started_from(config: TrainConfig, tmp_path: Path) -> None:
    # A reference that moves with the policy has a divergence of zero, before and after a resume.
    near = replace(config, algorithm="grpo", kl_coef=0.1, lr=1e-2, num_steps=3)
    path = resume(replace(near, num_steps=6), start(near, tmp_path / "run"))
    kl = [line["kl"] for line in steps(path)]
    assert abs(kl[0]) < 1e-5
    assert min(kl[3:]) > 0.01


def test_a_gradient_that_is_not_finite_is_skipped_and_reported(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, steps={2, 3})
    path = start(
        replace(config, max_skipped_steps=3, num_steps=4, checkpoint_every=1, keep_checkpoints=9),
        tmp_path / "run",
    )
    weights = [
        (path / f"checkpoints/step_{step:06d}/model.safetensors").read_bytes() for step in (1, 2, 3, 4)
    ]
    assert weights[0] == weights[1] == weights[2] != weights[3]
    assert [line.get("num_skipped") for line in steps(path)] == [0, 1, 2, 0]
    assert lines(path)[2]["grad_norm"] is None
    assert lines(path)[2]["non_finite"] == ["grad_norm"]
    assert "step 2: grad_norm is nan" in capsys.readouterr().out
    assert checkpoint.read(path / "checkpoints/step_000004").cursor["version"] == 2


@pytest.mark.parametrize(
    ("bad", "skipped", "in_a_row", "versions"),
    [
        (set(), [0, 0, 0], [0, 0, 0], [0, 2, 4, 6]),
        ({3}, [0, 1, 0], [0, 0, 0], [0, 2, 3, 5]),  # the first epoch of the second batch
        ({4}, [0, 1, 0], [0, 0, 0], [0, 2, 3, 5]),  # the last one
        ({3, 4, 5, 6}, [0, 2, 2], [0, 1, 2], [0, 2, 2, 2]),
    ],
    ids=["none", "in the middle", "at the end", "all of two batches"],
)
def test_with_two_epochs_every_optimiser_step_counts_for_itself(
    config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bad: set[int],
    skipped: list[int],
    in_a_row: list[int],
    versions: list[int],
) -> None:
    poison(monkeypatch, bad)
    twice = replace(config, algorithm="grpo", num_epochs=2, num_steps=3, eval_every=9, max_replacements=99)
    path = start(twice, tmp_path / "run")
    done = steps(path)
    assert [line["skipped"] for line in done] == skipped
    assert [line["num_updates"] for line in done] == [2 - n for n in skipped]
    assert [line["num_skipped"] for line in done] == in_a_row
    tables = [parquet.read_table(path / f"rollouts/step_{step:06d}.parquet") for step in (1, 2, 3)]
    assert [set(table["version"].to_pylist()) for table in tables] == [{v} for v in versions[:3]]
    assert checkpoint.read(path / "checkpoints/step_000003").cursor["version"] == versions[3]
    for step, version in ((0, versions[0]), (3, versions[3])):
        measured = parquet.read_table(path / f"evals/step_{step:06d}.parquet")
        assert set(measured["version"].to_pylist()) == {version}
    agreement = [line["sampling/sampling_logp_difference/max"] for line in done]
    assert max(agreement) < 1e-4


def test_too_many_of_them_in_a_row_stop_the_run(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, steps={3, 4, 5, 6})
    with pytest.raises(RunError, match="gradient of the last 3 steps was not finite"):
        start(replace(config, max_skipped_steps=3, checkpoint_every=2), tmp_path / "run")
    assert lines(tmp_path / "run")[-1]["step"] == 5
    found, damage = checkpoint.newest(tmp_path / "run/checkpoints")
    assert found is not None and (found.step, damage) == (5, [])


def test_a_resumed_run_still_counts_them(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = replace(config, max_skipped_steps=3)
    poison(monkeypatch, steps={3, 4, 5})
    path = start(replace(patient, num_steps=4), tmp_path / "run")
    with pytest.raises(RunError, match=r"step 5 of .*gradient of the last 3 steps"):
        resume(patient, path)


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Make the gradient of some optimiser steps NaN."""
    accumulate, step, count = MasterAdamW.accumulate, MasterAdamW.step, 1

    def poisoned(self: MasterAdamW) -> None:
        if count in steps:
            next(w.grad for w in self.weights.values() if w.grad is not None).fill_(float("nan"))
        accumulate(self)

    def counted(self: MasterAdamW) -> Any:
        nonlocal count
        count += 1
        return step(self)

    monkeypatch.setattr(MasterAdamW, "accumulate", poisoned)
    monkeypatch.setattr(MasterAdamW, "step", counted)


def test_what_is_measured_was_never_trained_on(straight: Path) -> None:
    for file in (straight / "rollouts").iterdir():
        assert not any(held_out(prompt) for prompt in parquet.read_table(file)["prompt"].to_pylist())
    summary = json.loads((straight / "summary.json").read_text())
    assert summary["questions"] == 6
    assert summary["before"] == {key: value for key, value in lines(straight)[0].items() if key != "step"}


def test_every_completion_of_a_held_out_question_is_kept(
    config: TrainConfig, straight: Path, tmp_path: Path
) -> None:
    """Before, during and after, with what was sampled to the token; a resume doubles none and loses none."""
    again = resume(config, start(replace(config, num_steps=3), tmp_path / "run"))
    summary = json.loads((straight / "summary.json").read_text())
    for path in (straight, again):
        names = sorted(file.name for file in (path / "evals").iterdir())
        rows = [row for name in names for row in parquet.read_table(path / "evals" / name).to_pylist()]
        assert all(held_out(row["key"]) for row in rows)
        for phase, greedy, key in (
            ("before", False, "before"),
            ("after", False, "after"),
            ("after", True, "after_greedy"),
        ):
            step = 0 if phase == "before" else 6
            found = [r for r in rows if (r["step"], r["phase"], r["greedy"]) == (step, phase, greedy)]
            assert len(found) == 6 * (1 if greedy else config.final_samples)
            mean = sum(r["reward"] for r in found) / len(found)
            assert mean == pytest.approx(summary[key]["held_out/reward"])
            assert {(r["group"], r["sample"]) for r in found} == {
                (group, sample) for group in range(6) for sample in range(len(found) // 6)
            }
            assert all(len(r["tokens"]) == len(r["logp"]) == len(r["mask"]) > 0 for r in found)
    schemas = [
        parquet.read_schema(file).remove_metadata()
        for room in ("rollouts", "evals")
        for file in (straight / room).iterdir()
    ]
    assert schemas and all(schema.equals(schemas[0]) for schema in schemas)
    assert schemas[0].names == list(SCHEMA)


def test_what_is_measured_at_the_end_is_the_last_line_once(
    config: TrainConfig, straight: Path, tmp_path: Path
) -> None:
    """A plot draws it then, and says what the summary and the table of a sweep say."""
    *_, last = lines(straight)
    summary = json.loads((straight / "summary.json").read_text())
    assert last == {"step": 6, "final": 1.0} | summary["after"] | {
        key.replace("held_out/", "held_out_greedy/"): value for key, value in summary["after_greedy"].items()
    }
    # Killed between that line and the summary, or after half of the line.
    for cut in (0, 20):
        run = tmp_path / f"killed{cut}"
        shutil.copytree(straight, run)
        (run / "summary.json").unlink()
        text = (run / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text(text[: len(text) - cut])
        assert_same(resume(config, run), straight)


def test_all_seconds_of_a_run_are_those_of_its_lines(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a part that no line counts: the Parquet file, a measurement, a checkpoint."""
    now = [0.0]

    def slowly(of: Any, name: str, seconds: float) -> None:
        function = getattr(of, name)

        def slow(*args: Any, **kwargs: Any) -> Any:
            now[0] += seconds
            return function(*args, **kwargs)

        monkeypatch.setattr(of, name, slow)

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    for of, name, seconds in (
        (session_module, "_sample", 1.0),
        (session_module, "write_rollouts", 10.0),
        (session_module, "_measure", 100.0),
        (Session, "save", 1000.0),
        (RunFolder, "append_metrics", 10_000.0),
    ):
        slowly(of, name, seconds)
    path = start(replace(config, num_steps=3, eval_every=2, checkpoint_every=2), tmp_path / "run")
    read = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step_time"] for line in read] == [100, 10_011, 10_111, 11_011, 11_200]
    for line in read:
        assert sum(seconds for key, seconds in line.items() if key.startswith("time/")) == line["step_time"]
    assert read[3]["time/save"] == 1000 and read[2]["time/evaluate"] == 100 and read[1]["time/write"] == 10
    total = 100 + 3 * 11 + 3 * 100 + 2 * 1000 + 5 * 10_000
    assert json.loads((path / "summary.json").read_text())["seconds"] == total == now[0]


def test_metrics_agree_with_the_rollouts(straight: Path) -> None:
    for line in steps(straight):
        table = parquet.read_table(straight / f"rollouts/step_{line['step']:06d}.parquet")
        rewards = table["reward"].to_pylist()
        assert line["reward"] == pytest.approx(sum(rewards[:8]) / 8)
        assert line["sampled/reward"] == pytest.approx(sum(rewards) / len(rewards))
        logp = [x for row in table["logp"].to_pylist()[:8] for x in row]
        assert line["entropy"] == pytest.approx(-sum(logp) / len(logp), rel=1e-5)
        chosen = [adv for adv in table["adv"].to_pylist() if adv is not None]
        assert len(chosen) == 8
        assert len(rewards) == 8 + 4 * line["num_replaced"]
        assert set(table["version"].to_pylist()) == {line["step"] - 1}
    assert steps(straight)[-1]["num_tokens"] == sum(
        len(row["prompt_tokens"]) + len(row["tokens"])
        for step in range(1, 7)
        for row in parquet.read_table(straight / f"rollouts/step_{step:06d}.parquet").to_pylist()
    )


def test_the_metrics_have_their_standard_names(straight: Path) -> None:
    line = json.loads((straight / "metrics.jsonl").read_text().splitlines()[3])
    wanted = "reward reward_std frac_reward_zero_std completions/mean_length completions/clipped_ratio "
    wanted += "entropy grad_norm num_tokens step_time learning_rate time/sample time/update "
    wanted += "held_out/accuracy held_out/accuracy_low held_out/accuracy_high held_out/num_questions "
    wanted += "held_out/reward held_out/reward_low held_out/reward_high "
    wanted += "diagnostics/surrogate_loss sampling/sampling_logp_difference/mean"
    assert set(wanted.split()) <= set(line)
    assert not any("loss" in key for key in line if not key.startswith("diagnostics/"))


def test_the_learning_rate_warms_up(straight: Path) -> None:
    rates = [line["learning_rate"] for line in steps(straight)]
    assert rates == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3, 1e-3])


def test_a_task_without_held_out_questions_is_refused(config: TrainConfig, tmp_path: Path) -> None:
    file = tmp_path / "one.py"
    file.write_text(
        "from gradhat.envs.text.task import Question\n"
        "class One:\n"
        "    def question(self, seed): return Question('Say a', 'a')\n"
        "    def score(self, question, completion): return float('a' in completion)\n"
    )
    assert not held_out("Say a")
    with pytest.raises(TaskError, match="more distinct questions"):
        start(replace(config, task=f"{file}:One"), tmp_path / "run")


def test_another_machine_is_noted_when_a_run_goes_on(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = start(replace(config, num_steps=1), tmp_path / "run")
    env = json.loads((path / "env.json").read_text())
    (path / "env.json").write_text(json.dumps({**env, "processor": "another"}))
    resume(replace(config, num_steps=2), path)
    assert (
        "warning: processor changed since the run stopped: it goes on, but not to the bit"
        in capsys.readouterr().out
    )
    assert json.loads((path / "env.json").read_text())["earlier"][0]["processor"] == "another"


@pytest.mark.parametrize(
    ("kept", "said"), [(0, "has no line"), (2, "begins with step 3"), (None, "has no line")]
)
def test_a_run_that_lost_its_first_lines_goes_on_and_says_so(
    kept: int | None,
    said: str,
    config: TrainConfig,
    straight: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = shutil.copytree(straight, tmp_path / "run")
    (path / "summary.json").unlink()
    metrics = path / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.unlink() if kept is None else metrics.write_text("".join(lines[3 : 3 + kept]))
    resume(config, path)
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and f"{metrics} {said}" in warnings[0]
    wanted = json.loads((straight / "summary.json").read_text()) | {"seconds": 0}
    assert wanted.pop("before")
    assert json.loads((path / "summary.json").read_text()) | {"seconds": 0} == wanted


@pytest.mark.parametrize(
    ("free", "said"), [(10**12, "1.0 TB free\n"), (10**5, "100.0 kB free: too little, make room")]
)
def test_a_run_says_at_its_start_what_its_checkpoints_take(
    config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    free: int,
    said: str,
) -> None:
    def usage(place: Path) -> Any:
        return shutil._ntuple_diskusage(free, 0, free)  # type: ignore[attr-defined]

    monkeypatch.setattr(shutil, "disk_usage", usage)
    made = prepare(config)
    size = 4 * sum(parameter.numel() for parameter in made.engine.model.parameters())
    with RunFolder.create(tmp_path / "run", to_json(config)) as run:
        assert train(run, made) == 0
    one, other = decimal(3 * size), decimal(size)
    wanted = (
        f"disk   {decimal(4 * size)} for checkpoints ({one} + {other}), {one} more while one is written; "
    )
    out = capsys.readouterr().out
    assert f"{wanted}{said}" in out
    assert out.index("disk ") < out.index("step 0/")
    kept = sum(file.stat().st_size for file in (tmp_path / "run/checkpoints").rglob("*.safetensors"))
    assert kept == pytest.approx(4 * size, rel=0.1)


def test_what_a_run_holds_already_is_room_for_what_replaces_it(
    config: TrainConfig,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = shutil.copytree(straight, tmp_path / "run")
    size = sum(file.stat().st_size for file in path.glob("checkpoints/step_000006/model.safetensors"))

    def usage(place: Path) -> Any:
        return shutil._ntuple_diskusage(0, 0, 4 * size)  # type: ignore[attr-defined]

    monkeypatch.setattr(shutil, "disk_usage", usage)
    resume(replace(config, num_steps=7), path)
    out = capsys.readouterr().out
    assert "more while one is written" in out and "too little" not in out


def test_weights_alone_are_nothing_to_go_on_from(config: TrainConfig, tmp_path: Path) -> None:
    path = start(config, tmp_path / "run")
    newest, before = checkpoint.steps(path / "checkpoints")
    os.truncate(newest / "optimizer.safetensors", 7)
    kept = files(path)
    with pytest.raises(RunError) as raised:
        resume(replace(config, num_steps=8), path)
    assert f"{newest}: optimizer.safetensors is damaged" in str(raised.value)
    assert f"{before} holds weights only" in str(raised.value) and "--restart" in str(raised.value)
    assert files(path) == kept


def test_the_credit_of_a_completion_stands_beside_it(straight: Path) -> None:
    replaced = 0
    for line in steps(straight):
        rows = parquet.read_table(straight / f"rollouts/step_{line['step']:06d}.parquet").to_pylist()
        replaced += line["num_replaced"]
        for row in rows:
            group = [other for other in rows if other["group"] == row["group"]]
            others = [other["reward"] for other in group if other["sample"] != row["sample"]]
            if row["adv"] is not None:
                assert row["adv"][0] == pytest.approx(row["reward"] - sum(others) / len(others), abs=1e-6)
    assert replaced


def test_the_reference_has_the_temperature_of_the_policy(config: TrainConfig, tmp_path: Path) -> None:
    warm = replace(config, algorithm="grpo", kl_coef=0.1, temperature=0.5, num_steps=1)
    assert abs(steps(start(warm, tmp_path / "run"))[0]["kl"]) < 1e-5
