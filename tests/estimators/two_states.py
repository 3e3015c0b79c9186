"""A world of two states and an end, every trajectory of which is listed: expectations are sums here.

PI is the policy that is asked about, MU the one that samples. The horizon cuts: the last step of a long
trajectory is truncated, and the state that follows it is known.
"""

from typing import NamedTuple

import torch
from torch import Tensor

F64 = torch.float64
GAMMA = 0.9
HORIZON = 3
END = 2
START = torch.tensor([0.3, 0.7, 0.0], dtype=F64)
# P[s, a, s'] and r[s, a, s']: no two rows alike. The last state is the end.
P = torch.tensor(
    [
        [[0.1, 0.6, 0.3], [0.5, 0.4, 0.1]],
        [[0.7, 0.1, 0.2], [0.2, 0.2, 0.6]],
        [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]],
    ],
    dtype=F64,
)
R = torch.tensor(
    [[[1.0, -2.0, 0.5], [0.3, 2.0, -1.0]], [[-0.7, 1.5, 3.0], [0.2, -1.0, 1.0]], [[0.0] * 3] * 2], dtype=F64
)
LOGITS = torch.tensor([[1.2, -0.4], [-0.9, 0.1], [0.0, 0.0]], dtype=F64)
PI = LOGITS.softmax(-1)
MU = torch.tensor([[0.35, 0.65], [0.6, 0.4], [0.5, 0.5]], dtype=F64)


class Paths(NamedTuple):
    """`[N]` and `[N, T]`. `world` is the probability of the start and of the transitions."""

    world: Tensor
    states: Tensor
    actions: Tensor
    next_states: Tensor
    rewards: Tensor
    mask: Tensor
    terminated: Tensor
    ended: Tensor

    def logp(self, policy: Tensor) -> Tensor:
        return torch.where(self.mask, policy[self.states, self.actions].log(), 0.0)

    def probability(self, policy: Tensor) -> Tensor:
        return self.world * self.logp(policy).sum(-1).exp()

    def log_ratio(self) -> Tensor:
        return self.logp(PI) - self.logp(MU)


def _walks(state: int, left: int) -> list[tuple[float, list[tuple[int, int, int]]]]:
    """Every (probability of the transitions, steps (s, a, s')) from `state`."""
    if state == END or left == 0:
        return [(1.0, [])]
    return [
        (P[state, a, s2].item() * chance, [(state, a, s2), *rest])
        for a in range(2)
        for s2 in range(3)
        for chance, rest in _walks(s2, left - 1)
    ]


def paths() -> Paths:
    walks = [(START[s].item() * p, steps) for s in range(2) for p, steps in _walks(s, HORIZON)]
    padded = [steps + [(END, 0, END)] * (HORIZON - len(steps)) for _, steps in walks]
    states, actions, next_states = torch.tensor(padded).unbind(-1)
    mask = states != END
    terminated = mask & (next_states == END)
    last = torch.arange(HORIZON) == HORIZON - 1
    return Paths(
        world=torch.tensor([p for p, _ in walks], dtype=F64),
        states=states,
        actions=actions,
        next_states=next_states,
        rewards=R[states, actions, next_states],
        mask=mask,
        terminated=terminated,
        ended=terminated | (last & mask),
    )


def q_of(values: Tensor) -> Tensor:
    """Q `[S, A]` of one step that ends in a state worth `values` `[S]`."""
    return (P * (R + GAMMA * values)).sum(-1)


def value(policy: Tensor) -> Tensor:
    """V^π `[S]` without a horizon, by a linear solve."""
    transition = torch.einsum("sa,sat->st", policy, P)
    reward = torch.einsum("sa,sat,sat->s", policy, P, R)
    return torch.linalg.solve(torch.eye(3, dtype=F64) - GAMMA * transition, reward)


def values_to_go(policy: Tensor) -> list[Tensor]:
    """V^π `[S]` with 0, 1, ... HORIZON steps to go."""
    values = [torch.zeros(3, dtype=F64)]
    for _ in range(HORIZON):
        values.append((policy * q_of(values[-1])).sum(-1))
    return values


def objective(policy: Tensor) -> Tensor:
    """J(π) up to the horizon."""
    return START @ values_to_go(policy)[HORIZON]
