"""Every estimator of the shelf under the microscope: against loops over all batches, and known truths.

The loops (`lived`) go through every ordered batch and know nothing of `exact`, `estimators` or `losses`.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from lived import Life, gradient, groups, lives, policy, score, seen, to_go, total, value

from gradhat.exact import enumerate as every
from gradhat.exact.mdp import TabularMDP, softmax_policy, tabular
from gradhat.exact.solve import evaluate, evaluate_finite
from gradhat.exact.zoo import ZOO, WorldTurn, bandit, cliff_walk, random_mdp, says, token_mdp, two_states
from gradhat.lab import microscope
from gradhat.lab.bias import FAR, SAMPLED_COLUMN, UNBIASED, bias
from gradhat.lab.figure import BLUE, RED
from gradhat.lab.microscope import Finding, Specimen, World, examine, specimen_moments, world
from gradhat.lab.shelf import gae_weights, shelf, state_values

LISTED = [name for name in ZOO if name not in ("cliff_walk", "four_rooms", "hurry")]
"""The worlds whose every trajectory can be listed to its end."""
UNBIASED_NAMES = (
    "total_return",
    "return_to_go",
    "constant_baseline",
    "value_baseline",
    "gae",
    "leave_one_out",
)


@functools.cache
def specimens(there: World) -> dict[str, Specimen]:
    return {s.name: s for s in shelf(there)}


@functools.cache
def zoo(name: str) -> World:
    return world(ZOO[name](), seed=3, spread=0.8)


def found(there: World, name: str, group_size: int) -> Finding:
    return examine(there, specimens(there)[name], group_size=group_size)


@pytest.fixture
def no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all the rest."""
    monkeypatch.setattr("gradhat.lab.bias.figure", lambda name, findings: (name, len(findings)))


# --- against loops -----------------------------------------------------------------------------------------


def two_prompts() -> TabularMDP:
    """Texts of one or two words, two prompts of which one is harder, lengths that differ."""
    return token_mdp(2, 2, verifiers=(lambda w, ended: float(0 in w), lambda w, ended: float(w == (1,))))


def with_a_turn() -> TabularMDP:
    """The world's own word is the second; it takes a step that is masked."""
    return token_mdp(2, 3, verifiers=(says(0),), turn=WorldTurn(1, (0.3, 0.7)))


def luck() -> TabularMDP:
    """A discount, two starts, rewards on the way, chance, look-alike states; one or two steps."""
    mdp = random_mdp(3, 2, seed=4, horizon=2, branching=2, num_terminal=1, gamma=0.8, num_observations=2)
    return replace(mdp, start=torch.tensor([0.7, 0.3, 0.0], dtype=torch.float64))


WORLDS = {"two prompts": two_prompts, "a turn": with_a_turn, "luck": luck}
Group = tuple[Life, ...]
Weight = Callable[[TabularMDP, Group, Life, int], float]
"""(world, group, member of it, place of a step) → the weight of the step's score, as in the formula of ĝ."""


def own(life: Life) -> int:
    return sum(step.own for step in life.steps)


@functools.cache
def longest(mdp: TabularMDP) -> int:
    return max(len(x.steps) for x in lives(mdp, np.zeros((mdp.num_observations, mdp.num_actions))))


def mean(mdp: TabularMDP, group: Group) -> float:
    return sum(total(mdp, x) for x in group) / len(group)


def spread(mdp: TabularMDP, group: Group) -> float:
    """The sample deviation, plus 1e-4."""
    centre = mean(mdp, group)
    return math.sqrt(sum((total(mdp, x) - centre) ** 2 for x in group) / (len(group) - 1)) + 1e-4


def adv(mdp: TabularMDP, group: Group, x: Life) -> float:
    return total(mdp, x) - mean(mdp, group)


def left_out(mdp: TabularMDP, group: Group, x: Life) -> float:
    others = [total(mdp, y) for y in group if y is not x]
    return total(mdp, x) - sum(others) / len(others)


def gae_by_hand(mdp: TabularMDP, x: Life, k: int, lam: float, v: Callable[[int, int], float]) -> float:
    credit, reach = 0.0, 1.0
    for s in x.steps[k:]:
        ahead = 0.0 if s.last else mdp.gamma * v(s.t + 1, s.after)
        credit += reach * (s.reward + ahead - v(s.t, s.state))
        reach *= mdp.gamma * lam
    return mdp.gamma**k * credit


def collected(group: Group, x: Life) -> float:
    """1 / |D| for those that come before there are G steps, in the order of the group."""
    steps, members = 0, []
    for y in group:
        if steps < len(group):
            members.append(y)
        steps += own(y)
    return any(y is x for y in members) / len(members)


def of_one(mdp: TabularMDP, theta: np.ndarray) -> dict[str, Callable[[Life, int], float]]:
    """(trajectory, place of a step) → the weight of the step's score."""
    v, gamma = value(mdp, theta), mdp.gamma
    j = sum(x.chance * total(mdp, x) for x in lives(mdp, theta))
    return {
        "total_return": lambda x, k: total(mdp, x),
        "return_to_go": lambda x, k: to_go(mdp, x, k),
        "dropped_discount": lambda x, k: to_go(mdp, x, k) / gamma**k,
        "constant_baseline": lambda x, k: total(mdp, x) - j,
        "value_baseline": lambda x, k: to_go(mdp, x, k) - gamma**k * v(k, x.steps[k].state),
        "gae": lambda x, k: gae_by_hand(mdp, x, k, 0.8, v),
        "gae_wrong_v": lambda x, k: gae_by_hand(mdp, x, k, 0.8, lambda t, s: 0.0),
    }


GROUP: dict[str, Weight] = {
    "group_mean": lambda m, g, x, k: adv(m, g, x) / len(g),
    "leave_one_out": lambda m, g, x, k: left_out(m, g, x) / len(g),
    "group_std": lambda m, g, x, k: adv(m, g, x) / spread(m, g) / len(g),
    "per_sequence": lambda m, g, x, k: adv(m, g, x) / len(g) / own(x),
    "grpo": lambda m, g, x, k: adv(m, g, x) / spread(m, g) / len(g) / own(x),
    "per_token": lambda m, g, x, k: adv(m, g, x) / sum(map(own, g)),
    "dr_grpo": lambda m, g, x, k: adv(m, g, x) / len(g) / longest(m),
    "max_rl": lambda m, g, x, k: adv(m, g, x) / (mean(m, g) or 1.0) / len(g),
}
BATCH: dict[str, Weight] = {
    "batch_mean": GROUP["group_mean"],
    "batch_std": GROUP["group_std"],
    "mean_over_steps": lambda m, g, x, k: total(m, x) / sum(map(own, g)),
    "random_size": lambda m, g, x, k: total(m, x) * collected(g, x),
}


def batches(found: list[Life], size: int) -> list[tuple[float, Group]]:
    """Every ordered batch of independent trajectories."""
    return [(math.prod(x.chance for x in chosen), chosen) for chosen in itertools.product(found, repeat=size)]


def copies(drawn: list[tuple[float, Group]]) -> list[tuple[float, Group]]:
    """The same with members that are told apart, though drawn twice."""
    return [(p, tuple(x._replace() for x in g)) for p, g in drawn]


def agrees(finding: Finding, mdp: TabularMDP, theta: np.ndarray, *args: Sequence) -> None:
    expected = seen(gradient(mdp, theta), *args)
    assert finding.norm_ratio == pytest.approx(expected.norm_ratio, rel=1e-9)
    assert finding.relative_bias == pytest.approx(expected.bias, rel=1e-9, abs=1e-11)
    assert finding.variance == pytest.approx(finding.num_samples * expected.variance, rel=1e-9)
    assert finding.error == 0
    mean = sum(p * g for p, g in zip(*args, strict=True))
    truth = gradient(mdp, theta)
    cosine = float(mean @ truth / np.linalg.norm(mean) / np.linalg.norm(truth))
    assert finding.cosine == pytest.approx(cosine, rel=1e-9)


@pytest.mark.parametrize("where", WORLDS)
def test_what_judges_a_trajectory_by_itself_agrees_with_a_loop(where: str) -> None:
    mdp = WORLDS[where]()
    there = world(mdp, seed=0, spread=0.7)
    theta = there.theta.numpy()
    all_ = lives(mdp, theta)
    assert {len(x.steps) for x in all_} == ({1, 3} if where == "a turn" else {1, 2})
    for name, weight in of_one(mdp, theta).items():
        if name == "dropped_discount" and mdp.gamma == 1:
            continue
        estimates = [score(mdp, theta, x, [weight(x, k) for k in range(len(x.steps))]) for x in all_]
        finding = found(there, name, 3)
        assert finding.num_samples == 1
        agrees(finding, mdp, theta, [x.chance for x in all_], estimates)


@pytest.mark.parametrize("where", WORLDS)
@pytest.mark.parametrize("kind", ["group", "batch"])
def test_what_compares_trajectories_agrees_with_a_loop_over_ordered_batches(where: str, kind: str) -> None:
    mdp, size = WORLDS[where](), 3 if where == "two prompts" else 2
    there = world(mdp, seed=0, spread=0.7)
    theta = there.theta.numpy()
    all_ = lives(mdp, theta)
    drawn = copies(groups(mdp, all_, size) if kind == "group" else batches(all_, size))
    assert sum(p for p, _ in drawn) == pytest.approx(1)
    scores: dict[tuple, np.ndarray] = {}  # a score is linear in the weights: one step each, once

    def of_step(x: Life, k: int) -> np.ndarray:
        if (x.steps, k) not in scores:
            scores[x.steps, k] = score(mdp, theta, x, [float(j == k) for j in range(len(x.steps))])
        return scores[x.steps, k]

    for name, weight in (GROUP if kind == "group" else BATCH).items():
        if name == "max_rl" and float(mdp.reward.min()) < 0:
            assert name not in {s.name for s in shelf(there)}
            continue
        estimates = [
            sum(weight(mdp, g, x, k) * of_step(x, k) for x in g for k in range(len(x.steps)))
            for _, g in drawn
        ]
        finding = found(there, name, size)
        used = size
        if name == "random_size":
            used = sum(p * round(1 / collected(g, g[0])) for p, g in drawn)
        assert finding.num_samples == pytest.approx(used, rel=1e-12)
        agrees(finding, mdp, theta, [p for p, _ in drawn], estimates)


# --- known truths ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LISTED)
def test_unbiased_estimators_are_unbiased_in_every_world_of_the_zoo(name: str) -> None:
    there = zoo(name)
    for s in UNBIASED_NAMES:
        finding = found(there, s, 2)
        assert finding.error == 0, s
        assert finding.relative_bias < 1e-10, s
        assert finding.norm_ratio == pytest.approx(1, abs=1e-10)
        assert finding.cosine == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("name", LISTED)
def test_gae_with_the_exact_value_is_unbiased_at_any_lambda(name: str) -> None:
    there = zoo(name)
    v = state_values(there.mdp, there.theta)
    for lam in (0.0, 0.3, 1.0):
        exact = Specimen("gae", "", gae_weights(there.mdp.gamma, lam, v), "one")
        assert examine(there, exact, group_size=1).relative_bias < 1e-10, lam


def test_who_takes_a_cut_for_an_end_learns_to_quit() -> None:
    """What is seen of ∇J has the right direction. By hand for λ = 0 and a single step, from the fourth cell:
    going on is worth 0.9 V of the fifth, or nothing where the cut counts as the end."""
    there = zoo("hurry")
    v = state_values(there.mdp, there.theta)
    # What is seen of J: the steps before the cut, with the advantages of a problem that goes on.
    pi = softmax_policy(there.mdp, there.theta)
    visited = evaluate_finite(replace(there.mdp, horizon=2), pi).occupancy.sum(0)
    wanted = (visited[:, None] * pi * evaluate(there.mdp, pi).adv).flatten()
    for lam in (0.0, 0.3, 1.0):
        exact = Specimen("gae", "", gae_weights(there.mdp.gamma, lam, v), "one")
        torch.testing.assert_close(specimen_moments(there, exact, 1, 1).mean, wanted, rtol=0, atol=1e-12)
    right, wrong = found(there, "gae", 2), found(there, "cut_as_end", 2)
    assert right.cosine > 0.99 and wrong.cosine < 0.9
    one = world(replace(there.mdp, time_limit=1), seed=0, spread=0.0)
    v = state_values(one.mdp, one.theta)
    mean = [
        specimen_moments(one, Specimen("", "", gae_weights(0.9, 0.0, v, cut_ends=cut), "one"), 1, 1).mean[7]
        for cut in (False, True)
    ]
    goes_on = 0.9 * float(v[0, 4]) - 0.3
    assert [float(x) for x in mean] == pytest.approx([goes_on / 4 / 6, -0.3 / 4 / 6])
    assert goes_on > 0


def test_where_nothing_is_cut_there_is_no_cut_to_mistake() -> None:
    assert "cut_as_end" not in {s.name for s in shelf(zoo("chain"))}
    assert "cut_as_end" in {s.name for s in shelf(zoo("hurry"))}


@pytest.mark.parametrize("name", ["random", "tiger", "prompts", "chain"])
def test_gae_with_a_wrong_value_is_unbiased_only_at_lambda_one(name: str) -> None:
    there = zoo(name)
    v = state_values(there.mdp, there.theta)
    wrong = v + torch.randn(v.shape, generator=torch.Generator().manual_seed(0), dtype=v.dtype)
    at = {
        lam: examine(there, Specimen("", "", gae_weights(there.mdp.gamma, lam, wrong), "one"), group_size=1)
        for lam in (0.0, 0.8, 1.0)
    }
    assert at[1.0].relative_bias < 1e-10
    assert min(at[0.0].relative_bias, at[0.8].relative_bias) > 1e-3


@pytest.mark.parametrize("name", ["prompts", "bandit", "two_states", "turn"])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_group_mean_shortens_the_gradient_to_g_less_one_over_g(name: str, size: int) -> None:
    finding = found(world(ZOO[name](), seed=0, spread=0.5), "group_mean", size)
    assert finding.norm_ratio == pytest.approx((size - 1) / size, abs=1e-10)
    assert finding.cosine == pytest.approx(1, abs=1e-10)
    assert finding.relative_bias == pytest.approx(1 / size, abs=1e-10)


def test_a_large_group_is_counted() -> None:
    """Eight of 5,461 completions: rewards and lengths make few classes."""
    there = zoo("token")
    finding = found(there, "group_mean", 8)
    assert (finding.error, finding.norm_ratio) == (0, pytest.approx(7 / 8, abs=1e-10))
    assert found(there, "leave_one_out", 8).relative_bias < 1e-10


def test_dr_grpo_is_the_group_mean_over_the_longest_length() -> None:
    there = world(ZOO["prompts"](), seed=0, spread=0.5)
    finding = found(there, "dr_grpo", 4)
    assert finding.norm_ratio == pytest.approx(3 / 4 / 3, abs=1e-10)
    assert finding.cosine == pytest.approx(1, abs=1e-10)


def two_arms(*wins: float) -> TabularMDP:
    """A prompt for each number: action 0 wins with this chance times ½, action 1 with it."""
    states = len(wins)
    transition = torch.zeros(states + 1, 2, states + 1)
    transition[:, :, -1] = 1
    reward = torch.zeros(states + 1, 2, states + 1, dtype=torch.float64)
    reward[:states, 1, -1] = torch.tensor(wins, dtype=torch.float64)
    start = torch.full((states + 1,), 1 / states, dtype=torch.float64)
    start[-1] = 0
    return tabular(transition, reward, start, gamma=1.0, terminal=torch.arange(states + 1) == states)


def prompt_factor(p: float, size: int, reward: float) -> float:
    """E ĝ / ∇J of one prompt whose action 1 has chance p and pays `reward`, else 0: the sum over a binomial.

    With k winners the weights are (r − rk/G)/s/G and −rk/G/s/G, and the scores ∇p/p and −∇p/(1 − p).
    """
    found = 0.0
    for k in range(size + 1):
        chance = math.comb(size, k) * p**k * (1 - p) ** (size - k)
        s = reward * math.sqrt(k * (size - k) / (size * (size - 1))) + 1e-4
        win, lose = reward * (1 - k / size) / s / size, -reward * k / size / s / size
        found += chance * (k * win / p - (size - k) * lose / (1 - p))
    return found / reward


@pytest.mark.parametrize("size", [2, 4, 7])
def test_dividing_by_the_deviation_tilts_between_prompts_by_the_number_of_a_binomial(size: int) -> None:
    mdp = two_arms(1.0, 0.2)
    there = world(mdp, seed=0, spread=1.5)
    chances = policy(mdp, there.theta.numpy())[:2, 1]
    factors = [prompt_factor(p, size, r) for p, r in zip(chances, (1.0, 0.2), strict=True)]
    slopes = [r * p * (1 - p) for p, r in zip(chances, (1.0, 0.2), strict=True)]
    mean, truth = np.array([f * x for f, x in zip(factors, slopes, strict=True)]), np.array(slopes)
    finding = found(there, "group_std", size)
    assert finding.norm_ratio == pytest.approx(float(np.linalg.norm(mean) / np.linalg.norm(truth)), rel=1e-10)
    cosine = float(mean @ truth / np.linalg.norm(mean) / np.linalg.norm(truth))
    assert finding.cosine == pytest.approx(cosine, rel=1e-10)
    assert cosine < 0.99


def test_dividing_by_the_deviation_does_not_tilt_where_prompts_are_alike() -> None:
    mdp = two_arms(1.0, 1.0)
    alike = torch.tensor([[0.3, -0.4]], dtype=torch.float64).expand(3, 2).clone()
    finding = found(World(mdp, alike, alike), "group_std", 4)
    assert finding.cosine == pytest.approx(1, abs=1e-12)
    assert finding.norm_ratio > 1.2


@pytest.mark.parametrize(("size", "cosine", "digit"), [(4, 0.99995, 1e-5), (2, 0.9985, 1e-4)])
def test_dividing_by_the_deviation_tilts_a_bandit_of_three_arms(
    size: int, cosine: float, digit: float
) -> None:
    """To the digits of a hand computation with the population's deviation, which is √¾ of the sample's."""
    theta = torch.tensor([[0.8, -0.5, 0.3], [0.0, 0.0, 0.0]], dtype=torch.float64)
    finding = found(World(bandit((1.0, 0.3, 0.0)), theta, theta), "group_std", size)
    assert finding.cosine == pytest.approx(cosine, abs=digit / 2)
    if size == 4:
        assert finding.norm_ratio / math.sqrt(3 / 4) == pytest.approx(1.7517, abs=2e-3)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_without_its_discounts_the_gradient_of_two_states_points_the_other_way(seed: int) -> None:
    """∂J/∂p is 0.125, and −0.75 without γ^t."""
    finding = found(world(two_states(), seed=seed, spread=1.0), "dropped_discount", 1)
    assert finding.cosine == pytest.approx(-1, abs=1e-12)
    assert finding.norm_ratio == pytest.approx(6, abs=1e-10)
    assert finding.relative_bias == pytest.approx(7, abs=1e-10)
    assert finding.angle == pytest.approx(180)


def test_lengths_and_random_sizes_bias_where_lengths_differ_and_nowhere_else() -> None:
    names = ("per_sequence", "per_token", "mean_over_steps", "random_size")
    differ = world(ZOO["prompts"](), seed=0, spread=0.5)
    for name in names:
        assert found(differ, name, 4).cosine < 0.999, name
    same = world(random_mdp(horizon=2), seed=0, spread=0.5)
    for name in names:
        # Two steps each: the divisor is a constant.
        finding = found(same, name, 2)
        assert finding.cosine == pytest.approx(1, abs=1e-10), name
        shrunk = {"per_sequence": 1 / 4, "per_token": 1 / 4, "mean_over_steps": 1 / 2, "random_size": 1.0}
        assert finding.norm_ratio == pytest.approx(shrunk[name], abs=1e-10)


# --- where it cannot be listed -----------------------------------------------------------------------------


def unlisted(there: World, monkeypatch: pytest.MonkeyPatch, how: str, num_draws: int) -> World:
    """The same world and policy, with batches at random."""
    monkeypatch.setattr(microscope, "SAMPLED_DRAWS", num_draws)
    if how == "simulated":
        monkeypatch.setattr(every, "PATHS_LIMIT", 1)
    else:
        monkeypatch.setattr(microscope, "EXACT_DRAWS", 1)
    return World(there.mdp, there.theta, there.theta, seed=5)


@pytest.mark.parametrize("how", ["simulated", "drawn from the list"])
def test_batches_at_random_agree_with_all_of_them_within_their_error(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = world(luck(), seed=0, spread=0.7)
    chosen = shelf(there)
    sizes = {"one": (1, 1), "group": (1, 2), "batch": (2, 1)}
    exact = {s.name: specimen_moments(there, s, *sizes[s.sees]) for s in chosen}
    other = unlisted(there, monkeypatch, how, 4000)
    for s in shelf(other):
        got = specimen_moments(other, s, *sizes[s.sees])
        distance = float((got.mean - exact[s.name].mean).norm())
        assert 0 < distance < 5 * got.error, s.name
        assert got.error == pytest.approx(math.sqrt(exact[s.name].variance / 4000), rel=0.3), s.name
        assert got.variance == pytest.approx(exact[s.name].variance, rel=0.5), s.name


def test_a_world_too_large_to_list_is_sampled_and_says_so(
    no_figure: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microscope, "SAMPLED_DRAWS", 2000)
    monkeypatch.setattr(every, "PATHS_LIMIT", 10_000)  # there are 4^7 ways to walk
    mdp = ZOO["cliff_walk"]()
    there = world(replace(mdp, horizon=7), seed=0, spread=0.5)
    assert there.paths is None and there.classes is None
    chosen = [s for s in shelf(there) if s.name in ("value_baseline", "gae", "group_mean")]
    report = bias({"cliff": there}, {"cliff": chosen}, group_size=3)
    (table,) = report.tables
    assert SAMPLED_COLUMN in table.columns and {c.key for c in table.columns} > {"variance", "what"}
    assert "too many trajectories to list" in table.title
    note = next(n for n in report.notes if n.startswith("cliff: not enumerated but sampled"))
    expected = {"value_baseline": 0.0, "gae": 0.0, "group_mean": 1 / 3}
    for row in table.rows:
        assert row["error"] > 0
        assert abs(row["relative_bias"] - expected[row["name"]]) < 5 * row["error"]
        assert row["name"] in note


def test_only_what_was_sampled_is_named(no_figure: None, monkeypatch: pytest.MonkeyPatch) -> None:
    there = world(luck(), seed=0, spread=0.7)
    exact = bias({"x": there}, {"x": shelf(there)}, group_size=2)
    assert SAMPLED_COLUMN not in exact.tables[0].columns and not any("sampled" in n for n in exact.notes)
    other = unlisted(there, monkeypatch, "drawn from the list", 300)
    monkeypatch.setattr(microscope, "EXACT_DRAWS", 40)  # single trajectories still fit
    report = bias({"x": other}, {"x": shelf(other)}, group_size=2)
    (note,) = (n for n in report.notes if "sampled" in n)
    named = set(note.rpartition(": ")[2].rstrip(".").split(", "))
    assert named == {str(row["name"]) for row in report.tables[0].rows if row["error"]}
    assert named == {*GROUP, *BATCH} - {"max_rl"}  # its rewards can be negative


# --- the report --------------------------------------------------------------------------------------------


def test_rows_are_the_findings_and_their_errors(no_figure: None) -> None:
    there = world(bandit(), seed=0, spread=0.5)
    report = bias({"bandit": there}, {"bandit": shelf(there)}, group_size=3)
    (table,) = report.tables
    assert table.name == "bandit"
    assert table.title.startswith("bandit: 2 states, 3 actions, γ = 1, 3 trajectories, ‖∇J‖ = ")
    assert report.figures == {"bias_bandit": ("bandit", len(table.rows))}
    for row, specimen in zip(table.rows, shelf(there), strict=True):
        finding = examine(there, specimen, group_size=3)
        assert (row["name"], row["what"], row["num_samples"]) == (
            specimen.name,
            specimen.what,
            finding.num_samples,
        )
        for key in ("norm_ratio", "cosine", "relative_bias", "variance", "angle", "error"):
            assert row[key] == getattr(finding, key)
        for n in (16, 256, 4096):
            assert row[f"mse_{n}"] == finding.relative_bias**2 + finding.variance / n


def test_every_world_has_its_own_specimens(no_figure: None) -> None:
    there = {"bandit": world(bandit(), seed=0, spread=0.5), "two": world(two_states(), seed=0, spread=0.5)}
    chosen = {name: shelf(w)[-2:] + shelf(w)[2:3] for name, w in there.items()}
    report = bias(there, chosen, group_size=2)
    assert [[row["name"] for row in t.rows] for t in report.tables] == [
        [s.name for s in chosen[name]] for name in there
    ]


def test_the_figure_shows_the_findings() -> None:
    there = world(two_states(), seed=0, spread=0.5)
    report = bias({"two": there}, {"two": shelf(there)}, group_size=3)
    rows = report.tables[0].rows
    directions, errors = report.figures["bias_two"].axes
    dots = [line for line in directions.lines if line.get_marker() == "o"]
    names = [t.get_text() for t in directions.get_yticklabels()]
    at = dict(zip(directions.get_yticks().tolist(), names, strict=True))
    assert names == [row["name"] for row in reversed(rows)]
    angles = {text.get_position()[1]: text.get_text() for text in directions.texts}
    by_name = {row["name"]: row for row in rows}
    for dot in dots:
        (x,), (y,) = dot.get_xdata(), dot.get_ydata()
        row = by_name[at[y]]
        zero = math.isnan(row["cosine"])
        assert x == pytest.approx(0 if zero else row["norm_ratio"] * row["cosine"])
        assert dot.get_color() == (BLUE if row["relative_bias"] < UNBIASED else RED)
        degrees = 0.0 if zero else math.degrees(math.acos(max(-1, min(1, row["cosine"]))))
        assert angles[y] == ("E ĝ = 0" if zero else f"{degrees:.1f}°" if degrees > 0.05 else "")
    assert len(dots) == len(rows) == len(errors.lines)
    assert any(math.isnan(row["cosine"]) for row in rows)
    for line, row in zip(errors.lines, rows, strict=True):
        n = line.get_xdata()
        assert np.allclose(line.get_ydata(), row["relative_bias"] ** 2 + row["variance"] / n, rtol=1e-12)
    labels = [text.get_text().split(", ") for text in errors.texts]
    assert sorted(name for names in labels for name in names) == sorted(by_name)
    assert any(len(names) > 1 for names in labels)
    ends = {row["name"]: line.get_ydata()[-1] for line, row in zip(errors.lines, rows, strict=True)}
    for text, names in zip(errors.texts, labels, strict=True):
        assert all(text.xy[1] <= ends[name] < 1.1 * text.xy[1] for name in names)


def test_what_a_sample_cannot_tell_from_unbiased_is_not_drawn_as_biased(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    there = world(cliff_walk_short(), seed=0, spread=0.5)
    other = unlisted(there, monkeypatch, "simulated", 2000)
    report = bias({"x": other}, {"x": shelf(other)}, group_size=3)
    _, errors = report.figures["bias_x"].axes
    assert f"within {FAR} ±" in errors._left_title.get_text()
    for line, row in zip(errors.lines, report.tables[0].rows, strict=True):
        near = row["relative_bias"] < FAR * row["error"]
        assert line.get_color() == (BLUE if near else RED)
        assert near or row["name"] not in UNBIASED_NAMES
    assert any(line.get_color() == RED for line in errors.lines)


def cliff_walk_short() -> TabularMDP:
    return replace(cliff_walk(), horizon=4)
