"""Attention and its gradient against a double loop."""

import pytest
import torch
from torch import Tensor

from gradhat.policies.language.attention import attention, attention_backward, hide

F64 = torch.float64


def naive(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """One query of one head of one row at a time."""
    out = torch.zeros_like(q)
    for b, h, i, s in torch.cartesian_prod(*map(torch.arange, q.shape[:4])).tolist():
        visible = seen[b, i].nonzero()[:, 0]
        scores = k[b, h, visible] @ q[b, h, i, s] / q.shape[-1] ** 0.5
        out[b, h, i, s] = scores.softmax(0) @ v[b, h, visible]
    return out


def tensors(heads: int, kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(heads)
    q = torch.randn(2, kv_heads, 3, heads // kv_heads, 4, dtype=F64, requires_grad=True)
    k, v = (torch.randn(2, kv_heads, 5, 4, dtype=F64, requires_grad=True) for _ in range(2))
    return q, k, v


def seen_by_some() -> Tensor:
    torch.manual_seed(0)
    seen = torch.rand(2, 3, 5) < 0.5
    seen[:, :, 0] = True
    return seen


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 2), (3, 1)])
def test_attention_and_its_gradient_are_those_of_a_double_loop(heads: int, kv_heads: int) -> None:
    inputs, seen = tensors(heads, kv_heads), seen_by_some()
    wanted, upstream = naive(*inputs, seen), torch.randn(2, kv_heads, 3, heads // kv_heads, 4, dtype=F64)
    gradients = torch.autograd.grad(wanted, inputs, upstream)
    bare = [x.detach() for x in inputs]
    torch.testing.assert_close(attention(*bare, hide(seen, F64)), wanted, rtol=0, atol=1e-14)
    for ours, theirs in zip(attention_backward(*bare, hide(seen, F64), upstream), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-13)


def test_one_mask_serves_every_row() -> None:
    inputs, seen = [x.detach() for x in tensors(4, 2)], seen_by_some()[:1]
    ours, wanted = attention(*inputs, hide(seen, F64)), naive(*inputs, seen.expand(2, -1, -1))
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-14)


def test_what_is_hidden_changes_nothing() -> None:
    q, k, v = (x.detach() for x in tensors(4, 2))
    seen = seen_by_some()
    seen[0, :, 3] = False
    before = attention(q, k, v, hide(seen, F64))
    k[0, :, 3], v[0, :, 3] = 100.0, -100.0
    assert torch.equal(attention(q, k, v, hide(seen, F64)), before)


def test_in_bfloat16_company_and_padding_change_no_bit() -> None:
    """One query alone against the same one among others, with hidden keys behind what it sees. With a
    softmax in bfloat16 one length in twenty gives other bits."""
    torch.manual_seed(0)
    q, k, v = (3 * torch.randn(2, 2, *shape, 16) for shape in ((40, 3), (700,), (700,)))
    q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
    for length in (*range(1, 70), 331, 499, 500, 501, 513, 601):
        place = torch.full((2, 40), length - 1)
        seen = torch.arange(700) <= place[:, :, None]
        among = attention(q, k, v, hide(seen, torch.float32))
        for room, count in ((length, 40), (length + 1, 1), (length + 20, 7)):
            keys, values = k[:, :, :room].contiguous(), v[:, :, :room].contiguous()
            some = q[:, :, :count].contiguous()
            fewer = attention(some, keys, values, hide(seen[:, :count, :room], torch.float32))
            assert torch.equal(fewer, among[:, :, :count]), (length, room)


@pytest.mark.parametrize("length", [255, 256, 257, 512, 700])
def test_many_keys_are_added_block_by_block_and_none_is_lost(length: int) -> None:
    torch.manual_seed(length)
    q, k, v = (torch.randn(1, 1, *shape, 4, dtype=F64) for shape in ((2, 1), (length,), (length,)))
    seen = torch.ones(1, 2, length, dtype=torch.bool)
    seen[0, 0, length // 2 :] = False
    ours, wanted = attention(q, k, v, hide(seen, F64)), naive(q, k, v, seen)
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-14)
