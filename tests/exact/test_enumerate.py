"""Trajectories and batches against their naive twins, and worlds that cannot be listed."""

import itertools
import math
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
import twins
from hypothesis import given, settings
from worlds import SEEDS, random_theta

from gradhat.exact import enumerate as every
from gradhat.exact.choices import TUPLES
from gradhat.exact.enumerate import Draws, count_paths, draws, paths, sampled, simulated, step_scores
from gradhat.exact.mdp import TabularMDP, tabular
from gradhat.exact.zoo import WorldTurn, chain, corridor, random_mdp, token_mdp

F64 = torch.float64
EXAMPLES = settings(max_examples=50, deadline=None)


def turns() -> TabularMDP:
    """Two prompts, two words and a word of the world in the middle: no horizon."""
    verifiers = (lambda words, ended: float(ended), lambda words, ended: float(words.count(1)))
    return token_mdp(2, 3, verifiers=verifiers, turn=WorldTurn(1, (0.75, 0.25)))


# --- trajectories ------------------------------------------------------------------------------------------


@given(mdp=twins.lively_worlds())
@EXAMPLES
def test_paths_are_those_of_a_recursion(mdp: TabularMDP) -> None:
    found, expected = paths(mdp), twins.all_paths(mdp)
    for ours, theirs in zip(sorted(twins.read(found)), sorted(expected), strict=True):
        assert ours.start == theirs.start
        assert ours.steps == theirs.steps
        assert ours.world == pytest.approx(theirs.world, rel=1e-14)
    assert len(found) == count_paths(mdp)


@pytest.mark.parametrize(("mdp", "number"), [(chain(4), 5), (turns(), 2 * (1 + 2 * 2 * 3))])
def test_a_world_without_a_horizon_ends_by_itself(mdp: TabularMDP, number: int) -> None:
    found = paths(mdp)
    assert len(found) == count_paths(mdp) == number
    assert sorted(twins.read(found)) == sorted(twins.all_paths(mdp))
    assert not found.truncated.any()


def test_the_turn_of_the_world_is_masked_and_all_its_words_come() -> None:
    # Of prompt 0: end at once; or a word, one of the world's two, and then one of three actions.
    found = paths(turns()).select(torch.arange(13))
    assert Counter(found.mask.int().tolist()[i] == [1, 0, 1] for i in range(13)) == {True: 12, False: 1}
    own_world = found.world.round(decimals=6).tolist()
    assert Counter(own_world) == {0.5: 1, 0.375: 6, 0.125: 6}


@given(mdp=twins.lively_worlds(), seed=SEEDS)
@EXAMPLES
def test_probabilities_and_returns_are_plain_products_and_sums(mdp: TabularMDP, seed: int) -> None:
    found, theta = paths(mdp), 2 * random_theta(mdp, seed)
    rows = twins.read(found)
    probability = [path.world * twins.policy_chance(path, theta) for path in rows]
    assert found.probability(theta).tolist() == pytest.approx(probability, rel=1e-12)
    assert sum(probability) == pytest.approx(1, abs=1e-12)
    returns = [twins.discounted(path, mdp.gamma) for path in rows]
    assert found.returns().tolist() == pytest.approx(returns, rel=1e-13, abs=1e-14)


def test_logits_in_float32_are_taken_for_what_they_are() -> None:
    found, theta = paths(chain(4)), torch.tensor([[0.1, 0.7]] * 5)
    assert torch.equal(found.logp(theta), found.logp(theta.double()))


def test_a_trajectory_may_start_where_it_ends() -> None:
    mdp = random_mdp(3, 2, seed=1, num_terminal=2, horizon=2)
    mdp = replace(mdp, start=torch.tensor([0.0, 0.25, 0.75], dtype=F64))
    found = paths(mdp)
    assert found.states.tolist() == [[1], [2]]
    assert found.world.tolist() == [0.25, 0.75]
    assert not (found.mask | found.terminated | found.truncated).any()
    assert found.probability(random_theta(mdp, 0)).tolist() == [0.25, 0.75]


@given(mdp=twins.lively_worlds(), seed=SEEDS)
@EXAMPLES
def test_scores_are_those_of_autograd(mdp: TabularMDP, seed: int) -> None:
    found, theta = paths(mdp), random_theta(mdp, seed)
    weights = torch.randn(
        found.rewards.shape, dtype=F64, generator=torch.Generator().manual_seed(seed)
    ).masked_fill(~found.mask, math.nan)
    ((_, part),) = draws(found, theta, group_size=1).batches()
    ours = part.score(weights)
    by_step = torch.zeros(len(found), *theta.shape, dtype=F64)
    steps = step_scores(found, theta) * weights.nan_to_num()[..., None]
    for i, t in itertools.product(range(len(found)), range(found.rewards.shape[1])):
        by_step[i, found.observations[i, t]] += steps[i, t]
    assert torch.allclose(by_step.flatten(1), ours, rtol=0, atol=1e-12)
    for i in range(0, len(found), 1 + len(found) // 20):
        path = twins.read(found.select(torch.tensor([i])))[0]
        expected = twins.score(path, theta, weights[i, : len(path.steps)].tolist())
        assert torch.allclose(ours[i], expected, rtol=0, atol=1e-12)


def test_the_score_of_a_batch_adds_up_its_rows() -> None:
    mdp = turns()
    found, theta = paths(mdp), random_theta(mdp, 5)
    ((_, part),) = draws(found, theta, group_size=2, num_groups=1).batches()
    ((_, alone),) = draws(found, theta, group_size=1).batches()
    weights = torch.linspace(-1, 1, found.rewards.numel(), dtype=F64).reshape(found.rewards.shape)
    single = alone.score(weights)
    rows = draws(found, theta, group_size=2).rows
    expected = single[rows[:, 0]] + single[rows[:, 1]]
    assert torch.allclose(part.score(weights[rows.flatten()]), expected, rtol=0, atol=1e-13)


# --- what cannot be listed ---------------------------------------------------------------------------------


def test_the_limit_counts_trajectories() -> None:
    mdp = turns()
    assert len(paths(mdp, limit=26)) == 26
    with pytest.raises(ValueError, match=r"found 26; the limit is 25\. Use a smaller world or a shorter"):
        paths(mdp, limit=25)


def test_a_loop_without_a_horizon_is_endless() -> None:
    assert count_paths(corridor()) == math.inf
    with pytest.raises(ValueError, match="found endlessly many: a loop without a horizon; the limit is"):
        paths(corridor())


@pytest.mark.parametrize("num_terminal", [0, 1])
def test_more_trajectories_than_floats_reach_are_too_many(num_terminal: int) -> None:
    # Counted in floats, 0 ways times infinitely many trajectories is not a number, and no more than a limit.
    mdp = random_mdp(5, 3, horizon=500, num_terminal=num_terminal)
    assert every.MANY <= count_paths(mdp) < math.inf
    with pytest.raises(ValueError, match=r"found \d\.\d+e\+30\d; the limit is 200000"):
        paths(mdp)
    dense = random_mdp(100, 100, horizon=None, branching=100)
    assert count_paths(dense) == math.inf


def test_logits_that_do_not_fit_are_named(unchecked: None) -> None:
    found = paths(chain(4))
    with pytest.raises(
        ValueError, match=re.escape("theta (3, 2) with trajectories of 4 observations and 2 a")
    ):
        draws(found, torch.zeros(3, 2, dtype=F64), group_size=1)
    with pytest.raises(ValueError, match=re.escape("theta (8,) with")):
        found.probability(torch.zeros(8, dtype=F64))
    with pytest.raises(ValueError, match=re.escape("theta (5, 1) with")):
        sampled(
            found,
            torch.zeros(5, 1, dtype=F64),
            group_size=1,
            num_draws=2,
            generator=torch.Generator(),
        )


def test_weights_of_another_shape_are_named(unchecked: None) -> None:
    theta = torch.zeros(5, 2, dtype=F64)
    ((_, part),) = draws(paths(chain(4)), theta, group_size=1).batches()
    # [T] or [B, 1] would broadcast.
    with pytest.raises(ValueError, match=re.escape("mask (5, 4) with weights (4,)")):
        part.score(torch.ones(4, dtype=F64))
    with pytest.raises(ValueError, match=re.escape("mask (5, 4) with weights (5, 1)")):
        part.score(torch.ones(5, 1, dtype=F64))


# --- batches -----------------------------------------------------------------------------------------------


def small_world(seed: int = 3) -> TabularMDP:
    """Three starts, one of them terminal; 1 or 2 steps; 9 trajectories."""
    mdp = random_mdp(3, 2, seed=seed, horizon=2, branching=1, num_terminal=1)
    return replace(mdp, start=torch.tensor([0.5, 0.3, 0.2], dtype=F64))


@pytest.mark.parametrize(("num_groups", "group_size"), [(1, 3), (2, 1), (2, 2)])
def test_every_batch_and_how_likely_it_is(num_groups: int, group_size: int) -> None:
    mdp = small_world()
    found, theta, theta_old = paths(mdp), random_theta(mdp, 0), random_theta(mdp, 1)
    rows = twins.read(found)
    chance = [path.world * twins.policy_chance(path, theta_old) for path in rows]
    expected: dict[tuple[int, ...], float] = {}
    for batch in itertools.product(range(len(rows)), repeat=num_groups * group_size):
        probability = 1.0
        for k in range(0, len(batch), group_size):
            start = rows[batch[k]].start
            of_start = float(mdp.start[start])
            probability *= of_start
            for i in batch[k : k + group_size]:
                probability *= chance[i] / of_start if rows[i].start == start else 0
        if probability > 0:
            expected[batch] = probability
    listed = draws(
        found,
        theta,
        theta_old=theta_old,
        num_groups=num_groups,
        group_size=group_size,
        listing=TUPLES,
    )
    assert listed.exact
    assert dict(zip(map(tuple, listed.rows.tolist()), listed.probability.tolist(), strict=True)) == (
        pytest.approx(expected, rel=1e-12)
    )
    assert float(listed.probability.sum()) == pytest.approx(1, abs=1e-13)
    once = draws(found, theta, theta_old=theta_old, num_groups=num_groups, group_size=group_size)
    assert float(once.probability.sum()) == pytest.approx(1, abs=1e-13)


@pytest.mark.parametrize("chunk", [1, 40, 10**6])
def test_batches_hold_what_was_drawn(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(every, "CHUNK", chunk)
    mdp = small_world()
    found, theta, theta_old = paths(mdp), random_theta(mdp, 0), random_theta(mdp, 1)
    listed = draws(found, theta, theta_old=theta_old, num_groups=2, group_size=2)
    seen = 0
    parts = list(listed.batches())
    assert len(parts) == {1: len(listed.rows), 40: -(-len(listed.rows) // 5), 10**6: 1}[chunk]
    for probability, part in parts:
        here = slice(seen, seen + part.num_draws)
        rows = listed.rows[here].flatten()
        assert torch.equal(probability, listed.probability[here])
        assert part.group.tolist() == [i // 2 for i in range(len(rows))]
        assert part.draw.tolist() == [i // 4 for i in range(len(rows))]
        assert twins.read(part.paths) == [twins.read(found)[i] for i in rows.tolist()]
        assert torch.equal(part.logp, found.logp(theta)[rows])
        assert torch.equal(part.logp_old, found.logp(theta_old)[rows])
        starts = part.paths.states[:, 0].reshape(-1, 2)
        assert torch.equal(starts[:, 0], starts[:, 1])
        seen += part.num_draws
    assert seen == len(listed.rows)


# --- batches at random -------------------------------------------------------------------------------------

NUM_DRAWS = 4000


def frequencies(drawn: Draws) -> Counter[tuple[twins.Path, ...]]:
    rows = [path._replace(world=0) for path in twins.read(drawn.paths)]
    return Counter(tuple(sorted(rows[i] for i in batch)) for batch in drawn.rows.tolist())


@pytest.mark.parametrize("how", ["sampled", "simulated"])
@pytest.mark.parametrize("mdp", [small_world(), turns()])
def test_batches_come_as_often_as_they_are_likely(how: str, mdp: TabularMDP) -> None:
    theta, theta_old, generator = random_theta(mdp, 0), random_theta(mdp, 1), torch.Generator()
    sizes = {"num_groups": 1, "group_size": 2, "num_draws": NUM_DRAWS, "generator": generator.manual_seed(0)}
    if how == "sampled":
        drawn = sampled(paths(mdp), theta, theta_old=theta_old, **sizes)
    else:
        drawn = simulated(mdp, theta, theta_old=theta_old, max_steps=3, **sizes)
        for path, world in zip(twins.read(drawn.paths), drawn.paths.world.tolist(), strict=True):
            assert path.world == world
    assert not drawn.exact
    assert drawn.probability.tolist() == [1 / NUM_DRAWS] * NUM_DRAWS
    expected: Counter[tuple[twins.Path, ...]] = Counter()
    listed = draws(paths(mdp), theta, theta_old=theta_old, group_size=2)
    rows = [path._replace(world=0) for path in twins.read(listed.paths)]
    for batch, probability in zip(listed.rows.tolist(), listed.probability.tolist(), strict=True):
        expected[tuple(sorted(rows[i] for i in batch))] += probability
    found = frequencies(drawn)
    assert set(found) <= set(expected)
    # Pearson's statistic has the mean of its degrees of freedom and twice that as variance.
    surprise = sum((found[b] - NUM_DRAWS * p) ** 2 / (NUM_DRAWS * p) for b, p in expected.items())
    freedom = len(expected) - 1
    assert abs(surprise - freedom) < 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("how", ["sampled", "simulated"])
def test_groups_of_a_random_batch_share_a_start_and_know_their_policies(how: str) -> None:
    mdp = small_world()
    theta, theta_old = random_theta(mdp, 0), random_theta(mdp, 1)
    sizes = {"num_groups": 3, "group_size": 2, "num_draws": 20, "theta_old": theta_old}
    generator = torch.Generator().manual_seed(1)
    if how == "sampled":
        drawn = sampled(paths(mdp), theta, generator=generator, **sizes)
    else:
        drawn = simulated(mdp, theta, max_steps=2, generator=generator, **sizes)
    assert drawn.rows.shape == (20, 6)
    ((_, part),) = drawn.batches()
    starts = part.paths.states[:, 0].reshape(-1, 2)
    assert torch.equal(starts[:, 0], starts[:, 1])
    assert len(set(starts[:, 0].tolist())) == 3
    assert torch.equal(part.logp, part.paths.logp(theta))
    assert torch.equal(part.logp_old, part.paths.logp(theta_old))


def test_a_simulation_that_does_not_end_is_refused() -> None:
    mdp, generator = corridor(), torch.Generator().manual_seed(0)
    theta = torch.zeros(2, 2, dtype=F64)
    with pytest.raises(
        ValueError, match=r"for 3 steps: found \d+ trajectories that go on\. Give the world a"
    ):
        simulated(mdp, theta, group_size=1, num_draws=50, max_steps=3, generator=generator)
    long = simulated(mdp, theta, group_size=1, num_draws=50, max_steps=1000, generator=generator)
    assert long.paths.terminated.sum() == 50
    # Exactly as many steps as the longest takes are enough, cut or not.
    cut = simulated(corridor(3), theta, group_size=1, num_draws=50, max_steps=3, generator=generator)
    assert (cut.paths.truncated[:, -1] ^ cut.paths.terminated.any(1)).all()
    once = torch.tensor([[[0, 1.0]] * 2] * 2)
    step = tabular(
        once, torch.ones(2, 2), torch.tensor([1.0, 0]), gamma=1.0, terminal=torch.tensor([False, True])
    )
    assert (
        simulated(step, theta, group_size=2, num_draws=3, max_steps=1, generator=generator).rows.numel() == 6
    )


@pytest.mark.parametrize("name", ["num_draws", "num_groups", "group_size"])
def test_sizes_of_random_batches_start_at_one(name: str) -> None:
    mdp, generator = small_world(), torch.Generator()
    sizes = {"num_draws": 2, "num_groups": 1, "group_size": 1} | {name: 0}
    with pytest.raises(ValueError, match=f"{name}=0: a batch is made of at least 1"):
        sampled(paths(mdp), random_theta(mdp, 0), generator=generator, **sizes)
    with pytest.raises(ValueError, match=f"{name}=0: a batch is made of at least 1"):
        simulated(mdp, random_theta(mdp, 0), max_steps=5, generator=generator, **sizes)
