"""The ring against a list of steps, draw by draw; what is drawn how often; what it weighs; going on."""

import json
import tracemalloc
from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from gradhat.errors import ConfigError, ModelError, RunError
from gradhat.rollouts import replay as replay_module
from gradhat.rollouts.replay import PRIORITY_FLOOR, Replay, bytes_needed
from gradhat.trajectories import Trajectories, Transitions

GAMMA = 0.9
MAKE: dict[str, Any] = {"action_dtype": np.int64, "gamma": GAMMA}


class Step(NamedTuple):
    """A step whose observation is its own number, and whose successor is that number and a half."""

    observation: int
    action: int
    reward: float
    terminated: bool
    truncated: bool
    logp: float


class Twin(NamedTuple):
    """What a transition should be, by the plainest loop."""

    action: int
    reward: float
    next_observation: float
    terminated: bool
    discount: float
    later: float
    later_logp: float


class Stream:
    """Environments that end at random, with a dummy step after every end (and some more, so that the lanes
    differ). On masked steps stands NaN, so that reading one is seen."""

    def __init__(self, seed: int, num_envs: int, ends: float) -> None:
        self.random = np.random.default_rng(seed)
        self.lived: list[list[Step]] = [[] for _ in range(num_envs)]
        self.ends = ends
        self.count = 0

    def collect(self, steps: int) -> Trajectories:
        rows = [[self._step(lane) for _ in range(steps)] for lane in self.lived]
        own = torch.tensor([[step is not None for step in row] for row in rows])
        dummy = Step(-7, -7, np.nan, True, False, np.nan)

        def column(name: str) -> Tensor:
            return torch.tensor([[getattr(step or dummy, name) for step in row] for row in rows])

        seen = torch.where(own, column("observation").float(), torch.nan)
        return Trajectories(
            observations=torch.stack([seen, -seen], -1),
            actions=column("action"),
            mask=own,
            logp=column("logp").float(),
            rewards=column("reward").float(),
            terminated=column("terminated"),
            truncated=column("truncated"),
            group=torch.arange(len(rows)),
            version=torch.zeros(len(rows), dtype=torch.long),
            next_observations=torch.stack([seen + 0.5, -seen - 0.5], -1),
        )

    def _step(self, lane: list[Step]) -> Step | None:
        if self.random.random() < (0.9 if lane and (lane[-1].terminated or lane[-1].truncated) else 0.1):
            return None
        self.count += 1
        ended = self.random.random() < self.ends
        died = bool(self.random.random() < 0.5)
        action, reward = int(self.random.integers(5)), float(self.random.normal())
        logp = -(self.count % 7) / 8
        lane.append(Step(self.count, action, reward, ended and died, ended and not died, logp))
        return lane[-1]


def twins(lane: list[Step], length: int, n_step: int) -> dict[int, Twin]:
    """Every transition that can be drawn from a lane of `length` steps, by the number of its first step."""
    kept = lane[-length:]
    expected: dict[int, Twin] = {}
    for first in range(len(kept)):
        reward, discount, later, later_logp, last = 0.0, 1.0, 0.0, 0.0, first
        for k in range(n_step):
            if first + k == len(kept):
                break
            last = first + k
            reward += discount * kept[last].reward
            if k > 0:
                later, later_logp = later + discount, later_logp + discount * kept[last].logp
            discount *= GAMMA
            if kept[last].terminated or kept[last].truncated:
                break
        expected[kept[first].observation] = Twin(
            kept[first].action,
            reward,
            kept[last].observation + 0.5,
            kept[last].terminated,
            discount,
            later,
            later_logp,
        )
    return expected


def drawn(batch: Transitions) -> dict[int, Twin]:
    """Transitions by the number of their first step; the same in every draw of it."""
    found: dict[int, Twin] = {}
    assert (batch.observations[:, 1] == -batch.observations[:, 0]).all()
    assert (batch.next_observations[:, 1] == -batch.next_observations[:, 0]).all()
    for i, number in enumerate(batch.observations[:, 0].int().tolist()):
        twin = Twin(
            int(batch.actions[i]),
            float(batch.rewards[i]),
            float(batch.next_observations[i, 0]),
            bool(batch.terminated[i]),
            float(batch.discounts[i]),
            float(batch.later[i]),
            float(batch.later_logp[i]),
        )
        assert found.setdefault(number, twin) == twin
    return found


@given(
    seed=st.integers(0, 2**32),
    num_envs=st.integers(1, 4),
    n_step=st.integers(1, 5),
    spare=st.integers(0, 9),
    chunks=st.lists(st.integers(1, 5), min_size=1, max_size=12),
    ends=st.sampled_from([0.0, 0.15, 0.5]),
    alpha=st.sampled_from([None, 0.0]),
)
@example(seed=1, num_envs=2, n_step=3, spare=2, chunks=[5] * 12, ends=0.15, alpha=None)
@settings(max_examples=30, deadline=None)
def test_every_stored_step_is_drawn_as_a_double_loop_has_it(
    seed: int,
    num_envs: int,
    n_step: int,
    spare: int,
    chunks: list[int],
    ends: float,
    alpha: float | None,
) -> None:
    """Before and after the ring has wrapped, several times; nothing else is drawn, masked steps never."""
    length = max(n_step, 5) + spare
    ring = Replay(length * num_envs + num_envs - 1, num_envs, (2,), (), n_step=n_step, alpha=alpha, **MAKE)
    stream, generator = Stream(seed, num_envs, ends), np.random.default_rng(seed)
    for steps in chunks:
        ring.add(stream.collect(steps))
        expected: dict[int, Twin] = {}
        for lane in stream.lived:
            expected |= twins(lane, length, n_step)
        assert len(ring) == len(expected)
        if not expected:
            continue
        # So many draws that a step is missed less than once in 1e12.
        found = drawn(ring.sample(35 * len(expected), generator))
        assert found.keys() == expected.keys()
        for number, twin in expected.items():
            assert found[number] == pytest.approx(twin, rel=1e-5, abs=1e-5)


def one_row(rewards: list[float], terminated: set[int] = frozenset(), truncated: set[int] = frozenset()):
    """One environment whose observations are 0, 1, 2, ... and whose successors are 10, 11, 12, ..."""
    steps = torch.arange(len(rewards))
    seen = steps.float()[None, :, None]
    return Trajectories(
        observations=seen,
        actions=steps[None],
        mask=torch.ones(1, len(rewards), dtype=torch.bool),
        logp=torch.zeros(1, len(rewards)),
        rewards=torch.tensor([rewards]),
        terminated=torch.tensor([[t in terminated for t in range(len(rewards))]]),
        truncated=torch.tensor([[t in truncated for t in range(len(rewards))]]),
        group=torch.zeros(1, dtype=torch.long),
        version=torch.zeros(1, dtype=torch.long),
        next_observations=seen + 10,
    )


def in_order(ring: Replay) -> Transitions:
    """All transitions of one environment whose ring has not wrapped, in the order of their steps."""
    batch = ring.sample(40 * len(ring), np.random.default_rng(0))
    first = [batch.actions.tolist().index(action) for action in range(len(ring))]
    return Transitions(**{f.name: getattr(batch, f.name)[first] for f in fields(batch)})


def test_a_return_of_three_steps_worked_by_hand() -> None:
    """γ = 1/2: cut by a death at step 2, by a time limit at step 4, and by the newest step, 6."""
    ring = Replay(8, 1, (1,), (), action_dtype=np.int64, gamma=0.5, n_step=3)
    ring.add(one_row([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0], terminated={2}, truncated={4}))
    batch = in_order(ring)
    assert batch.rewards.tolist() == [1 + 1 + 1, 2 + 2, 4, 8 + 8, 16, 32 + 32, 64]
    assert batch.next_observations[:, 0].tolist() == [12, 12, 12, 14, 14, 16, 16]
    assert batch.terminated.tolist() == [True, True, True, False, False, False, False]
    assert batch.discounts.tolist() == [1 / 8, 1 / 4, 1 / 2, 1 / 4, 1 / 2, 1 / 4, 1 / 2]
    assert batch.weights.tolist() == [1.0] * 7


def test_a_return_cut_at_the_newest_step_grows_when_the_next_step_comes() -> None:
    ring = Replay(8, 1, (1,), (), action_dtype=np.int64, gamma=0.5, n_step=3)
    ring.add(one_row([1.0]))
    assert in_order(ring).discounts.tolist() == [0.5]
    ring.add(replace(one_row([2.0]), actions=torch.ones(1, 1, dtype=torch.long)))
    assert in_order(ring).discounts.tolist() == [0.25, 0.5]
    assert in_order(ring).rewards.tolist() == [2.0, 2.0]


def test_continuous_actions_and_observations_of_several_dimensions_come_back_as_they_were() -> None:
    random = np.random.default_rng(0)
    seen = torch.from_numpy(random.normal(size=(2, 3, 4, 5)).astype(np.float32))
    chosen = torch.from_numpy(random.normal(size=(2, 3, 6)).astype(np.float32))
    base = Stream(0, 2, 0.0).collect(3)
    lived = replace(
        base,
        observations=seen,
        next_observations=seen + 1,
        actions=chosen,
        mask=torch.ones(2, 3, dtype=torch.bool),
        rewards=torch.arange(6.0).view(2, 3),
    )
    ring = Replay(6, 2, (4, 5), (6,), action_dtype=np.float32, gamma=0.5)
    ring.add(lived)
    batch = ring.sample(100, np.random.default_rng(0))
    rows = batch.rewards.long()
    assert rows.unique().tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(batch.observations, seen.flatten(0, 1)[rows])
    assert torch.equal(batch.next_observations, seen.flatten(0, 1)[rows] + 1)
    assert torch.equal(batch.actions, chosen.flatten(0, 1)[rows])
    assert batch.actions.dtype == torch.float32


def filled(alpha: float | None, *, seed: int = 0, num_envs: int = 3, rounds: int = 3) -> Replay:
    """Lanes of different lengths that have not wrapped."""
    ring, stream = Replay(90, num_envs, (2,), (), alpha=alpha, **MAKE), Stream(seed, num_envs, 0.3)
    for _ in range(rounds):
        ring.add(stream.collect(5))
    return ring


def rows_of(ring: Replay) -> Tensor:
    """Where the stored steps lie, in order."""
    return ring.sample(60 * len(ring), np.random.default_rng(9)).index.unique()


def test_a_uniform_draw_gives_every_step_the_same_chance_whatever_its_environment() -> None:
    """Drawing an environment first would favour the steps of those that have few."""
    ring = Replay(90, 2, (1,), (), **MAKE)
    base = one_row([0.0] * 20)
    both = base.select([0, 0])
    few = (torch.arange(20) < 3).expand(2, 20) | torch.tensor([[True], [False]])
    ring.add(replace(both, mask=few))
    assert len(ring) == 23
    index = ring.sample(23_000, np.random.default_rng(3)).index
    counts = torch.bincount(index)
    assert chisquare(counts[counts > 0].numpy()).pvalue > 1e-3


def test_a_prioritised_draw_has_the_frequencies_of_its_priorities() -> None:
    """One step at a time, so that the draws are independent, against (|δ| + ε)^α / Σ."""
    ring = filled(0.7)
    index = rows_of(ring)
    errors = torch.linspace(-0.1, -10.0, len(index), dtype=torch.float64)
    ring.prioritise(index, errors)
    chances = (errors.abs().numpy() + PRIORITY_FLOOR) ** 0.7
    chances /= chances.sum()
    generator = np.random.default_rng(2)
    found = torch.cat([ring.sample(1, generator).index for _ in range(20_000)])
    counts = np.array([(found == i).sum() for i in index])
    assert counts.sum() == 20_000
    assert chisquare(counts, chances * 20_000).pvalue > 1e-3


def test_a_prioritised_batch_takes_one_step_from_every_equal_part_of_the_total() -> None:
    """So each step comes as often as its share of the batch says, less than two times more or less."""
    ring = filled(1.0)
    index = rows_of(ring)
    errors = torch.linspace(0.1, 30.0, len(index), dtype=torch.float64)
    ring.prioritise(index, errors)
    shares = (errors + PRIORITY_FLOOR) / (errors + PRIORITY_FLOOR).sum() * 256
    for seed in range(20):
        found = ring.sample(256, np.random.default_rng(seed)).index
        counts = torch.tensor([(found == i).sum() for i in index])
        assert ((counts - shares).abs() < 2).all()


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_weights_undo_the_draw(beta: float) -> None:
    """w_i = (N P(i))^-β / max_j w_j, the maximum over the batch."""
    ring = filled(0.6)
    index = rows_of(ring)
    errors = torch.linspace(-4.0, 9.0, len(index), dtype=torch.float64)
    ring.prioritise(index, errors)
    priorities = dict(zip(index.tolist(), ((errors.abs() + PRIORITY_FLOOR) ** 0.6).tolist(), strict=True))
    batch = ring.sample(32, np.random.default_rng(0), beta=beta)
    total = sum(priorities.values())
    expected = np.array([(len(ring) * priorities[i] / total) ** -beta for i in batch.index.tolist()])
    np.testing.assert_allclose(batch.weights.numpy(), expected / expected.max(), rtol=1e-6)
    assert batch.weights.max() == 1.0


def test_with_full_weights_a_prioritised_mean_is_the_mean_over_the_memory() -> None:
    """Σ_i P(i) · f_i / (N P(i)) = mean of f: the weights, before they are divided by their maximum, are
    unbiased."""
    ring = filled(0.8)
    index = rows_of(ring)
    values = torch.from_numpy(np.random.default_rng(5).exponential(size=len(index)))
    ring.prioritise(index, values)
    of_index = torch.zeros(90, dtype=torch.float64)
    of_index[index] = values
    batch = ring.sample(200_000, np.random.default_rng(6), beta=1.0)
    weighted = (batch.weights * of_index[batch.index]).sum() / batch.weights.sum()
    assert weighted.item() == pytest.approx(values.mean().item(), abs=0.02)
    assert abs(of_index[batch.index].mean().item() - values.mean().item()) > 0.5


def weight_of(ring: Replay, index: Tensor) -> list[float]:
    """The unscaled chances of the steps at `index`, out of the weights of a large batch: w = 1 / P, β = 1."""
    batch = ring.sample(4000, np.random.default_rng(0), beta=1.0)
    chance = {i: 1 / w for i, w in zip(batch.index.tolist(), batch.weights.tolist(), strict=True)}
    return [chance[i] for i in index.tolist()]


def test_new_steps_have_the_largest_priority_so_far_and_overwritten_ones_are_forgotten() -> None:
    ring = Replay(8, 1, (1,), (), alpha=1.0, **MAKE)
    ring.add(one_row([0.0] * 4))
    index = torch.arange(4)
    assert weight_of(ring, index) == pytest.approx([1.0] * 4)
    ring.prioritise(index, torch.tensor([4.0, -20.0, 2.0, 1.0]))
    ring.add(one_row([0.0] * 2))
    assert weight_of(ring, torch.arange(6)) == pytest.approx([4.0, 20, 2, 1, 20, 20], rel=1e-5)
    # The largest goes down; what comes next still has the largest there has been.
    ring.prioritise(torch.tensor([1, 4, 5]), torch.tensor([1.0, 1.0, 1.0]))
    ring.add(one_row([0.0] * 4))
    assert weight_of(ring, torch.arange(8)) == pytest.approx([20.0, 20, 2, 1, 1, 1, 20, 20], rel=1e-5)


def test_steps_without_a_td_error_are_still_drawn() -> None:
    ring = filled(0.6)
    index = rows_of(ring)
    ring.prioritise(index, torch.zeros(len(index)))
    assert torch.equal(rows_of(ring), index)
    assert weight_of(ring, index) == pytest.approx([1.0] * len(index))


def test_the_last_error_of_a_step_drawn_twice_counts() -> None:
    ring = Replay(4, 1, (1,), (), alpha=1.0, **MAKE)
    ring.add(one_row([0.0] * 2))
    ring.prioritise(torch.tensor([0, 1, 0]), torch.tensor([9.0, 1.0, 3.0], requires_grad=True))
    assert weight_of(ring, torch.arange(2)) == pytest.approx([3.0, 1.0], rel=1e-5)


def equal(one: Transitions, other: Transitions) -> bool:
    return all(torch.equal(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))


@pytest.mark.parametrize("alpha", [None, 0.6])
@pytest.mark.parametrize("rounds", [0, 2, 9])
def test_a_restored_replay_goes_on_to_the_bit(alpha: float | None, rounds: int) -> None:
    """Before the first step, before the ring has wrapped and after; into a ring that held something else."""

    def ring_of() -> Replay:
        return Replay(31, 2, (2,), (), n_step=3, alpha=alpha, **MAKE)

    first, stream, generator = ring_of(), Stream(4, 2, 0.2), np.random.default_rng(0)
    for _ in range(rounds):
        first.add(stream.collect(5))
        prioritise(first, first.sample(8, generator))
    state = first.state()
    numbers = {name: value.clone() if isinstance(value, Tensor) else value for name, value in state.items()}
    plain = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    second, used = ring_of(), Stream(5, 2, 0.5)
    for _ in range(5):
        second.add(used.collect(5))
        prioritise(second, second.sample(8, np.random.default_rng(1)))
    second.restore(state | json.loads(json.dumps(plain)))
    assert len(first) == len(second)
    draws = np.random.default_rng(7), np.random.default_rng(7)
    if rounds:
        assert equal(*(ring.sample(99, random) for ring, random in zip((first, second), draws, strict=True)))
    for _ in range(8):
        lived = stream.collect(5)
        batches: list[Transitions] = []
        for ring, random in zip((first, second), draws, strict=True):
            ring.add(lived)
            batches.append(ring.sample(50, random))
            prioritise(ring, batches[-1])
        assert equal(*batches)
    assert all(torch.equal(value, numbers[k]) for k, value in state.items() if isinstance(value, Tensor))


def prioritise(ring: Replay, batch: Transitions) -> None:
    if "priorities" in ring.state():
        ring.prioritise(batch.index, batch.rewards + batch.observations[:, 0])


@pytest.mark.parametrize("alpha", [None, 0.5])
def test_the_memory_is_stated_up_front(alpha: float | None) -> None:
    """What is said is what is allocated, to a few kilobytes of Python's own."""
    tracemalloc.start()
    ring = Replay(50_001, 2, (3, 4), (2,), action_dtype=np.float32, gamma=0.9, alpha=alpha)
    allocated, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ring.capacity == 50_000
    said = bytes_needed(50_000, (3, 4), (2,), action_dtype=np.float32, prioritised=alpha is not None)
    assert abs(allocated - said) < 10_000
    assert said >= 50_000 * (2 * 12 * 4 + 2 * 4 + 4)


def test_a_replay_that_cannot_fit_is_refused_with_the_capacity_that_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = bytes_needed(1, (4,), (), action_dtype=np.int64, prioritised=False)
    monkeypatch.setattr(replay_module, "available", lambda: 1000 * one)
    Replay(1000, 1, (4,), (), **MAKE)
    with pytest.raises(RunError, match=r"capacity=1001: it needs .* GiB, found .* at most 1000, or"):
        Replay(1001, 1, (4,), (), **MAKE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_envs": 0}, "num_envs=0"),
        ({"n_step": 0}, "n_step=0"),
        ({"gamma": 1.1}, r"gamma=1\.1"),
        ({"alpha": -0.1}, r"alpha=-0\.1"),
        ({"capacity": 11, "num_envs": 4, "n_step": 3}, "capacity=11 with num_envs=4 and n_step=3"),
    ],
)
def test_a_setting_out_of_range_is_named(change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"capacity": 12, "num_envs": 4, "gamma": 1.0, "n_step": 3, "alpha": 0.0}
    shapes: dict[str, Any] = {"observation_shape": (2,), "action_shape": (), "action_dtype": np.int64}
    Replay(**good, **shapes)
    with pytest.raises(ConfigError, match=message):
        Replay(**(good | change), **shapes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"next_observations": None}, "found no next_observations"),
        ({"next_observations": torch.zeros(2, 3, 5)}, r"next_observations \(2, 3, 5\).* \(2, 3, 2\)"),
        ({"observations": [(1, 2, 3)] * 2}, "observations that are not a tensor"),
        ({"actions": torch.zeros(2, 3, 1)}, r"actions \(2, 3, 1\).* \(2, 3\)"),
    ],
)
def test_trajectories_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    ring, lived = Replay(12, 2, (2,), (), **MAKE), Stream(0, 2, 0.0).collect(3)
    with pytest.raises(ValueError, match=message):
        ring.add(replace(lived, **change))
    assert len(ring) == 0
    ring.add(lived)
    assert len(ring) > 0


def test_trajectories_of_other_environments_or_too_many_steps_are_refused() -> None:
    ring = Replay(12, 2, (2,), (), **MAKE)
    with pytest.raises(ValueError, match=r"observations \(3, 4, 2\): the replay holds \(2, 4, 2\)"):
        ring.add(Stream(0, 3, 0.0).collect(4))
    with pytest.raises(ValueError, match="7 steps each: the replay holds 6 of an environment"):
        ring.add(Stream(0, 2, 0.0).collect(7))
    ring.add(Stream(0, 2, 0.0).collect(6))


def test_what_cannot_be_drawn_or_prioritised_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sample\(4\) of a replay: found no step"):
        Replay(12, 2, (2,), (), **MAKE).sample(4, np.random.default_rng(0))
    with pytest.raises(ValueError, match="uniform replay: it has no priorities"):
        filled(None).prioritise(torch.arange(2), torch.ones(2))
    ring = filled(1.0)
    with pytest.raises(ValueError, match=r"td_errors \(1,\) with index \(2,\)"):
        ring.prioritise(torch.arange(2), torch.ones(1))
    for wrong in (torch.nan, -torch.inf):
        with pytest.raises(ModelError, match="not finite"):
            ring.prioritise(torch.arange(2), torch.tensor([1.0, wrong]))
    assert weight_of(ring, rows_of(ring)) == pytest.approx([1.0] * len(ring))


@pytest.mark.parametrize(
    "other",
    [
        Replay(24, 2, (2,), (), **MAKE),
        Replay(12, 3, (2,), (), **MAKE),
        Replay(12, 2, (3,), (), **MAKE),
        Replay(12, 2, (2,), (1,), **MAKE),
        Replay(12, 2, (2,), (), action_dtype=np.float32, gamma=GAMMA),
        Replay(12, 2, (2,), (), alpha=0.5, **MAKE),
        Replay(12, 2, (2,), (), n_step=2, **MAKE),
        Replay(12, 2, (2,), (), **(MAKE | {"gamma": 0.5})),
    ],
)
def test_the_state_of_another_replay_is_refused(other: Replay) -> None:
    ring = Replay(12, 2, (2,), (), **MAKE)
    with pytest.raises(RunError, match="Resume with the settings"):
        ring.restore(other.state())
    ring.restore(Replay(12, 2, (2,), (), **MAKE).state())


def test_priorities_of_another_exponent_are_refused() -> None:
    """They are stored as p^α."""
    ring = Replay(12, 2, (2,), (), alpha=0.5, **MAKE)
    with pytest.raises(RunError, match=r"'alpha': 0.5.*'alpha': 0.6"):
        ring.restore(Replay(12, 2, (2,), (), alpha=0.6, **MAKE).state())
