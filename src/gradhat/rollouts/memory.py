"""How much memory can still be had: of the machine, and of the group of processes that this one is in."""

import os
from pathlib import Path
from typing import NamedTuple


class _Group(NamedTuple):
    """Where one version of Linux' control groups keeps its files, and how they are called."""

    folder: str
    limit: str
    usage: str
    reclaimable: str
    """The key in `memory.stat` of the file cache, which counts as used and is given up when asked for."""


UNIFIED = _Group("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file")
LEGACY = _Group(
    "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
)


def available(root: Path = Path("/")) -> int:
    """Return the bytes that can be allocated without swapping or being killed; `root` is that of the files.

    The smallest of what the machine has free and what each control group above this process (a container, a
    batch job) has left. Where the system does not say what is free, all of the machine's memory counts.
    """
    return min([_of_machine(root), *_of_groups(root)])


def _of_machine(root: Path) -> int:
    meminfo = root / "proc/meminfo"
    if meminfo.exists():
        return _fields(meminfo)["MemAvailable:"] * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _of_groups(root: Path) -> list[int]:
    """Return what is left in every group from that of this process up to the root, where there is a limit."""
    listing = root / "proc/self/cgroup"
    left: list[int] = []
    for line in listing.read_text().splitlines() if listing.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        group = LEGACY if controllers else UNIFIED
        top = root / group.folder
        own = top / path.lstrip("/")
        # In a container the path may be one of the host: then only the top exists.
        for folder in (own, *own.parents[: len(own.parts) - len(top.parts)]):
            limit = folder / group.limit
            if limit.exists() and limit.read_text().strip() != "max":
                used = int((folder / group.usage).read_text())
                used -= _fields(folder / "memory.stat").get(group.reclaimable, 0)
                left.append(int(limit.read_text()) - used)
    return left


def _fields(file: Path) -> dict[str, int]:
    """Return the numbers of a file of lines `name number ...`."""
    return {line.split()[0]: int(line.split()[1]) for line in file.read_text().splitlines()}
