"""Off-policy corrections: against loops over trajectories, against each other, and against known limits."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lived import Life, check_labels, gradient, lives, policy, score, seen, total, value
from matplotlib.text import Text

from gradhat.errors import ConfigError
from gradhat.estimators.offpolicy import effective_sample_size
from gradhat.exact.enumerate import draws
from gradhat.exact.mdp import TabularMDP
from gradhat.exact.moments import moments, weighted
from gradhat.exact.zoo import (
    ZOO,
    WorldTurn,
    bandit,
    chain,
    cliff_walk,
    corridor,
    random_mdp,
    token_mdp,
    two_states,
)
from gradhat.lab import shelf
from gradhat.lab.figure import COLOURS, INK, spread
from gradhat.lab.microscope import World, ascent, listed, world
from gradhat.lab.report import Report
from gradhat.lab.staleness import (
    FRESH,
    SAMPLES,
    Bounds,
    Correction,
    along,
    corrections,
    point,
    staleness,
    verdict,
    weights,
)

TIGHT = Bounds(clip=0.1, cap=1.2, low=0.8, high=1.3)
"""Binding after a few updates."""
EXACT = ("per decision", "trajectory")


def text() -> TabularMDP:
    """Two prompts, a turn of the world in the middle, and a reward for every word 0."""
    verifiers = (lambda words, ended: float(0 in words), lambda words, ended: float(words.count(0)))
    return token_mdp(2, 3, verifiers=verifiers, turn=WorldTurn(1, (0.3, 0.7)))


WORLDS: dict[str, tuple[Callable[[], TabularMDP], float]] = {
    "text": (text, 3.0),
    "two_states": (two_states, 8.0),
    "random": (lambda: random_mdp(3, 2, horizon=3, seed=3, num_observations=2), 0.5),
    "corridor": (lambda: corridor(5), 0.2),
    "chain": (lambda: chain(3), 3.0),
}


def of(mdp: TabularMDP) -> World:
    return world(mdp, seed=5, spread=0.5)


def naive_weights(
    mdp: TabularMDP, new: np.ndarray, old: np.ndarray
) -> dict[str, Callable[[Life], list[float]]]:
    """The weight of every step's score, written out: ρ of a step, products and the credit R(τ) − V(s₀)."""
    pi, mu, v = policy(mdp, new), policy(mdp, old), value(mdp, new)
    clip, cap, low, high = TIGHT

    def ratios(x: Life) -> list[float]:
        places = [(int(mdp.observation[s.state]), s.action) for s in x.steps]
        return [pi[p] / mu[p] if s.own else 1.0 for p, s in zip(places, x.steps, strict=True)]

    def adv(x: Life) -> float:
        return total(mdp, x) - v(0, x.steps[0].state)

    def kept(r: float, a: float) -> bool:
        return not (a > 0 and r > 1 + clip) and not (a < 0 and r < 1 - clip)

    def mean(x: Life) -> float:
        return math.prod(ratios(x)) ** (1 / max(1, sum(s.own for s in x.steps)))

    def per_decision(x: Life) -> list[float]:
        r = ratios(x)
        return [
            sum(mdp.gamma**k * math.prod(r[: max(k, t) + 1]) * x.steps[k].reward for k in range(len(r)))
            - math.prod(r[: t + 1]) * v(0, x.steps[0].state)
            for t in range(len(r))
        ]

    def vtrace(x: Life) -> list[float]:
        vs, answer = 0.0, []
        for s, r in zip(reversed(x.steps), reversed(ratios(x)), strict=True):
            here, after, rho = v(s.t, s.state), 0.0 if s.last else v(s.t + 1, s.after), min(1.0, r)
            vs = 0.0 if s.last else vs
            answer.append(mdp.gamma**s.t * rho * (s.reward + mdp.gamma * vs - here))
            delta = rho * (s.reward + mdp.gamma * after - here)
            vs = here + delta + mdp.gamma * rho * (vs - after)
        return answer[::-1]

    return {
        "no correction": lambda x: [adv(x)] * len(x.steps),
        "clipped": lambda x: [r * adv(x) * kept(r, adv(x)) for r in ratios(x)],
        "masked": lambda x: [r * adv(x) * (low <= r <= high) for r in ratios(x)],
        "sequence": lambda x: [mean(x) * adv(x)] * len(x.steps),
        "token": lambda x: [r * adv(x) for r in ratios(x)],
        "truncated token": lambda x: [min(r, cap) * adv(x) for r in ratios(x)],
        "V-trace": vtrace,
        "truncated trajectory": lambda x: [min(math.prod(ratios(x)), cap) * adv(x)] * len(x.steps),
        "per decision": per_decision,
        "trajectory": lambda x: [math.prod(ratios(x)) * adv(x)] * len(x.steps),
    }


@pytest.mark.parametrize("name", WORLDS)
def test_every_correction_has_the_bias_and_variance_of_a_loop(name: str) -> None:
    make, lr = WORLDS[name]
    mdp = make()
    there = of(mdp)
    theta = ascent(listed(there), there.theta, lr=lr, updates=3)[-1]
    got = point(World(mdp, theta, there.theta), listed(there), 3, corrections(TIGHT))
    new, old = theta.numpy(), there.theta.numpy()
    truth, stale, fresh = gradient(mdp, new), lives(mdp, old), lives(mdp, new)
    naive = naive_weights(mdp, new, old)
    expected = {n: (stale, w) for n, w in naive.items()} | {FRESH: (fresh, naive["no correction"])}
    assert [f.name for f in got.findings] == list(expected)
    for f, (found, w) in zip(got.findings, expected.values(), strict=True):
        mean = seen(truth, [x.chance for x in found], [score(mdp, new, x, w(x)) for x in found])
        assert f.norm_ratio == pytest.approx(mean.norm_ratio, rel=1e-8), f.name
        assert f.relative_bias == pytest.approx(mean.bias, rel=1e-8, abs=1e-10), f.name
        assert f.variance == pytest.approx(mean.variance, rel=1e-8), f.name


def test_the_bounds_of_that_comparison_bind() -> None:
    """Otherwise it would compare `token` with itself."""
    make, lr = WORLDS["random"]
    there = of(make())
    theta = ascent(listed(there), there.theta, lr=lr, updates=3)[-1]
    got = point(World(there.mdp, theta, there.theta), listed(there), 3, corrections(TIGHT))
    bias = {f.name: f.relative_bias for f in got.findings}
    for bound, free in (
        ("clipped", "token"),
        ("masked", "token"),
        ("truncated token", "token"),
        ("truncated trajectory", "trajectory"),
    ):
        assert abs(bias[bound] - bias[free]) > 1e-3, bound


@pytest.mark.parametrize("name", WORLDS)
def test_the_exact_corrections_are_unbiased_at_every_distance_and_the_others_are_not(name: str) -> None:
    make, lr = WORLDS[name]
    points = along(of(make()), 6, lr, corrections(TIGHT))
    assert [p.updates for p in points] == list(range(7))
    for p in points:
        bias = {f.name: f.relative_bias for f in p.findings}
        assert all(bias[n] < 1e-10 for n in (*EXACT, FRESH))
    # In two_states one ratio is all that a step needs: what comes before it does not depend on the policy.
    assert {n for n, b in bias.items() if b < 1e-6} <= {*EXACT, FRESH, "token"}


@pytest.mark.parametrize("name", WORLDS)
def test_fresh_samples_make_all_corrections_one(name: str) -> None:
    """V-trace has another credit, and the same mean."""
    make, lr = WORLDS[name]
    for f in (first := along(of(make()), 1, lr, corrections(TIGHT))[0].findings):
        assert f.relative_bias < 1e-11
        if f.name != "V-trace":
            assert f.variance == pytest.approx(first[-1].variance, rel=1e-12)


def test_bounds_that_do_not_bind_leave_the_ratio_alone() -> None:
    make, lr = WORLDS["random"]
    wide = Bounds(clip=1e9, cap=1e9, low=0.0, high=1e9)
    bias = {f.name: f.relative_bias for f in along(of(make()), 4, lr, corrections(wide))[-1].findings}
    assert bias["clipped"] == bias["masked"] == pytest.approx(bias["token"])
    assert bias["truncated token"] == pytest.approx(bias["token"])
    assert bias["truncated trajectory"] < 1e-11


@pytest.mark.parametrize("name", WORLDS)
def test_the_moments_are_those_of_a_gradient_for_each_trajectory(name: str) -> None:
    make, lr = WORLDS[name]
    there = of(make())
    theta = ascent(listed(there), there.theta, lr=lr, updates=2)[-1]
    tried = corrections(TIGHT)
    got = point(World(there.mdp, theta, there.theta), listed(there), 2, tried)
    v = shelf.state_values(there.mdp, theta)
    every = draws(listed(there), theta, group_size=1, theta_old=there.theta)
    length = float(World(there.mdp, theta, theta).gradient.norm())
    for f, c in zip(got.findings, tried, strict=False):
        slow = moments(every, weighted(weights(c.objective, v)))
        assert f.variance * length**2 == pytest.approx(slow.variance, rel=1e-10)
        assert f.norm_ratio * length == pytest.approx(float(slow.mean.norm()), rel=1e-10)


def test_the_distance_is_that_of_loops() -> None:
    mdp = text()
    there = of(mdp)
    points = along(there, 2, 3.0, corrections(Bounds()))
    thetas = ascent(listed(there), there.theta, lr=3.0, updates=2).numpy()
    for p, new in zip(points, thetas, strict=True):
        old = {x.steps: x.chance for x in lives(mdp, thetas[0])}
        found = lives(mdp, new)
        assert p.kl == pytest.approx(
            sum(x.chance * math.log(x.chance / old[x.steps]) for x in found), abs=1e-14
        )
        assert p.ess == pytest.approx(1 / sum(x.chance**2 / old[x.steps] for x in found))
        assert p.expected_return == pytest.approx(sum(x.chance * total(mdp, x) for x in found))
        assert p.norm == pytest.approx(np.linalg.norm(gradient(mdp, new)))
    assert points[0].ess == pytest.approx(1) and points[0].kl == 0
    assert points[2].kl > points[1].kl > 0


def test_effective_samples_are_those_of_equally_many_stale_ones() -> None:
    """A uniform policy draws each arm once in three trajectories."""
    there = world(bandit(), seed=0, spread=0.0)
    got = along(there, 1, 2.0, corrections(Bounds()))[1]
    theta = ascent(listed(there), there.theta, lr=2.0, updates=1)[1]
    ratio = theta[0].softmax(-1) * 3
    assert got.ess == pytest.approx(float(effective_sample_size(ratio)) / 3)


@pytest.fixture(scope="module")
def report() -> Report:
    return staleness({"chain": of(chain(3))}, updates=9, lr=3.0)


def test_the_tables_hold_every_number(report: Report) -> None:
    points = along(of(chain(3)), 9, 3.0, corrections(Bounds()))
    distance, bias, noise = report.tables
    assert [t.name for t in report.tables] == ["chain_distance", "chain_bias", "chain_variance"]
    for row, p in zip(distance.rows, points, strict=True):
        assert (row["updates"], row["kl"], row["ess"]) == (p.updates, p.kl, p.ess)
        assert set(row) == {c.key for c in distance.columns}
    assert [c.header for c in bias.columns] == ["correction", "0", "2", "4", "5", "7", "9", "weight"]
    for i, (row, again) in enumerate(zip(bias.rows, noise.rows, strict=True)):
        for p in points:
            f, k = p.findings[i], p.updates
            assert (row["name"], row[f"relative_bias_{k}"]) == (f.name, f.relative_bias)
            assert again[f"variance_{k}"] == f.variance and row[f"cosine_{k}"] == f.cosine
            for n in SAMPLES:
                assert row[f"mse_{n}_{k}"] == pytest.approx(f.relative_bias**2 + f.variance / n)
        assert {c.key for c in (*bias.columns, *noise.columns)} <= set(row)


def test_the_verdict_names_the_best_stale_estimator(report: Report) -> None:
    told = next(n for n in report.notes if n.startswith("chain:"))
    assert "9 updates behind" in told
    for n in SAMPLES:
        stale = [r for r in report.tables[1].rows if r["name"] != FRESH]
        assert f"{min(stale, key=lambda r, n=n: r[f'mse_{n}_9'])['name']} from {n}" in told


def test_the_verdict_leaves_fresh_samples_out() -> None:
    last = along(of(corridor(5)), 9, 0.2, corrections(Bounds()))[-1]
    assert min(last.findings, key=lambda f: f.squared_error(4096)).name == FRESH
    assert FRESH not in verdict("corridor", last)


def test_the_panels_draw_the_tables(report: Report) -> None:
    left, right = report.figures["staleness_chain"].axes
    rows = report.tables[1].rows
    for ax, key, shown in ((left, "relative_bias", rows[:-1]), (right, "variance", rows)):
        for line, row in zip(ax.lines, shown, strict=True):
            values = [row[f"{key}_{k}"] for k in range(10)]
            assert list(line.get_xdata()) == list(range(10))
            assert list(line.get_ydata()) == [v if v > 1e-9 else 0 for v in values]
            label = next(t for t in ax.texts if t.get_text() == row["name"])
            assert label.get_color() == line.get_color() and label.xy == (9, line.get_ydata()[-1])
            assert (line.get_linewidth() > 2) is (row["name"] in EXACT)
            assert (line.get_linestyle() == ":") is (row["name"] == FRESH)
    assert [line.get_color() for line in right.lines] == [*COLOURS[:10], INK]
    kl = [row["kl"] for row in report.tables[0].rows]
    ticks = [t.get_text().split("\n") for t in left.get_xticklabels()]
    assert ticks == [[str(k), f"{kl[k]:.2g}"] for k in range(0, 10, 2)]


@pytest.mark.parametrize(
    ("name", "lr"), [pytest.param("prompts", 4.0, marks=pytest.mark.slow), ("random", 0.3)]
)
def test_no_label_covers_another_or_is_cut_off(name: str, lr: float) -> None:
    there = world(ZOO[name](), seed=0, spread=0.5)
    check_labels(staleness({name: there}, lr=lr).figures[f"staleness_{name}"])


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"updates": 0}, "--updates 0: .*Use 1 or more"),
        ({"lr": 0.0}, "--lr 0: .*Use more than 0"),
        ({"lr": math.nan}, "--lr nan: "),
        ({"lr": math.inf}, "--lr inf: "),
        ({"bounds": Bounds(clip=-0.1)}, "--clip -0.1: "),
        ({"bounds": Bounds(cap=0.0)}, "--cap 0: "),
        ({"bounds": Bounds(low=1.1)}, "--low 1.1: "),
        ({"bounds": Bounds(high=0.9)}, "--high 0.9: "),
        *(
            ({"bounds": Bounds(**{flag: value})}, f"--{flag} {value:g}: .*Use ")
            for flag in Bounds._fields
            for value in (math.nan, math.inf)
        ),
    ],
)
def test_settings_out_of_range_are_named(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        staleness({"x": of(bandit())}, **wrong)


@pytest.mark.parametrize("lr", [1e6, 1e308])
@pytest.mark.parametrize("name", ["bandit", "token", "corridor"])
def test_updates_that_leave_no_gradient_are_named(name: str, lr: float) -> None:
    """And not the seed of the policy."""
    there = world(ZOO[name](), seed=0, spread=0.5)
    with pytest.raises(ConfigError, match=r"--lr 1e\+.* zero after .*smaller --lr"):
        staleness({"x": there}, updates=3, lr=lr)


def test_an_action_that_neither_policy_takes_changes_nothing() -> None:
    """A third arm with θ = -inf is a bandit of two arms."""
    two, three = bandit((1.0, 0.0)), bandit((1.0, 0.0, 5.0))
    theta = torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    theta = theta.expand(two.num_observations, 2)
    shut = torch.cat([theta, torch.full_like(theta[:, :1], -math.inf)], 1)
    expected = along(World(two, theta, theta), 2, 1.5, corrections(TIGHT))
    got = along(World(three, shut, shut), 2, 1.5, corrections(TIGHT))
    for p, q in zip(got, expected, strict=True):
        assert (p.kl, p.ess) == (pytest.approx(q.kl), pytest.approx(q.ess))
        for f, g in zip(p.findings, q.findings, strict=True):
            assert f.relative_bias == pytest.approx(g.relative_bias, abs=1e-12), f.name
            assert f.variance == pytest.approx(g.variance), f.name


def test_an_action_that_the_learner_has_given_up_is_weighed_with_zero() -> None:
    """Its ratio underflows: exact corrections stay exact, and no number is lost."""
    mdp = chain(3)
    old = of(mdp).theta
    new = old.clone()
    new[1, 0] = -1e4
    last = point(World(mdp, new, old), listed(World(mdp, new, old)), 1, corrections(TIGHT))
    found = {f.name: f for f in last.findings}
    assert all(math.isfinite(f.relative_bias) and math.isfinite(f.variance) for f in last.findings)
    assert all(found[n].relative_bias < 1e-10 for n in EXACT)
    assert math.isfinite(last.kl) and 0 < last.ess < 1


def test_a_weight_that_is_no_number_is_refused() -> None:
    there = of(bandit())
    broken = Correction("broken", "log of nothing", lambda stale: stale.logp * math.nan)
    with pytest.raises(
        ValueError, match=r"the correction returned nan at \[0, 0\]: every weight must be finite"
    ):
        point(there, listed(there), 0, [broken])


def test_labels_stay_within_the_height_of_their_panel() -> None:
    """Most lines end near 0, at the lower edge: a label each, above one another."""
    figure = staleness({"chain": world(chain(), seed=0, spread=0.5)}, lr=100.0).figures["staleness_chain"]
    check_labels(figure)
    for ax in figure.axes:
        box = ax.get_window_extent()
        labels = [Text.get_window_extent(text) for text in ax.texts]
        assert min(b.y0 for b in labels) >= box.y0 - 2 and max(b.y1 for b in labels) <= box.y1 + 2


POSITIONS = st.lists(st.floats(-50, 50), min_size=1, max_size=8).map(sorted)


@given(wanted=POSITIONS, gap=st.floats(0.1, 5), low=st.floats(-60, 20), room=st.floats(0, 60))
@settings(max_examples=60, deadline=None)
def test_positions_within_limits_are_the_least_squares(
    wanted: list[float], gap: float, low: float, room: float
) -> None:
    need = (len(wanted) - 1) * gap
    high = low + need + room
    found = spread(wanted, gap, low=low, high=high)
    assert low - 1e-9 <= found[0] and found[-1] <= high + 1e-9
    assert all(b - a >= gap - 1e-9 for a, b in itertools.pairwise(found))
    # Projected onto the feasible set: no feasible direction brings it nearer, to any of its corners.
    flat = [y - i * gap for i, y in enumerate(found)]
    pull = [w - y for w, y in zip(wanted, found, strict=True)]
    for split in range(len(flat) + 1):
        vertex = [low] * split + [low + room] * (len(flat) - split)
        assert sum(p * (v - y) for p, v, y in zip(pull, vertex, flat, strict=True)) <= 1e-6


def test_positions_that_do_not_fit_go_beyond_both_limits_alike() -> None:
    assert spread([0.0, 0.0, 9.0], 4.0, low=1.0, high=5.0) == [-1.0, 3.0, 7.0]
    assert spread([], 4.0, low=1.0, high=0.0) == []


def test_a_world_that_cannot_be_listed_or_learned_is_refused() -> None:
    with pytest.raises(ConfigError, match="list every trajectory"):
        staleness({"x": of(cliff_walk())})
    flat = replace(bandit(), reward=torch.zeros(2, 3, 2, dtype=torch.float64))
    with pytest.raises(ConfigError, match="it is zero"):
        staleness({"x": of(flat)})
