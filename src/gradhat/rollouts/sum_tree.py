"""Weights that change all the time, and draws in proportion to them, both without a pass over all of them.

A binary tree over a million weights is twenty levels deep, and every level costs a few calls of numpy. Here a
node has 16 children, and the level below `TOP` nodes is searched by its running sum: two levels for 65,000
weights, three for a million.

Shapes: `B` draws, `capacity` weights.
"""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

FANOUT = 16
"""Children of a node."""
TOP = 4096
"""Most nodes of the level that is searched by its running sum."""
BELOW_ONE = 1 - 1e-12
"""Sums are rounded: a target is kept at least 0, and this far below the sum that it is searched in. Beyond
either it would end at a weight of 0."""


class SumTree:
    """Non-negative weights `[capacity]`, all 0 at first, with the sums of their blocks kept up to date.

    A sum is always computed from all its parts, never by adding a difference: errors do not build up, and the
    tree is the same to the bit however its weights came about.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._levels = [np.zeros(_padded(capacity))]
        """Weights first, then sums of `FANOUT` of the level before; each padded with 0 to whole nodes."""
        while len(self._levels[-1]) > TOP:
            self._levels.append(np.zeros(_padded(len(self._levels[-1]) // FANOUT)))
        self._nodes = [level.reshape(-1, FANOUT) for level in self._levels]
        self._running = self._levels[-1].cumsum()

    @property
    def weights(self) -> Floats:
        """The weights `[capacity]`, to be read only."""
        return self._levels[0][: self._capacity]

    @property
    def total(self) -> float:
        """The sum of the weights."""
        return float(self._running[-1])

    def set(self, index: Ints, weights: Floats | float) -> None:
        """Set the weights at `index` `[B]`. Where an index is repeated, its last weight stays.

        Assumes finite weights of at least 0. Failure case: a NaN makes every sum above it NaN.
        """
        self._levels[0][index] = weights
        for nodes, above in zip(self._nodes, self._levels[1:], strict=False):
            index = index // FANOUT
            above[index] = nodes.take(index, 0).sum(1)
        self._running = self._levels[-1].cumsum()

    def fill(self, weights: Floats) -> None:
        """Set all weights `[capacity]` at once."""
        self.set(np.arange(self._capacity), weights)

    def find(self, targets: Floats) -> Ints:
        """Return the first index whose running sum of weights exceeds each target `[B]`, in [0, total).

        With targets uniform in [0, total), index i is drawn with probability w_i / Σ_k w_k, and never where
        w_i = 0. Assumes a positive total. Borders between two weights are right to about 1e-12 of the total.
        """
        targets = np.minimum(targets, self.total * BELOW_ONE)
        index = self._running.searchsorted(targets, side="right")
        rest = targets - (self._running[index] - self._levels[-1][index])
        draws = np.arange(len(targets))
        for nodes in self._nodes[-2::-1]:
            children = nodes.take(index, 0)
            running = children.cumsum(1)
            rest = np.minimum(np.maximum(rest, 0), running[:, -1] * BELOW_ONE)
            child = (running <= rest[:, None]).sum(1)
            rest -= running[draws, child] - children[draws, child]
            index = index * FANOUT + child
        return index


def bytes_needed(capacity: int) -> int:
    """Return the bytes of a `SumTree`, its sums included."""
    count = total = _padded(capacity)
    while count > TOP:
        count = _padded(count // FANOUT)
        total += count
    return (total + count) * np.dtype(np.float64).itemsize


def _padded(count: int) -> int:
    return -(-count // FANOUT) * FANOUT
