"""What a person sees of a run: one live line of progress on a terminal, plain lines elsewhere.

Progress is return, on held-out questions and in training, each with its interval. The surrogate loss is not
progress: its gradient is meant, its value is not. It goes to metrics.jsonl as diagnostics/surrogate_loss and
never here.
"""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from gradhat.streams import complain, forgive, silence
from gradhat.trajectories import Record

Line = Callable[[int, Mapping[str, float], float], str]
"""(step, metrics, seconds left) → the line of progress."""
MEASURED = ("held_out/", "greedy/", "sampled/return", "sampled/low", "sampled/high", "sampled/cut")
"""Prefixes of metrics that are measured now and then, and shown until they are measured again."""
RECENT = 50
"""Steps from which the time that is left is told."""
SLOWEST = 10.0
"""Times as long as the step in the middle: a step that measures or saves is that long, one that stood still
is longer."""
SILENCE = 600.0
"""Seconds after which a line is written in any case."""
WIDTH = 100
"""Characters shown of a prompt or a completion."""


class Screen:
    """Lines that stay and, on a terminal, one live line below them.

    A context: inside it the live line is on the screen. A line that cannot be written is left out, and where
    nobody reads the lines any more, as after `| head`, all that follow: no line ends what it tells of.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        forgive(out or sys.stdout)
        self.console = _Console(file=out or sys.stdout, highlight=False, markup=False, soft_wrap=True)
        live = Live(console=self.console, auto_refresh=False, transient=True)
        self._live = live if self.console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            with suppress(OSError):
                self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            with suppress(OSError, ValueError):
                self._live.stop()

    @property
    def is_live(self) -> bool:
        """Whether the state is one line that is kept up to date, not a new line each time."""
        return self._live is not None

    def say(self, text: str) -> None:
        """Print lines that stay on the screen."""
        self._print(text)

    def state(self, line: str) -> None:
        """Show how things stand: in place of the last such line on a terminal, below it elsewhere."""
        if self._live is None:
            self._print(line)
        else:
            with suppress(OSError, ValueError):
                self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)

    def _print(self, text: str | Text) -> None:
        # RuntimeError: a signal was answered while a line was being written. ValueError: somebody closed it.
        with suppress(OSError, RuntimeError, ValueError):
            self.console.print(text)


class _Console(Console):
    """Goes on where a pipe breaks: rich would end the process."""

    def on_broken_pipe(self) -> None:
        complain("nobody reads what is printed any more; the work goes on, and its files tell of it")
        silence(self.file)  # pyright: ignore[reportArgumentType]


class Log(Screen):
    """Prints a run of `num_steps`, of which `done` were done before with the measurements `known`.

    `line` makes the line of progress.
    """

    def __init__(
        self,
        num_steps: int,
        done: int = 0,
        known: Mapping[str, float] | None = None,
        out: TextIO | None = None,
        *,
        line: Line,
    ) -> None:
        super().__init__(out)
        self.num_steps = num_steps
        self._step = done
        self._rates: list[float] = []
        """Seconds of each step so far."""
        self._shown: float | None = None
        """When the last line of progress was shown."""
        self._line = line
        self._known = dict(known or {})

    def warn(self, text: str) -> None:
        """Print a warning that stays on the screen."""
        self._print(Text(f"warning: {text}", style="yellow"))

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show the progress after `step`, and name each metric that is not a finite number.

        Where there is no terminal a line is a line of a file: only the first, the last and those with a
        measurement are written, and one after a long silence.
        """
        self._known = known_after(self._known, metrics)
        if step > self._step and "step_time" in metrics:
            self._rates.append(metrics["step_time"] / (step - self._step))
        self._step = step
        ends = step >= self.num_steps or self._shown is None
        quiet = time.monotonic() - (self._shown or 0.0)
        if self.is_live or ends or measured(metrics) or quiet > SILENCE:
            left = seconds_left(self._rates, self.num_steps - step)
            self.state(self._line(step, {**self._known, **metrics}, left))
            self._shown = time.monotonic()
        for name in non_finite(metrics):
            self.warn(f"step {step}: {name} is {metrics[name]}")

    def sample(self, step: int, record: Record) -> None:
        """Show one sampled completion with its verdict."""
        why = f" ({_short(record.verdict.why)})" if record.verdict.why else ""
        self._print(
            f"  sample of step {step}: {_short(record.prompt)}\n"
            f"    {_short(record.completion)}\n"
            f"    reward {record.verdict.reward:g}{why}, stopped by {record.stop}"
        )


def seconds_left(rates: Sequence[float], num_steps: int) -> float:
    """Return how long `num_steps` more steps take, when they take as long as the last ones did, seconds each.

    A step in which the process stood still (a lid that was closed, Ctrl-Z) says nothing of the others: none
    counts for more than `SLOWEST` times the one in the middle. NaN before the first step.
    """
    recent = sorted(rates[-RECENT:])
    if not recent:
        return math.nan
    most = SLOWEST * recent[len(recent) // 2]
    return num_steps * sum(min(rate, most) for rate in recent) / len(recent)


def measured(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return those of the metrics that are measured now and then."""
    return {key: value for key, value in metrics.items() if key.startswith(MEASURED)}


def known_after(known: Mapping[str, float], metrics: Mapping[str, float]) -> dict[str, float]:
    """Return what was measured last, once `metrics` are in: a measurement takes the place of the one before,
    whatever that had measured."""
    new = measured(metrics)
    begun = {key.partition("/")[0] for key in new}
    return {key: value for key, value in known.items() if key.partition("/")[0] not in begun} | new


def non_finite(metrics: Mapping[str, float]) -> list[str]:
    """Return the names of the metrics that are NaN or infinite."""
    return [name for name, value in metrics.items() if not math.isfinite(value)]


def duration(seconds: float) -> str:
    """Return "1:02:03" or "2:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def printable(text: str) -> str:
    """Return `text` with what could move the cursor or recolour the terminal replaced; lines stay lines."""
    return "".join(c if c.isprintable() or c == "\n" else "�" for c in text)


def _short(text: str) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"
