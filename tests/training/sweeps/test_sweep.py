"""Processes side by side: resumed, failing, stopped, killed. `fake_train.py` stands in for the training."""

import io
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import MethodType

import pytest

from gradhat import intervals
from gradhat.errors import ConfigError, RunError
from gradhat.training.sweeps import run as sweeping
from gradhat.training.sweeps.board import Board
from gradhat.training.sweeps.grid import Point
from gradhat.training.sweeps.plan import Plan, begun, keys_of, locked, plan
from gradhat.training.sweeps.run import Child, Ended, Sweep

FAKE = Path(__file__).with_name("fake_train.py")
TRAIN = (sys.executable, str(FAKE))


def points(seeds: Sequence[int], lrs: Sequence[float] = (1.0,), **options: object) -> list[Point]:
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return [
        Point(
            ("--lr", str(lr), "--seed", str(seed), *words),
            {"env": "fake", "num_frames": options.get("steps", 2), "lr": lr, "seed": seed, "more": {"x": 1}},
        )
        for lr in lrs
        for seed in seeds
    ]


def planned(folder: Path, found: list[Point], keys: Sequence[str] = ("seed",)) -> Plan:
    with begun(plan(folder, found, keys), ["fake"]) as made:
        return made


def ran(found: Plan, jobs: int = 2) -> tuple[Ended, str]:
    out = io.StringIO()
    ended = Sweep(found, jobs, Board(out), TRAIN).run()
    return ended, out.getvalue()


def log(found: Plan, name: str) -> str:
    return (found.folder / "logs" / f"{name}.log").read_text()


# --- the plan ----------------------------------------------------------------------------------------------


def test_a_plan_gives_every_run_a_folder_and_is_written(tmp_path: Path) -> None:
    found = planned(tmp_path / "s", points([0, 1], [1.0, 2.0]), ["lr", "seed"])
    assert [cell.name for cell in found.cells] == [f"lr={lr},seed={s}" for lr in (1.0, 2.0) for s in (0, 1)]
    assert json.loads((tmp_path / "s/sweep.json").read_text()) == {
        "command": ["fake"],
        "keys": ["lr", "seed"],
        "settings": {"env": "fake", "num_frames": 2, "more.x": 1},
        "cells": {f"lr={lr},seed={s}": {"lr": lr, "seed": s} for lr in (1.0, 2.0) for s in (0, 1)},
    }
    assert keys_of(tmp_path / "s") == ["lr", "seed"] and keys_of(tmp_path) is None
    assert plan(tmp_path / "s", points([0, 1], [1.0, 2.0]), ["lr", "seed"]) == found


def test_added_values_leave_the_names_of_the_others(tmp_path: Path) -> None:
    planned(tmp_path / "s", points([0, 1]))
    more = planned(tmp_path / "s", points([0, 1, 2], [1.0, 2.0]), ["lr", "seed"])
    old, new = ["seed=0", "seed=1", "lr=1.0,seed=2"], [f"lr=2.0,seed={s}" for s in range(3)]
    assert [cell.name for cell in more.cells] == old + new
    # And again: what was added has its place.
    assert plan(tmp_path / "s", points([0, 1, 2], [1.0, 2.0]), ["lr", "seed"]) == more


@pytest.mark.parametrize(
    ("other", "wanted"),
    [
        (points([0, 1]), "seed is 0, 1, 2 there and 0, 1 here"),
        (points([0, 1, 2], [3.0]), "lr is 1.0 there and 3.0 here"),
        (
            points([0, 1], [3.0, 4.0]),
            "lr is 1.0 there and 3.0, 4.0 here; seed is 0, 1, 2 there and 0, 1 here",
        ),
        (points([0, 1, 2], steps=5), "num_frames is 2 there and 5 here"),
    ],
)
def test_another_grid_says_what_differs(tmp_path: Path, other: list[Point], wanted: str) -> None:
    planned(tmp_path / "s", points([0, 1, 2]))
    with pytest.raises(RunError, match=rf"found another grid there: {wanted}\. Choose another --out"):
        plan(tmp_path / "s", other, ["seed"])


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for place in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(RunError, match="found something else there"):
            plan(place, points([0]), [])
    (tmp_path / "sweep.json").write_text('{"cells": ')
    with pytest.raises(RunError, match=r"sweep\.json cannot be read"):
        plan(tmp_path, points([0]), [])


def test_a_run_that_is_asked_for_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found two runs with the folder seed=1"):
        plan(tmp_path / "s", points([0, 1, 1]), ["seed"])


def test_two_sweeps_do_not_share_a_folder(tmp_path: Path) -> None:
    other = locked(tmp_path)
    with locked(tmp_path), pytest.raises(RunError, match="another sweep is running there"), other:
        raise AssertionError
    with locked(tmp_path):
        pass


def test_a_sweep_that_begins_finds_what_another_has_added(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    early, grown = plan(folder, points([0, 1]), ["seed"]), points([0, 1, 2], [1.0, 2.0])
    late = plan(folder, grown, ["lr", "seed"])
    planned(folder, points([0, 1, 2]))
    before = (folder / "sweep.json").read_bytes()
    with pytest.raises(RunError, match="seed is 0, 1, 2 there and 0, 1 here"), begun(early, ["fake"]):
        raise AssertionError
    assert (folder / "sweep.json").read_bytes() == before
    with begun(late, ["fake"]) as made, pytest.raises(RunError, match="another sweep is running there"):
        assert [cell.name for cell in made.cells][:3] == ["seed=0", "seed=1", "seed=2"]
        planned(folder, grown)
    assert plan(folder, grown, ["lr", "seed"]) == made


def test_a_sweep_that_was_killed_while_it_began_begins_again(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s/.partial-sweep.json").write_text("{")
    planned(tmp_path / "s", points([0]))
    assert keys_of(tmp_path / "s") == ["seed"] and (tmp_path / "s/logs").is_dir()


# --- the processes -----------------------------------------------------------------------------------------


def test_every_run_is_trained_in_a_process_with_one_thread(tmp_path: Path) -> None:
    found = planned(tmp_path / "s", points(range(3)))
    ended, said = ran(found)
    assert ended == Ended({}, 0)
    for seed in range(3):
        assert json.loads((tmp_path / f"s/seed={seed}/summary.json").read_text())["after"] == {
            "greedy/return": float(seed)
        }
        assert log(found, f"seed={seed}") == "started 1\n"
        assert f"seed={seed}  greedy/return {intervals.number(seed, seed)}  0:0" in said
    assert said.splitlines()[-1] == "3/3 done  0 running  0 failed  0:00 left"


def test_no_more_than_jobs_run_at_once_and_all_that_may(tmp_path: Path) -> None:
    class Watched(Board):
        most = 0

        def show(self, progress: object) -> None:
            self.most = max(self.most, len(sweep.running))

    board = Watched(io.StringIO())
    sweep = Sweep(planned(tmp_path / "s", points(range(4), pause=0.1)), 2, board, TRAIN)
    assert not sweep.run().failed
    assert board.most == 2


def test_a_failing_run_does_not_stop_the_others_and_its_last_words_are_kept(tmp_path: Path) -> None:
    found = planned(tmp_path / "s", points(range(3), trouble="1:raise"))
    ended, said = ran(found, jobs=1)
    assert ended == Ended({"seed=1": "line 1\nline 2\nTaskError: the environment raised"}, 0)
    assert [(cell.path / "summary.json").exists() for cell in found.cells] == [True, False, True]
    assert f"seed=1  failed after 0:00; all it said is in {tmp_path}/s/logs/seed=1.log" in said
    assert "2/3 done  0 running  1 failed" in said


@pytest.mark.parametrize(
    ("kind", "wanted"), [("die", "started 1\nkilled by SIGKILL"), ("silent", "exit code 3, nothing printed")]
)
def test_a_run_that_dies_is_named_with_what_ended_it(tmp_path: Path, kind: str, wanted: str) -> None:
    ended, _ = ran(planned(tmp_path / "s", points([0], trouble=f"0:{kind}")))
    assert ended.failed == {"seed=0": wanted}


def test_the_same_command_goes_on(tmp_path: Path) -> None:
    found = planned(tmp_path / "s", points(range(3), trouble="1:die"))
    assert set(ran(found)[0].failed) == {"seed=1"}
    before = (tmp_path / "s/seed=0/metrics.jsonl").stat().st_mtime_ns
    # A run that was killed before it had written its config begins.
    made = plan(tmp_path / "s", points(range(4), trouble="1:die"), ["seed"])
    (tmp_path / "s/seed=3/checkpoints").mkdir(parents=True)
    (tmp_path / "s/seed=3/rollouts").mkdir()
    ended, said = ran(made)
    assert ended == Ended({}, 0)
    assert log(found, "seed=0") == "started 1\n" and log(found, "seed=1") == "started 1\nresumed 1\n"
    assert log(found, "seed=3") == "started 1\n"
    assert (tmp_path / "s/seed=0/metrics.jsonl").stat().st_mtime_ns == before
    # One of the two lines was there when the run was killed.
    lines = (tmp_path / "s/seed=1/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert "seed=1  greedy/return" in said and "seed=0" not in said
    assert ran(made) == (Ended({}, 0), "")


def test_only_the_last_words_of_the_present_start_are_shown(tmp_path: Path) -> None:
    found = planned(tmp_path / "s", points([0], trouble="0:raise"))
    ran(found)
    # What it went on from is damaged: the second start says something else.
    (tmp_path / "s/seed=0/config.json").write_text("{")
    ended, _ = ran(found)
    assert "JSONDecodeError" in ended.failed["seed=0"] and "TaskError" not in ended.failed["seed=0"]


class Pressing(Board):
    """Sends this process a signal when all of some files hold a text, one signal after the other."""

    def __init__(self, *presses: tuple[signal.Signals, str, list[Path]]) -> None:
        self.out, self.presses = io.StringIO(), list(presses)
        super().__init__(self.out)
        self.seen: list[int] = []

    def show(self, progress: object) -> None:
        assert isinstance(progress, MethodType)
        self.seen = [child.process.pid for child in progress.__self__.running] or self.seen
        # Ctrl-C on a terminal reaches every process of the sweep's own group.
        assert all(os.getpgid(pid) == pid for pid in self.seen if alive(pid))
        if self.presses:
            number, text, files = self.presses[0]
            if all(file.exists() and text in file.read_text() for file in files):
                self.presses.pop(0)
                signal.raise_signal(number)


def metrics(folder: Path, *seeds: int) -> list[Path]:
    return [folder / f"seed={seed}/metrics.jsonl" for seed in seeds]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def hang_ups_are_heard() -> Iterator[None]:
    """Under nohup they are ignored, and a sweep leaves that as it is."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("hang_ups_are_heard")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_lets_the_runs_save_and_begins_no_other(tmp_path: Path, number: signal.Signals) -> None:
    found = planned(tmp_path / "s", points(range(3), steps=600, pause=0.05))
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    board = Pressing((number, '"step": 2', metrics(tmp_path / "s", 0, 1)))
    assert Sweep(found, 2, board, TRAIN).run() == Ended({}, number)
    assert "the runs finish their step and save; Ctrl-C kills them" in board.out.getvalue()
    assert [log(found, f"seed={s}") for s in (0, 1)] == ["started 1\nsaved\n"] * 2
    assert not (tmp_path / "s/seed=2").exists()
    assert len(board.seen) == 2 and not any(map(alive, board.seen))
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_ctrl_c_reaches_a_run_once(tmp_path: Path) -> None:
    # A second signal would make a real run stop at once, without saving.
    found = planned(tmp_path / "s", points([0], steps=600, pause=0.05, trouble="0:slow"))
    board = Pressing((signal.SIGINT, '"step": 2', metrics(tmp_path / "s", 0)))
    assert Sweep(found, 1, board, TRAIN).run() == Ended({}, signal.SIGINT)
    assert log(found, "seed=0") == "started 1\nasked\nsaved\n"


def test_a_second_ctrl_c_kills(tmp_path: Path) -> None:
    found = planned(tmp_path / "s", points(range(3), steps=600, pause=0.05, trouble="0:deaf"))
    first = (signal.SIGINT, '"step": 2', metrics(tmp_path / "s", 0, 1))
    board = Pressing(first, (signal.SIGINT, "saved", [tmp_path / "s/logs/seed=1.log"]))
    with pytest.raises(KeyboardInterrupt):
        Sweep(found, 2, board, TRAIN).run()
    assert board.seen and not any(map(alive, board.seen))


def test_a_sweep_that_ended_before_ctrl_c_was_heard_is_whole(tmp_path: Path) -> None:
    found = planned(tmp_path / "s", points([0]))
    board = Pressing((signal.SIGINT, "after", [tmp_path / "s/seed=0/summary.json"]))
    assert Sweep(found, 1, board, TRAIN).run() == Ended({}, 0)


# --- how far it is -----------------------------------------------------------------------------------------


def test_the_time_left_counts_processes_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = plan(tmp_path / "s", points(range(5), steps=10), ["seed"])
    sweep = Sweep(found, 2, Board(io.StringIO()), TRAIN)
    monkeypatch.setattr(sweeping.time, "monotonic", lambda: 100.0)
    assert str(sweep.progress().seconds_left) == "nan"

    def child(number: int, began: float, share: float) -> Child:
        return Child(found.cells[number], None, Path(), 0, began, share)  # type: ignore[arg-type]

    # Two running: half a run in 20 s, and a quarter of a run, on top of a half, in 10 s: 40 s a run.
    sweep.running = [child(0, 80.0, 0.0), child(1, 90.0, 0.5)]
    for number, frames in ((0, 5), (1, 7.5)):
        found.cells[number].path.mkdir(parents=True)
        rate = json.dumps({"step": 1, "num_frames": frames, "frames_per_second": 50.0})
        # The last line is still being written.
        (found.cells[number].path / "metrics.jsonl").write_text(f'{rate}\n{{"step": 2, "num_fra')
    sweep.waiting.clear()
    progress = sweep.progress()
    assert (progress.rate, progress.unit, progress.running) == (100.0, "frames", 2)
    assert progress.seconds_left == pytest.approx(20.0)
    # They end after 10 and 20 s; three more of 40 s each follow: 10+40+40.
    sweep.waiting.extend(found.cells[2:])
    assert sweep.progress().seconds_left == pytest.approx(90.0)
    # With a core for each they would end after 40 s.
    sweep.jobs = 5
    assert sweep.progress().seconds_left == pytest.approx(40.0)


def test_the_command_is_that_of_the_train_verb() -> None:
    assert Sweep.__init__.__defaults__ == (None,)
    assert list(sweeping.TRAIN) == [sys.executable, "-m", "gradhat.cli.main", "train"]
