"""TRPO: the step stays in its ball and never lowers what it maximises, or it is not taken."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onpolicy import (
    Adam,
    Remembers,
    generator,
    layered,
    lived,
    logits,
    random_batch,
    random_policy,
    without_credit,
)
from torch import Tensor

from gradhat.algorithms import critic, trpo
from gradhat.algorithms.trpo import Settings, conjugate_gradient, line_search, natural_step, reached, update
from gradhat.exact.enumerate import paths
from gradhat.exact.gradient import by_theorem, fisher, natural
from gradhat.exact.mdp import TabularMDP, softmax_policy
from gradhat.exact.solve import evaluate
from gradhat.exact.zoo import bandit
from gradhat.policies.mlp import MLPPolicy
from gradhat.trajectories import Trajectories

F64 = torch.float64
TRUST = "trust_region/"


def lesson(policy: MLPPolicy, seed: int = 0) -> Trajectories:
    return critic.credit(policy, random_batch(policy, seed=seed), gamma=0.9, lam=0.9)


def weights(policy: MLPPolicy) -> dict[str, Tensor]:
    return {name: w.clone() for name, w in policy.module.state_dict().items()}


def reading(policy: MLPPolicy, batch: Trajectories) -> tuple[Tensor, Tensor]:
    """(log-probability of the actions, parameters of the distributions) at own steps, as data."""
    pi = policy.distribution(batch)
    log_std = policy.module.log_std
    outputs = policy.module.actor(batch.observations)[batch.mask].detach()
    spread = torch.zeros(1) if log_std is None else log_std.detach().clone()
    return pi.logp(batch.actions)[batch.mask].detach(), torch.cat(
        [outputs, spread.expand(len(outputs), -1)], 1
    )


def divergence(old: Tensor, new: Tensor, continuous: bool) -> float:
    """KL(old ‖ new), mean over steps, with torch's own distributions."""
    from torch.distributions import Categorical, Independent, Normal, kl_divergence

    def made(numbers: Tensor) -> Categorical | Independent:
        if continuous:
            return Independent(Normal(numbers[:, :2], numbers[:, 2:].exp()), 1)
        return Categorical(logits=numbers[:, :2])

    return kl_divergence(made(old), made(new)).mean().item()


@given(
    seed=st.integers(0, 10**6),
    max_kl=st.sampled_from([1e-4, 0.01, 0.3]),
    damping=st.sampled_from([1e-3, 0.1]),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    continuous=st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_the_step_stays_in_its_ball_and_lowers_nothing(
    seed: int, max_kl: float, damping: float, scale: float, continuous: bool
) -> None:
    policy = random_policy(3, 2, seed=seed, continuous=continuous)
    batch = lesson(policy, seed)
    batch = replace(batch, adv=scale * critic.credited(batch)[0])
    before, (logp_old, old) = weights(policy), reading(policy, batch)
    metrics = natural_step(policy, batch, Settings(max_kl=max_kl, cg_damping=damping))
    after, (logp, new) = weights(policy), reading(policy, batch)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    if metrics[TRUST + "accepted"]:
        kl = divergence(old, new, continuous)
        adv = critic.credited(batch)[0][batch.mask]
        gained = (((logp - logp_old).exp() - 1) * adv).mean().item()
        assert kl <= max_kl * (1 + 1e-9)
        assert kl == pytest.approx(metrics[TRUST + "kl"], rel=1e-6, abs=1e-14)
        assert gained > 0 and gained == pytest.approx(metrics[TRUST + "improvement"], rel=1e-4)
        assert moved and not any(name.startswith("critic") for name in moved)
    else:
        assert not moved and metrics[TRUST + "kl"] == metrics[TRUST + "improvement"] == 0


def test_a_small_step_fills_its_ball() -> None:
    """Where the quadratic model holds and damping is small, D is δ: the step is √(2δ / dᵀFd) · d."""
    for seed in range(3):
        policy = random_policy(3, 2, seed=seed, hidden=())
        found = natural_step(policy, lesson(policy), Settings(max_kl=1e-6, cg_damping=1e-6, cg_iterations=50))
        assert found[TRUST + "accepted"] == 1 and found[TRUST + "backtracks"] <= 1
        assert found[TRUST + "kl"] == pytest.approx(1e-6 * 0.64 ** found[TRUST + "backtracks"], rel=0.02)


def table(mdp: TabularMDP) -> MLPPolicy:
    """A softmax of one logit per observation and action: no hidden layer, no bias."""
    policy = random_policy(mdp.num_observations, mdp.num_actions, hidden=(), critic=False)
    bias = policy.module.actor.biases[0]
    bias.data.zero_()
    bias.requires_grad_(False)
    return policy


def expected_step(
    mdp: TabularMDP, policy: MLPPolicy, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Tensor:
    """The step `[O, A]` that is tried first: exact advantages, and every trajectory at once, each counted as
    much as it is probable."""
    theta, every = logits(mdp, policy).detach(), paths(mdp)
    batch, chance = lived(mdp, every, theta), every.probability(theta)
    adv = evaluate(mdp, softmax_policy(mdp, theta)).adv[every.states, every.actions]
    num_steps = float((chance[:, None] * batch.mask).sum())
    tried: list[Tensor] = []

    def weighted(mask: Tensor, *, num_tokens: int) -> Tensor:
        assert num_tokens == int(mask.sum())
        return chance[:, None] * mask / num_steps

    def search(parameters: list[Tensor], step: Tensor, *_: object) -> trpo.Search:
        (weight,) = parameters
        tried.append(step.reshape(weight.shape).T)
        return trpo.Search(False, 0, 0.0, 0.0)

    monkeypatch.setattr(trpo.reduce, "per_token", weighted)
    monkeypatch.setattr(trpo, "line_search", search)
    adv = torch.where(batch.mask, adv, 0)
    natural_step(policy, replace(batch, adv=adv, targets=adv), settings)
    return tried[0]


@pytest.mark.parametrize("max_kl", [0.01, 0.03])
def test_the_step_is_the_natural_gradient_and_fills_the_ball(
    max_kl: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a table F⁻¹ g is known exactly: x = √(2δ / gᵀF⁺g) · F⁺ g, and by hand where the diagonal of F is
    raised by 0.1: x = √(2δ / gᵀ(F + 0.1)⁻¹g) · (F + 0.1)⁻¹ g."""
    mdp = layered()
    policy = table(mdp)
    theta = logits(mdp, policy).detach()
    # g is ∇L, a mean over steps: every trajectory has two.
    g, exact = by_theorem(mdp, theta).flatten() / 2, natural(mdp, theta).flatten() / 2
    numbers = Settings(max_kl=max_kl, cg_iterations=50)
    found = expected_step(mdp, policy, replace(numbers, cg_damping=0.0), monkeypatch).flatten()
    torch.testing.assert_close(found, (2 * max_kl / (g @ exact)).sqrt() * exact, rtol=0, atol=1e-8)
    F = fisher(mdp, theta)
    assert float(found @ F @ found) / 2 == pytest.approx(max_kl, rel=1e-8)
    damped = torch.linalg.solve(F + 0.1 * torch.eye(len(g), dtype=F64), g)
    found = expected_step(mdp, policy, replace(numbers, cg_damping=0.1), monkeypatch).flatten()
    torch.testing.assert_close(found, (2 * max_kl / (g @ damped)).sqrt() * damped, rtol=0, atol=1e-8)
    assert float(found @ F @ found) / 2 < 0.9 * max_kl


def test_the_length_of_a_step_between_two_arms_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """π = ½: F = ¼ [[1, −1], [−1, 1]] has the eigenvalue ½ along g ∝ (1, −1), so that d ∝ g and
    xᵀ(F + 0.1) x = 2δ: x = √(δ / 0.6) · (1, −1)."""
    mdp = bandit((3.0, 1.0))
    policy = table(mdp)
    policy.module.actor.weights[0].data.zero_()
    found = expected_step(mdp, policy, Settings(max_kl=0.006, cg_damping=0.1), monkeypatch)
    torch.testing.assert_close(found[0], torch.tensor([0.1, -0.1], dtype=F64), rtol=0, atol=1e-12)


def test_the_size_of_the_advantages_drops_out() -> None:
    ends: list[dict[str, Tensor]] = []
    for scale in (1.0, 1000.0):
        policy = random_policy(3, 2)
        batch = lesson(policy)
        natural_step(policy, replace(batch, adv=scale * critic.credited(batch)[0]), Settings())
        ends.append(weights(policy))
    for name, weight in ends[0].items():
        torch.testing.assert_close(weight, ends[1][name], rtol=0, atol=1e-9)


def test_without_credit_to_give_nothing_moves() -> None:
    policy = random_policy(3, 2)
    batch = lesson(policy)
    for adv in (torch.zeros_like(batch.rewards), torch.full_like(batch.rewards, math.nan)):
        before = weights(policy)
        metrics = natural_step(policy, replace(batch, adv=adv), Settings(backtrack_steps=3))
        assert metrics[TRUST + "accepted"] == 0 and metrics[TRUST + "backtracks"] == 3
        assert all(torch.equal(w, before[name]) for name, w in weights(policy).items())


def test_only_what_the_surrogate_depends_on_moves() -> None:
    policy = random_policy(3, 2, continuous=True)
    batch = lesson(policy)
    names = {id(p): name for name, p in policy.module.named_parameters()}
    parameters, gradient = reached(policy.module, policy.evaluate(batch).logp.sum())
    assert {names[id(p)].split(".")[0] for p in parameters} == {"actor", "log_std"}
    assert gradient.shape == (sum(p.numel() for p in parameters),)


@given(seed=st.integers(0, 10**6), size=st.integers(1, 8))
@settings(max_examples=50, deadline=None)
def test_conjugate_gradient_solves_the_system(seed: int, size: int) -> None:
    draw = generator(seed)
    root = torch.randn(size, size, generator=draw, dtype=F64)
    matrix = root @ root.T + 0.5 * torch.eye(size, dtype=F64)
    wanted = torch.randn(size, generator=draw, dtype=F64)
    found = conjugate_gradient(lambda v: matrix @ v, wanted, num_iterations=5 * size)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, wanted), rtol=1e-3, atol=1e-4)


def test_conjugate_gradient_stops_where_nothing_is_left() -> None:
    products: list[Tensor] = []

    def product(vector: Tensor) -> Tensor:
        products.append(vector)
        return 2 * vector

    assert conjugate_gradient(product, torch.ones(3), num_iterations=10).tolist() == [0.5] * 3
    assert conjugate_gradient(product, torch.zeros(3), num_iterations=10).tolist() == [0.0] * 3
    assert len(products) == 1


@pytest.mark.parametrize(("tries", "accepted"), [(6, True), (4, False)])
def test_the_line_search_takes_the_first_step_that_both_rises_and_stays(tries: int, accepted: bool) -> None:
    parameters = [torch.tensor([1.0]), torch.tensor([2.0])]
    answers = iter([(1.0, 0.2), (-1.0, 0.0), (math.nan, 0.0), (0.0, 0.0), (1e-9, 0.1), (5.0, 0.0)])
    places: list[list[float]] = []

    def measure() -> tuple[float, float]:
        places.append(torch.cat(parameters).tolist())
        return next(answers)

    numbers = Settings(max_kl=0.1, backtrack_coef=0.5, backtrack_steps=tries)
    found = line_search(parameters, torch.tensor([8.0, -8.0]), measure, numbers)
    assert found == (trpo.Search(True, 4, 1e-9, 0.1) if accepted else trpo.Search(False, 4, 0.0, 0.0))
    assert places == [[1 + 8 * 0.5**i, 2 - 8 * 0.5**i] for i in range(5 if accepted else 4)]
    assert torch.cat(parameters).tolist() == ([1.5, 1.5] if accepted else [1.0, 2.0])


@pytest.mark.parametrize("kind", [MLPPolicy, Remembers])
def test_the_update_moves_the_policy_and_fits_its_critic(kind: type[MLPPolicy]) -> None:
    policy = kind(random_policy(3, 2).module)
    batch = lesson(policy)
    adv, targets = critic.credited(batch)
    with torch.no_grad():
        evaluation = policy.evaluate(batch)
    before = weights(policy)
    settings_ = Settings(value_epochs=3, value_minibatches=2)
    metrics = update(policy, Adam(policy.module), batch, settings_, generator())
    moved = {name.split(".")[0] for name, w in weights(policy).items() if not torch.equal(w, before[name])}
    assert moved == {"actor", "critic"}
    own = batch.mask
    assert metrics["entropy"] == pytest.approx(evaluation.entropy[own].mean().item())
    assert metrics["explained_variance"] == pytest.approx(1 - (adv[own].var() / targets[own].var()).item())
    assert metrics["sampling/sampling_logp_difference/max"] < 1e-14
    assert metrics["diagnostics/surrogate_loss"] == pytest.approx(-adv[own].mean().item())
    assert metrics["diagnostics/value_loss"] > 0 and metrics["grad_norm"] > 0


def test_credit_comes_before_the_update() -> None:
    policy = random_policy(3, 2)
    with pytest.raises(ValueError, match="without credit and targets"):
        update(policy, Adam(policy.module), without_credit(lesson(policy)), Settings(), generator())
