"""The settings of a run in a Gymnasium or a tabular world: what every algorithm shares, and its own beside.

`gradhat train ALGORITHM --env ID` makes flags of both. The settings of an algorithm are a dataclass of
`algorithms.py`: how it gathers experience and learns, with the numbers of its page inside.
"""

import ast
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

from gradhat.errors import ConfigError
from gradhat.training.filled import check_size, filled

D = TypeVar("D")

CHANGEABLE = ("checkpoint_every", "keep_checkpoints", "num_threads")
"""Settings that change no number of a run, num_threads but by rounding: it may go on with others."""


class Learning(Protocol):
    """The settings of an algorithm: a dataclass, whose class carries the name of the algorithm."""

    name: ClassVar[str]


L = TypeVar("L", bound=Learning)


@dataclass(frozen=True)
class ControlConfig(Generic[L]):
    """Everything that decides the course of a run: two runs of one config on one machine are equal."""

    learning: L
    env: str = "CartPole-v1"
    """Gymnasium's id, or zoo:NAME for a world of the zoo."""
    env_args: tuple[str, ...] = ()
    """Arguments of the environment, such as continuous=True."""
    num_envs: int = 8
    """Environments that are stepped side by side."""
    vectorization: Literal["auto", "native", "sync", "async"] = "auto"
    """native: the environment's own vector version; sync: one after the other; async: a process each; auto:
    native where there is one, else sync."""
    num_frames: int = 200_000
    """Environment steps of the whole run, over all environments. A finished run goes on with --resume RUN
    --num-frames MORE: what changes until the last frame is then where a run of MORE frames has it."""
    log_every: int = 2_000
    """Frames between two lines of metrics."""
    eval_policy: Literal["auto", "sampled", "greedy"] = "auto"
    """Which policy is measured. sampled: actions are drawn as in training. greedy: always the action that the
    policy holds best. auto: sampled where the world hides its state and the policy itself draws, since the
    best policy there may have to; greedy elsewhere."""
    eval_every: int = 20_000
    """Frames between two measurements, at most one for each line of metrics (log_every); 0 measures after the
    last frame only."""
    eval_episodes: int = 100
    """Episodes of such a measurement, as many of every environment; 0 measures nothing, whatever eval_every
    says: a world that cannot be had twice is judged by its returns in training."""
    eval_envs: int = 100
    """Most environments of such a measurement, beside those of training. They are made when it begins."""
    eval_max_steps: int = 2_000
    """An episode of such a measurement that is longer is cut there: without a time limit a bad policy may
    never end."""
    checkpoint_every: int = 50_000
    """Frames between checkpoints. A killed run loses at most the frames since the last one."""
    keep_checkpoints: int = 2
    """Checkpoints left in the run folder, the newest ones."""
    seed: int = 0
    """Every random choice of the run follows from it."""
    num_threads: int = 1
    """Threads of the tensor library. Small networks are fastest with one."""

    @property
    def algorithm(self) -> str:
        """The row in the table of training/control/algorithms.py."""
        return self.learning.name


def to_json(config: ControlConfig[Any]) -> dict[str, Any]:
    """Return `config` as plain values: the content of a run's config.json."""
    return {"algorithm": config.algorithm, **_plain(asdict(config))}


def from_json(values: Mapping[str, Any], default: ControlConfig[L], origin: str) -> ControlConfig[L]:
    """Return the config that `to_json` wrote. `default` is one of the same algorithm.

    A key that it does not know, and a value of another type, is a ConfigError that names `origin`.
    """
    return filled(default, {key: v for key, v in values.items() if key != "algorithm"}, origin)


def differences(mine: ControlConfig[Any], theirs: ControlConfig[Any]) -> list[str]:
    """Return the names of the settings in which two configs differ."""
    return _different(to_json(mine), to_json(theirs))


def env_kwargs(config: ControlConfig[Any]) -> dict[str, Any]:
    """Return the arguments of the environment. ConfigError for one that is not NAME=VALUE."""
    found: dict[str, Any] = {}
    for text in config.env_args:
        name, equals, value = text.partition("=")
        if not (name.isidentifier() and equals):
            raise ConfigError(
                f"--env-args {text}: found no NAME=VALUE. Write --env-args continuous=True gravity=-9.8"
            )
        found[name] = _value(value)
    return found


COUNTS = (
    *(
        "num_envs",
        "num_frames",
        "log_every",
        "eval_envs",
        "eval_max_steps",
        "checkpoint_every",
    ),
    *("keep_checkpoints", "num_threads", "num_workers", "num_steps", "episodes_per_env", "num_updates"),
    *("capacity", "batch_size", "num_epochs", "num_minibatches", "value_minibatches", "target_every"),
    *("actor_every", "n_step", "num_atoms", "epsilon_frames", "cg_iterations", "backtrack_steps"),
)
RANGES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (COUNTS, lambda v: v >= 1, "1 or more"),
    (("eval_every", "eval_episodes", "seed", "first_frames", "value_epochs"), lambda v: v >= 0, "0 or more"),
    (("gamma", "lam", "tau", "decay", "beta"), lambda v: 0 <= v <= 1, "0 to 1"),
    (("epsilon_start", "epsilon_end"), lambda v: 0 <= v <= 1, "0 to 1"),
    (("backtrack_coef",), lambda v: 0 < v < 1, "more than 0, less than 1"),
    (("lr", "max_grad_norm", "max_kl", "temperature", "noise", "delta"), lambda v: v > 0, "more than 0"),
    (("alpha", "target_kl"), lambda v: v is None or v > 0, "more than 0"),
    (("lr_end",), lambda v: v is None or v >= 0, "0 or more"),
    (("clip_low", "clip_high", "value_coef", "entropy_coef", "cg_damping"), lambda v: v >= 0, "0 or more"),
    (("target_noise", "target_clip", "omega"), lambda v: v >= 0, "0 or more"),
    (("entropy_per_component",), lambda v: v < math.log(2), "less than log 2, the most that there is"),
    (("hidden",), lambda v: len(v) > 0 and min(v) > 0, "the widths of one layer or more, such as 64 64"),
    (("log_std", "low", "high"), math.isfinite, "a finite number"),
)
"""Settings of all algorithms, what holds for each, and the same in words. Every number must be finite."""

READERS: tuple[tuple[tuple[str, ...], str, Callable[[Any], bool], str], ...] = (
    (("decay",), "baseline", lambda v: v == "moving_average", "baseline=moving_average"),
    (("value_epochs", "value_minibatches"), "baseline", lambda v: v == "critic", "baseline=critic"),
    (("beta",), "alpha", lambda v: v is not None, "an alpha, such as 0.6"),
    (("low", "high"), "num_atoms", lambda v: v > 1, "num_atoms of 2 or more"),
    (("delta",), "num_atoms", lambda v: v == 1, "num_atoms=1"),
)
"""Settings that are read only where another one has certain values: which one, which values, in words."""


def check(config: ControlConfig[Any]) -> None:
    """Raise ConfigError for a setting out of range, or for two that exclude each other."""
    env_kwargs(config)
    for name, value in _settings(config):
        check_size(name, value)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name}={value}: found a number that is not finite. Use a finite one.")
        for names, holds, wanted in RANGES:
            if name in names and not holds(value):
                raise ConfigError(f"{name}={value}: found a value out of range. Use {wanted}.")
    found = dict(_settings(config))
    _check_together(config.num_frames, found)
    _check_unread(found, _defaults(config))


def _check_together(num_frames: int, found: Mapping[str, Any]) -> None:
    if found.get("num_atoms", 1) > 1 and not found["low"] < found["high"]:
        raise ConfigError(
            f"low={found['low']} with high={found['high']}: found no room for {found['num_atoms']} returns "
            "between them. Use low < high."
        )
    if found.get("first_frames", 0) >= num_frames:
        raise ConfigError(
            f"first_frames={found['first_frames']} with num_frames={num_frames}: found no frame left to "
            "learn in. Use fewer first frames, or more frames."
        )


def _check_unread(found: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse a setting that is given and that nothing reads: no change would follow from it."""
    for names, chooser, reads, readers in READERS:
        for name in names if chooser in found and not reads(found[chooser]) else ():
            if name in found and found[name] != defaults[name]:
                raise ConfigError(
                    f"{name}={found[name]} with {chooser}={found[chooser]}: nothing reads this setting. "
                    f"Leave it at {defaults[name]}, or use {readers}."
                )


def _defaults(part: Any) -> dict[str, Any]:
    """Return the default of every setting by its name, those of the parts inside included."""
    found: dict[str, Any] = {}
    for field in fields(part):
        value = getattr(part, field.name)
        found |= _defaults(value) if is_dataclass(value) else {field.name: field.default}
    return found


def _settings(part: Any) -> Iterator[tuple[str, Any]]:
    """Yield every setting by its name, those of the parts inside included."""
    for field in fields(part):
        value = getattr(part, field.name)
        if is_dataclass(value):
            yield from _settings(value)
        else:
            yield field.name, value


def _different(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    for name in mine.keys() | theirs.keys():
        here, there = mine.get(name), theirs.get(name)
        if isinstance(here, dict) and isinstance(there, dict):
            found += _different(here, there)
        elif here != there:
            found.append(name)
    return sorted(found)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


WORDS = {"true": True, "false": False, "none": None, "null": None}
"""How people write truth and nothing in a shell: as text, "false" would be true."""


def _value(text: str) -> Any:
    """Return the number, truth value or nothing that `text` writes, as Python or JSON would; else `text`."""
    if text.strip().lower() in WORDS:
        return WORDS[text.strip().lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return text
