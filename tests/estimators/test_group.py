"""Group baselines and scales: by hand, against a double loop, as identities, and in expectation on a bandit.

On the bandit every group of G arms is enumerated, so an expectation is a finite sum without sampling error.
"""

import itertools
import math
import statistics
from collections.abc import Callable
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gradhat.estimators import group

F64 = torch.float64
Estimator = Callable[[Tensor, Tensor], Tensor]

# --- by hand -----------------------------------------------------------------------------------------------

REWARDS = torch.tensor([1.0, 4.0, 0.0, 2.0, 1.0, 2.0], dtype=F64)
GROUP = torch.tensor([7, -2, 7, 7, -2, 7])  # interleaved, sparse ids, sizes 4 and 2


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        (group.none, [0, 0, 0, 0, 0, 0]),
        (group.group_mean, [1.25, 2.5, 1.25, 1.25, 2.5, 1.25]),
        (group.leave_one_out, [4 / 3, 1, 5 / 3, 1, 4, 1]),
        (group.batch_mean, [10 / 6] * 6),
        (group.no_scale, [1, 1, 1, 1, 1, 1]),
        (group.group_mean_scale, [1.25, 2.5, 1.25, 1.25, 2.5, 1.25]),
    ],
)
def test_values_by_hand(estimator: Estimator, expected: list[float]) -> None:
    assert estimator(REWARDS, GROUP).tolist() == pytest.approx(expected, abs=1e-15)


def test_standard_deviations_by_hand() -> None:
    # Squares around 1.25: 1/16 + 25/16 + 9/16 + 9/16 = 11/4, over G - 1 = 3. Around 2.5: 9/2, over 1.
    four, two = math.sqrt(11 / 12), math.sqrt(4.5)
    expected = [s + 1e-4 for s in (four, two, four, four, two, four)]
    assert group.group_std(REWARDS, GROUP).tolist() == pytest.approx(expected, abs=1e-15)
    # Around 5/3 over the whole batch: 26 - 6 · 25/9 = 28/3, over B - 1 = 5.
    expected = [math.sqrt(28 / 15) + 0.5] * 6
    assert group.batch_std(REWARDS, GROUP, eps=0.5).tolist() == pytest.approx(expected, abs=1e-15)


def test_silent_by_hand() -> None:
    rewards = torch.tensor([1.0, 0.0, 1.0, 1e-12, 5.0, 0.0], dtype=F64)
    ids = torch.tensor([3, 1, 3, 1, 9, 1])
    assert group.silent(rewards, ids).tolist() == [True, False, True, False, True, False]


def test_a_group_without_success_is_divided_by_one() -> None:
    rewards, ids = torch.tensor([0.0, 0.0, 0.5, 0.0]), torch.tensor([0, 0, 1, 1])
    assert group.group_mean_scale(rewards, ids).tolist() == [1.0, 1.0, 0.25, 0.25]


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("size", [3, 6, 7, 9, 11])
@pytest.mark.parametrize("reward", [0.1, 0.2, 0.3, 0.7])
def test_a_silent_group_has_exactly_zero_advantage(dtype: torch.dtype, size: int, reward: float) -> None:
    # The plain sum / G misses such rewards by the last bit, and ÷ eps makes that 1e4 times larger.
    rewards = torch.full((size,), reward, dtype=dtype)
    ids = torch.zeros(size, dtype=torch.int64)
    for baseline in (group.group_mean, group.leave_one_out, group.batch_mean):
        for scale in (group.no_scale, group.group_std, group.batch_std, group.group_mean_scale):
            assert ((rewards - baseline(rewards, ids)) / scale(rewards, ids)).tolist() == [0.0] * size


ALL: list[Estimator] = [
    group.none,
    group.group_mean,
    group.leave_one_out,
    group.batch_mean,
    group.no_scale,
    group.group_std,
    group.batch_std,
    group.group_mean_scale,
]


@pytest.mark.parametrize("estimator", ALL)
def test_dtype_is_kept(estimator: Estimator) -> None:
    assert estimator(REWARDS, GROUP).dtype is F64
    assert estimator(REWARDS.float(), GROUP).dtype is torch.float32


# --- errors ------------------------------------------------------------------------------------------------


def test_leave_one_out_of_a_single_sample_says_what_to_do() -> None:
    with pytest.raises(ValueError) as error:
        group.leave_one_out(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0, 0, 1]))
    assert str(error.value) == (
        "group_size=1 with baseline=leave_one_out: a leave-one-out mean needs at least 2 samples per prompt. "
        "Use group_size>=2 or baseline=none."
    )


def test_standard_deviation_of_a_single_sample_is_refused() -> None:
    with pytest.raises(ValueError, match=r"scale=group_std.*at least 2 samples"):
        group.group_std(torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0, 0, 1]))
    with pytest.raises(ValueError, match="at least 2 samples"):
        group.batch_std(torch.tensor([1.0]), torch.tensor([0]))


def test_a_negative_reward_under_a_mean_scale_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reward of -1: .*rewards >= 0"):
        group.group_mean_scale(torch.tensor([1.0, -1.0]), torch.tensor([0, 0]))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("estimator", [*ALL, group.silent])
def test_wrong_shapes_are_refused(estimator: Estimator) -> None:
    for rewards, ids in [
        (torch.zeros(4), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.int64)),
        (torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)),
    ]:
        with pytest.raises(ValueError, match="one reward per trajectory"):
            estimator(rewards, ids)


# --- identities --------------------------------------------------------------------------------------------


@st.composite
def batches(draw: st.DrawFn, smallest: int = 2) -> tuple[Tensor, Tensor]:
    """Ragged groups with sparse ids in mixed order; rewards are often equal, as verdicts are."""
    sizes = draw(st.lists(st.integers(smallest, 5), min_size=1, max_size=4))
    names = draw(st.permutations([-3, 0, 5, 8, 100]))
    ids = draw(st.permutations([names[i] for i, size in enumerate(sizes) for _ in range(size)]))
    number = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 10, allow_subnormal=False))
    rewards = draw(st.lists(number, min_size=len(ids), max_size=len(ids)))
    return torch.tensor(rewards, dtype=F64), torch.tensor(ids)


few = settings(max_examples=60, deadline=None, derandomize=True)


@few
@given(batches())
def test_equals_the_double_loop(batch: tuple[Tensor, Tensor]) -> None:
    rewards, ids = batch
    slow: dict[str, list[float]] = {name: [] for name in ("mean", "others", "std", "silent")}
    for i in range(len(rewards)):
        members = [float(rewards[j]) for j in range(len(rewards)) if ids[j] == ids[i]]
        others = [float(rewards[j]) for j in range(len(rewards)) if ids[j] == ids[i] and j != i]
        slow["mean"].append(sum(members) / len(members))
        slow["others"].append(sum(others) / len(others))
        slow["std"].append(statistics.stdev(members) + 1e-4)
        slow["silent"].append(len(set(members)) == 1)
    assert group.group_mean(rewards, ids).tolist() == pytest.approx(slow["mean"], abs=1e-12)
    assert group.leave_one_out(rewards, ids).tolist() == pytest.approx(slow["others"], abs=1e-12)
    assert group.group_std(rewards, ids).tolist() == pytest.approx(slow["std"], abs=1e-12)
    assert group.silent(rewards, ids).tolist() == slow["silent"]
    everyone = [float(r) for r in rewards]
    assert group.batch_mean(rewards, ids)[0].item() == pytest.approx(statistics.fmean(everyone), abs=1e-12)
    assert group.batch_std(rewards, ids)[0].item() == pytest.approx(
        statistics.stdev(everyone) + 1e-4, abs=1e-12
    )


@few
@given(batches(), st.lists(st.floats(-100, 100), min_size=5, max_size=5))
def test_a_constant_for_each_group_changes_no_advantage(
    batch: tuple[Tensor, Tensor], constants: list[float]
) -> None:
    rewards, ids = batch
    shifts = dict(zip([-3, 0, 5, 8, 100], constants, strict=True))
    moved = rewards + torch.tensor([shifts[int(i)] for i in ids], dtype=F64)
    for baseline in (group.group_mean, group.leave_one_out):
        torch.testing.assert_close(
            moved - baseline(moved, ids), rewards - baseline(rewards, ids), atol=1e-11, rtol=0
        )
    torch.testing.assert_close(group.group_std(moved, ids), group.group_std(rewards, ids), atol=1e-11, rtol=0)


@few
@given(batches(), st.randoms(use_true_random=False))
def test_permuting_the_batch_permutes_the_answers(batch: tuple[Tensor, Tensor], random: Random) -> None:
    rewards, ids = batch
    order = list(range(len(rewards)))
    random.shuffle(order)
    for estimator in (*ALL, group.silent):
        torch.testing.assert_close(
            estimator(rewards[order], ids[order]), estimator(rewards, ids)[order], atol=1e-12, rtol=0
        )


@few
@given(batches())
def test_leave_one_out_is_the_group_mean_advantage_times_g_over_g_minus_one(
    batch: tuple[Tensor, Tensor],
) -> None:
    rewards, ids = batch
    size = torch.tensor([int((ids == i).sum()) for i in ids], dtype=F64)
    expected = (rewards - group.group_mean(rewards, ids)) * size / (size - 1)
    torch.testing.assert_close(rewards - group.leave_one_out(rewards, ids), expected, atol=1e-12, rtol=0)


@few
@given(batches(smallest=1))
def test_names_of_groups_do_not_matter_and_groups_do_not_mix(batch: tuple[Tensor, Tensor]) -> None:
    rewards, ids = batch
    for estimator in (group.group_mean, group.group_mean_scale, group.silent):
        whole = estimator(rewards, ids)
        assert torch.equal(whole, estimator(rewards, 1000 - 7 * ids))
        for i in ids.unique():
            alone = estimator(rewards[ids == i], ids[ids == i])
            torch.testing.assert_close(whole[ids == i], alone, atol=1e-12, rtol=0)


# --- in expectation: a bandit, all groups enumerated -------------------------------------------------------

LOGITS = torch.tensor([0.3, -0.4, 0.9], dtype=F64)
ARMS = torch.tensor([1.0, 0.0, 0.35], dtype=F64)
POLICY = LOGITS.softmax(0)


def exact_gradient(policy: Tensor = POLICY, arms: Tensor = ARMS) -> Tensor:
    """∂J/∂logit_a = π_a (r_a - J)."""
    return policy * (arms - policy @ arms)


def expected_gradient(size: int, baseline: Estimator, scale: Estimator, arms: Tensor = ARMS) -> Tensor:
    """E ĝ over all 3^G groups, every group being one row block of a single batch."""
    actions = torch.tensor(list(itertools.product(range(3), repeat=size)))  # [3^G, G]
    ids = torch.arange(len(actions)).repeat_interleave(size)
    rewards = arms[actions].flatten()
    adv = ((rewards - baseline(rewards, ids)) / scale(rewards, ids)).view(-1, size)
    score = torch.nn.functional.one_hot(actions, 3) - POLICY  # [3^G, G, 3]
    return torch.einsum("n,ng,nga->a", POLICY[actions].prod(-1), adv, score) / size


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_group_mean_scales_the_gradient_by_g_minus_one_over_g(size: int) -> None:
    found = expected_gradient(size, group.group_mean, group.no_scale)
    torch.testing.assert_close(found, exact_gradient() * (size - 1) / size, atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [2, 3, 4, 6])
def test_leave_one_out_and_no_baseline_are_unbiased(size: int) -> None:
    for baseline in (group.leave_one_out, group.none):
        found = expected_gradient(size, baseline, group.no_scale)
        torch.testing.assert_close(found, exact_gradient(), atol=1e-12, rtol=0)


def test_leave_one_out_has_less_variance_than_no_baseline() -> None:
    def second_moment(baseline: Estimator) -> float:
        actions = torch.tensor(list(itertools.product(range(3), repeat=4)))
        ids = torch.arange(len(actions)).repeat_interleave(4)
        rewards = ARMS[actions].flatten()
        adv = (rewards - baseline(rewards, ids)).view(-1, 4)
        estimate = torch.einsum("ng,nga->na", adv, torch.nn.functional.one_hot(actions, 3) - POLICY) / 4
        return float(POLICY[actions].prod(-1) @ estimate.square().sum(-1))

    assert second_moment(group.leave_one_out) < second_moment(group.none)


def test_batch_mean_over_two_prompts_scales_by_b_minus_one_over_b() -> None:
    # Two prompts with two samples each; the gradient with respect to the first prompt's logits.
    other = torch.tensor([5.0, 2.0, 3.0], dtype=F64)
    total = torch.zeros(3, dtype=F64)
    for a, b, c, d in itertools.product(range(3), repeat=4):
        rewards = torch.stack([ARMS[a], ARMS[b], other[c], other[d]])
        adv = rewards - group.batch_mean(rewards, torch.tensor([0, 0, 1, 1]))
        score = torch.nn.functional.one_hot(torch.tensor([a, b]), 3) - POLICY
        total += POLICY[[a, b, c, d]].prod() * (adv[:2] @ score) / 2
    torch.testing.assert_close(total, exact_gradient() * 3 / 4, atol=1e-12, rtol=0)


def scaled_by_counts(size: int, eps: float) -> Tensor:
    """The same expectation in plain Python: a sum over how often each arm was drawn, not over groups."""
    p, r = POLICY.tolist(), ARMS.tolist()
    total = [0.0, 0.0, 0.0]
    for counts in itertools.product(range(size + 1), repeat=3):
        if sum(counts) != size:
            continue
        ways = math.factorial(size) / math.prod(math.factorial(c) for c in counts)
        chance = ways * math.prod(p[a] ** counts[a] for a in range(3))
        drawn = [r[a] for a in range(3) for _ in range(counts[a])]
        mean, std = statistics.fmean(drawn), statistics.stdev(drawn)
        adv = [(r[a] - mean) / (std + eps) for a in range(3)]
        for k in range(3):
            score = [(a == k) - p[k] for a in range(3)]
            total[k] += chance * sum(counts[a] * adv[a] * score[a] for a in range(3)) / size
    return torch.tensor(total, dtype=F64)


@pytest.mark.parametrize("size", [2, 4, 5])
def test_dividing_by_the_standard_deviation_turns_the_gradient(size: int) -> None:
    found = expected_gradient(size, group.group_mean, group.group_std)
    torch.testing.assert_close(found, scaled_by_counts(size, 1e-4), atol=1e-12, rtol=0)
    cosine = torch.nn.functional.cosine_similarity(found, exact_gradient(), dim=0).item()
    assert 0.9 < cosine < 0.9999  # a pure rescaling would give 1


def test_one_deviation_for_two_prompts_in_plain_python() -> None:
    # Two prompts with two samples each; the gradient with respect to the first prompt's logits.
    other, p, r = [5.0, 2.0, 3.0], POLICY.tolist(), ARMS.tolist()
    expected, actions = [0.0] * 3, list(itertools.product(range(3), repeat=4))
    for a, b, c, d in actions:
        drawn = [r[a], r[b], other[c], other[d]]
        credit = [(x - statistics.fmean(drawn[:2])) / (statistics.stdev(drawn) + 1e-4) for x in drawn[:2]]
        for k in range(3):
            score = credit[0] * ((a == k) - p[k]) + credit[1] * ((b == k) - p[k])
            expected[k] += p[a] * p[b] * p[c] * p[d] * score / 2
    found, second = torch.zeros(3, dtype=F64), torch.tensor(other, dtype=F64)
    for a, b, c, d in actions:
        rewards = torch.stack([ARMS[a], ARMS[b], second[c], second[d]])
        ids = torch.tensor([0, 0, 1, 1])
        adv = (rewards - group.group_mean(rewards, ids)) / group.batch_std(rewards, ids)
        score = torch.nn.functional.one_hot(torch.tensor([a, b]), 3) - POLICY
        found += POLICY[[a, b, c, d]].prod() * (adv[:2] @ score) / 2
    torch.testing.assert_close(found, torch.tensor(expected, dtype=F64), atol=1e-12, rtol=0)
    # A deviation that the other prompt shares turns the gradient less than a group's own.
    own = expected_gradient(2, group.group_mean, group.group_std)
    cosine = torch.nn.functional.cosine_similarity(torch.stack([own, found]), exact_gradient()[None])
    assert cosine[0] < cosine[1] < 0.9999


def test_at_two_samples_dividing_by_the_standard_deviation_keeps_only_the_order_of_the_arms() -> None:
    # With G = 2 the advantage is sign(r_i - r_j) / √2: E ĝ_k = π_k / √2 · Σ_j π_j sign(r_k - r_j).
    sign = (ARMS[:, None] - ARMS[None, :]).sign()
    expected = POLICY * (sign @ POLICY) / math.sqrt(2)

    def scale(rewards: Tensor, ids: Tensor) -> Tensor:
        return group.group_std(rewards, ids, eps=1e-14)

    torch.testing.assert_close(expected_gradient(2, group.group_mean, scale), expected, atol=1e-12, rtol=0)
    far = ARMS * torch.tensor([100.0, 1.0, 1.0], dtype=F64)
    torch.testing.assert_close(
        expected_gradient(2, group.group_mean, scale, far), expected, atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("size", [2, 3, 5])
def test_dividing_by_the_mean_follows_log_p_cut_off_after_g_minus_one_terms(size: int) -> None:
    wins = torch.tensor([0.0, 1.0, 0.0], dtype=F64)
    p = float(POLICY[1])
    factor = sum((1 - p) ** k for k in range(size - 1))
    found = expected_gradient(size, group.group_mean, group.group_mean_scale, wins)
    torch.testing.assert_close(found, factor * exact_gradient(arms=wins), atol=1e-12, rtol=0)
