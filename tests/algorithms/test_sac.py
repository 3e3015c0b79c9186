"""SAC: target, actor and temperature against the formulas written out with torch.distributions."""

import math

import numpy as np
import pytest
import torch
from replayed import F64, apart, continuous, gradient, plain, resumes, same, seeded
from torch import Tensor
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from gradhat.algorithms import sac
from gradhat.algorithms.sac import Settings, State
from gradhat.rollouts.replay import Replay
from gradhat.trajectories import Trajectories

LOW, HIGH = torch.tensor([-1.0, -2.0]), torch.tensor([1.0, 4.0])
SETTINGS = Settings(hidden=(8, 6), temperature=0.3)
TEMPERATURE = 0.7
"""Where it has come to since the start: what an update reads is the present one, not the setting."""


def made() -> State:
    """In float64, its lagging critics away from the ones they follow, plain steps."""
    state = sac.init(3, LOW, HIGH, SETTINGS, seeded())
    generator = seeded(5)
    for network in (state.actor, state.critics, state.critics_target):
        network.double()
        for p in network.parameters():
            p.data += 0.2 * torch.randn(p.shape, dtype=F64, generator=generator)
    state.log_temperature.data = torch.tensor(math.log(TEMPERATURE), dtype=F64)
    state.actor_optimizer, state.critics_optimizer = map(
        plain, (state.actor_optimizer, state.critics_optimizer)
    )
    state.generator = seeded(7)
    return state


def drawn(state: State, observations: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Actions, log π of them in (−1, 1), and the density before the tanh, which is the planted bug."""
    mean, log_std = state.actor(observations)
    u = mean + log_std.exp() * noise
    base = Normal(mean, log_std.exp())
    squashed = TransformedDistribution(base, [TanhTransform(cache_size=1)])
    center, scale = (HIGH + LOW) / 2, (HIGH - LOW) / 2
    return (
        center + scale * u.tanh(),
        squashed.log_prob(squashed.transforms[0](u)).sum(-1),
        base.log_prob(u).sum(-1),
    )


def noises() -> tuple[Tensor, Tensor]:
    """Those of an update, in their order: for the next actions, for the actor."""
    generator = seeded(7)
    first, second = (torch.randn(16, 2, dtype=F64, generator=generator) for _ in range(2))
    return first, second


def critics_gradient(state: State, y: Tensor) -> list[Tensor]:
    batch = continuous(16)
    first, second = state.critics(batch.observations, batch.actions)
    loss = (batch.weights * ((first - y) ** 2 + (second - y) ** 2)).mean() / 2
    return list(torch.autograd.grad(loss, list(state.critics.parameters())))


def test_the_critics_are_fitted_to_the_soft_value() -> None:
    batch, state, twin = continuous(16), made(), made()
    found = gradient(state.critics, lambda: sac.update(state, batch, SETTINGS))
    actions, logp, flat = drawn(twin, batch.next_observations, noises()[0])
    both = twin.critics_target(batch.next_observations, actions)

    paid = batch.later_logp + batch.later * ((HIGH - LOW) / 2).double().log().sum()

    def y(soft: Tensor, owed: Tensor = paid) -> Tensor:
        following = batch.discounts * ~batch.terminated * soft
        return (batch.rewards - TEMPERATURE * owed + following).detach()

    worst = both.min(0).values
    right = worst - TEMPERATURE * logp
    same(found, critics_gradient(twin, y(right)))
    # Planted: later steps that owe nothing, and those whose log π is in the unit of the actions.
    for owed in (torch.zeros(16), batch.later_logp, -paid):
        assert apart(found, critics_gradient(twin, y(right, owed)))
    # Planted: the larger one, no entropy, entropy with the wrong sign, no log-det, the trained critics,
    # the first temperature.
    own = twin.critics(batch.next_observations, actions).min(0).values
    for planted in (
        both.max(0).values - TEMPERATURE * logp,
        worst,
        worst + TEMPERATURE * logp,
        worst - TEMPERATURE * flat,
        own - TEMPERATURE * logp,
        worst - SETTINGS.temperature * logp,
    ):
        assert apart(found, critics_gradient(twin, y(planted)))


def test_a_return_of_two_steps_is_soft_in_both() -> None:
    """Out of the real memory: γ = 1/2; cut by a death at step 1, by the newest step at step 3."""
    steps, gamma = 4, 0.5
    random = torch.Generator().manual_seed(2)
    seen, after = torch.randn(2, 1, steps, 3, generator=random)
    actions = torch.stack([torch.tensor([0.5, -1.0]), torch.tensor([-0.25, 2.0])] * 2)[None]
    logp = torch.tensor([[-0.5, -1.5, 0.25, -0.75]])
    rewards = torch.tensor([[1.0, 2.0, 4.0, 8.0]])
    died = torch.tensor([[False, True, False, False]])
    ring = Replay(steps, 1, (3,), (2,), action_dtype=np.float32, gamma=gamma, n_step=2)
    nothing = torch.zeros(1, dtype=torch.long)
    mask, never = torch.ones_like(died), torch.zeros_like(died)
    ring.add(
        Trajectories(
            seen, actions, mask, logp, rewards, died, never, nothing, nothing, next_observations=after
        )
    )
    drawn_from = ring.sample(16, np.random.default_rng(0))
    rows = drawn_from.index
    assert rows.unique().tolist() == [0, 1, 2, 3]

    # log π of the actions in (−1, 1): that in the box, and log of half its width.
    inside = logp[0] + ((HIGH - LOW) / 2).log().sum()
    state, twin = made(), made()
    found = gradient(state.critics, lambda: sac.update(state, drawn_from, SETTINGS))
    following = drawn_from.next_observations
    assert torch.equal(following, after[0, torch.tensor([1, 1, 3, 3])[rows]])
    ahead, next_logp, _ = drawn(twin, following, noises()[0])
    soft = twin.critics_target(following, ahead).min(0).values - TEMPERATURE * next_logp
    lone = torch.stack(
        [
            1 + gamma * (2 - TEMPERATURE * inside[1]),
            torch.tensor(2.0),
            4 + gamma * (8 - TEMPERATURE * inside[3]),
            torch.tensor(8.0),
        ]
    )
    discounts = torch.tensor([0, 0, gamma**2, gamma])
    y = (lone[rows] + discounts[rows] * soft).detach()
    first, second = twin.critics(drawn_from.observations, drawn_from.actions)
    loss = ((first - y) ** 2 + (second - y) ** 2).mean() / 2
    wanted = list(torch.autograd.grad(loss, list(twin.critics.parameters())))
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_the_actor_climbs_the_soft_value() -> None:
    batch, state = continuous(16), made()
    found = gradient(state.actor, lambda: sac.update(state, batch, SETTINGS))
    twin = made()
    twin.critics.load_state_dict(state.critics.state_dict())
    actions, logp, flat = drawn(twin, batch.observations, noises()[1])
    q = twin.critics(batch.observations, actions).min(0).values

    def descending(loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss.mean(), list(twin.actor.parameters()), retain_graph=True))

    same(found, descending(TEMPERATURE * logp - q))
    for planted in (TEMPERATURE * flat - q, -TEMPERATURE * logp - q, -q, SETTINGS.temperature * logp - q):
        assert apart(found, descending(planted))


def test_the_temperature_moves_until_the_entropy_is_the_one_wanted() -> None:
    batch, state, twin = continuous(16), made(), made()
    before = float(state.log_temperature.detach())
    fresh = sac.init(3, LOW, HIGH, SETTINGS, seeded())
    assert float(fresh.log_temperature.detach()) == pytest.approx(math.log(0.3), abs=1e-6)
    update = sac.update(state, batch, SETTINGS)
    logp = drawn(twin, batch.observations, noises()[1])[1].mean().item()
    # The gradient in log α of −log α (log π + H), with H = −1 for each of two components.
    expected = -(logp - 2)
    assert before - float(state.log_temperature.detach()) == pytest.approx(expected, abs=1e-12)
    assert float(update.metrics["entropy"]) == pytest.approx(-logp, abs=1e-12)
    assert float(update.metrics["temperature"]) == pytest.approx(TEMPERATURE)
    assert {"diagnostics/value_loss", "q", "td_error", "actor_q"} < set(update.metrics)


def test_a_policy_is_as_random_whatever_the_unit_of_its_actions() -> None:
    entropies = [
        sac.update(sac.init(3, unit * LOW, unit * HIGH, SETTINGS, seeded()), continuous(8), SETTINGS)
        .metrics["entropy"]
        .item()
        for unit in (1.0, 1000.0)
    ]
    assert entropies[0] == pytest.approx(entropies[1], abs=1e-5)


def test_the_lagging_critics_follow() -> None:
    state, before = made(), made()
    sac.update(state, continuous(16), SETTINGS)
    for found, start, end in zip(
        state.critics_target.parameters(),
        before.critics_target.parameters(),
        state.critics.parameters(),
        strict=True,
    ):
        torch.testing.assert_close(found.detach(), (0.995 * start + 0.005 * end).detach())


def test_a_run_resumes_to_the_bit() -> None:
    resumes(
        lambda: sac.init(3, LOW, HIGH, SETTINGS, seeded()),
        lambda state, i: sac.update(state, continuous(8, seed=i), SETTINGS),
    )
