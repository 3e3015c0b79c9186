"""A text task as a Gymnasium environment: the observation is the conversation, the action is a completion.

A single-turn task is the one-step case of Gymnasium's five-tuple: every episode terminates at its first step.
"""

import string
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium
from gymnasium.error import ResetNeeded

from gradhat.envs.text.task import Question, Split, Task, draw, judge, judge_many
from gradhat.errors import GradhatError, TaskError
from gradhat.trajectories import Verdict
from gradhat.verdicts import Failures, plain

Message = dict[str, str]
"""{"role": "system", "user" or "assistant", "content": text}."""

SAMPLE_LENGTH = 16
"""Characters in a random sample of a space. Real texts have any length."""


class AnyText(gymnasium.Space[str]):
    """Every string. Gymnasium's own Text knows only strings over a listed alphabet, up to a listed length."""

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Return random printable ASCII. A mask is an error, as it is in Gymnasium's other unbounded
        spaces."""
        if mask is not None or probability is not None:
            raise gymnasium.error.Error("A text was asked for under a mask. Sample without one.")
        alphabet = string.printable
        return "".join(alphabet[int(i)] for i in self.np_random.integers(len(alphabet), size=SAMPLE_LENGTH))

    def contains(self, x: Any) -> bool:
        """Return whether `x` is a string."""
        return isinstance(x, str)


class Conversation(gymnasium.Space[list[Message]]):
    """Every non-empty list of messages with a role and a content."""

    def sample(self, mask: Any = None, probability: Any = None) -> list[Message]:
        """Return one user message of random text."""
        text = AnyText(seed=self.np_random)
        return [{"role": "user", "content": text.sample(mask, probability)}]

    def contains(self, x: Any) -> bool:
        """Return whether `x` is a list of dictionaries with exactly two strings, `role` and `content`."""
        return isinstance(x, list) and bool(x) and all(_is_message(message) for message in x)


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, dict)
        and set(message) == {"role", "content"}
        and all(isinstance(value, str) for value in message.values())
    )


class SingleTurn(gymnasium.Env[list[Message], str]):
    """A task as an environment whose episodes last one step. The reward is that of the task's verdict.

    `system`, when not empty, is the first message of every conversation. `questions` names the question of a
    seed: those of `split` where it is left out; many environments may share one that remembers. A task that
    raises, hangs or answers nonsense ends in a TaskError, not in a reward.
    """

    def __init__(
        self,
        task: Task,
        split: Split = "train",
        system: str = "",
        questions: Callable[[int], Question] | None = None,
    ) -> None:
        self.task = task
        self.system = system
        self.questions = questions or partial(draw, task, split)
        self.observation_space = Conversation()
        self.action_space = AnyText()
        self._messages: list[Message] = []
        self._question: Question | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[list[Message], dict[str, Any]]:
        """Begin an episode: returns the messages and {"question": Question}.

        With a seed the question is `questions(seed)`; without one the seed comes from the
        environment's own random stream, which the last seed started. `options` is Gymnasium's and has no
        meaning here.
        """
        super().reset(seed=seed)
        named = int(self.np_random.integers(2**31)) if seed is None else seed
        self._question = self.questions(named)
        opening = [{"role": "system", "content": self.system}] if self.system else []
        self._messages = [*opening, {"role": "user", "content": self._question.text}]
        return list(self._messages), {"question": self._question}

    def step(self, action: str) -> tuple[list[Message], float, bool, bool, dict[str, Any]]:
        """Answer the question with a completion: returns messages, reward, terminated=True, truncated=False,
        info.

        The messages end with the completion; info is {"verdict": Verdict}. Raises ResetNeeded when no
        question is open.
        """
        verdict = judge(self.task, self.open_question(), action)
        self._question = None
        messages = [*self._messages, {"role": "assistant", "content": action}]
        return messages, verdict.reward, True, False, {"verdict": verdict}

    def open_question(self) -> Question:
        """Return the question that waits for its answer. ResetNeeded when none does."""
        if self._question is None:
            raise ResetNeeded("step(completion) was asked for, but no question is open. Call reset() first.")
        return self._question

    def close_question(self) -> Question:
        """Return the question that waits for its answer, which is judged elsewhere: the episode is over."""
        question = self.open_question()
        self._question = None
        return question


def verdicts(
    envs: Sequence[gymnasium.Env[list[Message], str]],
    actions: Sequence[str],
    tokens: Sequence[Sequence[int]],
    failures: Failures | None = None,
) -> list[Verdict]:
    """Return what each environment says of its completion, which was sampled as `tokens`; the episodes are
    over.

    Episodes of one task are judged together: see `judge_many`. Other environments, which may be somebody
    else's, answer one after the other. What `failures` bears is a verdict without a reward.
    """
    single = [env for env in envs if isinstance(env, SingleTurn)]
    if len(single) == len(envs) and all(env.task is single[0].task for env in single):
        questions = [env.close_question() for env in single]
        return judge_many(single[0].task, questions, actions, tokens, failures)
    borne = failures or Failures()
    return [borne.bear(partial(_verdict, env, action)) for env, action in zip(envs, actions, strict=True)]


def _verdict(env: gymnasium.Env[list[Message], str], action: str) -> Verdict:
    """Return what an environment says of an answer, in plain numbers; TaskError where it fails."""
    try:
        *_, info = env.step(action)
        found = dict(info).get("verdict")
    except (GradhatError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise TaskError(f"step() of {env} raised {type(error).__name__}: {error}. Repair it.") from error
    try:
        known = plain(found) if isinstance(found, Verdict) else None
    except Exception as error:
        raise TaskError(f"step() put a verdict into its info that cannot be used: {error}.") from error
    if known is None:
        raise TaskError(
            f"step() was asked for a verdict, but its info has {sorted(map(str, info))}. "
            "Put a Verdict at info['verdict']."
        )
    return known
