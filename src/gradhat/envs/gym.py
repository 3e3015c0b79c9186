"""Gymnasium environments as one world: a vector of them that steps, begins again, and can be saved.

Whatever an environment shows becomes a flat float32 vector, by Gymnasium's own flattening: Discrete is
one-hot, Dict and Tuple are laid end to end. Whatever its autoreset mode is, a step says three things: what
the policy acts on next, what truly followed its action, and whether the action was its own.

Letters: `N` environments, `O` the size of a flat observation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from gradhat.envs.gym_guards import (
    check_finite,
    check_rewards,
    check_shapes,
    check_trouble,
    check_turns,
    close,
    explained,
)
from gradhat.envs.gym_recorder import Lived
from gradhat.envs.gym_spaces import Array, Float32, actions_of, flat_one, flat_size, flattened, played
from gradhat.envs.gym_state import Unsavable, captured, dumps, loads, put_back
from gradhat.envs.gym_vector import GymSpec, vector_of
from gradhat.errors import ConfigError, TaskError

Bools = NDArray[np.bool_]
Result = TypeVar("Result")


class Step(NamedTuple):
    """What all environments answered. Arrays are `[N]`, observations float32 `[N, O]`."""

    observations: Float32
    """What the policy acts on next: the first observation of the next episode where one ended. With
    next-step autoreset it is the final one, and the next step, which is not live, brings the first."""
    rewards: Array
    """0 in the step in which an environment resets itself."""
    terminated: Bools
    truncated: Bools
    """Never true together with `terminated`."""
    successors: Float32
    """What truly followed the action: the final observation where an episode ended. Means nothing where not
    live. May be the same array as `observations`."""
    live: Bools
    """Whether the action was the policy's own. False in the step in which an environment resets itself
    (next-step autoreset: the action is not read, the reward is 0), and where the world moves by itself."""


class World:
    """A vector of environments, called `name` in errors. The caller steps; episodes begin by themselves.

    An info "own" of type bool says, beside every observation, whether the next action is the policy's own, as
    those of `envs/tabular.py` do.

    TaskError, naming environment and step, where one raises, answers with numbers that are not finite or with
    a wrong shape, or where its process dies: the world can then only be closed. ConfigError where the spaces
    are none that a policy can act in, or where the autoreset mode is not known.
    """

    def __init__(self, vector: VectorEnv[Any, Any, Any], name: str) -> None:
        mode = vector.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise ConfigError(
                f"{name}: found the autoreset mode {mode!r} in its metadata. Put an AutoresetMode of "
                "Gymnasium there, so that ends can be told from new beginnings."
            )
        space = vector.single_observation_space
        self.name = name
        self.num_envs = vector.num_envs
        self.num_inputs = flat_size(space, name)
        self.actions = actions_of(vector.single_action_space, name)
        self.autoreset = mode
        self.metadata = vector.metadata
        self.partially_observed = bool(vector.metadata.get("partially_observed", False))
        """Whether observations hide part of the state, as the environment's metadata says."""
        self._vector = vector
        self._flat = flattened(space, vector.observation_space)
        self._played = played(vector.single_action_space, self.actions, self.num_envs, name)
        self._everyone = np.ones(self.num_envs, dtype=np.bool_)
        self.takes_turns = False
        """Whether the environments say whose the next action is: the world may move by itself."""
        self._live: Bools | None = None
        self._steps = 0

    def reset(self, seed: int | None = None) -> Float32:
        """Begin new episodes everywhere; return their first observations `[N, O]`.

        Environments that are stepped one by one get seeds drawn from `seed`, so that runs with neighbouring
        seeds share none. A native vector gets `seed` itself.
        """
        seeds: Any = seed
        if seed is not None and isinstance(self._vector, SyncVectorEnv | AsyncVectorEnv):
            seeds = [int(s) for s in np.random.SeedSequence(seed).generate_state(self.num_envs)]
        seen, infos = self._ask("reset()", self._vector.reset, seed=seeds)
        check_trouble(infos)
        check_turns(infos, self._everyone, None, self.name, "reset()")
        self._steps, self._live = 0, infos.get("own", self._everyone)
        self.takes_turns = "own" in infos
        return self._seen(seen, "reset()")

    @property
    def spaces(self) -> str:
        """What is seen and chosen from, in words. Worlds of equal ones can be played by the same policy."""
        actions = self.actions
        kind = f"{'' if actions.discrete else 'continuous '}action{'' if actions.size == 1 else 's'}"
        return f"{self.num_inputs} numbers seen, {actions.size} {kind}"

    @property
    def acts(self) -> Bools:
        """Whether the next action is the policy's own: `live` of the next step, `[N]`."""
        return self._begun("acts")

    def step(self, actions: Array) -> Step:
        """Step every environment. `actions` are int `[N]`, or float `[N, size]`, which are clipped to their
        bounds here."""
        live = self._begun("step()")
        self._steps += 1
        asked = f"step {self._steps}"
        answer = self._ask(asked, self._vector.step, self._played(actions))
        seen, rewards, terminated, truncated, infos = answer
        check_trouble(infos)
        check_turns(infos, self._everyone, self.takes_turns, self.name, asked)
        check_shapes((rewards, terminated, truncated), self.num_envs, self.name, asked)
        check_rewards(rewards, self.name, asked)
        observations = successors = self._seen(seen, asked)
        ended = terminated | truncated
        if self.autoreset is AutoresetMode.NEXT_STEP:
            self._live = ~ended & infos.get("own", True)
        else:
            self._live = infos.get("own", self._everyone)
            if ended.any():
                observations, successors = self._next_episodes(observations, ended, infos, asked)
        return Step(observations, rewards, terminated, truncated & ~terminated, successors, live)

    def _next_episodes(
        self, seen: Float32, ended: Bools, infos: dict[str, Any], asked: str
    ) -> tuple[Float32, Float32]:
        """Return what the policy acts on next, and the true successors, where some episodes ended."""
        if self.autoreset is AutoresetMode.DISABLED:
            asked = f"the reset after {asked}"
            options = {"reset_mask": ended.copy()}
            first, more = self._ask(asked, self._vector.reset, options=options)
            check_trouble(more)
            check_turns(more, ended, self.takes_turns, self.name, asked)
            if self.takes_turns:
                self._live = np.where(ended, more["own"], infos["own"])
            return np.where(ended[:, None], self._seen(first, asked), seen), seen
        if "final_obs" not in infos:
            raise TaskError(
                f"{self.name}, {asked}: found ended episodes, but no final_obs in the infos, where same-step "
                "autoreset puts it. Repair the environment."
            )
        final = seen.copy()
        for i in np.flatnonzero(ended):
            final[i] = flat_one(self._vector.single_observation_space, infos["final_obs"][i])
        check_finite(final, "final observation", self.name, asked)
        return seen, final

    def snapshot(self) -> bytes:
        """Return what `restore` needs to go on to the bit, in the middle of episodes: data, no code.

        Of a native vector it is what its attributes hold; see `gym_state.py`. The environments of a sync or
        async vector that `make` made are recorded; see `gym_recorder.py` for what that assumes. TaskError
        where it is of a kind that cannot be written down.
        """
        held: dict[str, Any] = {"live": self._begun("snapshot()"), "steps": self._steps}
        if isinstance(self._vector, SyncVectorEnv | AsyncVectorEnv):
            held["lived"] = [tuple(one) for one in self._ask("snapshot()", self._vector.call, "snapshot")]
            repair = "Repair the environment: observations and the state of np_random are numbers."
        else:
            held["vector"] = self._vector
            repair = "Use vectorization='sync'."
        try:
            return dumps(captured(held))
        except Unsavable as error:
            raise TaskError(
                f"{self.name}, snapshot(): found what cannot be written down: {error}. {repair}"
            ) from error

    def restore(self, saved: bytes) -> None:
        """Go on where `snapshot` was taken, in a world of the same spec. Nothing in `saved` is executed.

        TaskError where it was taken in a world of another spec, or was not taken at all.
        """
        _, infos = self._ask("restore()", self._vector.reset)
        single = isinstance(self._vector, SyncVectorEnv | AsyncVectorEnv)
        try:
            state = put_back({"vector": self._vector}, loads(saved))
            live, steps, lived = state["live"], state["steps"], state.get("lived")
            if single is (lived is None) or type(steps) is not int or live.dtype != np.bool_:
                raise ValueError("it stepped in another way")
            if live.shape != (self.num_envs,):
                raise ValueError(f"{len(live)} environments")
            if lived is not None:
                lived = [Lived(*one) for one in lived]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise TaskError(
                f"{self.name}, restore(): found what another world saved ({error}), but there are "
                f"{self.num_envs} environments here. Use the same num_envs and vectorization."
            ) from error
        if isinstance(self._vector, SyncVectorEnv | AsyncVectorEnv):
            for trouble in self._ask("restore()", self._vector.call, "restore", lived):
                if trouble is not None:
                    raise TaskError(trouble)
            # Every environment repeats its last answer: the flags of the vector are then as they were.
            nothing = np.zeros_like(self._vector.action_space.sample())
            infos = self._ask("restore()", self._vector.step, nothing)[-1]
        self._live, self._steps, self.takes_turns = live, steps, "own" in infos

    def render(self) -> Array | None:
        """Return a picture of the first environment, uint8 `[height, width, 3]`, or None where it draws none.

        `GymSpec.kwargs` must ask for one: {"render_mode": "rgb_array"}.
        """
        pictures = self._ask("render()", self._vector.render)
        return cast(Array, pictures[0]) if pictures else None

    def close(self) -> None:
        """End processes and close windows."""
        close(self._vector, self.name)

    def _begun(self, asked: str) -> Bools:
        if self._live is None:
            raise TaskError(f"{self.name}, {asked}: found no open episode. Call reset() first.")
        return self._live

    def _seen(self, seen: Any, asked: str) -> Float32:
        """Return observations as a policy sees them."""
        # In rows: products round by the order in memory, and a saved array comes back in rows.
        with np.errstate(over="ignore"):  # what is too large for float32 is said below
            flat = np.ascontiguousarray(self._ask(asked, self._flat, seen))
        if flat.shape != (self.num_envs, self.num_inputs):
            raise TaskError(
                f"{self.name}, {asked}: found observations of shape {flat.shape}, but the space has "
                f"{(self.num_envs, self.num_inputs)}. Repair the environment."
            )
        check_finite(flat, "observation", self.name, asked)
        return flat

    def _ask(self, asked: str, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Return what the environments answer. TaskError where one raises or its process is dead."""
        try:
            return function(*args, **kwargs)
        except (TaskError, KeyboardInterrupt):
            raise
        except BaseException as error:
            raise explained(error, self._vector, f"{self.name}, {asked}") from error


def make(spec: GymSpec) -> World:
    """Return the world of `spec`, not yet reset. Errors are those of `vector_of` and of `World`."""
    return World(vector_of(spec), spec.env)
