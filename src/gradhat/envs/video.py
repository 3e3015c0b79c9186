"""An episode as pictures, and pictures as a film."""

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradhat.envs.gym import GymSpec, World, make
from gradhat.errors import ConfigError, TaskError

Picture = NDArray[np.uint8]

DRIVER = "SDL_VIDEODRIVER"
"""The variable that says where pygame, which draws many environments, shows its pictures."""


class Film(NamedTuple):
    """One episode."""

    frames: list[Picture]
    """uint8 `[height, width, 3]` each: one before every step, and one of what followed the last."""
    total: float
    """The return, undiscounted."""
    fps: int
    """Pictures a second at which the environment is meant to be seen."""
    ended: bool
    """Whether the episode came to its end within the steps it was given."""


def frames(
    env_id: str,
    kwargs: Mapping[str, Any],
    act: Callable[[NDArray[np.float32]], NDArray[Any] | int],
    *,
    seed: int,
    max_steps: int,
    spaces: str = "",
) -> Film:
    """Film one episode of `act`, which gets a flat observation `[O]` and returns an action: a number, or a
    vector `[size]`, as a policy would. `spaces` are the `World.spaces` that it knows; "" is any.

    ConfigError where the environment draws no pictures, where a package that draws them is missing, or where
    a single one, which is what is filmed, has other spaces.
    TaskError where what it draws is none.
    """
    drawing = {**kwargs, "render_mode": "rgb_array"}
    # Next-step autoreset leaves the final state standing, so that it can be seen.
    world = make(GymSpec(env_id, 1, "sync", drawing, "next_step"))
    if "rgb_array" not in world.metadata.get("render_modes", []):
        raise ConfigError(
            f"a film of {env_id}: found no rgb_array among its render modes, so that it draws no pictures. "
            "Film another environment, or give this one that mode."
        )
    if spaces not in ("", world.spaces):
        world.close()
        raise ConfigError(
            f"a film of {env_id}: found {world.spaces} in a single environment, which can be filmed, but its "
            f"vector version, which the policy knows, has {spaces}. Make them alike, or train with "
            "--vectorization sync."
        )
    with _no_screen(), closing(world):
        observations, pictures, total, ended = world.reset(seed), [_picture(world)], 0.0, False
        while not ended and len(pictures) <= max_steps:
            step = world.step(np.asarray(act(observations[0]))[None])
            observations, ended = step.observations, bool(step.terminated[0] | step.truncated[0])
            total += float(step.rewards[0])
            pictures.append(_picture(world))
    return Film(pictures, total, int(world.metadata.get("render_fps", 30)), ended)


def write(path: Path, pictures: Sequence[Picture], fps: int) -> None:
    """Write a film, .mp4 or .gif by the name of `path`.

    A .gif holds whole hundredths of a second a picture, at least 2 (which viewers show as written).
    Errors are those of `writer_of`, and ConfigError for no pictures.
    """
    writer = writer_of(path)
    if not pictures:
        raise ConfigError(f"a film {path.name}: found no pictures. Film at least the first state.")
    writer(path, pictures, fps)


def writer_of(path: Path) -> Callable[[Path, Sequence[Picture], int], None]:
    """Return what writes a film of the name of `path`. To be asked before an episode is played for it.

    ConfigError for an ending other than .mp4 and .gif, and for .mp4 without the package that writes it.
    """
    writers = {".mp4": _write_mp4, ".gif": _write_gif}
    if path.suffix not in writers:
        raise ConfigError(f"a film {path.name}: found the ending {path.suffix!r}. Use .mp4 or .gif.")
    if path.suffix == ".mp4" and find_spec("imageio_ffmpeg") is None:
        raise ConfigError(
            f"a film {path.name}: found no package imageio-ffmpeg, which writes .mp4. "
            "Run: pip install 'gradhat[video]', or write a .gif."
        )
    return writers[path.suffix]


@contextmanager
def _no_screen() -> Generator[None]:
    """Let pygame draw without a screen, unless the user chose one: a search for it complains where there is
    none."""
    if DRIVER in os.environ:
        yield
        return
    os.environ[DRIVER] = "dummy"
    try:
        yield
    finally:
        del os.environ[DRIVER]


def _picture(world: World) -> Picture:
    picture = world.render()
    if not isinstance(picture, np.ndarray) or picture.ndim != 3:
        raise TaskError(
            f"{world.name}, render(): found {type(picture).__name__}, which is no picture of shape [height, "
            "width, 3]. Repair the environment."
        )
    return picture.astype(np.uint8)


def _write_gif(path: Path, pictures: Sequence[Picture], fps: int) -> None:
    from PIL import Image

    first, *rest = [Image.fromarray(picture) for picture in pictures]
    hundredths = max(2, round(100 / fps))
    first.save(path, save_all=True, append_images=rest, duration=10 * hundredths, loop=0)


def _write_mp4(path: Path, pictures: Sequence[Picture], fps: int) -> None:
    import imageio_ffmpeg

    height, width = pictures[0].shape[:2]
    # The codec wants even sides.
    size = (width - width % 2, height - height % 2)
    writer = imageio_ffmpeg.write_frames(str(path), size, fps=fps, macro_block_size=2)
    writer.send(None)
    for picture in pictures:
        writer.send(np.ascontiguousarray(picture[: size[1], : size[0]]))
    writer.close()
