"""Every second of a run belongs to one line of metrics and to one part of it."""

from collections.abc import Callable

import pytest

from gradhat.training.clock import Clock

Passing = Callable[[float], None]


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> Passing:
    """Time that passes when it is told to."""
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def go_on(seconds: float) -> None:
        now[0] += seconds

    return go_on


def test_stretches_of_a_part_add_up(passing: Passing) -> None:
    clock = Clock()
    for name, seconds in (("sample", 2.0), ("update", 3.0), ("sample", 4.0)):
        passing(seconds)
        clock.lap(name)
    assert clock.parts() == {"time/sample": 6.0, "time/update": 3.0}


def test_the_parts_of_a_line_add_up_to_it_and_the_lines_to_the_run(passing: Passing) -> None:
    clock = Clock()
    passing(1.0)
    clock.lap("evaluate")
    first = clock.line({})
    assert first == {"step_time": 1.0, "time/evaluate": 1.0, "time/rest": 0.0}
    passing(10.0)  # a step that knows where seven of its seconds went
    line = clock.line({"time/sample": 4.0, "time/write": 2.0, "time/rest": 1.0, "reward": 0.5})
    assert line == {"step_time": 10.0, "time/sample": 4.0, "time/write": 2.0, "time/rest": 4.0}
    passing(5.0)
    clock.lap("save")
    passing(3.0)
    saved = clock.line({"time/sample": 3.0})
    assert saved == {"step_time": 8.0, "time/save": 5.0, "time/sample": 3.0, "time/rest": 0.0}
    passing(2.0)
    assert clock.pending() == 2.0
    total = sum(each["step_time"] for each in (first, line, saved)) + clock.pending()
    assert total == 1.0 + 10.0 + 5.0 + 3.0 + 2.0
