"""Whole algorithms, credit and update, on every batch: against the shelf, loops and known truths."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from lived import Life, Seen, gradient, groups, lives, score, seen, to_go, total
from torch import Tensor

from gradhat.algorithms import grpo
from gradhat.algorithms.grpo_family import FAMILY
from gradhat.algorithms.learner import GroupLearner
from gradhat.errors import ConfigError
from gradhat.exact import enumerate as every
from gradhat.exact.mdp import TabularMDP
from gradhat.exact.zoo import bandit, random_mdp, says, token_mdp, two_states
from gradhat.lab import algorithm as lab
from gradhat.lab import microscope
from gradhat.lab.algorithm import ALGORITHMS, Settings, algorithm
from gradhat.lab.microscope import World, examine, world
from gradhat.lab.report import Report, Row
from gradhat.lab.shelf import of_group
from gradhat.training.text import learner as run
from gradhat.training.text.config import REINFORCE
from gradhat.trajectories import Trajectories


def texts() -> TabularMDP:
    """One prompt; right with word 0 and an end. Lengths of one and two, rewards of 0 and 1."""
    return token_mdp(2, 2, verifiers=(says(0),))


def prompts() -> TabularMDP:
    """Two prompts, many rewards."""
    return token_mdp(2, 2, verifiers=(says(0), lambda words, ended: len(words) + 0.5 * ended))


def luck() -> TabularMDP:
    """Chance, rewards on the way, look-alike states, two starts; two steps; no discount."""
    return random_mdp(2, 2, horizon=2, branching=2, seed=4, num_observations=1, gamma=1.0)


WORLDS = {"texts": texts, "prompts": prompts, "luck": luck}


@pytest.fixture(autouse=True)
def no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all the rest; test_lab_bias looks at the figure."""
    monkeypatch.setattr("gradhat.lab.algorithm.figure", lambda of, found: (of, len(found)))


def of(mdp: TabularMDP) -> World:
    return world(mdp, seed=0, spread=0.7)


def report(name: str, there: World, **settings: float) -> Report:
    return algorithm(name, there, "x", Settings(**settings))


def rows(name: str, there: World, **settings: float) -> list[Row]:
    return list(report(name, there, **settings).tables[0].rows)


def agrees(row: Row, expected: Seen) -> None:
    assert row["norm_ratio"] == pytest.approx(expected.norm_ratio, rel=1e-9)
    assert row["relative_bias"] == pytest.approx(expected.bias, rel=1e-9, abs=1e-10)
    assert row["variance"] == pytest.approx(row["num_samples"] * expected.variance, rel=1e-9)
    assert row["error"] == 0


# --- one step on a batch -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("where", "size"), [("texts", 3), ("prompts", 2), ("luck", 2)])
def test_the_expected_update_of_rloo_is_the_gradient(where: str, size: int) -> None:
    plain, refilled = rows("rloo", of(WORLDS[where]()), group_size=size)
    assert plain["relative_bias"] < 1e-10
    assert plain["cosine"] == pytest.approx(1, abs=1e-10)
    assert refilled["relative_bias"] > 0.01 or where == "luck"
    assert (plain["num_samples"], plain["name"], refilled["name"]) == (size, "rloo", "rloo_refilled")


@pytest.mark.parametrize("where", WORLDS)
@pytest.mark.parametrize("name", ["rloo", "grpo", "dr_grpo"])
def test_a_row_of_the_family_is_its_estimator_on_the_shelf(where: str, name: str) -> None:
    there = of(WORLDS[where]())
    shelf = {"rloo": "leave_one_out", "grpo": "grpo", "dr_grpo": "dr_grpo"}[name]
    size = 3 if where == "texts" else 2
    known = examine(there, next(s for s in of_group() if s.name == shelf), group_size=size)
    row = rows(name, there, group_size=size)[0]
    for key in ("norm_ratio", "cosine", "relative_bias", "variance"):
        assert row[key] == pytest.approx(getattr(known, key), rel=1e-8, abs=1e-9), key
    if name == "dr_grpo":
        assert row["norm_ratio"] == pytest.approx((size - 1) / size / 2, abs=1e-10)


@pytest.mark.parametrize("where", WORLDS)
def test_the_page_of_reinforce_agrees_with_a_loop(where: str) -> None:
    """Reward to go less J, averaged over the group."""
    mdp = WORLDS[where]()
    there = of(mdp)
    theta = there.theta.numpy()
    all_ = lives(mdp, theta)
    j = sum(x.chance * total(mdp, x) for x in all_)
    drawn = groups(mdp, all_, 2)
    estimates = [
        sum(score(mdp, theta, x, [(to_go(mdp, x, s.t) - j) / 2 for s in x.steps]) for x in group)
        for _, group in drawn
    ]
    (row,) = rows("reinforce", there, group_size=2)
    agrees(row, seen(gradient(mdp, theta), [p for p, _ in drawn], estimates))
    assert row["relative_bias"] < 1e-10


@pytest.mark.parametrize("name", ALGORITHMS)
def test_one_step_does_not_depend_on_its_length(name: str) -> None:
    short, long = (rows(name, of(texts()), group_size=2, lr=lr) for lr in (0.01, 7.0))
    for a, b in zip(short, long, strict=True):
        for key in ("norm_ratio", "cosine", "relative_bias", "variance"):
            assert a[key] == pytest.approx(b[key], rel=1e-9, abs=1e-9)


def test_a_batch_of_several_groups_is_less_noisy_and_no_less_right() -> None:
    there = of(bandit((1.0, 0.3, 0.0)))
    one, three = (rows("rloo", there, group_size=2, num_groups=n)[0] for n in (1, 3))
    assert (one["num_samples"], three["num_samples"]) == (2, 6)
    assert three["relative_bias"] < 1e-10
    assert three["variance"] == pytest.approx(one["variance"], rel=1e-10)  # of one trajectory: the same


def test_an_algorithm_does_not_discount_and_the_report_says_so() -> None:
    """J = 1.5 + p / 8 with γ = ½, and 3 + p / 2 without: four times the slope."""
    found = report("rloo", of(two_states()), group_size=2)
    row = found.tables[0].rows[0]
    assert row["norm_ratio"] == pytest.approx(4, abs=1e-9)
    assert row["cosine"] == pytest.approx(1, abs=1e-10)
    assert "The page does not discount: it is held against the ∇J of γ = 0.5." in found.notes
    assert not any("discount" in note for note in report("rloo", of(texts()), group_size=2).notes)


# --- silent groups -----------------------------------------------------------------------------------------


def refilled(mdp: TabularMDP, theta: np.ndarray, size: int, count: int) -> Seen:
    """RLOO on batches of `count` groups of which every one is drawn until it is not silent."""
    kept = [
        (p, g)
        for p, g in groups(mdp, lives(mdp, theta), size)
        if len({sum(s.reward for s in x.steps) for x in g}) > 1
    ]
    all_ = sum(p for p, _ in kept)
    chances, estimates = [], []
    for batch in itertools.product(kept, repeat=count):
        chances.append(math.prod(p / all_ for p, _ in batch))
        estimates.append(sum(rloo(mdp, theta, g) for _, g in batch) / count)
    return seen(gradient(mdp, theta), chances, estimates)


def rloo(mdp: TabularMDP, theta: np.ndarray, group: tuple[Life, ...]) -> np.ndarray:
    r = [sum(s.reward for s in x.steps) for x in group]
    size = len(r)
    return sum(
        score(mdp, theta, x, [(r[i] - (sum(r) - r[i]) / (size - 1)) / size] * len(x.steps))
        for i, x in enumerate(group)
    )


@pytest.mark.parametrize(
    ("make", "size", "count"),
    [(texts, 3, 1), (prompts, 2, 1), (lambda: bandit((1.0, 0.0, 0.0)), 2, 2), (lambda: late(0.5), 2, 1)],
    ids=["texts", "prompts", "two groups", "discounted"],
)
def test_refilled_is_what_is_expected_when_no_group_is_silent(
    make: Callable[[], TabularMDP], size: int, count: int
) -> None:
    mdp = make()
    there = of(mdp)
    row = rows("rloo", there, group_size=size, num_groups=count)[1]
    assert row["what"] == "silent groups replaced"
    agrees(row, refilled(mdp, there.theta.numpy(), size, count))


def late(gamma: float) -> TabularMDP:
    """A reward of 1 at once or a step later: undiscounted they are equal, and such a group is silent."""
    return replace(token_mdp(2, 2, verifiers=(lambda words, ended: float(words != (1,)),)), gamma=gamma)


def test_where_every_group_is_silent_nothing_can_be_replaced() -> None:
    with pytest.raises(ConfigError, match="found only silent groups"):
        report("dr_grpo", of(texts()), group_size=1)


def test_the_lab_sees_what_a_run_would_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """A learner that takes members at their group's mean for silent, one that learns backwards: both show."""
    there = of(bandit((1.0, 0.5, 0.0)))
    known = rows("rloo", there, group_size=3)
    whole, learn = GroupLearner.silent, GroupLearner.learn
    monkeypatch.setattr(
        GroupLearner, "silent", lambda self, r, g: grpo.advantages(self.row, r, g).abs() < 1e-9
    )
    cut = rows("rloo", there, group_size=3)
    assert cut[0] == known[0] and cut[1]["relative_bias"] != pytest.approx(known[1]["relative_bias"])
    monkeypatch.setattr(GroupLearner, "silent", whole)

    def backwards(self: GroupLearner, batch: Trajectories) -> object:
        return learn(self, replace(batch, rewards=-batch.rewards))

    monkeypatch.setattr(GroupLearner, "learn", backwards)
    assert rows("rloo", there, group_size=3)[0]["cosine"] == pytest.approx(-1)


def test_a_run_trains_with_what_the_lab_looks_at() -> None:
    assert lab.GroupLearner is run.GroupLearner is GroupLearner
    assert lab.ReinforceLearner is run.ReinforceLearner
    assert (REINFORCE, *FAMILY) == lab.ALGORITHMS


# --- several passes ----------------------------------------------------------------------------------------


def climbed(
    mdp: TabularMDP, theta: Tensor, group: tuple[Life, ...], lr: float, low: float, high: float, passes: int
) -> np.ndarray:
    """GRPO on one batch, a plain loop over trajectories and steps: the change of θ over lr · passes."""
    r = [total(mdp, x) for x in group]
    centre = sum(r) / len(r)
    spread = math.sqrt(sum((y - centre) ** 2 for y in r) / (len(r) - 1)) + 1e-4
    here = theta.clone()
    for _ in range(passes):
        leaf = here.clone().requires_grad_()
        objective = leaf.sum() * 0
        for x, y in zip(group, r, strict=True):
            adv = (y - centre) / spread
            for step in x.steps:
                o = int(mdp.observation[step.state])
                ratio = (leaf.log_softmax(-1)[o] - theta.log_softmax(-1)[o])[step.action].exp()
                bounded = ratio.clamp(1 - low, 1 + high)
                gain = torch.minimum(ratio * adv, bounded * adv)
                objective = objective + gain / len(x.steps) / len(group)
        here = here + lr * torch.autograd.grad(objective, leaf)[0]
    return ((here - theta) / lr / passes).flatten().numpy()


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.1, 0.4)])
def test_two_passes_of_grpo_agree_with_a_loop(low: float, high: float) -> None:
    mdp, lr = texts(), 3.0
    there = of(mdp)
    drawn = groups(mdp, lives(mdp, there.theta.numpy()), 2)
    estimates = [climbed(mdp, there.theta, g, lr, low, high, 2) for _, g in drawn]
    expected = seen(gradient(mdp, there.theta.numpy()), [p for p, _ in drawn], estimates)
    settings = {"group_size": 2, "num_epochs": 2, "lr": lr}
    row = rows("grpo", there, **settings, clip_low=low, clip_high=high)[0]
    agrees(row, expected)
    free = rows("grpo", there, **settings, clip_low=1.0, clip_high=1e9)[0]
    assert free["norm_ratio"] > 1.1 * row["norm_ratio"]  # the clip held something back


def test_a_small_step_repeated_is_the_same_step() -> None:
    once, twice = (rows("dr_grpo", of(texts()), group_size=2, num_epochs=n, lr=1e-6)[0] for n in (1, 2))
    for key in ("norm_ratio", "relative_bias", "variance"):
        assert once[key] == pytest.approx(twice[key], rel=1e-5)


# --- what is said ------------------------------------------------------------------------------------------


def test_the_report_says_what_was_done() -> None:
    found = report("grpo", of(texts()), group_size=2, num_epochs=3, lr=0.5)
    assert found.question == "What is the expected update of grpo?"
    assert found.figures == {"algorithm_grpo": ("x", 2)}
    assert found.notes[0].startswith("Update = change of θ / (lr · passes), with lr = 0.5 and 3 passes over")
    assert "batches of 1 × 2 trajectories." in found.notes[0]
    assert "Without a KL term: --kl-coef 0 of gradhat train." in found.notes
    plain = report("reinforce", of(texts()), group_size=2)
    assert "1 pass over" in plain.notes[0]
    assert not any("KL" in note for note in plain.notes)
    assert any("The moving average stands at J" in note for note in plain.notes)


def test_sampled_batches_are_announced_and_near(monkeypatch: pytest.MonkeyPatch) -> None:
    mdp = replace(texts(), horizon=2)
    exact = rows("dr_grpo", of(mdp), group_size=3)
    monkeypatch.setattr(microscope, "SAMPLED_DRAWS", 400)
    monkeypatch.setattr(every, "PATHS_LIMIT", 1)
    found = report("dr_grpo", of(mdp), group_size=3)
    assert "not enumerated but sampled" in found.notes[1] and "dr_grpo_refilled" in found.notes[1]
    assert "±" in [c.header for c in found.tables[0].columns]
    for true, row in zip(exact, found.tables[0].rows, strict=True):
        assert row["error"] > 0
        assert abs(row["norm_ratio"] - true["norm_ratio"]) < 5 * row["error"]


@pytest.mark.parametrize(
    ("name", "settings", "wanted"),
    [
        ("grpp", {}, r"lab algorithm grpp: no such algorithm\. Known: reinforce, rloo, grpo, dr_grpo\."),
        ("grpo", {"lr": 0.0}, r"lr=0: the update is divided by it\. Use more than 0"),
        ("grpo", {"lr": math.inf}, r"lr=inf"),
        ("grpo", {"num_epochs": 0}, r"num_epochs=0: found a value out of range\. Use 1 or more"),
        ("grpo", {"group_size": 0}, r"group_size=0"),
        ("grpo", {"num_groups": 0}, r"num_groups=0"),
        ("grpo", {"clip_low": 1.5}, r"clip_low=1\.5"),
        ("grpo", {"clip_high": -0.1}, r"clip_high=-0\.1"),
        ("reinforce", {"num_epochs": 2}, r"num_epochs=2 with reinforce: the page takes one step"),
    ],
)
def test_what_cannot_be_is_refused(name: str, settings: dict[str, float], wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        report(name, of(texts()), **settings)


def test_every_algorithm_can_be_seen() -> None:
    for name in ALGORITHMS:
        assert rows(name, of(bandit()), group_size=2)[0]["norm_ratio"] > 0
