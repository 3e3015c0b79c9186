"""A run whose scorer fails now and then goes on and says so; one whose scorer is gone saves and stops."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from gradhat.errors import TaskError
from gradhat.training import checkpoint
from gradhat.training.loop import train
from gradhat.training.run_folder import RunFolder
from gradhat.training.text.config import TrainConfig, to_json
from gradhat.training.text.session import prepare

TASK = """
import random
from gradhat.envs.text.task import Question

class Flaky:
    calls = 0

    def question(self, seed):
        return Question(f"Say {random.Random(seed).randrange(1000)}", "a")

    def score(self, question, completion):
        Flaky.calls += 1
        if fails(Flaky.calls):
            raise ConnectionError("nobody there")
        return float(any(letter in "abcdefghijklm" for letter in completion))
"""


def started(config: TrainConfig, folder: Path, fails: str, **changes: Any) -> Path:
    """Run a task whose n-th call fails where `fails` holds; return the run's folder."""
    file = folder / "flaky.py"
    file.write_text(f"{TASK}\nfails = lambda n: {fails}\n")
    changed = replace(config, task=f"{file}:Flaky", **changes)
    with RunFolder.create(folder / "run", to_json(changed)) as run:
        train(run, prepare(changed))
    return folder / "run"


def test_failures_now_and_then_are_counted_and_never_learned_from(
    config: TrainConfig, tmp_path: Path
) -> None:
    path = started(config, tmp_path, "n > 40 and n % 7 == 0")
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "num_unjudged" in line]
    assert len(steps) == config.num_steps
    seen = 0
    for line in steps:
        rows = parquet.read_table(path / f"rollouts/step_{line['step']:06d}.parquet").to_pylist()
        failed = [row for row in rows if row["reward"] is None]
        assert line["num_unjudged"] == len(failed)
        assert all("nobody there" in row["why"] and row["adv"] is None for row in failed)
        learned = {row["group"] for row in rows if row["adv"] is not None}
        assert learned.isdisjoint(row["group"] for row in failed)
        assert "non_finite" not in line
        seen += len(failed)
    assert seen > 5
    # Rewards that are not there are neither 0 nor 1, and still every reward is one of these.
    assert "held_out/accuracy" in lines[-1]
    measured = [line for line in lines if "held_out/num_unjudged" in line]
    assert sum(line["held_out/num_unjudged"] for line in measured) > 0
    assert json.loads((path / "summary.json").read_text())["after"]["held_out/num_unjudged"] > 0


def test_a_scorer_that_is_gone_stops_the_run_after_the_last_whole_step_is_saved(
    config: TrainConfig, tmp_path: Path
) -> None:
    with pytest.raises(TaskError, match=r"nobody there.*5 times in a row: the run stops"):
        started(config, tmp_path, "n > 90", max_unjudged=5, checkpoint_every=100, num_steps=50)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    newest, _ = checkpoint.newest(tmp_path / "run/checkpoints")
    assert newest is not None
    assert newest.step == lines[-1]["step"] > 0
