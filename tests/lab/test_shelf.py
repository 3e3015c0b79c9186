"""The weights on the shelf: counting is listing, draws do not mix, and the pieces by hand."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from lived import value

from gradhat.exact.enumerate import Batch, draws, paths
from gradhat.exact.mdp import TabularMDP
from gradhat.exact.zoo import (
    ZOO,
    WorldTurn,
    bandit,
    chain,
    cliff_walk,
    corridor,
    random_mdp,
    says,
    token_mdp,
    two_states,
)
from gradhat.lab import shelf as room
from gradhat.lab.microscope import World, specimen_moments, world
from gradhat.lab.shelf import shelf

F64 = torch.float64


def texts(turn: WorldTurn | None = None) -> TabularMDP:
    """Two prompts; lengths from one to three."""
    return token_mdp(2, 3, verifiers=(says(0), says(1, 0)), turn=turn)


def ends_at_once(gamma: float = 0.9) -> TabularMDP:
    """Some trajectories begin in a terminal state and have no step; chance, and look-alike states."""
    return random_mdp(3, 2, seed=4, horizon=2, num_terminal=1, gamma=gamma, num_observations=2)


WORLDS = {
    "texts": texts(),
    "turn": texts(WorldTurn(1, (0.3, 0.7))),
    "corridor": corridor(4),
    "ends at once": ends_at_once(),
    "discounted chain": chain(3, gamma=0.7),
}
SIZES = {"one": (1, 1), "group": (1, 2), "batch": (2, 1)}


def of(mdp: TabularMDP) -> World:
    return world(mdp, seed=2, spread=0.8)


def batch_of(there: World, sees: str, size: int = 3) -> Batch:
    """Some twenty batches at once."""
    assert there.paths is not None
    num_groups, group_size = {"one": (1, 1), "group": (1, size), "batch": (size, 1)}[sees]
    listed = draws(there.paths, there.theta, num_groups=num_groups, group_size=group_size)
    rows = listed.rows[:: max(1, len(listed.rows) // 20)]
    some = replace(listed, rows=rows, probability=listed.probability[: len(rows)])
    ((_, batch),) = some.batches()
    return batch


def parts(batch: Batch) -> Iterator[Batch]:
    return (batch.alone(i) for i in range(batch.num_draws))


@pytest.mark.parametrize("name", WORLDS)
def test_counting_classes_is_listing_trajectories(name: str) -> None:
    there = of(WORLDS[name])
    assert there.paths is not None and there.classes is not None
    assert (len(there.classes.probability) < len(there.paths)) == (name in ("texts", "turn", "corridor"))
    for specimen in filter(lambda s: s.by_class, shelf(there)):
        plain = replace(specimen, by_class=False, by_return=False)
        listed = specimen_moments(there, plain, *SIZES[specimen.sees])
        for other in (specimen, replace(specimen, by_return=False)):
            counted = specimen_moments(there, other, *SIZES[specimen.sees])
            assert counted.error == listed.error == 0
            assert torch.allclose(counted.mean, listed.mean, rtol=0, atol=1e-13), specimen.name
            assert counted.variance == pytest.approx(listed.variance, rel=1e-10), specimen.name
    of_returns = {s.name for s in shelf(there) if s.by_return}
    assert of_returns - {"max_rl"} == {"group_mean", "leave_one_out", "group_std", "batch_mean", "batch_std"}


@pytest.mark.parametrize("name", WORLDS)
def test_a_draw_has_the_same_weights_alone_and_among_others(name: str) -> None:
    there = of(WORLDS[name])
    for specimen in shelf(there):
        batch = batch_of(there, specimen.sees)
        assert batch.num_draws > 3
        together = torch.where(batch.mask, specimen.weights(batch), 0)
        alone = torch.cat([torch.where(part.mask, specimen.weights(part), 0) for part in parts(batch)])
        assert torch.allclose(together, alone, rtol=1e-12, atol=1e-12), specimen.name
        assert together.any(), specimen.name


@pytest.mark.parametrize("name", ["turn", "ends at once"])
def test_masked_steps_have_no_weight_from_a_reduction(name: str) -> None:
    there = of(WORLDS[name])
    batch = batch_of(there, "group")
    assert not batch.mask.all()
    for reduction in (room.per_trajectory, room.per_sequence, room.per_token, room.constant):
        assert not reduction(batch)[~batch.mask].any()


def test_the_reductions_by_hand() -> None:
    """One draw of a trajectory with two own steps out of three and one with a single step."""
    there = of(WORLDS["turn"])
    all_ = there.paths
    assert all_ is not None
    long = int((all_.mask.sum(1) == 2).nonzero()[0, 0])
    short = int((all_.mask.sum(1) == 1).nonzero()[0, 0])
    listed = draws(all_, there.theta, group_size=2)
    some = replace(listed, rows=torch.tensor([[long, short], [long, long]]), probability=torch.ones(2))
    ((_, batch),) = some.batches()
    assert batch.mask[:2].tolist() == [[True, False, True], [True, False, False]]
    first = {
        room.per_trajectory: [[1 / 2, 0, 1 / 2], [1 / 2, 0, 0]],
        room.per_sequence: [[1 / 4, 0, 1 / 4], [1 / 2, 0, 0]],
        room.per_token: [[1 / 3, 0, 1 / 3], [1 / 3, 0, 0]],
        room.constant: [[1 / 6, 0, 1 / 6], [1 / 6, 0, 0]],
    }
    for reduction, expected in first.items():
        assert reduction(batch)[:2].tolist() == [pytest.approx(row) for row in expected]
    assert room.per_token(batch)[2].tolist() == pytest.approx([1 / 4, 0, 1 / 4])


def test_a_draw_without_a_step_has_no_weight() -> None:
    there = of(WORLDS["ends at once"])
    all_ = there.paths
    assert all_ is not None
    empty = (~all_.mask.any(1)).nonzero()[:, 0]
    assert len(empty) == 1
    listed = draws(all_, there.theta, group_size=2)
    some = replace(listed, rows=empty.expand(1, 2), probability=torch.ones(1))
    ((_, batch),) = some.batches()
    for specimen in shelf(there):
        assert not torch.where(batch.mask, specimen.weights(batch), 0).any(), specimen.name
        assert not specimen.weights(batch).isnan().any(), specimen.name


def test_collecting_until_there_are_enough_steps_by_hand() -> None:
    """Batches of three stop at three steps: after 1 + 2, after 2 + 2, after 3, after 1 + 1 + 1."""
    there = of(texts())
    all_ = there.paths
    assert all_ is not None
    length = all_.mask.sum(1)
    row = {n: int((length == n).nonzero()[0, 0]) for n in (1, 2, 3)}
    orders = [(1, 2, 3), (2, 2, 1), (3, 1, 1), (1, 1, 1)]
    listed = draws(all_, there.theta, num_groups=3, group_size=1)
    rows = torch.tensor([[row[n] for n in order] for order in orders])
    some = replace(listed, rows=rows, probability=torch.ones(len(rows)))
    ((_, batch),) = some.batches()
    batch = replace(batch, rewards=batch.mask.double() / batch.mask.sum(1, keepdim=True))  # each pays 1
    share = room.until_enough_steps(batch).amax(1).reshape(-1, 3)
    expected = [[1 / 2, 1 / 2, 0], [1 / 2, 1 / 2, 0], [1, 0, 0], [1 / 3, 1 / 3, 1 / 3]]
    assert share.tolist() == [pytest.approx(row) for row in expected]


@pytest.mark.parametrize("name", [*WORLDS, "luck", "tiger", "two_states"])
def test_state_values_are_those_of_the_recursion(name: str) -> None:
    there = of(WORLDS[name] if name in WORLDS else ZOO[name]())
    v, mdp = room.state_values(there.mdp, there.theta), there.mdp
    expected = value(mdp, there.theta.numpy())
    last = paths(mdp).states.shape[1]
    for t in range(last + 1):
        for s in range(mdp.num_states):
            assert float(v[t, s]) == pytest.approx(expected(t, s), abs=1e-12)


def test_time_is_counted_from_the_start_and_over_the_worlds_own_steps() -> None:
    there = of(replace(WORLDS["turn"], gamma=0.5))
    batch = batch_of(there, "one")
    steps, factors = room.real_steps(batch), room.discounts(batch)
    for i in range(len(batch.mask)):
        end = int((batch.terminated[i] | batch.truncated[i]).nonzero()[0, 0])
        assert steps[i].tolist() == [t <= end for t in range(3)]
        assert factors[i].tolist() == [0.5**t if t <= end else 0 for t in range(3)]


def test_the_discount_is_dropped_only_where_there_is_one() -> None:
    names = [s.name for s in shelf(of(two_states()))]
    assert len(names) == len(set(names)) and "dropped_discount" in names
    assert [n for n in names if n != "dropped_discount"] == [s.name for s in shelf(of(texts()))]


def test_where_rewards_can_be_negative_no_mean_is_a_scale() -> None:
    assert "max_rl" in [s.name for s in shelf(of(texts()))]
    assert "max_rl" not in [s.name for s in shelf(of(corridor(4)))]


def test_how_many_are_collected_by_hand() -> None:
    """A text ends after one word with chance ⅓, else after two: 1, then 1 + ⅓, then 1 + ⅓ · 4/3 + ⅔ · 1."""
    mdp = token_mdp(2, 2, verifiers=(says(0),))
    uniform = world(mdp, seed=0, spread=0.0)
    needed = room.collected(uniform)
    assert needed is not None
    assert [needed(n) for n in (1, 2, 3)] == pytest.approx([1, 4 / 3, 1 + 4 / 9 + 2 / 3])


def test_who_may_have_no_step_is_collected_too_and_no_number_is_sure_to_suffice() -> None:
    """Half of the trajectories begin at the end, the others have one step: 2 for one step, 4 for two. A draw
    of two may hold no step at all, so the estimator is left out."""
    half = replace(bandit(), start=torch.tensor([0.5, 0.5], dtype=F64))
    idle = world(half, seed=0, spread=0.5)
    needed = room.collected(idle)
    assert needed is not None and [needed(n) for n in (1, 2, 3)] == pytest.approx([2, 4, 6])
    assert room.may_be_idle(idle) and "random_size" not in {s.name for s in shelf(idle)}
    for mdp in (bandit(), texts(WorldTurn(1, (0.3, 0.7))), cliff_walk()):
        there = world(mdp, seed=0, spread=0.5)
        assert not room.may_be_idle(there) and "random_size" in {s.name for s in shelf(there)}
    begins_at_the_end = replace(cliff_walk(), start=torch.eye(48, dtype=F64)[[36, 47]].mean(0))
    assert room.may_be_idle(world(begins_at_the_end, seed=0, spread=0.5))


def test_a_baseline_is_taken_off_and_a_scale_divided_by() -> None:
    there = of(texts())
    batch = batch_of(there, "group")
    r = batch.returns()
    weights = room.compared(lambda x, g: 2 * x + g, lambda x, g: 4 + 0 * x, room.constant)(batch)
    expected = (r - 2 * r - batch.group) / 4
    assert torch.allclose(
        weights, torch.where(batch.mask, expected[:, None] / (3 * 3), 0), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("name", ["hurry", "two_states", "prompts"])
def test_words_leave_room_for_the_numbers_in_a_window_of_80_letters(name: str) -> None:
    assert max(len(one.what) for one in shelf(world(ZOO[name](), seed=0, spread=0.5))) <= 23
