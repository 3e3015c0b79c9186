"""∇J of a softmax policy, three independent ways, and the natural gradient.

θ is the logits `[O, A]`: π_θ(a | s) = softmax(θ[o(s)])_a. With a discount and with or without a horizon,

    ∇J = Σ_t Σ_s γ^t Pr(s_t = s) Σ_a π(a | s) A_t(s, a) ∇ log π(a | s)

Every answer is float64 and detached. ValueError as in `solve` and `mdp.softmax_policy`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from gradhat.exact.enumerate import PATHS_LIMIT, paths
from gradhat.exact.mdp import TabularMDP, softmax_policy
from gradhat.exact.solve import evaluate, evaluate_finite, expected_return

RANK_TOLERANCE = 1e-12
"""Directions of the Fisher matrix that are weaker than this, relative to the strongest, count as none."""


def by_theorem(mdp: TabularMDP, theta: Float[Tensor, "O A"]) -> Float[Tensor, "O A"]:
    """Return ∇J by the policy-gradient theorem: Σ over states that show o of d(s) π(a | s) A(s, a).

    Source: Sutton et al. 2000, theorem 1, start-state formulation. It holds in a partially observed world
    too, because A is that of the state. Where the world moves by itself the term is 0.
    """
    policy = softmax_policy(mdp, theta.detach())
    occupancy, adv = _credit(mdp, policy)
    return _by_observation(mdp, torch.einsum("ts,sa,tsa->sa", occupancy, policy, adv))


def by_autograd(mdp: TabularMDP, theta: Float[Tensor, "O A"]) -> Float[Tensor, "O A"]:
    """Return ∇J by automatic differentiation of the linear solve, or of the recursion over the horizon."""
    leaf = theta.detach().double().requires_grad_()
    return _derivative(expected_return(mdp, softmax_policy(mdp, leaf)), leaf)


def by_enumeration(
    mdp: TabularMDP, theta: Float[Tensor, "O A"], *, limit: int = PATHS_LIMIT
) -> Float[Tensor, "O A"]:
    """Return ∇J = ∇ Σ_τ p_θ(τ) R(τ), summed over every trajectory.

    ValueError if there are more than `limit`, or endlessly many, or if a time limit cuts them: J counts what
    follows, and they do not have it.
    """
    leaf = theta.detach().double().requires_grad_()
    every = paths(mdp, limit=limit)
    if bool(every.truncated.any()):
        raise ValueError(
            f"by_enumeration with time_limit={mdp.time_limit}: found trajectories that are cut before J "
            "ends. Use by_theorem, or dataclasses.replace(mdp, time_limit=None)."
        )
    return _derivative(every.probability(leaf) @ every.returns(), leaf)


def fisher(mdp: TabularMDP, theta: Float[Tensor, "O A"]) -> Float[Tensor, "P P"]:
    """Return the Fisher matrix F = Σ_s w(s) Σ_a π(a | s) ∇ log π(a | s) ∇ log π(a | s)ᵀ, P = O · A.

    Source: Kakade 2002. The weight w is the discounted occupancy of the states where the policy acts,
    normalised to sum to 1; not normalised, only the length of F⁻¹ ∇J would change. It is block diagonal by
    observation and always singular: adding a constant to the logits of an observation changes nothing.
    """
    return torch.block_diag(*_fisher_blocks(mdp, theta))


def natural(mdp: TabularMDP, theta: Float[Tensor, "O A"]) -> Float[Tensor, "O A"]:
    """Return the natural gradient F⁺ ∇J, with the pseudo-inverse of `fisher`.

    Source: Kakade 2002. In a fully observed world it is A(s, a) up to a constant per state, times the sum of
    the occupancy (Agarwal et al. 2021). Failure case: where π(a | s) falls below `RANK_TOLERANCE` the action
    is given up.
    """
    inverse = torch.linalg.pinv(_fisher_blocks(mdp, theta), rtol=RANK_TOLERANCE, hermitian=True)
    return torch.einsum("oab,ob->oa", inverse, by_theorem(mdp, theta))


def _credit(mdp: TabularMDP, policy: Tensor) -> tuple[Tensor, Tensor]:
    """Return the occupancy `[T, S]` of the states where the policy acts and A `[T, S, A]`.

    T is the horizon. Without one neither depends on the step: T = 1, and the occupancy is a sum over steps.
    """
    if mdp.horizon is None:
        values = evaluate(mdp, policy)
        return (values.occupancy * mdp.own)[None], values.adv[None]
    finite = evaluate_finite(mdp, policy)
    return finite.occupancy * mdp.own, finite.adv


def _fisher_blocks(mdp: TabularMDP, theta: Tensor) -> Tensor:
    """Return F `[O, A, A]`, one block per observation."""
    policy = softmax_policy(mdp, theta.detach())
    weight = _credit(mdp, policy)[0].sum(0)
    # Where the policy never acts there is nothing to weigh, and F is 0.
    weight = weight / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
    covariance = torch.diag_embed(policy) - policy[:, :, None] * policy[:, None, :]
    return _by_observation(mdp, weight[:, None, None] * covariance)


def _by_observation(mdp: TabularMDP, by_state: Tensor) -> Tensor:
    """Return the sums `[O, ...]` of `by_state` `[S, ...]` over the states that show each observation."""
    total = by_state.new_zeros(mdp.num_observations, *by_state.shape[1:])
    return total.index_add(0, mdp.observation, by_state)


def _derivative(objective: Tensor, theta: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(objective, theta)
    return gradient
