"""A3C's processes: one is A2C, several share the work, and none dies unnoticed."""

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inline import Inline
from safetensors.torch import load_file
from torch import Tensor

from gradhat.algorithms import a2c, a3c
from gradhat.errors import ConfigError, RunError, TaskError
from gradhat.rollouts.normalize import PooledMoments, RunningMoments, normalise, pooled
from gradhat.training import checkpoint
from gradhat.training.control import algorithms, hogwild, settings, worlds
from gradhat.training.control.agent import Agent
from gradhat.training.control.config import ControlConfig, to_json
from gradhat.training.control.hogwild import A3C, Hogwild
from gradhat.training.control.on_policy import Network
from gradhat.training.control.session import prepare
from gradhat.training.loop import train
from gradhat.training.run_folder import RunFolder

PAGE = a2c.Settings(entropy_coef=0.01)
NORMALISED = Network(hidden=(8,), normalize_observations=True, normalize_rewards=True)


def config(num_workers: int, network: Network = NORMALISED, **changes: Any) -> ControlConfig[A3C]:
    learning = A3C(num_workers=num_workers, num_steps=8, network=network, settings=PAGE)
    return replace(ControlConfig(learning, num_envs=4, num_frames=2_000), **changes)


def made(of: ControlConfig[A3C]) -> Hogwild:
    agent = hogwild.make(of, worlds.make(of, of.num_envs))
    assert isinstance(agent, Hogwild)
    return agent


def a2c_of(of: ControlConfig[A3C]) -> Agent:
    """A2C with the same settings, seed and environments."""
    learning = settings.A2C(of.learning.num_steps, of.learning.network, of.learning.settings)
    same = ControlConfig(
        learning, of.env, of.env_args, of.num_envs, of.vectorization, of.num_frames, seed=of.seed
    )
    return algorithms.make_a2c(same, worlds.make(same, same.num_envs))


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    yield
    assert not multiprocessing.active_children()


@contextmanager
def closing(*agents: Agent) -> Iterator[None]:
    try:
        yield
    finally:
        for agent in agents:
            agent.close()


def meanwhile(agent: Hogwild, do: Callable[[], None]) -> threading.Thread:
    """Do something in the middle of a round that begins after this."""

    def wait() -> None:
        before = int(agent.shared.versions.min())
        while int(agent.shared.versions.min()) < before + 3:
            time.sleep(0.005)
        do()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def same(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Compare all but the pickled environments, which have several spellings."""
    assert state.keys() == other.keys()
    return all(name.endswith("/world") or torch.equal(state[name], other[name]) for name in state)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_one_worker_is_a2c_to_the_bit(env: str) -> None:
    of = config(1, env=env, seed=3)
    alone, hog = a2c_of(of), made(of)
    with closing(alone, hog):
        first = hog.state()
        for num_frames in (500, 2_000):
            wanted, found = alone.advance(num_frames), hog.advance(num_frames)
            assert found == wanted | {"staleness": 0.0}
            assert hog.drain() == alone.drain() and hog.num_frames == alone.num_frames
        state, shared = alone.state(), hog.state()
        learned = [name for name in state if name.startswith(("weights/", "optimizer/"))]
        assert len(learned) > 20
        for name in learned:
            assert torch.equal(shared[name], state[name]), name
        assert not torch.equal(shared["weights/actor.weights.0"], first["weights/actor.weights.0"])
        seen = torch.randn(50, state["weights/actor.weights.0"].shape[1])
        assert torch.equal(hog.greedy()(seen), alone.greedy()(seen))


def test_one_worker_goes_on_to_the_bit(tmp_path: Path) -> None:
    of = config(1)
    straight, again = made(of), made(of)
    with closing(straight, again):
        straight.advance(1_000)
        checkpoint.save_tensors(straight.state(), tmp_path / "state")
        saved_at = straight.num_frames
        straight.drain()
        wanted = straight.advance(2_000)
        again.advance(300)  # Whatever it did before is gone.
        again.restore(load_file(tmp_path / "state"))
        again.drain()
        seen = torch.randn(50, 4)
        assert again.num_frames == saved_at and not again.workers
        assert again.greedy()(seen).shape == (50,)
        assert again.advance(2_000) == wanted
        assert again.drain() == straight.drain()
        assert same(again.state(), straight.state())


def test_several_workers_learn_together_and_go_on() -> None:
    of = config(2, Network(hidden=(8,), lr=0.01), env="zoo:bandit", num_envs=8, num_frames=12_000)
    agent, again = made(of), made(of)
    with closing(agent, again):
        agent.advance(400)
        early = [episode.ret for episode in agent.drain()]
        metrics = agent.advance(8_000)
        assert 0 < metrics["staleness"] < 100
        assert 0.1 * of.learning.network.lr < metrics["learning_rate"] < 0.6 * of.learning.network.lr
        # Equal shares, each cut where the batch that fills it ends.
        assert 8_000 <= agent.num_frames < 8_000 + 2 * 4 * 8
        assert agent.shared.versions.min() > 100
        late = [episode.ret for episode in agent.drain()][-200:]
        assert np.mean(early) < 0.7 and np.mean(late) > 0.9
        again.restore(agent.state())
        assert again.num_frames == agent.num_frames
        assert torch.equal(again.shared.numbers, agent.shared.numbers)
        again.advance(12_000)
        more = [episode.ret for episode in again.drain()]
        assert np.mean(more) > 0.9 and agent.num_frames < again.num_frames < 12_100
        assert again.shared.versions.min() > agent.shared.versions.max()
        assert again.greedy()(torch.eye(2)[:1]).tolist() == [0]


def test_workers_draw_their_own_numbers() -> None:
    agent = made(config(2))
    with closing(agent):
        agent.advance(100)
        state = agent.state()
        assert state["seen/observations"][:, 0, 0].min() >= 50 <= state["seen/returns"][:, 0].min()
    worlds_seen = [state[f"worker{i}/collector/observations"] for i in range(2)]
    assert not torch.equal(*worlds_seen)
    assert not torch.equal(state["worker0/generator"], state["worker1/generator"])


def test_the_greedy_policy_is_normalised_by_what_all_have_seen() -> None:
    draw = np.random.default_rng(0)
    rows = [draw.normal(loc, 1 + loc, (n, 3)) for loc, n in ((0.0, 5), (4.0, 50), (-1.0, 11))]
    parts = [RunningMoments((3,)) for _ in rows]
    everything = RunningMoments((3,))
    for part, found in zip(parts, rows, strict=True):
        part.update(found)
    everything.update(np.concatenate(rows))
    places = torch.zeros(3, 3, 3, dtype=torch.float64)
    for number, part in enumerate(parts):
        PooledMoments(places, number, part)
    total = pooled(places)
    assert total.count == everything.count == 66
    np.testing.assert_allclose(total.mean, everything.mean, rtol=1e-12)
    np.testing.assert_allclose(total.variance, everything.variance, rtol=1e-12)
    assert parts[0].count == 5 and pooled(torch.zeros(2, 3, 3)).count == 0


def test_what_workers_see_is_added_up_for_all_of_them() -> None:
    """Three that take turns, masked rows left out: after a look each has seen everything, and between two
    looks its own rows beside what it had looked at.
    """
    draw = np.random.default_rng(0)
    places = torch.zeros(3, 3, 2, dtype=torch.float64)
    workers = [PooledMoments(places, number, RunningMoments((2,))) for number in range(3)]
    everything, known = RunningMoments((2,)), [RunningMoments((2,)) for _ in range(3)]
    for turn in range(40):
        number = int(draw.integers(3))
        rows, own = draw.normal(number, 1 + number, (4, 2)), draw.random(4) < 0.8
        if turn % 3 == 0:
            workers[number].look()
            known[number].restore(everything.state())
        workers[number].update(rows, own)
        everything.update(rows, own)
        known[number].update(rows, own)
        for mine, wanted in ((workers[number], known[number]), (pooled(places), everything)):
            assert mine.count == wanted.count
            np.testing.assert_allclose(mine.mean, wanted.mean, rtol=1e-12)
            np.testing.assert_allclose(mine.variance, wanted.variance, rtol=1e-12, atol=1e-15)
    again = PooledMoments(places, 1, RunningMoments((2,)))
    assert again.count == everything.count, "it goes on from its place"
    again.update(np.ones((5, 2)))
    assert pooled(places).count == everything.count + 5 and isinstance(again.frozen(), RunningMoments)


def test_workers_divide_rewards_by_one_number_and_read_through_one_map(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each in a world of its own luck, and what is measured is normalised as what was trained."""
    monkeypatch.setattr(hogwild, "Process", Inline)
    agent = made(config(2, env="Pendulum-v1"))
    agent.advance(400)
    first, second = (worker.agent.collector for worker in agent.workers)  # pyright: ignore
    seen: list[Any] = []
    for collector in (first, second):
        moments, scale = collector.moments, collector.reward_scale
        assert isinstance(moments, PooledMoments) and isinstance(scale.moments, PooledMoments)
        moments.look()
        scale.moments.look()
        seen.append((moments.state(), scale.moments.state()))
    for mine, theirs in zip(*seen, strict=True):
        assert mine["count"] == theirs["count"] >= 400
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    # The second lived its share behind the first, so it ended with what both had seen but for nothing.
    state = agent.state()
    torch.testing.assert_close(state["seen/returns"][:, 0].sum(), seen[0][1]["count"].double())
    observations = torch.randn(50, 3)
    policy = agent.greedy()
    normal = torch.from_numpy(normalise(observations.numpy(), first.moments))
    assert torch.equal(policy(observations), agent.policy.greedy(normal))
    again = made(config(2, env="Pendulum-v1"))
    again.restore(state)
    assert torch.equal(again.greedy()(observations), policy(observations))
    again.advance(600)
    assert again.seen.returns[:, 0].sum() >= 600
    agent.close()
    again.close()


def test_a_batch_begins_with_a_look_at_what_others_have_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hogwild, "Process", Inline)
    agent = made(config(2, env="Pendulum-v1"))
    agent.advance(64)
    second = agent.workers[1].agent  # pyright: ignore
    before = second.collector.moments.count
    agent.seen.observations[0, 0] += 1000  # The first has lived on.
    second.gather(second)
    assert second.collector.moments.count >= before + 1000
    agent.close()


def test_a_killed_worker_is_named_and_the_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = algorithms.Row(A3C(), hogwild.make, "both", True, "the steps of A2C, by several workers at once")
    monkeypatch.setitem(algorithms.ALGORITHMS, "a3c", row)
    of = config(2, num_frames=1_600, log_every=400, checkpoint_every=400, eval_every=0, eval_episodes=4)
    session = prepare(of)
    agent, advance = session.agent, session.agent.advance
    assert isinstance(agent, Hogwild)
    killed: list[int] = []

    def third(num_frames: int) -> dict[str, float]:
        if session.step < 3:
            return advance(num_frames)
        killed.append(agent.workers[1].pid)
        meanwhile(agent, lambda: os.kill(killed[0], signal.SIGKILL))
        return advance(10**8)

    monkeypatch.setattr(agent, "advance", third)
    with RunFolder.create(tmp_path / "run", to_json(of)) as run:
        with pytest.raises(RunError) as error:
            train(run, session)
        assert f"worker 1, process {killed[0]}, dead with exit code -9 (SIGKILL)" in str(error.value)
        assert not agent.workers
        session.close()
        found, damage = checkpoint.newest(run.checkpoints)
        assert found is not None and found.step == 2 and not damage
        second = prepare(of)
        assert train(run, second) == 0
        second.close()
        assert [line["step"] for line in run.read_metrics()] == [0, 1, 2, 3, 4]


def test_what_an_environment_raises_is_raised_here() -> None:
    of = config(2, Network(hidden=(4,)), env="faulty:Faulty-v0", env_args=("last=40",))
    alone, agent = a2c_of(of), made(of)
    with closing(alone, agent):
        with pytest.raises(TaskError, match="the wheel came off") as wanted:
            alone.advance(1_000)
        agent.advance(64)
        with pytest.raises(TaskError) as found:
            agent.advance(1_000)
        assert str(found.value) == str(wanted.value)
        assert not agent.workers


def test_a_worker_that_cannot_begin_says_why() -> None:
    of = config(2)
    agent = made(of)
    agent.config = replace(of, env="CartPole-v9")
    with closing(agent), pytest.raises(ConfigError, match="CartPole-v9"):
        agent.advance(100)


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C raises, also where it is ignored at the start: under nohup, and in what a script runs with &."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heard")
def test_ctrl_c_is_for_the_main_process() -> None:
    agent = made(config(2))
    with closing(agent):
        agent.advance(64)
        pids = [worker.pid for worker in agent.workers]
        thread = meanwhile(agent, lambda: [os.kill(pid, signal.SIGINT) for pid in pids])
        agent.advance(4_000)
        thread.join()
        assert agent.num_frames >= 4_000 and [worker.pid for worker in agent.workers] == pids
        meanwhile(agent, lambda: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            agent.advance(10**8)
        assert not agent.workers


def spoken(of: ControlConfig[A3C], shared: a3c.Shared, seen: hogwild.Seen, *messages: object) -> list[Any]:
    """What worker 1 answers to messages, in this process, where its lines can be seen."""
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    main, theirs = Pipe()
    for message in messages:
        main.send_bytes(pickle.dumps(message))
    hogwild.work(of, 1, shared, seen, theirs)
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, handler)
    answers: list[Any] = []
    with main, suppress(EOFError, ConnectionResetError):
        while True:
            answers.append(pickle.loads(main.recv_bytes()))
    return answers


def test_a_worker_answers_until_it_is_told_to_end() -> None:
    of = config(2)
    agent = made(of)
    shared, seen = agent.shared, agent.seen
    first, state = spoken(of, shared, seen, {}, 64, "state", None)
    assert 64 <= first.num_frames < 64 + 16 and state.keys() >= {"generator", "collector/world"}
    before = shared.versions.tolist()
    (second,) = spoken(of, shared, seen, state, first.num_frames + 1, None)
    assert first.num_frames < second.num_frames <= first.num_frames + 16
    assert before[0] == 0 and shared.versions.tolist() == [0, before[1] + 1]
    (error,) = spoken(replace(of, env="CartPole-v9"), shared, seen, {})
    assert isinstance(error, ConfigError)


def test_a_worker_ends_with_the_main_process() -> None:
    """Whose end of the pipe is closed, not only silent."""
    of = config(2)
    main, theirs = Pipe()
    main.close()
    handler = signal.getsignal(signal.SIGINT)
    agent = made(of)
    hogwild.work(of, 0, agent.shared, agent.seen, theirs)
    signal.signal(signal.SIGINT, handler)
    assert theirs.closed


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"num_envs": 5}, "num_workers=2 of a3c: found num_envs=5"),
        ({"vectorization": "async"}, "its workers are processes already"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(changes: dict[str, Any], wrong: str) -> None:
    of = config(2, **changes)
    world = worlds.make(replace(of, vectorization="sync"), of.num_envs)
    with pytest.raises(ConfigError, match=wrong):
        hogwild.make(of, world)
    world.close()


def test_no_worker_is_refused() -> None:
    of = config(0)
    world = worlds.make(of, of.num_envs)
    with pytest.raises(ConfigError, match="num_workers=0"):
        hogwild.make(of, world)
    world.close()


def test_a_checkpoint_of_another_number_of_workers_is_refused() -> None:
    one, two = made(config(1)), made(config(2))
    with closing(one, two), pytest.raises(RunError, match="with 2 workers: found a checkpoint of 1"):
        two.restore(one.state())
