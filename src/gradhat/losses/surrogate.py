"""Surrogate objectives per step, to be maximised: the gradient is meant, the value means nothing.

`log_ratio` is `[B, T]`, or `[B, 1]` for a sequence ratio, from `estimators.ratios`. `adv` is `[B, T]` or
`[B, 1]`, in the unit of the rewards, and counts as data: no gradient flows into it. The answer is
`[B, T]` or broadcasts to it, to be multiplied by a weight of `losses.reduce` and summed. At ratio 1 all
three have the same gradient, adv · ∇ log π. Raises ValueError if the numbers of dimensions differ: `[B]`
against `[B, T]` would broadcast along the wrong one.
"""

import torch
from torch import Tensor

LOG_RATIO_MAX = 20.0
"""Largest log-ratio that is exponentiated. Beyond it the ratio stands still, without gradient, at 4.9e8:
an infinite ratio makes NaN of a zero advantage (0 · inf), and of the gradient of a step that the clip had
switched off."""


def reinforce(log_ratio: Tensor, adv: Tensor) -> Tensor:
    """Return log_ratio · adv, whose gradient is adv · ∇ log π at any ratio.

    Source: Williams 1992. Assumes fresh samples: there is no correction for the policy that sampled.
    """
    _check(log_ratio, adv)
    return log_ratio * adv.detach()


def importance_weighted(log_ratio: Tensor, adv: Tensor) -> Tensor:
    """Return ratio · adv.

    Source: Schulman et al. 2017 (PPO), eq. 6, after Kakade & Langford 2002. Assumes a policy near the one
    that sampled; nothing bounds the ratio but LOG_RATIO_MAX, so stale samples give it a heavy tail.
    """
    _check(log_ratio, adv)
    return _ratio(log_ratio) * adv.detach()


def clipped(log_ratio: Tensor, adv: Tensor, *, low: float, high: float) -> Tensor:
    """Return min(ratio · adv, clip(ratio, 1 - low, 1 + high) · adv).

    Source: Schulman et al. 2017 (PPO), eq. 7, where low = high = ε; Yu et al. 2025 (DAPO), eq. 10, for
    two bounds. A step that already moved past its bound in the direction of its advantage gets no
    gradient; one that moved the wrong way keeps the full one. Raises ValueError for a negative bound.
    """
    _check(log_ratio, adv)
    if low < 0 or high < 0:
        raise ValueError(
            f"clipped with low={low:g}, high={high:g}: the ratio is kept in [1 - low, 1 + high]. "
            "Use bounds >= 0."
        )
    ratio = _ratio(log_ratio)
    adv = adv.detach()
    return torch.minimum(ratio * adv, ratio.clamp(1 - low, 1 + high) * adv)


def _ratio(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(max=LOG_RATIO_MAX).exp()


def _check(log_ratio: Tensor, adv: Tensor) -> None:
    if log_ratio.dim() != adv.dim():
        raise ValueError(
            f"log_ratio {tuple(log_ratio.shape)} with adv {tuple(adv.shape)}: they must have the same number "
            "of dimensions. Pass adv as [B, T] or [B, 1]."
        )
