"""Keys and values of what has been read, so that a new token costs one row.

Slots `0 .. B − 1` are always the active ones: when a sequence ends, the last active slot moves into its
place, and every product runs over exactly the active rows. Shapes: `B` active slots, `K` key-value heads, `D`
head size.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gradhat.policies.language.attention import attention, hide
from gradhat.policies.language.transformer import Transformer, TransformerConfig
from gradhat.policies.language.tree import plant

GROWTH = 128
"""Tokens for which room is made at once: what is not used is read in vain, and making room copies all that
is held."""
PROMPTS_AT_ONCE = 16
"""Prompts read in one forward: enough rows for full speed, few enough that long prompts fit in memory."""


class Trunk(NamedTuple):
    """A prompt of `Lp` tokens that has been read."""

    store: Tensor
    """`[layers, 2, K, Lp, D]`; the 2 are keys and values."""
    state: Tensor
    """`[hidden_size]`: the last hidden state."""


class KVCache:
    """A fixed number of slots for up to `length` tokens each. Room is made when the longest sequence needs
    it."""

    def __init__(self, config: TransformerConfig, num_slots: int, length: int, like: Tensor) -> None:
        self.length = length
        shape = (2, num_slots, config.num_kv_heads, 0, config.head_dim)
        self.layers = [like.new_zeros(shape) for _ in range(config.num_layers)]
        """Of each layer `[2, slots, K, room, D]`; the 2 are keys and values."""
        self.lengths = torch.zeros(num_slots, dtype=torch.long)
        """Tokens held by each slot; 0 where the slot is free."""
        self.num_active = 0

    def admit(self, trunk: Tensor, copies: int) -> None:
        """Open `copies` slots that continue the same prompt. `trunk` is the store of one that was read."""
        length = trunk.shape[3]
        self._make_room(length)
        slots = slice(self.num_active, self.num_active + copies)
        for layer, read in zip(self.layers, trunk, strict=True):
            layer[:, slots, :, :length] = read[:, None]
        self.lengths[slots] = length
        self.num_active += copies

    def release(self, slot: int) -> None:
        """Free a slot; the last active slot takes its place."""
        last = self.num_active - 1
        if slot != last:
            used = int(self.lengths[last])
            for layer in self.layers:
                layer[:, slot, :, :used] = layer[:, last, :, :used]
            self.lengths[slot] = used
        self.lengths[last] = 0
        self.num_active = last

    def step(self, model: Transformer, tokens: Tensor) -> Tensor:
        """Append one token (int64 `[B]`) to every active slot; return hidden states `[B, hidden_size]`."""
        rows = torch.arange(self.num_active)
        positions = self.lengths[: self.num_active].clone()
        self.lengths[: self.num_active] += 1
        self._make_room(int(positions.max()) + 1)
        # Rows are read whole: a product over a part of each row would first copy that part.
        room = self.layers[0].shape[3]
        bias = hide((torch.arange(room) <= positions[:, None])[:, None], self.layers[0].dtype)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self.layers[layer][:, : self.num_active]
            keys[rows, :, positions] = k
            values[rows, :, positions] = v
            shared = q.unflatten(1, (k.shape[1], 1, -1))
            return attention(shared, keys, values, bias).flatten(1)

        return model(tokens, positions, attend)

    def _make_room(self, length: int) -> None:
        """Let every slot hold `length` tokens. One layer after the other, so that little is held twice."""
        room = self.layers[0].shape[3]
        if length <= room:
            return
        more = min(length + GROWTH, self.length) - room
        for at, layer in enumerate(self.layers):
            self.layers[at] = F.pad(layer, (0, 0, 0, more))


def bytes_of_slot(config: TransformerConfig, length: int, dtype: torch.dtype) -> int:
    """Return the memory that a slot with `length` tokens takes."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * length * dtype.itemsize


def read(model: Transformer, prompts: list[list[int]]) -> list[Trunk]:
    """Run prompts through the network once, several at a time."""
    trunks: list[Trunk] = []
    for start in range(0, len(prompts), PROMPTS_AT_ONCE):
        trunks += _read(model, prompts[start : start + PROMPTS_AT_ONCE])
    return trunks


def _read(model: Transformer, prompts: list[list[int]]) -> list[Trunk]:
    tree = plant(prompts, [], [])
    over_tree = tree.attend()
    kept: list[Tensor] = []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kept.append(torch.stack([k, v]))
        return over_tree(layer, q, k, v)

    hidden = model(tree.tokens, tree.positions, attend)
    lengths = [len(p) for p in prompts]
    stores = torch.stack(kept).transpose(2, 3).split(lengths, dim=3)
    return [Trunk(store, rows[-1]) for store, rows in zip(stores, hidden.split(lengths), strict=True)]
