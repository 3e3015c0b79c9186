"""The nouns: selecting rows moves every field of a trajectory together."""

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from gradhat.trajectories import Record, Trajectories, Verdict


def numbered() -> Trajectories:
    """Four trajectories of three steps; every entry of row i is made from i, differently in every field."""
    row = torch.arange(4.0)[:, None].expand(4, 3)
    return Trajectories(
        observations=[(i, i + 10) for i in range(4)],
        actions=row.long() + 20,
        mask=row % 2 == 0,
        logp=row + 30,
        rewards=row + 40,
        terminated=row == 1,
        truncated=row == 3,
        group=torch.arange(4) + 50,
        version=torch.arange(4) + 60,
        records=tuple(Record(f"q{i}", f"a{i}", Verdict(i, {}, ""), "end") for i in range(4)),
        adv=row + 70,
        logp_old=row + 110,
        logp_ref=row + 80,
        next_observations=row[..., None] + 90,
        targets=row + 100,
    )


@pytest.mark.parametrize("rows", [[2, 0, 2], [3], [], [0, 1, 2, 3]])
@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_select_takes_the_same_rows_of_every_field(rows: list[int], kind: type) -> None:
    whole = numbered()
    part = whole.select(torch.tensor(rows, dtype=torch.long) if kind is torch.tensor else rows)
    assert len(part) == len(rows)
    for field in fields(Trajectories):
        before, after = getattr(whole, field.name), getattr(part, field.name)
        if isinstance(before, Tensor):
            assert after.dtype == before.dtype
            assert torch.equal(after, torch.stack([before[i] for i in rows]) if rows else before[:0]), (
                field.name
            )
        else:
            assert list(after) == [before[i] for i in rows], field.name


def test_what_is_not_attached_stays_so() -> None:
    names = ("adv", "logp_old", "logp_ref", "next_observations", "targets")
    bare = replace(numbered(), records=(), **dict.fromkeys(names)).select([1, 2])
    assert bare.records == () and all(getattr(bare, name) is None for name in names)


def test_select_copies() -> None:
    whole = numbered()
    whole.select([0, 1, 2, 3]).rewards.zero_()
    assert torch.equal(whole.rewards, numbered().rewards)


def test_returns_sum_the_policys_own_steps() -> None:
    whole = numbered()
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0]], dtype=torch.bool)
    rewards = torch.tensor([[1.0, 2.0, 100.0], [-0.5, 100.0, 100.0], [100.0, 3.0, 0.25], [100.0] * 3])
    assert replace(whole, mask=mask, rewards=rewards).returns().tolist() == [3.0, -0.5, 3.25, 0.0]


def in_a_gymnasium_world() -> Trajectories:
    """Two rows of three steps with observations [2, 3, 2]; the second step of the first row is a dummy."""
    seen = torch.arange(12.0).reshape(2, 3, 2)
    per_step = torch.arange(6.0).reshape(2, 3)
    return Trajectories(
        observations=seen,
        actions=per_step.long() + 20,
        mask=torch.tensor([[1, 0, 1], [1, 1, 1]]).bool(),
        logp=per_step + 30,
        rewards=per_step + 40,
        terminated=per_step == 0,
        truncated=per_step == 5,
        group=torch.tensor([50, 51]),
        version=torch.tensor([60, 61]),
        adv=per_step + 70,
        logp_old=per_step + 110,
        next_observations=seen + 2,
    )


def test_a_slice_shares_the_memory() -> None:
    whole = in_a_gymnasium_world()
    part = whole.select(slice(1, 2))
    assert len(part) == 1 and part.group.tolist() == [51]
    part.rewards.zero_()
    assert whole.rewards[1].tolist() == [0, 0, 0] and whole.rewards[0].tolist() == [40, 41, 42]


def test_steps_are_the_own_steps_in_order_with_everything_that_belongs_to_them() -> None:
    steps = in_a_gymnasium_world().steps()
    assert steps.actions.tolist() == [[20], [22], [23], [24], [25]]
    assert steps.observations.tolist() == [[[0, 1]], [[4, 5]], [[6, 7]], [[8, 9]], [[10, 11]]]  # pyright: ignore
    assert steps.next_observations is not None and steps.adv is not None and steps.logp_old is not None
    assert steps.next_observations[:, 0, 0].tolist() == [2, 6, 8, 10, 12]
    assert steps.adv[:, 0].tolist() == [70, 72, 73, 74, 75]
    assert steps.logp_old[:, 0].tolist() == [110, 112, 113, 114, 115]
    assert steps.terminated[:, 0].tolist() == [True, False, False, False, False]
    assert steps.truncated[:, 0].tolist() == [False, False, False, False, True]
    assert steps.group.tolist() == [50, 50, 51, 51, 51] and steps.version.tolist() == [60, 60, 61, 61, 61]
    assert steps.mask.all() and steps.logp_ref is None and steps.targets is None


def test_steps_of_a_tabular_world_keep_their_numbers() -> None:
    whole = replace(in_a_gymnasium_world(), observations=[(7, 8, 9), (1, 2, 3)], next_observations=None)
    assert list(whole.steps().numbers()) == [(7,), (9,), (1,), (2,), (3,)]


def test_a_tensor_of_observations_is_not_a_list_of_numbers() -> None:
    with pytest.raises(ValueError, match=r"tensor \(2, 3, 2\)"):
        in_a_gymnasium_world().numbers()
