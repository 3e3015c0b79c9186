"""Small networks: their first weights, what they share, and that acting and evaluating are one policy."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from gradhat.policies.distributions import Categorical, Gaussian
from gradhat.policies.mlp import HIDDEN_GAIN, MLP, POLICY_GAIN, VALUE_GAIN, ActorCritic, MLPPolicy
from gradhat.trajectories import Trajectories

B, T, NUM_INPUTS = 3, 5, 4
F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def policy(size: int = 3, *, continuous: bool = False, critic: bool = True) -> MLPPolicy:
    """A float64 policy that is far from uniform."""
    module = ActorCritic(
        NUM_INPUTS, size, hidden=(8, 6), continuous=continuous, critic=critic, generator=generator()
    ).double()
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator(parameter.numel()), dtype=F64) / 2
    return MLPPolicy(module)


def lived(actor: MLPPolicy, seed: int = 0) -> Trajectories:
    """Steps that `actor` took, two in five of them masked; observations are float32 as worlds show them."""
    seen = torch.randn(B, T, NUM_INPUTS, generator=generator(seed))
    actions, logp = actor.act(seen.flatten(0, 1), generator(seed))
    mask = torch.rand(B, T, generator=generator(seed)) > 0.4
    nothing = torch.zeros(B, T, dtype=torch.bool)
    return Trajectories(
        observations=seen,
        actions=actions.unflatten(0, (B, T)),
        mask=mask,
        logp=logp.unflatten(0, (B, T)),
        rewards=torch.zeros(B, T),
        terminated=nothing,
        truncated=nothing,
        group=torch.arange(B),
        version=torch.zeros(B, dtype=torch.long),
    )


def gradients(module: nn.Module, objective: Tensor) -> dict[str, Tensor | None]:
    names, weights = zip(*module.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(objective, weights, allow_unused=True), strict=True))


def test_an_mlp_is_affine_layers_with_an_activation_between() -> None:
    net = MLP((4, 7, 6, 2), activation=torch.relu, last_gain=3.0, generator=generator()).double()
    for i, bias in enumerate(net.biases):
        bias.data += torch.randn(bias.shape, generator=generator(i), dtype=F64)
    x = torch.randn(5, 3, 4, generator=generator(9))
    h1 = (x.double() @ net.weights[0].T + net.biases[0]).clamp(min=0)
    h2 = (h1 @ net.weights[1].T + net.biases[1]).clamp(min=0)
    wanted = h2 @ net.weights[2].T + net.biases[2]
    found = net(x)
    assert found.dtype == F64 and (found < 0).any(), "no activation after the last layer"
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_first_weights_are_orthogonal_with_the_gains_of_their_place() -> None:
    module = ActorCritic(4, 3, hidden=(16, 8), continuous=True, log_std=-0.5, generator=generator())
    assert module.critic is not None and module.log_std is not None
    for net, last_gain in ((module.actor, POLICY_GAIN), (module.critic, VALUE_GAIN)):
        for i, weight in enumerate(net.weights):
            gain = last_gain if i == 2 else HIDDEN_GAIN
            singular = torch.linalg.svdvals(weight)
            torch.testing.assert_close(singular, torch.full_like(singular, gain), rtol=1e-5, atol=0)
        assert not any(bias.any() for bias in net.biases)
    assert (math.sqrt(2), 0.01, 1.0) == (HIDDEN_GAIN, POLICY_GAIN, VALUE_GAIN)
    assert module.log_std.tolist() == [-0.5] * 3


def test_first_weights_follow_from_the_generator_and_nothing_else() -> None:
    torch.manual_seed(1)
    first = ActorCritic(4, 3, generator=generator(5)).state_dict()
    torch.manual_seed(2)
    again = ActorCritic(4, 3, generator=generator(5)).state_dict()
    other = ActorCritic(4, 3, generator=generator(6)).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not any(torch.equal(t, other[name]) for name, t in first.items() if "weights" in name)
    assert not torch.equal(first["actor.weights.0"], first["critic.weights.0"])


@pytest.mark.parametrize("continuous", [False, True])
def test_acting_and_evaluating_are_one_policy(continuous: bool) -> None:
    actor = policy(continuous=continuous)
    batch = lived(actor)
    found, pi = actor.evaluate(batch), actor.distribution(batch)
    mask = batch.mask
    assert isinstance(pi, Gaussian if continuous else Categorical)
    assert found.logp.dtype == found.entropy.dtype == F64 and batch.logp.dtype == F64
    torch.testing.assert_close(found.logp[mask], batch.logp[mask], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.entropy[mask], pi.entropy()[mask], rtol=1e-12, atol=0)
    assert found.values is not None and isinstance(batch.observations, Tensor)
    torch.testing.assert_close(found.values[mask], actor.values(batch.observations)[mask], rtol=1e-12, atol=0)
    for part in found:
        assert part is not None and not part[~mask].any() and part[mask].all()
    assert torch.equal(actor.greedy(batch.observations[0]), pi.mode()[0])


def test_the_critic_shares_nothing_with_the_actor() -> None:
    actor = policy(continuous=True)
    found = actor.evaluate(lived(actor))
    assert found.values is not None
    by_value = gradients(actor.module, found.values.sum())
    by_policy = gradients(actor.module, found.logp.sum() + found.entropy.sum())
    for name in by_value:
        reached, untouched = (by_value, by_policy) if name.startswith("critic") else (by_policy, by_value)
        assert untouched[name] is None, name
        gradient = reached[name]
        assert gradient is not None and gradient.any(), name


def test_a_masked_step_has_no_gradient() -> None:
    actor = policy(continuous=True)
    batch = lived(actor)
    assert isinstance(batch.observations, Tensor)
    other = replace(
        batch,
        observations=torch.where(batch.mask[..., None], batch.observations, 3.0),
        actions=torch.where(batch.mask[..., None], batch.actions, -2.0),
    )

    def total(of: Trajectories) -> Tensor:
        found = actor.evaluate(of)
        assert found.values is not None
        return (found.logp.sin() + found.entropy + found.values.square()).sum()

    mine, theirs = gradients(actor.module, total(batch)), gradients(actor.module, total(other))
    for name, gradient in mine.items():
        assert gradient is not None
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-12, atol=1e-14)


def test_every_own_step_is_an_example_of_its_own() -> None:
    actor = policy()
    batch = lived(actor)
    rows = actor.examples(batch)
    assert len(rows) == int(batch.mask.sum()) and rows.mask.all()
    torch.testing.assert_close(
        actor.evaluate(rows).logp[:, 0], actor.evaluate(batch).logp[batch.mask], rtol=1e-12, atol=0
    )
    assert actor.split(batch) == [slice(None)] and actor.split(batch.select([])) == []


@pytest.mark.parametrize("continuous", [False, True])
def test_acting_draws_from_the_generator_without_gradient(continuous: bool) -> None:
    actor = policy(continuous=continuous)
    seen = torch.randn(200, NUM_INPUTS, generator=generator(1))
    actions, logp = actor.act(seen, generator(2))
    again, _ = actor.act(seen, generator(2))
    others, _ = actor.act(seen, generator(3))
    assert torch.equal(actions, again) and not torch.equal(actions, others)
    assert not logp.requires_grad and logp.shape == (200,)
    assert actions.shape == ((200, 3) if continuous else (200,))


def test_what_is_missing_is_named() -> None:
    alone = policy(critic=False)
    batch = lived(alone)
    assert alone.evaluate(batch).values is None
    with pytest.raises(ValueError, match=r"found no critic. Make the module with critic=True"):
        alone.values(torch.zeros(2, NUM_INPUTS))
    numbered = replace(batch, observations=[(0,) * T] * B)
    for ask in (alone.evaluate, alone.distribution):
        with pytest.raises(ValueError, match=r"found tuples of numbers. Pass a float tensor"):
            ask(numbered)
