"""What one transition says that Q should be: its reward, and what its successor is worth.

A row is a transition out of a replay, `[B]`, in no order. It may span k steps: `rewards` is then
Σ_{i<k} γ^i r_i, what follows begins k steps later and `discounts` is γ^k. Rewards and values have one unit.
The answers are data: no gradient flows through them. Their dtype is that of what the successor is worth.

Letters: `K` atoms of a distribution.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gradhat.shapes import check_same


def value(
    rewards: Float[Tensor, " B"],
    next_values: Float[Tensor, " B"],
    terminated: Bool[Tensor, " B"],
    discounts: Float[Tensor, " B"],
) -> Float[Tensor, " B"]:
    """Return y = r + γ^k (1 - terminated) V(s′), `[B]`.

    Source: Sutton & Barto 2018, eq. 6.7 (SARSA), 6.9 (expected SARSA), 6.8 (Q-learning) and 7.1 (k steps), by
    what V(s′) is: Q of the next action, its mean under the policy, that of the best one. Where terminated
    V(s′) is not read: NaN may stand there. A truncated row is an ordinary one, and its successor is the final
    observation. Assumes that V(s′) is data from a network that changes slowly. Failure case: a truncation
    passed as termination teaches that the time limit is death.

    Raises ValueError for shapes that differ and flags that are not bool.
    """
    check_same(rewards=rewards, next_values=next_values, terminated=terminated, discounts=discounts)
    _check_flags(terminated)
    rewards, discounts = rewards.to(next_values.dtype), discounts.to(next_values.dtype)
    return torch.addcmul(rewards, discounts, next_values.masked_fill(terminated, 0)).detach()


def distribution(
    rewards: Float[Tensor, " B"],
    next_probs: Float[Tensor, "B K"],
    terminated: Bool[Tensor, " B"],
    discounts: Float[Tensor, " B"],
    *,
    low: float,
    high: float,
) -> Float[Tensor, "B K"]:
    """Return the distribution of r + γ^k (1 - terminated) Z(s′) on the atoms of Z, `[B, K]`.

        z_i = low + i Δ        Δ = (high - low) / (K - 1)
        m_i = Σ_j p_j · [1 - |clip(r + γ^k (1 - terminated) z_j, low, high) - z_i| / Δ] clipped to [0, 1]

    Each atom of Z(s′) is moved and its probability p_j (`next_probs`) shared by the two atoms it comes to lie
    between, the nearer one getting more, so that the mean is kept.

    Source: Bellemare, Dabney & Munos 2017, eq. 7 and algorithm 1. Assumes that returns lie in [low, high].
    Failure case: those that do not are held at the ends, and the mean with them. A program after the letter
    of algorithm 1 loses the probability of an atom that falls exactly on another (l = u); this one does not.

    Raises ValueError for shapes that differ, flags that are not bool, fewer than two atoms and low >= high.
    """
    check_same(rewards=rewards, terminated=terminated, discounts=discounts)
    _check_flags(terminated)
    if next_probs.dim() != 2 or len(next_probs) != len(rewards) or next_probs.shape[1] < 2 or not low < high:
        raise ValueError(
            f"next_probs {tuple(next_probs.shape)} on [{low:g}, {high:g}] with rewards "
            f"{tuple(rewards.shape)}: pass a probability for each of K >= 2 atoms, [B, K], and low < high."
        )
    rewards, discounts = rewards.to(next_probs.dtype), discounts.to(next_probs.dtype)
    last = next_probs.shape[1] - 1
    atoms = torch.linspace(low, high, last + 1, dtype=next_probs.dtype, device=next_probs.device)
    moved = torch.addcmul(rewards[:, None], discounts.masked_fill(terminated, 0)[:, None], atoms)
    place = ((moved - low) * (last / (high - low))).clamp(0, last)
    below = place.floor().clamp(max=last - 1)
    upper = next_probs.detach() * (place - below)
    index = below.long()
    target = torch.zeros_like(next_probs).scatter_add_(1, index, next_probs.detach() - upper)
    return target.scatter_add_(1, index + 1, upper)


def _check_flags(terminated: Tensor) -> None:
    if terminated.dtype is not torch.bool:
        raise ValueError(
            f"terminated {terminated.dtype}: it is true or false of each row. Pass terminated.bool()."
        )
