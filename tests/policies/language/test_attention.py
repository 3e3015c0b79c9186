"""Attention against a double loop, the short path against the long one, and padding both ways."""

import pytest
import torch
from torch import Tensor

from gradhat.policies.language import attention as room
from gradhat.policies.language.attention import attention, hide, pad, places_of, unpad

F64 = torch.float64


def naive(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """One query of one head of one row at a time."""
    batch, queries, heads, size = q.shape
    share = heads // k.shape[2]
    out = torch.zeros_like(q)
    for b in range(batch):
        for i in range(queries):
            visible = seen[b, i].nonzero()[:, 0]
            for h in range(heads):
                scores = k[b, visible, h // share] @ q[b, i, h] / size**0.5
                out[b, i, h] = scores.softmax(0) @ v[b, visible, h // share]
    return out


def tensors(heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(heads)
    q = torch.randn(2, 3, heads, 4, dtype=F64, requires_grad=True)
    k, v = (torch.randn(2, 5, kv_heads, 4, dtype=F64, requires_grad=True) for _ in range(2))
    return q, k, v


def seen_by_some() -> Tensor:
    torch.manual_seed(0)
    seen = torch.rand(2, 3, 5) < 0.5
    seen[:, :, 0] = True
    return seen


@pytest.mark.parametrize("short", [room.SHORT, 0], ids=["short", "long"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 2), (3, 1)])
def test_attention_and_its_gradient_are_those_of_a_double_loop(
    monkeypatch: pytest.MonkeyPatch, short: int, heads: int, kv_heads: int
) -> None:
    monkeypatch.setattr(room, "SHORT", short)
    inputs, seen = tensors(heads, kv_heads), seen_by_some()
    ours, wanted = attention(*inputs, hide(seen, F64)), naive(*inputs, seen)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-14)
    upstream = torch.randn_like(wanted)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, upstream),
        torch.autograd.grad(wanted, inputs, upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("short", [room.SHORT, 0], ids=["short", "long"])
def test_one_mask_serves_every_row(monkeypatch: pytest.MonkeyPatch, short: int) -> None:
    monkeypatch.setattr(room, "SHORT", short)
    inputs, seen = tensors(4, 2), seen_by_some()[:1]
    ours, wanted = attention(*inputs, hide(seen, F64)), naive(*inputs, seen.expand(2, -1, -1))
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-14)


def test_what_is_hidden_changes_nothing() -> None:
    q, k, v = (x.detach() for x in tensors(4, 2))
    seen = seen_by_some()
    seen[0, :, 3] = False
    before = attention(q, k, v, hide(seen, F64))
    k[0, 3], v[0, 3] = 100.0, -100.0
    assert torch.equal(attention(q, k, v, hide(seen, F64)), before)


REAL = torch.tensor([[True, True, False], [False, False, False], [True, False, True]])


def test_pad_puts_the_stream_row_by_row_and_unpad_takes_it_back() -> None:
    flat = torch.arange(1.0, 5.0)[:, None] * torch.tensor([1.0, 10.0])
    rows = pad(flat, places_of(REAL), REAL.shape)
    assert rows[..., 0].tolist() == [[1, 2, 0], [0, 0, 0], [3, 0, 4]]
    assert torch.equal(rows[..., 1], 10 * rows[..., 0])
    assert torch.equal(unpad(rows, places_of(REAL)), flat)


def test_their_gradients_are_each_others_inverse() -> None:
    places = places_of(REAL)
    flat = torch.randn(4, 2, dtype=F64, requires_grad=True)
    rows = torch.randn(3, 3, 2, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: pad(x, places, REAL.shape), flat)
    assert torch.autograd.gradcheck(lambda x: unpad(x, places), rows)
    upstream = torch.full((3, 3, 2), torch.nan, dtype=F64)
    upstream[REAL] = 1.0
    (grad,) = torch.autograd.grad(pad(flat, places, REAL.shape), flat, upstream)
    assert grad.eq(1).all(), "the gradient of padding must not leak in"
