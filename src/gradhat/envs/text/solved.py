"""What it means to solve a question: the one place that decides.

A task may say it, as a threshold on the reward or as a method:

    class MyTask:
        solved = 0.5                                   # a reward of 0.5 or more
        def solved(self, verdict): ...                 # or: whether this Verdict solves the question

Where it says nothing and every reward is 0 or 1, a reward of 1 does. Rewards of any other kind (0 to 10, -1
and 1, partial credit) have a mean and no accuracy: nobody knows which of them is good enough.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import cast

from gradhat.envs.text.guard import attribute, guarded, name_of, settled, shown
from gradhat.errors import TaskError
from gradhat.trajectories import Verdict
from gradhat.verdicts import number

Solves = Callable[[Verdict], bool]
"""Whether an answer with this verdict solves its question."""

SECONDS = 60.0
"""That a method may take for one verdict."""
ROUNDING = 1e-6
"""Rewards this close are equal: sums such as 0.7 + 0.2 + 0.1 miss 1 by less, in float32 too."""


def solves(task: object, *, graded: bool) -> Solves | None:
    """Return what decides whether an answer to `task` solves its question, None where nothing does.

    `graded` says that rewards other than 0 and 1 were seen. TaskError where the task's own `solved` is
    neither a finite number nor a method.
    """
    said = own(task)
    if said is not None:
        return said
    return None if graded else at_least(1.0)


def own(task: object) -> Solves | None:
    """Return what the task itself says, None where it says nothing."""
    name = name_of(task)
    said = attribute(name, task, "solved")
    if said is None:
        return None
    if callable(said):
        return lambda verdict: _asked(name, cast("Callable[[Verdict], object]", said), verdict)
    threshold = None if isinstance(said, bool) else number(said)
    if threshold is None:
        raise TaskError(
            f"{name}: solved was asked for, found {shown(said)}. Give the least reward that solves a "
            "question, such as solved = 0.5, or a method solved(self, verdict) that returns True or False."
        )
    return at_least(threshold)


def at_least(threshold: float) -> Solves:
    """Return the rule of a threshold on the reward, within rounding."""
    least = threshold - ROUNDING * max(1.0, abs(threshold))
    return lambda verdict: verdict.reward >= least


def is_right_or_wrong(rewards: Iterable[float]) -> bool:
    """Return whether every reward is 0 or 1, within rounding."""
    return all(min(abs(reward), abs(reward - 1.0)) <= ROUNDING for reward in rewards)


def marks(task: object, verdicts: Sequence[Verdict]) -> list[float]:
    """Return what a curriculum follows: 1 or 0 where the task says what solves its questions, else rewards.

    Rewards of 0 and 1 are both at once.
    """
    said = own(task)
    return [verdict.reward if said is None else float(said(verdict)) for verdict in verdicts]


def _asked(name: str, solved: Callable[[Verdict], object], verdict: Verdict) -> bool:
    asked = f"{name}: solved({shown(verdict)})"
    found = guarded(asked, SECONDS, lambda: settled(solved(verdict)))
    answer = number(found)
    if answer not in (0.0, 1.0):
        raise TaskError(f"{asked} returned {shown(found)}. Return True or False.")
    return bool(answer)
