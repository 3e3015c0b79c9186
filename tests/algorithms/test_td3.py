"""TD3: the minimum of two, the smoothing, the delay; against the formulas written out."""

import pytest
import torch
from replayed import F64, apart, continuous, gradient, plain, resumes, same, seeded
from torch import Tensor

from gradhat.algorithms import td3
from gradhat.algorithms.td3 import Settings, State

LOW, HIGH = torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 2.0])
SETTINGS = Settings(hidden=(8, 6), target_noise=0.6, target_clip=0.5)


def made() -> State:
    """In float64, its lagging networks away from the ones they follow, plain steps."""
    state = td3.init(3, LOW, HIGH, SETTINGS, seeded())
    networks = (state.actor, state.critics, state.actor_target, state.critics_target)
    generator = seeded(5)
    for network in networks:
        network.double()
        for p in network.parameters():
            p.data += 0.2 * torch.randn(p.shape, dtype=F64, generator=generator)
    state.actor_optimizer, state.critics_optimizer = map(
        plain, (state.actor_optimizer, state.critics_optimizer)
    )
    state.generator = seeded(7)
    return state


def critics_gradient(state: State, y: Tensor) -> list[Tensor]:
    """Of Σ_c mean w (Q_c(s, a) − y)² / 2, written out."""
    batch = continuous(16)
    first, second = state.critics(batch.observations, batch.actions)
    loss = (batch.weights * ((first - y) ** 2 + (second - y) ** 2)).mean() / 2
    return list(torch.autograd.grad(loss, list(state.critics.parameters())))


def test_both_critics_are_fitted_to_the_smaller_of_two_at_a_smoothed_action() -> None:
    batch, state, twin = continuous(16), made(), made()
    noise = torch.randn(16, 2, dtype=F64, generator=seeded(7))
    scale = (HIGH - LOW) / 2
    action = twin.actor_target(batch.next_observations) + scale * (0.6 * noise).clamp(-0.5, 0.5)
    action = torch.minimum(torch.maximum(action, LOW), HIGH).detach()
    both = twin.critics_target(batch.next_observations, action).detach()

    def y(following: Tensor) -> Tensor:
        return batch.rewards + batch.discounts * ~batch.terminated * following

    found = gradient(state.critics, lambda: td3.update(state, batch, SETTINGS))
    same(found, critics_gradient(twin, y(both.min(0).values)))
    # Planted: the larger one, the first alone, no smoothing, the time limit as death.
    bare = twin.critics_target(batch.next_observations, twin.actor_target(batch.next_observations)).detach()
    for planted in (y(both.max(0).values), y(both[0]), y(bare.min(0).values), batch.rewards):
        assert apart(found, critics_gradient(twin, planted))


def test_smoothing_is_bounded_and_stays_in_the_box() -> None:
    state, observations = made(), continuous(2000).next_observations
    bare = state.actor_target(observations)
    smooth = td3.smoothed(state, observations, SETTINGS)
    scale = (HIGH - LOW) / 2
    assert float(((smooth - bare) / scale).abs().max()) == pytest.approx(0.5)
    assert bool(((smooth >= LOW) & (smooth <= HIGH)).all())
    assert bool((smooth == HIGH).any())


def test_the_actor_climbs_the_first_critic() -> None:
    batch, state = continuous(16), made()
    state.num_updates = 1
    found = gradient(state.actor, lambda: td3.update(state, batch, SETTINGS))
    twin = made()
    twin.critics.load_state_dict(state.critics.state_dict())

    def climbing(q: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(-q.mean(), list(twin.actor.parameters()), retain_graph=True))

    both = twin.critics(batch.observations, twin.actor(batch.observations))
    same(found, climbing(both[0]))
    assert apart(found, climbing(both.min(0).values))


def test_the_actor_and_the_copies_wait_for_their_turn() -> None:
    state = td3.init(3, LOW, HIGH, Settings(hidden=(8,), actor_every=3), seeded())
    networks = {"actor": state.actor, "slow actor": state.actor_target, "slow critics": state.critics_target}
    for i in range(1, 7):
        before = {name: [p.clone() for p in n.parameters()] for name, n in networks.items()}
        update = td3.update(state, continuous(8, seed=i), Settings(hidden=(8,), actor_every=3))
        for name, network in networks.items():
            still = all(torch.equal(p, q) for p, q in zip(network.parameters(), before[name], strict=True))
            assert still == (i % 3 != 0), (i, name)
        assert ("actor_q" in update.metrics) == (i % 3 == 0)


def test_a_run_resumes_to_the_bit() -> None:
    resumes(
        lambda: td3.init(3, LOW, HIGH, SETTINGS, seeded()),
        lambda state, i: td3.update(state, continuous(8, seed=i), SETTINGS),
    )
