"""Reading an answer out of a completion, and judging what was read. Nothing here executes text.

A completion is what a language model wrote: it may be huge, hostile or in no language at all. Everything
below is bounded by the length of the text.
"""

import ast
import re
from collections.abc import Set
from decimal import Decimal
from fractions import Fraction

from gradhat.trajectories import Verdict
from gradhat.verdicts import writable

# Digits are ASCII. An exponent has at most three digits: with more the number is too large to compute with.
_DIGITS = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
# A minus belongs to the number unless it follows a letter, a digit, a dot or a bracket: "3-4" holds 3 and 4.
_NUMBER = re.compile(rf"(?:(?<![\w.)\]])[-\u2212])?{_DIGITS}(?:[eE][-+]?[0-9]{{1,3}}(?![0-9]))?")
_PLAIN = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_ARITHMETIC = re.compile(r"[0-9+\-*/() ]+")
_TOKENS = re.compile(r"\s*(?:[0-9]+(?:\.[0-9]+)?|(?P<name>[A-Za-z]+)|\*\*|[-+*/()])\s*")

MAX_EXPRESSION = 400
"""Characters in an expression that is worth reading."""


def numbers(text: str) -> list[str]:
    """Return the numbers in `text` in order, without commas and with an ASCII minus: "-1,234" -> "-1234"."""
    return [found.replace(",", "").replace("\u2212", "-") for found in _NUMBER.findall(text)]


def last_number(text: str) -> Decimal | None:
    """Return the last number in `text`, exactly, or None. "12." is 12, "12.0" equals 12, "1e3" equals 1000.

    A Decimal, because `int` refuses a string of more than 4300 digits and a model can write one.
    """
    found = numbers(text)
    return Decimal(found[-1]) if found else None


def is_number(text: str) -> bool:
    """Return whether `text` is one plain number: digits, perhaps a minus and a fraction, no exponent."""
    return _PLAIN.fullmatch(text.strip()) is not None


def same_number(completion: str, expected: str) -> Verdict:
    """Judge by the last number: 1 when it equals `expected`, a number as text, else 0. Says what was read."""
    found = last_number(completion)
    if found is None:
        return verdict(False, f"no number, expected {expected}")
    return verdict(found == Decimal(expected), f"last number {shorten(str(found))}, expected {expected}")


def verdict(correct: bool, why: str) -> Verdict:
    """Return the verdict of a task that knows only right (1) and wrong (0)."""
    return Verdict(float(correct), {"correct": float(correct)}, why)


def tagged(text: str) -> str | None:
    """Return what stands inside the last `<answer></answer>` of `text`, or None."""
    found = _TAGGED.findall(text)
    return found[-1] if found else None


def final_lines(text: str, num_lines: int) -> str:
    """Return the last `num_lines` lines of `text`, blank ends aside."""
    return "\n".join(text.strip().splitlines()[-num_lines:])


def tidy(text: str) -> str:
    """Return `text` without blank ends or spaces at the ends of lines: what "exact match" compares."""
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def evaluate(expression: str) -> tuple[Fraction, list[int]] | None:
    """Return the exact value of an arithmetic expression and the integers it uses, or None when it is not
    one.

    Only integers, + - * / and brackets. The text is parsed, never run: Python's parser builds the tree and
    this function walks it. Division by zero, powers, and text beyond `MAX_EXPRESSION` characters give None.
    """
    if len(expression) > MAX_EXPRESSION or not _ARITHMETIC.fullmatch(expression):
        return None
    used: list[int] = []
    try:
        return _walk(ast.parse(expression.strip(), mode="eval").body, used), used
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _walk(node: ast.expr, used: list[int]) -> Fraction:
    """Return the value of a parsed expression; appends its integers to `used`. ValueError on other nodes."""
    match node:
        case ast.Constant(value=int(number)):
            used.append(number)
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_walk(operand, used)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _walk(left, used) + _walk(right, used)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _walk(left, used) - _walk(right, used)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _walk(left, used) * _walk(right, used)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _walk(left, used) / _walk(right, used)
        case _:
            raise ValueError("not arithmetic")


def is_formula(text: str, names: Set[str]) -> bool:
    """Return whether `text` is provably a formula and no other program: an allow-list of tokens.

    Numbers, + - * / ** and brackets, and words from `names`. No quote, comma, dot, underscore, square bracket
    or other word can occur, so no attribute, string, import or subscript can be written. At most
    `MAX_EXPRESSION` characters. Such a formula can still be costly to evaluate: a time limit is needed
    besides.
    """
    place = 0
    while place < len(text) <= MAX_EXPRESSION:
        token = _TOKENS.match(text, place)
        if token is None or (token["name"] and token["name"] not in names):
            return False
        place = token.end()
    return 0 < len(text) <= MAX_EXPRESSION


def shorten(text: str, limit: int = 80) -> str:
    """Return `text` on one line and at most `limit` characters, for messages and for files."""
    line = " ".join(writable(text).split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."
