"""The line of a control run: digits by the scale of the world, tables beside the optimum."""

import math
from pathlib import Path

import pytest

from gradhat.cli.main import main
from gradhat.training.control.progress import progress_line

MEASURED = {"greedy/return": 0.73, "greedy/low": 0.64, "greedy/high": 0.82, "num_frames": 5000.0}


def line(metrics: dict[str, float], scale: float = 1.0, episodes: int = 100) -> str:
    return progress_line(metrics, math.nan, scale=scale, eval_episodes=episodes)


def test_a_table_is_shown_beside_the_optimum_with_its_error_and_its_exploration() -> None:
    table = {"q_error/max": 0.0412, "epsilon": 0.3, "optimal_return": 0.742}
    assert line(MEASURED | table) == (
        "frames 5,000  greedy 0.730 [0.640, 0.820], optimal 0.742  q_error 0.0412  epsilon 0.300"
    )


def test_digits_follow_the_scale_and_few_episodes_are_counted() -> None:
    # Was: training 218.5 [-156.3, 593.3], and FrozenLake's 0.73 and 0.75 looked the same.
    training = {"episode/return": 218.5, "num_episodes": 2.0}
    assert "training 218.5 (n=2)" in line(training, scale=500.0)
    assert line(MEASURED | {"greedy/return": 0.75}) != line(MEASURED)
    assert line({"greedy/return": -0.04}, scale=500.0, episodes=2) == "frames 0  greedy 0.0 (n=2)"
    assert (
        line({"sampled/return": 3.0, "sampled/cut": 0.5}, 5.0, 1) == "frames 0  sampled 3.00 (n=1)  cut 50%"
    )


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["q_learning", "--env", "zoo:chain"], ["epsilon ", "q_error ", "optimal "]),
        (["dqn", "--first-frames", "100"], ["epsilon "]),
    ],
    ids=["table", "dqn"],
)
def test_runs_show_them(
    argv: list[str], wanted: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--num-envs 2 --num-frames 400 --log-every 100 --eval-every 200 --eval-episodes 4 --out"
    assert main(["train", *argv, *flags.split(), str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    shown = [text for text in out.splitlines() if text.startswith("frames")]
    assert len(shown) == 3 and all(word in shown[-1] for word in wanted)
    assert ("optimal" in out.partition("done.")[2]) == ("optimal " in wanted)
