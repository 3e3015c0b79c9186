"""Prompts shared by their completions against one sequence at a time and one masked row per group."""

import pytest
import torch
from small import SHAPES, assert_same, causal, gradients, masked, network, tokens
from torch import Tensor

from gradhat.policies.language import tree as room
from gradhat.policies.language.transformer import Transformer
from gradhat.policies.language.tree import Tree, plant

F64 = torch.float64
PROMPTS = [tokens(4), tokens(1), tokens(7)]
BRANCHES = [tokens(3), tokens(1, 1), (), tokens(5), tokens(2), tokens(1, 2), tokens(6)]
OWNER = [0, 2, 0, 1, 0, 2, 1]
"""Groups of different sizes, and branches not sorted by their prompt."""


def of_tree(model: Transformer, tree: Tree) -> Tensor:
    return model(tree.tokens, tree.positions, tree.attend())


def one_at_a_time(model: Transformer) -> Tensor:
    """Every prompt on its own; every branch behind its prompt, whose states are left away."""
    states = [model(torch.tensor(p), torch.arange(len(p)), causal) for p in PROMPTS]
    for branch, owner in zip(BRANCHES, OWNER, strict=True):
        whole = torch.tensor(PROMPTS[owner] + branch)
        states.append(model(whole, torch.arange(len(whole)), causal)[len(PROMPTS[owner]) :])
    return torch.cat(states)


def dense(model: Transformer) -> Tensor:
    """One row per group: the prompt, then its branches side by side, positions restarting, under one mask."""
    trunks, branches = [], dict[int, Tensor]()
    for group, prompt in enumerate(PROMPTS):
        mine = [i for i, owner in enumerate(OWNER) if owner == group]
        row = torch.tensor([*prompt, *(t for i in mine for t in BRANCHES[i])])
        lengths = [len(BRANCHES[i]) for i in mine]
        which = torch.tensor([-1] * len(prompt) + [i for i in mine for _ in BRANCHES[i]])
        places = [torch.arange(len(prompt)), *(len(prompt) + torch.arange(n) for n in lengths)]
        seen = (which[:, None] == which) | (which == -1)
        states = model(row, torch.cat(places), masked(seen.tril()))
        trunk, *own = states.split([len(prompt), *lengths])
        trunks.append(trunk)
        branches |= dict(zip(mine, own, strict=True))
    return torch.cat([*trunks, *(branches[i] for i in range(len(BRANCHES)))])


@pytest.mark.parametrize("pairs", [room.PAIRS, 60, 1], ids=["one piece", "pieces", "a query a piece"])
@pytest.mark.parametrize("twin", [one_at_a_time, dense])
@pytest.mark.parametrize("shape", SHAPES)
def test_states_and_gradients_equal_those_of_the_twin(
    monkeypatch: pytest.MonkeyPatch, shape: str, twin: object, pairs: int
) -> None:
    monkeypatch.setattr(room, "PAIRS", pairs)
    model = network(shape)
    ours, wanted = of_tree(model, plant(PROMPTS, BRANCHES, OWNER)), twin(model)  # type: ignore[operator]
    torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-12)
    model.head = None
    upstream = torch.randn_like(wanted)
    assert_same(gradients(model, (ours * upstream).sum()), gradients(model, (wanted * upstream).sum()))


def test_prompts_alone_and_branches_without_tokens() -> None:
    model = network()
    with torch.no_grad():
        wanted = torch.cat([model(torch.tensor(p), torch.arange(len(p)), causal) for p in PROMPTS])
        torch.testing.assert_close(of_tree(model, plant(PROMPTS, [], [])), wanted, rtol=0, atol=1e-12)
        torch.testing.assert_close(
            of_tree(model, plant(PROMPTS, [(), ()], [2, 0])), wanted, rtol=0, atol=1e-12
        )


def test_a_branch_sees_neither_its_sibling_nor_another_group() -> None:
    model = network()
    tree = plant(PROMPTS, BRANCHES, OWNER)
    with torch.no_grad():
        before = of_tree(model, tree)
        for place in range(len(tree.tokens)):
            tree.tokens[place] = (tree.tokens[place] + 1) % 19
            changed = (of_tree(model, tree) != before).any(-1)
            tree.tokens[place] = (tree.tokens[place] - 1) % 19
            assert changed.tolist() == after(tree, place)


def after(tree: Tree, place: int) -> list[bool]:
    """Which tokens the one at `place` reaches: the rest of its trunk with all branches, or of its branch."""
    home = [(p, None) for p, prompt in enumerate(PROMPTS) for _ in prompt]
    home += [(OWNER[b], b) for b, branch in enumerate(BRANCHES) for _ in branch]
    group, branch = home[place]
    later = (tree.positions >= tree.positions[place]).tolist()
    return [g == group and (branch is None or b == branch) and later[i] for i, (g, b) in enumerate(home)]


def test_positions_continue_those_of_the_trunk() -> None:
    tree = plant([(5, 6), (7,)], [(1, 2), (), (3,)], [1, 0, 0])
    assert tree.tokens.tolist() == [5, 6, 7, 1, 2, 3]
    assert tree.positions.tolist() == [0, 1, 0, 1, 2, 2]
    assert tree.before_branches().tolist() == [2, 1, 1]
    assert tree.branch_starts().tolist() == [3, 5, 5]


def test_a_prompt_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="2 prompts: found one without tokens"):
        plant([(1, 2), ()], [(3,), (4,)], [0, 1])


def test_the_gradient_does_not_depend_on_the_threads_timing() -> None:
    """With brackets in place of index_select, 19 of 30 runs at this size had their own last bit."""
    torch.manual_seed(0)
    owner = torch.randint(3, (63,)).tolist()
    tree = plant([tokens(40)] * 3, [tokens(2)] * 63, owner)
    attend = tree.attend()
    size = len(tree.tokens)
    q = torch.randn(size, 3, 64)
    k, v = (torch.randn(size, 3, 64, requires_grad=True) for _ in range(2))
    upstream = torch.randn(size, 192)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        runs = [torch.autograd.grad(attend(0, q, k, v), (k, v), upstream) for _ in range(12)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for run in runs for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize(
    ("prompts", "branches"),
    [([30], [480] + [60] * 60), ([2000], [5, 900]), ([400, 3, 50], [1] * 300), ([40] * 8, [24] * 64)],
    ids=["one long", "long prompt", "many short", "even"],
)
def test_what_is_scored_at_once_is_bounded_and_little_of_it_is_padding(
    prompts: list[int], branches: list[int]
) -> None:
    owner = [i % len(prompts) for i in range(len(branches))]
    tree = plant([tokens(n) for n in prompts], [tokens(n) for n in branches], owner)
    pieces = room.cut(tree.rows())
    sizes = [piece.queries.numel() * piece.keys.shape[1] for piece in pieces]
    assert max(sizes) <= room.PAIRS
    queries = torch.cat([piece.queries[piece.real] for piece in pieces])
    assert queries.sort().values.tolist() == list(range(len(tree.tokens)))
    needed = sum(n * n for n in prompts)
    needed += sum(n * (prompts[trunk] + n) for trunk, n in zip(owner, branches, strict=True))
    # A piece of its own for each of many short rows would be no bound on time.
    assert sum(sizes) <= 1.3 * needed + room.PAIRS and len(pieces) <= 3 + 2 * needed / room.PAIRS
