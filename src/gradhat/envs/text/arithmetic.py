"""Sums, differences and products: the smallest task on which a language model can be seen to learn.

Difficulty is the number of terms and the number of digits. The answer is the last number of the completion.
"""

import random
from dataclasses import dataclass
from math import prod
from typing import ClassVar

from gradhat.envs.text.task import Question
from gradhat.envs.text.verify import same_number
from gradhat.errors import TaskError
from gradhat.trajectories import Verdict

OPERATIONS = "+-*"
LONGEST = 40
"""Most terms, and most digits of a term. The longest product has 1600 digits; Python writes up to 4300."""


@dataclass(frozen=True)
class Arithmetic:
    """Questions like "What is 3 + 4?". Each operand and each operation is drawn uniformly.

    Products bind tighter than sums and differences, as in school: 2 + 3 * 4 is 14. The operands in ascending
    order are the question's key, so "3 + 4", "4 + 3" and "3 * 4" are held out together or not at all. A
    TaskError names a bad setting.
    """

    solved: ClassVar[float] = 1.0

    operations: str = OPERATIONS
    """The signs to draw from, some of "+-*"."""
    num_terms: int = 2
    """Operands per question, at least 2."""
    digits: int = 1
    """Operands have at most this many digits."""
    min_digits: int = 1
    """Operands have at least this many digits; 0 counts as one digit."""
    negative: bool = True
    """Whether a difference may be below 0. Without, its larger operand comes first; two terms only."""
    template: str = "What is {expression}?"
    """The wording; `{expression}` is replaced."""

    def __post_init__(self) -> None:
        if not self.operations or set(self.operations) - set(OPERATIONS):
            raise TaskError(f'arithmetic: operations={self.operations!r}: use one or more of "{OPERATIONS}".')
        if not 2 <= self.num_terms <= LONGEST:
            found = f"num_terms={self.num_terms}"
            raise TaskError(f"arithmetic: {found}: a question has at least 2 terms, and at most {LONGEST}.")
        if not 1 <= self.min_digits <= self.digits <= LONGEST:
            found = f"min_digits={self.min_digits}, digits={self.digits}"
            raise TaskError(f"arithmetic: {found}: use 1 <= min_digits <= digits <= {LONGEST}.")
        if not self.negative and self.num_terms > 2:
            found = f"negative=false, num_terms={self.num_terms}"
            raise TaskError(f"arithmetic: {found}: only the two terms of a difference can be put in order.")
        if "{expression}" not in self.template:
            raise TaskError(
                f"arithmetic: template={self.template!r}: write {{expression}} where the sum goes."
            )

    @property
    def num_questions(self) -> int:
        """How many distinct questions there are: 300 for one digit, two terms and all three operations."""
        signs, count = set(self.operations), 10**self.digits - self._least()
        twice = 0 if self.negative or "-" not in signs else count * (count - 1) // 2
        return len(signs) ** (self.num_terms - 1) * count**self.num_terms - twice

    def question(self, seed: int) -> Question:
        """Return the question that `seed` names."""
        rng = random.Random(seed)
        terms = [rng.randrange(self._least(), 10**self.digits) for _ in range(self.num_terms)]
        signs = [rng.choice(self.operations) for _ in range(self.num_terms - 1)]
        if not self.negative and signs == ["-"]:
            terms.sort(reverse=True)
        expression = str(terms[0]) + "".join(f" {s} {t}" for s, t in zip(signs, terms[1:], strict=True))
        text = self.template.replace("{expression}", expression)
        return Question(text, str(_value(terms, signs)), key=" ".join(map(str, sorted(terms))))

    def score(self, question: Question, completion: str) -> Verdict:
        """Give 1 when the last number of `completion` is the answer, else 0."""
        return same_number(completion, question.answer)

    def _least(self) -> int:
        return 0 if self.min_digits == 1 else 10 ** (self.min_digits - 1)


def _value(terms: list[int], signs: list[str]) -> int:
    """Return the value of terms[0] signs[0] terms[1] ..., products first: a sum of signed products."""
    products: list[list[int]] = [[terms[0]]]
    for sign, term in zip(signs, terms[1:], strict=True):
        if sign == "*":
            products[-1].append(term)
        else:
            products.append([term if sign == "+" else -term])
    return sum(prod(factors) for factors in products)
