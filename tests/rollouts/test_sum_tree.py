"""The tree against a plain running sum. Whole weights make every sum exact, so that borders can be tested."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradhat.rollouts.sum_tree import FANOUT, TOP, SumTree, bytes_needed

DEPTHS = [1, 5, FANOUT, TOP, TOP + 1, 5000, TOP * FANOUT + 1, 70_000]
"""Trees of one, two and three levels, with and without padding."""


def random_weights(random: np.random.Generator, capacity: int, zeros: float) -> np.ndarray:
    weights = random.integers(1, 1000, capacity).astype(np.float64)
    weights[random.random(capacity) < zeros] = 0
    weights[random.integers(capacity)] = 7
    return weights


@given(st.sampled_from(DEPTHS), st.sampled_from([0.0, 0.5, 0.999]), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_the_tree_finds_what_the_running_sum_finds(capacity: int, zeros: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    weights = random_weights(random, capacity, zeros)
    tree = SumTree(capacity)
    tree.fill(weights)
    running = weights.cumsum()
    borders = running[random.integers(capacity, size=50)]
    targets = np.concatenate([[0.0], borders, borders - 0.5, random.random(200) * running[-1]])
    targets = targets[(targets >= 0) & (targets < running[-1])]
    assert tree.total == running[-1]
    assert (tree.find(targets) == running.searchsorted(targets, side="right")).all()


@given(st.sampled_from(DEPTHS), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_weights_set_in_pieces_are_the_tree_filled_at_once_to_the_bit(capacity: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    pieces, weights = SumTree(capacity), np.zeros(capacity)
    for size in (1, 3, 200):
        index = random.integers(capacity, size=size)
        values = random.random(size) * 10.0 ** random.integers(-8, 8, size)
        pieces.set(index, values)
        for i, value in zip(index, values, strict=True):
            weights[i] = value
    whole = SumTree(capacity)
    whole.fill(weights)
    targets = random.random(100) * whole.total
    assert (pieces.weights == weights).all()
    assert pieces.total == whole.total
    assert pieces.total == pytest.approx(weights.sum(), rel=1e-12)
    assert (pieces.find(targets) == whole.find(targets)).all()


def test_one_number_can_be_set_in_many_places() -> None:
    tree = SumTree(10)
    tree.set(np.array([1, 8]), 2.5)
    assert tree.weights.tolist() == [0, 2.5, 0, 0, 0, 0, 0, 0, 2.5, 0]
    assert tree.total == 5.0


@pytest.mark.parametrize("capacity", DEPTHS)
@pytest.mark.parametrize("size", [1e-300, 1e-9, 1.0, 1e200])
def test_a_weight_of_zero_is_never_found_however_the_sums_round(capacity: int, size: float) -> None:
    random = np.random.default_rng(capacity)
    weights = random.random(capacity) * size
    weights[random.random(capacity) < 0.7] = 0
    weights[capacity // 2] = 0.1 * size
    weights[capacity // 2 + 1 :] = 0
    tree = SumTree(capacity)
    tree.fill(weights)
    running = weights.cumsum()
    above = np.nextafter(tree.total, np.inf)
    targets = np.concatenate(
        [[0.0, tree.total, above, np.nextafter(tree.total, 0)], running, running * 0.999]
    )
    found = tree.find(targets)
    assert (weights[found] > 0).all()
    assert (found[1:4] == np.flatnonzero(weights)[-1]).all()


@pytest.mark.parametrize("capacity", DEPTHS)
def test_the_bytes_are_those_that_are_allocated(capacity: int) -> None:
    tracemalloc.start()
    tree = SumTree(capacity)
    allocated, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert tree.total == 0
    assert abs(allocated - bytes_needed(capacity)) < 4000
