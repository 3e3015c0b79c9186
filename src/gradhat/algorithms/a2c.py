"""A2C: advantage actor-critic. One optimiser step for each batch, credit by a critic.

    maximise  1/N · Σ_t [ log π(a_t | s_t) · A_t  −  c_V · (V(s_t) − y_t)² / 2  +  c_H · H(π(· | s_t)) ]

A_t and y_t are data, from `critic.credit`. N counts the policy's own steps of the batch.

Source: Mnih et al. 2016 (A3C), section 4, there with n-step returns; A2C is its synchronous form, and the
credit is that of Schulman et al. 2016. With λ = 1 and whole episodes the gradient of the first term is
|D| / N · ĝ, whatever V is; with λ < 1 the error of V is a bias. γ^t is left out, as most people do: where
γ < 1 the expectation is the gradient of no objective. Failure case: one step for each batch of experience
makes slow use of it.
"""

from dataclasses import dataclass

from torch import Tensor

from gradhat.algorithms import critic
from gradhat.algorithms.ascend import Optimizer, ascend
from gradhat.losses import reduce, surrogate
from gradhat.policies.policy import Evaluation, Policy
from gradhat.trajectories import Trajectories


@dataclass(frozen=True)
class Settings:
    """The numbers of A2C."""

    gamma: float = 0.99
    """Discount γ, of `critic.credit`."""
    lam: float = 0.95
    """Trace λ, of `critic.credit`: 1 trusts rewards only, 0 the critic's next value."""
    value_coef: float = 0.5
    """c_V, the weight of the critic's loss."""
    entropy_coef: float = 0.0
    """c_H, the weight of the policy's entropy."""
    normalize_adv: bool = False
    """Whether advantages are shifted and scaled to mean 0 and deviation 1 over the batch: a bias."""


def update(
    policy: Policy, optimizer: Optimizer, trajectories: Trajectories, settings: Settings
) -> dict[str, float]:
    """Take one step on a batch that carries its credit; return metrics."""
    explained = critic.explained_variance(trajectories)
    batch = critic.normalised(trajectories) if settings.normalize_adv else trajectories
    num_tokens = int(batch.mask.sum())
    errors: list[float] = []

    def objective(evaluation: Evaluation, part: Trajectories) -> Tensor:
        gain = surrogate.reinforce(evaluation.logp, critic.credited(part)[0])
        error = critic.value_loss(evaluation, part)
        weight = reduce.per_token(part.mask.to(gain.dtype), num_tokens=num_tokens)
        errors.append((error.detach() * weight).sum().item())
        gain = gain - settings.value_coef * error + settings.entropy_coef * evaluation.entropy
        return (gain * weight).sum()

    metrics = ascend(policy, optimizer, batch, objective)
    return metrics | {"diagnostics/value_loss": sum(errors), "explained_variance": explained}
