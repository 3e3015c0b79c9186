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
