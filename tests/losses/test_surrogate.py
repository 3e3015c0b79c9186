"""Surrogates: values and gradients by hand and in closed form, the common gradient at ratio 1, off-policy
truth on a bandit, which steps a divergence mask keeps."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from surrogates import (
    ALL,
    DUAL,
    GRADIENT,
    HIGH,
    LOW,
    Surrogate,
    clipped,
    clipped_weight,
    dual_clipped,
    soft_gate,
)
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence

from gradhat.estimators import ratios, returns
from gradhat.exact.enumerate import paths
from gradhat.exact.gradient import by_autograd
from gradhat.exact.zoo import random_mdp
from gradhat.losses import surrogate

F64 = torch.float64
names = pytest.mark.parametrize("name", ALL)
few = settings(max_examples=60, deadline=None, derandomize=True)


def one(x: float) -> Tensor:
    return torch.tensor([[x]], dtype=F64)


def value_and_gradient(objective: Surrogate, log_ratio: float, adv: float) -> tuple[float, float]:
    """The value, and the derivative with respect to the log-ratio."""
    x = one(log_ratio).requires_grad_()
    found = objective(x, one(adv))
    found.sum().backward()
    assert x.grad is not None
    return found.item(), x.grad.item()


# --- by hand -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "adv", "value", "gradient"),
    [
        (1.0, 2.0, 2.0, 2.0),
        (1.25, 2.0, 2.5, 2.5),  # inside: below 1 + high
        (1.5, 2.0, 2.6, 0.0),  # a good action is likely enough
        (0.5, 2.0, 1.0, 1.0),  # a good action became unlikely: push back with full force
        (1.0, -2.0, -2.0, -2.0),
        (0.85, -2.0, -1.7, -1.7),  # inside: above 1 - low
        (0.75, -2.0, -1.6, 0.0),  # a bad action is unlikely enough; low = high = 0.3 would still push
        (0.5, -2.0, -1.6, 0.0),
        (1.5, -2.0, -3.0, -3.0),  # a bad action became likely: push back with full force
        (1.5, 0.0, 0.0, 0.0),
    ],
)
@pytest.mark.parametrize("objective", [clipped, dual_clipped])
def test_clipped_by_hand(
    objective: Surrogate, ratio: float, adv: float, value: float, gradient: float
) -> None:
    found = value_and_gradient(objective, math.log(ratio), adv)
    assert found == pytest.approx((value, gradient), abs=1e-14)


@pytest.mark.parametrize(
    ("objective", "ratio", "adv", "value", "gradient"),
    [
        (surrogate.reinforce, math.e, -3.0, -3.0, -3.0),
        (surrogate.importance_weighted, 1.5, -3.0, -4.5, -4.5),
        (dual_clipped, 2.5, -2.0, -5.0, -5.0),  # below dual
        (dual_clipped, 4.0, -2.0, -6.0, 0.0),  # dual · adv
        (dual_clipped, 4.0, 2.0, 2.6, 0.0),  # a good action: as clipped
        (clipped_weight, 2.0, 3.0, 1.3 * 3 * math.log(2), 1.3 * 3),
        (clipped_weight, 0.5, -3.0, 0.8 * 3 * math.log(2), -0.8 * 3),
        (soft_gate, 1.0, 3.0, 2 / 1.1 * 3, 3.0),
        (soft_gate, 1.0, -3.0, -2 / 1.7 * 3, -3.0),
        # τ (r - 1) = log 3 gives σ = 3/4: the value is 3 / τ, the factor of the gradient 3/4.
        (soft_gate, 1 + math.log(3) / 1.1, 1.0, 3 / 1.1, 0.75 * (1 + math.log(3) / 1.1)),
    ],
)
def test_the_others_by_hand(
    objective: Surrogate, ratio: float, adv: float, value: float, gradient: float
) -> None:
    assert value_and_gradient(objective, math.log(ratio), adv) == pytest.approx((value, gradient), abs=1e-14)


# --- the gradient in closed form ---------------------------------------------------------------------------

corners = [math.log(bound) + nudge for bound in (1 - LOW, 1 + HIGH, DUAL) for nudge in (-1e-9, 1e-9)]
log_ratios = st.one_of(st.floats(-6, 6), st.sampled_from([0.0, *corners]))
advantages = st.floats(-5, 5, allow_subnormal=False)


@names
@few
@given(log_ratios, advantages)
def test_the_gradient_is_the_closed_form(name: str, log_ratio: float, adv: float) -> None:
    _, found = value_and_gradient(ALL[name], log_ratio, adv)
    assert found == pytest.approx(GRADIENT[name](math.exp(log_ratio), adv), rel=1e-12, abs=1e-14)


@names
@few
@given(st.lists(st.tuples(st.floats(-8, 0), advantages), min_size=1, max_size=8))
def test_at_ratio_one_every_surrogate_has_the_reinforce_gradient(
    name: str, steps: list[tuple[float, float]]
) -> None:
    adv = torch.tensor([[a for _, a in steps]], dtype=F64)
    mask = torch.ones_like(adv, dtype=torch.bool)
    for ratio in (ratios.on_policy, ratios.token):
        logp = torch.tensor([[p for p, _ in steps]], dtype=F64, requires_grad=True)
        ALL[name](ratio(logp, logp.detach(), mask), adv).sum().backward()
        torch.testing.assert_close(logp.grad, adv, atol=1e-14, rtol=0)


@pytest.mark.parametrize(("log_ratio", "adv"), [(0.3, 1.0), (-0.3, -1.0), (0.3, -1.0), (0.0, 1.0)])
def test_at_the_very_bound_a_step_counts_in_full_or_not_at_all(log_ratio: float, adv: float) -> None:
    # Half a gradient would be the mark of a tie between the two sides of a minimum or a maximum.
    ratio = one(log_ratio).exp().item()
    exact = partial(surrogate.clipped, low=max(0.0, 1 - ratio), high=max(0.0, ratio - 1))
    assert value_and_gradient(exact, log_ratio, adv)[1] in (0.0, pytest.approx(ratio * adv, rel=1e-15))
    if ratio > 1:
        exact = partial(surrogate.dual_clipped, low=0.1, high=0.1, dual=ratio)
        assert value_and_gradient(exact, log_ratio, -1.0)[1] in (0.0, pytest.approx(-ratio, rel=1e-15))


@few
@given(advantages, st.floats(-5, 5), st.floats(0, 1), st.floats(0, 2))
def test_clipped_is_a_lower_bound_and_wide_bounds_do_nothing(
    adv: float, log_ratio: float, low: float, high: float
) -> None:
    x, a = one(log_ratio), one(adv)
    free = surrogate.importance_weighted(x, a)
    assert surrogate.clipped(x, a, low=low, high=high) <= free
    assert torch.equal(surrogate.clipped(x, a, low=1.0, high=1e9), free)
    inside = max(0.0, 1 - low) <= math.exp(log_ratio) <= 1 + high
    assert not inside or torch.equal(surrogate.clipped(x, a, low=low, high=high), free)


@few
@given(advantages, st.floats(-5, 5), st.floats(0, 1), st.floats(0, 4), st.floats(1.001, 8))
def test_dual_clipped_is_the_maximum_of_the_formula(
    adv: float, log_ratio: float, low: float, high: float, dual: float
) -> None:
    single = surrogate.clipped(one(log_ratio), one(adv), low=low, high=high).item()
    found = surrogate.dual_clipped(one(log_ratio), one(adv), low=low, high=high, dual=dual).item()
    assert found == (max(single, dual * adv) if adv < 0 else single)


@few
@given(advantages, st.floats(-8, 8))
def test_without_a_lower_bound_only_large_weights_are_clipped(adv: float, log_ratio: float) -> None:
    objective = partial(surrogate.clipped_weight, low=1.0, high=HIGH)
    expected = min(math.exp(log_ratio), 1 + HIGH) * adv
    assert value_and_gradient(objective, log_ratio, adv)[1] == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_off_policy_importance_weights_are_exact_on_a_bandit_and_reinforce_is_not() -> None:
    old = torch.tensor([[0.1, 0.7, -0.6]], dtype=F64).log_softmax(-1)
    arms = torch.tensor([[1.0, 0.2, -0.5]], dtype=F64)

    def expected_gradient(of: Callable[[Tensor], Tensor]) -> Tensor:
        logits = torch.tensor([[0.9, -0.4, 0.2]], dtype=F64, requires_grad=True)
        of(logits.log_softmax(-1)).sum().backward()
        assert logits.grad is not None
        return logits.grad

    exact = expected_gradient(lambda logp: logp.exp() * arms)
    weighted = expected_gradient(lambda logp: old.exp() * surrogate.importance_weighted(logp - old, arms))
    plain = expected_gradient(lambda logp: old.exp() * surrogate.reinforce(logp - old, arms))
    torch.testing.assert_close(weighted, exact, atol=1e-12, rtol=0)
    assert (plain - exact).abs().max() > 0.05


# --- divergence masks --------------------------------------------------------------------------------------

chances = st.floats(1e-4, 1 - 1e-4)
signs = st.sampled_from([-1.5, 0.0, 0.7])


@few
@given(chances, chances, signs, st.floats(0, 0.4), st.floats(0, 0.4))
def test_the_masks_are_those_of_two_coins(p: float, q: float, adv: float, low: float, high: float) -> None:
    new, old = (Bernoulli(torch.tensor(x, dtype=F64)) for x in (p, q))
    distance = (abs(p - q) + abs((1 - p) - (1 - q))) / 2
    divergence = kl_divergence(old, new).item()
    moved = (adv > 0 and p > q) or (adv < 0 and p < q)
    bound = high if adv > 0 else low
    args = (one(p).log(), one(q).log(), one(adv))
    for mask, far in ((surrogate.tv_mask, distance), (surrogate.kl_mask, divergence)):
        assume(abs(far - bound) > 1e-12)
        assert mask(*args, low=low, high=high).item() is not (moved and far > bound)


@pytest.mark.parametrize(
    ("p", "q", "adv", "tv", "kl"),
    [
        (0.9, 0.6, 1.0, False, False),  # a good action became likely enough
        (0.6, 0.9, 1.0, True, True),  # ... or less likely: come back
        (0.6, 0.9, -1.0, False, False),
        (0.9, 0.6, -1.0, True, True),
        (2e-3, 1e-6, 1.0, True, True),  # 2,000 times as likely, and still nothing: the ratio says too much
        (0.9999, 0.95, 1.0, True, False),  # a small shift next to certainty: KL sees more than TV
        (1.0, 1.0, 1.0, True, True),
        (1.0, 0.9, 1.0, True, False),  # what was possible is ruled out: an infinite divergence
        (0.9, 1.0, -1.0, True, False),  # -log 0.9 = 0.105
        (0.0, 0.3, -1.0, False, False),
    ],
)
def test_the_masks_by_hand(p: float, q: float, adv: float, tv: bool, kl: bool) -> None:
    logp, logp_old = one(p).log(), one(q).log()
    assert surrogate.tv_mask(logp, logp_old, one(adv), low=0.15, high=0.15).item() is tv
    assert surrogate.kl_mask(logp, logp_old, one(adv), low=0.1, high=0.1).item() is kl


def test_low_is_the_bound_of_bad_actions_and_high_that_of_good_ones() -> None:
    logp, logp_old = torch.tensor([[0.7, 0.3]]).log(), torch.tensor([[0.5, 0.5]]).log()
    adv = torch.tensor([[1.0, -1.0]])
    for mask in (surrogate.tv_mask, surrogate.kl_mask):
        assert mask(logp, logp_old, adv, low=0.5, high=0.01).tolist() == [[False, True]]
        assert mask(logp, logp_old, adv, low=0.01, high=0.5).tolist() == [[True, False]]


@few
@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(-3, 3)), min_size=2, max_size=5))
def test_two_coins_are_never_further_apart_than_the_vocabulary(logits: list[tuple[float, float]]) -> None:
    # Hence a step that the mask drops is outside the region of the full divergence too.
    new, old = torch.tensor(logits, dtype=F64).T.log_softmax(-1)
    total_variation = (new.exp() - old.exp()).abs().sum() / 2
    divergence = (old.exp() * (old - new)).sum()
    for mask, full in ((surrogate.tv_mask, total_variation), (surrogate.kl_mask, divergence)):
        bound = full.clamp(min=0).item() + 1e-12
        for adv in (-1.0, 1.0):
            kept = mask(new[None], old[None], torch.full_like(new[None], adv), low=bound, high=bound)
            assert kept.all()


def test_dropped_steps_have_value_and_gradient_zero_and_kept_ones_are_importance_weighted() -> None:
    adv = torch.tensor([[1.0, -2.0, 3.0, 4.0]], dtype=F64)
    keep = torch.tensor([[True, False, True, False]])
    x = torch.tensor([[0.5, -0.7, 0.1, math.inf]], dtype=F64, requires_grad=True)
    found = surrogate.divergence_masked(x, adv, keep)
    found.sum().backward()
    expected = torch.tensor([[math.exp(0.5), 0.0, 3 * math.exp(0.1), 0.0]], dtype=F64)
    torch.testing.assert_close(found.detach(), expected, atol=1e-14, rtol=0)
    torch.testing.assert_close(x.grad, expected, atol=1e-14, rtol=0)


# --- in expectation, on every trajectory of a world --------------------------------------------------------

WORLD = random_mdp(3, 2, seed=2, gamma=0.8, horizon=3, num_terminal=1)
WALKS = paths(WORLD)
THETA = torch.tensor([[0.9, -0.8], [0.1, -0.1], [0.0, 0.0]], dtype=F64)
THETA_OLD = torch.tensor([[-0.2, 0.3], [0.4, -0.4], [0.0, 0.0]], dtype=F64)
CREDIT = returns.discounts(WALKS.mask.to(F64), gamma=0.8) * returns.to_go(
    WALKS.rewards, WALKS.terminated | WALKS.truncated, WALKS.mask, gamma=0.8
)
BOUNDS = {"low": 0.02, "high": 0.3}
"""State 0 moved past both by either divergence, state 1 past `low` alone."""


def tv(p: float, q: float) -> float:
    return abs(p - q)


def kl(p: float, q: float) -> float:
    return q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))


DIVERGENCES = pytest.mark.parametrize(
    ("mask_of", "divergence"), [(surrogate.tv_mask, tv), (surrogate.kl_mask, kl)]
)


def expected_masked_gradient(mask_of: Callable[..., Tensor], theta_old: Tensor) -> Tensor:
    theta = THETA.clone().requires_grad_()
    logp, logp_old = WALKS.logp(theta), WALKS.logp(theta_old)
    keep = mask_of(logp, logp_old, CREDIT, **BOUNDS)
    log_ratio = ratios.token(logp, logp_old, WALKS.mask)
    objective = surrogate.divergence_masked(log_ratio, CREDIT, keep)
    (found,) = torch.autograd.grad((WALKS.probability(theta_old)[:, None] * objective).sum(), theta)
    return found


@DIVERGENCES
def test_off_policy_a_divergence_mask_leaves_the_sum_over_the_steps_within(
    mask_of: Callable[..., Tensor], divergence: Callable[[float, float], float]
) -> None:
    new, old = THETA.softmax(-1).tolist(), THETA_OLD.softmax(-1).tolist()
    total, dropped = [[0.0, 0.0] for _ in range(3)], 0
    for i in range(len(WALKS)):
        states, actions = WALKS.states[i].tolist(), WALKS.actions[i].tolist()
        own = [t for t in range(3) if WALKS.mask[i, t]]
        chance = float(WALKS.world[i]) * math.prod(old[states[t]][actions[t]] for t in own)
        for t in own:
            s, a, adv = states[t], actions[t], float(CREDIT[i, t])
            p, q = new[s][a], old[s][a]
            bound = (
                (BOUNDS["high"] if p > q else math.inf) if adv > 0 else (BOUNDS["low"] if p < q else math.inf)
            )
            if divergence(p, q) > bound:
                dropped += 1
                continue
            for k in range(2):
                total[s][k] += chance * p / q * adv * ((k == a) - new[s][k])
    assert 0 < dropped < int(WALKS.mask.sum())
    found = expected_masked_gradient(mask_of, THETA_OLD)
    torch.testing.assert_close(found, torch.tensor(total, dtype=F64), atol=1e-12, rtol=0)
    unmasked = expected_masked_gradient(
        lambda logp, *_, **__: torch.ones_like(logp, dtype=torch.bool), THETA_OLD
    )
    assert (found - unmasked).abs().max() > 0.01


@DIVERGENCES
def test_on_policy_a_divergence_mask_leaves_the_gradient_of_the_return(
    mask_of: Callable[..., Tensor], divergence: Callable[[float, float], float]
) -> None:
    assert divergence(0.3, 0.3) == 0
    found = expected_masked_gradient(mask_of, THETA)
    torch.testing.assert_close(found, by_autograd(WORLD, THETA), atol=1e-12, rtol=0)


def test_no_gradient_flows_into_the_masks() -> None:
    logp = torch.tensor([[-0.5, -1.0]], requires_grad=True)
    for mask in (surrogate.tv_mask, surrogate.kl_mask):
        assert not mask(logp, logp, torch.ones(1, 2), low=0.1, high=0.1).requires_grad


# --- shapes, types, bounds ---------------------------------------------------------------------------------


@names
def test_no_gradient_flows_into_the_advantages(name: str) -> None:
    log_ratio = torch.tensor([[0.1, -0.1]], requires_grad=True)
    adv = torch.tensor([[1.0, -1.0]], requires_grad=True)
    ALL[name](log_ratio, adv).sum().backward()
    assert adv.grad is None and log_ratio.grad is not None


@names
def test_a_sequence_ratio_serves_every_step(name: str) -> None:
    log_ratio = torch.tensor([[0.1], [-0.4]], dtype=F64)
    adv = torch.tensor([[1.0, -2.0, 3.0], [-1.0, 0.5, 2.0]], dtype=F64)
    assert torch.equal(ALL[name](log_ratio, adv), ALL[name](log_ratio.expand(2, 3), adv))


@names
@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 3), (3, 2), (3, 3, 1)])
def test_an_advantage_of_another_shape_is_named(name: str, shape: tuple[int, ...], unchecked: None) -> None:
    with pytest.raises(ValueError, match=rf"^adv \({', '.join(map(str, shape))},?\) with .*\[B, 1\]"):
        getattr(surrogate, name)(torch.zeros(3, 3), torch.ones(shape), **ARGUMENTS[name])


ARGUMENTS: dict[str, dict[str, Any]] = {
    "reinforce": {},
    "importance_weighted": {},
    "clipped": {"low": 0.2, "high": 0.2},
    "dual_clipped": {"low": 0.2, "high": 0.2, "dual": 3.0},
    "clipped_weight": {"low": 0.2, "high": 0.2},
    "soft_gate": {"tau_positive": 1.0, "tau_negative": 1.0},
    "divergence_masked": {"keep": torch.ones(3, 3, dtype=torch.bool)},
}


def test_the_shapes_of_the_masks_are_checked(unchecked: None) -> None:
    logp = torch.zeros(3, 3)
    for mask in (surrogate.tv_mask, surrogate.kl_mask):
        with pytest.raises(ValueError, match=r"^logp_old \(3, 1\) with logp \(3, 3\)"):
            mask(logp, torch.zeros(3, 1), logp, low=0.1, high=0.1)
        with pytest.raises(ValueError, match=r"^adv \(3,\) with logp \(3, 3\)"):
            mask(logp, logp, torch.zeros(3), low=0.1, high=0.1)
    with pytest.raises(ValueError, match=r"^keep \(1, 3\)"):
        surrogate.divergence_masked(logp, logp, torch.ones(1, 3, dtype=torch.bool))


def test_the_checker_finds_a_wrong_shape_too() -> None:
    with pytest.raises(TypeError):
        surrogate.reinforce(torch.zeros(3, 3), torch.zeros(3))


@pytest.mark.parametrize(
    ("function", "arguments", "match"),
    [
        (surrogate.clipped, {"low": -0.1, "high": 0.2}, r"low=-0\.1"),
        (surrogate.clipped, {"low": 0.1, "high": -0.2}, r"high=-0\.2"),
        (surrogate.clipped_weight, {"low": 0.1, "high": -0.2}, r"high=-0\.2"),
        (surrogate.dual_clipped, {"low": -0.1, "high": 0.2, "dual": 3.0}, r"low=-0\.1"),
        (surrogate.dual_clipped, {"low": 0.1, "high": 0.2, "dual": 1.0}, "dual=1: .*dual > 1"),
        (surrogate.soft_gate, {"tau_positive": 0.0, "tau_negative": 1.0}, "tau_positive=0"),
        (surrogate.soft_gate, {"tau_positive": 1.0, "tau_negative": -1.0}, "tau_negative=-1"),
    ],
)
def test_a_bound_without_meaning_is_refused(
    function: Callable[..., Tensor], arguments: dict[str, float], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        function(torch.zeros(1, 1), torch.zeros(1, 1), **arguments)


@pytest.mark.parametrize("mask", [surrogate.tv_mask, surrogate.kl_mask])
def test_a_negative_divergence_is_refused(mask: Callable[..., Tensor]) -> None:
    with pytest.raises(ValueError, match=r"low=-0\.1, high=0\.2"):
        mask(*(torch.zeros(1, 1),) * 3, low=-0.1, high=0.2)


# The log-ratio itself is a factor of these two.
LINEAR = ("reinforce", "clipped_weight")
HUGE = [
    (name, size) for name in ALL for size in (100.0, 1e4, math.inf) if size < math.inf or name not in LINEAR
]


@pytest.mark.parametrize(("name", "size"), HUGE)
@pytest.mark.parametrize("adv", [0.0, 1.0, -1.0])
def test_a_huge_ratio_never_makes_nan(name: str, size: float, adv: float) -> None:
    # Without a bound exp(100) is inf in float32, and inf · 0 is NaN: in the value, and in the gradient of the
    # side that the minimum did not take.
    log_ratio = torch.tensor([[size, -size]], requires_grad=True)
    found = ALL[name](log_ratio, torch.full((1, 2), adv))
    found.sum().backward()
    assert found.isfinite().all()
    assert log_ratio.grad is not None and log_ratio.grad.isfinite().all()


@names
def test_dtype_is_kept(name: str) -> None:
    assert ALL[name](torch.zeros(1, 2), torch.zeros(1, 2)).dtype is torch.float32
    assert ALL[name](torch.zeros(1, 2, dtype=F64), torch.zeros(1, 2, dtype=F64)).dtype is F64


def test_the_wider_dtype_carries_the_gate() -> None:
    # τ = 1.05 rounded to float32 is off by 5e-8.
    log_ratio, adv = torch.tensor([[0.7, -0.4]], dtype=F64), torch.tensor([[1.0, -2.0]])
    arguments = {"tau_positive": 1.1, "tau_negative": 1.05}
    found = surrogate.soft_gate(log_ratio, adv, **arguments)
    assert found.dtype is F64
    torch.testing.assert_close(
        found, surrogate.soft_gate(log_ratio, adv.double(), **arguments), atol=1e-15, rtol=0
    )


def test_keep_is_bool(unchecked: None) -> None:
    with pytest.raises(ValueError, match=r"^keep torch.int64: .* keep\.bool\(\)"):
        surrogate.divergence_masked(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([[1, 0]]))
