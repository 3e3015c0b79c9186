"""A3C: asynchronous advantage actor-critic. Workers take the steps of A2C on weights that they share.

    θ′ ← θ                                          a copy, before the batch
    g  ← ∇_θ′ of A2C's objective                    on a batch that π_θ′ lived, credit by V_θ′
    m, v, θ ← Adam's step along g                   in shared memory, without a lock

Nobody waits for anybody. So θ may have moved on when g arrives: it is then the gradient of older weights, and
`staleness` counts the steps in between. A copy or a step may also fall into the step of another worker: some
numbers are then older than their neighbours, or the increment of one of the two is lost.

Source: Mnih et al. 2016, section 4 and algorithm S3, with n-step returns and RMSProp whose statistics are
shared; here the credit is that of Schulman et al. 2016 and the statistics are Adam's. Without a lock: Recht
et al. 2011 (Hogwild!), whose proof is for steps that rarely touch the same weights; these touch all of them,
so it is measured, not proved. With one worker it is A2C, to the bit. With several no two runs are equal.
Failure case: many workers with short batches, whose gradients are many steps old.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gradhat.algorithms import a2c, critic
from gradhat.algorithms.ascend import Optimizer, Step
from gradhat.trajectories import Trajectories


class Shared(NamedTuple):
    """What all workers see, in shared memory. `P` numbers in `K` parameters, `W` workers."""

    numbers: Tensor
    """θ, and Adam's two moments m and v: `[3, P]`, in the dtype of the parameters."""
    counts: Tensor
    """Adam's number of steps, float32 `[K]`: it keeps one for each parameter."""
    versions: Tensor
    """Steps of each worker, int64 `[W]`. Each writes its own, so none is lost; their sum is θ's version."""


def share(module: nn.Module, num_workers: int) -> Shared:
    """Return a copy of the module's parameters in shared memory, with Adam's first statistics."""
    weights = nn.utils.parameters_to_vector(module.parameters()).detach()
    shared = Shared(
        numbers=torch.zeros(3, len(weights), dtype=weights.dtype).share_memory_(),
        counts=torch.zeros(len(list(module.parameters()))).share_memory_(),
        versions=torch.zeros(num_workers, dtype=torch.int64).share_memory_(),
    )
    shared.numbers[0] = weights
    return shared


def weights(shared: Shared, module: nn.Module) -> list[nn.Parameter]:
    """Return θ as parameters in the order of the module's. They are the shared memory, not copies."""
    return [nn.Parameter(part) for part in _parts(shared.numbers[0], module)]


def statistics(shared: Shared, module: nn.Module) -> list[dict[str, Tensor]]:
    """Return the state of torch's Adam for each of `weights`. They are the shared memory, not copies."""
    first, second = (_parts(moment, module) for moment in shared.numbers[1:])
    return [
        {"step": count, "exp_avg": m, "exp_avg_sq": v}
        for count, m, v in zip(shared.counts, first, second, strict=True)
    ]


def _parts(flat: Tensor, module: nn.Module) -> list[Tensor]:
    parameters = list(module.parameters())
    cut = flat.split([parameter.numel() for parameter in parameters])
    return [part.view_as(parameter) for part, parameter in zip(cut, parameters, strict=True)]


class Worker:
    """The optimiser of one worker: gradients come from its own module, steps go to the shared weights.

    `optimizer` moves `shared_weights`. What `weights` and `statistics` return is the same memory in every
    process, but the gradients beside it are each process's own.
    """

    def __init__(
        self,
        module: nn.Module,
        shared_weights: Sequence[nn.Parameter],
        optimizer: Optimizer,
        versions: Tensor,
        number: int,
    ) -> None:
        self.weights = list(module.parameters())
        self.shared_weights = shared_weights
        self.optimizer = optimizer
        self.versions = versions
        self.number = number
        self.version = 0
        """Steps that the copied weights had seen."""
        self.staleness = 0
        """Steps of other workers between the last copy and the step that followed."""

    @torch.no_grad()
    def copy(self) -> int:
        """θ′ ← θ. Return the version of θ."""
        self.version = int(self.versions.sum())
        for mine, theirs in zip(self.weights, self.shared_weights, strict=True):
            mine.copy_(theirs)
        return self.version

    def accumulate(self) -> None:
        """The gradient of every micro-batch is summed where it is, beside θ′."""

    def step(self) -> Step:
        """Move θ along the gradient of θ′. θ′ stays as it is."""
        self.staleness = int(self.versions.sum()) - self.version
        for mine, theirs in zip(self.weights, self.shared_weights, strict=True):
            theirs.grad, mine.grad = mine.grad, None
        done = self.optimizer.step()
        self.versions[self.number] += 1
        return done


def update(
    policy: critic.ActorCritic, worker: Worker, trajectories: Trajectories, settings: a2c.Settings
) -> dict[str, float]:
    """Do with one batch what a worker does; return A2C's metrics and `staleness`.

    `policy` is the worker's own: `worker.copy()` filled it before it lived the batch.
    """
    credited = critic.credit(policy, trajectories, gamma=settings.gamma, lam=settings.lam)
    metrics = a2c.update(policy, worker, credited, settings)
    return metrics | {"staleness": float(worker.staleness)}
