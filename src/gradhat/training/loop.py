"""The training loop: sample, learn, log, save. It knows no algorithm, only a `Learner` (learner.py).

A run is a pure function of its config. Every random number follows from (seed, step, ...), the data cursor is
a few numbers, so a run that goes on from a checkpoint repeats what it would have done, to the bit.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradhat.envs.text.load import load_task
from gradhat.envs.text.task import Question, Task, check, held_out_set
from gradhat.errors import RunError, TaskError
from gradhat.policies.language import weights
from gradhat.policies.language.chat import Chat
from gradhat.rollouts.engine import Engine, Limits
from gradhat.rollouts.episodes import Experience, collect
from gradhat.training import checkpoint, machine, metrics
from gradhat.training.checkpoint import Checkpoint
from gradhat.training.config import TrainConfig
from gradhat.training.evaluate import Interval, Measurement, measure
from gradhat.training.interrupt import Interrupt
from gradhat.training.learner import Learner, make_learner
from gradhat.training.log import Log, non_finite
from gradhat.training.model import compute_dtype, keep_freed_memory, set_threads
from gradhat.training.optim import MasterAdamW
from gradhat.training.run_folder import RunFolder, step_of
from gradhat.training.seed import derive
from gradhat.training.source import Source
from gradhat.trajectories import Trajectories

INTERRUPTED = 130
"""Exit code after Ctrl-C."""


@dataclass
class Session:
    """A run in memory: what is made once, and where it stands."""

    config: TrainConfig
    model: Path
    """The model folder the run started from, whose tokenizer goes into every checkpoint."""
    task: Task
    held_out: list[Question]
    """Every held-out question, up to `final_questions`."""
    chat: Chat
    engine: Engine
    optimizer: MasterAdamW
    learner: Learner
    source: Source
    step: int = 0
    """Steps done."""
    version: int = 0
    """Optimiser steps the weights have seen: skipped ones do not count, epochs do."""
    skipped: int = 0
    """Steps in a row, up to the present, that a non-finite gradient spoilt."""
    num_tokens: int = 0
    """Tokens of prompts and completions so far."""

    def cursor(self) -> dict[str, Any]:
        """Return what `resume` needs besides weights and moments, as plain values."""
        counts = {"version": self.version, "skipped": self.skipped, "num_tokens": self.num_tokens}
        return {"source": self.source.state(), "learner": self.learner.state(), **counts}

    def resume(self, found: Checkpoint) -> None:
        """Stand where the checkpoint was taken."""
        self.optimizer.restore(found.masters(), found.optimizer())
        self.source.restore(found.cursor["source"])
        self.learner.restore(found.cursor["learner"])
        self.step = found.step
        self.version = found.cursor["version"]
        self.skipped = found.cursor["skipped"]
        self.num_tokens = found.cursor["num_tokens"]


def train(run: RunFolder, session: Session) -> int:
    """Train in `run` until the last step or Ctrl-C, from its newest whole checkpoint if it has one.

    Returns the exit code: 0, or 130 after Ctrl-C, when the step in hand was finished and saved.
    """
    config = session.config
    found, damage = checkpoint.newest(run.checkpoints)
    if found is not None and found.step >= config.num_steps and (run.path / "summary.json").exists():
        raise RunError(
            f"resume {run.path}: all its {config.num_steps} steps are done. Go on with --num-steps MORE, "
            f"or look at it: gradhat eval {run.path}"
        )
    run.rewind(found.step if found else -1)
    if found is not None:
        session.resume(found)
    known = {key: v for line in run.read_metrics() for key, v in line.items() if key.startswith("held_out/")}
    with Log(config.num_steps, session.step, known) as log:
        for line in [*damage, *_note_machine(run)]:
            log.warn(line)
        log.say(_opening(run, session))
        with Interrupt(
            lambda: log.say("finishing this step, then saving; Ctrl-C again stops at once")
        ) as interrupt:
            if found is None:
                _record(run, log, 0, _held_out(_measure(session, session.held_out, config.final_samples)))
            while session.step < config.num_steps and not interrupt.asked:
                _advance(run, log, session)
            if interrupt.asked:
                return _stop(run, log, session)
            return _finish(run, log, session)


def prepare(config: TrainConfig) -> Session:
    """Load the task and the model of `config` and put the parts together. Writes nothing."""
    set_threads(config.num_threads)
    keep_freed_memory()
    levels = [load_task(spec) for spec in (*config.curriculum, config.task)]
    for task in levels:
        check(task)
    held_out = held_out_set(levels[-1], config.final_questions, derive(config.seed, "held_out"))
    if not held_out:
        raise TaskError(
            f"{config.task}: held-out questions were asked for; found none among those it draws. "
            f"Give the task more distinct questions: a fifth of them is held out."
        )
    model = weights.resolve(config.model)
    chat = Chat.read(model)
    network = weights.load(model, compute_dtype(config.dtype))
    optimizer = MasterAdamW(
        network,
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
    )
    return Session(
        config=config,
        model=model,
        task=levels[-1],
        held_out=held_out,
        chat=chat,
        engine=Engine(network, chat, num_slots=config.num_slots),
        optimizer=optimizer,
        learner=make_learner(config, network, optimizer, model),
        source=Source(levels, system=config.system, threshold=config.curriculum_threshold, seed=config.seed),
    )


def _advance(run: RunFolder, log: Log, session: Session) -> None:
    """Take one step: sample, learn, measure, log, save."""
    config, clock = session.config, metrics.Clock()
    session.step += 1
    session.optimizer.lr = config.lr * min(1.0, session.step / max(1, config.lr_warmup_steps))
    experience = _sample(session)
    clock.lap("sample")
    batch, values = session.learner.learn(experience.sampled.select(experience.chosen))
    clock.lap("update")
    values |= metrics.of_experience(experience, config.num_prompts) | _count(
        session, experience.sampled, values
    )
    if session.source.observe(metrics.success_rates(experience.sampled)):
        log.say(f"level {session.source.level + 1} of {len(session.source.levels)} opens")
    run.write_rollouts(session.step, experience.sampled, experience.chosen, batch.adv)
    if session.step % config.eval_every == 0:
        measured = _measure(session, session.held_out[: config.eval_questions], config.eval_samples)
        values |= _held_out(measured)
        log.sample(session.step, batch.records[session.step % len(batch)])
        clock.lap("evaluate")
    values |= clock.times(int(experience.sampled.mask.sum()))
    _record(run, log, session.step, values)
    if session.step % config.checkpoint_every == 0 or session.step == config.num_steps:
        save(run, session)
    _stop_when_stuck(run, session)


def _sample(session: Session) -> Experience:
    """Sample the experience of the present step with the present weights."""
    config = session.config
    return collect(
        session.source,
        session.chat,
        session.engine,
        Limits(config.max_new_tokens, config.temperature, seed=derive(config.seed, "sample", session.step)),
        num_prompts=config.num_prompts,
        group_size=config.group_size,
        version=session.version,
        silent=session.learner.silent,
        max_replacements=config.max_replacements if config.replace_silent else 0,
    )


def _count(session: Session, sampled: Trajectories, learned: dict[str, float]) -> dict[str, float]:
    """Bring the session's counts up to date with one batch; return those that are metrics."""
    stepped, spoilt = "grad_norm" in learned, learned.get("skipped", 0.0) > 0
    session.version += session.config.num_epochs if stepped and not spoilt else 0
    session.skipped = session.skipped + 1 if spoilt else 0
    session.num_tokens += metrics.num_tokens(sampled)
    values = {
        "num_tokens": float(session.num_tokens),
        "learning_rate": session.optimizer.lr,
        "num_skipped": float(session.skipped),
    }
    if len(session.source.levels) > 1:
        values["curriculum/level"] = float(session.source.level)
    return values


def save(run: RunFolder, session: Session) -> Path:
    """Write the checkpoint of the present step and drop the oldest."""
    return checkpoint.save(
        run.checkpoints,
        session.step,
        session.optimizer.masters(),
        session.optimizer.state(),
        session.cursor(),
        config=session.engine.model.config,
        source=session.model,
        keep=session.config.keep_checkpoints,
    )


def _measure(
    session: Session, questions: list[Question], num_samples: int, *, greedy: bool = False
) -> Measurement:
    """Measure the present weights on held-out questions, at the training temperature or greedily."""
    config = session.config
    limits = Limits(
        config.max_new_tokens,
        0.0 if greedy else config.temperature,
        seed=derive(config.seed, "held_out", session.step, num_samples),
    )
    return measure(
        session.task,
        questions,
        session.engine,
        session.chat,
        limits,
        system=config.system,
        num_samples=num_samples,
    )


def _held_out(measured: Measurement) -> dict[str, float]:
    accuracy = measured.accuracy()
    return {
        "held_out/accuracy": accuracy.mean,
        "held_out/low": accuracy.low,
        "held_out/high": accuracy.high,
        "held_out/reward": measured.reward(),
    }


def _record(run: RunFolder, log: Log, step: int, values: dict[str, float]) -> None:
    """Write one line of metrics and show it. Names of numbers that are not finite stand beside it."""
    bad = non_finite(values)
    run.append_metrics({"step": step, **values, **({"non_finite": bad} if bad else {})})
    log.step(step, values)


def _stop_when_stuck(run: RunFolder, session: Session) -> None:
    """RunError after too many steps in a row without a finite gradient."""
    if session.skipped < session.config.max_skipped_steps:
        return
    raise RunError(
        f"step {session.step} of {run.path}: the gradient of the last {session.skipped} steps was not finite "
        "(skipped). Lower --lr in a new run. "
        f"The checkpoints in {run.checkpoints} are whole."
    )


def _stop(run: RunFolder, log: Log, session: Session) -> int:
    """Save what Ctrl-C interrupted, unless this step is saved already, and say how to go on."""
    saved = [step_of(path) for path in checkpoint.steps(run.checkpoints)]
    if session.step not in [0, *saved]:
        save(run, session)
    log.say(f"stopped after step {session.step}. Go on with: gradhat train --resume {run.path}")
    return INTERRUPTED


def _finish(run: RunFolder, log: Log, session: Session) -> int:
    """Measure the finished run on every held-out question and write its summary."""
    config = session.config
    sampled = _measure(session, session.held_out, config.final_samples)
    greedy = _measure(session, session.held_out, 1, greedy=True)
    lines = run.read_metrics()
    summary = {
        "steps": session.step,
        "num_tokens": session.num_tokens,
        "seconds": sum(line.get("step_time", 0.0) for line in lines),
        "before": {key: value for key, value in lines[0].items() if key.startswith("held_out/")},
        "after": _held_out(sampled),
        "after_greedy": _held_out(greedy),
        "questions": len(session.held_out),
        "samples": config.final_samples,
        "checkpoint": str(checkpoint.steps(run.checkpoints)[0].relative_to(run.path)),
    }
    run.write_json("summary.json", summary)
    log.say(_closing(run, sampled.accuracy(), greedy.accuracy(), session))
    return 0


def _closing(run: RunFolder, sampled: Interval, greedy: Interval, session: Session) -> str:
    return (
        f"done. {len(session.held_out)} held-out questions: "
        f"sampled {sampled.mean:.3f} [{sampled.low:.3f}, {sampled.high:.3f}], "
        f"greedy {greedy.mean:.3f} [{greedy.low:.3f}, {greedy.high:.3f}]\n"
        f"talk to it: gradhat chat {run.path}"
    )


def _opening(run: RunFolder, session: Session) -> str:
    network, config = session.engine.model, session.config
    size = sum(p.numel() for p in network.parameters())
    where = f", from step {session.step}" if session.step else ""
    dtype = str(network.embed.weight.dtype).removeprefix("torch.")
    return (
        f"run    {run.path}{where}\n"
        f"model  {config.model}: {size / 1e6:.0f}M parameters in {dtype}\n"
        f"task   {config.task}: {len(session.held_out)} questions held out"
    )


def _note_machine(run: RunFolder) -> list[str]:
    """Write env.json, with those of earlier starts in it; return a warning when bits may differ now."""
    now = machine.describe()
    earlier: list[dict[str, Any]] = []
    if (run.path / "env.json").exists():
        before = run.read_json("env.json")
        earlier = [*before.pop("earlier", []), before]
    run.write_json("env.json", {**now, "earlier": earlier} if earlier else now)
    changed = machine.changes(earlier[-1], now) if earlier else []
    return (
        [f"{', '.join(changed)} changed since the run stopped: it goes on, but not to the bit"]
        if changed
        else []
    )
