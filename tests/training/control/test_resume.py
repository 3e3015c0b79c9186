"""A run that was stopped goes on to the bit: every algorithm, every normaliser, every kind of memory."""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gradhat.algorithms import a2c, ddpg, dqn, ppo, reinforce, sac, tabular_control, td3, trpo
from gradhat.cli.main import main
from gradhat.envs.gym import World
from gradhat.errors import RunError, TaskError
from gradhat.training import checkpoint
from gradhat.training.control import evaluate, settings
from gradhat.training.control import session as control
from gradhat.training.control.algorithms import ALGORITHMS
from gradhat.training.control.config import ControlConfig, to_json
from gradhat.training.control.hogwild import A3C
from gradhat.training.control.off_policy import Memory
from gradhat.training.control.on_policy import Network
from gradhat.training.control.session import STATE, prepare
from gradhat.training.loop import train
from gradhat.training.run_folder import RunFolder

NETWORK = Network(hidden=(8,), normalize_observations=True, normalize_rewards=True)
MEMORY = Memory(capacity=120, first_frames=60, num_steps=2, num_updates=1, batch_size=16, lr_end=1e-5)
"""Smaller than the run: the oldest steps are overwritten."""
RAINBOW = dqn.Settings(
    hidden=(8,),
    dueling=True,
    n_step=3,
    alpha=0.6,
    num_atoms=5,
    low=0.0,
    high=20.0,
    target_every=7,
    epsilon_frames=200,
)
TABLE = tabular_control.Settings(gamma=0.9, epsilon_frames=200)


def config(learning: Any, env: str, **changes: Any) -> ControlConfig[Any]:
    """Six lines of metrics, a checkpoint after the third and the last, measurements on the way."""
    short = ControlConfig(
        learning,
        env,
        num_envs=3,
        num_frames=360,
        log_every=60,
        eval_every=120,
        eval_episodes=2,
        eval_max_steps=20,
        checkpoint_every=180,
        seed=5,
    )
    return replace(short, **changes)


LONGER = {"num_frames": 1800, "log_every": 300, "eval_every": 600, "checkpoint_every": 900}
"""Lines that hold a batch of whole episodes."""

CONFIGS = {
    "reinforce": config(settings.Reinforce(network=NETWORK), "CartPole-v1", **LONGER),
    "reinforce with a critic": config(
        settings.Reinforce(
            value_epochs=2,
            value_minibatches=2,
            network=NETWORK,
            settings=reinforce.Settings(gamma=0.9, baseline="critic"),
        ),
        "CartPole-v1",
        vectorization="sync",
        **LONGER,
    ),
    "a2c": config(settings.A2C(8, NETWORK, a2c.Settings(entropy_coef=0.01)), "CartPole-v1"),
    "a3c": config(A3C(1, 8, NETWORK, a2c.Settings()), "CartPole-v1"),
    "ppo": config(settings.PPO(8, NETWORK, ppo.Settings(num_epochs=2)), "CartPole-v1"),
    "ppo, continuous, one by one": config(
        settings.PPO(8, NETWORK, ppo.Settings(num_epochs=2)), "Pendulum-v1", vectorization="sync"
    ),
    "trpo": config(settings.TRPO(16, NETWORK, trpo.Settings(value_epochs=2)), "CartPole-v1"),
    "dqn": config(settings.DQN(MEMORY, dqn.Settings(hidden=(8,), target_every=5)), "CartPole-v1"),
    "dqn with everything": config(settings.DQN(MEMORY, RAINBOW), "CartPole-v1", vectorization="sync"),
    "ddpg": config(settings.DDPG(MEMORY, ddpg.Settings(hidden=(8,))), "Pendulum-v1"),
    "td3": config(settings.TD3(MEMORY, td3.Settings(hidden=(8,), n_step=2)), "Pendulum-v1"),
    "sac": config(settings.SAC(MEMORY, sac.Settings(hidden=(8,), n_step=2)), "Pendulum-v1"),
    "monte_carlo": config(settings.MonteCarlo(7, TABLE), "zoo:random"),
    "sarsa": config(settings.Sarsa(7, TABLE), "CliffWalking-v1"),
    "expected_sarsa": config(
        settings.ExpectedSarsa(7, TABLE), "CliffWalking-v1", env_args=("is_slippery=True",)
    ),
    "q_learning": config(settings.QLearning(7, TABLE), "zoo:chain"),
}


class Stopped(Exception):
    """The process is gone."""


def spoil_global_state(seed: int) -> None:
    """A run draws from generators of its own, so this must not matter."""
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)


def finish(of: ControlConfig[Any], run: RunFolder, *, stop_before: int = -1) -> None:
    """Train in a session of its own, as a new process would; `Stopped` before that step."""
    session = prepare(of)
    advance = session.advance

    def stopping(run: RunFolder, log: Any) -> dict[str, float]:
        if session.step + 1 == stop_before:
            # A process that is gone saves nothing.
            session.retreat = lambda: False
            raise Stopped
        return advance(run, log)

    session.advance = stopping
    try:
        with run:
            assert train(run, session) == 0
    finally:
        session.close()


def numbers(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics without what a clock said."""
    return [
        {k: v for k, v in line.items() if not k.startswith(("step_time", "frames_per_second", "time/"))}
        for line in RunFolder(run).read_metrics()
    ]


def last_state(run: Path) -> dict[str, Tensor]:
    """All that the last checkpoint holds, the environments included."""
    return load_file(max((run / "checkpoints").iterdir()) / STATE)


def last_cursor(run: Path) -> dict[str, Any]:
    """What the last checkpoint says of the returns that were seen, and of the schedule."""
    return checkpoint.read(max((run / "checkpoints").iterdir())).cursor


def assert_same(found: Path, wanted: Path) -> None:
    assert numbers(found) == numbers(wanted)
    assert last_cursor(found) == last_cursor(wanted)
    mine, theirs = last_state(found), last_state(wanted)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name


def test_every_algorithm_is_here() -> None:
    assert {of.algorithm for of in CONFIGS.values()} == set(ALGORITHMS)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_stopped_run_goes_on_to_the_bit(name: str, tmp_path: Path) -> None:
    """Stopped a line after its checkpoint: that line is dropped, and lived again."""
    of = CONFIGS[name]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    spoil_global_state(1)
    finish(of, RunFolder.create(straight, to_json(of)))
    spoil_global_state(2)
    with pytest.raises(Stopped):
        finish(of, RunFolder.create(stopped, to_json(of)), stop_before=5)
    before = numbers(stopped)
    assert [line["step"] for line in before] == [0, 1, 2, 3, 4]
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == ["step_000003"]
    first = last_state(stopped)
    spoil_global_state(3)
    finish(of, RunFolder.open(stopped))
    assert_same(stopped, straight)
    lines = numbers(stopped)
    assert lines[:5] == before and [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5, 6]
    after = last_state(stopped)
    learned = [k for k in after if "weights" in k or k == "q"]
    assert learned and any(not torch.equal(after[k], first[k]) for k in learned), "it learned on"


def test_a_damaged_checkpoint_costs_the_frames_since_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of = CONFIGS["dqn with everything"]
    straight, damaged = tmp_path / "straight", tmp_path / "damaged"
    for run in (straight, damaged):
        finish(of, RunFolder.create(run, to_json(of)))
    file = damaged / "checkpoints/step_000006" / STATE
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    (damaged / "summary.json").unlink()
    capsys.readouterr()
    finish(of, RunFolder.open(damaged))
    printed = capsys.readouterr().out
    assert "step_000006: state.safetensors is damaged" in printed and "from step 3" in printed
    assert_same(damaged, straight)


def test_an_interrupted_run_is_saved_where_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C after a line that no checkpoint is due for."""
    of = CONFIGS["ppo"]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    finish(of, RunFolder.create(straight, to_json(of)))
    session = prepare(of)
    advance = session.advance

    def interrupting(run: RunFolder, log: Any) -> dict[str, float]:
        if session.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return advance(run, log)

    monkeypatch.setattr(session, "advance", interrupting)
    with RunFolder.create(stopped, to_json(of)) as run:
        assert train(run, session) == 130
    session.close()
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == ["step_000002"]
    assert "stopped after step 2. Go on with: gradhat train --resume" in capsys.readouterr().out
    finish(of, RunFolder.open(stopped))
    assert_same(stopped, straight)


@pytest.mark.parametrize("name", ["ppo, continuous, one by one", "dqn with everything", "q_learning"])
def test_an_environment_that_raises_leaves_the_line_before_saved(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the middle of a line: weights have moved since, and the world cannot be saved any more."""
    of = replace(CONFIGS[name], checkpoint_every=10_000)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    finish(of, RunFolder.create(straight, to_json(of)))
    session, step = prepare(of), World.step

    def raising(self: World, actions: Any) -> Any:
        if self is session.world and session.step == 5 and session.agent.num_frames > 280:
            raise TaskError("the physics: found a number that is not finite")
        return step(self, actions)

    with monkeypatch.context() as patch, RunFolder.create(stopped, to_json(of)) as run:
        patch.setattr(World, "step", raising)
        with pytest.raises(TaskError, match="the physics"):
            train(run, session)
    session.close()
    assert [path.name for path in (stopped / "checkpoints").iterdir()] == ["step_000004"]
    assert "step 4 is saved. Once what is wrong is repaired, go on with" in capsys.readouterr().out
    finish(of, RunFolder.open(stopped))
    assert_same(stopped, straight)


def test_values_that_diverge_leave_the_line_before_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = CONFIGS["dqn"]  # A checkpoint is due after the third line, none after the fourth.
    found = control.diverged

    def diverged(values: dict[str, float]) -> str:
        return "q is nan" if values["num_frames"] > 250 else found(values)

    monkeypatch.setattr(control, "diverged", lambda values: diverged({"num_frames": frames(), **values}))
    session = prepare(of)
    frames = lambda: session.agent.num_frames  # noqa: E731
    with RunFolder.create(tmp_path / "run", to_json(of)) as run, pytest.raises(RunError, match="q is nan"):
        train(run, session)
    session.close()
    assert [path.name for path in sorted((run.checkpoints).iterdir())] == ["step_000003", "step_000004"]
    *before, last = numbers(run.path)
    assert last["step"] == 5
    # The returns of the line that was lost are lived again.
    seen = sum(line.get("num_episodes", 0) + 2 * ("greedy/return" in line) for line in before)
    assert last["num_episodes"] > 0 and last_cursor(run.path)["seen"]["count"] == seen


def test_a_measurement_that_fails_leaves_its_line_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = CONFIGS["ppo"]
    session = prepare(of)

    def play(*_: Any, **__: Any) -> Any:
        if session.step:
            raise TaskError("the judge: found no world")
        return evaluate.Played([0.0, 0.0], 0)

    monkeypatch.setattr(evaluate, "play", play)
    with RunFolder.create(tmp_path / "run", to_json(of)) as run, pytest.raises(TaskError):
        train(run, session)
    session.close()
    assert [path.name for path in run.checkpoints.iterdir()] == ["step_000002"]
    *_, last = numbers(run.path)
    assert last["step"] == 2 and last["num_frames"] >= 120 and {"entropy", "episode/return"} <= last.keys()
    assert "greedy/return" not in last


@pytest.mark.parametrize(("owner", "function"), [(evaluate, "play"), (RunFolder, "append_metrics")])
def test_a_run_whose_last_line_was_lost_ends_with_a_measurement_of_its_last_policy(
    owner: Any, function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with that of two lines before."""
    of = CONFIGS["a2c"]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    finish(of, RunFolder.create(straight, to_json(of)))
    session, real = prepare(of), getattr(owner, function)

    def failing(*given: Any, **named: Any) -> Any:
        if session.step == 6:
            raise TaskError("the last line: found no room")
        return real(*given, **named)

    with monkeypatch.context() as patch, RunFolder.create(stopped, to_json(of)) as run:
        patch.setattr(owner, function, failing)
        with pytest.raises(TaskError, match="no room"):
            train(run, session)
    session.close()
    finish(of, RunFolder.open(stopped))
    (*_, wanted), (*_, last, final) = numbers(straight), numbers(stopped)
    if function == "play":
        assert last == {key: value for key, value in wanted.items() if not key.startswith("greedy/")}
    else:
        # The line itself cannot be written, nor when the run is given up.
        assert last["step"] == 5
    assert final.pop("final") == 1 and final == {key: wanted[key] for key in final}
    assert {"step", "num_frames", "greedy/return"} <= final.keys()
    ends = [RunFolder(path).read_json("summary.json") | {"seconds": 0} for path in (straight, stopped)]
    assert ends[0] == ends[1]


def test_a_run_of_another_seed_is_another_run(tmp_path: Path) -> None:
    for seed in (5, 6):
        of = replace(CONFIGS["a2c"], seed=seed)
        finish(of, RunFolder.create(tmp_path / str(seed), to_json(of)))
    lines, others = numbers(tmp_path / "5"), numbers(tmp_path / "6")
    assert all(line["entropy"] != other["entropy"] for line, other in zip(lines[1:], others[1:], strict=True))
    assert lines[0]["greedy/return"] != others[0]["greedy/return"]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_bit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The whole command, ended by kill -9 somewhere after its first checkpoint."""
    flags = "--num-envs 3 --num-steps 8 --num-epochs 1 --hidden 8 --normalize-observations"
    flags += " --num-frames 1800 --log-every 30 --eval-every 600 --eval-episodes 2"
    flags += " --checkpoint-every 180 --vectorization sync"
    command = ["train", "ppo", "--env", "CartPole-v1", *flags.split(), "--out"]
    killed, straight = tmp_path / "killed", tmp_path / "straight"
    source = Path(__file__).parents[3] / "src"
    process = subprocess.Popen(
        [sys.executable, "-m", "gradhat.cli.main", *command, str(killed)],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(source)},
    )
    try:
        patience = time.monotonic() + 120
        while not list(killed.glob("checkpoints/step_*")) and process.poll() is None:
            assert time.monotonic() < patience
            time.sleep(0.02)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL and not (killed / "summary.json").exists()
    done = len(numbers(killed))
    assert 6 < done < 61
    assert main(["train", "--resume", str(killed)]) == 0
    assert main([*command, str(straight)]) == 0
    assert_same(killed, straight)
    assert f"run    {killed}, from step " in capfd.readouterr().out
