"""Checks of arguments for the rooms of maths: an error names the argument and both shapes.

`exact`, `estimators` and `losses` raise ValueError, because they know tensors and not where those came from.
Who calls them knows the setting that was wrong.
"""

import torch
from torch import Tensor


def check_same(**tensors: Tensor) -> None:
    """Raise ValueError unless all tensors have the shape of the first. Pass them by their names."""
    names = iter(tensors.items())
    first, reference = next(names)
    for name, tensor in names:
        if tensor.shape != reference.shape:
            raise ValueError(
                f"{name} {tuple(tensor.shape)} with {first} {tuple(reference.shape)}: the shapes must be the "
                f"same. Pass one number per trajectory and step in both."
            )


def zero_one(mask: Tensor, name: str = "mask") -> Tensor:
    """Return `mask` as floating 0 and 1. ValueError for anything else: advantages would go unnoticed."""
    if mask.dtype is torch.bool:
        return mask.to(torch.get_default_dtype())
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(
            f"{name} with values from {mask.min().item():g} to {mask.max().item():g}: a mask is bool or "
            "holds only 0 and 1. Pass the mask of the steps, not their advantages or weights."
        )
    return mask if mask.is_floating_point() else mask.to(torch.get_default_dtype())
