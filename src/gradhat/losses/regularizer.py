"""Entropy and KL divergence of each step, exact: sums over the vocabulary, not samples.

`logits` is `[B, T, V]`; π at a step is their softmax. -inf is an action that is not allowed: it has
probability 0 and adds nothing. At least one logit of a step must be finite, else the answer is NaN, at masked
steps too. The answer is `[B, T]`, in nats; multiply it by a weight of `losses.reduce` and sum. Add the
entropy to an objective, subtract the KL.

What the sum over steps means for a sequence. By the chain rule, KL(π ‖ π_ref) over sequences is the
expectation *over prefixes drawn from π* of Σ_t KL(π(·|s_t) ‖ π_ref(·|s_t)), and likewise for the entropy. So
on fresh samples the sum over own steps is an unbiased estimate of the value. Its gradient is not: with the
samples held fixed, each step answers for its own distribution and not for the states it leads to. The
missing part is Σ_t ∇ log π(a_t|s_t) · Σ_{t′>t} (term of t′); a penalty in the reward has it (see
`estimators.kl`). In a bandit nothing is missing. With KL(π_ref ‖ π), the chain rule needs prefixes drawn from
π_ref, and nothing is missing from the gradient on those, as π_ref does not move.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from gradhat.shapes import check_same


def entropy(logits: Float[Tensor, "B T V"]) -> Float[Tensor, "B T"]:
    """Return -Σ_v π(v) · log π(v) of every step: between 0 and log V.

    Source: Shannon 1948; as a bonus to the objective, Williams & Peng 1991 and Mnih et al. 2016 (A3C).
    Assumes that a spread over actions is wanted everywhere alike. Failure case: on a large vocabulary most of
    it lies in words that make no sense, and the bonus pays for those. ValueError for logits not `[B, T, V]`.
    """
    _check(logits)
    logp = logits.log_softmax(-1)
    p = logp.exp()
    return -(p * torch.where(p == 0, 0, logp)).sum(-1)


def kl(logits: Float[Tensor, "B T V"], logits_ref: Float[Tensor, "B T V"]) -> Float[Tensor, "B T"]:
    """Return KL(π ‖ π_ref) = Σ_v π(v) · (log π(v) - log π_ref(v)) of every step; swap them for the other.

    Gradient flows into both arguments: detach the one that is the reference. `kl(logits, logits_ref)` is
    lowest where π avoids what π_ref avoids, `kl(logits_ref, logits)` where π covers all that π_ref does.

    Source: Kullback & Leibler 1951. Assumes the same vocabulary, action by action. Failure case: inf, with a
    gradient of NaN, where π allows an action that π_ref forbids (-inf); give both the same mask of actions.
    ValueError for logits that are not `[B, T, V]` or differ in shape.
    """
    _check(logits)
    check_same(logits=logits, logits_ref=logits_ref)
    logp, logp_ref = logits.log_softmax(-1), logits_ref.log_softmax(-1)
    p = logp.exp()
    # A probability of 0 takes its term with it, also where log π - log π_ref is inf - inf.
    return (p * torch.where(p == 0, 0, logp - logp_ref)).sum(-1)


def _check(logits: Tensor) -> None:
    if logits.dim() != 3:
        raise ValueError(
            f"logits {tuple(logits.shape)}: one distribution per step is needed. Pass logits as [B, T, V]."
        )
