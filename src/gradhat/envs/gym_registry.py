"""Gymnasium's registry, with errors that say what to do: an unknown id, a missing extra, a wrong argument."""

import difflib
import importlib
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from gradhat.errors import ConfigError, GradhatError, TaskError
from gradhat.importing import beside

EXTRAS = ("box2d", "mujoco")
"""Parts of Gymnasium that need a package of their own, and the extras of gradhat that bring it."""


def registered(env_id: str) -> EnvSpec:
    """Return what Gymnasium knows of `env_id`. "module:Env-v0" imports the module first, from the present
    folder or from where Python finds it.

    ConfigError for an unknown id, with the nearest ones, and for a module that does not import.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        _import(env_id, module)
    try:
        return gymnasium.spec(name)
    except gymnasium.error.Error as error:
        raise ConfigError(
            f"environment {env_id!r}: found no such id in Gymnasium. {_advice(name)}"
        ) from error


@contextmanager
def making(env_id: str, spec: EnvSpec, kwargs: Mapping[str, Any]) -> Generator[None]:
    """Explain what goes wrong while the environment `env_id`, of `spec`, is made. ConfigError, or TaskError
    where its own code is at fault."""
    what = f"environment {env_id!r}" + (f" with {dict(kwargs)}" if kwargs else "")
    try:
        with warnings.catch_warnings():
            # Box2D's bindings crash the whole process where this warning, of their import, is an error.
            warnings.filterwarnings("ignore", "builtin type .* has no __module__", DeprecationWarning)
            # A module of one's own may name, as its entry point, another one beside it.
            with beside(Path.cwd()) if ":" in env_id else nullcontext():
                yield
    except GradhatError:
        raise
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        raise ConfigError(f"{what}: {_missing(spec, error)}") from error
    except (TypeError, gymnasium.error.Error) as error:
        raise ConfigError(
            f"{what}: found that it cannot be made: {error}. Pass arguments that this environment takes."
        ) from error
    except Exception as error:
        raise TaskError(
            f"{what}: found {type(error).__name__} while it was made: {error}. Repair the environment or its "
            "arguments."
        ) from error


def _import(env_id: str, module: str) -> None:
    try:
        with beside(Path.cwd()):
            importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"environment {env_id!r}: found that importing {module} fails with {error}. Install it, run "
            "gradhat in its folder, or put that folder on PYTHONPATH."
        ) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"environment {env_id!r}: found that importing {module} raises {type(error).__name__}: {error}. "
            "Repair the module, or name another one."
        ) from error


def _advice(name: str) -> str:
    """Name the nearest ids, whatever the case."""
    known = {env_id.lower(): env_id for env_id in sorted(gymnasium.registry)}
    near = [known[key] for key in difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.7)]
    if near:
        return f"Did you mean {' or '.join(near)}?"
    return "Use one of gymnasium.registry, or module:Env-v0 for one that a module of yours registers."


def _missing(spec: EnvSpec, error: Exception) -> str:
    """Say which package is missing, and the command that brings it."""
    extra = next((extra for extra in EXTRAS if f".{extra}." in str(spec.entry_point)), None)
    if extra is None:
        return f"found a missing package: {str(error).rstrip('.')}. Install it, or use another environment."
    # Gymnasium's own error names a command of its own.
    why = "" if isinstance(error, gymnasium.error.DependencyNotInstalled) else f" ({error})"
    return f"found that its {extra} package is missing{why}. Run: pip install 'gradhat[{extra}]'"
