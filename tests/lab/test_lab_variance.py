"""What takes noise out of ĝ: against loops over trajectories, closed forms on the bandit and the chain."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from lived import (
    Life,
    check_labels,
    gradient,
    groups,
    lives,
    policy,
    score,
    seen,
    to_go,
    total,
    value,
)

from gradhat.errors import ConfigError
from gradhat.estimators.baseline import moving_average
from gradhat.exact.mdp import TabularMDP
from gradhat.exact.zoo import ZOO, bandit, chain, cliff_walk, corridor, random_mdp, two_states
from gradhat.lab import microscope
from gradhat.lab.figure import BLUE, COLOURS, INK, panels
from gradhat.lab.microscope import World, world
from gradhat.lab.report import Report, Row, Table
from gradhat.lab.variance import (
    EXACT_V,
    LEFT_OUT,
    NO_V,
    NUMBERS,
    RESCALED,
    WRONG_V,
    Seen,
    Settings,
    _draw_sizes,
    by_baseline,
    by_lambda,
    by_size,
    references,
    table,
    variance,
)

SMALL = Settings(group_size=2, sizes=(2, 3), lams=(0.0, 0.6, 1.0))


def short() -> TabularMDP:
    """Two starts, rewards on the way, chance in the transitions, a discount and look-alike states."""
    return random_mdp(3, 2, horizon=2, seed=3, num_observations=2)


WORLDS = {
    "short": short,
    "two_states": two_states,
    "chain": lambda: chain(3),
    "corridor": lambda: corridor(4),
}


def of(mdp: TabularMDP) -> World:
    return world(mdp, seed=5, spread=0.5)


@pytest.fixture(scope="module")
def report() -> Report:
    """Of a corridor: with rewards on the way, one start, and groups that are counted."""
    return variance({"corridor": of(corridor(8))}, Settings(sizes=(2, 4, 8)))


def tables(report: Report) -> dict[str, Table]:
    return {t.name.partition("_")[2]: t for t in report.tables}


def quick(found: list[Seen]) -> list[Row]:
    """The rows of a table, without its figure."""
    return list(table("", "", (), found).rows)


def rows(report: Report, name: str) -> list[Row]:
    return list(tables(report)[name].rows)


def agrees(row: Row, expected: tuple[float, float, float], num_samples: int = 1) -> None:
    norm_ratio, bias, noise = expected
    assert row["norm_ratio"] == pytest.approx(norm_ratio, rel=1e-9, abs=1e-11)
    assert row["relative_bias"] == pytest.approx(bias, rel=1e-9, abs=1e-11)
    assert row["variance"] == pytest.approx(num_samples * noise, rel=1e-9, abs=1e-11)


@pytest.mark.parametrize("name", WORLDS)
def test_every_baseline_has_the_bias_and_variance_of_a_loop_over_trajectories(name: str) -> None:
    mdp = WORLDS[name]()
    there = of(mdp)
    theta = there.theta.numpy()
    found, truth, v = lives(mdp, theta), gradient(mdp, theta), value(mdp, theta)
    mean = sum(x.chance * total(mdp, x) for x in found)
    got = {(r["key"], r["what"]): r for r in quick(by_baseline(there, SMALL))}
    baselines = {
        "none": lambda life, t: 0.0,
        "constant J": lambda life, t: mean,
        "exact V(s)": lambda life, t: v(t, life.steps[t].state),
    }
    for key, b in baselines.items():
        both = {
            "total return": lambda x, t, b=b: total(mdp, x) - b(x, t),
            "return to go": lambda x, t, b=b: to_go(mdp, x, t) - mdp.gamma**t * b(x, t),
        }
        for credit, psi in both.items():
            each = [score(mdp, theta, x, [psi(x, s.t) for s in x.steps]) for x in found]
            agrees(got[key, credit], seen(truth, [x.chance for x in found], each))


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("others", [True, False])
def test_baselines_of_a_group_agree_with_a_loop_over_pairs(name: str, others: bool) -> None:
    mdp = WORLDS[name]()
    there = of(mdp)
    theta = there.theta.numpy()
    truth, pairs = gradient(mdp, theta), groups(mdp, lives(mdp, theta), 2)
    got = {(r["key"], r["what"]): r for r in quick(by_baseline(there, SMALL))}

    def estimate(pair: tuple[Life, ...], to_the_end: bool) -> np.ndarray:
        own = [total(mdp, x) for x in pair]
        b = [own[1], own[0]] if others else [sum(own) / 2] * 2
        psi = [
            [to_go(mdp, x, s.t) - mdp.gamma**s.t * b[i] if to_the_end else own[i] - b[i] for s in x.steps]
            for i, x in enumerate(pair)
        ]
        return sum(score(mdp, theta, x, w) for x, w in zip(pair, psi, strict=True)) / 2

    for credit, to_the_end in (("total return", False), ("return to go", True)):
        expected = seen(truth, [p for p, _ in pairs], [estimate(x, to_the_end) for _, x in pairs])
        agrees(got[LEFT_OUT if others else "group mean", credit], expected, num_samples=2)


def test_the_moving_average_has_the_variance_of_every_history() -> None:
    """Six earlier trajectories of a bandit, listed; what is older weighs 0.2^6."""
    mdp, decay = bandit(), 0.2
    there = of(mdp)
    theta = there.theta.numpy()
    arms, truth, pi = lives(mdp, theta), gradient(mdp, theta), policy(mdp, theta)[0]
    mean = sum(x.chance * total(mdp, x) for x in arms)
    chances, averages = [], []
    for history in itertools.product(range(3), repeat=6):
        b = mean
        for arm in history:
            b = moving_average(b, torch.tensor([total(mdp, arms[arm])]), decay=decay)
        chances.append(math.prod(pi[arm] for arm in history))
        averages.append(b)
    p = [q * x.chance for q in chances for x in arms]
    g = [score(mdp, theta, x, [total(mdp, x) - b]) for b in averages for x in arms]
    got = [r for r in quick(by_baseline(there, Settings(decay=decay))) if r["key"] == "moving average"]
    for row in got:
        assert row["relative_bias"] < 1e-12
        assert row["variance"] == pytest.approx(seen(truth, p, g).variance, rel=1e-6)
    constant = [r["variance"] for r in quick(by_baseline(there, Settings())) if r["key"] == "constant J"]
    assert got[0]["variance"] > 1.01 * constant[0]


def test_the_moving_average_is_discounted_with_its_step() -> None:
    """What the wandering of b adds: Var b · E‖Σ_t γ^t ∇ log π‖², by loops."""
    mdp = chain(3, gamma=0.5)
    there = of(mdp)
    theta = there.theta.numpy()
    found, truth = lives(mdp, theta), gradient(mdp, theta)
    mean = sum(x.chance * total(mdp, x) for x in found)
    spread = sum(x.chance * (total(mdp, x) - mean) ** 2 for x in found)
    got = {(r["key"], r["what"]): r for r in quick(by_baseline(there, Settings()))}
    for credit, gamma in (("total return", 1.0), ("return to go", 0.5)):
        added = sum(
            x.chance * float((score(mdp, theta, x, [gamma**s.t for s in x.steps]) ** 2).sum()) for x in found
        )
        expected = 0.1 / 1.9 * spread * added / float(truth @ truth)
        gap = got["moving average", credit]["variance"] - got["constant J", credit]["variance"]
        assert gap == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", WORLDS)
def test_gae_has_the_bias_and_variance_of_its_definition(name: str) -> None:
    """A_t = Σ_l (γλ)^l δ_{t+l}, summed as it is written, with three different V."""
    mdp = WORLDS[name]()
    there = of(mdp)
    theta = there.theta.numpy()
    found, truth, v = lives(mdp, theta), gradient(mdp, theta), value(mdp, theta)
    mean = sum(x.chance * total(mdp, x) for x in found)
    spread = math.sqrt(sum(x.chance * (total(mdp, x) - mean) ** 2 for x in found))
    error = torch.randn(
        mdp.num_states, generator=torch.Generator().manual_seed(there.seed + 1), dtype=torch.float64
    )
    says = {
        EXACT_V: v,
        WRONG_V: lambda t, s: v(t, s) + 0.5 * spread * float(error[s]),
        NO_V: lambda t, s: 0.0,
    }
    got = {(r["key"], r["x"]): r for r in quick(by_lambda(there, SMALL))}
    for (key, u), lam in itertools.product(says.items(), SMALL.lams):

        def advantage(x: Life, t: int, u=u, lam: float = lam) -> float:
            delta = [
                s.reward + (0 if s.last else mdp.gamma * u(s.t + 1, s.after)) - u(s.t, s.state)
                for s in x.steps
            ]
            return sum((mdp.gamma * lam) ** (k - t) * delta[k] for k in range(t, len(x.steps)))

        each = [score(mdp, theta, x, [mdp.gamma**s.t * advantage(x, s.t) for s in x.steps]) for x in found]
        row = got[key, lam]
        agrees(row, seen(truth, [x.chance for x in found], each))
        for n in NUMBERS:
            assert row[f"mse_{n}"] == pytest.approx(row["relative_bias"] ** 2 + row["variance"] / n)


def test_with_lambda_0_the_chain_has_the_variance_of_its_advantages() -> None:
    """Its transitions are sure, so δ is A: Var ĝ = Σ_t γ^2t Pr(t) E[A² ‖∇ log π‖²] − ‖∇J‖²."""
    length, gamma, early = 4, 0.9, 0.1
    there = of(chain(length, gamma=gamma, early=early))
    go = there.theta.softmax(-1)[:length, 1].tolist()
    v = [0.0] * (length + 1)
    for t in reversed(range(length)):
        ahead = 1.0 if t == length - 1 else gamma * v[t + 1]
        v[t] = go[t] * ahead + (1 - go[t]) * early
    square, slope, reached = 0.0, 0.0, 1.0
    for t, p in enumerate(go):
        gap = (1.0 if t == length - 1 else gamma * v[t + 1]) - early
        # A(go) = (1 − p) · gap, A(quit) = −p · gap; ‖score‖² = 2 (1 − p)² and 2 p².
        square += gamma ** (2 * t) * reached * 2 * gap**2 * (p * (1 - p) ** 4 + (1 - p) * p**4)
        slope += 2 * (gamma**t * reached * p * (1 - p) * gap) ** 2
        reached *= p
    row = next(r for r in quick(by_lambda(there, Settings())) if (r["key"], r["x"]) == (EXACT_V, 0.0))
    assert row["variance"] == pytest.approx(square / slope - 1, rel=1e-9)


def test_only_a_wrong_v_makes_a_bias_and_only_below_lambda_1(report: Report) -> None:
    for row in rows(report, "lambda"):
        biased = row["key"] != EXACT_V and row["x"] < 1
        assert (row["relative_bias"] > 1e-9) is biased, row


def test_the_error_of_v_has_the_size_that_was_asked_for() -> None:
    """The bias is linear in the error, which does not change its direction."""
    there = of(corridor(4))
    none, half, whole = (
        next(s for s in by_lambda(there, Settings(error=e, lams=(0.0,))) if s.key == WRONG_V).finding
        for e in (0.0, 0.5, 1.0)
    )
    assert none.relative_bias < 1e-12
    assert whole.relative_bias == pytest.approx(2 * half.relative_bias)


def test_leave_one_out_is_a_u_statistic() -> None:
    """On a bandit, ĝ is the mean over pairs of (R_i − R_j)(s_i − s_j) / 2: Hoeffding 1948, eq. 5.13."""
    mdp = bandit((1.0, 0.4, 0.0))
    there = of(mdp)
    theta = there.theta.numpy()
    arms, truth = lives(mdp, theta), gradient(mdp, theta)
    scores = [score(mdp, theta, x, [1.0]) for x in arms]
    p = [x.chance for x in arms]
    r = [total(mdp, x) for x in arms]
    kernel = np.array([[(r[i] - r[j]) * (scores[i] - scores[j]) / 2 for j in range(3)] for i in range(3)])
    first = np.einsum("j,ijk->ik", p, kernel)
    one = float(p @ ((first - truth) ** 2).sum(-1))
    two = float(np.einsum("i,j,ij", p, p, ((kernel - truth) ** 2).sum(-1)))
    got = quick(by_size(there, Settings()))
    for row in got:
        n = int(row["x"])
        expected = 2 / (n - 1) * (2 * (n - 2) * one + two) / float(truth @ truth)
        share = (n - 1) / n if row["key"] == "group mean" else 1.0
        agrees(row, (share, 1 - share, share**2 * expected))
    limit = references(there)[1].variance
    assert limit == pytest.approx(4 * one / float(truth @ truth), rel=1e-9)


def test_the_rescaled_group_mean_is_leave_one_out_and_falls_towards_the_exact_v(report: Report) -> None:
    got = rows(report, "group_size")
    left_out = [r["variance"] for r in got if r["key"] == LEFT_OUT]
    rescaled = [r["variance"] for r in got if r["key"] == RESCALED]
    assert rescaled == pytest.approx(left_out, rel=1e-12)
    assert left_out == sorted(left_out, reverse=True)
    none, of_start, _ = (f.variance for f in references(of(corridor(8))))
    assert none > left_out[0] and left_out[-1] > of_start


@pytest.mark.parametrize("size", [2, 4])
def test_the_group_mean_shortens_as_the_notes_say(size: int) -> None:
    """To (G − 1)/G; with a discount the return to go otherwise."""
    for gamma, alike in ((1.0, True), (0.7, False)):
        there = of(replace(short(), gamma=gamma))
        got = {(r["key"], r["what"]): r for r in quick(by_baseline(there, Settings(group_size=size)))}
        share = (size - 1) / size
        total, ahead = (got["group mean", c]["norm_ratio"] for c in ("total return", "return to go"))
        assert total == pytest.approx(share, rel=1e-12)
        assert (ahead == pytest.approx(share, rel=1e-9)) is alike


def test_a_panel_of_a_short_range_has_several_ticks() -> None:
    """Where the variance changes by less than a factor of 2."""
    ends = (150.0, 290.0)
    lines = [replace(found, variance=y) for found, y in zip(references(of(bandit())), ends, strict=False)]
    seen = [Seen(key, 2, lines[0]) for key in (LEFT_OUT, RESCALED)]
    drawn, (ax,) = panels(1, title="", width=7.0)
    _draw_sizes(ax, seen, lines)
    drawn.draw_without_rendering()
    low, high = ax.get_ylim()
    shown = [t.label1.get_text() for t in ax.yaxis.get_major_ticks() if low <= t.get_loc() <= high]
    assert 4 <= len(shown) <= 7
    assert all(float(text) % 10 == 0 for text in shown)
    check_labels(drawn)


@pytest.mark.parametrize("name", WORLDS)
def test_the_lines_to_compare_with_agree_with_loops(name: str) -> None:
    mdp = WORLDS[name]()
    there = of(mdp)
    theta = there.theta.numpy()
    found, truth, v = lives(mdp, theta), gradient(mdp, theta), value(mdp, theta)
    credits = (
        lambda x, t: total(mdp, x),
        lambda x, t: total(mdp, x) - v(0, x.steps[0].state),
        lambda x, t: to_go(mdp, x, t) - mdp.gamma**t * v(t, x.steps[t].state),
    )
    for line, psi in zip(references(there), credits, strict=True):
        each = [score(mdp, theta, x, [psi(x, s.t) for s in x.steps]) for x in found]
        expected = seen(truth, [x.chance for x in found], each)
        assert line.variance == pytest.approx(expected.variance, rel=1e-9)
        assert line.relative_bias < 1e-11


def test_groups_that_cannot_be_counted_are_sampled_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    there = of(short())
    exact = variance({"x": there}, SMALL)
    assert "±" not in [c.header for c in tables(exact)["group_size"].columns]
    monkeypatch.setattr(microscope, "EXACT_DRAWS", 600)
    report = variance({"x": there}, SMALL)
    sampled = tables(report)["group_size"]
    assert [c.header for c in sampled.columns][-1] == "±"
    for row, true in zip(sampled.rows, tables(exact)["group_size"].rows, strict=True):
        assert (row["error"] > 0) is (row["x"] == 3)
        assert row["variance"] == pytest.approx(true["variance"], rel=0.2)
    note = next(n for n in report.notes if "not enumerated but sampled" in n)
    assert f"{LEFT_OUT} (G = 3)" in note and "(G = 2)" not in note


def test_the_notes_say_what_the_numbers_are() -> None:
    report = variance({"corridor": of(corridor(8)), "short": of(short())}, Settings(sizes=(2,)))
    got = [r for r in report.tables[0].rows]
    noise = {(r["key"], r["what"]): r["variance"] / r["norm_ratio"] ** 2 for r in got}
    least = min(noise, key=noise.__getitem__)
    times = noise["none", "total return"] / noise[least]
    told = next(n for n in report.notes if n.startswith("corridor:"))
    assert f"needs {times:.3g} times" in told and f"the {least[1]} with {least[0]}" in told
    for n in NUMBERS:
        best = min((r for r in report.tables[1].rows if r["key"] == WRONG_V), key=lambda r: r[f"mse_{n}"])
        assert f"{best['x']:g} for {n}" in told
    assert [n for n in report.notes if "start states" in n] == [
        n for n in report.notes if n.startswith("short: 3 start states")
    ]


def test_the_panel_of_baselines_draws_the_table(report: Report) -> None:
    left, _ = report.figures["variance_corridor"].axes
    dots = [line for line in left.lines if line.get_marker() == "o"]
    for line, credit, colour in zip(dots, ("total return", "return to go"), (INK, BLUE), strict=True):
        shown = [r for r in rows(report, "baselines") if r["what"] == credit and r["key"] != "group mean"]
        assert line.get_xdata().tolist() == [r["variance"] for r in shown]
        assert line.get_color() == colour
        name = next(t for t in left.texts if t.get_text() == credit)
        assert name.xy[0] == shown[0]["variance"] and name.get_color() == colour
        keys = [r["key"] if r["key"] != LEFT_OUT else f"{LEFT_OUT}, G = 4" for r in shown]
        assert [t.get_text() for t in left.get_yticklabels()] == keys
        assert line.get_ydata().tolist() == left.get_yticks().tolist()


def test_the_panel_of_groups_draws_the_table_and_the_lines_to_compare_with(report: Report) -> None:
    there = of(corridor(8))
    _, right = report.figures["variance_corridor"].axes
    drawn, rings, *flat = right.lines
    for line, key in ((drawn, LEFT_OUT), (rings, RESCALED)):
        shown = [r for r in rows(report, "group_size") if r["key"] == key]
        assert list(line.get_xdata()) == [r["x"] for r in shown]
        assert list(line.get_ydata()) == [r["variance"] for r in shown]
    assert [line.get_ydata()[0] for line in flat] == [f.variance for f in references(there)]
    for f in references(there):
        label = next(t for t in right.texts if t.get_text() == f"{f.name}: {f.what}")
        assert label.xy[1] == f.variance


def test_the_panels_of_lambda_draw_the_table(report: Report) -> None:
    bias, noise, errors = report.figures["variance_lambda_corridor"].axes
    for ax, column in ((bias, "relative_bias"), (noise, "variance")):
        for line, key, colour in zip(ax.lines, (EXACT_V, WRONG_V, NO_V), COLOURS, strict=False):
            shown = [r for r in rows(report, "lambda") if r["key"] == key]
            assert list(line.get_xdata()) == [r["x"] for r in shown]
            assert list(line.get_ydata()) == [r[column] if r[column] > 1e-9 else 0 for r in shown]
            assert next(t for t in ax.texts if t.get_text() == key).get_color() == line.get_color() == colour
    shown = [r for r in rows(report, "lambda") if r["key"] == WRONG_V]
    for curve, dot, n in zip(errors.lines[::2], errors.lines[1::2], NUMBERS, strict=True):
        assert list(curve.get_ydata()) == [r[f"mse_{n}"] for r in shown]
        best = min(shown, key=lambda r, n=n: r[f"mse_{n}"])
        assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (best["x"], best[f"mse_{n}"])


@pytest.mark.parametrize("name", [pytest.param("corridor", marks=pytest.mark.slow), "prompts"])
def test_no_label_covers_another_or_is_cut_off(name: str) -> None:
    settings = Settings(sizes=(2, 4, 8))
    for figure in variance({name: world(ZOO[name](), seed=0, spread=0.5)}, settings).figures.values():
        check_labels(figure)


def test_the_credits_stand_on_the_side_of_their_dots() -> None:
    """Where the return to go is the noisier one, it is named on the right."""
    there = of(replace(chain(2), gamma=1.0))
    left, _ = variance({"x": there}).figures["variance_x"].axes
    assert {t.get_text(): t.get_ha() for t in left.texts} == {"total return": "left", "return to go": "right"}


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (Settings(group_size=1), "--group-size 1 --sizes 2"),
        (Settings(sizes=()), "--sizes : found"),
        (Settings(sizes=(4, 1)), "--group-size 4 --sizes 4 1: "),
        (Settings(lams=()), "--lams : "),
        (Settings(lams=(0.5, 1.5)), "--lams 0.5 1.5: "),
        (Settings(lams=(0.5, math.nan)), "--lams 0.5 nan: "),
        (Settings(error=-1.0), "--error -1: "),
        (Settings(error=math.nan), "--error nan: "),
        (Settings(error=math.inf), "--error inf: "),
        (Settings(error=1e200), r"--error 1e\+200: .*Use 0 to 1e\+06"),
        (Settings(decay=1.0), "--decay 1: "),
        (Settings(decay=math.nan), "--decay nan: "),
    ],
)
def test_settings_out_of_range_are_named(settings: Settings, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        variance({"x": of(bandit())}, settings)


def test_a_world_that_cannot_be_listed_is_refused() -> None:
    with pytest.raises(ConfigError, match="list every trajectory"):
        variance({"x": of(cliff_walk())})
