"""Bugs from the wild, each planted once and caught: denominators, masks, shapes, a penalty that is no no-op.

A property is a function that fails for a wrong reduction. It is applied to ours, and to the bug.
"""

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from gradhat.estimators import kl, ratios
from gradhat.losses import mismatch, reduce, surrogate

F64 = torch.float64
LENGTHS = [5, 1, 3, 2]
MASK = (torch.arange(5) < torch.tensor(LENGTHS)[:, None]).to(F64)
GROUP_TOKENS = torch.tensor([6, 6, 5, 5])

# --- a denominator per micro-batch -------------------------------------------------------------------------

WeightsOf = Callable[[Tensor, Tensor], Tensor]
"""(mask of a part, its rows) → weights."""


def parts_add_up(weights: WeightsOf) -> None:
    rows = torch.arange(len(MASK))
    whole = weights(MASK, rows)
    for size in (1, 2, 3):
        found = torch.cat([weights(MASK[part], part) for part in rows.split(size)])
        torch.testing.assert_close(found, whole, atol=1e-15, rtol=0)


OURS: dict[str, WeightsOf] = {
    "per_trajectory": lambda mask, _: reduce.per_trajectory(mask, num_trajectories=4),
    "per_token": lambda mask, _: reduce.per_token(mask, num_tokens=11),
    "per_sequence": lambda mask, _: reduce.per_sequence(mask, num_sequences=4),
    "constant": lambda mask, _: reduce.constant(mask, num_sequences=4, length=5),
    "per_group": lambda mask, rows: reduce.per_group(mask, GROUP_TOKENS[rows], num_groups=2),
}

# Each counts what it sees, and divides by the number of parts or not, as found in trainers.
PER_MICRO_BATCH: dict[str, WeightsOf] = {
    "tokens at hand": lambda mask, _: reduce.per_token(mask, num_tokens=int(mask.sum())),
    "tokens at hand, mean over parts": lambda mask, _: reduce.per_token(
        mask, num_tokens=int(mask.sum()) * (len(MASK) // len(mask))
    ),
    "sequences at hand": lambda mask, _: reduce.per_sequence(mask, num_sequences=len(mask)),
    "trajectories at hand": lambda mask, _: reduce.per_trajectory(mask, num_trajectories=len(mask)),
    "the longest answer at hand": lambda mask, _: reduce.constant(
        mask, num_sequences=4, length=int(mask.sum(-1).max())
    ),
    "tokens of the group at hand": lambda mask, rows: (
        mask
        / (2 * torch.stack([mask[GROUP_TOKENS[rows] == GROUP_TOKENS[row]].sum() for row in rows])[:, None])
    ),
}


@pytest.mark.parametrize("name", OURS)
def test_parts_add_up(name: str) -> None:
    parts_add_up(OURS[name])


@pytest.mark.parametrize("name", PER_MICRO_BATCH)
def test_a_denominator_per_micro_batch_is_caught(name: str) -> None:
    with pytest.raises(AssertionError, match="not close"):
        parts_add_up(PER_MICRO_BATCH[name])


def test_the_tokens_of_a_micro_batch_cannot_pass_for_those_of_the_group() -> None:
    # Where the other members lie elsewhere, the count at hand may still cover the row; here it does not.
    with pytest.raises(ValueError, match=r"^group_tokens\[0\]=3 with 5 own steps"):
        reduce.per_group(MASK[:1], torch.tensor([3]), num_groups=2)


# --- a mean over steps where the formula says 1 / |D| ------------------------------------------------------

ARMS = torch.tensor([1.0, -0.5, 0.3], dtype=F64)
LOGITS = torch.tensor([[0.4, -0.1, 0.3], [0.2, 0.9, -0.7]], dtype=F64)
"""A world of one or two steps: arm 0 ends it, the others lead to a second and last choice."""
TRAJECTORIES = [[0], *[[a, b] for a in (1, 2) for b in (0, 1, 2)]]
STEPS = torch.tensor([[1.0, len(t) - 1.0] for t in TRAJECTORIES], dtype=F64)
RETURNS = torch.stack([ARMS[t].sum() for t in TRAJECTORIES])


def step_logp(logits: Tensor) -> Tensor:
    """`[7, 2]`, 0 where there is no second step."""
    logp = logits.log_softmax(-1)
    second = [logp[1, t[1]] if len(t) == 2 else logp.new_zeros(()) for t in TRAJECTORIES]
    return torch.stack(
        [torch.stack([logp[0, t[0]], later]) for t, later in zip(TRAJECTORIES, second, strict=True)]
    )


def unbiased(weights: Callable[[Tensor], Tensor]) -> None:
    """E ĝ over all batches of two trajectories is ∇J."""
    logits = LOGITS.clone().requires_grad_()
    (exact,) = torch.autograd.grad((step_logp(logits).sum(-1).exp() * RETURNS).sum(), logits)
    chance = step_logp(LOGITS).sum(-1).exp()
    expected = torch.zeros(())
    for pair in itertools.product(range(len(TRAJECTORIES)), repeat=2):
        rows = torch.tensor(pair)
        logp = step_logp(logits)[rows]
        objective = surrogate.reinforce(ratios.on_policy(logp, logp, STEPS[rows]), RETURNS[rows][:, None])
        expected = expected + chance[rows].prod() * (weights(STEPS[rows]) * objective).sum()
    (found,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(found, exact, atol=1e-12, rtol=0)


def test_one_over_d_is_unbiased() -> None:
    unbiased(partial(reduce.per_trajectory, num_trajectories=2))


@pytest.mark.parametrize(
    "weights",
    [
        lambda mask: mask / mask.numel(),  # .mean() over the padded tensor
        lambda mask: mask / mask.sum(),  # .mean() over the steps
        partial(reduce.per_sequence, num_sequences=2),  # .mean() over each trajectory first
    ],
)
def test_a_mean_over_steps_is_caught(weights: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(AssertionError, match="not close"):
        unbiased(weights)


# --- advantages passed as the mask -------------------------------------------------------------------------

TAKES_A_MASK: list[Callable[[Tensor], Tensor]] = [
    partial(reduce.per_trajectory, num_trajectories=4),
    partial(reduce.per_token, num_tokens=11),
    partial(reduce.per_sequence, num_sequences=4),
    partial(reduce.constant, num_sequences=4, length=5),
    lambda mask: reduce.per_group(mask, torch.full((len(mask),), 11), num_groups=2),
    lambda mask: mismatch.sampler_weight(torch.zeros(mask.shape), torch.zeros(mask.shape), mask, cap=2.0),
    lambda mask: mismatch.sampler_weight_masked(
        torch.zeros(mask.shape), torch.zeros(mask.shape), mask, low=0.5, high=2.0
    ),
]


@pytest.mark.parametrize("function", TAKES_A_MASK)
@pytest.mark.parametrize(
    "wrong",
    [
        [[0.5, -1.0], [0.5, 0.5]],
        [[1, 2], [0, 1]],
        [[1.0, float("nan")], [1.0, 1.0]],
        [[-1.0, -1.0], [1.0, 1.0]],  # a group of two, standardised
    ],
)
def test_advantages_as_the_mask_are_refused(
    function: Callable[[Tensor], Tensor], wrong: list[list[float]]
) -> None:
    with pytest.raises(ValueError, match=r"^mask with values .*not their advantages"):
        function(torch.tensor(wrong))


# --- [B] against [B, T] ------------------------------------------------------------------------------------

CREDIT = torch.tensor([1.0, -2.0, 3.0], dtype=F64)


def gradient_of(adv: Tensor, objective: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    x = torch.zeros(3, 3, dtype=F64, requires_grad=True)
    objective(x, adv).sum().backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("wrong", [CREDIT, CREDIT[None]])
def test_the_credit_of_other_trajectories_is_refused(wrong: Tensor, unchecked: None) -> None:
    # With as many trajectories as steps nothing else fails, and every step has another's credit.
    right = gradient_of(CREDIT[:, None], surrogate.reinforce)
    assert torch.equal(right, CREDIT[:, None].expand(3, 3))
    planted = gradient_of(wrong, lambda x, adv: x * adv)
    assert planted.shape == right.shape and torch.equal(planted, right.T)
    with pytest.raises(ValueError, match=r"^adv \((1, )?3,?\) with log_ratio \(3, 3\)"):
        gradient_of(wrong, surrogate.reinforce)


def test_the_checker_refuses_it_as_well() -> None:
    with pytest.raises(TypeError):
        gradient_of(CREDIT, surrogate.reinforce)


# --- a penalty that is zero and moves the gradient ---------------------------------------------------------

BETA = 0.1


def grpo_gradient(penalty: Callable[[Tensor, Tensor], Tensor] | None) -> tuple[float, Tensor]:
    """Loss and gradient of one fresh batch whose reference is the policy itself."""
    random = torch.Generator().manual_seed(0)
    logp = torch.randn(MASK.shape, generator=random, dtype=F64).requires_grad_()
    adv = torch.tensor([[1.0], [-1.0], [0.5], [-0.5]], dtype=F64)
    objective = surrogate.clipped(ratios.token(logp, logp.detach(), MASK), adv, low=0.2, high=0.2)
    if penalty is not None:
        objective = objective - BETA * penalty(logp, logp.detach())
    loss = -(reduce.per_sequence(MASK, num_sequences=4) * objective).sum()
    loss.backward()
    assert logp.grad is not None
    return loss.item(), logp.grad


@pytest.mark.parametrize("penalty", [kl.k2, kl.k3])
def test_k2_and_k3_against_oneself_change_nothing(penalty: Callable[[Tensor, Tensor], Tensor]) -> None:
    without, with_penalty = grpo_gradient(None), grpo_gradient(penalty)
    assert with_penalty[0] == without[0] and torch.equal(with_penalty[1], without[1])


def test_k1_against_oneself_has_the_value_zero_and_moves_the_gradient() -> None:
    # The loss does not show it: the value is 0, the gradient is ∇ log π of every step.
    without, with_penalty = grpo_gradient(None), grpo_gradient(kl.k1)
    assert with_penalty[0] == without[0]
    moved = with_penalty[1] - without[1]
    weights = reduce.per_sequence(MASK, num_sequences=4)
    torch.testing.assert_close(moved, BETA * weights, atol=1e-15, rtol=0)
    assert moved.norm() > 0.1 * without[1].norm()


def test_in_expectation_k1_in_the_loss_does_nothing_even_where_the_divergence_is_not_zero() -> None:
    # Hence it is no penalty at all, on any reference: it only adds noise. k2 and k3 pull.
    reference = torch.tensor([0.0, 1.0, -1.0], dtype=F64).log_softmax(-1)

    def expected_gradient(penalty: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        logits = LOGITS[0].clone().requires_grad_()
        logp = logits.log_softmax(-1)
        found = penalty(logp[None], reference[None])[0]
        (gradient,) = torch.autograd.grad((logp.detach().exp() * found).sum(), logits)
        return gradient

    assert expected_gradient(kl.k1).abs().max() < 1e-15
    assert min(expected_gradient(k).abs().max().item() for k in (kl.k2, kl.k3)) > 0.05
