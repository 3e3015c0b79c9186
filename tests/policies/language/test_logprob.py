"""Log-probabilities in chunks against one full log-softmax: values, gradients, and what lies in memory."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gradhat.policies.language import logprob
from gradhat.policies.language.logprob import chunked_logp

F64 = torch.float64
SIZES = [(512, 64), (4, 2), (5, 3), (3, 7), (1, 1), (11, 11)]


def full(hidden: Tensor, head: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logp = F.log_softmax(hidden @ head.T / temperature, dim=-1)
    return logp.gather(-1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def inputs(num_tokens: int = 11, size: int = 3, vocab: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(num_tokens, size, dtype=F64, requires_grad=True)
    head = torch.randn(vocab, size, dtype=F64, requires_grad=True)
    return hidden, head, torch.randint(vocab, (num_tokens,))


def cut(monkeypatch: pytest.MonkeyPatch, chunk: int, tile: int) -> None:
    monkeypatch.setattr(logprob, "CHUNK", chunk)
    monkeypatch.setattr(logprob, "TILE", tile)


@pytest.mark.parametrize(("chunk", "tile"), SIZES)
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
def test_chunks_equal_the_full_softmax_in_value_and_gradient(
    monkeypatch: pytest.MonkeyPatch, chunk: int, tile: int, temperature: float
) -> None:
    cut(monkeypatch, chunk, tile)
    hidden, head, targets = inputs()
    ours = chunked_logp(hidden, head, targets, temperature=temperature)
    wanted = full(hidden, head, targets, temperature)
    for a, b in zip(ours, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)
    by_logp, by_entropy = torch.randn(2, 11, dtype=F64)
    for scale_logp, scale_entropy in [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (-2.0, 0.3)]:
        upstream = (scale_logp * by_logp, scale_entropy * by_entropy)
        got = torch.autograd.grad(ours, (hidden, head), upstream, retain_graph=True)
        want = torch.autograd.grad(wanted, (hidden, head), upstream, retain_graph=True)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("which", [0, 1], ids=["logp", "entropy"])
def test_one_output_alone_can_be_differentiated(monkeypatch: pytest.MonkeyPatch, which: int) -> None:
    cut(monkeypatch, 4, 3)
    hidden, head, targets = inputs()
    got = torch.autograd.grad(
        chunked_logp(hidden, head, targets, temperature=0.7)[which].sum(), (hidden, head)
    )
    want = torch.autograd.grad(full(hidden, head, targets, 0.7)[which].sum(), (hidden, head))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_gradients_are_those_of_finite_differences(
    monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    cut(monkeypatch, 3, 2)
    hidden, head, targets = inputs(num_tokens=5)
    assert torch.autograd.gradcheck(
        lambda h, w: chunked_logp(h, w, targets, temperature=temperature), (hidden, head)
    )


class _Sizes(TorchDispatchMode):
    """The largest result of any operation, and the largest in float32."""

    largest, largest_float32 = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # A view makes nothing: it is counted where its base was made.
        for tensor in (
            x for x in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(x, Tensor)
        ):
            if not tensor._is_view():
                self.largest = max(self.largest, tensor.numel())
                if tensor.dtype == torch.float32:
                    self.largest_float32 = max(self.largest_float32, tensor.numel())
        return out


def test_no_more_than_a_chunk_of_logits_and_a_tile_of_float32_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, 8, 4)
    num_tokens, vocab = 50, 300
    torch.manual_seed(0)
    hidden = torch.randn(num_tokens, 2, dtype=torch.bfloat16, requires_grad=True)
    head = torch.randn(vocab, 2, dtype=torch.bfloat16, requires_grad=True)
    with _Sizes() as sizes:
        logp, entropy = chunked_logp(hidden, head, torch.randint(vocab, (num_tokens,)))
        (logp.sum() + entropy.sum()).backward()
    assert sizes.largest == 8 * vocab
    assert sizes.largest_float32 == 4 * vocab


def test_a_frozen_head_costs_no_gradient_and_changes_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    cut(monkeypatch, 4, 2)
    hidden, head, targets = inputs()
    (expected,) = torch.autograd.grad(chunked_logp(hidden, head, targets)[0].sum(), hidden)
    products: list[tuple[int, ...]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.mm.default and out.shape == head.shape:
                products.append(tuple(out.shape))
            return out

    logp, _ = chunked_logp(hidden, head.detach(), targets)
    with Watch():
        (found,) = torch.autograd.grad(logp.sum(), hidden)
    assert torch.equal(found, expected)
    assert products == []


def test_the_softmax_of_bfloat16_logits_is_in_float32() -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(40, 8).bfloat16(), torch.randn(500, 8).bfloat16()
    targets = torch.randint(500, (40,))
    wanted = F.log_softmax(F.linear(hidden, head).float() / 0.7, dim=-1)
    logp, entropy = chunked_logp(hidden, head, targets, temperature=0.7)
    assert logp.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logp, wanted.gather(-1, targets[:, None])[:, 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(entropy, -(wanted.exp() * wanted).sum(-1), rtol=0, atol=1e-5)


def test_a_certain_token_has_entropy_zero_and_finite_gradients() -> None:
    hidden = torch.tensor([[1.0]], requires_grad=True)
    head = torch.tensor([[1e4], [0.0], [-1e4]], requires_grad=True)
    logp, entropy = chunked_logp(hidden, head, torch.tensor([1]))
    assert (logp.item(), entropy.item()) == (-1e4, 0.0)
    (logp + entropy).sum().backward()
    assert head.grad is not None and hidden.grad is not None
    assert head.grad[:, 0].tolist() == [-1.0, 1.0, 0.0] and hidden.grad.item() == -1e4


def test_the_gradient_of_the_head_is_added_up_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 chunks of 4 tokens lose no more than one product of all: added up in bfloat16, they lose several
    times that."""
    torch.manual_seed(0)
    hidden, head, targets = torch.randn(256, 8), torch.randn(40, 8), torch.randint(40, (256,))

    def gradient(dtype: torch.dtype, chunk: int) -> Tensor:
        monkeypatch.setattr(logprob, "CHUNK", chunk)
        weight = head.bfloat16().to(dtype).requires_grad_()
        chunked_logp(hidden.bfloat16().to(dtype), weight, targets)[0].sum().backward()
        assert weight.grad is not None and weight.grad.dtype == dtype
        return weight.grad.double()

    exact = gradient(torch.float64, 256)
    one, many = ((gradient(torch.bfloat16, chunk) - exact).norm() for chunk in (256, 4))
    assert many < 1.5 * one
