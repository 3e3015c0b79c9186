"""Each world is the one its source describes, and its closed forms come out."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import gymnasium
import pytest
import torch
from torch import Tensor
from worlds import deterministic, random_policy, random_theta

from gradhat.exact.enumerate import count_paths, paths
from gradhat.exact.mdp import TabularMDP, leads_to, softmax_policy, with_time
from gradhat.exact.solve import backward_induction, evaluate, expected_return, policy_iteration
from gradhat.exact.zoo import (
    DOWN,
    LEFT,
    RIGHT,
    UP,
    ZOO,
    Words,
    WorldTurn,
    bandit,
    chain,
    cliff_walk,
    corridor,
    exactly,
    four_rooms,
    hurry,
    last_word,
    random_mdp,
    says,
    tiger,
    token_mdp,
    two_states,
    whole,
)


def constant(mdp: TabularMDP, *probabilities: float) -> Tensor:
    """The policy that does the same everywhere."""
    return torch.tensor([probabilities] * mdp.num_states, dtype=torch.float64)


def uniform(mdp: TabularMDP) -> Tensor:
    return constant(mdp, *[1 / mdp.num_actions] * mdp.num_actions)


@pytest.mark.parametrize("name", ZOO)
def test_every_world_on_the_list_ends_or_is_cut_or_discounted(name: str) -> None:
    mdp = ZOO[name]()
    assert math.isfinite(float(expected_return(mdp, uniform(mdp))))
    assert (count_paths(mdp) < 10_000) == (name not in {"cliff_walk", "four_rooms"})


def test_a_bandit_is_worth_what_its_arms_pay() -> None:
    mdp = bandit((0.1, -0.2, 0.3, 0.4))
    policy = random_policy(mdp, 0)
    expected = float(policy[0] @ torch.tensor([0.1, -0.2, 0.3, 0.4], dtype=torch.float64))
    assert float(expected_return(mdp, policy)) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_the_chain_has_its_closed_form(p: float) -> None:
    mdp = chain(5, gamma=0.8, early=0.2)
    v = evaluate(mdp, constant(mdp, 1 - p, p)).v
    # The k-th cell has 5 - k steps to go: all of them, or i and then the small reward.
    for k in range(5):
        n = 5 - k
        quits = sum((0.8 * p) ** i * (1 - p) * 0.2 for i in range(n))
        assert float(v[k]) == pytest.approx(0.8 ** (n - 1) * p**n + quits, abs=1e-15)


def test_the_cliff_is_that_of_gymnasium() -> None:
    mdp, peer = cliff_walk(), gymnasium.make("CliffWalking-v1").unwrapped
    for s, a in itertools.product(range(47), range(4)):
        ((chance, following, reward, terminated),) = peer.P[s][a]  # type: ignore[attr-defined]
        assert chance == 1
        assert int(mdp.transition[s, a].argmax()) == following
        assert float(mdp.reward[s, a, following]) == reward
        assert bool(mdp.terminal[following]) == terminated
    assert mdp.gamma == 1
    assert mdp.start.argmax() == 36


def test_the_four_rooms_have_their_walls_their_doors_and_their_slip() -> None:
    mdp = four_rooms()
    assert mdp.num_states == 104
    # The upper left corner: up and left are walls.
    expected = {UP: (7 / 9, 1 / 9, 1 / 9), LEFT: (7 / 9, 1 / 9, 1 / 9)}
    expected |= {RIGHT: (2 / 9, 2 / 3, 1 / 9), DOWN: (2 / 9, 1 / 9, 2 / 3)}
    for action, (stays, right, down) in expected.items():
        row = mdp.transition[0, action]
        assert [float(row[s]) for s in (0, 1, 10)] == pytest.approx([stays, right, down], abs=1e-15)
    assert float(mdp.start[:-1].min()) == pytest.approx(1 / 103)
    # Without its four doors, the cells with walls on two opposite sides, the house falls into four rooms.
    sure = four_rooms(slip=0.0).transition.argmax(-1)
    blocked = sure == torch.arange(104)[:, None]
    doors = (blocked[:, UP] & blocked[:, DOWN]) | (blocked[:, LEFT] & blocked[:, RIGHT])
    doors &= ~mdp.terminal
    assert int(doors.sum()) == 4
    step = (mdp.transition > 0).any(1) & ~doors[:, None] & ~doors
    step = step | step.T  # one does not leave the goal
    rooms = {tuple(leads_to(torch.arange(104) == s, step).tolist()) for s in range(104) if not doors[s]}
    assert sorted(sum(room) for room in rooms) == [20, 25, 25, 30]


def test_dropping_the_discount_leads_two_states_to_the_worst_policy() -> None:
    mdp = two_states()
    undiscounted = replace(mdp, gamma=1.0)
    theta = random_theta(mdp, 0)
    policy = softmax_policy(mdp, theta)
    p = float(policy[0, 0])
    values = evaluate(mdp, policy)
    assert float(values.expected_return) == pytest.approx(1.5 + 0.125 * p, abs=1e-15)
    assert float(expected_return(undiscounted, policy)) == pytest.approx(3 + 0.5 * p, abs=1e-15)
    # As a sampled estimate without γ^t has it: states count as often as they are met.
    met = evaluate(undiscounted, policy).occupancy
    slope = (1 - p) * p
    alike = mdp.observation == 0
    dropped = (met[:, None] * policy * values.adv)[alike].sum(0)
    assert dropped.tolist() == pytest.approx([-0.75 * slope, 0.75 * slope], abs=1e-15)
    true = (values.occupancy[:, None] * policy * values.adv)[alike].sum(0)
    assert true.tolist() == pytest.approx([0.125 * slope, -0.125 * slope], abs=1e-15)


def test_random_worlds_are_as_ordered() -> None:
    mdp = random_mdp(6, 3, seed=5, branching=3, num_observations=4, num_terminal=2, horizon=None, gamma=0.5)
    assert (mdp.transition[:4] > 0).sum(-1).tolist() == [[3] * 3] * 4
    assert mdp.terminal.tolist() == [False] * 4 + [True] * 2
    assert mdp.observation.tolist() == [0, 1, 2, 3, 0, 1]
    assert (mdp.start > 0).all()
    again = random_mdp(6, 3, seed=5, branching=3, num_observations=4, num_terminal=2, horizon=None, gamma=0.5)
    assert torch.equal(mdp.transition, again.transition)
    assert torch.equal(mdp.reward, again.reward)
    assert not torch.equal(random_mdp(seed=1).transition, random_mdp(seed=2).transition)
    assert not torch.equal(random_mdp(seed=1).reward, random_mdp(seed=2).reward)


def test_the_best_way_down_the_corridor_is_stochastic() -> None:
    mdp = corridor()
    for p in (0.05, 0.5, 0.95):
        found = float(expected_return(mdp, constant(mdp, 1 - p, p)))
        assert found == pytest.approx(-2 * (2 - p) / (p * (1 - p)), rel=1e-12)
    # Sutton & Barto 2018, page 323: about 0.59, with a value of about -11.6.
    p = 2 - math.sqrt(2)
    best = float(expected_return(mdp, constant(mdp, 1 - p, p)))
    assert (round(p, 2), math.trunc(best * 10) / 10) == (0.59, -11.6)
    for near in (p - 1e-3, p + 1e-3):
        assert float(expected_return(mdp, constant(mdp, 1 - near, near))) < best
    for action in (0, 1):
        with pytest.raises(ValueError, match="never ends"):
            evaluate(mdp, deterministic((action,) * 4, 2))
    assert float(policy_iteration(mdp).v[0]) == pytest.approx(
        -3, abs=1e-12
    )  # who sees the cell goes straight


def test_who_listens_once_to_the_tiger_loses_less_than_who_does_not() -> None:
    mdp = tiger()
    listens, opens_left, opens_right = range(3)
    by_observation = [listens, opens_right, opens_left, 0]
    policy = deterministic(tuple(by_observation[o] for o in mdp.observation), 3)
    assert float(expected_return(mdp, policy)) == pytest.approx(
        -1 + 0.95 * (0.85 * 10 - 0.15 * 100), abs=1e-12
    )
    assert float(expected_return(mdp, constant(mdp, 0, 1, 0))) == pytest.approx(-45, abs=1e-12)


def test_the_best_way_down_the_corridor_in_8_steps_is_stochastic_too() -> None:
    mdp = ZOO["corridor"]()
    found = {p: float(expected_return(mdp, constant(mdp, 1 - p, p))) for p in (0.612, 0.613, 0.614)}
    assert max(found, key=lambda p: found[p]) == 0.613 and found[0.613] == pytest.approx(-6.564, abs=5e-4)
    for actions in itertools.product(range(2), repeat=2):
        policy = deterministic(tuple(actions[o] for o in mdp.observation), 2)
        assert float(expected_return(mdp, policy)) == -8
    # Who sees the step knows when the second cell is due.
    timed = with_time(replace(mdp, horizon=3))
    aware = deterministic(tuple([1, 0, 1, 0][int(o) // 2] for o in timed.observation), 2)
    assert float(expected_return(timed, aware)) == -3


def with_memory(mdp: TabularMDP, belief: Tensor, steps: int) -> float:
    """The best return of who remembers all that was shown: by what may be the state."""
    if steps == 0:
        return 0.0
    values: list[float] = []
    for a in range(mdp.num_actions):
        value = float((belief @ (mdp.transition[:, a] * mdp.reward[:, a])).sum())
        after = belief @ mdp.transition[:, a]
        for shown in range(mdp.num_observations):
            likely = torch.where((mdp.observation == shown) & ~mdp.terminal, after, 0)
            if (chance := float(likely.sum())) > 0:
                value += mdp.gamma * chance * with_memory(mdp, likely / chance, steps - 1)
        values.append(value)
    return max(values)


def test_what_the_tiger_leaves_to_who_sees_who_remembers_and_who_does_neither() -> None:
    mdp = tiger()
    assert mdp.horizon == 4
    assert float(mdp.start @ backward_induction(mdp).v[0]) == 10
    assert with_memory(mdp, mdp.start, 4) == pytest.approx(2.0911694, abs=1e-7)
    thirds = [torch.tensor([i, j, 3 - i - j]).double() / 3 for i in range(4) for j in range(4 - i)]
    found = {
        i: float(expected_return(mdp, torch.stack([*policy, thirds[0]])[mdp.observation]))
        for i, policy in enumerate(itertools.product(thirds, repeat=3))
    }
    best = max(found, key=lambda i: found[i])
    listens = [x.tolist() for x in thirds].index([1, 0, 0])
    assert best == listens * (100 + 10 + 1)
    assert found[best] == pytest.approx(-(1 + 0.95 + 0.95**2 + 0.95**3)) == pytest.approx(-3.710, abs=5e-4)


def test_in_a_hurry_the_chain_is_the_same_problem() -> None:
    mdp = hurry()
    assert torch.equal(mdp.transition, chain(6).transition) and mdp.time_limit == 2 and mdp.horizon is None
    assert mdp.start.tolist() == pytest.approx([1 / 6] * 6 + [0])
    # From 5 cells before the goal on it is better to go on: 0.9^n > 0.3 for all 6.
    assert policy_iteration(mdp).policy.argmax(-1).tolist() == [1] * 6 + [0]
    assert paths(mdp).truncated.any() and paths(mdp).actions.shape[1] == 2


def texts(mdp: TabularMDP, num_words: int) -> Iterator[tuple[Words, bool, float, float]]:
    """Every completion of a world of words: the words, whether it ended, its reward, and where it came in."""
    every = paths(mdp)
    for actions, mask, rewards in zip(every.actions, every.mask, every.rewards, strict=True):
        said = [int(a) for a in actions[mask]]
        ended = said[-1] == num_words
        last = int(mask.sum()) - 1
        yield tuple(said[:-1] if ended else said), ended, float(rewards[last]), float(rewards.abs().sum())


def test_every_completion_is_there_once_and_is_judged_at_its_last_step() -> None:
    def verdict(words: Words, ended: bool) -> float:
        return sum((i + 1) * 10**i for i in words) + 0.5 * ended + 1

    found = list(texts(token_mdp(3, 4, verifiers=(verdict,)), 3))
    assert len(found) == sum(3**k for k in range(5))
    ended = {w for k in range(4) for w in itertools.product(range(3), repeat=k)}
    assert {words for words, done, *_ in found if done} == ended
    assert {words for words, done, *_ in found if not done} == set(itertools.product(range(3), repeat=4))
    for words, done, reward, paid in found:
        assert reward == paid == verdict(words, done)


def test_the_default_language_is_small_enough_and_its_right_answers_are_longer() -> None:
    mdp = token_mdp()
    assert mdp.transition.nbytes + mdp.reward.nbytes < 200 * 10**6
    assert mdp.num_observations == mdp.num_states == 1366
    every = paths(mdp)
    assert len(every) == 5461
    chance = every.probability(torch.zeros(1366, 5, dtype=torch.float64))
    length, right = every.mask.sum(-1).double(), every.returns() > 0
    # k words, not all of them other than 0, nor other than 1, then the end token.
    expected = sum(0.2 * 0.8**k * (1 - 2 * 0.75**k + 0.5**k) for k in range(1, 6))
    assert float(chance[right].sum()) == pytest.approx(expected, abs=1e-14)
    assert round(expected, 3) == 0.116
    mean = [float((chance * length)[these].sum() / chance[these].sum()) for these in (right, ~right)]
    assert mean == pytest.approx([4.8, 3.5], abs=0.05)


def test_the_verifiers_judge_the_words_and_the_end() -> None:
    assert [says(0, 2)(words, True) for words in [(2, 1, 0), (0, 0), (2,), ()]] == [1, 0, 0, 0]
    assert [exactly(1)(words, True) for words in [(2, 0), (0, 0), (2,), ()]] == [1, 0, 0, 0]
    assert exactly(0)((1,), True) == says()((1,), True) == 1
    assert exactly(0)((1,), False) == says()((1,), False) == 0


def test_what_the_policy_sees_is_a_choice() -> None:
    assert token_mdp(3, 4, observation=whole).observation.unique().numel() == 41
    mdp = token_mdp(3, 4, observation=last_word)
    # The empty text, 3 last words at each of 3 lengths, the end.
    assert mdp.num_observations == 1 + 3 * 3 + 1
    assert mdp.observation[0] == 0
    assert mdp.observation.unique().tolist() == list(range(11))
    # (0, 1) and (2, 1) end alike, (1,) is shorter.
    order = [(), *[w for k in (1, 2, 3) for w in itertools.product(range(3), repeat=k)]]
    seen = {words: int(mdp.observation[s]) for s, words in enumerate(order)}
    assert seen[0, 1] == seen[2, 1] != seen[(1,)]
    assert seen[0, 1] != seen[0, 2]


def test_prompts_are_start_states_with_verifiers_of_their_own() -> None:
    mdp = token_mdp(2, 3, verifiers=(says(), says(0), says(1, 0)))
    starts = mdp.start.nonzero()[:, 0]
    assert mdp.start[starts].tolist() == pytest.approx([1 / 3] * 3)
    v = evaluate(mdp, uniform(mdp)).v[starts].tolist()
    # Right are: every text that ends; (0), (0, 0), (0, 1) and (1, 0); (0, 1) and (1, 0).
    third = 1 / 3
    expected = [third + 2 * third**2 + 4 * third**3, third**2 + 3 * third**3, 2 * third**3]
    assert v == pytest.approx(expected, abs=1e-15)
    shared = token_mdp(2, 3, verifiers=(says(), says(0)), observation=lambda prompt, words: words)
    assert shared.num_observations == 1 + 2 + 4 + 1


def test_the_world_speaks_in_the_middle() -> None:
    def second(words: Words, ended: bool) -> float:
        del ended
        return float(words[1]) if len(words) > 1 else 0.0

    mdp = token_mdp(2, 4, turn=WorldTurn(1, (0.25, 0.75)), verifiers=(second,))
    spoken_to = (~mdp.own).nonzero()[:, 0].tolist()
    assert len(spoken_to) == 2  # one word was said, either of two
    for s in spoken_to:
        assert mdp.transition[s, 0].sort().values[-2:].tolist() == [0.25, 0.75]
        assert torch.equal(mdp.transition[s], mdp.transition[s, :1].expand(3, -1))
    # Whatever the policy does after its first word, the second one is the world's.
    never_ends = constant(mdp, 0.5, 0.5, 0.0)
    assert float(expected_return(mdp, never_ends)) == pytest.approx(0.75, abs=1e-15)
    every = paths(mdp)
    assert (every.mask.sum(-1) <= 3).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: token_mdp(0, 2), "num_words=0, length=2 and 1 verifiers: found a number below 1"),
        (lambda: token_mdp(2, 0), "length=0"),
        (lambda: token_mdp(2, 2, verifiers=()), "and 0 verifiers"),
        (lambda: token_mdp(2, 3, turn=WorldTurn(2, (0.5, 0.5))), "turn after 2 of length=3 words.*leave the"),
        (lambda: token_mdp(2, 3, turn=WorldTurn(-1, (0.5, 0.5))), "turn after -1"),
        (
            lambda: token_mdp(2, 3, turn=WorldTurn(1, (1.0,))),
            "with 1 probabilities for num_words=2: give one",
        ),
        (lambda: token_mdp(2, 3, turn=WorldTurn(1, (0.5, 0.6))), r"transition\[1, 0\] does not sum to 1"),
        (
            lambda: token_mdp(10, 6),
            r"token_mdp with 111112 states: found tables of 2\.17e\+03 GB, the limit is 2 GB. Use fewer",
        ),
    ],
)
def test_a_language_that_cannot_be_is_refused(build: object, message: str) -> None:
    assert callable(build)
    with pytest.raises(ValueError, match=message):
        build()
