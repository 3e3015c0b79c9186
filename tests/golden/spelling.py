"""Two tasks that pay in quarters, one for each letter of a kind, up to four; a reward for what is brief."""

import random
import string
from typing import Any

from gradhat.envs.text.task import Question


class Printable:
    """Most letters count. A third of random bytes is one."""

    kind = string.printable
    asked = "Write {} letters"

    def question(self, seed: int) -> Question:
        return Question(self.asked.format(random.Random(seed).randrange(1000)), "abcd")

    def score(self, question: Question, completion: str) -> float:
        return min(4, sum(letter in self.kind for letter in completion)) / 4


class Plain(Printable):
    """Fewer do, and in other words. Three are enough."""

    kind = string.ascii_letters + string.digits
    asked = "Spell {}"
    solved = 0.75


def brief(completion_ids: list[list[int]], **_columns: Any) -> list[float | None]:
    """The fewer tokens, the better; nothing is said of the longest."""
    return [1 - len(ids) / 8 if len(ids) < 7 else None for ids in completion_ids]
