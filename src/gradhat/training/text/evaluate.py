"""The expected return on held-out questions, with an interval: the number a run is judged by."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gradhat.envs.text.solved import is_right_or_wrong, solves
from gradhat.envs.text.task import Question, Task, judge_many
from gradhat.errors import TaskError
from gradhat.intervals import FEWEST, Interval, Seen, range_interval, share_interval, trial_interval
from gradhat.policies.language.chat import Chat
from gradhat.rollouts.engine import Completion, Limits, Sampler
from gradhat.trajectories import Record, Verdict
from gradhat.verdicts import Failures


@dataclass
class Scale(Seen):
    """The rewards that a run has seen: their range, and whether they are more than right or wrong."""

    graded: bool = False
    """Some were neither 0 nor 1."""

    def take(self, values: Sequence[float]) -> None:
        super().take(values)
        self.graded = self.graded or not is_right_or_wrong(values)

    def expect(self, values: Sequence[float]) -> None:
        """Know of rewards that no policy has had yet: of what kind they are, not how many there are."""
        self.take(values)
        self.count -= len(values)


@dataclass(frozen=True)
class Measurement:
    """What a policy answered to `Q` questions, each asked equally often, and what `task` said of it."""

    task: Task
    questions: Sequence[Question]
    prompts: Sequence[Sequence[int]]
    """Token ids of each question."""
    completions: Sequence[Sequence[Completion]]
    records: Sequence[Sequence[Record]]
    scale: Scale
    """Of the rewards of the run so far, these among them."""

    def verdicts(self) -> list[list[Verdict]]:
        """Return the verdicts of each question's samples, without those that failed and without questions of
        which all failed."""
        judged = [[r.verdict for r in records if r.verdict.judged] for records in self.records]
        return [verdicts for verdicts in judged if verdicts]

    def num_unjudged(self) -> int:
        """Return how many verdicts failed."""
        return sum(map(len, self.records)) - sum(map(len, self.verdicts()))

    def rewards(self) -> list[list[float]]:
        """Return the rewards of each question's samples."""
        return [[verdict.reward for verdict in verdicts] for verdicts in self.verdicts()]

    def reward(self) -> Interval:
        """Return the expected return: the mean over questions."""
        return reward_interval(self.rewards(), self.scale)

    def solved(self) -> list[list[bool]] | None:
        """Return which samples of each question solve it; None where nothing says what that is."""
        rule = solves(self.task, graded=self.scale.graded)
        return rule and [[rule(verdict) for verdict in verdicts] for verdicts in self.verdicts()]

    def accuracy(self) -> Interval | None:
        """Return the share of samples that solve their question."""
        solved = self.solved()
        return None if solved is None else accuracy_interval(solved)

    @property
    def num_samples(self) -> int:
        """Samples of each question."""
        return len(self.records[0])

    def pass_at(self, k: int) -> float | None:
        """Return the chance that any of `k` samples solves a question, averaged over the questions of which
        so many were judged."""
        found = [pass_at_k(len(s), sum(s), k) for s in self.solved() or [] if len(s) >= k]
        return sum(found) / len(found) if found else None

    def metrics(self, prefix: str) -> dict[str, float]:
        """Return reward and accuracy with their intervals, where there are enough questions for these."""
        found: list[tuple[str, Interval | None]] = [("reward", self.reward()), ("accuracy", self.accuracy())]
        num_questions = len(self.verdicts())
        values = {"num_questions": float(num_questions), "num_unjudged": float(self.num_unjudged())}
        for name, interval in found:
            if interval is not None:
                values[name] = interval.mean
                if num_questions >= FEWEST:
                    values |= {f"{name}_low": interval.low, f"{name}_high": interval.high}
        return {f"{prefix}/{name}": value for name, value in values.items()}


def prompt_of(question: Question, chat: Chat, system: str) -> list[int]:
    """Return the tokens that ask `question`, after the system prompt if there is one."""
    opening = [{"role": "system", "content": system}] if system else []
    return chat.encode([*opening, {"role": "user", "content": question.text}])


def fitting(
    questions: Sequence[Question], chat: Chat, *, system: str, max_new_tokens: int, context: int
) -> list[Question]:
    """Return the questions whose prompt and completion fit into a context of `context` tokens.

    TaskError when none does.
    """
    lengths = [len(prompt_of(question, chat, system)) for question in questions]
    found = [q for q, length in zip(questions, lengths, strict=True) if length + max_new_tokens <= context]
    if not found:
        raise TaskError(
            f"ask {len(questions)} held-out questions: found prompts of {min(lengths)} tokens and more, and "
            f"max_new_tokens={max_new_tokens}; the model's context holds {context}. Shorten the questions or "
            "the system prompt, lower max_new_tokens, or use a model with a longer context."
        )
    return found


def measure(
    task: Task,
    questions: Sequence[Question],
    sampler: Sampler,
    chat: Chat,
    limits: Limits,
    *,
    system: str,
    num_samples: int,
    scale: Scale,
    failures: Failures | None = None,
) -> Measurement:
    """Sample `num_samples` completions of each question and let the task judge them; `scale` sees the
    rewards.

    Verdicts that fail are counted and left out, as long as `failures` bears them; None bears none. TaskError
    where all fail.
    """
    prompts = [prompt_of(question, chat, system) for question in questions]
    answers = sampler.sample(prompts, num_samples, limits)
    asked = [q for q in questions for _ in range(num_samples)]
    said = [c for completions in answers for c in completions]
    verdicts = judge_many(task, asked, [c.text for c in said], [c.tokens for c in said], failures)
    if not any(verdict.judged for verdict in verdicts):
        raise TaskError(
            f"measure {len(questions)} held-out questions: found that all {len(verdicts)} verdicts failed. "
            f"The last one: {verdicts[-1].why}"
        )
    scale.take([verdict.reward for verdict in verdicts if verdict.judged])
    flat = [Record(q.text, c.text, v, c.stop) for q, c, v in zip(asked, said, verdicts, strict=True)]
    records = [flat[i : i + num_samples] for i in range(0, len(flat), num_samples)]
    return Measurement(task, questions, prompts, answers, records, replace(scale))


def reward_interval(rewards: Sequence[Sequence[float]], scale: Scale) -> Interval:
    """Return the mean over questions of the mean reward of each, and its 95 % interval.

    `rewards` are those of the samples of each question; `scale` has seen them. Of rewards of 0 and 1 the mean
    is a share, with the interval of one. Others have that of values within all that was seen. Where all
    questions agree and more was seen, each counts as one trial, as it does where a share is 0 or 1.
    """
    if not scale.graded:
        return accuracy_interval([[round(x) == 1 for x in group] for group in rewards])
    means = [math.fsum(group) / len(group) for group in rewards]
    least, most = scale.bounds()
    if len(means) >= FEWEST and min(means) == max(means) and 0 < most - least < math.inf:
        return trial_interval(means[0], len(means), least, most)
    return range_interval(means, least, most)


def accuracy_interval(solved: Sequence[Sequence[bool]]) -> Interval:
    """Return the share of samples that are solved, a mean over questions, and its interval (see
    `share_interval`).
    """
    return share_interval([sum(group) / len(group) for group in solved], sum(map(len, solved)))


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return 1 - C(n - c, k) / C(n, k): the unbiased estimate of pass@k from `c` solved of `n` (Chen et al.
    2021, eq. 1).

    ValueError when k > n: fewer samples than k say nothing unbiased about k.
    """
    if k > n:
        raise ValueError(f"pass@{k} from {n} samples: at least {k} are needed.")
    return 1 - math.comb(n - c, k) / math.comb(n, k)
