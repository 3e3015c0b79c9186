"""`gradhat eval`: how well a run or a model answers questions it was not trained on."""

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gradhat.cli.columns import Columns, absolute
from gradhat.cli.flags import gathered, parse, target
from gradhat.cli.sampling import REPEATABLE, Sampling
from gradhat.errors import ConfigError, TaskError
from gradhat.places import home

if TYPE_CHECKING:
    from gradhat.training.text.evaluate import Measurement

USAGE = "gradhat eval RUN|MODEL"
DESCRIPTION = """gradhat eval RUN|MODEL --task TASK [FLAGS]: measure on held-out questions.

A run brings its own task, system prompt and limits; flags override them.

gradhat eval RUN --episodes 100: play with a control run, as it is measured. gradhat eval RUN --help lists
its flags."""


@dataclass(frozen=True)
class Flags:
    """What is measured, and how."""

    task: str = ""
    """The task, as in gradhat train. A run's own when left out."""
    reward: tuple[str, ...] = ()
    """Functions that score in the task's place, as in gradhat train. A run's own when left out."""
    columns: Columns = field(default_factory=Columns)
    n: int = 200
    """Held-out questions, or all of them when the task has fewer."""
    samples: int = 4
    """Completions sampled for each question: pass@k is estimated for k up to this."""
    temperature: float = 1.0
    """Of the sampled completions."""
    sampling: Sampling = field(default_factory=Sampling)
    max_new_tokens: int = 32
    """A completion is cut here, and scored as it stands."""
    system: str = ""
    """System prompt. Empty leaves the model's chat template alone."""
    template_args: tuple[str, ...] = ()
    """Switches of the model's chat template, such as enable_thinking=false. A run's own when left out."""
    seed: int = 0
    """Chooses the questions, when there are more than n, and the samples."""
    num_slots: int = 64
    """Sequences decoded at once."""
    num_threads: int | None = None
    """Threads of the tensor library; None takes its own choice."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type; auto is bfloat16 where the processor multiplies it natively."""
    trust: bool = False
    """Execute code that the run names: a task or a reward in a file."""


def main(argv: list[str]) -> int:
    """Print the expected return, or the accuracy and pass@k where something says what solves a question."""
    if argv and argv[0] in ("-h", "--help"):
        parse(Flags(), argv, prog=USAGE, description=DESCRIPTION)
    place, argv = target(argv, "run or model", USAGE)
    if _is_control(home(place)):
        from gradhat.cli import eval_control

        return eval_control.main(home(place), argv)
    for flag in ("--reward", *REPEATABLE):
        argv = gathered(argv, flag)
    flags = parse(defaults(place), argv, prog=f"gradhat eval {place}", description=DESCRIPTION)
    flags = completed(place, flags)
    if not flags.task:
        raise ConfigError(f"gradhat eval {place}: found no task. Name one: --task arithmetic:digits=1")
    for name in ("n", "samples", "max_new_tokens", "num_slots"):
        if getattr(flags, name) < 1:
            raise ConfigError(f"{name}={getattr(flags, name)}: found a value out of range. Use 1 or more.")
    if flags.temperature <= 0:
        raise ConfigError(
            f"temperature={flags.temperature}: sampling needs more than 0. Greedy is measured anyway."
        )
    flags.sampling.limits(flags.max_new_tokens, flags.temperature)
    report(place, flags)
    return 0


def _is_control(path: Path) -> bool:
    """Return whether `path` is a run in a Gymnasium world."""
    from gradhat.training.run_folder import RunFolder, is_run

    return is_run(path) and "learning" in RunFolder(path).config()


def defaults(place: str) -> Flags:
    """Return the flags' defaults: those of the run, if `place` is one."""
    from gradhat.training.run_folder import is_run
    from gradhat.training.text.config import read
    from gradhat.training.trust import code_in

    if not is_run(home(place)):
        return Flags()
    config = read(home(place))
    return Flags(
        # These may be files, which are executed only when somebody trusts them.
        task="" if code_in({"task": config.task}) else config.task,
        reward=() if code_in({"reward": config.reward}) else config.reward,
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        system=config.system,
        template_args=config.template_args,
        num_slots=config.num_slots,
        num_threads=config.num_threads,
        dtype=config.dtype,
    )


def completed(place: str, flags: Flags) -> Flags:
    """Return the flags with what a run brings. ConfigError where that is code that nobody trusts."""
    from gradhat.training.text.model import setting_of

    verb = f"gradhat eval {place}"
    task = flags.task or setting_of(place, "task", verb, trusted=flags.trust) or ""
    reward = flags.reward or setting_of(place, "reward", verb, trusted=flags.trust) or ()
    return replace(flags, task=task, reward=reward)


def report(place: str, flags: Flags) -> None:
    """Measure and print."""
    from gradhat.envs.text.load import load_task
    from gradhat.envs.text.rewards import load_rewards
    from gradhat.envs.text.task import held_out_set
    from gradhat.policies.language import weights
    from gradhat.policies.language.chat import Chat
    from gradhat.rollouts.engine import Engine
    from gradhat.training.seed import derive
    from gradhat.training.text.evaluate import fitting, measure
    from gradhat.training.text.model import compute_dtype, find, seen_by, set_threads
    from gradhat.verdicts import PATIENCE, Failures

    set_threads(flags.num_threads)
    named = flags.columns.named(flags.task)
    task = load_rewards(load_task(named), flags.reward)
    questions = held_out_set(task, flags.n, derive(flags.seed, "held_out"), partial(print, flush=True))
    if not questions:
        raise TaskError(f"{flags.task}: found no held-out question. Give the task more distinct questions.")
    folder = find(place)
    chat = Chat.read(folder, flags.template_args)
    network = weights.load(folder, compute_dtype(flags.dtype))
    engine = Engine(network, chat, num_slots=flags.num_slots)
    drawn = len(questions)
    questions = fitting(
        questions,
        chat,
        system=flags.system,
        max_new_tokens=flags.max_new_tokens,
        context=network.config.max_positions,
    )

    # Another judge has a scale of its own.
    scale = seen_by(place, absolute(named), tuple(map(absolute, flags.reward)))
    failures = Failures(PATIENCE)

    def measured(temperature: float, num_samples: int) -> "Measurement":
        limits = flags.sampling.limits(flags.max_new_tokens, temperature, derive(flags.seed, "eval"))
        return measure(
            task,
            questions,
            engine,
            chat,
            limits,
            system=flags.system,
            num_samples=num_samples,
            scale=scale,
            failures=failures,
        )

    left_out = f", {drawn - len(questions)} more are too long" if len(questions) < drawn else ""
    print(f"model    {folder}\ntask     {flags.task}: {len(questions)} held-out questions{left_out}")
    sampled = measured(flags.temperature, flags.samples)
    samples = "1 sample" if flags.samples == 1 else f"{flags.samples} samples"
    print(f"sampled  {line(sampled)}  temperature {flags.temperature:g}, {samples} a question")
    if sampled.solved() is not None:
        passes = [(k, sampled.pass_at(k)) for k in powers(flags.samples)]
        print("         " + "  ".join(f"pass@{k} {share:.3f}" for k, share in passes if share is not None))
    print(f"greedy   {line(measured(0.0, 1))}")


def line(measured: "Measurement") -> str:
    """Return what is judged with its 95 % interval, and beside an accuracy the mean reward."""
    from gradhat.intervals import number
    from gradhat.training.text.progress import judged

    scale = measured.scale.scale()
    found = judged(measured.metrics("held_out"), "held_out", scale)
    reward = "" if measured.accuracy() is None else f"  reward {number(measured.reward().mean, scale)}"
    failed = measured.num_unjudged()
    return (
        found
        + reward
        + (f"  {failed} of {sum(map(len, measured.records))} verdicts failed" if failed else "")
    )


def powers(samples: int) -> list[int]:
    """Return 1, 2, 4, ... up to `samples`, and `samples` itself."""
    doubled = [2**i for i in range(samples.bit_length()) if 2**i < samples]
    return [*doubled, samples]
