"""`gradhat train`: from a recipe, an algorithm, or flags alone; or on from where a run stopped."""

import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from gradhat.cli import recipes
from gradhat.cli.columns import Columns, absolute
from gradhat.cli.flags import gathered, near, parse
from gradhat.errors import ConfigError, RunError
from gradhat.training.run_folder import RunFolder, refuse_taken, reserved

if TYPE_CHECKING:
    from gradhat.training.loop import Session

DESCRIPTION = """gradhat train RECIPE [FLAGS]: run a recipe, with the flags in place of its own settings.

gradhat train --task my_task.py:MyTask [FLAGS]: train a language model on a task of your own.

gradhat train --task questions.jsonl [--reward my_rewards.py:fn] [FLAGS]: the same from a file of questions.

gradhat train ALGORITHM --env ID [FLAGS]: ppo, dqn and others in any Gymnasium environment.

gradhat train --resume RUN: go on with a stopped run, or with more steps or frames a finished one."""

C = TypeVar("C")


@dataclass(frozen=True)
class Launch(Generic[C]):
    """What to train and where."""

    config: C
    out: Path | None = None
    """The run folder to make. None makes runs/NAME-DATE-TIME."""
    resume: Path | None = None
    """The folder of a run to go on with, to the bit."""
    restart: bool = False
    """With --resume: begin again with the first step. What is there is moved to RUN/aside."""
    dry_run: bool = False
    """Print the resolved config as JSON and stop."""


@dataclass(frozen=True)
class TextLaunch(Launch[C]):
    """What to train and where, and which columns its questions are in."""

    columns: Columns = field(default_factory=Columns)


@dataclass(frozen=True)
class Kind(Generic[C]):
    """How one kind of run is configured and made."""

    launch: Any
    """The type whose fields are the flags; called with a config it makes the defaults."""
    read: Callable[[Path], C]
    """The config of a run folder."""
    ready: Callable[[Any], C]
    """A launch → its config, checked and independent of the present folder."""
    to_json: Callable[[C], dict[str, Any]]
    differences: Callable[[C, C], list[str]]
    longer: str
    """The setting that may be larger where a run goes on."""
    prepare: Callable[[C], "Session"]


def main(argv: list[str]) -> int:
    """Train, and return the exit code: 0 when finished, 128 + N when signal N stopped it."""
    name, flags = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (None, argv)
    resumed = _value_of("--resume", flags)
    kind, config = _resumed(Path(resumed).expanduser()) if resumed and name is None else _named(name, flags)
    prog = f"gradhat train {name or ''}".rstrip()
    for flag in ("--reward", "--template-args"):
        flags = gathered(flags, flag)
    launch = parse(kind.launch(config), flags, prog=prog, description=DESCRIPTION, kind=kind.launch)
    launch = replace(launch, config=kind.ready(launch))
    if launch.dry_run:
        print(json.dumps(kind.to_json(launch.config), indent=2))
        return 0
    return _run(kind, launch, name or "run")


def _named(name: str | None, flags: list[str]) -> tuple[Kind[Any], Any]:
    """Return what a first word means, and the config it starts from."""
    if name is None:
        from gradhat.training.text.config import TrainConfig

        return _text(), TrainConfig()
    found = recipes.find()
    if name in found:
        return _text(), found[name]()
    from gradhat.recipes.tuned import control
    from gradhat.training.control.algorithms import ALGORITHMS

    if name not in ALGORITHMS:
        known = [*found, *ALGORITHMS]
        raise ConfigError(
            f"gradhat train {name}: no such recipe or algorithm.{near(name, known)} "
            f"Recipes: {', '.join(found)}. Algorithms: {', '.join(ALGORITHMS)}."
        )
    config = control(name, _value_of("--env", flags) or "CartPole-v1")
    return _control(type(config.learning)), config


def _resumed(path: Path) -> tuple[Kind[Any], Any]:
    values = RunFolder(path).config()
    if "learning" not in values:
        kind = _text()
        return kind, kind.read(path)
    from gradhat.training.control.algorithms import read

    config = read(path)
    return _control(type(config.learning)), config


def _text() -> Kind[Any]:
    from gradhat.training.text import config as text

    def ready(launch: TextLaunch[text.TrainConfig]) -> text.TrainConfig:
        config = launch.config
        config = _absolute(replace(config, task=launch.columns.named(config.task)))
        text.check(config)
        return config

    def prepare(config: text.TrainConfig) -> "Session":
        from gradhat.training.text.session import prepare

        return prepare(config)

    return Kind(
        TextLaunch[text.TrainConfig], text.read, ready, text.to_json, text.differences, "num_steps", prepare
    )


def _control(learning: type) -> Kind[Any]:
    from gradhat.training.control import algorithms, config, session

    def ready(launch: Launch[config.ControlConfig[Any]]) -> config.ControlConfig[Any]:
        config.check(launch.config)
        return launch.config

    return Kind(
        Launch[config.ControlConfig[learning]],
        algorithms.read,
        ready,
        config.to_json,
        config.differences,
        "num_frames",
        session.prepare,
    )


def _run(kind: Kind[Any], launch: Launch[Any], name: str) -> int:
    from gradhat.training.loop import train
    from gradhat.training.trust import announce

    if launch.resume is not None:
        _check_resume(kind, launch, launch.resume)
        for line in announce(launch.resume, kind.to_json(launch.config)):
            print(line, flush=True)
        with RunFolder.open(launch.resume) as run, closing(kind.prepare(launch.config)) as session:
            return train(run, session, kind.to_json(launch.config), restart=launch.restart)
    if launch.restart:
        raise ConfigError("--restart without --resume: found no run to begin again. Add --resume RUN.")
    if launch.out is not None:
        refuse_taken(launch.out)
    # The folder comes last: a task, a model or an environment that cannot be used leaves none behind.
    with closing(kind.prepare(launch.config)) as session:
        out = launch.out or reserved(Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
        with RunFolder.create(out, kind.to_json(launch.config)) as run:
            return train(run, session)


def _check_resume(kind: Kind[Any], launch: Launch[Any], path: Path) -> None:
    """RunError names the settings in which the run to go on with was started differently."""
    if launch.out is not None:
        raise ConfigError(
            f"--resume {path} with --out {launch.out}: a resumed run stays in its folder. Drop --out."
        )
    mine, theirs = kind.to_json(launch.config), RunFolder(path).config()
    if _agent(mine) != _agent(theirs):
        raise RunError(
            f"resume {path}: asked for {_agent(mine)}, found {_agent(theirs)} there. Go on with it as it "
            f"was: gradhat train --resume {path}"
        )
    here, there = launch.config, kind.read(path)
    # More of the same is the one change that leaves what was done as it was.
    longer = max(getattr(here, kind.longer), getattr(there, kind.longer))
    changed = kind.differences(here, replace(there, **{kind.longer: longer}))
    if changed:
        found = ", ".join(
            f"{name} is {_find(name, theirs)!r} there and {_find(name, mine)!r} here" for name in changed
        )
        raise RunError(
            f"resume {path}: it was started with another config: {found}. "
            f"Resume without these flags, or start a new run."
        )


def _agent(values: dict[str, Any]) -> str:
    """Return what learns in the run of a config, in words."""
    return f"a run of {values.get('algorithm')}" if "learning" in values else "a run of a language model"


def _find(name: str, values: dict[str, Any]) -> Any:
    """Return the value of a setting, which may lie in a part of its own."""
    if name in values:
        return values[name]
    found = (_find(name, part) for part in values.values() if isinstance(part, dict))
    return next((value for value in found if value is not None), None)


def _value_of(flag: str, flags: list[str]) -> str | None:
    """Return what follows `flag`, as the flags will be parsed later."""
    for word, following in pairwise([*flags, None]):
        if word == flag:
            return following
        if word is not None and word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def _absolute(config: Any) -> Any:
    """Name task and model files from the root, so that the config can be launched from any folder."""
    from gradhat.training.text.model import settled

    return replace(
        config,
        task=absolute(config.task),
        curriculum=tuple(map(absolute, config.curriculum)),
        reward=tuple(map(absolute, config.reward)),
        model=settled(config.model),
    )
