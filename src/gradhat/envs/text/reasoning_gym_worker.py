"""The other side of the pipe: generates and scores reasoning-gym questions in a process that can do little
else.

Run as a script, never imported by the package; it needs nothing of gradhat. Some of the library's scorers run
the answer as Python code. Answers that are not provably data never arrive here; should one, the process has
no environment, may not write, start programs, or open sockets, and its time and memory are limited.
"""

import copy
import dataclasses
import functools
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def confined() -> ModuleType:
    """Return the module beside this script. By its path: this folder has names of packages in it."""
    spec = importlib.util.spec_from_file_location("confined", Path(__file__).with_name("confined.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Questions:
    """The questions of one reasoning-gym task; the most recent stay in memory."""

    def __init__(self, name: str, config: dict[str, Any]) -> None:
        import reasoning_gym

        self.name = name
        self.config = config
        self.create = reasoning_gym.create_dataset
        self.item = functools.lru_cache(maxsize=256)(self._item)

    def _item(self, seed: int) -> tuple[Any, dict[str, Any]]:
        """One data set per question: item i of a longer one would be the question of seed + i."""
        dataset = self.create(self.name, seed=seed, size=1, **self.config)
        return dataset, dataset[0]

    def question(self, seed: int, facts: list[str]) -> dict[str, Any]:
        """Return text, gold answer (or None), and the named facts of a question."""
        _, item = self.item(seed)
        found = {key: item["metadata"][key] for key in facts}
        return {"text": item["question"], "answer": item["answer"], "facts": found}

    def score(self, seed: int, answer: str) -> dict[str, Any]:
        """Return what the library's scorer says of an answer. A copy, because some scorers write into the
        item.
        """
        dataset, item = self.item(seed)
        return {"value": float(dataset.score_answer(answer, copy.deepcopy(item)))}


def open_task(name: str, config: dict[str, Any]) -> tuple[Questions | None, dict[str, Any]]:
    """Return the task and the reply to the opening: an error with what is known, or who scores."""
    try:
        from reasoning_gym.dataset import ProceduralDataset
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        return None, {"error": "import", "cause": str(error)}
    names = sorted(set(DATASETS) - {"composite"})  # composite is a mixture and needs nested settings
    if name not in names:
        return None, {"error": "name", "known": names}
    dataset, settings = DATASETS[name]
    known = sorted({field.name for field in dataclasses.fields(settings)} - {"seed", "size"})
    if set(config) - set(known):
        return None, {"error": "key", "known": known}
    questions = Questions(name, config)
    try:
        questions.item(0)
    except Exception as error:
        return None, {"error": "value", "cause": f"{type(error).__name__}: {error}"}
    return questions, {"own_scorer": dataset.score_answer is not ProceduralDataset.score_answer}


def answer(questions: Questions, request: dict[str, Any]) -> dict[str, Any]:
    """Return the reply to one request."""
    if request["op"] == "score":
        return questions.score(request["seed"], request["answer"])
    return questions.question(request["seed"], request["facts"])


def main() -> None:
    """Open the task that the first request names, then answer."""
    rules = confined()
    out = rules.replies()
    opening = json.loads(sys.stdin.readline())
    questions, reply = open_task(opening["name"], opening["config"])
    print(json.dumps({**reply, "id": opening["id"]}), file=out, flush=True)
    if questions is not None:
        rules.serve(functools.partial(answer, questions), out)


if __name__ == "__main__":
    main()
