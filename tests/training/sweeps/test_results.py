"""What a run folder says of itself, in numbers that were written by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from gradhat.errors import RunError
from gradhat.training.sweeps.results import (
    CONTROL,
    TEXT,
    Run,
    curve,
    find,
    judged_by,
    kind_of,
    metrics,
    outcome,
    possible,
    read,
)

RETURN = "greedy/return"


def made(path: Path, config: dict[str, Any], lines: list[dict[str, Any]], after: Any = None) -> Path:
    (path / "checkpoints").mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if after is not None:
        (path / "summary.json").write_text(json.dumps({"after": after}))
    return path


def control(lines: list[dict[str, Any]]) -> Run:
    return Run(Path("run"), {}, CONTROL, lines, None)


def text(*lines: dict[str, Any]) -> Run:
    return Run(Path("run"), {}, TEXT, list(lines), None)


def test_a_run_is_read_with_its_settings_by_whole_names(tmp_path: Path) -> None:
    path = made(tmp_path / "a", {"env": "E", "learning": {"lr": 0.1}}, [{"step": 0}], {"greedy/return": 3.0})
    run = read(path)
    assert (run.settings, run.kind, run.lines) == ({"env": "E", "learning.lr": 0.1}, CONTROL, [{"step": 0}])
    assert run.summary == {"after": {"greedy/return": 3.0}}
    assert read(made(tmp_path / "b", {"task": "t"}, [{"step": 0}])).summary is None
    assert kind_of({"task": "t"}) is TEXT


def test_a_run_that_has_not_begun_says_how_to(tmp_path: Path) -> None:
    path = made(tmp_path / "a", {"env": "E"}, [])
    with pytest.raises(RunError, match=f"found none: the run has not begun.*--resume {path}"):
        read(path)


def test_runs_are_found_by_name_in_a_folder(tmp_path: Path) -> None:
    for name in ("b", "a"):
        made(tmp_path / name, {"env": "E"}, [{"step": 0}])
    (tmp_path / "logs").mkdir()
    assert find(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert find(tmp_path / "a") == [tmp_path / "a"]
    for place in (tmp_path / "logs", tmp_path / "nothing"):
        with pytest.raises(RunError, match=f"find runs in {place}: found none"):
            find(place)


def test_the_training_average_is_over_the_episodes_of_the_last_tenth() -> None:
    lines = [{"step": i, "episode/return": 1000.0, "num_episodes": 5.0} for i in range(1, 19)]
    lines += [
        {"step": 19, "episode/return": 10.0, "num_episodes": 1.0},
        {"step": 20, "episode/return": 40.0, "num_episodes": 2.0},
    ]
    assert outcome(control(lines), RETURN).training == pytest.approx((10 + 2 * 40) / 3)
    # No episode ended in the last line.
    lines[-1] = {"step": 20}
    assert outcome(control(lines), RETURN).training == 10.0
    assert math.isnan(outcome(control([{"step": 0, "episode/return": 3.0}]), RETURN).training)


def test_the_rate_is_frames_over_seconds() -> None:
    # 300 frames in 3 seconds of training, then 100 in 2: not the mean of 100 and 50.
    lines: list[dict[str, Any]] = [
        {"step": 0},
        {"step": 1, "frames_per_second": 100.0, "time/train": 3.0, "step_time": 9.0},
        {"step": 2, "frames_per_second": 50.0, "time/train": 2.0, "step_time": 2.0},
        {"step": 3, "frames_per_second": None, "time/train": 1.0, "step_time": 1.0},
    ]
    found = outcome(control(lines), RETURN)
    assert found.rate == pytest.approx(400 / 5)
    assert math.isnan(found.score)


def test_the_score_is_what_the_last_line_of_the_curve_says() -> None:
    # A table that reads another place than the plot shows another number.
    lines = [
        {"step": 1, "reward": 0.5, "tokens_per_second": 10.0, "time/sample": 1.0},
        {"step": 1, "final": 1.0, "held_out/accuracy": 0.75, "held_out/reward": 0.8},
        {"step": 1},
    ]
    for score in ("held_out/accuracy", "held_out/reward"):
        run = text(lines[0] | {score: 0.1}, *lines[1:])
        assert outcome(run, score) == (lines[1][score], 0.5, 10.0)
        assert curve(run, "steps", score) == ([1.0], [lines[1][score]])


def test_runs_are_judged_by_what_all_of_them_have() -> None:
    both = {"held_out/accuracy": 0.5, "held_out/reward": 0.5}
    right, graded = text({"step": 0} | both), text({"step": 0} | both, {"step": 9, "held_out/reward": 0.25})
    assert judged_by([right, right]) == "held_out/accuracy"
    # The second met partial credit: its accuracy of step 0 was none.
    assert judged_by([right, graded]) == judged_by([graded]) == "held_out/reward"
    assert judged_by([control([{"step": 0}])]) == RETURN
    assert judged_by([text({"step": 0})]) == "held_out/reward"
    assert possible("held_out/accuracy") == (0, 1)
    assert possible("held_out/reward") == possible(RETURN) == (-math.inf, math.inf)


def test_runs_that_measure_different_policies_are_judged_each_by_its_own() -> None:
    """One world hides its state, the other does not: neither's number goes by the other's name."""
    hidden = control(
        [{"step": 0, "sampled/return": -7.0}, {"step": 1, "num_frames": 5.0, "sampled/return": -6.5}]
    )
    seen = control([{"step": 0, "greedy/return": 1.0}])
    assert judged_by([hidden]) == judged_by([hidden, hidden]) == "sampled/return"
    assert judged_by([hidden, seen]) == "return"
    assert outcome(hidden, "return").score == -6.5 and outcome(seen, "return").score == 1.0
    assert curve(hidden, "steps", "return") == ([0.0, 1.0], [-7.0, -6.5])
    assert math.isnan(outcome(seen, "sampled/return").score)
    # A run without a measurement says nothing about which it is.
    assert judged_by([hidden, control([{"step": 0}])]) == "return"


def test_runs_that_measure_nothing_are_judged_by_their_training() -> None:
    alone = control([{"step": i, "episode/return": float(i), "num_episodes": 1.0} for i in range(1, 21)])
    assert judged_by([alone]) == judged_by([alone, alone]) == "episode/return"
    found = outcome(alone, "episode/return")
    assert found.score == found.training == 19.5, "of the last tenth"
    # Training is what all have; where one has not even that, it is not.
    seen = control([*alone.lines, {"step": 21, "greedy/return": 1.0}])
    assert judged_by([alone, seen]) == "episode/return" and judged_by([seen]) == RETURN
    assert judged_by([alone, control([{"step": 0, "greedy/return": 1.0}])]) == RETURN
    assert judged_by([text({"step": 1, "reward": 0.5})]) == "reward"


LINES = [
    {"step": 0, "greedy/return": 1.0},
    {"step": 1, "num_frames": 50.0, "step_time": 2.0, "entropy": 0.5},
    {"step": 2, "num_frames": 90.0, "step_time": 4.0, "greedy/return": 5.0, "entropy": None},
    {"step": 3, "num_frames": 130.0, "step_time": 1.0, "greedy/return": 6, "non_finite": ["entropy"]},
]


@pytest.mark.parametrize(
    ("x", "places"),
    [("frames", [0.0, 90.0, 130.0]), ("steps", [0.0, 2.0, 3.0]), ("time", [0.0, 6.0, 7.0])],
)
def test_a_curve_lies_where_the_metric_was_measured(x: Any, places: list[float]) -> None:
    assert curve(control(LINES), x, "greedy/return") == (places, [1.0, 5.0, 6.0])


def test_what_was_never_measured_has_no_curve() -> None:
    assert curve(control(LINES), "frames", "entropy") == ([50.0], [0.5])
    assert curve(control(LINES), "frames", "nothing") == ([], [])
    assert curve(control(LINES), "steps", "non_finite") == ([], [])
    assert curve(control([{"step": 1, "reward": 1.0}]), "frames", "reward") == ([], [])
    assert metrics(control(LINES))[:3] == ["step", "greedy/return", "num_frames"]
