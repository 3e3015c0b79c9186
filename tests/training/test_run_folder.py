"""Run folders: whole files or none, no run overwritten, a rewind drops what is written again."""

import errno
import json
import math
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pyarrow import parquet

from gradhat.errors import RunError
from gradhat.training.run_folder import RunFolder, reserved, whole_file
from gradhat.training.sweeps.plan import locked
from gradhat.training.text.rollouts import write_rollouts
from gradhat.trajectories import Record, Trajectories, Verdict

CONFIG = {"task": "arithmetic", "curriculum": ["a", "b"], "lr": 3e-6}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", CONFIG)


def trajectories() -> Trajectories:
    """Two trajectories: one whose environment speaks in the middle (steps 1 and 2), one of two steps."""
    mask = torch.tensor([[1, 0, 0, 1], [1, 1, 0, 0]]).bool()
    return Trajectories(
        observations=[(5, 6), (5, 6)],
        actions=torch.tensor([[11, 12, 13, 14], [21, 22, 0, 0]]),
        mask=mask,
        logp=torch.tensor([[-0.5, 0.0, 0.0, -1.5], [-0.25, -2.0, 0.0, 0.0]]),
        rewards=torch.zeros(2, 4),
        terminated=torch.zeros(2, 4).bool(),
        truncated=torch.zeros(2, 4).bool(),
        group=torch.tensor([3, 3]),
        version=torch.tensor([7, 7]),
        records=(
            Record("p", "c0", Verdict(1.0, {"format": 0.5}, "right"), "end"),
            Record("p", "c1", Verdict(0.0, {}, "wrong"), "length"),
        ),
    )


def test_the_config_comes_back_with_its_types(run: RunFolder) -> None:
    run.close()
    assert RunFolder.open(run.path).config() == CONFIG


def test_a_folder_that_holds_a_run_is_left_alone(run: RunFolder) -> None:
    with pytest.raises(RunError, match="gradhat train --resume"):
        RunFolder.create(run.path, {"task": "other"})
    assert run.config() == CONFIG


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match=r"thesis\.tex"):
        RunFolder.create(tmp_path, CONFIG)


def test_a_place_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=r"Not a directory\. Choose an --out that can be written"):
        RunFolder.create(tmp_path / "file" / "run", CONFIG)
    with pytest.raises(RunError, match=r"found a file there\. Move it away, or choose another --out"):
        RunFolder.create(tmp_path / "file", CONFIG)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(
        RunError, match=r"found a link to nothing there\. Move it away, or choose another --out"
    ):
        RunFolder.create(tmp_path / "link", CONFIG)
    with pytest.raises(
        RunError, match=r"a link to nothing at .*link, where a folder belongs\. Choose an --out"
    ):
        RunFolder.create(tmp_path / "link/run", CONFIG)


@pytest.mark.parametrize("name", ["checkpoints", "aside"])
def test_a_file_in_the_place_of_a_folder_is_to_be_moved_away(three_steps: RunFolder, name: str) -> None:
    three_steps.close()
    if (folder := three_steps.path / name).exists():
        folder.rename(three_steps.path / "elsewhere")
    folder.touch()
    said = f"found a file at {folder}, where a folder belongs. Move it away, then go on"
    with pytest.raises(RunError, match=said), RunFolder.open(three_steps.path) as run:
        run.rewind(1)


def test_a_folder_in_the_place_of_a_file_is_to_be_moved_away(run: RunFolder) -> None:
    for name in ("metrics.jsonl", "env.json"):
        (run.path / name).mkdir()
    with pytest.raises(
        RunError, match=r"found a folder at .*env\.json, where a file belongs\. Move it away, then"
    ):
        run.write_json("env.json", {})
    for work in (run.read_metrics, lambda: run.append_metrics({"step": 1})):
        with pytest.raises(
            RunError, match=r"a folder at .*metrics\.jsonl, where a file belongs\. Move it away"
        ):
            work()


@pytest.mark.parametrize("text", ["", "[]"])
def test_what_to_do_with_a_file_that_cannot_be_read(run: RunFolder, text: str) -> None:
    for name, todo in (
        ("config.json", "Name the folder of a run"),
        ("env.json", "Repair it, or move it away"),
    ):
        (run.path / name).write_text(text)
        with pytest.raises(RunError, match=rf"{name} cannot be read .*\. {todo}"):
            run.read_json(name)


def test_what_cannot_be_locked_says_what_goes_on(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="give the same command again"), locked(tmp_path / "nowhere"):
        pass


def test_a_folder_without_a_run_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"config\.json cannot be read"):
        RunFolder.open(tmp_path)


def test_two_processes_do_not_train_in_one_folder(run: RunFolder) -> None:
    code = (
        "from pathlib import Path; from gradhat.training.run_folder import RunFolder;"
        f"RunFolder.open(Path({str(run.path)!r}))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert other.returncode != 0
    assert "another process is training there" in other.stderr


def test_a_full_disk_leaves_the_file_that_was_there(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    run.write_json("summary.json", {"steps": 1})

    def full(self: Path, text: str) -> int:
        with self.open("w") as file:
            file.write(text[:3])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RunError, match="No space left on device"):
        run.write_json("summary.json", {"steps": 2})
    assert run.read_json("summary.json") == {"steps": 1}
    assert [p.name for p in run.path.iterdir() if "partial" in p.name] == []


def test_what_a_kill_left_half_written_is_cleared(run: RunFolder) -> None:
    run.close()
    run.rollouts.mkdir()
    (run.rollouts / ".partial-step_000003.parquet").write_text("half")
    (run.checkpoints / ".partial-step_000003").mkdir()
    (run.checkpoints / ".partial-step_000003" / "model.safetensors").write_text("half")
    RunFolder.open(run.path)
    assert list(run.rollouts.iterdir()) == []
    assert list(run.checkpoints.iterdir()) == []


def test_a_failed_write_leaves_no_partial_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), whole_file(tmp_path / "x") as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_metrics_are_strict_json_and_survive_a_cut_line(run: RunFolder) -> None:
    run.append_metrics({"step": 1, "reward": 0.1, "grad_norm": math.nan})
    run.append_metrics({"step": 2, "reward": 0.2})
    with run.metrics.open("a") as file:
        file.write('{"step": 3, "rew')
    lines = run.metrics.read_text().splitlines()
    assert json.loads(lines[0], parse_constant=pytest.fail) == {"step": 1, "reward": 0.1, "grad_norm": None}
    assert [line["step"] for line in run.read_metrics()] == [1, 2]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def three_steps(run: RunFolder) -> RunFolder:
    """A run of three steps that is finished, and in whose metrics a kill cut a line."""
    for step in (1, 2, 3):
        run.append_metrics({"step": step, "reward": 1 / 3})
        write_rollouts(run, step, trajectories(), torch.tensor([0, 1]), None)
        (run.checkpoints / f"step_{step:06d}").mkdir()
        (run.checkpoints / f"step_{step:06d}" / "weights").write_text(str(step))
    run.write_json("summary.json", {"steps": 3})
    with run.metrics.open("ab") as file:
        file.write(b'{"step": 4, "rew\xff')
    return run


def test_a_rewind_moves_what_lies_after_the_step_aside_and_nothing_before(three_steps: RunFolder) -> None:
    run = three_steps
    before = run.metrics.read_bytes().splitlines()
    content = tree(run.path)
    aside = run.rewind(2)
    assert aside == run.path / "aside/1"
    assert run.metrics.read_bytes().splitlines() == before[:2]
    assert sorted(p.name for p in run.rollouts.iterdir()) == ["step_000001.parquet", "step_000002.parquet"]
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["step_000001", "step_000002"]
    assert not (run.path / "summary.json").exists()
    moved = tree(aside)
    later = [
        "checkpoints/step_000003/weights",
        "metrics.jsonl",
        "rollouts/step_000003.parquet",
        "summary.json",
    ]
    assert sorted(moved) == later
    assert moved["metrics.jsonl"].splitlines() == before[2:]
    assert all(moved[name] == content[name] for name in later if name != "metrics.jsonl")


def test_every_rewind_has_a_folder_of_its_own(three_steps: RunFolder) -> None:
    assert three_steps.rewind(2) == three_steps.path / "aside/1"
    assert three_steps.rewind(2) is None, "there is nothing more to move"
    three_steps.append_metrics({"step": 3, "reward": 0.5})
    assert three_steps.rewind(2) == three_steps.path / "aside/2"
    assert [p.name for p in sorted((three_steps.path / "aside").iterdir())] == ["1", "2"]


@pytest.mark.parametrize("moves", range(4))
def test_a_rewind_that_is_cut_off_loses_nothing(
    three_steps: RunFolder, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    """Killed after some of its renames, and run again."""
    run, content = three_steps, tree(three_steps.path)
    rename, done = Path.rename, []

    def dying(self: Path, target: Path) -> Path:
        if len(done) == moves:
            raise KeyboardInterrupt
        done.append(self)
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        if moves < 3:
            with pytest.raises(KeyboardInterrupt):
                run.rewind(2)
    run.rewind(2)
    assert [line["step"] for line in run.read_metrics()] == [1, 2]
    kept = list(tree(run.path).values())
    lines = b"".join(value for name, value in tree(run.path).items() if name.endswith("metrics.jsonl"))
    for name, value in content.items():
        if name == "metrics.jsonl":
            assert all(line in lines for line in value.splitlines())
        else:
            assert value in kept, name


def test_rollouts_keep_every_token_and_the_credit_of_what_was_chosen(run: RunFolder) -> None:
    write_rollouts(run, 12, trajectories(), torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.0, 0.0]]))
    rows = parquet.read_table(run.rollouts / "step_000012.parquet").to_pylist()
    assert rows[0] == {
        "phase": "train",
        "sample": 0,
        "greedy": False,
        "key": None,
        "answer": None,
        "step": 12,
        "group": 3,
        "version": 7,
        "prompt": "p",
        "completion": "c0",
        "reward": 1.0,
        "parts": '{"format": 0.5}',
        "why": "right",
        "stop": "end",
        "prompt_tokens": [5, 6],
        "tokens": [11, 12, 13, 14],
        "logp": [-0.5, 0.0, 0.0, -1.5],
        "adv": None,
        "mask": [True, False, False, True],
    }
    assert rows[1]["tokens"] == [21, 22]
    assert rows[1]["adv"] == [0.5, 0.5]
    assert rows[1]["logp"] == [-0.25, -2.0]


def test_a_name_that_no_disk_takes_is_said_as_such(tmp_path: Path) -> None:
    place = tmp_path / ("a" * 300)
    with pytest.raises(RunError, match="File name too long"), whole_file(place) as partial:
        partial.write_text("text")


@pytest.mark.parametrize("code", [errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_no_other_process(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    with RunFolder.create(tmp_path / "run", CONFIG) as run:
        assert run.config() == CONFIG
    assert f"{tmp_path}/run cannot be locked" in capsys.readouterr().err
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_syncs_files_only_will_do(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, synced = os.fsync, []

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        synced.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with whole_file(tmp_path / "x") as partial:
        partial.write_text("all")
    assert (tmp_path / "x").read_text() == "all" and synced


def test_a_disk_that_cannot_sync_a_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(RunError, match="Input/output error"), whole_file(tmp_path / "x") as partial:
        partial.write_text("all")


def test_two_runs_of_one_second_have_two_folders(tmp_path: Path) -> None:
    base = tmp_path / "runs/ppo-20261201-000000"
    found = [reserved(base) for _ in range(3)]
    assert [path.name for path in found] == [base.name, f"{base.name}-2", f"{base.name}-3"]
    for path in found:
        RunFolder.create(path, CONFIG).close()
