"""Arithmetic: the answers are right, the settings do what they say, and a seed is a question for ever."""

import re
from typing import Any

import pytest

from gradhat.envs.text.arithmetic import Arithmetic
from gradhat.envs.text.task import Checked, check
from gradhat.errors import TaskError

EXPRESSION = re.compile(r"What is ([-0-9+* ]+)\?")


@pytest.mark.parametrize("num_terms", [2, 3, 6])
def test_the_answer_is_what_python_says(num_terms: int) -> None:
    task = Arithmetic(num_terms=num_terms, digits=2)
    for seed in range(300):
        text, answer, *_ = task.question(seed)
        found = EXPRESSION.fullmatch(text)
        assert found is not None, text
        assert len(re.findall("[0-9]+", text)) == num_terms
        assert str(eval(found[1])) == answer


def test_every_question_of_the_smallest_task_occurs() -> None:
    task = Arithmetic()
    texts = {task.question(seed).text for seed in range(6000)}
    assert task.num_questions == 300
    assert texts == {f"What is {a} {sign} {b}?" for a in range(10) for b in range(10) for sign in "+-*"}


def test_without_negative_answers_the_larger_operand_comes_first() -> None:
    task = Arithmetic(negative=False)
    drawn = [task.question(seed) for seed in range(6000)]
    texts = {question.text for question in drawn}
    differences = {f"What is {a} - {b}?" for a in range(10) for b in range(a + 1)}
    others = {f"What is {a} {sign} {b}?" for a in range(10) for b in range(10) for sign in "+*"}
    assert texts == differences | others and task.num_questions == len(texts) == 255
    found = {question.text: question for question in drawn}
    assert (found["What is 7 - 2?"].answer, found["What is 7 - 2?"].key) == ("5", "2 7")
    assert found["What is 2 * 7?"].answer == "14"


@pytest.mark.parametrize(
    ("settings", "num_questions"),
    [
        ({"operations": "+", "negative": False}, 100),
        ({"operations": "+-"}, 200),
        ({"operations": "++-"}, 200),
        ({"operations": "+", "digits": 2}, 10_000),
        ({"operations": "+", "digits": 2, "min_digits": 2}, 8100),
        ({"operations": "+-", "num_terms": 3}, 4000),
        ({"operations": "+", "digits": 40, "min_digits": 40}, (9 * 10**39) ** 2),
    ],
)
def test_how_many_questions_there_are(settings: dict[str, Any], num_questions: int) -> None:
    assert Arithmetic(**settings).num_questions == num_questions


def test_the_operands_whatever_their_order_and_sign_are_the_key() -> None:
    keys = {(q.text, q.key) for q in map(Arithmetic(digits=2).question, range(3000))}
    for text, key in keys:
        assert key == " ".join(sorted(re.findall("[0-9]+", text), key=int))
    assert {"3 4"} == {
        key for text, key in keys | drawn(Arithmetic()) if re.search(r"\b(3 . 4|4 . 3)\?", text)
    }


def drawn(task: Arithmetic) -> set[tuple[str, str]]:
    return {(q.text, q.key) for q in map(task.question, range(3000))}


def test_the_longest_terms_can_be_drawn() -> None:
    first, second = re.findall(
        "[0-9]+", Arithmetic(digits=40, min_digits=40, operations="+").question(1).text
    )
    assert len(first) == len(second) == 40 and first != second


def test_operands_keep_to_their_digits() -> None:
    task = Arithmetic(operations="+", digits=3, min_digits=2)
    drawn = [int(word) for seed in range(3000) for word in re.findall("[0-9]+", task.question(seed).text)]
    assert min(drawn) == 10
    assert max(drawn) == 999


def test_a_seed_is_the_same_question_in_every_process_and_version() -> None:
    assert [Arithmetic().question(seed)[:2] for seed in (0, 1, 2)] == [
        ("What is 6 + 6?", "12"),
        ("What is 2 + 9?", "11"),
        ("What is 0 + 1?", "1"),
    ]


def test_it_checks_itself_and_scores_the_last_number() -> None:
    task = Arithmetic(template="{expression} =")
    assert check(task, 100) == Checked(gold=[1.0] * 100, empty=[0.0] * 100)
    question = task.question(0)
    assert question.text.endswith(" =")
    assert task.score(question, f"Let me see: 99. It is {question.answer}.").reward == 1.0
    wrong = task.score(question, f"{question.answer}, no, 99")
    assert wrong == (0.0, {"correct": 0.0}, f"last number 99, expected {question.answer}")


@pytest.mark.parametrize(
    "settings",
    [
        {"operations": ""},
        {"operations": "+/"},
        {"num_terms": 1},
        {"digits": 0},
        {"digits": 1, "min_digits": 2},
        {"template": "What is it?"},
        {"num_terms": 3, "negative": False},
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any]) -> None:
    with pytest.raises(TaskError, match=next(reversed(settings))):
        Arithmetic(**settings)
