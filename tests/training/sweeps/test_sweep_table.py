"""The table of a sweep against numbers by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from gradhat.errors import ConfigError
from gradhat.intervals import interquartile_interval
from gradhat.training.sweeps.results import CONTROL, TEXT, Run
from gradhat.training.sweeps.table import grouped, rows, rows_over_places, value_of, without_seed


def run(score: float, training: float = 0.0, **settings: Any) -> Run:
    line = {"step": 10, "episode/return": training, "frames_per_second": score * 2, "time/train": 1.0}
    line["greedy/return"] = score
    settings = {"learning.lr" if key == "lr" else key: value for key, value in settings.items()}
    path = Path("-".join(map(str, settings.values())))
    return Run(path, settings, CONTROL, [line], {})


def test_a_row_pools_the_seeds_of_a_setting() -> None:
    scores = {0.001: [1.0, 5.0, 6.0, 7.0, 100.0], 3e-4: [2.0]}
    runs = [run(s, s + 1, lr=lr, seed=i) for lr, found in scores.items() for i, s in enumerate(found)]
    low, high = rows(runs, without_seed(["learning.lr", "seed"]))
    assert (low["lr"], low["runs"], high["lr"], high["runs"]) == ("0.0003", 1, "0.001", 5)
    assert high["score"] == pytest.approx(23.8)
    half = stats.t.ppf(0.975, 4) * stats.tstd(scores[0.001]) / math.sqrt(5)
    assert (high["score_low"], high["score_high"]) == pytest.approx((23.8 - half, 23.8 + half), rel=1e-2)
    assert high["iqm"] == 6.0
    assert (high["iqm_low"], high["iqm_high"]) == interquartile_interval([scores[0.001]])[1:]
    assert high["training"] == pytest.approx(24.8)
    assert high["rate"] == pytest.approx(47.6)
    assert (low["score"], low["score_low"], low["iqm_high"]) == (2.0, -math.inf, math.inf)


def test_environments_are_pooled_on_one_scale_and_do_not_add_to_the_spread() -> None:
    # lr 1 is the best run of each environment for three seeds, lr 2 is the worst, whatever the numbers.
    scores = {
        ("A", 1): (10, 10, 10),
        ("A", 2): (0, 0, 0),
        ("B", 1): (-100, -100, -100),
        ("B", 2): (-300, -200, -200),
    }
    runs = [
        run(s, env=env, lr=lr, seed=seed)
        for (env, lr), found in scores.items()
        for seed, s in enumerate(found)
    ]
    best, worst = rows_over_places(runs, ["learning.lr"])
    assert best == {"lr": "1", "runs": 6, "iqm": 1.0, "iqm_low": 1.0, "iqm_high": 1.0}
    # 0, 0, 0, 0, ½, ½: without the lowest and the highest one.
    assert (worst["iqm"], worst["iqm_low"]) == (0.125, 0.0)
    # In A all is 0: with B drawn as ½, ½ and ½, the middle four are 0, 0, ½, ½.
    assert worst["iqm_high"] == 0.25
    (alike,) = rows_over_places([run(3, env="A", seed=0), run(3, env="A", seed=1)], [])
    assert alike["iqm"] == 1.0


def test_a_table_of_accuracies_stays_between_zero_and_one() -> None:
    runs = [
        Run(Path(str(i)), {"seed": i}, TEXT, [{"step": 1, "held_out/accuracy": x, "held_out/reward": x}], {})
        for i, x in enumerate((0.99, 1.0, 1.0, 0.8))
    ]
    (row,) = rows(runs, [])
    assert row["score"] == pytest.approx(0.9475) and row["score_high"] == 1.0


def test_groups_are_in_the_order_of_numbers() -> None:
    runs = [run(0, lr=lr, seed=0) for lr in (0.001, 1e-05, 0.01, 1e-05)]
    assert list(grouped(runs, ["lr"])) == [(1e-05,), (0.001,), (0.01,)]
    assert [len(group) for group in grouped(runs, ["lr"]).values()] == [2, 1, 1]
    texts = [run(0, env=env, lr=1) for env in ("b", "a", None, 3)]
    assert list(grouped(texts, ["env"])) == [(3,), (None,), ("a",), ("b",)]
    assert list(grouped(runs, [])) == [()]


def test_a_setting_is_named_whole_or_by_its_last_part() -> None:
    settings = {"lr": 1, "a.lr": 2, "a.gamma": 3, "b.c.tau": 4, "d.tau": 5}
    assert [value_of(settings, key) for key in ("lr", "a.lr", "gamma", "none")] == [1, 2, 3, None]
    with pytest.raises(ConfigError, match=r"tau: found 2 settings of that name. Name one: b.c.tau, d.tau."):
        value_of(settings, "tau")
