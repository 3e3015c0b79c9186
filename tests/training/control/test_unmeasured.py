"""A world that there is only once: it trains to its end without a measurement, and every door says so."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from gradhat.cli.main import main
from gradhat.cli.sweep import finished_runs, planned, report
from gradhat.training.sweeps.plan import begun

ENV = "Once-v0"
FLAGS = "--num-envs 1 --num-frames 200 --num-steps 5 --log-every 50 --eval-episodes 0"


class Once(gymnasium.Env[Any, Any]):
    """Pays in each of five steps what was drawn for the episode. A second one raises."""

    observation_space = Box(-1, 1, (1,), np.float32)
    action_space = Discrete(2)
    held: ClassVar[bool] = False

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode, self.pay, self.left = render_mode, 0, 0
        if Once.held:
            raise OSError("the port is taken")
        Once.held = True

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.pay, self.left = int(self.np_random.integers(100)), 5
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return np.ones(1, np.float32), float(self.pay), self.left == 0, False, {}

    def close(self) -> None:
        Once.held = False


if ENV not in gymnasium.registry:
    gymnasium.register(ENV, entry_point=Once)


@pytest.fixture(autouse=True)
def free() -> Iterator[None]:
    Once.held = False
    yield
    assert not Once.held, "the world is let go"


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_it_trains_to_its_end_and_says_how_training_went(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(["train", "a2c", "--env", ENV, *FLAGS.split(), "--eval-every", "50", "--out", str(run)]) == 0
    said, lines = capsys.readouterr().out, metrics(run)
    assert "judged by its returns in training: --eval-episodes 0 measures nothing" in said
    assert not any("greedy" in key or "sampled" in key for line in lines for key in line if "/return" in key)
    # Ten episodes of five steps a line; the last ten are those of the last one.
    last = lines[-1]
    assert last["num_episodes"] == 10 and last["episode/return"] != lines[-2]["episode/return"]
    assert (
        f"done. nothing was measured. The last 10 training episodes: return {last['episode/return']:.1f} ["
        in said
    )
    summary = json.loads((run / "summary.json").read_text())
    assert summary["episodes"] == 10
    assert summary["after"] == {key: value for key, value in last.items() if key.startswith("episode/")}
    assert summary["after"].keys() == {f"episode/{key}" for key in ("return", "low", "high", "length")}
    # What was trained alone can be measured alone.
    assert main(["eval", str(run), "--episodes", "1"]) == 0
    assert "return   mean " in capsys.readouterr().out


def test_it_can_be_made_longer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["train", "a2c", "--env", ENV, *FLAGS.split(), "--out", str(run)]) == 0
    assert main(["train", "--resume", str(run), "--num-frames", "250"]) == 0
    assert json.loads((run / "summary.json").read_text())["num_frames"] == 250
    assert "nothing was measured" in capsys.readouterr().out


def test_where_no_episode_ended_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = FLAGS.replace("200", "4").replace("--num-steps 5", "--num-steps 4").split()
    assert main(["train", "a2c", "--env", ENV, *words, "--out", str(run)]) == 0
    assert "done. nothing was measured, and no training episode came to its end\n" in capsys.readouterr().out
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["episodes"], summary["after"]) == (0, {})


def test_a_plot_and_the_table_of_a_sweep_go_by_the_name_of_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["a2c", "--env", "CartPole-v1", *FLAGS.split(), "--seed", "0..1"]
    with begun(planned(words, tmp_path / "sweep"), words) as found:
        for cell in found.cells:
            assert main(["train", *cell.point.words, "--out", str(cell.path)]) == 0
    capsys.readouterr()
    report(found, finished_runs(found)[0])
    said = capsys.readouterr().out
    assert "episode/return" in said and "greedy" not in said and "nan" not in said
    ends = [metrics(cell.path)[-1]["episode/return"] for cell in found.cells]
    (header, row) = (line.split(",") for line in (tmp_path / "sweep" / "table.csv").read_text().splitlines())
    table = dict(zip(header, row, strict=True))
    assert float(table["score"]) == float(table["training"]) == pytest.approx(sum(ends) / 2)
    assert main(["plot", str(tmp_path / "sweep"), "--out", str(tmp_path / "curve")]) == 0
    drawn = capsys.readouterr().out
    assert "episode/return where the lines end" in drawn and f"{sum(ends) / 2:.1f} (n=2)" in drawn
