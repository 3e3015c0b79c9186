"""Baselines: by hand, and in expectation over every batch of a bandit and every text of two actions."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gradhat.estimators import baseline, returns

F64 = torch.float64


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


MASK = torch.tensor([[True, False, True]])


def test_values_by_hand() -> None:
    nan = torch.tensor([[1.0, math.nan, 3.0]], dtype=F64, requires_grad=True)
    for mask in (MASK, MASK.long(), MASK.to(F64)):
        assert baseline.constant(nan, mask, value=-2.5).tolist() == [[-2.5, 0.0, -2.5]]
        found = baseline.value_function(nan, mask)
        assert found.tolist() == [[1.0, 0.0, 3.0]]
        assert found.dtype is F64 and not found.requires_grad
    returned = torch.tensor([1.0, 2.0, 6.0], dtype=F64)
    assert baseline.moving_average(8.0, returned, decay=0.75) == 6.75
    assert baseline.moving_average(8.0, returned, decay=1.0) == 8.0
    assert baseline.moving_average(8.0, returned, decay=0.0) == 3.0


# --- in expectation: a bandit, every batch of two ----------------------------------------------------------

LOGITS = torch.tensor([0.3, -0.4, 0.9], dtype=F64)
ARMS = torch.tensor([1.0, 0.0, 0.35], dtype=F64)
POLICY = LOGITS.softmax(0)
EXACT = POLICY * (ARMS - POLICY @ ARMS)
"""∂J/∂logit_a = π_a (r_a - J)."""


def expected(of: Callable[[Tensor], Tensor | float], size: int = 2) -> Tensor:
    """E ĝ over all batches, the baseline a function of the batch's returns."""
    total = torch.zeros(3, dtype=F64)
    for arms in itertools.product(range(3), repeat=size):
        drawn = ARMS[list(arms)]
        score = torch.nn.functional.one_hot(torch.tensor(arms), 3) - POLICY
        total += POLICY[list(arms)].prod() * ((drawn - of(drawn)) @ score) / size
    return total


@pytest.mark.parametrize("number", [0.0, 0.4, -17.0])
def test_a_constant_is_unbiased(number: float) -> None:
    whole = torch.ones(2, 1, dtype=torch.bool)
    close(expected(lambda drawn: baseline.constant(drawn[:, None], whole, value=number)[:, 0]), EXACT)


def test_the_average_before_the_batch_is_unbiased_and_the_one_after_it_is_not() -> None:
    before = baseline.moving_average(0.2, torch.tensor([1.0, 0.5], dtype=F64), decay=0.6)
    close(expected(lambda drawn: before), EXACT)
    # Its own return has a share of 0.4 / 3 in the average after it.
    after = expected(lambda drawn: baseline.moving_average(before, drawn, decay=0.6), size=3)
    close(after, EXACT * (1 - 0.4 / 3))


# --- in expectation: two actions, every text ---------------------------------------------------------------

TABLE = torch.tensor([[0.3, -0.2, 0.5], [1.0, -1.0, 0.2], [0.1, 0.4, -0.6], [-0.3, 0.9, 0.0]], dtype=F64)
PAIRS = torch.tensor([(a, b) for a in range(3) for b in range(3)])
REWARDS = torch.tensor([(0.5 * a, a - 0.8 * b + 0.3 * a * b) for a, b in PAIRS.tolist()], dtype=F64)
BOTH = torch.ones(9, 2, dtype=torch.bool)
TO_GO = returns.to_go(REWARDS, torch.tensor([False, True]).expand(9, 2), BOTH, gamma=1.0)


def estimates(credit: Tensor) -> tuple[Tensor, Tensor]:
    """P(τ) `[9]` and ĝ `[9, 12]` of every text."""
    scores = torch.zeros(9, 2, 4, 3, dtype=F64)
    policy = TABLE.softmax(-1)
    for i, (a, b) in enumerate(PAIRS.tolist()):
        scores[i, 0, 0] = torch.nn.functional.one_hot(torch.tensor(a), 3) - policy[0]
        scores[i, 1, 1 + a] = torch.nn.functional.one_hot(torch.tensor(b), 3) - policy[1 + a]
    chance = policy[0, PAIRS[:, 0]] * policy[1 + PAIRS[:, 0], PAIRS[:, 1]]
    return chance, (credit[..., None, None] * scores).sum(1).flatten(1)


def mean(credit: Tensor) -> Tensor:
    chance, found = estimates(credit)
    return chance @ found


def variance(credit: Tensor) -> float:
    chance, found = estimates(credit)
    return float(chance @ (found - chance @ found).square().sum(1))


def states(start: float, after: list[float]) -> Tensor:
    """The value of the state before each action, `[9, 2]`."""
    return torch.tensor([(start, after[a]) for a, _ in PAIRS.tolist()], dtype=F64)


def test_a_value_function_is_unbiased_however_wrong_and_a_good_one_lowers_the_variance() -> None:
    policy = TABLE.softmax(-1)
    late = REWARDS[:, 1].view(3, 3)
    after = (policy[1:] * late).sum(1)
    start = float(policy[0] @ (torch.tensor([0.0, 0.5, 1.0], dtype=F64) + after))
    true, wrong = states(start, after.tolist()), states(5.0, [-3.0, 2.0, 8.0])
    for values in (true, wrong):
        close(mean(TO_GO - baseline.value_function(values, BOTH)), mean(TO_GO))
    assert variance(TO_GO - true) < variance(TO_GO) < variance(TO_GO - wrong)


def test_a_baseline_that_knows_the_action_is_biased() -> None:
    # The total return less the value of the state after the first action: the later state depends on it.
    values = states(0.0, [-3.0, 2.0, 8.0])
    assert (mean(TO_GO - values.flip(1)) - mean(TO_GO)).norm() > 0.1


# --- arguments ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unchecked")
def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"mask \(1, 3\) with values \(1, 2\)"):
        baseline.value_function(torch.zeros(1, 2), MASK)
    with pytest.raises(ValueError, match=r"mask \(1, 3\) with returns \(3,\)"):
        baseline.constant(torch.zeros(3), MASK, value=0.0)
    with pytest.raises(ValueError, match="a mask is bool or holds only 0 and 1"):
        baseline.value_function(torch.zeros(1, 3), torch.tensor([[0.0, 0.3, 1.0]]))
    for decay in (-0.1, 1.1):
        with pytest.raises(ValueError, match=rf"decay={decay}: .* in \[0, 1\]"):
            baseline.moving_average(0.0, torch.zeros(2), decay=decay)
    for wrong in (torch.zeros(0), torch.zeros(2, 2)):
        with pytest.raises(ValueError, match=r"one return per trajectory, \[B\]"):
            baseline.moving_average(0.0, wrong, decay=0.5)


@pytest.mark.usefixtures("unchecked")
def test_returns_are_floating() -> None:
    with pytest.raises(ValueError, match=r"^returns torch.int64: .* Pass returns\.float\(\)"):
        baseline.moving_average(0.0, torch.tensor([1, 2]), decay=0.5)
    # An integer 0.5 would be 0.
    with pytest.raises(ValueError, match=r"^returns torch.int64: "):
        baseline.constant(torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.bool), value=0.5)
