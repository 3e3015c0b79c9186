"""From steps to one number: the weight `[B, T]` of every step. The loss is -(weight · objective).sum().

`mask` is bool or 0/1 `[B, T]`, 1 where the step is the policy's own action. A masked step has weight
exactly 0. The answer has the dtype of `mask` if that is floating, else torch's default: pass
`mask.to(torch.float64)` for float64 weights.

The counts belong to the whole optimiser step, over every micro-batch and rank. They are arguments and
never read off the mask at hand, so that splitting a batch changes nothing: the sums of the parts add up
to the sum of the whole. Each function raises ValueError for a count that is not positive and for a mask
that is neither bool nor 0/1.
"""

import torch
from torch import Tensor


def per_trajectory(mask: Tensor, *, num_trajectories: int) -> Tensor:
    """Return 1 / |D| for every step: ĝ as the formula has it, unbiased for |D| fixed in advance.

    Long trajectories weigh more than short ones, as they must: the score of a trajectory is a sum over
    its steps.
    """
    _positive(num_trajectories=num_trajectories)
    return _zero_one(mask) / num_trajectories


def per_token(mask: Tensor, *, num_tokens: int) -> Tensor:
    """Return 1 / (number of own steps in the whole optimiser step) for every step.

    Source: Yu et al. 2025 (DAPO), eq. 8. The direction of one step is that of `per_trajectory`; the
    length varies with the lengths sampled, so the expectation is that of a ratio and biased.
    """
    _positive(num_tokens=num_tokens)
    return _zero_one(mask) / num_tokens


def per_sequence(mask: Tensor, *, num_sequences: int) -> Tensor:
    """Return 1 / (number of sequences · length of the step's own sequence): the mean of means.

    Source: Shao et al. 2024 (DeepSeekMath), eq. 3. Biased: short answers weigh more per step, so long
    wrong ones are punished less (Liu et al. 2025, Dr. GRPO). A sequence without own steps has weight 0
    and still counts.
    """
    _positive(num_sequences=num_sequences)
    steps = _zero_one(mask)
    return steps / (steps.sum(-1, keepdim=True).clamp(min=1) * num_sequences)


def constant(mask: Tensor, *, num_sequences: int, length: int) -> Tensor:
    """Return 1 / (number of sequences · length) for every step.

    Source: Liu et al. 2025 (Dr. GRPO), section 3.2. `length` is fixed in advance, such as the limit of new
    tokens, so this is `per_trajectory` divided by a constant: same direction, no length bias.
    """
    _positive(num_sequences=num_sequences, length=length)
    return _zero_one(mask) / (num_sequences * length)


def _zero_one(mask: Tensor) -> Tensor:
    """Return `mask` as floating 0 and 1; anything else, such as advantages, would go unnoticed."""
    if mask.dtype is torch.bool:
        return mask.to(torch.get_default_dtype())
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(
            f"mask with values from {mask.min().item():g} to {mask.max().item():g}: a mask is bool or holds "
            "only 0 and 1. Pass the mask of the steps, not their advantages or weights."
        )
    return mask if mask.is_floating_point() else mask.to(torch.get_default_dtype())


def _positive(**counts: int) -> None:
    for name, count in counts.items():
        if count <= 0:
            raise ValueError(
                f"{name}={count}: the count of a whole optimiser step must be positive. "
                "Skip the step when nothing was sampled."
            )
