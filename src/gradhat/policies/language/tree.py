"""Prompts shared by their completions: the prompt once, completions side by side, positions restarting.

A group of G completions is a tree: the prompt is the trunk, each completion a branch. A token sees the trunk
and its own branch up to itself. Written as a mask over one row per group, attention would score every branch
against every other and throw the scores away. So every trunk and every branch is a row of its own, whose
keys are its trunk and itself. Everything else (norms, products) runs over the flat stream of `N` real
tokens: no padding, each prompt once.

For the gradient, the queries, keys and values of the stream are kept and nothing else: a token costs the same
memory however long its row is. Rows of about equal length are attended together, a piece at a time.

Shapes: `P` prompts, `C` branches, `N` tokens in the stream; in a piece `B` rows, `Q` queries, `L` keys. `K`
key-value heads, `S` query heads that share one of them, `D` head size.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradhat.policies.language.attention import attention, attention_backward, hide
from gradhat.policies.language.transformer import Attend

PAIRS = 1 << 18
"""Pairs of a query and a key, padding included, that are scored at once for each head: few enough for the
cache."""


class Row(NamedTuple):
    """Queries of one sequence. They see `prefix` tokens of the stream from `trunk` on, and their own from
    `start` up to themselves."""

    trunk: int
    prefix: int
    start: int
    first: int
    """Of the own tokens, those from `first` up to, not including, `stop` ask."""
    stop: int

    @property
    def num_queries(self) -> int:
        return self.stop - self.first

    @property
    def num_keys(self) -> int:
        return self.prefix + self.stop


@dataclass(frozen=True)
class Piece:
    """Rows that are attended in one product, those of one trunk next to each other."""

    rows: tuple[Row, ...]
    queries: Tensor
    """int64 `[B, Q]`: places in the stream. Behind the end of a row stands its last query again."""
    places: Tensor
    """int64 `[B, Q]`: the last key that each query sees."""
    real: Tensor
    """bool `[B, Q]`."""
    keys: Tensor
    """int64 `[B, L]`: places in the stream, trunk first. Behind the end of a row stands its last key
    again."""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Piece":
        rows = sorted(rows)
        trunk, prefix, start, first, stop = torch.tensor(rows).T[:, :, None]
        query = torch.arange(max(row.num_queries for row in rows))
        key = torch.arange(max(row.num_keys for row in rows))
        own = torch.minimum(first + query, stop - 1)
        behind = start + torch.minimum(key - prefix, stop - 1)
        keys = torch.where(key < prefix, trunk + key, behind)
        return cls(tuple(rows), start + own, prefix + own, first + query < stop, keys)

    def bias(self, dtype: torch.dtype) -> Tensor:
        """Return what hides from each query the keys behind it, as of `hide`."""
        return hide(torch.arange(self.keys.shape[1]) <= self.places[:, :, None], dtype)

    def take(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the piece's queries `[B, K, Q, S, D]`, keys and values `[B, K, L, D]` of the stream's."""
        return _take(q, self.queries), _take(k, self.keys), _take(v, self.keys)

    def give(self, stream: Tensor, found: Tensor) -> None:
        """Write what was `found` for the queries, `[B, K, Q, S, D]`, into the stream `[N, K, S, D]`."""
        num_heads = stream.shape[1]
        real = self.real[:, None].expand(-1, num_heads, -1).flatten().nonzero()[:, 0]
        into = _by_head(self.queries, num_heads).index_select(0, real)
        stream.flatten(0, 1).index_copy_(0, into, found.flatten(0, 2).index_select(0, real))

    def add(self, stream: Tensor, found: Tensor) -> None:
        """Add what was `found` for the keys, `[B, K, L, D]`, to the stream `[N, K, D]`, rows in their
        order."""
        for at, row in enumerate(self.rows):
            own = stream[row.start : row.start + row.stop]
            own += found[at, :, row.prefix : row.num_keys].transpose(0, 1)
        at = 0
        for (trunk, prefix), rows in groupby(self.rows, key=lambda row: row[:2]):
            count = len(list(rows))
            if prefix:
                shared = found[at : at + count, :, :prefix].sum(0, dtype=stream.dtype)
                stream[trunk : trunk + prefix] += shared.transpose(0, 1)
            at += count


def _take(stream: Tensor, places: Tensor) -> Tensor:
    """`[N, K, ...]` → `[B, K, M, ...]` for places int64 `[B, M]`."""
    num_heads = stream.shape[1]
    taken = stream.flatten(0, 1).index_select(0, _by_head(places, num_heads))
    return taken.view(places.shape[0], num_heads, places.shape[1], *stream.shape[2:])


def _by_head(places: Tensor, num_heads: int) -> Tensor:
    """Places in the stream `[B, M]` → places in the stream with each head apart, `[B · K · M]`."""
    return (places[:, None] * num_heads + torch.arange(num_heads)[:, None]).flatten()


class _Attention(torch.autograd.Function):
    """Attention of the whole stream, piece by piece, and piece by piece again for the gradient."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, pieces: Sequence[Piece]) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.pieces = pieces
        out = torch.empty_like(q)
        for piece in pieces:
            piece.give(out, attention(*piece.take(q, k, v), piece.bias(q.dtype)))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v = ctx.saved_tensors
        pieces: Sequence[Piece] = ctx.pieces
        grad_q = torch.empty_like(q)
        # A prompt's keys gather a term from every completion: not in bfloat16.
        wide = torch.promote_types(q.dtype, torch.float32)
        grad_k, grad_v = (torch.zeros_like(x, dtype=wide) for x in (k, v))
        for piece in pieces:
            upstream = _take(grads[0], piece.queries) * piece.real[:, None, :, None, None]
            of_q, of_k, of_v = attention_backward(*piece.take(q, k, v), piece.bias(q.dtype), upstream)
            piece.give(grad_q, of_q)
            piece.add(grad_k, of_k)
            piece.add(grad_v, of_v)
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None


@dataclass(frozen=True)
class Tree:
    """A flat stream of trunk tokens, then branch tokens, and who sees whom in it."""

    tokens: Tensor
    """int64 `[N]`."""
    positions: Tensor
    """int64 `[N]`; each branch continues its own trunk's positions."""
    trunks: tuple[int, ...]
    """The length of each of the `P` trunks."""
    branches: tuple[int, ...]
    """The length of each of the `C` branches."""
    owner: tuple[int, ...]
    """The trunk of each branch."""

    def rows(self) -> list[Row]:
        """Return trunks and branches as rows of queries, shortest first."""
        starts = _starts((*self.trunks, *self.branches))
        alone = [Row(start, 0, start, 0, n) for start, n in zip(starts, self.trunks, strict=False)]
        behind = [
            Row(starts[trunk], self.trunks[trunk], start, 0, n)
            for trunk, start, n in zip(self.owner, starts[len(self.trunks) :], self.branches, strict=True)
        ]
        return sorted((row for row in alone + behind if row.stop), key=lambda row: (row.stop, row.prefix))

    def branch_starts(self) -> Tensor:
        """Stream index of the first token of each branch, int64 `[C]`; where it is empty, of the next
        one's."""
        return torch.tensor(_starts((*self.trunks, *self.branches))[len(self.trunks) :], dtype=torch.long)

    def before_branches(self) -> Tensor:
        """Stream index of the last token of each branch's trunk, int64 `[C]`."""
        ends = [start + n - 1 for start, n in zip(_starts(self.trunks), self.trunks, strict=True)]
        return torch.tensor([ends[trunk] for trunk in self.owner], dtype=torch.long)

    def attend(self) -> Attend:
        """Return the attention over this tree."""
        pieces = cut(self.rows())

        def attend(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            shared = q.unflatten(1, (k.shape[1], -1))
            return _Attention.apply(shared.contiguous(), k.contiguous(), v.contiguous(), pieces).flatten(1)

        return attend


def cut(rows: Iterable[Row]) -> list[Piece]:
    """Cut rows, in their order, into pieces of at most `PAIRS`. A row above that is cut between its
    queries."""
    pieces: list[list[Row]] = []
    num_queries = num_keys = 0
    for row in chain.from_iterable(map(_blocks, rows)):
        num_queries, num_keys = max(num_queries, row.num_queries), max(num_keys, row.num_keys)
        if not pieces or (len(pieces[-1]) + 1) * num_queries * num_keys > PAIRS:
            pieces.append([])
            num_queries, num_keys = row.num_queries, row.num_keys
        pieces[-1].append(row)
    return [Piece.of(piece) for piece in pieces]


def _blocks(row: Row) -> Iterable[Row]:
    """Cut a row above `PAIRS` into blocks of queries. Each sees no key behind itself: the first ones are
    cheap."""
    at_once = max(1, PAIRS // row.num_keys)
    for first in range(row.first, row.stop, at_once):
        yield row._replace(first=first, stop=min(first + at_once, row.stop))


def _starts(lengths: Sequence[int]) -> list[int]:
    """Return where each of several sequences begins when they lie one after the other."""
    return [0, *torch.tensor(lengths, dtype=torch.long).cumsum(0).tolist()][: len(lengths)]


def plant(prompts: Sequence[Sequence[int]], branches: Sequence[Sequence[int]], owner: Sequence[int]) -> Tree:
    """Lay prompts and branches out as one stream. `owner[i]` is the prompt that `branches[i]` continues.

    A branch may be empty. Raises ValueError for a prompt without tokens: nothing would predict its first
    action.
    """
    if not all(prompts):
        raise ValueError(
            f"plant {len(prompts)} prompts: found one without tokens. Give it at least a start token."
        )
    positions = [i for p in prompts for i in range(len(p))]
    positions += [len(prompts[o]) + i for b, o in zip(branches, owner, strict=True) for i in range(len(b))]
    stream = [t for p in prompts for t in p] + [t for b in branches for t in b]
    return Tree(
        torch.tensor(stream),
        torch.tensor(positions),
        tuple(map(len, prompts)),
        tuple(map(len, branches)),
        tuple(owner),
    )
