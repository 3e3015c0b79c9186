"""Attention over padded rows, and the way between a flat stream and padded rows.

Shapes: `B` rows, `Q` queries, `L` keys, `H` query heads, `K` key-value heads, `D` head size, `N` tokens in
the stream.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT = 512
"""Up to this many keys the scores fit in the cache, and plain products with their plain gradient are 7 times
faster on a processor than the fused kernel's backward (docs/log.md). Beyond it the fused kernel
saves the memory."""


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1) with grouped key-value heads.

    `q` `[B, Q, H, D]`; `k`, `v` `[B, L, K, D]`; `bias` as of `hide`. Returns `[B, Q, H, D]`.
    The query heads of a key-value head become rows of one product, so keys are never repeated.
    """
    batch, queries, heads, size = q.shape
    length, groups = k.shape[1], k.shape[2]
    share = heads // groups
    if length > SHORT:
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=bias, enable_gqa=True
        )
        return out.transpose(1, 2)
    rows = q.view(batch, queries, groups, share, size).permute(0, 2, 3, 1, 4)
    rows = rows.reshape(batch * groups, share * queries, size) * size**-0.5
    keys = k.transpose(1, 2).reshape(batch * groups, length, size)
    values = v.transpose(1, 2).reshape(batch * groups, length, size)
    scores = torch.bmm(rows, keys.transpose(1, 2)).view(batch, heads, queries, length) + bias
    weights = scores.softmax(-1).view(batch * groups, share * queries, length)
    out = torch.bmm(weights, values).view(batch, groups, share, queries, size)
    return out.permute(0, 3, 1, 2, 4).reshape(batch, queries, heads, size)


def hide(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what to add to the scores, `[B, 1, Q, L]`: 0 where `seen` (bool `[B, Q, L]`) is true, else −∞.

    Every query must see a key: a row of −∞ has no softmax.
    """
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)[:, None]


def places_of(real: Tensor) -> Tensor:
    """Return where `real` (bool `[B, L]`) is true, row by row: int64 `[N]` into the `B · L` places."""
    return real.flatten().nonzero()[:, 0]


class _Pad(torch.autograd.Function):
    """Rows of a stream into their places. A place has one row, so the gradient is a gather, not a sum."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, places: Tensor, num_places: int) -> Tensor:
        ctx.save_for_backward(places)
        return flat.new_zeros(num_places, *flat.shape[1:]).index_copy_(0, places, flat)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return grads[0].index_select(0, ctx.saved_tensors[0]), None, None


class _Unpad(torch.autograd.Function):
    """The inverse of `_Pad`."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.num_places = rows.shape[0]
        return rows.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (places,), grad = ctx.saved_tensors, grads[0]
        return grad.new_zeros(ctx.num_places, *grad.shape[1:]).index_copy_(0, places, grad), None


def pad(flat: Tensor, places: Tensor, shape: torch.Size) -> Tensor:
    """`[N, ...]` → `[B, L, ...]`: the stream into its `places` (int64 `[N]`, distinct) of `shape` (B, L)."""
    return _Pad.apply(flat, places, shape.numel()).view(*shape, *flat.shape[1:])


def unpad(rows: Tensor, places: Tensor) -> Tensor:
    """`[B, L, ...]` → `[N, ...]`: the inverse of `pad`."""
    return _Unpad.apply(rows.flatten(0, 1), places)
