"""Built-in ways to score a completion against a right answer, by name: 1 when it is right, else 0."""

import importlib.util
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from gradhat.envs.text.verify import is_number, numbers, same_number, shorten, tidy, verdict
from gradhat.errors import TaskError
from gradhat.trajectories import Verdict
from gradhat.worker import Worker, WorkerLost

Scorer = Callable[[str, str], Verdict]
"""(completion, right answer) → verdict."""

_CHOICE = re.compile(r"(?<![A-Za-z'])\(?([A-J])\)?(?![A-Za-z'])")
_ONE_CHOICE = re.compile(r"\(?([A-J])\)?[.:]?")
AUTO, MATH = "auto", "math_verify"
"""The one that fits the answers, and the one of an extra."""
MATH_SECONDS = 5.0
"""Time to compare two formulas."""


def scorer(name: str, answers: Sequence[str], where: str) -> Scorer:
    """Return the scorer called `name` for questions with these right `answers`.

    TaskError for an unknown name, and for answers that the scorer could never find in a completion.
    """
    check_name(name, where)
    chosen = _fitting(answers) if name == AUTO else name
    if chosen == MATH:
        return MathVerify()
    can_be_right: dict[str, Callable[[str], object]] = {"last_number": numbers, "multiple_choice": _choice}
    test = can_be_right.get(chosen, str.strip)
    wrong = next((number for number, answer in enumerate(answers, 1) if not test(answer)), None)
    if wrong is not None:
        raise TaskError(
            f"{where}: row {wrong}: the answer {shorten(answers[wrong - 1])!r} is nothing that the scorer "
            f"{chosen} can find in a completion. Choose another: --scorer {' or '.join(SCORERS)}."
        )
    return SCORERS[chosen]


def check_name(name: str, where: str) -> None:
    """TaskError for the name of no scorer."""
    known = [AUTO, *SCORERS, MATH]
    if name not in known:
        raise TaskError(f"{where}: the scorer {name!r} is unknown. Use one of {', '.join(known)}.")


def _fitting(answers: Sequence[str]) -> str:
    """Return the scorer for answers of one kind: numbers, letters, or anything else."""
    if all(is_number(answer.replace(",", "")) for answer in answers):
        return "last_number"
    return "multiple_choice" if all(map(_choice, answers)) else "exact"


def last_number_is(completion: str, answer: str) -> Verdict:
    """Right when the last number is that of the answer, whose own last number counts: "... so 7 #### 42"."""
    return same_number(completion, numbers(answer)[-1])


def exact(completion: str, answer: str) -> Verdict:
    """Right when the completion is the answer, blanks at the ends of it and of its lines aside."""
    return verdict(
        tidy(completion) == tidy(answer), f"read {shorten(completion)!r}, expected {shorten(answer)!r}"
    )


def contains(completion: str, answer: str) -> Verdict:
    """Right when the answer stands in the completion as whole words, in any case, between any blanks."""
    words = re.escape(" ".join(answer.split()).casefold())
    found = re.search(rf"(?<!\w){words}(?!\w)", " ".join(completion.split()).casefold())
    return verdict(found is not None, f"{'found' if found else 'did not find'} {shorten(answer)!r}")


def multiple_choice(completion: str, answer: str) -> Verdict:
    """Right when the last letter from A to J that stands alone is that of the answer: "B", "(B)", "B."

    The article "A" at the beginning of a sentence stands alone too: ask for the letter at the end.
    """
    found = _CHOICE.findall(completion)
    wanted = _choice(answer)
    if not found:
        return verdict(False, f"no letter, expected {wanted}")
    return verdict(found[-1] == wanted, f"last letter {found[-1]}, expected {wanted}")


def _choice(answer: str) -> str:
    """Return the letter that an answer is, or ""."""
    found = _ONE_CHOICE.fullmatch(answer.strip())
    return found[1] if found else ""


class MathVerify:
    """Right when math-verify finds the answer and the completion equal as formulas or LaTeX.

    The library reads formulas with Python's own parser, so it runs in a process that can do little else. A
    number of more than ten thousand digits, such as 9**9**9**9, is not computed: it is right where the answer
    is written alike.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise TaskError(
                "the scorer math_verify needs the package math-verify; it is not installed. "
                "Install it: pip install 'gradhat[math]'"
            )
        self._worker = Worker(Path(__file__).with_name("math_worker.py"), {})

    def __call__(self, completion: str, answer: str) -> Verdict:
        try:
            reply = self._worker.call({"completion": completion, "answer": answer}, MATH_SECONDS)
        except WorkerLost as error:
            raise TaskError(f"math-verify could not compare with {shorten(answer)!r}: {error}.") from error
        if "broken" in reply:
            raise TaskError(f"math-verify cannot score: {shorten(str(reply['broken']))}.")
        if "error" in reply:
            return verdict(False, f"math-verify raised {shorten(str(reply['error']))}")
        read = reply.get("read") or "nothing"
        return verdict(reply.get("right") is True, f"read {shorten(str(read))}, expected {shorten(answer)}")


SCORERS: dict[str, Scorer] = {
    "last_number": last_number_is,
    "exact": exact,
    "contains": contains,
    "multiple_choice": multiple_choice,
}
