"""Off-policy credit and returns: naive twins, identities, torchrl, and exact expectations by enumeration."""

import importlib
import itertools
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from two_states import END, F64, GAMMA, HORIZON, MU, PI, START, P, objective, paths, q_of, value

from gradhat.estimators import offpolicy
from gradhat.estimators.gae import gae
from gradhat.estimators.returns import lambda_returns

NAN = math.nan
MUCH = 1e6  # no ratio of these tests exceeds it
few = settings(max_examples=80, deadline=None, derandomize=True)
numbers = st.floats(-4, 4, allow_subnormal=False)
step = st.tuples(st.booleans(), st.sampled_from(["", "", "", "terminated", "truncated"]), *[numbers] * 4)
rows = st.integers(1, 7).flatmap(
    lambda T: st.lists(st.lists(step, min_size=T, max_size=T), min_size=1, max_size=3)
)
gammas = st.floats(0, 1)
Rows = list[list[tuple[bool, str, float, float, float, float]]]


# Naive twins: lists of own steps, and the formulas as double loops.


class Data:
    """Tensors of random rows. All that must not be read is NaN. Episodes end at masked steps too."""

    def __init__(self, rows: Rows) -> None:
        def column(i: int) -> Tensor:
            return torch.tensor([[s[i] if s[0] else NAN for s in row] for row in rows], dtype=F64)

        self.mask = torch.tensor([[s[0] for s in row] for row in rows])
        self.terminated = torch.tensor([[s[1] == "terminated" for s in row] for row in rows])
        self.ended = torch.tensor([[s[1] != "" for s in row] for row in rows])
        self.rewards, self.values, self.next_values, self.log_ratio = (column(i) for i in range(2, 6))
        for b, steps in self.episodes():
            for t, after in itertools.pairwise(steps):
                self.next_values[b, t] = self.values[b, after]
        self.next_values[self.terminated] = NAN

    def episodes(self) -> list[tuple[int, list[int]]]:
        """(row, own steps) of every episode."""
        found: list[tuple[int, list[int]]] = []
        for b in range(len(self.mask)):
            steps: list[int] = []
            for t in range(self.mask.shape[1]):
                if self.mask[b, t]:
                    steps.append(t)
                if self.ended[b, t]:
                    found.append((b, steps))
                    steps = []
            found.append((b, steps))
        return found

    def bootstrap(self, b: int, t: int) -> float:
        return 0.0 if self.terminated[b, t] else self.next_values[b, t].item()

    def ratio(self, b: int, t: int) -> float:
        return math.exp(self.log_ratio[b, t].item())

    def ends(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.terminated, self.ended, self.mask


def vtrace_twin(d: Data, gamma: float, rho_max: float, c_max: float, lam: float) -> tuple[Tensor, Tensor]:
    vs, adv = torch.zeros(d.mask.shape, dtype=F64), torch.zeros(d.mask.shape, dtype=F64)
    for b, steps in d.episodes():
        for k, t in enumerate(steps):
            vs[b, t] = d.values[b, t]
            for j in range(k, len(steps)):
                u = steps[j]
                trace = math.prod(lam * min(c_max, d.ratio(b, i)) for i in steps[k:j])
                delta = d.rewards[b, u] + gamma * d.bootstrap(b, u) - d.values[b, u]
                vs[b, t] += gamma ** (j - k) * trace * min(rho_max, d.ratio(b, u)) * delta
        for k, t in enumerate(steps):
            following = vs[b, steps[k + 1]].item() if k + 1 < len(steps) else d.bootstrap(b, t)
            adv[b, t] = min(rho_max, d.ratio(b, t)) * (d.rewards[b, t] + gamma * following - d.values[b, t])
    return vs, adv


def retrace_twin(d: Data, gamma: float, lam: float) -> Tensor:
    target = torch.zeros(d.mask.shape, dtype=F64)
    for b, steps in d.episodes():
        for k, t in enumerate(steps):
            target[b, t] = d.values[b, t]
            for j in range(k, len(steps)):
                u = steps[j]
                trace = math.prod(lam * min(1.0, d.ratio(b, i)) for i in steps[k + 1 : j + 1])
                delta = d.rewards[b, u] + gamma * d.bootstrap(b, u) - d.values[b, u]
                target[b, t] += gamma ** (j - k) * trace * delta
    return target


def return_twin(d: Data, gamma: float) -> Tensor:
    """Rewards to the end of the episode, and beyond it the bootstrap: the n-step Bellman target."""
    target = torch.zeros(d.mask.shape, dtype=F64)
    for b, steps in d.episodes():
        for k, t in enumerate(steps):
            left = steps[k:]
            target[b, t] = sum(gamma**j * d.rewards[b, u].item() for j, u in enumerate(left))
            target[b, t] += gamma ** len(left) * d.bootstrap(b, left[-1])
    return target


def close(found: Tensor, expected: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=1e-10)


@few
@given(rows, gammas, st.floats(0.1, 3), st.floats(0, 3), st.floats(0, 1))
def test_vtrace_is_its_double_loop(
    rows: Rows, gamma: float, rho_max: float, c_max: float, lam: float
) -> None:
    d = Data(rows)
    found = offpolicy.vtrace(
        d.rewards,
        d.values,
        d.next_values,
        d.log_ratio,
        *d.ends(),
        gamma=gamma,
        rho_max=rho_max,
        c_max=c_max,
        lam=lam,
    )
    vs, adv = vtrace_twin(d, gamma, rho_max, c_max, lam)
    close(found.vs, vs)
    close(found.adv, adv)


@few
@given(rows, gammas, st.floats(0, 1))
def test_retrace_is_its_double_loop(rows: Rows, gamma: float, lam: float) -> None:
    d = Data(rows)
    found = offpolicy.retrace(
        d.rewards, d.values, d.next_values, d.log_ratio, *d.ends(), gamma=gamma, lam=lam
    )
    close(found, retrace_twin(d, gamma, lam))


@few
@given(rows, gammas)
def test_importance_sampling_is_its_double_loop(rows: Rows, gamma: float) -> None:
    d = Data(rows)
    each, whole = torch.zeros(d.mask.shape, dtype=F64), torch.zeros(len(rows), dtype=F64)
    for b in range(len(rows)):
        own = d.mask[b].nonzero()[:, 0].tolist()
        for k, t in enumerate(own):
            each[b, t] = gamma**k * math.prod(d.ratio(b, u) for u in own[: k + 1]) * d.rewards[b, t]
            whole[b] += gamma**k * math.prod(d.ratio(b, u) for u in own) * d.rewards[b, t]
    farthest = max(0.0, d.log_ratio.nan_to_num().cumsum(-1).max().item())
    assume(farthest < offpolicy.LOG_RATIO_MAX)  # beyond it weights are held, which has a test of its own
    atol = 1e-12 * math.exp(farthest)
    close(offpolicy.per_decision(d.rewards, d.log_ratio, d.mask, gamma=gamma), each, atol)
    close(offpolicy.per_trajectory(d.rewards, d.log_ratio, d.mask, gamma=gamma), whole, atol)


# On-policy identities.


@few
@given(rows, gammas, st.floats(1, 3), st.floats(1, 3))
def test_on_policy_both_targets_are_the_return(
    rows: Rows, gamma: float, rho_max: float, c_max: float
) -> None:
    d = Data(rows)
    on = torch.zeros_like(d.log_ratio)
    data = (d.rewards, d.values, d.next_values, on, *d.ends())
    found = offpolicy.vtrace(*data, gamma=gamma, rho_max=rho_max, c_max=c_max)
    expected = return_twin(d, gamma)
    close(found.vs, expected)
    close(found.adv, torch.where(d.mask, expected - d.values, 0.0))
    close(offpolicy.retrace(*data, gamma=gamma, lam=1.0), expected)


@few
@given(rows, gammas, st.floats(0, 1))
def test_on_policy_vtrace_is_the_lambda_return(rows: Rows, gamma: float, lam: float) -> None:
    d = Data(rows)
    on = torch.zeros_like(d.log_ratio)
    found = offpolicy.vtrace(
        d.rewards, d.values, d.next_values, on, *d.ends(), gamma=gamma, rho_max=1.0, c_max=1.0, lam=lam
    )
    close(found.vs, lambda_returns(d.rewards, d.next_values, *d.ends(), gamma=gamma, lam=lam))
    credit = gae(d.rewards, d.values, d.next_values, *d.ends(), gamma=gamma, lam=lam)
    close(found.vs, credit + d.values.where(d.mask, 0.0))


@few
@given(rows, gammas)
def test_without_a_trace_both_targets_look_one_step_ahead(rows: Rows, gamma: float) -> None:
    d = Data(rows)
    bootstrap = torch.where(d.terminated, 0.0, d.next_values)
    one_step = torch.where(d.mask, d.rewards + gamma * bootstrap, 0.0)
    data = (d.rewards, d.values, d.next_values, d.log_ratio, *d.ends())
    close(offpolicy.retrace(*data, gamma=gamma, lam=0.0), one_step)
    rho = d.log_ratio.exp().clamp(max=1.5)
    expected = torch.where(d.mask, d.values + rho * (one_step - d.values), 0.0)
    for c_max, lam in ((0.0, 1.0), (1.0, 0.0)):
        close(offpolicy.vtrace(*data, gamma=gamma, rho_max=1.5, c_max=c_max, lam=lam).vs, expected)


# A peer.


def test_vtrace_against_torchrl() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torchrl says of its compiled extension while it is imported
        peer = importlib.import_module("torchrl.objectives.value.functional").vtrace_advantage_estimate
    gamma, rho_max, c_max = 0.96875, 1.25, 0.75  # the same in float32, in which torchrl 0.14 holds them
    generator = torch.Generator().manual_seed(0)

    def random() -> Tensor:
        return torch.randn(5, 30, dtype=F64, generator=generator)

    rewards, values, next_values, logp, logp_old = (random() for _ in range(5))
    ended = torch.rand(5, 30, generator=generator) < 0.2
    terminated = ended & (torch.rand(5, 30, generator=generator) < 0.5)
    assert (ended & ~terminated).any() and terminated.any()
    next_values[:, :-1] = torch.where(ended[:, :-1], next_values[:, :-1], values[:, 1:])
    columns = [x[..., None] for x in (logp, logp_old, values, next_values, rewards, ended, terminated)]
    adv, vs = peer(gamma, *columns, rho_thresh=rho_max, c_thresh=c_max)
    mask = torch.ones_like(ended)
    found = offpolicy.vtrace(
        rewards,
        values,
        next_values,
        logp - logp_old,
        terminated,
        ended,
        mask,
        gamma=gamma,
        rho_max=rho_max,
        c_max=c_max,
    )
    close(found.vs, vs[..., 0], atol=1e-12)
    close(found.adv, adv[..., 0], atol=1e-12)


# Exact expectations in a world of two states.


def mean_vtrace(values: Tensor, rho_max: float, c_max: float) -> Tensor:
    """E_μ[vs_0 | s_0] `[2]`. The value of the end is NaN: it is not read."""
    p = paths()
    worth = torch.where(torch.arange(3) == END, NAN, values)
    found = offpolicy.vtrace(
        p.rewards,
        worth[p.states],
        worth[p.next_states],
        p.log_ratio(),
        p.terminated,
        p.ended,
        p.mask,
        gamma=GAMMA,
        rho_max=rho_max,
        c_max=c_max,
    )
    return (
        torch.zeros(2, dtype=F64).index_add(0, p.states[:, 0], p.probability(MU) * found.vs[:, 0]) / START[:2]
    )


def cautious(rho_max: float) -> Tensor:
    """The policy ∝ min(ρ̄ μ, π), eq. 3 of Espeholt et al. 2018."""
    weight = torch.minimum(rho_max * MU, PI)
    return weight / weight.sum(-1, keepdim=True)


def test_the_world_is_a_distribution_and_its_policies_differ() -> None:
    p = paths()
    assert p.probability(MU).sum().item() == pytest.approx(1, abs=1e-14)
    assert p.probability(PI).sum().item() == pytest.approx(1, abs=1e-14)
    assert (PI / MU)[:2].max() > 1.3
    assert (p.ended & ~p.terminated).any()


@pytest.mark.parametrize("c_max", [0.0, 0.7, 1.0, MUCH])
def test_untruncated_vtrace_stands_still_at_the_value_of_the_policy(c_max: float) -> None:
    target = value(PI)
    assert (mean_vtrace(target, MUCH, c_max) - target[:2]).abs().max() < 1e-13
    off = target + torch.tensor([0.5, -0.2, 0.0])
    assert (mean_vtrace(off, MUCH, c_max) - off[:2]).abs().max() > 0.05


@pytest.mark.parametrize(("rho_max", "c_max"), [(1.0, 1.0), (1.0, 0.5), (0.6, 0.6), (1.2, 1.0)])
def test_truncated_vtrace_stands_still_at_the_value_of_a_cautious_policy(
    rho_max: float, c_max: float
) -> None:
    target = value(cautious(rho_max))
    assert (mean_vtrace(target, rho_max, c_max) - target[:2]).abs().max() < 1e-13
    assert (mean_vtrace(value(PI), rho_max, c_max) - value(PI)[:2]).abs().max() > 0.01


@pytest.mark.parametrize(("rho_max", "c_max"), [(1.0, 1.0), (0.6, 0.9), (MUCH, 1.0)])
def test_the_mean_of_vtrace_is_the_series_of_its_operator(rho_max: float, c_max: float) -> None:
    """V + Σ_k (γ P_c)^k d, with the trace and the error averaged over actions first, for any V."""
    values = torch.tensor([0.8, -1.1, 0.0], dtype=F64)
    error = (torch.minimum(rho_max * MU, PI) * (q_of(values) - values[:, None])).sum(-1)
    step = GAMMA * torch.einsum("sa,sat->st", torch.minimum(c_max * MU, PI), P)
    expected = values + error + step @ error + step @ step @ error
    assert HORIZON == 3
    close(mean_vtrace(values, rho_max, c_max), expected[:2], atol=1e-13)


def test_untruncated_vtrace_credits_the_ratio_times_the_advantage() -> None:
    """E_μ[adv_0 | s_0, a_0] = π/μ (Q^π - V^π) where the value is exact."""
    p, worth = paths(), value(PI)
    found = offpolicy.vtrace(
        p.rewards,
        worth[p.states],
        worth[p.next_states],
        p.log_ratio(),
        p.terminated,
        p.ended,
        p.mask,
        gamma=GAMMA,
        rho_max=MUCH,
        c_max=MUCH,
    )
    first = p.states[:, 0] * 2 + p.actions[:, 0]
    mean = torch.zeros(4, dtype=F64).index_add(0, first, p.probability(MU) * found.adv[:, 0]).view(2, 2)
    mean = mean / (START[:2, None] * MU[:2])
    close(mean, (PI / MU * (q_of(worth) - worth[:, None]))[:2], atol=1e-13)


def mean_retrace(q: Tensor, sampler: Tensor, lam: float) -> Tensor:
    """E_μ[target_0 | s_0, a_0] `[2, 2]` for any sampler μ."""
    p = paths()
    found = offpolicy.retrace(
        p.rewards,
        q[p.states, p.actions],
        (PI * q).sum(-1)[p.next_states],
        p.logp(PI) - p.logp(sampler),
        p.terminated,
        p.ended,
        p.mask,
        gamma=GAMMA,
        lam=lam,
    )
    first = p.states[:, 0] * 2 + p.actions[:, 0]
    mean = torch.zeros(4, dtype=F64).index_add(0, first, p.probability(sampler) * found[:, 0]).view(2, 2)
    return mean / (START[:2, None] * sampler[:2])


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    "sampler", [MU, PI, torch.tensor([[0.05, 0.95], [0.99, 0.01], [0.5, 0.5]], dtype=F64)]
)
def test_retrace_stands_still_at_q_whoever_sampled(sampler: Tensor, lam: float) -> None:
    q = q_of(value(PI))
    assert (mean_retrace(q, sampler, lam) - q[:2]).abs().max() < 1e-13


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_the_mean_of_retrace_is_the_series_of_its_operator(lam: float) -> None:
    """Q + Σ_k (γ P c)^k (T^π Q - Q) over pairs of state and action, for any Q."""
    q = torch.tensor([[0.8, -1.1], [0.4, 2.0], [0.0, 0.0]], dtype=F64)
    error = q_of((PI * q).sum(-1)) - q
    step = GAMMA * lam * torch.einsum("sat,tb->satb", P, torch.minimum(MU, PI)).reshape(6, 6)
    flat = error.flatten()
    expected = q + (flat + step @ flat + step @ step @ flat).view(3, 2)
    close(mean_retrace(q, MU, lam), expected[:2], atol=1e-13)


def test_importance_sampling_is_unbiased_and_the_plain_return_is_not() -> None:
    p, truth = paths(), objective(PI).item()
    chance = p.probability(MU)
    whole = offpolicy.per_trajectory(p.rewards, p.log_ratio(), p.mask, gamma=GAMMA)
    each = offpolicy.per_decision(p.rewards, p.log_ratio(), p.mask, gamma=GAMMA)
    assert (chance @ whole).item() == pytest.approx(truth, abs=1e-12)
    assert (chance @ each.sum(-1)).item() == pytest.approx(truth, abs=1e-12)
    plain = offpolicy.per_trajectory(p.rewards, torch.zeros_like(p.rewards), p.mask, gamma=GAMMA)
    assert (chance @ plain).item() == pytest.approx(objective(MU).item(), abs=1e-12)
    assert abs(objective(MU).item() - truth) > 0.05
    assert not torch.allclose(whole, each.sum(-1))


def test_the_credit_of_per_decision_sums_gives_the_gradient() -> None:
    p = paths()
    logits = PI.log().requires_grad_()
    objective(logits.softmax(-1)).backward()
    truth = logits.grad
    each = offpolicy.per_decision(p.rewards, p.log_ratio(), p.mask, gamma=GAMMA)
    credit = each.flip(-1).cumsum(-1).flip(-1)
    free = PI.log().requires_grad_()
    logp = torch.where(p.mask, free.log_softmax(-1)[p.states, p.actions], 0.0)
    (p.probability(MU) @ (logp * credit).sum(-1)).backward()
    assert truth is not None and free.grad is not None
    close(free.grad, truth, atol=1e-12)


def test_the_bias_of_shaped_weights_is_the_number_that_the_docstrings_give() -> None:
    p = paths()
    of_pi, of_mu = p.probability(PI), p.probability(MU)
    returns = offpolicy.per_trajectory(p.rewards, torch.zeros_like(p.rewards), p.mask, gamma=GAMMA)
    weights = p.log_ratio().sum(-1, keepdim=True).exp()
    truth = objective(PI).item()

    found = (of_mu * offpolicy.truncate(weights, high=1.1)[:, 0]) @ returns
    bias = -((of_pi - 1.1 * of_mu).clamp(min=0) @ returns).item()
    assert abs(bias) > 0.05
    assert found.item() - truth == pytest.approx(bias, abs=1e-12)

    found = (of_mu * offpolicy.mask_outside(weights, low=0.5, high=1.2)[:, 0]) @ returns
    outside = (of_pi < 0.5 * of_mu) | (of_pi > 1.2 * of_mu)
    bias = -(of_pi[outside] @ returns[outside]).item()
    assert abs(bias) > 0.02
    assert found.item() - truth == pytest.approx(bias, abs=1e-12)


# Weighted importance sampling.


def test_weighted_importance_sampling_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0], [5.0, NAN]], dtype=F64)
    log_ratio = torch.tensor([[2.0, 0.5], [3.0, NAN]], dtype=F64).log()
    mask = torch.tensor([[1, 1], [1, 0]])
    found = offpolicy.weighted_per_trajectory(rewards, log_ratio, mask, gamma=0.5)
    # weights 1 and 3, returns 2 and 5
    assert found.tolist() == pytest.approx([2 * 1 * 2 / 4, 2 * 3 * 5 / 4])
    assert found.mean().item() == pytest.approx((1 * 2 + 3 * 5) / 4)


@few
@given(st.lists(st.tuples(st.floats(-900, 900), numbers), min_size=1, max_size=6), numbers)
def test_the_weighted_estimate_stays_among_the_returns_and_moves_with_them(
    samples: list[tuple[float, float]], shift: float
) -> None:
    log_ratio = torch.tensor([[w] for w, _ in samples], dtype=F64)
    rewards = torch.tensor([[r] for _, r in samples], dtype=F64)
    mask = torch.ones_like(rewards, dtype=torch.bool)
    found = offpolicy.weighted_per_trajectory(rewards, log_ratio, mask, gamma=1.0).mean()
    assert rewards.min() - 1e-12 <= found <= rewards.max() + 1e-12
    moved = offpolicy.weighted_per_trajectory(rewards + shift, log_ratio, mask, gamma=1.0).mean()
    close(moved, found + shift, atol=1e-12)


def test_weights_that_are_all_zero_are_refused() -> None:
    never = torch.full((2, 1), -math.inf)
    with pytest.raises(ValueError, match=r"weighted_per_trajectory with 2 weights that are all 0"):
        offpolicy.weighted_per_trajectory(torch.ones(2, 1), never, torch.ones(2, 1), gamma=1.0)


# Weights.


def test_truncate_and_mask_outside_by_hand() -> None:
    weights = torch.tensor([[0.1, 0.5, 1.0], [2.0, 2.1, 9.0]])
    assert offpolicy.truncate(weights, high=2.0).tolist() == torch.tensor([[0.1, 0.5, 1], [2, 2, 2]]).tolist()
    kept = offpolicy.mask_outside(weights, low=0.5, high=2.0)
    assert kept.tolist() == [[0, 0.5, 1], [2, 0, 0]]
    assert offpolicy.truncate(weights[:, :1], high=1.0).tolist() == weights[:, :1].clamp(max=1).tolist()


@few
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=20), st.floats(1e-150, 1e150))
def test_the_effective_sample_size_lies_between_one_and_all(weights: list[float], scale: float) -> None:
    w = torch.tensor(weights, dtype=F64)
    found = offpolicy.effective_sample_size(w).item()
    assert 1 - 1e-12 <= found <= len(w) + 1e-12
    assert found == pytest.approx(len(w) / (1 + (w.var(correction=0) / w.mean() ** 2).item()), rel=1e-9)
    assert offpolicy.effective_sample_size(w * scale).item() == pytest.approx(found, rel=1e-9)


def test_the_effective_sample_size_of_equal_and_of_lone_weights() -> None:
    assert offpolicy.effective_sample_size(torch.full((7,), 0.3, dtype=F64)).item() == pytest.approx(7)
    assert offpolicy.effective_sample_size(torch.tensor([0.0, 5.0, 0.0])).item() == 1
    assert offpolicy.effective_sample_size(torch.tensor([3e38, 3e38])).item() == 2


@pytest.mark.parametrize("wrong", [NAN, math.inf, -1.0])
def test_weights_that_are_no_weights_are_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match=f"effective_sample_size with a weight of {wrong:g}"):
        offpolicy.effective_sample_size(torch.tensor([1.0, wrong]))


@pytest.mark.parametrize("weights", [[], [0.0, 0.0]])
def test_an_effective_sample_size_of_nothing_is_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match=f"of {len(weights)} weights of which none is positive"):
        offpolicy.effective_sample_size(torch.tensor(weights))


# Data, bounds, errors.

Call = Callable[..., object]
ONES = torch.ones(2, 3)
NEVER = torch.zeros(2, 3, dtype=torch.bool)
TARGETS: list[Call] = [
    lambda *data, **kw: offpolicy.vtrace(*data, **({"gamma": 0.9, "rho_max": 1.0, "c_max": 1.0} | kw)),
    lambda *data, **kw: offpolicy.retrace(*data, **({"gamma": 0.9, "lam": 1.0} | kw)),
]
RETURNS = [offpolicy.per_trajectory, offpolicy.weighted_per_trajectory, offpolicy.per_decision]


def test_everything_is_data_and_keeps_its_dtype() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    found = [
        *offpolicy.vtrace(x, x, x, x, NEVER, NEVER, ONES, gamma=0.9, rho_max=1.0, c_max=1.0),
        offpolicy.retrace(x, x, x, x, NEVER, NEVER, ONES, gamma=0.9, lam=1.0),
        *(f(x, x, ONES, gamma=0.9) for f in RETURNS),
        offpolicy.truncate(x, high=1.0),
        offpolicy.mask_outside(x, low=0.0, high=1.0),
        offpolicy.effective_sample_size(x[0].exp()),
    ]
    assert not any(tensor.requires_grad for tensor in found)
    assert {tensor.dtype for tensor in found} == {torch.float32}


def test_a_weight_is_held_before_it_overflows() -> None:
    reward, mask = torch.tensor([[2.0, 0.0]]), torch.ones(1, 2)
    far = torch.tensor([[60.0, 60.0]])
    bound = math.exp(offpolicy.LOG_RATIO_MAX)
    assert offpolicy.per_decision(reward, far, mask, gamma=1.0)[0].tolist() == pytest.approx([2 * bound, 0])
    assert offpolicy.per_trajectory(reward, far, mask, gamma=1.0).tolist() == pytest.approx([2 * bound])
    never = torch.full((1, 2), -math.inf)
    assert offpolicy.per_decision(reward, never, mask, gamma=1.0).tolist() == [[0, 0]]
    no, zero = torch.zeros(1, 2, dtype=torch.bool), torch.zeros(1, 2)
    found = offpolicy.vtrace(
        reward, zero, zero, far * math.inf, no, no, mask, gamma=1.0, rho_max=math.inf, c_max=math.inf
    )
    assert found.vs[0].tolist() == pytest.approx([2 * bound, 0])


@pytest.mark.parametrize("target", TARGETS)
def test_an_end_that_did_not_end_is_refused(target: Call) -> None:
    terminated = NEVER.clone()
    terminated[1, 2] = True
    with pytest.raises(ValueError, match="terminated without ended at row 1, step 2"):
        target(ONES, ONES, ONES, ONES, terminated, NEVER, ONES)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("place", range(7))
def test_targets_refuse_shapes_that_differ(target: Call, place: int, unchecked: None) -> None:
    names = ["rewards", "values|q", "next_values", "log_ratio", "terminated", "ended", "mask"]
    data = [ONES, ONES, ONES, ONES, NEVER, NEVER, ONES]
    data[place] = data[place][:, :2]
    with pytest.raises(ValueError, match=rf"({names[place]}) \(2, 2\) with|with ({names[place]}) \(2, 2\)"):
        target(*data)


@pytest.mark.parametrize("returns", RETURNS)
@pytest.mark.parametrize("place", range(3))
def test_returns_refuse_shapes_that_differ(returns: Call, place: int, unchecked: None) -> None:
    name = ["rewards", "log_ratio", "mask"][place]
    data = [ONES, ONES, ONES]
    data[place] = ONES[:1]
    with pytest.raises(ValueError, match=rf"{name} \(1, 3\) with|with {name} \(1, 3\)"):
        returns(*data, gamma=1.0)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, NAN])
def test_discount_and_trace_lie_between_zero_and_one(wrong: float) -> None:
    data = (ONES, ONES, ONES, ONES, NEVER, NEVER, ONES)
    for target in TARGETS:
        for name in ("gamma", "lam"):
            with pytest.raises(ValueError, match=f"{name}={wrong:g}"):
                target(*data, **{name: wrong})
    for returns in RETURNS:
        with pytest.raises(ValueError, match=f"gamma={wrong:g}"):
            returns(ONES, ONES, ONES, gamma=wrong)


def test_advantages_passed_as_the_mask_are_refused() -> None:
    adv = torch.tensor([[0.5, -1.0, 2.0]] * 2)
    for target in TARGETS:
        with pytest.raises(ValueError, match="mask with values from -1 to 2"):
            target(ONES, ONES, ONES, ONES, NEVER, NEVER, adv)
    for returns in RETURNS:
        with pytest.raises(ValueError, match="mask with values from -1 to 2"):
            returns(ONES, ONES, adv, gamma=1.0)


def test_bounds_that_leave_no_weight_are_refused() -> None:
    for bounds in ({"rho_max": 0.0}, {"c_max": -0.1}):
        with pytest.raises(ValueError, match=r"vtrace with rho_max=.*, c_max="):
            TARGETS[0](ONES, ONES, ONES, ONES, NEVER, NEVER, ONES, **bounds)
    with pytest.raises(ValueError, match="truncate with high=0"):
        offpolicy.truncate(ONES, high=0.0)
    for low, high in ((-0.1, 1.0), (2.0, 1.0), (NAN, 1.0)):
        with pytest.raises(ValueError, match=f"mask_outside with low={low:g}, high={high:g}"):
            offpolicy.mask_outside(ONES, low=low, high=high)
