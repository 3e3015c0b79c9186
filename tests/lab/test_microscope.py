"""What a finding is made of, and where its batches come from."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from lived import gradient, lives, score, seen, total
from torch import Tensor

from gradhat.errors import ConfigError
from gradhat.exact import enumerate as every
from gradhat.exact.choices import MULTISETS, TUPLES
from gradhat.exact.enumerate import Outcomes
from gradhat.exact.gradient import by_theorem
from gradhat.exact.mdp import TabularMDP, softmax_policy
from gradhat.exact.moments import Moments
from gradhat.exact.solve import expected_return
from gradhat.exact.zoo import bandit, chain, cliff_walk, corridor, random_mdp, says, token_mdp
from gradhat.lab import microscope
from gradhat.lab.microscope import (
    SIMULATED_STEPS,
    Finding,
    Specimen,
    World,
    ascent,
    examine,
    finding,
    listed,
    some_draws,
    specimen_moments,
    world,
)

F64 = torch.float64


def texts() -> TabularMDP:
    """Up to two of two words; right with word 0 and an end."""
    return token_mdp(2, 2, verifiers=(says(0),))


def plain(batch: Outcomes) -> Tensor:
    """R(τ) / |D| on every step."""
    return (batch.returns() / (len(batch.draw) // batch.num_draws))[:, None].expand(batch.rewards.shape)


TOTAL = Specimen("total", "R(τ)", plain, "one", by_class=True)


def of(mean: Tensor, variance: float = 0.0, error: float = 0.0, size: int = 1) -> Finding:
    there = world(bandit((1.0, 0.0)), seed=0, spread=0.5)
    return finding(there, TOTAL, Moments(mean, variance, error), size)


# --- the numbers -------------------------------------------------------------------------------------------


def test_a_finding_holds_the_moments_against_the_gradient_by_definition() -> None:
    """Two arms: ∇J = p (1 − p) (1, −1), and the logits of the end, which count as well."""
    there = world(bandit((1.0, 0.0)), seed=0, spread=0.5)
    p = 1 / (1 + math.exp(float(there.theta[0, 1] - there.theta[0, 0])))
    slope = p * (1 - p)
    assert there.gradient.tolist() == pytest.approx([slope, -slope, 0, 0])
    # Along ∇J: 2. Across: 1, in the plane of the arms and outside of it.
    mean = torch.tensor([3 * slope, -slope, 0.0, math.sqrt(2) * slope], dtype=F64)
    got = finding(there, TOTAL, Moments(mean, 5.0, 0.25), 3)
    length = math.sqrt(2) * slope
    assert (got.name, got.what, got.num_samples) == ("total", "R(τ)", 3)
    assert got.norm_ratio == pytest.approx(math.sqrt(12) / math.sqrt(2))
    assert got.cosine == pytest.approx(4 / math.sqrt(12 * 2))
    assert got.relative_bias == pytest.approx(math.sqrt(4 + 0 + 2) / math.sqrt(2))
    assert got.angle == pytest.approx(math.degrees(math.acos(4 / math.sqrt(24))))
    assert got.variance == pytest.approx(3 * 5 / length**2)
    assert got.error == pytest.approx(0.25 / length)
    for n in (1, 16, 1e4):
        # What the sample adds to the squared bias, error² on average, is taken off.
        assert got.squared_error(n) == pytest.approx(3 - 0.25**2 / length**2 + 15 / length**2 / n)
    drowned = finding(there, TOTAL, Moments(mean, 5.0, 100.0), 3)
    assert drowned.squared_error(15) == pytest.approx(1 / length**2)


def test_the_error_of_a_sampled_mean_is_no_bias() -> None:
    """E|m̂ − ∇J|² = bias² + error²; what is left after that is never negative."""
    there = world(bandit((1.0, 0.0)), seed=0, spread=0.5)
    length = float(there.gradient.norm())
    far, near = (of(1.5 * there.gradient, variance=2.0, error=e * length) for e in (0.3, 0.6))
    assert far.squared_error(10) == pytest.approx(0.5**2 - 0.3**2 + 2 / length**2 / 10)
    assert near.squared_error(10) == pytest.approx(2 / length**2 / 10)


@pytest.mark.parametrize(("factor", "cosine", "angle"), [(2.0, 1.0, 0.0), (-0.5, -1.0, 180.0)])
def test_along_and_against_the_gradient(factor: float, cosine: float, angle: float) -> None:
    got = of(factor * world(bandit((1.0, 0.0)), seed=0, spread=0.5).gradient)
    assert got.norm_ratio == pytest.approx(abs(factor))
    assert got.cosine == pytest.approx(cosine)
    assert got.relative_bias == pytest.approx(abs(factor - 1))
    assert got.angle == pytest.approx(angle, abs=1e-5)


def test_a_mean_of_zero_has_no_direction() -> None:
    got = of(torch.zeros(4, dtype=F64), variance=1.0)
    assert (got.norm_ratio, got.relative_bias) == (0, 1)
    assert math.isnan(got.cosine) and math.isnan(got.angle)
    rounding = of(torch.full((4,), 1e-15, dtype=F64))
    assert math.isnan(rounding.cosine)


def test_the_variance_is_that_of_one_trajectory_whatever_is_averaged() -> None:
    """Batches of independent trajectories: the variance of the mean of n, times n, is that of one."""
    there = world(random_mdp(horizon=1), seed=0, spread=0.5)
    one = examine(there, TOTAL, group_size=3)
    many = examine(there, replace(TOTAL, sees="batch"), group_size=3)
    assert (one.num_samples, many.num_samples) == (1, 3)
    assert many.variance == pytest.approx(one.variance, rel=1e-12)
    # A group shares its start, so that a part of the noise does not average out.
    group = examine(there, replace(TOTAL, sees="group"), group_size=3)
    assert group.num_samples == 3
    assert group.variance > 1.05 * one.variance


# --- the world ---------------------------------------------------------------------------------------------


def test_a_world_has_random_logits_of_the_spread_that_was_asked_for() -> None:
    mdp = token_mdp(3, 4)
    one, again, other = (world(mdp, seed=s, spread=2.0) for s in (7, 7, 8))
    assert torch.equal(one.theta, again.theta) and not torch.equal(one.theta, other.theta)
    assert one.theta.shape == (mdp.num_observations, mdp.num_actions)
    assert float(one.theta.std()) == pytest.approx(2, rel=0.2)
    assert torch.equal(one.theta, 2 * world(mdp, seed=7, spread=1.0).theta)
    assert one.theta_old is one.theta
    assert not world(mdp, seed=7, spread=0.0).theta.any()


def test_the_gradient_is_that_of_the_expected_return() -> None:
    there = world(chain(3), seed=0, spread=0.5)
    leaf = there.theta.clone().requires_grad_()
    (slope,) = torch.autograd.grad(expected_return(there.mdp, softmax_policy(there.mdp, leaf)), leaf)
    assert torch.allclose(there.gradient, slope.flatten(), rtol=0, atol=1e-12)


def test_a_policy_without_a_slope_is_refused() -> None:
    flat = world(bandit((1.0, 1.0)), seed=0, spread=0.5)
    with pytest.raises(ConfigError, match="exact gradient: found that it is zero"):
        examine(flat, TOTAL, group_size=1)


def test_what_another_policy_sampled_is_weighed_with_its_probabilities() -> None:
    """E_old of R ∇ log π: classes, which average under one policy, must not be taken."""
    mdp = texts()
    here, there = (world(mdp, seed=s, spread=1.0).theta for s in (0, 1))
    theta, theta_old = here.numpy(), there.numpy()
    all_ = lives(mdp, theta_old)
    estimates = [score(mdp, theta, x, [total(mdp, x)] * len(x.steps)) for x in all_]
    expected = seen(gradient(mdp, theta), [x.chance for x in all_], estimates)
    got = examine(World(mdp, here, there), TOTAL, group_size=1)
    assert got.relative_bias == pytest.approx(expected.bias, rel=1e-10) and got.relative_bias > 0.1
    assert got.variance == pytest.approx(expected.variance, rel=1e-10)


def test_exact_ascent_is_gradient_ascent_with_the_gradient_of_the_theorem() -> None:
    mdp = random_mdp(horizon=2)
    there = world(mdp, seed=0, spread=0.5)
    points = ascent(listed(there), there.theta, lr=0.7, updates=3)
    assert torch.equal(points[0], there.theta) and len(points) == 4
    for before, after in itertools.pairwise(points):
        step = 0.7 * by_theorem(mdp, before)
        assert torch.allclose(after - before, step, rtol=0, atol=1e-13)


# --- where the batches come from ---------------------------------------------------------------------------


def test_batches_are_enumerated_counted_or_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    there = world(token_mdp(2, 3), seed=0, spread=0.5)
    assert there.paths is not None and there.classes is not None
    exact = some_draws(there, num_groups=1, group_size=2)
    assert exact.exact and len(exact.rows) == math.comb(len(there.paths) + 1, 2)
    assert len(some_draws(there, num_groups=1, group_size=2, listing=TUPLES).rows) == len(there.paths) ** 2
    monkeypatch.setattr(microscope, "EXACT_DRAWS", len(exact.rows) - 1)
    monkeypatch.setattr(microscope, "SAMPLED_DRAWS", 321)
    drawn = some_draws(there, num_groups=1, group_size=2)
    assert (drawn.exact, len(drawn.rows)) == (False, 321)
    # Classes are fewer than trajectories: what only reads rewards and lengths stays exact.
    group = replace(TOTAL, sees="group")
    assert specimen_moments(there, group, 1, 2).error == 0
    assert specimen_moments(there, replace(group, by_class=False), 1, 2).error > 0


def test_batches_that_are_handled_one_by_one_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    there = world(texts(), seed=0, spread=0.5)
    number = math.comb(len(listed(there)) + 1, 2)
    for limit, exact in ((number, True), (number - 1, False)):
        monkeypatch.setattr(microscope, "SINGLE_DRAWS", limit)
        assert some_draws(there, num_groups=1, group_size=2, one_by_one=True).exact is exact
        slow = Specimen("slow", "", plain, "group", one_by_one=True)
        assert (specimen_moments(there, slow, 1, 2).error == 0) is exact
        assert some_draws(there, num_groups=1, group_size=2).exact


def test_what_looks_at_returns_alone_is_counted_where_lengths_make_too_many_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = world(token_mdp(2, 4, verifiers=(says(0),)), seed=0, spread=0.5)
    group = replace(TOTAL, sees="group")
    exact = specimen_moments(there, group, 1, 4)
    assert there.classes is not None and there.totals is not None
    assert len(there.totals.probability) == 2 < len(there.classes.probability)
    monkeypatch.setattr(microscope, "EXACT_DRAWS", 5)  # the ways to have 0 to 4 right ones
    assert specimen_moments(there, group, 1, 4).error > 0
    found = specimen_moments(there, replace(group, by_return=True), 1, 4)
    assert found.error == 0 == exact.error
    assert torch.allclose(found.mean, exact.mean, rtol=0, atol=1e-13)
    assert found.variance == pytest.approx(exact.variance, rel=1e-10)


def test_where_classes_are_too_many_trajectories_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    by_class = world(texts(), seed=0, spread=0.5)
    one = examine(by_class, TOTAL, group_size=1)
    monkeypatch.setattr("gradhat.exact.moments.CLASSES_LIMIT", 0)
    there = world(texts(), seed=0, spread=0.5)
    assert there.paths is not None and there.classes is None
    other = examine(there, TOTAL, group_size=1)
    assert (other.error, other.variance) == (0, pytest.approx(one.variance, rel=1e-12))


def test_every_estimator_sees_the_same_random_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(microscope, "SAMPLED_DRAWS", 50)
    there = world(replace(cliff_walk(), horizon=20), seed=0, spread=0.5)
    assert there.paths is None
    one, again = (some_draws(there, num_groups=1, group_size=2) for _ in range(2))
    assert not one.exact and torch.equal(one.paths.actions, again.paths.actions)
    other = some_draws(World(there.mdp, there.theta, there.theta, seed=1), num_groups=1, group_size=2)
    assert not torch.equal(one.paths.actions, other.paths.actions)
    assert one.paths.actions.shape == (100, 20)
    assert again is one, "a world is played once for all estimators"
    assert some_draws(there, num_groups=2, group_size=1) is not one


@pytest.mark.parametrize(
    ("mdp", "found"),
    [
        (cliff_walk(), r"endlessly many .* found no horizon\. Use a --horizon of at most 500"),
        (replace(corridor(), horizon=SIMULATED_STEPS + 1), r"horizon=501\. Use a --horizon of at most 500"),
    ],
)
def test_what_can_neither_be_listed_nor_cut_is_refused_before_it_is_played(
    mdp: TabularMDP, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(every, "simulated", None)  # it would take minutes and much memory
    there = world(mdp, seed=0, spread=0.5)
    with pytest.raises(ConfigError, match=found):
        examine(there, TOTAL, group_size=1)


def test_listing_what_cannot_be_listed_says_how_much_there_is() -> None:
    with pytest.raises(ConfigError, match="found endlessly many, the limit is 200000"):
        listed(world(cliff_walk(), seed=0, spread=0.5))
    with pytest.raises(ConfigError, match=r"found 1\.074e\+09, the limit is 200000"):
        listed(world(replace(cliff_walk(), horizon=15), seed=0, spread=0.5))
    small = world(texts(), seed=0, spread=0.5)
    assert len(listed(small)) == 1 + 2 * (1 + 2)


def test_the_order_of_a_batch_counts_only_where_it_is_asked_for() -> None:
    def first(batch: Outcomes) -> Tensor:
        """The first trajectory alone: its expectation is that of one trajectory."""
        r = batch.returns().clone()
        r[1::2] = 0
        return r[:, None].expand(batch.rewards.shape)

    there = world(texts(), seed=0, spread=0.5)
    ordered, unordered = (
        examine(there, Specimen("first", "", first, "group", True, listing), group_size=2)
        for listing in (TUPLES, MULTISETS)
    )
    assert ordered.relative_bias < 1e-12
    assert ordered.variance == pytest.approx(2 * examine(there, TOTAL, group_size=1).variance)
    assert unordered.relative_bias > 0.1
    assert np.isfinite(unordered.variance)
