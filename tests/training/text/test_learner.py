"""The learner is the page of its algorithm: which groups are silent, and that nothing is learned from a part
of one.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from gradhat.algorithms.grpo_family import FAMILY
from gradhat.algorithms.learner import Learner
from gradhat.estimators import group as estimators
from gradhat.policies.language.weights import load
from gradhat.rollouts.engine import Completion, Engine, Limits
from gradhat.training.loop import train
from gradhat.training.optim import MasterAdamW
from gradhat.training.run_folder import RunFolder
from gradhat.training.text.config import REINFORCE, TrainConfig, to_json
from gradhat.training.text.learner import make_learner
from gradhat.training.text.session import prepare

README = Path(__file__).parents[3] / "README.md"


@pytest.fixture(scope="module")
def learners(tiny_model: Path) -> dict[str, Learner]:
    network = load(tiny_model)
    optimizer = MasterAdamW(network, lr=0.1)
    configs = {name: TrainConfig(algorithm=name) for name in (REINFORCE, *FAMILY)}
    return {name: make_learner(config, network, optimizer, tiny_model) for name, config in configs.items()}


@given(
    name=st.sampled_from(sorted(FAMILY)),
    rewards=st.lists(
        st.lists(st.sampled_from([-1.0, 0.0, 0.1, 0.25, 0.3, 0.5, 0.75, 1.0]), min_size=3, max_size=3),
        min_size=1,
        max_size=6,
    ),
    order=st.randoms(use_true_random=False),
)
def test_silent_is_a_property_of_the_whole_group(
    learners: dict[str, Learner], name: str, rewards: list[list[float]], order: random.Random
) -> None:
    """A member whose reward is that of the others on average has no advantage, and is not silent for that."""
    learner = learners[name]
    rows = [(r, g) for g, group in enumerate(rewards) for r in group]
    order.shuffle(rows)
    returns, group = (torch.tensor(column) for column in zip(*rows, strict=True))
    assert torch.equal(learner.silent(returns, group), estimators.silent(returns, group))
    assert learner.silent(returns, group).tolist() == [len(set(rewards[g])) == 1 for _, g in rows]


def test_reinforce_learns_from_every_group(learners: dict[str, Learner]) -> None:
    silent = learners[REINFORCE].silent(torch.ones(4), torch.tensor([0, 0, 1, 1]))
    assert silent.tolist() == [False] * 4


def readme_task(folder: Path) -> str:
    """Return the task of the README's page, from the page."""
    (code,) = re.findall(r"```python\n(# my_task\.py\n.*?)```", README.read_text(), re.DOTALL)
    (folder / "my_task.py").write_text(code)
    return f"{folder / 'my_task.py'}:MyTask"


def spelled(
    engine: Engine, prompts: Sequence[Sequence[int]], n: int, limits: Limits
) -> list[list[Completion]]:
    """Answer README's task as a model that half knows it: each capital is right with a chance of a half."""
    draw = random.Random(limits.seed)

    def answer(prompt: Sequence[int]) -> Completion:
        (word,) = re.findall(r"the letters ([a-h]{4}) in capitals", engine.chat.decode(list(prompt)))
        text = "".join(letter.upper() if draw.random() < 0.5 else "-" for letter in word)
        tokens = tuple(engine.chat.tokenizer.encode(text, add_special_tokens=False).ids)
        return Completion(tokens, (-5.5,) * len(tokens), "length", text)

    return [[answer(prompt) for _ in range(n)] for prompt in prompts]


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_partial_credit_is_learned_from_in_whole_groups(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    """README's own task pays in quarters: of (0, ½, ½, 1) only the extremes have an advantage."""
    monkeypatch.setattr(Engine, "sample", spelled)
    mine = replace(
        config,
        task=readme_task(tmp_path),
        algorithm=algorithm,
        num_steps=40,
        num_prompts=4,
        max_replacements=6,
        eval_every=100,
        final_questions=1,
        checkpoint_every=100,
    )
    session = prepare(mine)
    with RunFolder.create(tmp_path / "run", to_json(mine)) as run:
        assert train(run, session) == 0
    middle = 0
    for step in range(1, 41):
        table = parquet.read_table(tmp_path / f"run/rollouts/step_{step:06d}.parquet").to_pylist()
        assert [row["group"] for row in table] == [i // 4 for i in range(len(table))]
        groups = [table[i : i + 4] for i in range(0, len(table), 4)]
        learned = [[row["adv"] is not None for row in group] for group in groups]
        assert all(len(set(members)) == 1 for members in learned), step
        assert sum(map(sum, learned)) == 16
        rewards = [[row["reward"] for row in group] for group in groups]
        middle += sum(r - sum(group) / 4 == 0 for group in rewards if len(set(group)) > 1 for r in group)
    assert middle > 20  # members at the mean of their group, which were cut out
