"""The settings of a training run. A recipe is a function that returns them; the flags are made from them."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from gradhat.errors import ConfigError, RunError
from gradhat.policies.language.template import arguments
from gradhat.training.filled import check_size, filled
from gradhat.training.run_folder import RunFolder
from gradhat.verdicts import PATIENCE

MOST_THREADS = 1024
"""More end the process where the system cannot start them."""
REINFORCE = "reinforce"
"""The algorithm that is a page of its own, with a moving average; the others are rows of the group family."""
REPLACING = ("max_replacements", "replace_silent")
"""What decides on fresh prompts in the place of silent groups."""
ROUNDING = ("token_budget", "num_slots")
"""Settings that change results by rounding alone. Of num_threads the threads themselves tell: machine.py."""
CHANGEABLE = (
    *ROUNDING,
    *("num_threads", "checkpoint_every", "keep_checkpoints", "full_checkpoints"),
    *("max_skipped_steps", "max_unjudged"),
)
"""Settings that change no number of a run but by rounding: it may go on with others."""


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the course of a run: two runs of one config on one machine are equal."""

    task: str = ""
    """What to learn and to measure: "arithmetic:digits=1", "reasoning_gym:gcd", "my_task.py:MyTask" or
    "questions.jsonl"."""
    reward: tuple[str, ...] = ()
    """Functions that score in the task's place, "my_rewards.py:fn" or with a weight "my_rewards.py:fn=0.5";
    "task" is its own score. The flag may be given several times."""
    curriculum: tuple[str, ...] = ()
    """Tasks to train on before `task`, easy to hard. Empty trains on `task` from the first step."""
    curriculum_threshold: float = 0.7
    """Success, a moving average over prompts, that opens the next level of the curriculum: the share of
    completions that solve their question where the task says what that is, else the mean reward in the task's
    own unit. Rewards of 0 to 10 open at 7 what rewards of 0 to 1 open at 0.7."""
    system: str = ""
    """System prompt. Empty leaves the model's chat template alone."""
    template_args: tuple[str, ...] = ()
    """Switches of the model's chat template, such as enable_thinking=false."""
    model: str = "smollm2-135m"
    """Where to start from: an alias, a Hugging Face folder, a GGUF file, a run, whose newest checkpoint is
    taken, or a model of the hub, written hf:owner/name."""
    algorithm: str = "rloo"
    """reinforce, with a moving average as its baseline, or a row of the group family: rloo, grpo, dr_grpo."""
    baseline_decay: float = 0.9
    """Of reinforce's moving average of past returns. 1 keeps it at 0: no baseline."""
    num_steps: int = 100
    """Optimiser batches to collect. A finished run goes on with --resume RUN --num-steps MORE."""
    num_prompts: int = 8
    """Prompts in a batch. Those whose completions all score the same are replaced: see replace_silent."""
    group_size: int = 8
    """Completions sampled for each prompt: its group."""
    max_new_tokens: int = 32
    """A completion is cut here. A cut completion is scored as it stands."""
    temperature: float = 1.0
    """Of the sampling distribution, which is also the policy that is trained."""
    lr: float = 1e-5
    """AdamW's learning rate after the warmup."""
    lr_end: float | None = None
    """The learning rate of the last step; it goes there in a straight line after the warmup, if there are
    steps after it. None stays at `lr`."""
    lr_warmup_steps: int = 5
    """Steps over which the learning rate rises linearly to `lr`; 0 and 1 start at `lr`."""
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
    mismatch: Literal["none", "truncated", "masked"] = "none"
    """Weights of tokens between the sampler's probability and the trainer's own, which costs a forward pass:
    none, the ratio cut at mismatch_cap, or 0 outside mismatch_low to mismatch_high."""
    mismatch_cap: float = 2.0
    """The largest weight of a token under `mismatch=truncated`."""
    mismatch_low: float = 0.5
    """Under `mismatch=masked` a token with a smaller ratio is left out."""
    mismatch_high: float = 5.0
    """Under `mismatch=masked` a token with a larger ratio is left out."""
    replace_silent: bool = True
    """Groups whose rewards are all equal carry no gradient: draw other prompts in their place."""
    max_replacements: int = 16
    """At most this many prompts are drawn in place of silent ones in one step."""
    token_budget: int = 4096
    """Tokens of one micro-batch in the training forward, each prompt counted once. It bounds memory,
    whatever the lengths; results change by rounding alone."""
    num_slots: int = 64
    """Sequences the engine decodes at once; fewer where memory is short."""
    eval_every: int = 10
    """Steps between two measurements on `eval_questions` held-out questions."""
    eval_questions: int = 64
    """Held-out questions of such a measurement."""
    eval_samples: int = 2
    """Completions for each of them, at the training temperature."""
    final_questions: int = 256
    """Most held-out questions of the measurements before the first step and after the last."""
    final_samples: int = 4
    """Completions for each question of these two."""
    checkpoint_every: int = 25
    """Steps between checkpoints. A killed run loses at most the steps since the last one."""
    keep_checkpoints: int = 2
    """Checkpoints left in the run folder, the newest ones."""
    full_checkpoints: int = 1
    """How many of them keep the moments of AdamW, two thirds of their size, which going on to the bit needs.
    The others are light: models to look at, or to begin a new run with."""
    max_skipped_steps: int = 5
    """Steps in a row that a non-finite gradient may spoil before the run stops."""
    max_unjudged: int = PATIENCE
    """Verdicts in a row that fail (the task raises, hangs or answers nonsense) until the run stops. Fewer are
    counted, and their groups replaced."""
    seed: int = 0
    """Every random choice of the run follows from it."""
    num_threads: int | None = None
    """Threads of the tensor library; None takes its own choice."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type; auto is bfloat16 where the processor multiplies it natively. Masters are float32."""


def learning_rate(config: TrainConfig, step: int) -> float:
    """Return AdamW's learning rate of `step`, which counts from 1."""
    if step <= config.lr_warmup_steps:
        return config.lr * (step / config.lr_warmup_steps)
    if config.lr_end is None:
        return config.lr
    # Where there is no warmup the first step has `lr` in full, as the last step of a warmup has.
    risen = max(1, config.lr_warmup_steps)
    share = (step - risen) / max(1, config.num_steps - risen)
    return config.lr + (config.lr_end - config.lr) * share


def to_json(config: TrainConfig) -> dict[str, Any]:
    """Return `config` as plain values, tuples as lists: the content of a run's config.json."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(config).items()}


def from_json(values: Any, origin: str) -> TrainConfig:
    """Return the config that `to_json` wrote.

    A key that it does not know, and a value of another type, is a ConfigError that names `origin`.
    """
    return filled(TrainConfig(), values, origin)


def read(run: Path) -> TrainConfig:
    """Return the config of the run folder `run`. RunError when it is none, ConfigError for a wrong value."""
    values = RunFolder(run).config()
    if "learning" in values:
        raise RunError(
            f"read the run in {run}: found a policy of {values.get('env')}, and no language model. "
            f"Look at it: gradhat watch {run}"
        )
    config = from_json(values, str(run))
    if not config.task:
        raise RunError(
            f"read the run in {run}: config.json names no task. Use the config.json that it was trained with."
        )
    check(config)
    return config


def differences(mine: TrainConfig, theirs: TrainConfig) -> list[str]:
    """Return the names of the settings in which two configs differ."""
    return [f.name for f in fields(TrainConfig) if getattr(mine, f.name) != getattr(theirs, f.name)]


COUNTS = (
    *("num_steps", "num_prompts", "group_size", "max_new_tokens", "num_epochs", "token_budget", "num_slots"),
    *("eval_every", "eval_questions", "eval_samples", "final_questions", "final_samples"),
    *("checkpoint_every", "keep_checkpoints", "full_checkpoints", "max_skipped_steps", "max_unjudged"),
)

RANGES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (COUNTS, lambda v: v >= 1, "1 or more"),
    (("lr_warmup_steps", "max_replacements"), lambda v: v >= 0, "0 or more"),
    (("lr", "weight_decay", "kl_coef", "clip_high"), lambda v: 0 <= v < math.inf, "0 or more"),
    (("lr_end",), lambda v: v is None or 0 <= v < math.inf, "0 or more"),
    (("temperature", "max_grad_norm", "mismatch_cap"), lambda v: 0 < v < math.inf, "more than 0"),
    (("clip_low", "baseline_decay", "mismatch_low"), lambda v: 0 <= v <= 1, "0 to 1"),
    (("mismatch_high",), lambda v: 1 <= v < math.inf, "1 or more"),
    (("curriculum_threshold",), math.isfinite, "a finite number"),
    (("betas",), lambda v: all(0 <= beta < 1 for beta in v), "two values from 0 up to, not including, 1"),
    (("num_threads",), lambda v: v is None or 1 <= v <= MOST_THREADS, f"1 to {MOST_THREADS}"),
)
"""Settings, what holds for each, and the same in words."""


def check(config: TrainConfig) -> None:
    """Raise ConfigError for a setting out of range, or for two that exclude each other."""
    if not config.task:
        raise ConfigError(
            "train: found no task. Name a recipe (see gradhat recipes) or give --task, or both."
        )
    for field in fields(config):
        check_size(field.name, getattr(config, field.name))
    for names, good, wanted in RANGES:
        for name in names:
            if not good(getattr(config, name)):
                raise ConfigError(
                    f"{name}={getattr(config, name)!r}: found a value out of range. Use {wanted}."
                )
    arguments(config.template_args)
    _check_algorithm(config)


def _check_algorithm(config: TrainConfig) -> None:
    """Check what the algorithm asks of the other settings: the page of REINFORCE, or a row of the family."""
    from gradhat.algorithms.grpo_family import FAMILY
    from gradhat.estimators.ratios import on_policy

    row = FAMILY.get(config.algorithm)
    if row is None and config.algorithm != REINFORCE:
        raise ConfigError(
            f"algorithm={config.algorithm}: found no such algorithm of text. "
            f"Use one of {', '.join((REINFORCE, *FAMILY))}."
        )
    if row is not None and config.group_size == 1:
        raise ConfigError(
            f"group_size=1 with algorithm={config.algorithm}: its baseline is {row.baseline.__name__}, "
            f"which needs at least 2 samples of a prompt. Use group_size>=2 or algorithm={REINFORCE}."
        )
    if config.num_epochs > 1 and (row is None or row.ratio is on_policy):
        raise ConfigError(
            f"num_epochs={config.num_epochs} with algorithm={config.algorithm}: from the second step on the "
            f"batch is off-policy, which it does not correct. Use num_epochs=1, or algorithm=grpo."
        )
    _check_unread(config, corrects=row is not None and row.ratio is not on_policy)
    if config.kl_coef > 0 and (row is None or (row.kl_reward is None and row.kl_loss is None)):
        with_kl = [name for name, r in FAMILY.items() if r.kl_reward is not None or r.kl_loss is not None]
        raise ConfigError(
            f"kl_coef={config.kl_coef} with algorithm={config.algorithm}: it has no KL term. "
            f"Use kl_coef=0 or one of {', '.join(with_kl)}."
        )


def _check_unread(config: TrainConfig, *, corrects: bool) -> None:
    """Refuse a setting that is given and that nothing reads: no change would follow from it."""
    algorithm, mismatch = f"algorithm={config.algorithm}", f"mismatch={config.mismatch}"
    unread: list[tuple[str, str, str]] = []
    if not config.curriculum:
        unread.append(("curriculum_threshold", "curriculum=()", "curriculum=TASK"))
    if not corrects:
        unread += [(name, algorithm, "algorithm=grpo") for name in ("clip_low", "clip_high")]
    if config.algorithm == REINFORCE:
        # It compares with the past: no group is silent.
        unread += [(name, algorithm, "algorithm=rloo") for name in ("mismatch", *REPLACING)]
    else:
        unread.append(("baseline_decay", algorithm, f"algorithm={REINFORCE}"))
    if not config.replace_silent:
        unread.append(("max_replacements", "replace_silent=False", "replace_silent=True"))
    if config.mismatch != "truncated":
        unread.append(("mismatch_cap", mismatch, "mismatch=truncated"))
    if config.mismatch != "masked":
        unread += [(name, mismatch, "mismatch=masked") for name in ("mismatch_low", "mismatch_high")]
    for name, given, reader in unread:
        value, default = getattr(config, name), getattr(TrainConfig, name)
        if value != default:
            raise ConfigError(
                f"{name}={value} with {given}: nothing reads this setting. "
                f"Leave it at {default}, or use {reader}."
            )
