"""`gradhat train`: from a recipe, from flags alone, or on from where a run stopped."""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

from gradhat.cli import recipes
from gradhat.cli.flags import parse
from gradhat.errors import ConfigError, RunError
from gradhat.training.run_folder import RunFolder
from gradhat.training.text.config import TrainConfig, check, differences, read, to_json

DESCRIPTION = """gradhat train RECIPE [FLAGS]: run a recipe, with the flags in place of its own settings.

gradhat train --task my_task.py:MyTask [FLAGS]: train on a task of your own.

gradhat train --resume RUN: go on with a stopped run, or with --num-steps MORE a finished one."""


@dataclass(frozen=True)
class Launch:
    """What to train and where."""

    config: TrainConfig
    out: Path | None = None
    """The run folder to make. None makes runs/NAME-DATE-TIME."""
    resume: Path | None = None
    """The folder of a run to go on with, to the bit."""
    dry_run: bool = False
    """Print the resolved config as JSON and stop."""


def main(argv: list[str]) -> int:
    """Train, and return the exit code: 0 when finished, 130 when Ctrl-C stopped it."""
    recipe, flags = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else (None, argv)
    launch = _parse(Launch(recipes.get(recipe) if recipe else TrainConfig()), recipe, flags)
    if launch.resume is not None and recipe is None:
        launch = _parse(Launch(read(launch.resume)), recipe, flags)
    launch = replace(launch, config=_absolute(launch.config))
    check(launch.config)
    if launch.dry_run:
        print(json.dumps(to_json(launch.config), indent=2))
        return 0
    return _run(launch, recipe or "run")


def _parse(default: Launch, recipe: str | None, flags: list[str]) -> Launch:
    return parse(default, flags, prog=f"gradhat train {recipe or ''}".rstrip(), description=DESCRIPTION)


def _run(launch: Launch, name: str) -> int:
    from gradhat.training.loop import train
    from gradhat.training.text.session import prepare

    if launch.resume is not None:
        _check_resume(launch, launch.resume)
        with RunFolder.open(launch.resume) as run:
            run.write_json("config.json", to_json(launch.config))
            return train(run, prepare(launch.config))
    # The folder comes last: a task or a model that cannot be used leaves none behind.
    session = prepare(launch.config)
    out = launch.out or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    with RunFolder.create(out, to_json(launch.config)) as run:
        return train(run, session)


def _check_resume(launch: Launch, path: Path) -> None:
    """RunError names the settings in which the run to go on with was started differently."""
    if launch.out is not None:
        raise ConfigError(
            f"--resume {path} with --out {launch.out}: a resumed run stays in its folder. Drop --out."
        )
    here, there = launch.config, read(path)
    # More steps are the one change that leaves what was done as it was.
    changed = differences(here, replace(there, num_steps=max(here.num_steps, there.num_steps)))
    if changed:
        found = ", ".join(
            f"{name} is {getattr(there, name)!r} there and {getattr(here, name)!r} here" for name in changed
        )
        raise RunError(
            f"resume {path}: it was started with another config: {found}. "
            f"Resume without these flags, or start a new run."
        )


def _absolute(config: TrainConfig) -> TrainConfig:
    """Name task and model files from the root, so that the config can be launched from any folder."""
    from gradhat.policies.language.alias import ALIASES

    model = Path(config.model).expanduser()
    return replace(
        config,
        task=_absolute_task(config.task),
        curriculum=tuple(map(_absolute_task, config.curriculum)),
        model=str(model.resolve()) if config.model not in ALIASES and model.exists() else config.model,
    )


def _absolute_task(spec: str) -> str:
    """Return "/folder/my_task.py:MyTask" for "my_task.py:MyTask"; other tasks are not files."""
    file, dot, name = spec.partition(".py")
    return f"{Path(f'{file}.py').expanduser().resolve()}{name}" if dot and name[:1] in ("", ":") else spec
