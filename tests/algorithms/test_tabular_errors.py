"""The error of a table, by hand in worlds whose optimum is known."""

import math
from dataclasses import replace

import pytest
import torch

from gradhat.algorithms.tabular_errors import best_return, errors, truth
from gradhat.envs.gym import GymSpec, make
from gradhat.envs.toy_text import tables
from gradhat.exact.mdp import TabularMDP, tabular
from gradhat.exact.zoo import ZOO, chain, cliff_walk, two_states
from gradhat.training.control.evaluate import play


def test_the_error_of_a_chain_by_hand() -> None:
    """Two steps to a reward of 1, or quit for 0.1; γ = 0.9. Q* = [[0.1, 0.9], [0.1, 1]]."""
    known = truth(chain(2))
    # Nobody acts in the last state.
    right = torch.tensor([[0.1, 0.9], [0.1, 1.0], [7.0, -7.0]], dtype=torch.float64)
    assert errors(known, right) == pytest.approx({"q_error/max": 0, "v_error/max": 0, "greedy_return": 1})
    quits = right.clone()
    quits[0, 0] = 1.2
    assert best_return(known) == pytest.approx(1)
    assert errors(known, quits) == pytest.approx(
        {"q_error/max": 1.1, "v_error/max": 0.8, "greedy_return": 0.1}
    )
    torn = right.clone()
    torn[1] = 0.1  # V draws ties: half of 0.1 and 1. An episode takes the first, as the agent does.
    assert errors(known, torn) == pytest.approx(
        {"q_error/max": 0.9, "v_error/max": 0.45, "greedy_return": 0.1}
    )


def test_the_time_limit_counts_for_the_return_alone() -> None:
    right = torch.tensor([[0.1, 0.9], [0.1, 1.0], [0.0, 0.0]], dtype=torch.float64)
    found = errors(truth(replace(chain(2), time_limit=1)), right)
    assert found == pytest.approx({"q_error/max": 0, "v_error/max": 0, "greedy_return": 0})


def detour() -> TabularMDP:
    """γ = 1. From 0: pay 1 and end (0), or go to 1 for nothing (1). From 1: stay for ever (0), or end (1).
    State 2 is never seen."""
    P = torch.zeros(4, 2, 4)
    P[0, 0, 3] = P[0, 1, 1] = P[1, 0, 1] = P[1, 1, 3] = 1
    P[2, :, 2] = 1
    reward = torch.tensor([[-1.0, 0.0], [0.0, -5.0], [9.0, 9.0], [0.0, 0.0]])
    terminal = torch.tensor([False, False, False, True])
    return tabular(P, reward, torch.tensor([1.0, 0, 0, 0]), gamma=1.0, terminal=terminal)


def test_a_policy_that_never_ends_has_no_value_and_one_that_ends_from_the_start_has_a_return() -> None:
    known, q = truth(detour()), torch.zeros(4, 2).double()
    q[:3] = torch.tensor([[-1.0, -5.0], [0.0, -5.0], [50.0, 50.0]])
    ends = errors(known, q)
    assert math.isnan(ends["v_error/max"]) and ends["greedy_return"] == -1
    q[0, 0] = -6
    lost = errors(known, q)
    assert math.isnan(lost["v_error/max"]) and math.isnan(lost["greedy_return"])
    assert lost["q_error/max"] == pytest.approx(5)


def test_the_empty_table_goes_up_for_ever() -> None:
    """Then there is no return without a time limit; with one it is exact, and without discount."""
    found = errors(truth(cliff_walk()), torch.zeros(48, 4).double())
    assert found["q_error/max"] == pytest.approx(113) and math.isnan(found["greedy_return"])
    limited = replace(cliff_walk(), time_limit=50, gamma=0.5)
    assert errors(truth(limited), torch.zeros(48, 4).double())["greedy_return"] == -50


@pytest.mark.slow
def test_the_return_is_what_episodes_of_frozen_lake_pay() -> None:
    """100 steps, no discount: the greedy policy of Q* for γ = 0.99, played in Gymnasium."""
    known = truth(tables("FrozenLake-v1", gamma=0.99, limited=True))
    found = errors(known, known.optimum.q)["greedy_return"]
    world = make(GymSpec("FrozenLake-v1", 100))
    best = known.optimum.q.argmax(-1)
    played = play(world, lambda seen: best[seen.argmax(-1)], 4000, 0, max_steps=1000).returns
    assert 0.70 < found < 0.78 and sum(played) / 4000 == pytest.approx(found, abs=4 * 0.44 / 4000**0.5)


def test_where_the_world_moves_by_itself_there_is_nothing_to_learn() -> None:
    mdp = ZOO["turn"]()
    known = truth(mdp)
    q = known.optimum.q.clone()
    q[~mdp.own] = 99
    assert errors(known, q)["q_error/max"] == 0


def test_a_discount_of_the_worlds_own_steps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"gamma=0.9 .* moves by itself.* Use gamma=1"):
        truth(replace(ZOO["turn"](), gamma=0.9))


def test_states_that_look_alike_have_no_optimum_of_observations() -> None:
    with pytest.raises(ValueError, match=r"states \[0, 1\] that all show 0.*tell its states apart"):
        truth(two_states())
