"""The expected return on held-out questions, with an interval: the number a run is judged by.

A completion solves a question when its reward is at least `SOLVED`, the reward of a task's own answer.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradhat.envs.text.task import Question, Task, judge
from gradhat.errors import TaskError
from gradhat.intervals import Interval, Z
from gradhat.policies.language.chat import Chat
from gradhat.rollouts.engine import Limits, Sampler
from gradhat.trajectories import Record

SOLVED = 1.0


@dataclass(frozen=True)
class Measurement:
    """The records of `Q` questions, each sampled equally often."""

    records: Sequence[Sequence[Record]]

    def solved(self) -> list[int]:
        """Return how many completions of each question solve it, `[Q]`."""
        return [sum(r.verdict.reward >= SOLVED for r in records) for records in self.records]

    def accuracy(self) -> Interval:
        """Return the share of completions that solve their question."""
        return accuracy_interval(self.solved(), len(self.records[0]))

    def reward(self) -> float:
        """Return the mean reward."""
        rewards = [r.verdict.reward for records in self.records for r in records]
        return sum(rewards) / len(rewards)

    def pass_at(self, k: int) -> float:
        """Return the chance that any of `k` completions solves a question, averaged over questions."""
        n = len(self.records[0])
        return sum(pass_at_k(n, c, k) for c in self.solved()) / len(self.records)


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
) -> Measurement:
    """Sample `num_samples` completions of each question and let the task judge them."""
    prompts = [prompt_of(question, chat, system) for question in questions]
    answers = sampler.sample(prompts, num_samples, limits)
    return Measurement(
        [
            [Record(q.text, c.text, judge(task, q, c.text), c.stop) for c in completions]
            for q, completions in zip(questions, answers, strict=True)
        ]
    )


def accuracy_interval(solved: Sequence[int], num_samples: int) -> Interval:
    """Return the accuracy and its 95 % interval from `solved` `[Q]`, the count of `num_samples` that solve
    each question.

    Wilson's interval (Wilson 1927) at the effective sample size of Korn and Graubard 1998: n_eff = p (1 - p)
    / Var(p), where Var(p) is taken between questions. Completions of one question resemble each other, so Q
    questions with n samples are worth between Q and Q·n independent ones. With one sample each this is
    Wilson's interval for Q trials. When all or none are solved the variance says nothing, and n_eff = Q.
    Assumes the questions are drawn at random from those the task can ask.
    """
    count = len(solved)
    shares = [c / num_samples for c in solved]
    p = sum(shares) / count
    variance = sum((share - p) ** 2 for share in shares) / count**2
    effective = count if p in (0.0, 1.0) else p * (1 - p) / max(variance, p * (1 - p) / (count * num_samples))
    return wilson(p, effective)


def wilson(p: float, n: float) -> Interval:
    """Return Wilson's 95 % score interval for a share `p` of `n` independent trials (Wilson 1927)."""
    shrink = 1 + Z**2 / n
    centre = (p + Z**2 / (2 * n)) / shrink
    half = Z / shrink * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return Interval(p, max(0.0, centre - half), min(1.0, centre + half))


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return 1 - C(n - c, k) / C(n, k): the unbiased estimate of pass@k from `c` solved of `n` (Chen et al.
    2021, eq. 1).

    ValueError when k > n: fewer samples than k say nothing unbiased about k.
    """
    if k > n:
        raise ValueError(f"pass@{k} from {n} samples: at least {k} are needed.")
    return 1 - math.comb(n - c, k) / math.comb(n, k)
