"""Each scorer finds the right answer in what a model would write, and only that."""

import importlib.util
from typing import Any

import pytest

from gradhat.envs.text import math_worker
from gradhat.envs.text.scorers import scorer
from gradhat.errors import TaskError

CASES = [
    ("last_number", "42", "6 * 7 = 42.", 1.0),
    ("last_number", "42", "42, or rather 43", 0.0),
    ("last_number", "so he has 1,042 left\n#### 1,042", "The answer is 1042", 1.0),
    ("last_number", "7.50", "it costs $7.5", 1.0),
    ("last_number", "42", "no idea", 0.0),
    ("exact", "Paris", " Paris \n", 1.0),
    ("exact", "Paris", "It is Paris", 0.0),
    ("exact", "Paris", "paris", 0.0),
    ("contains", "New  York", "i think new york, maybe", 1.0),
    ("contains", "cat", "concatenate", 0.0),
    ("contains", "3.5", "13.5 or 3.57", 0.0),
    ("contains", "c++", "I like C++!", 1.0),
    ("multiple_choice", "B", "The answer is (B).", 1.0),
    ("multiple_choice", "(b)".upper(), "A is wrong, so B", 1.0),
    ("multiple_choice", "B", "B is wrong, so C", 0.0),
    ("multiple_choice", "B", "Because", 0.0),
    ("multiple_choice", "D.", "I'd say it's D", 1.0),
]


@pytest.mark.parametrize(("name", "answer", "completion", "reward"), CASES)
def test_a_completion_is_scored(name: str, answer: str, completion: str, reward: float) -> None:
    judged = scorer(name, [answer], "here")(completion, answer)
    assert judged.reward == reward
    assert judged.parts == {"correct": reward}
    assert judged.why


@pytest.mark.parametrize(
    ("answers", "completion", "reward"),
    [
        (["1", "-2.5", "1,000"], "it is 1", 1.0),
        (["A", "C"], "it is A", 1.0),
        (["one", "2"], "it is one", 0.0),
        (["one", "2"], "one", 1.0),
    ],
)
def test_auto_goes_by_the_answers(answers: list[str], completion: str, reward: float) -> None:
    assert scorer("auto", answers, "here")(completion, answers[0]).reward == reward


@pytest.mark.parametrize(("name", "answer"), [("last_number", "x"), ("multiple_choice", "K"), ("exact", " ")])
def test_an_answer_that_no_completion_can_give_is_refused(name: str, answer: str) -> None:
    good = {"last_number": "1", "multiple_choice": "A", "exact": "x"}[name]
    with pytest.raises(TaskError, match=rf"here: row 2: .*{name}"):
        scorer(name, [good, answer], "here")


MATHS = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="math-verify is an extra")


@MATHS
@pytest.mark.parametrize(
    ("answer", "completion", "reward"),
    [
        ("3/4", r"so it is \boxed{\frac{6}{8}}", 1.0),
        ("3/4", "0.75", 1.0),
        (r"\frac{\sqrt{2}}{2}", r"$\frac{1}{\sqrt{2}}$", 1.0),
        ("3/4", "0.76", 0.0),
        ("3/4", "__import__('os').system('id')", 0.0),
        ("3/4", "9**9**9**9", 0.0),
        ("2^{10}", "it is $1024$", 1.0),
        ("2^{10}", "it is 2", 0.0),
        (r"\frac{1}{2} + x", r"$x + \frac{1}{2}$", 1.0),
        (r"\boxed{7}", "7", 1.0),
        ("7 apples", "7", 1.0),
    ],
)
def test_math_verify_knows_equal_formulas(answer: str, completion: str, reward: float) -> None:
    assert MATH(completion, answer).reward == reward


def asked(answer: str, completion: str, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], int]:
    """What the process replies, and how often it had formulas computed."""
    import math_verify

    calls: list[Any] = []
    verify = math_verify.verify

    def listening(*formulas: Any, **limits: Any) -> bool:
        calls.append(formulas)
        return verify(*formulas, **limits)

    monkeypatch.setattr(math_verify, "verify", listening)
    reply = math_worker.answer({"answer": answer, "completion": completion})
    return reply, len(calls)


@MATHS
@pytest.mark.parametrize(
    "huge",
    [
        *(
            "9**9**9**9",
            "$9^{9^{9^9}}$",
            "$100000000!$",
            r"$\{1, 9^{9^9}\}$",
            "$x = 9^{9^9}$",
            "$1 < 9^{9^9}$",
        ),
        *(
            "$e^{10^9}$",
            "(9**9)**(9**9)",
            r"$\sin(9^{9^9})$",
            "$10^{-100000000}$",
            "$2^{100000}$",
            "$(10^6)!$",
        ),
        *("(1/3)**99999999", r"$\frac{1}{9^{9^9}}$", "$7^{7^7} + 1$", r"$3 \cdot 9^{9^9}$"),
    ],
)
def test_a_number_that_nobody_could_write_down_is_not_computed(
    huge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply, calls = asked("3/4", huge, monkeypatch)
    assert (reply["right"], calls) == (False, 0)
    assert reply["read"] == "a number of more than 10000 digits"
    alike, calls = asked(huge.strip("$"), huge, monkeypatch)
    assert (alike["right"], calls) == (True, 0)


@MATHS
@pytest.mark.parametrize(
    ("answer", "completion", "right"),
    [
        ("2^{2024}", "$2^{2023} \\cdot 2$", True),
        ("2024!", "$2024 \\cdot 2023!$", True),
        ("x^{2024}", "$x^{2023}x$", True),
        ("0", "$0^{9999}$", True),
        ("1", "it is 2**2**2", False),
        ("1/2", "0.5", True),
        ("2", r"$\sqrt{4}$", True),
        (r"\infty", r"$\infty$", True),
    ],
)
def test_what_can_be_written_down_is_computed(
    answer: str, completion: str, right: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply, calls = asked(answer, completion, monkeypatch)
    assert (reply["right"], calls) == (right, 1)


MATH = scorer("math_verify", ["1"], "here") if importlib.util.find_spec("math_verify") else None


def test_without_its_package_math_verify_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TaskError, match=r"pip install 'gradhat\[math\]'"):
        scorer("math_verify", ["1"], "here")
