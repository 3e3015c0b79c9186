"""One line for the whole of a sweep."""

import io
import math

import pytest

from gradhat.training.sweeps.board import LIVE, PLAIN, Board, Progress, line

WHOLE = Progress(10, 3, 2, 1, 12345.6, "frames", 125.0)


def test_the_line_leaves_out_what_is_not_known() -> None:
    assert line(WHOLE) == "3/10 done  2 running  1 failed  frames/s 12,346  2:05 left"
    assert line(WHOLE._replace(rate=0.0, seconds_left=math.nan)) == "3/10 done  2 running  1 failed"


def test_elsewhere_a_line_follows_every_event_and_every_minute() -> None:
    out, now = io.StringIO(), [0.0]
    with Board(out, clock=lambda: now[0]) as board:
        for second in range(200):
            now[0] = float(second)
            if second in (5, 70):
                board.say(f"event at {second}")
            board.show(lambda: WHOLE._replace(done=int(now[0]), rate=0, seconds_left=math.nan))
    done = [said.split("/")[0] for said in out.getvalue().splitlines()]
    assert PLAIN == 60
    assert done == ["0", "event at 5", "5", "65", "event at 70", "70", "130", "190"]


def test_on_a_terminal_one_line_is_kept_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    out, now, looks = Terminal(), [0.0], []

    def progress() -> Progress:
        looks.append(now[0])
        return WHOLE._replace(done=len(looks))

    with Board(out, clock=lambda: now[0]) as board:
        for tenth in range(25):
            now[0] = tenth / 10
            board.show(progress)
        board.say("an event stays")
    assert LIVE == 1 and looks == [0.0, 1.0, 2.0]
    text = out.getvalue()
    assert "3/10 done" in text and "an event stays\n" in text.replace("\r", "")
    # The line was replaced, not followed: no line break after the first.
    assert "1/10 done  2 running  1 failed  frames/s 12,346  2:05 left\n" not in text
