"""Baselines and scales of the group family: the advantage of a trajectory is (reward - baseline) / scale.

`rewards` is float `[B]`, one return per trajectory. `group` is int `[B]`, which prompt (start state) each
came from; ids are arbitrary, members may lie anywhere in the batch, groups may differ in size. G is the
size of one group. Every function answers with `[B]` in the dtype of `rewards`, and raises ValueError if
the shapes do not fit.

Group means are taken around the group's smallest reward, so that a silent group (all rewards equal) has a
mean equal to that reward to the last bit: its advantages are exactly zero, whatever the scale.
"""

from typing import NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SCALE_EPS = 1e-4
"""Added to a standard deviation before dividing by it, in the unit of the rewards. TRL's value."""


class _Groups(NamedTuple):
    """`ids` int64 `[B]` counts the groups from 0, `size` int64 `[B]` is the size of a trajectory's group."""

    ids: Tensor
    size: Tensor
    num_groups: int


def none(rewards: Float[Tensor, " B"], group: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Return the baseline 0. The estimate is unbiased; its variance is that of the raw rewards.

    Source: Williams 1992, REINFORCE. Assumes rewards around 0. Failure case: rewards of one sign push every
    sampled action the same way, and only the next batches undo it: the variance grows with their square.
    """
    _groups(rewards, group)
    return torch.zeros_like(rewards)


def group_mean(rewards: Float[Tensor, " B"], group: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Return the mean reward of each trajectory's group, itself included.

    Source: Shao et al. 2024 (DeepSeekMath), section 4.1.2. Assumes independent samples of one prompt. The
    baseline contains the sample's own reward, so the expected gradient is (G - 1) / G of the true one:
    the direction is right, the length is not. Failure case: with G = 1 the advantage is always zero, and
    groups of several sizes are shortened by several factors, so that the direction is wrong too.
    """
    groups = _groups(rewards, group)
    lowest = _lowest(rewards, groups)
    return lowest + _sum(rewards - lowest, groups) / groups.size.to(rewards.dtype)


def leave_one_out(rewards: Float[Tensor, " B"], group: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Return the mean reward of the *other* members of each trajectory's group.

    Source: Kool et al. 2019; Ahmadian et al. 2024 (RLOO). Assumes independent samples of one prompt; then it
    is unbiased. Failure case: samples that were chosen by the rewards of others, such as the best and the
    worst of many: the mean of the others then depends on the action. Raises ValueError for a group of size 1,
    which has no others.
    """
    groups = _groups(rewards, group)
    if bool((groups.size < 2).any()):
        raise ValueError(
            "group_size=1 with baseline=leave_one_out: a leave-one-out mean needs at least 2 samples per "
            "prompt. Use group_size>=2 or baseline=none."
        )
    lowest = _lowest(rewards, groups)
    above = rewards - lowest
    return lowest + (_sum(above, groups) - above) / (groups.size - 1).to(rewards.dtype)


def batch_mean(rewards: Float[Tensor, " B"], group: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Return the mean reward of the whole batch, for every trajectory.

    Source: Hu et al. 2025 (REINFORCE++). It contains the sample's own reward, so the expected gradient is
    (B - 1) / B of the true one. Assumes independent samples and prompts of like difficulty. Failure case: it
    does not separate easy prompts from hard ones: a prompt that always succeeds keeps a positive advantage.
    """
    return group_mean(rewards, torch.zeros_like(group))


def no_scale(rewards: Float[Tensor, " B"], group: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Return the divisor 1: advantages keep the unit of the rewards.

    Source: Liu et al. 2025 (Dr. GRPO). Assumes rewards of about unit scale. Failure case: with rewards in the
    hundreds the step grows as much, and a learning rate that was right for 0/1 is not.
    """
    _groups(rewards, group)
    return torch.ones_like(rewards)


def group_std(
    rewards: Float[Tensor, " B"], group: Int[Tensor, " B"], *, eps: float = SCALE_EPS
) -> Float[Tensor, " B"]:
    """Return the standard deviation of the rewards of each trajectory's group, plus `eps`.

    Source: Shao et al. 2024, section 4.1.2, which leaves the kind of deviation open. Here it is the
    sample deviation (divided by G - 1) plus 1e-4, as in TRL. Biased: the divisor depends on the sample, so
    the expected gradient changes in direction. Failure case: prompts with a small spread (nearly solved,
    nearly hopeless) weigh more, noise in a grader the most. Assumes a baseline that is exact on silent groups
    (`group_mean`, `leave_one_out`), whose divisor is `eps` alone: with `none` such a group would be
    multiplied by 1e4. Raises ValueError for a group of size 1, whose spread is unknown.
    """
    groups = _groups(rewards, group)
    if bool((groups.size < 2).any()):
        raise ValueError(
            "group_size=1 with scale=group_std: a sample standard deviation needs at least 2 samples. "
            "Use group_size>=2 or scale=no_scale."
        )
    centred = rewards - group_mean(rewards, group)
    return (_sum(centred.square(), groups) / (groups.size - 1).to(rewards.dtype)).sqrt() + eps


def batch_std(
    rewards: Float[Tensor, " B"], group: Int[Tensor, " B"], *, eps: float = SCALE_EPS
) -> Float[Tensor, " B"]:
    """Return the sample standard deviation of all rewards of the batch, plus `eps`, for every trajectory.

    Source: Hu et al. 2025 (REINFORCE++). One divisor for all prompts: they keep their relative weight.
    Biased: the divisor depends on the sample; the bias shrinks with B. Assumes rewards of one unit for all
    prompts. Failure case: one outlier shrinks the advantages of the whole batch, and a batch of nearly equal
    rewards is blown up to unit spread. Raises ValueError for a batch of size 1, which is one group of size 1.
    """
    return group_std(rewards, torch.zeros_like(group), eps=eps)


def group_mean_scale(rewards: Float[Tensor, " B"], group: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Return the mean reward of each trajectory's group, and 1 where that mean is 0 (no success).

    Source: Tajwar et al. 2026 (MaxRL). With rewards 0 or 1, success rate p and the baseline `group_mean`
    the expected gradient is (1 + (1 - p) + ... + (1 - p)^(G - 2)) ∇p: the series of ∇ log p = ∇p / p, cut
    off after G - 1 terms. Assumes rewards >= 0 and raises ValueError otherwise: a negative divisor would
    turn the gradient around. Failure case: a lone success among G is multiplied by G, also where it was luck
    or an error of the grader.
    """
    if bool((rewards < 0).any()):
        raise ValueError(
            f"scale=group_mean_scale with a reward of {rewards.min().item():g}: dividing by a mean needs "
            "rewards >= 0. Shift the rewards or use another scale."
        )
    mean = group_mean(rewards, group)
    return torch.where(mean > 0, mean, torch.ones_like(mean))


def silent(rewards: Float[Tensor, " B"], group: Int[Tensor, " B"]) -> Bool[Tensor, " B"]:
    """Return bool `[B]`: true where all rewards of the trajectory's group are equal.

    Such a group has no advantage under a group baseline, hence no gradient. A group of size 1 is silent.

    Source: Yu et al. 2025 (DAPO), whose dynamic sampling drops such groups. Assumes rewards that are equal to
    the last bit where they mean the same. Failure case: a tiny penalty on the length makes every group speak,
    and a scale such as `group_std` then blows that penalty up.
    """
    groups = _groups(rewards, group)
    return _lowest(rewards, groups) == -_lowest(-rewards, groups)


def _groups(rewards: Tensor, group: Tensor) -> _Groups:
    if rewards.dim() != 1 or rewards.shape != group.shape or not rewards.is_floating_point():
        raise ValueError(
            f"rewards {tuple(rewards.shape)} {rewards.dtype} with group {tuple(group.shape)}: "
            "a group estimator takes one reward per trajectory. Pass two [B] tensors, rewards floating."
        )
    unique = torch.unique(group, return_inverse=True, return_counts=True)  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    _, ids, count = cast(tuple[Tensor, Tensor, Tensor], unique)
    return _Groups(ids, count[ids], count.shape[0])


def _sum(x: Tensor, groups: _Groups) -> Tensor:
    """Sum `x` `[B]` over each group and hand the sum back to every member, `[B]`."""
    return x.new_zeros(groups.num_groups).index_add(0, groups.ids, x)[groups.ids]


def _lowest(rewards: Tensor, groups: _Groups) -> Tensor:
    least = rewards.new_zeros(groups.num_groups)
    return least.scatter_reduce(0, groups.ids, rewards, "amin", include_self=False)[groups.ids]
