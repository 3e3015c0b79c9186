"""Generalised advantage estimation: a bias chosen for less variance."""

from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from gradhat.estimators.returns import accumulate, check_ends, check_rates, own_steps


def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    next_values: Float[Tensor, "B T"],
    terminated: Bool[Tensor, "B T"],
    ended: Bool[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    gamma: float,
    lam: float,
) -> Float[Tensor, "B T"]:
    """Return the advantage of every own step, `[B, T]` in the unit and the dtype of `rewards`.

        δ_t = r_t + γ (1 - terminated_t) V(s_{t+1}) - V(s_t)
        k_t = (1 - ended_t) · (γλ if own_t else 1)
        A_t = own_t · δ_t + k_t · A_{t+1}                          answer: own_t · A_t

    Source: Schulman et al. 2016, eq. 16; the flags and the mask are ours. `terminated` zeroes the bootstrap,
    `ended` (terminated or truncated) cuts the trace. `next_values` is the value of the true successor: of
    the final observation where the episode was truncated, and not of the next episode's first one. Where
    terminated it is not read. `mask` is bool or 0/1. Advantages are data: no gradient flows through them.

    Assumes samples of the current policy. λ = 1 is return minus value: unbiased, whatever V is, for
    episodes seen to their end. λ = 0 is the TD error δ, whose bias is that of V. In between both.

    A masked step is not the policy's own: text of the environment, the dummy step of an autoreset. Its
    rewards and values are not read (NaN may stand there), its advantage is exactly 0, and the trace passes
    over it unchanged, so γλ counts own steps. `next_values` of the own step before it is the value of the
    state in which the policy acts next. Failure cases: a reward on a masked step is lost, and `terminated`
    there does not zero the bootstrap of the own step before; write both on the own step that caused them.
    Truncation passed as termination teaches that the time limit is death.

    Raises ValueError for shapes that differ, numbers that are not floating, flags that are not bool, a mask
    that is not 0/1, a step that is terminated and not ended, and rates outside [0, 1].
    """
    own = own_steps(mask, rewards=rewards, values=values, next_values=next_values)
    check_rates(gamma=gamma, lam=lam)
    check_ends(mask, terminated, ended)

    def td_error(steps: slice) -> Tensor:
        bootstrap = next_values[:, steps].masked_fill(terminated[:, steps], 0).mul_(gamma)
        return bootstrap.add_(rewards[:, steps]).sub_(values[:, steps])

    return accumulate(td_error, ended, own, like=rewards, rate=lambda _: gamma * lam)
