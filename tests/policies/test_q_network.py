"""Networks of action values: two streams, the mean of a distribution, how probable ε-greedy actions are."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from gradhat.policies.q_network import Dueling, EpsilonGreedy, Mean, Number, Plain, QNetwork


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def table(q: list[float]) -> QNetwork:
    """A network without hidden layers that says `q` whatever it sees."""
    scores = Plain(1, (len(q), 1), (), seeded())
    scores.layers.weights[0].data.zero_()
    scores.layers.biases[0].data.copy_(torch.tensor(q))
    return QNetwork(scores, Number())


def test_plain_scores_are_laid_out_by_action_then_atom() -> None:
    network = Plain(3, (2, 4), (5,), seeded()).double()
    x = torch.randn(6, 3, dtype=torch.float64, generator=seeded(1))
    (w0, w1), (b0, b1) = network.layers.weights, network.layers.biases
    flat = linear(linear(x, w0, b0).relu(), w1, b1)
    for a in range(2):
        for k in range(4):
            torch.testing.assert_close(network(x)[:, a, k], flat[:, 4 * a + k])


@pytest.mark.parametrize("hidden", [(6,), (5, 6)])
def test_dueling_is_two_streams_that_share_all_but_their_last_hidden_layer(hidden: tuple[int, ...]) -> None:
    network = Dueling(3, (4, 2), hidden, seeded()).double()
    x = torch.randn(7, 3, dtype=torch.float64, generator=seeded(1))
    *shared, (w, b) = zip(network.shared.weights, network.shared.biases, strict=True)
    y = x
    for weight, bias in shared:
        y = linear(y, weight, bias).relu()
    of_state, of_actions = linear(y, w[:6], b[:6]).relu(), linear(y, w[6:], b[6:]).relu()
    v = linear(of_state, network.value.weights[0], network.value.biases[0])
    adv = linear(of_actions, network.adv.weights[0], network.adv.biases[0]).reshape(7, 4, 2)
    torch.testing.assert_close(network(x), v[:, None] + adv - adv.mean(1, keepdim=True))


def test_the_mean_advantage_is_zero_so_that_the_value_is_identified() -> None:
    network = Dueling(3, (4, 1), (8, 8), seeded()).double()
    x = torch.randn(5, 3, dtype=torch.float64, generator=seeded(1))
    of_state = torch.relu(network.shared(x)).chunk(2, -1)[0]
    torch.testing.assert_close(network(x)[..., 0].mean(-1), network.value(of_state)[:, 0])
    before = network(x)
    network.adv.biases[0].data += 3.7
    torch.testing.assert_close(network(x), before)
    network.value.biases[0].data += 3.7
    torch.testing.assert_close(network(x), before + 3.7)


def test_the_mean_of_a_distribution_over_atoms() -> None:
    scores = torch.tensor([[[0.0, 0.0, 0.0], [math.log(2), 0.0, math.log(5)]]])
    q = Mean(-1, 3, 3)(scores)
    torch.testing.assert_close(q, torch.tensor([[1.0, (2 * -1 + 1 * 1 + 5 * 3) / 8]]))


def test_a_network_answers_in_its_own_dtype() -> None:
    network = QNetwork(Plain(2, (2, 3), (4,), seeded()), Mean(0, 1, 3)).double()
    assert network.q(torch.ones(1, 2)).dtype is torch.float64


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_epsilon_greedy_says_how_probable_its_actions_are(epsilon: float) -> None:
    actor = EpsilonGreedy(table([0.5, 2.0, -1.0]), epsilon)
    num_rows = 30_000
    actions, logp = actor.act(torch.zeros(num_rows, 1), seeded())
    probs = torch.full((3,), epsilon / 3)
    probs[1] += 1 - epsilon
    torch.testing.assert_close(logp, probs.log()[actions])
    share = actions.bincount(minlength=3) / num_rows
    # Five standard deviations of a share.
    assert bool(((share - probs).abs() <= 5 * (probs * (1 - probs) / num_rows).sqrt()).all())
    assert actor.greedy(torch.zeros(2, 1)).tolist() == [1, 1]


def test_epsilon_greedy_is_drawn_from_the_generator_alone() -> None:
    actor = EpsilonGreedy(table([0.0, 1.0]), 0.5)

    def draw(seed: int) -> Tensor:
        return actor.act(torch.zeros(50, 1), seeded(seed))[0]

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
