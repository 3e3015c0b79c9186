"""Mean and variance of estimators: against brute force, known truths, counting against listing, sampling.

Brute force goes through every ordered batch and differentiates the log-probability of each trajectory by
itself (`twins`).
"""

import math
import re
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import twins
from hypothesis import given, settings
from torch import Tensor
from worlds import SEEDS, random_theta

from gradhat.estimators import group
from gradhat.exact import enumerate as every
from gradhat.exact import moments as room
from gradhat.exact.choices import MULTISETS, TUPLES
from gradhat.exact.enumerate import Batch, Outcomes, draws, paths, sampled, simulated
from gradhat.exact.mdp import TabularMDP
from gradhat.exact.moments import (
    Credit,
    Moments,
    Weights,
    classes,
    counted,
    covariance,
    moments,
    one_by_one,
    tabulated,
    totals,
    weighted,
)
from gradhat.exact.zoo import WorldTurn, bandit, chain, corridor, random_mdp, token_mdp

F64 = torch.float64


def words(*, turn: WorldTurn | None = None) -> TabularMDP:
    """Two prompts of two words and length 3; the reward counts, so that there are many classes."""
    verifiers = (lambda text, ended: float(text.count(0)), lambda text, ended: float(ended))
    return token_mdp(2, 3, verifiers=verifiers, turn=turn)


def small_world(gamma: float = 0.9) -> TabularMDP:
    """Two starts, 1 or 2 steps, stochastic transitions, look-alike states, rewards that are all different."""
    mdp = random_mdp(3, 2, seed=4, horizon=2, branching=2, num_terminal=1, gamma=gamma, num_observations=2)
    return replace(mdp, start=torch.tensor([0.7, 0.3, 0.0], dtype=F64))


def spread(batch: Outcomes, per_trajectory: Tensor) -> Tensor:
    return per_trajectory[:, None].expand(batch.rewards.shape)


def total_return(batch: Outcomes) -> Tensor:
    size = len(batch.draw) // batch.num_draws
    return spread(batch, batch.returns() / size)


def to_go(batch: Outcomes) -> Tensor:
    gamma = batch.gamma ** torch.arange(batch.rewards.shape[1], dtype=F64)
    return (batch.rewards * gamma).flip(1).cumsum(1).flip(1) / (len(batch.draw) // batch.num_draws)


def compared(baseline: Callable[[Tensor, Tensor], Tensor]) -> Credit:
    def weights(batch: Outcomes) -> Tensor:
        r = batch.returns()
        return spread(batch, (r - baseline(r, batch.group)) / (len(batch.draw) // batch.num_draws))

    return weights


def standardised(batch: Outcomes) -> Tensor:
    r = batch.returns()
    return spread(batch, (r - group.group_mean(r, batch.group)) / group.group_std(r, batch.group, eps=0.01))


def per_length(batch: Outcomes) -> Tensor:
    """A weight that differs from step to step: γ^t, 1 / length and the reward of the best of the group."""
    mask = batch.mask
    best = torch.zeros(int(batch.group.max()) + 1, dtype=F64)
    r = batch.returns()
    best = best.scatter_reduce(0, batch.group, r, "amax", include_self=False)[batch.group]
    discounts = batch.gamma ** torch.arange(mask.shape[1], dtype=F64)
    return (r * best / mask.sum(1).clamp(min=1))[:, None] * discounts


# --- against brute force -----------------------------------------------------------------------------------


def plain_difference(members: list[twins.Path]) -> list[list[float]]:
    """Each step is weighed with t + R_i · max R, which reads the group and the step."""
    best = max(twins.discounted(path, 0.9) for path in members)
    return [[t + twins.discounted(path, 0.9) * best for t in range(len(path.steps))] for path in members]


def plain_actions(members: list[twins.Path]) -> list[list[float]]:
    """Weights that read actions and states of the others."""
    total = sum(step.action + step.state for path in members for step in path.steps)
    return [[total - step.action for step in path.steps] for path in members]


@pytest.mark.parametrize("weights", [plain_difference, plain_actions])
@pytest.mark.parametrize("group_size", [1, 2])
@given(mdp=twins.lively_worlds(max_horizon=2), seed=SEEDS)
@settings(max_examples=8, deadline=None)
def test_mean_and_covariance_are_those_of_brute_force(
    weights: twins.PlainWeights, group_size: int, mdp: TabularMDP, seed: int
) -> None:
    theta, found = random_theta(mdp, seed), twins.all_paths(mdp)
    if len(found) ** group_size > 300:
        found, mdp = found[:0], replace(mdp, horizon=1)
        found = twins.all_paths(mdp)
    mean, cov = twins.by_brute_force(found, theta, group_size, weights)
    estimator = weighted(twins.plainly(weights))
    listed = draws(paths(mdp), theta, group_size=group_size)
    ours = moments(listed, estimator)
    size = 1 + float(mean.square().sum() + cov.trace())
    assert torch.allclose(ours.mean, mean, rtol=0, atol=1e-12 * size)
    assert ours.variance == pytest.approx(float(cov.trace()), abs=1e-12 * size)
    assert ours.error == 0
    assert torch.allclose(covariance(listed, estimator), cov, rtol=0, atol=1e-12 * size)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    mdp = small_world()
    theta = random_theta(mdp, 0)
    whole = moments(draws(paths(mdp), theta, group_size=2), weighted(standardised))
    whole_cov = covariance(draws(paths(mdp), theta, group_size=2), weighted(standardised))
    by_class = counted(classes(paths(mdp), theta), standardised, group_size=2)
    for module in (every, room):
        monkeypatch.setattr(module, "CHUNK", 20)
    parts = draws(paths(mdp), theta, group_size=2)
    assert len(list(parts.batches())) > 5
    close(moments(parts, weighted(standardised)), whole)
    assert torch.allclose(covariance(parts, weighted(standardised)), whole_cov, rtol=0, atol=1e-13)
    close(counted(classes(paths(mdp), theta), standardised, group_size=2), by_class)


def close(found: Moments, expected: Moments, tolerance: float = 1e-12) -> None:
    size = 1 + float(expected.mean.norm()) ** 2 + expected.variance
    assert torch.allclose(found.mean, expected.mean, rtol=0, atol=tolerance * size)
    assert found.variance == pytest.approx(expected.variance, abs=tolerance * size)
    assert found.error == expected.error


def test_one_by_one_is_all_at_once() -> None:
    mdp = chain(2)
    theta, theta_old = random_theta(mdp, 0), random_theta(mdp, 1)
    listed = draws(paths(mdp), theta, theta_old=theta_old, group_size=2, num_groups=2)

    def ratio(batch: Batch) -> Tensor:
        r = batch.returns()
        adv = r - group.leave_one_out(r, batch.group)
        return (batch.logp - batch.logp_old).exp() * adv[:, None]

    def alone(batch: Batch) -> Tensor:
        assert batch.num_draws == 1
        assert batch.group.tolist() == [0, 0, 1, 1]
        return batch.score(ratio(batch))[0]

    expected = moments(listed, weighted(ratio))
    close(moments(listed, one_by_one(alone)), expected)
    close(moments(listed, weighted(lambda many: one_by_one(ratio)(many).flatten(0, 1))), expected)
    changes = torch.cat([one_by_one(alone)(part) for _, part in listed.batches()])
    close(tabulated(changes, listed.probability, exact=True), expected)


# --- known truths ------------------------------------------------------------------------------------------


@given(mdp=twins.lively_worlds(), seed=SEEDS)
@settings(max_examples=50, deadline=None)
def test_returns_rewards_to_go_and_baselines_of_the_state_are_unbiased(mdp: TabularMDP, seed: int) -> None:
    theta = random_theta(mdp, seed)
    truth = twins.true_gradient(twins.all_paths(mdp), theta, mdp.gamma)
    by_step = torch.randn(3, mdp.num_states, dtype=F64, generator=torch.Generator().manual_seed(seed))

    def against_the_state(batch: Batch) -> Tensor:
        steps = torch.arange(batch.paths.states.shape[1])
        return to_go(batch) - by_step[steps, batch.paths.states]

    listed = draws(paths(mdp), theta, group_size=1)
    for weights in (total_return, to_go, against_the_state):
        found = moments(listed, weighted(weights)).mean
        assert torch.allclose(found, truth, rtol=0, atol=1e-12 * (1 + float(truth.norm())))


@pytest.mark.parametrize(("mdp", "seed"), [(small_world(), 0), (words(), 1)])
@pytest.mark.parametrize("group_size", [2, 3])
def test_group_mean_shrinks_and_leave_one_out_does_not(mdp: TabularMDP, seed: int, group_size: int) -> None:
    theta = random_theta(mdp, seed)
    truth = twins.true_gradient(twins.all_paths(mdp), theta, mdp.gamma)
    listed = draws(paths(mdp), theta, group_size=group_size)
    alone = moments(listed, weighted(compared(group.leave_one_out))).mean
    assert torch.allclose(alone, truth, rtol=0, atol=1e-12)
    shrunk = moments(listed, weighted(compared(group.group_mean))).mean
    assert torch.allclose(shrunk, (group_size - 1) / group_size * truth, rtol=0, atol=1e-12)


def test_samples_of_another_policy_need_their_ratio() -> None:
    mdp = small_world()
    theta, theta_old = random_theta(mdp, 0), random_theta(mdp, 1)
    truth = twins.true_gradient(twins.all_paths(mdp), theta, mdp.gamma)
    listed = draws(paths(mdp), theta, theta_old=theta_old, group_size=2)

    def importance(batch: Batch) -> Tensor:
        return (batch.logp - batch.logp_old).sum(1, keepdim=True).exp() * total_return(batch)

    assert torch.allclose(moments(listed, weighted(importance)).mean, truth, rtol=0, atol=1e-12)
    assert float((moments(listed, weighted(total_return)).mean - truth).norm()) > 0.05


def until(num_steps: int) -> Weights:
    """R / |D|, with trajectories collected one after the other until there are `num_steps` steps."""

    def weights(batch: Batch) -> Tensor:
        lengths = batch.mask.sum(1).reshape(batch.num_draws, -1)
        collected = lengths.cumsum(1) - lengths < num_steps
        share = collected.double() / collected.sum(1, keepdim=True)
        return spread(batch, batch.returns() * share.flatten())

    return weights


@pytest.mark.parametrize("num_steps", [2, 3])
def test_a_size_that_depends_on_the_lengths_is_biased_as_a_sum_over_stopping_says(num_steps: int) -> None:
    mdp = chain(3, gamma=0.9, early=0.3)
    theta, found = random_theta(mdp, 2), twins.all_paths(chain(3, gamma=0.9, early=0.3))
    truth = twins.true_gradient(found, theta, mdp.gamma)
    chance = [path.world * twins.policy_chance(path, theta) for path in found]
    gradient = [
        twins.score(path, theta, [twins.discounted(path, mdp.gamma)] * len(path.steps)) for path in found
    ]

    def stopping(steps: int, size: int, probability: float, total: Tensor) -> Tensor:
        """The expectation over what is collected after `size` trajectories of `steps` steps together."""
        if steps >= num_steps:
            return probability * total / size
        return torch.stack(
            [
                stopping(steps + len(found[i].steps), size + 1, probability * chance[i], total + gradient[i])
                for i in range(len(found))
            ]
        ).sum(0)

    expected = stopping(0, 0, 1.0, torch.zeros(theta.numel(), dtype=F64))
    ordered = draws(paths(mdp), theta, group_size=1, num_groups=num_steps, listing=TUPLES)
    random_size = moments(ordered, weighted(until(num_steps)))
    assert torch.allclose(random_size.mean, expected, rtol=0, atol=1e-13)
    assert float((expected - truth).norm() / truth.norm()) > 0.05
    fixed = moments(ordered, weighted(total_return)).mean
    assert torch.allclose(fixed, truth, rtol=0, atol=1e-13)
    once = draws(paths(mdp), theta, group_size=1, num_groups=num_steps, listing=MULTISETS)
    assert float((moments(once, weighted(until(num_steps))).mean - expected).norm()) > 1e-3
    close(
        counted(
            classes(paths(mdp), theta), until(num_steps), group_size=1, num_groups=num_steps, listing=TUPLES
        ),
        random_size,
    )


@pytest.mark.parametrize(("group_size", "cosine", "digit"), [(4, 0.99995, 1e-5), (2, 0.9985, 1e-4)])
def test_dividing_by_the_deviation_tilts_a_bandit_of_three_arms(
    group_size: int, cosine: float, digit: float
) -> None:
    """To the digits of a hand computation; there the deviation is that of the population, plus 1e-4."""
    mdp, theta = bandit((1.0, 0.3, 0.0)), torch.tensor([[0.8, -0.5, 0.3], [0.0, 0.0, 0.0]], dtype=F64)
    truth = twins.true_gradient(twins.all_paths(mdp), theta, 1.0)

    def weights(batch: Batch) -> Tensor:
        r = batch.returns().reshape(-1, group_size)
        adv = (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True, correction=0) + 1e-4)
        return adv.reshape(-1, 1) / group_size

    listed = draws(paths(mdp), theta, group_size=group_size)
    for found in (
        moments(listed, weighted(weights)).mean,
        counted(classes(paths(mdp), theta), weights, group_size=group_size).mean,
    ):
        assert float(found @ truth / found.norm() / truth.norm()) == pytest.approx(cosine, abs=digit / 2)
        if group_size == 4:
            assert float(found.norm() / truth.norm()) == pytest.approx(1.7517, abs=5e-5)


# --- counting ----------------------------------------------------------------------------------------------


def batch_mean(batch: Outcomes) -> Tensor:
    r = batch.returns()
    return spread(batch, r - group.group_mean(r, batch.draw))


BY_CLASS: dict[str, Credit] = {
    "total_return": total_return,
    "to_go": to_go,
    "leave_one_out": compared(group.leave_one_out),
    "batch_mean": batch_mean,
    "standardised": standardised,
    "per_length": per_length,
}
COUNTABLE = {
    "words": words(),
    "turn": words(turn=WorldTurn(1, (0.75, 0.25))),
    "corridor": corridor(4),
    "random": small_world(),
}


@pytest.mark.parametrize("name", BY_CLASS)
@pytest.mark.parametrize("world", COUNTABLE)
@pytest.mark.parametrize(("num_groups", "group_size"), [(1, 3), (2, 2)])
def test_counting_is_listing(name: str, world: str, num_groups: int, group_size: int) -> None:
    found, weights = paths(COUNTABLE[world]), BY_CLASS[name]
    theta = random_theta(COUNTABLE[world], 3)
    listed = draws(found, theta, num_groups=num_groups, group_size=group_size)
    by_class = classes(found, theta)
    assert (len(by_class.probability) < len(found) / 1.5) == (world != "random")
    ours = counted(by_class, weights, num_groups=num_groups, group_size=group_size)
    close(ours, moments(listed, weighted(weights)))


BY_RETURN: dict[str, Credit] = {
    name: BY_CLASS[name] for name in ("total_return", "leave_one_out", "batch_mean", "standardised")
}


@pytest.mark.parametrize("name", BY_RETURN)
@pytest.mark.parametrize("world", COUNTABLE)
@pytest.mark.parametrize(("num_groups", "group_size"), [(1, 3), (2, 2)])
def test_returns_alone_are_enough_for_credit_that_is_a_function_of_them(
    name: str, world: str, num_groups: int, group_size: int
) -> None:
    found, weights = paths(COUNTABLE[world]), BY_RETURN[name]
    theta = random_theta(COUNTABLE[world], 3)
    by_return = totals(found, theta)
    assert len(by_return.probability) < len(classes(found, theta).probability) or world in (
        "corridor",
        "random",
    )
    ours = counted(by_return, weights, num_groups=num_groups, group_size=group_size)
    close(ours, moments(draws(found, theta, num_groups=num_groups, group_size=group_size), weighted(weights)))


def test_a_binary_reward_makes_two_classes_whatever_the_length() -> None:
    mdp = token_mdp(3, 3)
    found, theta = paths(mdp), random_theta(mdp, 0)
    by_return = totals(found, theta)
    won = found.returns() == 1
    assert by_return.paths.rewards.flatten().tolist() == [0, 1]
    assert float(by_return.probability[1]) == pytest.approx(float(found.probability(theta)[won].sum()))
    ours = counted(by_return, compared(group.leave_one_out), group_size=16)
    truth = twins.true_gradient(twins.all_paths(mdp), theta, mdp.gamma)
    assert torch.allclose(ours.mean, truth.flatten(), rtol=0, atol=1e-14)


def by_binomial(theta: Tensor, wins: Tensor, weights: Callable[[int], tuple[float, float]]) -> Moments:
    """Moments of a group of 8 on a bandit with rewards 0 and 1.

    The number k of successes is binomial. Given k, arms are independent, each with the conditional
    distribution of a success or a failure, and `weights(k)` are those of a success and of a failure. A score
    is one-hot minus π.
    """
    policy = theta.softmax(0)
    p = float(policy[wins].sum())
    given = [torch.where(wins, policy, 0) / p, torch.where(wins, 0, policy) / (1 - p)]
    mean, square = torch.zeros_like(policy), 0.0
    for k in range(9):
        chance = math.comb(8, k) * p**k * (1 - p) ** (8 - k)
        parts = list(zip(given, (k, 8 - k), weights(k), strict=True))
        conditional = sum((n * w * (q - policy) for q, n, w in parts), torch.zeros_like(policy))
        inside = sum(n * w**2 * (1 - float(q.square().sum())) for q, n, w in parts)
        mean += chance * conditional
        square += chance * (float(conditional.square().sum()) + inside)
    return Moments(mean, square - float(mean.square().sum()), 0.0)


def test_a_thousand_arms_are_a_binomial() -> None:
    generator = torch.Generator().manual_seed(0)
    wins = torch.rand(1000, generator=generator) < 0.1
    mdp = bandit(wins.double().tolist())
    theta = random_theta(mdp, 0)
    by_class = classes(paths(mdp), theta)
    assert len(by_class.probability) == 2

    def scaled(k: int) -> tuple[float, float]:
        deviation = math.sqrt(k * (8 - k) / 8 / 7) + 0.01
        return (1 - k / 8) / deviation, (0 - k / 8) / deviation

    def first(found: Moments) -> Moments:
        assert not found.mean.reshape(2, -1)[1].any()
        return found._replace(mean=found.mean.reshape(2, -1)[0])

    alone = first(counted(by_class, compared(group.leave_one_out), group_size=8))
    close(alone, by_binomial(theta[0], wins, lambda k: ((1 - (k - 1) / 7) / 8, (0 - k / 7) / 8)), 1e-13)
    policy = theta[0].softmax(0)
    truth = policy * (wins.double() - policy[wins].sum())
    assert torch.allclose(alone.mean, truth, rtol=0, atol=1e-14)
    close(first(counted(by_class, standardised, group_size=8)), by_binomial(theta[0], wins, scaled), 1e-13)


def test_classes_are_averages_over_their_members() -> None:
    mdp = replace(corridor(), time_limit=3)
    theta, found = random_theta(mdp, 1), paths(mdp)
    rows, by_class = twins.read(found), classes(found, theta)
    kinds = {(len(path.steps), path.steps[-1].terminated) for path in rows}
    assert len(by_class.probability) == len(kinds) == 2
    for c in range(2):
        flags = by_class.paths.mask[c].tolist(), bool(by_class.paths.terminated[c].any())
        members = [r for r in rows if [t < len(r.steps) for t in range(3)] == flags[0]]
        members = [r for r in members if r.steps[-1].terminated == flags[1]]
        chances = [r.world * twins.policy_chance(r, theta) for r in members]
        assert float(by_class.probability[c]) == pytest.approx(sum(chances), rel=1e-13)
        units = [[float(t == u) for u in range(3)] for t in range(3)]
        scores = [torch.stack([twins.score(r, theta, w[: len(r.steps)]) for w in units]) for r in members]
        mean = sum(c * s for c, s in zip(chances, scores, strict=True)) / sum(chances)
        second = sum(c * s @ s.T for c, s in zip(chances, scores, strict=True)) / sum(chances)
        assert torch.allclose(by_class.mean.reshape(2, 3, -1)[c], mean, rtol=0, atol=1e-13)
        assert torch.allclose(by_class.within[c], second - mean @ mean.T, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", ["paths", "logp", "logp_old", "theta", "score"])
def test_what_differs_inside_a_class_cannot_be_read(name: str) -> None:
    mdp = COUNTABLE["words"]
    by_class = classes(paths(mdp), random_theta(mdp, 0))
    with pytest.raises(AttributeError, match=name):
        counted(by_class, lambda outcomes: getattr(outcomes, name), group_size=1)


def test_a_probability_of_zero_is_a_class_like_any_other() -> None:
    mdp, theta = bandit((1.0, 0.5, 0.0)), torch.tensor([[0.0, -math.inf, 0.0], [0.0] * 3], dtype=F64)
    listed = moments(draws(paths(mdp), theta, group_size=2), weighted(standardised))
    close(counted(classes(paths(mdp), theta), standardised, group_size=2), listed)


# --- sampling ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["sampled", "simulated"])
def test_sampling_agrees_within_its_error_and_the_error_is_honest(how: str) -> None:
    mdp = small_world()
    theta, theta_old, found = random_theta(mdp, 0), random_theta(mdp, 1), paths(mdp)
    estimator = weighted(compared(group.group_mean))
    exact = moments(draws(found, theta, theta_old=theta_old, group_size=2), estimator)

    def seen(seed: int, num_draws: int) -> Moments:
        generator = torch.Generator().manual_seed(seed)
        size = {"group_size": 2, "num_draws": num_draws, "generator": generator, "theta_old": theta_old}
        if how == "sampled":
            return moments(sampled(found, theta, **size), estimator)
        return moments(simulated(mdp, theta, max_steps=2, **size), estimator)

    large = seen(0, 20_000)
    assert 0 < float((large.mean - exact.mean).norm()) < 5 * large.error
    assert large.error == pytest.approx(math.sqrt(exact.variance / 20_000), rel=0.05)
    small = [seen(seed, 5) for seed in range(800)]
    honest = sum(m.error**2 for m in small)
    assert sum(float((m.mean - exact.mean).square().sum()) for m in small) == pytest.approx(honest, rel=0.2)
    # Of 5 draws the plain mean of squares would be 20 % too small.
    assert sum(m.variance for m in small) / 800 == pytest.approx(exact.variance, rel=0.1)


def test_the_covariance_of_a_sample_is_that_of_its_rows() -> None:
    mdp = small_world()
    theta = random_theta(mdp, 0)
    drawn = sampled(paths(mdp), theta, group_size=2, num_draws=7, generator=torch.Generator().manual_seed(0))
    rows: list[Tensor] = []

    def estimator(batch: Batch) -> Tensor:
        rows.append(batch.score(total_return(batch)))
        return rows[-1]

    found = covariance(drawn, estimator)
    assert torch.allclose(found, rows[0].T.cov(), rtol=0, atol=1e-14)
    assert float(found.trace()) == pytest.approx(moments(drawn, estimator).variance, rel=1e-12)


def test_the_variance_of_a_single_draw_is_unknown() -> None:
    mdp = small_world()
    alone = sampled(
        paths(mdp),
        random_theta(mdp, 0),
        group_size=2,
        num_draws=1,
        generator=torch.Generator().manual_seed(0),
    )
    found = moments(alone, weighted(total_return))
    assert (found.variance, found.error) == (math.inf, math.inf)
    assert found.mean.isfinite().all()
    assert covariance(alone, weighted(total_return)).isnan().all()


def test_draws_left_out_of_a_sample_do_not_count() -> None:
    estimates = torch.tensor([[1.0, 2.0], [3.0, -1.0], [100.0, 100.0], [2.0, 5.0]], dtype=F64)
    probability = torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=F64) / 3
    found, kept = tabulated(estimates, probability, exact=False), estimates[[0, 1, 3]]
    assert found.mean.tolist() == pytest.approx(kept.mean(0).tolist())
    assert found.variance == pytest.approx(float(kept.var(0).sum()))
    assert found.error == pytest.approx(float(kept.var(0).sum() / 3) ** 0.5)
    with pytest.raises(ValueError, match=r"returned nan at \[1, 0\]"):
        tabulated(estimates.index_fill(0, torch.tensor(1), math.nan), probability, exact=False)


# --- bad input ---------------------------------------------------------------------------------------------


def test_a_number_that_is_not_finite_is_placed() -> None:
    mdp = words()
    theta, found = random_theta(mdp, 0), paths(mdp)

    def no_eps(batch: Batch) -> Tensor:
        r = batch.returns()
        return spread(
            batch, (r - group.group_mean(r, batch.group)) / group.group_std(r, batch.group, eps=0.0)
        )

    message = r"returned nan at \[0, 0\]: every number must be finite\. It may divide by 0 on a batch"
    with pytest.raises(ValueError, match=message):
        moments(draws(found, theta, group_size=2), weighted(no_eps))
    with pytest.raises(ValueError, match=message):
        counted(classes(found, theta), no_eps, group_size=2)
    # Large numbers of both signs have no finite sum, and are finite all the same.
    large = moments(
        draws(found, theta, group_size=1),
        lambda b: torch.full((b.num_draws, theta.numel()), 1e307, dtype=F64),
    )
    assert float(large.mean[0]) == pytest.approx(1e307)


def test_a_masked_weight_is_not_looked_at() -> None:
    mdp = words(turn=WorldTurn(1, (0.75, 0.25)))
    theta, found = random_theta(mdp, 0), paths(mdp)

    def with_holes(batch: Batch) -> Tensor:
        return torch.where(batch.mask, total_return(batch), math.nan)

    expected = moments(draws(found, theta, group_size=2), weighted(total_return))
    close(moments(draws(found, theta, group_size=2), weighted(with_holes)), expected)
    close(counted(classes(found, theta), with_holes, group_size=2), expected)


def test_another_shape_is_named(unchecked: None) -> None:
    mdp = words()
    theta, found = random_theta(mdp, 0), paths(mdp)
    size = theta.numel()
    with pytest.raises(ValueError, match=re.escape(f"returned ({size},): asked for ({len(found)}, {size})")):
        moments(draws(found, theta, group_size=1), lambda batch: torch.zeros(size, dtype=F64))
    by_class = classes(found, theta)
    shape = (len(by_class.probability), 3)
    with pytest.raises(ValueError, match=re.escape(f"returned ({shape[0]},): asked for {shape}")):
        counted(by_class, lambda batch: batch.returns(), group_size=1)
    with pytest.raises(ValueError, match="with weights"):
        moments(draws(found, theta, group_size=1), weighted(lambda batch: batch.returns()))


def test_too_many_classes_and_batches_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    mdp = words()
    theta, found = random_theta(mdp, 0), paths(mdp)
    by_class = classes(found, theta)
    number = by_class.mean.numel()
    monkeypatch.setattr(room, "CLASSES_LIMIT", number)
    classes(found, theta)
    monkeypatch.setattr(room, "CLASSES_LIMIT", number - 1)
    num_classes = len(by_class.probability)
    with pytest.raises(
        ValueError, match=f"found {num_classes} classes and {number} numbers in their mean sc"
    ):
        classes(found, theta)
    with pytest.raises(ValueError, match=r"1 x 4 out of \d+: found \d+; the limit is 10\."):
        counted(by_class, total_return, group_size=4, limit=10)
