"""A memory of single steps for algorithms that learn from old experience: a ring for every environment.

n-step returns are put together when they are drawn, from steps that are stored once. A transition is

    R = Σ_{i<k} γ^i r_{t+i}        successor s_{t+k}        discount γ^k        k <= n

k is smaller than n in two places. At the end of an episode: where it terminated the bootstrap is zero, where
it was truncated the successor is the final observation. And at the newest step of an environment, where
nothing follows yet: the shorter return bootstraps and is as right as the longer one. What lies behind the
newest step of a full ring is the oldest one, and is never joined to it.

What an algorithm that pays for entropy owes the steps in between is drawn along, from the log-probabilities
with which their actions were sampled.

Shapes: `N` environments, `T` steps, `B` draws, `L` steps in the ring of one environment, `*O` of an
observation, `*A` of an action. Step `slot` of environment `lane` is row `slot · N + lane`, so that what an
environment did next is `N` rows further on, wrapped.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from gradhat.errors import ConfigError, ModelError, RunError
from gradhat.rollouts import sum_tree
from gradhat.rollouts.memory import available
from gradhat.rollouts.sum_tree import SumTree
from gradhat.trajectories import Trajectories, Transitions

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

PRIORITY_FLOOR = 1e-6
"""ε of the priority: a step without a TD error can still be drawn."""


class Replay:
    """The last `capacity` own steps of `num_envs` environments, drawn uniformly or by priority.

    Proportional prioritisation, with `alpha` (Schaul et al. 2016, eq. 1; p_i and the weights of sections 3.3
    and 3.4, the draw of appendix B.2.1):

        p_i = |δ_i| + ε        P(i) = p_i^α / Σ_k p_k^α        w_i = (N P(i))^-β / max_j w_j

    A new step has the largest p^α that there has been (at first 1), so that it is soon seen. The maximum is
    that of the batch. α = 0 is the uniform draw, and so is `alpha=None`, without a tree. β = 1 undoes the
    changed distribution in full. Failure case: with β < 1 what is minimised is not the mean loss over the
    memory; and w corrects the draw only, not that the steps come from older policies.

    n > 1 is uncorrected: the rewards between, and the log-probabilities, are those of the old policies, a
    bias that grows with n.
    """

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        observation_shape: tuple[int, ...],
        action_shape: tuple[int, ...],
        *,
        action_dtype: DTypeLike,
        gamma: float,
        n_step: int = 1,
        alpha: float | None = None,
    ) -> None:
        """`capacity` in steps of all environments; each gets capacity // num_envs. `alpha=None`: uniform.

        Raises ConfigError for settings out of range, RunError where the machine has too little memory.
        """
        _check_settings(capacity, num_envs, gamma=gamma, n_step=n_step, alpha=alpha)
        self.num_envs = num_envs
        self._lane = capacity // num_envs
        self.capacity = self._lane * num_envs
        fields = _fields(observation_shape, action_shape, action_dtype)
        self.num_bytes = bytes_needed(
            self.capacity,
            observation_shape,
            action_shape,
            action_dtype=action_dtype,
            prioritised=alpha is not None,
        )
        """Of the memory, when it is full."""
        _check_memory(self.capacity, self.num_bytes)
        self._ring = {
            name: np.zeros((self.capacity, *field.shape), field.dtype) for name, field in fields.items()
        }
        self._stop = np.zeros(self.capacity, np.bool_)
        """Where a return stops: an ended step, and the newest of each environment."""
        self._lanes = np.arange(num_envs)
        self._written = np.zeros(num_envs, np.int64)
        """Steps of each environment so far, those overwritten included."""
        self._stored = np.zeros(num_envs, np.int64)
        """Running sum over environments of the steps that are there."""
        self._offsets = np.arange(n_step) * num_envs
        self._steps = np.arange(n_step)
        self._discounts = gamma ** np.arange(n_step + 1.0)
        self._plan = {"gamma": gamma, "n_step": n_step, "alpha": alpha}
        self._alpha = alpha
        self._tree = None if alpha is None else SumTree(self.capacity)
        self._largest = 1.0

    def __len__(self) -> int:
        return int(self._stored[-1])

    def add(self, trajectories: Trajectories) -> None:
        """Store the own steps of `[N, T]` trajectories, row i after those of environment i before.

        Observations, next observations and rewards are kept as float32. Assumes that a row goes on where the
        last one of its environment stopped, or that that one ended. Failure case: an environment reset in
        the middle of an episode, without `truncated` on its last step, joins two episodes.

        Raises ValueError for trajectories without `next_observations`, of other shapes, and longer than L.
        """
        parts = _parts(trajectories)
        self._check(parts)
        own = trajectories.mask.numpy()
        own_so_far = own.cumsum(1)
        slots = (self._written[:, None] + (own_so_far - 1)) % self._lane
        index: Ints = (slots * self.num_envs + self._lanes[:, None])[own]
        rows = own.ravel().nonzero()[0]
        before = self._newest()
        self._stop[before] = self._ring["ended"][before]
        for name, part in parts.items():
            self._ring[name][index] = part.flatten(0, 1).numpy().take(rows, 0)
        self._stop[index] = self._ring["ended"][index]
        self._written += own_so_far[:, -1]
        self._stop[self._newest()] = True
        self._count()
        if self._tree is not None:
            self._tree.set(index, self._largest)

    def sample(self, batch_size: int, generator: np.random.Generator, *, beta: float = 1.0) -> Transitions:
        """Draw `batch_size` transitions, with replacement. `beta` is that of the weights.

        In a uniform draw (N P)^-β is 1 for every β. By priority, the total is cut into `batch_size` equal
        parts and one step drawn from each. Raises ValueError where nothing is stored.
        """
        if not len(self):
            raise ValueError(
                f"sample({batch_size}) of a replay: found no step in it. Add trajectories before you draw."
            )
        if self._tree is None:
            index, weights = self._draw_uniform(batch_size, generator), np.ones(batch_size, np.float32)
        else:
            parts = (np.arange(batch_size) + generator.random(batch_size)) / batch_size
            index = self._tree.find(parts * self._tree.total)
            weights = _weights(self._tree, index, beta)
        return self._transitions(index, weights)

    def prioritise(self, index: Tensor, td_errors: Tensor) -> None:
        """Set the priorities of drawn steps from their TD errors δ, both `[B]`; the sign does not matter.

        Where a step was drawn twice, its last error counts. Assumes that nothing was added since the draw.
        Raises ValueError for a uniform replay and for shapes that differ, ModelError for errors not finite.
        """
        if self._tree is None or self._alpha is None:
            raise ValueError("prioritise(...) of a uniform replay: it has no priorities. Give it an alpha.")
        if index.shape != td_errors.shape:
            raise ValueError(
                f"td_errors {tuple(td_errors.shape)} with index {tuple(index.shape)}: the shapes must be the "
                "same. Pass one TD error for each transition drawn."
            )
        errors = td_errors.detach().numpy().astype(np.float64)
        priorities: Floats = (np.abs(errors) + PRIORITY_FLOOR) ** self._alpha
        largest = float(priorities.max(initial=self._largest))
        if not np.isfinite(largest):
            raise ModelError(
                "prioritise(...): found a TD error that is not finite. The values have diverged: lower the "
                "learning rate, clip the gradient, or scale the rewards."
            )
        self._largest = largest
        self._tree.set(index.numpy(), priorities)

    def state(self) -> dict[str, Any]:
        """Return copies of all that is stored, as tensors and plain values. The generator is the caller's."""
        filled = self._filled()
        state: dict[str, Any] = {
            name: torch.from_numpy(array[:filled].copy()) for name, array in self._ring.items()
        }
        state |= {"settings": self._settings(), "written": torch.from_numpy(self._written.copy())}
        if self._tree is not None:
            priorities = self._tree.weights[:filled].copy()
            state |= {"priorities": torch.from_numpy(priorities), "largest": self._largest}
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state()` to the bit. RunError for that of a replay that stores something else."""
        if state["settings"] != self._settings():
            raise RunError(
                f"A replay of {self._settings()} was to be restored, found the state of one of "
                f"{state['settings']}. Resume with the settings that the run was started with."
            )
        self._written[:] = state["written"].numpy()
        self._count()
        filled = self._filled()
        for name, array in self._ring.items():
            array[:filled] = state[name].numpy()
        self._stop[:filled] = self._ring["ended"][:filled]
        self._stop[self._newest()] = True
        if self._tree is not None:
            self._largest = float(state["largest"])
            priorities = np.zeros(self.capacity)
            priorities[:filled] = state["priorities"].numpy()
            self._tree.fill(priorities)

    def _settings(self) -> dict[str, Any]:
        """What must be equal for a state to fit, as plain values."""
        actions = self._ring["actions"]
        return {
            "capacity": self.capacity,
            "num_envs": self.num_envs,
            "observation_shape": list(self._ring["observations"].shape[1:]),
            "action_shape": list(actions.shape[1:]),
            "action_dtype": actions.dtype.name,
            **self._plan,
        }

    def _check(self, parts: Mapping[str, Tensor]) -> None:
        steps = parts["rewards"].shape[1]
        if steps > self._lane:
            raise ValueError(
                f"add(trajectories) of {steps} steps each: the replay holds {self._lane} of an environment. "
                "Pass shorter ones, or raise the capacity."
            )
        for name, part in parts.items():
            wanted = (self.num_envs, steps, *self._ring[name].shape[1:])
            if part.shape != wanted:
                raise ValueError(
                    f"add(trajectories) with {name} {tuple(part.shape)}: the replay holds {wanted}. "
                    "Pass one row for each environment, with the shapes that the replay was made for."
                )

    def _newest(self) -> Ints:
        """Return the row of the newest step of each environment; of none yet, one that is not drawn."""
        return (self._written - 1) % self._lane * self.num_envs + self._lanes

    def _count(self) -> None:
        self._stored = np.minimum(self._written, self._lane).cumsum()

    def _filled(self) -> int:
        """Return how many rows from the first on hold all that is stored."""
        return min(int(self._written.max()), self._lane) * self.num_envs

    def _draw_uniform(self, batch_size: int, generator: np.random.Generator) -> Ints:
        """Every stored step has the same chance, also where environments hold different numbers of them."""
        place = generator.integers(len(self), size=batch_size)
        lane = self._stored.searchsorted(place, side="right")
        # The steps up to the end of the lane, counted backwards: slots of a lane are filled from 0 on.
        slot = self._stored[lane] - 1 - place
        return slot * self.num_envs + lane

    def _transitions(self, index: Ints, weights: NDArray[np.float32]) -> Transitions:
        steps = (index[:, None] + self._offsets) % self.capacity
        stop = self._stop[steps]
        stop[:, -1] = True
        last = stop.argmax(1)
        spans = self._steps <= last[:, None]
        rewards = np.where(spans, self._ring["rewards"][steps], 0)
        later = np.where(spans & (self._steps > 0), self._discounts[:-1], 0)
        final = steps[np.arange(len(index)), last]

        def rows(name: str, index: Ints) -> Tensor:
            return torch.from_numpy(self._ring[name].take(index, 0))

        def rounded(x: NDArray[np.float64]) -> Tensor:
            # Sums in float32 would differ from one processor to the next.
            return torch.from_numpy(x.astype(np.float32))

        return Transitions(
            observations=rows("observations", index),
            actions=rows("actions", index),
            rewards=rounded(rewards @ self._discounts[:-1]),
            next_observations=rows("next_observations", final),
            terminated=rows("terminated", final),
            discounts=rounded(self._discounts[last + 1]),
            later=rounded(later.sum(1)),
            later_logp=rounded((later * self._ring["logp"][steps]).sum(1)),
            weights=torch.from_numpy(weights),
            index=torch.from_numpy(index),
        )


class _Field(NamedTuple):
    """What is stored of one step."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def bytes_needed(
    capacity: int,
    observation_shape: tuple[int, ...],
    action_shape: tuple[int, ...],
    *,
    action_dtype: DTypeLike,
    prioritised: bool,
) -> int:
    """Return the bytes of a full `Replay` of `capacity` steps, next observations and priorities included."""
    fields = _fields(observation_shape, action_shape, action_dtype)
    step = sum(int(np.prod(f.shape, dtype=np.int64)) * f.dtype.itemsize for f in fields.values())
    step += np.dtype(np.bool_).itemsize  # where returns stop
    return capacity * step + (sum_tree.bytes_needed(capacity) if prioritised else 0)


def _fields(
    observation_shape: tuple[int, ...], action_shape: tuple[int, ...], action_dtype: DTypeLike
) -> dict[str, _Field]:
    real, flag = np.dtype(np.float32), np.dtype(np.bool_)
    return {
        "observations": _Field(observation_shape, real),
        "actions": _Field(action_shape, np.dtype(action_dtype)),
        "rewards": _Field((), real),
        "logp": _Field((), real),
        "next_observations": _Field(observation_shape, real),
        "terminated": _Field((), flag),
        "ended": _Field((), flag),
    }


def _parts(trajectories: Trajectories) -> dict[str, Tensor]:
    """Return what is stored of `[N, T]` trajectories, by the names of the fields."""
    observations, next_observations = trajectories.observations, trajectories.next_observations
    if not isinstance(observations, Tensor) or next_observations is None:
        raise ValueError(
            "add(trajectories): found no next_observations, or observations that are not a tensor. "
            "Collect in a world that says the true successor of every step."
        )
    return {
        "observations": observations,
        "actions": trajectories.actions,
        "rewards": trajectories.rewards,
        "logp": trajectories.logp,
        "next_observations": next_observations,
        "terminated": trajectories.terminated,
        "ended": trajectories.terminated | trajectories.truncated,
    }


def _weights(tree: SumTree, index: Ints, beta: float) -> NDArray[np.float32]:
    # N and the total are factors of every weight: the division by the largest takes them out.
    weights = tree.weights[index] ** -beta
    return (weights / weights.max()).astype(np.float32)


def _check_settings(capacity: int, num_envs: int, *, gamma: float, n_step: int, alpha: float | None) -> None:
    wanted = {
        f"num_envs={num_envs}": (num_envs >= 1, "of at least 1"),
        f"n_step={n_step}": (n_step >= 1, "of at least 1"),
        f"gamma={gamma:g}": (0 <= gamma <= 1, "from 0 to 1"),
        f"alpha={alpha}": (alpha is None or alpha >= 0, "of at least 0, or None for a uniform draw"),
        f"capacity={capacity} with num_envs={num_envs} and n_step={n_step}": (
            capacity >= num_envs * n_step,
            "of at least num_envs × n_step: every environment keeps that many steps",
        ),
    }
    for setting, (holds, use) in wanted.items():
        if not holds:
            raise ConfigError(f"Replay with {setting}: found a value out of range. Use a value {use}.")


def _check_memory(capacity: int, needed: int) -> None:
    free = available()
    if needed > free:
        raise RunError(
            f"Replay with capacity={capacity}: it needs {needed / 2**30:.3g} GiB, found "
            f"{free / 2**30:.3g} GiB of free memory. Use a capacity of at most "
            f"{int(capacity * free / needed)}, or a larger machine."
        )
