"""`gradhat chat`: talk to a model, in a terminal or through a pipe."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gradhat.cli.flags import parse, target
from gradhat.errors import ConfigError

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
    top_p: float = 1.0
    """Sample from the most likely tokens that hold this share of the probability."""
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
    flags = parse(Flags(), argv, prog=f"gradhat chat {place}", description=DESCRIPTION)
    if flags.num_threads is not None and flags.num_threads < 1:
        raise ConfigError(f"num_threads={flags.num_threads}: found less than one thread. Use 1 or more.")
    converse(place, flags)
    return 0


def converse(place: str, flags: Flags) -> None:
    """Keep one conversation: each answer is given with everything said before in view."""
    from gradhat.policies.language import weights
    from gradhat.policies.language.chat import Chat, Message
    from gradhat.rollouts.engine import Engine, Limits
    from gradhat.training.log import printable
    from gradhat.training.seed import derive
    from gradhat.training.text.model import compute_dtype, find, set_threads

    set_threads(flags.num_threads)
    folder = find(place)
    chat = Chat.read(folder)
    engine = Engine(weights.load(folder, compute_dtype(flags.dtype)), chat, num_slots=1)
    messages: list[Message] = [{"role": "system", "content": flags.system}] if flags.system else []
    for turn, text in enumerate(_typed()):
        messages.append({"role": "user", "content": text})
        limits = Limits(
            flags.max_new_tokens, flags.temperature, top_p=flags.top_p, seed=derive(flags.seed, "chat", turn)
        )
        answer = engine.sample([chat.encode(messages)], 1, limits)[0][0]
        print(printable(answer.text), flush=True)
        messages.append({"role": "assistant", "content": answer.text})


def _typed() -> Iterator[str]:
    """Yield the lines typed at a prompt until an empty one, or the lines of a pipe that are not empty."""
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
