"""The settings of a training run. A recipe is a function that returns one; the command line is made from it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from gradhat.errors import ConfigError


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the course of a run. Two runs of one config on one machine are equal to the bit."""

    task: str = ""
    """What to learn, and what is measured: "arithmetic:digits=1", "reasoning_gym:gcd" or "my_task.py:MyTask"."""
    curriculum: tuple[str, ...] = ()
    """Tasks to go through before `task`, easy to hard. Empty trains on `task` from the first step."""
    curriculum_threshold: float = 0.7
    """Success rate, a moving average over prompts, that opens the next level of the curriculum."""
    system: str = ""
    """System prompt. Empty leaves the model's chat template alone."""
    model: str = "smollm2-135m"
    """Where to start from: an alias, a Hugging Face folder, a GGUF file or a hub id."""
    algorithm: str = "rloo"
    """A row of the group family: reinforce, rloo, grpo, dr_grpo."""
    num_steps: int = 100
    """Optimiser batches to collect. A finished run goes on with --resume RUN --num-steps MORE."""
    num_prompts: int = 8
    """Prompts in a batch."""
    group_size: int = 8
    """Completions sampled for each prompt: its group."""
    max_new_tokens: int = 32
    """A completion is cut here. A cut completion is scored as it stands."""
    temperature: float = 1.0
    """Of the sampling distribution, which is also the policy that is trained."""
    lr: float = 1e-5
    """AdamW's learning rate after the warmup."""
    lr_warmup_steps: int = 5
    """Steps over which the learning rate rises linearly to `lr`; 0 starts at `lr`."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay of the first and of the second moment."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm when it is longer."""
    num_epochs: int = 1
    """Optimiser steps on each batch. More than one needs an algorithm with a ratio: grpo, dr_grpo."""
    clip_low: float = 0.2
    """The clipped surrogate ignores ratios below 1 - clip_low that would fall further."""
    clip_high: float = 0.2
    """The clipped surrogate ignores ratios above 1 + clip_high that would rise further."""
    kl_coef: float = 0.0
    """Weight of the KL divergence from the model the run started from; 0 keeps no reference model."""
    replace_silent: bool = True
    """Groups whose rewards are all equal carry no gradient: draw other prompts instead, so the batch keeps its size."""
    max_replacements: int = 16
    """At most this many prompts are drawn in place of silent ones in one step."""
    token_budget: int = 4096
    """Tokens of one micro-batch in the training forward. It bounds memory and changes no result."""
    num_slots: int = 64
    """Sequences the engine decodes at once."""
    judge_seconds: float = 10.0
    """Time limit of the task's verdict on one completion."""
    eval_every: int = 10
    """Held-out accuracy is measured before the first step, then every so many steps."""
    eval_questions: int = 64
    """Held-out questions of such a measurement."""
    eval_samples: int = 2
    """Completions for each of them, at the training temperature."""
    final_questions: int = 1000
    """The last measurement uses every held-out question of the task, but no more than this."""
    final_samples: int = 4
    """Completions for each question of the last measurement."""
    checkpoint_every: int = 25
    """Steps between checkpoints. A killed run loses at most the steps since the last one."""
    keep_checkpoints: int = 2
    """Checkpoints left in the run folder, the newest ones."""
    max_skipped_steps: int = 5
    """Steps in a row that a non-finite gradient may spoil before the run stops."""
    seed: int = 0
    """Every random choice of the run follows from it."""
    num_threads: int | None = None
    """Threads of the tensor library; None takes its own choice."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type; auto is bfloat16 where the processor multiplies it natively. Master weights are float32."""


def to_json(config: TrainConfig) -> dict[str, Any]:
    """Return `config` as plain values, tuples as lists: the content of a run's config.json."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}


def from_json(values: Mapping[str, Any], origin: str) -> TrainConfig:
    """Return the config that `to_json` wrote. A key it does not know is a ConfigError that names `origin`."""
    known = [field.name for field in fields(TrainConfig)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(
            f"read the config of {origin}: found the unknown keys {', '.join(unknown)}. "
            f"Remove them or use the version of gradhat that wrote it. Known keys: {', '.join(known)}."
        )
    return TrainConfig(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})  # pyright: ignore[reportUnknownArgumentType]


def differences(mine: TrainConfig, theirs: TrainConfig) -> list[str]:
    """Return the names of the settings in which two configs differ."""
    return [f.name for f in fields(TrainConfig) if getattr(mine, f.name) != getattr(theirs, f.name)]
