"""Entropy and KL: against torch's own, by finite differences, and what their sum means for a sequence."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from gradhat.losses import regularizer

F64 = torch.float64
few = settings(max_examples=60, deadline=None, derandomize=True)
rows = st.lists(st.tuples(st.floats(-8, 8), st.floats(-8, 8)), min_size=1, max_size=6)


@few
@given(rows, st.floats(-100, 100))
def test_both_are_those_of_torch_and_no_constant_matters(drawn: list[tuple[float, float]], c: float) -> None:
    a, b = torch.tensor(drawn, dtype=F64).T.contiguous()
    p, q = Categorical(logits=a), Categorical(logits=b)
    entropy = regularizer.entropy(a[None, None] + c)
    assert entropy.item() == pytest.approx(p.entropy().item(), abs=1e-11)
    assert -1e-12 <= entropy.item() <= math.log(len(a)) + 1e-12
    there = regularizer.kl(a[None, None] + c, b[None, None]).item()
    back = regularizer.kl(b[None, None], a[None, None] + c).item()
    assert there == pytest.approx(kl_divergence(p, q).item(), abs=1e-11) and there >= -1e-12
    assert back == pytest.approx(kl_divergence(q, p).item(), abs=1e-11)


@few
@given(rows)
def test_the_gradients_in_closed_form(drawn: list[tuple[float, float]]) -> None:
    a, b = (x[None, None].requires_grad_() for x in torch.tensor(drawn, dtype=F64).T.contiguous())
    logp, logq = a.detach().log_softmax(-1), b.detach().log_softmax(-1)
    (found,) = torch.autograd.grad(regularizer.entropy(a).sum(), a)
    entropy = -(logp.exp() * logp).sum()
    torch.testing.assert_close(found, -logp.exp() * (logp + entropy), atol=1e-12, rtol=0)
    by_p, by_q = torch.autograd.grad(regularizer.kl(a, b).sum(), (a, b))
    divergence = (logp.exp() * (logp - logq)).sum()
    torch.testing.assert_close(by_p, logp.exp() * (logp - logq - divergence), atol=1e-12, rtol=0)
    torch.testing.assert_close(by_q, logq.exp() - logp.exp(), atol=1e-12, rtol=0)


def test_uniform_and_certain() -> None:
    logits = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [1e4, 0.0, 0.0, 0.0]]])
    assert regularizer.entropy(logits).tolist() == [[pytest.approx(math.log(4)), 0.0]]


@pytest.mark.parametrize("far", [-math.inf, -1e30, -2000.0])
def test_forbidden_actions_add_nothing(far: float) -> None:
    short = torch.tensor([[[0.3, -1.0]]], dtype=F64)
    other = torch.tensor([[[-0.4, 0.2]]], dtype=F64)
    wall = torch.full((1, 1, 1), far, dtype=F64)
    a = torch.cat([short, wall], -1).requires_grad_()
    b = torch.cat([other, wall], -1).requires_grad_()
    assert regularizer.entropy(a).item() == pytest.approx(regularizer.entropy(short).item(), abs=1e-15)
    # inf - inf is NaN, and so is the 0 · inf of a probability that underflows where the other forbids.
    for reference in (b, torch.cat([other, torch.full_like(wall, -math.inf)], -1).requires_grad_()):
        assert regularizer.kl(a, reference).item() == pytest.approx(
            regularizer.kl(short, other).item(), abs=1e-15
        )
        total = regularizer.entropy(a) + regularizer.kl(a, reference)
        for gradient in torch.autograd.grad(total.sum(), (a, reference)):
            assert gradient.isfinite().all() and gradient[0, 0, 2] == 0


def test_what_the_reference_forbids_is_infinitely_far() -> None:
    a, b = torch.zeros(1, 1, 2), torch.tensor([[[0.0, -math.inf]]])
    assert regularizer.kl(a, b).item() == math.inf
    assert regularizer.kl(b, a).item() == pytest.approx(math.log(2))


def test_a_step_of_its_own_depends_on_itself_alone() -> None:
    logits = torch.randn(2, 3, 4, dtype=F64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for found in (regularizer.entropy(logits), regularizer.kl(logits, logits.detach() * 2)):
        assert found.shape == (2, 3)
        (gradient,) = torch.autograd.grad(found[1, 0], logits, retain_graph=True)
        assert gradient[1, 0].abs().min() > 0
        gradient[1, 0] = 0
        assert not gradient.any()


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4, 5)])
def test_wrong_shapes_are_named(shape: tuple[int, ...], unchecked: None) -> None:
    named = rf"^logits \({', '.join(map(str, shape))},?\): .*\[B, T, V\]"
    with pytest.raises(ValueError, match=named):
        regularizer.entropy(torch.zeros(shape))
    with pytest.raises(ValueError, match=named):
        regularizer.kl(torch.zeros(shape), torch.zeros(shape))
    with pytest.raises(ValueError, match=r"^logits_ref \(1, 1, 4\) with logits \(1, 2, 4\)"):
        regularizer.kl(torch.zeros(1, 2, 4), torch.zeros(1, 1, 4))


# --- a sequence of two steps over three words, every sequence enumerated -----------------------------------

WORDS = range(3)
SEQUENCES = list(itertools.product(WORDS, WORDS))
THETA = torch.tensor([[0.4, -0.1, 0.3], [0.2, 0.9, -0.7], [-0.5, 0.1, 0.6], [1.0, 0.0, -1.2]], dtype=F64)
REFERENCE = torch.tensor([[0.0, 0.5, -0.3], [0.7, -0.2, 0.1], [0.4, 0.4, -0.9], [-0.3, 0.2, 0.8]], dtype=F64)
"""Logits `[state, word]`: the first state, and one after each word."""
STATES = torch.tensor([[0, 1 + first] for first, _ in SEQUENCES])


def step_logp(theta: Tensor) -> Tensor:
    """Log-probability of both steps of every sequence, `[9, 2]`."""
    logits = theta[STATES].log_softmax(-1)
    return logits.gather(-1, torch.tensor(SEQUENCES)[..., None])[..., 0]


def differentiate(of: Callable[[Tensor], Tensor]) -> tuple[float, Tensor]:
    theta = THETA.clone().requires_grad_()
    found = of(theta)
    found.backward()
    assert theta.grad is not None
    return found.item(), theta.grad


def kl_of_sequences(theta: Tensor) -> Tensor:
    logp = step_logp(theta).sum(-1)
    return (logp.exp() * (logp - step_logp(REFERENCE).sum(-1))).sum()


def entropy_of_sequences(theta: Tensor) -> Tensor:
    logp = step_logp(theta).sum(-1)
    return -(logp.exp() * logp).sum()


@pytest.mark.parametrize(
    ("whole", "per_step"),
    [
        (kl_of_sequences, lambda theta: regularizer.kl(theta[STATES], REFERENCE[STATES])),
        (entropy_of_sequences, lambda theta: regularizer.entropy(theta[STATES])),
    ],
)
def test_the_chain_rule_in_value_and_what_a_fixed_sample_misses_in_gradient(
    whole: Callable[[Tensor], Tensor], per_step: Callable[[Tensor], Tensor]
) -> None:
    def as_a_loss(theta: Tensor) -> Tensor:
        return (step_logp(theta).sum(-1).exp().detach() * per_step(theta).sum(-1)).sum()

    def with_later_states(theta: Tensor) -> Tensor:
        later = per_step(theta)[:, 1].detach() * step_logp(theta)[:, 0]
        return as_a_loss(theta) + (step_logp(theta).sum(-1).exp().detach() * later).sum()

    value, exact = differentiate(whole)
    held, biased = differentiate(as_a_loss)
    assert held == pytest.approx(value, abs=1e-14)
    assert (biased - exact).abs().max() > 0.01
    torch.testing.assert_close(biased[1:], exact[1:], atol=1e-13, rtol=0)  # the last step has no later one
    _, complete = differentiate(with_later_states)
    torch.testing.assert_close(complete, exact, atol=1e-13, rtol=0)


def test_the_other_direction_misses_nothing_on_samples_of_the_reference() -> None:
    chance = step_logp(REFERENCE).sum(-1).exp()

    def whole(theta: Tensor) -> Tensor:
        return (chance * (step_logp(REFERENCE) - step_logp(theta)).sum(-1)).sum()

    def as_a_loss(theta: Tensor) -> Tensor:
        return (chance * regularizer.kl(REFERENCE[STATES], theta[STATES]).sum(-1)).sum()

    value, exact = differentiate(whole)
    held, found = differentiate(as_a_loss)
    assert held == pytest.approx(value, abs=1e-14)
    torch.testing.assert_close(found, exact, atol=1e-13, rtol=0)
