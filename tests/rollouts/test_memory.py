"""The free memory, read from the files of made-up machines."""

import os
from pathlib import Path

import pytest

from gradhat.rollouts.memory import available

MACHINE = 8_000 * 1024


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def machine(root: Path, cgroup: str, files: dict[str, str] | None = None) -> Path:
    meminfo = (
        "MemTotal:       9000 kB\nMemFree:   10 kB\nMemAvailable:    8000 kB\nHugePages_Total:       0\n"
    )
    return write(root, {"proc/meminfo": meminfo, "proc/self/cgroup": cgroup} | (files or {}))


def unified(folder: str, limit: str, used: int, cache: int) -> dict[str, str]:
    top = f"sys/fs/cgroup{folder}"
    stat = f"anon 5\ninactive_file {cache}\nactive_file 99999\n"
    return {
        f"{top}/memory.max": f"{limit}\n",
        f"{top}/memory.current": f"{used}\n",
        f"{top}/memory.stat": stat,
    }


def legacy(folder: str, limit: int, used: int, cache: int) -> dict[str, str]:
    top = f"sys/fs/cgroup/memory{folder}"
    return {
        f"{top}/memory.limit_in_bytes": f"{limit}\n",
        f"{top}/memory.usage_in_bytes": f"{used}\n",
        f"{top}/memory.stat": f"inactive_file 1\ntotal_inactive_file {cache}\n",
    }


@pytest.mark.parametrize(
    ("cgroup", "files", "free"),
    [
        ("0::/\n", {}, MACHINE),
        ("0::/\n", unified("", "max", 1_000, 0), MACHINE),
        ("0::/\n", unified("", "5000", 1_000, 300), 4_300),
        # The group itself has no limit, the one above has.
        ("0::/job/step\n", unified("/job/step", "max", 1, 0) | unified("/job", "7000", 6_000, 50), 1_050),
        ("0::/job/step\n", unified("/job/step", "900", 400, 0) | unified("/job", "7000", 600, 0), 500),
        # Inside a container the path is one of the host.
        ("0::/host/path\n", unified("", "5000", 1_000, 0), 4_000),
        ("3:cpu:/x\n4:memory:/job\n0::/\n", legacy("/job", 6_000, 2_000, 70), 4_070),
        ("3:cpu:/x\n4:memory:/job\n", legacy("/job", 2**63 - 4096, 2_000, 0), MACHINE),
        # The limits of another group are none of ours.
        ("0::/job\n", unified("/other", "10", 1, 0), MACHINE),
    ],
)
def test_the_smallest_of_the_machine_and_its_groups_is_free(
    tmp_path: Path, cgroup: str, files: dict[str, str], free: int
) -> None:
    assert available(machine(tmp_path, cgroup, files)) == free


def test_a_machine_without_these_files_has_all_of_its_memory(tmp_path: Path) -> None:
    assert available(tmp_path) == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_this_machine_says_a_number_that_a_test_fits_into() -> None:
    assert 2**20 < available() < 2**50
