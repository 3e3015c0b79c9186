"""Per-step estimators of KL(π_θ ‖ π_ref) from samples of π_θ.

Source: Schulman 2020, "Approximating KL Divergence". `logp` and `logp_ref` are float `[B, T]`:
log-probabilities of the sampled actions, in nats. Gradient flows through `logp` only. There is no mask:
weigh the answer with `losses.reduce`. Masked steps must hold finite numbers. ValueError for shapes that
differ.

As a *term in the loss*, an estimator is subtracted from the objective with a coefficient, `gain -
coef * k3(logp, logp_ref)`, and differentiated with the samples held fixed. As a *penalty in the reward*,
its value is taken off the reward (`in_reward`), and the score carries it like any other reward. Over the
actions of one state, sampled from π_θ itself, what is subtracted from the expected gradient is coef times

|    | in the reward                         | in the loss                              |
|----|---------------------------------------|------------------------------------------|
| k1 | ∇KL(π_θ ‖ π_ref)                      | 0: the score has mean zero               |
| k2 | ∇E[k2] - ∇KL(π_θ ‖ π_ref)             | ∇KL(π_θ ‖ π_ref)                         |
| k3 | ∇KL(π_θ ‖ π_ref) - ∇KL(π_ref ‖ π_θ)   | ∇KL(π_ref ‖ π_θ), the other direction    |

In the reward k2 and k3 follow the gradient of neither divergence: each is a difference of two gradients
that agree to first order near π_ref, so that they hardly hold a policy there.

Source: Tang & Munos 2025, "On a few pitfalls in KL divergence gradient estimation for RL". Over several
steps the places differ once more. In the reward, with rewards to go, k1 gives the gradient of the
divergence of whole trajectories. In the loss the states visited count as fixed, and each step gives its
own state's gradient only: what an action does to the divergence of later states is left out. Stale
samples need a ratio in front in either place.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from gradhat.shapes import check_same, zero_one

LOG_RATIO_MAX = 20.0
"""Largest log(π_ref / π_θ) that k3 follows; beyond it value and gradient stand still, so that exp stays
finite."""


def k1(logp: Float[Tensor, "B T"], logp_ref: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Return log(π_θ / π_ref), `[B, T]`. Unbiased in value, of either sign, with high variance.

    Source: Schulman 2020. Assumes samples of π_θ, and that π_ref gives weight wherever π_θ does. Failure
    case: in the loss its expected gradient is 0, whatever the coefficient; it belongs in the reward.
    """
    check_same(logp=logp, logp_ref=logp_ref)
    return logp - logp_ref.detach()


def k2(logp: Float[Tensor, "B T"], logp_ref: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Return log(π_θ / π_ref)² / 2, `[B, T]`. Never negative; biased from the third order of the ratio.

    Source: Schulman 2020. Assumes samples of π_θ, and in value policies that are close. Failure case: in
    the reward it follows the gradient of no divergence, and far from π_ref its value is not the divergence's.
    """
    check_same(logp=logp, logp_ref=logp_ref)
    return (logp - logp_ref.detach()).square() / 2


def k3(logp: Float[Tensor, "B T"], logp_ref: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Return π_ref / π_θ - 1 - log(π_ref / π_θ), `[B, T]`. Never negative.

    Unbiased in value while no log(π_ref / π_θ) exceeds LOG_RATIO_MAX. Source: also Shao et al. 2024
    (DeepSeekMath), eq. 4. Assumes samples of π_θ, and that π_θ gives weight wherever π_ref does. Failure
    case: an action that π_θ has all but ruled out makes the ratio explode; it is held at exp(LOG_RATIO_MAX),
    a bias towards 0.
    """
    check_same(logp=logp, logp_ref=logp_ref)
    log_ratio = (logp_ref.detach() - logp).clamp(max=LOG_RATIO_MAX)
    return torch.expm1(log_ratio) - log_ratio


def in_reward(
    rewards: Float[Tensor, "B T"],
    penalty: Float[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    coef: float,
) -> Float[Tensor, "B T"]:
    """Return rewards - coef · penalty on own steps, and the rewards as they are on masked ones, `[B, T]`.

    `penalty` is k1, k2 or k3 in nats and counts as data: no gradient flows through it. `coef` is in the
    unit of the rewards per nat. `mask` is bool or 0/1; a masked step's penalty is not read.

    Source: Ziegler et al. 2019, with k1. k1 alone gives the gradient of a divergence of the two
    policies; what the others give is in the table above. Assumes fresh samples, and that the return is
    computed after the penalty, from rewards to go or in total. Failure case: a baseline or a scale of
    the group then sees the penalty too. ValueError for shapes that differ and a mask that is not 0/1.
    """
    check_same(rewards=rewards, penalty=penalty, mask=mask)
    return torch.where(zero_one(mask) == 1, rewards - coef * penalty.detach(), rewards)
