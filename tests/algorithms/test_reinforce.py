"""REINFORCE is ∇J in expectation, whatever its baseline, as long as that does not know the batch."""

from dataclasses import replace

import pytest
import torch
from onpolicy import generator, random_batch, random_policy
from torch import Tensor
from toy import LOGITS, Recorder, Softmax, batch, batches, exact_gradient, expected_gradient, objective

from gradhat.algorithms import grpo
from gradhat.algorithms.ascend import Optimizer
from gradhat.algorithms.critic import fit
from gradhat.algorithms.grpo_family import FAMILY
from gradhat.algorithms.reinforce import Settings, credit, init, update
from gradhat.estimators.group import none
from gradhat.policies.policy import Policy
from gradhat.trajectories import Trajectories

F64 = torch.float64
TABLE = torch.tensor(LOGITS, dtype=F64)


def with_baseline(baseline: float, prompts: tuple[int, ...] = (0, 1)) -> Tensor:
    def learn(policy: Policy, optimizer: Optimizer, trajectories: Trajectories) -> None:
        update(policy, optimizer, credit(Settings(), baseline, trajectories)[0])

    return expected_gradient(prompts, learn)


@pytest.mark.parametrize("prompts", [(0, 1), (0, 0, 0)])
@pytest.mark.parametrize("baseline", [0.0, 0.6, -3.0])
def test_the_expected_gradient_is_that_of_j(baseline: float, prompts: tuple[int, ...]) -> None:
    wanted = exact_gradient(lambda logits: objective(logits, len(set(prompts))))
    torch.testing.assert_close(with_baseline(baseline, prompts), wanted, rtol=0, atol=1e-12)


def test_it_stays_unbiased_behind_any_earlier_batch() -> None:
    wanted = exact_gradient(objective)
    for _, earlier in batches((0, 1), TABLE):
        _, baseline = credit(Settings(decay=0.5), init(), earlier)
        torch.testing.assert_close(with_baseline(baseline), wanted, rtol=0, atol=1e-12)


def test_a_baseline_that_knows_the_batch_would_be_found_out() -> None:
    def learn(policy: Policy, optimizer: Optimizer, trajectories: Trajectories) -> None:
        _, following = credit(Settings(decay=0.5), init(), trajectories)
        update(policy, optimizer, credit(Settings(), following, trajectories)[0])

    assert (expected_gradient((0, 1), learn) - exact_gradient(objective)).abs().max() > 0.01


def test_credit_is_the_reward_to_go_less_the_baseline_by_hand() -> None:
    # Rewards (0.9, 2.0), (0.9, -0.4) and (1.1,).
    found, following = credit(Settings(decay=0.9), 0.5, batch((0, 0, 1), (2, 1, 0), TABLE))
    wanted = torch.tensor([[2.4, 1.5], [0.0, -0.9], [0.6, 0.0]], dtype=F64)
    assert found.adv is not None
    torch.testing.assert_close(found.adv, wanted, rtol=0, atol=1e-12)
    assert following == pytest.approx(0.9 * 0.5 + 0.1 * (2.9 + 0.5 + 1.1) / 3)


def test_rewards_outside_the_mask_count_for_nothing() -> None:
    clean = batch((0, 1), (0, 0), TABLE)
    dirty = replace(clean, rewards=clean.rewards + torch.where(clean.mask, 0, 100.0))
    found, following = credit(Settings(), 0.2, dirty)
    wanted, wanted_following = credit(Settings(), 0.2, clean)
    assert found.adv is not None and wanted.adv is not None
    assert torch.equal(found.adv, wanted.adv) and following == wanted_following


def test_decay_one_is_no_baseline() -> None:
    baseline = init()
    for _ in range(3):
        _, baseline = credit(Settings(decay=1.0), baseline, batch((0, 1), (2, 0), TABLE))
    assert baseline == 0.0


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("total", [[0.9 + 0.5 * 2.0] * 2, [1.1, 0.0]]),
        ("to_go", [[0.9 + 0.5 * 2.0, 2.0], [1.1, 0.0]]),
        ("discounted", [[0.9 + 0.5 * 2.0, 0.5 * 2.0], [1.1, 0.0]]),
    ],
)
def test_each_credit_by_hand(name: str, wanted: list[list[float]]) -> None:
    settings = Settings(gamma=0.5, credit=name, baseline="none")  # pyright: ignore
    found, following = credit(settings, 7.0, batch((0, 1), (2, 0), TABLE))
    assert found.adv is not None and found.targets is not None
    torch.testing.assert_close(found.adv, torch.tensor(wanted, dtype=F64), rtol=0, atol=1e-12)
    # Whatever the credit, a critic learns the reward to go; the average is of discounted returns.
    assert found.targets.tolist() == [[pytest.approx(1.9), 2.0], [1.1, 0.0]]
    assert following == pytest.approx(0.9 * 7.0 + 0.1 * (1.9 + 1.1) / 2)


def test_a_critic_takes_off_what_it_says_and_is_fitted_afterwards() -> None:
    policy = random_policy(3, 2)
    drawn = random_batch(policy)
    whole = replace(drawn, terminated=drawn.mask & False, truncated=drawn.mask & False)
    settings = Settings(gamma=0.9, baseline="critic")
    lesson, _ = credit(settings, 0.0, whole, policy)
    with torch.no_grad():
        values = policy.evaluate(whole).values
    assert lesson.adv is not None and lesson.targets is not None and values is not None
    torch.testing.assert_close(lesson.adv, lesson.targets - values, rtol=0, atol=1e-12)
    recorder = Recorder(policy.module)
    update(policy, recorder, lesson)
    assert all((g == 0).all() for name, g in recorder.gradient.items() if name.startswith("critic"))
    fitted = fit(policy, recorder, lesson, num_epochs=1, num_minibatches=1, generator=generator())
    error = lesson.adv[lesson.mask].square().mean().item() / 2
    assert fitted["diagnostics/value_loss"] == pytest.approx(error)


def test_a_row_of_several_episodes_is_refused() -> None:
    short = batch((0, 1), (2, 0), TABLE)
    truncated = torch.tensor([[False, False], [False, True]])
    with pytest.raises(ValueError, match=r"found 2 ends in row 1.*one episode for each row"):
        credit(Settings(), 0.0, replace(short, truncated=truncated))


def test_a_missing_critic_is_named() -> None:
    with pytest.raises(ValueError, match="baseline=critic: found no critic"):
        credit(Settings(baseline="critic"), 0.0, batch((0, 1), (2, 0), TABLE))


def test_without_memory_it_is_a_row_of_the_group_family_without_a_baseline() -> None:
    """Where rewards come with the last step: elsewhere the page credits what follows, the row everything."""
    mixed = batch((0, 0, 1, 1), (0, 2, 1, 2), TABLE)
    last = mixed.mask & ~torch.nn.functional.pad(mixed.mask[:, 1:], (0, 1))
    trajectories = replace(mixed, rewards=torch.where(last, mixed.rewards, 0))
    row, settings = replace(FAMILY["rloo"], baseline=none), grpo.Settings(length=2)
    gradients: list[Tensor] = []
    for learn in (
        lambda policy, recorder: update(policy, recorder, credit(Settings(), init(), trajectories)[0]),
        lambda policy, recorder: grpo.update(
            policy, recorder, grpo.credit(row, settings, trajectories), row, settings
        ),
    ):
        policy = Softmax()
        recorder = Recorder(policy.module)
        learn(policy, recorder)
        gradients.append(recorder.gradient["logits"])
    assert gradients[0].abs().max() > 0.1
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-15)


def test_micro_batches_and_the_order_of_rows_change_nothing() -> None:
    trajectories, _ = credit(Settings(), 0.3, batch((0, 0, 1, 1, 1), (0, 2, 1, 1, 2), TABLE))
    gradients: list[Tensor] = []
    for part, order in [(5, [0, 1, 2, 3, 4]), (1, [0, 1, 2, 3, 4]), (2, [4, 2, 0, 1, 3])]:
        policy = Softmax(part=part)
        recorder = Recorder(policy.module)
        update(policy, recorder, trajectories.select(order))
        gradients.append(recorder.gradient["logits"])
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=0, atol=1e-15)


def test_credit_comes_before_the_update() -> None:
    policy = Softmax()
    with pytest.raises(ValueError, match=r"without credit.*credit\(settings, baseline, trajectories\)"):
        update(policy, Recorder(policy.module), batch((0,), (1,), TABLE))
    assert policy.evaluated == []
