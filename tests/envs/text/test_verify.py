"""Reading answers: what is a number, what is arithmetic, what is a formula. Hostile text stays text."""

import re
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradhat.envs.text.verify import (
    MAX_EXPRESSION,
    evaluate,
    final_lines,
    is_formula,
    is_number,
    last_number,
    numbers,
    same_number,
    shorten,
    tagged,
    tidy,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 + 4 = 7", "7"),
        ("the answer is -4.", "-4"),
        ("the answer is \u22124", "-4"),  # the typographic minus
        ("=-4", "-4"),
        ("**-4**", "-4"),
        ("\\boxed{-4}", "-4"),
        ("3-4", "4"),  # a difference, not -4
        ("x-4", "4"),
        ("(2)-4", "4"),
        ("1,234", "1234"),
        ("-12,345,678", "-12345678"),
        ("1, 2, 3", "3"),
        ("12,34", "34"),  # not a thousands separator
        ("1,2345", "2345"),
        ("7.0", "7.0"),
        ("7.5", "7.5"),
        (".5", ".5"),
        ("12.", "12"),
        ("1e3", "1e3"),
        ("5.926e+08", "5.926e+08"),
        ("2 apples", "2"),
        ("x2", "2"),
    ],
)
def test_the_last_number(text: str, expected: str) -> None:
    assert numbers(text)[-1] == expected
    assert last_number(text) == Decimal(expected)


@pytest.mark.parametrize("text", ["", "seven", "nan", "inf", "-", ".", ",", "\u0663", "\ud800"])
def test_no_number(text: str) -> None:
    assert last_number(text) is None
    assert same_number(text, "7") == (0.0, {"correct": 0.0}, "no number, expected 7")


@settings(deadline=None)
@given(st.integers(), st.text(alphabet="abc .,:\n-", max_size=10))
def test_any_integer_is_read_back_with_and_without_commas(number: int, after: str) -> None:
    for written in (str(number), f"{number:,}"):
        assert last_number(f"1 + 1 is {written}{after}") == number


def test_a_number_longer_than_int_can_parse() -> None:
    assert last_number("9" * 5000) == Decimal("9" * 5000)
    assert same_number("9" * 5000, "9").reward == 0.0


def test_numbers_are_compared_by_value_and_the_reading_is_said() -> None:
    assert same_number("so it is 7.0", "7").reward == 1.0
    assert same_number("so it is 7.5", "7").reward == 0.0
    assert same_number("75", "5").reward == 0.0  # no credit for a substring
    assert same_number("5 or 12", "13").why == "last number 12, expected 13"


@pytest.mark.parametrize(
    ("text", "yes"), [("12", True), ("-1.5", True), ("1e5", False), ("1 2", False), ("", False)]
)
def test_a_plain_number(text: str, yes: bool) -> None:
    assert is_number(text) is yes


def test_the_last_tag_counts() -> None:
    assert tagged("<answer>1</answer> no, <answer>\n2\n</answer>") == "\n2\n"
    assert tagged("<answer>1") is None
    assert tagged("<answer></answer>") == ""


def test_final_lines_and_tidy() -> None:
    assert final_lines("so:\n1 2\n3 4\n\n", 2) == "1 2\n3 4"
    assert tidy("\n 1 2  \n3 4\t\n\n") == "1 2\n3 4"


def expressions() -> st.SearchStrategy[str]:
    number = st.integers(0, 999).map(str)
    return st.recursive(
        number,
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
            inner.map(lambda e: f"-{e}"),
        ),
        max_leaves=8,
    )


@settings(deadline=None)
@given(expressions())
def test_evaluate_is_exact_arithmetic(text: str) -> None:
    fractions = "".join(f"Fraction({part})" if part.isdigit() else part for part in _split(text))
    try:
        expected = eval(fractions, {"Fraction": Fraction})
    except ZeroDivisionError:
        assert evaluate(text) is None
        return
    found = evaluate(text)
    assert found is not None
    assert found[0] == expected
    assert found[1] == [int(part) for part in _split(text) if part.isdigit()]


def _split(text: str) -> list[str]:
    return re.findall(r"[0-9]+|[^0-9]", text)


def test_evaluate_knows_precedence_and_quotients() -> None:
    assert evaluate("2 + 3 * 4") == (Fraction(14), [2, 3, 4])
    assert evaluate("8 / 3 - 2") == (Fraction(2, 3), [8, 3, 2])
    assert evaluate("2 - 3 - 4") == (Fraction(-5), [2, 3, 4])


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "1 +",
        "1/0",
        "9**9**9**9",
        "7//2",
        "007",
        "1.5",
        "1_000",
        "0x10",
        "1 if 1 else 2",
        "(1, 2)",
        "()",
        "1()",
        "2(3)",
        "+3",
        "__import__('os').system('true')",
        "1\n+1",
        "(" * 300 + "1" + ")" * 300,
        "(" * 190 + "1",
        "1+" * (MAX_EXPRESSION // 2) + "1",
        "\u0661+1",
    ],
)
def test_evaluate_refuses_everything_else(text: str) -> None:
    assert evaluate(text) is None


NAMES = frozenset({"x", "sin", "exp", "C"})


@pytest.mark.parametrize(
    "text", ["x**2/2 + C", "-3*x*sin(x)", "exp(2*x)/2", "x", "(1/2)*x**(3/2)", "1.5*x", "2 *\tx"]
)
def test_formulas(text: str) -> None:
    assert is_formula(text, NAMES)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "y",
        "sinx",
        "import",
        "x.diff",
        "1.real",
        "1..real",
        "x[0]",
        "'x'",
        '"x"',
        "x, x",
        "x = 1",
        "x; x",
        "lambda: x",
        "x if x else x",
        "__import__",
        "_",
        "x\\",
        "x # C",
        "{x}",
        "x@x",
        "x\x00",
        "\uff58",  # a full-width x: Python folds it into the ASCII name
        "x" + "+x" * MAX_EXPRESSION,
        "[t for t in ().__class__.__base__.__subclasses__()]",
        "__import__('os').system('true')",
        "x**2 + __import__('os').system('true')",
        "exec(chr(112))",
    ],
)
def test_not_a_formula(text: str) -> None:
    assert not is_formula(text, NAMES)


def test_shorten_is_one_line() -> None:
    assert shorten("a\n\nb") == "a b"
    assert shorten("x" * 100) == "x" * 77 + "..."
