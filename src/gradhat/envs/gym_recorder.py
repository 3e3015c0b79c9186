"""One environment of a vector of them: it names itself in errors, and it can be saved in mid-episode.

Many environments cannot be copied: physics engines keep their state where Python does not see it. They can be
lived again. The record of an episode is the state of the random numbers before its reset, and its actions.
"""

import signal
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from gradhat.envs.text.guard import shown
from gradhat.errors import TaskError
from gradhat.verdicts import LIMIT, MAX_REWARD, number

TROUBLE = "gradhat.trouble"
"""Key of an info that says, in words, how an environment broke. An exception would end its worker process,
and would not say which environment it came from."""

OWN = "own"
"""The only key of an info that anybody here reads. A vector stacks infos, which those of somebody else's
environment may not do: arrays of a varying length, None, text after a number."""

TURN = (", which says whether the next action is the policy's own", ", or give it another name")

ANSWER = "(observation, reward, terminated, truncated, info)"
NUMBERS = "biuf"
"""The kinds of dtypes of real numbers."""
AROUND = (Path(__file__).parents[1], Path(gymnasium.__file__).parent)
"""The homes of the code around an environment: never the place that is to be repaired, save in `ENVS`."""
ENVS = Path(gymnasium.__file__).parent / "envs"

PYTHON = Path(signal.__file__).parent
"""The home of the standard library."""

Answer = tuple[Any, float, bool, bool, dict[str, Any]]
"""Observation, reward, terminated, truncated, info."""


class Lived(NamedTuple):
    """An episode so far, from which it can be lived again."""

    seed: int | None
    random: dict[str, Any] | None
    """The state of the bit generator before the reset; None where the reset had a seed."""
    options: dict[str, Any] | None
    actions: bytes
    """All actions since the reset, in the dtype and shape of the action space."""
    last: Answer
    """What the environment answered last, without the info."""


class Recorder(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Environment number `index` of those called `name`, whose observations are flat.

    Where it raises, or answers with an observation that has not the shape of its space, the answer is an
    info `TROUBLE` and means nothing else.

    Assumes, for `restore`, that all randomness of the environment comes from `np_random`, which Gymnasium's
    `reset(seed=...)` seeds, and that a reset forgets the episodes before it. Memory: one action for each step
    since the reset.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], name: str, index: int) -> None:
        super().__init__(env)
        self._name, self._index = name, index
        self._nothing = np.zeros(env.observation_space.shape or (), env.observation_space.dtype)
        self._action_dtype, self._action_shape = env.action_space.dtype, env.action_space.shape or ()
        self._begin(None, None, None)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset, and begin a new record."""
        try:
            random = dict(self.unwrapped.np_random.bit_generator.state) if seed is None else None
            self._begin(seed, random, options)
            observation, info = self.env.reset(seed=seed, options=options)
            observation, info = self._own(observation), _read(info)
            self._last = (observation, 0.0, False, False, info)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return self._nothing, {TROUBLE: self._named("reset()", error)}
        return observation, info

    def step(self, action: Any) -> Answer:
        """Step, and record the action. After `restore`, the first step only repeats the last answer."""
        if self._again:
            self._again = False
            return self._last
        self._actions += np.asarray(action, dtype=self._action_dtype).tobytes()
        self._steps += 1
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
            ends = _flag(terminated, "terminated"), _flag(truncated, "truncated")
            answer = (self._own(observation), _reward(reward), *ends, _read(info))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            trouble = self._named(f"step {self._steps} of its episode", error)
            return self._nothing, 0.0, False, False, {TROUBLE: trouble}
        self._last = answer
        return answer

    def snapshot(self) -> Lived:
        """Return what `restore` needs."""
        return Lived(*self._start, bytes(self._actions), (*self._last[:4], {}))

    def restore(self, lived: Sequence[Lived]) -> str | None:
        """Live the episode `lived[index]` again. The next step then ignores its action and repeats the last
        answer, so that whoever steps this environment finds everything as it was.

        Returns None, or what is wrong where the environment answers something else than it did.
        """
        mine = lived[self._index]
        if mine.random is not None:
            self.unwrapped.np_random.bit_generator.state = mine.random
        self.reset(seed=mine.seed, options=mine.options)
        actions = np.frombuffer(mine.actions, dtype=self._action_dtype).reshape(-1, *self._action_shape)
        for action in actions:
            self.step(action)
        if _same(self._last, mine.last):
            self._again = True
            return None
        return (
            f"{self._name}, environment {self._index}, restore(): found after {len(actions)} steps another "
            "answer than before. An environment can be continued if all its randomness comes from "
            "self.np_random and a reset forgets the episodes before it. Go on in a new world, with a reset."
        )

    def ignore_interrupts(self) -> None:
        """Leave Ctrl-C to the main process: a worker that dies of it could not be saved any more."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _begin(self, seed: int | None, random: dict[str, Any] | None, options: dict[str, Any] | None) -> None:
        self._start = (seed, random, options)
        self._actions = bytearray()
        self._steps = 0
        self._last: Answer = (self._nothing, 0.0, False, False, {})
        self._again = False

    def _own(self, observation: Any) -> Any:
        """Return an array of our own: environments write into theirs, share it, or answer with a tensor."""
        found, expected = np.shape(observation), self._nothing.shape
        if found != expected:
            raise TaskError(f"an observation of shape {found}, but the space has {expected}")
        # Not np.array(): a tensor does not know its keyword `copy`, and numpy warns of that.
        own = np.asarray(observation).copy()
        if own.dtype.kind not in NUMBERS:
            raise TaskError(f"an observation of dtype {own.dtype}, which are no real numbers")
        return own

    def _named(self, asked: str, error: BaseException) -> str:
        found = str(error)
        if not isinstance(error, TaskError):
            # Where no code but ours and Gymnasium's met it, what they were given is wrong.
            answer = "(observation, info)" if asked == "reset()" else ANSWER
            place = _place(error) or f"an answer that should be {answer}"
            found = f"{type(error).__name__}: {error}, at {place}"
        return f"{self._name}, environment {self._index}, {asked}: found {found}. Repair the environment."


def _read(info: Any) -> dict[str, Any]:
    """Return what is read of an info. TaskError where it is none."""
    if not isinstance(info, Mapping):
        raise TaskError(f"an info of the type {type(info).__name__}, but it should be a dictionary")
    if OWN not in info:
        return {}
    return {OWN: _flag(info[OWN], "info own", TURN)}


def _flag(found: Any, name: str, more: tuple[str, str] = ("", "")) -> bool:
    """Return a truth value of any library, or 0 or 1, as a bool. TaskError for anything else, which says
    `more` of what it means and what to do."""
    value = number(found)
    if value not in (0.0, 1.0):
        raise TaskError(f"the {name}={shown(found)}{more[0]}: make it True or False{more[1]}")
    return value == 1.0


def _reward(found: Any) -> float:
    """Return a reward as a float. TaskError where it is no number that can be computed with."""
    reward = number(found)
    if reward is None:
        raise TaskError(f"the reward {shown(found)}, which is no finite number")
    if abs(reward) > MAX_REWARD:
        raise TaskError(f"the reward {reward:.3g}, but {LIMIT}")
    return reward


def _place(error: BaseException) -> str:
    """Return file:line of the innermost code that is neither ours, nor Gymnasium's, nor Python's own, or
    nothing."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        python = path.is_relative_to(PYTHON) and "site-packages" not in path.parts
        if path.is_relative_to(ENVS) or not (python or any(path.is_relative_to(home) for home in AROUND)):
            return f"{path.name}:{frame.lineno}"
    return ""


def _same(a: Answer, b: Answer) -> bool:
    """Compare observations, rewards and ends to the bit."""
    seen, expected = np.asarray(a[0]), np.asarray(b[0])
    return seen.dtype == expected.dtype and seen.tobytes() == expected.tobytes() and a[1:4] == b[1:4]
