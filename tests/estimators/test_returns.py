"""Returns: by hand, against forward sums, as identities, and in expectation over every text."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import F64, Rows, ragged, random_rows, rates
from torch import Tensor

from gradhat.estimators import returns
from gradhat.estimators.gae import gae
from gradhat.estimators.offpolicy import per_decision, retrace, vtrace
from gradhat.exact.enumerate import paths
from gradhat.exact.gradient import by_theorem
from gradhat.exact.mdp import TabularMDP, softmax_policy
from gradhat.exact.solve import evaluate, evaluate_finite
from gradhat.exact.zoo import random_mdp

few = settings(max_examples=50, deadline=None, derandomize=True)


def close(found: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


# --- by hand -----------------------------------------------------------------------------------------------

R = torch.tensor([[1.0, 2.0, 4.0, 8.0]], dtype=F64)
HOLE = torch.tensor([[True, False, True, True]])
NEVER = torch.zeros(1, 4, dtype=torch.bool)
SECOND = torch.tensor([[False, True, False, False]])
NEXT = torch.tensor([[16.0, 32.0, 64.0, 128.0]], dtype=F64)


def test_totals_by_hand() -> None:
    # Time passes on own steps only: 1 + 4/2 + 8/4.
    assert returns.total(R, HOLE, gamma=0.5).tolist() == [5.0]
    assert returns.total(R, HOLE, gamma=0.0).tolist() == [1.0]
    assert returns.discounts(HOLE, gamma=0.5).tolist() == [[1.0, 0.0, 0.5, 0.25]]
    assert returns.discounts(torch.tensor([[0, 1, 1]]), gamma=0.0).tolist() == [[0.0, 1.0, 0.0]]


def test_rewards_to_go_by_hand() -> None:
    assert returns.to_go(R, NEVER, HOLE, gamma=0.5).tolist() == [[5.0, 0.0, 8.0, 8.0]]
    # An end on a masked step cuts too: the episode of step 0 is over before step 2.
    assert returns.to_go(R, SECOND, HOLE, gamma=0.5).tolist() == [[1.0, 0.0, 8.0, 8.0]]
    assert returns.to_go(R, SECOND, ~NEVER, gamma=0.5).tolist() == [[2.0, 2.0, 8.0, 8.0]]


def test_n_step_returns_by_hand() -> None:
    def found(n: int, terminated: Tensor, ended: Tensor, mask: Tensor) -> list[float]:
        return returns.n_step(R, NEXT, terminated, ended, mask, gamma=0.5, n=n)[0].tolist()

    # n = 2 from step 0 over the hole: 1 + 4/2 + 64/4; from step 2: 4 + 8/2 + 128/4.
    assert found(1, NEVER, NEVER, HOLE) == [9.0, 0.0, 36.0, 72.0]
    assert found(2, NEVER, NEVER, HOLE) == [19.0, 0.0, 40.0, 72.0]
    assert found(3, NEVER, NEVER, HOLE) == found(99, NEVER, NEVER, HOLE) == [21.0, 0.0, 40.0, 72.0]
    assert found(2, NEVER, SECOND, ~NEVER) == [10.0, 18.0, 40.0, 72.0]  # cut: 2 + 32/2 is kept
    assert found(2, SECOND, SECOND, ~NEVER) == [2.0, 2.0, 40.0, 72.0]  # dead: nothing follows


def test_lambda_returns_by_hand() -> None:
    # Backward with γ = λ = 1/2: 8 + 64 = 72; 4 + (64/2 + 72/2)/2 = 38; 1 + (16/2 + 38/2)/2 = 14.5.
    found = returns.lambda_returns(R, NEXT, NEVER, NEVER, HOLE, gamma=0.5, lam=0.5)
    assert found.tolist() == [[14.5, 0.0, 38.0, 72.0]]


# --- against the forward sums ------------------------------------------------------------------------------


def slow_to_go(rows: Rows, gamma: float) -> Tensor:
    return rows.fill(
        {
            (b, t): sum(gamma**i * float(rows.rewards[b, u]) for i, u in enumerate(rows.onward(b, t)))
            for b, t in rows.places()
        }
    )


def slow_n(rows: Rows, b: int, t: int, gamma: float, n: int) -> float:
    steps = rows.onward(b, t)[:n]
    summed = sum(gamma**i * float(rows.rewards[b, u]) for i, u in enumerate(steps))
    return summed + gamma ** len(steps) * rows.bootstrap(b, steps[-1])


def slow_lambda(rows: Rows, b: int, t: int, gamma: float, lam: float) -> float:
    longest = len(rows.onward(b, t))
    mixed = sum((1 - lam) * lam ** (n - 1) * slow_n(rows, b, t, gamma, n) for n in range(1, longest))
    return mixed + lam ** (longest - 1) * slow_n(rows, b, t, gamma, longest)


@few
@given(ragged(), rates, st.integers(1, 4))
def test_rewards_to_go_equal_the_forward_sum(rows: Rows, gamma: float, columns: int) -> None:
    with patch.object(returns, "COLUMNS", columns):
        found = returns.to_go(rows.rewards, rows.ended, rows.mask, gamma=gamma)
    close(found, slow_to_go(rows, gamma))


@few
@given(ragged(), rates)
def test_totals_equal_the_forward_sum(rows: Rows, gamma: float) -> None:
    expected = [
        math.fsum(gamma**i * float(row[t]) for i, t in enumerate(own.nonzero()[:, 0].tolist()))
        for row, own in zip(rows.rewards, rows.mask, strict=True)
    ]
    found = returns.total(rows.rewards, rows.mask, gamma=gamma)
    close(found, torch.tensor(expected, dtype=F64))
    weights = returns.discounts(rows.mask.to(F64), gamma=gamma)
    close((weights * rows.rewards.nan_to_num()).sum(1), found)


@few
@given(ragged(), rates, st.integers(1, 10))
def test_n_step_returns_equal_the_forward_sum(rows: Rows, gamma: float, n: int) -> None:
    found = returns.n_step(
        rows.rewards, rows.next_values, rows.terminated, rows.ended, rows.mask, gamma=gamma, n=n
    )
    close(found, rows.fill({(b, t): slow_n(rows, b, t, gamma, n) for b, t in rows.places()}))


@few
@given(ragged(), rates, rates, st.integers(1, 4))
def test_lambda_returns_equal_the_mean_of_the_n_step_returns(
    rows: Rows, gamma: float, lam: float, columns: int
) -> None:
    with patch.object(returns, "COLUMNS", columns):
        found = returns.lambda_returns(
            rows.rewards, rows.next_values, rows.terminated, rows.ended, rows.mask, gamma=gamma, lam=lam
        )
    close(found, rows.fill({(b, t): slow_lambda(rows, b, t, gamma, lam) for b, t in rows.places()}))


def test_rows_longer_than_a_block_equal_the_forward_sum() -> None:
    generator = torch.Generator().manual_seed(0)
    mask, ended, dead = torch.rand(3, 3, 2 * returns.COLUMNS + 7, generator=generator).unbind(0)
    rows = random_rows(mask < 0.8, ended < 0.02, (ended < 0.02) & (dead < 0.5), seed=1)
    close(returns.to_go(rows.rewards, rows.ended, rows.mask, gamma=0.99), slow_to_go(rows, 0.99))


# --- identities --------------------------------------------------------------------------------------------


@few
@given(ragged(), rates)
def test_the_ends_of_the_lambda_return_are_the_longest_and_the_shortest(rows: Rows, gamma: float) -> None:
    args = rows.rewards, rows.next_values, rows.terminated, rows.ended, rows.mask
    close(returns.lambda_returns(*args, gamma=gamma, lam=1.0), returns.n_step(*args, gamma=gamma, n=99))
    close(returns.lambda_returns(*args, gamma=gamma, lam=0.0), returns.n_step(*args, gamma=gamma, n=1))


@few
@given(ragged(), rates)
def test_without_a_bootstrap_the_longest_return_is_the_reward_to_go(rows: Rows, gamma: float) -> None:
    found = returns.n_step(
        rows.rewards,
        torch.zeros_like(rows.rewards),
        rows.terminated,
        rows.ended,
        rows.mask,
        gamma=gamma,
        n=99,
    )
    close(found, returns.to_go(rows.rewards, rows.ended, rows.mask, gamma=gamma))


@few
@given(ragged(), rates)
def test_the_total_is_the_reward_to_go_of_the_first_own_step(rows: Rows, gamma: float) -> None:
    to_go = returns.to_go(rows.rewards, torch.zeros_like(rows.ended), rows.mask, gamma=gamma)
    first = (rows.mask.cumsum(1) == 1) & rows.mask
    close((to_go * first).sum(1), returns.total(rows.rewards, rows.mask, gamma=gamma))


# --- in expectation ----------------------------------------------------------------------------------------

GAMMA = 0.7
TABLE = torch.tensor([[0.3, -0.2, 0.5], [1.0, -1.0, 0.2], [0.1, 0.4, -0.6], [-0.3, 0.9, 0.0]], dtype=F64)
"""Logits of two actions of three: row 0 for the first, row 1 + a for the second after the first action a."""
PAIRS = torch.tensor([(a, b) for a in range(3) for b in range(3)])
REWARDS = torch.tensor([(0.5 * a, a - 0.8 * b + 0.3 * a * b) for a, b in PAIRS.tolist()], dtype=F64)
BOTH = torch.ones(9, 2, dtype=torch.bool)
LAST = torch.tensor([False, True]).expand(9, 2)


def gradient(of: Callable[[Tensor], Tensor]) -> Tensor:
    table = TABLE.clone().requires_grad_()
    logp = table.log_softmax(-1)
    of(torch.stack([logp[0, PAIRS[:, 0]], logp[1 + PAIRS[:, 0], PAIRS[:, 1]]], 1)).backward()
    assert table.grad is not None
    return table.grad


def exact() -> Tensor:
    """∇J, through the probabilities."""
    return gradient(lambda logp: logp.sum(1).exp() @ (REWARDS[:, 0] + GAMMA * REWARDS[:, 1]))


def expected(credit: Tensor) -> Tensor:
    """E ĝ = Σ_τ P(τ) Σ_t ∇ log π(a_t | s_t) · credit_t."""
    return gradient(lambda logp: (logp.sum(1).exp().detach()[:, None] * credit * logp).sum())


def test_with_the_weight_of_time_the_reward_to_go_is_unbiased_and_so_is_the_total() -> None:
    weight = returns.discounts(BOTH.to(F64), gamma=GAMMA)
    close(expected(weight * returns.to_go(REWARDS, LAST, BOTH, gamma=GAMMA)), exact())
    close(expected(returns.total(REWARDS, BOTH, gamma=GAMMA)[:, None].expand(9, 2)), exact())


def test_dropping_the_weight_of_time_is_a_bias_on_the_later_states_alone() -> None:
    # What the second action's logits receive is too large by 1 / γ; the first state's is right.
    found = expected(returns.to_go(REWARDS, LAST, BOTH, gamma=GAMMA))
    close(found, exact() * torch.tensor([[1.0], [1 / GAMMA], [1 / GAMMA], [1 / GAMMA]], dtype=F64))
    assert torch.nn.functional.cosine_similarity(found.flatten(), exact().flatten(), dim=0) < 0.999


# --- arguments ---------------------------------------------------------------------------------------------


def test_mask_may_be_zero_one_the_dtype_is_that_of_the_rewards_and_no_gradient_flows() -> None:
    for mask in (HOLE.long(), HOLE.float()):
        assert returns.to_go(R, NEVER, mask, gamma=0.5).tolist() == [[5.0, 0.0, 8.0, 8.0]]
        assert returns.total(R, mask, gamma=0.5).tolist() == [5.0]
    rewards, following = R.float().requires_grad_(), NEXT.float().requires_grad_()
    for found in (
        returns.total(rewards, HOLE, gamma=0.5),
        returns.to_go(rewards, NEVER, HOLE, gamma=0.5),
        returns.n_step(rewards, following, NEVER, NEVER, HOLE, gamma=0.5, n=2),
        returns.lambda_returns(rewards, following, NEVER, NEVER, HOLE, gamma=0.5, lam=0.5),
    ):
        assert found.dtype is torch.float32 and not found.requires_grad
    assert returns.discounts(HOLE, gamma=0.5).dtype is torch.float32
    assert returns.discounts(HOLE.to(F64), gamma=0.5).dtype is F64


def test_the_arguments_are_left_as_they_are() -> None:
    rewards, following = R.clone(), NEXT.clone()
    returns.to_go(rewards, NEVER, HOLE, gamma=0.5)
    returns.lambda_returns(rewards, following, NEVER, NEVER, HOLE, gamma=0.5, lam=0.5)
    assert torch.equal(rewards, R) and torch.equal(following, NEXT)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: returns.total(R, HOLE[:, :3], gamma=1.0), r"rewards \(1, 4\) with mask \(1, 3\)"),
        (lambda: returns.to_go(R, NEVER[0], HOLE, gamma=1.0), r"ended \(4,\) with mask \(1, 4\)"),
        (
            lambda: returns.n_step(R, NEXT[:, :1], NEVER, NEVER, HOLE, gamma=1.0, n=1),
            r"next_values \(1, 1\) with mask \(1, 4\)",
        ),
        (
            lambda: returns.lambda_returns(R, NEXT, NEVER.t(), NEVER, HOLE, gamma=1.0, lam=1.0),
            r"terminated \(4, 1\) with mask \(1, 4\)",
        ),
        (lambda: returns.total(R[0], HOLE[0], gamma=1.0), r"mask \(4,\): steps come as \[B, T\]"),
        (
            lambda: returns.total(R.long(), HOLE, gamma=1.0),
            r"rewards torch.int64: numbers per step are float",
        ),
        (lambda: returns.total(R, 0.5 * R, gamma=1.0), "a mask is bool or holds only 0 and 1"),
        (lambda: returns.discounts(HOLE, gamma=1.5), r"gamma=1.5: .* lies in \[0, 1\]"),
        (lambda: returns.to_go(R, NEVER, HOLE, gamma=math.nan), r"gamma=nan"),
        (
            lambda: returns.lambda_returns(R, NEXT, NEVER, NEVER, HOLE, gamma=1.0, lam=-0.1),
            r"lam=-0.1: .* lies in \[0, 1\]",
        ),
        (lambda: returns.n_step(R, NEXT, NEVER, NEVER, HOLE, gamma=1.0, n=0), r"n=0: .* Use n >= 1"),
        (
            lambda: returns.n_step(R, NEXT, SECOND, NEVER, HOLE, gamma=1.0, n=1),
            r"terminated without ended at row 0, step 1: .* terminated \| truncated",
        ),
    ],
)
def test_wrong_arguments_are_named(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", [torch.float32, torch.long])
def test_flags_are_bool(dtype: torch.dtype) -> None:
    """As replay buffers hold them, 0 and 1: `~` on an integer would be -1 and -2, not false and true."""
    flag, own = SECOND.to(dtype), ~NEVER
    for call, name in (
        (lambda: returns.to_go(R, flag, own, gamma=1.0), "ended"),
        (lambda: returns.n_step(R, NEXT, flag, SECOND, own, gamma=1.0, n=1), "terminated"),
        (lambda: returns.lambda_returns(R, NEXT, SECOND, flag, own, gamma=1.0, lam=1.0), "ended"),
        (lambda: gae(R, R, NEXT, flag, SECOND, own, gamma=1.0, lam=1.0), "terminated"),
        (lambda: gae(R, R, NEXT, SECOND, flag, own, gamma=1.0, lam=1.0), "ended"),
        (
            lambda: vtrace(R, R, NEXT, R, flag, SECOND, own, gamma=1.0, rho_max=1.0, c_max=1.0),
            "terminated",
        ),
        (lambda: retrace(R, R, NEXT, R, SECOND, flag, own, gamma=1.0, lam=1.0), "ended"),
    ):
        with pytest.raises(ValueError, match=rf"^{name} {dtype}: .* Pass {name}\.bool\(\)"):
            call()


@pytest.mark.usefixtures("unchecked")
def test_numbers_are_floating() -> None:
    own = ~NEVER
    for call, name in (
        (lambda: returns.to_go(own, SECOND, own, gamma=1.0), "rewards"),
        (lambda: gae(R, own, NEXT, SECOND, SECOND, own, gamma=1.0, lam=1.0), "values"),
        (lambda: retrace(R, R, own, R, SECOND, SECOND, own, gamma=1.0, lam=1.0), "next_values"),
        (lambda: per_decision(R, own, own, gamma=1.0), "log_ratio"),
    ):
        with pytest.raises(ValueError, match=rf"^{name} torch.bool: .* Pass {name}\.float\(\)"):
            call()


# --- as estimators of the gradient: a bootstrap and its bias -----------------------------------------------

STEPS = 3
ENDS = random_mdp(3, 2, seed=4, gamma=GAMMA, horizon=STEPS, num_terminal=1)
CUT = replace(ENDS, horizon=None, time_limit=STEPS)
"""The same steps are seen, and J goes on behind them."""
THETA = torch.tensor([[0.4, -0.3], [-0.8, 0.5], [0.0, 0.0]], dtype=F64)
POLICY = softmax_policy(ENDS, THETA)
VISITED = evaluate_finite(ENDS, POLICY).occupancy


def true_values(mdp: TabularMDP) -> Tensor:
    """`[T + 1, S]`."""
    if mdp.horizon is None:
        return evaluate(mdp, POLICY).v.expand(STEPS + 1, -1)
    return evaluate_finite(mdp, POLICY).v


def wrong_values(mdp: TabularMDP) -> Tensor:
    """`[T + 1, S]`: off by up to 9 everywhere but at the end of the world; at the horizon too, where nothing
    counts any more."""
    noise = torch.rand(STEPS + 1, 3, dtype=F64, generator=torch.Generator().manual_seed(1)) * 4 - 2
    noise[-1] = torch.tensor([9.0, -9.0, 0.0])
    return (true_values(mdp) + noise).masked_fill(mdp.terminal, 0)


def estimated(mdp: TabularMDP, values: Tensor, target: Callable[..., Tensor]) -> Tensor:
    """E Σ_t γ^t ∇ log π(a_t | s_t) · (target_t - V_t(s_t)) over every trajectory."""
    walks, time = paths(mdp), torch.arange(STEPS)
    ended = walks.terminated | walks.truncated
    after = torch.where(ended, walks.final[:, None], walks.states.roll(-1, 1))
    credit = (
        target(walks.rewards, values[time + 1, after], walks.terminated, ended, walks.mask, gamma=GAMMA)
        - values[time, walks.states]
    )
    weight = walks.probability(THETA)[:, None] * returns.discounts(walks.mask.to(F64), gamma=GAMMA)
    theta = THETA.clone().requires_grad_()
    (found,) = torch.autograd.grad((weight * credit * walks.logp(theta)).sum(), theta)
    return found


def truth(mdp: TabularMDP) -> Tensor:
    """Σ_t Σ_s γ^t Pr(s_t = s) π(a | s) A_t(s, a) over the steps that are seen, with the A of J."""
    if mdp.horizon is not None:
        return by_theorem(mdp, THETA)
    return VISITED.sum(0)[:, None] * POLICY * evaluate(mdp, POLICY).adv


def bias(mdp: TabularMDP, values: Tensor, trace: Callable[[int], float]) -> Tensor:
    """What the error of the value adds, from the tables of the world.

    It reaches a step through the bootstraps after it: `trace(i)` is how much of the i-th one is handed on to
    the next instead, of the one at a cut nothing. At the end there is none.
    """
    error, total = (values - true_values(mdp)).masked_fill(mdp.terminal, 0), torch.zeros_like(THETA)
    if mdp.horizon is not None:
        error[-1] = 0
    for t in range(STEPS):
        reached = POLICY.new_zeros(3, 2)
        weight, ahead = 1.0, mdp.transition  # chance of the state after i more steps, given (s, a)
        for i in range(1, STEPS + 1 - t):
            stays = trace(i) if t + i < STEPS else 0.0
            reached += weight * (1 - stays) * GAMMA**i * (ahead @ error[t + i])
            weight *= stays
            ahead = torch.einsum("sau,uv,uvx->sax", ahead * ~mdp.terminal, POLICY, mdp.transition)
        centred = reached - (POLICY * reached).sum(-1, keepdim=True)
        total += VISITED[t][:, None] * POLICY * centred
    return total


TARGETS: list[tuple[Callable[..., Tensor], Callable[[int], float]]] = [
    *((partial(returns.n_step, n=n), lambda i, n=n: float(i < n)) for n in (1, 2, 3)),
    *((partial(returns.lambda_returns, lam=lam), lambda _, lam=lam: lam) for lam in (0.0, 0.6, 1.0)),
]


@pytest.mark.parametrize("mdp", [ENDS, CUT], ids=["horizon", "time limit"])
@pytest.mark.parametrize(("target", "trace"), TARGETS)
def test_with_the_exact_value_a_bootstrap_is_unbiased_and_a_wrong_one_adds_its_error(
    target: Callable[..., Tensor], trace: Callable[[int], float], mdp: TabularMDP
) -> None:
    close(estimated(mdp, true_values(mdp), target), truth(mdp))
    added = bias(mdp, wrong_values(mdp), trace)
    to_the_end = mdp.horizon is not None and all(trace(i) == 1 for i in (1, 2))
    assert to_the_end or added.abs().max() > 5e-3
    close(estimated(mdp, wrong_values(mdp), target), truth(mdp) + added)
