"""The group family as a table: each algorithm is one line. `docs/algorithms/grpo.md` prints it.

The seventh choice, weights between sampler and policy, is none in every line: `MISMATCH` has the others.
"""

from torch import Tensor

from gradhat.algorithms.grpo import Counts, Row, Settings
from gradhat.estimators import kl
from gradhat.estimators.group import group_mean, group_std, leave_one_out, no_scale
from gradhat.estimators.ratios import on_policy, token
from gradhat.losses import mismatch, reduce, surrogate


def _reinforce(log_ratio: Tensor, adv: Tensor, _settings: Settings) -> Tensor:
    return surrogate.reinforce(log_ratio, adv)


def _clipped(log_ratio: Tensor, adv: Tensor, settings: Settings) -> Tensor:
    return surrogate.clipped(log_ratio, adv, low=settings.clip_low, high=settings.clip_high)


def _per_trajectory(mask: Tensor, counts: Counts) -> Tensor:
    return reduce.per_trajectory(mask, num_trajectories=counts.num_trajectories)


def _per_sequence(mask: Tensor, counts: Counts) -> Tensor:
    return reduce.per_sequence(mask, num_sequences=counts.num_trajectories)


def _constant(mask: Tensor, counts: Counts) -> Tensor:
    return reduce.constant(mask, num_sequences=counts.num_trajectories, length=counts.length)


def _truncated(logp_old: Tensor, logp: Tensor, mask: Tensor, settings: Settings) -> Tensor:
    return mismatch.sampler_weight(logp_old, logp, mask, cap=settings.mismatch_cap)


def _masked(logp_old: Tensor, logp: Tensor, mask: Tensor, settings: Settings) -> Tensor:
    low, high = settings.mismatch_low, settings.mismatch_high
    return mismatch.sampler_weight_masked(logp_old, logp, mask, low=low, high=high)


MISMATCH = {"none": None, "truncated": _truncated, "masked": _masked}
"""What a row can weigh steps with where the sampler and the policy disagree: a choice for every row."""

# fmt: off
FAMILY = {
    #              baseline       scale      ratio      surrogate   reduce           KL in reward, loss
    "rloo":    Row(leave_one_out, no_scale,  on_policy, _reinforce, _per_trajectory, kl.k1, None),
    "grpo":    Row(group_mean,    group_std, token,     _clipped,   _per_sequence,   None,  kl.k3),
    "dr_grpo": Row(group_mean,    no_scale,  token,     _clipped,   _constant,       None,  None),
}
# fmt: on
