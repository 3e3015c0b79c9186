"""Observations and rewards brought to a common size, by statistics that grow with the experience.

The statistics belong to the policy: what it learned, it learned from normalised observations. They are saved
with it, and evaluation uses a frozen copy of them.

All arrays are numpy. Shapes: `N` environments (one step of each), `*O` of an observation.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradhat.errors import ConfigError, RunError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

CLIP = 10.0
"""Largest normalised number, either way: five to ten standard deviations are an accident, not a signal."""
ROUNDING = 1e-6
"""A deviation up to this share of the mean is the rounding of float32, of a few operations, and no spread."""


class RunningMoments:
    """Mean and variance of all rows so far, without keeping them. float64, `[*O]` each.

    Two sets of n_a and n_b rows, with means m and sums of squared deviations M, are together

        δ = m_b - m_a        m = m_a + δ n_b / n        M = M_a + M_b + δ² n_a n_b / n        n = n_a + n_b

    Source: Chan, Golub & LeVeque 1979. It does not subtract large squares from each other, as E[x²] - E[x]²
    does. All rows weigh the same. Failure case: where the observations of a better policy are elsewhere, the
    old ones hold the statistics back.
    """

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        self.count = 0
        self.mean: Floats = np.zeros(shape)
        self._squares: Floats = np.zeros(shape)
        self._is_frozen = False

    @property
    def variance(self) -> Floats:
        """Mean squared deviation from the mean (divided by n, not n - 1); 0 before the first row."""
        return self._squares / max(self.count, 1)

    @property
    def scale(self) -> Floats:
        """The standard deviation; infinite for what has not varied, but for rounding."""
        std = np.sqrt(self.variance)
        return np.where(std > ROUNDING * np.abs(self.mean), std, np.inf)

    def update(self, rows: NDArray[Any], own: Bools | None = None) -> None:
        """Take in `rows` `[N, *O]`, only those where `own` `[N]`. A frozen copy stays as it is.

        Rows that are not the policy's own (the dummy step of an autoreset) are not read: NaN may stand there.
        """
        if self._is_frozen:
            return
        kept = np.asarray(rows if own is None else rows[own], np.float64)
        if not len(kept):
            return
        mean = kept.sum(0) / len(kept)
        self.merge(len(kept), mean, np.square(kept - mean).sum(0))

    def merge(self, count: int, mean: Floats, squares: Floats) -> None:
        """Take in `count` rows, with their mean and their sum of squared deviations from it, `[*O]` each."""
        total = self.count + count
        if not total:
            return
        difference = mean - self.mean
        self._squares = self._squares + squares + np.square(difference) * (self.count * count / total)
        self.mean = self.mean + difference * (count / total)
        self.count = total

    def frozen(self) -> "RunningMoments":
        """Return a copy that no longer changes, for evaluation."""
        copy = RunningMoments(self.mean.shape)
        copy.restore(self.state())
        copy._is_frozen = True
        return copy

    def state(self) -> dict[str, Tensor]:
        """Return copies of what `restore` needs. Whether it is frozen is not part of it."""
        return {
            "count": torch.tensor(self.count),
            "mean": torch.from_numpy(np.array(self.mean)),
            "squares": torch.from_numpy(np.array(self._squares)),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state()` to the bit. RunError where it is of observations of another shape."""
        shape = tuple(state["mean"].shape)
        if shape != self.mean.shape:
            raise RunError(
                f"Statistics of shape {self.mean.shape} were to be restored, found {shape}. Resume with the "
                "environment that the run was started with."
            )
        self.count = int(state["count"])
        self.mean = state["mean"].numpy().copy()
        self._squares = state["squares"].numpy().copy()


class PooledMoments(RunningMoments):
    """Moments of the rows that several processes see, for one of them.

    Each writes those of its own rows into its place of a tensor in shared memory, float64 `[W, 3, *O]`: n, m
    and M. `look` pools the places, and until the next look the own rows are added as they come. Nobody waits,
    so a place that is read while it is written may mix two of its steps. A process alone has `RunningMoments`
    to the bit.
    """

    def __init__(self, places: Tensor, number: int, begun: RunningMoments) -> None:
        """Go on from place `number`; where it is empty, from the rows that `begun` has seen."""
        super().__init__(tuple(places.shape[2:]))
        self._places, self._place = places, places[number]
        self._own = RunningMoments(self.mean.shape)
        self._own.restore(begun.state() if not self._place.any() else _state(self._place))
        self._write()
        self.look()

    def update(self, rows: NDArray[Any], own: Bools | None = None) -> None:
        """Take in `rows` `[N, *O]`, for this process and for the others."""
        super().update(rows, own)
        self._own.update(rows, own)
        self._write()

    def look(self) -> None:
        """Take in what all others have seen by now."""
        self.restore(pooled(self._places).state())

    def _write(self) -> None:
        state = self._own.state()
        self._place[0] = state["count"]
        self._place[1] = state["mean"]
        self._place[2] = state["squares"]


def pooled(places: Tensor) -> RunningMoments:
    """Return the moments of all rows that any process has seen, from the places `[W, 3, *O]` of their own."""
    total = RunningMoments(tuple(places.shape[2:]))
    total.restore(_state(places[0]))
    for place in places[1:]:
        state = _state(place)
        total.merge(int(state["count"]), state["mean"].numpy(), state["squares"].numpy())
    return total


def _state(place: Tensor) -> dict[str, Tensor]:
    """Return what a place `[3, *O]` says, as `RunningMoments.state` does."""
    count = place[0].flatten()[0].round().long()
    return {"count": count, "mean": place[1].clone(), "squares": place[2].clone()}


def normalise(x: NDArray[Any], moments: RunningMoments, clip: float = CLIP) -> NDArray[np.float32]:
    """Return (x - mean) / std, clipped to ±`clip`, float32 in the shape of `x`, `[N, *O]` or `[*O]`.

    Free of units: metres and kilometres give the same numbers. A component that has not varied has no unit to
    be told in: it is 0, and so is its first change where the statistics have not seen it.
    """
    return np.clip((x - moments.mean) / moments.scale, -clip, clip).astype(np.float32)


class RewardScale:
    """Divides rewards by the standard deviation of the discounted return so far: one number for all of them.

        G ← γ G + r        r / std(G), clipped to ±10        G ← 0 after an end, terminated or truncated

    G is the discounted sum of the rewards behind, one for every environment. Its mean is not subtracted: that
    would pay or punish being alive. As long as all sums are equal their size, |mean(G)|, stands for std(G).
    Free of units: rewards in cents give the same numbers. Source: reward scaling in Engstrom et al. 2020.
    Failure cases: the size of what is scaled drifts, most of all at the start, so that values learned early
    are on another scale; and clipping changes the objective where rewards are rare and large. Report raw
    returns.
    """

    def __init__(self, num_envs: int, gamma: float) -> None:
        """Raises ConfigError for γ outside [0, 1]."""
        if not 0 <= gamma <= 1:
            raise ConfigError(f"RewardScale with gamma={gamma:g}: found a value out of range. Use 0 to 1.")
        self.moments = RunningMoments()
        self._gamma = gamma
        self._returns = np.zeros(num_envs)

    def update(self, rewards: NDArray[Any], ended: Bools, own: Bools) -> NDArray[np.float32]:
        """Take in one step of all environments and return its scaled rewards, all `[N]`.

        Where a step is not the policy's own, nothing is read, the sum G stays and the answer is 0.
        """
        self._returns = np.where(own, self._gamma * self._returns + rewards, self._returns)
        self.moments.update(self._returns, own)
        self._returns[ended & own] = 0.0
        return np.where(own, np.clip(rewards / self._unit(), -CLIP, CLIP), 0).astype(np.float32)

    def _unit(self) -> float:
        """Return std(G), or |G| where all are equal, or 1 where all are 0."""
        std, size = float(self.moments.scale), abs(float(self.moments.mean))
        return std if np.isfinite(std) else size or 1.0

    def begin_anew(self) -> None:
        """Set G to 0 everywhere: all environments were reset. The statistics stay."""
        self._returns[:] = 0.0

    def state(self) -> dict[str, Tensor]:
        """Return copies of what `restore` needs."""
        return self.moments.state() | {"returns": torch.from_numpy(self._returns.copy())}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state()` to the bit. RunError where it is of another number of environments."""
        returns = state["returns"].numpy()
        if returns.shape != self._returns.shape:
            raise RunError(
                f"The reward scale of {len(self._returns)} environments was to be restored, found one of "
                f"{len(returns)}. Resume with the num_envs that the run was started with."
            )
        self.moments.restore(state)
        self._returns = returns.copy()
