"""Keys and values of what has been read, so that a new token costs one row.

Slots `0 .. B − 1` are always the active ones: when a sequence ends, the last active slot moves into its
place, and every product runs over exactly the active rows. Shapes: `B` active slots, `K` key-value heads, `D`
head size.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from gradhat.policies.language.attention import SHORT, attention, hide
from gradhat.policies.language.transformer import Transformer, TransformerConfig
from gradhat.policies.language.tree import plant

PROMPTS_AT_ONCE = 16
"""Prompts read in one forward: enough rows for full speed, few enough that long prompts fit in memory."""


class Trunk(NamedTuple):
    """A prompt of `Lp` tokens that has been read."""

    store: Tensor
    """`[layers, 2, K, Lp, D]`; the 2 are keys and values."""
    state: Tensor
    """`[hidden_size]`: the last hidden state."""


class KVCache:
    """A fixed number of slots, each with room for `length` tokens."""

    def __init__(self, config: TransformerConfig, num_slots: int, length: int, like: Tensor) -> None:
        self.store = like.new_zeros(
            config.num_layers, 2, num_slots, config.num_kv_heads, length, config.head_dim
        )
        """`[layers, 2, slots, K, length, D]`; the 2 are keys and values."""
        self.lengths = torch.zeros(num_slots, dtype=torch.long)
        """Tokens held by each slot; 0 where the slot is free."""
        self.num_active = 0

    def admit(self, trunk: Tensor, copies: int) -> None:
        """Open `copies` slots that continue the same prompt. `trunk` is the store of one that was read."""
        slots = slice(self.num_active, self.num_active + copies)
        self.store[:, :, slots, :, : trunk.shape[3]] = trunk[:, :, None]
        self.lengths[slots] = trunk.shape[3]
        self.num_active += copies

    def release(self, slot: int) -> None:
        """Free a slot; the last active slot takes its place."""
        last = self.num_active - 1
        if slot != last:
            used = int(self.lengths[last])
            self.store[:, :, slot, :, :used] = self.store[:, :, last, :, :used]
            self.lengths[slot] = used
        self.lengths[last] = 0
        self.num_active = last

    def step(self, model: Transformer, tokens: Tensor) -> Tensor:
        """Append one token (int64 `[B]`) to every active slot; return hidden states `[B, hidden_size]`."""
        rows = torch.arange(self.num_active)
        positions = self.lengths[: self.num_active].clone()
        self.lengths[: self.num_active] += 1
        # Short rows are read whole: a product over a part of each row would first copy that part.
        room = self.store.shape[4]
        used = room if room <= SHORT else int(positions.max()) + 1
        bias = hide((torch.arange(used) <= positions[:, None])[:, None], self.store.dtype)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self.store[layer, :, : self.num_active]
            keys[rows, :, positions] = k
            values[rows, :, positions] = v
            keys, values = keys[:, :, :used].transpose(1, 2), values[:, :, :used].transpose(1, 2)
            return attention(q[:, None], keys, values, bias).flatten(1)

        return model(tokens, positions, attend)


def read(model: Transformer, prompts: list[list[int]]) -> list[Trunk]:
    """Run prompts through the network once, several at a time."""
    trunks: list[Trunk] = []
    for start in range(0, len(prompts), PROMPTS_AT_ONCE):
        trunks += _read(model, prompts[start : start + PROMPTS_AT_ONCE])
    return trunks


def _read(model: Transformer, prompts: list[list[int]]) -> list[Trunk]:
    tree = plant(prompts, [], [])
    over_tree = tree.attend(model.dtype)
    kept: list[Tensor] = []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kept.append(torch.stack([k, v]))
        return over_tree(layer, q, k, v)

    hidden = model(tree.tokens, tree.positions, attend)
    lengths = [len(p) for p in prompts]
    stores = torch.stack(kept).transpose(2, 3).split(lengths, dim=3)
    return [Trunk(store, rows[-1]) for store, rows in zip(stores, hidden.split(lengths), strict=True)]
