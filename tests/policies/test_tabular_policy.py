"""A softmax over a table, against sums written out by hand."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from gradhat.errors import ModelError
from gradhat.policies.policy import Policy
from gradhat.policies.tabular import Logits, TabularPolicy
from gradhat.trajectories import Trajectories

F64 = torch.float64
THETA = torch.tensor([[0.3, -1.2, 0.8], [2.0, 0.1, -0.4]], dtype=F64)
OBSERVATIONS = [(0, 1, 1, 0), (1, 0, 0, 0), (1, 1, 0, 1), (0, 0, 0, 0), (0, 1, 0, 1)]
ACTIONS = [[2, 0, 1, 1], [0, 2, 0, 0], [1, 1, 2, 0], [0, 0, 0, 0], [2, 2, 1, 0]]
MASK = [[1, 1, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 1, 1]]


def batch() -> Trajectories:
    """Five trajectories of four steps: whole, padded, with steps of the world's own, without any step."""
    mask = torch.tensor(MASK, dtype=torch.bool)
    nothing = torch.zeros(mask.shape)
    return Trajectories(
        observations=OBSERVATIONS,
        actions=torch.tensor(ACTIONS),
        mask=mask,
        logp=nothing,
        rewards=nothing,
        terminated=nothing.bool(),
        truncated=nothing.bool(),
        group=torch.zeros(5, dtype=torch.long),
        version=torch.zeros(5, dtype=torch.long),
    )


def policy(num_rows: int | None = None, theta: Tensor = THETA) -> TabularPolicy:
    return TabularPolicy(Logits(theta), num_rows)


def chances(observation: int) -> list[float]:
    weights = [math.exp(x) for x in THETA[observation].tolist()]
    return [w / sum(weights) for w in weights]


def test_logp_and_entropy_are_those_of_the_softmax() -> None:
    made: Policy = policy()
    logp, entropy, values = made.evaluate(batch())
    assert values is None
    assert logp.dtype == entropy.dtype == F64
    for i, t in torch.cartesian_prod(torch.arange(5), torch.arange(4)).tolist():
        pi = chances(OBSERVATIONS[i][t])
        own = MASK[i][t]
        assert logp[i, t].item() == pytest.approx(own * math.log(pi[ACTIONS[i][t]]), abs=1e-14)
        assert entropy[i, t].item() == pytest.approx(own * -sum(p * math.log(p) for p in pi), abs=1e-14)


def test_the_gradient_is_the_score_and_nothing_of_masked_steps() -> None:
    """∂ log π(a | o) / ∂θ_o = 1_a − π(· | o)."""
    made = policy()
    weights = torch.arange(1.0, 21.0, dtype=F64).reshape(5, 4)
    (weights * made.evaluate(batch()).logp).sum().backward()
    expected = torch.zeros_like(THETA)
    for i, t in batch().mask.nonzero().tolist():
        o, a = OBSERVATIONS[i][t], ACTIONS[i][t]
        score = torch.tensor([(k == a) - p for k, p in enumerate(chances(o))], dtype=F64)
        expected[o] += weights[i, t] * score
    torch.testing.assert_close(made.module.theta.grad, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("num_rows", [None, 1, 2, 5, 9])
def test_parts_add_up_to_the_whole(num_rows: int | None) -> None:
    whole, cut = policy(), policy(num_rows)
    everything = whole.evaluate(batch())
    (everything.logp + 0.3 * everything.entropy).sum().backward()
    parts = cut.split(batch())
    assert [i for rows in parts for i in rows] == list(range(5))
    assert {len(rows) for rows in parts[:-1]} <= {num_rows}
    for rows in parts:
        part = cut.evaluate(batch().select(rows))
        torch.testing.assert_close(part.logp, everything.logp[rows], rtol=0, atol=0)
        (part.logp + 0.3 * part.entropy).sum().backward()
    torch.testing.assert_close(cut.module.theta.grad, whole.module.theta.grad, rtol=0, atol=1e-13)


def test_a_batch_of_nothing_has_no_parts() -> None:
    empty = batch().select([])
    assert policy().split(empty) == policy(2).split(empty) == []
    assert policy().evaluate(empty).logp.shape == (0, 4)


def test_actions_are_drawn_from_the_policy_with_their_logp() -> None:
    made, observations = policy(), torch.tensor([0, 1]).repeat(5000)
    actions, logp = made.act(observations, torch.Generator().manual_seed(0))
    assert not logp.requires_grad
    again, _ = made.act(observations, torch.Generator().manual_seed(0))
    assert torch.equal(actions, again)
    for o in (0, 1):
        pi = torch.tensor(chances(o), dtype=F64)
        count = torch.bincount(actions[observations == o], minlength=3)
        assert chisquare(count.numpy(), (pi * 5000).numpy()).pvalue > 1e-3
        torch.testing.assert_close(
            logp[observations == o], pi.log()[actions[observations == o]], rtol=0, atol=1e-14
        )


def test_an_action_that_is_never_taken_does_no_harm() -> None:
    """A logit of −inf: no NaN in the entropy, nor in any gradient."""
    theta = THETA.clone()
    theta[:, 1] = -math.inf
    made = policy(theta=theta)
    trajectories = replace(batch(), actions=torch.where(batch().actions == 1, 0, batch().actions))
    logp, entropy, _ = made.evaluate(trajectories)
    (logp + entropy).sum().backward()
    two = policy(theta=THETA[:, [0, 2]])
    actions = torch.where(trajectories.actions == 2, 1, 0)
    expected = two.evaluate(replace(trajectories, actions=actions))
    (expected.logp + expected.entropy).sum().backward()
    torch.testing.assert_close((logp, entropy), expected[:2], rtol=0, atol=1e-14)
    assert made.module.theta.grad is not None
    torch.testing.assert_close(made.module.theta.grad[:, [0, 2]], two.module.theta.grad, rtol=0, atol=1e-13)
    assert (made.module.theta.grad[:, 1] == 0).all()


def test_the_table_is_the_policys_own_and_keeps_its_dtype() -> None:
    theta = THETA.float()
    made = policy(theta=theta)
    theta += 1
    assert torch.equal(made.module.theta.detach(), THETA.float())
    assert made.evaluate(batch()).logp.dtype == torch.float32
    assert [name for name, _ in made.module.named_parameters()] == ["theta"]


@pytest.mark.parametrize("theta", [torch.zeros(3), torch.zeros(2, 3, dtype=torch.long)])
def test_a_table_that_is_none_is_an_error(theta: Tensor) -> None:
    with pytest.raises(ModelError, match=r"a table of logits: found \(.*Pass floats \[O, A\]"):
        Logits(theta)


def test_what_the_table_has_not_is_an_error() -> None:
    made = policy()
    with pytest.raises(ModelError, match=r"an observation it has not: found numbers from 0 to 2\. .* 0 to 1"):
        made.evaluate(replace(batch(), observations=[(2, 0, 0, 0), *OBSERVATIONS[1:]]))
    with pytest.raises(
        ModelError, match=r"an action it has not: found numbers from -1 to 2\. .* from 0 to 2"
    ):
        made.evaluate(replace(batch(), actions=batch().actions.where(batch().actions != 1, -1)))
    with pytest.raises(ModelError, match="an observation it has not"):
        made.act(torch.tensor([0, -1]), torch.Generator())
    with pytest.raises(ModelError, match=r"found tuples of \[1, 3\] with 4 steps\. Pass 4 numbers"):
        made.evaluate(replace(batch(), observations=[(0,), (0, 0, 0), *OBSERVATIONS[2:]]))
