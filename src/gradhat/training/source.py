"""Which questions a run trains on: a stream that can be continued, through levels that follow success."""

from collections.abc import Sequence
from typing import Any

from gradhat.envs.text.task import Question, Task, draw
from gradhat.training.seed import derive

WINDOW = 32
"""Prompts over which the success rate is averaged, and the fewest after which a level can open."""


class Source:
    """Training questions of `levels`, easy to hard. The next level opens when the success rate reaches
    `threshold`.

    Question number n is a pure function of (seed, n, level), so three numbers continue the stream.
    """

    def __init__(self, levels: Sequence[Task], *, threshold: float, seed: int) -> None:
        self.levels = levels
        self.threshold = threshold
        self.seed = seed
        self.drawn = 0
        self.level = 0
        self.seen = 0
        """Prompts of this level whose success is known."""
        self.success = 0.0
        """Their success rate: the mean of the first `WINDOW`, from then on a moving average."""

    @property
    def task(self) -> Task:
        """The task of the present level."""
        return self.levels[self.level]

    def next(self) -> Question:
        """Return the next question, never a held-out one."""
        question = draw(self.task, "train", derive(self.seed, "question", self.drawn))
        self.drawn += 1
        return question

    def observe(self, rates: Sequence[float]) -> None:
        """Take in the success rate of each prompt of a step, silent ones included, and open the next level
        when it is time.

        Without the silent ones, which are all right or all wrong, the rate would be drawn towards the middle.
        """
        for rate in rates:
            self.seen += 1
            self.success += (rate - self.success) / min(self.seen, WINDOW)
        if self.seen >= WINDOW and self.success >= self.threshold and self.level + 1 < len(self.levels):
            self.level, self.seen, self.success = self.level + 1, 0, 0.0

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs, as plain values."""
        return {"drawn": self.drawn, "level": self.level, "seen": self.seen, "success": self.success}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue the stream where `state` was taken."""
        self.drawn, self.level = state["drawn"], state["level"]
        self.seen, self.success = state["seen"], state["success"]
