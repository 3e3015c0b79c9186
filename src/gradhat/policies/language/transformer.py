"""One decoder-only network of the Llama / Qwen2 / Qwen3 shape: RMSNorm, RoPE, grouped queries, SwiGLU.

The network runs over a flat stream of `N` tokens. It does not know how they are arranged: the caller passes
`attend`, which says who sees whom. Training passes a tree (`tree.py`), the decode engine passes a cache
(`cache.py`). Nothing is ever padded except inside `attend`.

Shapes: `N` tokens, `H` query heads, `K` key-value heads, `D` head size, `V` vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradhat.policies.language.kernels import rms_norm, swiglu

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""`(layer, q [N, H, D], k [N, K, D], v [N, K, D]) -> [N, H * D]`."""


@dataclass(frozen=True)
class Llama3Rope:
    """The frequency scaling of Llama 3.1 (`rope_type: llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True)
class TransformerConfig:
    """The shape of a network. `qkv_bias` is Qwen2's, `qk_norm` Qwen3's, `tied` shares embedding and head."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_positions: int
    rope_theta: float = 10_000.0
    rope_scaling: Llama3Rope | None = None
    rms_eps: float = 1e-6
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = True


class RMSNorm(nn.Module):
    """A weight per channel for `rms_norm`."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class Block(nn.Module):
    """One layer. Query, key and value are one matrix, gate and up are one matrix: fewer, larger products."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        heads = config.num_heads * config.head_dim
        qkv = heads + 2 * config.num_kv_heads * config.head_dim
        self.config = config
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_eps)
        self.qkv = nn.Linear(config.hidden_size, qkv, bias=config.qkv_bias)
        self.q_norm = RMSNorm(config.head_dim, config.rms_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.rms_eps) if config.qk_norm else nn.Identity()
        self.out = nn.Linear(heads, config.hidden_size, bias=False)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_eps)
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, layer: int, rotation: Tensor, attend: Attend) -> Tensor:
        c = self.config
        heads = [c.num_heads, c.num_kv_heads, c.num_kv_heads]
        q, k, v = self.qkv(self.attention_norm(x)).view(-1, sum(heads), c.head_dim).split(heads, dim=1)
        q, k = rotate(self.q_norm(q), rotation), rotate(self.k_norm(k), rotation)
        x = x + self.out(attend(layer, q, k, v))
        return x + self.down(swiglu(self.gate_up(self.mlp_norm(x))))


class Transformer(nn.Module):
    """Token ids in, hidden states out. `head_weight` makes logits of those that the caller picks."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_eps)
        self.head = None if config.tied else nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """`[V, hidden_size]`; the embedding itself when tied."""
        return self.embed.weight if self.head is None else self.head.weight

    @property
    def dtype(self) -> torch.dtype:
        """The type the network computes in."""
        return self.norm.weight.dtype

    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Return the final hidden states `[N, hidden_size]` of `tokens` at `positions` (both int64 `[N]`)."""
        x = self.embed(tokens)
        rotation = rope(self.config, positions).to(x.dtype)
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, rotation, attend)
        return self.norm(x)


def rope_frequencies(config: TransformerConfig) -> Tensor:
    """Return each channel pair's rotation speed, float32 `[D / 2]` (Su et al. 2021, section 3.2.2)."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    speed = 1.0 / (config.rope_theta**exponent)
    scaling = config.rope_scaling
    if scaling is None:
        return speed
    wavelength = 2 * math.pi / speed
    longest = scaling.original_max_positions / scaling.low_freq_factor
    shortest = scaling.original_max_positions / scaling.high_freq_factor
    blend = (scaling.original_max_positions / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    between = (1 - blend) * speed / scaling.factor + blend * speed
    slow = torch.where(wavelength > longest, speed / scaling.factor, between)
    return torch.where(wavelength < shortest, speed, slow)


def rope(config: TransformerConfig, positions: Tensor) -> Tensor:
    """Return (cos, cos) and (−sin, sin), in halves, for each position: float32 `[2, N, 1, D]`."""
    angles = positions.float()[:, None, None] * rope_frequencies(config).to(positions.device)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)])


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate the channel pairs (i, i + D/2) of `x` `[N, heads, D]` by the angles of `rope`."""
    low, high = x.chunk(2, dim=-1)
    return x * rotation[0] + torch.cat([high, low], dim=-1) * rotation[1]
