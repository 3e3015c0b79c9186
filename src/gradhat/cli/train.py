"""`gradhat train`: from a recipe, an algorithm, or flags alone; or on from where a run stopped."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import closing, redirect_stdout
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from gradhat.cli import recipes
from gradhat.cli.columns import Columns, absolute
from gradhat.cli.flags import gathered, near, parse
from gradhat.errors import ConfigError, RunError
from gradhat.places import home
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
    """The folder of a run to go on with, to the bit. Settings that change no result may be given anew, and
    files that have moved."""
    restart: bool = False
    """With --resume: begin again with the first step. What is there is moved to RUN/aside."""
    dry_run: bool = False
    """Try task, model and environment, print the resolved config as JSON, and stop. Trains and writes
    nothing."""


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
    hindrances: Callable[[C, C], list[str]]
    """The config to go on with, the config that a run began with → the settings that forbid it."""
    longer: str
    """The setting that may be larger where a run goes on."""
    rehearse: Callable[[C, Path | None], str]
    """The config, the run that it goes on with → what was found, without training and without writing."""
    prepare: Callable[[C, Path | None], "Session"]


def main(argv: list[str]) -> int:
    """Train, and return the exit code: 0 when finished, 128 + N when signal N stopped it."""
    name, kind, launch = launched(argv)
    if launch.resume is not None:
        _check_resume(kind, launch, launch.resume)
    elif launch.restart:
        raise ConfigError("--restart without --resume: found no run to begin again. Add --resume RUN.")
    elif launch.out is not None:
        refuse_taken(launch.out)
    return _rehearse(kind, launch) if launch.dry_run else _run(kind, launch, name)


def launched(argv: list[str]) -> tuple[str, Kind[Any], Launch[Any]]:
    """Return what a command trains: its name, its kind, and its flags, the config among them checked.

    ConfigError where the command is a wrong one. Tasks, models and environments are not looked at.
    """
    name, flags = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (None, argv)
    resumed = _value_of("--resume", flags)
    kind, config = _resumed(home(resumed)) if resumed and name is None else _named(name, flags)
    prog = f"gradhat train {name or ''}".rstrip()
    for flag in ("--reward", "--template-args"):
        flags = gathered(flags, flag)
    launch = parse(kind.launch(config), flags, prog=prog, description=DESCRIPTION, kind=kind.launch)
    return name or "run", kind, replace(launch, config=kind.ready(launch))


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

    _check_kind(name, flags, list(ALGORITHMS))
    if name not in ALGORITHMS:
        known = [*found, *ALGORITHMS]
        raise ConfigError(
            f"gradhat train {name}: no such recipe or algorithm.{near(name, known)} "
            f"Recipes: {', '.join(found)}. Algorithms: {', '.join(ALGORITHMS)}."
        )
    config = control(name, _value_of("--env", flags) or "CartPole-v1")
    return _control(type(config.learning)), config


def _check_kind(name: str, flags: list[str], of_control: list[str]) -> None:
    """ConfigError for a first word that is an algorithm of text, and for a task beside one of control."""
    from gradhat.algorithms.grpo_family import FAMILY
    from gradhat.training.text.config import REINFORCE

    task = _value_of("--task", flags)
    if name in FAMILY or (name == REINFORCE and task):
        raise ConfigError(
            f"gradhat train {name}: found the name of an algorithm that trains a language model. Write "
            f"gradhat train --task {task or 'TASK'} --algorithm {name}"
        )
    if name in of_control and task:
        raise ConfigError(
            f"gradhat train {name} --task {task}: {name} learns in an environment, --env ID. A language "
            f"model is trained on a task: gradhat train --task {task} --algorithm "
            f"{' or '.join((REINFORCE, *FAMILY))}"
        )


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
        if launch.resume is not None:
            from gradhat.training.text.moved import check_there

            check_there(launch.resume, config)
        return config

    def hindrances(mine: text.TrainConfig, theirs: text.TrainConfig) -> list[str]:
        from gradhat.training.text.moved import hindrances

        return hindrances(mine, theirs)

    def rehearse(config: text.TrainConfig, run: Path | None) -> str:
        from gradhat.training.text.trial import rehearse

        return rehearse(config, run)

    def prepare(config: text.TrainConfig, run: Path | None) -> "Session":
        from gradhat.training.text.session import prepare

        return prepare(config, run)

    return Kind(
        TextLaunch[text.TrainConfig],
        text.read,
        ready,
        text.to_json,
        hindrances,
        "num_steps",
        rehearse,
        prepare,
    )


def _control(learning: type) -> Kind[Any]:
    from gradhat.training.control import algorithms, config, session

    def ready(launch: Launch[config.ControlConfig[Any]]) -> config.ControlConfig[Any]:
        config.check(launch.config)
        return launch.config

    def hindrances(mine: config.ControlConfig[Any], theirs: config.ControlConfig[Any]) -> list[str]:
        return [name for name in config.differences(mine, theirs) if name not in config.CHANGEABLE]

    def rehearse(config: Any, run: Path | None) -> str:
        with closing(session.prepare(config)) as made:
            return made.opening()

    return Kind(
        Launch[config.ControlConfig[learning]],
        algorithms.read,
        ready,
        config.to_json,
        hindrances,
        "num_frames",
        rehearse,
        lambda config, run: session.prepare(config),
    )


def _rehearse(kind: Kind[Any], launch: Launch[Any]) -> int:
    """Find out whether the run could begin, say on stderr what was found, and print the config."""
    # The JSON stands alone on stdout, whatever a task prints.
    with redirect_stdout(sys.stderr):
        _announce(kind, launch)
        if launch.resume is not None:
            _say_start(kind, launch, launch.resume)
        print(kind.rehearse(launch.config, _goes_on(launch)))
    print(json.dumps(kind.to_json(launch.config), indent=2))
    return 0


def _say_start(kind: Kind[Any], launch: Launch[Any], path: Path) -> None:
    """Say where the run at `path` would go on. RunError where it cannot."""
    from gradhat.training.loop import start_of

    run = RunFolder(path)
    found, damage = start_of(run, restart=launch.restart)
    same = getattr(launch.config, kind.longer) == getattr(kind.read(path), kind.longer)
    if same and found is not None and (path / "summary.json").exists():
        flag = f"--{kind.longer.replace('_', '-')}"
        raise RunError(
            f"resume {path}: it is finished. Go on with {flag} MORE, or look at it: gradhat eval {path}"
        )
    print("\n".join([*damage, f"run    {path}, from step {found.step if found else 0}"]))


def _run(kind: Kind[Any], launch: Launch[Any], name: str) -> int:
    from gradhat.training.loop import train

    _announce(kind, launch)
    config = kind.to_json(launch.config)
    if launch.resume is not None:
        with (
            RunFolder.open(launch.resume.absolute()) as run,
            closing(kind.prepare(launch.config, run.path if _goes_on(launch) else None)) as session,
        ):
            return train(run, session, config, restart=launch.restart)
    here = Path.cwd()
    # The folder comes last: a task, a model or an environment that cannot be used leaves none behind.
    with closing(kind.prepare(launch.config, None)) as session:
        # A task that goes into another folder when it is imported does not take the run along.
        base = Path() if Path.cwd() == here else here
        named = base / "runs" / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
        out = base / launch.out if launch.out is not None else reserved(named)
        with RunFolder.create(out, config) as run:
            return train(run, session)


def _announce(kind: Kind[Any], launch: Launch[Any]) -> None:
    """Say which code a run to go on with names, before it is executed. What a flag names anew is no news."""
    from gradhat.training.trust import announce

    if launch.resume is not None:
        there = RunFolder(launch.resume).config()
        named = {key: value for key, value in kind.to_json(launch.config).items() if there.get(key) == value}
        for line in announce(launch.resume, named):
            print(line, flush=True)


def _goes_on(launch: Launch[Any]) -> Path | None:
    """Return the run whose checkpoint a launch begins with, where it does."""
    return None if launch.restart else launch.resume


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
    changed = kind.hindrances(here, replace(there, **{kind.longer: longer}))
    if changed:
        found = ", ".join(
            f"{name} is {_find(name, theirs)!r} there and {_find(name, mine)!r} here" for name in changed
        )
        flag = f"--{kind.longer.replace('_', '-')}"
        more = f" {flag} may be larger than there, not smaller." if kind.longer in changed else ""
        raise RunError(
            f"resume {path}: it was started with another config: {found}.{more} "
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
