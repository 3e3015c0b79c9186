"""Several epochs on one batch: against plain loops over batches, closed forms and known limits."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import Tensor

from gradhat.errors import ConfigError
from gradhat.exact.enumerate import paths
from gradhat.exact.gradient import by_theorem
from gradhat.exact.mdp import TabularMDP, softmax_policy
from gradhat.exact.solve import expected_return
from gradhat.exact.zoo import WorldTurn, bandit, cliff_walk, random_mdp, token_mdp
from gradhat.lab import clip as lab
from gradhat.lab import microscope
from gradhat.lab.figure import COLOURS, INK
from gradhat.lab.microscope import World, ascent, world


def short_text() -> TabularMDP:
    """Pays for texts with word 0 in them; without luck."""
    return token_mdp(2, 2, verifiers=(lambda words, ended: float(ended and 0 in words),))


def with_a_turn() -> TabularMDP:
    """A masked step in the middle, two prompts."""
    verifiers = (lambda words, ended: float(0 in words), lambda words, ended: float(len(words)))
    return token_mdp(2, 3, verifiers=verifiers, turn=WorldTurn(1, (0.3, 0.7)))


def luck() -> TabularMDP:
    """Two steps with a discount; the next state, and with it the reward, is chance."""
    return random_mdp(horizon=2)


def few_starts() -> TabularMDP:
    """Eight trajectories from two starts that look alike: few enough for a loop over all batches."""
    return random_mdp(2, 2, horizon=2, branching=1, seed=4, num_observations=1)


WORLDS = {"short text": short_text, "a turn": with_a_turn, "luck": luck}
NAIVE: dict[str, Callable[[Tensor, float], Tensor]] = {
    "reinforce": lambda ratio, adv: ratio.log() * adv,
    "importance_weighted": lambda ratio, adv: ratio * adv,
    "clip_0.1": lambda ratio, adv: torch.minimum(ratio * adv, ratio.clamp(0.9, 1.1) * adv),
    "clip_0.2": lambda ratio, adv: torch.minimum(ratio * adv, ratio.clamp(0.8, 1.2) * adv),
    "clip_0.4": lambda ratio, adv: torch.minimum(ratio * adv, ratio.clamp(0.6, 1.4) * adv),
    "clip_higher": lambda ratio, adv: torch.minimum(ratio * adv, ratio.clamp(0.8, 1.28) * adv),
    "dual_clip": lambda ratio, adv: (
        ratio.detach() * 0 + 3 * adv
        if adv < 0 and ratio > 3
        else torch.minimum(ratio * adv, ratio.clamp(0.8, 1.2) * adv)
    ),
    "cispo": lambda ratio, adv: ratio.detach().clamp(max=1.2) * adv * ratio.log(),
    "sapo": lambda ratio, adv: 4 / (tau := 1.0 if adv > 0 else 1.05) * torch.sigmoid(tau * (ratio - 1)) * adv,
}


def naive_climb(
    mdp: TabularMDP, start: Tensor, rows: tuple[int, ...], name: str, *, lr: float, epochs: int
) -> list[tuple[Tensor, int, int]]:
    """θ of one batch after each epoch, its steps without a gradient and those with credit."""
    p = paths(mdp)
    returns = [sum(mdp.gamma**t * float(p.rewards[i, t]) for t in range(p.rewards.shape[1])) for i in rows]
    theta, found = start.clone(), []
    for _ in range(epochs):
        leaf = theta.clone().requires_grad_()
        objective, ratios = leaf.sum() * 0, []
        for k, i in enumerate(rows):
            adv = returns[k] - sum(r for j, r in enumerate(returns) if j != k) / (len(rows) - 1)
            for t in range(p.actions.shape[1]):
                if p.mask[i, t]:
                    o, a = p.observations[i, t], p.actions[i, t]
                    ratio = (leaf.log_softmax(-1)[o, a] - start.log_softmax(-1)[o, a]).exp()
                    objective = objective + NAIVE[name](ratio, adv) / len(rows)
                    ratios += [ratio] if adv != 0 else []
        gradient, *by_step = torch.autograd.grad(objective, [leaf, *ratios], allow_unused=True)
        theta = theta + lr * gradient
        silenced = sum(g is None or float(g) == 0 for g in by_step)
        found.append((theta, silenced, len(ratios)))
    return found


@pytest.mark.parametrize("name", lab.SURROGATES)
def test_every_number_equals_a_loop_over_all_batches(name: str) -> None:
    mdp, lr, epochs = few_starts(), 4.0, 3
    start = world(mdp, seed=0, spread=0.5)
    p, j = paths(mdp), float(expected_return(mdp, softmax_policy(mdp, start.theta)))
    chance = p.probability(start.theta)
    totals = [[torch.zeros(start.theta.numel(), dtype=torch.float64), *[0.0] * 5] for _ in range(epochs)]
    for first, second in itertools.product(range(len(p)), repeat=2):  # in order: no multisets here
        if p.states[first, 0] != p.states[second, 0]:
            continue
        of_start = float(chance[p.states[:, 0] == p.states[first, 0]].sum())
        weight = float(chance[first] * chance[second]) / of_start
        climbed = naive_climb(mdp, start.theta, (first, second), name, lr=lr, epochs=epochs)
        for total, (theta, silenced, credited) in zip(totals, climbed, strict=True):
            step = (theta - start.theta).flatten()
            gain = float(expected_return(mdp, softmax_policy(mdp, theta))) - j
            seen = (step, float(step.square().sum()), gain, gain < -1e-12, silenced, credited)
            for i, value in enumerate(seen):
                total[i] = total[i] + weight * value
    theta = start.theta
    found, exact_gains = lab.climbs(start, group_size=2, epochs=epochs, lr=lr)
    for epoch, exact_gain, total in zip(found[name], exact_gains, totals, strict=True):
        mean, square, gain, worse, silenced, credited = total
        theta = theta + lr * by_theorem(mdp, theta)
        exact = (theta - start.theta).flatten()
        length, norm = float(exact.norm()), float(mean.norm())
        assert exact_gain == pytest.approx(float(expected_return(mdp, softmax_policy(mdp, theta))) - j)
        assert epoch.gain == pytest.approx(gain, abs=1e-12)
        assert epoch.worse == pytest.approx(worse, abs=1e-12)
        assert epoch.norm_ratio == pytest.approx(norm / length)
        assert epoch.cosine == pytest.approx(float(mean @ exact) / norm / length)
        assert epoch.distance == pytest.approx(float((mean - exact).norm()) / length, abs=1e-12)
        assert epoch.variance == pytest.approx((square - norm**2) / length**2)
        assert epoch.silenced == pytest.approx(silenced / credited, abs=1e-12)
        assert epoch.error == epoch.gain_error == 0


@pytest.mark.parametrize("make", WORLDS.values(), ids=list(WORLDS))
def test_the_first_epoch_is_the_exact_gradient_for_every_surrogate(make: Callable[[], TabularMDP]) -> None:
    start = world(make(), seed=1, spread=0.7)
    found, _ = lab.climbs(start, group_size=3, epochs=1, lr=0.7)
    path = ascent(paths(start.mdp), start.theta, lr=0.7, updates=1)
    torch.testing.assert_close(
        path[1], start.theta + 0.7 * by_theorem(start.mdp, start.theta), rtol=0, atol=1e-13
    )
    assert list(found) == list(lab.SURROGATES)
    for (epoch,) in found.values():
        assert epoch.distance < 1e-12
        assert epoch.norm_ratio == pytest.approx(1, abs=1e-12)
        assert epoch.cosine == pytest.approx(1, abs=1e-12)
        assert epoch.silenced == 0


def test_a_bandit_by_hand() -> None:
    # Two arms, two samples: a batch says something if the arms differ, and then always the same.
    start = world(bandit((1.0, 0.0)), seed=0, spread=0.5)
    lr, epochs = 1.5, 3
    found, _ = lab.climbs(start, group_size=2, epochs=epochs, lr=lr)
    x = float(start.theta[0, 0] - start.theta[0, 1])
    p = 1 / (1 + math.exp(-x))
    differ = 2 * p * (1 - p)
    path = ascent(paths(start.mdp), start.theta, lr=lr, updates=epochs)
    for e, epoch in enumerate(found["reinforce"], 1):
        # ½ (e₀ − π) − ½ (e₁ − π) at any θ: each epoch moves the logits by lr/2 up and down.
        moved = e * lr / 2
        gain = differ * (1 / (1 + math.exp(-x - 2 * moved)) - p)
        length = float((path[e] - path[0]).norm())
        assert epoch.gain == pytest.approx(gain, rel=1e-12)
        assert epoch.norm_ratio == pytest.approx(differ * moved * math.sqrt(2) / length)
        assert epoch.variance == pytest.approx(differ * (1 - differ) * 2 * moved**2 / length**2)
    # One such epoch moves both arms past 1 ± 0.1: the clip stops the batch where it is.
    one, *rest = found["clip_0.1"]
    assert one.gain == pytest.approx(found["reinforce"][0].gain)
    assert [epoch.silenced for epoch in (one, *rest)] == [0, 1, 1]
    assert [epoch.gain for epoch in rest] == pytest.approx([one.gain] * 2)


def test_the_returns_of_many_policies_equal_the_recursion() -> None:
    for make in WORLDS.values():
        mdp = make()
        theta = torch.stack([world(mdp, seed=s, spread=1.0).theta for s in range(5)])
        expected = torch.stack([expected_return(mdp, softmax_policy(mdp, one)) for one in theta])
        torch.testing.assert_close(lab.expected_returns(paths(mdp), theta), expected)


def test_in_a_small_text_a_clip_holds_back_what_a_batch_teaches() -> None:
    found, exact = lab.climbs(world(token_mdp(2, 3), seed=0, spread=0.5), group_size=4, epochs=4, lr=1.0)
    gains = [found[name][-1].gain for name in ("clip_0.1", "clip_0.2", "clip_higher", "clip_0.4", "sapo")]
    assert gains == sorted(gains)
    assert gains[0] < exact[-1] / 3 < exact[-1] < found["importance_weighted"][-1].gain


def test_where_rewards_are_luck_a_clip_holds_back_harm() -> None:
    found, exact = lab.climbs(world(luck(), seed=0, spread=0.5), group_size=4, epochs=4, lr=1.0)
    assert found["importance_weighted"][-1].gain < -0.01 < 0 < found["clip_0.1"][-1].gain < exact[-1]
    assert found["importance_weighted"][-1].worse > found["clip_0.1"][-1].worse


def test_batches_that_cannot_be_enumerated_are_sampled_and_the_report_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = world(luck(), seed=0, spread=0.5)
    settings = {"group_size": 3, "epochs": 2, "lr": 1.0}
    exact, _ = lab.climbs(start, **settings)
    assert not any("sampled" in note for note in lab.clip({"luck": start}, **settings).notes)
    monkeypatch.setattr(microscope, "EXACT_DRAWS", 100)
    monkeypatch.setattr(microscope, "SAMPLED_DRAWS", 2000)
    found, _ = lab.climbs(start, **settings)
    for name, climb in found.items():
        for epoch, truth in zip(climb, exact[name], strict=True):
            assert epoch.error == pytest.approx(math.sqrt(epoch.variance / 2000))
            assert 0 < abs(epoch.gain - truth.gain) < 5 * epoch.gain_error
            assert epoch.gain_error < 0.02
    note = lab.clip({"luck": start}, **settings).notes[-1]
    largest = max(epoch.error for climb in found.values() for epoch in climb)
    assert note.startswith("luck: batches are sampled") and f"at most {largest:.2g} for E[θ]" in note


def test_settings_that_mean_nothing_are_refused() -> None:
    start = {"bandit": world(bandit(), seed=0, spread=0.5)}
    for settings, message in (
        ({"group_size": 1, "epochs": 2, "lr": 1.0}, "--group-size 1: found less than 2"),
        ({"group_size": 2, "epochs": 0, "lr": 1.0}, "--epochs 0: found less than 1"),
        ({"group_size": 2, "epochs": 2, "lr": 0.0}, "--lr 0: .* Use more than 0"),
        ({"group_size": 2, "epochs": 2, "lr": -1.0}, "--lr -1: "),
        ({"group_size": 2, "epochs": 2, "lr": math.nan}, "--lr nan: "),
        ({"group_size": 2, "epochs": 2, "lr": math.inf}, "--lr inf: "),
        ({"group_size": 2, "epochs": 2, "lr": 1e300}, r"--lr 1e\+300: .*double precision"),
        ({"group_size": 2, "epochs": 2, "lr": 1.7e308}, r"--lr 1\.7e\+308: .*double precision"),
        ({"group_size": 2, "epochs": 2, "lr": 1e-300}, "--lr 1e-300: .*the length 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            lab.clip(start, **settings)


def test_worlds_without_a_slope_or_without_an_end_are_refused() -> None:
    with pytest.raises(ConfigError, match="it is zero at this policy"):
        lab.clip({"flat": world(bandit((1.0, 1.0)), seed=0, spread=0.5)}, group_size=2, epochs=1, lr=1.0)
    theta = torch.zeros(48, 4, dtype=torch.float64)
    with pytest.raises(ConfigError, match="found endlessly many"):
        lab.clip({"cliff_walk": World(cliff_walk(), theta, theta)}, group_size=2, epochs=1, lr=1.0)


def test_the_tables_hold_every_epoch_and_the_figure_draws_them() -> None:
    start = world(short_text(), seed=0, spread=0.5)
    found, exact = lab.climbs(start, group_size=3, epochs=3, lr=2.0)
    report = lab.clip({"text": start}, group_size=3, epochs=3, lr=2.0)
    last, epochs = report.tables
    assert (last.name, epochs.name) == ("text_last", "text_epochs")
    assert f"exact ascent gains {exact[-1]:.4f}" in last.title
    assert [row["name"] for row in last.rows] == list(lab.SURROGATES)
    for row in last.rows:
        assert row["gain"] == found[str(row["name"])][-1].gain
        assert row["distance"] == found[str(row["name"])][-1].distance
    assert [row["epoch"] for row in epochs.rows] == [1, 2, 3]
    for table in report.tables:
        assert all(column.key in row for column in table.columns for row in table.rows)
    gain, distance, silenced = report.figures["clip_text"].axes
    for ax, key in ((gain, "gain"), (distance, "distance"), (silenced, "silenced")):
        by_colour = {line.get_color(): list(line.get_ydata()) for line in ax.lines}
        shown = list(found) if ax is not silenced else [s for s in found if found[s][-1].silenced]
        for name, colour in zip(lab.SURROGATES, COLOURS, strict=False):
            assert (colour in by_colour) == (name in shown)
            if name in shown:
                assert by_colour[colour] == [row[f"{key}_{name}"] for row in epochs.rows]
    assert {"clip_0.1", "clip_0.2"} <= set(shown) and "reinforce" not in shown
    assert by_colour_of(gain, INK) == [row["gain_exact"] for row in epochs.rows] == exact


def by_colour_of(ax: Axes, colour: str) -> list[float]:
    (line,) = (line for line in ax.lines if line.get_color() == colour)
    return list(line.get_ydata())


def test_lines_that_cover_each_other_share_a_label_and_no_labels_overlap() -> None:
    report = lab.clip({"text": world(short_text(), seed=0, spread=0.5)}, group_size=3, epochs=3, lr=0.5)
    figure = report.figures["clip_text"]
    figure.draw_without_rendering()
    for ax in figure.axes:
        labels = [text.get_text() for text in ax.texts]
        assert "clip 0.2 = dual clip 0.2, 3" in labels
        assert "clip 0.2" not in labels and "dual clip 0.2, 3" not in labels
        # Of the letters alone: that of an annotation includes the line that leads to it.
        boxes = [Text.get_window_extent(text) for text in ax.texts]
        assert not any(a.y0 + 1 < b.y1 and b.y0 + 1 < a.y1 for a, b in itertools.combinations(boxes, 2))
    assert outside(figure) == []


def outside(figure: Figure) -> list[str]:
    """The texts that the edge of the figure cuts off."""
    texts = (text for text in figure.findobj(Text) if text.get_visible() and text.get_text())
    boxes = {text.get_text(): Text.get_window_extent(text) for text in texts}
    return [
        t for t, b in boxes.items() if b.x0 < 0 or b.y0 < 0 or b.x1 > figure.bbox.x1 or b.y1 > figure.bbox.y1
    ]
