"""What a machine offers a run."""

import os
from pathlib import Path

import pytest

from gradhat.training import machine


@pytest.fixture(autouse=True)
def no_quota(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The machine of the tests may have one."""
    monkeypatch.setattr(machine.cores, "__defaults__", (tmp_path / "nowhere",))


def written(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


UNIFIED = "0::/jobs/mine\n"
LEGACY = "12:memory:/jobs\n4:cpu,cpuacct:/jobs/mine\n"


@pytest.mark.parametrize(
    ("groups", "files", "wanted"),
    [
        (UNIFIED, {"jobs/mine/cpu.max": "max 100000", "jobs/cpu.max": "250000 100000"}, 2),
        (UNIFIED, {"jobs/mine/cpu.max": "300000 100000", "jobs/cpu.max": "max 100000"}, 3),
        (UNIFIED, {"cpu.max": "50000 100000"}, 1),
        (UNIFIED, {"cpu.max": "6400000 100000"}, 64),
        (UNIFIED, {"cpu.max": "9900000 100000"}, 64),
        (UNIFIED, {"cpu.max": "nonsense"}, 64),
        (UNIFIED, {}, 64),
        (
            LEGACY,
            {"cpu,cpuacct/jobs/cpu.cfs_quota_us": "400000", "cpu,cpuacct/jobs/cpu.cfs_period_us": "100000"},
            4,
        ),
        (LEGACY, {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"}, 64),
    ],
)
def test_a_quota_of_a_container_counts(
    groups: str, files: dict[str, str], wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)), raising=False)
    root = written(
        tmp_path, {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{k}": v for k, v in files.items()}}
    )
    assert machine.cores(root) == wanted


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert machine.cores() == machine.describe()["cores"] == 2
    # As where the system has no affinity.
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.cores() == machine.describe()["cores"] == 64
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert machine.cores() == 1


def test_what_differs_is_named_with_both_values() -> None:
    before = {"a": "1.0", "b": "0123456789abcdef", "gone": "1", "same": "1", "c": None}
    now = {"a": "1.1", "b": "fedcba9876543210", "new": "1", "same": "1", "c": "2"}
    assert machine.differing(before, now) == [
        "a (1.0 → 1.1)",
        "b (0123456789ab… → fedcba987654…)",
        "c (none → 2)",
    ]
    # A file from elsewhere may hold anything.
    assert machine.differing([1], now) == machine.differing(None, now) == []


def test_a_package_that_changed_is_named() -> None:
    now = machine.describe()
    before = now | {"packages": now["packages"] | {"torch": "0.1"}, "threads": now["threads"] + 1}
    package, threads = machine.changes(before, now)
    assert package.startswith("torch (0.1 → ") and threads == "threads"
    assert machine.changes(now, now) == []
    # Packages that were not looked at then have not changed.
    assert machine.changes(now | {"packages": {}}, now) == []
