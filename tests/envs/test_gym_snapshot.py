"""A world goes on where it was saved, to the bit, in the middle of episodes."""

import io
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
import telltale
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper
from telltale import ENV, Telltale

from gradhat.cli.main import main
from gradhat.envs.gym import GymSpec, Step, World, make
from gradhat.envs.gym_state import captured, dumps
from gradhat.envs.tabular import TabularVectorEnv
from gradhat.errors import TaskError
from gradhat.exact.zoo import random_mdp

MODES = ("next_step", "same_step", "disabled")


def native(env: str, **kwargs: Any) -> Callable[[], World]:
    return lambda: make(GymSpec(env, 3, "native", kwargs))


def one_by_one(how: Any, env: str, mode: Any = "auto", **kwargs: Any) -> Callable[[], World]:
    return lambda: make(GymSpec(env, 3, how, kwargs, mode))


def of_tables() -> World:
    mdp = random_mdp(5, 3, seed=1, gamma=1.0, horizon=4, num_terminal=1)
    return World(TabularVectorEnv(mdp, 3), "tables")


WORLDS: dict[str, Callable[[], World]] = {
    "native CartPole": native("CartPole-v1"),
    "tables": of_tables,
    "CartPole": one_by_one("sync", "CartPole-v1"),
    "Acrobot": one_by_one("sync", "Acrobot-v1"),
    "Pendulum": one_by_one("sync", "Pendulum-v1"),
    "LunarLander": one_by_one("sync", "LunarLander-v3"),
    "LunarLander in the wind": one_by_one("sync", "LunarLander-v3", enable_wind=True, continuous=True),
    "FrozenLake": one_by_one("sync", "FrozenLake-v1"),
    "async Pendulum": one_by_one("async", "Pendulum-v1"),
    **{f"sync {mode}": one_by_one("sync", ENV, mode) for mode in MODES},
    **{f"async {mode}": one_by_one("async", ENV, mode) for mode in MODES},
}


def random_steps(world: World, rng: np.random.Generator, num_steps: int) -> list[Step]:
    def act() -> Any:
        if world.actions.discrete:
            return rng.integers(world.actions.size, size=world.num_envs)
        return rng.normal(size=(world.num_envs, world.actions.size))

    return [world.step(act()) for _ in range(num_steps)]


def assert_same(steps: list[Step], others: list[Step]) -> None:
    for step, other in zip(steps, others, strict=True):
        for field, expected in zip(step, other, strict=True):
            assert field.dtype == expected.dtype
            np.testing.assert_array_equal(field, expected)


@pytest.mark.parametrize("name", WORLDS)
def test_a_fresh_world_goes_on_to_the_bit(name: str) -> None:
    world, fresh = WORLDS[name](), WORLDS[name]()
    num_steps = 60 if world.name == ENV else 300
    world.reset(1)
    random_steps(world, np.random.default_rng(0), num_steps)
    saved = world.snapshot()
    expected = random_steps(world, np.random.default_rng(1), num_steps)
    fresh.restore(saved)
    found = random_steps(fresh, np.random.default_rng(1), num_steps)
    assert_same(found, expected)
    ends = sum(int((step.terminated | step.truncated).sum()) for step in found)
    assert ends >= 3 or name == "Acrobot"
    # An unseeded reset draws from what was saved, too.
    np.testing.assert_array_equal(fresh.reset(), world.reset())
    world.close(), fresh.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", ["sync", "async", "native"])
def test_every_moment_can_be_saved(how: Any, mode: Any) -> None:
    """Also right after the first reset, and where an environment is about to reset itself."""

    def build() -> World:
        if how == "native":
            return World(telltale.native(2, AutoresetMode[mode.upper()]), ENV)
        return make(GymSpec(ENV, 2, how, {}, mode))

    world, other = build(), build()
    world.reset(3)
    waiting = 0
    for moment in range(12):
        saved = world.snapshot()
        other.restore(saved)
        steps = [random_steps(w, np.random.default_rng(moment), 1) for w in (other, world)]
        assert_same(*steps)
        waiting += int(not steps[0][0].live.all())
    assert waiting > 2 if mode == "next_step" else waiting == 0
    random_steps(world, np.random.default_rng(9), 20)
    # A world can also go back.
    world.restore(saved)
    assert_same(random_steps(world, np.random.default_rng(11), 1), steps[0])
    world.close(), other.close()


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_seeded_start_and_its_steps_are_counted_on(how: Any) -> None:
    """Errors name the step since the world's reset, also in a world that goes on."""
    world, fresh = (make(GymSpec(ENV, 2, how, {"fault": "observation"})) for _ in range(2))
    world.reset(0)
    for _ in range(4):
        world.step(np.zeros(2, int))
    fresh.restore(world.snapshot())
    with pytest.raises(TaskError, match="environment 1, step 5: found the observation"):
        fresh.step(np.array([0, telltale.TROUBLE]))
    world.close(), fresh.close()


@pytest.mark.parametrize("how", ["sync", "async"])
def test_an_environment_that_remembers_older_episodes_is_found_out(how: Any) -> None:
    world, fresh = (make(GymSpec(ENV, 2, how, {"counts": True})) for _ in range(2))
    world.reset(0)
    random_steps(world, np.random.default_rng(0), 40)
    with pytest.raises(TaskError, match=r"environment 0, restore\(\).*self.np_random.*Go on in a new world"):
        fresh.restore(world.snapshot())
    world.close(), fresh.close()


def test_another_world_is_refused() -> None:
    worlds = [make(GymSpec(ENV, n, how)) for n, how in ((2, "sync"), (3, "sync"), (2, "native"))]
    for world in worlds:
        world.reset(0)
    for saver, other in ((0, 1), (0, 2), (2, 0)):
        with pytest.raises(TaskError, match=r"restore\(\).*Use the same num_envs and vectorization"):
            worlds[other].restore(worlds[saver].snapshot())


class Evil:
    """What a pickle of it does is done by whoever opens it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("how", ["sync", "native"])
def test_what_no_world_has_saved_is_refused_and_not_executed(how: Any, tmp_path: Path) -> None:
    world = make(GymSpec(ENV, 2, how))
    marker = tmp_path / "executed"
    wrong = [pickle.dumps(Evil(marker)), b"", b"[]", b"1", b"{}", b"\xff", b'{"fields": {"step": 1}}']
    wrong += [
        dumps(captured(v)) for v in ({}, {"live": None, "steps": 1}, {"live": [True, True], "steps": {}})
    ]
    for saved in wrong:
        with pytest.raises(TaskError, match=r"restore\(\)"):
            world.restore(saved)
    assert not marker.exists()
    world.close()


def test_the_record_is_small() -> None:
    """One action a step, not the interpreter's objects."""
    world = make(GymSpec("Pendulum-v1", 2, "sync", {"max_episode_steps": 10_000}))
    world.reset(0)
    random_steps(world, np.random.default_rng(0), 2000)
    assert 2 * 2000 * 4 < len(world.snapshot()) < 2 * 2000 * 4 * 4 / 3 + 1000


START = np.zeros(2, np.float32)
"""One array, which all copies of an environment answer with."""


class Shared(gymnasium.Env[Any, Any]):
    """An episode of five steps that shows one array, the same in every copy, or a tensor."""

    observation_space = Box(-9, 9, (2,), np.float32)
    action_space = Discrete(2)

    def __init__(self, kind: str) -> None:
        self.seen: Any = {"array": START, "tensor": torch.zeros(2), "list": [0.0, 0.0]}[kind]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self.seen, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.seen, float(action), self.t >= 5, False, {}


@pytest.fixture
def shared() -> Iterator[str]:
    gymnasium.register("Shared-v0", entry_point=Shared)
    yield "Shared-v0"
    del gymnasium.registry["Shared-v0"]


@pytest.mark.parametrize("kind", ["array", "tensor", "list"])
@pytest.mark.parametrize("mode", MODES)
def test_observations_that_are_shared_or_no_arrays_can_be_saved(shared: str, kind: str, mode: Any) -> None:
    world, fresh = (make(GymSpec(shared, 4, "sync", {"kind": kind}, mode)) for _ in range(2))
    world.reset(0)
    for moment in range(8):
        saved = world.snapshot()
        fresh.restore(saved)
        steps = [random_steps(w, np.random.default_rng(moment), 1) for w in (fresh, world)]
        assert_same(*steps)


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_a_run_with_observations_that_are_shared_or_no_arrays_goes_on(
    shared: str, kind: str, tmp_path: Path
) -> None:
    flags = "--num-envs 4 --vectorization sync --num-steps 3 --num-minibatches 1 --hidden 4 --log-every 12"
    flags += f" --eval-episodes 2 --eval-every 0 --env-args kind={kind} --num-frames"
    run = tmp_path / "run"
    assert main(["train", "ppo", "--env", shared, *flags.split(), "24", "--out", str(run)]) == 0
    assert main(["train", "--resume", str(run), "--num-frames", "48"]) == 0


def test_random_numbers_that_cannot_be_written_down_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a generator of somebody else's, whose state is an object."""

    def reset(self: Telltale, **_: Any) -> Any:
        self.np_random = cast(
            Any, SimpleNamespace(bit_generator=SimpleNamespace(state={"at": io.StringIO()}))
        )
        return np.zeros(5), {}

    monkeypatch.setattr(Telltale, "reset", reset)
    world = make(GymSpec(ENV, 2, "sync"))
    world.reset(0)
    world.reset()
    with pytest.raises(
        TaskError, match=r"snapshot\(\): found what cannot be written down: .*StringIO.*np_random"
    ):
        world.snapshot()


def test_what_cannot_be_saved_says_so() -> None:
    plain = World(SyncVectorEnv([Telltale]), "plain")
    plain.reset(0)
    with pytest.raises(TaskError, match=r"plain, snapshot\(\): found AttributeError"):
        plain.snapshot()
    vector = VectorWrapper(telltale.native(1))
    vector.stream = io.StringIO()
    held = World(vector, "held")
    held.reset(0)
    with pytest.raises(TaskError, match=r"held, snapshot\(\): found .*stream, a _io\.StringIO.*'sync'"):
        held.snapshot()
