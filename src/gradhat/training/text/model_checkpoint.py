"""A language model's checkpoint: a Hugging Face folder that any tool can load, and AdamW's moments beside it.

checkpoints/step_000010/
    model.safetensors, config.json, tokenizer ...    the float32 master weights as a Hugging Face model
    optimizer.safetensors                            AdamW's moments, float32; not in a light one
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
    full: int,
) -> Path:
    """Write the checkpoint of `step`, and take the moments from all but the `full` newest; see
    `checkpoint.save`.

    `source` is the model folder whose tokenizer and template files are copied along; `stop_ids` end an
    answer.
    """

    def write(path: Path) -> None:
        weights.save(masters, config, path, source, stop_ids=stop_ids)
        checkpoint.save_tensors(optimizer, path / OPTIMIZER)

    saved = checkpoint.save(folder, step, write, cursor, keep=keep)
    for old in checkpoint.steps(folder)[full:]:
        checkpoint.lighten(old, OPTIMIZER)
    return saved


def sizes(masters: Mapping[str, Tensor], *, num_saved: int, keep: int, full: int) -> list[int]:
    """Return how many bytes each checkpoint takes that is left of `num_saved`, the newest first: weights and
    both their moments, or weights alone. Tokenizer and the like are left out.
    """
    weights = sum(tensor.numel() for tensor in masters.values()) * torch.float32.itemsize
    return [(3 if i < full else 1) * weights for i in range(min(keep, num_saved))]


def masters(found: Checkpoint) -> dict[str, Tensor]:
    """Return the float32 master weights by parameter name."""
    return weights.load(found.path, torch.float32).state_dict()


def optimizer(found: Checkpoint) -> dict[str, Tensor]:
    """Return the optimiser's state, as it was given to `save`."""
    return load_file(found.path / OPTIMIZER)
