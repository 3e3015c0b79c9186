"""Attention with grouped key-value heads: one function for sampling and for training.

Keys lie by position, from 0 on without gaps, and what is hidden lies behind what is seen. So a query's
result is the same numbers added in the same order, alone or in a batch, in the sampler or in the trainer,
at any length: in bfloat16, where the order decides digits, too.

Shapes: `B` rows, `Q` queries, `L` keys, `K` key-value heads, `S` query heads that share one of them, `D`
head size.
"""

import torch
from torch import Tensor

BLOCK = 256
"""Keys of one product of weights and values. Over more of them some processors add in an order that hangs on
how many there are."""


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Scaled dot-product attention (Vaswani et al. 2017, eq. 1).

    `q` `[B, K, Q, S, D]`; `k`, `v` `[B, K, L, D]`; `bias` as of `hide`. Returns `[B, K, Q, S, D]`. The
    query heads of a key-value head are rows of one product, so keys are never repeated.
    """
    blocks = zip(_weights(q, k, bias).split(BLOCK, 2), v.flatten(0, 1).split(BLOCK, 1), strict=True)
    first, *others = (torch.bmm(weights, values) for weights, values in blocks)
    if not others:
        return first.view(q.shape)
    wide = first.to(torch.promote_types(q.dtype, torch.float32))
    for block in others:
        wide += block
    return wide.to(q.dtype).view(q.shape)


def attention_backward(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, for that of the result. The weights are computed again.

    For W = softmax(Z), Z = q kᵀ / √D:  ∂v = Wᵀ g,  ∂Z = W ∘ (g vᵀ − rowsum(W ∘ g vᵀ)),  ∂q = ∂Z k / √D,
    ∂k = ∂Zᵀ q / √D.
    """
    weights, upstream = _weights(q, k, bias), grad.flatten(0, 1).flatten(1, 2)
    grad_v = torch.bmm(weights.transpose(1, 2), upstream)
    grad_weights = torch.bmm(upstream, v.flatten(0, 1).transpose(1, 2))
    grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
    grad_q = torch.bmm(grad_scores, k.flatten(0, 1)).mul_(q.shape[-1] ** -0.5)
    grad_k = torch.bmm(grad_scores.transpose(1, 2), _scaled(q))
    return grad_q.view(q.shape), grad_k.view(k.shape), grad_v.view(v.shape)


def _weights(q: Tensor, k: Tensor, bias: Tensor) -> Tensor:
    """How much each query takes of each value, `[B · K, Q · S, L]`."""
    scores = torch.bmm(_scaled(q), k.flatten(0, 1).transpose(1, 2))
    # The order of a softmax's sum depends on L. In float32 that is below what the rounding afterwards keeps.
    wide = scores.to(torch.promote_types(q.dtype, torch.float32))
    wide.view(*q.shape[:4], -1).add_(bias)
    return wide.softmax(-1).to(q.dtype)


def _scaled(q: Tensor) -> Tensor:
    """The queries over √D, `[B · K, Q · S, D]`."""
    return q.flatten(0, 1).flatten(1, 2) * q.shape[-1] ** -0.5


def hide(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Return what to add to the scores, `[B, 1, Q, 1, L]`: 0 where `seen` (bool `[B, Q, L]`) is true, else
    −∞.

    Every query must see a key: a row of −∞ has no softmax.
    """
    bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
    return bias[:, None, :, None]
