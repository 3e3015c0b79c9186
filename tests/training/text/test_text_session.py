"""What a run draws, counts and measures, through `prepare`."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from gradhat.errors import RunError, TaskError
from gradhat.rollouts.engine import Engine, Limits
from gradhat.training.loop import train
from gradhat.training.run_folder import RunFolder
from gradhat.training.text.config import TrainConfig, learning_rate, to_json
from gradhat.training.text.session import prepare

Start = Callable[..., tuple[Path, list[dict[str, Any]]]]


@pytest.fixture
def start(config: TrainConfig, tmp_path: Path) -> Start:
    """Run a changed config; return its folder and its metrics."""

    number = count()

    def started(**changes: Any) -> tuple[Path, list[dict[str, Any]]]:
        changed = replace(config, **changes)
        session = prepare(changed)
        path = tmp_path / f"run{next(number)}"
        with RunFolder.create(path, to_json(changed)) as run:
            assert train(run, session) == 0
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        return path, [line for line in lines if "final" not in line]

    return started


def task(folder: Path, question: str, score: str = "letter(completion)") -> str:
    """Return a task of two expressions: its question to `seed`, and the score of a completion of `q`.

    A letter from a to m is in half of all random answers.
    """
    file = folder / "asked.py"
    file.write_text(
        "import random\n"
        "from gradhat.envs.text.task import Question\n"
        "class Asked:\n"
        f"    def question(self, seed): return Question({question}, 'a')\n"
        f"    def score(self, q, completion): return float({score})\n"
        "def letter(completion): return any(c in 'abcdefghijklm' for c in completion)\n"
    )
    return f"{file}:Asked"


def test_questions_that_are_too_long_for_the_context_are_passed_over_and_counted(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A third of them, in training and among those that are held out. The context holds 512 bytes."""
    mine = task(tmp_path, "f'Say {seed} ' + 500 * '.' * (random.Random(seed).random() < 1 / 3)")
    path, lines = start(task=mine, final_questions=30)
    out = capsys.readouterr().out
    left_out = 30 - json.loads((path / "summary.json").read_text())["questions"]
    assert 3 < left_out < 20
    assert f"{30 - left_out} questions held out, {left_out} more left out: too long for the context" in out
    passed_over = sum(line["num_too_long"] for line in lines[1:])
    drawn = sum(2 + line["num_replaced"] for line in lines[1:])
    assert 0.15 < passed_over / (passed_over + drawn) < 0.55
    for file in (path / "rollouts").iterdir():
        prompts = parquet.read_table(file)["prompt_tokens"].to_pylist()
        assert max(map(len, prompts)) + 8 <= 512


def test_a_stream_of_questions_that_are_all_too_long_is_an_error(
    start: Start, tmp_path: Path, letters_task: str
) -> None:
    long = task(tmp_path, "f'Say {seed} ' + 500 * '.'")
    with pytest.raises(TaskError, match=r"100 in a row that are too long.*context holds 504"):
        start(curriculum=(long,))
    with pytest.raises(TaskError, match=r"held-out questions: found prompts of 5\d\d .*holds 512"):
        start(task=long)


def test_a_run_says_that_no_question_was_too_long(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    _, lines = start(num_steps=1)
    assert lines[1]["num_too_long"] == 0
    assert "too long" not in capsys.readouterr().out


def test_the_curriculum_follows_the_first_draw(start: Start, tmp_path: Path, letters_task: str) -> None:
    """Most prompts are solved whatever is said, so their groups are silent and never in the chosen batch,
    half of whose answers are right. The task as a whole is solved to 0.8.
    """
    easy = task(
        tmp_path,
        "f'Say {seed}'",
        "float(completion != '' and (random.Random(q.text).random() < 0.75 or letter(completion)))",
    )
    _, lines = start(
        curriculum=(easy,), curriculum_threshold=0.7, num_prompts=4, num_steps=9, max_replacements=50
    )
    assert [line["curriculum/level"] for line in lines[1:]] == [0] * 8 + [1]
    assert sum(line["num_replaced"] for line in lines[1:9]) > 20


def test_held_out_questions_and_their_judge_are_those_of_the_last_level(
    config: TrainConfig, tmp_path: Path, letters_task: str
) -> None:
    last = task(tmp_path, "f'Tell {seed}'")
    session = prepare(replace(config, curriculum=(letters_task,), task=last))
    assert {question.text.split()[0] for question in session.held_out} == {"Tell"}
    assert session.task is session.source.levels[-1] is not session.source.levels[0]


def test_reward_functions_score_every_level(config: TrainConfig, tmp_path: Path, letters_task: str) -> None:
    file = tmp_path / "flat.py"
    file.write_text("def flat(completions, **_):\n    return [0.25 for _ in completions]\n")
    changed = replace(config, curriculum=(letters_task,), task=task(tmp_path, "f'Tell {seed}'"))
    session = prepare(replace(changed, reward=(f"{file}:flat=2",)))
    for level in (*session.source.levels, session.task):
        said: Any = level.score(level.question(1), "anything")
        assert (said.reward, said.parts) == (0.5, {"flat": 0.25})


def test_no_two_batches_and_no_two_measurements_draw_alike(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps, rounds of replacements, measurements: the same prompt would be answered the same again."""
    seeds: list[int] = []
    sample = Engine.sample

    def listening(self: Engine, prompts: Sequence[Sequence[int]], n: int, limits: Limits) -> Any:
        seeds.append(limits.seed)
        return sample(self, prompts, n, limits)

    monkeypatch.setattr(Engine, "sample", listening)
    start(num_steps=3, eval_every=1, eval_questions=2, eval_samples=1, final_questions=2, final_samples=2)
    # Before, in each step a batch and a measurement, then sampled and greedy; the last is of one sample too.
    assert len(seeds) >= 1 + 2 * 3 + 2
    assert len(set(seeds[:-1])) == len(seeds) - 1


@pytest.mark.parametrize("temperature", [0.7, 1.6])
def test_sampler_and_trainer_agree_at_any_temperature(start: Start, temperature: float) -> None:
    _, lines = start(temperature=temperature, num_steps=2, algorithm="grpo", kl_coef=0.1)
    assert max(line["sampling/sampling_logp_difference/max"] for line in lines[1:]) < 1e-4
    assert abs(lines[1]["kl"]) < 1e-5


def test_the_last_measurement_is_sampled_and_greedy(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, float, int]] = []
    sample = Engine.sample

    def listening(self: Engine, prompts: Sequence[Sequence[int]], n: int, limits: Limits) -> Any:
        asked.append((len(prompts), limits.temperature, n))
        return sample(self, prompts, n, limits)

    monkeypatch.setattr(Engine, "sample", listening)
    start(temperature=3.0, num_steps=1)
    assert asked[0] == (6, 3.0, 2)
    assert asked[-2:] == [(6, 3.0, 2), (6, 0.0, 1)]


def test_a_sampler_that_claims_other_probabilities_is_corrected_for(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that each token is twice as likely as it is: every weight is a half, and so is the gradient."""
    _, (_, plain) = start(num_steps=1)
    _, (_, agreed) = start(num_steps=1, mismatch="truncated")
    sample = Engine.sample

    def boasting(self: Engine, prompts: Sequence[Sequence[int]], n: int, limits: Limits) -> Any:
        answers = sample(self, prompts, n, limits)
        return [[c._replace(logp=tuple(x + math.log(2) for x in c.logp)) for c in group] for group in answers]

    monkeypatch.setattr(Engine, "sample", boasting)
    _, (_, corrected) = start(num_steps=1, mismatch="truncated")
    _, (_, masked) = start(num_steps=1, mismatch="masked", mismatch_low=0.6)
    assert agreed["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4)
    assert agreed["mismatch/weight_mean"] == pytest.approx(1, abs=1e-5)
    assert corrected["grad_norm"] == pytest.approx(plain["grad_norm"] / 2, rel=1e-4)
    assert corrected["mismatch/weight_mean"] == pytest.approx(1 / 2, abs=1e-5)
    assert (masked["grad_norm"], masked["mismatch/frac_bounded"]) == (0, 1)


def test_the_learning_rate_rises_falls_and_follows_the_longer_run(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By hand: half way up, up, then down in a straight line to the last step, of the longer run too."""
    falling = replace(config, num_steps=4, lr_warmup_steps=2, lr=1e-3, lr_end=2e-4, checkpoint_every=4)

    def rates() -> list[float]:
        lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
        return [line["learning_rate"] for line in lines if "learning_rate" in line]

    with RunFolder.create(tmp_path / "run", to_json(falling)) as run:
        assert train(run, prepare(falling)) == 0
    assert rates() == pytest.approx([5e-4, 1e-3, 6e-4, 2e-4])
    assert "longer by" not in capsys.readouterr().out
    longer = replace(falling, num_steps=6)
    with RunFolder.open(tmp_path / "run") as run:
        assert train(run, prepare(longer), config=to_json(longer)) == 0
    assert rates()[4:] == pytest.approx([4e-4, 2e-4])
    assert "longer by 2 steps: the learning rate went to 0.0002 at step 4" in capsys.readouterr().out


def test_a_run_that_ended_in_its_warmup_never_went_to_its_last_rate(config: TrainConfig) -> None:
    warming = replace(config, num_steps=4, lr_warmup_steps=2, lr=1e-3, lr_end=2e-4)
    session = prepare(warming)
    for planned, said in ((2, False), (3, True)):
        session.planned = planned
        assert ("longer by" in session.opening()) is said


def test_a_checkpoint_without_a_plan_is_gone_on_from(start: Start, config: TrainConfig) -> None:
    path, before = start()
    state = path / f"checkpoints/step_{config.num_steps:06d}/state.json"
    kept = json.loads(state.read_text())
    del kept["cursor"]["num_steps"]
    state.write_text(json.dumps(kept))
    longer = replace(config, num_steps=config.num_steps + 1)
    with RunFolder.open(path) as run:
        assert train(run, prepare(longer), config=to_json(longer)) == 0
    steps = [json.loads(line)["step"] for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert steps.count(before[-1]["step"] + 1) == 2  # The step, and the final measurement.


@pytest.mark.parametrize(
    ("warmup", "end", "wanted"),
    [
        (0, 0.0, [4.0, 2.0, 0.0]),
        (1, 0.0, [4.0, 2.0, 0.0]),
        (2, None, [2.0, 4.0, 4.0]),
        (3, 1.0, [4 / 3, 8 / 3, 4.0]),
        (4, 1.0, [1.0, 2.0, 3.0]),
        (0, 8.0, [4.0, 6.0, 8.0]),
    ],
)
def test_the_learning_rate_of_each_step(warmup: int, end: float | None, wanted: list[float]) -> None:
    config = TrainConfig(num_steps=3, lr=4.0, lr_warmup_steps=warmup, lr_end=end)
    assert [learning_rate(config, step) for step in (1, 2, 3)] == pytest.approx(wanted)


def test_a_cursor_that_does_not_fit_is_told_with_its_checkpoint(start: Start, config: TrainConfig) -> None:
    path, _ = start()
    state = path / f"checkpoints/step_{config.num_steps:06d}/state.json"
    kept = json.loads(state.read_text())
    kept["cursor"]["version"] = "two"
    state.write_text(json.dumps(kept))
    longer = replace(config, num_steps=config.num_steps + 1)
    with RunFolder.open(path) as run, pytest.raises(RunError) as raised:
        train(run, prepare(longer))
    assert str(state.parent) in str(raised.value) and "cursor.version is 'two'" in str(raised.value)


def test_what_is_said_of_the_task_is_said_of_the_last_level(
    config: TrainConfig, tmp_path: Path, letters_task: str
) -> None:
    last = task(tmp_path, "f'Tell {seed}'", "2 * letter(completion)")
    session = prepare(replace(config, curriculum=(letters_task,), task=last))
    assert str(session.tried.checked) == "its own answers score 2, the empty completion scores 0"


def test_a_run_that_stopped_early_is_no_longer_one(
    start: Start, config: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Any] = {"num_steps": 4, "lr_end": 0.0, "lr_warmup_steps": 1, "full_checkpoints": 2}
    path, _ = start(**changes)
    shutil.rmtree(path / "checkpoints/step_000004")
    (path / "summary.json").unlink()
    with RunFolder.open(path) as run:
        assert train(run, prepare(replace(config, **changes))) == 0
    said = capsys.readouterr().out
    assert "from step 2" in said and "longer by" not in said
