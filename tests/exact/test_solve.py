"""Values solve their equations, and the optimum is what trying everything finds."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from worlds import SEEDS, deterministic, random_policy, worlds

from gradhat.exact import solve
from gradhat.exact.mdp import TabularMDP, tabular
from gradhat.exact.solve import (
    Optimum,
    backward_induction,
    evaluate,
    evaluate_finite,
    expected_return,
    policy_iteration,
    value_iteration,
)
from gradhat.exact.zoo import chain, cliff_walk, corridor, four_rooms, random_mdp

ENDLESS = worlds(horizons=st.none())
CUT = worlds(horizons=st.integers(1, 4))
many = settings(max_examples=60, deadline=None)


def close(found: Tensor, expected: Tensor, atol: float = 1e-11) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def reward_of(mdp: TabularMDP) -> Tensor:
    """E[r | s, a], one number at a time."""
    S, A = mdp.num_states, mdp.num_actions
    return torch.tensor(
        [
            [sum(float(mdp.transition[s, a, n] * mdp.reward[s, a, n]) for n in range(S)) for a in range(A)]
            for s in range(S)
        ],
        dtype=torch.float64,
    )


@many
@given(ENDLESS, SEEDS)
def test_the_bellman_equations_hold(mdp: TabularMDP, seed: int) -> None:
    policy = random_policy(mdp, seed)
    values = evaluate(mdp, policy)
    close(values.q, reward_of(mdp) + mdp.gamma * mdp.transition @ values.v)
    close(values.v, (policy * values.q).sum(-1))
    close(values.adv, values.q - values.v[:, None])
    close((policy * values.adv).sum(-1), torch.zeros(mdp.num_states, dtype=torch.float64))
    assert (values.v[mdp.terminal] == 0).all()
    assert (values.adv[mdp.terminal] == 0).all()


@many
@given(ENDLESS, SEEDS)
def test_what_flows_into_a_state_is_its_occupancy(mdp: TabularMDP, seed: int) -> None:
    policy = random_policy(mdp, seed)
    values = evaluate(mdp, policy)
    flow = torch.einsum("s,sa,sap->p", values.occupancy, policy, mdp.transition)
    alive = ~mdp.terminal
    close(values.occupancy[alive], (mdp.start + mdp.gamma * flow)[alive])
    assert (values.occupancy[mdp.terminal] == 0).all()
    # J from the start and J from the rewards that are met: the primal and the dual.
    close(values.expected_return, mdp.start @ values.v)
    close(values.expected_return, values.occupancy @ (policy * reward_of(mdp)).sum(-1))


@settings(max_examples=10, deadline=None)
@given(ENDLESS, SEEDS)
def test_the_solve_is_the_limit_of_the_recursion(mdp: TabularMDP, seed: int) -> None:
    policy = random_policy(mdp, seed)
    values, finite = evaluate(mdp, policy), evaluate_finite(replace(mdp, horizon=700), policy)
    close(values.v, finite.v[0])
    close(values.q, finite.q[0])
    close(values.occupancy, finite.occupancy.sum(0))


@many
@given(CUT, SEEDS)
def test_the_recursion_is_what_happens_step_by_step(mdp: TabularMDP, seed: int) -> None:
    assert mdp.horizon is not None
    policy = random_policy(mdp, seed)
    finite = evaluate_finite(mdp, policy)
    reward = reward_of(mdp)
    at, total = mdp.start, torch.zeros((), dtype=torch.float64)
    for t in range(mdp.horizon):
        close(finite.occupancy[t], mdp.gamma**t * at * ~mdp.terminal)
        close(finite.q[t], reward + mdp.gamma * mdp.transition @ finite.v[t + 1])
        close(finite.v[t], (policy * finite.q[t]).sum(-1))
        close(finite.adv[t], finite.q[t] - finite.v[t][:, None])
        total = total + mdp.gamma**t * torch.einsum("s,sa,sa->", at, policy, reward)
        at = torch.einsum("s,sa,sap->p", at, policy, mdp.transition)
    assert finite.v.shape == (mdp.horizon + 1, mdp.num_states)
    assert (finite.v[-1] == 0).all()
    close(finite.expected_return, total)
    close(expected_return(mdp, policy), total)


@many
@given(ENDLESS, SEEDS)
def test_two_policies_differ_by_the_advantages_that_one_finds_under_the_other(
    mdp: TabularMDP, seed: int
) -> None:
    """The performance difference lemma: Kakade & Langford 2002, lemma 6.1."""
    old, new = random_policy(mdp, seed), random_policy(mdp, seed + 1)
    visited, adv = evaluate(mdp, new).occupancy, evaluate(mdp, old).adv
    difference = expected_return(mdp, new) - expected_return(mdp, old)
    close(torch.einsum("s,sa,sa->", visited, new, adv), difference)


@many
@given(CUT, SEEDS)
def test_two_policies_differ_by_advantages_under_a_horizon_too(mdp: TabularMDP, seed: int) -> None:
    assert mdp.horizon is not None
    shape = (mdp.horizon, mdp.num_states, mdp.num_actions)
    generator = torch.Generator().manual_seed(seed)
    old, new = torch.randn(2, *shape, generator=generator, dtype=torch.float64).softmax(-1)
    before, after = evaluate_finite(mdp, old), evaluate_finite(mdp, new)
    difference = after.expected_return - before.expected_return
    close(torch.einsum("ts,tsa,tsa->", after.occupancy, new, before.adv), difference)


def best_of_all(mdp: TabularMDP) -> Tensor:
    """V* by trying every deterministic policy: one of them is the best in every state."""
    every = itertools.product(range(mdp.num_actions), repeat=mdp.num_states)
    return torch.stack([evaluate(mdp, deterministic(p, mdp.num_actions)).v for p in every]).amax(0)


@settings(max_examples=25, deadline=None)
@given(ENDLESS)
def test_both_iterations_find_what_trying_every_policy_finds(mdp: TabularMDP) -> None:
    by_policies, by_values = policy_iteration(mdp), value_iteration(mdp)
    best = best_of_all(mdp)
    close(by_policies.v, best)
    close(by_values.v, best, atol=1e-10)
    close(by_policies.q, reward_of(mdp) + mdp.gamma * mdp.transition @ best)
    close(by_values.q, by_policies.q, atol=1e-10)
    assert torch.equal(by_policies.policy, by_values.policy)
    close(evaluate(mdp, by_policies.policy).v, best)


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.booleans())
def test_backward_induction_finds_what_trying_every_policy_finds(seed: int, discounted: bool) -> None:
    mdp = random_mdp(2, 2, seed=seed, horizon=3, gamma=0.7 if discounted else 1.0)
    found = backward_induction(mdp)
    each = [deterministic(p, 2) for p in itertools.product(range(2), repeat=2)]
    every = [torch.stack(steps) for steps in itertools.product(each, repeat=3)]
    best = torch.stack([evaluate_finite(mdp, policy).v for policy in every]).amax(0)
    close(found.v, best)
    again = evaluate_finite(mdp, found.policy)
    close(again.v, best)
    close(again.q, found.q)


@pytest.mark.parametrize("optimum", [policy_iteration, value_iteration])
def test_the_way_along_the_cliff_costs_13(optimum: Callable[[TabularMDP], Optimum]) -> None:
    """Although many deterministic policies never end, and gamma is 1."""
    mdp = cliff_walk()
    found = optimum(mdp)
    close(found.v[36], torch.tensor(-13.0, dtype=torch.float64))
    close(evaluate(mdp, found.policy).v, found.v)
    # Straight up, along the edge, down; from above the goal's column there is one best way.
    assert found.policy.argmax(-1)[[36, 24, 34, 35]].tolist() == [0, 1, 1, 2]


def test_the_corner_of_the_four_rooms_is_20_moves_away() -> None:
    found = policy_iteration(four_rooms(slip=0.0))
    close(found.v[0], torch.tensor(0.9**19, dtype=torch.float64))


def test_ties_go_to_the_lowest_action() -> None:
    mdp = chain(length=3, gamma=0.5, early=0.25)
    found = policy_iteration(mdp)
    # At the first cell going on is worth 0.5 · 0.5, as much as quitting.
    assert found.policy.argmax(-1).tolist() == [0, 1, 1, 0]
    assert torch.equal(value_iteration(mdp).policy, found.policy)
    finite = backward_induction(replace(mdp, horizon=3))
    assert finite.policy.argmax(-1).tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 0]]


@pytest.mark.parametrize(("at_once", "best"), [(0.3, 0), (0.3 - 1e-6, 1)])
def test_rounding_does_not_break_a_tie(at_once: float, best: int) -> None:
    """0.1 + 0.2 is more than 0.3 in float64."""
    transition = torch.zeros(3, 2, 3)
    transition[0, 0, 2] = transition[0, 1, 1] = 1
    transition[1, :, 2] = 1
    reward = torch.tensor([[at_once, 0.1], [0.2, 0.2], [0.0, 0.0]], dtype=torch.float64)
    ends = torch.tensor([False, False, True])
    mdp = tabular(transition, reward, torch.eye(3)[0], gamma=1.0, terminal=ends)
    assert policy_iteration(mdp).policy[0].argmax() == best
    assert value_iteration(mdp).policy[0].argmax() == best
    assert backward_induction(replace(mdp, horizon=2)).policy[0, 0].argmax() == best


def waiting_room(wait: float, leave: float) -> TabularMDP:
    """Wait (0) or leave (1), from the second of two rooms that one may go round in."""
    transition = torch.zeros(3, 2, 3)
    transition[0, 0, 0] = transition[0, 1, 1] = transition[1, 0, 0] = transition[1, 1, 2] = 1
    reward = torch.tensor([[wait, wait], [wait, leave], [0.0, 0.0]])
    ends = torch.tensor([False, False, True])
    return tabular(transition, reward, torch.eye(3)[0], gamma=1.0, terminal=ends)


@pytest.mark.parametrize("optimum", [policy_iteration, value_iteration])
@pytest.mark.parametrize("leave", [2.0, 0.0, -2.0])
def test_a_loop_that_costs_nothing_is_left(optimum: Callable[[TabularMDP], Optimum], leave: float) -> None:
    """The lowest of the best actions would go round for ever, and its value would be 0."""
    mdp = waiting_room(0.0, leave)
    found = optimum(mdp)
    assert found.policy.argmax(-1)[:2].tolist() == [1, 1]
    close(found.v, torch.tensor([leave, leave, 0.0], dtype=torch.float64))
    close(evaluate(mdp, found.policy).v, found.v)


def test_a_loop_that_pays_has_no_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    mdp = waiting_room(1.0, 0.0)
    with pytest.raises(ValueError, match="gamma=1: found that from state 0 it never ends"):
        policy_iteration(mdp)
    monkeypatch.setattr(solve, "MAX_SWEEPS", 500)
    with pytest.raises(
        ValueError, match=r"value_iteration: found that 500 sweeps still move a value by 1\. "
    ):
        value_iteration(mdp)


def test_a_policy_that_never_ends_has_no_value_without_a_discount() -> None:
    mdp = waiting_room(-1.0, 0.0)
    with pytest.raises(
        ValueError, match=r"with gamma=1: found that from state 0 it never ends.*Use gamma < 1"
    ):
        evaluate(mdp, deterministic((0, 1, 0), 2))
    # Ends once in 10^17 steps: 1 - 1e-17 is 1 in float64.
    rare = torch.tensor([[1.0, 1e-17], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="from state 0 it never ends"):
        evaluate(mdp, rare)
    discounted = evaluate(replace(mdp, gamma=0.5), deterministic((0, 1, 0), 2))
    close(discounted.v, torch.tensor([-2.0, 0.0, 0.0], dtype=torch.float64))


def test_gradient_flows_to_a_policy_that_changes_with_the_step() -> None:
    mdp = random_mdp(seed=3, horizon=2)
    policy = torch.full((2, 3, 2), 0.5, dtype=torch.float64, requires_grad=True)
    finite = evaluate_finite(mdp, policy)
    (slope,) = torch.autograd.grad(finite.expected_return, policy)
    close(slope, (finite.occupancy[:, :, None] * finite.q).detach())


@pytest.mark.parametrize(
    ("asked", "horizon", "message"),
    [
        (lambda m: evaluate(m, random_policy(m, 0)), 3, "evaluate with horizon=3: .* Use evaluate_finite"),
        (policy_iteration, 3, "policy_iteration with horizon=3"),
        (value_iteration, 3, "value_iteration with horizon=3"),
        (
            lambda m: evaluate_finite(m, random_policy(m, 0)),
            None,
            "evaluate_finite with horizon=None: it counts",
        ),
        (backward_induction, None, r"backward_induction with horizon=None: .*replace\(mdp, horizon="),
    ],
)
def test_a_horizon_is_not_ignored(
    asked: Callable[[TabularMDP], object], horizon: int | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        asked(random_mdp(horizon=horizon))


def test_a_policy_is_a_distribution_per_state(unchecked: None) -> None:
    del unchecked
    mdp, cut = random_mdp(horizon=None), random_mdp(horizon=4)
    with pytest.raises(ValueError, match=r"policy \(2, 3\) with transition \(3, 2, 3\): pass .* \(3, 2\)"):
        evaluate(mdp, torch.full((2, 3), 1 / 3))
    with pytest.raises(ValueError, match=r"policy \(3, 3, 2\) with .* shape \(3, 2\) or \(4, 3, 2\)"):
        evaluate_finite(cut, torch.full((3, 3, 2), 0.5))
    with pytest.raises(ValueError, match=r"policy \(4, 3, 2\) with .* shape \(3, 2\)\."):
        evaluate(mdp, torch.full((4, 3, 2), 0.5))
    wrong = torch.full((4, 3, 2), 0.5, dtype=torch.float64)
    wrong[2, 1, 0] = 0.25
    with pytest.raises(ValueError, match=r"policy\[2, 1\] does not sum to 1: found the sum 0\.75"):
        evaluate_finite(cut, wrong)
    with pytest.raises(ValueError, match=r"policy\[0\] has a negative"):
        evaluate(mdp, torch.tensor([[1.5, -0.5]] * 3, dtype=torch.float64))
    for asked, world in ((evaluate, mdp), (evaluate_finite, cut)):
        with pytest.raises(ValueError, match=r"policy torch.float32: .* theta\.double\(\)\.softmax"):
            asked(world, torch.full((3, 2), 0.5))


def test_the_uniform_walk_down_the_corridor() -> None:
    """By hand: v = -12, -10, -6 for p = 1/2 (the switched cell changes nothing there)."""
    values = evaluate(corridor(), torch.full((4, 2), 0.5, dtype=torch.float64))
    close(values.v, torch.tensor([-12.0, -10.0, -6.0, 0.0], dtype=torch.float64))
    close(values.occupancy, torch.tensor([6.0, 4.0, 2.0, 0.0], dtype=torch.float64))
