"""Splits that never mix, and a guard around code that a user wrote."""

import asyncio
import itertools
import json
import math
import re
import time
import weakref
from collections.abc import Callable, Iterator
from decimal import Decimal
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
import torch

from gradhat.envs.text.arithmetic import Arithmetic
from gradhat.envs.text.task import (
    Question,
    ask,
    check,
    draw,
    fingerprint,
    held_out,
    held_out_set,
    judge,
    judge_many,
    key_of,
)
from gradhat.errors import TaskError
from gradhat.trajectories import Verdict

QUESTION = Question("Say yes.", "yes")


class Mine:
    """A user's task made of two functions."""

    def __init__(
        self,
        score: Callable[[Question, str], Any] = lambda question, completion: float(
            completion == question.answer
        ),
        question: Callable[[int], Any] = lambda seed: Question(f"Say {seed}.", str(seed)),
    ) -> None:
        self.score = score
        self.question = question


def operands(text: str) -> str:
    """The key of "What is 4 + 3?": "3 4"."""
    return " ".join(sorted(re.findall("[0-9]+", text), key=int))


def test_every_fifth_key_is_held_out_by_its_text_alone() -> None:
    texts = [f"question {i}" for i in range(10_000)]
    share = sum(map(held_out, texts)) / len(texts)
    assert 0.19 < share < 0.21
    digest = int(blake2b(b"question 3", digest_size=8).hexdigest(), 16)
    assert held_out("question 3") == (digest % 5 == 0)
    assert held_out("\ud800") in (True, False)


def test_draws_keep_to_their_split_and_their_seed() -> None:
    task = Arithmetic()
    train = [draw(task, "train", seed) for seed in range(500)]
    test = [draw(task, "held_out", seed) for seed in range(500)]
    assert not any(held_out(key_of(question)) for question in train)
    assert all(held_out(key_of(question)) for question in test)
    assert train == [draw(task, "train", seed) for seed in range(500)]
    assert len(set(train)) > 150
    assert len(set(test)) > 40


def test_no_key_is_on_both_sides() -> None:
    task = Arithmetic()
    train = {key_of(draw(task, "train", seed)) for seed in range(2000)}
    test = {key_of(question) for question in held_out_set(task, 1000, seed=0)}
    assert test == {key_of(draw(task, "held_out", seed)) for seed in range(2000)}
    assert not train & test
    assert len(train | test) == 55  # every unordered pair of digits


def test_a_key_decides_for_the_text() -> None:
    task = Mine(question=lambda seed: Question(f"Say {seed % 50}.", "yes", key=f"key {seed % 10}"))
    found = held_out_set(task, 1000, seed=0)
    assert found
    assert {question.key for question in found} == {f"key {i}" for i in range(10) if held_out(f"key {i}")}
    assert len({question.text for question in found}) == len(found) == 5 * len({q.key for q in found})
    assert key_of(Question("Say yes.", "yes")) == "Say yes."


def test_neighbouring_seeds_do_not_walk_the_same_questions() -> None:
    wide = Arithmetic(digits=9)
    assert len({draw(wide, "held_out", seed).text for seed in range(200)}) == 200


def test_the_held_out_set_is_complete_distinct_and_in_order() -> None:
    task = Arithmetic()
    everything = {f"What is {a} {sign} {b}?" for a in range(10) for b in range(10) for sign in "+-*"}
    found = [question.text for question in held_out_set(task, 1000, seed=0)]
    assert len(found) == len(set(found))
    assert set(found) == {text for text in everything if held_out(operands(text))}
    assert [question.text for question in held_out_set(task, 20, seed=0)] == found[:20]
    assert [question.text for question in held_out_set(task, 1000, seed=1)] != found


def test_a_slow_search_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    clock = itertools.count(0.0, 0.1)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    held_out_set(Mine(question=lambda seed: Question(f"{seed % 20}", "")), 20, 0, said.append)
    assert re.fullmatch("task Mine: looking for 20 held-out questions: [0-9] found in [0-9]+ tries", said[0])
    check(Mine(), 20, said.append)
    assert re.fullmatch(r"task Mine: trying question \d+ of 20 and its answer", said[-1])
    monkeypatch.undo()
    said.clear()
    held_out_set(Arithmetic(), 20, 0, said.append)
    assert said == []


def test_a_fingerprint_is_that_of_the_questions_alone() -> None:
    asked = [Question("3 + 4", "7", entry=object(), key="3 4"), Question("ab", "c")]
    assert fingerprint(asked) == fingerprint([question._replace(entry=None) for question in asked])
    others = [
        *(asked[::-1], asked[:1], [asked[0]._replace(text="4 + 3"), asked[1]]),
        *([asked[0]._replace(answer="8"), asked[1]], [asked[0]._replace(key=""), asked[1]]),
        [asked[0], Question("a", "bc")],
    ]
    assert len({fingerprint(questions) for questions in [asked, *others]}) == 7


def test_a_split_without_questions_is_an_error() -> None:
    task = Mine(question=lambda seed: QUESTION)
    empty = "train" if held_out(QUESTION.text) else "held_out"
    with pytest.raises(TaskError, match=rf"Mine.*{empty}.*more distinct questions"):
        draw(task, empty, 0)
    assert [q.text for q in held_out_set(task, 5, 0)] == ([QUESTION.text] if empty == "train" else [])


@pytest.mark.parametrize("value", [1, True, -2.5, 2.5, np.float32(0.5), Decimal("0.5"), torch.tensor([0.5])])
def test_a_number_becomes_a_verdict(value: Any) -> None:
    verdict = judge(Mine(lambda q, c: value), QUESTION, "yes")
    assert verdict == Verdict(float(value), {}, "")
    assert type(verdict.reward) is float


def test_a_verdict_of_other_libraries_becomes_plain() -> None:
    found = Verdict(torch.tensor(0.5), {np.str_("length"): np.int64(4)}, "half \ud800")  # type: ignore[arg-type]
    verdict = judge(Mine(lambda q, c: found), QUESTION, "yes")
    assert verdict == Verdict(0.5, {"length": 4.0}, "half ?")
    assert json.dumps(verdict.parts) == '{"length": 4.0}'


def test_an_object_that_cannot_be_looked_at_is_an_error() -> None:
    class Gone:
        pass

    gone: Any = weakref.proxy(Gone())  # whatever is asked of it is a ReferenceError
    for answer in (gone, Verdict(gone, {}, ""), Verdict(1.0, {"a": gone}, ""), Verdict(1.0, gone, "")):
        with pytest.raises(TaskError, match="task Mine: score of"):
            judge(Mine(lambda q, c, answer=answer: answer), QUESTION, "yes")
    with pytest.raises(TaskError, match=r"task Mine: question\(seed=5\)"):
        ask(Mine(question=lambda seed: gone), 5)


def test_a_score_may_be_a_coroutine() -> None:
    async def score(question: Question, completion: str) -> float:
        await asyncio.sleep(0.001)
        return float(completion == question.answer)

    assert judge(Mine(score), QUESTION, "yes").reward == 1.0
    assert judge(Mine(score), QUESTION, "no").reward == 0.0


@pytest.mark.parametrize(
    "value",
    [
        None,
        "1",
        math.nan,
        10**400,
        10**5000,  # its repr is an error
        [1.0],
        (1.0, {}, "a tuple"),
        np.ones(2),
        Verdict("1", {}, ""),  # type: ignore[arg-type]
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_reward_is_named_with_task_question_and_completion(value: Any) -> None:
    with pytest.raises(TaskError) as caught:
        judge(Mine(lambda q, c: value), QUESTION, "my answer " * 50)
    for part in ("task Mine", "'Say yes.'", "'my answer my", "finite number"):
        assert part in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (1e39, r"float32: at most 3\.4e\+38.*Scale"),
        (Verdict(1.0, {"style": math.nan}, ""), "part 'style'"),
        (Verdict(1.0, {("a", "b"): 1.0}, ""), "names of parts are text"),  # type: ignore[dict-item]
    ],
)
def test_what_is_wrong_with_a_verdict_is_said(value: Any, message: str) -> None:
    with pytest.raises(TaskError, match=rf"task Mine: score of 'yes'.*{message}"):
        judge(Mine(lambda q, c: value), QUESTION, "yes")


def test_a_score_that_raises_keeps_its_cause() -> None:
    def score(question: Question, completion: str) -> float:
        raise KeyError("colour")

    with pytest.raises(TaskError, match=r"task Mine.*Say yes.*KeyError: 'colour'") as caught:
        judge(Mine(score), QUESTION, "yes")
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_score_that_exits_does_not_end_the_program() -> None:
    def score(question: Question, completion: str) -> float:
        raise SystemExit(0)

    with pytest.raises(TaskError, match="SystemExit"):
        judge(Mine(score), QUESTION, "yes")


def sleep(*_: Any) -> float:
    time.sleep(30)
    return 1.0


def test_a_task_that_hangs_is_stopped() -> None:
    with pytest.raises(TaskError, match=r"Mine: score of 'yes'.*more than 0\.1 s"):
        judge(Mine(sleep), QUESTION, "yes", seconds=0.1)
    with pytest.raises(TaskError, match=r"Mine: question\(seed=5\).*more than 0\.1 s"):
        ask(Mine(question=sleep), 5, seconds=0.1)


def test_a_time_limit_that_was_swallowed_is_no_reward() -> None:
    def score(question: Question, completion: str) -> float:
        try:
            return sleep()
        except:  # noqa: E722
            return 0.25

    with pytest.raises(TaskError, match=r"more than 0\.1 s"):
        judge(Mine(score), QUESTION, "yes", seconds=0.1)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "Say yes.",
        ("Say yes.", "yes"),
        Question("Say yes.", 3),
        Question(b"Say yes.", "yes"),
        Question("Say yes.", "yes", key=3),
    ],
)
def test_what_is_no_question_is_an_error(value: Any) -> None:
    with pytest.raises(TaskError, match=r"task Mine: question\(seed=5\) returned .*Question\(text, answer\)"):
        ask(Mine(question=lambda seed: value), 5)


def test_a_question_that_raises_is_an_error() -> None:
    with pytest.raises(TaskError, match=r"task Mine: question\(seed=5\) raised ZeroDivisionError"):
        ask(Mine(question=lambda seed: 1 // 0), 5)


def test_half_characters_of_a_question_are_replaced() -> None:
    broken = Question("Say \ud800.", "\udfff", entry=3, key="k\ud800")
    assert ask(Mine(question=lambda seed: broken), 5) == Question("Say ?.", "?", 3, "k?")


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (Mine(), "its own answers score 1, the empty completion scores 0"),
        (
            Mine(lambda q, c: 1.0 if c == q.answer else -1.0),
            "its own answers score 1, the empty completion scores -1",
        ),
        (
            Mine(lambda q, c: 2.5 * (c == q.answer)),
            "its own answers score 2.5, the empty completion scores 0",
        ),
        (Mine(lambda q, c: (c == q.answer) - 0.01 * len(c)), "its own answers score 0.98 to 0.99, the empty"),
        (
            Mine(lambda q, c: -len(c.replace(q.answer, ""))),
            "its own answers score 0, the empty completion scores 0",
        ),
        (
            Mine(lambda q, c: float(f"<b>{q.answer}</b>" in c)),
            "its own answers score 0, the empty completion",
        ),
        (Mine(lambda q, c: 0.3, lambda seed: Question("Hi.", "")), "the empty completion scores 0.3"),
    ],
)
def test_any_finite_number_is_a_reward_and_the_check_says_what_it_saw(task: Mine, said: str) -> None:
    assert str(check(task)).startswith(said)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            Mine(lambda q, c: -float(c == q.answer)),
            "answers score -1, the empty.* scores 0: every answer scores less",
        ),
        (Mine(lambda q, c: math.nan), "'Say 0.'.*finite"),
        (Mine(lambda q, c: 1 / len(c)), "score of ''.*ZeroDivisionError"),
        (Mine(question=lambda seed: Question(f"Say {time.perf_counter()}.", "yes")), "second time"),
        (Mine(question=lambda seed: Question("Say yes.", str(time.perf_counter()))), "second time"),
        (
            Mine(question=lambda seed: Question("Say yes.", "yes", key=str(time.perf_counter()))),
            "second time",
        ),
    ],
)
def test_a_bad_task_fails_its_check(task: Mine, message: str) -> None:
    with pytest.raises(TaskError, match=rf"task Mine: .*{message}"):
        check(task)


def test_one_answer_that_costs_more_than_silence_is_no_mistake() -> None:
    # What a function of somebody else's scores may be any column.
    worse = check(Mine(lambda q, c: -float(len(c))), answers=False)
    assert worse.gold[0] < worse.empty[0] == 0.0
    check(Mine(lambda q, c: 1.0 - 0.6 * len(c) if c else 0.0))  # the answers of seeds 10 to 19 score -0.2


class Together:
    """Scores a batch: by the number of tokens, and by how many there are."""

    def question(self, seed: int) -> Question:
        return Question(f"q{seed}", "")

    def score(self, question: Question, completion: str) -> float:
        raise AssertionError("one at a time")

    def score_many(
        self, questions: list[Question], completions: list[str], tokens: list[tuple[int, ...]]
    ) -> list[float]:
        return [len(questions) + len(ids) / 10 for ids in tokens]


def test_a_task_that_scores_batches_gets_them_whole_with_their_tokens() -> None:
    asked = [Question("a", ""), Question("b", "")]
    found = judge_many(Together(), asked, ["x", "y"], [(1,), (2, 3)])
    assert [verdict.reward for verdict in found] == [2.1, 2.2]


def test_a_batch_of_verdicts_has_one_for_each() -> None:
    task = Together()
    task.score_many = lambda *_: [1.0]  # type: ignore[method-assign]
    with pytest.raises(TaskError, match="one verdict for each"):
        judge_many(task, [Question("a", "")] * 2, ["x", "y"], [(1,), (2,)])


class Raises(Together):
    @property
    def score_many(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no batch")


def test_a_method_that_cannot_be_looked_up_is_a_task_error() -> None:
    with pytest.raises(TaskError, match="task Raises: reading score_many raised RuntimeError: no batch"):
        judge_many(Raises(), [Question("a", "")], ["x"], [(1,)])


class Odd(list[float]):
    def __iter__(self) -> Iterator[float]:
        raise RuntimeError("no list")


def test_what_is_done_to_the_lists_and_what_they_do_harms_nobody() -> None:
    task, asked, said, ids = Together(), [Question("a", "")] * 2, ["x", "y"], [(1,), (2,)]

    def clears(*columns: list[Any]) -> list[float]:
        for column in columns:
            column.clear()
        return [1.0, 2.0]

    task.score_many = clears  # type: ignore[method-assign]
    assert [verdict.reward for verdict in judge_many(task, asked, said, ids)] == [1.0, 2.0]
    assert (len(asked), said, ids) == (2, ["x", "y"], [(1,), (2,)])
    task.score_many = lambda *_: Odd([1.0, 2.0])  # type: ignore[method-assign]
    with pytest.raises(TaskError, match="score_many of 1 completions raised RuntimeError: no list"):
        judge_many(task, asked, said, ids)
