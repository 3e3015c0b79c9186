"""Returns: what a trajectory is worth, and what each of its steps is worth. Rewards in, returns out.

`rewards` and `next_values` are float `[B, T]`, in the unit of the rewards; `terminated` and `ended` bool
`[B, T]`; `mask` bool or 0/1 `[B, T]`. Every function answers in the dtype of `rewards`. A return is data:
no gradient flows through it. ValueError for shapes that differ, numbers that are not floating, flags that
are not bool, a mask that is not 0/1, rates outside [0, 1] and, where both flags are given, a step that is
terminated and not ended.

A row is one trajectory (a language model), or several episodes one after the other (vectorised
environments): `ended` is true at the last step of each, and nothing that follows reaches back over it.
`terminated` says that the world ended there: its value is zero and `next_values` is not read. Where a
trajectory was only cut, `next_values` is the value of its true successor, the final observation.

Steps inside a trajectory that are not the policy's own (masked: text of the environment, the dummy step
of an autoreset) have no return, exactly 0 in the answer. Nothing of them is read, so NaN may stand there,
except `ended`. Time passes on own steps only: γ and λ count the policy's actions. `next_values` of an own
step is the value of the state in which the policy acts next, after the environment's turn. Failure cases:
a reward on a masked step is not read, and a `terminated` there does not zero the bootstrap of the own step
before it; write both on the own step that caused them. An objective that also discounts the steps of the
environment is another one, unless γ = 1.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from gradhat.shapes import check_same, zero_one

COLUMNS = 80
"""Steps that `accumulate` takes at once, so that a block of thousands of rows stays in the cache. Not a power
of two: the rows of a column would then fall on too few lines of it."""


def total(rewards: Float[Tensor, "B T"], mask: Shaped[Tensor, "B T"], *, gamma: float) -> Float[Tensor, " B"]:
    """Return R(τ) = Σ_t γ^t r_t, `[B]`, with t = 0 at the first own step of the row.

    Source: Sutton & Barto 2018, eq. 3.8. Assumes one trajectory per row. The estimator Σ_t ∇ log π · R(τ)
    (Williams 1992) is unbiased; it also blames a step for rewards that came before it, which is variance
    and nothing else. Failure case: several episodes in a row are added up.
    """
    own = own_steps(mask, rewards=rewards)
    check_rates(gamma=gamma)
    return (torch.where(own, rewards.detach(), 0) * _discounts(own, gamma, rewards.dtype)).sum(1)


def discounts(mask: Shaped[Tensor, "B T"], *, gamma: float) -> Float[Tensor, "B T"]:
    """Return γ^t, `[B, T]`, the weight of each own step's score in ∇J; t = 0 at the first own step.

        ∇J = E Σ_t γ^t · ∇ log π(a_t | s_t) · Q(s_t, a_t)

    Source: Sutton & Barto 2018, section 13.3 (the γ^t of the REINFORCE box). Most implementations leave it
    out, so that late steps learn as much as early ones. That is a bias people choose, not a detail: without
    it the expected update is the gradient of no objective at all (Nota & Thomas 2020, "Is the Policy
    Gradient a Gradient?"). Assumes that the row is one trajectory from its beginning. Failure case: with
    several episodes in a row, or one begun earlier, t is not the time since the start. The dtype is that
    of `mask` if it is floating, else torch's default.
    """
    own = own_steps(mask)
    check_rates(gamma=gamma)
    return _discounts(own, gamma, mask.dtype if mask.is_floating_point() else torch.get_default_dtype())


def to_go(
    rewards: Float[Tensor, "B T"], ended: Bool[Tensor, "B T"], mask: Shaped[Tensor, "B T"], *, gamma: float
) -> Float[Tensor, "B T"]:
    """Return the reward to go G_t = Σ_{u ≥ t} γ^(u - t) r_u, up to the end of the step's episode.

    Source: Sutton & Barto 2018, eq. 3.8. In place of R(τ) it leaves ĝ unbiased with less variance, because
    an action does not change what was before it; ∇J needs the weight γ^t of `discounts` in front.
    Assumes episodes seen to their end. Failure case: an episode that was cut lacks the rest of its
    rewards, and nothing replaces them; `n_step`, `lambda_returns` and `gae` bootstrap.
    """
    own = own_steps(mask, rewards=rewards)
    check_flags(mask, ended=ended)
    check_rates(gamma=gamma)
    return accumulate(lambda steps: rewards[:, steps].clone(), ended, own, like=rewards, rate=lambda _: gamma)


def n_step(
    rewards: Float[Tensor, "B T"],
    next_values: Float[Tensor, "B T"],
    terminated: Bool[Tensor, "B T"],
    ended: Bool[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    gamma: float,
    n: int,
) -> Float[Tensor, "B T"]:
    """Return Σ_{i < n} γ^i r_{t+i} + γ^n V(s_{t+n}): n rewards of own steps, then the value.

    Source: Sutton & Barto 2018, eq. 7.1. Where the episode or the row ends sooner, so does the sum, with
    the value of what follows there (0 where terminated). n = 1 is the target of TD(0); n ≥ T is the reward
    to go, with a bootstrap where it was cut. Assumes samples of the policy whose value is meant. Failure
    case: the bias of V, shrunk by γ^n. The work grows with n. ValueError for n below 1.
    """
    own = own_steps(mask, rewards=rewards, next_values=next_values)
    check_rates(gamma=gamma)
    check_ends(mask, terminated, ended)
    if n < 1:
        raise ValueError(f"n_step with n={n}: a return takes at least one reward. Use n >= 1.")
    index, follows = _next_own(own, ended)
    rewards = torch.where(own, rewards.detach(), 0)
    shortest = rewards + gamma * next_values.detach().masked_fill(terminated | ~own, 0)
    returns = shortest
    for _ in range(min(n, rewards.shape[1]) - 1):
        returns = torch.where(follows, rewards + gamma * returns.gather(1, index), shortest)
    return returns


def lambda_returns(
    rewards: Float[Tensor, "B T"],
    next_values: Float[Tensor, "B T"],
    terminated: Bool[Tensor, "B T"],
    ended: Bool[Tensor, "B T"],
    mask: Shaped[Tensor, "B T"],
    *,
    gamma: float,
    lam: float,
) -> Float[Tensor, "B T"]:
    """Return G_t = r_t + γ ((1 - λ) V(s_{t+1}) + λ G_{t+1}).

    That is the mean of the n-step returns with weights (1 - λ) λ^(n-1), what is left going to the longest.

    Source: Sutton & Barto 2018, eq. 12.2 and 12.3. At the last own step of an episode, and of the row, it
    is r_t + γ V(s_{t+1}), without the value where terminated. λ = 1 is the longest n-step return, λ = 0
    the shortest. It equals GAE plus the value, if `next_values` holds the `values` of the next own step;
    it is the target for a value function that goes with `gae`. Assumes samples of the policy whose value is
    meant. Failure case: for λ < 1 the bias of V.
    """
    own = own_steps(mask, rewards=rewards, next_values=next_values)
    check_rates(gamma=gamma, lam=lam)
    check_ends(mask, terminated, ended)
    _, follows = _next_own(own, ended)

    def credit(steps: slice) -> Tensor:
        # λ of the value is replaced by λ of the next return, where there is one.
        value = next_values[:, steps].masked_fill(terminated[:, steps], 0)
        return value.mul_(gamma).mul_(1 - lam * follows[:, steps].to(value.dtype)).add_(rewards[:, steps])

    return accumulate(credit, ended, own, like=rewards, rate=lambda _: gamma * lam)


def accumulate(
    credit: Callable[[slice], Tensor],
    ended: Bool[Tensor, "B T"],
    own: Bool[Tensor, "B T"],
    *,
    like: Float[Tensor, "B T"],
    rate: Callable[[slice], Tensor | float],
) -> Float[Tensor, "B T"]:
    """Return y_t = c_t + rate_t · y_{t+1} on own steps, from the last step of an episode to its first.

    For a slice of steps `credit(steps)` hands out a fresh c, `[B, n]`, and `rate(steps)` the rates, `[B, n]`
    or one number. The recursion passes over a masked step unchanged, and the answer there is 0; nothing
    passes over `ended`:

        k_t = (1 - ended_t) · (rate_t if own_t else 1)        y_t = own_t · c_t + k_t · y_{t+1}

    The recursion is run and not solved by dividing by powers of the rate, which overflow. Assumes that what
    `credit` hands out belongs to nobody else: it is written to. Failure case: rates above 1, such as ratios
    without a bound, overflow over many steps.
    """
    num_rows, num_steps = like.shape
    out = like.new_empty(num_rows, num_steps)
    following = like.new_zeros(num_rows)
    with torch.no_grad():
        for end in range(num_steps, 0, -COLUMNS):
            steps = slice(max(0, end - COLUMNS), end)
            mine = own[:, steps].contiguous()
            sums = credit(steps).masked_fill_(~mine, 0)  # a product with 0 would keep NaN
            mine = mine.to(sums.dtype)
            keep = (mine * rate(steps) + (1 - mine)) * ~ended[:, steps]
            for y, k in zip(reversed(sums.unbind(1)), reversed(keep.unbind(1)), strict=True):
                following = y.addcmul_(k, following)
            out[:, steps] = sums * mine
    return out


def own_steps(mask: Shaped[Tensor, "B T"], **numbers: Tensor) -> Bool[Tensor, "B T"]:
    """Return `mask` as bool. ValueError unless it is 0/1 and `[B, T]` and `numbers` fit it.

    Each of `numbers`, passed by its name, has the shape of the mask and is floating.
    """
    check_same(mask=mask, **numbers)
    if mask.dim() != 2:
        raise ValueError(f"mask {tuple(mask.shape)}: steps come as [B, T]. Pass one trajectory as [1, T].")
    for name, tensor in numbers.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} {tensor.dtype}: numbers per step are floating. Pass {name}.float().")
    return mask if mask.dtype is torch.bool else zero_one(mask).bool()


def check_rates(**rates: float) -> None:
    """ValueError for a discount or a trace outside [0, 1]."""
    for name, rate in rates.items():
        if not 0 <= rate <= 1:
            raise ValueError(f"{name}={rate:g}: a weight of the future lies in [0, 1]. Choose one there.")


def check_flags(mask: Shaped[Tensor, "B T"], **flags: Tensor) -> None:
    """ValueError unless each of `flags`, passed by its name, has the shape of the mask and is bool."""
    check_same(mask=mask, **flags)
    for name, flag in flags.items():
        if flag.dtype is not torch.bool:
            raise ValueError(f"{name} {flag.dtype}: it is true or false at each step. Pass {name}.bool().")


def check_ends(
    mask: Shaped[Tensor, "B T"], terminated: Bool[Tensor, "B T"], ended: Bool[Tensor, "B T"]
) -> None:
    """ValueError where a step is terminated and not ended: the next episode would leak into it."""
    check_flags(mask, terminated=terminated, ended=ended)
    wrong = terminated & ~ended
    if bool(wrong.any()):
        row, step = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"terminated without ended at row {row}, step {step}: `ended` is terminated or truncated. "
            "Pass ended = terminated | truncated."
        )


def _discounts(own: Tensor, gamma: float, dtype: torch.dtype) -> Tensor:
    time = (own.cumsum(1) - 1).clamp(min=0).to(dtype)
    return torch.where(own, gamma**time, 0)


def _next_own(own: Tensor, ended: Tensor) -> tuple[Int[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Return the place of the next own step, and for own steps whether there is one in the same episode.

    Where there is none in the row, the place is the last column, so that it can be gathered.
    """
    num_steps = own.shape[1]
    place = torch.where(own, torch.arange(num_steps, device=own.device), num_steps)
    soonest = place.flip(1).cummin(1).values.flip(1)
    index = torch.nn.functional.pad(soonest, (0, 1), value=num_steps)[:, 1:]
    exists = index < num_steps
    index = index.clamp(max=num_steps - 1)
    ends_before = ended.cumsum(1) - ended.long()
    return index, own & exists & (ends_before.gather(1, index) == ends_before)
