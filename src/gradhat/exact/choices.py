"""Every way to choose a batch from a list of items, and how likely it is.

Letters: `n` items, `M` choices of `G` items, with replacement.
"""

import itertools
import math
from collections.abc import Callable
from decimal import Decimal
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Listing(NamedTuple):
    """A way to choose G of n items with replacement."""

    number: Callable[[int, int], int]
    """(n, G) → how many choices."""
    choices: Callable[[int, int], tuple[Tensor, Tensor]]
    """(n, G) → every choice `[M, G]`, and in how many orders it can come `[M]`."""


def _multisets(n: int, size: int) -> tuple[Tensor, Tensor]:
    flat = itertools.chain.from_iterable(itertools.combinations_with_replacement(range(n), size))
    rows = torch.from_numpy(np.fromiter(flat, dtype=np.int64)).reshape(-1, size)
    run, orders = torch.ones(len(rows), dtype=torch.float64), torch.ones(len(rows), dtype=torch.float64)
    for i in range(1, size):
        run = torch.where(rows[:, i] == rows[:, i - 1], run + 1, 1)
        orders = orders * (i + 1) / run
    return rows, orders


def _tuples(n: int, size: int) -> tuple[Tensor, Tensor]:
    rows = torch.cartesian_prod(*[torch.arange(n)] * size).reshape(-1, size)
    return rows, torch.ones(len(rows), dtype=torch.float64)


def _num_multisets(n: int, size: int) -> int:
    return math.comb(n + size - 1, size)


def _num_tuples(n: int, size: int) -> int:
    return n**size


MULTISETS = Listing(_num_multisets, _multisets)
"""Order does not count."""
TUPLES = Listing(_num_tuples, _tuples)
"""Order counts."""


def groups(
    chance: Tensor, start: Tensor, *, num_groups: int, group_size: int, limit: int, listing: Listing
) -> tuple[Tensor, Tensor]:
    """Return every batch of `num_groups` groups `[M, num_groups · group_size]` and its probability `[M]`.

    The items have the chances `chance` `[n]` and begin at `start` `[n]`. The items of a group share a start,
    itself drawn; groups are independent. ValueError if there are more than `limit` batches.
    """
    check_sizes(num_groups=num_groups, group_size=group_size)
    if (total := num_batches(start, num_groups, group_size, listing)) > limit:
        raise ValueError(
            f"enumerate all batches of {num_groups} x {group_size} out of {len(start)}: found "
            f"{written(total)}; the limit is {limit}. Use smaller batches, a smaller world, or sample."
        )
    rows: list[Tensor] = []
    probabilities: list[Tensor] = []
    for items in ((start == s).nonzero()[:, 0] for s in start.unique()):
        of_pool = chance[items].sum()
        places, probability = _drawn(chance[items] / of_pool, group_size, listing)
        rows.append(items[places])
        probabilities.append(of_pool * probability)
    members, of_group = torch.cat(rows), torch.cat(probabilities)
    chosen, probability = _drawn(of_group, num_groups, listing)
    return members[chosen].flatten(1), probability


def num_batches(start: Tensor, num_groups: int, group_size: int, listing: Listing) -> int:
    """Return how many batches `groups` would list."""
    _, per_start = start.unique(return_counts=True)
    inner = sum(listing.number(int(n), group_size) for n in per_start)
    return listing.number(inner, num_groups)


def check_sizes(**sizes: int) -> None:
    """ValueError that names the first size below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size}: a batch is made of at least 1. Use 1 or more.")


def written(number: int | float) -> str:
    """Return a count for people, exact below ten millions. An integer may be too large for a float."""
    return f"{Decimal(number):.7g}"


def _drawn(chance: Tensor, size: int, listing: Listing) -> tuple[Tensor, Tensor]:
    places, orders = listing.choices(len(chance), size)
    return places, orders * chance[places].prod(1)
