"""Transitions for the tests of algorithms that learn from a replay, and a view of their gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradhat.algorithms import off_policy
from gradhat.trajectories import Transitions

F64 = torch.float64


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def continuous(num_rows: int, *, num_inputs: int = 3, num_components: int = 2, seed: int = 0) -> Transitions:
    """Random transitions with actions in a box, some terminated, of 1 to 3 steps, with weights."""
    generator = seeded(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=F64, generator=generator)

    seen, actions, rewards, following = (
        normal(num_rows, num_inputs),
        normal(num_rows, num_components).tanh(),
        normal(num_rows),
        normal(num_rows, num_inputs),
    )
    terminated = torch.rand(num_rows, generator=generator) < 0.3
    span = torch.randint(1, 4, (num_rows,), generator=generator)
    return Transitions(
        observations=seen,
        actions=actions,
        rewards=rewards,
        next_observations=following,
        terminated=terminated,
        discounts=0.9 ** span.to(F64),
        later=(0.9 * (span > 1) + 0.81 * (span > 2)).to(F64),
        later_logp=torch.where(span > 1, rewards * seen[:, 0], 0),
        weights=torch.rand(num_rows, dtype=F64, generator=generator) + 0.5,
        index=torch.arange(num_rows),
    )


def plain(optimizer: Optimizer) -> Optimizer:
    """Steps of length 1 along the gradient in place of Adam's, so that the gradient is what changes."""
    return torch.optim.SGD(optimizer.param_groups[0]["params"], lr=1.0)


def gradient(module: nn.Module, step: Callable[[], object]) -> list[Tensor]:
    """The gradient of each parameter of `module` that one `step` of a plain optimiser followed."""
    before = [p.detach().clone() for p in module.parameters()]
    step()
    return [old - new.detach() for old, new in zip(before, module.parameters(), strict=True)]


def same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    assert max(float(g.abs().max()) for g in expected) > 1e-3
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-8)


def apart(found: Sequence[Tensor], planted: Sequence[Tensor]) -> bool:
    """Whether a planted bug shows."""
    return max(float((f - p).abs().max()) for f, p in zip(found, planted, strict=True)) > 1e-3


def resumes(make: Callable[[], Any], update: Callable[[Any, int], Any]) -> None:
    """Five updates are two, a save, a load into a fresh state, and three more: to the bit."""
    whole, half = make(), make()
    for i in range(5):
        update(whole, i)
    for i in range(2):
        update(half, i)
    saved = off_policy.tensors(half)
    update(half, 2)
    rest = make()
    off_policy.load(rest, saved)
    for i in range(2, 5):
        update(rest, i)
    expected, found = off_policy.tensors(whole), off_policy.tensors(rest)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert expected["num_updates"] == 5
