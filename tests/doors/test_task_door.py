"""Whatever comes in as a task, a question or a verdict: the outcome is a result or one of our errors."""

import json
import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradhat.envs.text import reasoning_gym
from gradhat.envs.text.load import load_task, source_hash
from gradhat.envs.text.task import Question, ask, check, fingerprint, judge
from gradhat.errors import GradhatError
from gradhat.trajectories import Verdict
from gradhat.verdicts import MAX_REWARD

pytestmark = pytest.mark.parametrize("examples", [30, pytest.param(500, marks=pytest.mark.slow)])

TEXT = st.text(st.characters(exclude_categories=[]), max_size=20)
"""Every character, half ones (surrogates) and NUL too."""
FLOATS = st.floats() | st.sampled_from([1e39, -1e39, 3.5e38, 5e-324, -0.0])
NUMBERS = st.one_of(
    FLOATS,
    st.integers(),
    st.booleans(),
    st.fractions(),
    st.decimals(),
    st.sampled_from([Fraction(10**400), Decimal("1e39")]),
    st.sampled_from([400, 5000]).map(lambda power: 10**power),  # one beyond float64, one that has no repr
    FLOATS.map(np.float64),
    st.floats(width=32).map(np.float32),
    st.floats(width=16).map(np.float16),
    st.booleans().map(np.bool_),
    st.integers(0, 255).map(np.uint8),
    FLOATS.map(lambda x: np.array([[x]])),
    FLOATS.map(lambda x: torch.tensor(x, dtype=torch.float64)),
    st.lists(FLOATS, max_size=3).map(torch.tensor),
    st.lists(FLOATS, max_size=3).map(np.array),
    st.booleans().map(torch.tensor),
)
ANYTHING = st.one_of(
    st.none(),
    NUMBERS,
    TEXT,
    st.binary(max_size=5),
    st.complex_numbers(),
    st.lists(NUMBERS, max_size=3),
    st.tuples(NUMBERS, st.just({}), TEXT),
    st.sampled_from([object(), int, ..., np.datetime64("2026-01-01"), np.str_("1"), np.array("1"), {1: 2}]),
)
PARTS = st.one_of(
    st.dictionaries(TEXT, NUMBERS, max_size=3),
    st.dictionaries(TEXT | st.integers() | st.none() | st.tuples(TEXT), ANYTHING, max_size=3),
    ANYTHING,
)
VERDICTS = st.builds(Verdict, NUMBERS | ANYTHING, PARTS, TEXT | ANYTHING)
QUESTIONS = st.builds(Question, TEXT | ANYTHING, TEXT | ANYTHING, ANYTHING, TEXT | ANYTHING)


class Broken:
    """An object of somebody else's, of which nothing works."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("broken")

    def __repr__(self) -> str:
        raise RuntimeError("broken")


class Mine:
    """A task that answers whatever it is given, or raises it."""

    def __init__(self, question: Any, score: Any) -> None:
        self.given = question, score

    def question(self, seed: int) -> Any:
        return self._said(self.given[0])

    def score(self, question: Question, completion: str) -> Any:
        return self._said(self.given[1])

    def _said(self, what: Any) -> Any:
        if isinstance(what, BaseException):
            raise what
        return what


RAISED = TEXT.flatmap(
    lambda text: st.sampled_from(
        [ValueError(text), KeyError(text), SystemExit(text), RecursionError(), UnicodeError()]
    )
)
ANSWERS = st.one_of(NUMBERS, VERDICTS, ANYTHING, RAISED, st.builds(Broken))


def tried(examples: int, **strategies: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], None]:
    """Run a function on that many examples, the same ones every time where they are few."""

    def run(test: Callable[..., None]) -> None:
        quiet = [HealthCheck.too_slow, HealthCheck.data_too_large]
        limits = settings(
            max_examples=examples, deadline=None, derandomize=examples < 100, suppress_health_check=quiet
        )
        limits(given(**strategies)(test))()

    return run


def assert_plain(verdict: Verdict) -> None:
    """It can be computed with in float32, stored as JSON and written as UTF-8."""
    assert type(verdict.reward) is float
    assert abs(verdict.reward) <= MAX_REWARD
    assert math.isfinite(torch.tensor(verdict.reward, dtype=torch.float32).item())
    for name, value in verdict.parts.items():
        name.encode()
        assert type(value) is float
    json.dumps(verdict.parts, allow_nan=False)
    verdict.why.encode()


def test_whatever_a_score_answers(examples: int) -> None:
    @tried(examples, answer=ANSWERS, completion=TEXT)
    def holds(answer: Any, completion: str) -> None:
        try:
            assert_plain(judge(Mine(None, answer), Question("Hi.", ""), completion))
        except GradhatError as error:
            assert "task Mine: score of" in str(error)


def test_whatever_a_question_is(examples: int) -> None:
    @tried(examples, answer=QUESTIONS | ANYTHING | RAISED | st.builds(Broken))
    def holds(answer: Any) -> None:
        try:
            question = ask(Mine(answer, 1.0), 3)
            for text in (question.text, question.answer, question.key):
                text.encode()
            assert len(fingerprint([question])) == 32
        except GradhatError as error:
            assert "task Mine: question(seed=3)" in str(error)


def test_whatever_a_task_is_its_check_is_a_word_or_an_error(examples: int) -> None:
    @tried(examples, question=QUESTIONS, answer=ANSWERS)
    def holds(question: Any, answer: Any) -> None:
        try:
            assert "the empty completion scores" in str(check(Mine(question, answer), 2))
        except GradhatError as error:
            assert "task Mine" in str(error)


SETTINGS = st.lists(
    st.tuples(
        st.sampled_from(["operations", "num_terms", "digits", "min_digits", "template", "a"]) | TEXT,
        st.sampled_from(["", "="]),
        st.sampled_from(["1", "+", "9" * 5000, "1e5", "-1", "[1, 2", "{(1, 2): 3}", "b'1'", "((((", "nan"])
        | TEXT,
    ).map("".join),
    max_size=3,
).map(",".join)
NAMES = st.one_of(
    TEXT,
    SETTINGS.map("arithmetic:{}".format),
    st.tuples(TEXT, SETTINGS).map(lambda pair: f"reasoning_gym:{pair[0]}:{pair[1]}"),
    st.tuples(TEXT, TEXT).map(lambda pair: f"{pair[0]}.py:{pair[1]}"),
    st.sampled_from(["/", ".", "..", "~", "~~", "/dev/null", "a" * 5000]).map("{}.py:Mine".format),
)


def test_whatever_a_task_is_called(examples: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reasoning_gym, "ReasoningGym", lambda name, config: json.dumps([name, config]))

    @tried(examples, spec=NAMES)
    def holds(spec: str) -> None:
        try:
            load_task(spec)
        except GradhatError as error:
            assert len(str(error)) > 20
        assert source_hash(spec) == ""


def test_whatever_is_in_a_task_file(examples: int, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"

    @tried(
        examples,
        source=st.binary(max_size=30)
        | st.sampled_from(["raise {}", "Mine = {}", "class Mine: question = score = {}", "def Mine(): {}"])
        .flatmap(
            lambda form: st.sampled_from(["1", "int", "1 / 0", "KeyError", "exit()", "(", "'\\ud800'"]).map(
                form.format
            )
        )
        .map(str.encode),
        name=TEXT | st.just("Mine"),
    )
    def holds(source: bytes, name: str) -> None:
        file.write_bytes(source)
        try:
            check(load_task(f"{file}:{name}"), 1)
        except GradhatError as error:
            assert "task" in str(error)
