"""Importing a user's file together with the modules that lie beside it."""

import importlib.util
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

_found: dict[str, Path] = {}
"""Modules that were found beside a file, and in which folder."""


@contextmanager
def beside(folder: Path) -> Generator[None]:
    """Inside, `import helper` finds `folder`/helper.py, before anything else, as in a script that lies there.

    What was found under that name beside a file of another folder is no longer it, and is imported anew.
    """
    folder = folder.absolute()
    for name in [name for name, place in _found.items() if place != folder and _file(folder, name)]:
        sys.modules.pop(name, None)
        del _found[name]
    known = set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
        _found.update({name: folder for name in set(sys.modules) - known if _file(folder, name)})


def found_beside(folder: Path) -> list[Path]:
    """Return the files of the modules that were found beside a file of `folder`."""
    folder = folder.absolute()
    files = [getattr(sys.modules.get(name), "__file__", None) for name, at in _found.items() if at == folder]
    return sorted(Path(file) for file in files if file)


def _file(folder: Path, module: str) -> bool:
    """Return whether `module` has its file in `folder`."""
    path = folder.joinpath(*module.split("."))
    return path.with_name(f"{path.name}.py").is_file() or path.is_dir()


def load_file(path: Path, name: str) -> ModuleType:
    """Import the file `path` as the module `name`, with what lies beside it in reach.

    Passes on what the file raises; a module that fails half-way is forgotten.
    """
    spec = importlib.util.spec_from_file_location(name, path.absolute())
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        with beside(path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module
