"""How a control run ends, goes on, and gives up."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gradhat.cli.main import main
from gradhat.training.control import worlds
from gradhat.training.control.config import ControlConfig
from gradhat.training.control.evaluate import Played
from gradhat.training.control.on_policy import OnPolicyAgent
from gradhat.training.control.session import Session, diverged
from gradhat.training.control.settings import QLearning
from gradhat.training.run_folder import RunFolder

CHAIN = ["--env", "zoo:chain", "--eval-episodes", "2", "--log-every", "400", "--num-envs", "4"]


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_an_algorithm_needs_no_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "ppo", "--dry-run"]) == 0
    assert '"env": "CartPole-v1"' in capsys.readouterr().out


def test_a_run_whose_last_line_was_short_goes_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", "q_learning", *CHAIN, "--num-frames", "500", "--out", str(run)]) == 0
    assert lines(run)[-1]["num_frames"] == 512 and len(lines(run)) == 3
    assert main(["train", "--resume", str(run), "--num-frames", "700"]) == 0
    assert lines(run)[-1]["num_frames"] >= 700 and [line["step"] for line in lines(run)] == [0, 1, 2, 3]


def test_a_refused_resume_leaves_the_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert main(["train", "q_learning", *CHAIN, "--num-frames", "500", "--out", str(run)]) == 0
    before = (run / "config.json").read_text()
    assert main(["train", "--resume", str(run), "--num-frames", "510"]) == 1
    assert "--num-frames MORE" in capsys.readouterr().err
    assert (run / "config.json").read_text() == before


def test_frames_are_those_that_were_lived(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    flags = ["--num-envs", "50", "--num-frames", "300", "--log-every", "100", "--eval-episodes", "5"]
    assert main(["train", "reinforce", *flags, "--eval-every", "0", "--out", str(run)]) == 0
    # One batch of 50 episodes is longer than the run: the lines within it are passed over.
    before, whole = lines(run)
    assert whole["num_frames"] > 300 and whole["frames_per_second"] > 0
    assert (before["step"], whole["step"]) == (0, 3) and "greedy/return" in whole
    assert f"frames {whole['num_frames']:,.0f}" in capsys.readouterr().out


def test_every_line_has_frames_of_its_own(tmp_path: Path) -> None:
    """A batch of 320 frames passes over lines of 100, however often the run is made longer."""
    run = tmp_path / "run"
    flags = ["--num-envs", "10", "--num-steps", "32", "--log-every", "100", "--eval-episodes", "2"]
    argv = ["ppo", *flags, "--eval-every", "500", "--num-frames", "1000", "--out", str(run)]
    assert main(["train", *argv]) == 0
    frames = [line["num_frames"] for line in lines(run)[1:]]
    assert len(frames) == 4 and all(300 <= b - a <= 320 for a, b in itertools.pairwise([0, *frames]))
    assert [line["step"] for line in lines(run)] == [0, 3, 6, 9, 10]
    # Measured where a multiple of 500 frames was passed, and at the end.
    assert [line["step"] for line in lines(run) if "greedy/return" in line] == [0, 6, 10]
    assert main(["train", "--resume", str(run), "--num-frames", "2000"]) == 0
    longer = [line["num_frames"] for line in lines(run)[1:]]
    assert longer[:4] == frames and all(300 <= b - a <= 320 for a, b in itertools.pairwise(longer))
    assert [line["step"] for line in lines(run)][-3:] == [15, 18, 20]


def test_all_seconds_of_a_run_are_those_of_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a part that no line counts, such as a checkpoint: here each takes a thousand seconds."""
    now, save = [0.0], Session.save

    def slow(self: Session, run: RunFolder) -> Path:
        now[0] += 1000.0
        return save(self, run)

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr(Session, "save", slow)
    monkeypatch.setattr(Session, "_measure", measuring(Session._measure, now))
    monkeypatch.setattr(OnPolicyAgent, "advance", training(OnPolicyAgent.advance, now))
    run = tmp_path / "run"
    flags = ["--num-envs", "10", "--num-steps", "30", "--log-every", "300", "--eval-episodes", "2"]
    argv = ["ppo", *flags, "--eval-every", "600", "--checkpoint-every", "600", "--num-frames", "1200"]
    assert main(["train", *argv, "--out", str(run)]) == 0
    assert [line["step_time"] for line in lines(run)] == [10.0, 1.0, 11.0, 1001.0, 11.0]
    assert lines(run)[3] | {"time/rest": 0.0} == lines(run)[3] | {"time/save": 1000.0, "time/train": 1.0}
    # The last checkpoint has no line after it.
    assert RunFolder(run).read_json("summary.json")["seconds"] == 10 + 1 + 11 + 1001 + 11 + 1000


def measuring(measure: Any, now: list[float]) -> Any:
    def slow(self: Session) -> dict[str, float]:
        now[0] += 10.0
        return measure(self)

    return slow


def training(advance: Any, now: list[float]) -> Any:
    def slow(self: OnPolicyAgent, num_frames: int) -> dict[str, float]:
        now[0] += 1.0
        return advance(self, num_frames)

    return slow


def test_values_that_are_not_finite_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    flags = ["--lr", "1e30", "--num-frames", "3000", "--eval-every", "0", "--eval-episodes", "2"]
    assert main(["train", "dqn", "--env", "Acrobot-v1", *flags, "--out", str(run)]) == 1
    error = capsys.readouterr().err
    assert "RunError: step" in error and "is nan" in error and "Lower --lr" in error


def test_what_shows_that_learning_is_over() -> None:
    assert diverged({"q": 1.0, "td_error": 0.5, "skipped": 0.9}) == ""
    assert diverged({"td_error": float("inf")}) == "td_error is inf"
    assert "finite" in diverged({"skipped": 1.0})


def test_a_world_of_the_zoo_is_stepped_in_one_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "q_learning", *CHAIN, "--num-frames", "500", "--vectorization", "sync"]) == 2
    assert "always stepped as one array" in capsys.readouterr().err


def test_a_longer_run_says_which_schedule_it_follows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That of a run so long, from where it stood: the learning rate, at its end before, rises to the line."""
    run = tmp_path / "run"
    flags = "--env zoo:chain --num-envs 2 --num-steps 8 --hidden 4 --lr 0.01 --eval-every 0 --eval-episodes 2"
    lines_every = ["--log-every", "16", "--num-frames", "320"]
    assert main(["train", "a2c", *flags.split(), *lines_every, "--out", str(run)]) == 0
    assert "longer by" not in capsys.readouterr().out
    done = lines(run)[-1]
    assert done["learning_rate"] < 0.001
    assert main(["train", "--resume", str(run), "--num-frames", "640"]) == 0
    said = capsys.readouterr().out
    assert "longer by 320 frames" in said and "went to frame 320 and now stands where a run of 640" in said
    after = lines(run)[done["step"] + 1 :]
    # The rate of a line is that of its last batch, which the frames before it decide: less than a batch ago.
    for line in after:
        exact = 0.01 * (1 - line["num_frames"] / 640)
        assert exact < line["learning_rate"] <= exact + 0.01 * 16 / 640
    assert after[0]["learning_rate"] > 0.0045
    # Longer again: it went to the frame that was the last one then.
    assert main(["train", "--resume", str(run), "--num-frames", "700"]) == 0
    assert "longer by 60 frames" in capsys.readouterr().out


class Batches:
    """An agent whose batches are 64 frames, all of them lived."""

    num_frames = 0

    def advance(self, num_frames: int) -> dict[str, float]:
        while self.num_frames < num_frames:
            self.num_frames += 64
        return {}

    def drain(self) -> list[Any]:
        return []

    def state(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize("num_frames", [121, 125, 128])
def test_a_last_batch_that_passes_over_the_end_leaves_no_empty_line(num_frames: int) -> None:
    """Lines of 10 frames: the last one is short, and the batch ends within it."""
    config: ControlConfig[Any] = ControlConfig(QLearning(), "zoo:chain", log_every=10, eval_every=0)
    world = worlds.make(config, 1)
    agent: Any = Batches()

    def lived(num_frames: int, step: int = 0) -> list[tuple[int, float]]:
        session = Session(replace(config, num_frames=num_frames), world, agent)
        session.step, session._measure = step, lambda: {"measured": 1.0}  # pyright: ignore
        found: list[tuple[int, float]] = []
        while session.step < session.num_steps:
            values = session.advance(None, None)  # pyright: ignore
            found.append((session.step, values["num_frames"]))
            assert ("measured" in values) == (values["num_frames"] >= num_frames)
        return found

    assert lived(num_frames) == [(6, 64), (13, 128)]
    assert lived(150, step=13) == [(15, 192)]
    # Made longer by no more than what was lived already, there is nothing left to live.
    assert lived(185, step=15) == []


def test_no_two_measurements_play_the_same_episodes() -> None:
    config: ControlConfig[Any] = ControlConfig(QLearning(), "zoo:chain", log_every=64, eval_every=64)
    agent: Any = Batches()
    seeds: list[int] = []

    def play(seed: int) -> Played:
        seeds.append(seed)
        return Played([0.0], 0)

    for seed in (0, 1):
        agent.num_frames = 0
        session = Session(replace(config, num_frames=128, seed=seed), worlds.make(config, 1), agent)
        session.play = play
        session.before(None)  # pyright: ignore
        while session.step < session.num_steps:
            session.advance(None, None)  # pyright: ignore
    assert len(set(seeds)) == len(seeds) == 6
