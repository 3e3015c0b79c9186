"""Which questions a run trains on: a stream that can be continued, through levels that follow success."""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

from gradhat.envs.text.env import SingleTurn
from gradhat.envs.text.task import Task, draw
from gradhat.rollouts.episodes import Start
from gradhat.training.seed import derive

WINDOW = 32
"""Prompts over which success is averaged, and the fewest after which a level can open."""

REMEMBERED = 1024
"""Questions of one level that are kept while their completions are sampled and judged."""


class Source:
    """Training episodes from `levels`, easy to hard: an iterator of start states that never ends.

    The next level opens when success reaches `threshold`: the share of completions that solve their question
    where the task says what that is (envs/text/solved.py), else the mean reward, in the task's own unit.
    Rewards of 0 and 1 make no difference. Start number n is a function of (seed, n, level) alone, so a few
    numbers continue the stream.
    """

    def __init__(self, levels: Sequence[Task], *, system: str, threshold: float, seed: int) -> None:
        self.levels = levels
        self.system = system
        self.threshold = threshold
        self.seed = seed
        # A slow task is asked once for each prompt, however many completions are sampled from it.
        self._questions = [lru_cache(REMEMBERED)(partial(draw, task, "train")) for task in levels]
        self.drawn = 0
        self.level = 0
        self.seen = 0
        """Prompts of this level whose success is known."""
        self.success = 0.0
        """Their success: the mean of the first `WINDOW`, from then on a moving average."""

    @property
    def task(self) -> Task:
        """The task of the present level."""
        return self.levels[self.level]

    def __iter__(self) -> "Source":
        return self

    def __next__(self) -> Start:
        self.drawn += 1
        questions = self._questions[self.level]
        make = partial(SingleTurn, self.task, "train", self.system, questions)
        return Start(make, derive(self.seed, "question", self.drawn))

    def observe(self, rates: Sequence[float]) -> bool:
        """Take in the success of each prompt of a step's first draw, silent ones included. Returns whether
        a level opens.

        Silent prompts are all right or all wrong: without them the rate would be drawn towards the middle. So
        it would with those drawn in their place, of which the last one is never silent.
        """
        for rate in rates:
            self.seen += 1
            self.success += (rate - self.success) / min(self.seen, WINDOW)
        opens = self.seen >= WINDOW and self.success >= self.threshold and self.level + 1 < len(self.levels)
        if opens:
            self.level, self.seen, self.success = self.level + 1, 0, 0.0
        return opens

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs, as plain values."""
        return {"drawn": self.drawn, "level": self.level, "seen": self.seen, "success": self.success}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue the stream where `state` was taken."""
        self.drawn, self.level = state["drawn"], state["level"]
        self.seen, self.success = state["seen"], state["success"]
