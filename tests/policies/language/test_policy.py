"""The language model as a policy: one forward for a batch against one trajectory at a time."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import SHAPES, VOCAB, assert_same, gradients, network, one_at_a_time, tokens, trajectories
from torch import Tensor

from gradhat.policies.language import policy as room
from gradhat.policies.language.policy import LanguagePolicy
from gradhat.policies.policy import Policy
from gradhat.trajectories import Trajectories

A, B, C = tokens(5), tokens(2), tokens(9)


def mixed() -> Trajectories:
    """Three prompts; groups 2 and 7 share one. Lengths 1 to 6, and steps that are not the policy's own."""
    prompts = [A, B, A, C, B, A, A, C]
    completions = [tokens(n, n) for n in (3, 1, 6, 2, 1, 4, 5, 1)]
    batch = trajectories(prompts, completions, group=[2, 0, 2, 1, 0, 7, 7, 1])
    mask = batch.mask.clone()
    mask[2, [1, 2]] = False  # text that the environment inserted between two turns
    mask[5, 0] = False  # before the first
    mask[6, 4] = False  # after the last
    mask[7, 0] = False  # no step of the policy's own
    return replace(batch, mask=mask)


def objective(logp: Tensor, entropy: Tensor, batch: Trajectories) -> Tensor:
    torch.manual_seed(1)
    by_logp, by_entropy = torch.randn(2, *batch.mask.shape, dtype=torch.float64)
    return (by_logp * logp + by_entropy * entropy)[batch.mask].sum()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_batch_equals_one_trajectory_at_a_time(shape: str, temperature: float) -> None:
    model, batch = network(shape), mixed()
    policy: Policy = LanguagePolicy(model, temperature)
    logp, entropy, values = policy.evaluate(batch)
    wanted = one_at_a_time(model, batch, temperature)
    assert values is None
    torch.testing.assert_close((logp, entropy), wanted, rtol=0, atol=1e-12)
    assert_same(
        gradients(model, objective(logp, entropy, batch)), gradients(model, objective(*wanted, batch))
    )


@pytest.mark.parametrize("length", [1, 4])
def test_completions_of_one_length(length: int) -> None:
    """Of length 1 there is no branch at all: the prompt's last state predicts the only action."""
    model = network()
    batch = trajectories([A, B, B], [tokens(length, i) for i in range(3)], group=[0, 1, 1])
    torch.testing.assert_close(
        LanguagePolicy(model).evaluate(batch)[:2], one_at_a_time(model, batch, 1.0), rtol=0, atol=1e-12
    )


def test_without_any_own_step_all_is_zero() -> None:
    batch = mixed()
    batch = replace(batch, mask=torch.zeros_like(batch.mask))
    logp, entropy, _ = LanguagePolicy(network()).evaluate(batch)
    assert logp.eq(0).all() and entropy.eq(0).all()


def test_actions_outside_the_mask_are_seen_but_not_scored() -> None:
    model, batch = network(), mixed()
    before = LanguagePolicy(model).evaluate(batch).logp
    actions = batch.actions.clone()
    actions[2, 1] = (actions[2, 1] + 1) % VOCAB
    changed = LanguagePolicy(model).evaluate(replace(batch, actions=actions)).logp != before
    own_later_steps = torch.zeros_like(batch.mask)
    own_later_steps[2, 3:6] = True
    assert torch.equal(changed, own_later_steps)


def test_only_the_policys_own_steps_meet_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []

    def spy(hidden: Tensor, head: Tensor, targets: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
        rows.append(len(hidden))
        return hidden.sum(-1), hidden.sum(-1)

    monkeypatch.setattr(room, "chunked_logp", spy)
    batch = mixed()
    LanguagePolicy(network()).evaluate(batch)
    assert rows == [int(batch.mask.sum())]


def test_each_prompt_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = network(), mixed()
    read: list[int] = []
    model.register_forward_pre_hook(lambda _, args: read.append(len(args[0])))
    LanguagePolicy(model).evaluate(batch)
    # The last action of a trajectory is nobody's past; nor is what the environment inserted behind it.
    assert read == [len(A) + len(B) + len(C) + 2 + 0 + 5 + 1 + 0 + 3 + 3 + 0]


@pytest.mark.parametrize("budget", [1, 7, 8, 14, 20, 25, 1000])
def test_micro_batches_add_up_to_the_gradient_of_the_whole(budget: int) -> None:
    model, batch = network("qwen3"), mixed()
    whole = LanguagePolicy(model).evaluate(batch)
    torch.manual_seed(1)
    by_logp, by_entropy = torch.randn(2, *batch.mask.shape, dtype=torch.float64)
    wanted = gradients(model, (by_logp * whole.logp + by_entropy * whole.entropy).sum())
    policy = LanguagePolicy(model, token_budget=budget)
    total = {name: torch.zeros_like(gradient) for name, gradient in wanted.items()}
    for rows in policy.split(batch):
        logp, entropy, _ = policy.evaluate(batch.select(rows))
        for name, gradient in gradients(
            model, (by_logp[rows] * logp + by_entropy[rows] * entropy).sum()
        ).items():
            total[name] += gradient
    assert_same(total, wanted)


def cost(batch: Trajectories, rows: list[int]) -> int:
    """Tokens of a micro-batch, each prompt once."""
    return sum(len(p) for p in {batch.observations[i] for i in rows}) + int(batch.mask[rows].sum())


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(1, 6)), min_size=1, max_size=12),
    st.integers(1, 40),
)
def test_micro_batches_keep_to_the_budget_and_do_not_cut_what_fits(
    drawn: list[tuple[tuple[int, ...], int]], budget: int
) -> None:
    prompts = [p for p, _ in drawn]
    batch = trajectories(prompts, [tokens(n) for _, n in drawn], group=[len(p) for p in prompts])
    parts = LanguagePolicy(network(), token_budget=budget).split(batch)
    assert sorted(i for part in parts for i in part) == list(range(len(batch)))
    assert all(part and (cost(batch, part) <= budget or len(part) == 1) for part in parts)
    for prompt in set(prompts):
        group = {i for i, p in enumerate(prompts) if p == prompt}
        if cost(batch, list(group)) <= budget:
            assert any(group <= set(part) for part in parts)


def test_an_empty_batch_has_no_micro_batches() -> None:
    assert LanguagePolicy(network()).split(mixed().select([])) == []


# Memory, and agreement with the sampler


def saved_bytes(policy: LanguagePolicy, batch: Trajectories) -> int:
    """What a forward keeps for its gradient: every storage once, the weights left out."""
    ours = {p.untyped_storage().data_ptr() for p in policy.module.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours:
            kept[storage.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        evaluation = policy.evaluate(batch)
        sizes = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        del evaluation
    return sizes


def drawn_batch(lengths: list[int], prompt: int) -> Trajectories:
    return trajectories([tokens(prompt)] * len(lengths), [tokens(n, n) for n in lengths], [0] * len(lengths))


SHAPES_OF_BATCHES = st.one_of(
    st.lists(st.integers(1, 60), min_size=1, max_size=30),
    st.builds(
        lambda n, short, long: [short] * n + [long],
        st.integers(1, 60),
        st.integers(1, 20),
        st.integers(1, 400),
    ),
)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(SHAPES_OF_BATCHES, st.integers(1, 50), st.sampled_from([100, 300, 1000]))
def test_the_budget_bounds_what_a_micro_batch_keeps(lengths: list[int], prompt: int, budget: int) -> None:
    """By the token: whatever the lengths, a token costs what it costs in a row of its own."""
    policy, batch = LanguagePolicy(network(), token_budget=budget), drawn_batch(lengths, prompt)
    per_token = saved_bytes(policy, drawn_batch([8], 8)) / 16
    parts = [batch.select(rows) for rows in policy.split(batch)]
    for part in sorted(parts, key=lambda part: part.mask.numel())[-2:]:
        longest = prompt + int(part.mask.sum(-1).max())
        # Places in the padded batch are kept too, a few bytes each.
        padding = 16 * part.mask.numel()
        assert saved_bytes(policy, part) <= 1.2 * per_token * max(budget, longest) + padding


def test_one_long_completion_among_many_short_ones_keeps_no_more_than_its_tokens() -> None:
    policy, lengths = LanguagePolicy(network(), token_budget=10_000), [480] + [60] * 60
    mixed, even = drawn_batch(lengths, 20), drawn_batch([sum(lengths) // 61] * 61, 20)
    assert len(policy.split(mixed)) == len(policy.split(even)) == 1
    assert saved_bytes(policy, mixed) <= 1.1 * saved_bytes(policy, even) + 16 * mixed.mask.numel()
