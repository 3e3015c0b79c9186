"""What people type where a path belongs. Any text may come: a name that no file can have is no error here."""

import errno
from collections.abc import Callable
from pathlib import Path


def home(place: str) -> Path:
    """Return the path that `place` names; ~ is the home folder, of whoever has one."""
    try:
        return Path(place).expanduser()
    except RuntimeError:
        return Path(place)


def exists(path: Path) -> bool:
    """Return whether there is something at `path`; what the system calls no path is nothing, and so is what
    it does not let us see."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Return whether there is a file at `path`. A pipe or a device, which may have no end, is none.

    OSError where the system does not let us look.
    """
    return _asked(path.is_file)


def is_folder(path: Path) -> bool:
    """Return whether there is a folder at `path`. OSError where the system does not let us look."""
    return _asked(path.is_dir)


def _asked(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except ValueError:
        return False
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise
