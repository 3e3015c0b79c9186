"""Rows of experience for the tests of returns and GAE: several episodes, holes in the mask, both ends.

The slow twins walk forward and sum; what they are compared with runs backward.
"""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

F64 = torch.float64


@dataclass(frozen=True)
class Rows:
    """What `gae` takes; `values` and `next_values` agree with each other, as a value function's do."""

    rewards: Tensor
    values: Tensor
    next_values: Tensor
    terminated: Tensor
    ended: Tensor
    mask: Tensor

    def places(self) -> list[tuple[int, int]]:
        return [(b, t) for b, t in self.mask.nonzero().tolist()]

    def onward(self, b: int, t: int) -> list[int]:
        """The own steps of the episode of step t, from t on."""
        steps: list[int] = []
        for u in range(t, self.mask.shape[1]):
            if self.mask[b, u]:
                steps.append(u)
            if self.ended[b, u]:
                break
        return steps

    def bootstrap(self, b: int, t: int) -> float:
        return 0.0 if self.terminated[b, t] else float(self.next_values[b, t])

    def fill(self, value: dict[tuple[int, int], float]) -> Tensor:
        """The values at own steps and 0 elsewhere."""
        out = torch.zeros(self.mask.shape, dtype=F64)
        for place, number in value.items():
            out[place] = number
        return out


def random_rows(mask: Tensor, ended: Tensor, terminated: Tensor, seed: int) -> Rows:
    """Random numbers at own steps; NaN wherever nothing may be read."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values, beyond = torch.randn(3, *mask.shape, dtype=F64, generator=generator).unbind(0)
    rows = Rows(rewards, values, beyond, terminated, ended, mask)
    next_values = beyond.clone()
    for b, t in rows.places():
        onward = rows.onward(b, t)
        if len(onward) > 1:
            next_values[b, t] = values[b, onward[1]]
    nothing = ~mask
    return Rows(
        rewards.masked_fill(nothing, torch.nan),
        values.masked_fill(nothing, torch.nan),
        next_values.masked_fill(nothing | terminated, torch.nan),
        terminated,
        ended,
        mask,
    )


@st.composite
def ragged(draw: st.DrawFn) -> Rows:
    """Up to 3 rows of up to 9 steps, with holes, padding, several episodes, cut and finished ones."""
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    size = shape[0] * shape[1]

    def bits(share: list[bool]) -> Tensor:
        drawn = draw(st.lists(st.sampled_from(share), min_size=size, max_size=size))
        return torch.tensor(drawn).view(shape)

    mask, ended, dead = bits([True, True, False]), bits([False, False, False, True]), bits([True, False])
    return random_rows(mask, ended, ended & dead, draw(st.integers(0, 10**6)))


rates = st.sampled_from([0.0, 0.3, 0.9, 1.0])
