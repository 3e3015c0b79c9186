"""Values, occupancy and optimal policies of a finite world, exact up to rounding.

    v(s) = Σ_a π(a | s) q(s, a)        q(s, a) = Σ_s′ P(s′ | s, a) [r(s, a, s′) + γ v(s′)]
    A(s, a) = q(s, a) - v(s)           d(s) = Σ_t γ^t Pr(s_t = s)

Without a horizon these are linear equations, with one a recursion. Terminal states have value and occupancy
0. So has, where γ = 1 and there is no horizon, a state that no trajectory comes to: it need not have a value,
and counts as terminal. A policy is π(a | s) `[S, A]`, float64; `mdp.softmax_policy` makes one of logits.
Narrower numbers are refused: their rows sum to 1 only up to their own rounding. Gradient flows from every
answer of `evaluate` and `evaluate_finite` to the policy. Rewards have the unit that the world gives them.

An optimum is a deterministic policy and the value that it attains. Two actions tie where their q differ by no
more than rounding: `ULPS` of the rewards that either meets on its way, so that one huge number does not hide
small ones elsewhere. Ties go to the lowest action; with γ = 1 to the lowest that leads to an end. What is
taken for a tie costs at most 4 · `ULPS` · ε / (1 - γ) of what a trajectory pays: 4e-13 of it for γ = 0.99.

A time limit is not read: J goes on behind it.

Source: Sutton & Barto 2018, chapters 3 and 4; Puterman 1994, chapters 4 to 7. Every function raises
ValueError where the world has a horizon and the function answers for none, or the other way round.

Letters: `H` steps of a finite horizon.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gradhat.exact.mdp import TabularMDP, check_distribution, leads_to, reachable

EPSILON = torch.finfo(torch.float64).eps
"""One ulp of 1. A step that is rarer is lost in I - P."""
ULPS = 4
"""Rounding of a backup, in ulps of the absolute rewards in it."""
MAX_POLICIES = 10_000
"""Policies after which policy iteration gives up."""
MAX_SWEEPS = 100_000
"""Sweeps after which value iteration gives up."""
CHECK = 64
"""Sweeps of value iteration between two looks at its policy."""


class Values(NamedTuple):
    """Of one policy, without a horizon."""

    v: Float[Tensor, " S"]
    q: Float[Tensor, "S A"]
    adv: Float[Tensor, "S A"]
    occupancy: Float[Tensor, " S"]
    """Σ_t γ^t Pr(s_t = s). Its sum is the expected discounted number of steps."""
    expected_return: Float[Tensor, ""]


class FiniteValues(NamedTuple):
    """Of one policy, with H steps. Everything depends on the step t, which counts from 0."""

    v: Float[Tensor, "H+1 S"]
    """The return of steps t to H - 1, discounted from t. The last row is 0: nothing counts after the cut."""
    q: Float[Tensor, "H S A"]
    adv: Float[Tensor, "H S A"]
    occupancy: Float[Tensor, "H S"]
    """γ^t Pr(s_t = s)."""
    expected_return: Float[Tensor, ""]


class Optimum(NamedTuple):
    """π*, V* and Q*. With a horizon each has a leading axis of time: H, H + 1 and H."""

    policy: Float[Tensor, "*H S A"]
    v: Float[Tensor, "*H S"]
    q: Float[Tensor, "*H S A"]


def evaluate(mdp: TabularMDP, policy: Float[Tensor, "S A"]) -> Values:
    """Return V, Q, A, occupancy and J of π by solving (I - γ P_π) v = r_π and its transpose.

    Failure case: with γ = 1 a policy that may never end has no value; ValueError names a state, of those that
    trajectories come to, from which it does not. Shortly before, a policy that ends after 10^k steps on
    average loses k digits, and so does γ = 1 - 10^-k.
    """
    _needs_no_horizon(mdp, "evaluate")
    _check_policy(mdp, policy)
    return _evaluated(mdp, policy)[0]


def evaluate_finite(mdp: TabularMDP, policy: Float[Tensor, "*H S A"]) -> FiniteValues:
    """Return V, Q, A, occupancy and J of π over `mdp.horizon` steps, by recursion from the last one.

    The policy is the same at every step, `[S, A]`, or one for each, `[H, S, A]`.
    """
    horizon = _needs_horizon(mdp, "evaluate_finite")
    _check_policy(mdp, policy, horizon)
    policy = policy.expand(horizon, mdp.num_states, mdp.num_actions)
    reward = _expected_reward(mdp)
    v, q = [reward.new_zeros(mdp.num_states)], []
    for pi in policy.flip(0):
        q.append(_backup(mdp, reward, v[-1]))
        v.append((pi * q[-1]).sum(-1))
    alive = (~mdp.terminal).double()
    occupancy = [mdp.start * alive]
    for pi in policy[:-1]:
        occupancy.append(mdp.gamma * occupancy[-1] @ _under(mdp, pi)[0] * alive)
    values, action_values = torch.stack(v[::-1]), torch.stack(q[::-1])
    return FiniteValues(
        v=values,
        q=action_values,
        adv=action_values - values[:-1, :, None],
        occupancy=torch.stack(occupancy),
        expected_return=mdp.start @ values[0],
    )


def expected_return(mdp: TabularMDP, policy: Float[Tensor, "S A"]) -> Float[Tensor, ""]:
    """Return J(π) = E Σ_t γ^t r_t, over the horizon where the world has one. With gradient."""
    return (evaluate if mdp.horizon is None else evaluate_finite)(mdp, policy).expected_return


def policy_iteration(mdp: TabularMDP) -> Optimum:
    """Return the optimum: evaluate a policy, change it where another action gains more than rounding.

    Source: Howard 1960; Sutton & Barto 2018, section 4.3. Starts from the uniform policy, which ends wherever
    an end can be reached. Where nothing is gained the present action stays, and ties are settled once, at the
    end. A policy that comes again was left for rounding alone: the search ends there. The optimum sees the
    state: in a partially observed world it is an upper bound. Assumes, for γ = 1, that going round for ever
    does not pay: the optimum is the best among the policies that end (Bertsekas & Tsitsiklis 1991).
    ValueError where it pays without bound, and after `MAX_POLICIES` policies.
    """
    _needs_no_horizon(mdp, "policy_iteration")
    policy, seen = _uniform(mdp), set[bytes]()
    for _ in range(MAX_POLICIES):
        judged = _judged(mdp, policy)
        if _is_best(judged, policy, seen):
            return _settled(mdp, judged)
        greedy = _lowest(judged.q == judged.q.amax(-1, keepdim=True))
        policy = torch.where(judged.gains.any(-1, keepdim=True), greedy, policy)
    raise ValueError(
        f"policy_iteration in a world of {mdp.num_states} states and {mdp.num_actions} actions: found that "
        f"policy {MAX_POLICIES} is still not the best. Use value_iteration or a smaller world."
    )


def value_iteration(mdp: TabularMDP) -> Optimum:
    """Return the optimum by v ← max_a q, until the policy that is greedy on v cannot be improved.

    Source: Bellman 1957; Sutton & Barto 2018, section 4.4. Every `CHECK` sweeps the greedy policy is
    evaluated. If an action gains more than rounding, the sweeps go on from what the policy is worth: modified
    policy iteration, Puterman & Shin 1978. So the answer does not depend on the scale of the rewards, and no
    tolerance is asked for. Starts from the values of the uniform policy, so that with γ = 1 the values rise
    to those of the best policy that ends. Ties and assumptions as in `policy_iteration`. ValueError if
    `MAX_SWEEPS` sweeps do not do.
    """
    _needs_no_horizon(mdp, "value_iteration")
    v, moved, seen = _evaluated(mdp, _uniform(mdp))[0].v, torch.inf, set[bytes]()
    for sweep in range(1, MAX_SWEEPS + 1):
        q = _action_values(mdp, v)
        moved, v = float((q.amax(-1) - v).abs().max()), q.amax(-1)
        if moved > 0 and sweep % CHECK:
            continue
        policy = _lowest(_toward_an_end(mdp, _tied(q, _rounding(mdp, v.abs()))))
        if mdp.gamma < 1 or not len(_endless(mdp, policy)):
            judged = _judged(mdp, policy)
            if _is_best(judged, policy, seen):
                return _settled(mdp, judged)
            v = judged.v
    raise ValueError(
        f"value_iteration: found that {MAX_SWEEPS} sweeps still move a value by {moved:.3g}. With gamma=1 a "
        "loop may pay without bound; else use policy_iteration."
    )


def backward_induction(mdp: TabularMDP) -> Optimum:
    """Return the optimum over `mdp.horizon` steps: v_t = max_a q_t, from the last step to the first.

    Source: Puterman 1994, section 4.5. Ties go to the lowest action. The policy `[H, S, A]` may depend on the
    step, and sees the state: for a policy that does not, J* is an upper bound.
    """
    horizon = _needs_horizon(mdp, "backward_induction")
    reward = _expected_reward(mdp)
    v, size, q, policy = [reward.new_zeros(mdp.num_states)], reward.new_zeros(mdp.num_states), [], []
    for _ in range(horizon):
        q.append(_backup(mdp, reward, v[-1]))
        policy.append(_lowest(_tied(q[-1], _rounding(mdp, size))))
        v.append((policy[-1] * q[-1]).sum(-1))
        size = (policy[-1] * _sizes(mdp, size)).sum(-1)
    return Optimum(torch.stack(policy[::-1]), torch.stack(v[::-1]), torch.stack(q[::-1]))


class _Judged(NamedTuple):
    """A policy's values, and what another action would gain."""

    v: Tensor
    q: Tensor
    rounding: Tensor
    """How far q may be off, `[S, A]`."""
    gains: Tensor
    """bool `[S, A]`: more than rounding can explain."""


def _judged(mdp: TabularMDP, policy: Tensor) -> _Judged:
    values, size = _evaluated(mdp, policy)
    rounding = _rounding(mdp, size)
    own = (policy * rounding).sum(-1, keepdim=True)
    return _Judged(values.v, values.q, rounding, values.adv > rounding + own)


def _is_best(judged: _Judged, policy: Tensor, seen: set[bytes]) -> bool:
    """Return whether nothing can be gained; or only by rounding, as the policy is among the `seen`."""
    key = policy.numpy().tobytes()
    best = not bool(judged.gains.any()) or key in seen
    seen.add(key)
    return best


def _settled(mdp: TabularMDP, judged: _Judged) -> Optimum:
    """Return the optimum that the best policy of a search stands for: ties settled, and evaluated again."""
    policy = _lowest(_toward_an_end(mdp, _tied(judged.q, judged.rounding)))
    values, _ = _evaluated(mdp, policy)
    return Optimum(policy, values.v, values.q)


def _evaluated(mdp: TabularMDP, policy: Tensor) -> tuple[Values, Tensor]:
    """Return the values of π and E Σ_t γ^t |r_t| from each state `[S]`: the size of the numbers in them."""
    P, r = _under(mdp, policy)
    alive = _alive(mdp).double()
    if mdp.gamma == 1 and len(lost := _endless(mdp, policy.detach())):
        raise ValueError(
            f"evaluate a policy with gamma=1: found that from state {int(lost[0])} it never ends, so that "
            "its value is not defined. Use gamma < 1, a horizon, or a policy that ends."
        )
    flow = mdp.gamma * alive[:, None] * P * alive
    paid = alive[:, None] * torch.stack([r, (policy * _sizes(mdp)).sum(-1)], 1)
    factors, pivots = torch.linalg.lu_factor(torch.eye(mdp.num_states, dtype=P.dtype) - flow)
    solved = torch.linalg.lu_solve(factors, pivots, paid)
    # Elimination mixes rows: without a second step the error of a small value is that of the largest one.
    solved = solved + torch.linalg.lu_solve(factors, pivots, paid + flow @ solved - solved)
    v, size = solved.unbind(1)
    start = (mdp.start * alive)[:, None]
    occupancy = torch.linalg.lu_solve(factors, pivots, start, adjoint=True)[:, 0]
    q = _action_values(mdp, v)
    return Values(v, q, q - v[:, None], occupancy, mdp.start @ v), size.detach()


def _under(mdp: TabularMDP, policy: Tensor) -> tuple[Tensor, Tensor]:
    """Return P_π `[S, S]` and r_π `[S]`."""
    P = torch.einsum("sa,sap->sp", policy, mdp.transition)
    return P, (policy * _expected_reward(mdp)).sum(-1)


def _expected_reward(mdp: TabularMDP) -> Tensor:
    """Return E[r | s, a] `[S, A]`."""
    return torch.einsum("sap,sap->sa", mdp.transition, mdp.reward)


def _backup(mdp: TabularMDP, reward: Tensor, v: Tensor) -> Tensor:
    """Return q `[S, A]` of the values v `[S]` one step later."""
    return reward + mdp.gamma * (mdp.transition @ v)


def _action_values(mdp: TabularMDP, v: Tensor) -> Tensor:
    """Return q `[S, A]` of the values v `[S]`, 0 where nobody is."""
    return _alive(mdp)[:, None] * _backup(mdp, _expected_reward(mdp), v)


def _sizes(mdp: TabularMDP, size: Tensor | None = None) -> Tensor:
    """Return E[|r| + γ size(s′) | s, a] `[S, A]`: the size of the numbers in a backup."""
    reward = torch.einsum("sap,sap->sa", mdp.transition, mdp.reward.abs())
    return reward if size is None else _backup(mdp, reward, size)


def _rounding(mdp: TabularMDP, size: Tensor) -> Tensor:
    """Return how far a q may be off `[S, A]`, where values are sums of numbers of this size `[S]`."""
    return ULPS * EPSILON * _sizes(mdp, size)


def _tied(q: Tensor, rounding: Tensor) -> Tensor:
    """Return the actions, bool `[S, A]`, that are as good as the best one up to the rounding of the two."""
    best = q.argmax(-1, keepdim=True)
    return q + rounding >= (q - rounding).gather(-1, best)


def _lowest(actions: Tensor) -> Tensor:
    """Return the policy `[S, A]` that takes the first true action of each state."""
    first = actions.long().argmax(-1)
    return torch.nn.functional.one_hot(first, actions.shape[-1]).double()


def _toward_an_end(mdp: TabularMDP, best: Tensor) -> Tensor:
    """Return those of the actions `best`, bool `[S, A]`, that lead to an end, nearest states first.

    With γ = 1 a loop that pays 0 ties with the way out of it. All of `best` where none leads to an end, and
    with a discount.
    """
    near, out = ~_alive(mdp), torch.zeros_like(best)
    if mdp.gamma < 1:
        return best
    while bool((ahead := best & (mdp.transition @ near.double() > EPSILON) & ~near[:, None]).any()):
        out |= ahead
        near = near | ahead.any(-1)
    return torch.where(out.any(-1, keepdim=True), out, best)


def _uniform(mdp: TabularMDP) -> Tensor:
    return torch.full((mdp.num_states, mdp.num_actions), 1 / mdp.num_actions, dtype=torch.float64)


def _alive(mdp: TabularMDP) -> Tensor:
    """Return the states that have a value, bool `[S]`: with γ = 1 those that trajectories come to."""
    return ~mdp.terminal & reachable(mdp) if mdp.gamma == 1 else ~mdp.terminal


def _endless(mdp: TabularMDP, policy: Tensor) -> Tensor:
    """Return the states that have a value and from which π never ends."""
    ends = leads_to(mdp.terminal, _under(mdp, policy)[0] > EPSILON)
    return (_alive(mdp) & ~ends).nonzero()[:, 0]


def _needs_no_horizon(mdp: TabularMDP, name: str) -> None:
    if mdp.horizon is not None:
        raise ValueError(
            f"{name} with horizon={mdp.horizon}: it answers for a world that is not cut. Use evaluate_finite "
            "or backward_induction, or dataclasses.replace(mdp, horizon=None)."
        )


def _needs_horizon(mdp: TabularMDP, name: str) -> int:
    if mdp.horizon is None:
        raise ValueError(
            f"{name} with horizon=None: it counts steps. Use evaluate or policy_iteration, or "
            "dataclasses.replace(mdp, horizon=...)."
        )
    return mdp.horizon


def _check_policy(mdp: TabularMDP, policy: Tensor, horizon: int | None = None) -> None:
    once = (mdp.num_states, mdp.num_actions)
    shapes = [once] if horizon is None else [once, (horizon, *once)]
    if tuple(policy.shape) not in shapes:
        raise ValueError(
            f"policy {tuple(policy.shape)} with transition {tuple(mdp.transition.shape)}: pass π(a | s) of "
            f"shape {' or '.join(map(str, shapes))}."
        )
    if policy.dtype is not torch.float64:
        raise ValueError(
            f"policy {policy.dtype}: values to the last digit need probabilities in float64. Pass "
            "softmax_policy(mdp, theta), or theta.double().softmax(-1)."
        )
    check_distribution("policy", policy.detach())
