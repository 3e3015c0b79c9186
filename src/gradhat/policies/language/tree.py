"""Prompts shared by their completions: the prompt once, completions side by side, positions restarting.

A group of G completions is a tree: the prompt is the trunk, each completion a branch. A token sees the trunk
and its own branch up to itself. Written as a mask over one row per group, attention would score every branch
against every other and throw the scores away. So the trunk and the branches are attended separately, which is
the same mask with the empty blocks left out. Everything else (norms, products) runs over the flat stream of
`N` real tokens: no padding, each prompt once.

Shapes: `P` prompts of at most `Lp` tokens, `C` branches of at most `Lc` tokens, `N` tokens in the stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradhat.policies.language.attention import attention, hide, pad, places_of, unpad
from gradhat.policies.language.transformer import Attend


@dataclass(frozen=True)
class Tree:
    """A flat stream of trunk tokens, then branch tokens, and the way from it to padded rows and back."""

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

    def attend(self, dtype: torch.dtype) -> Attend:
        """Return the attention over this tree for a network that computes in `dtype`."""
        trunk, branch, owner = self.trunk, self.branch, self.owner
        cut = [self.num_trunk_tokens, len(self.tokens) - self.num_trunk_tokens]
        trunk_places, branch_places = places_of(trunk), places_of(branch)
        trunk_bias = hide(_causal(trunk.shape[1])[None], dtype)
        of_trunk = trunk[owner][:, None].expand(-1, branch.shape[1], -1)
        own = _causal(branch.shape[1])[None].expand(len(owner), -1, -1)
        branch_bias = hide(torch.cat([of_trunk, own], dim=2), dtype)

        def attend(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            (q_trunk, q_branch), (k_trunk, k_branch), (v_trunk, v_branch) = (x.split(cut) for x in (q, k, v))
            q_rows, k_rows, v_rows = (pad(x, trunk_places, trunk.shape) for x in (q_trunk, k_trunk, v_trunk))
            out_trunk = unpad(attention(q_rows, k_rows, v_rows, trunk_bias), trunk_places)
            if not cut[1]:
                return out_trunk.flatten(1)
            q_own, k_own, v_own = (
                pad(x, branch_places, branch.shape) for x in (q_branch, k_branch, v_branch)
            )
            # Not k_rows[owner]: the order in which its gradient sums depends on the threads.
            keys = torch.cat([k_rows.index_select(0, owner), k_own], dim=1)
            values = torch.cat([v_rows.index_select(0, owner), v_own], dim=1)
            out_branch = unpad(attention(q_own, keys, values, branch_bias), branch_places)
            return torch.cat([out_trunk, out_branch]).flatten(1)

        return attend


def _causal(length: int) -> Tensor:
    """Who sees whom in one row, bool `[length, length]`: each place itself and what is before it."""
    return torch.ones(length, length, dtype=torch.bool).tril()


def plant(prompts: Sequence[Sequence[int]], branches: Sequence[Sequence[int]], owner: Sequence[int]) -> Tree:
    """Lay prompts and branches out as one stream. `owner[i]` is the prompt that `branches[i]` continues.

    A branch may be empty. Raises ValueError for a prompt without tokens: nothing would predict its first
    action.
    """
    if not all(prompts):
        raise ValueError(
            f"plant {len(prompts)} prompts: found one without tokens. Give it at least a start token."
        )
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
