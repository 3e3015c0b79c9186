"""DDPG: its target and both gradients against the formulas written out; bugs of the wild."""

from dataclasses import replace

import pytest
import torch
from replayed import F64, apart, continuous, gradient, plain, resumes, same, seeded
from torch import Tensor

from gradhat.algorithms import ddpg
from gradhat.algorithms.ddpg import Settings, State

LOW, HIGH = torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 2.0])
SETTINGS = Settings(hidden=(8, 6))


def made(seed: int = 0) -> State:
    """In float64, its lagging networks away from the ones they follow, plain steps."""
    state = ddpg.init(3, LOW, HIGH, SETTINGS, seeded(seed))
    for network in (state.actor, state.critics, state.actor_target, state.critics_target):
        network.double()
    generator = seeded(5)
    for network in (state.actor, state.critics, state.actor_target, state.critics_target):
        for p in network.parameters():
            p.data += 0.2 * torch.randn(p.shape, dtype=F64, generator=generator)
    state.actor_optimizer, state.critics_optimizer = map(
        plain, (state.actor_optimizer, state.critics_optimizer)
    )
    return state


def critic_gradient(state: State, y: Tensor) -> list[Tensor]:
    """Of mean w (Q(s, a) − y)² / 2, written out."""
    batch = continuous(16)
    q = state.critics(batch.observations, batch.actions)[0]
    loss = (batch.weights * (q - y) ** 2).mean() / 2
    return list(torch.autograd.grad(loss, list(state.critics.parameters())))


def target(state: State) -> Tensor:
    batch = continuous(16)
    following = state.critics_target(batch.next_observations, state.actor_target(batch.next_observations))[0]
    return batch.rewards + batch.discounts * torch.where(batch.terminated, 0, following)


def test_the_critic_is_fitted_to_the_lagging_networks() -> None:
    batch = continuous(16)
    expected = critic_gradient(made(), target(made()).detach())
    state = made()
    found = gradient(state.critics, lambda: ddpg.update(state, batch, SETTINGS))
    same(found, expected)

    # Planted: death where there is none, the trained networks for the lagging ones, no detach of the target.
    twin = made()
    dead = batch.rewards * 1.0
    online = twin.critics(batch.next_observations, twin.actor(batch.next_observations))[0]
    y = batch.rewards + batch.discounts * torch.where(batch.terminated, 0, online)
    for planted in (dead, y.detach(), y):
        assert apart(found, critic_gradient(twin, planted))


def test_the_actor_climbs_the_critic() -> None:
    """∇_θ mean Q(s, μ(s)) through the critic as it is after its own step, which stays where it is."""
    batch, state = continuous(16), made()
    found = gradient(state.actor, lambda: ddpg.update(state, batch, SETTINGS))
    twin = made()
    twin.critics.load_state_dict(state.critics.state_dict())
    actions = twin.actor(batch.observations)
    q = twin.critics(batch.observations, actions)[0]
    # The chain rule of Silver et al. 2014: the gradient of μ along that of Q in the action.
    (slope,) = torch.autograd.grad(q.mean(), actions, retain_graph=True)
    expected = torch.autograd.grad(-(actions * slope.detach()).sum(), list(twin.actor.parameters()))
    same(found, list(expected))


def test_the_copies_follow_and_the_errors_are_told() -> None:
    state, before = made(), made()
    update = ddpg.update(state, continuous(16), SETTINGS)
    for lagging, old, online in (
        (state.actor_target, before.actor_target, state.actor),
        (state.critics_target, before.critics_target, state.critics),
    ):
        for found, start, end in zip(
            lagging.parameters(), old.parameters(), online.parameters(), strict=True
        ):
            torch.testing.assert_close(found.detach(), (0.995 * start + 0.005 * end).detach())
    batch = continuous(16)
    q = before.critics(batch.observations, batch.actions)[0]
    torch.testing.assert_close(update.td_errors, (target(before) - q).abs().detach())
    assert float(update.metrics["td_error"]) == pytest.approx(float(update.td_errors.mean()))
    assert float(update.metrics["q"]) == pytest.approx(float(q.detach().mean()))
    assert set(update.metrics) == {"diagnostics/value_loss", "q", "td_error", "actor_q"}


def test_a_run_resumes_to_the_bit() -> None:
    settings = replace(SETTINGS, tau=0.1)
    resumes(
        lambda: ddpg.init(3, LOW, HIGH, settings, seeded()),
        lambda state, i: ddpg.update(state, continuous(8, seed=i), settings),
    )
