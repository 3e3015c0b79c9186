"""A verdict that failed is left out: whole groups go, and what stays estimates E[R | judged]."""

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from torch import Tensor

from gradhat.envs.text.task import Question, judge_many
from gradhat.errors import TaskError
from gradhat.estimators.group import leave_one_out, silent
from gradhat.policies.language.chat import Chat, Message
from gradhat.rollouts.engine import Completion, Limits
from gradhat.rollouts.episodes import Experience, Start, collect, play
from gradhat.trajectories import Verdict
from gradhat.verdicts import Failures

GROUP = 3


class World(gymnasium.Env[list[Message], str]):
    """Sample i of a start state is worth i; what `failing` lists, (start state, sample), raises."""

    def __init__(self, failing: Sequence[tuple[int, str]], error: Exception) -> None:
        self.failing, self.error = failing, error

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[list[Message], dict[str, Any]]:
        assert seed is not None
        self.number = seed
        return [{"role": "user", "content": f"Say {seed}"}], {}

    def step(self, action: str) -> tuple[list[Message], float, bool, bool, dict[str, Any]]:
        if (self.number, action) in self.failing:
            raise self.error
        verdict = Verdict(
            float(action) if self.number % 10 else 1.0, {}, ""
        )  # start states 0, 10 ... are silent
        return [], verdict.reward, True, False, {"verdict": verdict}


class Script:
    """A sampler whose sample i of every prompt is the text i."""

    def sample(self, prompts: Sequence[Sequence[int]], n: int, limits: Limits) -> list[list[Completion]]:
        return [[Completion((7, 8), (-1.0, -1.0), "end", str(i)) for i in range(n)] for _ in prompts]


@pytest.fixture(scope="module")
def chat(tiny_model: Path) -> Chat:
    return Chat.read(tiny_model)


def starts(first: int, failing: Sequence[tuple[int, str]], error: Exception) -> Iterator[Start]:
    return iter([Start(lambda: World(failing, error), n) for n in range(first, first + 200)])


def gathered(
    chat: Chat,
    failing: Sequence[tuple[int, str]],
    *,
    first: int = 1,
    num_prompts: int = 4,
    max_replacements: int = 0,
    failures: Failures | None = None,
    error: Exception | None = None,
) -> Experience:
    return collect(
        starts(first, failing, error or TaskError("no verdict here")),
        chat,
        Script(),
        Limits(8, seed=1),
        num_prompts=num_prompts,
        group_size=GROUP,
        version=0,
        silent=silent,
        max_replacements=max_replacements,
        failures=failures or Failures(100),
    )


def prompts(experience: Experience) -> list[str]:
    chosen = experience.sampled.select(experience.chosen)
    return [record.prompt for record in chosen.records[::GROUP]]


def test_a_group_with_a_failed_verdict_is_replaced_whole(chat: Chat) -> None:
    found = gathered(chat, [(2, "1")])
    assert prompts(found) == ["Say 1", "Say 3", "Say 4", "Say 5"]
    chosen = found.sampled.select(found.chosen)
    assert chosen.returns().tolist() == [0, 1, 2] * 4
    assert chosen.group.bincount().tolist() == [3, 0, 3, 3, 3]
    failed = found.sampled.records[4]
    assert not failed.verdict.judged
    assert failed.verdict.parts == {}
    assert failed.verdict.why == "no verdict here"
    assert found.sampled.returns().isnan().tolist() == [i == 4 for i in range(15)]
    assert found.first.tolist() == list(range(12))


def test_replacements_of_failed_groups_cost_none_of_those_of_silent_ones(chat: Chat) -> None:
    """Start 10 is silent and 11 cannot be judged: both are replaced, with one replacement for silence."""
    found = gathered(chat, [(11, "0")], first=9, num_prompts=3, max_replacements=1)
    assert prompts(found) == ["Say 9", "Say 12", "Say 13"]
    without = gathered(chat, [(11, "0")], first=9, num_prompts=3)
    assert prompts(without) == ["Say 9", "Say 12", "Say 10"]


@pytest.mark.parametrize("max_replacements", [0, 5])
def test_the_batch_is_smaller_where_replacements_fail_too(chat: Chat, max_replacements: int) -> None:
    """Those of silent groups are for silent groups."""
    found = gathered(chat, [(n, "2") for n in range(2, 9)], max_replacements=max_replacements)
    assert prompts(found) == ["Say 1", "Say 9"][: len(prompts(found))]
    assert len(found.sampled) == 8 * GROUP  # four starts, and once more as many
    assert found.chosen.tolist() == [0, 1, 2]


def test_no_group_at_all_is_an_error_that_quotes_the_last_failure(chat: Chat) -> None:
    with pytest.raises(TaskError, match=r"none of 8 groups.*8 of 24 verdicts failed.*no verdict here"):
        gathered(chat, [(n, "2") for n in range(100)])


def test_so_many_failures_in_a_row_end_the_run(chat: Chat) -> None:
    failing = [(n, str(i)) for n in (2, 3) for i in range(GROUP)]
    assert len(prompts(gathered(chat, failing, failures=Failures(7)))) == 4
    with pytest.raises(TaskError, match=r"no verdict here.*6 times in a row: the run stops"):
        gathered(chat, failing, failures=Failures(6))
    bearing = Failures(6)
    gathered(chat, failing[:5], failures=bearing)
    assert bearing.in_a_row == 0
    gathered(chat, [(n, "2") for n in range(1, 4)], failures=Failures(2))  # never two in a row


def test_without_patience_the_first_failure_is_the_error(chat: Chat) -> None:
    begun = list(starts(1, [(1, "1")], TaskError("no verdict here")))[:2]
    with pytest.raises(TaskError, match=r"^no verdict here$"):
        play(begun, chat, Script(), Limits(8), group_size=GROUP)


def test_what_somebody_elses_environment_raises_is_a_failed_verdict(chat: Chat) -> None:
    found = gathered(chat, [(2, "1")], error=ZeroDivisionError("by zero"))
    assert "raised ZeroDivisionError: by zero" in found.sampled.records[4].verdict.why
    with pytest.raises(KeyboardInterrupt):
        gathered(chat, [(2, "1")], error=KeyboardInterrupt())  # type: ignore[arg-type]


def expected(theta: Tensor, worth: Tensor, seen: Tensor, group_size: int) -> Tensor:
    """Return E[ĝ] over all groups of which every member is judged, by listing them."""
    logp = theta.log_softmax(-1)
    weight = logp.exp() * seen
    total = torch.zeros_like(theta)
    for actions in itertools.product(range(len(theta)), repeat=group_size):
        chosen = torch.tensor(actions)
        chance = (weight / weight.sum())[chosen].prod()
        rewards = worth[chosen]
        adv = rewards - leave_one_out(rewards, torch.zeros(group_size, dtype=torch.long))
        (gradient,) = torch.autograd.grad((adv * logp[chosen]).mean(), theta, retain_graph=True)
        total += chance.detach() * gradient
    return total


@pytest.mark.parametrize("group_size", [2, 3, 4])
def test_whole_groups_estimate_the_return_of_what_can_be_judged(group_size: int) -> None:
    """∇ E[R | judged], to the last digits; as a reward of 0, failures would be trained away."""
    theta = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64, requires_grad=True)
    worth = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    seen = torch.tensor([1.0, 0.9, 0.4], dtype=torch.float64)  # the chance that an action is judged
    pi = theta.softmax(-1)
    (among_judged,) = torch.autograd.grad(
        (pi * seen * worth).sum() / (pi * seen).sum(), theta, retain_graph=True
    )
    (as_zeros,) = torch.autograd.grad((pi * seen * worth).sum(), theta, retain_graph=True)
    found = expected(theta, worth, seen, group_size)
    torch.testing.assert_close(found, among_judged, rtol=0, atol=1e-12)
    assert torch.nn.functional.cosine_similarity(found, as_zeros, dim=0) < 0.99


def test_a_failed_verdict_has_no_reward() -> None:
    found = Failures(3).failed(TaskError("no \ud800"))
    assert math.isnan(found.reward)
    assert not found.judged
    assert (found.parts, found.why) == ({}, "no ?")
    assert Verdict(0.0, {}, "").judged


class Together:
    """A task that judges a batch at once: `said` is its list, or what it raises."""

    def __init__(self, said: Any) -> None:
        self.said = said

    def question(self, seed: int) -> Question:
        return Question("Hi.", "")

    def score(self, question: Question, completion: str) -> float:
        return 0.0

    def score_many(self, *_: Any) -> Any:
        if isinstance(self.said, Exception):
            raise self.said
        return self.said


def judged_together(said: Any, failures: Failures) -> list[Verdict]:
    asked = [Question("Hi.", "")] * 3
    return judge_many(Together(said), asked, ["a", "b", "c"], [(1,)] * 3, failures)


def test_of_a_batch_only_what_failed_is_left_out() -> None:
    found = judged_together([1.0, math.nan, Verdict(0.5, {}, "")], Failures(2))
    assert [verdict.judged for verdict in found] == [True, False, True]
    said = judged_together([Verdict(math.nan, {}, "the model is asleep"), 1.0, 1.0], Failures(2))
    assert "It says: the model is asleep" in said[0].why
    with pytest.raises(TaskError, match="2 times in a row"):
        judged_together([1.0, math.nan, None], Failures(2))


@pytest.mark.parametrize("said", [[1.0, 1.0], None])
def test_a_batch_with_a_wrong_answer_is_one_failure(said: Any) -> None:
    bearing = Failures(2)
    found = judged_together(said, bearing)
    assert [verdict.judged for verdict in found] == [False] * 3
    assert bearing.in_a_row == 1
    with pytest.raises(TaskError, match="2 times in a row"):
        judged_together(said, bearing)


class Picky(Together):
    """Raises for a batch that holds an odd completion, and for the first `busy` batches."""

    def __init__(self, odd: str = "", busy: int = 0) -> None:
        super().__init__(None)
        self.odd, self.busy = odd, busy
        self.asked: list[list[str]] = []

    def score_many(self, questions: Any, completions: Any, tokens: Any) -> Any:
        self.asked.append(list(completions))
        if self.odd in completions or len(self.asked) <= self.busy:
            raise ConnectionError("nobody there")
        return [
            len(question.text) + 10 * ids[0] + ord(said)
            for question, said, ids in zip(questions, completions, tokens, strict=True)
        ]


def judged_by(task: Picky, failures: Failures | None) -> list[Verdict]:
    asked = [Question("i" * n, "") for n in range(5)]
    return judge_many(task, asked, list("abcde"), [(n,) for n in range(5)], failures)


def test_a_batch_that_raises_is_asked_again_in_halves() -> None:
    """What failed once costs nothing, an odd completion only its own verdict; each keeps its question."""
    wanted = [11.0 * n + ord("a") + n for n in range(5)]
    for failures in (None, Failures(3)):
        task = Picky(busy=1)
        assert [verdict.reward for verdict in judged_by(task, failures)] == wanted
        assert task.asked == [list("abcde"), list("ab"), list("cde")]
    bearing = Failures(2)
    found = judged_by(Picky(odd="d"), bearing)
    assert [verdict.reward for verdict in found if verdict.judged] == [*wanted[:3], wanted[4]]
    assert not found[3].judged and "score_many of 1 completions raised ConnectionError" in found[3].why
    with pytest.raises(TaskError, match="raised ConnectionError"):
        judged_by(Picky(odd="d"), None)


def test_a_scorer_that_is_gone_is_asked_until_it_failed_often_enough() -> None:
    task = Picky(busy=99)
    with pytest.raises(TaskError, match="3 times in a row: the run stops"):
        judged_by(task, Failures(3))
    assert task.asked == [list(word) for word in ("abcde", "ab", "a", "b", "cde", "c")]
