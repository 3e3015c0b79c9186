"""The divergence of distributions over atoms: by hand, its gradient, what it does not touch."""

import math

import pytest
import torch

from gradhat.losses.categorical import divergence

F64 = torch.float64
TARGET = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]], dtype=F64)


def test_by_hand() -> None:
    log_probs = torch.tensor([[0.25, 0.5, 0.25], [0.2, 0.3, 0.5]], dtype=F64).log()
    assert divergence(log_probs, TARGET).tolist() == pytest.approx([math.log(2) / 2, 0], abs=1e-15)


def test_the_gradient_in_the_logits_is_the_difference_of_the_probabilities() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5], [0.1, 0.2, 0.3]], dtype=F64, requires_grad=True)
    target = TARGET.clone().requires_grad_()
    divergence(logits.log_softmax(-1), target).sum().backward()
    torch.testing.assert_close(logits.grad, logits.detach().softmax(-1) - TARGET, atol=1e-15, rtol=0)
    assert target.grad is None


@pytest.mark.usefixtures("unchecked")
def test_shapes_that_differ_are_named() -> None:
    with pytest.raises(ValueError, match=r"target \(1, 3\) with log_probs \(2, 3\)"):
        divergence(TARGET.log(), TARGET[:1])
