"""An update is a function of parameters, optimiser, generator and batch: a run can be resumed to the bit."""

import copy
from collections.abc import Callable

import pytest
import torch
from onpolicy import Adam, generator, random_batch, random_policy

from gradhat.algorithms import a2c, critic, ppo, reinforce, trpo
from gradhat.policies.mlp import MLPPolicy
from gradhat.trajectories import Trajectories

Learn = Callable[[MLPPolicy, Adam, Trajectories, torch.Generator], dict[str, float]]


def by_reinforce(
    policy: MLPPolicy, optimizer: Adam, batch: Trajectories, draw: torch.Generator
) -> dict[str, float]:
    settings = reinforce.Settings(gamma=0.9, baseline="critic")
    whole = batch.select(slice(0, 1))  # one row, with at most one end
    whole = Trajectories(**{**vars(whole), "terminated": whole.mask & False, "truncated": whole.mask & False})
    lesson, _ = reinforce.credit(settings, 0.0, whole, policy)
    metrics = reinforce.update(policy, optimizer, lesson)
    return metrics | critic.fit(policy, optimizer, lesson, num_epochs=2, num_minibatches=2, generator=draw)


def by_a2c(
    policy: MLPPolicy, optimizer: Adam, batch: Trajectories, draw: torch.Generator
) -> dict[str, float]:
    del draw
    lesson = critic.credit(policy, batch, gamma=0.9, lam=0.9)
    return a2c.update(policy, optimizer, lesson, a2c.Settings())


def by_ppo(
    policy: MLPPolicy, optimizer: Adam, batch: Trajectories, draw: torch.Generator
) -> dict[str, float]:
    lesson = critic.credit(policy, batch, gamma=0.9, lam=0.9)
    return ppo.update(policy, optimizer, lesson, ppo.Settings(), draw)


def by_trpo(
    policy: MLPPolicy, optimizer: Adam, batch: Trajectories, draw: torch.Generator
) -> dict[str, float]:
    lesson = critic.credit(policy, batch, gamma=0.9, lam=0.9)
    return trpo.update(policy, optimizer, lesson, trpo.Settings(), draw)


@pytest.mark.parametrize("learn", [by_reinforce, by_a2c, by_ppo, by_trpo])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_restored_learns_the_same_to_the_bit(learn: Learn, dtype: torch.dtype) -> None:
    policy, draw = random_policy(3, 2, dtype=dtype), generator()
    optimizer = Adam(policy.module)
    first, second = (random_batch(policy, seed=seed, dtype=dtype) for seed in (1, 2))
    learn(policy, optimizer, first, draw)
    kept = copy.deepcopy((policy.module.state_dict(), optimizer.torch.state_dict(), draw.get_state()))
    metrics = learn(policy, optimizer, second, draw)

    other, new_draw = random_policy(3, 2, seed=9, dtype=dtype), generator(9)
    new_optimizer = Adam(other.module)
    other.module.load_state_dict(kept[0])
    new_optimizer.torch.load_state_dict(kept[1])
    new_draw.set_state(kept[2])
    assert learn(other, new_optimizer, second, new_draw) == metrics
    after = policy.module.state_dict()
    assert all(torch.equal(w, after[name]) for name, w in other.module.state_dict().items())
    assert any(not torch.equal(w, kept[0][name]) for name, w in after.items())
    assert torch.equal(draw.get_state(), new_draw.get_state())
