"""TRL as an oracle: its losses, restated as plain formulas, on random ragged batches in float64.

Restated from TRL 1.16.0 (Apache-2.0), trl/trainer/grpo_trainer.py; each function names its lines. Where the
value is meant up to the sign (all but `cispo`, `dppo`), it is compared as well as the gradient.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from gradhat.estimators import group, kl, ratios
from gradhat.losses import mismatch, reduce, surrogate

F64 = torch.float64
GROUPS, SIZE, LENGTH = 6, 4, 12
TOTAL = GROUPS * SIZE
LOW, HIGH, DELTA = 0.2, 0.28, 2.5
TAU_POSITIVE, TAU_NEGATIVE = 1.0, 1.05


class Batch(NamedTuple):
    mask: Tensor
    logp: Tensor
    old: Tensor
    ref: Tensor
    sampled: Tensor
    rewards: Tensor
    group: Tensor

    def select(self, rows: Tensor) -> "Batch":
        return Batch(*(x[rows] for x in self))


def ragged(seed: int) -> Batch:
    """A batch with ratios on both sides of every bound, an empty answer and a silent group."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, LENGTH + 1, (TOTAL,), generator=random)
    lengths[5 + seed] = 0
    mask = (torch.arange(LENGTH) < lengths[:, None]).to(F64)
    logp, *noise = (torch.randn(TOTAL, LENGTH, generator=random, dtype=F64) for _ in range(4))
    drift = 0.4 * torch.randn(TOTAL, 1, generator=random, dtype=F64)
    logp = logp - 4
    rewards = torch.randint(0, 3, (TOTAL,), generator=random).to(F64)
    rewards[:SIZE] = 0.7
    return Batch(
        mask=mask,
        logp=logp,
        old=logp + 0.6 * noise[0] + drift,
        ref=logp + 0.5 * noise[1],
        sampled=logp + 0.6 * noise[0] + drift + 0.5 * noise[2],
        rewards=rewards,
        group=torch.arange(GROUPS).repeat_interleave(SIZE),
    )


# --- TRL ---------------------------------------------------------------------------------------------------


def trl_advantages(rewards: Tensor, scale_rewards: str) -> Tensor:
    """TRL 1.16, trl/trainer/grpo_trainer.py:2766-2787."""
    mean = rewards.view(-1, SIZE).mean(1).repeat_interleave(SIZE)
    std = rewards.view(-1, SIZE).std(1).repeat_interleave(SIZE)
    if scale_rewards == "batch":
        std = rewards.std().expand_as(rewards)
    return rewards - mean if scale_rewards == "none" else (rewards - mean) / (std + 1e-4)


def trl_ratio(batch: Batch, logp: Tensor, level: str) -> Tensor:
    """TRL 1.16, trl/trainer/grpo_trainer.py:3083-3095."""
    log_ratio = logp - batch.old
    if level == "sequence":
        log_ratio = ((log_ratio * batch.mask).sum(-1) / batch.mask.sum(-1).clamp(min=1.0)).unsqueeze(-1)
    return torch.exp(log_ratio)


def trl_cispo(coef_1: Tensor, adv: Tensor, logp: Tensor) -> Tensor:
    """TRL 1.16, trl/trainer/grpo_trainer.py:3110-3111; its bound is that of the ratio itself."""
    return -torch.clamp(coef_1, max=1 + HIGH).detach() * adv * logp


def trl_clipped(coef_1: Tensor, adv: Tensor, logp: Tensor, delta: float | None = None) -> Tensor:
    """TRL 1.16, trl/trainer/grpo_trainer.py:3113-3120."""
    coef_2 = torch.clamp(coef_1, 1 - LOW, 1 + HIGH)
    if delta is not None:
        coef_1 = torch.clamp(coef_1, max=delta)
    return -torch.min(coef_1 * adv, coef_2 * adv)


def trl_sapo(coef_1: Tensor, adv: Tensor, logp: Tensor) -> Tensor:
    """TRL 1.16, trl/trainer/grpo_trainer.py:3122-3124."""
    tau = torch.where(adv > 0, torch.tensor(TAU_POSITIVE, dtype=F64), torch.tensor(TAU_NEGATIVE, dtype=F64))
    return -torch.sigmoid(tau * (coef_1 - 1)) * 4 / tau * adv


def trl_k3(batch: Batch, logp: Tensor) -> Tensor:
    """TRL 1.16, trl/trainer/grpo_trainer.py:3100-3102."""
    return torch.exp(batch.ref - logp) - (batch.ref - logp) - 1


class Split(NamedTuple):
    """How TRL cuts a step: processes, whose gradients are averaged, and micro-batches, which are summed."""

    processes: int
    accumulation: int


def trl_reduce(loss_type: str, per_token: Tensor, mask: Tensor, num_items: Tensor, split: Split) -> Tensor:
    """TRL 1.16, trl/trainer/grpo_trainer.py:3153-3173, one micro-batch of one process in training."""
    if loss_type in ("grpo", "sapo"):
        return ((per_token * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean() / split.accumulation
    if loss_type == "bnpo":
        return (per_token * mask).sum() / mask.sum().clamp(min=1.0) / split.accumulation
    if loss_type == "dr_grpo":
        return (per_token * mask).sum() / (per_token.size(0) * LENGTH) / split.accumulation
    return (per_token * mask).sum() / (num_items.clamp(min=1.0) / split.processes)


def trl_sampling_weight(batch: Batch, mode: str) -> Tensor:
    """TRL 1.16, trl/trainer/grpo_trainer.py:2662-2703, the modes per token."""
    ratio = torch.exp((batch.old - batch.sampled) * batch.mask)
    if mode == "token_truncate":
        return torch.clamp(ratio, max=1.4)
    return ratio.masked_fill((ratio < 0.6) | (ratio > 1.4), value=0.0)


# --- the pairs ---------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """One algorithm twice: TRL's choices, and ours."""

    scale_rewards: str
    level: str
    per_token: Callable[[Tensor, Tensor, Tensor], Tensor]
    loss_type: str
    scale: Callable[[Tensor, Tensor], Tensor]
    ratio: Callable[[Tensor, Tensor, Tensor], Tensor]
    surrogate: Callable[[Tensor, Tensor], Tensor]
    weights: Callable[[Tensor], Tensor]


def dapo_weights(mask: Tensor) -> Tensor:
    return reduce.per_token(mask, num_tokens=int(mask.sum()))


per_sequence = partial(reduce.per_sequence, num_sequences=TOTAL)
constant = partial(reduce.constant, num_sequences=TOTAL, length=LENGTH)
clipped = partial(surrogate.clipped, low=LOW, high=HIGH)
dual = partial(surrogate.dual_clipped, low=LOW, high=HIGH, dual=DELTA)
cispo = partial(surrogate.clipped_weight, low=1.0, high=HIGH)
sapo = partial(surrogate.soft_gate, tau_positive=TAU_POSITIVE, tau_negative=TAU_NEGATIVE)
two_sided = partial(trl_clipped, delta=DELTA)
std, all_std, no_scale = group.group_std, group.batch_std, group.no_scale
token, sequence = ratios.token, ratios.sequence

# fmt: off
PAIRS = {
    "grpo":      Pair("group", "token",    trl_clipped, "grpo",    std,      token,    clipped, per_sequence),
    "grpo_all":  Pair("batch", "token",    trl_clipped, "grpo",    all_std,  token,    clipped, per_sequence),
    "two_sided": Pair("group", "token",    two_sided,   "grpo",    std,      token,    dual,    per_sequence),
    "gspo":      Pair("group", "sequence", trl_clipped, "grpo",    std,      sequence, clipped, per_sequence),
    "dr_grpo":   Pair("none",  "token",    trl_clipped, "dr_grpo", no_scale, token,    clipped, constant),
    "dapo":      Pair("group", "token",    trl_clipped, "dapo",    std,      token,    clipped, dapo_weights),
    "dapo_seq":  Pair("group", "sequence", trl_clipped, "dapo",    std,      sequence, clipped, dapo_weights),
    "cispo":     Pair("group", "token",    trl_cispo,   "cispo",   std,      token,    cispo,   dapo_weights),
    "sapo":      Pair("group", "token",    trl_sapo,    "sapo",    std,      token,    sapo,    per_sequence),
}
# fmt: on


def trl_step(pair: Pair, batch: Batch, logp: Tensor, beta: float, split: Split, mode: str = "") -> Tensor:
    """The loss of a whole optimiser step: the mean over processes of the sum over their micro-batches."""
    adv = trl_advantages(batch.rewards, pair.scale_rewards)[:, None]
    total, num_items = torch.zeros((), dtype=F64), batch.mask.sum()
    for rows in torch.arange(TOTAL).chunk(split.processes * split.accumulation):
        part, x = batch.select(rows), logp[rows]
        per_token = pair.per_token(trl_ratio(part, x, pair.level), adv[rows], x)
        if mode:  # trl/trainer/grpo_trainer.py:3146-3147
            per_token = per_token * trl_sampling_weight(part, mode)
        per_token = per_token + beta * trl_k3(part, x)  # trl/trainer/grpo_trainer.py:3149-3150
        total = total + trl_reduce(pair.loss_type, per_token, part.mask, num_items, split)
    return total / split.processes


def our_step(pair: Pair, batch: Batch, logp: Tensor, beta: float, sampling: Tensor | float = 1.0) -> Tensor:
    adv = batch.rewards - group.group_mean(batch.rewards, batch.group)
    adv = adv / pair.scale(batch.rewards, batch.group)
    objective = pair.surrogate(pair.ratio(logp, batch.old, batch.mask), adv[:, None])
    objective = objective * sampling - beta * kl.k3(logp, batch.ref)
    return -(pair.weights(batch.mask) * objective).sum()


def both(
    ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], batch: Batch
) -> tuple[float, float]:
    """Compare the gradients, see that there is one, and return both losses."""
    x, y = batch.logp.clone().requires_grad_(), batch.logp.clone().requires_grad_()
    our_loss, their_loss = ours(x), theirs(y)
    our_loss.backward()
    their_loss.backward()
    assert x.grad is not None and x.grad.abs().max() > 1e-3
    torch.testing.assert_close(x.grad, y.grad, atol=1e-10, rtol=0)
    return our_loss.item(), their_loss.item()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_batch_reaches_every_corner(seed: int) -> None:
    batch = ragged(seed)
    adv = trl_advantages(batch.rewards, "group")[:, None]
    for level, beyond in (("token", DELTA), ("sequence", 1 + HIGH)):
        ratio = trl_ratio(batch, batch.logp, level)
        own = batch.mask.bool() if level == "token" else batch.mask.any(-1, keepdim=True)
        for side in (ratio < 1 - LOW, ratio > 1 + HIGH, ratio > beyond):
            for sign in (adv > 0, adv < 0):
                assert (own & side & sign).any()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("split", [Split(1, 1), Split(1, 3), Split(2, 3)])
@pytest.mark.parametrize("beta", [0.0, 0.04])
@pytest.mark.parametrize("name", PAIRS)
def test_the_step_is_that_of_trl(name: str, beta: float, split: Split, seed: int) -> None:
    pair, batch = PAIRS[name], ragged(seed)
    ours, theirs = both(
        lambda x: our_step(pair, batch, x, beta), lambda y: trl_step(pair, batch, y, beta, split), batch
    )
    if name != "cispo":  # TRL multiplies by log π, we by the log-ratio: another value, the same gradient
        assert ours == pytest.approx(theirs, abs=1e-10)


@pytest.mark.parametrize("scale_rewards", ["group", "batch", "none"])
def test_the_advantages_are_those_of_trl(scale_rewards: str) -> None:
    batch = ragged(0)
    scale = {"group": group.group_std, "batch": group.batch_std, "none": group.no_scale}[scale_rewards]
    ours = (batch.rewards - group.group_mean(batch.rewards, batch.group)) / scale(batch.rewards, batch.group)
    torch.testing.assert_close(ours, trl_advantages(batch.rewards, scale_rewards), atol=1e-10, rtol=0)
    assert not ours[:SIZE].any() and ours[SIZE:].abs().max() > 0.1


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask"])
@pytest.mark.parametrize("name", ["dapo", "grpo"])
def test_sampler_weights_are_those_of_trl(mode: str, name: str) -> None:
    pair, batch = PAIRS[name], ragged(0)
    cut = (batch.old, batch.sampled, batch.mask)
    weight = {
        "token_truncate": mismatch.sampler_weight(*cut, cap=1.4),
        "token_mask": mismatch.sampler_weight_masked(*cut, low=0.6, high=1.4),
    }[mode]
    ours, theirs = both(
        lambda x: our_step(pair, batch, x, 0.04, weight),
        lambda y: trl_step(pair, batch, y, 0.04, Split(2, 3), mode),
        batch,
    )
    assert ours == pytest.approx(theirs, abs=1e-10)


def test_bnpo_is_per_token_in_one_piece_and_another_loss_in_several() -> None:
    # bnpo divides by the tokens of the micro-batch at hand: the step depends on how it is cut.
    bnpo, batch = PAIRS["dapo"]._replace(loss_type="bnpo"), ragged(0)
    ours, theirs = both(
        lambda x: our_step(bnpo, batch, x, 0.04), lambda y: trl_step(bnpo, batch, y, 0.04, Split(1, 1)), batch
    )
    assert ours == pytest.approx(theirs, abs=1e-10)
    whole, cut = (batch.logp.clone().requires_grad_() for _ in range(2))
    trl_step(bnpo, batch, whole, 0.04, Split(1, 1)).backward()
    trl_step(bnpo, batch, cut, 0.04, Split(1, 3)).backward()
    assert whole.grad is not None and cut.grad is not None
    assert (whole.grad - cut.grad).norm() > 0.03 * whole.grad.norm()


# --- divergence masks --------------------------------------------------------------------------------------


def trl_divergence_mask(kind: str, logp: Tensor, old: Tensor, adv: Tensor) -> Tensor:
    """TRL at 06d22b6, trl/experimental/dppo/dppo_trainer.py, DPPOTrainer._compute_divergence_mask."""
    p, q = logp.exp(), old.exp()
    divergence = (p - q).abs()
    if kind == "kl":
        rest = torch.log1p(-q.clamp(max=1 - 1e-7)) - torch.log1p(-p.clamp(max=1 - 1e-7))
        divergence = q * (old - logp) + (1 - q) * rest
    too_high = (divergence > 0.01) & (p > q)
    too_low = (divergence > 0.005) & (p < q)
    return torch.where(adv > 0, ~too_high, ~too_low)


@pytest.mark.parametrize("kind", ["tv", "kl"])
@pytest.mark.parametrize("cap", [1.5, 20.0])
def test_divergence_masks_are_those_of_trl(kind: str, cap: float) -> None:
    """TRL at 06d22b6, trl/experimental/dppo/dppo_trainer.py, DPPOTrainer._compute_loss."""
    batch = ragged(0)
    adv = trl_advantages(batch.rewards, "group")[:, None]
    mask_of = {"tv": surrogate.tv_mask, "kl": surrogate.kl_mask}[kind]
    dropped = ~mask_of(batch.logp, batch.sampled, adv, low=0.005, high=0.01) & batch.mask.bool()
    assert 0 < dropped.sum() < 0.9 * batch.mask.sum()

    def theirs(y: Tensor) -> Tensor:
        ratio = torch.exp((y - batch.sampled).clamp(max=math.log(cap))).detach()
        per_token = -adv * ratio * trl_divergence_mask(kind, y, batch.sampled, adv).to(F64) * y
        return (per_token * batch.mask).sum() / batch.mask.sum()

    def capped(x: Tensor) -> Tensor:
        log_ratio = ratios.token(x, batch.sampled, batch.mask)
        keep = mask_of(x, batch.sampled, adv, low=0.005, high=0.01)
        objective = torch.where(keep, surrogate.clipped_weight(log_ratio, adv, low=1.0, high=cap - 1), 0)
        return -(dapo_weights(batch.mask) * objective).sum()

    def plain(x: Tensor) -> Tensor:
        log_ratio = ratios.token(x, batch.sampled, batch.mask)
        keep = mask_of(x, batch.sampled, adv, low=0.005, high=0.01)
        objective = surrogate.divergence_masked(log_ratio, adv, keep)
        return -(dapo_weights(batch.mask) * objective).sum()

    both(capped, theirs, batch)
    if cap == 20.0:  # no ratio of this batch is beyond it
        both(plain, theirs, batch)
