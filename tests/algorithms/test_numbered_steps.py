"""What a table can learn from is checked at the door; what it cannot use yet waits."""

from dataclasses import replace

import pytest
import torch

from gradhat.algorithms.numbered_steps import Steps, steps_of
from gradhat.trajectories import Trajectories


def lived() -> Trajectories:
    """Two lanes, three steps; the second step of the first lane is a dummy full of nonsense."""
    mask = torch.tensor([[True, False, True], [True, True, True]])
    return Trajectories(
        observations=torch.tensor([[0, 99, 1], [2, 1, 0]]),
        actions=torch.tensor([[1, -7, 0], [0, 1, 1]]),
        mask=mask,
        logp=torch.zeros(2, 3),
        rewards=torch.tensor([[1.0, torch.nan, 2.0], [3.0, 4.0, 5.0]]),
        terminated=torch.tensor([[True, False, False], [False, False, False]]),
        truncated=torch.tensor([[False, False, False], [False, True, False]]),
        group=torch.zeros(2).long(),
        version=torch.zeros(2).long(),
        next_observations=torch.tensor([[1, -1, 2], [1, 0, 2]]),
    )


def test_nothing_of_a_masked_step_is_read() -> None:
    steps = steps_of(lived(), 3, 2)
    assert [part[0, 1].item() for part in steps] == [0, 0, 0.0, 0, False, False, False]
    assert steps.rewards.dtype is torch.float64
    assert steps.ended.tolist() == [[True, False, False], [False, True, False]]
    assert steps.terminated.tolist() == [[True, False, False], [False, False, False]]


def test_what_is_not_ready_waits_from_its_first_step_on() -> None:
    steps = steps_of(lived(), 3, 2)
    ready = torch.tensor([[True, False, False], [True, True, False]])
    waiting = steps.waiting(ready)
    assert waiting is not None
    assert waiting.mask.tolist() == [[True], [True]] and waiting.rewards.tolist() == [[2.0], [5.0]]
    joined = steps.after(waiting)
    assert joined.rewards.tolist() == [[2.0, 1.0, 0.0, 2.0], [5.0, 3.0, 4.0, 5.0]]
    later = steps.waiting(torch.tensor([[True, False, True], [True, False, True]]))
    assert later is not None
    assert later.mask.tolist() == [[False, False], [True, False]]
    assert later.rewards.tolist() == [[0.0, 0.0], [4.0, 0.0]]
    assert later.ended.tolist() == [[False, False], [True, False]]


def test_a_dummy_step_never_waits() -> None:
    steps = steps_of(lived(), 3, 2)
    assert steps.waiting(steps.mask) is None
    assert steps.after(None) is steps


def test_other_lanes_cannot_go_on_with_what_waits() -> None:
    steps = steps_of(lived(), 3, 2)
    one = Steps(*(part[:1] for part in steps))
    with pytest.raises(ValueError, match=r"a chunk of 1 rows: found steps of 2 rows that wait.*same lanes"):
        one.after(steps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"observations": torch.zeros(2, 3, 4)},
            r"observations.*float32 \(2, 3, 4\).*int64 \(2, 3\).*argmax",
        ),
        ({"observations": [(0, 1, 2)] * 2}, r"observations.*list.*int64 \(2, 3\)"),
        ({"next_observations": None}, r"next_observations.*NoneType.*int64 \(2, 3\)"),
        ({"next_observations": torch.zeros(2, 3)}, r"next_observations.*float32 \(2, 3\)"),
        ({"next_observations": torch.full((2, 3), 3)}, r"next_observations from 3 to 3.*\(3, 2\)"),
        ({"observations": torch.full((2, 3), -1)}, r"observations from -1 to -1.*\(3, 2\)"),
        ({"actions": torch.full((2, 3), 2)}, r"actions from 2 to 2.*\(3, 2\)"),
        ({"truncated": torch.ones(2, 3).bool()}, r"an end on the masked step 1 of row 0.*own step"),
    ],
)
def test_what_a_table_cannot_learn_from_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        steps_of(replace(lived(), **change), 3, 2)
