"""What a run's numbers were made with: the content of env.json."""

import os
import platform
import subprocess
import sys
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

BIT_EXACT = ("packages", "processor", "capability", "threads")
"""What must be equal for two runs of one config to be equal to the bit."""


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


def cores() -> int:
    """Return how many cores this process may use; all of the machine where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the names of what changed, of all that a bit-exact continuation needs."""
    return [name for name in BIT_EXACT if before.get(name) != now.get(name)]


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
