"""The exact expectation of each row, and that cutting or shuffling a batch changes nothing."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from toy import (
    LOGITS,
    REFERENCE,
    REWARDS,
    SENTENCES,
    Recorder,
    Softmax,
    Table,
    divergence,
    exact_gradient,
    expected_gradient,
    objective,
    probability,
)

from gradhat.algorithms.ascend import Optimizer
from gradhat.algorithms.grpo import Row, Settings, credit, update
from gradhat.algorithms.grpo_family import FAMILY
from gradhat.algorithms.reference import refer
from gradhat.policies.language.policy import LanguagePolicy
from gradhat.policies.language.transformer import Transformer, TransformerConfig
from gradhat.policies.policy import Policy
from gradhat.trajectories import Trajectories

F64 = torch.float64
LENGTH = 5
PROMPTS = [(0, 0), (0, 0, 0), (0, 0, 1, 1)]
"""Groups of two, of three, and two groups."""


def learner(name: str, kl_coef: float = 0.0) -> Callable[[Policy, Optimizer, Trajectories], None]:
    """Credit and update as one function, against the reference of the toy."""
    settings = Settings(length=LENGTH, kl_coef=kl_coef)
    reference = Softmax(Table(REFERENCE))

    def learn(policy: Policy, optimizer: Optimizer, trajectories: Trajectories) -> None:
        known = refer(reference, trajectories)
        update(policy, optimizer, credit(FAMILY[name], settings, known), FAMILY[name], settings)

    return learn


def exact(prompts: tuple[int, ...], kl_coef: float = 0.0) -> Tensor:
    """The gradient of J − β KL(π ‖ π_ref) over those prompts."""
    reference = torch.tensor(REFERENCE, dtype=F64)
    count = len(set(prompts))
    return exact_gradient(
        lambda logits: objective(logits, count) - kl_coef * divergence(logits, reference, count)
    )


@pytest.mark.parametrize("prompts", PROMPTS)
def test_rloo_is_unbiased(prompts: tuple[int, ...]) -> None:
    found = expected_gradient(prompts, learner("rloo"))
    torch.testing.assert_close(found, exact(prompts), rtol=0, atol=1e-12)


@pytest.mark.parametrize("prompts", PROMPTS)
def test_rloo_with_kl_in_the_reward_follows_j_less_the_divergence(prompts: tuple[int, ...]) -> None:
    torch.testing.assert_close(
        expected_gradient(prompts, learner("rloo", 0.4)), exact(prompts, 0.4), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("prompts", PROMPTS)
def test_dr_grpo_is_shorter_by_its_own_share_and_its_length(prompts: tuple[int, ...]) -> None:
    size = prompts.count(0)
    torch.testing.assert_close(
        expected_gradient(prompts, learner("dr_grpo")),
        (size - 1) / size / LENGTH * exact(prompts),
        rtol=0,
        atol=1e-12,
    )


def grpo_by_hand(size: int, kl_coef: float) -> Tensor:
    """E of Σ_i Σ_t (A_i − β (1 − π_ref/π)) ∇ log π / (G |τ_i|) over prompt 0's groups, by the formula."""
    logits, reference = torch.tensor(LOGITS, dtype=F64), torch.tensor(REFERENCE, dtype=F64)
    policy, far = logits.softmax(-1), reference.softmax(-1)
    total = torch.zeros_like(logits)
    for group in product(range(len(SENTENCES)), repeat=size):
        returns = [sum(REWARDS[0][s]) for s in group]
        mean = sum(returns) / size
        std = (sum((r - mean) ** 2 for r in returns) / (size - 1)) ** 0.5 + 1e-4
        chance = float(torch.stack([probability(0, s, logits) for s in group]).prod())
        for sentence, reward in zip(group, returns, strict=True):
            for state, word in enumerate(SENTENCES[sentence]):
                credit = (reward - mean) / std - kl_coef * (1 - float(far[state, word] / policy[state, word]))
                score = torch.eye(2, dtype=F64)[word] - policy[state]
                total[state] += chance * credit * score / (size * len(SENTENCES[sentence]))
    return total


@pytest.mark.parametrize("kl_coef", [0.0, 0.4])
@pytest.mark.parametrize("size", [2, 3])
def test_grpo_is_what_its_formula_says_and_not_the_gradient_of_j(size: int, kl_coef: float) -> None:
    found = expected_gradient((0,) * size, learner("grpo", kl_coef))
    torch.testing.assert_close(found, grpo_by_hand(size, kl_coef), rtol=0, atol=1e-12)
    cosine = torch.cosine_similarity(found.flatten(), exact((0,) * size, kl_coef).flatten(), dim=0)
    assert 0 < cosine < 0.99


# Below: a small transformer, because cutting its batch also cuts the prompts that it shares.


def network() -> Transformer:
    config = TransformerConfig(13, 8, 12, 2, num_heads=2, num_kv_heads=1, head_dim=4, max_positions=32)
    model = Transformer(config).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.5)
    return model


def sampled() -> Trajectories:
    """Two loud groups and a silent one, of lengths 1 to 6, from weights a little away from the present."""
    torch.manual_seed(3)
    lengths = torch.tensor([3, 1, 6, 2, 5, 4, 1, 2, 2])
    mask = torch.arange(6) < lengths[:, None]
    group = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])
    last = mask & (torch.arange(6) == lengths[:, None] - 1)
    rewards = torch.tensor([1.0, 0.0, 0.25, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0], dtype=F64)
    actions = torch.where(mask, torch.randint(13, mask.shape), 0)
    batch = Trajectories(
        observations=[((1, 2, 3, 4), (5, 6), (7, 8, 9))[g] for g in group.tolist()],
        actions=actions,
        mask=mask,
        logp=torch.zeros(mask.shape, dtype=F64),
        rewards=torch.where(last, rewards[:, None], 0),
        terminated=last,
        truncated=torch.zeros_like(mask),
        group=group,
        version=torch.zeros(9, dtype=torch.long),
    )
    now = LanguagePolicy(network()).evaluate(batch).logp.detach()
    noise = 0.3 * torch.randn(2, *mask.shape, dtype=F64)
    return replace(
        batch, logp=torch.where(mask, now + noise[0], 0), logp_ref=torch.where(mask, now + noise[1], 0)
    )


def gradient(row: Row, trajectories: Trajectories, budget: int = 1000) -> dict[str, Tensor]:
    settings = Settings(length=6, kl_coef=0.2)
    policy = LanguagePolicy(network(), temperature=0.9, token_budget=budget)
    recorder = Recorder(policy.module)
    update(policy, recorder, credit(row, settings, trajectories), row, settings)
    return recorder.gradient


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference, as a share of the largest gradient."""
    size = max(float(g.abs().max()) for g in other.values())
    assert size > 1e-3
    return max(float((one[name] - g).abs().max()) for name, g in other.items()) / size


BUDGETS = [1, 8, 12, 20]


@pytest.mark.parametrize("name", FAMILY)
def test_micro_batches_under_any_budget_add_up_to_the_same_gradient(name: str) -> None:
    batch = sampled()
    whole = gradient(FAMILY[name], batch)
    for budget in BUDGETS:
        assert distance(gradient(FAMILY[name], batch, budget), whole) < 1e-12, budget


@pytest.mark.parametrize("name", FAMILY)
def test_the_order_of_rows_and_the_names_of_groups_change_nothing(name: str) -> None:
    batch = sampled()
    whole = gradient(FAMILY[name], batch)
    shuffled = batch.select([8, 2, 4, 0, 6, 1, 7, 3, 5])
    shuffled = replace(shuffled, group=7 - 3 * shuffled.group)
    for budget in (1000, 8):
        assert distance(gradient(FAMILY[name], shuffled, budget), whole) < 1e-12


PLANTED: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "tokens": lambda mask, _: mask / mask.sum(),
    "trajectories": lambda mask, _: mask / len(mask),
    "mean of means": lambda mask, _: mask / mask.sum(-1, keepdim=True) / len(mask),
}


@pytest.mark.parametrize("planted", PLANTED.values(), ids=PLANTED)
@pytest.mark.parametrize("budget", BUDGETS)
def test_a_denominator_of_the_micro_batch_would_be_found_out(
    planted: Callable[[Tensor, Any], Tensor], budget: int
) -> None:
    batch = sampled()
    row = replace(FAMILY["rloo"], reduce=planted)
    assert distance(gradient(row, batch, budget), gradient(row, batch)) > 0.1


@pytest.mark.parametrize("name", FAMILY)
def test_who_corrects_for_the_sampler_and_who_does_not(name: str) -> None:
    """Rows without a ratio take the samples for fresh ones; those with one weigh and clip."""
    batch = replace(sampled(), logp_ref=None)
    fresh = replace(
        batch, logp=torch.where(batch.mask, LanguagePolicy(network(), 0.9).evaluate(batch).logp, 0).detach()
    )
    settings = Settings(length=6)

    def of(trajectories: Trajectories) -> dict[str, Tensor]:
        policy = LanguagePolicy(network(), temperature=0.9)
        recorder = Recorder(policy.module)
        update(policy, recorder, credit(FAMILY[name], settings, trajectories), FAMILY[name], settings)
        return recorder.gradient

    apart = distance(of(batch), of(fresh))
    assert apart == 0 if name == "rloo" else apart > 0.05
