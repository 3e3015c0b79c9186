"""docs/control.md names every algorithm and every metric of a control run, and no others."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gradhat.recipes.tuned import control
from gradhat.training.control.algorithms import ALGORITHMS
from gradhat.training.control.config import to_json
from gradhat.training.control.session import prepare
from gradhat.training.loop import train
from gradhat.training.run_folder import RunFolder

PAGE = Path(__file__).parents[3] / "docs/control.md"
ENVS = {"discrete": "CartPole-v1", "continuous": "Pendulum-v1", "both": "CartPole-v1"}
TABLES = ("monte_carlo", "sarsa", "expected_sarsa", "q_learning")


def on_the_page() -> set[str]:
    table = PAGE.read_text().partition("| key | what it is |")[2].partition("\n\n")[0]
    cells = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    return {key for cell in cells for key in re.findall(r"`([a-z_/]+)`", cell)}


def keys_of(name: str, path: Path, env: str = "") -> Iterator[str]:
    env = env or ("zoo:chain" if name in TABLES else ENVS[ALGORITHMS[name].serves])
    tuned = control(name, env)
    learning = tuned.learning
    if hasattr(learning, "memory"):
        learning = replace(learning, memory=replace(learning.memory, first_frames=100, num_updates=1))
    config = replace(
        tuned,
        learning=learning,
        num_envs=min(4, tuned.num_envs),
        num_frames=400,
        log_every=200,
        eval_every=200,
        eval_episodes=4,
        eval_max_steps=20,
        checkpoint_every=200,
    )
    session = prepare(config)
    try:
        with RunFolder.create(path, to_json(config)) as run:
            assert train(run, session) == 0
    finally:
        session.close()
    for line in (path / "metrics.jsonl").read_text().splitlines():
        yield from json.loads(line)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    folder = tmp_path_factory.mktemp("runs")
    hidden = set(keys_of("a2c", folder / "hidden", "zoo:corridor"))
    return hidden | {key for name in ALGORITHMS for key in keys_of(name, folder / name)}


def test_every_key_of_a_control_run_is_on_the_page(written: set[str]) -> None:
    assert not written - on_the_page()


def test_every_key_on_the_page_is_written_by_a_control_run(written: set[str]) -> None:
    # REINFORCE is tuned with a critic; its moving average is the other baseline. No run here lost a line.
    assert on_the_page() - written - {"baseline", "final"} == set()


def test_every_algorithm_has_a_line_and_a_page() -> None:
    lines = re.findall(r"^\| `([a-z0-9_]+)` \| (\w+).* \| \[.*\]\((.*)\) \|$", PAGE.read_text(), re.MULTILINE)
    assert [name for name, _, _ in lines] == list(ALGORITHMS)
    assert all(ALGORITHMS[name].serves == actions for name, actions, _ in lines)
    assert all((PAGE.parent / link).exists() for _, _, link in lines)
