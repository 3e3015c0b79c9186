"""Each rule is its textbook loop, and each converges to what the exact world says it should."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import gymnasium
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onpolicy import successors
from tables import Lanes
from torch import Tensor

from gradhat.algorithms import tabular_control as control
from gradhat.algorithms.numbered_steps import Steps, steps_of
from gradhat.algorithms.tabular_control import CONTROL, Backup, Rule, Settings, State
from gradhat.algorithms.tabular_errors import errors, truth
from gradhat.envs.tabular import TabularVectorEnv
from gradhat.envs.toy_text import tables
from gradhat.exact import solve
from gradhat.exact.enumerate import paths
from gradhat.exact.mdp import TabularMDP, tabular, with_time
from gradhat.exact.zoo import ZOO, chain, random_mdp
from gradhat.policies.action_values import epsilon_greedy
from gradhat.trajectories import Trajectories

GAMMA, EPSILON = 0.7, 0.3
PLAIN = Settings(GAMMA, alpha=0.9, omega=0.6, epsilon_start=EPSILON, epsilon_end=EPSILON)
NUM_OBSERVATIONS, NUM_ACTIONS = 4, 3


def experience(seed: int, num_lanes: int, num_steps: int, *, truncates: bool = True) -> Trajectories:
    """Anything that can happen: ends, cuts and steps that are not the policy's own, in any order."""
    g = torch.Generator().manual_seed(seed)
    shape = (num_lanes, num_steps)

    def happens(chance: float) -> Tensor:
        return torch.rand(shape, generator=g) < chance

    mask = happens(0.8)
    terminated = happens(0.2) & mask
    return Trajectories(
        observations=torch.randint(NUM_OBSERVATIONS, shape, generator=g),
        actions=torch.randint(NUM_ACTIONS, shape, generator=g),
        mask=mask,
        logp=torch.zeros(shape),
        rewards=torch.where(mask, torch.randn(shape, dtype=torch.float64, generator=g), math.nan),
        terminated=terminated,
        truncated=happens(0.2) & mask & ~terminated & truncates,
        group=torch.zeros(num_lanes, dtype=torch.long),
        version=torch.zeros(num_lanes, dtype=torch.long),
        next_observations=torch.randint(NUM_OBSERVATIONS, shape, generator=g),
    )


def chunks_of(trajectories: Trajectories, size: int) -> Iterator[Trajectories]:
    """Cut along time."""
    for start in range(0, trajectories.mask.shape[1], size):
        part = slice(start, start + size)
        assert isinstance(trajectories.observations, Tensor)
        assert trajectories.next_observations is not None
        yield replace(
            trajectories,
            observations=trajectories.observations[:, part],
            actions=trajectories.actions[:, part],
            mask=trajectories.mask[:, part],
            logp=trajectories.logp[:, part],
            rewards=trajectories.rewards[:, part],
            terminated=trajectories.terminated[:, part],
            truncated=trajectories.truncated[:, part],
            next_observations=trajectories.next_observations[:, part],
        )


def learned(name: str, chunks: Iterator[Trajectories], given: Settings = PLAIN) -> State:
    state = control.init(NUM_OBSERVATIONS, NUM_ACTIONS)
    for chunk in chunks:
        control.update(state, chunk, CONTROL[name], given)
    return state


@dataclass(frozen=True)
class Step:
    s: int
    a: int
    r: float
    s2: int
    own: bool
    terminated: bool
    truncated: bool


class Twin:
    """The textbook with dicts and loops. It remembers every step and looks ahead for what a target needs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.q = [[0.0] * NUM_ACTIONS for _ in range(NUM_OBSERVATIONS)]
        self.visits = [[0] * NUM_ACTIONS for _ in range(NUM_OBSERVATIONS)]
        self.lanes: list[list[Step]] = []
        self.done: set[tuple[int, int]] = set()

    def expected(self, s: int, q: list[list[float]]) -> float:
        best = [a for a in range(NUM_ACTIONS) if q[s][a] == max(q[s])]
        pi = [
            EPSILON / NUM_ACTIONS + ((1 - EPSILON) / len(best) if a in best else 0)
            for a in range(NUM_ACTIONS)
        ]
        return sum(p * value for p, value in zip(pi, q[s], strict=True))

    def target(self, lane: list[Step], t: int, before: list[list[float]]) -> float | None:
        """None: not known yet. `before`: Q when the chunk came."""
        step, q = lane[t], self.q
        if step.terminated and self.name != "monte_carlo":
            return step.r
        if self.name == "q_learning":
            return step.r + GAMMA * max(q[step.s2])
        if self.name == "expected_sarsa":
            return step.r + GAMMA * self.expected(step.s2, q)
        own = [later for later in lane[t:] if later.own]
        if self.name == "sarsa":
            if step.truncated:
                return step.r + GAMMA * self.expected(step.s2, q)
            return step.r + GAMMA * q[step.s2][own[1].a] if len(own) > 1 else None
        total, discount = 0.0, 1.0
        for later in own:
            total += discount * later.r
            discount *= GAMMA
            if later.terminated:
                return total
            if later.truncated:
                return total + discount * self.expected(later.s2, before)
        return None

    def update(self, chunk: Trajectories) -> None:
        assert isinstance(chunk.observations, Tensor) and chunk.next_observations is not None
        fields = (chunk.observations, chunk.actions, chunk.rewards, chunk.next_observations)
        flags = (chunk.mask, chunk.terminated, chunk.truncated)
        num_lanes, num_steps = chunk.mask.shape
        self.lanes = self.lanes or [[] for _ in range(num_lanes)]
        for b, lane in enumerate(self.lanes):
            lane += [Step(*(x[b, t].item() for x in (*fields, *flags))) for t in range(num_steps)]
        before = [row[:] for row in self.q]
        for t in range(len(self.lanes[0])):
            met: dict[tuple[int, int], list[float]] = {}
            for b, lane in enumerate(self.lanes):
                if lane[t].own and (b, t) not in self.done:
                    found = self.target(lane, t, before)
                    if found is not None:
                        self.done.add((b, t))
                        met.setdefault((lane[t].s, lane[t].a), []).append(found)
            for (s, a), targets in met.items():
                self.visits[s][a] += len(targets)
                mean = sum(targets) / len(targets)
                size = min(1.0, len(targets) * PLAIN.alpha / self.visits[s][a] ** PLAIN.omega)
                self.q[s][a] += size * (mean - self.q[s][a])


def twin_of(name: str, chunks: Iterator[Trajectories]) -> Twin:
    twin = Twin(name)
    for chunk in chunks:
        twin.update(chunk)
    return twin


@pytest.mark.parametrize("name", CONTROL)
@given(
    seed=st.integers(0, 10**6),
    num_lanes=st.integers(1, 5),
    num_steps=st.integers(1, 12),
    size=st.integers(1, 12),
)
@settings(max_examples=50, deadline=None)
def test_each_rule_is_its_textbook_loop(
    name: str, seed: int, num_lanes: int, num_steps: int, size: int
) -> None:
    lived = experience(seed, num_lanes, num_steps)
    state, twin = learned(name, chunks_of(lived, size)), twin_of(name, chunks_of(lived, size))
    assert state.visits.tolist() == twin.visits
    torch.testing.assert_close(state.q, torch.tensor(twin.q, dtype=torch.float64), rtol=0, atol=1e-12)
    assert state.num_frames == int(lived.mask.sum())


@pytest.mark.parametrize("name", CONTROL)
def test_one_lane_learns_the_same_however_its_time_is_cut(name: str) -> None:
    """Without cuts of episodes: there Monte Carlo asks the table as it was when the chunk came."""
    lived = experience(5, 1, 60, truncates=False)
    whole = learned(name, chunks_of(lived, 60))
    for size in (1, 7):
        parts = learned(name, chunks_of(lived, size))
        torch.testing.assert_close(parts.q, whole.q, rtol=0, atol=1e-12)
        assert torch.equal(parts.visits, whole.visits)


def dead_when_cut(lived: Trajectories) -> Trajectories:
    nothing = torch.zeros_like(lived.truncated)
    return replace(lived, terminated=lived.terminated | lived.truncated, truncated=nothing)


def dummies_too(lived: Trajectories) -> Trajectories:
    return replace(lived, mask=torch.ones_like(lived.mask), rewards=lived.rewards.nan_to_num())


def other_lane(steps: Steps, q: Tensor, epsilon: float, gamma: float) -> Backup:
    backup = CONTROL["sarsa"].span(steps, q, epsilon, gamma)
    return backup._replace(next_actions=backup.next_actions.roll(1, 0))


def dropped(name: str, lived: Trajectories) -> State:
    """What waits is thrown away at the end of each chunk."""
    state = control.init(NUM_OBSERVATIONS, NUM_ACTIONS)
    for chunk in chunks_of(lived, 5):
        control.update(state, chunk, CONTROL[name], PLAIN)
        state.pending = None
    return state


LIVED = experience(3, 6, 20)
BUGS = {
    "truncation is death": lambda name: learned(name, chunks_of(dead_when_cut(LIVED), 5)),
    "the dummy step is learned": lambda name: learned(name, chunks_of(dummies_too(LIVED), 5)),
}


@pytest.mark.parametrize("name", CONTROL)
@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(name: str, bug: str) -> None:
    right = torch.tensor(twin_of(name, chunks_of(LIVED, 5)).q)
    assert (learned(name, chunks_of(LIVED, 5)).q - right).abs().max() < 1e-6
    assert (BUGS[bug](name).q - right).abs().max() > 0.05


def test_the_wrong_action_in_the_successor_is_found() -> None:
    right = {name: torch.tensor(twin_of(name, chunks_of(LIVED, 20)).q) for name in CONTROL}
    wrong = {
        "q_learning": CONTROL["expected_sarsa"],
        "expected_sarsa": CONTROL["q_learning"],
        "sarsa": Rule(other_lane, CONTROL["sarsa"].value),
    }
    for name, rule in wrong.items():
        state = control.init(NUM_OBSERVATIONS, NUM_ACTIONS)
        control.update(state, LIVED, rule, PLAIN)
        assert (state.q - right[name]).abs().max() > 0.05, name


@pytest.mark.parametrize("name", ["sarsa", "monte_carlo"])
def test_steps_dropped_at_the_end_of_a_chunk_are_missed(name: str) -> None:
    right = twin_of(name, chunks_of(LIVED, 5))
    assert int(dropped(name, LIVED).visits.sum()) < sum(map(sum, right.visits))


def test_a_step_by_hand() -> None:
    """γ = 0.7, ε = 0.3, first visits: Q moves by α = 0.9 of the error."""
    state = control.init(NUM_OBSERVATIONS, NUM_ACTIONS)
    state.q[1] = torch.tensor([2.0, 5.0, -1.0])
    lived = replace(
        experience(0, 1, 2),
        observations=torch.tensor([[0, 1]]),
        actions=torch.tensor([[2, 0]]),
        rewards=torch.tensor([[1.0, 3.0]]),
        next_observations=torch.tensor([[1, 3]]),
        mask=torch.tensor([[True, True]]),
        terminated=torch.tensor([[False, True]]),
        truncated=torch.tensor([[False, False]]),
    )
    successor = {"q_learning": 5.0, "expected_sarsa": 0.1 * (2 + 5 - 1) + 0.7 * 5, "sarsa": 2.0}
    targets = {name: 1 + 0.7 * v for name, v in successor.items()} | {"monte_carlo": 1 + 0.7 * 3}
    for name, target in targets.items():
        own = State(state.q.clone(), state.visits.clone())
        metrics = control.update(own, lived, CONTROL[name], PLAIN)
        assert float(own.q[0, 2]) == pytest.approx(0.9 * target)
        assert float(own.q[1, 0]) == pytest.approx(2 + 0.9 * (3 - 2))
        assert metrics["td_error"] == pytest.approx((abs(target) + 1) / 2)
        assert metrics["epsilon"] == EPSILON


def test_lanes_that_meet_move_a_pair_no_further_than_to_their_mean() -> None:
    lived = replace(
        experience(0, 4, 1),
        observations=torch.tensor([[0], [0], [0], [1]]),
        actions=torch.tensor([[1], [1], [1], [1]]),
        rewards=torch.tensor([[1.0], [2.0], [6.0], [8.0]]),
        mask=torch.ones(4, 1, dtype=torch.bool),
        terminated=torch.ones(4, 1, dtype=torch.bool),
        truncated=torch.zeros(4, 1, dtype=torch.bool),
    )
    few = Settings(GAMMA, alpha=0.2, omega=0.0)
    state = learned("q_learning", iter([lived]), few)
    assert state.q[0, 1] == pytest.approx(0.2 * (1 + 2 + 6)) and state.q[1, 1] == pytest.approx(0.2 * 8)
    assert learned("q_learning", iter([lived]), replace(few, alpha=0.9)).q[0, 1] == pytest.approx(3.0)
    assert state.visits[:, 1].tolist() == [3, 1, 0, 0]


def test_epsilon_falls_on_a_line_with_the_own_steps() -> None:
    line = Settings(GAMMA, epsilon_start=0.8, epsilon_end=0.2, epsilon_frames=60)
    assert [control.epsilon(line, n) for n in (0, 30, 60, 90)] == pytest.approx([0.8, 0.5, 0.2, 0.2])
    state, lived = control.init(NUM_OBSERVATIONS, NUM_ACTIONS), experience(1, 3, 10)
    assert control.update(state, lived, CONTROL["q_learning"], line)["epsilon"] == 0.8
    own = int(lived.mask.sum())
    assert control.actor(state, line).epsilon == pytest.approx(0.8 - 0.6 * own / 60)
    assert control.epsilon(replace(line, epsilon_frames=0), 0) == 0.8


def test_optimism_tries_everything() -> None:
    state = control.init(2, 3, initial=5.0)
    assert state.q.tolist() == [[5.0] * 3] * 2 and state.visits.tolist() == [[0] * 3] * 2


def test_what_waits_does_not_share_the_memory_of_the_chunk() -> None:
    """A collector may fill the same arrays again."""
    lived = replace(experience(1, 2, 1), mask=torch.ones(2, 1, dtype=torch.bool))
    lived = replace(lived, terminated=~lived.mask, truncated=~lived.mask, rewards=torch.ones(2, 1).double())
    state = control.init(NUM_OBSERVATIONS, NUM_ACTIONS)
    control.update(state, lived, CONTROL["sarsa"], PLAIN)
    lived.rewards.fill_(100.0)
    assert state.pending is not None and bool((state.pending.rewards == 1).all())


def test_nothing_learned_has_no_error() -> None:
    lived = replace(
        experience(1, 2, 3), terminated=torch.zeros(2, 3).bool(), truncated=torch.zeros(2, 3).bool()
    )
    state = control.init(NUM_OBSERVATIONS, NUM_ACTIONS)
    assert control.update(state, lived, CONTROL["monte_carlo"], PLAIN) == {"epsilon": EPSILON}
    assert int(state.visits.sum()) == 0


def endless() -> TabularMDP:
    """One state, which pays 1 for ever, looked at for three steps at a time."""
    return tabular(torch.ones(1, 1, 1), torch.ones(1, 1), torch.ones(1), gamma=0.5, time_limit=3)


@pytest.mark.parametrize("name", CONTROL)
def test_a_time_limit_is_not_the_end_of_the_world(name: str) -> None:
    """V = 1 / (1 − γ) = 2. With truncation taken for death it is 1.75 at most."""
    found: list[float] = []
    for change in (lambda chunk: chunk, dead_when_cut):
        world, state = Lanes(TabularVectorEnv(endless(), 3)), control.init(1, 1)
        for _ in range(40):
            chunk = change(world.collect(control.actor(state, PLAIN), 5))
            control.update(state, chunk, CONTROL[name], Settings(0.5, alpha=0.3, omega=0.0))
        found.append(float(state.q))
    assert found[0] == pytest.approx(2, abs=1e-3) and found[1] < 1.8


LOOP = random_mdp(3, 2, seed=6, gamma=0.8, horizon=None)
KINDS = {"horizon": with_time(replace(LOOP, horizon=3)), "time limit": replace(LOOP, time_limit=3)}
"""A problem that ends after three steps, and one that is cut there."""


def every_trajectory(mdp: TabularMDP, q: Tensor) -> tuple[Trajectories, Tensor]:
    """All that the policy which explores may live through, as numbers, and how probable each is."""
    theta = epsilon_greedy(q, EPSILON).log()
    lived_ = paths(mdp)
    return Trajectories(
        observations=lived_.observations,
        actions=lived_.actions,
        mask=lived_.mask,
        logp=lived_.logp(theta),
        rewards=lived_.rewards,
        terminated=lived_.terminated,
        truncated=lived_.truncated,
        group=torch.arange(len(lived_)),
        version=torch.zeros(len(lived_), dtype=torch.long),
        next_observations=mdp.observation[successors(lived_)],
    ), lived_.probability(theta)


def expected_targets(mdp: TabularMDP, q: Tensor, name: str, *, merged: bool = False) -> Tensor:
    """E[G | s, a] `[O, A]` of a rule under a table; nan where nobody comes."""
    batch, chance = every_trajectory(mdp, q)
    steps, rule = steps_of(dead_when_cut(batch) if merged else batch, *q.shape), CONTROL[name]
    backup = rule.span(steps, q, EPSILON, mdp.gamma)
    assert torch.equal(backup.ready, steps.mask)
    sums, seen = torch.zeros_like(q), torch.zeros_like(q)
    for t in range(steps.mask.shape[1]):
        worth = rule.value(q, EPSILON, steps.next_observations[:, t], backup.next_actions[:, t])
        target = backup.rewards[:, t] + backup.discounts[:, t] * worth
        place, weight = (steps.observations[:, t], steps.actions[:, t]), chance * steps.mask[:, t]
        sums.index_put_(place, weight * target, accumulate=True)
        seen.index_put_(place, weight, accumulate=True)
    return sums / seen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONTROL)
def test_the_right_table_expects_itself_at_a_horizon_and_at_a_time_limit(name: str, kind: str) -> None:
    """Over every trajectory: E[G | s, a] is Q*, or Q of the best policy that explores as much."""
    mdp = KINDS[kind]
    q = solve.policy_iteration(mdp).q if name == "q_learning" else best_soft(mdp, EPSILON)
    found = expected_targets(mdp, q, name)
    come = ~found.isnan()
    assert come.sum() == (18 if kind == "horizon" else 6)
    assert float((found - q)[come].abs().max()) < 1e-12
    if kind == "time limit":
        assert float((expected_targets(mdp, q, name, merged=True) - q)[come].abs().max()) > 0.1


def test_the_table_of_a_horizon_needs_to_see_the_step() -> None:
    with pytest.raises(
        ValueError, match=r"with horizon=3 .* another number at every step\. Use mdp\.with_time"
    ):
        truth(replace(LOOP, horizon=3))


def run(
    mdp: TabularMDP, name: str, given: Settings, *, num_lanes: int, num_steps: int, num_chunks: int
) -> State:
    world, state = (
        Lanes(TabularVectorEnv(mdp, num_lanes)),
        control.init(mdp.num_observations, mdp.num_actions),
    )
    for _ in range(num_chunks):
        control.update(state, world.collect(control.actor(state, given), num_steps), CONTROL[name], given)
    return state


LOOK_ALIKE = {"two_states", "corridor", "tiger"}
"""States that look alike and differ: what is best in an observation depends on how often each is behind it,
and so on the policy. There is no Q* of observations; `truth` refuses."""

DETERMINISTIC = {"alpha": 1.0, "omega": 0.0, "epsilon_end": 1.0}
"""The last sample is the truth. Every action is tried alike."""

SIZES: dict[str, tuple[dict[str, float], int, int, int]] = {
    "bandit": (DETERMINISTIC, 50, 4, 5),
    "chain": (DETERMINISTIC, 100, 8, 5),
    "hurry": (DETERMINISTIC, 100, 8, 8),
    "cliff_walk": (DETERMINISTIC, 1000, 10, 30),
    "token": (DETERMINISTIC, 4000, 10, 25),
    "small": (DETERMINISTIC, 100, 8, 10),
    "prompts": (DETERMINISTIC, 200, 8, 10),
    "turn": ({"alpha": 2.0, "omega": 1.0, "epsilon_end": 1.0}, 2000, 12, 30),
    "four_rooms": ({"alpha": 10.0, "omega": 1.0, "epsilon_start": 0.5, "epsilon_end": 0.5}, 5000, 10, 100),
    "random": ({"alpha": 1.5, "omega": 1.0, "epsilon_end": 1.0}, 10_000, 10, 120),
    "luck": ({"alpha": 1.5, "omega": 1.0, "epsilon_end": 1.0}, 10_000, 9, 80),
}
"""World → settings, lanes, steps of a chunk, chunks. Noise falls with the root of the samples: the rewards of
the random worlds scatter by 1.8. In a world that loops α = 1 / (1 − γ) with ω = 1 forgets the first table as
fast as it can without keeping noise; over a few steps 1.5 is enough."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in ("luck", "token", "four_rooms") else ())
        for name in SIZES
    ],
)
def test_q_learning_reaches_the_optimum_on_the_zoo(name: str) -> None:
    given, num_lanes, num_steps, num_chunks = SIZES[name]
    mdp = with_time(ZOO[name]())
    size = {"num_lanes": num_lanes, "num_steps": num_steps, "num_chunks": num_chunks}
    state = run(mdp, "q_learning", Settings(mdp.gamma, **given), **size)
    found = errors(truth(mdp), state.q)
    assert found["q_error/max"] <= 1e-2
    assert found["v_error/max"] <= 1e-2


def test_every_world_of_the_zoo_is_covered_or_has_no_optimum_of_observations() -> None:
    assert set(SIZES) | LOOK_ALIKE == set(ZOO)
    for name in LOOK_ALIKE:
        with pytest.raises(ValueError, match="tell its states apart"):
            truth(ZOO[name]())


def best_soft(mdp: TabularMDP, epsilon: float) -> Tensor:
    """Q of the best ε-soft policy: evaluate the ε-greedy policy, act ε-greedily on that, until it stays."""
    policy, before = torch.ones(mdp.num_states, mdp.num_actions).double() / mdp.num_actions, None
    while before is None or not torch.equal(policy, before):
        before, q = policy, solve.evaluate(mdp, policy).q
        policy = epsilon_greedy(q.round(decimals=9), epsilon)
    return q


ANYWHERE = torch.tensor([0.25, 0.25, 0.25, 0.25, 0.0], dtype=torch.float64)
ON_POLICY = {
    "chain": (replace(chain(), start=ANYWHERE, time_limit=2), 1000, 40, 0.01),
    "small": (ZOO["small"](), 3000, 80, 0.01),
    "random": (replace(random_mdp(gamma=0.6, horizon=None), time_limit=4), 2000, 100, 0.02),
}


@pytest.mark.parametrize("name", ["monte_carlo", "sarsa", "expected_sarsa"])
@pytest.mark.parametrize("world", ON_POLICY)
def test_on_policy_rules_reach_the_values_of_the_best_policy_that_explores(world: str, name: str) -> None:
    mdp, num_lanes, num_chunks, tolerance = ON_POLICY[world]
    given = Settings(mdp.gamma, alpha=3.0, omega=1.0, epsilon_start=0.3, epsilon_end=0.3)
    state = run(mdp, name, given, num_lanes=num_lanes, num_steps=10, num_chunks=num_chunks)
    acts = ~mdp.terminal
    wanted = best_soft(mdp, 0.3)[acts]
    assert (state.q[mdp.observation][acts] - wanted).abs().max() <= tolerance
    optimum = solve.value_iteration(mdp).q[acts]
    assert (optimum - wanted).abs().max() > 5 * tolerance


def test_sarsa_keeps_away_from_the_edge_and_q_learning_walks_along_it() -> None:
    """Sutton & Barto 2018, example 6.6: the optimal path is the worse one for who explores."""
    world = tables("CliffWalking-v1")
    given = Settings(1.0, alpha=0.1, omega=0.0, epsilon_start=0.1, epsilon_end=0.1)
    lived: dict[str, float] = {}
    edge: dict[str, float] = {}
    greedy: dict[str, float] = {}
    for name in ("q_learning", "sarsa"):
        lanes = Lanes(gymnasium.make_vec("CliffWalking-v1", num_envs=16))
        state = control.init(48, 4)
        for _ in range(1000):
            control.update(state, lanes.collect(control.actor(state, given), 1), CONTROL[name], given)
        late = lanes.finished[len(lanes.finished) // 2 :]
        lived[name] = sum(late) / len(late)
        # Steps of an episode, exploration included, in the row above the cliff.
        edge[name] = float(solve.evaluate(world, epsilon_greedy(state.q, 0.1)).occupancy[24:36].sum())
        greedy[name] = errors(truth(world), state.q)["greedy_return"]
    assert lived["sarsa"] > lived["q_learning"] + 10
    assert greedy["q_learning"] == pytest.approx(-13) and greedy["sarsa"] <= -15
    assert edge["q_learning"] > 10 and edge["sarsa"] < 5


def test_frozen_lake_is_learned() -> None:
    world = tables("FrozenLake-v1", gamma=0.99, limited=True)
    given = Settings(0.99, alpha=30.0, omega=1.0, epsilon_end=0.3, epsilon_frames=200_000)
    state = run(world, "q_learning", given, num_lanes=1000, num_steps=10, num_chunks=150)
    found, best = errors(truth(world), state.q), solve.expected_return
    limited = best(replace(world, gamma=1.0, horizon=world.time_limit), truth(world).optimum.policy)
    assert found["greedy_return"] == pytest.approx(float(limited), abs=0.01)


def test_taxi_is_learned() -> None:
    world = tables("Taxi-v4", gamma=0.99)
    given = Settings(0.99, alpha=1.0, omega=0.0, epsilon_end=1.0)
    state = run(world, "q_learning", given, num_lanes=2000, num_steps=10, num_chunks=60)
    assert errors(truth(world), state.q)["q_error/max"] <= 1e-2
