"""Weights between sampler and trainer: by hand, in closed form, unbiased where nothing is cut."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradhat.losses import mismatch, surrogate

F64 = torch.float64
few = settings(max_examples=60, deadline=None, derandomize=True)
truncated = partial(mismatch.sampler_weight, cap=2.0)
masked = partial(mismatch.sampler_weight_masked, low=0.5, high=2.0)
BOTH: list[Callable[[Tensor, Tensor, Tensor], Tensor]] = [truncated, masked]


@few
@given(st.lists(st.tuples(st.floats(-9, 0), st.floats(-9, 0), st.booleans()), min_size=1, max_size=6))
def test_both_in_closed_form(drawn: list[tuple[float, float, bool]]) -> None:
    old, sampled = (torch.tensor([[step[i] for step in drawn]], dtype=F64) for i in (0, 1))
    mask = torch.tensor([[own for *_, own in drawn]])
    ratio = [math.exp(a - b) if own else 1.0 for a, b, own in drawn]
    assert truncated(old, sampled, mask)[0].tolist() == pytest.approx([min(r, 2.0) for r in ratio], rel=1e-13)
    inside = [r if 0.5 <= r <= 2.0 else 0.0 for r in ratio]
    assert masked(old, sampled, mask)[0].tolist() == pytest.approx(inside, rel=1e-13)


def test_the_bounds_are_inside() -> None:
    # log 2 rounds so that exp gives 2 back.
    old = torch.tensor([[math.log(2), 0.0]], dtype=F64)
    weight = masked(old, old.flip(-1), torch.ones(1, 2))
    assert weight.tolist() == [[2.0, 0.5]]


@pytest.mark.parametrize("weight", BOTH)
def test_it_is_data_in_the_dtype_of_the_trainer(weight: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    old = torch.zeros(1, 2, dtype=F64, requires_grad=True)
    found = weight(old, torch.zeros(1, 2, requires_grad=True), torch.ones(1, 2, dtype=torch.bool))
    assert not found.requires_grad and found.dtype is F64


@pytest.mark.parametrize("weight", BOTH)
@pytest.mark.parametrize("junk", [math.inf, -math.inf, math.nan])
def test_masked_steps_weigh_one_whatever_stands_there(
    weight: Callable[[Tensor, Tensor, Tensor], Tensor], junk: float
) -> None:
    old, sampled = torch.tensor([[-1.0, junk]]), torch.tensor([[-1.0, -junk]])
    assert weight(old, sampled, torch.tensor([[1, 0]])).tolist() == [[1.0, 1.0]]


def test_huge_and_impossible_ratios() -> None:
    old, sampled = torch.tensor([[0.0, -math.inf]]), torch.tensor([[-1e4, -1.0]])
    assert truncated(old, sampled, torch.ones(1, 2)).tolist() == [[2.0, 0.0]]
    assert masked(old, sampled, torch.ones(1, 2)).tolist() == [[0.0, 0.0]]


def test_without_a_cut_the_mismatch_is_corrected_exactly_and_with_one_it_is_not() -> None:
    # A bandit whose sampler is off: the expectation over what it samples is a sum over three arms.
    sampled = torch.tensor([[0.9, -0.2, 0.1]], dtype=F64).log_softmax(-1)
    arms = torch.tensor([[1.0, 0.2, -0.5]], dtype=F64)
    mask = torch.ones_like(arms, dtype=torch.bool)

    def expected_gradient(weight: Callable[[Tensor], Tensor]) -> Tensor:
        logits = torch.tensor([[0.1, 0.7, -0.6]], dtype=F64, requires_grad=True)
        logp = logits.log_softmax(-1)
        objective = surrogate.reinforce(logp, arms)
        (sampled.exp() * weight(logp.detach()) * objective).sum().backward()
        assert logits.grad is not None
        return logits.grad

    logits = torch.tensor([[0.1, 0.7, -0.6]], dtype=F64, requires_grad=True)
    (exact,) = torch.autograd.grad((logits.softmax(-1) * arms).sum(), logits)
    wide = [partial(mismatch.sampler_weight, cap=1e9)]
    wide.append(partial(mismatch.sampler_weight_masked, low=0.0, high=1e9))
    for weight in wide:
        found = expected_gradient(lambda logp, weight=weight: weight(logp, sampled, mask))
        torch.testing.assert_close(found, exact, atol=1e-13, rtol=0)
    tight = [partial(mismatch.sampler_weight, cap=1.1)]
    tight.append(partial(mismatch.sampler_weight_masked, low=0.9, high=1.1))
    for weight in tight:
        found = expected_gradient(lambda logp, weight=weight: weight(logp, sampled, mask))
        assert (found - exact).abs().max() > 0.02


def test_bounds_without_meaning_are_refused() -> None:
    ones = torch.ones(1, 1)
    for cap in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"^sampler_weight with cap={cap:g}: "):
            mismatch.sampler_weight(ones, ones, ones, cap=cap)
    for low, high in ((-0.1, 2.0), (1.1, 2.0), (0.5, 0.9)):
        with pytest.raises(ValueError, match=f"low={low:g}, high={high:g}: the ratio 1"):
            mismatch.sampler_weight_masked(ones, ones, ones, low=low, high=high)


@pytest.mark.parametrize("weight", BOTH)
def test_shapes_are_checked(weight: Callable[[Tensor, Tensor, Tensor], Tensor], unchecked: None) -> None:
    full = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"^logp_sampled \(2, 1\) with logp_old \(2, 3\)"):
        weight(full, torch.ones(2, 1), full)
    with pytest.raises(ValueError, match=r"^mask \(3,\) with logp_old \(2, 3\)"):
        weight(full, full, torch.ones(3))
