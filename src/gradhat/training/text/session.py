"""A text run in memory: sample completions, learn from them, measure on held-out questions.

It knows no algorithm, only a `Learner` (learner.py).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gradhat.algorithms.learner import Learner
from gradhat.envs.text.load import source_hash
from gradhat.envs.text.solved import solves
from gradhat.envs.text.task import Question, Task, fingerprint
from gradhat.errors import RunError
from gradhat.policies.language import weights
from gradhat.policies.language.chat import Chat
from gradhat.rollouts.engine import Engine, Limits
from gradhat.rollouts.episodes import Experience, Fitting, collect
from gradhat.training import checkpoint
from gradhat.training.checkpoint import Checkpoint
from gradhat.training.clock import Clock
from gradhat.training.log import Log
from gradhat.training.loop import Ending
from gradhat.training.memory import keep_freed_memory
from gradhat.training.optim import MasterAdamW
from gradhat.training.run_folder import RunFolder
from gradhat.training.seed import derive
from gradhat.training.text import metrics, model_checkpoint
from gradhat.training.text.config import ROUNDING, TrainConfig, learning_rate
from gradhat.training.text.evaluate import Measurement, Scale, measure
from gradhat.training.text.learner import make_learner
from gradhat.training.text.model import compute_dtype, find, folder_of, set_threads
from gradhat.training.text.progress import judged, progress_line
from gradhat.training.text.rollouts import Phase, write_evals, write_rollouts
from gradhat.training.text.source import Source
from gradhat.training.text.trial import Tried, described, tried
from gradhat.trajectories import Trajectories
from gradhat.verdicts import Failures


@dataclass
class Session:
    """A run in memory: what is made once, and where it stands."""

    config: TrainConfig
    model: Path
    """The model folder the run started from, whose tokenizer goes into the first checkpoint. Where that is
    gone, a checkpoint of the run."""
    tried: Tried
    """The task, and the held-out questions that fit into the context."""
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
    """Batches in a row, up to the present, all of whose optimiser steps a non-finite gradient spoilt."""
    failures: Failures = field(default_factory=Failures)
    """Verdicts in a row that failed."""
    num_tokens: int = 0
    """Tokens of prompts and completions so far."""
    scale: Scale = field(default_factory=Scale)
    """Of the rewards so far, in training and in measurements."""
    model_is_gone: bool = False
    planned: int = 0
    """The last step that the learning rate went to before the run was made longer."""
    longer: str = "--num-steps"
    rounding: tuple[str, ...] = ROUNDING
    line: dict[str, float] = field(default_factory=dict[str, float])
    whole: int = 0
    """The last step after which weights and counts were those of the end of a step."""
    began: tuple[dict[str, Any], int] = ({}, 0)
    """The cursor before the present step, and how often the weights had been moved."""

    def cursor(self) -> dict[str, Any]:
        """Return what `resume` needs besides weights and moments, as plain values."""
        counts = {"version": self.version, "skipped": self.skipped, "num_tokens": self.num_tokens}
        counts["num_steps"] = self.num_steps
        kept = {"source": self.source.state(), "learner": self.learner.state()}
        return {**kept, **counts, "scale": asdict(self.scale)}

    def resume(self, found: Checkpoint) -> None:
        """Stand where the checkpoint was taken."""
        self.optimizer.restore(model_checkpoint.masters(found), model_checkpoint.optimizer(found))
        with checkpoint.fitting(found):
            # Without a number of its own the learning rate of all steps was one: no plan to tell of.
            cursor: dict[str, Any] = {"num_steps": self.num_steps, **found.cursor}
            checkpoint.check_alike(cursor, self.cursor())
            if not 0 <= cursor["source"]["level"] < len(self.source.levels):
                raise ValueError(f"level {cursor['source']['level']} of {len(self.source.levels)}")
            self._stand(found.step, cursor)
            self.planned = cursor["num_steps"]

    def retreat(self) -> bool:
        """Count back to the last whole step, where the weights are still those of it."""
        cursor, moves = self.began
        if self.whole == self.step:
            return True
        if self.optimizer.moves == moves:
            self._stand(self.step - 1, cursor)
            return True
        return False

    def _stand(self, step: int, cursor: Mapping[str, Any]) -> None:
        """Count from the end of `step` on, and draw what follows there."""
        self.source.restore(cursor["source"])
        self.learner.restore(cursor["learner"])
        self.step = self.whole = step
        self.version = cursor["version"]
        self.skipped = cursor["skipped"]
        self.num_tokens = cursor["num_tokens"]
        self.scale = Scale(**cursor["scale"])

    @property
    def task(self) -> Task:
        """What is learned and measured."""
        return self.tried.levels[-1]

    @property
    def held_out(self) -> list[Question]:
        """The questions that are measured on."""
        return self.tried.held_out

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.num_steps

    def sources(self) -> dict[str, str]:
        """Return hashes of the files of task, rewards and levels, of the held-out questions, of the model."""
        config = self.config
        files = {"task file": config.task}
        files |= {f"file of reward {i}": spec for i, spec in enumerate(config.reward, 1)}
        files |= {f"file of level {i}": spec for i, spec in enumerate(config.curriculum, 1)}
        found = {name: source_hash(spec) for name, spec in files.items()}
        found |= {"held-out questions": fingerprint(self.held_out)}
        if not self.model_is_gone:
            found |= {"model": weights.fingerprint(self.model)}
        return {name: mark for name, mark in found.items() if mark}

    def opening(self) -> str:
        """Return what is learned, and with what."""
        lines = [described(self.config, self.engine.model), self.tried.lines(self.config)]
        more = self.num_steps - self.planned
        if self.config.lr_end is not None and self.planned > self.config.lr_warmup_steps and more > 0:
            lines.append(
                f"longer by {more:,} steps: the learning rate went to {self.config.lr_end:g} at step "
                f"{self.planned:,} and now stands where a run of {self.num_steps:,} steps has it"
            )
        return "\n".join(lines)

    def progress(self, step: int, metrics: Mapping[str, float], seconds_left: float) -> str:
        """Return the line of progress. An accuracy of a time when all rewards were 0 or 1 says nothing any
        more, once there were others and the task does not say what solves its questions."""
        if solves(self.task, graded=self.scale.graded) is None:
            metrics = {key: value for key, value in metrics.items() if not key.endswith("/accuracy")}
        return progress_line(step, self.num_steps, metrics, seconds_left, scale=self.scale.scale())

    def before(self, run: RunFolder) -> dict[str, float]:
        """Measure the untrained model on every held-out question."""
        sample = _examine(self, run, "before", self.held_out, self.config.final_samples)
        return sample.metrics("held_out")

    def advance(self, run: RunFolder, log: Log) -> dict[str, float]:
        """Take one step: sample, learn, measure. Returns its metrics."""
        config, clock = self.config, Clock()
        self.began = self.cursor(), self.optimizer.moves
        self.step += 1
        self.optimizer.lr = learning_rate(config, self.step)
        experience, num_too_long = _sample(self)
        clock.lap("sample")
        batch, learned = self.learner.learn(experience.sampled.select(experience.chosen))
        clock.lap("update")
        self.scale.take(metrics.judged(experience.sampled).returns().tolist())
        values = metrics.of_update(learned) | metrics.of_experience(experience, self.scale)
        values |= {"num_too_long": float(num_too_long)} | _count(self, experience.sampled, learned)
        if self.source.observe(metrics.marks(self.source.task, experience)):
            log.say(f"level {self.source.level + 1} of {len(self.source.levels)} opens")
        self.whole, self.line = self.step, values
        clock.lap("rest")
        write_rollouts(run, self.step, experience.sampled, experience.chosen, batch.adv)
        clock.lap("write")
        if self.step % config.eval_every == 0:
            questions = self.held_out[: config.eval_questions]
            sample = _examine(self, run, "during", questions, config.eval_samples)
            values |= sample.metrics("held_out")
            log.sample(self.step, batch.records[self.step % len(batch)])
            clock.lap("evaluate")
        times = clock.parts()
        seconds = times["time/sample"] + times["time/update"]
        return values | {"tokens_per_second": int(experience.sampled.mask.sum()) / seconds, **times}

    def save_due(self) -> bool:
        """Return whether a checkpoint belongs after the present step."""
        return self.step % self.config.checkpoint_every == 0 or self.step == self.num_steps

    def save(self, run: RunFolder) -> Path:
        """Write the checkpoint of the present step and drop the oldest."""
        return model_checkpoint.save(
            run.checkpoints,
            self.step,
            self.optimizer.masters(),
            self.optimizer.state(),
            self.cursor(),
            config=self.engine.model.config,
            # The model's folder may be a checkpoint of another run, which does not keep it.
            source=next(iter(checkpoint.steps(run.checkpoints)), self.model),
            stop_ids=self.chat.stop_ids,
            keep=self.config.keep_checkpoints,
            full=self.config.full_checkpoints,
        )

    def checkpoint_sizes(self) -> list[int]:
        """Return how many bytes each checkpoint takes that the run leaves, the newest first."""
        config = self.config
        return model_checkpoint.sizes(
            self.optimizer.masters(),
            num_saved=-(-config.num_steps // config.checkpoint_every),
            keep=config.keep_checkpoints,
            full=config.full_checkpoints,
        )

    def check(self, run: RunFolder) -> None:
        """RunError after too many steps in a row without a finite gradient."""
        if self.skipped >= self.config.max_skipped_steps:
            raise RunError(
                f"step {self.step} of {run.path}: the gradient of the last {self.skipped} steps was not "
                "finite (skipped). Lower --lr in a new run. "
                f"The checkpoints in {run.checkpoints} are whole."
            )

    def finish(self, run: RunFolder) -> Ending:
        """Measure the finished run on every held-out question. Where the line of step 0 was lost, nothing is
        said of before."""
        sampled = _examine(self, run, "after", self.held_out, self.config.final_samples)
        greedy = _examine(self, run, "after", self.held_out, 1, greedy=True)
        first = next((line for line in run.read_metrics() if line["step"] == 0), dict[str, Any]())
        before = {key: value for key, value in first.items() if key.startswith("held_out/")}
        summary = {
            "num_tokens": self.num_tokens,
            **({"before": before} if before else {}),
            "after": sampled.metrics("held_out"),
            "after_greedy": greedy.metrics("held_out"),
            "questions": len(self.held_out),
            "samples": self.config.final_samples,
        }
        measured = sampled.metrics("held_out") | greedy.metrics("held_out_greedy")
        return Ending(measured, summary, _closing(run, sampled, greedy, self))

    def close(self) -> None:
        """Nothing is held beyond memory."""


def prepare(config: TrainConfig, run: Path | None = None) -> Session:
    """Load the task and the model of `config` and put the parts together. Writes nothing.

    Where the model cannot be had any more, a `run` to go on with may do without: see `model.folder_of`.
    """
    set_threads(config.num_threads)
    keep_freed_memory()
    found = tried(config)
    model, is_gone = folder_of(config, run, find)
    chat = Chat.read(model, config.template_args)
    network = weights.load(model, compute_dtype(config.dtype))
    optimizer = MasterAdamW(
        network,
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
    )
    scale = Scale()
    scale.expect(found.checked.gold + found.checked.empty)
    return Session(
        config=config,
        model=model,
        model_is_gone=is_gone,
        tried=found.fitting(config, chat, network),
        chat=chat,
        engine=Engine(network, chat, num_slots=config.num_slots),
        optimizer=optimizer,
        learner=make_learner(config, network, optimizer, model),
        failures=Failures(config.max_unjudged),
        scale=scale,
        source=Source(
            found.levels, system=config.system, threshold=config.curriculum_threshold, seed=config.seed
        ),
    )


def _sample(session: Session) -> tuple[Experience, int]:
    """Sample the experience of the present step with the present weights; count starts that are too long."""
    config = session.config
    room = session.engine.model.config.max_positions - config.max_new_tokens
    starts = Fitting(session.source, session.chat, room)
    experience = collect(
        starts,
        session.chat,
        session.engine,
        Limits(config.max_new_tokens, config.temperature, seed=derive(config.seed, "sample", session.step)),
        num_prompts=config.num_prompts,
        group_size=config.group_size,
        version=session.version,
        silent=session.learner.silent,
        max_replacements=config.max_replacements if config.replace_silent else 0,
        failures=session.failures,
    )
    return experience, starts.dropped


def _count(session: Session, sampled: Trajectories, learned: dict[str, float]) -> dict[str, float]:
    """Bring the session's counts up to date with one batch; return those that are metrics."""
    taken, left_out = int(learned.get("num_updates", 0)), int(learned.get("skipped", 0))
    session.version += taken
    if taken or left_out:  # a batch without a gradient says nothing of the ones around it
        session.skipped = 0 if taken else session.skipped + 1
    session.num_tokens += metrics.num_tokens(sampled)
    values = {
        "num_tokens": float(session.num_tokens),
        "learning_rate": session.optimizer.lr,
        "num_skipped": float(session.skipped),
    }
    if len(session.source.levels) > 1:
        values["curriculum/level"] = float(session.source.level)
    return values


def _examine(
    session: Session,
    run: RunFolder,
    phase: Phase,
    questions: list[Question],
    num_samples: int,
    *,
    greedy: bool = False,
) -> Measurement:
    """Measure the present weights and write down every completion."""
    measured = _measure(session, questions, num_samples, greedy=greedy)
    write_evals(run, session.step, phase, session.version, measured, greedy=greedy)
    return measured


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
        scale=session.scale,
        failures=session.failures,
    )


def _closing(run: RunFolder, sampled: Measurement, greedy: Measurement, session: Session) -> str:
    one, other = (
        judged(found.metrics("held_out"), "held_out", session.scale.scale()) for found in (sampled, greedy)
    )
    return (
        f"done. {len(session.held_out)} held-out questions: sampled {one}, greedy {other}\n"
        f"talk to it: gradhat chat {run.path}"
    )
