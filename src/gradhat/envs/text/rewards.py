"""Reward functions of one's own, in the place of a task's score or beside it.

    gradhat train --task questions.jsonl --reward my_rewards.py:right --reward my_rewards.py:brief=0.2

A function has TRL's signature, `fn(prompts, completions, completion_ids, **columns) -> list[float | None]`:
it is given a batch, one list entry a completion, and every column of the task. Prompts and completions are
texts, or lists of messages where the task's questions are (TRL calls such a data set conversational). It may
be `async`. None means that it says nothing of a completion.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any, NamedTuple, cast

from gradhat.envs.text.guard import Named, attribute, guarded, name_of, settled, shown
from gradhat.envs.text.task import TIME_LIMIT, Question, Task, judge, listed
from gradhat.errors import TaskError
from gradhat.importing import load_file
from gradhat.places import home, is_file
from gradhat.trajectories import Verdict
from gradhat.verdicts import number

FIX = "Fix the function; a completion that it cannot judge is None, not an error."
"""What to do about an exception, where a function raised it."""
OWN = "task"
"""The name of the task's own score among the parts of a reward."""
RESERVED = ("prompts", "completions", "completion_ids", "prompt", "completion")
"""Names that a column cannot have where functions are called with it."""


class Part(NamedTuple):
    """One part of a reward: its name among the metrics, its weight, and the function; None is the task's own
    score."""

    name: str
    weight: float
    function: Callable[..., object] | None


class Rewarded(Named):
    """A task whose completions are scored by functions: the reward is the weighted sum of what they say."""

    def __init__(self, task: Task, parts: Sequence[Part]) -> None:
        self.task = task
        self.parts = tuple(parts)
        self.title = f"{name_of(task)} with reward {', '.join(part.name for part in parts)}"

    def question(self, seed: int) -> Question:
        """Return the task's own question."""
        return self.task.question(seed)

    def score(self, question: Question, completion: str) -> Verdict:
        """Score one completion that has no tokens: one that a person typed. TaskError without a reward."""
        found = self.score_many([question], [completion], [()])[0]
        if isinstance(found, TaskError):
            raise found
        return found

    def score_many(
        self, questions: Sequence[Question], completions: Sequence[str], tokens: Sequence[Sequence[int]]
    ) -> list[Verdict | TaskError]:
        """Return a verdict for each completion, whose parts are what each function said, unweighted.

        TaskError for a function that cannot be called so, raises, takes longer than as many calls may, or
        returns no list of this length. A completion that the task itself cannot score, of which a function
        says something that is no number, or of which none says anything, has a TaskError for a verdict.
        """
        found = [self._ask(part, questions, completions, tokens) for part in self.parts]
        return [self._sum(list(row)) for row in zip(*found, strict=True)]

    def _ask(
        self,
        part: Part,
        questions: Sequence[Question],
        completions: Sequence[str],
        tokens: Sequence[Sequence[int]],
    ) -> Sequence[object]:
        if part.function is None:
            return [_own(self.task, *asked) for asked in zip(questions, completions, strict=True)]
        function, given = part.function, arguments(questions, completions, tokens)
        asked, count = f"reward {part.name}: a batch of {len(questions)}", len(questions)

        def answers() -> Sequence[object]:
            _check_call(part.name, function, given)
            wanted = "a list with a number or None for each completion"
            return listed(asked, settled(function(**given)), count, wanted)

        return guarded(asked, TIME_LIMIT * count, answers, todo=FIX)

    def _sum(self, said: Sequence[object]) -> Verdict | TaskError:
        known: dict[str, float] = {}
        for part, value in zip(self.parts, said, strict=True):
            found = number(value)
            if found is not None:
                known[part.name] = found
            elif isinstance(value, TaskError):
                return value
            elif value is not None:
                why = f"reward {part.name} returned {shown(value)} for a completion"
                return TaskError(f"{why}. Let it return a finite number, or None.")
        if not known:
            names = ", ".join(part.name for part in self.parts)
            return TaskError(
                f"rewards {names}: all say None of a completion. Let one return a number for every one."
            )
        weights = {part.name: part.weight for part in self.parts}
        total = sum(weights[name] * value for name, value in known.items())
        return Verdict(total, known, ", ".join(f"{name} {value:g}" for name, value in known.items()))


def _own(task: Task, question: Question, completion: str) -> float | TaskError:
    """Return the task's own reward, or why there is none: that is no matter of the rest of the batch."""
    try:
        return judge(task, question, completion).reward
    except TaskError as error:
        return error


def _check_call(name: str, function: Callable[..., object], given: Mapping[str, object]) -> None:
    """TaskError for a function that does not take what it is given."""
    try:
        inspect.signature(function).bind(**given)
    except TypeError as error:
        raise TaskError(
            f"reward {name}: it is called with {', '.join(given)}: {error}. Let it take what it needs by "
            f"these names and the rest as **kwargs, as TRL asks: def {name}(prompts, completions, **kwargs)."
        ) from None
    except ValueError:  # written in C, it does not say what it takes
        return


def arguments(
    questions: Sequence[Question], completions: Sequence[str], tokens: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Return what a reward function is called with: a list a name, one entry a completion.

    Columns are those of the question's entry where that is a mapping, and its text and answer under
    `question` and `answer` where no column has that name.
    """
    talks = [_messages(question) for question in questions]
    if all(talks):
        said: list[Any] = [[{"role": "assistant", "content": text}] for text in completions]
        prompts: list[Any] = talks
    else:
        said, prompts = list(completions), [question.text for question in questions]
    rows = [{"question": q.text, "answer": q.answer, **_columns(q)} for q in questions]
    names = [name for name in rows[0] if name not in RESERVED and all(name in row for row in rows)]
    columns = {name: [row[name] for row in rows] for name in names}
    return {"prompts": prompts, "completions": said, "completion_ids": [list(t) for t in tokens], **columns}


def _columns(question: Question) -> dict[str, Any]:
    entry = question.entry
    return {str(name): value for name, value in entry.items()} if isinstance(entry, Mapping) else {}


def _messages(question: Question) -> list[Any]:
    """Return the column that holds the question as messages, [] where it is text."""
    for value in _columns(question).values():
        if isinstance(value, list) and value and all(isinstance(m, dict) and "role" in m for m in value):
            return cast(list[Any], value)
    return []


def load_rewards(task: Task, specs: Sequence[str]) -> Task:
    """Return `task` scored by the functions that `specs` name: "file.py:function", "file.py:function=0.5", or
    "task" for its own score. Without any, `task` itself.

    A file of one's own is imported, so its code runs with the rights of this program. TaskError for a file, a
    function or a weight that cannot be used.
    """
    if not specs:
        return task
    parts = [_part(spec) for spec in specs]
    names = [part.name for part in parts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise TaskError(
            f"--reward: two functions are called {twice}; their metrics would be one. Rename one."
        )
    return Rewarded(task, parts)


def _part(spec: str) -> Part:
    place, equals, text = spec.partition("=")
    try:
        weight = number(float(text)) if equals else 1.0
    except ValueError:
        weight = None
    if weight is None:
        raise TaskError(f"--reward {spec}: found no number after =. Write my_rewards.py:function=0.5")
    if place == OWN:
        return Part(OWN, weight, None)
    file, _, name = place.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise TaskError(f"--reward {spec}: name a function in a file, my_rewards.py:function, or {OWN}.")
    path = home(file)
    if not is_file(path):
        raise TaskError(f"--reward {spec}: there is no file {path}. Check the path.")
    asked = f"reward {place}: importing {path}"
    module = guarded(asked, TIME_LIMIT, lambda: load_file(path, f"gradhat_reward_{path.stem}"), loading=True)
    function = attribute(f"reward {place}", module, name)
    if not callable(function) or inspect.isclass(function):
        there = [
            n for n, v in vars(module).items() if type(v) is FunctionType and v.__module__ == module.__name__
        ]
        known = ", ".join(there) or "none"
        raise TaskError(f"--reward {spec}: {path} has no function {name!r}. Functions there: {known}.")
    return Part(name, weight, function)
