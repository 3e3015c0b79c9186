"""What a text task is, how its questions are split into train and held out, and how it is guarded.

A task is two methods: `question(seed)` and `score(question, completion)`. Both may be a user's code, so
everything else calls them through `ask` and `judge`, which turn a task that raises, hangs or answers nonsense
into a TaskError.
"""

import math
import random
import signal
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from numbers import Real
from types import FrameType
from typing import Any, Literal, NamedTuple, Protocol, cast

from gradhat.envs.text.verify import shorten
from gradhat.errors import TaskError
from gradhat.trajectories import Verdict

Split = Literal["train", "held_out"]

HELD_OUT_SHARE = 5
"""One key in five is held out, with all its questions."""
MAX_DRAWS = 1000
"""Questions tried before a split counts as empty."""
TIME_LIMIT = 60.0
"""Seconds that one call of `question` or `score` may take."""


class Question(NamedTuple):
    """One question. `answer` is the gold text or "" if there is none; `entry` is what else a scorer needs.

    `key` decides whether the question is held out: questions of one key are on the same side, so give one key
    to all that the same knowledge answers ("3 + 4", "4 + 3"). Where it is "", the text is the key.
    """

    text: str
    answer: str
    entry: Any = None
    key: str = ""


class Task(Protocol):
    """A source of questions and a judge of completions."""

    def question(self, seed: int) -> Question:
        """Return the question that `seed` names: the same seed gives the same question, in every process."""
        ...

    def score(self, question: Question, completion: str) -> Verdict | float:
        """Return the reward of `completion`, as a number or with its reasons as a Verdict."""
        ...


def key_of(question: Question) -> str:
    """Return what the split goes by: the question's key, its text where it has none."""
    return question.key or question.text


def held_out(key: str) -> bool:
    """Return whether the questions of `key` are held out: one key in five is, by a hash of it and of nothing
    else.

    Every task, level of a curriculum and process splits alike. Questions that mean the same in other words
    and have other keys may be split.
    """
    digest = blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest) % HELD_OUT_SHARE == 0


def draw(task: Task, split: Split, seed: int) -> Question:
    """Return the question of `split` that `seed` names: the first in its split on a walk of derived seeds.

    Raises TaskError when no question of the split is met in `MAX_DRAWS` tries.
    """
    for _, derived in zip(range(MAX_DRAWS), _derived_seeds(seed), strict=False):
        question = ask(task, derived)
        if held_out(key_of(question)) == (split == "held_out"):
            return question
    raise TaskError(
        f"{_name(task)}: a question of the split {split!r} was asked for, seed {seed}; "
        f"none of {MAX_DRAWS} questions falls in it. Give the task more distinct questions."
    )


def held_out_set(task: Task, n: int, seed: int) -> list[Question]:
    """Return `n` held-out questions of distinct texts in an order that `seed` fixes; all of them when there
    are fewer.

    The search ends when draws bring nothing new for 100 × (found + 10) questions. When questions are equally
    likely the chance that one more exists is then below 1e-6; rare questions of an uneven task can be missed.
    """
    found: dict[str, Question] = {}
    idle = 0
    seeds = _derived_seeds(seed)
    while len(found) < n and idle < 100 * (len(found) + 10):
        question = ask(task, next(seeds))
        idle += 1
        if held_out(key_of(question)) and question.text not in found:
            found[question.text] = question
            idle = 0
    return list(found.values())


def _derived_seeds(seed: int) -> Iterator[int]:
    """Yield the seeds that `seed` names. Its neighbours name others; all fit in 31 bits, for NumPy."""
    rng = random.Random(seed)
    while True:
        yield rng.getrandbits(31)


def ask(task: Task, seed: int, *, seconds: float = TIME_LIMIT) -> Question:
    """Return `task.question(seed)`. Raises TaskError when it raises, takes over `seconds`, or is no Question.

    The time limit holds in the main thread only: elsewhere Python cannot interrupt a call.
    """
    asked = f"{_name(task)}: question(seed={seed})"
    with guarded(asked, seconds):
        found = cast(object, task.question(seed))  # a user's code is not type checked
    if not isinstance(found, Question) or not _all_text(found.text, found.answer, found.key):
        raise TaskError(
            f"{asked} returned {shorten(repr(found))}. Return Question(text, answer), two strings; "
            "a key is a third."
        )
    return found


def _all_text(*values: object) -> bool:
    return all(isinstance(value, str) for value in values)


def judge(task: Task, question: Question, completion: str, *, seconds: float = TIME_LIMIT) -> Verdict:
    """Return the verdict of `task.score`; a plain number (int, float, bool) becomes a Verdict.

    Raises TaskError, with task, question and completion, when `score` raises, takes over `seconds`, or
    returns something that is not a finite number or a Verdict of finite numbers. The time limit holds in the
    main thread only.
    """
    asked = f"{_name(task)}: score of {shorten(completion)!r} for {shorten(question.text)!r}"
    with guarded(asked, seconds):
        found = cast(object, task.score(question, completion))
    verdict = found if isinstance(found, Verdict) else Verdict(_finite(found), {}, "")
    if not _all_text(verdict.why) or not _all_finite(verdict.reward, verdict.parts):
        raise TaskError(
            f"{asked} returned {shorten(repr(found))}. Return a finite number or a Verdict of such."
        )
    return verdict._replace(reward=float(verdict.reward))


def _all_finite(reward: object, parts: object) -> bool:
    """Return whether a reward and the values of its parts are finite numbers."""
    if not isinstance(parts, dict):
        return False
    values = cast(dict[object, object], parts).values()
    return not any(math.isnan(_finite(value)) for value in (reward, *values))


def _finite(found: object) -> float:
    """Return a finite number as a float, and NaN for everything else."""
    try:
        number = float(found) if isinstance(found, Real) else math.nan
    except OverflowError:
        return math.nan
    return number if math.isfinite(number) else math.nan


class _TimeUp(BaseException):
    """Not an Exception, so that a task's own `except Exception` does not swallow it."""


@contextmanager
def guarded(asked: str, seconds: float) -> Generator[None]:
    """Turn an exception, an exit or an overrun inside into a TaskError that begins with `asked`.

    The time limit holds in the main thread only: elsewhere Python cannot interrupt a call.
    """
    try:
        with _time_limit(seconds):
            yield
    except _TimeUp:
        raise TaskError(f"{asked} took more than {seconds:g} s. Make it faster, or end it sooner.") from None
    except TaskError:
        raise
    except (Exception, SystemExit) as error:
        cause = f"{type(error).__name__}: {shorten(str(error))}"
        raise TaskError(
            f"{asked} raised {cause}. Fix the task; a wrong answer is a reward of 0, not an error."
        ) from error


@contextmanager
def _time_limit(seconds: float) -> Generator[None]:
    """Raise _TimeUp inside after `seconds`. Only in the main thread, where Python runs signal handlers."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        raise _TimeUp

    previous = signal.signal(signal.SIGALRM, stop)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        signal.setitimer(signal.ITIMER_REAL, left)  # somebody else's alarm goes on


def check(task: Task, num_questions: int = 20) -> None:
    """Let a task check itself on `num_questions` questions; raises TaskError naming the first that fails.

    The same seed gives the same question, the gold answer (where there is one) scores 1, the empty completion
    scores 0, and every reward is finite.
    """
    for seed in range(num_questions):
        question = ask(task, seed)
        where = f"{_name(task)}: question {shorten(question.text)!r} (seed {seed})"
        again = ask(task, seed)
        if (again[:2], again.key) != (question[:2], question.key):
            raise TaskError(
                f"{where} is {shorten(again.text)!r} the second time. Draw from random.Random(seed) only."
            )
        if question.answer:
            gold = judge(task, question, question.answer)
            if gold.reward != 1.0:
                raise TaskError(
                    f"{where}: its answer {shorten(question.answer)!r} scores {gold.reward:g}, not 1."
                )
        empty = judge(task, question, "")
        if empty.reward != 0.0:
            raise TaskError(f"{where}: the empty completion scores {empty.reward:g}. Score it 0.")


def _name(task: Task) -> str:
    return f"task {type(task).__name__}"
