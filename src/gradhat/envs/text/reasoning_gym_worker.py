"""The other side of the pipe: generates and scores reasoning-gym questions in a process that can do little
else.

Run as a script, never imported by the package; it needs nothing of gradhat. Some of the library's scorers run
the answer as Python code. Answers that are not provably data never arrive here; should one, the process has
no environment, may not write, start programs, or open sockets, and its time and memory are limited.
"""

import copy
import dataclasses
import functools
import json
import os
import resource
import sys
from typing import Any

MEMORY_BYTES = 2 << 30

# Everything of `os` and its like that has an audit event is refused, but for what imports need.
_REFUSED = (
    "os.",
    "subprocess.",
    "socket.",
    "shutil.",
    "ctypes.",
    "pty.",
    "signal.",
    "fcntl.",
    "tempfile.",
    "mmap.",
)
_ALLOWED = frozenset({"os.listdir", "os.scandir", "os.walk"})
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def refuse(event: str, details: tuple[Any, ...]) -> None:
    """The audit hook: raise PermissionError for what changes anything outside this process."""
    writes = event == "open" and isinstance(details[2], int) and details[2] & _WRITING
    if writes or (event.startswith(_REFUSED) and event not in _ALLOWED):
        raise PermissionError(f"{event} is refused here")


def confine() -> None:
    """Give up what scoring does not need. There is no way back: hard limits and audit hooks stay."""
    for limit, value in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        try:
            resource.setrlimit(limit, (value, value))
        except (ValueError, OSError):
            continue  # macOS knows no RLIMIT_AS; the audit hook and the time limit remain
    sys.addaudithook(refuse)


def limit_time(seconds: float) -> None:
    """Let the kernel end this process when it computes for more than `seconds`, rounded up, from now."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(usage.ru_utime + usage.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


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
    """Return the reply to one request; an exception becomes its text.

    A package or a file that is missing, or may not be touched, is a scorer that is broken, whatever it was
    given. Any other exception may be the fault of the text.
    """
    limit_time(request["seconds"])
    try:
        if request["op"] == "score":
            return questions.score(request["seed"], request["answer"])
        return questions.question(request["seed"], request["facts"])
    except (ImportError, OSError) as error:
        return {"broken": f"{type(error).__name__}: {error}"[:200]}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:200]}


def main() -> None:
    """Read requests from standard input until it ends. What scorers print goes nowhere."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    opening = json.loads(sys.stdin.readline())
    questions, reply = open_task(opening["name"], opening["config"])
    print(json.dumps({**reply, "id": opening["id"]}), file=replies, flush=True)
    if questions is None:
        return
    confine()
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps({**answer(questions, request), "id": request["id"]}), file=replies, flush=True)


if __name__ == "__main__":
    main()
