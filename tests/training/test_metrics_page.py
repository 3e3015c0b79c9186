"""`docs/metrics.md` explains the keys of real runs, all of them and no others."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from gradhat.training.loop import train
from gradhat.training.run_folder import RunFolder
from gradhat.training.text.config import TrainConfig, to_json
from gradhat.training.text.session import prepare

PAGE = Path(__file__).parents[2] / "docs/metrics.md"


def explained() -> set[str]:
    """Return the keys of the page's first columns. `/max` after a key stands for its neighbour's folder."""
    keys: set[str] = set()
    for row in re.findall(r"^\| (`.*?) \|", PAGE.read_text(), re.MULTILINE):
        folder = ""
        for key in re.findall(r"`([^`]+)`", row):
            folder = folder if key.startswith("/") else key.rpartition("/")[0]
            keys.add(folder + key if key.startswith("/") else key)
    return keys


@pytest.fixture(scope="module")
def seen(config: TrainConfig, letters_task: str, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Return the keys of runs that between them have a reference, a curriculum and a moving average."""
    short = replace(config, num_steps=2, eval_every=1)
    with_reference = replace(
        short, algorithm="grpo", kl_coef=0.1, mismatch="masked", curriculum=(letters_task,)
    )
    keys: set[str] = set()
    for i, made in enumerate((with_reference, replace(short, algorithm="reinforce", num_prompts=4))):
        path = tmp_path_factory.mktemp("metrics") / str(i)
        session = prepare(made)
        with RunFolder.create(path, to_json(made)) as run:
            assert train(run, session) == 0
        keys |= {
            key for line in (path / "metrics.jsonl").read_text().splitlines() for key in json.loads(line)
        }
    return {re.sub(r"^rewards/\w+/mean$", "rewards/NAME/mean", key) for key in keys}


def test_every_key_of_a_run_is_explained(seen: set[str]) -> None:
    assert not seen - explained()


def test_every_key_on_the_page_is_written_by_a_run(seen: set[str]) -> None:
    """But for names of numbers that are not finite, and parts of verdicts: these runs have neither."""
    assert explained() - seen == {"non_finite", "rewards/NAME/mean"}
