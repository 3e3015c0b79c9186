"""DQN: targets and gradients by hand on tables, its family, convergence to Q*; bugs of the wild."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from onpolicy import lived
from replayed import F64, apart, gradient, plain, resumes, same, seeded
from torch import Tensor
from torch.nn.functional import one_hot

from gradhat.algorithms import dqn
from gradhat.algorithms.dqn import Settings, State
from gradhat.exact.enumerate import paths
from gradhat.exact.mdp import TabularMDP, with_time
from gradhat.exact.solve import evaluate, policy_iteration
from gradhat.exact.zoo import chain, random_mdp
from gradhat.rollouts.replay import Replay
from gradhat.trajectories import Transitions

TABLE = Settings(hidden=(), double=False, lr=0.1)
"""No hidden layer: with one-hot observations the weights are a table."""


def table(settings: Settings, online: Tensor, target: Tensor) -> State:
    """A state whose networks say `online` and `target`, `[S, A * K]`, and that follows gradients plainly."""
    num_states = len(online)
    state = dqn.init(num_states, online.shape[1] // settings.num_atoms, settings, seeded())
    for network, rows in ((state.online, online), (state.target, target)):
        network.double()
        weight, bias = network.parameters()
        weight.data.copy_(rows.T)
        bias.data.zero_()
    state.optimizer = plain(state.optimizer)
    return state


def rows(*transitions: tuple[int, int, float, int, bool, float], num_states: int = 3) -> Transitions:
    """Of (state, action, reward, next state, terminated, discount)."""
    states, actions, rewards, following, terminated, discounts = zip(*transitions, strict=True)
    return Transitions(
        observations=one_hot(torch.tensor(states), num_states).to(F64),
        actions=torch.tensor(actions),
        rewards=torch.tensor(rewards, dtype=F64),
        next_observations=one_hot(torch.tensor(following), num_states).to(F64),
        terminated=torch.tensor(terminated),
        discounts=torch.tensor(discounts, dtype=F64),
        later=torch.zeros(len(states)),
        later_logp=torch.zeros(len(states)),
        weights=torch.ones(len(states), dtype=F64),
        index=torch.arange(len(states)),
    )


ONLINE = torch.tensor([[0.0, 1.0], [2.0, 3.0], [5.0, 4.0]], dtype=F64)
LAGGING = torch.tensor([[1.0, 0.5], [8.0, 6.0], [7.0, 9.0]], dtype=F64)
BATCH = rows(
    (0, 0, 1.0, 1, False, 0.5),  # an ordinary step
    (1, 1, 2.0, 2, True, 0.5),  # it terminated: nothing follows
    (2, 0, 3.0, 2, False, 0.5),  # it was truncated: the final observation follows
    (0, 1, 4.0, 2, False, 0.125),  # three steps at once, with γ = 1/2
)


# --- targets by hand ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("double", "following"),
    [
        (False, (8.0, None, 9.0, 9.0)),  # max_a Q′(s′, a)
        (True, (6.0, None, 7.0, 7.0)),  # Q′(s′, argmax_a Q(s′, a)): actions 1, 0, 0
    ],
)
def test_the_target_of_a_number(double: bool, following: tuple[float | None, ...]) -> None:
    state = table(replace(TABLE, double=double), ONLINE, LAGGING)
    update = dqn.update(state, BATCH, TABLE)
    first, _, third, fourth = (v or 0.0 for v in following)
    y = [1 + 0.5 * first, 2.0, 3 + 0.5 * third, 4 + 0.125 * fourth]
    assert update.td_errors.tolist() == pytest.approx([y[0] - 0, y[1] - 3, y[2] - 5, y[3] - 1], abs=1e-12)
    # Planted: the time limit taken for death, the network that is trained in place of the one that lags.
    dead = replace(BATCH, terminated=torch.tensor([False, True, True, False]))
    assert dqn.update(table(TABLE, ONLINE, LAGGING), dead, TABLE).td_errors[2] == 3 - 5
    own = dqn.update(table(TABLE, ONLINE, ONLINE), BATCH, TABLE).td_errors
    assert own.tolist() == pytest.approx([2.5, -1, 0.5, 3.625], abs=1e-12)


def distribution(*probs: tuple[float, ...]) -> Tensor:
    return torch.tensor(probs, dtype=F64).log().flatten()


def test_the_target_of_a_distribution() -> None:
    """C51 with the atoms -2, 0, 2: the loss is the divergence, its gradient p − m at the chosen action."""
    settings = Settings(hidden=(), num_atoms=3, low=-2.0, high=2.0)
    # In state 1 Q′ prefers action 0 (0.6 > 0.4), Q action 1.
    lagging = torch.stack(
        [distribution((0.3, 0.3, 0.4), (0.2, 0.2, 0.6)), distribution((0.1, 0.5, 0.4), (0.2, 0.4, 0.4))]
    )
    online = torch.stack(
        [distribution((0.25, 0.5, 0.25), (0.6, 0.2, 0.2)), distribution((0.5, 0.3, 0.2), (0.2, 0.3, 0.5))]
    )
    batch = rows(
        (0, 0, 1.0, 1, False, 0.5), (0, 1, 1.0, 1, True, 0.5), (1, 0, 0.0, 1, False, 1.0), num_states=2
    )
    # a* is 1 for Q: atoms come to 0, 1, 2, and at 1 half goes to 0 and half to 2. Row 1: all at 1.
    targets = {
        True: [[0, 0.4, 0.6], [0, 0.5, 0.5], [0.2, 0.4, 0.4]],
        # a* is 0 for Q′: 0.1 on 0, 0.5 half and half, 0.4 on 2.
        False: [[0, 0.35, 0.65], [0, 0.5, 0.5], [0.1, 0.5, 0.4]],
    }
    said = torch.tensor([[0.25, 0.5, 0.25], [0.6, 0.2, 0.2], [0.5, 0.3, 0.2]], dtype=F64)
    for double, target in targets.items():
        m = torch.tensor(target, dtype=F64)
        state = table(replace(settings, double=double), online, lagging)
        before = state.online.scores.get_parameter("layers.weights.0").detach().clone()
        update = dqn.update(state, batch, settings)
        weight = before - state.online.scores.get_parameter("layers.weights.0").detach()
        divergence = (torch.xlogy(m, m) - m * said.log()).sum(-1)
        torch.testing.assert_close(update.td_errors, divergence)
        expected = torch.zeros(2, 2, 3, dtype=F64)
        for (s, a), row in zip([(0, 0), (0, 1), (1, 0)], (said - m) / 3, strict=True):
            expected[s, a] = row
        torch.testing.assert_close(weight.T, expected.flatten(1))
        assert float(update.metrics["q"]) == pytest.approx(float((said @ Tensor([-2, 0, 2]).double()).mean()))


# --- gradients ---------------------------------------------------------------------------------------------


def test_the_gradient_is_the_clipped_error_at_the_action_taken_and_nowhere_else() -> None:
    weights = torch.tensor([1.0, 0.5, 0.2, 1.0], dtype=F64)
    state = table(TABLE, ONLINE, LAGGING)
    found, _ = gradient(state.online, lambda: dqn.update(state, replace(BATCH, weights=weights), TABLE))
    # Errors Q − y: -5, 1, -2.5, -4.125, all held within ±1; means of four rows.
    expected = torch.tensor([[-0.25, -0.25], [0.0, 0.125], [-0.05, 0.0]], dtype=F64)
    torch.testing.assert_close(found.T, expected)
    assert torch.equal(state.target.scores.layers.weights[0].T, LAGGING)


def test_no_gradient_flows_through_the_target() -> None:
    """Planted: with the network's own target, not detached, the value of the successor is pulled too."""
    state = table(replace(TABLE, delta=100.0), ONLINE, ONLINE)
    found = gradient(state.online, lambda: dqn.update(state, BATCH, TABLE))
    q = ONLINE.clone().requires_grad_()
    following = q[BATCH.next_observations.argmax(-1)].amax(-1)
    y = BATCH.rewards + BATCH.discounts * ~BATCH.terminated * following
    said = q[BATCH.observations.argmax(-1), BATCH.actions]

    def loss(target: Tensor) -> Tensor:
        return ((said - target) ** 2 / 2).mean()

    right, planted = (torch.autograd.grad(loss(t), q, retain_graph=True)[0].T for t in (y.detach(), y))
    same(found[:1], [right])
    assert apart(found[:1], [planted])


def test_both_streams_of_a_dueling_network_learn_from_one_action() -> None:
    settings = Settings(hidden=(4,), dueling=True, delta=100.0)
    state = dqn.init(3, 2, settings, seeded())
    state.online.double(), state.target.double()
    state.optimizer = plain(state.optimizer)
    scores = state.online.scores
    assert isinstance(scores, dqn.Dueling)
    found = gradient(scores, lambda: dqn.update(state, BATCH, settings))
    names = [name for name, _ in scores.named_parameters()]
    moved = dict(zip(names, found, strict=True))
    # The advantages' biases move against each other, so that their mean, 0, stays.
    assert float(moved["adv.biases.0"].sum()) == pytest.approx(0, abs=1e-12)
    assert float(moved["adv.biases.0"].abs().max()) > 1e-3
    assert float(moved["value.biases.0"].abs().max()) > 1e-3


# --- the target network, ε, the state ----------------------------------------------------------------------


@pytest.mark.parametrize(("every", "tau"), [(3, 1.0), (1, 0.25)])
def test_the_target_network_follows(every: int, tau: float) -> None:
    settings = replace(TABLE, target_every=every, tau=tau)
    state = dqn.init(3, 2, settings, seeded())
    lagging = [p.clone() for p in state.target.parameters()]
    for i in range(1, 7):
        dqn.update(state, BATCH, settings)
        if i % every == 0:
            lagging = [
                (1 - tau) * old + tau * p.detach()
                for old, p in zip(lagging, state.online.parameters(), strict=True)
            ]
        for mine, theirs in zip(state.target.parameters(), lagging, strict=True):
            torch.testing.assert_close(mine, theirs, atol=0 if tau == 1 else 1e-6, rtol=0)
    assert state.num_updates == 6


def test_epsilon_falls_along_a_line() -> None:
    settings = Settings(epsilon_start=1.0, epsilon_end=0.2, epsilon_frames=1000)
    found = [dqn.epsilon(n, settings) for n in (0, 250, 1000, 5000)]
    assert found == pytest.approx([1.0, 0.8, 0.2, 0.2])


FAMILY: list[dict[str, Any]] = [
    {"double": False},
    {},
    {"dueling": True},
    {"num_atoms": 21, "low": 0.0, "high": 1.0},
    {"dueling": True, "num_atoms": 21, "low": 0.0, "high": 1.0, "tau": 0.1, "target_every": 1},
]


@pytest.mark.parametrize("choice", FAMILY)
def test_a_run_resumes_to_the_bit(choice: dict[str, Any]) -> None:
    settings = Settings(**({"hidden": (8,), "target_every": 2} | choice))
    resumes(
        lambda: dqn.init(3, 2, settings, seeded()),
        lambda state, i: dqn.update(state, replace(BATCH, rewards=BATCH.rewards + i), settings),
    )


# --- does it find Q*? --------------------------------------------------------------------------------------


def every_step(mdp: TabularMDP) -> Transitions:
    """Each step that can happen, its probability as its weight: the loss is an expectation."""
    num_states = mdp.num_states
    probs = torch.where(mdp.terminal[:, None, None], 0, mdp.transition)
    states, actions, following = probs.nonzero().unbind(-1)
    return Transitions(
        observations=one_hot(states, num_states).float(),
        actions=actions,
        rewards=mdp.reward[states, actions, following].float(),
        next_observations=one_hot(following, num_states).float(),
        terminated=mdp.terminal[following],
        discounts=torch.full((len(states),), mdp.gamma),
        later=torch.zeros(len(states)),
        later_logp=torch.zeros(len(states)),
        weights=probs[states, actions, following].float(),
        index=torch.arange(len(states)),
    )


@pytest.mark.parametrize(
    ("mdp", "choice"),
    [
        (chain(4), {}),
        (chain(4), {"double": False, "dueling": True}),
        (chain(4), {"num_atoms": 21, "low": 0.0, "high": 1.0, "lr": 0.02}),
        (random_mdp(num_states=4, num_actions=3, horizon=None, gamma=0.6, seed=3), {"delta": 10.0}),
    ],
)
def test_q_converges_to_the_optimum(mdp: TabularMDP, choice: dict[str, Any]) -> None:
    """One-hot states through a hidden layer. In the chain quitting pays now, going on pays more, later."""
    settings = Settings(**({"hidden": (32,), "lr": 0.01, "target_every": 15} | choice))
    state, batch = dqn.init(mdp.num_states, mdp.num_actions, settings, seeded()), every_step(mdp)
    for i in range(400):
        state.optimizer.param_groups[0]["lr"] = settings.lr * (1 - i / 400)
        dqn.update(state, batch, settings)
    live = ~mdp.terminal
    found = state.online.q(torch.eye(mdp.num_states))[live].detach().double()
    torch.testing.assert_close(found, policy_iteration(mdp).q[live], atol=0.01, rtol=0)


# --- a problem that ends after some steps, and one that is cut ---------------------------------------------

LOOP = random_mdp(3, 2, seed=6, gamma=0.8, horizon=None)
KINDS = {"horizon": with_time(replace(LOOP, horizon=3)), "time limit": replace(LOOP, time_limit=3)}


def expected_targets(mdp: TabularMDP, worth: Tensor, *, n_step: int, merged: bool = False) -> Tensor:
    """E[y | s, a] `[S, A]` under the uniform policy, where Q′ is `worth` `[S, A]`; nan where nobody comes.

    Every trajectory is put into a replay, a row for each, and every step is drawn from it."""
    theta = torch.zeros(mdp.num_observations, mdp.num_actions, dtype=F64)
    every = paths(mdp)
    batch, chance = lived(mdp, every, theta), every.probability(theta)
    if merged:
        ended = batch.terminated | batch.truncated
        batch = replace(batch, terminated=ended, truncated=torch.zeros_like(ended))
    (num_rows, num_steps), shape = every.actions.shape, (mdp.num_observations,)
    capacity = num_rows * num_steps
    memory = Replay(capacity, num_rows, shape, (), action_dtype=np.int64, gamma=mdp.gamma, n_step=n_step)
    memory.add(batch)
    drawn = memory.sample(30 * capacity, np.random.default_rng(0))
    state = table(replace(TABLE, lr=0.0), torch.zeros_like(worth), worth)
    y, seen = dqn.update(state, drawn, TABLE).td_errors.double(), drawn.index
    once = torch.zeros(capacity, dtype=F64).index_copy(0, seen, y)
    assert len(seen.unique()) == int(batch.mask.sum())
    slot, row = torch.arange(capacity) // num_rows, torch.arange(capacity) % num_rows
    place, weight = (every.states[row, slot], every.actions[row, slot]), chance[row] * every.mask[row, slot]
    total, count = torch.zeros_like(worth), torch.zeros_like(worth)
    total.index_put_(place, weight * once, accumulate=True)
    return total / count.index_put_(place, weight, accumulate=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_right_q_expects_itself_at_a_horizon_and_at_a_time_limit(kind: str) -> None:
    """y holds max Q*: its mean is Q*. Over several steps it holds what the policy of the memory earns: with V
    of that policy its mean is Q of that policy."""
    mdp = KINDS[kind]
    best = policy_iteration(mdp).q
    uniform = evaluate(mdp, torch.full_like(best, 0.5))
    of_policy = uniform.v[:, None].expand_as(best)
    for worth, wanted, n_step in ((best, best, 1), (of_policy, uniform.q, 1), (of_policy, uniform.q, 3)):
        found = expected_targets(mdp, worth, n_step=n_step)
        come = ~found.isnan()
        assert come.sum() == (18 if kind == "horizon" else 6)
        torch.testing.assert_close(found[come], wanted[come], rtol=0, atol=1e-5)
        if kind == "time limit":
            merged = expected_targets(mdp, worth, n_step=n_step, merged=True)
            assert float((merged - wanted)[come].abs().max()) > 0.05
