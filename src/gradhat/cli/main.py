"""The command line: `gradhat <verb> ...`. A verb is imported when it is called, so `--help` stays fast."""

import signal
import sys
from importlib import import_module

from gradhat.cli.flags import near
from gradhat.errors import ConfigError, GradhatError
from gradhat.streams import complain, flush, forgive, is_closed, is_unread, silence

VERBS = {
    "train": ("gradhat.cli.train", "train a model on a task, or an agent in a Gymnasium environment"),
    "sweep": ("gradhat.cli.sweep", "train a grid of runs over the cores"),
    "plot": ("gradhat.cli.plot", "draw learning curves of runs, mean and interval per setting"),
    "watch": ("gradhat.cli.watch", "film a trained policy"),
    "recipes": ("gradhat.cli.recipes", "list the recipes"),
    "eval": ("gradhat.cli.eval", "measure a run or a model, on held-out questions or in episodes"),
    "chat": ("gradhat.cli.chat", "talk to a run or a model"),
    "lab": ("gradhat.cli.lab", "measure what estimators and algorithms estimate, exactly"),
    "play": ("gradhat.cli.play", "answer a task's questions yourself"),
}
"""Verb: module with `main(argv)`, and one line for the help."""

SIGNAL_EXIT = 128
"""The exit code of a command that a signal ended is this and the number of the signal: 130 after Ctrl-C."""


def main(argv: list[str] | None = None) -> int:
    """Run one command. Returns its exit code: 1 for an error, 2 for a wrong command, 128 + N where signal N
    ended it. A pipe that nobody reads to its end (`| head`) ends it as SIGPIPE ends other tools: 141, and no
    word. One that is closed or full is an error, once the command has done its work.
    """
    asked = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        forgive(stream)
    try:
        try:
            return _answer(asked)
        finally:
            flush(sys.stdout)
    except (OSError, SystemExit, ValueError) as error:
        # rich, which prints tables, ends the process itself, as with an error. ValueError: it is closed.
        unread = is_unread(sys.stdout)
        full = isinstance(error, OSError) and not isinstance(error, BrokenPipeError)
        if not (unread or full or is_closed(sys.stdout)):
            raise
        silence(sys.stdout)
        if unread:
            return SIGNAL_EXIT + signal.SIGPIPE
        complain(
            f"gradhat {' '.join(asked[:2])}: found that standard output takes nothing any more ({error}). "
            "What was printed last is lost, what lies in files is not. Let it stay open, and make room."
        )
        return 1


def _answer(argv: list[str]) -> int:
    try:
        return _dispatch(argv)
    except GradhatError as error:
        complain(f"{type(error).__name__}: {error}")
        return 2 if isinstance(error, ConfigError) else 1
    except BrokenPipeError:
        raise
    except OSError as error:
        asked = f"gradhat {' '.join(argv[:2])}"
        complain(f"{asked}: found {error}. Check that it is there, and may be read and written.")
        return 1
    except (MemoryError, RuntimeError) as error:
        # torch has no error of its own for it.
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        complain(
            f"gradhat {' '.join(argv[:2])}: found too little memory for it ({error}). Ask for "
            "less: a smaller model, network or memory, fewer environments or sequences at once."
        )
        return 1
    except KeyboardInterrupt as end:
        complain("interrupted")
        return SIGNAL_EXIT + next((n for n in end.args if isinstance(n, int)), signal.SIGINT)


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"gradhat {version('gradhat')}")
        return 0
    if argv[0] not in VERBS:
        raise ConfigError(
            f"gradhat {argv[0]}: no such command.{near(argv[0], list(VERBS))} Known: {', '.join(VERBS)}."
        )
    return import_module(VERBS[argv[0]][0]).main(argv[1:]) or 0


def usage() -> str:
    """Return what `gradhat --help` prints."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {line}" for verb, (_, line) in VERBS.items()]
    return "\n".join(
        [
            "usage: gradhat COMMAND ...",
            "",
            "Reinforcement learning on language models, from the policy gradient up.",
            "",
            *lines,
            "",
            "gradhat COMMAND --help says more about each.",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
