"""What a person sees: progress with intervals, bad numbers by name, and never the surrogate loss."""

import io
import math
from collections.abc import Mapping
from typing import TextIO

import pytest

from gradhat.training.log import RECENT, SILENCE, Log, duration, known_after, seconds_left
from gradhat.training.text.progress import progress_line
from gradhat.trajectories import Record, Verdict

METRICS = {
    "num_groups": 8.0,
    "reward": 0.5,
    "reward_low": 0.4,
    "reward_high": 0.6,
    "completions/mean_length": 14.25,
    "entropy": 0.412,
    "tokens_per_second": 870.4,
    "diagnostics/surrogate_loss": 0.123,
}
HELD_OUT = {
    "held_out/num_questions": 64.0,
    "held_out/reward": 0.47,
    "held_out/reward_low": 0.41,
    "held_out/reward_high": 0.53,
    "held_out/accuracy": 0.47,
    "held_out/accuracy_low": 0.41,
    "held_out/accuracy_high": 0.53,
}
GRADED = {
    "held_out/num_questions": 64.0,
    "held_out/reward": 3.75,
    "held_out/reward_low": 3.21,
    "held_out/reward_high": 4.29,
}


def line(step: int, metrics: Mapping[str, float], left: float, scale: float = 1.0) -> str:
    return progress_line(step, 100, metrics, left, scale=scale)


def log_of_100(done: int = 0, known: Mapping[str, float] | None = None, *, out: TextIO) -> Log:
    return Log(100, done, known, out, line=line)


def test_the_line_says_where_the_run_stands() -> None:
    assert line(12, {**METRICS, **HELD_OUT, "num_replaced": 3.0}, 391.0) == (
        "step 12/100  held-out accuracy 0.470 [0.410, 0.530]  reward 0.500 [0.400, 0.600]  replaced 3  "
        "length 14.2  entropy 0.412  tokens/s 870  6:31 left"
    )


def test_without_an_accuracy_the_line_shows_the_expected_return() -> None:
    assert line(1, {**METRICS, **GRADED}, math.nan, scale=10.0).startswith(
        "step 1/100  held-out reward 3.75 [3.21, 4.29]  reward 0.50 [0.40, 0.60]  length"
    )


def test_few_questions_are_counted_in_place_of_an_interval() -> None:
    few = {"held_out/num_questions": 2.0, "held_out/reward": 0.25, "reward": 0.5, "num_groups": 2.0}
    assert line(1, few, math.nan) == "step 1/100  held-out reward 0.250 (n=2)  reward 0.500 (n=2)"


def test_a_measurement_takes_the_place_of_the_one_before_whatever_that_had() -> None:
    # A run that meets partial credit has no accuracy from then on, not the one of the step before.
    known = known_after({**HELD_OUT, "greedy/return": 7.0}, GRADED)
    assert known == {**GRADED, "greedy/return": 7.0}
    assert known_after(known, METRICS) == known


def test_what_is_unknown_is_left_out() -> None:
    assert line(0, HELD_OUT, math.nan) == "step 0/100  held-out accuracy 0.470 [0.410, 0.530]"
    assert "[" not in line(1, {"reward": 0.5, "num_groups": 3.0}, math.nan)


def test_the_held_out_accuracy_stays_on_the_line_between_measurements() -> None:
    out = io.StringIO()
    with log_of_100(out=out) as log:
        log.step(0, HELD_OUT)
        log.step(100, METRICS)
    line = out.getvalue().splitlines()[1]
    assert line.startswith("step 100/100  held-out accuracy 0.470 [0.410, 0.530]  reward 0.500")


def test_without_a_terminal_a_line_is_written_for_each_measurement_the_first_and_the_last() -> None:
    out = io.StringIO()
    with log_of_100(out=out) as log:
        for step in range(101):
            log.step(step, METRICS | (HELD_OUT if step in (30, 70) else {}))
    lines = out.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"step {i}/100" for i in (0, 30, 70, 100)]
    assert "\x1b" not in out.getvalue()


def test_a_long_silence_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    out, now = io.StringIO(), [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with log_of_100(out=out) as log:
        for step in range(5):
            log.step(step, METRICS)
            now[0] += 0.6 * SILENCE
    assert [line.split("  ")[0] for line in out.getvalue().splitlines()] == [
        "step 0/100",
        "step 2/100",
        "step 4/100",
    ]


def test_the_time_left_is_that_of_the_last_steps() -> None:
    assert math.isnan(seconds_left([], 10))
    assert seconds_left([2.0], 10) == 20.0
    # Every tenth step measures, for five times as long: that is part of what is left.
    assert seconds_left([*[1.0] * 9, 5.0] * 5, 100) == pytest.approx(140.0)
    # Steps that became shorter.
    assert seconds_left([9.0] * 100 + [1.0] * RECENT, 10) == 10.0


def test_a_process_that_stood_still_does_not_spoil_the_time_left() -> None:
    stood = [*[1.0] * 20, 8 * 3600.0, *[1.0] * 20, 3600.0, 1.0]
    assert seconds_left(stood, 100) < 150.0


def test_a_line_for_several_steps_counts_for_all_of_them() -> None:
    out = io.StringIO()
    with log_of_100(out=out) as log:
        log.step(0, {})
        log.step(25, {"step_time": 50.0} | HELD_OUT)
    assert "2:30 left" in out.getvalue().splitlines()[-1]


def test_on_a_terminal_the_line_is_replaced_and_warnings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with log_of_100(out=out) as log:
        log.step(1, METRICS)
        log.step(2, {**METRICS, "kl": math.inf})
    text = out.getvalue().replace("\r", "")
    assert "step 1/100" in text and "warning: step 2: kl is inf" in text
    # Between two lines of progress the first is erased.
    between = text[text.index("step 1/100") : text.index("step 2/100")]
    assert "\n" not in between and "\x1b[2K" in between


def test_the_surrogate_loss_is_not_shown() -> None:
    out = io.StringIO()
    log_of_100(out=out).step(1, METRICS)
    assert "surrogate" not in out.getvalue()
    assert "0.123" not in out.getvalue()


def test_a_bad_number_is_reported_by_name() -> None:
    out = io.StringIO()
    log_of_100(out=out).step(3, {**METRICS, "grad_norm": math.nan, "kl": math.inf})
    assert "warning: step 3: grad_norm is nan" in out.getvalue()
    assert "warning: step 3: kl is inf" in out.getvalue()


def test_a_sample_is_shown_with_its_verdict_and_its_markup_untouched() -> None:
    # Catches a console that reads "[0, 9]" or "[bold]" in model text as its own markup.
    out = io.StringIO()
    verdict = Verdict(0.0, {}, "wanted 7, found 8")
    log_of_100(out=out).sample(3, Record("What is\n3 + 4?", "[bold]8[/bold] " + "x" * 200, verdict, "length"))
    text = out.getvalue()
    assert "What is 3 + 4?" in text
    assert "[bold]8[/bold] xxx" in text
    assert "reward 0 (wanted 7, found 8), stopped by length" in text
    assert max(map(len, text.splitlines())) < 130


def test_a_resumed_log_knows_the_last_measurement() -> None:
    out = io.StringIO()
    log_of_100(10, HELD_OUT, out=out).step(11, METRICS)
    assert out.getvalue().startswith("step 11/100  held-out accuracy 0.470")


def test_model_text_cannot_steer_the_terminal() -> None:
    out = io.StringIO()
    log_of_100(out=out).sample(3, Record("q", "\x1b[2Ja\x07\rb\u202e", Verdict(0.0, {}, ""), "end"))
    assert "    �[2Ja� b�\n" in out.getvalue()


def test_durations_read_like_a_clock() -> None:
    assert [duration(s) for s in (5.2, 391, 3723)] == ["0:05", "6:31", "1:02:03"]
