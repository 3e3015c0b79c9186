"""Functions of TRL's signature score a batch: each sees what TRL would show it, and the sum is weighted."""

from pathlib import Path
from typing import Any

import pytest

from gradhat.envs.text.arithmetic import Arithmetic
from gradhat.envs.text.guard import name_of
from gradhat.envs.text.load import load_task
from gradhat.envs.text.rewards import Rewarded, load_rewards
from gradhat.envs.text.task import TIME_LIMIT, Question, judge_many
from gradhat.errors import TaskError
from gradhat.trajectories import Verdict
from gradhat.verdicts import Failures

FUNCTIONS = """
import helper

seen = {}

def right(completions, answer, **kwargs):
    seen.update(kwargs, completions=completions, answer=answer)
    return [float(a in c) for c, a in zip(completions, answer)]

def brief(prompts, completions, completion_ids, **columns):
    return [-len(ids) for ids in completion_ids]

async def slow(completions, **columns):
    import asyncio
    await asyncio.sleep(0)
    return [helper.HALF for _ in completions]

def some(completions, **columns):
    return [1 if "7" in c else None for c in completions]

def chat(prompts, completions, **columns):
    return [float(p[0]["content"] in c[0]["content"] and c[0]["role"] == "assistant")
            for p, c in zip(prompts, completions)]

def short(completions, **columns):
    return [1.0]

def words(completions, **columns):
    return ["good"] * len(completions)

def nan(completions, **columns):
    return [float("nan")] * len(completions)

def array(completions, **columns):
    import numpy
    return numpy.array([0.5, 2.0])[: len(completions)]

def tensor(completions, **columns):
    import torch
    return torch.tensor([0.5, 2.0])[: len(completions)]

def broken(completions, **columns):
    raise KeyError("level")

def no_kwargs(prompts, completions):
    return [1.0] * len(completions)

def needs(completions, solution, **columns):
    return [1.0] * len(completions)

class Judge:
    def __call__(self, completions, **columns):
        return [2.0] * len(completions)

judge = Judge()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "helper.py").write_text("HALF = 0.5\n")
    path = tmp_path / "my_rewards.py"
    path.write_text(FUNCTIONS)
    return path


def scored(file: Path, *names: str) -> Rewarded:
    task = load_rewards(
        Arithmetic(), [name if name.startswith("task") else f"{file}:{name}" for name in names]
    )
    assert isinstance(task, Rewarded)
    return task


ASKED = [Question("3 + 4?", "7", {"level": 1, "prompt": "x"}), Question("1 + 1?", "2", {"level": 2})]


def test_a_function_is_called_as_trl_would_call_it(file: Path) -> None:
    task = scored(file, "right")
    found = task.score_many(ASKED, ["it is 7", "it is 3"], [(1, 2), (3,)])
    assert [v.reward for v in found] == [1.0, 0.0]
    function = task.parts[0].function
    assert function is not None
    seen: dict[str, Any] = function.__globals__["seen"]
    assert seen == {
        "prompts": ["3 + 4?", "1 + 1?"],
        "completions": ["it is 7", "it is 3"],
        "completion_ids": [[1, 2], [3]],
        "question": ["3 + 4?", "1 + 1?"],
        "answer": ["7", "2"],
        "level": [1, 2],
    }


def test_parts_are_weighted_and_each_is_kept_as_it_was_said(file: Path) -> None:
    task = scored(file, "right", "brief=0.1", "slow=2", "judge=-1", "task=3")
    first, second = task.score_many(ASKED, ["it is 7", "no"], [(1, 2), (3, 4, 5)])
    assert first.parts == {"right": 1, "brief": -2, "slow": 0.5, "judge": 2, "task": 1}
    assert first.reward == pytest.approx(1 - 0.2 + 1 - 2 + 3)
    assert second.reward == pytest.approx(0 - 0.3 + 1 - 2 + 0)


def test_none_says_nothing_of_a_completion(file: Path) -> None:
    first, second = scored(file, "some", "slow").score_many(ASKED, ["7", "8"], [(1,), (2,)])
    assert (first.parts, second.parts) == ({"some": 1, "slow": 0.5}, {"slow": 0.5})
    assert (first.reward, second.reward) == (1.5, 0.5)
    known, unknown = judge_many(scored(file, "some"), ASKED, ["7", "8"], [(1,), (2,)], Failures(2))
    assert known.reward == 1.0
    assert not unknown.judged
    assert "all say None" in unknown.why
    with pytest.raises(TaskError, match=r"^rewards some: all say None of a completion"):
        scored(file, "some").score(ASKED[0], "8")


def test_conversations_are_shown_as_messages(file: Path) -> None:
    said = [{"role": "user", "content": "hi"}]
    asked = [Question("hi", "", {"prompt": said}), Question("hi", "", {"prompt": said})]
    found = scored(file, "chat").score_many(asked, ["hi there", "no"], [(1,), (2,)])
    assert [v.reward for v in found] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "short",
            r"reward short: a batch of 2 returned \[1.0\]. Return a list with a number or None for each",
        ),
        ("words", "^reward words returned 'good' for a completion. Let it return a finite number, or None"),
        ("nan", "^reward nan returned nan for a completion"),
        ("broken", "^reward broken: a batch of 1 raised KeyError: 'level'. Fix the function; a completion"),
        (
            "no_kwargs",
            "^reward no_kwargs: it is called with prompts, completions, completion_ids, question, answer, "
            r"level: got an unexpected keyword argument 'completion_ids'.* the rest as \*\*kwargs, as TRL",
        ),
        ("needs", "^reward needs: it is called with .*: missing a required argument: 'solution'"),
    ],
)
def test_a_function_that_breaks_its_contract_is_named(file: Path, name: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        judge_many(scored(file, name), ASKED, ["7", "8"], [(1,), (2,)])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{file}:none", "has no function 'none'. Functions there: right, brief, slow"),
        ("{file}:Judge", "has no function 'Judge'"),
        ("{file}", "name a function in a file"),
        ("{file}:right=much", "found no number after ="),
        ("{file}:right=nan", "found no number after ="),
        ("nowhere.py:right", "there is no file"),
        ("accuracy", "name a function in a file"),
    ],
)
def test_a_reward_that_cannot_be_used_says_what_to_write(file: Path, spec: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        load_rewards(Arithmetic(), [spec.format(file=file)])


def test_two_parts_of_one_name_are_refused(file: Path) -> None:
    with pytest.raises(TaskError, match="two functions are called right"):
        scored(file, "right", "right=2")


def test_without_functions_the_task_is_itself() -> None:
    task = Arithmetic()
    assert load_rewards(task, []) is task


@pytest.mark.parametrize("name", ["array", "tensor"])
def test_an_array_of_rewards_is_a_list_of_them(file: Path, name: str) -> None:
    found = scored(file, name).score_many(ASKED, ["7", "8"], [(1,), (2,)])
    assert [verdict.reward for verdict in found] == [0.5, 2.0]


def test_what_the_task_cannot_score_is_no_matter_of_the_rest(file: Path) -> None:
    class Half(Arithmetic):
        def score(self, question: Question, completion: str) -> Verdict:
            if completion == "7":
                raise ConnectionError("nobody there")
            return super().score(question, completion)

    task = load_rewards(Half(), ["task", f"{file}:right"])
    failed, known = judge_many(task, ASKED, ["7", "2"], [(1,), (2,)], Failures(2))
    assert known.parts == {"task": 1.0, "right": 1.0} and not failed.judged
    assert "score of '7' for '3 + 4?' raised ConnectionError" in failed.why


def test_a_batch_has_the_time_of_as_many_calls(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def guarded(asked: str, seconds: float, function: Any, *, todo: str) -> Any:
        given.append(seconds)
        return function()

    task = scored(file, "right")
    monkeypatch.setattr("gradhat.envs.text.rewards.guarded", guarded)
    task.score_many(ASKED, ["7", "8"], [(1,), (2,)])
    assert given == [2 * TIME_LIMIT]


def test_errors_call_the_functions_and_the_task_by_their_own_names(file: Path) -> None:
    task = scored(file, "right", "brief=2")
    assert name_of(task) == "task Arithmetic with reward right, brief"
    (file.parent / "q.jsonl").write_text('{"question": "One?", "answer": 1}\n')
    questions = load_task(str(file.parent / "q.jsonl"))
    assert name_of(questions) == f"task {file.parent / 'q.jsonl'}"
