"""What a text task is, how its questions are split into train and held out, and how it is called.

A task is two methods: `question(seed)` and `score(question, completion)`. Both may be a user's code, so
everything else calls them through `ask` and `judge`, which turn a task that raises, hangs or answers nonsense
into a TaskError.
"""

import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any, Literal, NamedTuple, Protocol, cast

from gradhat.envs.text.guard import attribute, guarded, name_of, settled, shown
from gradhat.envs.text.solved import own
from gradhat.envs.text.verify import shorten
from gradhat.errors import TaskError
from gradhat.trajectories import Verdict
from gradhat.verdicts import Failures, plain, writable

Split = Literal["train", "held_out"]
Say = Callable[[str], object]
"""What becomes of a line for whoever waits."""

HELD_OUT_SHARE = 5
"""One key in five is held out, with all its questions."""
MAX_DRAWS = 1000
"""Questions tried before a split counts as empty."""
TIME_LIMIT = 60.0
"""Seconds that one call of `question` or `score` may take."""
QUIET = 2.0
"""Seconds of silence before a slow task is said to be slow, and between one such line and the next."""


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
    """A source of questions and a judge of completions. It may say what solves a question: see solved.py."""

    def question(self, seed: int) -> Question:
        """Return the question that `seed` names: the same seed gives the same question, in every process.

        Seeds are any whole numbers from 0 to 2**31 - 1: a list of questions is read at `seed % len(list)`.
        """
        ...

    def score(self, question: Question, completion: str) -> Verdict | float | Awaitable[Verdict | float]:
        """Return the reward of `completion`, any finite number, alone or with its reasons as a Verdict.

        `async def score` works too. The completions of one prompt share their `question`: leave it as it is.
        """
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
        f"{name_of(task)}: a question of the split {split!r} was asked for, seed {seed}; "
        f"none of {MAX_DRAWS} questions falls in it. Give the task more distinct questions."
    )


def held_out_set(task: Task, n: int, seed: int, say: Say = lambda _: None) -> list[Question]:
    """Return `n` held-out questions of distinct texts in an order that `seed` fixes; all of them when there
    are fewer.

    The search ends when draws bring nothing new for 100 × (found + 10) questions. When questions are equally
    likely the chance that one more exists is then below 1e-6; rare questions of an uneven task can be missed.
    `say` gets a line now and then where that takes long.
    """
    found: dict[str, Question] = {}
    idle = 0
    speak = _now_and_then(say)
    for tried, derived in enumerate(_derived_seeds(seed)):
        if len(found) == n or idle == 100 * (len(found) + 10):
            break
        speak(f"{name_of(task)}: looking for {n} held-out questions: {len(found)} found in {tried} tries")
        question = ask(task, derived)
        idle += 1
        if held_out(key_of(question)) and question.text not in found:
            found[question.text] = question
            idle = 0
    return list(found.values())


def fingerprint(questions: Sequence[Question]) -> str:
    """Return a hash of the texts, answers and keys of `questions`, in their order.

    It differs where a task asks other questions than it did: edited, or drawn from the hash seed, the order
    of a folder, the date. Entries are not looked at: they may be of any kind.
    """
    digest = blake2b(digest_size=16)
    for question in questions:
        for text in (question.text, question.answer, question.key):
            data = text.encode(errors="surrogatepass")
            digest.update(len(data).to_bytes(8))
            digest.update(data)
    return digest.hexdigest()


def _now_and_then(say: Say) -> Say:
    """Return a `say` that is quiet for `QUIET` seconds, and again after each line."""
    last = time.monotonic()

    def speak(line: str) -> None:
        nonlocal last
        if time.monotonic() >= last + QUIET:
            say(line)
            last = time.monotonic()

    return speak


def _derived_seeds(seed: int) -> Iterator[int]:
    """Yield the seeds that `seed` names. Its neighbours name others; all fit in 31 bits, for NumPy."""
    rng = random.Random(seed)
    while True:
        yield rng.getrandbits(31)


def ask(task: Task, seed: int, *, seconds: float = TIME_LIMIT) -> Question:
    """Return `task.question(seed)`. Raises TaskError when it raises, takes over `seconds`, or is no Question.

    Half characters (lone surrogates) become "?": no tokenizer and no file takes them. Where the time limit
    holds: `guard`.
    """
    asked = f"{name_of(task)}: question(seed={seed})"
    return guarded(asked, seconds, lambda: _question(asked, settled(task.question(seed))))


def _question(asked: str, found: object) -> Question:
    # A user's code is not type checked.
    if not isinstance(found, Question) or not _all_text(found.text, found.answer, found.key):
        raise TaskError(
            f"{asked} returned {shown(found)}. Return Question(text, answer), two strings; a key is a third."
        )
    return Question(writable(found.text), writable(found.answer), found.entry, writable(found.key))


def _all_text(*values: object) -> bool:
    return all(isinstance(value, str) for value in values)


def judge(task: Task, question: Question, completion: str, *, seconds: float = TIME_LIMIT) -> Verdict:
    """Return the verdict of `task.score`, which may be a coroutine; a plain number becomes a Verdict.

    Numbers may be those of any library (`verdicts.number`); they come back as floats. Raises TaskError, with
    task, question and completion, when `score` raises, takes over `seconds` (where the limit holds: `guard`),
    or returns something that is not a number that float32 holds, or a Verdict of such.
    """
    asked = f"{name_of(task)}: score of {shorten(completion)!r} for {shorten(question.text)!r}"
    return guarded(asked, seconds, lambda: _plain(asked, settled(task.score(question, completion))))


def judge_many(
    task: Task,
    questions: Sequence[Question],
    completions: Sequence[str],
    tokens: Sequence[Sequence[int]],
    failures: Failures | None = None,
) -> list[Verdict]:
    """Return the verdict of each completion: together where the task has a method `score_many(questions,
    completions, tokens)`, else one after the other by `judge`.

    `tokens` are the ids that each completion was sampled as. A batch has the time of as many calls. Errors
    are those of `judge`; a list of another length is a TaskError too. What `failures` bears is a verdict
    without a reward; None bears nothing.

    A batch of which `score_many` raises is asked again in halves: what failed once does then no harm, and an
    odd completion only to itself. One that took too long, or was answered with something else than a list of
    its length, is one failure as a whole.
    """
    borne = failures or Failures()
    together = attribute(name_of(task), task, "score_many")
    if not callable(together):
        pairs = zip(questions, completions, strict=True)
        return [borne.bear(partial(judge, task, question, said)) for question, said in pairs]
    name = f"{name_of(task)}: score_many"
    return _judge_together(name, together, list(zip(questions, completions, tokens, strict=True)), borne)


def _judge_together(
    name: str, together: Callable[..., Any], rows: Sequence[tuple[Any, ...]], borne: Failures
) -> list[Verdict]:
    """Return what `together` says of all rows, or of each half of them where it raises."""
    asked, count = f"{name} of {len(rows)} completions", len(rows)
    columns = [list(column) for column in zip(*rows, strict=True)]
    try:
        found = guarded(
            asked,
            TIME_LIMIT * count,
            lambda: listed(asked, settled(together(*columns)), count, "a list with one verdict for each"),
        )
    except TaskError as error:
        if count == 1 or error.__cause__ is None:
            return [borne.failed(error)] * count
        halves = (rows[: count // 2], rows[count // 2 :])
        return [verdict for half in halves for verdict in _judge_together(name, together, half, borne)]
    return [borne.bear(partial(_plain, asked, verdict)) for verdict in found]


def listed(asked: str, found: object, count: int, wanted: str) -> Sequence[object]:
    """Return `count` answers as a list: one, a tuple, or an array or a tensor of one axis.

    TaskError says what was `asked`, and what is `wanted` instead.
    """
    as_list: Any = getattr(found, "tolist", None)
    said: object = as_list() if callable(as_list) else found
    # A copy: a list of somebody else's class may say other things of itself later.
    items = list(cast(Sequence[object], said)) if isinstance(said, list | tuple) else []
    if len(items) != count:
        raise TaskError(f"{asked} returned {shown(found)}. Return {wanted}.")
    return items


def _plain(asked: str, found: object) -> Verdict:
    if isinstance(found, TaskError):  # of reward functions: it says by itself what was asked
        raise found
    try:
        return plain(found)
    except ValueError as error:
        raise TaskError(f"{asked} returned {shown(found)}: {error}.") from error
    except Exception as error:
        why = f"reading it raised {type(error).__name__}"
        raise TaskError(
            f"{asked} returned {shown(found)}: {why}. Return a finite number or a Verdict."
        ) from error


class Checked(NamedTuple):
    """What `check` saw: the rewards of the gold answers, where there are any, and of the empty completion."""

    gold: list[float]
    empty: list[float]

    def __str__(self) -> str:
        empty = f"the empty completion scores {_range(self.empty)}"
        return f"its own answers score {_range(self.gold)}, {empty}" if self.gold else empty


def _range(rewards: list[float]) -> str:
    low, high = min(rewards), max(rewards)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def check(task: Task, num_questions: int = 20, say: Say = lambda _: None, *, answers: bool = True) -> Checked:
    """Try a task on `num_questions` questions; returns what its answers and the empty completion score.

    `say` gets a line now and then where that takes long. `answers` says that a question's answer is the
    completion that scores best: for reward functions of somebody else's it may be any column.

    TaskError for what is surely a mistake: a question that differs when it is asked again, an answer or a
    completion that cannot be judged, a `solved` that says nothing of one, gold answers of which every one
    scores less than saying nothing (a sign turned round). Any finite number is a reward, so nothing else is
    asked of them: a gold answer may score 0.9, 100 or, where `score` wants it in tags, as little as the empty
    completion.
    """
    gold: list[float] = []
    empty: list[float] = []
    worse = 0
    speak = _now_and_then(say)
    solves = own(task)
    for seed in range(num_questions):
        speak(f"{name_of(task)}: trying question {seed + 1} of {num_questions} and its answer")
        question = ask(task, seed)
        again = ask(task, seed)
        if (again[:2], again.key) != (question[:2], question.key):
            raise TaskError(
                f"{name_of(task)}: question {shorten(question.text)!r} (seed {seed}) is "
                f"{shorten(again.text)!r} the second time. Draw from random.Random(seed) only."
            )
        verdict = judge(task, question, "")
        empty.append(verdict.reward)
        if question.answer:
            verdict = judge(task, question, question.answer)
            gold.append(verdict.reward)
            worse += gold[-1] < empty[-1]
        if solves is not None:
            solves(verdict)
    found = Checked(gold, empty)
    if answers and gold and worse == len(gold):
        raise TaskError(
            f"{name_of(task)}: {found}: every answer scores less than saying nothing. Let `score` return "
            "more for what is better, and `answer` be the completion that scores best, or leave it empty."
        )
    return found
