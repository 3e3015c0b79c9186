"""A film shows the episode as it was: a picture before every step and one of the end."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from PIL import Image
from telltale import ENV

from gradhat.envs.video import frames, write
from gradhat.errors import ConfigError, TaskError


def pictures(num: int, height: int = 32, width: int = 48) -> list[Any]:
    """Each has its own grey."""
    return [np.full((height, width, 3), 40 * (i + 1), dtype=np.uint8) for i in range(num)]


def test_an_episode_is_filmed_to_its_end() -> None:
    """Pushing always to one side, the pole falls; the last picture is of the fallen pole."""
    seen: list[Any] = []

    def act(observation: Any) -> int:
        seen.append(observation)
        return 1

    film = frames("CartPole-v1", {}, act, seed=3, max_steps=100)
    assert film.ended and film.fps == 50
    assert len(film.frames) == len(seen) + 1 == film.total + 1
    assert all(picture.shape == (400, 600, 3) and picture.dtype == np.uint8 for picture in film.frames)
    expected, _, last, final = by_hand(len(seen))
    np.testing.assert_array_equal(seen, expected)
    np.testing.assert_array_equal(film.frames[0], final[0])
    np.testing.assert_array_equal(film.frames[-1], final[-1])
    assert abs(last[2]) > 0.2


def by_hand(num_steps: int) -> tuple[list[Any], float, Any, list[Any]]:
    env = gymnasium.make("CartPole-v1", render_mode="rgb_array")
    seed = int(np.random.SeedSequence(3).generate_state(1)[0])
    observation, _ = env.reset(seed=seed)
    shown, drawn, total = [], [env.render()], 0.0
    for _ in range(num_steps):
        shown.append(observation)
        observation, reward, *_ = env.step(1)
        total += float(reward)
        drawn.append(env.render())
    env.close()
    return shown, total, observation, drawn


def test_a_film_stops_where_it_is_told() -> None:
    film = frames("Pendulum-v1", {"g": 9.0}, lambda _: np.zeros(1), seed=0, max_steps=4)
    assert len(film.frames) == 5 and not film.ended
    assert film.total < 0


@pytest.mark.parametrize("chosen", [None, "offscreen"])
def test_a_film_looks_for_no_screen(chosen: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SDL_VIDEODRIVER", raising=False)
    if chosen is not None:
        monkeypatch.setenv("SDL_VIDEODRIVER", chosen)
    seen: list[str | None] = []

    def act(_: Any) -> int:
        seen.append(os.environ.get("SDL_VIDEODRIVER"))
        return 1

    frames("CartPole-v1", {}, act, seed=0, max_steps=1)
    assert seen == [chosen or "dummy"]
    # Windows that are opened later are seen.
    assert os.environ.get("SDL_VIDEODRIVER") == chosen


def test_what_cannot_be_drawn_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TaskError, match=rf"{ENV}, render\(\): found NoneType, which is no picture"):
        frames(ENV, {}, lambda _: 0, seed=0, max_steps=4)
    with (
        pytest.warns(UserWarning, match="rgb_array"),
        pytest.raises(ConfigError, match="film of Odd-v0: found no rgb_array among its render modes"),
    ):
        frames("Odd-v0", {"space": gymnasium.spaces.Discrete(2)}, lambda _: 0, seed=0, max_steps=4)
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(ConfigError, match=r"pygame.*pip install 'gradhat\[video\]'"):
        frames("CartPole-v1", {}, lambda _: 0, seed=0, max_steps=4)


def test_a_gif_holds_every_picture(tmp_path: Path) -> None:
    write(tmp_path / "film.gif", pictures(4), 50)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 4 and film.size == (48, 32)
        greys = []
        for i in range(4):
            film.seek(i)
            greys.append(film.convert("L").getpixel((5, 5)))
            assert film.info["duration"] == 20
    assert greys == pytest.approx([40, 80, 120, 160], abs=2)


def test_an_mp4_holds_every_picture(tmp_path: Path) -> None:
    import imageio_ffmpeg

    write(tmp_path / "film.mp4", pictures(4, 33, 49), 25)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(tmp_path / "film.mp4")]
    played = subprocess.run(
        [*command, "-f", "rawvideo", "-pix_fmt", "gray", "-"], capture_output=True, check=True
    )
    assert b"48x32" in played.stderr and b"25 fps" in played.stderr
    greys = np.frombuffer(played.stdout, dtype=np.uint8).reshape(4, -1).mean(-1).tolist()
    assert greys == pytest.approx([40, 80, 120, 160], abs=4)


def test_a_film_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"'.avi'. Use .mp4 or .gif"):
        write(tmp_path / "film.avi", pictures(1), 25)
    with pytest.raises(ConfigError, match="found no pictures"):
        write(tmp_path / "film.gif", [], 25)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ConfigError, match=r"pip install 'gradhat\[video\]', or write a .gif"):
        write(tmp_path / "film.mp4", pictures(1), 25)
    assert not list(tmp_path.iterdir())
