"""The seven surrogates with their bounds set, each beside its gradient as written on paper."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gradhat.losses import surrogate

Surrogate = Callable[[Tensor, Tensor], Tensor]

LOW, HIGH, DUAL = 0.2, 0.3, 3.0
TAU_POSITIVE, TAU_NEGATIVE = 1.1, 1.7

clipped = partial(surrogate.clipped, low=LOW, high=HIGH)
dual_clipped = partial(surrogate.dual_clipped, low=LOW, high=HIGH, dual=DUAL)
clipped_weight = partial(surrogate.clipped_weight, low=LOW, high=HIGH)
soft_gate = partial(surrogate.soft_gate, tau_positive=TAU_POSITIVE, tau_negative=TAU_NEGATIVE)


def divergence_kept(log_ratio: Tensor, adv: Tensor) -> Tensor:
    keep = torch.ones(torch.broadcast_shapes(log_ratio.shape, adv.shape), dtype=torch.bool)
    return surrogate.divergence_masked(log_ratio, adv, keep)


ALL: dict[str, Surrogate] = {
    "reinforce": surrogate.reinforce,
    "importance_weighted": surrogate.importance_weighted,
    "clipped": clipped,
    "dual_clipped": dual_clipped,
    "clipped_weight": clipped_weight,
    "soft_gate": soft_gate,
    "divergence_masked": divergence_kept,
}


def _switched_off(ratio: float, adv: float) -> bool:
    return (adv > 0 and ratio > 1 + HIGH) or (adv < 0 and ratio < 1 - LOW)


def _gate(ratio: float, adv: float) -> float:
    p = 1 / (1 + math.exp(-(TAU_POSITIVE if adv > 0 else TAU_NEGATIVE) * (ratio - 1)))
    return 4 * p * (1 - p)


GRADIENT: dict[str, Callable[[float, float], float]] = {
    "reinforce": lambda ratio, adv: adv,
    "importance_weighted": lambda ratio, adv: ratio * adv,
    "clipped": lambda ratio, adv: 0.0 if _switched_off(ratio, adv) else ratio * adv,
    "dual_clipped": lambda ratio, adv: (
        0.0 if _switched_off(ratio, adv) or (adv < 0 and ratio > DUAL) else ratio * adv
    ),
    "clipped_weight": lambda ratio, adv: min(max(ratio, 1 - LOW), 1 + HIGH) * adv,
    "soft_gate": lambda ratio, adv: _gate(ratio, adv) * ratio * adv,
    "divergence_masked": lambda ratio, adv: ratio * adv,
}
"""d objective / d log-ratio as a function of (ratio, adv)."""
