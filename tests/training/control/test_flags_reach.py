"""Every flag reaches: with another value of any setting the run is another run, or the setting is listed here
as one that changes no result, which is tested too. A new setting without an entry fails.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from inline import Inline
from torch import Tensor

from gradhat.algorithms import a2c, ddpg, dqn, ppo, reinforce, sac, tabular_control, td3, trpo
from gradhat.rollouts.normalize import RewardScale
from gradhat.training.control import hogwild, settings, worlds
from gradhat.training.control.algorithms import ALGORITHMS
from gradhat.training.control.config import CHANGEABLE, ControlConfig, to_json
from gradhat.training.control.hogwild import A3C
from gradhat.training.control.off_policy import Memory
from gradhat.training.control.on_policy import Network, OnPolicyAgent
from gradhat.training.control.session import prepare
from gradhat.training.loop import train
from gradhat.training.run_folder import RunFolder

Path = tuple[str, ...]
Run = tuple[list[dict[str, float]], dict[str, Tensor]]
"""Lines of metrics, and what was learned."""

FRAMES = 72
CLOCK = ("step_time", "frames_per_second", "time/")
NETWORK = Network(hidden=(4,), lr=0.05, lr_end=0.001, max_grad_norm=0.05, log_std=-0.5)
MEMORY = Memory(capacity=60, first_frames=16, num_steps=2, num_updates=1, batch_size=8, lr_end=1e-4)
CRITIC = reinforce.Settings(gamma=0.9, baseline="critic")
TABLE = tabular_control.Settings(gamma=0.9, epsilon_frames=60)
LEARNING: dict[str, Any] = {
    "reinforce": settings.Reinforce(network=NETWORK, settings=reinforce.Settings(gamma=0.9)),
    "a2c": settings.A2C(6, NETWORK, a2c.Settings(entropy_coef=0.1)),
    "a3c": A3C(1, 6, NETWORK, a2c.Settings(entropy_coef=0.1)),
    # The bounds of the clip, δ of the trust region and the Huber loss's are where they hold something.
    "ppo": settings.PPO(6, NETWORK, ppo.Settings(clip_low=0.02, clip_high=0.02, num_minibatches=2)),
    "trpo": settings.TRPO(6, NETWORK, trpo.Settings(max_kl=2.0, cg_iterations=3, value_epochs=2)),
    "dqn": settings.DQN(
        MEMORY,
        # A rate so large that the lagging network picks other actions: that is what `double` is about.
        dqn.Settings(0.05, (4,), n_step=2, alpha=0.6, delta=0.1, target_every=3, epsilon_frames=60),
    ),
    "ddpg": settings.DDPG(MEMORY, ddpg.Settings(hidden=(4,))),
    "td3": settings.TD3(MEMORY, td3.Settings(hidden=(4,))),
    "sac": settings.SAC(MEMORY, sac.Settings(hidden=(4,))),
    "monte_carlo": settings.MonteCarlo(3, TABLE),
    "sarsa": settings.Sarsa(3, TABLE),
    "expected_sarsa": settings.ExpectedSarsa(3, TABLE),
    "q_learning": settings.QLearning(3, TABLE),
}
TABLES = ("monte_carlo", "sarsa", "expected_sarsa", "q_learning")
WITH: dict[tuple[str, str], dict[Path, Any]] = {
    ("reinforce", "value_epochs"): {("learning", "settings"): CRITIC},
    ("reinforce", "value_minibatches"): {("learning", "settings"): CRITIC},
    ("dqn", "low"): {("learning", "settings", "num_atoms"): 5},
    ("dqn", "high"): {("learning", "settings", "num_atoms"): 5},
    **{
        (name, "env_args"): {("env",): "CliffWalking-v1", ("env_args",): ("max_episode_steps=5",)}
        for name in TABLES
    },
}
"""What a setting needs beside it to mean anything."""
OTHER: dict[str, Any] = {
    "capacity": 40,
    "epsilon_frames": 20,
    "target_kl": 1e-9,
    "backtrack_steps": 1,
    "cg_iterations": 1,
    "num_frames": 120,
    "log_every": 24,
    "eval_max_steps": 3,
    "eval_envs": 1,
    "eval_every": 0,
    "checkpoint_every": 24,
}
"""Other values where one step up or the half says nothing."""


def base(name: str) -> ControlConfig[Any]:
    """A short run that learns in two dozen updates or so."""
    config = ControlConfig(
        LEARNING[name],
        env="zoo:random" if name in TABLES else "pushing:Pushing-v0",
        # Log σ is the only number that continuous actions alone have.
        env_args=() if name in TABLES or ALGORITHMS[name].serves == "discrete" else ("continuous=True",),
        num_envs=2,
        num_frames=FRAMES,
        log_every=FRAMES // 2,
        eval_every=FRAMES // 2,
        eval_episodes=2,
        eval_max_steps=15,
        seed=3,
    )
    return config


def leaves(part: Any, path: Path = ()) -> Iterator[Path]:
    """The paths to all settings."""
    for field in fields(part):
        value = getattr(part, field.name)
        if is_dataclass(value):
            yield from leaves(value, (*path, field.name))
        else:
            yield *path, field.name


def at(part: Any, path: Path) -> Any:
    return at(getattr(part, path[0]), path[1:]) if path else part


def put(part: Any, path: Path, value: Any) -> Any:
    first, *rest = path
    return replace(part, **{first: put(getattr(part, first), tuple(rest), value) if rest else value})


def other(config: ControlConfig[Any], path: Path) -> Any:
    """Another value of a setting. A kind of setting that is not known here needs an entry in `OTHER`."""
    value, owner = at(config, path), at(config, path[:-1])
    if path[-1] in OTHER:
        return OTHER[path[-1]]
    kind = get_type_hints(type(owner))[path[-1]]
    if get_origin(kind) is Literal:
        return next(choice for choice in get_args(kind) if choice != value)
    match value:
        case bool():
            return not value
        case int():
            return value + 1
        case float():
            return value / 2 if value else 0.3
        case tuple() if value and isinstance(value[0], int):
            return tuple(width + 1 for width in value)
        case _:
            raise NotImplementedError(f"{path}: say in OTHER which other value to try")


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hogwild, "Process", Inline)


def learned(config: ControlConfig[Any]) -> dict[str, Tensor]:
    """Return what the agent of a run has learned at its end."""
    agent = ALGORITHMS[config.algorithm].make(config, worlds.make(config, config.num_envs))
    try:
        agent.advance(config.num_frames // 2)
        agent.advance(config.num_frames)
        return weights(agent.state())
    finally:
        agent.close()


def weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    kept = ("weights/", "algorithm/")
    return {name: t.clone() for name, t in state.items() if name.startswith(kept) or name == "q"}


def ran(config: ControlConfig[Any]) -> Run:
    """Run it to its end."""
    session = prepare(config)
    try:
        lines = [session.before(None)]  # pyright: ignore
        while session.step < session.num_steps:
            lines.append(session.advance(None, None))  # pyright: ignore
        state = session.agent.state()
    finally:
        session.close()
    return [{k: v for k, v in line.items() if not k.startswith(CLOCK)} for line in lines], weights(state)


known = cache(learned)
measured = cache(ran)
"""The same, once for each config."""


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def with_needs(name: str, path: Path) -> ControlConfig[Any]:
    config = base(name)
    for place, value in WITH.get((name, path[-1]), {}).items():
        config = put(config, place, value)
    return config


def words(value: Any) -> str:
    """The name of a case."""
    return value if isinstance(value, str) else value[-1]


OF_LEARNING = [
    (name, path)
    for name in ALGORITHMS
    for path in leaves(ControlConfig(LEARNING[name]))
    if path[0] == "learning"
]
LEARNED = ("env", "env_args", "num_envs", "num_frames", "seed")
"""What all algorithms share and what changes what is learned."""
MEASURED = ("log_every", "eval_policy", "eval_every", "eval_episodes", "eval_envs", "eval_max_steps")
"""What changes the lines of a run, and nothing that is learned."""
ONE_OF_A_KIND = ("a2c", "a3c", "dqn", "q_learning")
"""One algorithm of every kind of agent: what the trainer does with the rest is the same."""
EVERY_ALGORITHM = [
    name if name in ONE_OF_A_KIND else pytest.param(name, marks=pytest.mark.slow) for name in ALGORITHMS
]


def test_every_shared_setting_has_its_place() -> None:
    shared = {field.name for field in fields(ControlConfig)} - {"learning"}
    assert shared == {*LEARNED, *MEASURED, *CHANGEABLE, "vectorization"}


@pytest.mark.parametrize(("name", "path"), OF_LEARNING, ids=words)
def test_a_setting_of_an_algorithm_changes_what_is_learned(name: str, path: Path) -> None:
    config = with_needs(name, path)
    assert not same(learned(put(config, path, other(config, path))), known(config))


@pytest.mark.parametrize("setting", LEARNED)
@pytest.mark.parametrize("name", EVERY_ALGORITHM)
def test_a_shared_setting_changes_what_is_learned(name: str, setting: str) -> None:
    config = with_needs(name, (setting,))
    match setting:
        case "env":
            value: Any = (
                "zoo:chain" if name in TABLES else "Pendulum-v1" if config.env_args else "CartPole-v1"
            )
            config = replace(config, env_args=())
        case "env_args":
            strength = "is_slippery=True" if name in TABLES else "strength=2.0"
            value = (*config.env_args, strength)
        case _:
            value = other(config, (setting,))
    assert not same(learned(replace(config, **{setting: value})), known(with_needs(name, (setting,))))


@pytest.mark.parametrize("setting", MEASURED)
@pytest.mark.parametrize("name", EVERY_ALGORITHM)
def test_a_setting_of_measurements_changes_the_lines_and_not_what_is_learned(name: str, setting: str) -> None:
    config = base(name)
    mine, theirs = ran(replace(config, **{setting: other(config, (setting,))})), measured(config)
    assert mine[0] != theirs[0] and same(mine[1], theirs[1])


@pytest.mark.parametrize("name", EVERY_ALGORITHM)
def test_without_a_measurement_the_rest_of_the_run_is_the_same(name: str) -> None:
    config = base(name)
    mine, theirs = ran(replace(config, eval_episodes=0)), measured(config)
    kinds = ("greedy/", "sampled/")
    assert any(key.startswith(kinds) for line in theirs[0] for key in line)
    assert mine[0] == [{k: v for k, v in line.items() if not k.startswith(kinds)} for line in theirs[0]]
    assert same(mine[1], theirs[1])


@pytest.mark.parametrize("setting", CHANGEABLE)
@pytest.mark.parametrize("name", EVERY_ALGORITHM)
def test_a_setting_of_the_machine_changes_no_number(
    name: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    config = base(name)
    mine, theirs = ran(replace(config, **{setting: other(config, (setting,))})), measured(config)
    assert mine[0] == theirs[0] and same(mine[1], theirs[1])
    # It is honoured all the same; A3C's workers, here in this process, begin with the same number.
    assert set(threads) == {2 if setting == "num_threads" else 1}


def test_checkpoints_are_written_and_kept_as_asked(tmp_path: Any) -> None:
    def left(**changes: Any) -> list[str]:
        config = replace(base("a2c"), **{"log_every": 12, "checkpoint_every": 36, **changes})
        session, path = prepare(config), tmp_path / str(len(list(tmp_path.iterdir())))
        with RunFolder.create(path, to_json(config)) as run:
            assert train(run, session) == 0
        session.close()
        return sorted(place.name for place in (path / "checkpoints").iterdir())

    assert left() == ["step_000003", "step_000006"]
    assert left(keep_checkpoints=1) == ["step_000006"]
    assert left(checkpoint_every=24, keep_checkpoints=9) == ["step_000002", "step_000004", "step_000006"]


@pytest.mark.parametrize("name", ["a2c", "a3c", "dqn"])
def test_the_way_of_stepping_matters_where_a_world_has_its_own(name: str) -> None:
    """CartPole has a vector version, with random numbers of its own. What is made one by one is the same
    world in one process and in several.
    """
    config = replace(base(name), env="CartPole-v1", env_args=())
    if name != "dqn":
        config = put(config, ("learning", "network"), replace(NETWORK, log_std=0.0))
    stepped = {way: replace(config, vectorization=way) for way in ("auto", "native", "sync")}
    assert same(known(stepped["auto"]), known(stepped["native"]))
    assert not same(known(stepped["native"]), known(stepped["sync"]))
    config = base(name)
    ways = ("auto", "sync") if name == "a3c" else ("auto", "sync", "async")
    first, *rest = (learned(replace(config, vectorization=way)) for way in ways)
    assert all(same(first, found) for found in rest)


@pytest.mark.parametrize("name", ["reinforce", "a2c", "a3c", "ppo", "trpo"])
def test_the_discount_reaches_the_scale_of_rewards_too(name: str) -> None:
    """It divides by the deviation of the discounted return: of the run's own discount."""
    config = put(base(name), ("learning", "network", "normalize_rewards"), True)
    rewards: list[Tensor] = []
    for gamma in (0.9, 0.5):
        of = put(config, ("learning", "settings", "gamma"), gamma)
        agent = ALGORITHMS[name].make(of, worlds.make(of, of.num_envs))
        lone = agent if isinstance(agent, OnPolicyAgent) else hogwild.worker(of, 0, agent.shared, agent.seen)  # pyright: ignore
        scale = RewardScale(of.num_envs, gamma)
        batch = lone.gather(lone)
        raw = 1 - 2 * batch.next_observations[..., 0].double().square()  # pyright: ignore
        wanted = [
            scale.update(r.numpy(), e.numpy(), m.numpy())
            for r, e, m in zip(raw.T, (batch.terminated | batch.truncated).T, batch.mask.T, strict=True)
        ]
        torch.testing.assert_close(batch.rewards, torch.tensor(np.array(wanted)).T, rtol=1e-5, atol=1e-6)
        rewards.append(batch.rewards)
        agent.close()
        lone.close()
    assert not torch.allclose(*rewards, rtol=1e-2)
