"""The experiments of `gradhat lab`: the flags of each, and the call that they make."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from gradhat.cli.flags import near
from gradhat.errors import ConfigError
from gradhat.places import home

if TYPE_CHECKING:
    from gradhat.lab.microscope import World
    from gradhat.lab.report import Report
    from gradhat.trajectories import Trajectories


@dataclass(frozen=True)
class Bench:
    """What every experiment on a tabular world takes."""

    seed: int = 0
    """Of the policy's random logits, and of batches drawn at random where they cannot be enumerated."""
    spread: float = 0.5
    """Standard deviation of the policy's logits; 0 is the uniform policy."""
    gamma: float | None = None
    """Discount in place of the world's own."""
    horizon: int | None = None
    """Number of steps after which the problem ends, in place of the world's own."""
    out: Path | None = None
    """The folder to make. None makes runs/lab-EXPERIMENT-DATE-TIME."""


@dataclass(frozen=True)
class Bias:
    """What `gradhat lab bias` takes."""

    mdp: tuple[str, ...] = ("prompts", "two_states")
    """Worlds of the zoo."""
    estimators: tuple[str, ...] = ()
    """Names of estimators; none means all."""
    group_size: int = 4
    """Trajectories in a batch."""
    bench: Bench = field(default_factory=Bench)


@dataclass(frozen=True)
class Variance:
    """What `gradhat lab variance` takes."""

    mdp: tuple[str, ...] = ("corridor", "token")
    """Worlds of the zoo."""
    group_size: int = 4
    """Trajectories in a batch, where baselines are compared."""
    sizes: tuple[int, ...] = (2, 4, 8, 16)
    """Group sizes that are compared."""
    lams: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
    """Traces λ that are compared."""
    error: float = 0.5
    """Standard deviation of the error of the wrong V, in standard deviations of the return."""
    decay: float = 0.9
    """Of the moving average."""
    bench: Bench = field(default_factory=Bench)


@dataclass(frozen=True)
class Staleness:
    """What `gradhat lab staleness` takes."""

    mdp: tuple[str, ...] = ("token",)
    """Worlds of the zoo."""
    updates: int = 10
    """Exact gradient steps that the sampler lags behind, at most."""
    lr: float = 4.0
    """Of these steps."""
    clip: float = 0.2
    """Of the clipped surrogate."""
    cap: float = 2.0
    """Of truncated ratios."""
    low: float = 0.5
    """Ratios below it are masked."""
    high: float = 5.0
    """Ratios above it are masked."""
    bench: Bench = field(default_factory=Bench)


@dataclass(frozen=True)
class Kl:
    """What `gradhat lab kl` takes."""

    mdp: tuple[str, ...] = ("token", "bandit")
    """Worlds of the zoo."""
    updates: int = 10
    """Exact gradient steps between the reference and the policy."""
    lr: float = 5.0
    """Of these steps."""
    bench: Bench = field(default_factory=Bench)


@dataclass(frozen=True)
class Clip:
    """What `gradhat lab clip` takes."""

    mdp: tuple[str, ...] = ("small", "luck")
    """Worlds of the zoo, small ones: every batch gets a policy of its own."""
    group_size: int = 4
    """Trajectories in a batch."""
    epochs: int = 8
    """Passes over a batch."""
    lr: float = 1.0
    """Of plain gradient ascent."""
    bench: Bench = field(default_factory=Bench)


@dataclass(frozen=True)
class Mine:
    """What `gradhat lab mine` takes."""

    mdp: str = "small"
    """A world of the zoo."""
    group_size: int = 4
    """Trajectories in a batch."""
    bench: Bench = field(default_factory=Bench)


@dataclass(frozen=True)
class Algorithm:
    """What `gradhat lab algorithm` takes."""

    mdp: str = "small"
    """A world of the zoo."""
    group_size: int = 4
    """Trajectories that share a start state."""
    num_groups: int = 1
    """Start states in a batch."""
    num_epochs: int = 1
    """Passes over a batch."""
    lr: float = 0.1
    """Of plain gradient ascent; matters with more than one pass."""
    clip_low: float = 0.2
    """The ratio is kept above 1 - clip_low."""
    clip_high: float = 0.2
    """The ratio is kept below 1 + clip_high."""
    bench: Bench = field(default_factory=Bench)


@dataclass(frozen=True)
class Model:
    """What `gradhat lab model` takes. A run brings its own task, system prompt and limits."""

    task: str = ""
    """The task, as in gradhat train. A run's own when left out."""
    batches: int = 16
    """Batches that are compared."""
    num_prompts: int = 8
    """Prompts in a batch."""
    group_size: int = 8
    """Completions sampled for each prompt. Its halves are looked at as well, down to 2."""
    parameters: str = ""
    """Which parameters: a pattern such as "blocks.29.*". Empty takes the last block."""
    temperature: float = 1.0
    """Of the sampling distribution."""
    max_new_tokens: int = 32
    """A completion is cut here."""
    system: str = ""
    """System prompt. Empty leaves the model's chat template alone."""
    template_args: tuple[str, ...] = ()
    """Switches of the model's chat template, such as enable_thinking=false."""
    seed: int = 0
    """Chooses the questions and the samples."""
    num_slots: int = 64
    """Sequences decoded at once."""
    num_threads: int | None = None
    """Threads of the tensor library; None takes its own choice."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type; auto is bfloat16 where the processor multiplies it natively."""
    out: Path | None = None
    """The folder to make. None makes runs/lab-model-DATE-TIME."""
    trust: bool = False
    """Execute code that the run names: a task in a file."""


class Experiment(NamedTuple):
    """One verb of the lab."""

    flags: Callable[[str], Any]
    """subject → the flags with their defaults."""
    run: Callable[[Any, str], "Report"]
    """(flags, subject) → report."""
    about: str
    subject: str = ""
    """What the command takes besides flags."""


def world(name: str, bench: Bench) -> "World":
    """Return a world of the zoo with its policy. ConfigError for one that is not there or cannot be had."""
    from gradhat.exact.zoo import ZOO
    from gradhat.lab import microscope

    if not 0 <= bench.spread < math.inf:
        raise ConfigError(f"--spread {bench.spread:g}: a standard deviation is 0 or more. Use such a one.")
    if not 0 <= bench.seed < 2**63:
        raise ConfigError(f"--seed {bench.seed}: found a value out of range. Use 0 to 2^63 - 1.")
    if name not in ZOO:
        raise ConfigError(f"--mdp {name}: no such world.{near(name, list(ZOO))} Known: {', '.join(ZOO)}.")
    changes = {"gamma": bench.gamma, "horizon": bench.horizon}
    try:
        mdp = replace(ZOO[name](), **{k: v for k, v in changes.items() if v is not None})
    except ValueError as error:
        raise ConfigError(f"--mdp {name}: {error}") from error
    return microscope.world(mdp, seed=bench.seed, spread=bench.spread)


def worlds(names: Sequence[str], bench: Bench) -> "dict[str, World]":
    """Return the worlds by name. ConfigError if there is none."""
    if not names:
        raise ConfigError("--mdp: found no world. Name one or more, or leave --mdp out.")
    return {name: world(name, bench) for name in names}


def bias(flags: Bias, _: str) -> "Report":
    from gradhat.lab import bias
    from gradhat.lab.shelf import ALGORITHM_OF, shelf

    chosen = worlds(flags.mdp, flags.bench)
    specimens = {name: shelf(w) for name, w in chosen.items()}
    known = {s.name: None for found in specimens.values() for s in found}
    for name in flags.estimators:
        if name not in known:
            here = [estimator for estimator, algorithm in ALGORITHM_OF.items() if algorithm == name]
            other = f" The estimator of this algorithm is {here[0]}." if here else near(name, list(known))
            raise ConfigError(f"--estimators {name}: no such estimator.{other} Known: {', '.join(known)}.")
    wanted = set(flags.estimators or known)
    specimens = {name: [s for s in found if s.name in wanted] for name, found in specimens.items()}
    if idle := [name for name, found in specimens.items() if not found]:
        raise ConfigError(
            f"--estimators {' '.join(flags.estimators)} with --mdp {idle[0]}: found nothing to compare, "
            f"as these say nothing in {idle[0]}. Leave that world out, or choose other estimators."
        )
    many = [s.name for found in specimens.values() for s in found if s.sees != "one"]
    if flags.group_size < 2 and many:
        raise ConfigError(
            f"--group-size {flags.group_size}: {many[0]} compares trajectories with each other. Use 2 or "
            "more, or --estimators that judge a trajectory by itself, such as total_return."
        )
    return bias.bias(chosen, specimens, group_size=flags.group_size)


def variance(flags: Variance, _: str) -> "Report":
    from gradhat.lab import variance

    numbers = variance.Settings(
        group_size=flags.group_size,
        sizes=flags.sizes,
        lams=flags.lams,
        error=flags.error,
        decay=flags.decay,
    )
    return variance.variance(worlds(flags.mdp, flags.bench), numbers)


def staleness(flags: Staleness, _: str) -> "Report":
    from gradhat.lab import staleness

    bounds = staleness.Bounds(clip=flags.clip, cap=flags.cap, low=flags.low, high=flags.high)
    return staleness.staleness(
        worlds(flags.mdp, flags.bench), updates=flags.updates, lr=flags.lr, bounds=bounds
    )


def kl(flags: Kl, _: str) -> "Report":
    from gradhat.lab import kl

    return kl.kl(worlds(flags.mdp, flags.bench), updates=flags.updates, lr=flags.lr)


def clip(flags: Clip, _: str) -> "Report":
    from gradhat.lab import clip

    return clip.clip(
        worlds(flags.mdp, flags.bench), group_size=flags.group_size, epochs=flags.epochs, lr=flags.lr
    )


def mine(flags: Mine, spec: str) -> "Report":
    from gradhat.lab import mine

    if flags.group_size < 2:
        raise ConfigError(
            f"--group-size {flags.group_size}: it is shown beside estimators that compare trajectories. "
            "Use 2 or more."
        )
    return mine.mine(spec, world(flags.mdp, flags.bench), flags.mdp, group_size=flags.group_size)


def algorithm(flags: Algorithm, name: str) -> "Report":
    from gradhat.lab import algorithm

    numbers = algorithm.Settings(
        group_size=flags.group_size,
        num_groups=flags.num_groups,
        num_epochs=flags.num_epochs,
        lr=flags.lr,
        clip_low=flags.clip_low,
        clip_high=flags.clip_high,
    )
    return algorithm.algorithm(name, world(flags.mdp, flags.bench), flags.mdp, numbers)


def model_flags(place: str) -> Model:
    """Return the defaults: those of the run, if `place` is one."""
    from gradhat.training.run_folder import is_run
    from gradhat.training.text.config import read
    from gradhat.training.trust import code_in

    if not place or not is_run(home(place)):
        return Model()
    config = read(home(place))
    known: dict[str, Any] = {
        f.name: getattr(config, f.name) for f in fields(Model) if hasattr(config, f.name)
    }
    # Its task may be a file, which is executed only when somebody trusts it.
    if code_in({"task": config.task}):
        known["task"] = ""
    return Model(**known)


def check_model(flags: Model, place: str, *, fewest: int) -> None:
    """ConfigError for a flag that would be found wrong only after `fewest` batches or more are sampled."""
    if not flags.task:
        raise ConfigError(f"gradhat lab model {place}: found no task. Name one: --task arithmetic:digits=1")
    least = {"batches": fewest, "num_prompts": 1, "group_size": 2, "max_new_tokens": 1, "num_slots": 1}
    for name, number in least.items():
        if (found := getattr(flags, name)) < number:
            raise ConfigError(f"{name}={found}: found a value out of range. Use {number} or more.")
    if not 0 < flags.temperature < math.inf:
        raise ConfigError(f"temperature={flags.temperature:g}: sampling needs more than 0. Use 1 or so.")


def model(flags: Model, place: str) -> "Report":
    from gradhat.algorithms.grpo import Settings
    from gradhat.envs.text.load import load_task
    from gradhat.lab import model
    from gradhat.policies.language import weights
    from gradhat.policies.language.chat import Chat
    from gradhat.policies.language.policy import LanguagePolicy
    from gradhat.rollouts.engine import Engine, Limits
    from gradhat.rollouts.episodes import Fitting
    from gradhat.training.seed import derive
    from gradhat.training.text.model import compute_dtype, find, set_threads, setting_of
    from gradhat.training.text.source import Source

    verb = f"gradhat lab model {place}"
    flags = replace(flags, task=flags.task or setting_of(place, "task", verb, trusted=flags.trust) or "")
    check_model(flags, place, fewest=model.FEWEST)
    set_threads(flags.num_threads)
    task, folder = load_task(flags.task), find(place)
    chat = Chat.read(folder, flags.template_args)
    network = weights.load(folder, compute_dtype(flags.dtype))
    chosen = model.choose(network, flags.parameters or f"blocks.{network.config.num_layers - 1}.*")
    source = Source([task], system=flags.system, threshold=1.0, seed=flags.seed)
    batches = progress(
        model.sample(
            Fitting(source, chat, network.config.max_positions - flags.max_new_tokens),
            chat,
            Engine(network, chat, num_slots=flags.num_slots),
            Limits(flags.max_new_tokens, flags.temperature, seed=derive(flags.seed, "lab")),
            num_batches=flags.batches,
            num_prompts=flags.num_prompts,
            group_size=flags.group_size,
        ),
        flags.batches,
    )
    sizes = [2**k for k in range(1, flags.group_size.bit_length()) if 2**k < flags.group_size]
    lines = model.measure(
        LanguagePolicy(network, flags.temperature),
        batches,
        Settings(length=flags.max_new_tokens),
        chosen,
        group_sizes=[*sizes, flags.group_size],
    )
    count = sum(p.numel() for p in chosen.values())
    subject = (
        f"{folder.name} on {flags.task}, {flags.num_prompts} prompts a batch, {count / 1e6:.2f}M parameters"
    )
    return model.report(lines, model.reward(batches), subject=subject)


def progress(batches: "Iterator[Trajectories]", count: int) -> "list[Trajectories]":
    """Collect the batches, and say on stderr how far it is."""
    found: list[Trajectories] = []
    for batch in batches:
        found.append(batch)
        print(f"\rsampled {len(found)} of {count} batches", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def always(flags: Any) -> Callable[[str], Any]:
    """Return the defaults of an experiment whose subject does not change them."""

    def defaults(_subject: str) -> Any:
        return flags

    return defaults


EXPERIMENTS = {
    "bias": Experiment(
        always(Bias()), bias, "what each estimator estimates, held against the exact gradient"
    ),
    "variance": Experiment(always(Variance()), variance, "what baselines, λ and group size do to the noise"),
    "staleness": Experiment(always(Staleness()), staleness, "what a sampler that lags behind costs"),
    "kl": Experiment(always(Kl()), kl, "which KL estimator and placement follows which divergence"),
    "clip": Experiment(always(Clip()), clip, "what clipping costs and saves over several epochs"),
    "algorithm": Experiment(
        always(Algorithm()), algorithm, "a whole algorithm, as the trainer runs it", "NAME"
    ),
    "mine": Experiment(always(Mine()), mine, "an estimator or a loss of your own", "FILE.py:FUNCTION"),
    "model": Experiment(model_flags, model, "how much of a language model's gradient is signal", "RUN|MODEL"),
}
"""Verb → experiment."""
