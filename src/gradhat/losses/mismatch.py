"""Weights for samples whose sampler and trainer disagree, though both hold the same weights.

A fast decoder and the training forward round differently, so the policy that sampled is not quite the one
that `logp_old` was computed with. `logp_sampled` is `[B, T]`, the log-probability that the sampler reported,
`logp_old` `[B, T]` that of the trainer at the same weights, both in nats under the same temperature and
truncation. The ratio exp(logp_old - logp_sampled) is the importance weight of a step between the two.

The answer is `[B, T]`, data without gradient, in the dtype of `logp_old`; multiply the objective of
`losses.surrogate` by it. A masked step gets 1, whatever stands there. One ratio per step drops those of the
steps before: a bias, small as long as the two are close. ValueError for shapes that differ and for a mask
that is neither bool nor 0/1.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from gradhat.shapes import check_same, zero_one


def sampler_weight(
    logp_old: Float[Tensor, "B T"],
    logp_sampled: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    cap: float,
) -> Float[Tensor, "B T"]:
    """Return min(exp(logp_old - logp_sampled), cap).

    Source: Yao et al. 2025, truncated importance sampling between sampler and trainer (TIS); the truncation
    is that of Ionides 2008. Assumes that the mismatch is rounding, so that ratios stay near 1. Biased by what
    the cap takes off. Failure case: a step that the sampler drew by mistake, at a ratio near 0, loses its
    gradient, but one at a huge ratio keeps `cap`, however wrong. ValueError for cap <= 0.
    """
    if not cap > 0:
        raise ValueError(
            f"sampler_weight with cap={cap:g}: the largest weight of a step must be positive. Use cap >= 1."
        )
    return _ratio(logp_old, logp_sampled, mask).clamp(max=cap)


def sampler_weight_masked(
    logp_old: Float[Tensor, "B T"],
    logp_sampled: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    low: float,
    high: float,
) -> Float[Tensor, "B T"]:
    """Return exp(logp_old - logp_sampled) inside [low, high], both included, and 0 outside.

    Source: Zhao et al. 2025 (IcePop), with low = 0.5 and high = 5; also called masked importance sampling.
    Assumes that a ratio far from 1 is a fault of the machine (a router that chose other experts) and says
    nothing about the action. Biased: rare actions, whose ratios scatter most, are dropped most. Failure case:
    as the two drift apart, ever more of the batch is silently dropped; watch the fraction of zeros.
    ValueError unless 0 <= low <= 1 <= high: outside, samples without any mismatch would be dropped.
    """
    if not 0 <= low <= 1 <= high:
        raise ValueError(
            f"sampler_weight_masked with low={low:g}, high={high:g}: the ratio 1, where sampler and trainer "
            "agree, must be inside. Use 0 <= low <= 1 <= high."
        )
    ratio = _ratio(logp_old, logp_sampled, mask)
    return torch.where((ratio >= low) & (ratio <= high), ratio, 0)


def _ratio(logp_old: Tensor, logp_sampled: Tensor, mask: Tensor) -> Tensor:
    check_same(logp_old=logp_old, logp_sampled=logp_sampled, mask=mask)
    difference = (logp_old - logp_sampled).detach()
    return torch.where(zero_one(mask).bool(), difference, 0).exp()
