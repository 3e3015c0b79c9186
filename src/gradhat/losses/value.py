"""Losses of a value function per step, to be minimised.

`values` and `targets` are `[B, T]`, in the unit of the rewards: what V says, and what it should say, such as
a return or a λ-return. Targets count as data: no gradient flows into them, so a bootstrapped target is not
pulled towards the value (the semi-gradient). The answer is `[B, T]`; multiply it by a weight of
`losses.reduce` and sum. There is no mask here: masked steps must hold finite numbers. Each function raises
ValueError for shapes that differ: `[B]` against `[B, T]` would fit every step to other trajectories.

The square is halved, so that its gradient is the error itself; a coefficient from a paper that does not
halve it is twice as large here.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import huber_loss

from gradhat.shapes import check_same


def squared(values: Float[Tensor, "B T"], targets: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Return (values - targets)² / 2.

    Source: Schulman et al. 2017 (PPO), eq. 9 and the text below it, there not halved. Its minimum is the mean
    of the targets, which is what V is: the expected return. Assumes targets of one scale; the gradient grows
    with their unit. Failure case: a few huge returns drown the rest.
    """
    check_same(values=values, targets=targets)
    return (values - targets.detach()).square() / 2


def clipped(
    values: Float[Tensor, "B T"],
    values_old: Float[Tensor, "B T"],
    targets: Float[Tensor, "B T"],
    *,
    clip: float,
) -> Float[Tensor, "B T"]:
    """Return max of the squares of `values` and of `values` kept within `clip` of `values_old`, halved.

    `values_old` `[B, T]` is what V said when the samples were drawn. A value that already moved by more than
    `clip` towards its target gets no gradient; one that moved away keeps the full one.

    Source: the code of OpenAI Baselines (ppo2), in no paper of theirs. Disputed: Engstrom et al. 2020 count
    it among the details of code that carry PPO's results, Andrychowicz et al. 2021 find no gain and often
    harm. Assumes values of unit scale: `clip` is an absolute distance, so whether it binds depends on the
    unit of the rewards. Failure case: with large returns V can move by `clip` per batch and no more, and
    stays wrong for long. ValueError for clip <= 0.
    """
    check_same(values=values, values_old=values_old, targets=targets)
    if not clip > 0:
        raise ValueError(
            f"value clip={clip:g}: it is the distance that a value may move from values_old. "
            "Use clip > 0, or `squared`."
        )
    values_old = values_old.detach()
    kept = values_old + (values - values_old).clamp(-clip, clip)
    return torch.maximum(squared(values, targets), squared(kept, targets))


def huber(
    values: Float[Tensor, "B T"], targets: Float[Tensor, "B T"], *, delta: float
) -> Float[Tensor, "B T"]:
    """Return e² / 2 where |e| <= delta and delta · (|e| - delta / 2) beyond, with e = values - targets.

    Source: Huber 1964; Mnih et al. 2015 (DQN) clip the error in the same way.
    The gradient is the error, held within ±delta. Assumes that large errors are outliers. Failure case: its
    minimum lies between the mean and the median of the targets, so with skewed returns (one success in a
    hundred) V is biased towards the usual return. ValueError for delta <= 0.
    """
    check_same(values=values, targets=targets)
    if not delta > 0:
        raise ValueError(
            f"huber with delta={delta:g}: it is the error at which the square turns into a line. "
            "Use delta > 0, or `squared`."
        )
    return huber_loss(values, targets.detach(), reduction="none", delta=delta)
