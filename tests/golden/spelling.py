"""Two tasks that pay in quarters: one for each letter of a kind, up to four."""

import random
import string

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
    """Fewer do, and in other words."""

    kind = string.ascii_letters + string.digits
    asked = "Spell {}"
