"""From a name on the command line to a network in memory: what training, eval and chat have in common."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from gradhat.errors import ModelError, RunError
from gradhat.places import exists, home
from gradhat.policies.language import weights
from gradhat.policies.language.alias import ALIASES
from gradhat.policies.language.weights import HUB
from gradhat.training import checkpoint
from gradhat.training.run_folder import is_run
from gradhat.training.text.config import TrainConfig, read, to_json
from gradhat.training.text.evaluate import Scale
from gradhat.training.trust import allow

F = TypeVar("F")
Dtype = Literal["auto", "float32", "bfloat16"]


def find(place: str) -> Path:
    """Return the model folder that `place` means: the newest whole checkpoint of a run, or a model by any of
    its names.

    RunError when the run has no checkpoint that can be read, or none of a language model.
    """
    path = home(place)
    if not is_run(path):
        return weights.resolve(place)
    found, damage = checkpoint.newest(path / "checkpoints")
    if found is None:
        reason = " ".join(damage) or "found none yet."
        raise RunError(
            f"use the newest checkpoint of {path}: {reason} Train on first: gradhat train --resume {path}"
        )
    if not (found.path / "config.json").is_file():
        raise RunError(
            f"use the newest checkpoint of {path} as a language model: found none in it. "
            "Give a run that trains one, or a model folder."
        )
    return found.path


def folder_of(config: TrainConfig, run: Path | None, find: Callable[[str], F]) -> tuple[F | Path, bool]:
    """Return what `find` makes of the config's model, and False.

    A `run` to go on with may do without a model that cannot be had any more: its newest whole checkpoint has
    weights, config and tokenizer. That is returned then, and True. ModelError where there is none, and where
    the model is the reference of a KL term.
    """
    try:
        return find(config.model), False
    except ModelError as error:
        if run is None:
            raise
        found, _ = checkpoint.newest(run / "checkpoints")
        if found is None or config.kl_coef > 0:
            why = f"with kl_coef={config.kl_coef}" if found else "without a whole checkpoint"
            raise ModelError(
                f"resume {run}: {why} it needs the model that it started from. {error} If that has moved, "
                f"name its new place: gradhat train --resume {run} --model FOLDER"
            ) from error
        print(f"model  {config.model} cannot be had any more: {found.path} has what it takes to go on")
        return found.path, True


def setting_of(place: str, name: str, verb: str, *, trusted: bool) -> Any:
    """Return the task, or the rewards, of the run `place`; None where it is a model.

    ConfigError where they lie in a file, which would be executed, unless it is trusted.
    """
    path = home(place)
    if not is_run(path):
        return None
    config = read(path)
    allow(verb, to_json(config), [name], f"--{name}", trusted=trusted)
    return getattr(config, name)


def seen_by(place: str, task: str, reward: tuple[str, ...]) -> Scale:
    """Return the rewards that the run `place` has seen up to its newest checkpoint: what is no mere right or
    wrong in a run is none where it is measured again. Nothing where it is a model, or is judged by others.

    RunError when the checkpoint says nothing of them.
    """
    path = home(place)
    config = read(path) if is_run(path) else None
    if config is None or (config.task, config.reward) != (task, reward):
        return Scale()
    found = checkpoint.read(find(place))
    with checkpoint.fitting(found):
        checkpoint.check_alike(found.cursor["scale"], asdict(Scale()), "cursor.scale")
        return Scale(**found.cursor["scale"])


def settled(place: str) -> str:
    """Return `place` such that it means the same in any folder and at any later time: paths from the root,
    and of a run the checkpoint that is now its newest."""
    path = home(place)
    if place in ALIASES or place.startswith(HUB) or not exists(path):
        return place
    return str((find(place) if is_run(path) else path).resolve())


def compute_dtype(dtype: Dtype) -> torch.dtype:
    """Return the type to compute in. "auto" is bfloat16 where the processor has instructions for it."""
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()  # pyright: ignore[reportPrivateUsage]
    return torch.bfloat16 if native else torch.float32


def set_threads(num_threads: int | None) -> None:
    """Limit the tensor library to `num_threads`; None leaves its choice."""
    if num_threads is not None:
        torch.set_num_threads(num_threads)
