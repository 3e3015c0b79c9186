"""What agents share: means of metrics, and states in one dictionary."""

from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch

from gradhat.training.control import worlds
from gradhat.training.control.agent import Means, joined, packed, part, unpacked
from gradhat.training.control.algorithms import ALGORITHMS
from gradhat.training.control.config import ControlConfig
from gradhat.training.control.session import idle


def test_a_mean_is_over_the_updates_that_measured_it() -> None:
    """TD3 moves its actor in every second update only."""
    means = Means()
    means.add({"loss": 1.0, "q": torch.tensor(2.0)})
    means.add({"loss": 2.0})
    means.add({"loss": 6.0, "q": torch.tensor(5.0)})
    assert means.take() == {"loss": 3.0, "q": 3.5}
    assert Means().take() == {}


def test_parts_come_apart_as_they_were_joined() -> None:
    parts = {"a": {"x": torch.ones(2), "b/x": torch.zeros(1)}, "b": {"x": torch.zeros(3)}, "ab": {}}
    whole = joined(**parts)
    assert set(whole) == {"a/x", "a/b/x", "b/x"}
    for name, tensors in parts.items():
        found = part(whole, name)
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[key], tensor) for key, tensor in tensors.items())


def test_plain_values_survive_as_bytes() -> None:
    """Also the words of a generator, of 128 bits each, and floats to their last bit."""
    values = {"draws": np.random.default_rng(1).bit_generator.state, "largest": 0.1 + 0.2, "n": [1, None]}
    found = unpacked(packed(values))
    assert found == values
    generator = np.random.default_rng(2)
    generator.bit_generator.state = found["draws"]
    assert generator.random() == np.random.default_rng(1).random()


@pytest.mark.parametrize(
    ("algorithm", "env", "spoil"),
    [
        ("q_learning", "FrozenLake-v1", lambda name, tensor: tensor.reshape(32, 2)),
        ("a3c", "CartPole-v1", lambda name, tensor: tensor[..., :1] if "weights.0" in name else tensor),
    ],
)
def test_a_policy_of_other_shapes_is_never_made_to_fit(algorithm: str, env: str, spoil: Any) -> None:
    """A table of as many numbers, and a column of weights that could be repeated."""
    row = ALGORITHMS[algorithm]
    config = idle(ControlConfig(row.learning, env=env))
    with closing(worlds.make(config, 1)) as world:
        agent: Any = row.make(config, world)
    own = {"q": agent.table.q} if algorithm == "q_learning" else joined(weights=agent._weights())
    state = {name: spoil(name, tensor) for name, tensor in own.items()} | joined(
        seen=agent.seen._asdict() if algorithm == "a3c" else {}
    )
    with pytest.raises(ValueError, match="wanted"):
        agent.restore_policy(state)
