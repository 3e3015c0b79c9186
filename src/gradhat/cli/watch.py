"""`gradhat watch`: a film of a trained policy."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradhat.cli.flags import parse, target
from gradhat.errors import ConfigError
from gradhat.places import home

if TYPE_CHECKING:
    from gradhat.training.control.agent import Choice
    from gradhat.training.control.config import ControlConfig

Act = Callable[[Any], Any]
"""A flat observation `[O]` → an action."""

USAGE = "gradhat watch RUN"
DESCRIPTION = (
    """gradhat watch RUN [FLAGS]: film episodes of a control run's newest checkpoint, as it is measured."""
)


@dataclass(frozen=True)
class Flags:
    """What is filmed."""

    episodes: int = 1
    """Episodes, one after the other."""
    out: Path | None = None
    """The film, .mp4 or .gif. None makes watch.mp4 in the run folder, watch.gif where the package that writes
    .mp4 is missing."""
    seed: int = 0
    """Chooses the first states."""
    max_steps: int = 2000
    """An episode that is longer is cut here."""
    env: str = ""
    """The environment, as in gradhat train. The run's own when left out."""
    trust: bool = False
    """Execute code that the run names: the module of module:Env-v0."""


def main(argv: list[str]) -> int:
    """Film, and print the return of every episode."""
    if argv and argv[0] in ("-h", "--help"):
        parse(Flags(), argv, prog=USAGE, description=DESCRIPTION)
    place, argv = target(argv, "run", USAGE)
    flags = parse(Flags(), argv, prog=f"gradhat watch {place}", description=DESCRIPTION)
    for name in ("episodes", "max_steps"):
        if getattr(flags, name) < 1:
            raise ConfigError(f"{name}={getattr(flags, name)}: found a value out of range. Use 1 or more.")
    if flags.out is not None:
        from gradhat.envs.video import writer_of

        writer_of(flags.out)
    film(home(place), flags)
    return 0


def film(run: Path, flags: Flags) -> None:
    """Play the episodes and write the film."""
    from gradhat.envs import video
    from gradhat.training.control.config import env_kwargs
    from gradhat.training.control.session import placed, playing
    from gradhat.training.run_folder import ELSEWHERE, whole_file, writing
    from gradhat.training.seed import derive

    config = placed(f"gradhat watch {run}", read(run), flags.env, trusted=flags.trust)
    config = replace(config, eval_episodes=1)
    out = flags.out or run / ("watch.mp4" if find_spec("imageio_ffmpeg") else "watch.gif")
    pictures: list[video.Picture] = []
    fps = 0
    with writing(out, todo=ELSEWHERE):
        _try_place(out)
    with playing(run, config) as session:
        act = acting(session.policy(flags.seed))
        print(
            f"film   {config.algorithm} in {config.env}, the {session.measured} policy of step {session.step}"
        )
        for i in range(flags.episodes):
            seed = derive(flags.seed, "watch", i)
            seen = video.frames(
                config.env,
                env_kwargs(config),
                act,
                seed=seed,
                max_steps=flags.max_steps,
                spaces=session.judge.spaces,
            )
            pictures += seen.frames
            fps = seen.fps
            cut = "" if seen.ended else ", cut there: --max-steps MORE shows on"
            print(f"episode {i + 1}: return {seen.total:.1f} in {len(seen.frames) - 1} steps{cut}")
    with whole_file(out, ELSEWHERE) as partial:
        video.write(partial, pictures, fps)
    print(f"written to {out}: {len(pictures)} pictures, {len(pictures) / fps:.1f} s")


def _try_place(out: Path) -> None:
    """Raise OSError where `out` cannot be made: before the episodes are played, not after."""
    out.parent.mkdir(parents=True, exist_ok=True)
    there = out.exists()
    out.touch()
    if not there:
        out.unlink()


def read(run: Path) -> "ControlConfig[Any]":
    """Return the config of a control run. ConfigError where there is nothing to see."""
    from gradhat.training.control.algorithms import read
    from gradhat.training.control.worlds import ZOO_PREFIX
    from gradhat.training.run_folder import RunFolder
    from gradhat.training.sweeps.results import CONTROL, kind_of
    from gradhat.training.text.config import read as read_text

    if kind_of(RunFolder(run).config()) is not CONTROL:
        # Whatever is no config of a text run either says what is wrong with it.
        read_text(run)
        raise ConfigError(f"watch {run}: found a text run. Talk to it: gradhat chat {run}")
    config = read(run)
    if config.env.startswith(ZOO_PREFIX):
        raise ConfigError(f"watch {run}: found {config.env}, which draws no pictures. Watch a Gymnasium run.")
    return config


def acting(choose: "Choice") -> "Act":
    """Return the policy for one observation at a time."""
    import torch

    @torch.no_grad()
    def act(observation: Any) -> Any:
        return choose(torch.from_numpy(observation[None])).numpy()[0]

    return act
