"""Weights per step: by hand, in parts and in any order, in expectation on a toy language.

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
from surrogates import ALL as SURROGATES
from torch import Tensor

from gradhat.estimators import group, ratios
from gradhat.losses import reduce, surrogate

F64 = torch.float64
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 1]], dtype=torch.bool)

Weights = Callable[[Tensor], Tensor]
ALL: list[Weights] = [
    partial(reduce.per_trajectory, num_trajectories=4),
    partial(reduce.per_token, num_tokens=6),
    partial(reduce.per_sequence, num_sequences=4),
    partial(reduce.constant, num_sequences=4, length=5),
    partial(reduce.per_group, group_tokens=torch.tensor([4, 4, 2, 2]), num_groups=2),
]

# --- by hand -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "per_row"),
    [
        (ALL[0], [1 / 4, 1 / 4, 0, 1 / 4]),
        (ALL[1], [1 / 6, 1 / 6, 0, 1 / 6]),
        (ALL[2], [1 / 12, 1 / 4, 0, 1 / 8]),  # the empty sequence counts among the four
        (ALL[3], [1 / 20, 1 / 20, 0, 1 / 20]),
        (ALL[4], [1 / 8, 1 / 8, 0, 1 / 4]),
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


@pytest.mark.parametrize("count", [0, -3])
def test_a_count_that_is_not_positive_is_refused(count: int) -> None:
    for weights, name in [
        (partial(reduce.per_trajectory, num_trajectories=count), "num_trajectories"),
        (partial(reduce.per_token, num_tokens=count), "num_tokens"),
        (partial(reduce.per_sequence, num_sequences=count), "num_sequences"),
        (partial(reduce.constant, num_sequences=count, length=5), "num_sequences"),
        (partial(reduce.constant, num_sequences=5, length=count), "length"),
        (partial(reduce.per_group, group_tokens=torch.full((4,), 9), num_groups=count), "num_groups"),
    ]:
        with pytest.raises(ValueError, match=f"^{name}={count}: "):
            weights(MASK)


@pytest.mark.parametrize("weights", ALL)
@pytest.mark.parametrize("shape", [(4,), (2, 4, 3)])
def test_a_mask_of_another_shape_is_named(weights: Weights, shape: tuple[int, ...], unchecked: None) -> None:
    with pytest.raises(ValueError, match=rf"^mask \({', '.join(map(str, shape))},?\): .*\[B, T\]"):
        weights(torch.ones(shape))


def test_group_tokens_are_checked(unchecked: None) -> None:
    with pytest.raises(ValueError, match=r"^group_tokens \(4, 1\) with mask \(4, 4\)"):
        reduce.per_group(MASK, torch.full((4, 1), 9), num_groups=2)
    with pytest.raises(ValueError, match=r"^group_tokens \(3,\) with mask \(4, 4\)"):
        reduce.per_group(MASK, torch.full((3,), 9), num_groups=2)
    with pytest.raises(ValueError, match=r"^group_tokens\[3\]=1 with 2 own steps .*whole group"):
        reduce.per_group(MASK, torch.tensor([4, 4, 0, 1]), num_groups=2)


# --- parts, order, masks -----------------------------------------------------------------------------------


def ragged_mask(lengths: list[int]) -> Tensor:
    return torch.arange(max([*lengths, 1])) < torch.tensor(lengths)[:, None]


WeightsOf = Callable[[Tensor, Tensor], Tensor]


def tokens_of_groups(lengths: list[int], ids: list[int]) -> Tensor:
    """The number of own steps in each trajectory's group, counted by hand."""
    return torch.tensor([sum(n for n, i in zip(lengths, ids, strict=True) if i == own) for own in ids])


def counted(lengths: list[int], ids: list[int]) -> dict[str, WeightsOf]:
    """The five reductions with the counts of the whole step, as functions of (mask of a part, its rows)."""
    size, group_tokens = len(lengths), tokens_of_groups(lengths, ids)
    return {
        "per_trajectory": lambda mask, _: reduce.per_trajectory(mask, num_trajectories=size),
        "per_token": lambda mask, _: reduce.per_token(mask, num_tokens=max(sum(lengths), 1)),
        "per_sequence": lambda mask, _: reduce.per_sequence(mask, num_sequences=size),
        "constant": lambda mask, _: reduce.constant(mask, num_sequences=size, length=7),
        "per_group": lambda mask, rows: reduce.per_group(mask, group_tokens[rows], num_groups=len(set(ids))),
    }


few = settings(max_examples=50, deadline=None, derandomize=True)
trajectories = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=7)


@few
@given(trajectories, st.integers(0, 10**6), st.data())
def test_parts_in_any_order_add_up_to_the_whole(
    drawn: list[tuple[int, int]], seed: int, data: st.DataObject
) -> None:
    # A part is a micro-batch of a rank: any rows of the batch, in any order.
    lengths, ids = (list(column) for column in zip(*drawn, strict=True))
    order = torch.tensor(data.draw(st.permutations(range(len(lengths)))))
    cuts = data.draw(st.lists(st.integers(0, len(lengths)), max_size=3).map(sorted))
    parts = [order[a:b] for a, b in itertools.pairwise([0, *cuts, len(lengths)]) if a < b]
    mask = ragged_mask(lengths)
    random = torch.Generator().manual_seed(seed)
    logp, old, adv = (torch.randn(mask.shape, generator=random, dtype=F64) for _ in range(3))

    def loss(rows: Tensor, weights: WeightsOf, x: Tensor) -> Tensor:
        log_ratio = ratios.token(x[rows], old[rows], mask[rows])
        objective = surrogate.clipped(log_ratio, adv[rows], low=0.2, high=0.2)
        return -(weights(mask[rows].to(F64), rows) * objective).sum()

    for weights in counted(lengths, ids).values():
        whole, pieces = logp.clone().requires_grad_(), logp.clone().requires_grad_()
        at_once = loss(torch.arange(len(lengths)), weights, whole)
        at_once.backward()
        summed = 0.0
        for rows in parts:
            piece = loss(rows, weights, pieces)
            piece.backward()
            summed += piece.item()
        assert summed == pytest.approx(at_once.item(), abs=1e-13)
        torch.testing.assert_close(pieces.grad, whole.grad, atol=1e-14, rtol=0)


@few
@given(trajectories)
def test_what_counts_the_same(drawn: list[tuple[int, int]]) -> None:
    lengths, ids = (list(column) for column in zip(*drawn, strict=True))
    mask = ragged_mask(lengths).to(F64)
    rows = {
        name: weights(mask, torch.arange(len(ids))).sum(-1) for name, weights in counted(lengths, ids).items()
    }
    own = torch.tensor(lengths, dtype=F64)

    def equal(found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found, expected, atol=1e-14, rtol=0)

    equal(rows["per_trajectory"] * len(ids), own)  # a step as much as in the score of its trajectory
    equal(rows["constant"] * len(ids) * 7, own)
    equal(rows["per_token"] * max(sum(lengths), 1), own)  # each token: together 1
    equal(rows["per_sequence"] * len(ids), (own > 0).to(F64))  # each answer
    for prompt in set(ids):  # each prompt
        member = torch.tensor([i == prompt for i in ids])
        answered = float(own[member].sum() > 0)
        equal(rows["per_group"][member].sum() * len(set(ids)), torch.tensor(answered, dtype=F64))


@few
@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_one_prompt_is_per_token_and_one_answer_per_prompt_is_per_sequence(lengths: list[int]) -> None:
    mask, size = ragged_mask(lengths).to(F64), len(lengths)
    rows = torch.arange(size)
    one, each = counted(lengths, [0] * size), counted(lengths, list(range(size)))
    torch.testing.assert_close(one["per_group"](mask, rows), one["per_token"](mask, rows), atol=0, rtol=1e-15)
    torch.testing.assert_close(
        each["per_group"](mask, rows), each["per_sequence"](mask, rows), atol=0, rtol=1e-15
    )


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=5),
    st.integers(0, 10**6),
    st.sampled_from([math.inf, -math.inf, math.nan, 1e30]),
)
def test_masked_steps_get_zero_gradient_and_touch_nothing(lengths: list[int], seed: int, junk: float) -> None:
    mask = ragged_mask([*lengths, max(lengths) + 1])
    lengths, size = mask.sum(-1).tolist(), len(mask)
    random = torch.Generator().manual_seed(seed)
    clean, old, adv = (torch.randn(mask.shape, generator=random) for _ in range(3))
    dirty = torch.where(mask, clean, torch.full_like(clean, junk))
    dirty_old = torch.where(mask, old, torch.full_like(old, -junk))
    for ratio, objective, weights in itertools.product(
        [ratios.on_policy, ratios.token, ratios.sequence],
        SURROGATES.values(),
        counted(lengths, [i % 2 for i in range(size)]).values(),
    ):
        values: list[Tensor] = []
        for source, source_old in ((clean, old), (dirty, dirty_old)):
            logp = source.clone().requires_grad_()
            weight = weights(mask, torch.arange(size))
            loss = -(weight * objective(ratio(logp, source_old, mask), adv)).sum()
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
    """E ĝ over all 7^size batches. `weights` maps the masks `[N * size, 2]` of all batches to weights."""
    drawn = torch.tensor(list(itertools.product(range(7), repeat=size)))  # [N, size]
    rows = drawn.flatten()
    ids = torch.arange(len(drawn)).repeat_interleave(size)
    adv = REWARD[rows] - baseline(REWARD[rows], ids)
    weight = weights(LANGUAGE_MASK[rows].to(F64))

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
        return torch.cat([reduce.per_token(m, num_tokens=int(m.sum())) for m in mask.split(2)])

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
    padded = expected_gradient(2, lambda mask: mask / mask[:2].numel())
    torch.testing.assert_close(padded, exact_gradient() / 2, atol=1e-12, rtol=0)
    ours = expected_gradient(2, lambda mask: reduce.per_trajectory(mask, num_trajectories=2))
    assert (ours - padded).abs().max() > 0.01


def test_every_prompt_counts_the_same_whatever_its_length() -> None:
    # Two prompts with two answers each; the second's are rewarded ten times as much and are independent, so
    # the batch falls apart into its prompts. Per prompt: the expectation of a quotient, in a double loop.
    chance = step_logp(TABLE).sum(-1).exp()
    scales = torch.tensor([1.0, 10.0], dtype=F64)
    pairs = torch.tensor(list(itertools.product(range(7), repeat=2)))  # [49, 2]
    rows = torch.stack([pairs.repeat_interleave(49, 0), pairs.repeat(49, 1)], 1)  # [49², prompt, answer]
    probability = chance[rows].flatten(1).prod(1)
    mask = LANGUAGE_MASK[rows.flatten()].to(F64)
    group_tokens = LENGTHS[rows].sum(-1, keepdim=True).expand_as(rows).flatten()
    weight = reduce.per_group(mask, group_tokens, num_groups=2)
    adv = (REWARD[rows] * scales[:, None]).flatten()

    def surrogate_of(table: Tensor) -> Tensor:
        logp = step_logp(table)[rows.flatten()]
        objective = surrogate.reinforce(ratios.on_policy(logp, logp, mask), adv[:, None])
        return (probability.repeat_interleave(4)[:, None] * weight * objective).sum()

    credit = torch.zeros(7, dtype=F64)
    for i, j in itertools.product(range(7), repeat=2):
        share = chance[i] * chance[j] / (LENGTHS[i] + LENGTHS[j])
        credit[i] += share * REWARD[i]
        credit[j] += share * REWARD[j]
    of_one_prompt = differentiate(lambda table: credit @ step_logp(table).sum(-1))
    found = differentiate(surrogate_of)
    torch.testing.assert_close(found, of_one_prompt * scales.mean(), atol=1e-12, rtol=0)
    tokens = LENGTHS[rows].flatten(1).sum(1).repeat_interleave(4)
    weight = mask / tokens[:, None]  # per token: the prompts share one denominator
    assert (differentiate(surrogate_of) - found).abs().max() > 0.01
