"""Any task of the reasoning-gym library, made safe to train on: `reasoning_gym:NAME[:key=value,...]`.

What is read as the answer: the inside of the last `<answer></answer>` when there is one, else the whole
completion; of that, the last number in a task whose gold answers are numbers, else as many last lines as the
gold answer has (all of it where there is no gold answer). Where a number is not what is read, the question
ends with `INSTRUCTION`.

Rewards are 1 or 0. The library's partial credit (its default scorer pays for a substring, others pay 0.01 for
any text) is not paid; where its own scorer is asked, `parts["score"]` keeps what it said.

Nine of its scorers run the answer as Python. Six of them are never called: their answers are judged here,
exactly. For the other three the answer must be a formula by an allow-list of tokens (`verify.is_formula`).
All calls happen in a confined process (`worker`), which also generates the questions: a few depend on
Python's hash seed, fixed there.
"""

import difflib
import math
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

from gradhat.envs.text.task import Question
from gradhat.envs.text.verify import (
    evaluate,
    final_lines,
    is_formula,
    is_number,
    numbers,
    same_number,
    shorten,
    tagged,
    tidy,
    verdict,
)
from gradhat.errors import TaskError
from gradhat.trajectories import Verdict
from gradhat.worker import Worker, WorkerLost

INSTRUCTION = "Put the final answer inside <answer></answer>."
EMPTY = '""'
"""How an answer that is the empty text is written."""
SCORE_SECONDS = 5.0
GENERATE_SECONDS = 30.0
"""Computing time that one answer or one question may cost."""
NUMBER_PROBES = 16
"""Questions that must have a number as answer before the last number is what a task reads."""

_FORMULAS = frozenset({"simple_integration", "intermediate_integration", "polynomial_multiplication"})
_FORMULA_NAMES = frozenset(
    re.findall("[A-Za-z]+", "C E pi exp log sqrt sin cos tan sec csc cot asin acos atan sinh cosh tanh")
)
# The gold answer decides alone: three scorers run the answer as code to pay a tenth for it, and that of
# gsm_symbolic takes 5 for -5.
_GOLD_ONLY = frozenset({"binary_matrix", "spiral_matrix", "string_insertion", "gsm_symbolic"})
# Their scorers read text as floats and let "nan" pass as equal to everything.
_NAN_PASSES = frozenset({"complex_arithmetic", "number_sorting"})


class ReasoningGym:
    """One task of reasoning-gym. TaskError for an unknown name or setting, and when no question can be made.

    An answer at which the library's scorer raises, or of which it says NaN, is one it cannot read: wrong, and
    the verdict says so. Where no scorer answers (it died, overran `SCORE_SECONDS`, misses a package or a
    file) `score` is a TaskError: nobody knows whether the answer was right.
    """

    solved = 1.0

    def __init__(self, name: str, config: dict[str, Any] | None = None) -> None:
        self.name = name
        config = config or {}
        self._worker = Worker(
            Path(__file__).with_name("reasoning_gym_worker.py"), {"name": name, "config": config}
        )
        try:
            reply = self._worker.start()
        except WorkerLost as error:
            raise TaskError(f"reasoning_gym:{name} did not start: {error}. Try other settings.") from error
        if "error" in reply:
            self._worker.stop()
            raise TaskError(_refusal(name, config, reply))
        self._asks_scorer = bool(reply["own_scorer"]) and name not in _GOLD_ONLY
        golds = (self._item(seed)["answer"] for seed in range(NUMBER_PROBES))
        self._numeric = name not in _RULES and all(gold is not None and is_number(gold) for gold in golds)

    def question(self, seed: int) -> Question:
        """Return the question that `seed` names. `entry` holds the seed and what the rules below need."""
        item = self._item(seed)
        gold = "" if item["answer"] is None else _written(item["answer"])
        text = item["text"] if self._reads_number(gold) else f"{item['text'].rstrip()}\n\n{INSTRUCTION}"
        return Question(text, gold, {"seed": seed, "facts": item["facts"]})

    def _item(self, seed: int) -> dict[str, Any]:
        """Return text, answer and facts as the worker generates them."""
        request = {"op": "question", "seed": seed, "facts": _FACTS.get(self.name, [])}
        try:
            reply = self._worker.call(request, GENERATE_SECONDS)
        except WorkerLost as error:
            reply = {"error": str(error)}
        failure = reply.get("error", reply.get("broken"))
        if failure:
            raise TaskError(
                f"reasoning_gym:{self.name}: question(seed={seed}): the generator failed: {failure}. "
                "Try other settings."
            )
        return reply

    def score(self, question: Question, completion: str) -> Verdict:
        """Judge by what `completion` gives as its answer: 1 when it is right, else 0."""
        found = tagged(completion)
        text = completion if found is None else found
        if self._reads_number(question.answer):
            return self._score_number(question, text)
        num_lines = len(tidy(question.answer).splitlines())
        answer = tidy(final_lines(text, num_lines) if found is None and num_lines else text)
        if not answer:
            return verdict(found is not None and question.answer == EMPTY, "no answer")
        why = f"read {shorten(answer)!r}" + (f", expected {shorten(question.answer)!r}" if num_lines else "")
        if num_lines and answer == tidy(question.answer):
            return verdict(True, why)
        rule = _RULES.get(self.name)
        if rule is not None:
            return verdict(rule(answer, question), why)
        if question.answer == EMPTY or not self._asks_scorer:
            return verdict(False, why)
        return self._ask_scorer(question, answer, why)

    def _reads_number(self, gold: str) -> bool:
        return self._numeric and is_number(gold)

    def _score_number(self, question: Question, text: str) -> Verdict:
        """Judge by the last number; a scorer of the task's own may allow for rounding."""
        exact = same_number(text, question.answer.strip())
        found = numbers(text)
        if exact.reward == 1.0 or not found or not self._asks_scorer:
            return exact
        return self._ask_scorer(question, found[-1], exact.why)

    def _ask_scorer(self, question: Question, answer: str, why: str) -> Verdict:
        """Let the library judge, in the worker. Text that could be more than data is not handed over."""
        if self.name in _FORMULAS and not is_formula(answer, _FORMULA_NAMES | _variables(question)):
            return verdict(False, f"not data: {shorten(answer)!r} is not a formula")
        if self.name in _NAN_PASSES and "nan" in answer.lower():
            return verdict(False, f"not a finite number: {shorten(answer)!r}")
        request = {"op": "score", "seed": question.entry["seed"], "answer": answer}
        try:
            reply = self._worker.call(request, SCORE_SECONDS)
        except WorkerLost as error:
            raise TaskError(
                f"reasoning_gym:{self.name}: {why}; no verdict from the scorer: {error}."
            ) from error
        if "broken" in reply:
            raise TaskError(
                f"reasoning_gym:{self.name}: {why}; the scorer does not work: {shorten(reply['broken'])}."
            )
        if "error" in reply:
            return verdict(False, f"{why}; the scorer raised {shorten(reply['error'])}")
        if not math.isfinite(reply["value"]):
            return verdict(False, f"{why}; the scorer returned {reply['value']}")
        judged = verdict(reply["value"] == 1.0, why)
        return judged._replace(parts={**judged.parts, "score": reply["value"]})


def _refusal(name: str, config: dict[str, Any], reply: dict[str, Any]) -> str:
    """Return the message for an opening that the worker refused."""
    match reply["error"]:
        case "import":
            return f"reasoning_gym:{name} needs the package reasoning-gym, and: {reply['cause']}. Install it."
        case "name":
            near = difflib.get_close_matches(name, reply["known"], 5, 0.5)
            hint = f"Near it: {', '.join(near)}." if near else f"Known: {', '.join(reply['known'])}."
            return f"reasoning_gym has no task {name!r}. {hint}"
        case "key":
            unknown = ", ".join(sorted(set(config) - set(reply["known"])))
            return f"reasoning_gym:{name} has no setting {unknown}. Known: {', '.join(reply['known'])}."
        case _:
            return f"reasoning_gym:{name}: {config} makes no question: {reply['cause']}. Change the settings."


def _written(gold: str) -> str:
    """Return how a gold answer is written: without blank lines around it, and visibly when it is empty."""
    return gold.strip("\n") if gold.strip() else EMPTY


def _variables(question: Question) -> frozenset[str]:
    """Return the names that the question itself uses as variables."""
    facts = question.entry["facts"]
    return frozenset(facts["variables"] if "variables" in facts else [facts["variable"]])


def _makes(answer: str, target: int, given: list[int]) -> bool:
    """Return whether `answer` uses the `given` numbers once each and makes `target` exactly."""
    found = evaluate(answer)
    return found is not None and found[0] == target and Counter(found[1]) == Counter(given)


def _countdown(answer: str, question: Question) -> bool:
    facts = question.entry["facts"]
    return _makes(answer, facts["target"], facts["numbers"])


def _puzzle24(answer: str, question: Question) -> bool:
    """The library's scorer takes any four numbers and cuts 24.9 to 24; this one does not."""
    return _makes(answer, 24, question.entry["facts"]["numbers"])


def _n_queens(answer: str, question: Question) -> bool:
    return answer in {tidy(board) for board in question.entry["facts"]["valid_answers"]}


def _coin_flip(answer: str, question: Question) -> bool:
    """The last number or quotient, to a thousandth of the gold. The library takes any prefix of it."""
    found = re.findall(r"(-?[0-9]{0,20}\.?[0-9]{1,20})(?:\s*/\s*([0-9]{1,20}))?(?![0-9])", answer)
    if not found or (found[-1][1] and int(found[-1][1]) == 0):
        return False
    gold = Fraction(question.answer)
    return abs(Fraction(found[-1][0]) / Fraction(found[-1][1] or 1) - gold) <= gold / 1000


def _words(answer: str, question: Question) -> bool:
    return re.split(r"\s*,\s*", answer) == re.split(r"\s*,\s*", question.answer.strip())


def _any_case(answer: str, question: Question) -> bool:
    return answer.casefold() == tidy(question.answer).casefold()


# Tasks judged here although the library has a scorer: it would run the answer as code, or it can be cheated.
_RULES: dict[str, Callable[[str, Question], bool]] = {
    "n_queens": _n_queens,
    "countdown": _countdown,
    "puzzle24": _puzzle24,
    "coin_flip": _coin_flip,
    "game_of_life_halting": _any_case,
    "figlet_font": _any_case,
    "letter_jumble": _any_case,
    "word_sorting": _words,
}
# What the rules and the allow-list need to know of a question, by its name in the library's metadata.
_FACTS: dict[str, list[str]] = {
    "n_queens": ["valid_answers"],
    "countdown": ["numbers", "target"],
    "puzzle24": ["numbers"],
    "simple_integration": ["variable"],
    "intermediate_integration": ["variable"],
    "polynomial_multiplication": ["variables"],
}
