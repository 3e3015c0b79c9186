"""The obvious twins of the decode engine: a full forward for every token, a distribution token by token."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import chisquare
from torch import Tensor

from gradhat.policies.language.transformer import Transformer, TransformerConfig
from gradhat.rollouts.engine import Limits

VOCAB = 300
"""More than one block of the two-level search, and not a whole number of them."""
ROOM = 64


class Pieces:
    """A chat of 1 to 3 letters a token, all a, b or c: a string often spans tokens and ends inside one."""

    def __init__(self, stop_ids: Sequence[int] = ()) -> None:
        self.stop_ids = frozenset(stop_ids)
        random = np.random.default_rng(0)
        self.pieces = ["".join(random.choice(list("abc"), size=random.integers(1, 4))) for _ in range(VOCAB)]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.pieces[i] for i in ids)

    def whole_token(self, text: str) -> int | None:
        """A token that is special: it shows as nothing, and has a name."""
        return {"<special>": 7}.get(text)


def network(dtype: torch.dtype = torch.float64, sharpness: float = 1.0, room: int = ROOM) -> Transformer:
    """A random network; `sharpness` scales its logits. Norms are random: at 1 they hide errors."""
    config = TransformerConfig(
        VOCAB, 16, 24, 2, num_heads=4, num_kv_heads=2, head_dim=6, max_positions=room, tied=False
    )
    model = Transformer(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
        model.head_weight.mul_(sharpness)
    return model.to(dtype)


def prompts(count: int) -> list[list[int]]:
    """Distinct prompts of 1 to 9 tokens."""
    random = np.random.default_rng(7)
    return [[i, *random.integers(VOCAB, size=i * 5 % 9).tolist()] for i in range(count)]


def dense(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of one sequence, one head after the other."""
    share = q.shape[1] // k.shape[1]
    future = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
    heads = []
    for head in range(q.shape[1]):
        scores = q[:, head] @ k[:, head // share].T / q.shape[2] ** 0.5
        heads.append(scores.masked_fill(future, -torch.inf).softmax(-1) @ v[:, head // share])
    return torch.cat(heads, dim=1)


def logits_of(model: Transformer, ids: Sequence[int]) -> Tensor:
    """One forward over the whole sequence, without a cache: `[T, V]`."""
    with torch.no_grad():
        return model(torch.tensor(ids), torch.arange(len(ids)), dense) @ model.head_weight.T


def distribution(logits: Tensor, limits: Limits) -> np.ndarray:
    """What `limits` make of one token's `logits` `[V]`: tempered, truncated token by token, renormalised."""
    scores = logits.double().numpy()
    if limits.temperature == 0:
        return np.eye(len(scores))[scores.argmax()]
    weights = np.exp((scores - scores.max()) / limits.temperature)
    order = np.argsort(-weights, kind="stable")
    if limits.top_k:
        order = order[: limits.top_k]
    total, nucleus, mass = weights[order].sum(), [], 0.0
    for token in order:
        if mass >= limits.top_p:
            break
        nucleus.append(token)
        mass += weights[token] / total
    kept = [token for token in nucleus if weights[token] >= limits.min_p * weights[order[0]]]
    probability = np.zeros_like(weights)
    probability[kept] = weights[kept] / weights[kept].sum()
    return probability


def greedy(model: Transformer, prompt: Sequence[int], length: int, stop_ids: frozenset[int]) -> list[int]:
    """One full forward for every token."""
    tokens: list[int] = []
    while len(tokens) < length and not (tokens and tokens[-1] in stop_ids):
        tokens.append(int(logits_of(model, [*prompt, *tokens])[-1].argmax()))
    return tokens


def chance(seen: np.ndarray, expected: np.ndarray) -> float:
    """The chance that draws from the distribution deviate from it as `seen` does, by Pearson's chi-square.

    Counts `[V]`. What is expected fewer than 10 times is one bin; the impossible has no chance.
    """
    common = expected >= 10
    if seen[expected == 0].any():
        return 0.0
    rest = np.array([[seen[~common].sum()], [expected[~common].sum()]])
    bins = np.stack([seen[common], expected[common]])
    both = np.concatenate([bins, rest], axis=1) if rest[1] > 0 else bins
    return float(chisquare(*both).pvalue)
