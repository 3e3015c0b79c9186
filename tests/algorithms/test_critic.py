"""Credit by a critic: ends of both kinds, the last column, the dummy step; and what a critic learns."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from onpolicy import (
    Adam,
    Remembers,
    Sgd,
    generator,
    knowing,
    layered,
    lived,
    logits,
    random_batch,
    random_policy,
)
from torch import Tensor
from toy import Recorder, Softmax, batch

from gradhat.algorithms import a2c, critic, ppo, trpo
from gradhat.estimators.gae import gae
from gradhat.exact.enumerate import paths
from gradhat.policies.mlp import MLPPolicy
from gradhat.policies.policy import Evaluation
from gradhat.trajectories import Trajectories

F64 = torch.float64


def credited(
    policy: MLPPolicy, trajectories: Trajectories, *, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    return critic.credited(critic.credit(policy, trajectories, gamma=gamma, lam=lam))


def numbered(
    rewards: list[float],
    *,
    terminated: tuple[int, ...] = (),
    truncated: tuple[int, ...] = (),
    dummy: tuple[int, ...] = (),
) -> tuple[MLPPolicy, Trajectories]:
    """One row. Step t shows state t, its successor is state 10 + t. V(t) = t and V(10 + t) = 100 (t + 1)."""
    length = len(rewards)
    states = torch.arange(length)
    known = torch.cat([torch.arange(10.0), 100 * torch.arange(1.0, 11.0)]).double()
    policy = knowing(random_policy(20, 2), known)
    eye = torch.eye(20, dtype=F64)

    def at(places: tuple[int, ...]) -> Tensor:
        return torch.isin(states, torch.tensor(places))[None]

    return policy, Trajectories(
        observations=eye[states][None],
        actions=torch.zeros(1, length, dtype=torch.long),
        mask=~at(dummy),
        logp=torch.zeros(1, length, dtype=F64),
        rewards=torch.tensor([rewards], dtype=F64),
        terminated=at(terminated),
        truncated=at(truncated),
        group=torch.zeros(1, dtype=torch.long),
        version=torch.zeros(1, dtype=torch.long),
        next_observations=eye[10 + states][None],
    )


def check_ends() -> None:
    """By hand: γ = 0.5, λ = 0.4. Step 1 truncated, 3 terminated, the row is cut behind step 4."""
    policy, trajectories = numbered([1.0, 2.0, 3.0, 4.0, 5.0], truncated=(1,), terminated=(3,))
    adv, targets = credited(policy, trajectories, gamma=0.5, lam=0.4)
    second, fourth = 2 + 0.5 * 200 - 1, 4 - 3  # a bootstrap without a trace; neither of them
    wanted = [1 + 50 - 0 + 0.2 * second, second, 3 + 150 - 2 + 0.2 * fourth, fourth, 5 + 250 - 4]
    assert adv.tolist() == [pytest.approx(wanted)]
    assert targets.tolist() == [pytest.approx([a + v for a, v in zip(wanted, range(5), strict=True)])]


def check_dummy_steps(
    seen: Callable[[Trajectories], Trajectories] = lambda trajectories: trajectories,
) -> None:
    """What a vectorised environment inserts behind an end weighs nothing: neither actor nor critic moves."""
    policy, whole = numbered([1.0, 2.0, 30.0, 4.0, 5.0], terminated=(1,), dummy=(2,))
    gradients: list[dict[str, Tensor]] = []
    for columns in ([0, 1, 2, 3, 4], [0, 1, 3, 4]):
        recorder = Recorder(policy.module)
        some = Trajectories(
            **{
                name: value[:, columns] if isinstance(value, Tensor) and value.dim() > 1 else value
                for name, value in vars(seen(whole)).items()
            }
        )
        a2c.update(policy, recorder, critic.credit(policy, some, gamma=0.9, lam=0.8), a2c.Settings())
        gradients.append(recorder.gradient)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=0, atol=1e-12)


def check_the_critic_follows_its_error(plant: Callable[[MLPPolicy], None] = lambda policy: None) -> None:
    """The gradient of a linear critic on one-hot states, by hand: c_V · (y − V) / N. Nothing comes from y."""
    policy, trajectories = numbered([1.0, 2.0, 3.0], terminated=(2,))
    plant(policy)
    recorder = Recorder(policy.module)
    lesson = critic.credit(policy, trajectories, gamma=0.5, lam=0.0)
    a2c.update(policy, recorder, lesson, a2c.Settings(value_coef=0.5))
    wanted = torch.zeros(1, 20, dtype=F64)
    wanted[0, :3] = 0.5 / 3 * torch.tensor([1 + 50 - 0, 2 + 100 - 1, 3 - 2], dtype=F64)
    torch.testing.assert_close(recorder.gradient["critic.weights.0"], wanted, rtol=0, atol=1e-12)


def test_ends() -> None:
    check_ends()


def test_dummy_steps() -> None:
    check_dummy_steps()


def test_the_critic_follows_its_error() -> None:
    check_the_critic_follows_its_error()


def test_a_last_advantage_of_zero_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(*numbers: Tensor, gamma: float, lam: float) -> Tensor:
        adv = gae(*numbers, gamma=gamma, lam=lam)
        adv[:, -1] = 0
        return adv

    monkeypatch.setattr(critic, "gae", forgetful)
    with pytest.raises(AssertionError):
        check_ends()


def test_a_trace_that_runs_through_a_truncation_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def leaking(*numbers: Tensor, gamma: float, lam: float) -> Tensor:
        rewards, values, next_values, terminated, _, mask = numbers
        return gae(rewards, values, next_values, terminated, terminated, mask, gamma=gamma, lam=lam)

    monkeypatch.setattr(critic, "gae", leaking)
    with pytest.raises(AssertionError):
        check_ends()


def test_truncation_taken_for_death_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(*numbers: Tensor, gamma: float, lam: float) -> Tensor:
        rewards, values, next_values, _, ended, mask = numbers
        return gae(rewards, values, next_values, ended, ended, mask, gamma=gamma, lam=lam)

    monkeypatch.setattr(critic, "gae", dying)
    with pytest.raises(AssertionError):
        check_ends()


def test_training_on_the_dummy_step_is_found_out() -> None:
    with pytest.raises(AssertionError):
        check_dummy_steps(lambda whole: replace(whole, mask=torch.ones_like(whole.mask)))


def test_a_target_that_is_not_data_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def plant(policy: MLPPolicy) -> None:
        def residual(evaluation: Evaluation, part: Trajectories) -> Tensor:
            assert evaluation.values is not None and part.next_observations is not None
            following = torch.where(part.terminated, 0, policy.values(part.next_observations))
            return (part.rewards + 0.5 * following - evaluation.values).square() / 2

        monkeypatch.setattr(critic, "value_loss", residual)

    with pytest.raises(AssertionError):
        check_the_critic_follows_its_error(plant)


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_it_is_the_rollout_buffer_of_stable_baselines(lam: float) -> None:
    """That buffer knows one kind of end; its loop pays γ V(final observation) beside a truncated reward."""
    from stable_baselines3.common.buffers import RolloutBuffer

    steps, rows, gamma = 40, 5, 0.9
    policy = random_policy(3, 2, dtype=torch.float32)
    drawn = random_batch(policy, rows=rows, steps=steps, dtype=torch.float32)
    ended = drawn.terminated | drawn.truncated
    assert drawn.observations is not None and drawn.next_observations is not None
    assert isinstance(drawn.observations, Tensor)
    # Within an episode the successor is what is seen next.
    following = torch.cat([drawn.observations[:, 1:], drawn.next_observations[:, -1:]], 1)
    following = torch.where(ended[..., None], drawn.next_observations, following)
    trajectories = replace(drawn, mask=torch.ones_like(drawn.mask), next_observations=following)
    with torch.no_grad():
        values, next_values = policy.values(drawn.observations), policy.values(following)
    paid = trajectories.rewards + gamma * next_values * trajectories.truncated

    buffer = RolloutBuffer(steps, Box(-1, 1, (3,)), Discrete(2), "cpu", lam, gamma, n_envs=rows)
    starts = torch.cat([torch.ones_like(ended[:, :1]), ended[:, :-1]], 1)
    for t in range(steps):
        buffer.add(
            drawn.observations[:, t].numpy(),
            drawn.actions[:, t].numpy(),
            paid[:, t].numpy(),
            starts[:, t].numpy(),
            values[:, t],
            drawn.logp[:, t],
        )
    buffer.compute_returns_and_advantage(next_values[:, -1], ended[:, -1].numpy())

    adv, targets = credited(policy, trajectories, gamma=gamma, lam=lam)
    assert trajectories.truncated.sum() > 5 and trajectories.terminated.sum() > 5
    np.testing.assert_allclose(adv.T, buffer.advantages, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(targets.T, buffer.returns, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_credit_has_the_precision_of_the_policy(dtype: torch.dtype) -> None:
    policy = random_policy(3, 2, dtype=dtype)
    adv, targets = credited(policy, random_batch(policy, dtype=torch.float32), gamma=0.9, lam=0.9)
    assert adv.dtype is targets.dtype is dtype
    assert not adv.requires_grad and not targets.requires_grad


def forever(*, taken_for_death: bool, every: int = 5) -> Trajectories:
    """A world that pays 1 at every step and looks the same forever; a time limit cuts it now and then."""
    length = 2 * every
    cut = ((torch.arange(length) + 1) % every == 0)[None]
    seen = torch.ones(1, length, 1, dtype=F64)
    return Trajectories(
        observations=seen,
        actions=torch.zeros(1, length, dtype=torch.long),
        mask=torch.ones(1, length, dtype=torch.bool),
        logp=torch.full((1, length), 0.5, dtype=F64).log(),
        rewards=torch.ones(1, length, dtype=F64),
        terminated=cut & taken_for_death,
        truncated=cut & (not taken_for_death),
        group=torch.zeros(1, dtype=torch.long),
        version=torch.zeros(1, dtype=torch.long),
        next_observations=seen,
    )


@pytest.mark.parametrize("page", ["a2c", "ppo"])
def test_a_time_limit_does_not_change_what_an_endless_world_is_worth(page: str) -> None:
    """V = 1 / (1 − γ) = 10. Where the limit is taken for death, V = 1 + γ (1 − 1/5) V, which is 3.57."""
    for taken_for_death, wanted in [(False, 10.0), (True, 1 / (1 - 0.9 * 0.8))]:
        policy = random_policy(1, 2, hidden=())
        optimizer, draw = Sgd(policy.module, lr=0.5), generator()
        trajectories = forever(taken_for_death=taken_for_death)
        for _ in range(60):
            lesson = critic.credit(policy, trajectories, gamma=0.9, lam=0.0)
            if page == "a2c":
                a2c.update(policy, optimizer, lesson, a2c.Settings(value_coef=1.0))
            else:
                settings = ppo.Settings(num_epochs=1, num_minibatches=1, value_coef=1.0)
                ppo.update(policy, optimizer, lesson, settings, draw)
        assert policy.values(torch.ones(1, dtype=F64)).item() == pytest.approx(wanted, abs=0.05)


def test_normalised_advantages_have_mean_0_and_deviation_1_over_own_steps() -> None:
    policy = random_policy(3, 2)
    raw = critic.credit(policy, random_batch(policy), gamma=0.9, lam=0.9)
    assert not raw.mask.all()
    adv, _ = critic.credited(critic.normalised(raw))
    own, before = adv[raw.mask], critic.credited(raw)[0][raw.mask]
    assert own.mean().item() == pytest.approx(0, abs=1e-12)
    assert own.square().mean().sqrt().item() == pytest.approx(1, abs=1e-6)
    assert bool((adv[~raw.mask] == 0).all())
    assert torch.equal(own.argsort(), before.argsort())


def test_a_lone_step_is_neither_good_nor_bad() -> None:
    policy, trajectories = numbered([3.0])
    lesson = critic.normalised(critic.credit(policy, trajectories, gamma=0.9, lam=0.9))
    assert critic.credited(lesson)[0].tolist() == [[0.0]]


def test_explained_variance_by_hand() -> None:
    # V is 0, 1, 2 and y is 0, 3, 6: the errors 0, 2, 4 have 4/9 of the spread.
    policy, trajectories = numbered([0.0, 3.0, 6.0], terminated=(0, 1, 2))
    found = critic.explained_variance(critic.credit(policy, trajectories, gamma=0.9, lam=0.0))
    assert found == pytest.approx(1 - 4 / 9)
    policy, trajectories = numbered([5.0, 5.0], terminated=(0, 1))
    assert critic.explained_variance(critic.credit(policy, trajectories, gamma=0.9, lam=0.0)) == 0.0


@pytest.mark.parametrize("num_minibatches", [1, 3, 7, 50])
def test_minibatches_cover_each_row_once(num_minibatches: int) -> None:
    rows = random_batch(random_policy(3, 2)).steps()
    named = replace(rows, rewards=torch.arange(len(rows), dtype=F64)[:, None])
    draw = generator()
    orders: list[list[float]] = []
    for _ in range(2):
        parts = [p.rewards[:, 0].tolist() for p in critic.minibatches(named, num_minibatches, draw)]
        sizes = [len(p) for p in parts]
        assert len(parts) == min(num_minibatches, len(rows)) and max(sizes) - min(sizes) <= 1
        orders.append([name for part in parts for name in part])
        assert sorted(orders[-1]) == list(range(len(rows)))
    assert orders[0] != orders[1], "shuffled anew"


@pytest.mark.parametrize("kind", [MLPPolicy, Remembers])
def test_fitting_moves_the_critic_to_its_targets_and_nothing_else(kind: type[MLPPolicy]) -> None:
    world = layered()
    start = random_policy(world.num_observations, 2)
    policy = kind(start.module)
    every = paths(world)
    trajectories = lived(world, every, logits(world, policy).detach())
    lesson = critic.credit(policy, trajectories, gamma=1.0, lam=1.0)
    before = {name: w.clone() for name, w in policy.module.state_dict().items()}
    optimizer = Adam(policy.module, lr=0.05)
    draw = generator()
    first = critic.fit(policy, optimizer, lesson, num_epochs=1, num_minibatches=2, generator=draw)
    critic.fit(policy, optimizer, lesson, num_epochs=200, num_minibatches=1, generator=draw)
    assert first["diagnostics/value_loss"] > 0
    after = policy.module.state_dict()
    assert all(torch.equal(w, before[name]) for name, w in after.items() if not name.startswith("critic"))
    # The mean of the targets of each state is the best that V can be.
    state, (_, targets) = every.states.flatten(), critic.credited(lesson)
    for s in state.unique():
        found = policy.values(torch.eye(world.num_observations, dtype=F64)[s])
        assert found.item() == pytest.approx(targets.flatten()[state == s].mean().item(), abs=0.02)


def test_a_fit_measures_the_loss_before_each_step_over_own_steps() -> None:
    policy = random_policy(3, 2)
    lesson = critic.credit(policy, random_batch(policy), gamma=0.9, lam=0.9)
    adv, _ = critic.credited(lesson)
    wanted = adv[lesson.mask].square().mean().item() / 2  # y − V is the advantage
    for kind in (MLPPolicy, Remembers):
        recorder = Recorder(policy.module)
        found = critic.fit(
            kind(policy.module), recorder, lesson, num_epochs=1, num_minibatches=1, generator=generator()
        )
        assert found == {"diagnostics/value_loss": pytest.approx(wanted)}
        assert recorder.events[-1] == "step" and recorder.events.count("step") == 1


def test_what_is_missing_is_named() -> None:
    policy = random_policy(3, 2)
    trajectories = random_batch(policy)
    with pytest.raises(ValueError, match=r"without the true successor.*next_observations"):
        critic.credit(policy, replace(trajectories, next_observations=None), gamma=0.9, lam=0.9)
    with pytest.raises(ValueError, match=r"found no critic.*critic=True"):
        blind = random_policy(3, 2, critic=False)
        critic.credit(blind, trajectories, gamma=0.9, lam=0.9)
    with pytest.raises(ValueError, match=r"without credit and targets.*critic\.credit"):
        critic.credited(trajectories)
    with pytest.raises(ValueError, match="a policy without a critic"):
        table = Softmax()
        words = batch((0,), (1,), table.module.logits)
        critic.value_loss(table.evaluate(words), words)


@pytest.mark.parametrize("name", ["a2c", "ppo", "trpo", "fit"])
def test_a_batch_in_which_nobody_acted_is_refused_in_words(name: str) -> None:
    """A mean over no steps is no number, and a shuffle of no rows no error that says why."""
    policy = random_policy(3, 2)
    empty = replace(random_batch(policy), mask=torch.zeros(4, 6, dtype=torch.bool))
    batch = critic.credit(policy, empty, gamma=0.9, lam=0.9)
    optimizer = Adam(policy.module)
    updates = {
        "a2c": lambda: a2c.update(policy, optimizer, batch, a2c.Settings()),
        "ppo": lambda: ppo.update(policy, optimizer, batch, ppo.Settings(), generator()),
        "trpo": lambda: trpo.update(policy, optimizer, batch, trpo.Settings(), generator()),
        "fit": lambda: critic.fit(
            policy, optimizer, batch, num_epochs=1, num_minibatches=2, generator=generator()
        ),
    }
    with pytest.raises(ValueError, match=r"found none that is the policy's own. Skip a batch"):
        updates[name]()
