"""`gradhat watch`: the policy that was trained, on film."""

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.spaces import Box, Discrete
from PIL import Image

from gradhat.cli import watch
from gradhat.cli.main import main
from gradhat.envs import video
from gradhat.training.control.agent import Choice
from gradhat.training.control.algorithms import read
from gradhat.training.control.session import Session, playing
from gradhat.training.run_folder import RunFolder
from gradhat.training.text.config import TrainConfig, to_json

FLAGS = "--num-frames 600 --num-envs 2 --log-every 300 --eval-every 0 --eval-episodes 2 --lr 0.05"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a second, with a normaliser."""
    path = tmp_path_factory.mktemp("watch") / "run"
    assert main(["train", "ppo", *FLAGS.split(), "--normalize-observations", "--out", str(path)]) == 0
    return path


def test_the_film_shows_the_trained_policy_with_its_normaliser(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "film.gif"
    assert main(["watch", str(trained), "--episodes", "2", "--out", str(out), "--max-steps", "15"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "film   ppo in CartPole-v1, the greedy policy of step 2"
    # CartPole pays 1 a step: a picture before every step and one after the last.
    steps = [float(line.split("return ")[1].split()[0]) for line in said[1:3]]
    count = int(sum(steps)) + 2
    with Image.open(out) as film:
        # The same picture twice in a row is one that is shown for longer.
        assert count / 2 < film.n_frames <= count
    assert said[3] == f"written to {out}: {count} pictures, {count / 50:.1f} s"
    # The same choices as the weights and the frozen moments of the checkpoint make.
    with playing(trained, read(trained)) as session:
        act = watch.acting(session.agent.greedy())
        moments = session.agent.collector.moments
        for row in np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32):
            scaled = (row - moments.mean) / np.sqrt(moments.variance)
            seen = torch.from_numpy(np.clip(scaled, -10, 10).astype(np.float32))[None]
            assert act(row) == session.agent.policy.greedy(seen).item()


def test_help_names_the_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["watch", "--help"])
    assert "--episodes" in capsys.readouterr().out


def test_a_film_depends_on_its_seed(trained: Path, tmp_path: Path) -> None:
    films = []
    for seed in ("0", "0", "1"):
        out = tmp_path / f"{len(films)}.gif"
        assert main(["watch", str(trained), "--max-steps", "3", "--seed", seed, "--out", str(out)]) == 0
        films.append(out.read_bytes())
    assert films[0] == films[1] != films[2]


@pytest.mark.parametrize(("package", "ending"), [(object(), "mp4"), (None, "gif")])
def test_a_film_without_a_name_lies_in_the_run(
    package: object, ending: str, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "find_spec", lambda name: package)
    monkeypatch.setattr("gradhat.envs.video.write", lambda path, pictures, fps: path.write_bytes(b"film"))
    assert main(["watch", str(trained), "--max-steps", "2"]) == 0
    assert (trained / f"watch.{ending}").read_bytes() == b"film"


def test_an_episode_that_is_cut_says_so(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["watch", str(trained), "--max-steps", "2", "--out", str(tmp_path / "a.gif")]) == 0
    assert "episode 1: return 2.0 in 2 steps, cut there: --max-steps MORE shows on" in capsys.readouterr().out


def test_what_cannot_be_watched_is_said_in_one_message(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunFolder.create(tmp_path / "text", to_json(TrainConfig(task="arithmetic"))).close()
    config = json.loads((trained / "config.json").read_text())
    RunFolder.create(tmp_path / "zoo", config | {"env": "zoo:luck"}).close()
    RunFolder.create(tmp_path / "new", config).close()
    RunFolder.create(tmp_path / "empty", {}).close()
    RunFolder.create(tmp_path / "other", {"model_type": "llama"}).close()
    RunFolder.create(tmp_path / "wrong", {"task": "arithmetic", "lr": "fast"}).close()
    for words, code, wanted in (
        ([], 2, "found no run. Name it first"),
        ([tmp_path / "text"], 2, f"found a text run. Talk to it: gradhat chat {tmp_path}/text"),
        ([tmp_path / "zoo"], 2, "found zoo:luck, which draws no pictures"),
        (
            [tmp_path / "new"],
            1,
            f"found none yet. Train on first: gradhat train --resume {tmp_path}/new",
        ),
        ([tmp_path / "nowhere"], 1, "config.json cannot be read"),
        ([tmp_path / "empty"], 1, f"read the run in {tmp_path}/empty: config.json names no task"),
        ([tmp_path / "other"], 2, f"the config of {tmp_path}/other: found the unknown keys model_type"),
        ([tmp_path / "wrong"], 2, f"the config of {tmp_path}/wrong: lr is 'fast'. Write a number"),
        ([trained, "--episodes", "0"], 2, "episodes=0: found a value out of range"),
        (
            [trained, "--out", tmp_path / "a.avi"],
            2,
            "a film a.avi: found the ending '.avi'. Use .mp4 or .gif.",
        ),
        ([trained, "--out", trained / "config.json" / "a.gif"], 1, "Choose an --out that can be written."),
        ([trained, "--out", tmp_path / f"{'a' * 300}.gif"], 1, "File name too long"),
    ):
        assert main(["watch", *map(str, words)]) == code, words
        said = capsys.readouterr()
        assert wanted in " ".join(said.err.split()), words
        # Nothing was played.
        assert not said.out, words
    assert not (tmp_path / "a.avi").exists()


class Wide(gymnasium.Env[Any, Any]):
    """Shows five numbers, where its vector version, that of CartPole, shows four."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = Box(-1, 1, (5,), np.float32)
    action_space = Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode


def test_a_single_environment_with_other_spaces_than_its_vector_version_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gymnasium.register("Wide-v0", entry_point=Wide, vector_entry_point=CartPoleVectorEnv)
    run = tmp_path / "run"
    try:
        assert main(["train", "ppo", "--env", "Wide-v0", *FLAGS.split(), "--out", str(run)]) == 0
        capsys.readouterr()
        assert main(["watch", str(run), "--out", str(tmp_path / "a.gif")]) == 2
    finally:
        del gymnasium.registry["Wide-v0"]
    said = " ".join(capsys.readouterr().err.split())
    assert "a film of Wide-v0: found 5 numbers seen, 2 actions in a single environment" in said
    assert "has 4 numbers seen, 2 actions. Make them alike, or train with --vectorization sync." in said


def test_a_policy_of_an_environment_is_not_talked_to(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["chat", str(trained)]) == 1
    said = capsys.readouterr().err
    assert (
        f"found a policy of CartPole-v1, and no language model. Look at it: gradhat watch {trained}" in said
    )


@pytest.mark.parametrize("flags", ["--eval-episodes 2", "--eval-episodes 0"])
def test_a_world_of_the_zoo_is_measured_and_not_watched(
    flags: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = f"--env zoo:chain --num-envs 2 --num-frames 64 --log-every 64 --eval-every 0 {flags}"
    assert main(["train", "q_learning", *short.split(), "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert said.endswith(f"measure it: gradhat eval {tmp_path / 'run'}\n") and "gradhat watch" not in said
    assert main(["chat", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert (
        f"a policy of zoo:chain, and no language model. Measure it: gradhat eval {tmp_path / 'run'}" in said
    )


def test_a_film_is_of_the_runs_own_environment_and_every_episode_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, seeds, shown = tmp_path / "run", list[int](), list[video.Picture]()
    flags = [*FLAGS.split(), "--eval-policy", "sampled", "--env-args", "sutton_barto_reward=True"]
    assert main(["train", "ppo", *flags, "--out", str(run)]) == 0
    drawn = Session.policy

    def policy(self: Session, seed: int) -> Choice:
        seeds.append(seed)
        return drawn(self, seed)

    def write(path: Path, pictures: list[video.Picture], fps: int) -> None:
        shown.extend(pictures)
        path.write_bytes(b"film")

    monkeypatch.setattr(Session, "policy", policy)
    monkeypatch.setattr(video, "write", write)
    assert main(["watch", str(run), "--episodes", "2", "--max-steps", "1", "--seed", "7"]) == 0
    said = capsys.readouterr().out
    assert "return 0.0 in 1 steps" in said and "return 1.0" not in said
    assert len(shown) == 4 and not np.array_equal(shown[0], shown[2])
    assert seeds == [7]
