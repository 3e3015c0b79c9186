"""From logits to a token and the log-probability of the distribution it was really drawn from.

`torch.multinomial` over 49,152 tokens costs as much as the whole 135M-parameter network on a processor. Here
a token is the inverse of the cumulative distribution at one uniform number, found in two levels: which block,
then where in the block.

Shapes: `B` rows, `V` vocabulary.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 256
"""Tokens in a block of the two-level search."""
HEADS = (256, 4096)
"""How many of the largest weights `keep_top_p` looks at before it sorts them all. A trained model has nearly
all of its probability there."""


class Draw(NamedTuple):
    """`tokens` int64 `[B]`, `logp` float32 `[B]`."""

    tokens: Tensor
    logp: Tensor


def greedy(logits: Tensor) -> Draw:
    """Return the most likely token of each row of `logits` `[B, V]`, of equals the first.

    The distribution is a point, so the log-probability is 0; NaN where the largest logit is not finite.
    """
    largest, tokens = logits.max(-1)
    return Draw(tokens, (largest - largest).float())


def draw(
    logits: Tensor, uniforms: Tensor, *, temperature: float, top_k: int, top_p: float, min_p: float
) -> Draw:
    """Draw one token a row from softmax(logits / temperature), truncated and renormalised.

    `logits` `[B, V]`, `uniforms` float64 `[B]` in [0, 1). Truncation in this order, each on what the last one
    left: the `top_k` most likely tokens (0: all), the smallest set with mass `top_p` (1: all; Holtzman et al.
    2020), the tokens of at least `min_p` times the largest probability (0: all; Nguyen et al. 2024). Where
    the largest logit is not finite, the log-probability is NaN and the token means nothing.
    """
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights = wide.sub(wide.amax(-1, keepdim=True)).div_(temperature).exp_()
    if top_k:
        weights = keep_top_k(weights, top_k)
    if top_p < 1.0:
        weights = keep_top_p(weights, top_p)
    if min_p > 0.0:
        # The largest weight is exp(0) = 1.
        weights = weights * (weights >= min_p)
    return inverse_cdf(weights, uniforms)


def keep_top_k(weights: Tensor, k: int) -> Tensor:
    """Zero all but the `k` largest weights of each row `[B, V]`: exactly `k` stay, also among equals."""
    top = weights.topk(min(k, weights.shape[-1]), dim=-1)
    return torch.zeros_like(weights).scatter_(-1, top.indices, top.values)


def keep_top_p(weights: Tensor, p: float) -> Tensor:
    """Zero all but the fewest largest weights of each row `[B, V]` whose share of the sum reaches `p`.

    Sorting every row costs several times the network. Only the rows whose head does not reach `p` are sorted.
    """
    size = weights.shape[-1]
    kept = torch.zeros_like(weights)
    needed = p * weights.sum(-1)
    rows = torch.arange(len(weights))
    for width in (*HEADS, size):
        largest, tokens = weights[rows].topk(min(width, size), dim=-1)
        share = largest.double().cumsum(-1)
        kept[rows[:, None], tokens] = largest * (share - largest < needed[rows, None])
        rows = rows[share[:, -1] < needed[rows]]
    return kept


def inverse_cdf(weights: Tensor, uniforms: Tensor) -> Draw:
    """Return the first token of each row whose running sum of weights exceeds u · total.

    `weights` `[B, V]`, at least 0 and not all 0; `uniforms` float64 `[B]` in [0, 1). A token of weight 0 is
    never drawn. Sums round as the weights' type does: with float32 weights, the border between two blocks is
    right to about 1e-7 of the total.
    """
    rows = torch.arange(len(weights))
    blocks = F.pad(weights, (0, -weights.shape[-1] % BLOCK)).view(len(weights), -1, BLOCK)
    sums = blocks.sum(-1).double()
    running = sums.cumsum(-1)
    total = running[:, -1]
    target = uniforms * total
    block = torch.searchsorted(running, target[:, None], right=True)[:, 0].clamp_(max=running.shape[1] - 1)
    inside = blocks[rows, block]
    fine = inside.double().cumsum(-1)
    rest = target - (running[rows, block] - sums[rows, block])
    # Block sums are float32, the sum inside is float64: rounding must not carry past the last weight.
    rest = torch.minimum(rest, fine[:, -1] * (1 - 1e-12)).clamp_(min=0)
    place = torch.searchsorted(fine, rest[:, None], right=True)[:, 0].clamp_(max=BLOCK - 1)
    return Draw(block * BLOCK + place, (inside[rows, place].double().log() - total.log()).float())
