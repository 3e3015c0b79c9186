"""A finite world behind Gymnasium's doors: one copy at a time, or many copies stepped at once.

The tables are those of `exact/mdp.py`, so whatever is sampled here has an exact answer there. Rewards come
undiscounted: γ belongs to the estimator.

Both kinds of environment say in `info`, beside every observation:

    state   the true state, which a partially observed world does not show
    own     whether the next action is the policy's own. False where the world moves by itself, and after an
            end: the action is ignored, and its step is masked
"""

from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from gradhat.errors import TaskError
from gradhat.exact.mdp import TabularMDP

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class TabularEnv(gymnasium.Env[Any, Any]):
    """One trajectory at a time. The observation is that of the state, an int in [0, O); so is the action in
    [0, A).

    `terminated` in a terminal state and at the horizon, where the problem ends; `truncated` at the time limit
    when it has not ended there; never both. A trajectory that starts in a terminal state terminates at its
    first step, with reward 0, and that step is not the policy's own.
    """

    def __init__(self, mdp: TabularMDP) -> None:
        self.observation_space = Discrete(mdp.num_observations)
        self.action_space = Discrete(mdp.num_actions)
        self._num_actions = mdp.num_actions
        self._world = _tables(mdp)
        self._state = 0
        self._steps = 0
        self._open = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Draw a start state; return its observation and info. `options` has no meaning here."""
        super().reset(seed=seed)
        self._state = int(_draw(self._world.start, (), self.np_random.random()))
        self._steps, self._open = 0, True
        return self._answer()

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        """Move; return observation, reward r(s, a, s′), terminated, truncated and info.

        Raises TaskError when no trajectory is open and for an action that is not in [0, A).
        """
        if not self._open:
            raise TaskError(
                f"step({action}) was asked for, but found no open trajectory. Call reset() before the first "
                "step and after every end."
            )
        if not self.action_space.contains(action):
            raise TaskError(
                f"step({action!r}): found no such action. Use an integer from 0 to {self._num_actions - 1}."
            )
        world, before = self._world, self._state
        self._state = int(_draw(world.transition, (before, action), self.np_random.random()))
        self._steps += 1
        terminated = bool(world.terminal[self._state]) or self._steps == world.horizon
        truncated = self._steps == world.time_limit and not terminated
        self._open = not (terminated or truncated)
        observation, info = self._answer()
        return observation, float(world.reward[before, action, self._state]), terminated, truncated, info

    def _answer(self) -> tuple[int, dict[str, Any]]:
        own = self._open and bool(self._world.own[self._state])
        return int(self._world.observation[self._state]), {"state": self._state, "own": own}


class TabularVectorEnv(VectorEnv[Any, Any, Any]):
    """`num_envs` copies of `TabularEnv`, stepped at once. All arrays are `[num_envs]`.

    Gymnasium's next-step autoreset: the step after an end ignores the action, draws a new start state and
    pays 0. Observations, rewards, ends and infos are those of `SyncVectorEnv` over copies of `TabularEnv`;
    the random numbers are others, because all copies share one stream.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, mdp: TabularMDP, num_envs: int) -> None:
        if num_envs < 1:
            raise TaskError(f"num_envs={num_envs}: found no environment to step. Use 1 or more.")
        self.num_envs = num_envs
        self.single_observation_space = Discrete(mdp.num_observations)
        self.single_action_space = Discrete(mdp.num_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {**type(self).metadata, "partially_observed": not mdp.fully_observed}
        self._num_actions = mdp.num_actions
        self._world = _tables(mdp)
        self._states: Ints | None = None
        self._steps = np.zeros(num_envs, dtype=np.int64)
        self._ended = np.zeros(num_envs, dtype=np.bool_)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Ints, dict[str, Any]]:
        """Draw all start states; return their observations and infos. `options` has no meaning here."""
        super().reset(seed=seed)
        self._states = _draw(self._world.start, (), self.np_random.random(self.num_envs))
        self._steps = np.zeros_like(self._steps)
        self._ended = np.zeros_like(self._ended)
        return self._answer(self._states)

    def step(self, actions: Ints) -> tuple[Ints, Floats, Bools, Bools, dict[str, Any]]:
        """Move all copies; return observations, rewards, terminated, truncated and infos.

        Raises TaskError before the first reset and for actions that are not integers in [0, A), `[num_envs]`.
        The action of a copy that ended is not read.
        """
        if self._states is None:
            raise TaskError("step(actions) was asked for, but found no open trajectory. Call reset() first.")
        world, before, live = self._world, self._states, ~self._ended
        played = self._checked(actions, live)
        uniforms = self.np_random.random(self.num_envs)
        after = _draw(world.transition, (before, played), uniforms)
        rewards = np.where(live, world.reward[before, played, after], 0.0)
        after[~live] = _draw(world.start, (), uniforms[~live])
        self._states, self._steps = after, np.where(live, self._steps + 1, 0)
        terminated = live & (world.terminal[after] | (self._steps == world.horizon))
        truncated = live & (self._steps == world.time_limit) & ~terminated
        self._ended = terminated | truncated
        observations, infos = self._answer(after)
        return observations, rewards, terminated, truncated, infos

    def _checked(self, actions: Ints, live: Bools) -> Ints:
        """Return the actions, 0 where they are not read."""
        found = np.asarray(actions)
        if found.shape != (self.num_envs,) or not np.issubdtype(found.dtype, np.integer):
            raise TaskError(
                f"step(actions): found {found.dtype} of shape {found.shape}. "
                f"Pass integers of shape {(self.num_envs,)}."
            )
        played = np.where(live, found, 0)
        wrong = np.flatnonzero((played < 0) | (played >= self._num_actions))
        if len(wrong):
            raise TaskError(
                f"step(actions): found {played[wrong[0]]} in place {wrong[0]}. "
                f"Use integers from 0 to {self._num_actions - 1}."
            )
        return played

    def _answer(self, states: Ints) -> tuple[Ints, dict[str, Any]]:
        """Gymnasium's vector infos: every key has a twin that says which copies it speaks for."""
        own = self._world.own[states] & ~self._ended
        all_of_them = np.ones(self.num_envs, dtype=np.bool_)
        infos = {"state": states.copy(), "_state": all_of_them, "own": own, "_own": all_of_them.copy()}
        return self._world.observation[states], infos


class _Rows(NamedTuple):
    """Distributions as running sums over their support, `K` the size of the largest: `[..., K]` each."""

    running: Floats
    """Exactly 1 from the last outcome on."""
    outcomes: Ints


class _Tables(NamedTuple):
    """A TabularMDP for sampling."""

    start: _Rows
    transition: _Rows
    reward: Floats
    observation: Ints
    terminal: Bools
    own: Bools
    """The policy's own action counts here: not where the world moves by itself, not in a terminal state."""
    horizon: int | None
    time_limit: int | None


def _tables(mdp: TabularMDP) -> _Tables:
    return _Tables(
        start=_rows(mdp.start.numpy()),
        transition=_rows(mdp.transition.numpy()),
        reward=mdp.reward.numpy(),
        observation=mdp.observation.numpy(),
        terminal=mdp.terminal.numpy(),
        own=(mdp.own & ~mdp.terminal).numpy(),
        horizon=mdp.horizon,
        time_limit=mdp.time_limit,
    )


def _rows(probabilities: Floats) -> _Rows:
    """Keep the outcomes that can happen, so that a step costs K and not S."""
    size = int((probabilities > 0).sum(-1).max())
    outcomes = np.argsort(probabilities <= 0, axis=-1, kind="stable")[..., :size]
    running = np.take_along_axis(probabilities, outcomes, axis=-1).cumsum(-1)
    total = running[..., -1:]
    # The sum rounds: a uniform number just below 1 must not fall behind the last outcome.
    return _Rows(np.where(running == total, 1.0, running / total), outcomes)


def _draw(rows: _Rows, index: tuple[Any, ...], uniforms: Floats | float) -> Ints:
    """Return one outcome of `rows[index]` for each uniform number in [0, 1)."""
    behind = rows.running[index] <= np.asarray(uniforms)[..., None]
    return rows.outcomes[(*index, behind.sum(-1))]
