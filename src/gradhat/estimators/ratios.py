"""Log-ratios between the policy being trained and the one that sampled: log π_θ(a | s) - log π_old(a | s).

`logp` and `logp_old` are float `[B, T]`, `mask` is bool or 0/1 `[B, T]`, in nats. Gradient flows through
`logp` only. A masked step gets a log-ratio of exactly 0 and no gradient, whatever stands there: 0 · inf
never becomes NaN later.
"""

import torch
from torch import Tensor


def on_policy(logp: Tensor, logp_old: Tensor, mask: Tensor) -> Tensor:
    """Return logp - stop_gradient(logp), `[B, T]`: the value 0 with the gradient of logp.

    Source: the score function of Williams 1992. Assumes that the samples come from the current weights;
    `logp_old` is taken for the common signature and not read. Failure case: stale samples are treated as
    fresh ones.
    """
    return _masked(logp - logp.detach(), mask)


def token(logp: Tensor, logp_old: Tensor, mask: Tensor) -> Tensor:
    """Return the log-ratio of every step on its own, `[B, T]`.

    Source: Schulman et al. 2017 (PPO), section 3, r_t(θ). The exact correction of a trajectory is the
    product over its steps; one ratio per step drops the other factors, a bias that vanishes with the
    distance between the policies.
    """
    return _masked(logp - logp_old.detach(), mask)


def sequence(logp: Tensor, logp_old: Tensor, mask: Tensor) -> Tensor:
    """Return the mean log-ratio of each trajectory, `[B, 1]`: the log of its ratios' geometric mean.

    Source: Zheng et al. 2025 (GSPO), eq. 7. Not an importance weight: the root of the product's length-th
    degree trades bias for variance. A trajectory without steps gets 0.
    """
    num_steps = mask.bool().sum(-1, keepdim=True).clamp(min=1).to(logp.dtype)
    return token(logp, logp_old, mask).sum(-1, keepdim=True) / num_steps


def _masked(log_ratio: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask.bool(), log_ratio, torch.zeros_like(log_ratio))
