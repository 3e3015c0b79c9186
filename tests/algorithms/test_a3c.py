"""A3C: copies, late gradients and shared moments, with all workers in one process."""

from collections.abc import Sequence

import pytest
import torch
from onpolicy import random_batch, random_policy
from torch import Tensor, nn
from toy import Recorder

from gradhat.algorithms import a2c, a3c, critic
from gradhat.algorithms.ascend import Step
from gradhat.policies.mlp import MLPPolicy
from gradhat.training.optim import SmallAdam
from gradhat.trajectories import Trajectories

F64 = torch.float64
SETTINGS = a2c.Settings(gamma=0.9, lam=0.8, entropy_coef=0.1)
LR = 0.05


class Descent:
    """Plain gradient descent, behind the protocol."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters

    def accumulate(self) -> None:
        raise AssertionError("gradients are summed beside the copy")

    @torch.no_grad()
    def step(self) -> Step:
        for parameter in self.parameters:
            assert parameter.grad is not None
            parameter -= LR * parameter.grad
            parameter.grad = None
        return Step(0.0, False)


def adam(shared: a3c.Shared, policy: MLPPolicy) -> SmallAdam:
    parameters = a3c.weights(shared, policy.module)
    optimizer = SmallAdam(parameters, lr=LR, max_grad_norm=1.0)
    optimizer.optimizer.state.update(zip(parameters, a3c.statistics(shared, policy.module), strict=True))
    return optimizer


def crew(size: int, kind: str = "descent") -> tuple[a3c.Shared, list[MLPPolicy], list[a3c.Worker]]:
    """Workers whose networks begin elsewhere than the shared weights: only a copy brings them together."""
    shared = a3c.share(random_policy(3, 2).module, size)
    policies = [random_policy(3, 2, seed=number + 1) for number in range(size)]
    workers: list[a3c.Worker] = []
    for number, policy in enumerate(policies):
        optimizer = adam(shared, policy) if kind == "adam" else Descent(a3c.weights(shared, policy.module))
        workers.append(a3c.Worker(policy.module, optimizer.parameters, optimizer, shared.versions, number))
    return shared, policies, workers


def flat(module: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def a2c_gradient(policy: MLPPolicy, batch: Trajectories) -> Tensor:
    """What A2C climbs, at the policy's weights."""
    recorder = Recorder(policy.module)
    credited = critic.credit(policy, batch, gamma=SETTINGS.gamma, lam=SETTINGS.lam)
    a2c.update(policy, recorder, credited, SETTINGS)
    return torch.cat([g.flatten() for g in recorder.gradient.values()])


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("continuous", [False, True])
def test_one_worker_takes_the_steps_of_a2c_to_the_bit(dtype: torch.dtype, continuous: bool) -> None:
    alone = random_policy(3, 2, dtype=dtype, continuous=continuous)
    shared = a3c.share(alone.module, 1)
    copied = random_policy(3, 2, seed=1, dtype=dtype, continuous=continuous)
    here, there = SmallAdam(alone.module.parameters(), lr=LR, max_grad_norm=1.0), adam(shared, copied)
    worker = a3c.Worker(copied.module, there.parameters, there, shared.versions, 0)
    first = flat(alone.module)
    for i in range(6):
        batch = random_batch(alone, seed=i, dtype=dtype)
        credited = critic.credit(alone, batch, gamma=SETTINGS.gamma, lam=SETTINGS.lam)
        wanted = a2c.update(alone, here, credited, SETTINGS)
        assert worker.copy() == i
        assert a3c.update(copied, worker, batch, SETTINGS) == wanted | {"staleness": 0.0}
        assert torch.equal(shared.numbers[0], flat(alone.module))
    assert (shared.numbers[0] - first).abs().max() > 0.1
    for name, tensor in here.state().items():
        assert torch.equal(there.state()[name], tensor)


def test_a_late_gradient_is_of_the_copied_weights_and_moves_the_present_ones() -> None:
    shared, policies, (a, b) = crew(2)
    batches = [random_batch(policy, seed=i) for i, policy in enumerate(policies)]
    first = shared.numbers[0].clone()
    assert (a.copy(), b.copy()) == (0, 0)
    early, late = (a2c_gradient(*pair) for pair in zip(policies, batches, strict=True))
    assert a3c.update(policies[0], a, batches[0], SETTINGS)["staleness"] == 0
    torch.testing.assert_close(shared.numbers[0], first + LR * early, rtol=0, atol=1e-12)
    a.copy()
    assert (a2c_gradient(policies[0], batches[1]) - late).abs().max() > 1e-3
    assert a3c.update(policies[1], b, batches[1], SETTINGS)["staleness"] == 1
    torch.testing.assert_close(shared.numbers[0], first + LR * (early + late), rtol=0, atol=1e-12)


def test_a_copy_is_a_copy() -> None:
    shared, policies, (a, b) = crew(2)
    a.copy()
    before = flat(policies[0].module)
    assert torch.equal(before, shared.numbers[0])
    b.copy()
    a3c.update(policies[1], b, random_batch(policies[1]), SETTINGS)
    a3c.update(policies[0], a, random_batch(policies[0]), SETTINGS)
    assert torch.equal(flat(policies[0].module), before)
    assert (shared.numbers[0] - before).abs().max() > 1e-3
    assert a.copy() == 2
    assert torch.equal(flat(policies[0].module), shared.numbers[0])


def test_workers_share_moments_and_their_count() -> None:
    """Two that take turns are one that does all the work."""
    shared, policies, workers = crew(2, "adam")
    alone, (policy,), (worker,) = crew(1, "adam")
    for i in range(6):
        batch = random_batch(random_policy(3, 2), seed=i)
        for each_policy, each in ((policies[i % 2], workers[i % 2]), (policy, worker)):
            each.copy()
            assert a3c.update(each_policy, each, batch, SETTINGS)["staleness"] == 0
    assert torch.equal(shared.numbers, alone.numbers) and torch.equal(shared.counts, alone.counts)
    assert shared.counts.tolist() == [6.0] * len(shared.counts)
    assert shared.versions.tolist() == [3, 3] and alone.versions.tolist() == [6]


def test_another_process_would_see_all_of_it() -> None:
    policy = random_policy(3, 2, continuous=True)
    shared = a3c.share(policy.module, 2)
    assert all(tensor.is_shared() for tensor in shared)
    assert torch.equal(shared.numbers[0], flat(policy.module)) and not shared.numbers[1:].any()
    parts = [*a3c.weights(shared, policy.module)]
    for found in a3c.statistics(shared, policy.module):
        parts += found.values()
    with torch.no_grad():
        for i, part in enumerate(parts):
            part.fill_(i + 1.0)
    # Every number is in exactly one part, in the memory itself.
    assert shared.numbers.min() > 0 and shared.counts.min() > 0
    assert sum(part.numel() for part in parts) == shared.numbers.numel() + shared.counts.numel()
    assert [p.shape for p in a3c.weights(shared, policy.module)] == [
        p.shape for p in policy.module.parameters()
    ]
