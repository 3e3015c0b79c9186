"""What a table of values says to do, and the probability with which it does it."""

import math

import pytest
import torch
from scipy.stats import chisquare

from gradhat.errors import ModelError
from gradhat.policies.action_values import EpsilonGreedyTable, epsilon_greedy

Q = torch.tensor([[1.0, 3.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0], [2.0, -1.0, 0.0, 1.0]], dtype=torch.float64)


def test_the_best_share_what_exploring_leaves() -> None:
    rows = [[0.1, 0.4, 0.4, 0.1], [0.25] * 4, [0.7, 0.1, 0.1, 0.1]]
    wanted = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(epsilon_greedy(Q, 0.4), wanted, rtol=0, atol=1e-15)
    assert epsilon_greedy(Q, 0.0).tolist() == [[0, 0.5, 0.5, 0], [0.25] * 4, [1, 0, 0, 0]]


def test_actions_come_as_often_as_their_log_probability_says() -> None:
    observations = torch.arange(3).repeat_interleave(20_000)
    actions, logp = EpsilonGreedyTable(Q, 0.4).act(observations, torch.Generator().manual_seed(0))
    pi = epsilon_greedy(Q, 0.4)
    assert torch.equal(logp, pi[observations, actions].log())
    for s in range(3):
        counts = torch.bincount(actions[observations == s], minlength=4)
        assert chisquare(counts.numpy(), (20_000 * pi[s]).numpy()).pvalue > 1e-3


def test_the_largest_uniform_number_draws_an_action_that_is_played(monkeypatch: pytest.MonkeyPatch) -> None:
    """0.1 ten times is 0.9999999999999999: one below it must not fall behind the last of them."""
    table = torch.zeros(1, 12, dtype=torch.float64)
    table[0, 10:] = -1
    just_below_one = torch.full((1, 1), 1 - 2**-53, dtype=torch.float64)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: just_below_one)
    actions, logp = EpsilonGreedyTable(table, 0.0).act(torch.zeros(1).long(), torch.Generator())
    assert actions.tolist() == [9] and logp.tolist() == pytest.approx([math.log(0.1)])


def test_the_actor_reads_the_table_as_it_stands() -> None:
    table, observations = torch.zeros(1, 2).double(), torch.zeros(50).long()
    actor, generator = EpsilonGreedyTable(table, 0.0), torch.Generator().manual_seed(0)
    assert set(actor.act(observations, generator)[0].tolist()) == {0, 1}
    table[0, 1] = 1
    assert set(actor.act(observations, generator)[0].tolist()) == {1}


def test_the_lowest_of_equals_is_greedy() -> None:
    assert EpsilonGreedyTable(Q, 1.0).greedy(torch.tensor([2, 0, 1, 0])).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("number", [-1, 3])
def test_an_observation_that_the_table_has_not_is_refused(number: int) -> None:
    actor, observations = EpsilonGreedyTable(Q, 0.1), torch.tensor([0, number])
    for ask in (lambda: actor.act(observations, torch.Generator()), lambda: actor.greedy(observations)):
        with pytest.raises(ModelError, match=r"values \(3, 4\).*an observation it has not.*from 0 to 2"):
            ask()
