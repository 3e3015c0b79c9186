"""Where an environment broke: in the user's file, at this line, under the name it was asked for."""

import inspect
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from gradhat.envs.gym import GymSpec, make
from gradhat.errors import ConfigError, TaskError

ENV = "test_gym_place:Sloppy-v0"


class Sloppy(gymnasium.Env[Any, Any]):
    """Behind Gymnasium's TimeLimit, which is the first to read its answers."""

    observation_space = Box(-1, 1, (1,), np.float32)
    action_space = Discrete(2)

    def __init__(self, fault: str, render_mode: str | None = None) -> None:
        self.fault = fault

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        seen = np.zeros(1, np.float32)
        return seen if self.fault == "no info" else (seen, {})

    def step(self, action: Any) -> Any:
        if self.fault == "space":
            self.observation_space.from_jsonable("?")  # raises in Gymnasium's own file
        answer = (np.zeros(1, np.float32), 0.0, False, False, {})
        return answer[:4] if self.fault == "four" else answer


if "Sloppy-v0" not in gymnasium.registry:
    gymnasium.register("Sloppy-v0", entry_point=Sloppy, max_episode_steps=9)


def broken(fault: str, vectorization: Any = "sync") -> str:
    world = make(GymSpec(ENV, 2, vectorization, {"fault": fault}))
    with pytest.raises(TaskError) as error:
        world.reset(0)
        world.step(np.zeros(2, int))
    world.close()
    return str(error.value)


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_the_place_is_the_users_line(vectorization: str) -> None:
    lines, first = inspect.getsourcelines(Sloppy.step)
    line = first + next(i for i, text in enumerate(lines) if "from_jsonable" in text)
    found = broken("space", vectorization)
    assert found.startswith(f"{ENV}, environment 0, step 1 of its episode: found ")
    assert found.endswith(f", at test_gym_place.py:{line}. Repair the environment.")


def test_an_answer_of_another_length_is_said_to_be_one() -> None:
    found = broken("four")
    assert "(expected 5, got 4), at an answer that should be (observation, reward, terminated," in found
    assert f"{ENV}, environment 0, reset(): " in (reset := broken("no info"))
    assert reset.endswith("at an answer that should be (observation, info). Repair the environment.")


def test_an_environment_has_the_name_that_was_asked_for() -> None:
    with pytest.raises(ConfigError, match=f"^environment '{ENV}' with "):
        make(GymSpec(ENV, 1, "sync", {"wheels": 3}))


class Numbered(gymnasium.Env[Any, Any]):
    """Shows a number after its reset, and at its end."""

    observation_space = Discrete(4, start=2)
    action_space = Discrete(2)

    def __init__(self, first: int, last: int, render_mode: str | None = None) -> None:
        self.first, self.last = first, last

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.first, {}

    def step(self, action: Any) -> Any:
        return self.last, 0.0, True, False, {}


if "Numbered-v0" not in gymnasium.registry:
    gymnasium.register("Numbered-v0", entry_point=Numbered)


@pytest.mark.parametrize("number", [1, -1, 6])
def test_a_number_that_is_in_no_space_is_refused_also_where_an_episode_ends(number: int) -> None:
    """A negative place counts from the end: state 1 would be taken for state 5."""
    for first, last, moment in ((number, 2, r"reset\(\)"), (3, number, "step 1")):
        world = make(GymSpec("test_gym_place:Numbered-v0", 2, "sync", {"first": first, "last": last}))
        with pytest.raises(
            TaskError, match=rf"{moment}.*: found .*the observation .*{number}.* is not in Discrete"
        ):
            world.reset(0)
            world.step(np.zeros(2, int))
    world = make(GymSpec("test_gym_place:Numbered-v0", 1, "sync", {"first": 3, "last": 5}))
    assert world.reset(0).tolist() == [[0, 1, 0, 0]]
    assert world.step(np.zeros(1, int)).successors.tolist() == [[0, 0, 0, 1]]
