"""The expected update is ∇J, through the networks that play CartPole: a small world has so many batches.

Where the denominator counts steps (A2C, PPO, TRPO) all trajectories of the world are equally long, so that
the count is fixed. With T steps each, the expected update is ∇J / T.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from onpolicy import (
    Update,
    actor_part,
    exact_gradient,
    expected_gradient,
    generator,
    knowing,
    layered,
    lived,
    logits,
    random_policy,
    seen_gradient,
    values,
)
from torch import Tensor
from torch.nn.functional import one_hot
from toy import Recorder

from gradhat.algorithms import a2c, critic, ppo, reinforce, trpo
from gradhat.algorithms.ascend import Optimizer
from gradhat.estimators.gae import gae
from gradhat.exact.enumerate import paths
from gradhat.exact.gradient import fisher
from gradhat.exact.mdp import TabularMDP, with_time
from gradhat.exact.zoo import random_mdp
from gradhat.policies.mlp import MLPPolicy
from gradhat.trajectories import Trajectories

F64 = torch.float64
DEPTH = 2
WORLD = layered(depth=DEPTH)
"""Two steps, whatever happens; γ = 1."""
UNEVEN = replace(
    random_mdp(3, 2, seed=0, gamma=0.5, horizon=3, branching=1, num_terminal=1),
    start=torch.tensor([0.6, 0.4, 0.0], dtype=F64),
)
"""From one step to three, where the problem ends; γ = 0.5."""
LOOP = replace(
    random_mdp(3, 2, seed=6, gamma=0.8, horizon=None, branching=1),
    start=torch.tensor([0.6, 0.4, 0.0], dtype=F64),
)
"""Nothing ends it, and what pays in the end is not what pays at first."""


def network(mdp: TabularMDP) -> MLPPolicy:
    return random_policy(mdp.num_observations, mdp.num_actions, seed=3)


def by_reinforce(settings: reinforce.Settings, average: float = 0.0) -> Update:
    def update(policy: MLPPolicy, optimizer: Optimizer, batch: Trajectories) -> None:
        reinforce.update(policy, optimizer, reinforce.credit(settings, average, batch, policy)[0])

    return update


def by_a2c(
    policy: MLPPolicy, optimizer: Optimizer, batch: Trajectories, *, lam: float, gamma: float = 1.0
) -> None:
    a2c.update(policy, optimizer, critic.credit(policy, batch, gamma=gamma, lam=lam), a2c.Settings())


def by_ppo(
    policy: MLPPolicy, optimizer: Optimizer, batch: Trajectories, *, lam: float, gamma: float = 1.0
) -> None:
    settings = ppo.Settings(num_epochs=1, num_minibatches=1, normalize_adv=False)
    ppo.update(policy, optimizer, critic.credit(policy, batch, gamma=gamma, lam=lam), settings, generator())


def by_trpo(
    policy: MLPPolicy, optimizer: Recorder, batch: Trajectories, *, lam: float, gamma: float = 1.0
) -> None:
    """What the page solves F d = g for; no step is taken."""
    found: list[Tensor] = []

    def solve(_product: object, wanted: Tensor, **_: int) -> Tensor:
        found.append(wanted)
        return torch.zeros_like(wanted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trpo, "conjugate_gradient", solve)
        trpo.natural_step(policy, critic.credit(policy, batch, gamma=gamma, lam=lam), trpo.Settings())
    optimizer.gradient = {"actor": found[0]}


PAGES = {"a2c": by_a2c, "ppo": by_ppo, "trpo": by_trpo}


def error(
    mdp: TabularMDP,
    policy: MLPPolicy,
    update: Update,
    *,
    size: int,
    times: float = 1.0,
    of: Callable[[TabularMDP, MLPPolicy], Tensor] = exact_gradient,
) -> float:
    """The largest deviation of E[update] · times from ∇J, or what `of` says, which is not small itself."""
    wanted = of(mdp, policy)
    assert wanted.abs().max() > 0.05
    return float((expected_gradient(mdp, policy, update, size) * times - wanted).abs().max())


@pytest.mark.parametrize("baseline", ["none", "moving_average", "critic"])
@pytest.mark.parametrize("credit", ["total", "discounted"])
def test_reinforce_is_unbiased_in_any_world(credit: str, baseline: str) -> None:
    settings = reinforce.Settings(gamma=UNEVEN.gamma, credit=credit, baseline=baseline)  # pyright: ignore
    assert error(UNEVEN, network(UNEVEN), by_reinforce(settings, average=0.7), size=2) < 1e-12


@pytest.mark.parametrize("baseline", ["none", "moving_average", "critic"])
def test_the_reward_to_go_is_unbiased_without_a_discount(baseline: str) -> None:
    settings = reinforce.Settings(gamma=1.0, credit="to_go", baseline=baseline)  # pyright: ignore
    assert error(WORLD, network(WORLD), by_reinforce(settings, average=0.7), size=2) < 1e-12


def test_leaving_out_the_discount_of_late_steps_is_a_bias() -> None:
    settings = reinforce.Settings(gamma=UNEVEN.gamma, credit="to_go", baseline="none")
    assert error(UNEVEN, network(UNEVEN), by_reinforce(settings), size=1) > 5e-3


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("size", [1, 2])
def test_with_rewards_to_the_end_any_critic_is_unbiased(page: str, size: int) -> None:
    update = partial(PAGES[page], lam=1.0)
    assert error(WORLD, network(WORLD), update, size=size, times=DEPTH) < 1e-12


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("lam", [0.0, 0.4])
def test_the_true_value_may_stand_for_the_rest(page: str, lam: float) -> None:
    policy, update = network(WORLD), partial(PAGES[page], lam=lam)
    assert error(WORLD, policy, update, size=1, times=DEPTH) > 1e-2, "the random critic must be wrong"
    knowing(policy, values(WORLD, policy))
    assert error(WORLD, policy, update, size=1, times=DEPTH) < 1e-12


# --- a problem that ends after some steps, and one that is cut ---------------------------------------------

ENDS = replace(LOOP, gamma=1.0, horizon=DEPTH)
CUT = replace(LOOP, time_limit=DEPTH)


@pytest.mark.parametrize("page", PAGES)
def test_at_a_horizon_any_critic_is_unbiased(page: str) -> None:
    """λ = 1. What the critic says of the state there does not count."""
    assert paths(ENDS).terminated[:, -1].all()
    assert error(ENDS, network(ENDS), partial(PAGES[page], lam=1.0), size=1, times=DEPTH) < 1e-12


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("lam", [0.0, 0.4])
def test_at_a_horizon_the_true_value_needs_to_see_the_step(page: str, lam: float) -> None:
    timed, update = with_time(ENDS), partial(PAGES[page], lam=lam)
    policy = network(timed)
    knowing(policy, values(timed, policy))
    assert error(timed, policy, update, size=1, times=DEPTH) < 1e-12
    # Of the first step's values at every step: those of a state that does not know how much is left.
    blind = values(timed, policy)[: LOOP.num_states].repeat(DEPTH + 1)
    assert error(timed, knowing(policy, blind), update, size=1, times=DEPTH) > 1e-3


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("lam", [0.0, 0.4, 1.0])
def test_at_a_time_limit_the_problem_goes_on(page: str, lam: float) -> None:
    """With the true V the steps that are seen count as in the problem without the limit, for any λ."""
    assert paths(CUT).truncated[:, -1].all()
    update, policy = partial(PAGES[page], lam=lam, gamma=CUT.gamma), network(CUT)
    knowing(policy, values(CUT, policy))
    found = DEPTH * expected_gradient(CUT, policy, update, 1)
    torch.testing.assert_close(found, seen_gradient(CUT, policy), rtol=0, atol=1e-12)
    # It climbs J without the limit; what the episodes pay is another objective.
    endless = exact_gradient(CUT, policy)
    within = exact_gradient(replace(LOOP, gamma=1.0, horizon=DEPTH), policy)
    alike = partial(torch.cosine_similarity, dim=0)
    assert float(alike(found, endless)) > 0.9 and float(alike(within, endless)) < 0.2


def test_at_a_time_limit_a_critic_matters_even_without_a_trace() -> None:
    """λ = 1: what it says of the state at the cut stands for all that follows."""
    update = partial(by_a2c, lam=1.0, gamma=CUT.gamma)
    assert error(CUT, network(CUT), update, size=1, times=DEPTH, of=seen_gradient) > 1e-2


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_a_cut_that_is_taken_for_an_end_or_leads_elsewhere_is_found_out(lam: float) -> None:
    def dead(policy: MLPPolicy, optimizer: Optimizer, batch: Trajectories) -> None:
        ended = batch.terminated | batch.truncated
        batch = replace(batch, terminated=ended, truncated=torch.zeros_like(ended))
        by_a2c(policy, optimizer, batch, lam=lam, gamma=CUT.gamma)

    def elsewhere(policy: MLPPolicy, optimizer: Optimizer, batch: Trajectories) -> None:
        following = batch.next_observations
        assert isinstance(following, Tensor)
        last = following.clone()
        last[:, -1] = one_hot(torch.tensor(CUT.num_states - 1), CUT.num_observations).double()
        by_a2c(policy, optimizer, replace(batch, next_observations=last), lam=lam, gamma=CUT.gamma)

    policy = network(CUT)
    knowing(policy, values(CUT, policy))
    for planted in (dead, elsewhere):
        assert error(CUT, policy, planted, size=1, times=DEPTH, of=seen_gradient) > 1e-2


@pytest.mark.parametrize("baseline", ["none", "critic"])
@pytest.mark.parametrize("credit", ["total", "discounted"])
def test_reinforce_climbs_what_its_episodes_pay(credit: str, baseline: str) -> None:
    """Without a bootstrap a cut is the end: on both worlds E ĝ is the gradient of the return until there."""
    settings = reinforce.Settings(gamma=LOOP.gamma, credit=credit, baseline=baseline)  # pyright: ignore
    ends = replace(LOOP, horizon=DEPTH)
    for mdp in (ends, CUT):
        update = by_reinforce(settings)
        assert error(mdp, network(mdp), update, size=1, of=lambda _, p: exact_gradient(ends, p)) < 1e-12
    assert error(CUT, network(CUT), by_reinforce(settings), size=1) > 0.02


def test_a_last_step_without_credit_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(*numbers: Tensor, gamma: float, lam: float) -> Tensor:
        adv = gae(*numbers, gamma=gamma, lam=lam)
        adv[:, -1] = 0
        return adv

    monkeypatch.setattr(critic, "gae", forgetful)
    assert error(WORLD, network(WORLD), partial(by_a2c, lam=1.0), size=1, times=DEPTH) > 1e-2


def test_the_product_with_the_fisher_matrix_is_exact() -> None:
    policy = network(WORLD)
    actor = list(policy.module.actor.parameters())
    theta = logits(WORLD, policy)
    every = paths(WORLD)
    trajectories = lived(WORLD, every, theta)
    vector = torch.randn(sum(p.numel() for p in actor), generator=generator(5), dtype=F64)
    old = policy.distribution(trajectories).detach()
    weight = every.probability(theta).detach()[:, None] * trajectories.mask / DEPTH
    found = trpo.fisher_product((old.kl(policy.distribution(trajectories)) * weight).sum(), actor)(vector)

    rows = [torch.autograd.grad(t, actor, retain_graph=True) for t in theta.flatten()]
    jacobian = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    wanted = jacobian.T @ (fisher(WORLD, theta) @ (jacobian @ vector))
    assert wanted.abs().max() > 0.05
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_the_critic_moves_by_its_error_alone() -> None:
    """E of the critic's part, with a linear critic: c_V · E Σ_t (y_t − V(s_t)) / N in each state's entry."""
    policy = network(WORLD)
    guess = torch.randn(WORLD.num_states, generator=generator(2), dtype=F64)
    knowing(policy, guess)
    theta = logits(WORLD, policy).detach()
    every = paths(WORLD)
    chance = every.probability(theta)
    found, wanted = torch.zeros(WORLD.num_states, dtype=F64), torch.zeros(WORLD.num_states, dtype=F64)
    for row in range(len(every)):
        recorder = Recorder(policy.module)
        by_a2c(policy, recorder, lived(WORLD, every.select(torch.tensor([row])), theta), lam=1.0)
        found += chance[row] * recorder.gradient["critic.weights.0"][0]
        to_go = every.rewards[row].flip(0).cumsum(0).flip(0)
        wanted.index_add_(
            0, every.states[row], 0.5 * chance[row] * (to_go - guess[every.states[row]]) / DEPTH
        )
    assert actor_part(recorder.gradient).abs().max() > 0
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
