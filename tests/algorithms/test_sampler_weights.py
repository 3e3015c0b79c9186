"""A sampler that is not quite the policy: its samples, weighed, have the gradient of the policy's own.

One question with three answers of one token, groups of two and of three: every expectation is a finite sum.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor
from toy import Recorder

from gradhat.algorithms.ascend import Step
from gradhat.algorithms.grpo import Row, Settings, credit, update
from gradhat.algorithms.grpo_family import FAMILY, MISMATCH
from gradhat.algorithms.learner import GroupLearner
from gradhat.algorithms.reference import recall, refer
from gradhat.policies.tabular import Logits, TabularPolicy
from gradhat.trajectories import Trajectories

F64 = torch.float64
THETA = torch.tensor([[0.3, -0.5, 1.0]], dtype=F64)
SAMPLER = torch.tensor([[0.5, -0.1, 0.4]], dtype=F64)
MOVED = torch.tensor([[0.9, -0.8, 0.2]], dtype=F64)
FAR = torch.tensor([[-0.2, 0.6, 0.1]], dtype=F64)
REWARDS = torch.tensor([1.0, 0.3, -0.5], dtype=F64)
FREE = Settings(length=1, mismatch_cap=1e9, mismatch_low=0.0, mismatch_high=1e9)


def batch(arms: tuple[int, ...], sampler: Tensor) -> Trajectories:
    """One group; `logp` is what the sampler says."""
    actions = torch.tensor(arms)[:, None]
    one = torch.ones_like(actions, dtype=torch.bool)
    return Trajectories(
        observations=[(0,)] * len(arms),
        actions=actions,
        mask=one,
        logp=sampler.log_softmax(-1)[0][actions],
        rewards=REWARDS[actions],
        terminated=one,
        truncated=~one,
        group=torch.zeros(len(arms), dtype=torch.long),
        version=torch.zeros(len(arms), dtype=torch.long),
    )


def groups(size: int, sampler: Tensor = SAMPLER) -> Iterator[tuple[float, Trajectories]]:
    """Every group that the sampler can draw, with its probability."""
    chance = sampler.softmax(-1)[0]
    for arms in product(range(3), repeat=size):
        yield float(chance[list(arms)].prod()), batch(arms, sampler)


def expected(row: Row, settings: Settings, size: int, sampler: Tensor = SAMPLER) -> Tensor:
    """E of the gradient `[1, 3]` of a learner whose samples are the sampler's."""
    total = torch.zeros_like(THETA)
    for chance, group in groups(size, sampler):
        policy = TabularPolicy(Logits(THETA))
        recorder = Recorder(policy.module)
        GroupLearner(policy, recorder, row, settings, TabularPolicy(Logits(FAR))).learn(group)
        total += chance * recorder.gradient["theta"]
    return total


def exact(kl_coef: float = 0.0, theta: Tensor = THETA) -> Tensor:
    """∇ of J − β KL(π ‖ π_ref)."""
    theta = theta.clone().requires_grad_()
    logp = theta.log_softmax(-1)
    objective = (logp.exp() * (REWARDS - kl_coef * (logp - FAR.log_softmax(-1)))).sum()
    return torch.autograd.grad(objective, theta)[0]


def row(name: str, mismatch: str) -> Row:
    return replace(FAMILY[name], mismatch=MISMATCH[mismatch])


@pytest.mark.parametrize("mismatch", ["truncated", "masked"])
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    ("name", "shorter"), [("rloo", lambda size: 1), ("dr_grpo", lambda size: (size - 1) / size)]
)
def test_weights_without_a_bound_give_the_gradient_of_the_policys_own_samples(
    name: str, shorter: Callable[[int], float], size: int, mismatch: str
) -> None:
    wanted = shorter(size) * exact()
    found = expected(row(name, mismatch), FREE, size)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    uncorrected = expected(row(name, "none"), replace(FREE, clip_low=1.0, clip_high=1e9), size)
    if name == "rloo":  # a row with a ratio to the sampler is corrected by that, where nothing is clipped
        assert (uncorrected - wanted).abs().max() > 0.05 * wanted.abs().max()


def test_kl_in_the_reward_is_that_of_the_policy_and_not_of_the_sampler() -> None:
    found = expected(row("rloo", "truncated"), replace(FREE, kl_coef=0.4), 2)
    torch.testing.assert_close(found, exact(0.4), rtol=0, atol=1e-12)


@pytest.mark.parametrize("mismatch", ["none", "truncated", "masked"])
@pytest.mark.parametrize("name", FAMILY)
def test_a_sampler_that_agrees_changes_nothing(name: str, mismatch: str) -> None:
    settings = Settings(length=1, kl_coef=0.1)
    found, wanted = (expected(row(name, choice), settings, 2, THETA) for choice in (mismatch, "none"))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)


def test_the_first_pass_is_never_clipped_however_far_the_sampler_is() -> None:
    """Ratio and clip are those to the policy before its first step, not to the sampler."""
    tight = replace(FREE, clip_low=0.01, clip_high=0.01)
    found = expected(row("dr_grpo", "truncated"), tight, 2)
    torch.testing.assert_close(found, exact() / 2, rtol=0, atol=1e-12)
    assert (expected(row("dr_grpo", "none"), tight, 2) - exact() / 2).abs().max() > 1e-2


class Mover(Recorder):
    """It moves too: the first step leads from θ to another policy, whatever the gradient."""

    def step(self) -> Step:
        done = super().step()
        with torch.no_grad():
            next(iter(self.module.parameters())).copy_(MOVED)
        return done


def test_in_a_second_pass_the_weights_are_still_those_of_the_policy_that_was_recalled() -> None:
    """π / π_old is the ratio's, π_old / sampler the weight's: together they give the gradient at π."""
    twice, total = replace(FREE, clip_low=1.0, clip_high=1e9, num_epochs=2), torch.zeros_like(THETA)
    for chance, group in groups(2):
        policy = TabularPolicy(Logits(THETA.clone()))
        mover = Mover(policy.module)
        GroupLearner(policy, mover, row("dr_grpo", "truncated"), twice, None).learn(group)
        total += chance * mover.gradient["theta"]
    torch.testing.assert_close(total, (exact() + exact(theta=MOVED)) / 2, rtol=0, atol=1e-12)


RATIO = (THETA.log_softmax(-1) - SAMPLER.log_softmax(-1)).exp()[0]
"""Of the three answers: 0.71, 0.58, 1.58."""


@pytest.mark.parametrize(
    ("mismatch", "bounds", "left"),
    [
        ("truncated", {"mismatch_cap": 1.2}, [1, 1, 1.2 / float(RATIO[2])]),
        ("masked", {"mismatch_low": 0.6, "mismatch_high": 5.0}, [1, 0, 1]),
        ("masked", {"mismatch_low": 0.1, "mismatch_high": 1.5}, [1, 1, 0]),
    ],
)
def test_a_bound_takes_off_what_it_says(mismatch: str, bounds: dict[str, float], left: list[float]) -> None:
    settings, factor = replace(FREE, **bounds), torch.tensor(left, dtype=F64)
    pi, score = THETA.softmax(-1)[0], torch.eye(3, dtype=F64) - THETA.softmax(-1)
    baseline = float((SAMPLER.softmax(-1)[0] * REWARDS).sum())  # of the other sample
    wanted = ((pi * factor * (REWARDS - baseline))[:, None] * score).sum(0, keepdim=True)
    torch.testing.assert_close(expected(row("rloo", mismatch), settings, 2), wanted, rtol=0, atol=1e-12)


def learned(arms: tuple[int, ...], mismatch: str, settings: Settings) -> dict[str, float]:
    policy = TabularPolicy(Logits(THETA))
    learner = GroupLearner(policy, Recorder(policy.module), row("rloo", mismatch), settings, None)
    return learner.learn(batch(arms, SAMPLER))[1]


def test_the_metrics_say_how_much_was_weighed_and_bounded() -> None:
    arms = (0, 1, 2, 2)
    found = learned(arms, "truncated", replace(FREE, mismatch_cap=1.2))
    assert found["mismatch/weight_mean"] == pytest.approx(float(RATIO[[0, 1]].sum() + 2.4) / 4)
    assert found["mismatch/frac_bounded"] == 0.5
    found = learned(arms, "masked", replace(FREE, mismatch_low=0.6))
    assert found["mismatch/weight_mean"] == pytest.approx(float(RATIO[[0, 2, 2]].sum()) / 4)
    assert found["mismatch/frac_bounded"] == 0.25
    assert not any(key.startswith("mismatch/") for key in learned(arms, "none", FREE))


def test_sampling_metrics_still_compare_with_the_sampler() -> None:
    gap = RATIO.log().abs()
    for mismatch in MISMATCH:
        found = learned((0, 1, 2), mismatch, FREE)
        assert found["sampling/sampling_logp_difference/max"] == pytest.approx(float(gap.max()))


def test_recall_attaches_the_policys_own_logp_and_no_gradient() -> None:
    policy = TabularPolicy(Logits(THETA), num_rows=2)
    found = recall(policy, batch((0, 1, 2), SAMPLER))
    assert found.logp_old is not None and not found.logp_old.requires_grad
    torch.testing.assert_close(found.logp_old[:, 0], THETA.log_softmax(-1)[0])
    assert torch.equal(found.logp, batch((0, 1, 2), SAMPLER).logp)
    assert found.select([2, 0]).logp_old is not None
    assert found.select([2, 0]).logp_old.tolist() == found.logp_old[[2, 0]].tolist()  # pyright: ignore
    assert found.steps().logp_old.tolist() == found.logp_old.tolist()  # pyright: ignore
    far = refer(TabularPolicy(Logits(FAR)), found)
    assert far.logp_old is found.logp_old


def test_weights_ask_for_the_policys_own_logp() -> None:
    policy = TabularPolicy(Logits(THETA))
    chosen = row("rloo", "masked")
    lesson = credit(chosen, FREE, batch((0, 1), SAMPLER))
    with pytest.raises(ValueError, match=r"without logp_old.*recall\(policy, trajectories\)"):
        update(policy, Recorder(policy.module), lesson, chosen, FREE)
