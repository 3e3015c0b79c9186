"""A run that goes on a little otherwise: with settings that change no result, with files that have moved."""

from pathlib import Path

from gradhat.envs.text.load import file_of, source_hash
from gradhat.errors import RunError
from gradhat.policies.language.weights import exists
from gradhat.training.text.config import CHANGEABLE, TrainConfig, differences

FILES = ("task", "reward", "curriculum")
"""Settings that may name files."""


def hindrances(mine: TrainConfig, theirs: TrainConfig) -> list[str]:
    """Return the names of the settings for which a run of `mine` is no continuation of one of `theirs`.

    The model may always be named anew: the weights to go on with are those of the checkpoint.
    """
    changed = [name for name in differences(mine, theirs) if name not in (*CHANGEABLE, "model")]
    return [name for name in changed if name not in FILES or not _have_moved(mine, theirs, name)]


def check_there(run: Path, config: TrainConfig) -> None:
    """RunError where a file is gone that going on with `run` needs, with the flag that names it anew."""
    for name in FILES:
        specs = _specs(config, name)
        gone = [file for file in map(file_of, specs) if file is not None and not exists(file.path)]
        if gone:
            anew = " ".join(map(_elsewhere, specs))
            raise RunError(
                f"resume {run}: its {name} is to be in {gone[0].path}; found nothing there. Put it back, or "
                f"name its new place: gradhat train --resume {run} --{name} {anew}"
            )


def _elsewhere(spec: str) -> str:
    """Return how to write what `spec` names where its file has moved."""
    file = file_of(spec)
    if file is None or exists(file.path):
        return spec
    return f"FOLDER/{file.path.name}{file.rest and ':'}{file.rest}"


def _specs(config: TrainConfig, name: str) -> tuple[str, ...]:
    value: str | tuple[str, ...] = getattr(config, name)
    return value if isinstance(value, tuple) else (value,)


def _have_moved(mine: TrainConfig, theirs: TrainConfig, name: str) -> bool:
    here, there = _specs(mine, name), _specs(theirs, name)
    return len(here) == len(there) and all(map(_is_moved, here, there))


def _is_moved(here: str, there: str) -> bool:
    """Return whether `here` names what `there` named, from another place. What is in an old place still shows
    whether it is another file."""
    new, old = file_of(here), file_of(there)
    if new is None or old is None:
        return here == there
    alike = new.rest == old.rest and (new.path.suffix == ".py") == (old.path.suffix == ".py")
    return alike and (not exists(old.path) or source_hash(here) == source_hash(there))
