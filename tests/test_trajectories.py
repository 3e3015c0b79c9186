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
        logp_ref=row + 80,
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
    bare = replace(numbered(), records=(), adv=None, logp_ref=None).select([1, 2])
    assert (bare.records, bare.adv, bare.logp_ref) == ((), None, None)


def test_select_copies() -> None:
    whole = numbered()
    whole.select([0, 1, 2, 3]).rewards.zero_()
    assert torch.equal(whole.rewards, numbered().rewards)


def test_returns_sum_the_policys_own_steps() -> None:
    whole = numbered()
    mask = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 0, 0]], dtype=torch.bool)
    rewards = torch.tensor([[1.0, 2.0, 100.0], [-0.5, 100.0, 100.0], [100.0, 3.0, 0.25], [100.0] * 3])
    assert replace(whole, mask=mask, rewards=rewards).returns().tolist() == [3.0, -0.5, 3.25, 0.0]
