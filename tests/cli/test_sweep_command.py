"""`gradhat sweep`: a grid that gradhat train itself reads, a table, and one message for a wrong command."""

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from gradhat.cli import sweep
from gradhat.cli.main import main
from gradhat.training import run_folder
from gradhat.training.sweeps.plan import LOGS, locked

FAKE = Path(__file__).parent.parent / "training" / "sweeps" / "fake_train.py"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Runs take no time, and the present folder is an empty one."""
    monkeypatch.setattr("gradhat.training.sweeps.run.TRAIN", (sys.executable, str(FAKE)))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def words(text: str) -> list[str]:
    return ["sweep", *text.split()]


def test_help_names_the_flags_and_the_grid(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["sweep"], ["sweep", "ppo", "--help"], ["sweep", "-h"]):
        with pytest.raises(SystemExit, match="0"):
            main(argv)
        out = capsys.readouterr().out
        assert "--jobs" in out and "--seed 0..4" in out


def test_a_dry_run_shows_every_command_and_makes_nothing(
    fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words("ppo --env Acrobot-v1 --lr 1e-3 3e-4 --seed 0..1 --dry-run --jobs 3")) == 0
    place = "sweeps/ppo-Acrobot-v1-lr"
    assert capsys.readouterr().out.splitlines() == [
        f"gradhat train ppo --env Acrobot-v1 --lr {lr} --seed {s} --out {place}/lr={value},seed={s}"
        for lr, value in (("1e-3", "0.001"), ("3e-4", "0.0003"))
        for s in (0, 1)
    ]
    assert not list(fake.iterdir())


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("ppo --seed 0..1", ["ppo-CartPole-v1/seed=0", "ppo-CartPole-v1/seed=1"]),
        (
            "ppo --hidden 64 64 --hidden 8 --no-normalize-adv --normalize-adv --out there",
            [f"there/hidden={h},normalize_adv={b}" for h in ("64-64", "8") for b in ("False", "True")],
        ),
        ("ppo --env CartPole-v1 Acrobot-v1", ["ppo-env/env=CartPole-v1", "ppo-env/env=Acrobot-v1"]),
        ("first_light --lr 1e-5 3e-5", ["first_light-lr/lr=1e-05", "first_light-lr/lr=3e-05"]),
        (
            "--task arithmetic:digits=1 --group-size 4 8 --replace-silent true false",
            [
                f"run-group_size-replace_silent/group_size={g},replace_silent={b}"
                for g in (4, 8)
                for b in (True, False)
            ],
        ),
        ("ppo", ["ppo-CartPole-v1/run"]),
    ],
)
def test_a_grid_of_any_kind_of_run(text: str, names: list[str], fake: Path) -> None:
    own, rest = sweep.split(text.split())
    out = Path(own[1]) if own else None
    found = sweep.planned(rest, out)
    assert [str(cell.path) for cell in found.cells] == [
        name if name.startswith("there") else f"sweeps/{name}" for name in names
    ]
    # What a run is said to be is what its command makes of it.
    assert [sweep.resolved(cell.point.words) for cell in found.cells] == [
        cell.point.config for cell in found.cells
    ]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("ppo --lr 1e-3 1e-3", "a grid with --lr 1e-3 and --lr 1e-3: found the same run twice"),
        ("ppo --seed 0 1 --lr 2 1e-3 0.001", "a grid with --lr 1e-3 and --lr 0.001: found the same run"),
        ("ppo --env CartPole-v1 CartPol-v1", "'CartPol-v1': found no such id in Gymnasium. Did you mean"),
        ("ppo --env CartPole-v1 --env-args a=1 --seed 0 1", "'CartPole-v1' with {'a': 1}: found that"),
        ("ppo --env zoo:lucky --vectorization async", "zoo:lucky: found no such world in the zoo"),
        ("dqn --env CartPole-v1 Pendulum-v1", "dqn in Pendulum-v1: its actions are vectors of numbers"),
        ("ppo --lrr 1 2", "gradhat train ppo --lrr: no such flag. Did you mean --lr"),
        ("ppo --lr 1 -1", "lr=-1.0: found a value out of range"),
        ("pppo --lr 1", "no such recipe or algorithm. Did you mean ppo"),
        ("ppo --env CartPole-v1 --log-std 0 -0.5", "log_std=-0.5 with discrete actions: nothing reads"),
        ("ppo --env Pendulum-v1 CartPole-v1 --log-std -0.5 0", "log_std=-0.5 with discrete actions"),
        (
            "ppo --seed 0..99999999 --dry-run",
            "--seed 0..99999999: found 100,000,000 runs; a sweep has at most",
        ),
        ("ppo --seed 4..0", "--seed 4..0: found a range that ends before it begins"),
        ("ppo --resume x --lr 1 2", "A sweep goes on by itself"),
        ("ppo --jobs 0", "jobs=0: found less than one run at once"),
        ("ppo --out", "--out"),
        ("--lr 1 2", "found no task"),
        ("ppo more --seed 1", "'more': found it before the first flag"),
    ],
)
def test_a_wrong_command_is_refused_before_anything_runs(
    text: str, wanted: str, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(words(text))
    except SystemExit as end:
        code = end.code
    assert code == 2
    assert wanted in " ".join(capsys.readouterr().err.split())
    assert not list(fake.iterdir())


def test_an_environment_is_made_once_and_without_processes(
    fake: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gradhat.training.control import worlds

    made: list[tuple[str, str]] = []
    make = worlds.make

    def counted(config: Any, num_envs: int) -> Any:
        made.append((config.env, config.vectorization))
        return make(config, num_envs)

    monkeypatch.setattr(worlds, "make", counted)
    flags = "--env CartPole-v1 Acrobot-v1 --vectorization async --seed 0..3 --dry-run"
    assert main(words(f"ppo {flags}")) == 0
    assert made == [("CartPole-v1", "sync"), ("Acrobot-v1", "sync")]
    monkeypatch.setitem(sys.modules, "Box2D", None)
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(words("ppo --env LunarLander-v3 --seed 0 1")) == 2
    assert "pip install 'gradhat[box2d]'" in capsys.readouterr().err
    assert not list(fake.iterdir())


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("--task empty.jsonl --seed 0 1", "empty.jsonl holds no question"),
        ("--task arithmetic mine.py:Mine --seed 0 1", "there is no file"),
        ("first_light --reward nowhere.py:fn --lr 1e-5 2e-5", "nowhere.py:fn: there is no file"),
        ("first_light --curriculum arithmetik --lr 1e-5 2e-5", "task 'arithmetik' is unknown"),
        ("--task arithmetic --model gpt-8 gpt-9", "The model 'gpt-8' is unknown"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_a_task_or_a_model_that_is_none_is_refused_before_anything_runs(
    dry: list[str], text: str, wanted: str, fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (fake / "empty.jsonl").write_text("")
    assert main([*words(text), *dry]) == 1
    said = capsys.readouterr()
    assert said.out == "" and wanted in said.err
    assert [path.name for path in fake.iterdir()] == ["empty.jsonl"]


def test_a_task_is_loaded_once_and_asked_nothing(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (fake / "mine.py").write_text(
        "print('loaded')\n"
        "class Mine:\n"
        "    def question(self, seed): raise AssertionError\n"
        "    def score(self, question, completion): raise AssertionError\n"
    )
    assert main(words("--task mine.py:Mine --seed 0..4 --lr 1e-5 2e-5 --dry-run")) == 0
    said = capsys.readouterr().out.splitlines()
    assert said.count("loaded") == 1 and len(said) == 11


def test_a_running_sweep_keeps_its_plan(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words("ppo --seed 0 1 --out s")) == 0
    before = (fake / "s/sweep.json").read_bytes()
    with locked(fake / "s"):
        assert main(words("ppo --seed 0..5 --out s")) == 1
    assert "another sweep is running there" in capsys.readouterr().err
    assert (fake / "s/sweep.json").read_bytes() == before


def test_all_usable_cores_are_used(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gradhat.training.sweeps.run import Sweep

    # As where the system has no affinity.
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    jobs: list[int] = []
    start = Sweep.run

    def seen(self: Sweep) -> Any:
        jobs.append(self.jobs)
        return start(self)

    monkeypatch.setattr(Sweep, "run", seen)
    assert main(words("ppo --seed 0 --out s")) == 0
    assert jobs == [3]


def test_a_sweep_prints_and_writes_its_table(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = words("ppo --lr 1e-3 3e-4 --seed 1..5 --out s")
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "sweep  s: 10 runs, 0 of them finished before" in out
    assert "10/10 done  0 running  0 failed" in out
    # The return of a run is its seed: 1 to 5. t with 4 degrees of freedom is 2.776, s² is 2.5.
    lines = [line.split("  ") for line in out.splitlines()]
    (row,) = [[word.strip() for word in line if word] for line in lines if line[1:2] == ["0.0003"]]
    assert row == ["0.0003", "5", "3.00 [1.04, 4.96]", "3.00 [1.00, 5.00]", "2.00 (all 5)", "100"]
    rows = table(fake / "s/table.csv")
    assert [(row["lr"], row["runs"], row["score"]) for row in rows] == [
        ("0.0003", "5", "3.0"),
        ("0.001", "5", "3.0"),
    ]
    assert float(rows[0]["score_high"]) == pytest.approx(3 + 2.776 * (2.5 / 5) ** 0.5, rel=1e-2)
    assert "draw it: gradhat plot s" in out
    # Again: nothing is run, the table is there.
    assert main(command) == 0
    again = capsys.readouterr().out
    assert "10 runs, 10 of them finished before" in again
    assert again.partition("by setting")[2] == out.partition("by setting")[2]
    # A value more.
    assert main(words("ppo --lr 1e-3 3e-4 --seed 1..6 --out s")) == 0
    assert "12 runs, 10 of them finished before" in capsys.readouterr().out
    assert main(words("ppo --lr 1e-3 --seed 1..6 --out s")) == 1
    assert "lr is 0.001, 0.0003 there and 0.001 here" in capsys.readouterr().err


def test_environments_have_a_table_of_their_own(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words("ppo --env CartPole-v1 Acrobot-v1 --lr 1 2 --seed 0..1 --out s")) == 0
    out = capsys.readouterr().out
    assert "every env pooled: 0 is the worst run of the sweep in each, 1 the best" in out
    assert [row["iqm"] for row in table(fake / "s/pooled.csv")] == ["0.5", "0.5"]
    assert json.loads((fake / "s/sweep.json").read_text())["keys"] == ["env", "learning.network.lr", "seed"]


def test_runs_that_fail_are_listed_at_the_end_those_that_fail_alike_together(
    fake: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "GROUP", 1)
    (fake / "bad.py").write_text(
        "import sys\n"
        "seed = sys.argv[sys.argv.index('--seed') + 1]\n"
        "if seed in '123':\n"
        "    sys.exit('TaskError: no ' + ('such' if seed in '12' else 'other'))\n"
        f"exec(open({str(FAKE)!r}).read())\n"
    )
    monkeypatch.setattr("gradhat.training.sweeps.run.TRAIN", (sys.executable, str(fake / "bad.py")))
    assert main(words("ppo --seed 0..3 --out s")) == 1
    printed = capsys.readouterr()
    assert "failed: seed=1 and 1 more\n  TaskError: no such\n" in printed.err
    assert "failed: seed=3\n  TaskError: no other\n" in printed.err
    assert "1/4 done  0 running  3 failed" in printed.out and "greedy/return" in printed.out
    assert main(words("ppo --seed 1..2 --out t")) == 1
    assert "by setting" not in capsys.readouterr().out


def test_a_stopped_sweep_says_how_to_go_on(
    fake: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradhat.training.sweeps.run import Ended, Sweep

    monkeypatch.setattr(Sweep, "run", lambda self: Ended({}, 2))
    assert main(words("ppo --seed 0 1 --out s")) == 130
    assert "stopped. Go on with the same command. So far: gradhat plot s" in capsys.readouterr().out


def test_a_row_without_room_names_what_is_left_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    sweep.print_rows("title", [{"lr": "0.1", "very long header": "x", "runs": "3"}], Path("table.csv"))
    out = capsys.readouterr().out
    assert "lr\n  0.1\n" in out and "left out: very long header, runs; table.csv has all" in " ".join(
        out.split()
    )


@pytest.mark.slow
def test_a_real_sweep_is_drawn_and_watched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = "--num-frames 1000 --log-every 500 --eval-every 500 --eval-episodes 4 --out s"
    assert main(words(f"ppo --seed 0..1 {flags}")) == 0
    assert main(["plot", "s"]) == 0
    assert main(["watch", "s/seed=0", "--max-steps", "20"]) == 0
    assert {path.name for path in Path("s").iterdir()} == {
        *("seed=0", "seed=1", "logs", "sweep.json", "table.csv"),
        *("greedy_return-frames.png", "greedy_return-frames.svg"),
    }
    assert "written to s/seed=0/watch." in capsys.readouterr().out


@pytest.mark.slow
def test_a_real_sweep_of_text_runs(
    tiny_model: Path, letters_task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"--task {letters_task} --model {tiny_model} --dtype float32 --num-steps 2 --num-prompts 2"
    flags += " --group-size 2 --max-new-tokens 4 --checkpoint-every 1 --eval-questions 2 --final-questions 2"
    assert main(words(f"{flags} --final-samples 1 --lr 1e-3 1e-2 --seed 0 1 --out {tmp_path}/s")) == 0
    assert "held_out/accuracy" in capsys.readouterr().out
    assert [row["runs"] for row in table(tmp_path / "s/table.csv")] == ["2", "2"]
    assert main(["plot", f"{tmp_path}/s", "--y", "reward"]) == 0
    assert (tmp_path / "s/reward-steps.svg").exists()


def test_a_plan_or_a_table_that_cannot_be_written_is_for_another_time(
    fake: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish = run_folder.publish

    def full(partial: Path, path: Path) -> None:
        if path.name == name:
            raise OSError(28, "No space left on device")
        publish(partial, path)

    monkeypatch.setattr(run_folder, "publish", full)
    for name in ("sweep.json", "table.csv"):
        assert main(words("ppo --seed 0 1 --out s")) == 1
        said = capsys.readouterr().err
        assert f"{name}: No space left on device. Make room" in said and "the same command again" in said
    name = ""
    assert main(words("ppo --seed 0 1 --out s")) == 0
    assert "2 runs, 2 of them finished before" in capsys.readouterr().out


def test_a_plan_that_was_edited_wrongly_is_to_be_repaired(
    fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "ppo --seed 0 --out s"
    assert main(words(command)) == 0
    file = fake / "s/sweep.json"
    whole = json.loads(file.read_text())
    wrong = [("keys", 5), ("keys", [[1]]), ("settings", []), ("cells", []), ("cells", {"a": 5})]
    texts = [json.dumps(whole | {key: value}) for key, value in [*wrong, ("cells", {"../a": {}})]]
    texts += [json.dumps({key: whole[key] for key in whole if key != "cells"}), "", "[]", "[" * 99999]
    for text in texts:
        file.write_text(text)
        capsys.readouterr()
        for argv in (words(command), ["plot", "s"]):
            assert main(argv) == 1
            said = capsys.readouterr().err
            assert "sweep in s: sweep.json cannot be read" in said and "Repair it, or move it away." in said
            assert "--out" not in said
        assert file.read_text() == text


def test_a_run_that_cannot_be_read_is_listed_beside_the_table_of_the_others(
    fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words("ppo --seed 0..2 --out s")) == 0
    (fake / "s/seed=1/summary.json").write_text("[]")
    capsys.readouterr()
    assert main(words("ppo --seed 0..2 --out s")) == 1
    printed = capsys.readouterr()
    assert "unreadable: seed=1\n  read the run in s/seed=1: summary.json cannot be read" in printed.err
    assert [row["runs"] for row in table(fake / "s/table.csv")] == ["2"] and "by setting" in printed.out


def test_every_argument_of_an_environment_is_tried(fake: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "ppo --env CartPole-v1 --env-args a=1 --env-args sutton_barto_reward=True --dry-run"
    assert main(words(text)) == 2
    assert "{'a': 1}" in capsys.readouterr().err


def test_a_sweep_whose_logs_cannot_be_made_says_what_goes_on(
    fake: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words("ppo --seed 0 --out s")) == 0
    shutil.rmtree(fake / "s" / LOGS)
    (fake / "s" / LOGS).write_text("")
    assert main(words("ppo --seed 0 1 --out s")) == 1
    said = capsys.readouterr().err
    assert "the same command again" in said and "--resume" not in said
