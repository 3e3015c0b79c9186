"""Whatever comes in as a task, a question or a verdict: the outcome is a result or one of our errors."""

import itertools
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from anything import ANYTHING, NUMBERS, RAISED, TEXT, assert_plain, either, tried
from hypothesis import strategies as st
from pyarrow import parquet

from gradhat.envs.text import reasoning_gym
from gradhat.envs.text.env import SingleTurn
from gradhat.envs.text.load import load_task, source_hash
from gradhat.envs.text.task import Question, ask, check, fingerprint, judge
from gradhat.errors import GradhatError
from gradhat.estimators.group import silent
from gradhat.policies.language.chat import Chat
from gradhat.rollouts.engine import Completion, Limits
from gradhat.rollouts.episodes import Start, collect
from gradhat.training.run_folder import RunFolder
from gradhat.training.text import metrics
from gradhat.training.text.evaluate import Scale
from gradhat.training.text.rollouts import write_rollouts
from gradhat.trajectories import Verdict
from gradhat.verdicts import Failures

pytestmark = pytest.mark.parametrize("examples", [30, pytest.param(500, marks=pytest.mark.slow)])


PARTS = st.one_of(
    st.dictionaries(TEXT, NUMBERS, max_size=3),
    st.dictionaries(TEXT | st.integers() | st.none() | st.tuples(TEXT), ANYTHING, max_size=3),
    ANYTHING,
)
GOOD = st.builds(
    Verdict, st.floats(-9, 9) | NUMBERS, st.dictionaries(TEXT, st.floats(-9, 9), max_size=2), TEXT
)
VERDICTS = either(GOOD, st.builds(Verdict, NUMBERS | ANYTHING, PARTS, TEXT | ANYTHING))
QUESTIONS = either(
    st.builds(Question, TEXT, TEXT, ANYTHING, TEXT),
    st.builds(Question, TEXT | ANYTHING, TEXT | ANYTHING, ANYTHING, TEXT | ANYTHING),
)


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


ANSWERS = either(VERDICTS, NUMBERS, ANYTHING, RAISED)


def test_whatever_a_score_answers(examples: int) -> None:
    half = {"answer": Verdict(0.5, {"\ud800": 1.0}, "\udfff"), "completion": "\ud800"}

    @tried(examples, half, answer=ANSWERS, completion=TEXT)
    def holds(answer: Any, completion: str) -> None:
        try:
            assert_plain(judge(Mine(None, answer), Question("Hi.", ""), completion))
        except GradhatError as error:
            assert "task Mine: score of" in str(error)


def test_whatever_a_question_is(examples: int) -> None:
    half = {"answer": Question("\ud800", "\ud800", None, "\ud800")}

    @tried(examples, half, answer=either(QUESTIONS, ANYTHING, RAISED))
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


class Script:
    """A sampler of one token."""

    def sample(self, prompts: Sequence[Sequence[int]], n: int, limits: Limits) -> list[list[Completion]]:
        return [[Completion((7,), (-1.0,), "end", "a")] * n for _ in prompts]


class Turns(Mine):
    """A task that gives its answers one after the other."""

    def __init__(self, answers: Sequence[Any]) -> None:
        super().__init__(Question("Hi.", ""), None)
        self.answers = itertools.cycle(answers)

    def score(self, question: Question, completion: str) -> Any:
        return self._said(next(self.answers))


def test_whatever_is_answered_a_step_is_learned_measured_and_stored(
    examples: int, tiny_model: Path, tmp_path: Path
) -> None:
    chat = Chat.read(tiny_model)

    @tried(examples, answers=st.lists(GOOD | ANSWERS, min_size=1, max_size=9))
    def holds(answers: list[Any]) -> None:
        task = Turns(answers)
        starts = (
            Start(partial(SingleTurn, task, questions=lambda _: Question("Hi.", "")), i) for i in range(99)
        )
        try:
            found = collect(
                starts,
                chat,
                Script(),
                Limits(4),
                num_prompts=3,
                group_size=2,
                version=0,
                silent=silent,
                max_replacements=2,
                failures=Failures(99),
            )
        except GradhatError as error:
            assert "verdicts failed" in str(error)
            return
        chosen = found.sampled.select(found.chosen)
        assert chosen.returns().isfinite().all()
        assert set(chosen.group.bincount().tolist()) <= {0, 2}
        scale = Scale()
        scale.take(metrics.judged(found.sampled).returns().tolist())
        values = metrics.of_experience(found, scale)
        assert all(map(math.isfinite, values.values()))
        json.dumps(values, allow_nan=False)
        assert values["num_unjudged"] == sum(not r.verdict.judged for r in found.sampled.records)
        with RunFolder.create(tmp_path / str(uuid4()), {}) as run:
            write_rollouts(run, 1, found.sampled, found.chosen, None)
            assert parquet.read_table(run.rollouts / "step_000001.parquet").num_rows == len(found.sampled)
