"""Three roads to ∇J, and the natural gradient, meet."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from worlds import SEEDS, random_theta, worlds

from gradhat.exact.enumerate import count_paths, paths
from gradhat.exact.gradient import by_autograd, by_enumeration, by_theorem, fisher, natural
from gradhat.exact.mdp import TabularMDP, softmax_policy, tabular
from gradhat.exact.solve import evaluate, evaluate_finite, expected_return
from gradhat.exact.zoo import ZOO, WorldTurn, cliff_walk, hurry, random_mdp, tiger, token_mdp


def close(found: Tensor, expected: Tensor) -> None:
    """To 1e-10, of the largest number where that is above 1."""
    bound = 1e-10 * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected, rtol=0, atol=bound)


@pytest.mark.parametrize("name", ZOO)
def test_the_three_gradients_agree_in_the_zoo(name: str) -> None:
    mdp = ZOO[name]()
    theta = 0.5 * random_theta(mdp, 1)
    gradient = by_theorem(mdp, theta)
    assert float(gradient.norm()) > 1e-5
    close(by_autograd(mdp, theta), gradient)
    whole = replace(mdp, time_limit=None)
    if count_paths(whole) < 10_000:
        close(by_enumeration(whole, theta), gradient)


def test_a_time_limit_is_no_part_of_the_gradient() -> None:
    mdp = hurry()
    theta = random_theta(mdp, 1)
    with pytest.raises(ValueError, match=r"time_limit=2: found trajectories that are cut .* Use by_theorem"):
        by_enumeration(mdp, theta)
    late = replace(mdp, time_limit=6)
    assert torch.equal(by_enumeration(late, theta), by_enumeration(replace(mdp, time_limit=None), theta))


@settings(max_examples=60, deadline=None)
@given(worlds(horizons=st.integers(1, 3)), SEEDS)
def test_the_three_gradients_agree_over_a_horizon(mdp: TabularMDP, seed: int) -> None:
    theta = random_theta(mdp, seed)
    gradient = by_theorem(mdp, theta)
    close(by_autograd(mdp, theta), gradient)
    close(by_enumeration(mdp, theta), gradient)


@settings(max_examples=60, deadline=None)
@given(worlds(horizons=st.none()), SEEDS)
def test_theorem_and_solve_agree_without_a_horizon(mdp: TabularMDP, seed: int) -> None:
    theta = random_theta(mdp, seed)
    close(by_autograd(mdp, theta), by_theorem(mdp, theta))


@pytest.mark.parametrize("seed", range(4))
def test_a_loop_that_nobody_comes_to_is_no_part_of_the_gradient(seed: int) -> None:
    """From 0 by way of 1 to the end, or at once; from 2 nowhere, and it pays. No discount."""
    P = torch.zeros(4, 2, 4)
    P[0, 0, 1] = P[0, 1, 3] = P[1, :, 3] = P[2, :, 2] = 1
    reward = torch.tensor([[1.0, 2.0], [3.0, -1.0], [7.0, 7.0], [0.0, 0.0]])
    mdp = tabular(P, reward, torch.eye(4)[0], gamma=1.0, terminal=torch.arange(4) == 3)
    theta = random_theta(mdp, seed)
    gradient = by_enumeration(mdp, theta)
    assert gradient[0].abs().max() > 0.01 and (gradient[2] == 0).all()
    close(by_theorem(mdp, theta), gradient)
    close(by_autograd(mdp, theta), gradient)
    assert natural(mdp, theta).isfinite().all()


@pytest.mark.parametrize("horizon", [None, 3])
def test_the_gradient_is_the_slope_of_the_expected_return(horizon: int | None) -> None:
    mdp = random_mdp(4, 3, seed=2, horizon=horizon, num_observations=3, num_terminal=1)
    theta, step = random_theta(mdp, 3), 1e-6
    slope = torch.zeros_like(theta)
    for place in torch.cartesian_prod(torch.arange(3), torch.arange(3)):
        o, a = place.tolist()
        up, down = theta.clone(), theta.clone()
        up[o, a] += step
        down[o, a] -= step
        rise = expected_return(mdp, softmax_policy(mdp, up)) - expected_return(mdp, softmax_policy(mdp, down))
        slope[o, a] = rise / (2 * step)
    torch.testing.assert_close(by_theorem(mdp, theta), slope, rtol=0, atol=1e-8)


def test_where_the_policy_does_not_act_there_is_no_gradient() -> None:
    mdp = token_mdp(2, 4, turn=WorldTurn(1, (0.25, 0.75)))
    theta = random_theta(mdp, 0)
    elsewhere = ~mdp.own | mdp.terminal
    assert int(elsewhere.sum()) == 3
    assert (by_theorem(mdp, theta)[mdp.observation[elsewhere]] == 0).all()
    assert (by_enumeration(mdp, theta)[mdp.observation[elsewhere]] == 0).all()
    assert by_autograd(mdp, theta)[mdp.observation[elsewhere]].abs().max() < 1e-16
    assert (by_theorem(mdp, theta)[0] != 0).all()
    num_actions = mdp.num_actions
    s = int((~mdp.own).nonzero()[0])
    assert (fisher(mdp, theta)[s * num_actions : (s + 1) * num_actions] == 0).all()
    assert (natural(mdp, theta)[s] == 0).all()


@settings(max_examples=40, deadline=None)
@given(worlds(horizons=st.none()), SEEDS)
def test_the_natural_gradient_is_the_advantage_where_the_state_is_seen(mdp: TabularMDP, seed: int) -> None:
    mdp = replace(mdp, observation=torch.arange(mdp.num_states))
    theta = random_theta(mdp, seed)
    values = evaluate(mdp, softmax_policy(mdp, theta))
    occupancy, adv = values.occupancy, values.adv
    centred = adv - adv.mean(-1, keepdim=True)
    visited = (occupancy > 0)[:, None]
    close(natural(mdp, theta), torch.where(visited, occupancy.sum() * centred, 0))


@settings(max_examples=40, deadline=None)
@given(worlds(horizons=st.none() | st.integers(1, 3)), SEEDS)
def test_the_fisher_matrix_times_the_natural_gradient_is_the_gradient(mdp: TabularMDP, seed: int) -> None:
    theta = random_theta(mdp, seed)
    close(fisher(mdp, theta) @ natural(mdp, theta).flatten(), by_theorem(mdp, theta).flatten())


@settings(max_examples=20, deadline=None)
@given(worlds(horizons=st.integers(1, 3)), SEEDS)
def test_the_fisher_matrix_is_the_mean_square_of_the_scores_that_are_met(mdp: TabularMDP, seed: int) -> None:
    theta = random_theta(mdp, seed)
    every = paths(mdp)
    chance = every.probability(theta)
    pi = theta.softmax(-1)
    total, weights = torch.zeros(theta.numel(), theta.numel(), dtype=torch.float64), 0.0
    for n in range(len(every)):
        for t in range(every.actions.shape[1]):
            if every.mask[n, t]:
                o, a = int(every.observations[n, t]), int(every.actions[n, t])
                score = torch.zeros_like(theta)
                score[o] = -pi[o]
                score[o, a] += 1
                weight = float(chance[n]) * mdp.gamma**t
                total += weight * torch.outer(score.flatten(), score.flatten())
                weights += weight
    close(fisher(mdp, theta), total / weights)


def test_under_a_horizon_the_fisher_matrix_counts_every_step() -> None:
    mdp = tiger()
    theta = random_theta(mdp, 0)
    policy = softmax_policy(mdp, theta)
    occupancy = evaluate_finite(mdp, policy).occupancy.sum(0)
    share = occupancy / occupancy.sum()
    first, a, b = 0, 1, 2
    shown = share[mdp.observation == first].sum()
    pi = policy[0]
    matrix = fisher(mdp, theta)
    assert matrix.shape == (12, 12)
    close(matrix[a, b], -shown * pi[a] * pi[b])
    close(matrix[a, a], shown * pi[a] * (1 - pi[a]))
    assert (matrix[:3, 3:] == 0).all()


def test_logits_of_any_precision_give_a_gradient_in_float64_and_keep_theirs() -> None:
    mdp = random_mdp()
    theta = random_theta(mdp, 0).float().requires_grad_()
    exact = by_theorem(mdp, theta.detach().double())
    for gradient in (by_theorem, by_autograd, by_enumeration):
        found = gradient(mdp, theta)
        assert found.dtype == torch.float64
        assert not found.requires_grad
        close(found, exact)
    assert theta.grad is None


def test_logits_of_another_world_are_refused(unchecked: None) -> None:
    del unchecked
    mdp = random_mdp(horizon=None)
    for function in (by_theorem, by_autograd, fisher, natural):
        with pytest.raises(
            ValueError, match=r"theta \(2, 2\) with 3 observations and 2 actions: pass logits"
        ):
            function(mdp, torch.zeros(2, 2))


def test_a_world_with_endless_trajectories_is_not_enumerated() -> None:
    mdp = cliff_walk()
    with pytest.raises(ValueError, match="the limit is 200000"):
        by_enumeration(mdp, random_theta(mdp, 0))
    with pytest.raises(ValueError, match=r"found 768\b.*limit is 700"):
        by_enumeration(random_mdp(), random_theta(random_mdp(), 0), limit=700)


def test_where_the_policy_never_acts_the_fisher_matrix_is_zero() -> None:
    mdp = random_mdp(horizon=2)
    mdp = replace(
        mdp,
        own=torch.zeros_like(mdp.own),
        transition=mdp.transition[:, :1].expand_as(mdp.transition),
        reward=mdp.reward[:, :1].expand_as(mdp.reward),
    )
    assert not fisher(mdp, random_theta(mdp, 0)).any()
