"""Baselines that a batch's groups do not supply: a constant, a moving average, a value function.

The credit of a step is its return minus a baseline: adv = returns - b. (The baselines read off the rewards
of the batch itself, none, group mean, leave one out and batch mean, are in `group`.) A baseline is
unbiased if it does not depend on the action it is taken off from, given the state: the score has mean
zero, so E[∇ log π(a | s) · b(s)] = b(s) · ∇ Σ_a π(a | s) = 0.

Source: Williams 1992; Sutton & Barto 2018, section 13.4.

| baseline                       | unbiased                  | why                                          |
|--------------------------------|---------------------------|----------------------------------------------|
| none, constant                 | yes                       | fixed in advance                             |
| moving average of past batches | yes                       | fixed before this batch is sampled           |
| value function of the state    | yes; not as a bootstrap   | fixed before the action, however wrong it is |
| leave one out                  | yes                       | the other samples do not depend on this one  |
| group mean                     | up to a factor (G - 1)/G  | it holds the sample's own reward             |
| batch mean                     | up to a factor (B - 1)/B  | it holds the sample's own reward             |

Baselines are data: no gradient flows through them. ValueError for shapes that differ and a mask that is
not 0/1.
"""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from gradhat.shapes import check_same, zero_one


def constant(
    returns: Float[Tensor, "B T"], mask: Shaped[Tensor, "B T"], *, value: float
) -> Float[Tensor, "B T"]:
    """Return the baseline `value`, in the unit of the returns, on own steps and 0 on masked ones.

    Source: Williams 1992. Assumes a number chosen without looking at the batch; any such is unbiased. Failure
    case: a number read off the same batch, or start states of unequal difficulty, which one number cannot
    centre. ValueError for returns that are not floating.
    """
    check_same(returns=returns, mask=mask)
    _check_floating(returns)
    return torch.full_like(returns, value).masked_fill_(zero_one(mask) == 0, 0)


def moving_average(average: float, returns: Float[Tensor, " B"], *, decay: float) -> float:
    """Return the next average, decay · average + (1 - decay) · mean return, `[B]` → a number.

    Source: Williams 1992, after the reinforcement comparison of Sutton 1984. Assumes that the baseline of a
    batch is the average *before* it: then it is fixed when the batch is sampled, and unbiased. Failure case:
    the average after it holds a share (1 - decay) / B of each trajectory's own return and shortens the
    expected gradient by that share. decay = 1 keeps the average. ValueError for decay outside [0, 1], for an
    empty batch and for returns that are not floating.
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay={decay:g}: an average keeps a share in [0, 1] of itself. Choose one there.")
    if returns.dim() != 1 or len(returns) == 0:
        raise ValueError(
            f"returns {tuple(returns.shape)}: pass one return per trajectory, [B], at least one."
        )
    _check_floating(returns)
    return decay * average + (1 - decay) * float(returns.mean())


def value_function(values: Float[Tensor, "B T"], mask: Shaped[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Return V(s_t) on own steps and 0 on masked ones, where `values` is not read.

    Source: Sutton & Barto 2018, eq. 13.11. Assumes a V that was fixed before the actions were sampled. Taken
    off the reward to go it is then unbiased however wrong V is, and the better V, the less variance; it may
    differ from step to step, so take it off `returns.to_go` and not off the total. Failure case: a V fitted
    to this very batch before it is taken off depends on the actions. As a bootstrap (`gae` with λ < 1) its
    error is a bias.
    """
    check_same(values=values, mask=mask)
    return values.detach().masked_fill(zero_one(mask) == 0, 0)


def _check_floating(returns: Tensor) -> None:
    if not returns.is_floating_point():
        raise ValueError(
            f"returns {returns.dtype}: a baseline is a mean, which is no integer. Pass returns.float()."
        )
