"""Every flag of a language run reaches: with another value of any setting the run is another run, or the
setting is listed here as one that changes no result, which is tested too. A new setting without an entry
fails.
"""

import json
import math
from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from gradhat.errors import RunError, TaskError
from gradhat.policies.language.policy import LanguagePolicy
from gradhat.training.loop import train
from gradhat.training.optim import MasterAdamW
from gradhat.training.run_folder import RunFolder
from gradhat.training.text.config import CHANGEABLE, ROUNDING, TrainConfig, check, to_json
from gradhat.training.text.session import prepare

TASKS = Path(__file__).parents[2] / "golden" / "spelling.py"
CLOCK = ("step_time", "tokens_per_second", "time/")
BASE = TrainConfig(
    task=f"{TASKS}:Plain",
    num_steps=3,
    num_prompts=3,
    group_size=2,
    max_new_tokens=6,
    lr=1e-2,
    lr_warmup_steps=3,
    max_replacements=3,
    eval_every=2,
    eval_questions=3,
    eval_samples=2,
    final_questions=4,
    final_samples=2,
    checkpoint_every=2,
    num_threads=1,
    dtype="float32",
)
CLIPPED = {"algorithm": "grpo", "num_epochs": 2, "clip_low": 0.01, "clip_high": 0.01}
LEVELS = {"curriculum": (f"{TASKS}:Printable",), "curriculum_threshold": 0.1, "num_prompts": 16}
"""A level that opens after the second step."""


class Case(NamedTuple):
    """Another value of a setting, and what it needs beside it to mean anything."""

    value: Any
    needs: dict[str, Any] = {}  # noqa: RUF012


LEARNED: dict[str, Case] = {
    "task": Case(f"{TASKS}:Printable"),
    "reward": Case(("task=2", f"{TASKS}:brief")),
    "curriculum": Case((f"{TASKS}:Printable",)),
    "curriculum_threshold": Case(1.0, LEVELS),
    "system": Case("Be brief."),
    "template_args": Case(("loud=true",), {"model": "switched"}),
    "model": Case("another"),
    "algorithm": Case("dr_grpo"),
    "baseline_decay": Case(0.3, {"algorithm": "reinforce", "max_replacements": 16}),
    "num_steps": Case(4),
    "num_prompts": Case(4),
    "group_size": Case(3),
    "max_new_tokens": Case(5),
    "temperature": Case(0.7),
    "lr": Case(2e-2),
    "lr_end": Case(1e-3, {"lr_warmup_steps": 1}),
    "lr_warmup_steps": Case(0),
    "betas": Case((0.5, 0.6)),
    "weight_decay": Case(0.5),
    "max_grad_norm": Case(0.01),
    "num_epochs": Case(3, CLIPPED),
    "clip_low": Case(0.9, CLIPPED),
    "clip_high": Case(0.9, CLIPPED),
    "kl_coef": Case(0.5, {"algorithm": "grpo"}),
    "mismatch": Case("truncated"),
    "mismatch_cap": Case(0.5, {"mismatch": "truncated"}),
    # Sampler and trainer agree but for rounding: a bound at 1 cuts through it.
    "mismatch_low": Case(1.0, {"mismatch": "masked"}),
    "mismatch_high": Case(1.0, {"mismatch": "masked"}),
    "replace_silent": Case(False, {"max_replacements": 16}),
    "max_replacements": Case(1),
    "seed": Case(1),
    "dtype": Case("bfloat16"),
}
"""What changes what is learned."""
MEASURED: dict[str, Case] = {
    "eval_every": Case(1),
    "eval_questions": Case(2),
    "eval_samples": Case(3),
    "final_questions": Case(5),
    "final_samples": Case(3),
}
"""What changes the lines of a run, and nothing that is learned."""
NOWHERE: dict[str, Case] = {
    "token_budget": Case(60),
    "num_slots": Case(2),
    "checkpoint_every": Case(1),
    "keep_checkpoints": Case(1),
    "full_checkpoints": Case(2),
    "max_skipped_steps": Case(1),
    "max_unjudged": Case(1),
    "num_threads": Case(2),
}
"""Another value of each of `CHANGEABLE`. That each is honoured all the same is tested below."""


class Run(NamedTuple):
    lines: list[dict[str, Any]]
    """The summary is the last."""
    weights: dict[str, torch.Tensor]
    checkpoints: list[str]


Runs = Callable[[TrainConfig], Run]


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Run a config to its end, once for each."""
    folder = tmp_path_factory.mktemp("runs")
    another, switched = folder / "another", folder / "switched"
    for copy in (another, switched):
        copy.mkdir()
        for file in tiny_model.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
    settings = json.loads((switched / "tokenizer_config.json").read_text())
    settings["chat_template"] += "{% if loud is defined and loud %}!{% endif %}"
    (switched / "tokenizer_config.json").write_text(json.dumps(settings))
    tensors = load_file(another / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.5
    save_file(tensors, another / "model.safetensors", metadata={"format": "pt"})

    @cache
    def once(config: TrainConfig) -> Run:
        folders = {"another": another, "switched": switched}
        config = replace(config, model=str(folders.get(config.model, tiny_model)))
        check(config)
        path = folder / str(len(list(folder.iterdir())))
        with RunFolder.create(path, to_json(config)) as place:
            assert train(place, prepare(config)) == 0
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        lines.append(json.loads((path / "summary.json").read_text()))
        saved = sorted(place.name for place in (path / "checkpoints").iterdir())
        weights = load_file(path / "checkpoints" / saved[-1] / "model.safetensors")
        return Run([_timeless(line) for line in lines], weights, saved)

    return once


def _timeless(line: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in line.items() if not k.startswith((*CLOCK, "seconds", "checkpoint"))}


def pair(run: Runs, name: str, case: Case) -> tuple[Run, Run]:
    """The run with the other value, and the one without."""
    base = replace(BASE, **case.needs)
    assert getattr(base, name) != case.value
    return run(replace(base, **{name: case.value})), run(base)


def same(one: Run, other: Run) -> bool:
    names = one.weights.keys()
    return names == other.weights.keys() and all(torch.equal(one.weights[n], other.weights[n]) for n in names)


def test_every_setting_has_its_place() -> None:
    listed = [*LEARNED, *MEASURED, *NOWHERE]
    assert sorted(listed) == sorted(field.name for field in fields(TrainConfig))
    assert sorted(NOWHERE) == sorted(CHANGEABLE) and set(ROUNDING) < set(CHANGEABLE)


@pytest.mark.parametrize("name", LEARNED)
def test_a_setting_changes_what_is_learned(run: Runs, name: str) -> None:
    mine, theirs = pair(run, name, LEARNED[name])
    assert not same(mine, theirs)


@pytest.mark.parametrize("name", MEASURED)
def test_a_setting_of_measurements_changes_the_lines_and_not_what_is_learned(run: Runs, name: str) -> None:
    mine, theirs = pair(run, name, MEASURED[name])
    assert mine.lines != theirs.lines and same(mine, theirs)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "num_threads" else n for n in NOWHERE]
)
def test_a_setting_changes_no_number_but_by_rounding(run: Runs, name: str) -> None:
    mine, theirs = pair(run, name, NOWHERE[name])
    exactly = name not in (*ROUNDING, "num_threads")
    assert same(mine, theirs) or not exactly
    for one, other in zip(mine.lines, theirs.lines, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert value == pytest.approx(other[key], rel=1e-3, abs=1e-4), key


def test_checkpoints_are_written_and_kept_as_asked(run: Runs) -> None:
    assert run(BASE).checkpoints == ["step_000002", "step_000003"]
    assert run(replace(BASE, keep_checkpoints=1)).checkpoints == ["step_000003"]
    every = replace(BASE, checkpoint_every=1, keep_checkpoints=9)
    assert run(every).checkpoints == ["step_000001", "step_000002", "step_000003"]


def test_as_many_checkpoints_are_full_as_asked(tiny_model: Path, tmp_path: Path) -> None:
    def full(**changes: int) -> list[str]:
        config = replace(BASE, model=str(tiny_model), checkpoint_every=1, keep_checkpoints=3, **changes)
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        with RunFolder.create(path, to_json(config)) as place:
            assert train(place, prepare(config)) == 0
        return sorted(file.parent.name for file in path.rglob("optimizer.safetensors"))

    assert full() == ["step_000003"]
    assert full(full_checkpoints=2) == ["step_000002", "step_000003"]


def test_a_smaller_budget_of_tokens_is_more_micro_batches(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    parts: dict[int, list[int]] = {}
    split = LanguagePolicy.split

    def counted(self: LanguagePolicy, trajectories: Any) -> Any:
        found = split(self, trajectories)
        parts.setdefault(self.token_budget, []).append(len(found))
        return found

    monkeypatch.setattr(LanguagePolicy, "split", counted)
    for budget in (4096, 60):
        config = replace(BASE, model=str(tiny_model), token_budget=budget, num_steps=1)
        with RunFolder.create(tmp_path / str(budget), to_json(config)) as place:
            assert train(place, prepare(config)) == 0
    assert parts[4096] == [1] and parts[60][0] > 1


def test_the_engine_has_the_slots_that_were_asked_for(tiny_model: Path) -> None:
    assert prepare(replace(BASE, model=str(tiny_model), num_slots=2)).engine.num_slots == 2


def test_threads_are_limited_as_asked(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    for threads in (2, None):
        prepare(replace(BASE, model=str(tiny_model), num_threads=threads))
    assert asked == [2]


@pytest.mark.parametrize("most", [1, 3])
def test_as_many_verdicts_in_a_row_may_fail_as_asked(tiny_model: Path, tmp_path: Path, most: int) -> None:
    """Of 14 completions of the held-out questions and six of a step, the rest fail."""
    file = tmp_path / "gone.py"
    file.write_text(
        "from gradhat.envs.text.task import Question\n"
        "class Gone:\n"
        "    calls = 0\n"
        "    def question(self, seed): return Question(f'Say {seed}', '')\n"
        "    def score(self, question, completion):\n"
        "        Gone.calls += 1\n"
        "        if Gone.calls > 40: raise ConnectionError(f'call {Gone.calls}')\n"
        "        return float(Gone.calls % 2)\n"
    )
    config = replace(BASE, model=str(tiny_model), task=f"{file}:Gone", max_unjudged=most, num_steps=99)
    with (
        RunFolder.create(tmp_path / "run", to_json(config)) as place,
        pytest.raises(TaskError, match=f"ConnectionError: call {40 + most}"),
    ):
        train(place, prepare(config))


@pytest.mark.parametrize("most", [1, 2])
def test_as_many_steps_may_be_skipped_as_asked(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, most: int
) -> None:
    accumulate = MasterAdamW.accumulate

    def poisoned(self: MasterAdamW) -> None:
        next(w.grad for w in self.weights.values() if w.grad is not None).fill_(math.nan)
        accumulate(self)

    monkeypatch.setattr(MasterAdamW, "accumulate", poisoned)
    config = replace(BASE, model=str(tiny_model), max_skipped_steps=most)
    with (
        RunFolder.create(tmp_path / "run", to_json(config)) as place,
        pytest.raises(RunError, match=f"step {most} of"),
    ):
        train(place, prepare(config))
