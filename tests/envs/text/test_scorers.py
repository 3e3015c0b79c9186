"""Each scorer finds the right answer in what a model would write, and only that."""

import importlib.util

import pytest

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


@pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="math-verify is an extra")
@pytest.mark.parametrize(
    ("answer", "completion", "reward"),
    [
        ("3/4", r"so it is \boxed{\frac{6}{8}}", 1.0),
        ("3/4", "0.75", 1.0),
        (r"\frac{\sqrt{2}}{2}", r"$\frac{1}{\sqrt{2}}$", 1.0),
        ("3/4", "0.76", 0.0),
        ("3/4", "__import__('os').system('id')", 0.0),
    ],
)
def test_math_verify_knows_equal_formulas(answer: str, completion: str, reward: float) -> None:
    assert MATH(completion, answer).reward == reward


MATH = scorer("math_verify", ["1"], "here") if importlib.util.find_spec("math_verify") else None


def test_without_its_package_math_verify_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TaskError, match=r"pip install 'gradhat\[math\]'"):
        scorer("math_verify", ["1"], "here")
