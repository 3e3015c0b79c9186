"""GAE: by hand, against a forward sum, as identities, in expectation, against peers; bugs of the wild."""

import warnings
from types import ModuleType
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import F64, Rows, ragged, random_rows, rates
from torch import Tensor

from gradhat.estimators import returns
from gradhat.estimators.gae import gae

few = settings(max_examples=50, deadline=None, derandomize=True)


def of(rows: Rows, gamma: float, lam: float) -> Tensor:
    return gae(**vars(rows), gamma=gamma, lam=lam)


def close(found: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


# --- by hand, and the bugs of the wild ---------------------------------------------------------------------


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=F64)


def flags(*bits: int) -> Tensor:
    return torch.tensor([bits], dtype=torch.bool)


NEVER, CUT, ALL = flags(0, 0, 0, 0), flags(0, 1, 0, 0), flags(1, 1, 1, 1)
R, V, NEXT = row(1, 2, 4, 8), row(1, 2, 3, 4), row(2, 10, 4, 6)
"""Two episodes in one row, the first cut after step 1, where the value of its final observation is 10.
With γ = 1/2: δ = 1 + 2/2 - 1, 2 + 10/2 - 2, 4 + 4/2 - 3, 8 + 6/2 - 4 = 1, 5, 3, 7. With λ = 1/2, γλ = 1/4."""


def test_two_episodes_in_a_row_by_hand() -> None:
    found = gae(R, V, NEXT, NEVER, CUT, ALL, gamma=0.5, lam=0.5)
    assert found.tolist() == [[1 + 5 / 4, 5, 3 + 7 / 4, 7]]


def test_truncation_is_not_death() -> None:
    # Planted: the time limit as a termination. The cut step then loses γ · 10 of its value.
    planted = gae(R, V, NEXT, CUT, CUT, ALL, gamma=0.5, lam=0.5)
    assert planted.tolist() == [[1, 0, 3 + 7 / 4, 7]]
    assert planted.tolist() != gae(R, V, NEXT, NEVER, CUT, ALL, gamma=0.5, lam=0.5).tolist()


def test_the_trace_does_not_leak_into_the_episode_before() -> None:
    # Planted: the recursion cut by `terminated` alone (here: by nothing) adds γλ · 4.75 to the cut step.
    planted = gae(R, V, NEXT, NEVER, NEVER, ALL, gamma=0.5, lam=0.5)
    assert planted.tolist() == [[1 + (5 + 4.75 / 4) / 4, 5 + 4.75 / 4, 4.75, 7]]
    # Whatever the second episode is, the first one's advantages are the same numbers.
    found = gae(R, V, NEXT, NEVER, CUT, ALL, gamma=0.5, lam=0.5)
    other = gae(row(1, 2, -9, 5), row(1, 2, 0, 9), row(2, 10, 9, 1), NEVER, CUT, ALL, gamma=0.5, lam=0.5)
    assert found[0, :2].tolist() == other[0, :2].tolist() == [2.25, 5]


DUMMY = (
    row(1, 2, 0, 4, 8),
    row(1, 2, 10, 3, 4),
    row(2, 10, 3, 4, 6),
    flags(0, 0, 0, 0, 0),
    flags(0, 1, 0, 0, 0),
)
"""The same two episodes, with the dummy step of an autoreset between them: reward 0, the value of the final
observation, followed by the new episode's first one."""


def test_the_dummy_step_of_an_autoreset_is_no_step() -> None:
    found = gae(*DUMMY, flags(1, 1, 0, 1, 1), gamma=0.5, lam=0.5)
    assert found.tolist() == [[2.25, 5, 0, 4.75, 7]]
    # Planted: the dummy counted as a step of its own. It gets an advantage, -10 + 3/2 + 4.75/4.
    planted = gae(*DUMMY, flags(1, 1, 1, 1, 1), gamma=0.5, lam=0.5)
    assert planted[0, 2].item() == pytest.approx(-7.3125)
    assert found[0, 2].item() == 0


def test_advantages_as_the_mask_are_refused() -> None:
    adv = gae(R, V, NEXT, NEVER, CUT, ALL, gamma=0.5, lam=0.5)
    with pytest.raises(ValueError, match=r"mask with values from 2.25 to 7: .* not their advantages"):
        gae(R, V, NEXT, NEVER, CUT, adv, gamma=0.5, lam=0.5)


def test_a_turn_of_the_environment_costs_no_time() -> None:
    # δ of the own steps as before, one masked step between 0 and 1, two between 2 and 3, padding behind.
    spread = [0, 2, 3, 6]
    nan = torch.full((1, 8), torch.nan, dtype=F64)
    rewards, values, following = nan.clone(), nan.clone(), nan.clone()
    mask, ended = torch.zeros(1, 8, dtype=torch.bool), torch.zeros(1, 8, dtype=torch.bool)
    for tensor, source in ((rewards, R), (values, V), (following, NEXT), (mask, ALL), (ended, CUT)):
        tensor[:, spread] = source
    found = gae(rewards, values, following, torch.zeros_like(ended), ended, mask, gamma=0.5, lam=0.5)
    assert found.tolist() == [[2.25, 0, 5, 4.75, 0, 0, 7, 0]]


# --- against the forward sum -------------------------------------------------------------------------------


def slow(rows: Rows, gamma: float, lam: float) -> Tensor:
    def delta(b: int, t: int) -> float:
        return float(rows.rewards[b, t]) + gamma * rows.bootstrap(b, t) - float(rows.values[b, t])

    return rows.fill(
        {
            (b, t): sum((gamma * lam) ** i * delta(b, u) for i, u in enumerate(rows.onward(b, t)))
            for b, t in rows.places()
        }
    )


@few
@given(ragged(), rates, rates, st.integers(1, 4))
def test_equals_the_forward_sum(rows: Rows, gamma: float, lam: float, columns: int) -> None:
    with patch.object(returns, "COLUMNS", columns):
        close(of(rows, gamma, lam), slow(rows, gamma, lam))


def long_rows(whole: bool) -> Rows:
    """Rows longer than a block, with every kind of end; `whole` leaves no step masked."""
    generator = torch.Generator().manual_seed(3)
    mask, ended, dead = torch.rand(3, 4, 2 * returns.COLUMNS + 7, generator=generator).unbind(0)
    return random_rows((mask < 0.8) | whole, ended < 0.03, (ended < 0.03) & (dead < 0.5), seed=4)


@pytest.mark.parametrize("whole", [False, True])
def test_rows_longer_than_a_block_equal_the_forward_sum(whole: bool) -> None:
    rows = long_rows(whole)
    close(of(rows, 0.99, 0.95), slow(rows, 0.99, 0.95))


# --- identities --------------------------------------------------------------------------------------------


@few
@given(ragged(), rates)
def test_lambda_one_is_return_minus_value(rows: Rows, gamma: float) -> None:
    args = rows.rewards, rows.next_values, rows.terminated, rows.ended, rows.mask
    values = rows.values.nan_to_num()
    close(of(rows, gamma, 1.0), returns.n_step(*args, gamma=gamma, n=99) - values)
    # Where every episode ends at an own step and is seen to its end, nothing is bootstrapped.
    ended = rows.ended & rows.mask
    ended[:, -1], mask = True, rows.mask.clone()
    mask[:, -1] = True
    rewards, values = rows.rewards.nan_to_num(), rows.values.nan_to_num()
    found = gae(
        rewards, values, values.roll(-1, 1), ended, ended, ~torch.zeros_like(mask), gamma=gamma, lam=1.0
    )
    close(found, returns.to_go(rewards, ended, ~torch.zeros_like(mask), gamma=gamma) - values)


@few
@given(ragged(), rates)
def test_lambda_zero_is_the_td_error(rows: Rows, gamma: float) -> None:
    bootstrap = torch.where(rows.terminated, 0, rows.next_values)
    expected = torch.where(rows.mask, rows.rewards + gamma * bootstrap - rows.values, 0)
    close(of(rows, gamma, 0.0), expected)


@few
@given(ragged(), rates, rates)
def test_the_lambda_return_is_gae_plus_value(rows: Rows, gamma: float, lam: float) -> None:
    args = rows.rewards, rows.next_values, rows.terminated, rows.ended, rows.mask
    found = returns.lambda_returns(*args, gamma=gamma, lam=lam)
    close(found, of(rows, gamma, lam) + rows.values.nan_to_num())


@few
@given(st.integers(1, 40), st.floats(-5, 5), st.floats(-5, 5), st.floats(0, 1), st.floats(0, 1))
def test_constant_rewards_and_values_in_closed_form(
    length: int, reward: float, value: float, gamma: float, lam: float
) -> None:
    # δ is constant, so A_t = δ · (1 + γλ + ... + (γλ)^(T - 1 - t)).
    full = torch.ones(1, length, dtype=F64)
    never = torch.zeros(1, length, dtype=torch.bool)
    found = gae(reward * full, value * full, value * full, never, never, ~never, gamma=gamma, lam=lam)
    delta, rate = reward + (gamma - 1) * value, gamma * lam
    closed = [delta * sum(rate**i for i in range(length - t)) for t in range(length)]
    close(found, torch.tensor([closed], dtype=F64), atol=1e-11)


@few
@given(ragged(), rates, rates, st.integers(0, 8))
def test_an_end_cuts_a_row_in_two(rows: Rows, gamma: float, lam: float, where: int) -> None:
    split = where % rows.mask.shape[1]
    ended = rows.ended.clone()
    ended[:, split] = True
    cut = Rows(rows.rewards, rows.values, rows.next_values, rows.terminated, ended, rows.mask)
    parts = [
        of(Rows(*(tensor[:, part] for tensor in vars(cut).values())), gamma, lam)
        for part in (slice(0, split + 1), slice(split + 1, None))
    ]
    close(of(cut, gamma, lam), torch.cat(parts, 1))


# --- in expectation: an action, a turn of the environment, an action ---------------------------------------

GAMMA = 0.7
TABLE = torch.tensor([[0.3, -0.2, 0.5], [1.0, -1.0, 0.2], [0.1, 0.4, -0.6], [-0.3, 0.9, 0.0]], dtype=F64)
"""Logits: row 0 for the first action, row 1 + a for the second after the first action a."""
PAIRS = torch.tensor([(a, b) for a in range(3) for b in range(3)])
FIRST, SECOND = PAIRS.unbind(1)
EARLY, LATE = (
    torch.tensor([0.2, -0.4, 0.9], dtype=F64),
    torch.randn(3, 3, dtype=F64, generator=torch.Generator().manual_seed(5)),
)


def gradient(early: Tensor, late: Tensor) -> Tensor:
    """Σ_τ P(τ) (∇ log π(a) · early + ∇ log π(b | a) · late), credit `[9]` each."""
    table = TABLE.clone().requires_grad_()
    logp = table.log_softmax(-1)
    first, second = logp[0, FIRST], logp[1 + FIRST, SECOND]
    chance = (first + second).exp().detach()
    (chance * (first * early + second * late)).sum().backward()
    assert table.grad is not None
    return table.grad


def expected(value: Tensor, lam: float) -> Tensor:
    """E ĝ with the weight γ^t, under the values of the start (0) and of the states after each action."""
    nan = torch.full((9,), torch.nan, dtype=F64)
    start, after = value[0].expand(9), value[1:][FIRST]
    adv = gae(
        torch.stack([EARLY[FIRST], nan, LATE[FIRST, SECOND]], 1),
        torch.stack([start, nan, after], 1),
        torch.stack([after, nan, nan], 1),
        flags(0, 0, 1).expand(9, 3),
        flags(0, 0, 1).expand(9, 3),
        flags(1, 0, 1).expand(9, 3),
        gamma=GAMMA,
        lam=lam,
    )
    return gradient(adv[:, 0], GAMMA * adv[:, 2])


POLICY = TABLE.softmax(-1)
AFTER = (POLICY[1:] * LATE).sum(1)
TRUE = torch.cat([(POLICY[0] @ (EARLY + GAMMA * AFTER))[None], AFTER])
WRONG = torch.tensor([3.0, -1.0, 0.5, 2.0], dtype=F64)
EXACT = gradient(EARLY[FIRST] + GAMMA * LATE[FIRST, SECOND], EARLY[FIRST] + GAMMA * LATE[FIRST, SECOND])


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_with_the_true_value_it_is_unbiased_at_any_lambda(lam: float) -> None:
    close(expected(TRUE, lam), EXACT)


def test_with_a_wrong_value_it_is_unbiased_at_lambda_one_only() -> None:
    close(expected(WRONG, 1.0), EXACT)
    # The bias is that of the bootstrap, (1 - λ) γ (V̂ - V) of the state after the first action.
    for lam in (0.0, 0.5):
        error = (1 - lam) * GAMMA * (WRONG - TRUE)[1:][FIRST]
        bias = gradient(error, torch.zeros(9, dtype=F64))
        close(expected(WRONG, lam), EXACT + bias)
        assert bias.norm() > 0.1


# --- peers -------------------------------------------------------------------------------------------------

DYADIC = (31 / 32, 15 / 16)
"""γ and λ without rounding in float32, the type in which torchrl holds γ."""


@pytest.fixture(scope="module")
def torchrl() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its C++ extension
        from torchrl.objectives.value import functional
    return functional


@pytest.mark.parametrize("name", ["generalized_advantage_estimate", "vec_generalized_advantage_estimate"])
def test_equals_torchrl(torchrl: ModuleType, name: str) -> None:
    rows = long_rows(whole=True)
    adv, target = getattr(torchrl, name)(
        *DYADIC,
        *(
            tensor[..., None]
            for tensor in (
                rows.values,
                rows.next_values.nan_to_num(),
                rows.rewards,
                rows.ended,
                rows.terminated,
            )
        ),
    )
    # The vectorised one leaves out terms below 1e-7.
    atol = 1e-10 if name.startswith("gen") else 1e-5
    close(of(rows, *DYADIC), adv[..., 0], atol=atol)
    close(of(rows, *DYADIC) + rows.values, target[..., 0], atol=atol)


def test_lambda_returns_equal_torchrl(torchrl: ModuleType) -> None:
    rows = long_rows(whole=True)
    expected = torchrl.td_lambda_return_estimate(
        *DYADIC,
        *(
            tensor[..., None]
            for tensor in (rows.next_values.nan_to_num(), rows.rewards, rows.ended, rows.terminated)
        ),
    )
    args = rows.rewards, rows.next_values, rows.terminated, rows.ended, rows.mask
    found = returns.lambda_returns(*args, gamma=DYADIC[0], lam=DYADIC[1])
    close(found, expected[..., 0], atol=1e-10)


def test_equals_stable_baselines() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from gymnasium.spaces import Discrete
        from stable_baselines3.common.buffers import RolloutBuffer

    rows = long_rows(whole=True)
    num_rows, num_steps = rows.mask.shape
    buffer = RolloutBuffer(
        num_steps, Discrete(2), Discrete(2), "cpu", gae_lambda=0.95, gamma=0.99, n_envs=num_rows
    )
    # Its collector adds γ V(final observation) to the reward of a truncated step and takes it for an end.
    cut = rows.ended & ~rows.terminated
    buffer.rewards = torch.where(cut, rows.rewards + 0.99 * rows.next_values, rows.rewards).T.numpy()
    buffer.values = rows.values.T.numpy()
    starts = torch.cat([torch.ones(num_rows, 1, dtype=torch.bool), rows.ended[:, :-1]], 1)
    buffer.episode_starts = starts.T.numpy().astype(np.float64)
    buffer.advantages = np.zeros((num_steps, num_rows))
    buffer.compute_returns_and_advantage(
        rows.next_values[:, -1].nan_to_num(), rows.ended[:, -1].numpy().astype(np.float64)
    )
    close(of(rows, 0.99, 0.95), torch.from_numpy(buffer.advantages).T, atol=1e-10)


# --- arguments ---------------------------------------------------------------------------------------------


def test_a_termination_that_is_no_end_is_refused() -> None:
    with pytest.raises(ValueError, match=r"terminated without ended at row 0, step 1"):
        gae(R, V, NEXT, CUT, NEVER, ALL, gamma=0.5, lam=0.5)


@pytest.mark.parametrize(("gamma", "lam", "name"), [(1.1, 1.0, "gamma=1.1"), (1.0, -0.5, "lam=-0.5")])
def test_rates_outside_zero_and_one_are_refused(gamma: float, lam: float, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}: .* lies in \[0, 1\]"):
        gae(R, V, NEXT, NEVER, CUT, ALL, gamma=gamma, lam=lam)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("position", range(5))
def test_a_wrong_shape_is_named_with_both_shapes(position: int) -> None:
    args = [R, V, NEXT, NEVER, CUT, ALL]
    args[position] = args[position][:, :3]
    name = ["rewards", "values", "next_values", "terminated", "ended"][position]
    with pytest.raises(ValueError, match=rf"{name} \(1, 3\) with mask \(1, 4\)"):
        gae(*args, gamma=0.5, lam=0.5)


def test_the_dtype_is_that_of_the_rewards_no_gradient_flows_and_nothing_is_changed() -> None:
    values = V.float().requires_grad_()
    rewards, following = R.float(), NEXT.float()
    for mask in (ALL, ALL.float(), ALL.long()):
        found = gae(rewards, values, following, NEVER, CUT, mask, gamma=0.5, lam=0.5)
        assert found.tolist() == [[2.25, 5, 4.75, 7]]
        assert found.dtype is torch.float32 and not found.requires_grad
    assert torch.equal(rewards, R.float()) and torch.equal(following, NEXT.float())
    assert gae(*(x[:, :0] for x in (R, V, NEXT, NEVER, CUT, ALL)), gamma=0.5, lam=0.5).shape == (1, 0)
