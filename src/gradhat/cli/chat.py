"""`gradhat chat`: talk to a model, in a terminal or through a pipe."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from gradhat.cli.flags import gathered, parse, target
from gradhat.cli.sampling import REPEATABLE, Sampling
from gradhat.errors import ConfigError, RunError
from gradhat.places import home

USAGE = "gradhat chat RUN|MODEL"
DESCRIPTION = """gradhat chat RUN|MODEL [FLAGS]: talk to the newest checkpoint of a run, or to a model.

Each line you type is a message; an empty line or Ctrl-D ends. From a pipe, each line is a message."""


@dataclass(frozen=True)
class Flags:
    """How the model answers."""

    system: str = ""
    """System prompt. Empty leaves the model's chat template alone."""
    max_new_tokens: int = 256
    """An answer is cut here."""
    temperature: float = 0.7
    """0 is greedy."""
    sampling: Sampling = field(default_factory=Sampling)
    template_args: tuple[str, ...] = ()
    """Switches of the model's chat template, such as enable_thinking=false. A run's own when left out."""
    seed: int = 0
    """The same seed and messages give the same answers."""
    num_threads: int | None = None
    """Threads of the tensor library; None takes its own choice."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type; auto is bfloat16 where the processor multiplies it natively."""


def main(argv: list[str]) -> int:
    """Answer each line of input until it ends."""
    if argv and argv[0] in ("-h", "--help"):
        parse(Flags(), argv, prog=USAGE, description=DESCRIPTION)
    place, argv = target(argv, "run or model", USAGE)
    for flag in REPEATABLE:
        argv = gathered(argv, flag)
    flags = parse(defaults(place), argv, prog=f"gradhat chat {place}", description=DESCRIPTION)
    if flags.num_threads is not None and flags.num_threads < 1:
        raise ConfigError(f"num_threads={flags.num_threads}: found less than one thread. Use 1 or more.")
    flags.sampling.limits(flags.max_new_tokens, flags.temperature)
    converse(place, flags)
    return 0


def defaults(place: str) -> Flags:
    """Return the flags' defaults: a run brings the switches of its chat template. RunError for a policy that
    nobody talks to."""
    from gradhat.training.run_folder import RunFolder, is_run
    from gradhat.training.text.config import read

    path = home(place)
    if not is_run(path):
        return Flags()
    env = RunFolder(path).config().get("env")
    if isinstance(env, str) and _is_of_zoo(env):
        # It draws no pictures either, which other policies are looked at by.
        raise RunError(
            f"chat {path}: found a policy of {env}, and no language model. Measure it: gradhat eval {path}"
        )
    return Flags(template_args=read(path).template_args)


def _is_of_zoo(env: str) -> bool:
    from gradhat.training.control.worlds import ZOO_PREFIX

    return env.startswith(ZOO_PREFIX)


def converse(place: str, flags: Flags) -> None:
    """Keep one conversation: each answer is given with everything said before in view."""
    from gradhat.policies.language import weights
    from gradhat.policies.language.chat import Chat, Message
    from gradhat.rollouts.engine import Engine
    from gradhat.training.log import printable
    from gradhat.training.seed import derive
    from gradhat.training.text.model import compute_dtype, find, set_threads

    set_threads(flags.num_threads)
    folder = find(place)
    chat = Chat.read(folder, flags.template_args)
    engine = Engine(weights.load(folder, compute_dtype(flags.dtype)), chat, num_slots=1)
    messages: list[Message] = [{"role": "system", "content": flags.system}] if flags.system else []
    answers: list[tuple[int, ...]] = []
    for turn, text in enumerate(_typed()):
        messages.append({"role": "user", "content": text})
        limits = flags.sampling.limits(
            flags.max_new_tokens, flags.temperature, derive(flags.seed, "chat", turn)
        )
        answer = engine.sample([chat.encode(messages, answers)], 1, limits)[0][0]
        print(printable(answer.text), flush=True)
        messages.append({"role": "assistant", "content": answer.text})
        answers.append(answer.tokens)


def _typed() -> Iterator[str]:
    """Yield the lines typed at a prompt until an empty one, or the lines of a pipe that are not empty."""
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]
        return  # it was closed before the program began
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            return
        if not text:
            return
        yield text
