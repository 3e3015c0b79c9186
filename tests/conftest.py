"""What the tests share: a small language model, a task, a time limit."""

from collections.abc import Iterator
from pathlib import Path

import bytes_model
import jaxtyping
import pytest

LIMITS = {"learning": 7200, "slow": 1800}
"""Seconds that a test of a kind may take, where that is more than pyproject.toml gives to all."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests that train for minutes the time they need."""
    for item in items:
        limit = next((LIMITS[kind] for kind in LIMITS if item.get_closest_marker(kind)), None)
        if limit is not None and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(limit))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder: a random Llama of 2 layers, 32 wide, with a tokenizer of one token per byte."""
    folder = tmp_path_factory.mktemp("tiny_model")
    bytes_model.write(folder)
    return folder


@pytest.fixture(scope="session")
def letters_task(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A task of one's own, in a file: letters from a to m score 1, and a third of random answers have one."""
    file = tmp_path_factory.mktemp("letters") / "letters.py"
    file.write_text(
        """
import random

from gradhat.envs.text.task import Question


class Letters:
    def question(self, seed):
        return Question(f"Say {random.Random(seed).randrange(1000)}", "a")

    def score(self, question, completion):
        return float(any(letter in "abcdefghijklm" for letter in completion))
"""
    )
    return f"{file}:Letters"


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Call the maths as users do, without the checker of the shapes in the signatures."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
