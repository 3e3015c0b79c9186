"""The training loop: advance, log, save. It knows neither the world nor the algorithm, only a `Session`.

A run is a pure function of its config. Every random number follows from the seed and the place where it is
drawn, so a run that goes on from a checkpoint repeats what it would have done, to the bit.
"""

import shutil
from collections.abc import Iterable, Mapping
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rich.filesize import decimal

from gradhat.errors import GradhatError, RunError
from gradhat.training import checkpoint, machine
from gradhat.training.checkpoint import Checkpoint
from gradhat.training.clock import Clock
from gradhat.training.interrupt import SIGNAL_EXIT, Interrupt
from gradhat.training.log import Log, known_after, non_finite
from gradhat.training.run_folder import ASIDE, FINAL, RunFolder, reading, step_of


class Ending(NamedTuple):
    """What a finished run says."""

    metrics: dict[str, float]
    """Measured after the last step. Empty where that was done in it."""
    summary: dict[str, Any]
    closing: str
    """Lines for people."""


class Session(Protocol):
    """A run in memory: the world, the policy, the algorithm, and where they stand."""

    step: int
    """Steps done."""
    longer: str
    """The flag that makes a finished run go on."""
    rounding: tuple[str, ...]
    """Settings that change results by rounding alone."""
    line: dict[str, float]
    """What is known of the last whole step, as long as its line of metrics is not written; then nothing."""

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        ...

    def sources(self) -> dict[str, str]:
        """Return by name versions and hashes of what the config names and does not hold."""
        ...

    def opening(self) -> str:
        """Return lines that say what is learned, and with what."""
        ...

    def progress(self, step: int, metrics: Mapping[str, float], seconds_left: float) -> str:
        """Return the line of progress."""
        ...

    def before(self, run: RunFolder) -> dict[str, float]:
        """Measure before the first step."""
        ...

    def advance(self, run: RunFolder, log: Log) -> dict[str, float]:
        """Take one step, add it to `step`, return its metrics."""
        ...

    def retreat(self) -> bool:
        """After an error: stand where `save` can write the last whole step, and count back to it.

        Returns False where the step in hand has changed what cannot be changed back.
        """
        ...

    def check(self, run: RunFolder) -> None:
        """RunError when it makes no sense to go on."""
        ...

    def save_due(self) -> bool:
        """Return whether a checkpoint belongs after the present step."""
        ...

    def save(self, run: RunFolder) -> Path:
        """Write a checkpoint of the present step."""
        ...

    def checkpoint_sizes(self) -> list[int]:
        """Return how many bytes each checkpoint takes that the run leaves, the newest first."""
        ...

    def resume(self, found: Checkpoint) -> None:
        """Stand where the checkpoint was taken."""
        ...

    def finish(self, run: RunFolder) -> Ending:
        """Measure the finished run."""
        ...

    def close(self) -> None:
        """Free what is held: processes, windows."""
        ...


def train(
    run: RunFolder, session: Session, config: Mapping[str, Any] | None = None, *, restart: bool = False
) -> int:
    """Train in `run` until the last step or a signal, from its newest whole checkpoint if it has one.

    `config` replaces the one in the folder, once it is sure that the run goes on. `restart` begins with the
    first step. What lies after the step it goes on from is moved aside, never deleted. Returns the exit code:
    0, or 128 and the number of the signal, when the step in hand was finished and saved.

    RunError where a checkpoint cannot be read, and where there are steps but no whole checkpoint of them.
    Whatever else ends the run, the last whole step is saved first.
    """
    damage, earlier = _resume(run, session, restart), _earlier(run)
    rounded = [] if config is None else _differing(session.rounding, run.config(), config)
    if config is not None:
        run.write_json("config.json", config)
    aside = run.rewind(session.step if session.step else -1)
    lines = run.read_metrics()
    known = reduce(known_after, map(_numbers, lines), dict[str, float]())
    log = Log(session.num_steps, session.step, known, line=session.progress)

    def notify() -> None:
        log.say("finishing this step, then saving; Ctrl-C stops at once")

    noted = _note_machine(run, session, earlier, rounded)
    with Interrupt(notify) as interrupt, log:
        for line in [*damage, *noted, *_lost(run, session.step, lines)]:
            log.warn(line)
        log.say(f"run    {run.path}{f', from step {session.step}' if session.step else ''}")
        if aside is not None:
            log.say(f"aside  {aside} holds what was there of later steps")
        log.say(session.opening())
        log.say(_disk(run, session.checkpoint_sizes()))
        clock = Clock()
        try:
            _go_on(run, log, session, interrupt, clock)
            if not interrupt.asked:
                with interrupt.at_once():
                    return _finish(run, log, session, clock)
        except KeyboardInterrupt:
            log.say("stopped: {} is saved, {}".format(*_saved(run)))
            raise
        except BaseException as error:
            _rescue(run, log, session, clock)
            if not interrupt.asked:
                raise
            # Whoever ends a whole group of processes ends those that a step needs too.
            log.warn(str(error))
        else:
            _save(run, session)
            log.say(f"stopped after step {session.step}. Go on with: gradhat train --resume {run.path}")
        return SIGNAL_EXIT + interrupt.asked


def start_of(run: RunFolder, *, restart: bool) -> tuple[Checkpoint | None, list[str]]:
    """Return the checkpoint that a run goes on from, None for its first step, and a line about each damaged
    one after it. RunError where it cannot go on."""
    run.read_metrics()  # RunError where they hold anything but numbers.
    found, damage = (None, []) if restart else checkpoint.newest(run.checkpoints, to_train=True)
    if found is None and run.begun() and not restart:
        reason = " ".join(damage) or "found none."
        raise RunError(
            f"resume {run.path} from its newest whole checkpoint: {reason} Begin again with the first step: "
            f"gradhat train --resume {run.path} --restart moves what is there to {run.path / ASIDE}."
        )
    return found, damage


def _resume(run: RunFolder, session: Session, restart: bool) -> list[str]:
    """Put the newest whole checkpoint into `session`. Returns a line about each damaged one after it."""
    found, damage = start_of(run, restart=restart)
    if found is not None:
        session.resume(found)
    if session.step >= session.num_steps and (run.path / "summary.json").exists():
        raise RunError(
            f"resume {run.path}: all its {session.num_steps} steps are done. "
            f"Go on with {session.longer} MORE, or look at it: gradhat eval {run.path}"
        )
    return damage


def _go_on(run: RunFolder, log: Log, session: Session, interrupt: Interrupt, clock: Clock) -> None:
    """Take steps until the last one, or until somebody asks for an end."""
    if session.step == 0:
        with interrupt.at_once():
            values = session.before(run)
            clock.lap("evaluate")
            log.step(0, _written(run, clock, 0, values))
    while session.step < session.num_steps and not interrupt.asked:
        values = session.advance(run, log)
        log.step(session.step, _written(run, clock, session.step, values))
        session.line = {}
        session.check(run)
        if session.save_due():
            clock.lap("rest")
            _save(run, session)
            clock.lap("save")


def _written(run: RunFolder, clock: Clock, step: int, values: Mapping[str, float]) -> dict[str, float]:
    """Write one line of metrics with its time, and return it. Numbers that are not finite are named in it.

    The time of a checkpoint is that of the line after it: what is saved has its line already.
    """
    line = {**values, **clock.line(values)}
    bad = non_finite(line)
    run.append_metrics({"step": step, **line, **({"non_finite": bad} if bad else {})})
    return line


def _save(run: RunFolder, session: Session) -> None:
    """Save the step that `session` stands at, unless it is saved already."""
    if session.step not in [0, *map(step_of, checkpoint.steps(run.checkpoints))]:
        session.save(run)


def _rescue(run: RunFolder, log: Log, session: Session, clock: Clock) -> None:
    """After an error: save the last whole step, if it can be saved, with its line, and say how to go on."""
    try:
        if session.retreat():
            _save(run, session)
            if session.line and all(line["step"] != session.step for line in run.read_metrics()):
                _written(run, clock, session.step, session.line)
    except Exception as error:
        # What ended the run is what is reported; a full disk is often both.
        log.warn(f"the last whole step could not be saved: {error}")
    try:
        saved, command = _saved(run)
    except (GradhatError, OSError) as error:
        log.warn(str(error))
    else:
        log.say(f"{saved} is saved. Once what is wrong is repaired, {command}")


def _saved(run: RunFolder) -> tuple[str, str]:
    """Return the newest step that is saved, in words, and the command that goes on from there."""
    newest = max(map(step_of, checkpoint.steps(run.checkpoints)), default=0)
    if newest or not run.begun():
        return f"step {newest}" if newest else "no step", f"go on with: gradhat train --resume {run.path}"
    return "no step", f"begin again with: gradhat train --resume {run.path} --restart"


def _finish(run: RunFolder, log: Log, session: Session, clock: Clock) -> int:
    """Measure the finished run, write what was found as a line of its own, and the summary."""
    clock.lap("rest")
    ending = session.finish(run)
    clock.lap("evaluate")
    if ending.metrics:
        _written(run, clock, session.step, {FINAL: 1.0, **ending.metrics})
    seconds = sum(line.get("step_time") or 0.0 for line in run.read_metrics()) + clock.pending()
    newest = str(checkpoint.steps(run.checkpoints)[0].relative_to(run.path))
    run.write_json(
        "summary.json", {"steps": session.step, "seconds": seconds, "checkpoint": newest, **ending.summary}
    )
    log.say(ending.closing)
    return 0


def _disk(run: RunFolder, sizes: list[int]) -> str:
    """Return what the checkpoints of a run will take of its disk."""
    with reading(run.path):
        free = shutil.disk_usage(run.path).free
    there = sum(p.stat().st_size for p in run.checkpoints.rglob("*") if p.is_file())
    each = "" if len(sizes) == 1 else f" ({' + '.join(map(decimal, sizes))})"
    needed = sum(sizes) + sizes[0]
    short = "" if needed <= free + there else ": too little, make room before they are written"
    return (
        f"disk   {decimal(sum(sizes))} for checkpoints{each}, {decimal(sizes[0])} more while one is written; "
        f"{decimal(free)} free{short}"
    )


def _lost(run: RunFolder, step: int, lines: list[dict[str, Any]]) -> list[str]:
    """Return a warning where a run that goes on from `step` has lost the first lines of its metrics."""
    if not step or any(line["step"] == 0 for line in lines):
        return []
    begin = f"begins with step {lines[0]['step']}" if lines else "has no line"
    return [f"{run.metrics} {begin}: what was measured before was lost, and is missing in plots and summary"]


def _numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a line that were finite: the others are null there."""
    return {key: value for key, value in line.items() if isinstance(value, int | float)}


def _earlier(run: RunFolder) -> list[dict[str, Any]]:
    """Return what env.json holds of the starts before this one, the last one last."""
    if not (run.path / "env.json").exists():
        return []
    before = run.read_json("env.json")
    earlier = before.pop("earlier", [])
    if not isinstance(earlier, list) or not all(isinstance(start, dict) for start in earlier):  # pyright: ignore
        raise RunError(
            f"read the run in {run.path}: env.json holds no list of objects for 'earlier'. Repair it, or "
            "move env.json away."
        )
    return [*earlier, before]


def _differing(names: Iterable[str], before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [name for name in names if name in before and before[name] != now[name]]


def _note_machine(
    run: RunFolder, session: Session, earlier: list[dict[str, Any]], rounded: list[str]
) -> list[str]:
    """Write env.json, with those of earlier starts in it. Returns a warning where bits may differ now, and
    one where the run goes on with something else than it began with."""
    now = {**machine.describe(), "sources": session.sources()}
    run.write_json("env.json", {**now, "earlier": earlier} if earlier else now)
    if not earlier or not session.step:
        return []
    said: list[str] = []
    if changed := [*rounded, *machine.changes(earlier[-1], now)]:
        said.append(f"{', '.join(changed)} changed since the run stopped: it goes on, but not to the bit")
    if others := machine.differing(_known(earlier), now["sources"]):
        said.append(
            f"{', '.join(others)} changed since the run stopped: it goes on with what is there now, and what "
            "follows may not compare with what was before"
        )
    return said


def _known(earlier: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the last that earlier starts knew of each source: one may have been out of reach of the last."""
    known: dict[str, Any] = {}
    for start in earlier:
        found = start.get("sources")
        known |= found if isinstance(found, dict) else {}
    return known
