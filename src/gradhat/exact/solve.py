"""Values, occupancy and optimal policies of a finite world, to the last digit.

    v(s) = Σ_a π(a | s) q(s, a)        q(s, a) = Σ_s′ P(s′ | s, a) [r(s, a, s′) + γ v(s′)]
    A(s, a) = q(s, a) - v(s)           d(s) = Σ_t γ^t Pr(s_t = s)

Without a horizon these are linear equations, with one a recursion. Terminal states have value and occupancy
0. A policy is π(a | s) `[S, A]`, float64; `mdp.softmax_policy` makes one of logits. Narrower numbers are
refused: their rows sum to 1 only up to their own rounding. Gradient flows from every
answer of `evaluate` and `evaluate_finite` to the policy. Rewards have the unit that the world gives them.

Source: Sutton & Barto 2018, chapters 3 and 4; Puterman 1994, chapters 4 to 7. Every function raises
ValueError where the world has a horizon and the function answers for none, or the other way round.

Letters: `H` steps of a finite horizon.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from gradhat.exact.mdp import TabularMDP, check_distribution, leads_to

TIE = 1e-9
"""Actions whose values differ by less, relative to the largest value, are equally good."""
MAX_SWEEPS = 100_000
"""Sweeps after which value iteration gives up."""


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

    Failure case: with γ = 1 a policy that may never end has no value; ValueError names a state from which it
    does not. Shortly before, a policy that ends after 10^k steps on average loses k digits.
    """
    _needs_no_horizon(mdp, "evaluate")
    _check_policy(mdp, policy)
    P, r = _under(mdp, policy)
    alive = (~mdp.terminal).double()
    if mdp.gamma == 1:
        _check_ends(mdp, P.detach())
    system = torch.eye(mdp.num_states, dtype=P.dtype) - mdp.gamma * P * alive
    v = torch.linalg.solve(system, r)
    occupancy = torch.linalg.solve(system.T, mdp.start * alive)
    q = _backup(mdp, _expected_reward(mdp), v)
    return Values(v, q, q - v[:, None], occupancy, mdp.start @ v)


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
    """Return the optimum by evaluating a policy and acting greedily on it until nothing changes.

    Source: Howard 1960; Sutton & Barto 2018, section 4.3. Starts from the uniform policy, which ends
    wherever an end can be reached; ties go to the lowest action. The optimum sees the state: in a partially
    observed world it is an upper bound. Assumes, for γ = 1, that going round for ever does not pay: the
    optimum is the best among the policies that end (Bertsekas & Tsitsiklis 1991). ValueError where it pays
    without bound.
    """
    _needs_no_horizon(mdp, "policy_iteration")
    policy = _uniform(mdp)
    while True:
        values = evaluate(mdp, policy)
        greedy = _greedy(mdp, values.q)
        if torch.equal(greedy, policy):
            return Optimum(policy, values.v, values.q)
        policy = greedy


def value_iteration(mdp: TabularMDP, tolerance: float = 1e-12) -> Optimum:
    """Return the optimum by v ← max_a q until no value moves by more than `tolerance`.

    Source: Bellman 1957; Sutton & Barto 2018, section 4.4. Then |v - V*| ≤ γ / (1 - γ) · tolerance. Starts
    from the values of the uniform policy, so that with γ = 1 the values rise to those of the best policy
    that ends. Ties and assumptions as in `policy_iteration`. ValueError if `MAX_SWEEPS` sweeps do not do.
    """
    _needs_no_horizon(mdp, "value_iteration")
    reward = _expected_reward(mdp)
    v, change = evaluate(mdp, _uniform(mdp)).v, torch.inf
    for _ in range(MAX_SWEEPS):
        q = _backup(mdp, reward, v)
        change = float((q.amax(-1) - v).abs().max())
        v = q.amax(-1)
        if change <= tolerance:
            q = _backup(mdp, reward, v)
            return Optimum(_greedy(mdp, q), v, q)
    raise ValueError(
        f"value_iteration to tolerance={tolerance:g}: found that {MAX_SWEEPS} sweeps still move a value by "
        f"{change:.3g}. With gamma=1 a loop may pay without bound; else raise tolerance or use "
        "policy_iteration."
    )


def backward_induction(mdp: TabularMDP) -> Optimum:
    """Return the optimum over `mdp.horizon` steps: v_t = max_a q_t, from the last step to the first.

    Source: Puterman 1994, section 4.5. Ties go to the lowest action. The policy `[H, S, A]` may depend on the
    step, and sees the state: for a policy that does not, J* is an upper bound.
    """
    horizon = _needs_horizon(mdp, "backward_induction")
    reward = _expected_reward(mdp)
    v, q = [reward.new_zeros(mdp.num_states)], []
    for _ in range(horizon):
        q.append(_backup(mdp, reward, v[-1]))
        v.append(q[-1].amax(-1))
    policy = torch.stack([_lowest(_best(action_values)) for action_values in q[::-1]])
    return Optimum(policy, torch.stack(v[::-1]), torch.stack(q[::-1]))


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


def _uniform(mdp: TabularMDP) -> Tensor:
    return torch.full((mdp.num_states, mdp.num_actions), 1 / mdp.num_actions, dtype=torch.float64)


def _greedy(mdp: TabularMDP, q: Tensor) -> Tensor:
    """Return the policy `[S, A]` that takes the lowest of the best actions.

    With γ = 1 a loop that pays 0 ties with the way out of it. Then only the actions that lead to an end
    count, nearest states first; where no best action does, the lowest.
    """
    best = _best(q)
    if mdp.gamma < 1:
        return _lowest(best)
    near, out = mdp.terminal, torch.zeros_like(best)
    while bool((ahead := best & (mdp.transition @ near.double() > 0) & ~near[:, None]).any()):
        out |= ahead
        near = near | ahead.any(-1)
    return _lowest(torch.where(out.any(-1, keepdim=True), out, best))


def _best(q: Tensor) -> Tensor:
    return q >= q.amax(-1, keepdim=True) - TIE * (1 + q.abs().max())


def _lowest(actions: Tensor) -> Tensor:
    """Return the policy `[S, A]` that takes the first true action of each state."""
    first = actions.long().argmax(-1)
    return torch.nn.functional.one_hot(first, actions.shape[-1]).double()


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


def _check_ends(mdp: TabularMDP, P: Tensor) -> None:
    """ValueError unless the end can be reached from everywhere. A rarer exit is lost in I - P."""
    lost = (~leads_to(mdp.terminal, torch.finfo(P.dtype).eps < P)).nonzero()[:, 0].tolist()
    if lost:
        raise ValueError(
            f"evaluate a policy with gamma=1: found that from state {lost[0]} it never ends, so that its "
            "value is not defined. Use gamma < 1, a horizon, or a policy that ends."
        )
