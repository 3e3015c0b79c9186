"""Gymnasium's registry, with errors that say what to do: an unknown id, a missing extra, a wrong argument."""

import difflib
import importlib
import sys
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from gradhat.errors import ConfigError, GradhatError, TaskError
from gradhat.importing import beside

EXTRAS = ("box2d", "mujoco")
"""Parts of Gymnasium that need a package of their own, and the extras of gradhat that bring it."""
INSTALLED = frozenset({"site-packages", "dist-packages"})
"""Folders of installed packages."""


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


def sources_of(env_id: str) -> dict[str, str]:
    """Return what an environment that was made is of, beside Gymnasium itself: package → version, or module →
    hash of its file where that is no installed one."""
    spec = registered(env_id)
    modules = {env_id.rpartition(":")[0], *map(_module, (spec.entry_point, spec.vector_entry_point))}
    packages = {extra for extra in EXTRAS for name in modules if f".{extra}." in name}
    found: dict[str, str] = {}
    for name in sorted(modules):
        file, top = getattr(sys.modules.get(name), "__file__", None), name.partition(".")[0]
        if file is None or top == "gymnasium":
            continue
        if INSTALLED.isdisjoint(Path(file).parts):
            found[f"module {name}"] = sha256(Path(file).read_bytes()).hexdigest()
        else:
            packages.update(metadata.packages_distributions().get(top, []))
    return found | {package: version for package in sorted(packages) if (version := _version(package))}


def _version(package: str) -> str:
    """Return the version of an installed package, "" where nothing of that name is known."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _module(entry_point: Any) -> str:
    """Return the name of the module that an entry point of the registry lies in."""
    if isinstance(entry_point, str):
        return entry_point.partition(":")[0]
    return getattr(entry_point, "__module__", None) or ""


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
    except (GradhatError, KeyboardInterrupt):
        raise
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        raise ConfigError(f"{what}: {_missing(spec, error)}") from error
    except (TypeError, gymnasium.error.Error) as error:
        raise ConfigError(
            f"{what}: found that it cannot be made: {error}. Pass arguments that this environment takes."
        ) from error
    except BaseException as error:
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
    except KeyboardInterrupt:
        raise
    except BaseException as error:
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
