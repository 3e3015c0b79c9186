"""`gradhat eval` of a control run: the return of its newest checkpoint."""

from dataclasses import dataclass, replace
from pathlib import Path

from gradhat.cli.flags import parse
from gradhat.errors import ConfigError

DESCRIPTION = (
    """gradhat eval RUN [FLAGS]: play episodes with a control run's newest checkpoint, as it is measured."""
)


@dataclass(frozen=True)
class Flags:
    """What is measured."""

    episodes: int = 100
    """Episodes, as many in every environment that is played."""
    seed: int = 0
    """Chooses the first states. The same seed gives the same episodes."""
    env: str = ""
    """The environment, as in gradhat train. The run's own when left out."""
    trust: bool = False
    """Execute code that the run names: the module of module:Env-v0."""


def main(run: Path, argv: list[str]) -> int:
    """Print the mean return with its interval, the interquartile mean and the extremes."""
    from gradhat.intervals import Seen, interquartile_mean, number
    from gradhat.training.control import evaluate
    from gradhat.training.control.algorithms import read
    from gradhat.training.control.progress import returned
    from gradhat.training.control.session import placed, playing
    from gradhat.training.seed import derive

    flags = parse(Flags(), argv, prog=f"gradhat eval {run}", description=DESCRIPTION)
    if flags.episodes < 1:
        raise ConfigError(f"--episodes {flags.episodes}: found no episode to play. Use 1 or more.")
    config = placed(f"gradhat eval {run}", read(run), flags.env, trusted=flags.trust)
    config = replace(config, eval_episodes=flags.episodes)
    with playing(run, config) as session:
        played = session.play(derive(flags.seed, "eval"))
        step, measured = session.step, session.measured
    seen = Seen()
    found = returned(evaluate.summary(played, measured, seen), flags.episodes, seen.scale())
    middle, least, most = (
        number(value, seen.scale())
        for value in (interquartile_mean(played.returns), min(played.returns), max(played.returns))
    )
    print(f"run      {run}, step {step}\nenv      {config.env}: {counted(flags.episodes)}, {measured}")
    print(f"return   mean {found}")
    print(f"         interquartile mean {middle}, least {least}, most {most}")
    if played.num_cut:
        were = "was" if played.num_cut == 1 else "were"
        print(f"         {counted(played.num_cut)} {were} cut after {config.eval_max_steps} steps")
    return 0


def counted(episodes: int) -> str:
    """Return "1 episode" or "3 episodes"."""
    return "1 episode" if episodes == 1 else f"{episodes} episodes"
