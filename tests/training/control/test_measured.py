"""The policy that is measured is the one that the world needs, and every door says which it is."""

import json
import math
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from gradhat.cli.main import main
from gradhat.intervals import Seen
from gradhat.policies.continuous import Noisy
from gradhat.training.control import evaluate
from gradhat.training.control.algorithms import ALGORITHMS
from gradhat.training.control.config import ControlConfig
from gradhat.training.control.on_policy import OnPolicyAgent
from gradhat.training.control.session import Session, prepare
from gradhat.training.run_folder import RunFolder

BEST, WORST = -6.564, -8.0
"""J in the corridor of eight steps: of p = 0.613, and of every policy that leaves nothing to chance."""


class Fog(gymnasium.Env[Any, Any]):
    """Says of itself that it hides its state: a coin that nobody sees."""

    metadata: dict[str, Any] = {"render_modes": [], "partially_observed": True}  # noqa: RUF012
    observation_space = Box(-1, 1, (1,), np.float32)
    action_space = Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.ones(1, np.float32), float(action == self.np_random.integers(2)), True, False, {}


gymnasium.register("Fog-v0", Fog)


def session(name: str, env: str, **changes: Any) -> Session:
    short = {"num_envs": 2, "num_frames": 2_000, "eval_episodes": 4} | changes
    return prepare(ControlConfig(ALGORITHMS[name].learning, env, **short))


def set_chance(agent: OnPolicyAgent, p: float) -> None:
    """Let the policy take action 1 with probability `p`, whatever it sees."""
    agent.module.actor.weights[-1].data.zero_()
    agent.module.actor.biases[-1].data = torch.tensor([0.0, math.log(p / (1 - p))])


def test_the_corridor_is_measured_by_the_policy_that_draws() -> None:
    """What has found the optimum is worth the optimum, where its mode is worth the least there is."""
    for asked, wanted in (("auto", BEST), ("sampled", BEST), ("greedy", WORST)):
        found = session("reinforce", "zoo:corridor", eval_policy=asked, eval_episodes=2_000)
        assert isinstance(found.agent, OnPolicyAgent)
        set_chance(found.agent, 0.613)
        line = found.before(RunFolder(Path()))
        name = "greedy" if asked == "greedy" else "sampled"
        assert {key.partition("/")[0] for key in line} == {name}
        # The return lies in [-8, -2], with a deviation of about 2.
        assert line[f"{name}/return"] == pytest.approx(wanted, abs=4 * 2 / math.sqrt(2_000))
        assert found.before(RunFolder(Path())) == line, "a measurement is a function of its seed"
        said = found.progress(0, line, math.inf)
        assert f"  {name} {line[f'{name}/return']:.1f}"[:12] in said and ("judged by" in found.opening()) == (
            name == "sampled"
        )
        found.close()


def test_a_measurement_draws_what_training_does_not() -> None:
    """Its random numbers are its own: another seed, other episodes, and no step of training is another."""
    found, twin = (session("a2c", "zoo:corridor") for _ in range(2))
    first, other = found.play(1), found.play(2)
    assert found.play(1) == first != other
    assert found.agent.advance(64) == twin.agent.advance(64)
    found.close()
    twin.close()


SAMPLED = {"reinforce", "a2c", "a3c", "ppo", "trpo"}


@pytest.mark.parametrize("name", [name for name, row in ALGORITHMS.items() if row.serves != "continuous"])
def test_auto_is_a_property_of_the_world_and_of_the_policy(name: str) -> None:
    """A policy that leaves nothing to chance but while it explores is measured as it is."""
    tables = name in ("monte_carlo", "sarsa", "expected_sarsa", "q_learning")
    worlds = ["zoo:chain"] if tables else ["zoo:chain", "zoo:corridor", "zoo:tiger", "Fog-v0", "CartPole-v1"]
    hidden = {"zoo:corridor", "zoo:tiger", "Fog-v0"}
    for env in worlds:
        found = session(name, env)
        assert found.world.partially_observed == (env in hidden)
        assert found.measured == ("sampled" if env in hidden and name in SAMPLED else "greedy"), env
        found.close()


@pytest.mark.parametrize("name", ["dqn", "ddpg", "sac", "q_learning"])
def test_a_policy_can_be_measured_as_it_explores(name: str) -> None:
    env = {"dqn": "CartPole-v1", "q_learning": "zoo:chain"}.get(name, "Pendulum-v1")
    found = session(name, env, eval_policy="sampled", eval_max_steps=20)
    seen = torch.randn(300, found.world.num_inputs, generator=torch.Generator().manual_seed(1))
    first, again = (found.agent.sampled(torch.Generator().manual_seed(3))(seen) for _ in range(2))
    other, mode = found.agent.sampled(torch.Generator().manual_seed(4))(seen), found.agent.greedy()(seen)
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first, mode)
    assert set(found.before(RunFolder(Path()))) >= {"sampled/return", "sampled/cut"}
    found.close()


@pytest.mark.parametrize("name", ["ddpg", "td3", "sac"])
def test_what_is_measured_before_it_learns_is_the_policy_too(name: str) -> None:
    """And not the uniform draw that fills the memory."""
    found = session(name, "Pendulum-v1", eval_policy="sampled")
    seen = torch.randn(30, found.world.num_inputs, generator=torch.Generator().manual_seed(1))
    actor = found.agent.parts.state.actor  # pyright: ignore
    acts = actor if name == "sac" else Noisy(actor, found.config.learning.settings.noise)
    wanted, _ = acts.act(seen, torch.Generator().manual_seed(3))
    assert torch.equal(found.agent.sampled(torch.Generator().manual_seed(3))(seen), wanted)
    found.close()


def test_a_normaliser_stands_still_while_actions_are_drawn() -> None:
    learning = ALGORITHMS["ppo"].learning
    network = type(learning.network)(normalize_observations=True)
    config = ControlConfig(type(learning)(network=network), "CartPole-v1", num_envs=2, eval_policy="sampled")
    found = prepare(config)
    assert isinstance(found.agent, OnPolicyAgent) and found.agent.collector.moments is not None
    found.agent.advance(64)
    moments = found.agent.collector.moments
    kept = moments.state()
    found.play(3)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in moments.state().items())
    # It sees normalised observations: what it draws is what the policy draws of those.
    seen = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    normal = np.clip((seen - moments.mean) / moments.scale, -10, 10).astype(np.float32)
    drawn = found.agent.sampled(torch.Generator().manual_seed(3))(torch.from_numpy(seen))
    wanted, _ = found.agent.policy.act(torch.from_numpy(normal), torch.Generator().manual_seed(3))
    assert torch.equal(drawn, wanted)
    found.close()


@pytest.mark.slow
def test_every_door_names_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run itself, `eval`, a sweep over a world that hides its state and one that does not, and `plot`."""
    run, flags = tmp_path / "run", "--num-frames 200 --log-every 100 --eval-episodes 8"
    assert main(["train", "reinforce", "--env", "zoo:corridor", *flags.split(), "--out", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "judged by its sampled policy" in printed and "greedy" not in printed
    assert "done. 8 sampled episodes: return -" in printed and "  sampled -" in printed
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert "sampled/return" in lines[0] and not any(
        key.startswith("greedy") for line in lines for key in line
    )
    assert json.loads((run / "summary.json").read_text())["after"].keys() >= {"sampled/return", "sampled/cut"}
    assert main(["eval", str(run), "--episodes", "6"]) == 0
    assert "zoo:corridor: 6 episodes, sampled\n" in capsys.readouterr().out
    assert main(["plot", str(run), "--out", str(tmp_path / "curve")]) == 0
    assert "sampled/return" in capsys.readouterr().out
    sweep = ["sweep", "reinforce", "--env", "zoo:corridor", "zoo:chain", *flags.split(), "--jobs", "1"]
    assert main([*sweep, "--out", str(tmp_path / "sweep")]) == 0
    said = capsys.readouterr().out
    assert "sampled/return -" in said and "greedy/return" in said and "nan" not in said
    assert main(["plot", str(tmp_path / "sweep"), "--out", str(tmp_path / "curves")]) == 0
    assert "return where the lines end" in capsys.readouterr().out


def test_a_summary_says_which_policy_it_is_of() -> None:
    played = evaluate.Played([1.0, 2.0, 3.0, 6.0], 1)
    greedy, sampled = (evaluate.summary(played, name, Seen()) for name in ("greedy", "sampled"))
    assert {f"sampled/{key.partition('/')[2]}": value for key, value in greedy.items()} == sampled
    assert evaluate.found_in(greedy) == "greedy" and evaluate.found_in(sampled) == "sampled"
    assert evaluate.found_in({"episode/return": 1.0}) is None
