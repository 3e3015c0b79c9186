"""The optimum at every scale of rewards, against every policy tried in fractions, without rounding."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import NamedTuple

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gradhat.exact import solve
from gradhat.exact.mdp import TabularMDP, reachable, tabular
from gradhat.exact.solve import (
    Optimum,
    backward_induction,
    evaluate,
    evaluate_finite,
    policy_iteration,
    value_iteration,
)

F64 = torch.float64
EPSILON = 2.0**-52
REWARDS = (0.0, 1e-10, 1e-9, 1e-6, 1 - 9e-6, 1.0, -1e6, 1e6)
"""Near ties beside what is large, and all of it in one world."""
GAMMAS = (0.0, 0.5, 0.9, 0.99, 0.9999, 1.0)
SOLVERS = (policy_iteration, value_iteration)
Solver = Callable[[TabularMDP], Optimum]


class Worth(NamedTuple):
    """Of one policy in each state, exact."""

    v: tuple[Fraction, ...]
    size: tuple[Fraction, ...]
    """E Σ γ^t |r_t|."""


@st.composite
def steep_worlds(draw: st.DrawFn) -> TabularMDP:
    """Up to three states, some of which nobody comes to. With γ = 1 all but the last one cost."""
    num_states, num_actions = draw(st.integers(1, 3)), draw(st.integers(2, 3))
    gamma = draw(st.sampled_from(GAMMAS))
    some = draw(
        st.sampled_from([REWARDS, REWARDS[:4], (1 - 9e-6, 1.0), (0.0, 1e-10, -1e6), (0.0, 1e-6, 1e6)])
    )
    state, paid = st.integers(0, num_states - 1), st.sampled_from(some)
    P = torch.zeros(num_states, num_actions, num_states, dtype=F64)
    r = torch.zeros_like(P)
    for s, a in itertools.product(range(num_states), range(num_actions)):
        targets = draw(st.lists(state, min_size=1, max_size=1) | st.lists(state, min_size=4, max_size=4))
        for following in targets:
            P[s, a, following] += 1 / len(targets)
            r[s, a, following] = draw(paid)
    terminal = torch.arange(num_states) == (num_states - 1 if gamma == 1 or draw(st.booleans()) else -1)
    start = torch.arange(num_states) == draw(state)
    if gamma == 1:
        r = -r.abs()
    try:
        return tabular(P, r, start, gamma=gamma, terminal=terminal)
    except ValueError:
        assume(False)
        raise


def solved(rows: list[list[Fraction]]) -> list[list[Fraction]] | None:
    """x of A x = b, of rows (A, b), by elimination; None where A is singular."""
    for i in range(len(rows)):
        pivot = next((k for k in range(i, len(rows)) if rows[k][i] != 0), None)
        if pivot is None:
            return None
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for k in range(len(rows)):
            if k != i:
                rows[k] = [x - rows[k][i] * y for x, y in zip(rows[k], rows[i], strict=True)]
    return [row[len(rows) :] for row in rows]


def worth(mdp: TabularMDP, states: list[int], actions: tuple[int, ...]) -> Worth | None:
    """Of the policy that takes `actions` in `states`; all that follows elsewhere is worth 0."""
    rows: list[list[Fraction]] = []
    for s, a in zip(states, actions, strict=True):
        P = [Fraction(x) for x in mdp.transition[s, a].tolist()]
        r = [Fraction(x) for x in mdp.reward[s, a].tolist()]
        stays = [Fraction(s == n) - Fraction(mdp.gamma) * P[n] for n in states]
        paid = sum((p * x for p, x in zip(P, r, strict=True)), Fraction(0))
        rows.append([*stays, paid, sum((p * abs(x) for p, x in zip(P, r, strict=True)), Fraction(0))])
    answer = solved(rows)
    return None if answer is None else Worth(tuple(v for v, _ in answer), tuple(size for _, size in answer))


def every_policy(mdp: TabularMDP, states: list[int]) -> dict[tuple[int, ...], Worth]:
    """The policies that end, or are discounted."""
    found = {
        actions: worth(mdp, states, actions)
        for actions in itertools.product(range(mdp.num_actions), repeat=len(states))
    }
    return {actions: w for actions, w in found.items() if w is not None}


@pytest.mark.parametrize("solver", SOLVERS)
@given(mdp=steep_worlds())
@settings(max_examples=80, deadline=None)
def test_at_any_scale_the_policy_is_the_best_one_and_attains_its_value(
    solver: Solver, mdp: TabularMDP
) -> None:
    found = solver(mdp)
    assert torch.equal(evaluate(mdp, found.policy).v, found.v)
    states = (reachable(mdp) & ~mdp.terminal).nonzero()[:, 0].tolist()
    tried = every_policy(mdp, states)
    mine = tried[tuple(found.policy.argmax(-1)[states].tolist())]
    best = [max(w.v[i] for w in tried.values()) for i in range(len(states))]
    star = next((w for w in tried.values() if list(w.v) == best), mine)
    # An action that is taken for as good as another one: its cost at every step there is.
    num_steps = 1 / (1 - mdp.gamma) if mdp.gamma < 1 else 40
    per_step = 5 * solve.ULPS * EPSILON * num_steps
    # Elimination mixes states: what its second step leaves of the largest number in the world.
    mixed_in = (per_step / 4) ** 2 * float(mdp.reward.abs().max()) * num_steps
    for i, s in enumerate(states):
        size = max(mine.size[i], star.size[i])
        assert abs(Fraction(float(found.v[s])) - mine.v[i]) <= per_step / 4 * size + mixed_in
        assert best[i] - mine.v[i] <= per_step * size


@given(mdp=steep_worlds(), horizon=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_over_a_horizon_the_policy_attains_its_value_too(mdp: TabularMDP, horizon: int) -> None:
    cut = replace(mdp, horizon=horizon)
    found = backward_induction(cut)
    again = evaluate_finite(cut, found.policy)
    assert torch.equal(again.v, found.v) and torch.equal(again.q, found.q)
    v = size = [Fraction(0)] * mdp.num_states
    for t in range(horizon - 1, -1, -1):
        q, sizes = backup(mdp, v, False), backup(mdp, size, True)
        chosen = found.policy[t].argmax(-1).tolist()
        for s in range(mdp.num_states):
            best = max(range(mdp.num_actions), key=lambda a: q[s][a])
            scale = max(sizes[s][best], sizes[s][chosen[s]])
            assert q[s][best] - q[s][chosen[s]] <= 4 * solve.ULPS * horizon * EPSILON * scale
        v = [q[s][a] for s, a in enumerate(chosen)]
        size = [sizes[s][a] for s, a in enumerate(chosen)]


def backup(mdp: TabularMDP, v: list[Fraction], absolute: bool) -> list[list[Fraction]]:
    """r + γ P v, or |r| + γ P v, in fractions."""
    P, r, gamma = mdp.transition.tolist(), mdp.reward.tolist(), Fraction(mdp.gamma)
    S, A = mdp.num_states, mdp.num_actions

    def q(s: int, a: int) -> Fraction:
        paid = [abs(Fraction(x)) if absolute else Fraction(x) for x in r[s][a]]
        return sum((Fraction(P[s][a][n]) * (paid[n] + gamma * v[n]) for n in range(S)), Fraction(0))

    return [[q(s, a) for a in range(A)] for s in range(S)]


def one_step(rewards: list[float]) -> TabularMDP:
    """A bandit: state 0 pays `rewards` and ends."""
    P = torch.zeros(2, len(rewards), 2, dtype=F64)
    P[:, :, 1] = 1
    paid = torch.tensor([rewards, [0.0] * len(rewards)], dtype=F64)
    return tabular(P, paid, torch.tensor([1.0, 0.0]), gamma=1.0, terminal=torch.tensor([False, True]))


def loop(rewards: list[float], gamma: float) -> TabularMDP:
    """A state that stays where it is."""
    reward = torch.tensor([rewards], dtype=F64)
    return tabular(torch.ones(1, len(rewards), 1), reward, torch.ones(1), gamma=gamma)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_gain_that_is_small_at_once_and_large_in_the_end_is_found(solver: Solver) -> None:
    """Stay (0) for 0.1 − 1e-9 or end (1) for 1, γ = 0.9: to end, and then to stay, look as good as each other
    where 1e-9 counts as rounding."""
    P = torch.zeros(2, 2, 2)
    P[0, 0, 0] = P[0, 1, 1] = 1
    reward = torch.tensor([[0.1 - 1e-9, 1.0], [0.0, 0.0]], dtype=F64)
    ends = torch.tensor([False, True])
    found = solver(tabular(P, reward, torch.tensor([1.0, 0.0]), gamma=0.9, terminal=ends))
    assert found.v.tolist() == [1, 0] and found.policy[0].tolist() == [0, 1]


@pytest.mark.parametrize("solver", [*SOLVERS, backward_induction])
@pytest.mark.parametrize("gain", [5e-4, 1e-10])
def test_a_disaster_does_not_hide_a_small_gain(solver: Solver, gain: float) -> None:
    mdp = one_step([0.0, gain, -1e6])
    cut = replace(mdp, horizon=1) if solver is backward_induction else mdp
    found = solver(cut)
    assert found.policy.reshape(-1, 3)[0].tolist() == [0, 1, 0]
    assert found.v.flatten()[0] == gain


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_loop_is_worth_what_its_better_action_pays_for_ever(solver: Solver) -> None:
    found = solver(loop([1 - 9e-6, 1.0], 0.9999))
    assert found.policy.tolist() == [[0, 1]]
    assert float(found.v) == pytest.approx(10000, rel=1e-12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_small_world_beside_a_large_one_keeps_its_digits(solver: Solver) -> None:
    """State 1 leads to state 0 and pays −1e6: elimination mixes the two, and 1e-10 must not drown in it."""
    P = torch.zeros(2, 2, 2)
    P[0, :, 0] = P[1, :, 0] = 1
    reward = torch.tensor([[1e-11, 1e-10], [-1e6, -1e6]], dtype=F64)
    found = solver(tabular(P, reward, torch.tensor([0.5, 0.5]), gamma=0.9999))
    assert found.policy[0].tolist() == [0, 1]
    assert float(found.v[0]) == pytest.approx(1e-6, rel=1e-12)


@pytest.mark.parametrize("solver", [*SOLVERS, backward_induction])
@pytest.mark.parametrize("beside", [0.0, 1e6])
@pytest.mark.parametrize(("at_once", "best"), [(0.3, 0), (0.3 - 1e-15, 1)])
def test_rounding_is_a_tie_and_nothing_else_is(
    solver: Solver, beside: float, at_once: float, best: int
) -> None:
    """0.1 + 0.2 is more than 0.3 in float64, by one ulp. What another state pays does not matter."""
    P = torch.zeros(4, 2, 4)
    P[0, 0, 3] = P[0, 1, 1] = P[1, :, 3] = P[2, :, 3] = 1
    reward = torch.tensor([[at_once, 0.1], [0.2, 0.2], [beside, -beside], [0.0, 0.0]], dtype=F64)
    start, ends = torch.tensor([0.5, 0, 0.5, 0]), torch.arange(4) == 3
    mdp = tabular(P, reward, start, gamma=1.0, terminal=ends)
    if solver is backward_induction:
        mdp = replace(mdp, horizon=2)
    found = solver(mdp)
    assert found.policy.reshape(-1, 4, 2)[0, 0].argmax() == best
    evaluated = evaluate_finite if mdp.horizon else evaluate
    assert torch.equal(evaluated(mdp, found.policy).v, found.v)
    assert float(found.v.reshape(-1, 4)[0, 0]) == (0.1 + 0.2 if best else at_once)


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_cancels_is_rounded_as_what_it_came_from(solver: Solver) -> None:
    """Nothing (0), or on (1) to 1e6 and then −1e6 + 1e-10: worth 1e-10 up to rounding of 1e6, a tie."""
    P = torch.zeros(4, 2, 4)
    P[0, 0, 3] = P[0, 1, 1] = P[1, :, 2] = P[2, :, 3] = 1
    reward = torch.tensor([[0.0, 0.0], [1e6, 1e6], [-1e6 + 1e-10] * 2, [0.0, 0.0]], dtype=F64)
    mdp = tabular(P, reward, torch.eye(4)[0], gamma=1.0, terminal=torch.arange(4) == 3)
    assert solver(mdp).policy[0].tolist() == [1, 0]


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_loop_that_pays_by_rounding_alone_is_left(solver: Solver) -> None:
    """Round the loop 0.1 + 0.2 - 0.3 is paid: 0, and in sums with the way out more by an ulp."""
    P = torch.zeros(4, 2, 4)
    P[0, 0, 1] = P[1, 0, 2] = P[2, 0, 0] = 1
    P[:, 1, 3] = 1
    out = 0.01
    assert -0.3 + (0.1 + (0.2 + out)) > out
    reward = torch.tensor([[0.1, out], [0.2, out], [-0.3, out], [0.0, 0.0]], dtype=F64)
    mdp = tabular(P, reward, torch.eye(4)[0], gamma=1.0, terminal=torch.arange(4) == 3)
    found = solver(mdp)
    assert found.policy[:3].argmax(-1).tolist() == [0, 0, 1]
    assert float(found.v[0]) == pytest.approx(out + 0.3, abs=1e-15)


@pytest.mark.parametrize("solver", SOLVERS)
def test_where_nothing_is_gained_the_way_out_is_kept(solver: Solver) -> None:
    """State 1 stays for nothing (0) or ends for nothing (1); only state 0 has something to gain."""
    P = torch.zeros(3, 2, 3)
    P[0, :, 2] = P[1, 0, 1] = P[1, 1, 2] = 1
    reward = torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    mdp = tabular(P, reward, torch.tensor([0.5, 0.5, 0]), gamma=1.0, terminal=torch.arange(3) == 2)
    assert solver(mdp).policy[:2].argmax(-1).tolist() == [1, 1]


@pytest.mark.parametrize("solver", SOLVERS)
def test_rounding_of_the_present_action_is_no_gain_of_another(solver: Solver) -> None:
    """Stay for nothing (0), or be paid and end with some chance (1): to stay is worth the same, and v and q
    of an action that may have to be repeated differ by an ulp. Who took that for a gain would stay for ever.
    """
    for tenths, pay in itertools.product(range(1, 10), (0.1, 0.3, 0.7, 1.1, -0.3)):
        P = torch.zeros(2, 2, 2, dtype=F64)
        P[0, 0, 0] = P[1, :, 1] = 1
        P[0, 1] = torch.tensor([tenths / 10, 1 - tenths / 10], dtype=F64)
        reward = torch.tensor([[0.0, pay], [0.0, 0.0]], dtype=F64)
        ends = torch.tensor([False, True])
        found = solver(tabular(P, reward, torch.tensor([1.0, 0]), gamma=1.0, terminal=ends))
        assert found.policy[0].tolist() == [0, 1]
        assert float(found.v[0]) == pytest.approx(pay / (1 - tenths / 10), rel=1e-12)


def mixed(seed: int, num_states: int, gamma: float) -> TabularMDP:
    """All policies are equally good, and rounding says something else of every one."""
    generator = torch.Generator().manual_seed(seed)
    P = torch.rand(num_states, 2, num_states, generator=generator, dtype=F64)
    reward = torch.full((num_states, 2), 0.3)
    start = torch.arange(num_states) == 0
    return tabular(P / P.sum(-1, keepdim=True), reward, start, gamma=gamma)


@pytest.mark.parametrize("seed", range(12))
def test_policies_that_follow_each_other_by_rounding_alone_end_the_search(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mdp = mixed(seed, 2 + seed % 3, (0.9, 0.99, 0.9999)[seed % 3])
    for solver in SOLVERS:
        assert solver(mdp).policy.argmax(-1).tolist() == [0] * mdp.num_states
    monkeypatch.setattr(solve, "ULPS", 0)
    monkeypatch.setattr(solve, "MAX_POLICIES", 100)
    monkeypatch.setattr(solve, "MAX_SWEEPS", 100 * solve.CHECK)
    for solver in SOLVERS:
        assert float(solver(mdp).v[0]) == pytest.approx(0.3 / (1 - mdp.gamma), rel=1e-6)


def test_a_search_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solve, "MAX_POLICIES", 1)
    with pytest.raises(
        ValueError, match=r"world of 2 states and 3 actions: found that policy 1 is still not the best"
    ):
        policy_iteration(one_step([0.0, 1.0, 2.0]))


def test_value_iteration_goes_on_from_what_its_policy_is_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 0 for 50 to 1, from there for 4900 to 2, where 1.5 is paid for ever, or stay (0) for 1. γ 0.9999.
    The uniform policy is worth −500,000 in 2: sweeps alone need thousands to see that it is worth 15,000."""
    P = torch.zeros(3, 2, 3)
    P[0, 0, 0] = P[0, 1, 1] = P[1, 0, 1] = P[1, 1, 2] = P[2, :, 2] = 1
    reward = torch.tensor([[1.0, -50.0], [1.0, -4900.0], [1.5, -100.0]])
    mdp = tabular(P, reward, torch.eye(3)[0], gamma=0.9999)
    monkeypatch.setattr(solve, "MAX_SWEEPS", 2 * solve.CHECK)
    found, at_1 = value_iteration(mdp), -4900 + 0.9999 * 15000
    assert found.policy.argmax(-1).tolist() == [1, 1, 0]
    assert found.v.tolist() == pytest.approx([-50 + 0.9999 * at_1, at_1, 15000], rel=1e-12)


def unseen(gamma: float) -> TabularMDP:
    """From 0 to the end for 1 or 2. State 1 is never seen: it stays for ever and is paid, or leads to 0."""
    P = torch.zeros(3, 2, 3)
    P[0, :, 2] = P[1, 0, 1] = P[1, 1, 0] = 1
    reward = torch.tensor([[1.0, 2.0], [5.0, 5.0], [0.0, 0.0]])
    ends = torch.tensor([False, False, True])
    return tabular(P, reward, torch.tensor([1.0, 0, 0]), gamma=gamma, terminal=ends)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_state_that_nobody_comes_to_has_a_value_where_it_must_have_one(solver: Solver) -> None:
    found = solver(unseen(1.0))
    assert found.v.tolist() == [2, 0, 0] and found.q[1].tolist() == [0, 0]
    uniform = torch.full((3, 2), 0.5, dtype=F64)
    stays = torch.tensor([[0.5, 0.5], [1.0, 0.0], [1.0, 0.0]], dtype=F64)
    for policy in (uniform, stays):
        values = evaluate(unseen(1.0), policy)
        assert values.v.tolist() == [1.5, 0, 0] and values.adv[1].tolist() == [0, 0]
        assert values.occupancy.tolist() == [1, 0, 0] and float(values.expected_return) == 1.5
    assert solver(unseen(0.5)).v.tolist() == [2, 10, 0]
    assert evaluate(unseen(0.5), stays).v.tolist() == [1.5, 10, 0]


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_answer_scales_with_the_rewards(solver: Solver) -> None:
    mdp = mixed(3, 3, 0.99)
    generator = torch.Generator().manual_seed(1)
    mdp = replace(mdp, reward=torch.randn(3, 2, 3, generator=generator, dtype=F64))
    plain = solver(mdp)
    for power in (-200, -40, 40, 200):
        scaled = solver(replace(mdp, reward=mdp.reward * 2.0**power))
        assert torch.equal(scaled.policy, plain.policy)
        torch.testing.assert_close(scaled.v, plain.v * 2.0**power, rtol=1e-12, atol=0)
    assert plain.q.argmax(-1).tolist() == plain.policy.argmax(-1).tolist()
