"""How a control run ends, goes on, and gives up."""

import json
from pathlib import Path

import pytest

from gradhat.cli.main import main
from gradhat.training.control.session import diverged

CHAIN = ["--env", "zoo:chain", "--eval-episodes", "2", "--log-every", "400", "--num-envs", "4"]


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_an_algorithm_needs_no_flags(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["ppo"], ["sac"], ["first_light"]):
        assert main(["train", *words, "--dry-run"]) == 0
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
    found = lines(run)
    # One batch of 50 episodes is longer than the run; the lines after it have no frame of their own.
    assert found[1]["num_frames"] > 300 and "frames_per_second" in found[1]
    assert "frames_per_second" not in found[2] and found[2]["num_frames"] == found[1]["num_frames"]
    assert f"frames {found[1]['num_frames']:,.0f}" in capsys.readouterr().out


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
