"""The exact mean and variance of an estimator: any function from batches to gradients.

`moments` evaluates it on every batch. Where it looks at a batch only through rewards and lengths, `counted`
gives the same numbers from classes of trajectories, and through returns alone from even fewer: with a 0/1
reward a group is a binomial, however many trajectories there are. The moments of batches drawn at random
carry the error of their mean.

Letters as in `enumerate`, and `K` classes.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gradhat.exact.choices import MULTISETS, Listing, groups, written
from gradhat.exact.enumerate import (
    CHUNK,
    DRAWS_LIMIT,
    Batch,
    Draws,
    Outcomes,
    Paths,
    Seen,
    score_dots,
    step_scores,
)

CLASSES_LIMIT = 50_000_000
"""Most numbers in the mean scores of all classes, K · T · P."""


class Moments(NamedTuple):
    """Of one draw's estimate."""

    mean: Float[Tensor, " P"]
    """E ĝ."""
    variance: float
    """The total variance: the trace of the covariance of ĝ. From a sample of draws, its unbiased estimate."""
    error: float
    """Root mean squared distance of `mean` from the true one: 0 where everything was enumerated."""


Estimator = Callable[[Batch], Tensor]
"""A batch of M draws → the gradient estimate of each, `[M, P]`."""
Weights = Callable[[Batch], Tensor]
"""A batch of M draws → the weight of every step's score, `[B, T]`."""
Credit = Callable[[Outcomes], Tensor]
"""Weights that look at rewards, lengths and ends alone."""


def weighted(weights: Weights) -> Estimator:
    """Return the estimator Σ_i Σ_t w_it ∇ log π(a_it | o_it) of a function that gives the weights w."""
    return lambda batch: batch.score(weights(batch))


def one_by_one(estimate: Callable[[Seen], Tensor]) -> Callable[[Seen], Tensor]:
    """Return a function of many draws from one that handles a single draw (`num_draws` = 1).

    What it answers, `[P]` or `[G, T]`, is put one after the other: `[M, P]` or `[M, G, T]`; `weighted` takes
    the latter with its first two axes flattened.
    """

    def together(many: Seen) -> Tensor:
        return torch.stack([estimate(many.alone(i)) for i in range(many.num_draws)])

    return together


def moments(draws: Draws, estimator: Estimator) -> Moments:
    """Return mean and total variance of the estimator.

    For draws at random both are estimates, and `error` says how good the mean is; of a single draw the
    variance is unknown, so both are infinite. ValueError if an answer is not `[M, P]` or not finite.
    """
    mean, square = torch.zeros(draws.theta.numel(), dtype=torch.float64), 0.0
    for probability, part in draws.batches():
        estimate = _finite(_shaped(estimator(part), (part.num_draws, draws.theta.numel())))
        mean += probability @ estimate
        square += float(probability @ torch.linalg.vector_norm(estimate, dim=1).square())
    return _summed(mean, square, draws.probability, draws.exact)


def tabulated(estimates: Float[Tensor, "M P"], probability: Float[Tensor, " M"], exact: bool) -> Moments:
    """Return the moments of estimates that are at hand, one for each draw, with the draws' probabilities.

    Not exact: the draws of a sample, equally likely, some of them perhaps left out with probability 0.
    Otherwise as `moments`.
    """
    estimates = _finite(_shaped(estimates, (len(probability), estimates.shape[-1])))
    square = float(probability @ torch.linalg.vector_norm(estimates, dim=1).square())
    return _summed(probability @ estimates, square, probability, exact)


def covariance(draws: Draws, estimator: Estimator) -> Float[Tensor, "P P"]:
    """Return the covariance `[P, P]` of the estimator: P² numbers, so for small θ.

    Its trace is the variance of `moments`; of a sample of draws it is the unbiased estimate, NaN for a single
    draw. ValueError as there.
    """
    mean = moments(draws, estimator).mean
    total = mean.new_zeros(len(mean), len(mean))
    for probability, part in draws.batches():
        centred = estimator(part).detach() - mean
        total += (probability[:, None] * centred).T @ centred
    return total if draws.exact else total / (1 - draws.probability.square().sum())


class Classes(NamedTuple):
    """Trajectories that share their start state and their outcome (`classes`) or their return (`totals`)."""

    theta: Float[Tensor, "O A"]
    """The logits under which the classes were averaged."""
    paths: Paths
    """One trajectory of each class, which shares with the others its start and its outcome alone."""
    probability: Float[Tensor, " K"]
    mean: Float[Tensor, "KT P"]
    """E[∇ log π(a_t | o_t) | class], `[K · T, P]`."""
    within: Float[Tensor, "K T T"]
    """What is left inside a class: the sum over θ of Cov[score_t, score_u | class]."""


def classes(paths: Paths, theta: Float[Tensor, "O A"]) -> Classes:
    """Sort the trajectories into classes and average their scores under θ.

    ValueError if K · T · P is more than `CLASSES_LIMIT`: then rewards tell the trajectories apart.
    """
    flags = torch.stack([paths.mask, paths.terminated, paths.truncated], -1).flatten(1)
    key = torch.cat([paths.states[:, :1].double(), paths.rewards, flags.double()], 1)
    return _sorted(paths, theta, key, paths, torch.arange(paths.rewards.shape[1]))


def totals(paths: Paths, theta: Float[Tensor, "O A"]) -> Classes:
    """Sort the trajectories by start state and return R(τ) alone: with a 0/1 reward there are two classes.

    For credit that is a function of the returns and the same on every step: its outcomes have one step, whose
    reward is R(τ). Lengths are not in them, and a reduction by length would see 1. ValueError as `classes`.
    """
    last = paths.terminated.any(1, keepdim=True)
    whole = replace(
        paths.select(torch.arange(len(paths))),
        states=paths.states[:, :1],
        observations=paths.observations[:, :1],
        actions=paths.actions[:, :1],
        rewards=paths.returns()[:, None],
        mask=torch.ones_like(last),
        terminated=last,
        truncated=~last,
    )
    key = torch.cat([paths.states[:, :1].double(), whole.rewards], 1)
    return _sorted(paths, theta, key, whole, torch.zeros(paths.rewards.shape[1], dtype=torch.long))


def counted(
    classes: Classes,
    credit: Credit,
    *,
    group_size: int,
    num_groups: int = 1,
    listing: Listing = MULTISETS,
    limit: int = DRAWS_LIMIT,
) -> Moments:
    """Return the moments of Σ_i Σ_t w_it ∇ log π(a_it | o_it) by counting classes of trajectories. Exact.

    The weights w `[B, T]` come from the outcomes of the draws: a class has no actions, states or
    log-probabilities that could be read. ValueError if a weight where the mask is true is not finite, or if
    there are more than `limit` batches of classes.

    With m_ct = E[score_t | class c] and u the sum of the weights per class and step of a draw:
    E ĝ = E[u] · m,   E|ĝ|² = E[u m mᵀ uᵀ] + E[Σ_i w_i Cov(score | c_i) w_iᵀ].
    """
    num_classes, num_steps = classes.paths.rewards.shape
    rows, chance = groups(
        classes.probability,
        classes.paths.states[:, 0],
        num_groups=num_groups,
        group_size=group_size,
        limit=limit,
        listing=listing,
    )
    # m mᵀ = root rootᵀ, and a root has at most K · T columns, however large θ is.
    root = torch.linalg.qr(classes.mean.T, mode="r").R.T
    weight, square = classes.mean.new_zeros(len(root)), 0.0
    size = max(1, CHUNK // max(len(root), rows.shape[1] * num_steps**2))
    for r, p in zip(rows.split(size), chance.split(size), strict=True):
        part = _outcomes(classes.paths, r, group_size)
        w = _finite(torch.where(part.mask, _shaped(credit(part), (r.numel(), num_steps)), 0))
        place = (part.draw * num_classes + r.flatten())[:, None] * num_steps + torch.arange(num_steps)
        u = w.new_zeros(len(r) * len(root)).index_add(0, place.flatten(), w.flatten()).reshape(len(r), -1)
        weight += p @ u
        inside = torch.einsum("bt,btu,bu->b", w, classes.within[r.flatten()], w).reshape(len(r), -1).sum(1)
        square += float(p @ ((u @ root).square().sum(1) + inside))
    mean = weight @ classes.mean
    return Moments(mean, max(0.0, square - float(mean.square().sum())), 0.0)


def _sorted(paths: Paths, theta: Tensor, key: Tensor, seen: Paths, column: Tensor) -> Classes:
    """Return the classes of equal `key` `[N, k]`, in which step t of `paths` counts in column `column[t]`.

    `seen` are the trajectories as credit sees them, with a step per column.
    """
    num_paths, num_steps = paths.rewards.shape
    num_columns = seen.rewards.shape[1]
    _, ids, size = torch.unique(key, dim=0, return_inverse=True, return_counts=True)
    if (total := len(size) * num_columns * theta.numel()) > CLASSES_LIMIT:
        raise ValueError(
            f"sort {num_paths} trajectories into classes: found {len(size)} classes and {written(total)} "
            f"numbers in their mean scores, the limit is {CLASSES_LIMIT}. Use fewer different rewards, a "
            "smaller world, or `moments`."
        )
    chance = paths.probability(theta).detach()
    probability = chance.new_zeros(len(size)).index_add(0, ids, chance)
    share = torch.where(probability[ids] > 0, chance / probability[ids], 0)
    mean = chance.new_zeros(len(size) * num_columns * theta.shape[0], theta.shape[1])
    products = chance.new_zeros(len(size), num_columns, num_columns)
    pick = torch.nn.functional.one_hot(column, num_columns).to(chance.dtype)
    for rows in torch.arange(num_paths).split(max(1, CHUNK // (num_steps * max(theta.shape[1], num_steps)))):
        some, weight = paths.select(rows), share[rows, None, None]
        scores = step_scores(some, theta)
        place = (ids[rows, None] * num_columns + column) * theta.shape[0] + some.observations
        mean.index_add_(0, place.flatten(), (weight * scores).flatten(0, 1))
        products.index_add_(0, ids[rows], weight * (pick.T @ score_dots(some, scores) @ pick))
    by_class = mean.reshape(len(size), num_columns, -1)
    within = products - by_class @ by_class.transpose(1, 2)
    first = torch.full_like(size, num_paths).scatter_reduce(0, ids, torch.arange(num_paths), "amin")
    return Classes(theta.detach(), seen.select(first), probability, by_class.flatten(0, 1), within)


def _outcomes(paths: Paths, rows: Tensor, group_size: int) -> Outcomes:
    """Return what came of the draws `rows` `[M, G]`."""
    flat = rows.flatten()
    return Outcomes(
        rewards=paths.rewards[flat],
        mask=paths.mask[flat],
        terminated=paths.terminated[flat],
        truncated=paths.truncated[flat],
        group=torch.arange(len(flat)) // group_size,
        draw=torch.arange(len(flat)) // rows.shape[1],
        num_draws=len(rows),
        gamma=paths.gamma,
    )


def _summed(mean: Tensor, square: float, probability: Tensor, exact: bool) -> Moments:
    """Return the moments of E ĝ and E|ĝ|². For a sample these are means over the draws in it."""
    variance = max(0.0, square - float(mean.square().sum()))
    if exact:
        return Moments(mean, variance, 0.0)
    # Of n draws with probability 1 / n each.
    one_of_n = float(probability.square().sum())
    if one_of_n == 1:
        return Moments(mean, math.inf, math.inf)
    variance = variance / (1 - one_of_n)
    return Moments(mean, variance, math.sqrt(variance * one_of_n))


def _shaped(answer: Tensor, shape: tuple[int, ...]) -> Tensor:
    if tuple(answer.shape) != shape:
        raise ValueError(
            f"the estimator returned {tuple(answer.shape)}: asked for {shape}, draw after draw. An estimator "
            "of a single draw goes through `one_by_one`."
        )
    return answer.detach().double()


def _finite(answer: Tensor) -> Tensor:
    # The sum is one pass over much memory, and not finite if a number is not.
    if not bool(answer.sum().isfinite()) and not bool(answer.isfinite().all()):
        wrong = (~answer.isfinite()).nonzero()[0].tolist()
        raise ValueError(
            f"the estimator returned {float(answer[tuple(wrong)])} at {wrong}: every number must be finite. "
            "It may divide by 0 on a batch whose rewards are all equal."
        )
    return answer
