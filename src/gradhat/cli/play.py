"""`gradhat play`: answer a task's questions yourself, in a terminal or through a pipe."""

import sys
from dataclasses import dataclass, field

from gradhat.cli.columns import Columns
from gradhat.cli.flags import gathered, parse, target

USAGE = "gradhat play TASK"
DESCRIPTION = """gradhat play TASK [FLAGS]: answer the questions of a task.
TASK is arithmetic[:key=value,...], reasoning_gym:NAME[:key=value,...], path/to/my_task.py:MyTask or
questions.jsonl (.csv, .parquet, a folder that datasets saved).
Each answer is read as one line, or as many as the right answer has. Ctrl-D ends."""


@dataclass(frozen=True)
class Flags:
    """Which questions."""

    seed: int = 0
    """The first question; the next ones follow from it."""
    held_out: bool = False
    """Ask held-out questions instead of training ones."""
    reward: tuple[str, ...] = ()
    """Functions that score in the task's place, as in gradhat train."""
    columns: Columns = field(default_factory=Columns)


def main(argv: list[str]) -> int:
    """Ask until the input ends; prints each verdict with the task's own answer and, at the end, the mean."""
    if argv and argv[0] in ("-h", "--help"):
        parse(Flags(), argv, prog=USAGE, description=DESCRIPTION)
    name, argv = target(argv, "task", USAGE)
    argv = gathered(argv, "--reward")
    flags = parse(Flags(), argv, prog=f"gradhat play {name}", description=DESCRIPTION)
    rewards = play(name, flags)
    mean = f": mean reward {sum(rewards) / len(rewards):.3g}" if rewards else ""
    print(f"{len(rewards)} answer{'' if len(rewards) == 1 else 's'}{mean}")
    return 0


def play(name: str, flags: Flags) -> list[float]:
    """Ask the questions of seed, seed + 1, ... until the input ends. Returns the rewards of the answers."""
    from gradhat.envs.text.load import load_task
    from gradhat.envs.text.rewards import load_rewards
    from gradhat.envs.text.task import draw, judge

    task = load_rewards(load_task(flags.columns.named(name)), flags.reward)
    rewards: list[float] = []
    while True:
        question = draw(task, "held_out" if flags.held_out else "train", flags.seed + len(rewards))
        print(question.text, flush=True)
        answer = _typed(max(1, len(question.answer.splitlines())))
        if answer is None:
            return rewards
        verdict = judge(task, question, answer)
        rewards.append(verdict.reward)
        print(f"reward {verdict.reward:g}: {verdict.why or 'the task gives no reason'}")
        print(f"its own answer: {question.answer}\n" if question.answer else "", flush=True)


def _typed(num_lines: int) -> str | None:
    """Return `num_lines` lines of input, fewer where the input ends; None when it ends before the first."""
    lines: list[str] = []
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]
        return None  # it was closed before the program began
    try:
        while len(lines) < num_lines:
            lines.append(input("> "))
    except EOFError:
        print()
    return "\n".join(lines) if lines else None
