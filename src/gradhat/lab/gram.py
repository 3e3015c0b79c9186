"""Signal and noise of K gradients from their dot products: the Gram matrix `[K, K]`.

Letters: `K` batches, `P` chosen parameters, `E` estimators.
"""

import itertools
import math
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gradhat.errors import ModelError
from gradhat.intervals import Interval, student_t
from gradhat.policies.policy import Policy
from gradhat.trajectories import Trajectories

MEMORY = 1 << 30
"""Bytes of gradients held at once. What does not fit is computed in further passes over the batches."""
HALVINGS = 1000
"""Most ways of cutting K batches in two that are looked at; of more, so many are drawn at random."""
COLUMNS = 1 << 18
"""Parameters whose products are summed at once, in float64."""


def signal(gram: Tensor) -> Tensor:
    """Return the unbiased estimate of ‖E ĝ‖² from `[K, K]`: the mean product of two different batches."""
    size = len(gram)
    return (gram.sum() - gram.trace()) / (size * (size - 1))


def noise(gram: Tensor) -> Tensor:
    """Return the unbiased estimate of tr Cov(ĝ) of one batch from `[K, K]`."""
    return (gram.trace() / len(gram) - signal(gram)).clamp(min=0)


def cosine(gram: Tensor, left: Tensor) -> Tensor:
    """Return the mean cosine between the summed gradients of two halves of `[K, K]`, over halvings `left`.

    `left` `[ways, K]` is 1 for the first half, else 0. A half that carries no gradient counts as cosine 0.
    """
    right = 1 - left
    product, left_square, right_square = (
        ((a @ gram) * b).sum(-1) for a, b in ((left, right), (left, left), (right, right))
    )
    lengths = (left_square * right_square).clamp(min=torch.finfo(gram.dtype).tiny).sqrt()
    return (product / lengths).mean()


def halvings(size: int) -> Tensor:
    """Return ways to cut `size` batches in two, float64 `[ways, size]`: 1 for the first half, else 0.

    With an odd number one half has a batch more. Up to `HALVINGS` ways it is all of them.
    """
    half = size // 2
    if math.comb(size, half) <= HALVINGS:
        picks = list(itertools.combinations(range(size), half))
        # An even number is cut in the same two halves twice: keep those with batch 0 on the left.
        chosen = torch.tensor([p for p in picks if size % 2 or p[0] == 0])
    else:
        order = torch.rand(HALVINGS, size, generator=torch.Generator().manual_seed(0)).argsort(-1)
        chosen = order[:, :half]
    return torch.zeros(len(chosen), size, dtype=torch.float64).scatter_(1, chosen, 1.0)


def mean(values: Sequence[float]) -> Interval:
    """Return the mean of one value for each batch."""
    column = torch.tensor(values, dtype=torch.float64)
    return jackknife(lambda kept: float(column[kept].mean()), len(values))


def jackknife(statistic: Callable[[Tensor], float], size: int) -> Interval:
    """Return `statistic` (of the numbers of the batches kept, int64 `[n]`) with its 95 % interval.

    Leaves out one batch at a time (Tukey 1958): error² = (K − 1) / K · Σ_k (θ_(k) − mean θ_(·))², with
    Student's t of K − 1 degrees. Of a mean it is the usual interval. A bootstrap would draw a batch twice and
    count its noise as signal. Assumes independent batches and a smooth statistic.
    """
    everything = torch.arange(size)
    value = statistic(everything)
    without = torch.tensor([statistic(everything[everything != k]) for k in range(size)], dtype=torch.float64)
    error = math.sqrt(float((without - without.mean()).square().sum()) * (size - 1) / size)
    half = student_t(size - 1) * error
    return Interval(value, value - half, value + half)


def gram_matrices(
    policy: Policy,
    batches: Sequence[Trajectories],
    weights: Sequence[Sequence[Tensor]],
    chosen: Sequence[nn.Parameter],
    *,
    memory: int,
) -> list[Tensor]:
    """Return for each estimator the dot products float64 `[K, K]` of ĝ_k = Σ_it w_it ∇ log π(a_it | s_it).

    `weights` holds for each estimator and batch a `[B, T]`. As many estimators share a forward as fit into
    `memory` bytes, and at least one. The parameters' own gradients are left alone.
    """
    wide = torch.promote_types(chosen[0].dtype, torch.float32)
    num_parameters = sum(p.numel() for p in chosen)
    at_once = max(1, memory // (len(batches) * num_parameters * wide.itemsize))
    grams: list[Tensor] = []
    with _only(policy.module, chosen):
        for start in range(0, len(weights), at_once):
            part = weights[start : start + at_once]
            vectors = torch.zeros(len(part), len(batches), num_parameters, dtype=wide)
            for k, batch in enumerate(batches):
                _add_gradients(policy, batch, torch.stack([w[k] for w in part]), chosen, vectors[:, k])
            grams += [_gram(v) for v in vectors]
    if not all(bool(gram.isfinite().all()) for gram in grams):
        raise ModelError(
            "The gradients of the chosen parameters were asked for, and found not finite. The weights are "
            "damaged or have diverged: use an earlier checkpoint."
        )
    return grams


def _add_gradients(
    policy: Policy, batch: Trajectories, weights: Tensor, chosen: Sequence[nn.Parameter], out: Tensor
) -> None:
    """Add to `out` `[E, P]` the gradients of one batch under the weights `[E, B, T]`."""
    active = (weights != 0).any(0).any(-1).nonzero()[:, 0]
    carries = batch.select(active)
    for rows in policy.split(carries):
        logp = policy.evaluate(carries.select(rows)).logp
        for vector, weight in zip(out, weights[:, active[rows]].to(logp.dtype), strict=True):
            if bool(weight.any()):
                grads = torch.autograd.grad(logp, chosen, weight, retain_graph=True, materialize_grads=True)
                vector += torch.cat([g.flatten() for g in grads])


@contextmanager
def _only(module: nn.Module, chosen: Iterable[nn.Parameter]) -> Generator[None, None, None]:
    """Let gradients flow to `chosen` alone, so that the graph begins where they are."""
    before = [(p, p.requires_grad) for p in module.parameters()]
    module.requires_grad_(False)
    for p in chosen:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p, required in before:
            p.requires_grad_(required)


def _gram(vectors: Tensor) -> Tensor:
    """Return the dot products of `[K, P]`, summed in float64: the signal is a small part of them."""
    total = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
    for part in vectors.split(COLUMNS, dim=1):
        wide = part.double()
        total += wide @ wide.T
    return total
