"""`gradhat plot`: the right runs in the right lines, and one message for what cannot be drawn."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.image import imread

from gradhat.cli import plot
from gradhat.cli.main import main
from gradhat.training.sweeps.results import judged_by, read


def run(
    path: Path, returns: Sequence[float], *, done: bool = True, kind: str = "control", **settings: Any
) -> Path:
    """A run that was measured every 100 frames."""
    (path / "checkpoints").mkdir(parents=True)
    lr = settings.pop("lr", 0.1)
    config: dict[str, Any] = {"algorithm": "ppo", "env": "CartPole-v1", "learning": {"network": {"lr": lr}}}
    y, key = ("greedy/return", "num_frames") if kind == "control" else ("held_out/accuracy", "num_tokens")
    if kind == "text":
        config = {"algorithm": "rloo", "task": "arithmetic", "lr": lr}
    (path / "config.json").write_text(json.dumps(config | {"seed": 0} | settings))
    lines = [{"step": i, y: ret, key: 100.0 * i, "step_time": 2.0} for i, ret in enumerate(returns)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if done:
        (path / "summary.json").write_text("{}")
    return path


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """Two learning rates, two seeds, in a folder."""
    for lr, rise in ((0.001, 10.0), (0.01, 4.0)):
        for seed in (0, 1):
            run(tmp_path / f"g/lr={lr},seed={seed}", [0.0, rise + seed, 2 * rise + seed], lr=lr, seed=seed)
    return tmp_path / "g"


def lines_of(places: Sequence[Path], by: Sequence[str] = (), x: Any = "frames") -> Mapping[str, Any]:
    runs = plot.read_all(places)
    y = judged_by(runs)
    found, notes = plot.drawn(runs, list(by) or plot.default_keys(places, runs), x, y)
    return {"notes": notes} | {line.name: (list(line.x), list(line.mean)) for line in found}


def test_runs_of_a_setting_are_one_line_their_mean(grid: Path) -> None:
    expected = {
        "notes": [],
        "lr=0.001": ([0, 100, 200], [0, 10.5, 20.5]),
        "lr=0.01": ([0, 100, 200], [0, 4.5, 8.5]),
    }
    assert lines_of([grid]) == expected
    assert lines_of(sorted(grid.iterdir())) == expected
    assert lines_of([grid], ["lr"]) == lines_of([grid], ["learning.network.lr"]) == expected
    assert lines_of([grid, grid], ["lr"]) == expected


@pytest.mark.parametrize(("x", "places"), [("steps", [0, 1, 2]), ("time", [2, 4, 6])])
def test_what_lies_along_x(x: str, places: list[float], grid: Path) -> None:
    assert lines_of([grid], ["lr"], x)["lr=0.01"] == (places, [0, 4.5, 8.5])


def test_lines_may_be_by_the_seed_or_by_two_settings(grid: Path) -> None:
    assert set(lines_of([grid], ["lr", "seed"])) - {"notes"} == {
        f"lr={lr}, seed={seed}" for lr in (0.001, 0.01) for seed in (0, 1)
    }
    found = lines_of([grid], ["seed"])
    assert found["seed=0"][1] == [0, 7, 14]
    assert found["notes"] == [
        "note: seed=0 is an average over different lr",
        "note: seed=1 is an average over different lr",
    ]


def test_the_folder_of_a_sweep_knows_what_it_varied(tmp_path: Path) -> None:
    # The number of frames follows from the environment.
    for env, num_frames in (("A", 5), ("B", 7)):
        run(tmp_path / f"s/{env}", [1, 2], env=env, num_frames=num_frames)
    assert set(lines_of([tmp_path / "s"])) == {"notes", "env=A, num_frames=5", "env=B, num_frames=7"}
    plan = {"keys": ["env", "seed"], "settings": {}, "cells": {}}
    (tmp_path / "s/sweep.json").write_text(json.dumps(plan))
    assert set(lines_of([tmp_path / "s"])) == {"notes", "env=A", "env=B"}


def test_algorithms_are_told_apart_by_their_names(tmp_path: Path) -> None:
    run(tmp_path / "a", [1, 2], algorithm="a2c", learning={"lam": 1, "settings": {"lr": 1}})
    run(tmp_path / "b", [1, 2], algorithm="dqn", learning={"n_step": 3, "lr": 2})
    places = [tmp_path / "a", tmp_path / "b"]
    assert set(lines_of(places)) == {"notes", "algorithm=a2c", "algorithm=dqn"}
    # A setting of one name may lie at another place in each.
    assert set(lines_of(places, ["lr"])) == {"notes", "lr=1", "lr=2"}


def test_the_pictures_are_written_and_the_table_is_printed(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["plot", str(grid), "--by", "lr", "--out", str(tmp_path / "new/fig.svg")]) == 0
    out = capsys.readouterr().out
    # The interval of 20 and 21 for two runs: 20.5 ± 12.7 · 0.5.
    assert "lr=0.001  2     200     20.5 (n=2)" in out
    assert f"written to {tmp_path}/new/fig.png and fig.svg" in out and "note" not in out
    assert imread(tmp_path / "new/fig.png").shape[2] == 4
    said = "".join(ElementTree.parse(tmp_path / "new/fig.svg").getroot().itertext())
    assert "<!-- lr=0.01 -->" in (tmp_path / "new/fig.svg").read_text() or "lr=0.01" in said


def test_a_picture_without_a_name_lies_with_its_runs(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plot", str(grid), "--x", "time"]) == 0
    assert (grid / "greedy_return-time.png").exists() and (grid / "greedy_return-time.svg").exists()
    both = [str(path) for path in sorted(grid.iterdir()) if path.is_dir()][:2]
    assert main(["plot", *both]) == 0
    assert (tmp_path / "greedy_return-frames.png").exists()
    # Drawn again, with more runs: the picture is replaced.
    assert main(["plot", *both]) == 0
    assert "2 runs" in capsys.readouterr().out


def test_a_line_ends_with_its_shortest_run_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "g/a", [0, 1, 2], seed=0)
    run(tmp_path / "g/b", [0, 3], seed=1, done=False)
    assert lines_of([tmp_path / "g"])["2 runs"] == ([0, 100], [0, 2])
    assert main(["plot", str(tmp_path / "g")]) == 0
    assert "note: 1 of 2 runs not finished; a line ends with its shortest run" in capsys.readouterr().out


def test_help_names_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["plot", "--help"])
    assert "--by" in capsys.readouterr().out


def test_text_runs_are_drawn_by_steps(tmp_path: Path) -> None:
    run(tmp_path / "a", [0.1, 0.2], kind="text")
    assert main(["plot", str(tmp_path / "a")]) == 0
    assert (tmp_path / "a/held_out_accuracy-steps.png").exists()


def test_what_cannot_be_drawn_is_said_in_one_message(
    grid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = run(tmp_path / "text", [0.1, 0.2], kind="text")
    other = run(tmp_path / "other", [1, 2], env="Acrobot-v1", lr=0.001)
    empty = run(tmp_path / "empty", [])
    late = run(tmp_path / "late", [1, 2], lr=0.001)
    (late / "metrics.jsonl").write_text('{"step": 9, "num_frames": 900, "greedy/return": 1.0}\n')
    lost = run(tmp_path / "lost", [])
    (lost / "metrics.jsonl").write_text('{"step": 1, "num_frames": null, "greedy/return": 1.0}\n')
    (tmp_path / "nothing").mkdir()
    for words, code, wanted in (
        ([], 2, "found no run. Name run folders or a folder of them first"),
        (["--by", "lr"], 2, "found no run"),
        ([tmp_path / "nothing"], 1, "found none. Name a run folder, or a folder of them."),
        ([tmp_path / "nowhere"], 1, "nowhere: found none"),
        ([empty], 1, f"found none: the run has not begun. Train on first: gradhat train --resume {empty}"),
        ([grid, text], 2, f"and a text run, {text}. They are judged by different metrics: draw them apart."),
        (
            [grid, other, "--by", "lr"],
            2,
            "different settings of env in one line: CartPole-v1, Acrobot-v1. Add --by env.",
        ),
        ([text, "--x", "frames"], 2, "found text runs, which count none. Use --x steps or --x time."),
        ([lost], 2, f"--x frames: found no num_frames in any line of {lost} that has greedy/return. Use --x"),
        ([grid, "--y", "greedy/retrun"], 2, "greedy/retrun: found no such metric"),
        (
            [grid, "--y", "greedy/retrun"],
            2,
            "Did you mean greedy/return? It has: step, greedy/return, num_frames, step_time.",
        ),
        (
            [grid, "--by", "lrr"],
            2,
            "--by lrr: no such setting. Did you mean lr? Known: algorithm, env, lr, seed.",
        ),
        ([grid, late, "--by", "lr"], 1, "lr=0.001: its 3 curves share no stretch"),
        ([grid, "--out", "fig.pdf"], 2, "--out fig.pdf: found the ending .pdf. Use .png or .svg"),
        ([grid, "--out", tmp_path / "text/config.json" / "x"], 1, "Choose an --out that can be written."),
        ([grid, "--xx", "time"], 2, "gradhat plot RUN ... --xx: no such flag. Did you mean --x"),
    ):
        assert main(["plot", *map(str, words)]) == code, words
        assert wanted in " ".join(capsys.readouterr().err.split()), words


def test_a_run_of_the_trainer_is_read_like_these(tmp_path: Path) -> None:
    flags = {"num-frames": 600, "num-envs": 2, "log-every": 300, "eval-every": 300, "eval-episodes": 2}
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    assert main(["train", "ppo", *words, "--out", str(tmp_path / "run")]) == 0
    found = read(tmp_path / "run")
    assert found.kind.name == "control" and found.summary is not None
    names = {judged_by([found]), found.kind.training, found.kind.rate}
    assert names <= {key for line in found.lines for key in line}
    assert {found.kind.length, found.kind.place, "seed", "learning.network.lr"} <= set(found.settings)
    ((_, (places, _)),) = [item for item in lines_of([tmp_path / "run"]).items() if item[0] != "notes"]
    assert places[0] == 0 and len(places) == 3


def test_a_picture_that_cannot_be_written_may_lie_elsewhere(
    grid: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def read_only(*_: Path) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("gradhat.training.run_folder.publish", read_only)
    assert main(["plot", str(grid)]) == 1
    said = capsys.readouterr().err
    assert "Read-only file system. Choose an --out that can be written." in said and "--resume" not in said
