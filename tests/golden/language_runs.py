"""Whole runs of a small language model, through `prepare` and the loop, with no setting at its default."""

import json
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch

sys.path.append(str(Path(__file__).parents[1]))
import bytes_model

from gradhat.training import checkpoint
from gradhat.training.loop import train
from gradhat.training.run_folder import RunFolder
from gradhat.training.text.config import TrainConfig, check, to_json
from gradhat.training.text.session import prepare

TASKS = Path(__file__).parent / "spelling.py"
CLOCK = ("step_time", "tokens_per_second", "time/")
TOLERANCE = (1e-3, 1e-5)
"""Relative and absolute: float32, and AdamW divides by gradients that are nothing but rounding."""

GRPO = TrainConfig(
    task=f"{TASKS}:Plain",
    curriculum=(f"{TASKS}:Printable",),
    curriculum_threshold=0.1,
    system="Be brief.",
    model="tiny",
    algorithm="grpo",
    num_steps=4,
    num_prompts=11,
    group_size=4,
    max_new_tokens=7,
    temperature=0.8,
    lr=3e-3,
    lr_warmup_steps=2,
    betas=(0.7, 0.8),
    weight_decay=0.5,
    max_grad_norm=1e-6,
    num_epochs=2,
    clip_low=0.1,
    clip_high=0.3,
    kl_coef=0.3,
    mismatch="truncated",
    mismatch_cap=0.9,
    max_replacements=5,
    token_budget=300,
    num_slots=9,
    eval_every=2,
    eval_questions=7,
    eval_samples=3,
    final_questions=12,
    final_samples=5,
    checkpoint_every=3,
    keep_checkpoints=1,
    full_checkpoints=2,
    max_skipped_steps=2,
    max_unjudged=3,
    seed=5,
    num_threads=1,
    dtype="float32",
)
ONE_PASS = replace(
    GRPO, group_size=2, num_epochs=1, clip_low=0.2, clip_high=0.2, mismatch_cap=2.0, max_grad_norm=0.1
)
CONFIGS = {
    "run_grpo": GRPO,
    "run_rloo": replace(
        ONE_PASS,
        algorithm="rloo",
        lr_end=1e-3,
        mismatch="masked",
        mismatch_low=0.3,
        mismatch_high=7.0,
        replace_silent=False,
        max_replacements=TrainConfig.max_replacements,
    ),
    "run_reinforce": replace(
        ONE_PASS,
        template_args=("loud=true",),
        reward=("task=2", f"{TASKS}:brief=0.5"),
        algorithm="reinforce",
        baseline_decay=0.6,
        kl_coef=0.0,
        mismatch="none",
        max_replacements=TrainConfig.max_replacements,
    ),
}
"""Each setting has another value than its default in at least one."""


def run(name: str) -> dict[str, Any]:
    """Return what a run measures, its summary, and where it stands at its end."""
    before = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as place, redirect_stdout(StringIO()):
        model = Path(place) / "model"
        model.mkdir()
        bytes_model.write(model)
        _switch(model / "tokenizer_config.json")
        config = replace(CONFIGS[name], model=str(model))
        check(config)
        path = Path(place) / "run"
        try:
            session = prepare(config)
            with RunFolder.create(path, to_json(config)) as folder:
                assert train(folder, session) == 0
        finally:
            torch.set_num_threads(before)
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        summary = json.loads((path / "summary.json").read_text())
        end = checkpoint.read(path / "checkpoints" / f"step_{config.num_steps:06d}").cursor
    return {"lines": [_timeless(line) for line in lines], "summary": _timeless(summary), "end": end}


def _switch(file: Path) -> None:
    """Give a model's chat template a switch, which changes nothing while it is off."""
    settings = json.loads(file.read_text())
    settings["chat_template"] += "{% if loud is defined and loud %}!{% endif %}"
    file.write_text(json.dumps(settings))


def _timeless(line: dict[str, Any]) -> dict[str, Any]:
    """Leave out what the clock and the disk decide."""
    return {k: v for k, v in line.items() if not k.startswith((*CLOCK, "seconds", "checkpoint"))}
