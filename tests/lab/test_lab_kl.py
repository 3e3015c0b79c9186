"""Which KL estimator follows which divergence: against plain loops, a recursion and closed forms."""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.text import Text
from torch import Tensor

from gradhat.errors import ConfigError
from gradhat.exact.enumerate import draws, paths
from gradhat.exact.mdp import TabularMDP, softmax_policy
from gradhat.exact.solve import evaluate_finite
from gradhat.exact.zoo import ZOO, WorldTurn, bandit, cliff_walk, random_mdp, token_mdp
from gradhat.lab import kl as lab
from gradhat.lab.figure import BLUE, FAINT, RED
from gradhat.lab.microscope import World, ascent, world
from gradhat.lab.report import Row

WHOLE, PER_STEP = "KL(π‖ref)", "KL(π‖ref) per step"
BACK_WHOLE, BACK_PER_STEP = "KL(ref‖π)", "KL(ref‖π) per step"
EQUALS = {
    "reward_total": (WHOLE, "none", "none"),
    "reward_to_go": (WHOLE, "none", "none"),
    "reward_own_step": (PER_STEP, "none", "none"),
    "loss": ("zero", PER_STEP, BACK_PER_STEP),
    "loss_times_ratio": (PER_STEP, "none", PER_STEP),
    "loss_whole": ("zero", WHOLE, BACK_WHOLE),
}
"""What k1, k2 and k3 follow from each place, where trajectories have several steps."""


def setting_of(mdp: TabularMDP, seed: int = 0) -> lab.Setting:
    """Two random policies: far apart, in no special direction."""
    theta, theta_ref = (world(mdp, seed=s, spread=0.8).theta for s in (seed, seed + 100))
    return lab.Setting(paths(mdp), theta, theta_ref)


def few_tokens() -> TabularMDP:
    """Ends at different lengths, and the world speaks in between."""
    return token_mdp(2, 3, turn=WorldTurn(1, (0.3, 0.7)))


WORLDS = {
    "look-alike states, stochastic": lambda: random_mdp(3, 2, horizon=3, gamma=0.5, num_observations=2),
    "tokens and a turn of the world": few_tokens,
    "two prompts": lambda: token_mdp(
        2, 2, verifiers=(lambda words, ended: float(len(words)), lambda words, ended: float(ended))
    ),
}
EACH_WORLD = pytest.mark.parametrize("make", WORLDS.values(), ids=list(WORLDS))


def rows_by_place(setting: lab.Setting) -> dict[tuple[str, str], Row]:
    """Rows by the keys of placement and estimator."""
    keys = itertools.product(lab.PLACES, lab.KINDS)
    return dict(zip(keys, lab.gradient_rows(setting), strict=True))


def truth_gradients(setting: lab.Setting) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, truth in lab.TRUTHS.items():
        leaf = setting.theta.clone().requires_grad_()
        found[key] = torch.autograd.grad(truth.value(setting, leaf), leaf)[0].flatten()
    return found


NAIVE: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda log_ratio: log_ratio,
    "k2": lambda log_ratio: log_ratio**2 / 2,
    "k3": lambda log_ratio: (-log_ratio).exp() - 1 + log_ratio,
}


def naive_estimate(setting: lab.Setting, i: int, kind: str, place: str) -> Tensor:
    """ĝ `[P]` of trajectory `i`, one step after the other."""
    p = setting.paths
    theta = setting.theta.clone().requires_grad_()
    steps = [t for t in range(p.actions.shape[1]) if p.mask[i, t]]
    logp, logp_ref = (
        [table.log_softmax(-1)[p.observations[i, t], p.actions[i, t]] for t in steps]
        for table in (theta, setting.theta_ref)
    )
    estimates = [NAIVE[kind](a - b) for a, b in zip(logp, logp_ref, strict=True)]
    data = [float(k.detach()) for k in estimates]
    objective = {
        "reward_total": lambda: sum(a * sum(data) for a in logp),
        "reward_to_go": lambda: sum(a * sum(data[t:]) for t, a in enumerate(logp)),
        "reward_own_step": lambda: sum(a * k for a, k in zip(logp, data, strict=True)),
        "loss": lambda: sum(estimates),
        "loss_times_ratio": lambda: sum(
            (a - a.detach()).exp() * k for a, k in zip(logp, estimates, strict=True)
        ),
        "loss_whole": lambda: NAIVE[kind](sum(logp) - sum(logp_ref)),
    }[place]()
    return torch.autograd.grad(objective, theta)[0].flatten()


@EACH_WORLD
def test_the_truths_equal_a_recursion_over_states(make: Callable[[], TabularMDP]) -> None:
    # Independent of the enumeration: occupancies by recursion, divergences state by state.
    mdp = make()
    setting = setting_of(mdp)
    theta = setting.theta.clone().requires_grad_()
    pi, ref = softmax_policy(mdp, theta), softmax_policy(mdp, setting.theta_ref)
    visits = (evaluate_finite(undiscounted(mdp), pi).occupancy * mdp.own).sum(0)
    visits_ref = (evaluate_finite(undiscounted(mdp), ref).occupancy * mdp.own).sum(0)
    there = (pi * (pi.log() - ref.log())).sum(-1)
    back = (ref * (ref.log() - pi.log())).sum(-1)
    expected = {
        "forward": visits @ there,
        "reverse": visits_ref @ back,
        "forward_per_step": visits.detach() @ there,
        "reverse_per_step": visits.detach() @ back,
    }
    for key, truth in truth_gradients(setting).items():
        assert math.isclose(
            float(lab.TRUTHS[key].value(setting, setting.theta)), expected[key].item(), rel_tol=1e-10
        )
        (gradient,) = torch.autograd.grad(expected[key], theta, retain_graph=True)
        torch.testing.assert_close(truth, gradient.flatten(), rtol=1e-9, atol=1e-12)


def undiscounted(mdp: TabularMDP) -> TabularMDP:
    """The same world without a discount, cut where nothing is left."""
    return replace(mdp, gamma=1.0, horizon=mdp.horizon or mdp.num_states)


@EACH_WORLD
def test_every_row_equals_plain_loops_over_trajectories(make: Callable[[], TabularMDP]) -> None:
    setting = setting_of(make())
    chance = setting.paths.probability(setting.theta)
    truths = truth_gradients(setting)
    unit = float(truths["forward"].norm())
    means: dict[tuple[str, str], Tensor] = {}
    for (place, kind), row in rows_by_place(setting).items():
        each = torch.stack([naive_estimate(setting, i, kind, place) for i in range(len(setting.paths))])
        mean = means[place, kind] = chance @ each
        variance = float(chance @ (each - mean).square().sum(-1)) / unit**2
        assert row["kind"] == kind
        assert row["variance"] == pytest.approx(variance, rel=1e-9)
        for key, truth in truths.items():
            assert row[f"norm_{key}"] == pytest.approx(float(mean.norm() / truth.norm()), abs=1e-9)
            assert row[f"distance_{key}"] == pytest.approx(
                float((mean - truth).norm() / truth.norm()), abs=1e-9
            )
            if row["equals"] == "zero":
                assert math.isnan(float(row[f"cosine_{key}"]))
            else:
                cosine = torch.cosine_similarity(mean, truth, dim=0)
                assert row[f"cosine_{key}"] == pytest.approx(float(cosine), abs=1e-9)
    # What the notes say about k3 in the reward.
    for place in ("reward_total", "reward_to_go"):
        torch.testing.assert_close(means[place, "k3"], truths["forward"] - truths["reverse_per_step"])
    difference = truths["forward_per_step"] - truths["reverse_per_step"]
    torch.testing.assert_close(means["reward_own_step", "k3"], difference)


@EACH_WORLD
def test_which_divergence_each_place_follows(make: Callable[[], TabularMDP]) -> None:
    rows = rows_by_place(setting_of(make(), seed=3))
    found = {place: tuple(rows[place, kind]["equals"] for kind in lab.KINDS) for place in lab.PLACES}
    assert found == EQUALS


def test_the_places_differ_where_there_are_several_steps() -> None:
    # Else "equals" could name several truths and none would be told apart.
    rows = rows_by_place(setting_of(few_tokens()))
    assert float(rows["loss", "k2"]["distance_forward"]) > 0.1
    assert float(rows["loss", "k3"]["distance_reverse"]) > 0.1
    assert float(rows["loss", "k3"]["distance_forward_per_step"]) > 0.1


def test_three_ways_to_write_one_estimate() -> None:
    setting = setting_of(few_tokens())
    ((_, batch),) = draws(setting.paths, setting.theta, group_size=1).batches()
    logp_ref = batch.paths.logp(setting.theta_ref)
    own, term, weighed = (
        lab.PLACES[place].weights(lab.KINDS[kind], batch, logp_ref)[batch.paths.mask]
        for place, kind in (("reward_own_step", "k1"), ("loss", "k2"), ("loss_times_ratio", "k3"))
    )
    torch.testing.assert_close(term, own)
    torch.testing.assert_close(weighed, own)


def test_a_bandit_by_hand() -> None:
    setting = setting_of(bandit())
    pi, ref = setting.theta[0].softmax(-1), setting.theta_ref[0].softmax(-1)
    log_ratio = (pi / ref).log()
    divergence = float(pi @ log_ratio)
    forward, reverse = pi * (log_ratio - divergence), pi - ref
    truths = truth_gradients(setting)
    for key in ("forward", "forward_per_step"):
        torch.testing.assert_close(truths[key][:3], forward)
    for key in ("reverse", "reverse_per_step"):
        torch.testing.assert_close(truths[key][:3], reverse)
    rows = rows_by_place(setting)
    both, back = f"{WHOLE}, {PER_STEP}", f"{BACK_WHOLE}, {BACK_PER_STEP}"
    named = {WHOLE: both, PER_STEP: both, BACK_WHOLE: back, BACK_PER_STEP: back}
    for place, expected in EQUALS.items():
        for kind, equal in zip(lab.KINDS, expected, strict=True):
            assert rows[place, kind]["equals"] == named.get(equal, equal)
    # Variance of k1 in the reward: Σ_a π_a l_a² |e_a − π|² − |∇KL|².
    square = sum(
        float(pi[a] * log_ratio[a] ** 2 * (torch.eye(3, dtype=pi.dtype)[a] - pi).square().sum())
        for a in range(3)
    )
    unit = float(forward.square().sum())
    assert rows["reward_total", "k1"]["variance"] == pytest.approx((square - unit) / unit, rel=1e-9)


@EACH_WORLD
def test_values_are_means_over_trajectories(make: Callable[[], TabularMDP]) -> None:
    setting = setting_of(make())
    p = setting.paths
    chance = p.probability(setting.theta).tolist()
    log_ratio = p.logp(setting.theta) - p.logp(setting.theta_ref)
    truth = sum(c * float(sum(row)) for c, row in zip(chance, log_ratio, strict=True))
    rows = {(row["kind"], row["of"]): row for row in lab.value_rows(setting)}
    assert len(rows) == 6
    for (kind, of), row in rows.items():
        parts = log_ratio if of == "steps, summed" else log_ratio.sum(-1, keepdim=True)
        values = [float(NAIVE[str(kind)](r).sum()) for r in parts]
        mean = sum(c * v for c, v in zip(chance, values, strict=True))
        spread = math.sqrt(sum(c * (v - mean) ** 2 for c, v in zip(chance, values, strict=True)))
        assert row["mean"] == pytest.approx(mean, rel=1e-9)
        assert row["truth"] == pytest.approx(truth, rel=1e-9)
        assert row["ratio"] == pytest.approx(mean / truth, rel=1e-9)
        assert row["deviation"] == pytest.approx(spread, rel=1e-9)
        assert (abs(float(row["ratio"]) - 1) < 1e-9) == (kind != "k2")


def test_the_policy_is_the_reference_after_exact_steps() -> None:
    start = world(few_tokens(), seed=0, spread=0.5)
    setting = lab.moved(start, updates=3, lr=2.0)
    assert torch.equal(setting.theta_ref, start.theta)
    assert torch.equal(setting.theta, ascent(setting.paths, start.theta, lr=2.0, updates=3)[-1])
    assert float(lab.forward(setting, setting.theta)) > 1e-3


def test_a_policy_that_did_not_move_is_refused() -> None:
    start = world(bandit(), seed=0, spread=0.5)
    with pytest.raises(ConfigError, match=r"still π_ref.*larger --lr"):
        lab.kl({"bandit": start}, updates=5, lr=1e-300)
    flat = world(bandit((1.0, 1.0)), seed=0, spread=0.5)
    with pytest.raises(ConfigError, match=r"still π_ref.*another --mdp"):
        lab.kl({"flat": flat}, updates=5, lr=1.0)


@pytest.mark.parametrize("lr", [1e6, 1e300, 1.7e308])
@pytest.mark.parametrize("make", [bandit, lambda: bandit((9.0, -9.0))])
def test_a_policy_that_moved_until_nothing_has_a_slope_is_refused(
    make: Callable[[], TabularMDP], lr: float
) -> None:
    with pytest.raises(ConfigError, match=r"moved so far.*smaller --lr") as refused:
        lab.kl({"bandit": world(make(), seed=0, spread=0.5)}, updates=10, lr=lr)
    assert "still" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"updates": 0}, "--updates 0: .*still π_ref.* Use 1 or more"),
        ({"updates": -1}, "--updates -1: "),
        ({"lr": 0.0}, "--lr 0: .* Use more than 0"),
        ({"lr": -5.0}, "--lr -5: "),
        ({"lr": math.nan}, "--lr nan: "),
        ({"lr": math.inf}, "--lr inf: "),
    ],
)
def test_settings_out_of_range_are_named(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        lab.kl({"bandit": world(bandit(), seed=0, spread=0.5)}, **{"updates": 2, "lr": 1.0, **settings})


def of_two_tokens(*, first: float, second: float) -> lab.Setting:
    """π_ref is uniform over two words and the end; π has word 1 less, by these differences of logits."""
    everything = paths(token_mdp(2, 2))
    theta_ref = torch.zeros(int(everything.observations.max()) + 1, 3, dtype=torch.float64)
    theta = theta_ref.clone()
    theta[:, 1] = -second
    theta[everything.observations[0, 0], 1] = -first
    return lab.Setting(everything, theta, theta_ref)


def test_a_note_says_where_k3_is_held() -> None:
    # log ⅓ − log(e^-x / (2 + e^-x)) = x − log 1.5 and a little more.
    assert lab.bound_notes("x", of_two_tokens(first=9.0, second=9.0)) == []
    (whole,) = lab.bound_notes("x", of_two_tokens(first=13.0, second=12.0))
    assert whole.startswith(
        "x: log(ref/π) reaches 12.6 in a step and 24.2 over a trajectory. k3 follows it to 20 "
    )
    (step,) = lab.bound_notes("x", of_two_tokens(first=25.0, second=0.0))
    assert "reaches 24.6 in a step" in step
    start = world(ZOO["corridor"](), seed=0, spread=0.5)
    report = lab.kl({"corridor": start}, updates=10, lr=5.0)
    assert report.notes[-1].startswith("corridor: log(ref/π) reaches")
    # What the note says: held, the mean is below the KL.
    held = next(r for r in report.tables[1].rows if (r["kind"], r["of"]) == ("k3", "whole trajectory"))
    assert float(held["ratio"]) < 1 - 1e-6
    # The longest number of the noise stays short, and within its panel.
    figure = report.figures["kl_corridor"]
    figure.draw_without_rendering()
    _, noise = figure.axes
    largest = max(float(row["variance"]) for row in report.tables[0].rows)
    (label,) = (text for text in noise.texts if text.get_text() == f"{largest:.2g}")
    assert largest > 1e8 and "e+" in label.get_text()
    assert all(Text.get_window_extent(text).x1 <= noise.get_window_extent().x1 + 1 for text in noise.texts)


def test_a_world_that_cannot_be_listed_is_refused() -> None:
    mdp = cliff_walk()
    theta = torch.zeros(48, 4, dtype=torch.float64)
    with pytest.raises(ConfigError, match="found endlessly many"):
        lab.kl({"cliff_walk": World(mdp, theta, theta)}, updates=1, lr=1.0)


def test_the_report_has_two_tables_and_a_figure_for_each_world() -> None:
    worlds = {name: world(mdp, seed=0, spread=0.5) for name, mdp in (("a", bandit()), ("b", few_tokens()))}
    report = lab.kl(worlds, updates=4, lr=2.0)
    assert [t.name for t in report.tables] == ["a_gradients", "a_values", "b_gradients", "b_values"]
    assert list(report.figures) == ["kl_a", "kl_b"]
    assert "4 exact gradient steps of size 2" in report.notes[0]
    for table in report.tables:
        assert all(column.key in row for column in table.columns for row in table.rows)
    moved = lab.moved(worlds["b"], updates=4, lr=2.0)
    assert f"{float(lab.forward(moved, moved.theta)):.3g} nats" in report.tables[2].title
    for row, expected in zip(report.tables[2].rows, lab.gradient_rows(moved), strict=True):
        assert dict(row) == pytest.approx(dict(expected), nan_ok=True)


def test_the_figure_draws_the_numbers_of_the_table() -> None:
    rows = lab.gradient_rows(setting_of(few_tokens()))
    figure = lab.figure("few tokens", rows)
    matrix, noise = figure.axes
    cosines = np.array([[float(row[f"cosine_{key}"]) for key in lab.TRUTHS] for row in rows])
    drawn = matrix.images[0].get_array()
    assert drawn is not None
    np.testing.assert_array_equal(np.ma.filled(drawn, np.nan), cosines)
    cells: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
    for text in matrix.texts:
        x, y = text.get_position()
        cells[round(y), round(x)].append(text.get_text())
    solid = [tuple(patch.get_xy()[:4].mean(0).round().astype(int)[::-1]) for patch in matrix.patches]
    for i, row in enumerate(rows):
        for j, (key, truth) in enumerate(lab.TRUTHS.items()):
            if truth.title in str(row["equals"]).split(", "):
                assert "equal" in cells[i, j]
                assert solid.count((i, j)) == 1
            elif row["equals"] == "zero":
                assert "mean 0" in cells[i, j]
            else:
                assert f"{row[f'cosine_{key}']:.2f}".replace("-", "−") in cells[i, j]
    assert len(solid) == sum(str(row["equals"]) not in ("zero", "none") for row in rows)
    points = noise.collections[0]
    expected = [(float(row["variance"]), i) for i, row in enumerate(rows)]
    np.testing.assert_allclose(np.asarray(points.get_offsets()), expected)
    colours = [{"zero": FAINT, "none": RED}.get(str(row["equals"]), BLUE) for row in rows]
    np.testing.assert_allclose(np.asarray(points.get_facecolors()), [to_rgba(c) for c in colours])
    figure.draw_without_rendering()
    ticks = noise.get_xticklabels(which="both")  # those beyond the limits are not drawn
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text() and text not in ticks:
            box = Text.get_window_extent(text)
            assert box.x0 >= 0 and box.y0 >= 0, text.get_text()
            assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text.get_text()
