"""Weights per step: by hand, under micro-batching, in expectation on a toy language, against TRL's losses.

The toy language has three tokens and at most two per sequence; token 0 ends. With seven sequences, every
expectation over |D| independent samples is a finite sum.
"""

import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradhat.estimators import group, kl, ratios
from gradhat.losses import reduce, surrogate

F64 = torch.float64
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1]], dtype=torch.bool)

Weights = Callable[[Tensor], Tensor]
ALL: list[Weights] = [
    partial(reduce.per_trajectory, num_trajectories=4),
    partial(reduce.per_token, num_tokens=6),
    partial(reduce.per_sequence, num_sequences=4),
    partial(reduce.constant, num_sequences=4, length=5),
]

# --- by hand -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "per_row"),
    [
        (ALL[0], [1 / 4, 1 / 4, 0, 1 / 4]),
        (ALL[1], [1 / 6, 1 / 6, 0, 1 / 6]),
        (ALL[2], [1 / 12, 1 / 4, 0, 1 / 8]),  # the empty sequence counts among the four
        (ALL[3], [1 / 20, 1 / 20, 0, 1 / 20]),
    ],
)
def test_values_by_hand(weights: Weights, per_row: list[float]) -> None:
    expected = MASK * torch.tensor(per_row, dtype=F64)[:, None]
    assert torch.equal(weights(MASK.to(F64)), expected)
    torch.testing.assert_close(weights(MASK), expected.float())
    torch.testing.assert_close(weights(MASK.long()), expected.float())


def test_one_over_d_is_not_a_mean_over_steps() -> None:
    # `.mean()` over the steps would make these weights add up to 1.
    assert reduce.per_trajectory(MASK, num_trajectories=4).sum().item() == pytest.approx(6 / 4)


@pytest.mark.parametrize("weights", ALL)
def test_the_dtype_of_a_floating_mask_is_kept(weights: Weights) -> None:
    assert weights(MASK.to(F64)).dtype is F64
    assert weights(MASK.float()).dtype is torch.float32


# --- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ALL)
def test_advantages_passed_as_the_mask_are_refused(weights: Weights) -> None:
    for wrong in (torch.tensor([[0.5, -1.0]]), torch.tensor([[1, 2]]), torch.tensor([[1.0, math.nan]])):
        with pytest.raises(ValueError, match=r"^mask with values .*not their advantages"):
            weights(wrong)


@pytest.mark.parametrize("count", [0, -3])
def test_a_count_that_is_not_positive_is_refused(count: int) -> None:
    for weights, name in [
        (partial(reduce.per_trajectory, num_trajectories=count), "num_trajectories"),
        (partial(reduce.per_token, num_tokens=count), "num_tokens"),
        (partial(reduce.per_sequence, num_sequences=count), "num_sequences"),
        (partial(reduce.constant, num_sequences=count, length=5), "num_sequences"),
        (partial(reduce.constant, num_sequences=5, length=count), "length"),
    ]:
        with pytest.raises(ValueError, match=f"^{name}={count}: "):
            weights(MASK)


# --- micro-batches and masks -------------------------------------------------------------------------------


def ragged_mask(lengths: list[int]) -> Tensor:
    return torch.arange(max([*lengths, 1])) < torch.tensor(lengths)[:, None]


def counted(lengths: list[int]) -> list[Weights]:
    """The four reductions with the counts of the whole step."""
    return [
        partial(reduce.per_trajectory, num_trajectories=len(lengths)),
        partial(reduce.per_token, num_tokens=max(sum(lengths), 1)),
        partial(reduce.per_sequence, num_sequences=len(lengths)),
        partial(reduce.constant, num_sequences=len(lengths), length=7),
    ]


few = settings(max_examples=40, deadline=None, derandomize=True)


@few
@given(st.lists(st.integers(0, 5), min_size=1, max_size=7), st.integers(0, 10**6), st.data())
def test_splitting_into_micro_batches_changes_nothing(
    lengths: list[int], seed: int, data: st.DataObject
) -> None:
    cuts = data.draw(st.lists(st.integers(0, len(lengths)), max_size=3).map(sorted))
    parts = [slice(a, b) for a, b in itertools.pairwise([0, *cuts, len(lengths)]) if a < b]
    mask = ragged_mask(lengths)
    random = torch.Generator().manual_seed(seed)
    logp, old, adv = (torch.randn(mask.shape, generator=random, dtype=F64) for _ in range(3))

    def loss(at: slice, weights: Weights, x: Tensor) -> Tensor:
        objective = surrogate.clipped(ratios.token(x[at], old[at], mask[at]), adv[at], low=0.2, high=0.2)
        return -(weights(mask[at].to(F64)) * objective).sum()

    for weights in counted(lengths):
        whole, pieces = logp.clone().requires_grad_(), logp.clone().requires_grad_()
        at_once = loss(slice(None), weights, whole)
        at_once.backward()
        summed = 0.0
        for part in parts:
            piece = loss(part, weights, pieces)
            piece.backward()
            summed += piece.item()
        assert summed == pytest.approx(at_once.item(), abs=1e-13)
        torch.testing.assert_close(pieces.grad, whole.grad, atol=1e-14, rtol=0)


@few
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=5),
    st.integers(0, 10**6),
    st.sampled_from([math.inf, -math.inf, math.nan, 1e30]),
)
def test_masked_steps_get_zero_gradient_and_touch_nothing(lengths: list[int], seed: int, junk: float) -> None:
    mask = ragged_mask([*lengths, max(lengths) + 1])
    lengths = mask.sum(-1).tolist()
    random = torch.Generator().manual_seed(seed)
    clean, old, adv = (torch.randn(mask.shape, generator=random) for _ in range(3))
    dirty = torch.where(mask, clean, torch.full_like(clean, junk))
    dirty_old = torch.where(mask, old, torch.full_like(old, -junk))
    objectives = [
        surrogate.reinforce,
        surrogate.importance_weighted,
        partial(surrogate.clipped, low=0.2, high=0.2),
    ]
    for ratio, objective, weights in itertools.product(
        [ratios.on_policy, ratios.token, ratios.sequence], objectives, counted(lengths)
    ):
        values: list[Tensor] = []
        for source, source_old in ((clean, old), (dirty, dirty_old)):
            logp = source.clone().requires_grad_()
            loss = -(weights(mask) * objective(ratio(logp, source_old, mask), adv)).sum()
            loss.backward()
            assert logp.grad is not None and not logp.grad[~mask].any()
            values += [loss.detach(), logp.grad]
        assert torch.equal(values[0], values[2]) and torch.equal(values[1], values[3])


# --- in expectation: a toy language, all batches enumerated ------------------------------------------------

SEQUENCES = [[0], *[[a, b] for a in (1, 2) for b in (0, 1, 2)]]
LENGTHS = torch.tensor([len(s) for s in SEQUENCES], dtype=F64)
LANGUAGE_MASK = ragged_mask([len(s) for s in SEQUENCES])  # [7, 2]
REWARD = torch.tensor([0.2, 1.0, -0.5, 0.0, 0.3, 2.0, -1.0], dtype=F64)
TABLE = torch.tensor([[0.4, -0.1, 0.3], [0.2, 0.9, -0.7], [-0.5, 0.1, 0.6]], dtype=F64)
"""Logits `[state, token]`; the state is the token before, and 0 at the start."""


def step_logp(table: Tensor) -> Tensor:
    """Log-probability of every step of every sequence, `[7, 2]`."""
    logp = table.log_softmax(-1)
    return torch.stack(
        [
            torch.stack([logp[0, s[0]], logp[s[0], s[1]] if len(s) == 2 else logp.new_zeros(())])
            for s in SEQUENCES
        ]
    )


def differentiate(of: Callable[[Tensor], Tensor]) -> Tensor:
    table = TABLE.clone().requires_grad_()
    of(table).backward()
    assert table.grad is not None
    return table.grad


def exact_gradient() -> Tensor:
    """∇ Σ_τ π(τ) R(τ), differentiated as it stands: no score function, no sampling."""
    return differentiate(lambda table: step_logp(table).sum(-1).exp() @ REWARD)


Baseline = Callable[[Tensor, Tensor], Tensor]


def expected_gradient(
    size: int, weights: Callable[[Tensor], Tensor], baseline: Baseline = group.none
) -> Tensor:
    """E ĝ over all 7^size batches. `weights` maps the masks `[N, size, 2]` of all batches to weights."""
    drawn = torch.tensor(list(itertools.product(range(7), repeat=size)))  # [N, size]
    rows = drawn.flatten()
    ids = torch.arange(len(drawn)).repeat_interleave(size)
    adv = REWARD[rows] - baseline(REWARD[rows], ids)
    weight = weights(LANGUAGE_MASK[drawn].to(F64)).view(-1, 2)

    def surrogate_of(table: Tensor) -> Tensor:
        logp = step_logp(table)
        chance = logp.detach().sum(-1)[drawn].sum(-1).exp()  # [N]
        log_ratio = ratios.on_policy(logp[rows], logp[rows], LANGUAGE_MASK[rows])
        objective = surrogate.reinforce(log_ratio, adv[:, None])
        return (chance[ids, None] * weight * objective).sum()

    return differentiate(surrogate_of)


def test_the_toy_language_is_a_distribution() -> None:
    assert step_logp(TABLE).sum(-1).exp().sum().item() == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_one_over_d_is_unbiased(size: int) -> None:
    found = expected_gradient(size, lambda mask: reduce.per_trajectory(mask, num_trajectories=size))
    torch.testing.assert_close(found, exact_gradient(), atol=1e-12, rtol=0)


def test_group_baselines_on_sequences() -> None:
    def weights(mask: Tensor) -> Tensor:
        return reduce.per_trajectory(mask, num_trajectories=3)

    found = expected_gradient(3, weights, group.group_mean)
    torch.testing.assert_close(found, exact_gradient() * 2 / 3, atol=1e-12, rtol=0)
    found = expected_gradient(3, weights, group.leave_one_out)
    torch.testing.assert_close(found, exact_gradient(), atol=1e-12, rtol=0)


def test_a_constant_length_keeps_the_direction() -> None:
    found = expected_gradient(2, lambda mask: reduce.constant(mask, num_sequences=2, length=8))
    torch.testing.assert_close(found, exact_gradient() / 8, atol=1e-12, rtol=0)


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def test_the_mean_of_means_follows_another_objective() -> None:
    # Its expectation is the gradient of E[R / length] at lengths that do not answer for their own cause.
    found = expected_gradient(2, lambda mask: reduce.per_sequence(mask, num_sequences=2))
    chance = step_logp(TABLE).sum(-1).exp()
    expected = differentiate(lambda table: (chance * REWARD / LENGTHS) @ step_logp(table).sum(-1))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert cosine(found, exact_gradient()) < 0.99


def test_the_mean_over_tokens_is_a_ratio_and_biased() -> None:
    # Every batch of two has its own number of tokens: the expectation of a quotient, in a double loop.
    def weights(mask: Tensor) -> Tensor:
        each = [reduce.per_token(m, num_tokens=int(m.sum())) for m in mask]
        return torch.stack(each)

    found = expected_gradient(2, weights)
    chance = step_logp(TABLE).sum(-1).exp()
    credit = torch.zeros(7, dtype=F64)
    for i in range(7):
        for j in range(7):
            tokens = LENGTHS[i] + LENGTHS[j]
            credit[i] += chance[i] * chance[j] * REWARD[i] / tokens
            credit[j] += chance[i] * chance[j] * REWARD[j] / tokens
    expected = differentiate(lambda table: credit @ step_logp(table).sum(-1))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert cosine(found, exact_gradient()) < 0.999


def test_the_mean_over_padded_steps_is_not_one_over_d() -> None:
    # `.mean()` of a padded [2, 2] tensor divides by 4 where the formula says |D| = 2.
    padded = expected_gradient(2, lambda mask: mask / mask[0].numel())
    torch.testing.assert_close(padded, exact_gradient() / 2, atol=1e-12, rtol=0)
    ours = expected_gradient(2, lambda mask: reduce.per_trajectory(mask, num_trajectories=2))
    assert (ours - padded).abs().max() > 0.01


# --- TRL as an oracle --------------------------------------------------------------------------------------
# Restated from TRL 1.16.0, trl/trainer/grpo_trainer.py, by line: advantages 2765-2787, log-ratio 3083-3095,
# k3 3100-3102, clipping 3113-3120, grpo 3154-3157, dr_grpo 3164-3167, dapo 3170-3173.


def trl_advantages(rewards: Tensor, size: int) -> Tensor:
    table = rewards.view(-1, size)
    centred = table - table.mean(1, keepdim=True)
    return (centred / (table.std(1, keepdim=True) + 1e-4)).flatten()


def trl_step_loss(
    logp: Tensor, old: Tensor, ref: Tensor, adv: Tensor, mask: Tensor, beta: float, level: str
) -> Tensor:
    log_ratio = logp - old
    if level == "sequence":
        log_ratio = ((log_ratio * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).unsqueeze(-1)
    ratio = log_ratio.exp()
    kept = torch.clamp(ratio, 1 - 0.2, 1 + 0.28)
    loss = -torch.min(ratio * adv[:, None], kept * adv[:, None])
    return loss + beta * (torch.exp(ref - logp) - (ref - logp) - 1)


def trl_loss(kind: str, step_loss: Tensor, mask: Tensor, accumulation: int, num_items: int) -> Tensor:
    """One micro-batch of `accumulation`; the step's loss is the sum over them."""
    if kind == "grpo":
        return ((step_loss * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean() / accumulation
    if kind == "dr_grpo":
        return (step_loss * mask).sum() / (step_loss.size(0) * 9) / accumulation
    return (step_loss * mask).sum() / num_items


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "dapo"])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_trl(kind: str, level: str, beta: float, accumulation: int, seed: int) -> None:
    num_groups, size, length = 3, 4, 9
    total = num_groups * size
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, length + 1, (total,), generator=random)
    mask = (torch.arange(length) < lengths[:, None]).to(F64)
    logp, noise, drift = (torch.randn(total, length, generator=random, dtype=F64) for _ in range(3))
    old, ref = logp + 0.3 * noise, logp + 0.5 * drift
    rewards = torch.randint(0, 3, (total,), generator=random).to(F64)
    rewards[:size] = 0.7  # a silent group
    ids = torch.arange(num_groups).repeat_interleave(size)

    ours = logp.clone().requires_grad_()
    adv = (rewards - group.group_mean(rewards, ids)) / group.group_std(rewards, ids)
    ratio = ratios.token if level == "token" else ratios.sequence
    objective = surrogate.clipped(ratio(ours, old, mask), adv[:, None], low=0.2, high=0.28)
    weights: dict[str, Tensor] = {
        "grpo": reduce.per_sequence(mask, num_sequences=total),
        "dr_grpo": reduce.constant(mask, num_sequences=total, length=length),
        "dapo": reduce.per_token(mask, num_tokens=int(mask.sum())),
    }
    loss = -(weights[kind] * (objective - beta * kl.k3(ours, ref))).sum()
    loss.backward()

    theirs = logp.clone().requires_grad_()
    their_adv = trl_advantages(rewards, size)
    their_loss = torch.zeros((), dtype=F64)
    for rows in torch.arange(total).chunk(accumulation):
        step_loss = trl_step_loss(
            theirs[rows], old[rows], ref[rows], their_adv[rows], mask[rows], beta, level
        ).expand(-1, length)
        their_loss = their_loss + trl_loss(kind, step_loss, mask[rows], accumulation, int(mask.sum()))
    their_loss.backward()

    assert loss.item() == pytest.approx(their_loss.item(), abs=1e-10)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-10, rtol=0)
    assert ours.grad is not None and ours.grad.abs().max() > 1e-3
