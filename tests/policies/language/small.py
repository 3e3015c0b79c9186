"""Small random networks in float64, batches for them, and the obvious forward: one sequence at a time."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gradhat.policies.language.transformer import Transformer, TransformerConfig
from gradhat.trajectories import Trajectories

VOCAB = 19
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"num_kv_heads": 2},
    "multi_query": {"num_kv_heads": 1, "tied": False},
    "qwen2": {"num_kv_heads": 2, "qkv_bias": True},
    "qwen3": {"num_kv_heads": 4, "qk_norm": True, "tied": False},
}


def network(shape: str = "llama", seed: int = 0) -> Transformer:
    """Norms and biases are random too: at their initial 1 and 0 they hide errors."""
    config = TransformerConfig(VOCAB, 16, 24, 2, num_heads=4, head_dim=6, max_positions=64, **SHAPES[shape])
    model = Transformer(config).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
    return model


def tokens(count: int, seed: int = 0) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(1000 * seed + count)
    return tuple(torch.randint(VOCAB, (count,), generator=generator).tolist())


def trajectories(
    prompts: Sequence[tuple[int, ...]], completions: Sequence[Sequence[int]], group: Sequence[int]
) -> Trajectories:
    """One trajectory per prompt and completion; every step of a completion is the policy's own."""
    lengths = torch.tensor([len(c) for c in completions])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    actions = torch.zeros(mask.shape, dtype=torch.long)
    actions[mask] = torch.tensor([token for c in completions for token in c])
    nothing = torch.zeros(mask.shape, dtype=torch.float64)
    return Trajectories(
        observations=list(prompts),
        actions=actions,
        mask=mask,
        logp=nothing,
        rewards=nothing,
        terminated=mask & ~mask.roll(-1, 1),
        truncated=torch.zeros_like(mask),
        group=torch.tensor(group),
        version=torch.zeros(len(lengths), dtype=torch.long),
    )


def causal(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of one sequence."""
    return masked(torch.ones(len(q), len(q), dtype=torch.bool).tril())(_layer, q, k, v)


def masked(seen: Tensor) -> Any:
    """Attention by an explicit mask, bool `[N, N]`, one head after the other."""

    def attend(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        share = q.shape[1] // k.shape[1]
        heads = []
        for head in range(q.shape[1]):
            scores = q[:, head] @ k[:, head // share].T / q.shape[2] ** 0.5
            heads.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v[:, head // share])
        return torch.cat(heads, dim=1)

    return attend


def one_at_a_time(model: Transformer, batch: Trajectories, temperature: float) -> tuple[Tensor, Tensor]:
    """logp and entropy `[B, T]` from a full forward and a full softmax for each trajectory on its own."""
    logps, entropies = [], []
    for prompt, actions, mask in zip(batch.observations, batch.actions, batch.mask, strict=True):
        whole = torch.cat([torch.tensor(prompt), actions])
        hidden = model(whole, torch.arange(len(whole)), causal)
        logits = (hidden @ model.head_weight.T)[len(prompt) - 1 : -1] / temperature
        logp = F.log_softmax(logits, dim=-1)
        logps.append(torch.where(mask, logp.gather(-1, actions[:, None])[:, 0], 0))
        entropies.append(torch.where(mask, -(logp.exp() * logp).sum(-1), 0))
    return torch.stack(logps), torch.stack(entropies)


def gradients(model: Transformer, value: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    return dict(zip(named, torch.autograd.grad(value, list(named.values())), strict=True))


def assert_same(ours: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert ours.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(
            ours[name], gradient, rtol=1e-11, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}"
        )
