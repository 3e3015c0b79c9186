"""Choices with replacement against itertools, and the probability of a batch against a plain product."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradhat.exact.choices import MULTISETS, TUPLES, Listing, check_sizes, groups, written

F64 = torch.float64


@pytest.mark.parametrize(("n", "size"), [(1, 1), (1, 4), (4, 1), (3, 3), (2, 5), (5, 4)])
def test_every_choice_once_with_its_number_of_orders(n: int, size: int) -> None:
    ordered = list(itertools.product(range(n), repeat=size))
    rows, orders = TUPLES.choices(n, size)
    assert rows.tolist() == [list(choice) for choice in ordered]
    assert orders.tolist() == [1.0] * TUPLES.number(n, size) == [1.0] * len(ordered)
    counts: dict[tuple[int, ...], int] = {}
    for choice in ordered:
        counts[tuple(sorted(choice))] = counts.get(tuple(sorted(choice)), 0) + 1
    rows, orders = MULTISETS.choices(n, size)
    assert dict(zip(map(tuple, rows.tolist()), orders.tolist(), strict=True)) == counts
    assert len(rows) == MULTISETS.number(n, size) == len(counts)


def test_the_number_of_orders_of_a_large_multiset_is_exact() -> None:
    # 12! / (5! 4! 3!) in one of the 91 multisets of 12 out of 3; together they are 3^12 tuples.
    rows, orders = MULTISETS.choices(3, 12)
    place = rows.tolist().index([0] * 5 + [1] * 4 + [2] * 3)
    assert orders[place] == 27720
    assert orders.sum() == 3**12


@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    num_groups=st.integers(1, 2),
    group_size=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_a_batch_is_as_likely_as_the_product_says(
    sizes: list[int], num_groups: int, group_size: int, seed: int
) -> None:
    start = torch.tensor([s for s, size in enumerate(sizes) for _ in range(size)])
    start = start[torch.randperm(len(start), generator=torch.Generator().manual_seed(seed))]
    chance = torch.rand(len(start), generator=torch.Generator().manual_seed(seed), dtype=F64) + 0.1
    chance = chance / chance.sum()
    starts, chances = start.tolist(), chance.tolist()
    expected: dict[tuple[int, ...], float] = {}
    for batch in itertools.product(range(len(start)), repeat=num_groups * group_size):
        probability = 1.0
        for k in range(num_groups):
            members = batch[k * group_size : (k + 1) * group_size]
            first = starts[members[0]]
            of_start = sum(c for c, s in zip(chances, starts, strict=True) if s == first)
            probability *= of_start
            for i in members:
                probability *= chances[i] / of_start if starts[i] == first else 0.0
        if probability > 0:
            expected[batch] = probability
    for listing in (TUPLES, MULTISETS):
        rows, probability = groups(
            chance, start, num_groups=num_groups, group_size=group_size, limit=10**4, listing=listing
        )
        found = dict(zip(map(tuple, rows.tolist()), probability.tolist(), strict=True))
        assert len(found) == len(rows)
        if listing is MULTISETS:
            expected = merged(expected, group_size)
            found = merged(found, group_size)
            assert len(found) == len(rows)
        assert found == pytest.approx(expected, abs=1e-14)


def merged(batches: dict[tuple[int, ...], float], group_size: int) -> dict[tuple[int, ...], float]:
    """Add up the batches that differ only in the order of groups, or of members in a group."""
    total: dict[tuple[int, ...], float] = {}
    for batch, probability in batches.items():
        split = [batch[i : i + group_size] for i in range(0, len(batch), group_size)]
        key = tuple(i for members in sorted(tuple(sorted(members)) for members in split) for i in members)
        total[key] = total.get(key, 0.0) + probability
    return total


@pytest.mark.parametrize(
    ("listing", "total"), [(MULTISETS, math.comb(math.comb(6, 3) + 1, 2)), (TUPLES, 4**6)]
)
def test_the_limit_counts_batches(listing: Listing, total: int) -> None:
    chance, start = torch.full((4,), 0.25, dtype=F64), torch.zeros(4, dtype=torch.long)
    rows, probability = groups(chance, start, num_groups=2, group_size=3, limit=total, listing=listing)
    assert len(rows) == total
    assert float(probability.sum()) == pytest.approx(1, abs=1e-14)
    with pytest.raises(ValueError, match=rf"2 x 3 out of 4: found {total}; the limit is {total - 1}\."):
        groups(chance, start, num_groups=2, group_size=3, limit=total - 1, listing=listing)


def test_a_number_beyond_floats_is_written() -> None:
    chance, start = torch.full((1000,), 1e-3, dtype=F64), torch.zeros(1000, dtype=torch.long)
    with pytest.raises(ValueError, match=r"found 1\.000000e\+600; the limit is 5"):
        groups(chance, start, num_groups=1, group_size=200, limit=5, listing=TUPLES)
    assert (written(5461), written(200_001.0), written(12_345_678)) == ("5461", "200001", "1.234568e+7")


def test_sizes_start_at_one() -> None:
    check_sizes(num_groups=1, group_size=1)
    with pytest.raises(ValueError, match="group_size=0: a batch"):
        check_sizes(num_groups=1, group_size=0)
    chance, start = torch.ones(1, dtype=F64), torch.zeros(1, dtype=torch.long)
    with pytest.raises(ValueError, match="num_groups=0"):
        groups(chance, start, num_groups=0, group_size=2, limit=5, listing=TUPLES)
