"""What a run's numbers were made with: the content of env.json."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "gradhat",
    "torch",
    "numpy",
    "transformers",
    "tokenizers",
    "safetensors",
    "gymnasium",
    "reasoning-gym",
)

BIT_EXACT = ("processor", "capability", "threads")
"""What must be equal, as must the packages, for two runs of one config to be equal to the bit."""
SHOWN = 12
"""Letters that are shown of a version or a hash."""


def describe() -> dict[str, Any]:
    """Return versions, commit, processor and threads as plain values."""
    import torch

    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "system": platform.platform(),
        "processor": _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "torch": torch.__config__.show(),
    }


def cores(root: Path = Path("/")) -> int:
    """Return how many cores this process may use; all of the machine where the system does not say.

    A container or a batch job may have fewer than it can see: the least quota of all control groups above
    this process counts, rounded down. `root` is that of the files.
    """
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([seen, *map(int, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the cores that each control group above this process grants, where it has a limit."""
    listing = root / "proc/self/cgroup"
    for line in listing.read_text().splitlines() if listing.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / controllers
        own = top / path.lstrip("/")
        # In a container the path may be one of the host: then only the top exists.
        for folder in (own, *own.parents[: len(own.parts) - len(top.parts)]):
            # A group may be gone, and its files say "max", or -1, where there is no limit.
            with suppress(OSError, ValueError):
                if controllers:
                    quota, period = (
                        (folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period")
                    )
                else:
                    quota, period = (folder / "cpu.max").read_text().split()
                if int(quota) > 0:
                    yield int(quota) / int(period)


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the names of what changed, of all that a bit-exact continuation needs."""
    others = [name for name in BIT_EXACT if before.get(name) != now.get(name)]
    return [*differing(before.get("packages"), now["packages"]), *others]


def differing(before: Any, now: Mapping[str, str | None]) -> list[str]:
    """Return "torch (2.8.0 → 2.9.0)" for every name of which both know something else."""
    known: Mapping[str, Any] = before if isinstance(before, Mapping) else {}
    return [
        f"{name} ({_shown(known[name])} → {_shown(value)})"
        for name, value in now.items()
        if name in known and known[name] != value
    ]


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the repository the command runs in, "+" added when files differ from it."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+" if _git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*args: str) -> str:
    done = subprocess.run(["git", *args], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
