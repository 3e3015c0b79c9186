"""Prompts shared by their completions: one row per group, the prompt once, completions side by side, positions restarting.

A group of G completions is a tree: the prompt is the trunk, each completion a branch. A token sees the trunk and its own
branch up to itself. Written as a mask over one row per group, attention would score every branch against every other and
throw the scores away. So the trunk and the branches are attended separately, which is the same mask with the empty blocks
left out. Everything else (norms, products) runs over the flat stream of `N` real tokens: no padding, each prompt once.

Shapes: `P` prompts of at most `Lp` tokens, `C` branches of at most `Lc` tokens, `N` tokens in the stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradhat.policies.language.attention import attention, pad, unpad


@dataclass(frozen=True)
class Tree:
    """A flat stream of trunk tokens, then branch tokens, and the index arithmetic between the stream and padded rows."""

    tokens: Tensor
    """int64 `[N]`."""
    positions: Tensor
    """int64 `[N]`; each branch continues its own trunk's positions."""
    trunk: Tensor
    """bool `[P, Lp]`: real tokens of the trunks."""
    branch: Tensor
    """bool `[C, Lc]`: real tokens of the branches."""
    owner: Tensor
    """int64 `[C]`: the trunk of each branch."""

    @property
    def num_trunk_tokens(self) -> int:
        return int(self.trunk.sum())

    def last_trunk_token(self) -> Tensor:
        """Stream index of the last token of each branch's trunk, int64 `[C]`."""
        return (self.trunk.sum(-1).cumsum(0) - 1)[self.owner]

    def attend(self, _layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention over the tree. `q` `[N, H, D]`, `k` and `v` `[N, K, D]`; returns `[N, H * D]`."""
        cut = [self.num_trunk_tokens, len(self.tokens) - self.num_trunk_tokens]
        (q_trunk, q_branch), (k_trunk, k_branch), (v_trunk, v_branch) = q.split(cut), k.split(cut), v.split(cut)
        k_trunk, v_trunk = pad(k_trunk, self.trunk), pad(v_trunk, self.trunk)
        causal = torch.ones(self.trunk.shape[1], self.trunk.shape[1], dtype=torch.bool).tril()
        out_trunk = unpad(attention(pad(q_trunk, self.trunk), k_trunk, v_trunk, causal[None]), self.trunk)
        if cut[1] == 0:
            return out_trunk.flatten(1)
        keys = torch.cat([k_trunk[self.owner], pad(k_branch, self.branch)], dim=1)
        values = torch.cat([v_trunk[self.owner], pad(v_branch, self.branch)], dim=1)
        own = torch.ones(self.branch.shape[1], self.branch.shape[1], dtype=torch.bool).tril()
        seen = torch.cat(
            [
                self.trunk[self.owner][:, None].expand(-1, self.branch.shape[1], -1),
                own[None].expand(len(self.owner), -1, -1),
            ],
            dim=2,
        )
        out_branch = unpad(attention(pad(q_branch, self.branch), keys, values, seen), self.branch)
        return torch.cat([out_trunk, out_branch]).flatten(1)


def plant(prompts: Sequence[Sequence[int]], branches: Sequence[Sequence[int]], owner: Sequence[int]) -> Tree:
    """Lay prompts and branches out as one stream. `owner[i]` is the prompt that `branches[i]` continues."""
    trunk_lengths = torch.tensor([len(p) for p in prompts])
    branch_lengths = torch.tensor([len(b) for b in branches], dtype=torch.long)
    trunk = torch.arange(int(trunk_lengths.max()))[None] < trunk_lengths[:, None]
    longest = max((len(b) for b in branches), default=0)
    branch = torch.arange(longest)[None] < branch_lengths[:, None]
    owners = torch.tensor(owner, dtype=torch.long)
    positions_trunk = torch.arange(trunk.shape[1]).expand_as(trunk)[trunk]
    positions_branch = (trunk_lengths[owners][:, None] + torch.arange(longest))[branch]
    stream = [t for p in prompts for t in p] + [t for b in branches for t in b]
    return Tree(torch.tensor(stream), torch.cat([positions_trunk, positions_branch]), trunk, branch, owners)
