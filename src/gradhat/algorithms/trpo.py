"""TRPO: the longest step along the natural gradient that stays within a KL ball.

    maximise  L(θ) = 1/N · Σ_t π_θ(a_t | s_t) / π_old(a_t | s_t) · A_t
    so that   D(θ) = 1/N · Σ_t KL(π_old(· | s_t) ‖ π_θ(· | s_t)) ≤ δ

Near π_old, L rises by g·x and D by xᵀFx / 2, with g = ∇L and F the Hessian of D, the Fisher matrix. So
x = √(2δ / dᵀFd) · d with F d = g; then it is shortened until L has really risen and D ≤ δ really holds.
The critic is fitted beside, by steps of an optimiser. A_t and its targets are those of `critic.credit`.

Source: Schulman et al. 2015, eq. 14 and appendix C; GAE for the credit: Schulman et al. 2016. The size of
the advantages drops out of x. Assumes that the whole batch fits into memory at once, and a policy that can be
differentiated twice. Failure case: D is a mean, so a few states may move far.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from gradhat.algorithms import critic
from gradhat.algorithms.ascend import Optimizer, agreement
from gradhat.estimators import ratios
from gradhat.losses import reduce, surrogate
from gradhat.policies.policy import Critic, Evaluation, ExplicitPolicy
from gradhat.trajectories import Trajectories

CG_TOLERANCE = 1e-10
"""Conjugate gradient stops when |g − F d|² has fallen to this share of |g|²."""


class ExplicitActorCritic(ExplicitPolicy, Critic, Protocol):
    """A policy with whole distributions, and values."""


@dataclass(frozen=True)
class Settings:
    """The numbers of TRPO."""

    gamma: float = 0.99
    """Discount γ, of `critic.credit`."""
    lam: float = 0.95
    """Trace λ, of `critic.credit`: 1 trusts rewards only, 0 the critic's next value."""
    max_kl: float = 0.01
    """δ, the largest divergence of a step, in nats."""
    cg_iterations: int = 10
    """Products with F at most, to solve F d = g."""
    cg_damping: float = 0.1
    """Added to the diagonal of F, which is singular or nearly so. It shortens the step."""
    backtrack_coef: float = 0.8
    """What a step that is refused is multiplied by."""
    backtrack_steps: int = 10
    """Steps that are tried before the policy stays as it was."""
    value_epochs: int = 10
    """Passes of the critic over the batch."""
    value_minibatches: int = 4
    """Optimiser steps in each."""


class Search(NamedTuple):
    """What the line search found. `accepted`: if not, the parameters are where they were."""

    accepted: bool
    backtracks: int
    """Steps that were refused."""
    improvement: float
    """Of L."""
    kl: float
    """D, in nats."""


def update(
    policy: ExplicitActorCritic,
    optimizer: Optimizer,
    trajectories: Trajectories,
    settings: Settings,
    generator: torch.Generator,
) -> dict[str, float]:
    """Move the policy by one natural step and the critic by `optimizer`; return metrics."""
    explained = critic.explained_variance(trajectories)
    metrics = natural_step(policy, replace(trajectories, next_observations=None), settings)
    fitted = critic.fit(
        policy,
        optimizer,
        trajectories,
        num_epochs=settings.value_epochs,
        num_minibatches=settings.value_minibatches,
        generator=generator,
    )
    return metrics | fitted | {"explained_variance": explained}


def natural_step(policy: ExplicitPolicy, trajectories: Trajectories, settings: Settings) -> dict[str, float]:
    """Move the parameters that L depends on, or leave them where no step is accepted; return metrics."""
    adv, mask = critic.credited(trajectories)[0], trajectories.mask
    weight = reduce.per_token(mask.to(adv.dtype), num_tokens=int(mask.sum()))
    # A copy: log σ may be a parameter itself, which would move along with the search.
    old = policy.distribution(trajectories).detach()

    def gain(evaluation: Evaluation) -> Tensor:
        log_ratio = ratios.token(evaluation.logp, trajectories.logp, mask)
        return (surrogate.importance_weighted(log_ratio, adv) * weight).sum()

    def divergence() -> Tensor:
        return (old.kl(policy.distribution(trajectories)) * weight).sum()

    evaluation = policy.evaluate(trajectories)
    before = gain(evaluation)
    parameters, gradient = reached(policy.module, before)
    fisher = fisher_product(divergence(), parameters)

    def damped(vector: Tensor) -> Tensor:
        return fisher(vector) + settings.cg_damping * vector

    direction = conjugate_gradient(damped, gradient, num_iterations=settings.cg_iterations)
    # Without any gradient the curvature is 0, and so is the step.
    curvature = (direction @ damped(direction)).clamp(min=torch.finfo(direction.dtype).tiny)
    step = direction * (2 * settings.max_kl / curvature).sqrt()

    def measure() -> tuple[float, float]:
        return gain(policy.evaluate(trajectories)).item() - before.item(), divergence().item()

    found = line_search(parameters, step, measure, settings)
    return {
        "diagnostics/surrogate_loss": -before.item(),
        "entropy": (evaluation.entropy.detach() * weight).sum().item(),
        "grad_norm": gradient.norm().item(),
        **agreement((evaluation.logp.detach() - trajectories.logp)[mask]),
        **{f"trust_region/{name}": float(number) for name, number in found._asdict().items()},
    }


def reached(module: nn.Module, objective: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the parameters that `objective` depends on, and its gradient by them as one vector `[P]`."""
    every = [p for p in module.parameters() if p.requires_grad]
    gradients = cast("Sequence[Tensor | None]", torch.autograd.grad(objective, every, allow_unused=True))
    pairs = [(p, g) for p, g in zip(every, gradients, strict=True) if g is not None]
    return [p for p, _ in pairs], torch.cat([g.flatten() for _, g in pairs])


def fisher_product(divergence: Tensor, parameters: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """Return v ↦ F v, `[P]` → `[P]`, where F is the Hessian of `divergence` at the present parameters.

    Source: Pearlmutter 1994: F v = ∇(∇D · v), so F itself is never made.
    """
    slope = _flat(torch.autograd.grad(divergence, parameters, create_graph=True))

    def product(vector: Tensor) -> Tensor:
        return _flat(torch.autograd.grad(slope @ vector, parameters, retain_graph=True))

    return product


def conjugate_gradient(product: Callable[[Tensor], Tensor], wanted: Tensor, *, num_iterations: int) -> Tensor:
    """Return x with F x ≈ `wanted`, `[P]`, from products with F, symmetric and positive definite.

    Source: Hestenes & Stiefel 1952. Exact after P iterations, but for rounding.
    """
    x, residual = torch.zeros_like(wanted), wanted.clone()
    search, size = residual, residual @ residual
    enough = CG_TOLERANCE * size
    for _ in range(num_iterations):
        if size <= enough:
            break
        curved = product(search)
        rate = size / (search @ curved)
        x, residual = x + rate * search, residual - rate * curved
        before, size = size, residual @ residual
        search = residual + size / before * search
    return x


@torch.no_grad()
def line_search(
    parameters: list[Tensor], step: Tensor, measure: Callable[[], tuple[float, float]], settings: Settings
) -> Search:
    """Take `step`, or what is left of it after shortening; `measure` returns (improvement, D) as they stand.

    Accepts only what raises L and keeps D ≤ δ; a number that is not finite does neither.
    """
    start = _flat(parameters)
    for refused in range(settings.backtrack_steps):
        _move(parameters, start + settings.backtrack_coef**refused * step)
        improvement, kl = measure()
        if improvement > 0 and kl <= settings.max_kl:
            return Search(True, refused, improvement, kl)
    _move(parameters, start)
    return Search(False, settings.backtrack_steps, 0.0, 0.0)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _move(parameters: list[Tensor], flat: Tensor) -> None:
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.copy_(part.view_as(parameter))
