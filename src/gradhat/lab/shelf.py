"""The estimators on the shelf: credit from `estimators`, denominators from `losses.reduce`, as specimens."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from gradhat.estimators import gae as gae_room
from gradhat.estimators import group, returns
from gradhat.exact.choices import TUPLES
from gradhat.exact.enumerate import Batch, Outcomes, Paths
from gradhat.exact.mdp import TabularMDP, softmax_policy
from gradhat.exact.moments import Credit, Weights
from gradhat.exact.solve import evaluate, evaluate_finite, expected_return
from gradhat.lab.microscope import Specimen, World
from gradhat.losses import reduce

LAMBDA = 0.8
"""The trace of the two GAE specimens."""

Baseline = Callable[[Tensor, Tensor], Tensor]
"""(returns `[B]`, group `[B]`) → `[B]`: a baseline or a scale of `estimators.group`."""
Reduction = Credit
"""The outcomes of a batch → the weight of every step `[B, T]`."""


def shelf(world: World) -> list[Specimen]:
    """Return every estimator that says something in this world."""
    found = [*of_one(world), *of_group(), *of_positive(world), *of_batch(world)]
    silent = {
        "dropped_discount": world.mdp.gamma == 1,
        "cut_as_end": world.mdp.time_limit is None,
        # No number of trajectories is then sure to hold enough steps.
        "random_size": may_be_idle(world),
    }
    return [s for s in found if not silent.get(s.name, False)]


def of_one(world: World) -> list[Specimen]:
    """Estimators that judge a trajectory by itself."""
    gamma = world.mdp.gamma
    v = state_values(world.mdp, world.theta)
    j = float(expected_return(world.mdp, softmax_policy(world.mdp, world.theta)))
    wrong = torch.zeros_like(v)
    return [
        Specimen("total_return", "R(τ)", total_return(gamma, 0.0), "one", by_class=True),
        Specimen("return_to_go", "γ^t · reward to go", return_to_go(gamma), "one", by_class=True),
        Specimen("dropped_discount", "reward to go, no γ^t", dropped(gamma), "one", by_class=True),
        Specimen("constant_baseline", "R(τ) − J", total_return(gamma, j), "one", by_class=True),
        Specimen("value_baseline", "γ^t (to go − V(s))", against_value(gamma, v), "one"),
        Specimen("gae", f"GAE, λ = {LAMBDA:g}, V exact", gae_weights(gamma, LAMBDA, v), "one"),
        Specimen("gae_wrong_v", f"GAE, λ = {LAMBDA:g}, V = 0", gae_weights(gamma, LAMBDA, wrong), "one"),
        Specimen(
            "cut_as_end",
            "GAE, cut taken for end",
            gae_weights(gamma, LAMBDA, v, cut_ends=True),
            "one",
        ),
    ]


ALGORITHM_OF = {"leave_one_out": "rloo"}
"""What the algorithm is called whose estimator has another name here."""


def of_group() -> list[Specimen]:
    """Estimators that compare the trajectories of one start state."""
    return [
        _group("group_mean", "− group mean", group.group_mean, group.no_scale, per_trajectory),
        _group("leave_one_out", "− mean of the others", group.leave_one_out, group.no_scale, per_trajectory),
        _group("group_std", "− mean, ÷ std", group.group_mean, group.group_std, per_trajectory),
        _group("per_sequence", "− mean, ÷ length", group.group_mean, group.no_scale, per_sequence),
        _group("grpo", "− mean, ÷ std, ÷ length", group.group_mean, group.group_std, per_sequence),
        _group("per_token", "− mean, ÷ tokens", group.group_mean, group.no_scale, per_token),
        _group("dr_grpo", "− mean, ÷ constant", group.group_mean, group.no_scale, constant),
    ]


def of_positive(world: World) -> list[Specimen]:
    """Estimators that divide by a mean return: none where rewards can be negative."""
    if float(world.mdp.reward.min()) < 0:
        return []
    return [_group("max_rl", "− mean, ÷ mean", group.group_mean, group.group_mean_scale, per_trajectory)]


def of_batch(world: World) -> list[Specimen]:
    """Estimators that look at a whole batch of independent trajectories."""
    return [
        _batch("batch_mean", "− batch mean", group.group_mean, group.no_scale, per_trajectory),
        _batch("batch_std", "− batch mean, ÷ std", group.group_mean, group.group_std, per_trajectory),
        _batch("mean_over_steps", "R(τ), ÷ all steps", group.none, group.no_scale, per_token),
        Specimen(
            "random_size",
            "R(τ), ÷ random |D|",
            until_enough_steps,
            "batch",
            by_class=True,
            listing=TUPLES,
            num_samples=collected(world),
        ),
    ]


def _group(name: str, what: str, baseline: Baseline, scale: Baseline, reduction: Reduction) -> Specimen:
    weights, by_return = compared(baseline, scale, reduction), reduction is per_trajectory
    return Specimen(name, what, weights, "group", by_class=True, by_return=by_return)


def _batch(name: str, what: str, baseline: Baseline, scale: Baseline, reduction: Reduction) -> Specimen:
    """A batch is one group of trajectories with different starts."""
    of_group = compared(baseline, scale, reduction)

    def weights(batch: Outcomes) -> Tensor:
        return of_group(replace(batch, group=batch.draw))

    return Specimen(name, what, weights, "batch", by_class=True, by_return=reduction is per_trajectory)


def state_values(mdp: TabularMDP, theta: Tensor) -> Tensor:
    """Return the exact V `[T + 1, S]` of each step and state; without a horizon every step has the same."""
    policy = softmax_policy(mdp, theta)
    if mdp.horizon is None:
        return evaluate(mdp, policy).v.expand((mdp.max_steps or mdp.num_states) + 1, -1)
    return evaluate_finite(mdp, policy).v


def total_return(gamma: float, baseline: float) -> Credit:
    """Return the weights R(τ) − baseline, the same on every step."""

    def weights(batch: Outcomes) -> Tensor:
        r = returns.total(batch.rewards, real_steps(batch), gamma=gamma)
        return (r - baseline)[:, None] * per_trajectory(batch)

    return weights


def return_to_go(gamma: float) -> Credit:
    """Return the weights γ^t Σ_{u ≥ t} γ^{u − t} r_u."""
    without = dropped(gamma)
    return lambda batch: discounts(batch) * without(batch)


def dropped(gamma: float) -> Credit:
    """Return the weights Σ_{u ≥ t} γ^{u − t} r_u, as most code has it: not the gradient of J."""

    def weights(batch: Outcomes) -> Tensor:
        ended = batch.terminated | batch.truncated
        to_go = returns.to_go(batch.rewards, ended, real_steps(batch), gamma=gamma)
        return to_go * per_trajectory(batch)

    return weights


def against_value(gamma: float, v: Tensor) -> Weights:
    """Return the weights γ^t (return to go − V(s_t)), with V `[T + 1, S]`."""
    return gae_weights(gamma, 1.0, v)


def gae_weights(gamma: float, lam: float, v: Tensor, *, cut_ends: bool = False) -> Weights:
    """Return the weights γ^t A_t of generalised advantage estimation with the values `v` `[T + 1, S]`.

    A trajectory that is cut goes on from the state in which it was cut. With `cut_ends` it counts as ended
    there, with nothing behind: the mistake that one flag for both makes.
    """

    def weights(batch: Batch) -> Tensor:
        ended = batch.terminated | batch.truncated
        adv = gae_room.gae(
            batch.rewards,
            *around(v, batch.paths),
            ended if cut_ends else batch.terminated,
            ended,
            real_steps(batch),
            gamma=gamma,
            lam=lam,
        )
        return discounts(batch) * adv * per_trajectory(batch)

    return weights


def around(v: Tensor, paths: Paths) -> tuple[Tensor, Tensor]:
    """Return V(s_t) and V(s_{t+1}), both `[N, T]`, of the values `v` `[T + 1, S]`. What follows the last step
    is the state in which the trajectory ended or was cut."""
    last, time = paths.terminated | paths.truncated, torch.arange(paths.states.shape[1])
    following = torch.where(last, paths.final[:, None], paths.states.roll(-1, 1))
    return v[time, paths.states], v[time + 1, following]


def real_steps(batch: Outcomes | Paths) -> Tensor:
    """Return the steps before the end, `[B, T]`. Here the world's own steps take time and pay, as in J."""
    ended = (batch.terminated | batch.truncated).long()
    return ended.cumsum(-1) == ended


def discounts(batch: Outcomes | Paths) -> Tensor:
    """Return γ^t of every step `[B, T]`, in float64."""
    return returns.discounts(real_steps(batch).double(), gamma=batch.gamma)


def compared(baseline: Baseline, scale: Baseline, reduction: Reduction) -> Credit:
    """Return the weights (R − baseline) / scale of a group, times the weight of the reduction."""

    def weights(batch: Outcomes) -> Tensor:
        r = batch.returns()
        adv = (r - baseline(r, batch.group)) / scale(r, batch.group)
        return adv[:, None] * reduction(batch)

    return weights


def until_enough_steps(batch: Outcomes) -> Tensor:
    """Return the weights R(τ) / |D| where trajectories are collected until there are G steps or more.

    |D| depends on the lengths: the estimate is a ratio, and biased. G trajectories suffice where each has a
    step of the policy's own. Failure case: where one may have none (`may_be_idle`) a draw may be too small.
    """
    mask = batch.mask
    size = len(mask) // batch.num_draws
    lengths = mask.sum(-1).reshape(batch.num_draws, size)
    before = lengths.cumsum(-1) - lengths
    collected = (before < size).double()
    share = (collected / collected.sum(-1, keepdim=True)).flatten()
    return (batch.returns() * share)[:, None] * mask


def collected(world: World) -> Callable[[int], float] | None:
    """Return N → E|D|, the trajectories collected until there are N steps; None where they are not listed.

    One without a step is collected too: n(N) = 1 + Σ_l p_l n(N − l), solved for n(N) where l may be 0.
    """
    if world.paths is None:
        return None
    chance = world.paths.probability(world.theta_old).detach()
    lengths = torch.bincount(world.paths.mask.sum(-1), weights=chance).tolist()

    def expected(num_steps: int) -> float:
        needed = [0.0]
        for n in range(1, num_steps + 1):
            more = sum(p * needed[max(0, n - length)] for length, p in enumerate(lengths) if length)
            needed.append((1 + more) / (1 - lengths[0]))
        return needed[num_steps]

    return expected


def may_be_idle(world: World) -> bool:
    """Return whether a trajectory may end without a step of the policy's own.

    Where they are not listed: whether one may begin where the policy does not act.
    """
    if world.paths is None:
        return bool((world.mdp.start[world.mdp.terminal | ~world.mdp.own] > 0).any())
    return bool((~world.paths.mask.any(1)).any())


def per_trajectory(batch: Outcomes) -> Tensor:
    """1 / |D|."""
    return reduce.per_trajectory(_mask(batch), num_trajectories=len(batch.draw) // batch.num_draws)


def per_sequence(batch: Outcomes) -> Tensor:
    """1 / (|D| · length)."""
    return reduce.per_sequence(_mask(batch), num_sequences=len(batch.draw) // batch.num_draws)


def constant(batch: Outcomes) -> Tensor:
    """1 / (|D| · longest possible length)."""
    mask = _mask(batch)
    return reduce.constant(mask, num_sequences=len(mask) // batch.num_draws, length=mask.shape[1])


def per_token(batch: Outcomes) -> Tensor:
    """1 / (steps of the whole draw), 0 where there is none. Draws with as many steps are weighed together."""
    mask = _mask(batch)
    tokens = mask.reshape(batch.num_draws, -1).sum(-1)[batch.draw].long()
    weight = torch.zeros_like(mask)
    for count in tokens[tokens > 0].unique().tolist():
        weight[tokens == count] = reduce.per_token(mask[tokens == count], num_tokens=count)
    return weight


def _mask(batch: Outcomes) -> Tensor:
    return batch.mask.to(torch.float64)
