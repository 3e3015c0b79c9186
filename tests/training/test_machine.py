"""What a machine offers a run."""

import os

import pytest

from gradhat.training import machine


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3, 5}, raising=False)
    assert machine.cores() == machine.describe()["cores"] == 2
    # As where the system has no affinity.
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.cores() == machine.describe()["cores"] == 64
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert machine.cores() == 1
