"""Actions in a box: the densities are right, the critics share nothing."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import AffineTransform, Normal, TanhTransform, TransformedDistribution
from torch.nn.functional import linear

from gradhat.errors import ConfigError
from gradhat.policies.continuous import (
    Box,
    ContinuousQ,
    Deterministic,
    Noisy,
    SquashedGaussian,
    Uniform,
)

F64 = torch.float64
LOW, HIGH = torch.tensor([-2.0, 1.0]), torch.tensor([2.0, 4.0])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seen(num_rows: int, seed: int = 1) -> Tensor:
    return torch.randn(num_rows, 3, dtype=F64, generator=seeded(seed))


def squashed(spread: float = 1.0) -> SquashedGaussian:
    """A policy whose outputs depend on what it sees; `spread` times as much."""
    policy = SquashedGaussian(3, Box(LOW, HIGH), hidden=(8,), generator=seeded()).double()
    policy.layers.weights[-1].data *= 100 * spread
    return policy


def deterministic(shift: float = 0.0) -> Deterministic:
    policy = Deterministic(3, Box(LOW, HIGH), hidden=(8,), generator=seeded()).double()
    policy.layers.weights[-1].data *= 100
    policy.layers.biases[-1].data += shift
    return policy


# --- the box -----------------------------------------------------------------------------------------------


def test_the_box_is_reached_from_end_to_end() -> None:
    box = Box(LOW, HIGH)
    inside = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]])
    assert box(inside).tolist() == [[-2, 1], [0, 2.5], [2, 4]]
    assert box.clip(torch.tensor([[-3.0, 5.0]])).tolist() == [[-2, 4]]


@pytest.mark.parametrize(
    ("low", "high"), [([-math.inf], [1.0]), ([0.0], [math.inf]), ([1.0], [1.0]), ([math.nan], [1.0])]
)
def test_a_box_without_bounds_is_refused(low: list[float], high: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"found the bounds \[.*\] and \[.*\].*RescaleAction.*PPO"):
        Box(torch.tensor(low), torch.tensor(high))


def test_uniform_actions_fill_the_box_and_their_density_is_its_volume() -> None:
    actions, logp = Uniform(Box(LOW, HIGH)).act(torch.zeros(4000, 3), seeded())
    assert bool(((actions > LOW) & (actions < HIGH)).all())
    torch.testing.assert_close(actions.min(0).values, LOW, atol=0.01, rtol=0)
    torch.testing.assert_close(actions.max(0).values, HIGH, atol=0.01, rtol=0)
    torch.testing.assert_close(logp, torch.full((4000,), -math.log(4 * 3)))


# --- a deterministic policy and its noise ------------------------------------------------------------------


def test_a_deterministic_policy_by_hand() -> None:
    policy, x = deterministic(), seen(5)
    (w0, w1), (b0, b1) = policy.layers.weights, policy.layers.biases
    u = linear(linear(x, w0, b0).relu(), w1, b1).tanh()
    expected = torch.stack([2 * u[:, 0], 2.5 + 1.5 * u[:, 1]], -1)
    torch.testing.assert_close(policy(x), expected)
    torch.testing.assert_close(policy.greedy(x), expected.detach())


def test_noise_is_gaussian_inside_and_gathers_at_the_bounds() -> None:
    policy, x = deterministic(shift=0.6), seen(4000)
    mean, std = policy.greedy(x), 0.5 * torch.tensor([2.0, 1.5], dtype=F64)
    actions, logp = Noisy(policy, 0.5).act(x, seeded())
    free = Normal(mean, std)
    below, above = actions == LOW, actions == HIGH
    inside = ~below & ~above
    assert below.any() and above.any() and inside.any()
    assert bool(((actions >= LOW) & (actions <= HIGH)).all())
    expected = torch.where(inside, free.log_prob(actions), 0)
    expected = torch.where(below, free.cdf(LOW.double()).log(), expected)
    expected = torch.where(above, (1 - free.cdf(HIGH.double())).log(), expected)
    torch.testing.assert_close(logp, expected.sum(-1), atol=1e-8, rtol=1e-8)
    # As often at a bound as the probability of what is beyond it says, and as wide inside.
    beyond = free.cdf(LOW.double())
    assert abs(float((below.double() - beyond).mean())) < 5 / math.sqrt(8000)
    z = ((actions - mean) / std)[inside]
    assert float(z.abs().median()) == pytest.approx(0.6, abs=0.1)


# --- a squashed Gaussian -----------------------------------------------------------------------------------


def test_the_density_is_that_of_a_transformed_normal() -> None:
    policy, x = squashed(), seen(200)
    actions, logp = policy.act(x, seeded(2))
    mean, log_std = policy(x)
    box = AffineTransform(policy.box.center, policy.box.scale)
    twin = TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform(), box])
    torch.testing.assert_close(logp, twin.log_prob(actions).sum(-1).detach(), atol=1e-6, rtol=1e-6)


def test_the_density_integrates_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Along a line of noise, one component at a time: ∫ π(a) da over actions. Without log-det it is not 1."""
    policy = SquashedGaussian(3, Box(LOW[:1], HIGH[:1]), hidden=(8,), generator=seeded()).double()
    policy.layers.biases[-1].data += torch.tensor([0.7, -0.4])
    noise = torch.linspace(-9, 9, 20_001, dtype=F64)[:, None]
    monkeypatch.setattr(torch, "randn", lambda *_args, **_kwargs: noise)
    actions, logp = policy.act(torch.ones(len(noise), 3, dtype=F64), seeded())
    assert float(torch.trapezoid(logp.exp(), actions[:, 0])) == pytest.approx(1, abs=1e-6)
    # Planted: the density before the tanh, taken for that of the action.
    u = torch.atanh((actions[:, 0] / 2).clamp(-1 + 1e-12, 1 - 1e-12))
    mean, log_std = (t[:, 0].detach() for t in policy(torch.ones(len(noise), 3, dtype=F64)))
    planted = torch.trapezoid(Normal(mean, log_std.exp()).log_prob(u).exp(), actions[:, 0])
    assert abs(float(planted) - 1) > 0.05


def test_the_density_is_finite_where_tanh_rounds_to_one() -> None:
    policy = squashed().float()
    policy.layers.biases[-1].data += torch.tensor([40.0, 0, 0, 0])
    x = seen(20).float()
    actions, logp = policy.act(x, seeded())
    assert bool((actions[:, 0] == 2).all()) and bool(logp.isfinite().all())
    policy.double()
    _, exact = policy.act(x.double(), seeded())
    # log(1 − tanh² u) = log 4 − 2u here, to the last digit, so that logp grows as 2u.
    assert float(exact.mean()) > 40
    assert bool(exact.isfinite().all())


def test_the_gradient_flows_through_the_action() -> None:
    policy, x = squashed(0.1), seen(6)
    actions, logp = policy.sample(x, seeded(3))
    found = torch.autograd.grad((actions.square().sum(-1) - logp).mean(), list(policy.parameters()))
    mean, log_std = policy(x)
    noise = torch.randn(mean.shape, dtype=F64, generator=seeded(3))
    u = mean + log_std.exp() * noise
    a = policy.box.center + policy.box.scale * u.tanh()
    gaussian = Normal(mean, log_std.exp()).log_prob(u)
    written_out = gaussian - (policy.box.scale * (1 - u.tanh() ** 2)).log()
    loss = (a.square().sum(-1) - written_out.sum(-1)).mean()
    for mine, theirs in zip(found, torch.autograd.grad(loss, list(policy.parameters())), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=1e-9)


def test_log_std_is_bounded() -> None:
    policy = squashed()
    policy.layers.biases[-1].data += torch.tensor([0.0, 0.0, 1e3, -1e3])
    assert policy(seen(2))[1].tolist() == [[2, -20]] * 2


def test_the_greedy_action_is_that_of_the_mean() -> None:
    policy, x = squashed(), seen(5)
    expected = policy.box.center + policy.box.scale * policy(x)[0].tanh()
    torch.testing.assert_close(policy.greedy(x), expected.detach())


# --- critics -----------------------------------------------------------------------------------------------


def critics(num_critics: int = 2) -> ContinuousQ:
    return ContinuousQ(3, Box(LOW, HIGH), num_critics=num_critics, hidden=(8, 6), generator=seeded()).double()


def test_critics_are_networks_apart() -> None:
    q, x = critics(), seen(5)
    actions = torch.randn(5, 2, dtype=F64, generator=seeded(4))
    for c in range(2):
        y = torch.cat([x, (actions - (HIGH + LOW) / 2) / ((HIGH - LOW) / 2)], -1)
        for i, (weight, bias) in enumerate(zip(q.weights, q.biases, strict=True)):
            y = linear(y, weight[c].T, bias[c, 0])
            y = y.relu() if i < 2 else y
        torch.testing.assert_close(q(x, actions)[c], y[:, 0])
    torch.testing.assert_close(q.first(x, actions), q(x, actions)[0])
    gradients = torch.autograd.grad(q(x, actions)[1].sum(), list(q.parameters()))
    assert all(bool((g[0] == 0).all()) and bool((g[1] != 0).any()) for g in gradients)


def test_critics_see_actions_without_their_unit() -> None:
    box, x = Box(LOW, HIGH), seen(5)
    inside = 2 * torch.rand(5, 2, dtype=F64, generator=seeded(4)) - 1
    torch.testing.assert_close(box.inside(box(inside.float())).double(), inside, atol=1e-6, rtol=0)
    for corner, wanted in ((LOW, -1.0), (HIGH, 1.0)):
        assert box.inside(corner).tolist() == [wanted] * 2
    wide = ContinuousQ(3, Box(1000 * LOW, 1000 * HIGH), num_critics=2, hidden=(8, 6), generator=seeded())
    actions = box.double()(inside)
    torch.testing.assert_close(wide.double()(x, 1000 * actions), critics()(x, actions))


def test_each_critic_begins_orthogonal_and_its_own() -> None:
    q = critics()
    first, second = q.weights[1][0], q.weights[1][1]
    torch.testing.assert_close(first.T @ first, 2 * torch.eye(6, dtype=F64), atol=1e-6, rtol=0)
    assert not torch.equal(first, second)
    assert all(bool((bias == 0).all()) for bias in q.biases)
