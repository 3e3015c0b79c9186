"""What may be given anew when a run goes on, and what makes it another run."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from gradhat.training.text.config import CHANGEABLE, TrainConfig
from gradhat.training.text.moved import hindrances


@pytest.fixture
def there(tmp_path: Path) -> TrainConfig:
    """The config of a run whose files are gone."""
    old = tmp_path / "old"
    return TrainConfig(
        task=f"{old}/q.jsonl:answer=a", reward=("task=2", f"{old}/r.py:fn=0.5"), model="a/model"
    )


def test_only_what_changes_no_result_may_differ() -> None:
    there = TrainConfig(task="arithmetic")
    other = {"task": "arithmetic:digits=2", "num_threads": 7, "algorithm": "grpo", "mismatch": "masked"}
    for field in fields(TrainConfig):
        value = getattr(there, field.name)
        match value:
            case _ if field.name in other:
                value = other[field.name]
            case bool():
                value = not value
            case int() | float():
                value = value + 1
            case tuple():
                value = (*value, "arithmetic")
            case _:
                value = f"{value}x"
        found = hindrances(replace(there, **{field.name: value}), there)
        assert found == ([] if field.name in (*CHANGEABLE, "model") else [field.name])


def test_files_of_another_place_are_the_same_task(there: TrainConfig, tmp_path: Path) -> None:
    new = tmp_path / "new"
    here = replace(there, task=f"{new}/p.jsonl:answer=a", reward=("task=2", f"{new}/r.py:fn=0.5"))
    assert hindrances(here, there) == []
    for task in (f"{new}/p.jsonl", f"{new}/p.jsonl:answer=b", f"{new}/p.py:answer=a", "arithmetic"):
        assert hindrances(replace(here, task=task), there) == ["task"]
    moved = here.reward[1]
    for reward in (
        (moved,),
        (moved, "task=2"),
        ("task=3", moved),
        ("task=2", moved, moved),
        ("task=2", f"{new}/r.py:fn"),
    ):
        assert hindrances(replace(here, reward=reward), there) == ["reward"]


def test_a_file_that_is_still_there_shows_whether_it_is_the_same(there: TrainConfig, tmp_path: Path) -> None:
    for place in ("old", "new"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "q.jsonl").write_text("{}")
    here = replace(there, task=f"{tmp_path}/new/q.jsonl:answer=a")
    assert hindrances(here, there) == []
    (tmp_path / "new" / "q.jsonl").write_text("{ }")
    assert hindrances(here, there) == ["task"]
