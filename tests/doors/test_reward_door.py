"""Whatever a reward function answers: the outcome is a verdict for each completion, or one of our errors."""

from pathlib import Path
from typing import Any

import pytest
from anything import ANYTHING, NUMBERS, RAISED, TEXT, assert_plain, either, tried
from hypothesis import strategies as st

from gradhat.envs.text.arithmetic import Arithmetic
from gradhat.envs.text.rewards import load_rewards
from gradhat.envs.text.task import Question, judge_many
from gradhat.errors import GradhatError
from gradhat.verdicts import Failures

pytestmark = pytest.mark.parametrize("examples", [30, pytest.param(500, marks=pytest.mark.slow)])

FUNCTIONS = """
given = {}

def said(answer):
    if isinstance(answer, BaseException):
        raise answer
    return answer

def one(**_):
    return said(given["one"])

async def two(**_):
    return said(given["two"])
"""
COUNT = 2
ANSWERS = either(
    st.lists(either(NUMBERS, NUMBERS, st.none()), min_size=COUNT, max_size=COUNT),
    st.lists(either(NUMBERS, ANYTHING, st.none()), min_size=COUNT, max_size=COUNT),
    st.tuples(NUMBERS, st.none()),
    st.lists(ANYTHING, max_size=3),
    ANYTHING,
    RAISED,
)


def test_whatever_reward_functions_answer(examples: int, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FUNCTIONS)
    asked, num_judged = [Question("Hi.", "7")] * COUNT, 0

    @tried(
        examples,
        {"one": [1, None], "two": (0.5, 2.0), "weight": 0.5, "completion": "7"},
        {"one": [1e300, 1.0], "two": [None, None], "weight": 1.0, "completion": "\ud800"},
        one=ANSWERS,
        two=ANSWERS,
        weight=st.floats(-9, 9) | st.floats(allow_nan=False, allow_infinity=False),
        completion=TEXT,
    )
    def holds(one: Any, two: Any, weight: float, completion: str) -> None:
        nonlocal num_judged
        task = load_rewards(Arithmetic(), [f"{file}:one={weight!r}", f"{file}:two"])
        for part in task.parts:
            part.function.__globals__["given"] |= {"one": one, "two": two}
        try:
            verdicts = judge_many(task, asked, [completion] * COUNT, [(1,), (2, 3)], Failures(9))
        except GradhatError as error:
            assert "reward" in str(error)
            return
        assert len(verdicts) == COUNT
        for verdict in verdicts:
            if verdict.judged:
                assert_plain(verdict)
                num_judged += 1
            else:
                assert verdict.why

    assert num_judged > 1
