"""Per-step estimators of KL(π_θ ‖ π_ref) from samples of π_θ.

Source: Schulman 2020, "Approximating KL Divergence". `logp` and `logp_ref` are float `[B, T]`:
log-probabilities of the sampled actions, in nats. Gradient flows through `logp` only. There is no mask:
weigh the answer with `losses.reduce`. Masked steps must hold finite numbers.

What is estimated depends on the place. As a penalty in the *reward*, k1 gives the gradient of
KL(π_θ ‖ π_ref). As a term in the *loss*, differentiated with the samples held fixed, the expected
gradient is that of
    k1: nothing at all (the score has mean zero)
    k2: KL(π_θ ‖ π_ref)
    k3: KL(π_ref ‖ π_θ), the other direction, although the value of k3 estimates KL(π_θ ‖ π_ref).
"""

import torch
from torch import Tensor

LOG_RATIO_MAX = 20.0
"""Largest log(π_ref / π_θ) that k3 follows; beyond it value and gradient stand still, so that exp stays
finite."""


def k1(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """Return log(π_θ / π_ref), `[B, T]`. Unbiased, of either sign, with high variance."""
    return logp - logp_ref.detach()


def k2(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """Return log(π_θ / π_ref)² / 2, `[B, T]`. Never negative; biased from the third order of the ratio."""
    return (logp - logp_ref.detach()).square() / 2


def k3(logp: Tensor, logp_ref: Tensor) -> Tensor:
    """Return π_ref / π_θ - 1 - log(π_ref / π_θ), `[B, T]`. Never negative and unbiased in value.

    Source: also Shao et al. 2024 (DeepSeekMath), eq. 4. Assumes that π_θ gives weight wherever π_ref
    does. Failure case: an action that π_θ has all but ruled out makes the ratio explode; it is held at
    exp(LOG_RATIO_MAX).
    """
    log_ratio = (logp_ref.detach() - logp).clamp(max=LOG_RATIO_MAX)
    return torch.expm1(log_ratio) - log_ratio
