"""Whatever an environment answers: the outcome is a step that can be learned from, or one of our errors."""

import warnings
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from anything import ANYTHING, NUMBERS, RAISED, TEXT, either, tried
from gymnasium.spaces import Box, Dict, Discrete, Space
from hypothesis import strategies as st

from gradhat.envs.gym import GymSpec, Step, World, make
from gradhat.errors import GradhatError
from gradhat.verdicts import MAX_REWARD

pytestmark = pytest.mark.parametrize("examples", [30, pytest.param(500, marks=pytest.mark.slow)])

ENV = "Anything-v0"
SPACES: list[Space[Any]] = [
    Box(-9, 9, (2,), np.float32),
    Box(-9, 9, (2,), np.float64),
    Box(0, 255, (2, 1), np.uint8),
    Discrete(2),
    Dict({"a": Box(-1, 1, (1,)), "b": Discrete(2)}),
]
RIGHT = object()
"""Stands for an observation as the space has it."""
SHARED = np.ones(2, np.float32)
"""One array, with which every copy answers."""

VALUES = st.lists(st.floats() | st.sampled_from([1e39, -0.0, 0.5]), min_size=2, max_size=2)
DTYPES = st.sampled_from(["f2", "f4", "f8", "g", "i8", "u1", "?", "O", "U3", "c8", "M8[s]"])
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    CAST = st.tuples(st.lists(st.integers(0, 9), min_size=2, max_size=2), DTYPES).map(lambda v: np.array(*v))
TENSORS = [
    torch.zeros(2),
    torch.zeros(2, dtype=torch.bfloat16),
    torch.zeros(2, requires_grad=True),
    torch.zeros(2, dtype=torch.bool),
    torch.zeros(2, 1),
    torch.tensor([0.0, torch.nan]),
    torch.tensor(1),
]
LISTS = [
    [0.0, 1.0],
    [None, None],
    ["a", "b"],
    [[1], [2, 3]],
    [SHARED, None],
    [],
    {"a": [0.5], "b": 1},
    {"a": 1},
]
OBSERVATIONS = either(
    st.just(RIGHT),
    st.just(RIGHT),
    st.just(SHARED),
    VALUES,
    VALUES.map(np.array),
    CAST,
    st.sampled_from(TENSORS),
    st.sampled_from(LISTS),
    ANYTHING,
)
REWARDS = either(st.just(1.0), NUMBERS, ANYTHING)
FLAGS = either(
    st.booleans(), st.booleans(), st.booleans().map(np.bool_), st.integers(0, 2), st.none(), ANYTHING
)
KEYS = either(
    st.sampled_from(["own", "final_obs", "final_info", "_own", "gradhat.trouble"]), TEXT, st.integers()
)
ODD = either(st.integers(0, 3).map(np.arange), st.just({"deep": {"own": 1}}), st.booleans(), ANYTHING)
INFOS = either(
    st.just({}),
    st.booleans().map(lambda own: {"own": own}),
    st.dictionaries(KEYS, ODD, max_size=3),
    ANYTHING,
)
BEGINS = either(
    st.just((RIGHT, {})),
    st.tuples(OBSERVATIONS, st.just({})),
    st.tuples(st.just(RIGHT), INFOS),
    ANYTHING,
    RAISED,
)
GOOD = st.tuples(st.just(RIGHT), st.just(1.0), st.booleans(), st.booleans(), st.just({}))
FOLLOWS = either(
    GOOD,
    st.tuples(OBSERVATIONS, st.just(1.0), st.booleans(), st.booleans(), st.just({})),
    st.tuples(st.just(RIGHT), REWARDS, st.booleans(), st.booleans(), st.just({})),
    st.tuples(st.just(RIGHT), st.just(1.0), FLAGS, FLAGS, st.just({})),
    st.tuples(st.just(RIGHT), st.just(1.0), st.booleans(), st.booleans(), INFOS),
    st.tuples(OBSERVATIONS, REWARDS, FLAGS, FLAGS, INFOS),
    ANYTHING,
    RAISED,
)


class Anything(gymnasium.Env[Any, Any]):
    """Answers what it is given, from the same place on after every reset: each copy from another place."""

    space: Space[Any]
    begins: list[Any]
    follows: list[Any]
    num_made = 0

    def __init__(self) -> None:
        self.observation_space, self.action_space = self.space, Discrete(2)
        self.place = Anything.num_made % 2
        Anything.num_made += 1

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t = 0
        return self.said(self.begins)

    def step(self, action: Any) -> Any:
        self.t += 1
        return self.said(self.follows)

    def said(self, answers: list[Any]) -> Any:
        answer = answers[(self.place + self.t) % len(answers)]
        if isinstance(answer, BaseException):
            raise answer
        if type(answer) is not tuple or not answer or answer[0] is not RIGHT:
            return answer
        self.observation_space.seed(self.t)
        return (self.observation_space.sample(), *answer[1:])


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    gymnasium.register(ENV, entry_point=Anything, order_enforce=False)
    yield
    del gymnasium.registry[ENV]


def assert_sound(world: World, step: Step) -> None:
    """It can be learned from in float32."""
    n = world.num_envs
    for seen in (step.observations, step.successors):
        assert seen.dtype == np.float32 and seen.shape == (n, world.num_inputs) and np.isfinite(seen).all()
    assert step.rewards.shape == (n,) and (abs(step.rewards) <= MAX_REWARD).all()
    for flags in (step.terminated, step.truncated, step.live, world.acts):
        assert flags.dtype == np.bool_ and flags.shape == (n,)
    assert not (step.terminated & step.truncated).any()


def lived(mode: Any) -> None:
    """Some steps, a snapshot, and steps in a world that goes on from there."""
    spec, actions = GymSpec(ENV, 2, "sync", autoreset=mode), np.array([0, 1])
    with closing(make(spec)) as world, closing(make(spec)) as other:
        world.reset(3)
        for _ in range(4):
            assert_sound(world, world.step(actions))
        other.restore(world.snapshot())
        for _ in range(3):
            step, again = world.step(actions), other.step(actions)
            assert_sound(other, again)
            assert all(np.array_equal(a, b) for a, b in zip(step, again, strict=True))


@pytest.mark.parametrize("mode", ["disabled", "next_step", "same_step"])
def test_whatever_an_environment_answers(examples: int, mode: str) -> None:
    num_lived = 0

    @tried(
        examples,
        {"space": SPACES[0], "begins": [(SHARED, {})], "follows": [(SHARED, 1.0, False, False, {})]},
        {"space": SPACES[0], "begins": [(RIGHT, {})], "follows": [(RIGHT, 1e39, False, False, {})]},
        {"space": SPACES[0], "begins": [(RIGHT, {"own": False})], "follows": [(RIGHT, 1, False, True, {})]},
        space=st.sampled_from(SPACES),
        begins=st.lists(BEGINS, min_size=1, max_size=2) | st.just([(RIGHT, {})]),
        follows=st.lists(FOLLOWS, min_size=1, max_size=3),
    )
    def holds(space: Space[Any], begins: list[Any], follows: list[Any]) -> None:
        nonlocal num_lived
        Anything.space, Anything.begins, Anything.follows, Anything.num_made = space, begins, follows, 0
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                lived(mode)
            num_lived += 1
        except GradhatError as error:
            assert ENV in str(error)

    assert num_lived > 1
