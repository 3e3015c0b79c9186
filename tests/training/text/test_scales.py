"""Rewards on any scale, from training to the plot: an expected return, and an accuracy where it is one."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from gradhat.cli.main import main
from gradhat.training.loop import train
from gradhat.training.run_folder import RunFolder
from gradhat.training.text.config import TrainConfig, to_json
from gradhat.training.text.session import prepare
from gradhat.training.text.trial import tried

SCORES = {
    "zero to ten": "10.0 * right",
    "minus one and one": "1.0 if right else -1.0",
    "at most zero": "-1.0 + right",
    "partial credit": "sum(c in 'abcdefghijklm' for c in completion) / 40",
}


def task(folder: Path, score: str, solved: str = "") -> str:
    file = folder / "scaled.py"
    file.write_text(
        "from gradhat.envs.text.task import Question\n"
        "class Scaled:\n"
        f"    {solved or 'pass'}\n"
        "    def question(self, seed): return Question(f'Say {seed % 1000}', '')\n"
        "    def score(self, question, completion):\n"
        "        right = any(c in 'abcdefghijklm' for c in completion)\n"
        f"        return {score}\n"
    )
    return f"{file}:Scaled"


def run_of(config: TrainConfig, folder: Path, spec: str) -> Path:
    short = replace(config, task=spec, num_steps=2, eval_every=1)
    with RunFolder.create(folder / "run", to_json(short)) as run:
        assert train(run, prepare(short)) == 0
    return folder / "run"


@pytest.mark.parametrize("name", SCORES)
def test_where_nobody_says_what_solves_a_question_no_accuracy_is_shown(
    name: str, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(config, tmp_path, task(tmp_path, SCORES[name]))
    # What a run says of its first measurement may be all zeros, which are both.
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all("held_out/accuracy" not in line for line in lines[1 if name == "zero to ten" else 0 :])
    assert all(
        {"held_out/reward", "held_out/reward_low", "held_out/reward_high"} <= set(line) for line in lines
    )
    assert main(["plot", str(run)]) == 0
    said = capsys.readouterr().out
    assert "held-out reward " in said and "held_out/reward where the lines end" in said
    ended = said[said.index("done. ") :]
    assert "sampled reward " in ended and "accuracy" not in ended


def test_a_task_that_says_it_has_an_accuracy_of_its_own(config: TrainConfig, tmp_path: Path) -> None:
    run = run_of(config, tmp_path, task(tmp_path, SCORES["zero to ten"], "solved = 5"))
    *_, last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert 10 * last["held_out/accuracy"] == pytest.approx(last["held_out/reward"])
    assert 0 <= last["held_out/accuracy_low"] <= last["held_out/accuracy_high"] <= 1


def test_what_a_run_calls_a_reward_is_none_the_less_one_where_it_is_measured_again(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In training half a point is paid, on held-out questions nothing but 0 and 1."""
    spec = task(tmp_path, "float(right) if held_out(question.text) else 0.5")
    file = tmp_path / "scaled.py"
    file.write_text("from gradhat.envs.text.task import held_out\n" + file.read_text())
    run = run_of(replace(config, num_steps=1), tmp_path, spec)
    assert "sampled reward " in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    limits = ["--n", "6", "--max-new-tokens", "8", "--dtype", "float32"]
    for judge in (["--trust"], ["--task", "scaled.py:Scaled"]):
        assert main(["eval", str(run), *judge, *limits]) == 0
        said = capsys.readouterr().out
        assert "sampled  reward " in said and "greedy   reward " in said
        assert "accuracy" not in said and "pass@" not in said
    # Of another judge the run knows nothing.
    (tmp_path / "other.py").write_text(file.read_text())
    assert main(["eval", str(run), "--task", "other.py:Scaled", *limits]) == 0
    assert "sampled  accuracy " in capsys.readouterr().out


def test_the_answers_of_a_task_say_of_what_kind_its_rewards_are(config: TrainConfig, tmp_path: Path) -> None:
    """Nobody samples a reward here, but a gold answer has 2.5: a share of zeros is no accuracy."""
    spec = task(tmp_path, "2.5 if completion == 'gold' else 0.0")
    file = tmp_path / "scaled.py"
    file.write_text(file.read_text().replace("', '')", "', 'gold')"))
    run = run_of(config, tmp_path, spec)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 4 and all("held_out/accuracy" not in line for line in lines)
    assert [line["held_out/reward"] for line in lines] == [0.0] * 4


def test_an_accuracy_ends_where_other_rewards_begin(config: TrainConfig, tmp_path: Path) -> None:
    session = prepare(replace(config, task=task(tmp_path, SCORES["zero to ten"])))
    # What its answers score says nothing of the range of what a policy may have.
    assert session.scale.bounds() == (-math.inf, math.inf)
    known = {"held_out/num_questions": 9.0, "held_out/accuracy": 0.0, "held_out/reward": 0.0}
    assert "held-out accuracy 0.000" in session.progress(1, known, math.inf)
    session.scale.take([10.0])
    assert "held-out reward 0.0" in session.progress(2, known, math.inf)


def test_the_line_of_progress_has_the_digits_of_the_rewards(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of(config, tmp_path, task(tmp_path, "1000.0 * right"))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step 2/2")]
    assert re.search(r"  reward \d+\.\d [(\[]", line), line


def test_a_function_need_not_like_the_answers_best(config: TrainConfig, tmp_path: Path) -> None:
    """A column called answer is no completion for a function that pays for few letters."""
    (tmp_path / "brief.py").write_text("def brief(completions, **_): return [-len(c) for c in completions]\n")
    rows = "".join(json.dumps({"question": f"q{n}", "answer": "abc"}) + "\n" for n in range(99))
    (tmp_path / "q.jsonl").write_text(rows)
    asked = replace(config, task=str(tmp_path / "q.jsonl"), reward=(f"{tmp_path / 'brief.py'}:brief",))
    assert str(tried(asked).checked) == "its own answers score -3, the empty completion scores 0"
