"""Gymnasium environments as one world: a plain loop over single environments is the twin."""

import itertools
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import telltale
import torch
from gymnasium.spaces import Box, Discrete, Graph, MultiDiscrete, flatten
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv, VectorWrapper
from numpy.typing import NDArray
from telltale import ENV, TROUBLE, Odd, Telltale

from gradhat.envs.gym import GymSpec, Step, World, make
from gradhat.envs.gym_recorder import Recorder
from gradhat.envs.gym_registry import sources_of
from gradhat.envs.tabular import TabularEnv, TabularVectorEnv
from gradhat.errors import ConfigError, TaskError
from gradhat.exact.mdp import tabular
from gradhat.verdicts import MAX_REWARD

MODES = ("next_step", "same_step", "disabled")
Arrays = dict[str, NDArray[Any]]


class Row(NamedTuple):
    """A step of one environment."""

    before: tuple[float, ...]
    action: float
    reward: float
    terminated: bool
    truncated: bool
    after: tuple[float, ...]


@pytest.fixture
def opened() -> Iterator[list[World]]:
    """Worlds to be closed after the test."""
    worlds: list[World] = []
    yield worlds
    for world in worlds:
        world.close()


def row(before: Any, action: Any, reward: Any, terminated: Any, truncated: Any, after: Any) -> Row:
    narrow = [tuple(np.asarray(seen, dtype=np.float32).tolist()) for seen in (before, after)]
    return Row(narrow[0], float(action), float(reward), bool(terminated), bool(truncated), narrow[1])


def lived(world: World, seed: int, num_steps: int) -> list[list[Row]]:
    """The live steps of each environment under random actions."""
    rng = np.random.default_rng(0)
    rows: list[list[Row]] = [[] for _ in range(world.num_envs)]
    seen = world.reset(seed)
    for _ in range(num_steps):
        actions = rng.integers(world.actions.size, size=world.num_envs)
        step = world.step(actions)
        for i in np.flatnonzero(step.live):
            parts = (step.rewards, step.terminated, step.truncated, step.successors)
            rows[i].append(row(seen[i], actions[i], *(part[i] for part in parts)))
        seen = step.observations
    return rows


def plain(seed: int, actions: list[float]) -> list[Row]:
    """The same in one environment, reset where it ends."""
    env, rows = Telltale(), list[Row]()
    seen, _ = env.reset(seed=seed)
    for action in actions:
        after, reward, terminated, truncated, _ = env.step(int(action))
        rows.append(row(seen, action, reward, terminated, truncated and not terminated, after))
        seen = env.reset()[0] if terminated or truncated else after
    return rows


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("vectorization", ["sync", "async", "native"])
def test_every_mode_lives_what_a_plain_loop_lives(vectorization: Any, mode: Any, opened: list[World]) -> None:
    if vectorization == "native":
        world, seeds = World(telltale.native(3, AutoresetMode[mode.upper()]), ENV), [5, 6, 7]
    else:
        world = make(GymSpec(ENV, 3, vectorization, {}, mode))
        seeds = [int(s) for s in np.random.SeedSequence(5).generate_state(3)]
    opened.append(world)
    rows = lived(world, 5, 60)
    for seed, mine in zip(seeds, rows, strict=True):
        assert mine == plain(seed, [step.action for step in mine])
    ends = [[step.terminated or step.truncated for step in mine] for mine in rows]
    assert all(60 > sum(ended) > 8 for ended in ends)
    # A reset of its own costs an environment one step after each end but the last.
    dummies = [sum(ended[:-1]) if mode == "next_step" else 0 for ended in ends]
    assert [60 - len(mine) for mine in rows] == pytest.approx(dummies, abs=1)
    assert any(step.truncated for step in rows[0]) and any(step.terminated for step in rows[0])


def test_the_modes_agree_to_the_bit(opened: list[World]) -> None:
    """Sync and async environments get the same seeds, whatever the mode."""
    opened += [make(GymSpec("Acrobot-v1", 2, how, {"max_episode_steps": 20})) for how in ("sync", "async")]
    assert lived(opened[0], 3, 50) == lived(opened[1], 3, 50)


def test_native_cartpole_resets_itself_in_a_step_that_is_not_live() -> None:
    world = make(GymSpec("CartPole-v1", 16, kwargs={"max_episode_steps": 30}))
    assert world.autoreset is AutoresetMode.NEXT_STEP
    rng, waiting, resets, limits = np.random.default_rng(0), np.zeros(16, dtype=bool), 0, 0
    world.reset(0)
    for _ in range(200):
        step = world.step(rng.integers(2, size=16))
        np.testing.assert_array_equal(step.live, ~waiting)
        assert (step.rewards[waiting] == 0).all() and (step.rewards[~waiting] == 1).all()
        assert (abs(step.observations[waiting]) <= 0.05).all()
        fallen = (abs(step.successors[:, 0]) > 2.4) | (abs(step.successors[:, 2]) > 12 * np.pi / 180)
        np.testing.assert_array_equal(step.terminated, fallen)
        assert not (step.terminated & step.truncated).any()
        waiting = step.terminated | step.truncated
        resets, limits = resets + int(waiting.sum()), limits + int(step.truncated.sum())
    assert resets > 50 and limits > 3


def test_auto_takes_the_native_version_unless_another_mode_is_asked_for() -> None:
    assert make(GymSpec(ENV)).autoreset is AutoresetMode.NEXT_STEP
    assert make(GymSpec(ENV, vectorization="sync")).autoreset is AutoresetMode.DISABLED
    assert make(GymSpec(ENV, autoreset="same_step")).autoreset is AutoresetMode.SAME_STEP
    assert make(GymSpec("Acrobot-v1")).autoreset is AutoresetMode.DISABLED
    assert (
        make(GymSpec(ENV, vectorization="native", autoreset="next_step")).autoreset is AutoresetMode.NEXT_STEP
    )


@pytest.mark.parametrize("vectorization", ["sync", "native"])
def test_seeds_are_reproducible_and_differ_between_environments_and_runs(vectorization: Any) -> None:
    world = make(GymSpec("CartPole-v1", 4, vectorization))
    first = world.reset(0)
    other = make(GymSpec("CartPole-v1", 4, vectorization)).reset(0)
    np.testing.assert_array_equal(first, other)
    seen = np.concatenate([world.reset(seed) for seed in range(4)])
    assert len(np.unique(seen, axis=0)) == 16
    assert first.dtype == np.float32 and first.shape == (4, world.num_inputs)


@pytest.mark.parametrize("space", telltale.SPACES)
@pytest.mark.parametrize("mode", MODES)
def test_observations_are_laid_flat_as_gymnasium_does(space: str, mode: Any) -> None:
    """The same from single environments and from a vector with a version of its own."""
    observed = telltale.SPACES[space]
    envs = [Odd(observed) for _ in range(2)]
    vector = VectorWrapper(
        SyncVectorEnv([lambda e=e: e for e in envs], autoreset_mode=AutoresetMode[mode.upper()])
    )
    world = World(vector, "odd")
    seen = [world.reset(0)]
    single = make(GymSpec("Odd-v0", 2, "sync", {"space": observed}, mode))
    assert single.num_inputs == world.num_inputs and single.reset(0).shape == seen[0].shape
    for _ in range(3):
        step, other = world.step(np.zeros(2, int)), single.step(np.zeros(2, int))
        np.testing.assert_array_equal(step.successors.shape, other.successors.shape)
        seen.append(step.successors)
    assert step.terminated.all()
    for i, env in enumerate(envs):
        expected = [flatten(observed, shown) for shown in env.shown[:4]]
        np.testing.assert_array_equal([flat[i] for flat in seen], np.asarray(expected, dtype=np.float32))
    assert all(flat.dtype == np.float32 for flat in seen)


def test_single_environments_lay_their_observations_flat() -> None:
    space = telltale.SPACES["Dict"]
    world = make(GymSpec("Odd-v0", 2, "sync", {"space": space}))
    seeds = [int(s) for s in np.random.SeedSequence(4).generate_state(2)]
    expected = [flatten(space, Odd(space).reset(seed=seed)[0]) for seed in seeds]
    np.testing.assert_array_equal(world.reset(4), np.asarray(expected, dtype=np.float32))


def test_a_continuous_action_is_clipped_and_a_discrete_one_begins_at_zero() -> None:
    box = Box(np.array([[-1.0, -2.0]], np.float32), np.array([[1.0, np.inf]], np.float32))
    world = World(telltale.native(2, actions=box), "box")
    world.reset(0)
    assert not world.actions.discrete and world.actions.size == 2
    np.testing.assert_array_equal(world.actions.low, [-1, -2])
    np.testing.assert_array_equal(world.actions.high, [1, np.inf])
    assert world.step(np.array([[3.0, 9.0], [-0.25, 0.0]])).observations[:, 2].tolist() == [1.0, -0.25]
    shifted = World(telltale.native(2, actions=Discrete(3, start=5)), "shifted")
    shifted.reset(0)
    assert shifted.actions == (True, 3, None, None)
    assert shifted.step(np.array([0, 2])).observations[:, 2].tolist() == [5.0, 7.0]


def moves_alone(horizon: int | None = None) -> Any:
    """Three states in a row; in the middle one the world moves by itself."""
    P = np.zeros((3, 2, 3))
    P[0, :, 1] = P[1, :, 2] = P[2, :, 2] = 1
    return tabular(
        torch.tensor(P),
        torch.ones(3, 2),
        torch.tensor([1.0, 0, 0]),
        gamma=1.0,
        terminal=torch.tensor([False, False, True]),
        own=torch.tensor([True, False, True]),
        horizon=horizon,
    )


def of_tables(mode: str) -> VectorEnv[Any, Any, Any]:
    if mode == "own":
        return TabularVectorEnv(moves_alone(), 2)
    one_by_one = [lambda: TabularEnv(moves_alone())] * 2
    return SyncVectorEnv(one_by_one, autoreset_mode=AutoresetMode[mode.upper()])


@pytest.mark.parametrize("mode", ["own", *MODES])
def test_a_world_of_tables_says_where_it_moves_by_itself(mode: str) -> None:
    world = World(of_tables(mode), "tables")
    np.testing.assert_array_equal(world.reset(0), [[1, 0, 0]] * 2)
    steps = [world.step(np.zeros(2, int)) for _ in range(6)]
    episode = [True, False] if mode in ("same_step", "disabled") else [True, False, False]
    assert [bool(step.live[1]) for step in steps] == (episode * 3)[:6]
    assert [int(step.successors[0].argmax()) for step in steps[:2]] == [1, 2]
    assert [bool(step.terminated[0]) for step in steps[:2]] == [False, True]
    assert steps[1].observations[0].argmax() == (0 if len(episode) == 2 else 2)


# What can go wrong.


@pytest.mark.parametrize(
    ("env", "found"),
    [
        ("cartpole-v1", "Did you mean CartPole-v1"),
        ("CartPole", "CartPole-v1"),
        ("LunarLander-v2", "Did you mean LunarLander-v3"),
        ("zzzz/Nothing-v7", "Use one of gymnasium.registry"),
        ("no_such_module:Thing-v0", "importing no_such_module fails"),
        (":Thing-v0", "no such id"),
        ("..:Thing-v0", "importing .. raises TypeError"),
    ],
)
def test_an_unknown_environment_is_told_the_nearest(env: str, found: str) -> None:
    with pytest.raises(ConfigError, match=found) as error:
        make(GymSpec(env))
    assert repr(env) in str(error.value)


def test_a_module_is_imported_for_its_environments(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_envs.py").write_text(
        "import gymnasium\nimport telltale\ngymnasium.register('Mine-v0', entry_point=telltale.Telltale)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert make(GymSpec("my_envs:Mine-v0", 2)).reset(0).shape == (2, 5)
    gymnasium.registry.pop("Mine-v0")


def test_a_module_of_the_present_folder_needs_no_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gradhat_test_core.py").write_text("from telltale import Telltale")
    (tmp_path / "gradhat_test_envs.py").write_text(
        "import gymnasium\ngymnasium.register('Mine-v0', entry_point='gradhat_test_core:Telltale')\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    try:
        for vectorization in ("sync", "async"):
            spec = GymSpec("gradhat_test_envs:Mine-v0", 2, vectorization=vectorization)
            world = make(spec)
            assert world.reset(0).shape == (2, 5)
            world.close()
        assert sys.path == before
    finally:
        gymnasium.registry.pop("Mine-v0")
        for name in ("gradhat_test_envs", "gradhat_test_core"):
            del sys.modules[name]


def test_an_environment_says_which_package_or_file_it_is_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sources_of("CartPole-v1") == {}
    file = tmp_path / "gradhat_test_mine.py"
    file.write_text(
        "import gymnasium\n"
        "gymnasium.register('Mine-v0', entry_point='gymnasium.envs.classic_control.cartpole:CartPoleEnv')\n"
    )
    monkeypatch.chdir(tmp_path)
    wanted = {"module gradhat_test_mine": sha256(file.read_bytes()).hexdigest()}
    try:
        assert sources_of("gradhat_test_mine:Mine-v0") == wanted
        # An installed package has a version. This one makes no environments, which nobody looks at here.
        gymnasium.registry["Mine-v0"].entry_point = "pytest:Mine"
        found = sources_of("gradhat_test_mine:Mine-v0")
        assert found == {**wanted, "pytest": pytest.__version__}
    finally:
        gymnasium.registry.pop("Mine-v0")
        del sys.modules["gradhat_test_mine"]


def test_physics_of_a_package_of_its_own_has_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: {"box2d": "2.3", "mujoco": "3.1"}[name])
    assert sources_of("LunarLander-v3") == {"box2d": "2.3"}
    assert sources_of("Ant-v5") == {"mujoco": "3.1"}


def test_a_module_that_raises_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gradhat_test_broken.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"gradhat_test_broken raises ZeroDivisionError.*Repair"):
        make(GymSpec("gradhat_test_broken:Mine-v0"))


@pytest.mark.parametrize(
    ("env", "extra", "package"), [("LunarLander-v3", "box2d", "Box2D"), ("Ant-v5", "mujoco", "mujoco")]
)
def test_a_missing_extra_is_named(
    env: str, extra: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [name for name in sys.modules if name.startswith(f"gymnasium.envs.{extra}")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"{env}.*Run: pip install 'gradhat\[{extra}\]'$"):
        make(GymSpec(env))


def test_a_part_of_an_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An extra that is there may itself lack something."""

    def load(_: str) -> Any:
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr("gymnasium.envs.registration.load_env_creator", load)
    with pytest.raises(ConfigError, match=r"libGL.so.1.*pip install 'gradhat\[mujoco\]'"):
        make(GymSpec("Ant-v5"))


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        (GymSpec("CartPole-v1", 0), "num_envs=0"),
        (GymSpec("CartPole-v1", kwargs={"wheels": 3}), "wheels"),
        (GymSpec("Acrobot-v1", 2, "sync", {"wheels": 3}), "wheels"),
        (GymSpec("Acrobot-v1", vectorization="native"), "Use 'sync' or 'async'"),
        (GymSpec("CartPole-v1", 1, "native", {}, "disabled"), "vectorization='sync'"),
        (GymSpec(ENV, 1, "sync", {"actions": MultiDiscrete([2, 2])}), "MultiDiscrete"),
        (GymSpec(ENV, 1, "async", {"actions": Box(0, 3, (1,), np.int64)}), "Box of real numbers"),
        (GymSpec("Odd-v0", kwargs={"space": Graph(Box(0, 1, (2,)), None)}), "no fixed size"),
        (GymSpec("Odd-v0", kwargs={"space": gymnasium.Space((2,), float)}), "no fixed size"),
        (GymSpec("Odd-v0", kwargs={"space": Discrete(10**9)}), "makes 1,000,000,000 numbers"),
        (GymSpec(ENV, 1, "sync", {"actions": Discrete(10**9)}), "at most 4,194,304 actions"),
        (GymSpec("phys2d/CartPole-v1"), "missing package: No module named 'jax'"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_runs(spec: GymSpec, found: str) -> None:
    with pytest.raises(ConfigError, match=found):
        make(spec)


def test_an_environment_that_breaks_while_it_is_made() -> None:
    with pytest.raises(TaskError, match=f"{ENV}.*RuntimeError while it was made: no parts"):
        make(GymSpec(ENV, kwargs={"fault": "make"}))


def test_a_vector_that_hides_its_mode_is_refused() -> None:
    vector = telltale.native(1)
    vector.metadata = {}
    with pytest.raises(ConfigError, match="autoreset mode None"):
        World(vector, "mine")


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (
            "raise",
            r"environment 1, step 1 of its episode: found RuntimeError: the wheel came off, at telltale",
        ),
        ("reset", r"environment 1, reset\(\): found RuntimeError: the reset broke"),
        ("observation", r"environment 1, step 2: found the observation \[.*nan.*\]"),
        ("reward", r"environment 1, step 1 of its episode: found the reward inf, which is no finite number"),
        ("no reward", r"environment 1, step 1 of its episode: found the reward None, which is no finite"),
        (
            "shape",
            r"environment 1, step 1 .*: found an observation of shape \(4,\), but the space has \(5,\)",
        ),
    ],
)
def test_a_broken_environment_is_named(
    vectorization: Any, fault: str, found: str, opened: list[World]
) -> None:
    """Its own steps count from its reset; those of the world from the world's."""
    world = make(GymSpec(ENV, 3, vectorization, {"fault": fault}))
    opened.append(world)
    seed = next(s for s in itertools.count() if ends_after_one(s))
    world.reset(seed)
    world.step(np.zeros(3, int))
    with pytest.raises(TaskError, match=f"{ENV}, {found}"):
        world.step(np.array([0, TROUBLE, 0]))


def ends_after_one(seed: int) -> bool:
    """Whether the second of three environments has a first episode of one step."""
    env = Telltale()
    env.reset(seed=int(np.random.SeedSequence(seed).generate_state(3)[1]))
    return env.end == 1


class Wrong(VectorWrapper[Any, Any, Any, Any, Any]):
    """A native vector whose answers are spoilt."""

    def __init__(self, vector: VectorEnv[Any, Any, Any], spoil: Any) -> None:
        super().__init__(vector)
        self.spoil = spoil

    def step(self, actions: Any) -> Any:
        return self.spoil(*super().step(actions))


@pytest.mark.parametrize(
    ("mode", "spoil", "found"),
    [
        (0, lambda o, r, t, u, i: (o[:, :4], r, t, u, i), r"step 1: found observations of shape \(3, 4\)"),
        (0, lambda o, r, t, u, i: (o[:2], r, t, u, i), r"step 1: found observations of shape \(2, 5\)"),
        (0, lambda o, r, t, u, i: (o, r[:, None], t, u, i), r"step 1: .*shapes \[\(3, 1\), \(3,\), \(3,\)\]"),
        (0, lambda o, r, t, u, i: (None, r, t, u, i), "step 1: found"),
        (0, lambda o, r, t, u, i: 1 / 0, "step 1: found ZeroDivisionError"),
        (
            0,
            lambda o, r, t, u, i: (o, r * [1, 1, np.inf], t, u, i),
            r"environment 2, step 1: found the reward \[inf\], which is not finite",
        ),
        (
            0,
            lambda o, r, t, u, i: (o, r * 0 - [1, 1e39, 1], t, u, i),
            r"environment 1, step 1: found the reward -1e\+39, but rewards are float32: at most 3.4e\+38",
        ),
        (1, lambda o, r, t, u, i: (o, r, t | True, u, {}), "step 1: found ended episodes, but no final_obs"),
        (
            1,
            lambda o, r, t, u, i: (o, r, t | True, u, {"final_obs": np.where([[0], [1], [0]], np.nan, o)}),
            "environment 1, step 1: found the final observation",
        ),
    ],
)
def test_a_broken_native_vector_is_named(mode: int, spoil: Any, found: str) -> None:
    world = World(Wrong(telltale.native(3, AutoresetMode[MODES[mode].upper()]), spoil), "mine")
    world.reset(0)
    with pytest.raises(TaskError, match=f"mine, {found}"):
        world.step(np.zeros(3, int))


@pytest.mark.parametrize("own", [5, "x", None, [True, True]])
def test_an_info_that_does_not_say_whose_turn_it_is_is_named(own: Any) -> None:
    world = World(Wrong(telltale.native(2), lambda o, r, t, u, i: (o, r, t, u, {"own": [own, own]})), "mine")
    world.reset(0)
    with pytest.raises(TaskError, match=r"mine, step 1: found the info own=.* Make it True or False"):
        world.step(np.zeros(2, int))


def answering(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> World:
    """Two of the environments, which answer a step with these in the place of their own."""
    step = Telltale.step

    def odd(self: Telltale, action: Any) -> Any:
        names = ("observation", "reward", "terminated", "truncated", "info")
        return tuple((dict(zip(names, step(self, action), strict=True)) | answers).values())

    monkeypatch.setattr(Telltale, "step", odd)
    world = make(GymSpec(ENV, 2, "sync"))
    world.reset(0)
    return world


@pytest.mark.parametrize(
    ("reward", "wanted"),
    [
        (np.array([0.5]), 0.5),
        (np.array([[2]]), 2.0),
        (np.float16(1.5), 1.5),
        (torch.tensor([3.5]), 3.5),
        (torch.tensor(3), 3.0),
        (Fraction(1, 4), 0.25),
        (True, 1.0),
        (-MAX_REWARD, -MAX_REWARD),
    ],
)
def test_a_reward_is_a_number_of_any_library(
    reward: Any, wanted: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = answering(monkeypatch, reward=reward)
    assert world.step(np.zeros(2, int)).rewards.tolist() == [wanted, wanted]


@pytest.mark.parametrize(
    ("answers", "found"),
    [
        ({"reward": "3"}, "the reward '3', which is no finite number"),
        ({"reward": np.ones(2)}, r"the reward array\(\[1., 1.\]\), which is no finite number"),
        ({"reward": [1.0]}, r"the reward \[1.0\], which is no finite number"),
        ({"reward": 1e39}, r"the reward 1e\+39, but rewards are float32: at most 3.4e\+38 either way"),
        ({"reward": -(10**39)}, r"the reward -1e\+39, but rewards are float32"),
        ({"observation": ["a"] * 5}, "an observation of dtype <U1, which are no real numbers"),
        ({"observation": [None] * 5}, "an observation of dtype object"),
        ({"observation": np.zeros(5, complex)}, "an observation of dtype complex128"),
        ({"info": {"own": None}}, "the info own=None, .*: make it True or False, or give it another name"),
        ({"info": {"own": np.ones(2, bool)}}, r"the info own=array\(\[ True, True\]\)"),
        ({"info": {"own": 2}}, "the info own=2,"),
        ({"terminated": None}, "the terminated=None: make it True or False"),
        ({"truncated": "False"}, "the truncated='False': make it True or False"),
        ({"truncated": 0.5}, "the truncated=0.5: make it True or False"),
    ],
)
def test_an_answer_that_is_none_is_named(answers: Any, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    world = answering(monkeypatch, **answers)
    with pytest.raises(
        TaskError, match=f"{ENV}, environment 0, step 1 of its episode: found {found}.* Repair"
    ):
        world.step(np.zeros(2, int))


class Turning(Telltale):
    """Says whose turn it is with what it is given: at a reset, in a step, and by which of the copies."""

    def __init__(self, own: Any, at: tuple[str, ...] = ("reset", "step"), who: int = -1) -> None:
        super().__init__()
        self.own, self.at = own, at
        Turning.made += 1
        self.says = who in (-1, Turning.made % 2)

    made = 0

    def reset(self, **given: Any) -> tuple[Any, dict[str, Any]]:
        return super().reset(**given)[0], self.info("reset")

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return (*super().step(action)[:4], self.info("step"))

    def info(self, moment: str) -> dict[str, Any]:
        return {"own": self.own} if self.says and moment in self.at else {}


@pytest.fixture
def turning() -> Iterator[str]:
    gymnasium.register("Turning-v0", entry_point=Turning)
    yield "Turning-v0"
    del gymnasium.registry["Turning-v0"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("true", [True, np.True_, 1, np.ones(1, bool), torch.tensor([True]), torch.tensor(1)])
def test_a_turn_is_a_flag_of_any_library(true: Any, mode: Any, turning: str) -> None:
    for own in (true, true * 0):
        world = make(GymSpec(turning, 2, "sync", {"own": own}, mode))
        world.reset(0)
        assert world.takes_turns and world.acts.dtype == np.bool_ and (world.acts == bool(own)).all()
        for _ in range(20):
            step = world.step(np.zeros(2, int))
            # With next-step autoreset nobody reads the action after an end, whoever claims it.
            ended = (step.terminated | step.truncated) & (mode == "next_step")
            assert world.acts.dtype == np.bool_ and (world.acts == (bool(own) & ~ended)).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("kwargs", "moment", "found"),
    [
        ({"at": ("reset",)}, "step 1", "missing"),
        ({"at": ("step",)}, "step 1", "here only"),
        ({"who": 0}, r"reset\(\)", "missing"),
    ],
)
def test_a_turn_that_is_not_always_said_is_named(
    kwargs: Any, moment: str, found: str, mode: Any, turning: str
) -> None:
    world = make(GymSpec(turning, 2, "sync", {"own": True, **kwargs}, mode))
    with pytest.raises(
        TaskError, match=f"Turning-v0, {moment}: found the info own, .* {found}. Let every reset"
    ):
        world.reset(0), world.step(np.zeros(2, int))


@pytest.mark.parametrize("error", [SystemExit(3), GeneratorExit()])
def test_an_environment_that_ends_the_program_is_named(
    error: BaseException, opened: list[World], monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(self: Telltale, action: Any) -> Any:
        raise error

    monkeypatch.setattr(Telltale, "step", step)
    world = make(GymSpec(ENV, 2, "sync"))
    opened.append(world)
    world.reset(0)
    with pytest.raises(TaskError, match=f"environment 0, step 1 .*found {type(error).__name__}"):
        world.step(np.zeros(2, int))
    native = World(Wrong(telltale.native(1), lambda *answer: step(*answer[:2])), "mine")
    native.reset(0)
    with pytest.raises(TaskError, match=f"mine, step 1: found {type(error).__name__}"):
        native.step(np.zeros(1, int))


def test_a_diverged_policy_is_told_from_a_broken_environment() -> None:
    world = make(GymSpec("Pendulum-v1", 2))
    world.reset(0)
    with pytest.raises(TaskError, match=r"environment 1: found the action \[nan\].*learning rate"):
        world.step(np.array([[0.0], [np.nan]]))
    with pytest.raises(TaskError, match=r"shape \(2, 1\) were asked for, but found \(2,\)"):
        world.step(np.zeros(2))


def test_an_action_that_tables_do_not_have_is_refused_by_them() -> None:
    world = World(of_tables("own"), "tables")
    world.reset(0)
    with pytest.raises(TaskError, match=r"found 2 in place 1. Use integers from 0 to 1"):
        world.step(np.array([0, 2]))


def test_nothing_can_be_asked_before_the_first_reset() -> None:
    world = make(GymSpec("Acrobot-v1", 2))
    for ask in (lambda: world.step(np.zeros(2, int)), world.snapshot):
        with pytest.raises(TaskError, match=r"Call reset\(\) first"):
            ask()


def processes(world: World) -> Any:
    """The worker processes of an async world."""
    return vars(world)["_vector"].processes


def test_a_dead_worker_is_named_and_leaves_nothing_behind(opened: list[World]) -> None:
    world = make(GymSpec(ENV, 3, "async", {"fault": "die"}))
    opened.append(world)
    world.reset(0)
    workers = processes(world)
    with pytest.raises(TaskError, match=r"worker process of environment 1 dead with exit code -9"):
        world.step(np.array([0, TROUBLE, 0]))
    assert not any(worker.is_alive() for worker in workers)
    with pytest.raises(TaskError, match="ClosedEnvironmentError"):
        world.step(np.zeros(3, int))


def test_a_worker_that_died_in_silence_does_not_hold_up_the_end() -> None:
    world = make(GymSpec(ENV, 2, "async"))
    world.reset(0)
    workers = processes(world)
    workers[0].kill()
    workers[0].join()
    world.close()
    assert not any(worker.is_alive() for worker in workers)


def test_a_vector_that_fails_to_close_is_heard() -> None:
    class Stuck(VectorWrapper[Any, Any, Any, Any, Any]):
        def close(self, **_: Any) -> None:
            raise OSError("the window is gone")

    world = World(Stuck(telltale.native(1)), "stuck")
    with pytest.raises(TaskError, match=r"stuck, close\(\): found OSError: the window is gone"):
        world.close()
    with pytest.raises(ValueError, match="the run broke"), closing(world):
        raise ValueError("the run broke")


class Chatty(Telltale):
    """Says in its infos what no vector can stack."""

    def reset(self, **given: Any) -> tuple[Any, dict[str, Any]]:
        return super().reset(**given)[0], self.info()

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return (*super().step(action)[:4], self.info())

    def info(self) -> dict[str, Any]:
        odd = [None, "lost", 2**70, {"deep": [1]}, self]
        return {"path": np.arange(self.mark % 5), "note": odd[self.mark % len(odd)], 7: "seven"}


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("mode", ["disabled", "next_step", "same_step"])
def test_infos_that_do_not_stack_are_nobodys_business(
    vectorization: Any, mode: Any, opened: list[World], monkeypatch: pytest.MonkeyPatch
) -> None:
    gymnasium.register("Chatty-v0", entry_point=Chatty)
    try:
        chatty, plain = (
            make(GymSpec(env, 3, vectorization=vectorization, autoreset=mode)) for env in ("Chatty-v0", ENV)
        )
        opened += [chatty, plain]
        assert np.array_equal(chatty.reset(5), plain.reset(5))
        for _ in range(12):
            said, told = chatty.step(np.array([0, 1, 0])), plain.step(np.array([0, 1, 0]))
            assert all(np.array_equal(a, b) for a, b in zip(said, told, strict=True))
    finally:
        del gymnasium.registry["Chatty-v0"]


def test_an_info_that_is_none_is_named(opened: list[World], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Telltale, "reset", lambda self, **_: (np.zeros(5), None))
    world = make(GymSpec(ENV, vectorization="sync"))
    opened.append(world)
    with pytest.raises(TaskError, match=r"environment 0, reset\(\): found an info of the type NoneType"):
        world.reset(0)


def test_a_recorder_ignores_interrupts_when_told() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        Recorder(Telltale(), ENV, 0).ignore_interrupts()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_worker_leaves_the_interrupt_to_the_main_process(opened: list[World]) -> None:
    world = make(GymSpec(ENV, 2, "async"))
    opened.append(world)
    world.reset(0)
    for worker in processes(world):
        os.kill(worker.pid, signal.SIGINT)
    assert isinstance(world.step(np.zeros(2, int)), Step)
