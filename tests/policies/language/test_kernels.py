"""Kernels against the obvious formula under autograd, and their gradients against finite differences."""

import pytest
import torch
from torch import Tensor

from gradhat.policies.language.kernels import rms_norm, swiglu

EPS = 1e-5


def naive_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    return weight * (wide / (wide.pow(2).mean(-1, keepdim=True) + eps).sqrt()).to(x.dtype)


def naive_swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


@pytest.mark.parametrize("shape", [(5, 8), (3, 2, 8)])
def test_rms_norm_and_its_gradient_are_the_formulas(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(shape, dtype=torch.float64)
    ours, naive = rms_norm(x, weight, EPS), naive_rms_norm(x, weight, EPS)
    torch.testing.assert_close(ours, naive, rtol=0, atol=1e-14)
    for a, b in zip(
        torch.autograd.grad(ours, (x, weight), upstream),
        torch.autograd.grad(naive, (x, weight), upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, EPS), (x, weight))


def test_rms_norm_of_a_zero_row_is_zero_with_a_finite_gradient() -> None:
    x = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    out = rms_norm(x, torch.ones(4, dtype=torch.float64), EPS)
    out.sum().backward()
    assert out.eq(0).all()
    torch.testing.assert_close(x.grad, torch.full((1, 4), EPS**-0.5, dtype=torch.float64))


def test_swiglu_and_its_gradient_are_the_formulas() -> None:
    torch.manual_seed(1)
    x = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(swiglu(x), naive_swiglu(x), rtol=0, atol=1e-14)
    (ours,) = torch.autograd.grad(swiglu(x), x, upstream)
    (naive,) = torch.autograd.grad(naive_swiglu(x), x, upstream)
    torch.testing.assert_close(ours, naive, rtol=0, atol=1e-13)
    assert torch.autograd.gradcheck(swiglu, (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_are_left_alone(dtype: torch.dtype) -> None:
    x, weight = torch.randn(4, 8).to(dtype), torch.randn(8).to(dtype)
    before = x.clone()
    rms_norm(x, weight, EPS)
    swiglu(x)
    assert torch.equal(x, before)


def test_a_bfloat16_norm_is_computed_in_float32() -> None:
    """256 + 1 is 256 in bfloat16: a sum of squares in that type would lose the small channels."""
    x = torch.tensor([[16.0] + [1.0] * 255]).bfloat16()
    exact = naive_rms_norm(x.double(), torch.ones(256, dtype=torch.float64), EPS)
    torch.testing.assert_close(
        rms_norm(x, torch.ones(256).bfloat16(), EPS).double(), exact, rtol=2**-8, atol=0
    )


def test_only_the_input_is_kept_for_the_gradient() -> None:
    x = torch.randn(64, 32).bfloat16().requires_grad_()
    weight = torch.ones(32).bfloat16().requires_grad_()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        rms_norm(x, weight, EPS)
        swiglu(x)
    assert sum(t.numel() for t in kept) == 2 * x.numel() + weight.numel() + len(x)
