"""What a person can get wrong, through the command itself: a message in words, never a traceback."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from breaking import Fault, Shop

from gradhat.cli.main import main
from gradhat.training.control.algorithms import ALGORITHMS, read
from gradhat.training.control.config import ControlConfig, to_json
from gradhat.training.run_folder import RunFolder
from gradhat.training.text.config import TrainConfig
from gradhat.training.text.config import to_json as text_to_json

SHORT = [
    "--num-envs",
    "2",
    "--num-frames",
    "40",
    "--log-every",
    "20",
    "--eval-episodes",
    "2",
    "--eval-max-steps",
    "9",
]
BREAKING = "breaking:Breaking-v0"


def asked(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    """Return the exit code of a command, and what it said was wrong: one line, no traceback."""
    code = main(["train", *argv])
    error = capsys.readouterr().err
    assert "Traceback" not in error and error.count("\n") <= 1, error
    return code, error


@pytest.fixture(autouse=True)
def repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shop, "fault", None)
    monkeypatch.setattr(Shop, "num_made", 0)


WRONG_WORLDS = {
    "a misspelt id": (
        "ppo",
        "--env CartPol-v1",
        ["'CartPol-v1': found no such id", "Did you mean CartPole-v1"],
    ),
    "an id in other letters": ("ppo", "--env cartpole-v1", ["Did you mean CartPole-v1"]),
    "an id of nothing": ("ppo", "--env Xyzzy", ["found no such id", "module:Env-v0"]),
    "an old version": ("q_learning", "--env Taxi-v3", ["found no such id", "Taxi-v4"]),
    "a module that is not there": ("ppo", "--env nowhere:A-v0", ["importing nowhere fails", "PYTHONPATH"]),
    "an unknown argument": (
        "ppo",
        "--env CartPole-v1 --env-args g=1",
        ["with {'g': 1}", "unexpected keyword"],
    ),
    "an argument without a value": ("ppo", "--env-args gravity", ["--env-args gravity: found no NAME=VALUE"]),
    "no native version": (
        "sac",
        "--env Pendulum-v1 --vectorization native --first-frames 9",
        ["found no vector version"],
    ),
    "a misspelt world of the zoo": ("sarsa", "--env zoo:chian", ["zoo:chian", "Known: bandit, chain"]),
    "a world of the zoo with arguments": (
        "sarsa",
        "--env zoo:chain --env-args length=9",
        ["--env-args length=9", "takes no arguments. Drop --env-args"],
    ),
    "vectors for DQN": (
        "dqn",
        "--env Pendulum-v1 --first-frames 9",
        ["dqn in Pendulum-v1: its actions are vectors of numbers", "ppo, trpo, ddpg, td3, sac."],
    ),
    "a choice for SAC": (
        "sac",
        "--env CartPole-v1 --first-frames 9",
        ["sac in CartPole-v1: its actions are a choice of 2", "ppo, trpo, dqn.\n"],
    ),
    "no bounds for DDPG": (
        "ddpg",
        "--env breaking:Boundless-v0 --first-frames 9",
        ["ddpg in breaking:Boundless-v0: found actions without bounds", "Use ppo, trpo, a2c or reinforce"],
    ),
    "no tables": ("q_learning", "--env CartPole-v1", ["tables of CartPole-v1", "such as FrozenLake"]),
    "vectors for a table": ("q_learning", "--env Pendulum-v1", ["vectors of numbers", "sac."]),
    "states that look alike": (
        "q_learning",
        "--env zoo:two_states",
        ["q_learning in zoo:two_states", "that all show 0", "tell its states apart"],
    ),
}


@pytest.mark.parametrize("name", WRONG_WORLDS)
def test_a_world_that_cannot_be_learned_in_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    algorithm, flags, wanted = WRONG_WORLDS[name]
    code, error = asked(capsys, algorithm, *flags.split(), *SHORT, "--out", str(tmp_path / "run"))
    assert code == 2 and error.startswith("ConfigError: ")
    for text in wanted:
        assert text in error, error
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


@pytest.mark.skipif(find_spec("mujoco") is not None, reason="it is installed")
def test_a_missing_package_says_how_to_get_it(capsys: pytest.CaptureFixture[str]) -> None:
    code, error = asked(capsys, "ppo", "--env", "HalfCheetah-v5", *SHORT)
    assert code == 2 and "mujoco package is missing. Run: pip install 'gradhat[mujoco]'" in error


WRONG_FLAGS = {
    "an algorithm that is none": (
        "ppoo",
        "",
        ["ppoo: no such recipe or algorithm. Did you mean ppo?", "sarsa"],
    ),
    "a flag that is none": ("ppo", "--gama 0.9", ["--gama: no such flag", "Did you mean --gamma"]),
    "a flag of another algorithm": ("ppo", "--epsilon-end 0", ["--epsilon-end: no such flag", "--clip-low"]),
    "no frames": ("ppo", "--num-frames 0", ["num_frames=0: found a value out of range. Use 1 or more"]),
    "fewer than no episodes": ("ppo", "--eval-episodes -1", ["eval_episodes=-1", "Use 0 or more"]),
    "no steps of an episode": ("ppo", "--eval-max-steps 0", ["eval_max_steps=0"]),
    "no environments": ("ppo", "--num-envs 0", ["num_envs=0"]),
    "a negative interval": ("ppo", "--eval-every -1", ["eval_every=-1", "Use 0 or more"]),
    "no threads": ("ppo", "--num-threads 0", ["num_threads=0"]),
    "a seed that no file holds": ("ppo", f"--seed {2**63}", ["seed=9223372036854775808: found", "2^63"]),
    "a width that no file holds": ("ppo", f"--hidden 64 {10**30}", ["hidden=(64, 1000", "2^63"]),
    "a discount above 1": ("ppo", "--gamma 2", ["gamma=2.0: found a value out of range. Use 0 to 1"]),
    "a trace below 0": ("a2c", "--lam -0.1", ["lam=-0.1"]),
    "a rate that is no number": ("ppo", "--lr nan", ["lr=nan: found a number that is not finite"]),
    "no passes": ("ppo", "--num-epochs 0", ["num_epochs=0"]),
    "no episodes of a batch": ("reinforce", "--episodes-per-env 0", ["episodes_per_env=0"]),
    "a target that never moves": ("dqn", "--target-every 0", ["target_every=0"]),
    "an actor that never moves": ("td3", "--env Pendulum-v1 --actor-every 0", ["actor_every=0"]),
    "no atoms": ("dqn", "--num-atoms 0", ["num_atoms=0"]),
    "a chance above 1": ("dqn", "--epsilon-start 1.5", ["epsilon_start=1.5"]),
    "no frames of exploration": ("dqn", "--epsilon-frames 0", ["epsilon_frames=0"]),
    "a layer without neurons": (
        "ppo",
        "--hidden 8 0",
        ["hidden=(8, 0): found a value out of range. Use the widths of one layer or more"],
    ),
    "no layers": ("dqn", "--dueling --hidden", ["hidden=(): found a value out of range", "such as 64 64"]),
    "returns without a range": ("dqn", "--num-atoms 5 --low 3 --high 3", ["low=3.0", "high=3.0"]),
    "a memory smaller than a batch of steps": (
        "dqn",
        "--capacity 6 --num-steps 4 --first-frames 9",
        ["capacity=6 with num_envs=2 and num_steps=4", "Use a capacity of 8 or more"],
    ),
    "no frames to learn in": (
        "dqn",
        "--first-frames 40",
        ["first_frames=40 with num_frames=40: found no frame left to learn in"],
    ),
    "a memory without environments": (
        "dqn",
        "--capacity 1 --num-steps 1 --first-frames 9",
        ["capacity=1", "num_envs=2"],
    ),
}


@pytest.mark.parametrize("name", WRONG_FLAGS)
def test_a_wrong_flag_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    algorithm, flags, wanted = WRONG_FLAGS[name]
    code, error = asked(capsys, algorithm, *SHORT, *flags.split(), "--out", str(tmp_path / "run"))
    assert code == 2 and error.startswith("ConfigError: "), error
    for text in wanted:
        assert text in error, error
    assert list(tmp_path.iterdir()) == []


def test_a_value_of_the_wrong_type_names_its_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["train", "ppo", "--gamma", "most"])
    assert "--gamma" in capsys.readouterr().err


def test_a_memory_that_does_not_fit_is_refused_before_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        "dqn",
        *SHORT,
        "--first-frames",
        "9",
        "--capacity",
        "1000000000000",
        "--out",
        str(tmp_path / "run"),
    ]
    code, error = asked(capsys, *argv)
    assert code == 1 and error.startswith("RunError: Replay with capacity=1000000000000: it needs")
    assert "GiB of free memory. Use a capacity of at most" in error
    assert list(tmp_path.iterdir()) == []


FAULTS = {
    "raise": "step 4 of its episode: found RuntimeError: the wheel came off, at breaking.py:",
    "reset": "reset(): found RuntimeError: nobody knows where to begin",
    "reward": "step 4 of its episode: found the reward nan, which is no finite number",
    "observation": "step 40: found the observation [",
    "shape": "step 4 of its episode: found an observation of shape (3,), but the space has (2,)",
}


def lines(run: Path) -> list[dict[str, Any]]:
    clock = ("step_time", "frames_per_second", "time/")
    return [
        {k: v for k, v in line.items() if not k.startswith(clock)} for line in RunFolder(run).read_metrics()
    ]


@pytest.mark.parametrize("what", FAULTS)
def test_a_world_that_breaks_in_the_middle_can_be_repaired(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names the environment and the step; the run goes on from its checkpoint, to the bit."""
    flags = "--num-envs 3 --num-frames 180 --log-every 30 --checkpoint-every 60 --num-steps 5 --hidden 8"
    flags += " --eval-every 60 --eval-episodes 2"
    argv = ["a2c", "--env", BREAKING, *flags.split(), "--out"]
    run, straight = tmp_path / "run", tmp_path / "straight"
    Shop.fault = Fault(what, 1, 36 if what == "reset" else 40)
    code, error = asked(capsys, *argv, str(run))
    assert code == 1 and error.startswith("TaskError: ") and error.endswith("Repair the environment.\n")
    assert "Breaking-v0, environment 1, " in error and FAULTS[what] in error, error
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_000002", "step_000003"]
    assert not (run / "summary.json").exists()
    Shop.fault = None
    assert main(["train", "--resume", str(run)]) == 0
    assert main(["train", *argv, str(straight)]) == 0
    assert lines(run) == lines(straight)


def test_a_world_that_cannot_even_begin_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Shop.fault = Fault("reset", 1, 0)
    code, error = asked(capsys, "a2c", "--env", BREAKING, *SHORT, "--out", str(tmp_path / "run"))
    assert code == 1 and "environment 1, reset(): found RuntimeError: nobody knows" in error
    assert list(tmp_path.iterdir()) == []


def test_a_world_that_breaks_in_a_measurement_says_so_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Shop.fault = Fault("reward", 3, 2)
    code, error = asked(capsys, "a2c", "--env", BREAKING, *SHORT, "--out", str(tmp_path / "run"))
    assert code == 1 and "environment 1, step 2 of its episode: found the reward nan" in error


def test_a_policy_that_diverges_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["a2c", "--env", BREAKING, *SHORT, "--num-steps", "4", "--lr", "1e40", "--out"]
    code, error = asked(capsys, *argv, str(tmp_path / "run"))
    assert code == 1 and error.startswith("ModelError: draw an action")
    assert "train it with a smaller learning rate" in error


def test_episodes_that_do_not_end_are_cut_where_they_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty table walks up and down for ever in a world without a time limit."""
    run = tmp_path / "run"
    assert main(["train", "q_learning", "--env", "CliffWalking-v1", *SHORT, "--out", str(run)]) == 0
    assert "greedy -9.00 (n=2)  cut 100%" in capsys.readouterr().out
    assert RunFolder(run).read_json("summary.json")["after"]["greedy/cut"] == 1.0


@pytest.mark.parametrize("count", [1, 7, 101])
def test_any_number_of_episodes_can_be_measured(
    count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    argv = ["a2c", "--env", "zoo:bandit", *SHORT, "--eval-episodes", str(count), "--out", str(run)]
    assert main(["train", *argv]) == 0
    printed = capsys.readouterr().out
    assert f"done. {count} greedy episodes: return " in printed and "nan" not in printed
    after = RunFolder(run).read_json("summary.json")["after"]
    assert ("greedy/low" in after) == (count >= 4)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    assert main(["train", "a2c", "--env", "zoo:bandit", *SHORT, "--hidden", "8", "--out", str(run)]) == 0
    return run


def kept(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}


WRONG_RESUMES = {
    "other settings": (
        "--lr 0.5 --seed 9",
        1,
        ["RunError: resume", "lr is 0.001 there and 0.5 here, seed is 0 there and 9 here", "start a new run"],
    ),
    "another world": ("--env zoo:chain", 1, ["env is 'zoo:bandit' there and 'zoo:chain' here"]),
    "fewer frames": ("--num-frames 20", 1, ["num_frames is 40 there and 20 here"]),
    "nothing left to do": ("", 1, ["all its 2 steps are done. Go on with --num-frames MORE"]),
    "another place": ("--out elsewhere", 2, ["ConfigError: --resume", "Drop --out"]),
    "a flag of another algorithm": ("--clip-low 0.1", 2, ["--clip-low: no such flag"]),
}


@pytest.mark.parametrize("name", WRONG_RESUMES)
def test_a_resume_that_is_another_run_is_refused(
    name: str, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, wanted_code, wanted = WRONG_RESUMES[name]
    before = kept(finished)
    code, error = asked(capsys, "--resume", str(finished), *flags.split())
    assert code == wanted_code
    for text in wanted:
        assert text in error, error
    assert kept(finished) == before


def test_a_run_of_another_kind_is_not_resumed(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunFolder.create(tmp_path / "text", text_to_json(TrainConfig())).close()
    code, error = asked(capsys, "dqn", "--resume", str(finished))
    assert code == 1 and "asked for a run of dqn, found a run of a2c there. Go on with it as it was" in error
    code, error = asked(capsys, "reinforce", "--resume", str(tmp_path / "text"))
    assert code == 1 and "asked for a run of reinforce, found a run of a language model there" in error
    code, error = asked(capsys, "first_light", "--resume", str(finished))
    assert code == 1 and "asked for a run of a language model, found a run of a2c there" in error


def test_a_run_of_an_unknown_algorithm_is_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = to_json(ControlConfig(ALGORITHMS["ppo"].learning)) | {"algorithm": "qqo"}
    RunFolder.create(tmp_path / "run", values).close()
    code, error = asked(capsys, "--resume", str(tmp_path / "run"))
    assert code == 2 and "found the algorithm 'qqo'. Known: reinforce, a2c" in error


def test_a_finished_run_goes_on_with_more_frames(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", "sarsa", "--env", "zoo:chain", *SHORT, "--out", str(run)]) == 0
    assert main(["train", "--resume", str(run), "--num-frames", "60"]) == 0
    assert [line["step"] for line in RunFolder(run).read_metrics()] == [0, 1, 2, 3]
    assert RunFolder(run).read_json("summary.json")["num_frames"] >= 60


def test_a_dry_run_prints_a_config_that_can_be_read_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--env LunarLander-v3 --env-args continuous=True gravity=-9.8 --hidden 32 16 --lr 0.25"
    flags += " --normalize-observations --num-frames 77 --out nowhere --dry-run"
    assert main(["train", "ppo", *flags.split()]) == 0
    printed = json.loads(capsys.readouterr().out)
    (tmp_path / "config.json").write_text(json.dumps(printed))
    config = read(tmp_path)
    assert to_json(config) == printed
    network = config.learning.network
    assert (network.hidden, network.lr, network.normalize_observations) == ((32, 16), 0.25, True)
    assert config.env_args == ("continuous=True", "gravity=-9.8") and config.num_frames == 77
    assert replace(config, num_frames=1) != config and not Path("nowhere").exists()
