"""A policy in a vector of environments: experience of a fixed length, or of whole episodes.

Whatever autoreset the environments have, a trajectory holds the same: the observation before each step, its
true successor, and a mask that is false in the step in which an environment resets itself. Only own steps
are frames. What a world does by itself between two actions belongs to the first of them: see `turns.py`.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradhat.envs.gym import Step, World
from gradhat.errors import TaskError
from gradhat.policies.policy import Actor
from gradhat.rollouts.normalize import RewardScale, RunningMoments, normalise
from gradhat.rollouts.turns import Moment, Turns
from gradhat.trajectories import Trajectories

Floats = NDArray[np.float32]

LONGEST = 100_000
"""Steps after which an episode is held to be endless."""
IDLE = 10_000
"""Steps of every environment without an own step, after which the policy is held never to act again."""


class Episode(NamedTuple):
    """A finished episode, for people: undiscounted, in the environment's own unit."""

    ret: float
    length: int


class Collector:
    """Steps a world with a policy. The present observation is carried from one call to the next.

    Normalised observations (mean 0, deviation 1 of all that was seen so far) are what the policy sees and
    what the trajectories hold; normalised rewards are divided by the deviation of the discounted return.
    """

    def __init__(
        self,
        world: World,
        *,
        seed: int,
        normalize_observations: bool = False,
        normalize_rewards: bool = False,
        gamma: float = 0.99,
    ) -> None:
        self.world = world
        self.moments = RunningMoments((world.num_inputs,)) if normalize_observations else None
        self.reward_scale = RewardScale(world.num_envs, gamma=gamma) if normalize_rewards else None
        self.num_frames = 0
        """Own steps of all environments so far, without those that wait for the end of the world's turn."""
        self._finished: list[tuple[int, Episode]] = []
        """Each with the number of its environment."""
        self._idle = 0
        """Steps since anyone acted."""
        self._returns = np.zeros(world.num_envs)
        self._lengths = np.zeros(world.num_envs, dtype=np.int64)
        first = world.reset(seed)
        self._observations = self._seen(first, world.acts)
        self._turns = Turns() if world.takes_turns else None

    def collect(self, actor: Actor, num_steps: int, generator: torch.Generator, version: int) -> Trajectories:
        """Go on for `num_steps` steps of every environment: a row for each, `[N, num_steps]`.

        A row is cut at the end without an end of its episode: its last step has a successor to bootstrap
        from, and the next call goes on there. Where the world moves by itself the last step may come with
        the next call. The mask is false everywhere where nobody acted. TaskError where nobody does for `IDLE`
        steps.
        """
        return self._pack([self._step(actor, generator) for _ in range(num_steps)], version)

    def episodes(self, actor: Actor, per_env: int, generator: torch.Generator, version: int) -> Trajectories:
        """Begin anew everywhere; return the first `per_env` episodes of each environment, one a row.

        Their number is fixed in advance, so ĝ over them is unbiased. Environments that are done early go on
        until the last one is: those frames count and are dropped, and `drain` returns none of their
        episodes. TaskError where one does not end within `LONGEST` steps.
        """
        self._begin_anew()
        before = len(self._finished)
        lived: list[Moment] = []
        ends = np.zeros(self.world.num_envs, dtype=np.int64)
        while (ends < per_env).any():
            if len(lived) == per_env * LONGEST:
                raise TaskError(
                    f"{self.world.name}: {per_env} whole episodes of each environment were asked for, found "
                    f"one that goes on after {LONGEST} steps. Use an environment with a time limit, or an "
                    "algorithm that learns from parts of episodes, such as a2c or ppo."
                )
            lived.append(self._step(actor, generator))
            ends += (lived[-1].terminated | lived[-1].truncated) & lived[-1].live
        self._finished[before:] = _first(self._finished[before:], per_env)
        return _by_episode(self._pack(lived, version), per_env)

    def drain(self) -> list[Episode]:
        """Return the episodes that ended since the last call."""
        finished, self._finished = self._finished, []
        return [episode for _, episode in finished]

    def state(self) -> dict[str, Tensor]:
        """Return what `restore` needs, the environments' own state included."""
        tensors = {
            "world": torch.frombuffer(bytearray(self.world.snapshot()), dtype=torch.uint8),
            "observations": torch.from_numpy(self._observations.copy()),
            "returns": torch.from_numpy(self._returns.copy()),
            "lengths": torch.from_numpy(self._lengths.copy()),
            "num_frames": torch.tensor(self.num_frames),
        }
        for name, part in self._parts():
            if part is not None:
                tensors |= {f"{name}.{key}": value for key, value in part.state().items()}
        return tensors

    def restore(self, state: dict[str, Tensor]) -> None:
        """Stand where `state` was taken, in the middle of episodes."""
        self.world.restore(state["world"].numpy().tobytes())
        self._observations = state["observations"].numpy().copy()
        self._returns = state["returns"].numpy().copy()
        self._lengths = state["lengths"].numpy().copy()
        self.num_frames = int(state["num_frames"])
        for name, part in self._parts():
            if part is not None:
                prefix = f"{name}."
                part.restore({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})

    def restore_moments(self, state: dict[str, Tensor]) -> None:
        """Show a policy what it was shown where `state` was taken; the world is left as it is."""
        if self.moments is not None:
            found = {k.removeprefix("moments."): v for k, v in state.items() if k.startswith("moments.")}
            self.moments.restore(found)

    def _parts(self) -> Sequence[tuple[str, RunningMoments | RewardScale | Turns | None]]:
        return ("moments", self.moments), ("reward_scale", self.reward_scale), ("turns", self._turns)

    def _step(self, actor: Actor, generator: torch.Generator) -> Moment:
        seen = self._observations
        actions, logp = actor.act(torch.from_numpy(seen), generator)
        played = actions.numpy()
        step = self.world.step(played)
        acts = self.world.acts
        self._observations = self._seen(step.observations, acts)
        successors = self._observations
        if step.successors is not step.observations:
            successors = step.successors if self.moments is None else normalise(step.successors, self.moments)
        ends = (step.terminated, step.truncated)
        lived = Moment(seen, played, logp.numpy(), step.rewards, *ends, successors, step.live)
        if self._turns is not None:
            lived = self._turns.settle(lived, acts)
        self._count(step, lived.live)
        if self.reward_scale is not None:
            scaled = self.reward_scale.update(lived.rewards, ends[0] | ends[1], lived.live)
            lived = lived._replace(rewards=scaled)
        return lived

    def _seen(self, observations: Floats, acted_on: NDArray[np.bool_]) -> Floats:
        """Return the observations as the policy sees them. The moments learn from those it acts on first."""
        if self.moments is None:
            return observations
        self.moments.update(observations, acted_on)
        return normalise(observations, self.moments)

    def _count(self, step: Step, known: NDArray[np.bool_]) -> None:
        num_acted = int(known.sum())
        self.num_frames += num_acted
        self._idle = 0 if num_acted else self._idle + 1
        if self._idle >= IDLE:
            raise TaskError(
                f"{self.world.name}: an action of the policy was waited for, found none in the last {IDLE} "
                "steps of every environment: the frames of the run cannot grow. Let its info `own` be true "
                "where the policy acts, or use another environment."
            )
        self._returns += step.rewards
        self._lengths += step.live
        ended = step.terminated | step.truncated
        if ended.any():
            self._finished += [
                (int(i), Episode(float(self._returns[i]), int(self._lengths[i])))
                for i in (ended & (self._lengths > 0)).nonzero()[0]
            ]
            self._returns[ended] = 0.0
            self._lengths[ended] = 0

    def _begin_anew(self) -> None:
        self._returns[:], self._lengths[:] = 0.0, 0
        if self.reward_scale is not None:
            self.reward_scale.begin_anew()
        if self._turns is not None:
            self._turns.begin_anew()
        first = self.world.reset()
        self._observations = self._seen(first, self.world.acts)

    def _pack(self, lived: Sequence[Moment], version: int) -> Trajectories:
        def stack(name: str, dtype: torch.dtype | None = None) -> Tensor:
            columns = cast("Sequence[NDArray[Any]]", [getattr(moment, name) for moment in lived])
            return torch.from_numpy(np.stack(columns, axis=1)).to(dtype)

        mask = stack("live")
        num_envs = self.world.num_envs
        return Trajectories(
            observations=stack("observations"),
            actions=stack("actions"),
            mask=mask,
            logp=stack("logp"),
            rewards=stack("rewards", torch.float32),
            terminated=stack("terminated") & mask,
            truncated=stack("truncated") & mask,
            group=torch.arange(num_envs),
            version=torch.full((num_envs,), version),
            next_observations=stack("successors"),
        )


def _first(finished: Sequence[tuple[int, Episode]], per_env: int) -> list[tuple[int, Episode]]:
    """Return the first `per_env` episodes of each environment, in the order in which they ended."""
    kept: list[tuple[int, Episode]] = []
    counts: Counter[int] = Counter()
    for number, episode in finished:
        counts[number] += 1
        if counts[number] <= per_env:
            kept.append((number, episode))
    return kept


def _by_episode(lived: Trajectories, per_env: int) -> Trajectories:
    """Cut `[N, T]` into the first `per_env` episodes of each row, one a row, padded with masked zeros."""
    ended = (lived.terminated | lived.truncated) & lived.mask
    before = ended.cumsum(1) - ended.long()
    """Episodes that ended before each step."""
    places = [
        (row, (lived.mask[row] & (before[row] == k)).nonzero()[:, 0])
        for row in range(len(lived))
        for k in range(per_env)
    ]
    longest = max(len(steps) for _, steps in places)
    lengths = torch.tensor([len(steps) for _, steps in places])
    rows = torch.tensor([row for row, _ in places])[:, None].expand(-1, longest)
    columns = torch.stack([torch.nn.functional.pad(steps, (0, longest - len(steps))) for _, steps in places])
    mask = torch.arange(longest) < lengths[:, None]

    def cut(tensor: Tensor) -> Tensor:
        taken = tensor[rows, columns]
        return torch.where(mask.reshape(*mask.shape, *[1] * (taken.dim() - 2)), taken, 0).to(tensor.dtype)

    seen, following = lived.observations, lived.next_observations
    assert isinstance(seen, Tensor) and following is not None
    return Trajectories(
        observations=cut(seen),
        actions=cut(lived.actions),
        mask=mask,
        logp=cut(lived.logp),
        rewards=cut(lived.rewards),
        terminated=cut(lived.terminated),
        truncated=cut(lived.truncated),
        group=lived.group[rows[:, 0]],
        version=lived.version[rows[:, 0]],
        next_observations=cut(following),
    )
