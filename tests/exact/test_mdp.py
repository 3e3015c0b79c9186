"""The tables are what was given, and what is no world is refused by name."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from worlds import SEEDS, random_theta, worlds

from gradhat.exact.enumerate import paths
from gradhat.exact.mdp import (
    TabularMDP,
    check_distribution,
    leads_to,
    reachable,
    softmax_policy,
    tabular,
    with_time,
)
from gradhat.exact.solve import backward_induction, evaluate, evaluate_finite, policy_iteration

START = torch.tensor([1.0, 0.0, 0.0])


def halves() -> Tensor:
    """P `[3, 2, 3]`: action 0 stays or moves on, action 1 moves on; the last state stays."""
    return torch.tensor(
        [
            [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]],
            [[0.0, 0.5, 0.5], [0.0, 0.0, 1.0]],
            [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]],
        ],
        dtype=torch.float64,
    )


def world(**changes: Any) -> TabularMDP:
    given: dict[str, Any] = {
        "transition": halves(),
        "reward": torch.ones(3, 2),
        "start": START,
        "gamma": 0.9,
        "terminal": torch.tensor([False, False, True]),
    }
    return tabular(**(given | changes))


def test_tables_are_float64_and_count_themselves() -> None:
    mdp = world(transition=halves().float(), observation=torch.tensor([0, 3, 1]))
    assert mdp.transition.dtype == mdp.reward.dtype == mdp.start.dtype == torch.float64
    assert (mdp.num_states, mdp.num_actions, mdp.num_observations) == (3, 2, 4)
    assert world().observation.tolist() == [0, 1, 2]
    assert world().own.all()


def test_a_reward_per_action_is_the_same_for_every_next_state() -> None:
    by_action = torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]])
    by_step = torch.tensor([[[1.0] * 3, [2.0] * 3], [[3.0] * 3, [4.0] * 3], [[0.0] * 3] * 2])
    assert torch.equal(world(reward=by_action).reward, world(reward=by_step).reward)
    assert torch.equal(world(reward=by_action).reward, by_step.double())


def test_the_rows_of_a_terminal_state_are_not_read_and_the_arguments_are_left_alone() -> None:
    transition, reward = halves(), torch.ones(3, 2, 3)
    transition[2] = -7
    given = transition.clone(), reward.clone()
    mdp = world(transition=transition, reward=reward)
    assert mdp.transition[2].tolist() == [[0, 0, 1], [0, 0, 1]]
    assert mdp.reward[2].abs().sum() == 0
    assert (mdp.reward[:2] == 1).all()
    assert torch.equal(transition, given[0])
    assert torch.equal(reward, given[1])


def changed(table: Tensor, place: tuple[int, ...], value: float) -> Tensor:
    table = table.clone()
    table[place] = value
    return table


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a row that does not sum to 1": (
        {"transition": changed(halves(), (1, 0, 2), 0.4)},
        r"transition\[1, 0\] does not sum to 1: found the sum 0\.9 .*Pass probabilities",
    ),
    "a sum that is off by a little": (
        {"transition": changed(halves(), (1, 0, 2), 0.5 + 1e-8)},
        r"transition\[1, 0\] does not sum to 1: found the sum 1\.00000001",
    ),
    "a negative probability in a row that sums to 1": (
        {"transition": changed(changed(halves(), (0, 1, 0), -0.5), (0, 1, 1), 1.5)},
        r"transition\[0, 1\] has a negative or missing entry: found .* least entry -0\.5",
    ),
    "a missing probability": (
        {"transition": changed(halves(), (0, 1, 0), torch.nan)},
        r"transition\[0, 1\] has a negative or missing entry",
    ),
    "a start that does not sum to 1": ({"start": START / 2}, r"start does not sum to 1: found the sum 0\.5"),
    "a negative start": ({"start": torch.tensor([1.5, -0.5, 0.0])}, "start has a negative"),
    "gamma above 1": ({"gamma": 1.1}, r"gamma=1\.1: a discount lies in \[0, 1\]\. Choose"),
    "gamma below 0": ({"gamma": -0.1}, r"gamma=-0\.1"),
    "no gamma": ({"gamma": float("nan")}, "gamma=nan"),
    "no step": ({"horizon": 0}, "horizon=0: a trajectory has a whole number of steps"),
    "no step before the cut": ({"time_limit": 0}, "time_limit=0: a trajectory has a whole number of steps"),
    "half a step": ({"horizon": 2.5}, r"horizon=2\.5: a trajectory has a whole number of steps"),
    "P of no axis": ({"transition": torch.tensor(1.0)}, r"transition \(\): P needs the shape \[S, A, S\]"),
    "an endless reward": (
        {"reward": changed(torch.ones(3, 2, 3), (1, 0, 2), torch.inf)},
        r"reward\[1, 0, 2\]=inf: rewards must be finite",
    ),
    "a negative observation": ({"observation": torch.tensor([0, -1, 0])}, "observations count from 0"),
    "P without an axis": ({"transition": halves()[:, 0]}, r"transition \(3, 3\): P needs the shape \[S, A"),
    "P that is not square": (
        {"transition": torch.ones(3, 2, 1), "reward": torch.ones(3, 2, 1)},
        r"transition \(3, 2, 1\): P needs the shape",
    ),
    "P of nothing": (
        {name: torch.ones(0) for name in ("start", "terminal")}
        | {name: torch.ones(0, 2, 0) for name in ("transition", "reward")},
        r"transition \(0, 2, 0\)",
    ),
    "a reward of other actions": (
        {"reward": torch.ones(3, 4)},
        r"reward \(3, 4, 3\) with transition \(3, 2, 3\): pass reward as \(3, 2, 3\)",
    ),
    "a reward per state": ({"reward": torch.ones(3)}, r"reward \(3,\) with transition \(3, 2, 3\)"),
    "a start of other states": ({"start": torch.ones(2) / 2}, r"start \(2,\) with transition \(3, 2, 3\)"),
    "a terminal of other states": ({"terminal": torch.ones(4)}, r"terminal \(4,\) with transition"),
    "an observation of other states": ({"observation": torch.arange(2)}, r"observation \(2,\) with tr"),
    "an own of other states": ({"own": torch.ones(2)}, r"own \(2,\) with transition"),
    "a world's move that depends on the action": (
        {"own": torch.tensor([False, True, True])},
        r"state 0 is not the policy's own, but transition\[0\] differs .* Give all actions the same row",
    ),
    "a world's reward that depends on the action": (
        {
            "own": torch.tensor([True, False, True]),
            "transition": halves()[:, 1:].expand(3, 2, 3),
            "reward": torch.tensor([[0.0, 0.0], [1.0, 2.0], [0.0, 0.0]]),
        },
        r"state 1 is not the policy's own, but reward\[1\] differs",
    ),
    "gamma 1 without a terminal state": (
        {"gamma": 1.0, "terminal": None},
        "gamma=1 without an absorbing end: from state 0 no terminal state .* Use gamma < 1, a horizon, or",
    ),
    "gamma 1 with a trap on the way": (
        {
            "gamma": 1.0,
            "terminal": torch.tensor([False, True, False]),
            "transition": changed(changed(halves(), (0, 1, 1), 0.5), (0, 1, 2), 0.5),
        },
        "gamma=1 without an absorbing end: from state 2",
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_world_is_refused_by_name(changes: dict[str, Any], message: str, unchecked: None) -> None:
    del unchecked
    with pytest.raises(ValueError, match=message):
        world(**changes)


def test_a_sum_that_is_off_by_rounding_is_accepted() -> None:
    world(transition=changed(halves(), (1, 0, 2), 0.5 + 1e-10))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transition": halves().flip(0)}, "state 2 is terminal: it must stay where it is and pay 0"),
        ({"reward": torch.ones(3, 2, 3, dtype=torch.float64)}, "state 2 is terminal"),
        ({"transition": halves().float()}, r"transition is torch\.float32: tables are float64\. `tabular`"),
        ({"start": START}, r"start is torch\.float32"),
    ],
)
def test_tables_given_directly_must_be_complete(
    changes: dict[str, Tensor], message: str, unchecked: None
) -> None:
    del unchecked
    with pytest.raises(ValueError, match=message):
        replace(world(), **changes)


def test_gamma_1_needs_an_end_only_where_one_can_come() -> None:
    trap = halves()
    trap[1] = torch.tensor([0.0, 1.0, 0.0])
    ends = torch.tensor([False, False, True])
    with pytest.raises(ValueError, match="from state 0 no terminal"):
        world(transition=trap, gamma=1.0, terminal=ends)
    world(transition=trap, gamma=1.0, terminal=ends, horizon=3)
    with pytest.raises(ValueError, match="from state 0 no terminal"):
        world(transition=trap, gamma=1.0, terminal=ends, time_limit=3)
    # Nobody gets from state 2 of this world, its end, to the trap.
    world(transition=trap, gamma=1.0, terminal=ends, start=START.flip(0))


@pytest.mark.parametrize(
    ("horizon", "time_limit", "max_steps"),
    [(None, None, None), (3, None, 3), (None, 2, 2), (3, 2, 2), (2, 3, 2)],
)
def test_the_longest_trajectory_ends_at_the_horizon_or_is_cut_at_the_limit(
    horizon: int | None, time_limit: int | None, max_steps: int | None
) -> None:
    mdp = world(horizon=horizon, time_limit=time_limit)
    assert (mdp.horizon, mdp.time_limit, mdp.max_steps) == (horizon, time_limit, max_steps)


@settings(max_examples=40, deadline=None)
@given(worlds(horizons=st.integers(1, 4)), SEEDS)
def test_with_the_step_in_the_state_a_horizon_is_a_world_like_any_other(mdp: TabularMDP, seed: int) -> None:
    assert mdp.horizon is not None
    timed, theta = with_time(replace(mdp, time_limit=2)), random_theta(mdp, seed)
    steps, size = mdp.horizon, mdp.num_states
    assert timed.horizon is None and timed.time_limit == 2
    assert timed.observation.reshape(steps + 1, size).tolist() == [
        [t * mdp.num_observations + int(o) for o in mdp.observation] for t in range(steps + 1)
    ]
    again = torch.zeros(timed.num_observations, mdp.num_actions, dtype=torch.float64)
    again[: steps * mdp.num_observations] = theta.repeat(steps, 1)
    policy = softmax_policy(timed, again)
    there, here = evaluate(timed, policy), evaluate_finite(mdp, softmax_policy(mdp, theta))
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-12)
    met = reachable(timed).reshape(steps + 1, size)
    close(there.v.reshape(steps + 1, size)[met], here.v[met])
    close(there.q.reshape(steps + 1, size, -1)[:-1][met[:-1]], here.q[met[:-1]])
    close(there.occupancy.reshape(steps + 1, size)[:-1], here.occupancy)
    close(there.expected_return, here.expected_return)
    best, found = backward_induction(mdp), policy_iteration(timed)
    close(found.v.reshape(steps + 1, size)[met], best.v[met])
    acts = met[:-1] & ~mdp.terminal
    assert torch.equal(found.policy.reshape(steps + 1, size, -1)[:-1][acts], best.policy[acts])
    listed, other = paths(timed_alone := with_time(mdp)), paths(mdp)
    assert torch.equal(listed.rewards, other.rewards) and torch.equal(listed.terminated, other.terminated)
    close(listed.probability(again), other.probability(theta))
    assert with_time(timed_alone) is timed_alone


def test_a_world_is_fully_observed_where_no_two_states_look_alike() -> None:
    assert world().fully_observed and world(observation=torch.tensor([0, 3, 1])).fully_observed
    assert not world(observation=torch.tensor([0, 0, 1])).fully_observed


def test_an_end_that_no_sum_sees_is_none() -> None:
    """Once in 10^17 steps: 1 − 1e-17 is 1 in float64."""
    rare = halves()
    rare[0] = torch.tensor([1.0, 1e-17, 0.0])
    with pytest.raises(ValueError, match="from state 0 no terminal"):
        world(transition=rare, gamma=1.0)
    rare[0, 0] = torch.tensor([0.5, 0.5, 0.0])
    assert float(evaluate(world(transition=rare, gamma=1.0), torch.full((3, 2), 0.5).double()).v[0]) > 1


def test_the_way_to_the_end_may_be_long() -> None:
    num_states = 30
    transition = torch.eye(num_states).roll(1, 1)[:, None]
    mdp = tabular(
        transition,
        torch.zeros(num_states, 1),
        torch.eye(num_states)[0],
        gamma=1.0,
        terminal=torch.arange(num_states) == num_states - 1,
    )
    step = mdp.transition[:, 0] > 0
    assert leads_to(mdp.terminal, step).all()
    assert leads_to(torch.arange(num_states) == 3, step).nonzero()[:, 0].tolist() == [0, 1, 2, 3]
    assert reachable(mdp).all()
    late = replace(mdp, start=torch.eye(num_states, dtype=torch.float64)[20])
    assert reachable(late).nonzero()[:, 0].tolist() == list(range(20, num_states))


def test_the_softmax_policy_plays_the_logits_of_what_it_sees() -> None:
    mdp = world(observation=torch.tensor([1, 1, 0]))
    theta = torch.tensor([[0.0, 0.0], [0.0, 1.0986122886681098]], dtype=torch.float64)
    expected = torch.tensor([[0.25, 0.75], [0.25, 0.75], [0.5, 0.5]], dtype=torch.float64)
    torch.testing.assert_close(softmax_policy(mdp, theta), expected, rtol=0, atol=1e-15)
    # Sums to 1 in float64 although the logits are float32.
    check_distribution("policy", softmax_policy(mdp, torch.randn(2, 2)))
    with pytest.raises(
        ValueError, match=r"theta \(3, 2\) with 2 observations and 2 actions: pass .* \(2, 2\)"
    ):
        softmax_policy(mdp, torch.zeros(3, 2))
