"""What other policies say of the same actions: a reference, and the policy itself before it moves."""

from dataclasses import replace

import torch
from torch import Tensor

from gradhat.policies.policy import Policy
from gradhat.trajectories import Trajectories


def refer(reference: Policy, trajectories: Trajectories) -> Trajectories:
    """Attach `logp_ref` `[B, T]`, the log-probability of each action under `reference`."""
    return replace(trajectories, logp_ref=_logp_under(reference, trajectories))


def recall(policy: Policy, trajectories: Trajectories) -> Trajectories:
    """Attach `logp_old` `[B, T]`, the log-probability of each action under `policy` as it is now.

    Call it before the first step on a batch, where the sampler's `logp` may not be the policy's.
    """
    return replace(trajectories, logp_old=_logp_under(policy, trajectories))


def old(trajectories: Trajectories) -> Tensor:
    """Return log π `[B, T]` of the policy that is improved upon: as it was recalled, else as was sampled."""
    return trajectories.logp if trajectories.logp_old is None else trajectories.logp_old


def _logp_under(policy: Policy, trajectories: Trajectories) -> Tensor:
    found = torch.zeros_like(trajectories.logp)
    with torch.no_grad():
        for rows in policy.split(trajectories):
            found[rows] = policy.evaluate(trajectories.select(rows)).logp.to(found.dtype)
    return found
