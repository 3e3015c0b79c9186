"""What the group family shares: credit, silent groups, the reference policy, several passes over a batch."""

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from toy import LOGITS, REFERENCE, REWARDS, SENTENCES, Recorder, Softmax, Table, batch

from gradhat.algorithms.ascend import Step, beyond_bounds
from gradhat.algorithms.grpo import Settings, advantages, credit, update
from gradhat.algorithms.grpo_family import FAMILY
from gradhat.algorithms.reference import refer
from gradhat.trajectories import Trajectories

F64 = torch.float64
TABLE = torch.tensor(LOGITS, dtype=F64)
SETTINGS = Settings(length=3)
LOUD, SILENT = (0, 2, 1), (1, 1, 1)
"""Sentences of a group with unequal rewards, and with equal ones."""
GROUPS = ["rloo", "grpo", "dr_grpo"]


def learn(
    name: str, trajectories: Trajectories, settings: Settings = SETTINGS
) -> tuple[Tensor, Softmax, dict[str, float]]:
    """Credit and update: the gradient it accumulates, the policy that counted its rows, and the metrics."""
    policy = Softmax()
    recorder = Recorder(policy.module)
    metrics = update(policy, recorder, credit(FAMILY[name], settings, trajectories), FAMILY[name], settings)
    return recorder.gradient["logits"], policy, metrics


def test_credit_by_hand() -> None:
    # Returns 0.3, 2.9, 0.5 of prompt 0 and 1.1, -1.1 of prompt 1, the groups mixed up.
    trajectories = batch((0, 1, 0, 1, 0), (0, 0, 2, 2, 1), TABLE)
    of_group = {
        "rloo": [0.3 - 1.7, 2.2, 2.9 - 0.4, -2.2, 0.5 - 1.6],
        "dr_grpo": [0.3 - 3.7 / 3, 1.1, 2.9 - 3.7 / 3, -1.1, 0.5 - 3.7 / 3],
    }
    for name, wanted in of_group.items():
        found = advantages(FAMILY[name], trajectories.returns(), trajectories.group)
        assert found.tolist() == pytest.approx(wanted, abs=1e-12), name
    std = math.sqrt(sum((r - 3.7 / 3) ** 2 for r in (0.3, 2.9, 0.5)) / 2) + 1e-4
    found = credit(FAMILY["grpo"], SETTINGS, trajectories).adv
    assert found is not None
    steps = [[(0.3 - 3.7 / 3) / std, 0], [(2.9 - 3.7 / 3) / std] * 2, [(0.5 - 3.7 / 3) / std] * 2]
    assert found[[0, 2, 4]].tolist() == [pytest.approx(s, abs=1e-12) for s in steps]


@pytest.mark.parametrize("name", GROUPS)
def test_a_silent_group_is_counted_but_not_computed(name: str) -> None:
    alone, policy, _ = learn(name, batch((0, 0, 0), LOUD, TABLE))
    both = batch((1, 0, 1, 0, 0, 1), (1, LOUD[0], 1, LOUD[1], LOUD[2], 1), TABLE)
    beside, counting, metrics = learn(name, both)
    assert policy.evaluated == counting.evaluated == [3]
    assert alone.abs().max() > 0.01
    torch.testing.assert_close(beside, alone / 2, rtol=0, atol=1e-14)
    assert metrics["frac_tokens_with_gradient"] == pytest.approx(5 / 11)


@pytest.mark.parametrize("name", GROUPS)
def test_a_batch_of_silent_groups_takes_no_step(name: str) -> None:
    trajectories = credit(FAMILY[name], SETTINGS, batch((0, 0, 1, 1), (2, 2, 0, 0), TABLE))
    assert trajectories.adv is not None and trajectories.adv.eq(0).all()
    policy = Softmax()
    recorder = Recorder(policy.module)
    metrics = update(policy, recorder, trajectories, FAMILY[name], SETTINGS)
    assert (policy.evaluated, recorder.events) == ([], [])
    assert metrics == {"frac_tokens_with_gradient": 0.0}


def test_with_kl_in_the_loss_a_silent_group_has_a_gradient() -> None:
    settings = replace(SETTINGS, kl_coef=0.5)
    trajectories = refer(Softmax(Table(REFERENCE)), batch((1, 1, 1), SILENT, TABLE))
    gradient, policy, metrics = learn("grpo", trajectories, settings)
    assert policy.evaluated == [3] and metrics["frac_tokens_with_gradient"] == 1.0
    # -β · mean over steps of ∂k3/∂logp · ∇logp, with ∂k3/∂logp = 1 - π_ref/π; all three sentences are (1, 0).
    table, reference = TABLE.softmax(-1), torch.tensor(REFERENCE, dtype=F64).softmax(-1)
    wanted = torch.zeros_like(TABLE)
    for state, word in ((2, 1), (3, 0)):
        score = torch.eye(2, dtype=F64)[word] - table[state]
        wanted[state] = -0.5 / 2 * (1 - reference[state, word] / table[state, word]) * score
    torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-14)


def test_kl_in_the_reward_by_hand() -> None:
    trajectories = refer(Softmax(Table(REFERENCE)), batch((0, 0), (0, 2), TABLE))
    found = credit(FAMILY["rloo"], replace(SETTINGS, kl_coef=0.3), trajectories).adv
    gap = TABLE.log_softmax(-1) - torch.tensor(REFERENCE, dtype=F64).log_softmax(-1)
    first, second = 0.3 - 0.3 * gap[0, 0], 2.9 - 0.3 * (gap[0, 1] + gap[1, 1])
    wanted = [[first - second, 0.0], [second - first, second - first]]
    assert found is not None
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=F64), rtol=0, atol=1e-12)


def test_the_penalty_outside_the_mask_does_not_count() -> None:
    settings = replace(SETTINGS, kl_coef=0.3)
    clean = refer(Softmax(Table(REFERENCE)), batch((0, 0), (0, 2), TABLE))
    assert clean.logp_ref is not None
    dirty = replace(clean, logp_ref=torch.where(clean.mask, clean.logp_ref, torch.nan))
    found, wanted = (credit(FAMILY["rloo"], settings, t).adv for t in (dirty, clean))
    assert found is not None and wanted is not None and torch.equal(found, wanted)


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_a_reference_is_asked_for_where_it_is_missing(name: str) -> None:
    trajectories = batch((0, 0, 0), LOUD, TABLE)
    with pytest.raises(ValueError, match=r"kl_coef is not 0: found .*without logp_ref.*refer\("):
        learn(name, trajectories, replace(SETTINGS, kl_coef=0.1))
    learn(name, trajectories)


@pytest.mark.parametrize("part", [1, 2, 100])
def test_refer_attaches_the_references_logp_and_no_gradient(part: int) -> None:
    trajectories = batch((0, 1, 0, 1), (2, 0, 0, 1), TABLE)
    reference = Softmax(Table(REFERENCE), part=part)
    found = refer(reference, trajectories)
    wanted = batch((0, 1, 0, 1), (2, 0, 0, 1), torch.tensor(REFERENCE, dtype=F64)).logp
    assert found.logp_ref is not None and not found.logp_ref.requires_grad
    assert torch.equal(found.logp_ref, wanted)
    kl = learn("rloo", found)[2]["kl"]
    assert kl == pytest.approx(float((trajectories.logp - wanted)[trajectories.mask].mean()))


def test_credit_comes_before_the_update() -> None:
    policy = Softmax()
    with pytest.raises(ValueError, match=r"without credit.*credit\(row, settings, trajectories\)"):
        update(policy, Recorder(policy.module), batch((0,), (1,), TABLE), FAMILY["rloo"], SETTINGS)


def test_every_epoch_is_one_step_from_the_weights_of_the_one_before() -> None:
    class Moves(Recorder):
        """Plain gradient ascent that remembers where it was."""

        def __init__(self, module: nn.Module) -> None:
            super().__init__(module)
            self.path = [TABLE]

        def step(self) -> Step:
            (weight,) = self.module.parameters()
            with torch.no_grad():
                weight += 3.0 * self.gradient["logits"]
            self.gradient["logits"].zero_()
            self.path.append(weight.detach().clone())
            return super().step()

    settings = Settings(length=2, clip_low=0.1, clip_high=0.4, num_epochs=3)
    trajectories = credit(FAMILY["dr_grpo"], settings, batch((0, 0, 0), LOUD, TABLE))
    policy = Softmax()
    optimizer = Moves(policy.module)
    metrics = update(policy, optimizer, trajectories, FAMILY["dr_grpo"], settings)
    assert optimizer.events == ["accumulate", "step"] * 3
    clipped: Counter[str] = Counter()
    for before, behind in pairwise(optimizer.path):
        wanted, now_clipped = by_hand(before)
        clipped += now_clipped
        torch.testing.assert_close((behind - before) / 3, wanted, rtol=0, atol=1e-12)
    assert clipped["low"] > 0 and clipped["high"] > 0, "the batch must reach both bounds"
    shares = {"low": clipped["low"] / 15, "high": clipped["high"] / 15, "region": clipped.total() / 15}
    assert shares == pytest.approx({name: metrics[f"clip_ratio/{name}_mean"] for name in shares})


class Stumbles(Recorder):
    """Moves by plain gradient ascent, but in the passes `bad`, whose gradient is not finite."""

    def __init__(self, module: nn.Module, bad: tuple[int, ...]) -> None:
        super().__init__(module)
        self.bad = bad
        self.norms: list[float] = []

    def step(self) -> Step:
        number = len(self.norms)
        norm = math.nan if number in self.bad else float(self.gradient["logits"].norm())
        self.norms.append(norm)
        if number not in self.bad:
            with torch.no_grad():
                next(self.module.parameters()).add_(3.0 * self.gradient["logits"])
        self.gradient["logits"].zero_()
        return Step(norm, number in self.bad)


@pytest.mark.parametrize("bad", [(), (1,), (2,), (0, 2), (0, 1, 2)])
def test_metrics_are_those_of_the_first_pass_and_steps_are_counted(bad: tuple[int, ...]) -> None:
    """The sampler is the policy, so before the first step they agree to the last digit, and not later."""
    settings = Settings(length=2, num_epochs=3)
    lesson = credit(FAMILY["grpo"], settings, batch((0, 0, 0), LOUD, TABLE))
    policy = Softmax()
    optimizer = Stumbles(policy.module, bad)
    metrics = update(policy, optimizer, lesson, FAMILY["grpo"], settings)
    once = learn("grpo", batch((0, 0, 0), LOUD, TABLE), replace(settings, num_epochs=1))[2]
    first = [name for name in once if name.startswith(("sampling/", "entropy", "diagnostics/"))]
    assert len(first) == 7 and {name: metrics[name] for name in first} == {name: once[name] for name in first}
    assert metrics["sampling/sampling_logp_difference/max"] == 0
    if len(bad) < 3:
        moved = policy.evaluate(lesson).logp.detach() - lesson.logp
        assert moved.abs().max() > 0.1
    assert (metrics["skipped"], metrics["num_updates"]) == (len(bad), 3 - len(bad))
    assert metrics["grad_norm"] == pytest.approx(sum(optimizer.norms) / 3, nan_ok=True)


def test_only_a_step_pushed_further_out_is_beyond_the_bounds() -> None:
    settings = Settings(length=1, clip_low=0.1, clip_high=0.4)
    ratio = torch.tensor([[0.89, 0.89, 0.91, 1.39, 1.41, 1.41, 0.89, 1.41]])
    adv = torch.tensor([[-1.0, 1.0, -1.0, 1.0, 1.0, -1.0, 0.0, 0.0]])
    low, high = beyond_bounds(ratio.log(), adv, low=0.1, high=0.4)
    assert low.nonzero().tolist() == [[0, 0]] and high.nonzero().tolist() == [[0, 4]]
    log_ratio = ratio.log().requires_grad_()
    FAMILY["dr_grpo"].surrogate(log_ratio, adv, settings).sum().backward()
    assert log_ratio.grad is not None
    assert torch.equal(log_ratio.grad == 0, low | high | (adv == 0))


def by_hand(table: Tensor) -> tuple[Tensor, Counter[str]]:
    """The gradient of dr_grpo at `table` for LOUD, sampled from TABLE, and how many steps each bound held."""
    new, old = table.softmax(-1), TABLE.softmax(-1)
    returns = [sum(REWARDS[0][s]) for s in LOUD]
    gradient, clipped = torch.zeros_like(table), Counter[str]()
    for sentence, reward in zip(LOUD, returns, strict=True):
        adv = reward - sum(returns) / 3
        for state, word in enumerate(SENTENCES[sentence]):
            ratio = float(new[state, word] / old[state, word])
            if adv > 0 and ratio > 1.4:
                clipped["high"] += 1
            elif adv < 0 and ratio < 0.9:
                clipped["low"] += 1
            else:
                gradient[state] += adv * ratio * (torch.eye(2, dtype=F64)[word] - new[state]) / (3 * 2)
    return gradient, clipped
