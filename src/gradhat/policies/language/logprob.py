"""Log-probabilities of chosen tokens without the `[N, V]` logits: the head runs over a chunk at a time.

With V = 49,152 the float32 logits of 1,344 tokens are 264 MB, and their gradient as much again. Here one
chunk exists at a time; the backward pass computes it again. Shapes: `N` tokens, `d` hidden size, `V`
vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 512
"""Tokens that share one product with the head: enough for the matrix units, 50 MB of bfloat16 logits at
V = 49,152."""
TILE = 64
"""Tokens whose softmax is computed at once: its float32 temporaries stay in the last-level cache."""


class _Logp(torch.autograd.Function):
    """(hidden, head) → (logp of the targets, entropy). For the softmax p of logits z:

    ∂ logp(y) / ∂z = 1_y − p        ∂ H / ∂z = −p · (log p + H)
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        logps, entropies = [], []
        for rows, picks in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True):
            for tile, pick in zip(F.linear(rows, head).split(TILE), picks.split(TILE), strict=True):
                logp = _wide(tile, temperature).log_softmax(-1)
                logps.append(logp.gather(-1, pick[:, None])[:, 0])
                entropies.append(-torch.linalg.vecdot(logp.exp(), logp))
        logp, entropy = torch.cat(logps), torch.cat(entropies)
        ctx.save_for_backward(hidden, head, targets, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, Tensor | None, None, None]:
        hidden, head, targets, entropy = ctx.saved_tensors
        grad_logp, grad_entropy = grads
        grad_hidden = torch.empty_like(hidden)
        wide = torch.promote_types(head.dtype, torch.float32)
        grad_head = torch.zeros_like(head, dtype=wide) if ctx.needs_input_grad[1] else None
        for start in range(0, len(hidden), CHUNK):
            rows = hidden[start : start + CHUNK]
            logits = F.linear(rows, head)
            for first in range(0, len(rows), TILE):
                at = slice(start + first, start + min(first + TILE, len(rows)))
                logp = _wide(logits[first : first + TILE], ctx.temperature).log_softmax(-1)
                if grad_entropy is None:
                    grad = torch.zeros_like(logp)
                else:
                    grad = logp.exp() * (logp + entropy[at, None]) * -grad_entropy[at, None]
                if grad_logp is not None:
                    grad.addcmul_(logp.exp_(), grad_logp[at, None], value=-1)
                    grad.scatter_add_(-1, targets[at, None], grad_logp[at, None])
                logits[first : first + TILE] = grad.div_(ctx.temperature)
            torch.mm(logits, head, out=grad_hidden[start : start + CHUNK])
            if grad_head is not None:
                # Added up in bfloat16, a chunk would lose what the others have.
                grad_head.add_(torch.mm(logits.T, rows))
        return grad_hidden, None if grad_head is None else grad_head.to(head.dtype), None, None


def _wide(logits: Tensor, temperature: float) -> Tensor:
    """At least float32: a bfloat16 softmax over 49,152 tokens has two digits."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide if temperature == 1.0 else wide / temperature


def chunked_logp(
    hidden: Tensor, head: Tensor, targets: Tensor, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return log π(target) and the entropy of π in nats, both `[N]`, float32 or wider.

    π = softmax(hidden · headᵀ / temperature). `hidden` `[N, d]`, `head` `[V, d]`, `targets` int64 `[N]`.
    Differentiable once in `hidden` and `head`.
    Assumption: the token was sampled from this π, that is without truncation (top-k, top-p, min-p).
    """
    return _Logp.apply(hidden, head, targets, temperature)
