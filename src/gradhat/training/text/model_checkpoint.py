"""A language model's checkpoint: a Hugging Face folder that any tool can load, and AdamW's moments beside it.

checkpoints/step_000010/
    model.safetensors, config.json, tokenizer ...    the float32 master weights as a Hugging Face model
    optimizer.safetensors                            AdamW's moments, float32
    state.json                                       see training/checkpoint.py
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from gradhat.policies.language import weights
from gradhat.policies.language.transformer import TransformerConfig
from gradhat.training import checkpoint
from gradhat.training.checkpoint import Checkpoint

OPTIMIZER = "optimizer.safetensors"


def save(
    folder: Path,
    step: int,
    masters: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    cursor: Mapping[str, Any],
    *,
    config: TransformerConfig,
    source: Path,
    stop_ids: Collection[int],
    keep: int,
) -> Path:
    """Write the checkpoint of `step`; see `checkpoint.save`.

    `source` is the model folder whose tokenizer and template files are copied along; `stop_ids` end an
    answer.
    """

    def write(path: Path) -> None:
        weights.save(masters, config, path, source, stop_ids=stop_ids)
        checkpoint.save_tensors(optimizer, path / OPTIMIZER)

    return checkpoint.save(folder, step, write, cursor, keep=keep)


def masters(found: Checkpoint) -> dict[str, Tensor]:
    """Return the float32 master weights by parameter name."""
    return weights.load(found.path, torch.float32).state_dict()


def optimizer(found: Checkpoint) -> dict[str, Tensor]:
    """Return the optimiser's state, as it was given to `save`."""
    return load_file(found.path / OPTIMIZER)
