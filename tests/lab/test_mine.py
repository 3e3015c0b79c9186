"""An estimator of one's own: what it may return, what it is told when it is wrong."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lived import gradient, groups, lives, score, seen, total

from gradhat.errors import EstimatorError
from gradhat.exact.mdp import TabularMDP
from gradhat.exact.zoo import WorldTurn, bandit, random_mdp, says, token_mdp
from gradhat.lab import microscope
from gradhat.lab.bias import SAMPLED_COLUMN
from gradhat.lab.microscope import Finding, World, examine, world
from gradhat.lab.mine import ARGUMENTS, load, mine, specimen
from gradhat.lab.shelf import of_group, shelf

Write = Callable[[str], str]


def texts(turn: WorldTurn | None = None) -> TabularMDP:
    return token_mdp(2, 2 if turn is None else 3, verifiers=(says(0), lambda w, e: float(len(w))), turn=turn)


def luck() -> TabularMDP:
    """A discount, rewards on the way, look-alike states, two starts."""
    return random_mdp(2, 2, horizon=2, branching=1, seed=4, num_observations=1, gamma=0.7)


WORLDS = {"texts": texts, "turn": lambda: texts(WorldTurn(1, (0.3, 0.7))), "luck": luck}
SIZE = {"texts": 3, "turn": 2, "luck": 3}


@pytest.fixture
def file(tmp_path: Path) -> Write:
    """Write a file and return its path."""

    def write(source: str) -> str:
        (tmp_path / "own.py").write_text(source)
        return str(tmp_path / "own.py")

    return write


def there(name: str = "texts") -> World:
    return world(WORLDS[name](), seed=0, spread=0.7)


def own(spec: str, of: World, size: int = 3) -> Finding:
    return examine(of, specimen(load(spec), spec, of, size), group_size=size)


def same(a: Finding, b: Finding) -> None:
    for key in ("norm_ratio", "cosine", "relative_bias", "variance"):
        assert getattr(a, key) == pytest.approx(getattr(b, key), rel=1e-9, abs=1e-12), key
    assert a.error == b.error == 0 and a.num_samples == b.num_samples


SHELF = {
    "group_mean": """
def own(returns):
    return returns - returns.mean()
""",
    "leave_one_out": """
def own(returns, group):
    assert group.tolist() == [0] * len(returns)
    return (returns - returns.mean()) * len(returns) / (len(returns) - 1)
""",
    "group_std": """
def own(returns):
    return (returns - returns.mean()) / (returns.std() + 1e-4)
""",
    "grpo": """
def own(returns, mask):
    adv = (returns - returns.mean()) / (returns.std() + 1e-4)
    return adv[:, None] * mask / mask.sum(1, keepdim=True)
""",
    "per_token": """
def own(returns, mask):
    # [G, T] credit, averaged over steps in place of trajectories
    return ((returns - returns.mean())[:, None] * mask) * len(returns) / mask.sum()
""",
}
LOSSES = {
    "group_mean": """
def own(logp, returns, mask):
    return -((returns - returns.mean())[:, None] * logp * mask).sum() / len(returns)
""",
    "grpo": """
import torch


def own(logp, logp_old, returns, mask):
    adv = ((returns - returns.mean()) / (returns.std() + 1e-4))[:, None]
    ratio = (logp - logp_old).exp()
    gain = torch.minimum(ratio * adv, ratio.clamp(0.8, 1.2) * adv)
    return -((gain * mask).sum(1) / mask.sum(1)).mean()
""",
    "per_token": """
def own(logp, logp_old, returns, mask):
    gain = (logp - logp_old).exp() * (returns - returns.mean())[:, None]
    return -(gain * mask).sum() / mask.sum()
""",
}


@pytest.mark.parametrize("where", WORLDS)
@pytest.mark.parametrize("name", SHELF)
def test_credit_is_weighed_as_on_the_shelf(name: str, where: str, file: Write) -> None:
    known = {s.name: s for s in of_group()}[name]
    size = SIZE[where]
    same(own(f"{file(SHELF[name])}:own", there(where), size), examine(there(where), known, group_size=size))


@pytest.mark.parametrize("where", WORLDS)
@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_of_a_loss_is_that_of_the_shelf(name: str, where: str, file: Write) -> None:
    known = {s.name: s for s in of_group()}[name]
    size = SIZE[where]
    same(own(f"{file(LOSSES[name])}:own", there(where), size), examine(there(where), known, group_size=size))


@pytest.mark.parametrize("where", ["texts", "luck"])
def test_credit_per_step_is_that_of_the_step(where: str, file: Write) -> None:
    """Reward to go with its discount, from the rewards: what the shelf has for single trajectories."""
    source = """
def own(rewards):
    gamma = GAMMA ** torch.arange(rewards.shape[1], dtype=rewards.dtype)
    return (rewards * gamma).flip(1).cumsum(1).flip(1)
"""
    of = there(where)
    got = own(f"{file('import torch' + source.replace('GAMMA', str(of.mdp.gamma)))}:own", of, size=1)
    same(got, examine(of, next(s for s in shelf(of) if s.name == "return_to_go"), group_size=1))


def test_what_is_handed_over_is_what_happened(file: Write) -> None:
    source = """
def own(returns, rewards, mask, terminated, truncated, actions, observations, logp, logp_old):
    assert rewards.shape == mask.shape == terminated.shape == actions.shape == logp.shape
    assert rewards[~mask].eq(0).all() and actions[~mask].eq(0).all() and logp[~mask].eq(0).all()
    assert (terminated | truncated).sum(1).eq(1).all() and mask[terminated | truncated].all()
    assert logp.equal(logp_old) and logp.requires_grad and not logp_old.requires_grad
    assert observations[:, 0].max() <= 1 and logp[mask].lt(0).all()
    assert (returns - (rewards * 0.7 ** mask.double().cumsum(1).sub(1)).sum(1)).abs().max() < 1e-12
    returns.zero_(), rewards.zero_(), logp_old.zero_()  # a copy of one's own
    return returns
"""
    of = there("luck")
    got = own(f"{file(source)}:own", of)
    assert (got.norm_ratio, got.relative_bias, got.variance) == (0, 1, 0)
    # Nothing was changed for those who come later.
    same(own(f"{file(SHELF['group_mean'])}:own", of), examine(there("luck"), of_group()[0], group_size=3))


ORDERED = {
    "one of two": ("rewards.sum(1) * ramp", lambda r, i: r[i] * (i + 1)),
    # The neighbours on both sides: the same from behind, so that only other orders tell.
    "neighbours": (
        "(rewards.sum(1) - rewards.sum(1).roll(1) * rewards.sum(1).roll(-1))",
        lambda r, i: r[i] - r[i - 1] * r[(i + 1) % len(r)],
    ),
}


@pytest.mark.parametrize("kind", ["by class", "by trajectory"])
@pytest.mark.parametrize("name", ORDERED)
def test_where_the_order_counts_ordered_batches_are_listed(name: str, kind: str, file: Write) -> None:
    code, plain = ORDERED[name]
    size = 2 if name == "one of two" else 4
    more = "" if kind == "by class" else ", actions"
    spec = file(f"""
import torch


def own(rewards{more}):
    ramp = torch.arange(1, len(rewards) + 1)
    return {code}
""")
    mdp = bandit((1.0, 0.4, -0.2))
    of = world(mdp, seed=0, spread=0.7)
    got = own(f"{spec}:own", of, size)
    theta = of.theta.numpy()
    drawn = groups(mdp, lives(mdp, theta), size)
    estimates = []
    for _, group in drawn:
        r = [total(mdp, x) for x in group]
        weights = [plain(r, i) / size for i in range(size)]
        estimates.append(sum(score(mdp, theta, x, [w]) for x, w in zip(group, weights, strict=True)))
    expected = seen(gradient(mdp, theta), [p for p, _ in drawn], estimates)
    assert got.norm_ratio == pytest.approx(expected.norm_ratio, rel=1e-10)
    assert got.relative_bias == pytest.approx(expected.bias, rel=1e-10)
    assert got.variance == pytest.approx(size * expected.variance, rel=1e-10)


def test_a_function_that_reads_rewards_alone_is_counted(file: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,093 completions in groups of 4 are more than can be listed; their classes are few."""
    monkeypatch.setattr(microscope, "SAMPLED_DRAWS", 50)
    of = world(token_mdp(3, 4, verifiers=(says(0),)), seed=0, spread=0.5)
    for source, exact in ((SHELF["group_mean"], True), (LOSSES["group_mean"], False)):
        got = own(f"{file(source)}:own", of, 4)
        assert (got.error == 0) is exact


def test_the_report_has_ones_own_first_and_the_known_ones_beside(
    file: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradhat.lab.bias.figure", lambda name, findings: None)
    monkeypatch.setattr(microscope, "SAMPLED_DRAWS", 50)
    monkeypatch.setattr(microscope, "SINGLE_DRAWS", 100)
    spec = f"{file(LOSSES['group_mean'])}:own"
    report = mine(spec, there(), "texts", group_size=3)
    (table,) = report.tables
    assert [(row["name"], row["what"]) for row in table.rows[:1]] == [("own", "your own")]
    assert [row["name"] for row in table.rows[1:]] == [s.name for s in of_group()]
    assert table.rows[0]["error"] > 0 and SAMPLED_COLUMN in table.columns
    assert any("sampled" in note and "own" in note for note in report.notes)


def test_a_function_that_answers_at_random_is_refused(file: Write) -> None:
    source = """
import torch

def own(returns):
    return returns + torch.randn(len(returns))
"""
    spec = f"{file(source)}:own"
    with pytest.raises(EstimatorError, match="asked twice about the same batches, it gave two answers"):
        mine(spec, there(), "texts", group_size=2)


@pytest.mark.parametrize("source", ["raise SystemExit(1)", "def own(returns):\n    raise SystemExit(1)"])
def test_a_file_that_wants_to_leave_does_not_leave_in_silence(file: Write, source: str) -> None:
    with pytest.raises(EstimatorError, match="SystemExit: 1"):
        mine(f"{file(source)}:own", there(), "texts", group_size=2)


def test_arguments_with_a_default_are_left_alone(file: Write) -> None:
    source = """
def own(returns, scale=2.0, *more, logp=None, **others):
    assert not more and not others and logp is None
    return scale * (returns - returns.mean())
"""
    got, known = own(f"{file(source)}:own", there()), examine(there(), of_group()[0], group_size=3)
    assert got.norm_ratio == pytest.approx(2 * known.norm_ratio)
    assert np.sign(got.cosine) == 1


def test_a_file_may_hold_dataclasses_and_be_read_again(file: Write) -> None:
    source = """
from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Own:
    factor: float

    def __call__(self, returns: torch.Tensor) -> torch.Tensor:
        return self.factor * returns


own = Own(FACTOR)
"""
    one, three = (own(f"{file(source.replace('FACTOR', f))}:own", there()) for f in ("1.0", "3.0"))
    assert three.norm_ratio == pytest.approx(3 * one.norm_ratio)


BROKEN = {
    "raises": (
        "def own(returns):\n    x = 1\n    return returns[99]\n",
        r"raised IndexError: .* \(line 3\) on",
    ),
    "raises deep inside": (
        "import torch\n\n\ndef own(returns):\n    return torch.einsum('zz', returns)\n",
        r"raised RuntimeError: .*\(line 5\) on a batch of \(3, 2\)\. Mend it",
    ),
    "nan": (
        "def own(returns):\n    return (returns - returns.mean()) / returns.std()\n",
        r"returned \[nan, nan, nan\]: asked for finite numbers\. Does it divide by the spread",
    ),
    "infinite loss": ("def own(logp):\n    return logp.sum() / 0\n", r"returned \[-inf\]: asked for finite"),
    "infinite slope": (
        "def own(logp):\n    return (logp - logp.detach()).abs().sum().sqrt()\n",
        r"derivative by logp is \[.*nan.*\]: asked for finite numbers",
    ),
    "wrong shape": (
        "def own(returns):\n    return returns[:-1]\n",
        r"returned \(2,\)\. Return the credit of 3 trajectories, \[3\], of their steps, \[3, 2\], or a sc",
    ),
    "no tensor": ("def own(returns):\n    return 1.0\n", r"returned float\. Return a floating tensor"),
    "nothing": ("def own(returns):\n    returns.mean()\n", r"returned NoneType\."),
    "integers": ("def own(actions):\n    return actions\n", r"returned Tensor\. Return a floating tensor"),
    "a scalar without logp": (
        "def own(returns):\n    return returns.mean()\n",
        r"returned a number that does not depend on logp\. A loss takes logp; credit has the shape \[3\]",
    ),
    "a scalar of other weights": (
        "import torch\n\n\ndef own(logp):\n    return torch.ones(3, requires_grad=True).sum()\n",
        r"does not depend on logp",
    ),
    "unknown argument": (
        "def own(returns, advantages):\n    return returns\n",
        r"found the argument 'advantages', which is not known\. A function may ask for",
    ),
    "no argument": ("def own():\n    return 1\n", r"found no argument\. A function may ask for"),
    "no function": (
        "def other(returns): ...\n\n\ndef more(returns): ...\n",
        r"has no function 'own'\. Functions there: other, more\. Write FILE\.py:FUNCTION",
    ),
    "nothing there": ("own = 3\n", r"has no function 'own'\. Functions there: none\."),
    "import raises": (
        "import nothing_of_this_name\n",
        r"importing .*own\.py raised ModuleNotFoundError: .*\(line 1\)",
    ),
    "import fails": ("x = 1\n\nraise OSError('no')\n", r"raised OSError: no \(line 3\)\. Mend it"),
    "no python": ("def own(returns)\n    return 1\n", r"raised SyntaxError: .*\(own\.py, line 1\)\. Mend it"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_said(name: str, file: Write) -> None:
    source, wanted = BROKEN[name]
    spec = f"{file(source)}:own"
    with pytest.raises(EstimatorError, match=wanted) as error:
        own(spec, there())
    assert str(error.value).startswith(f"estimator {spec}: ")


def test_unknown_arguments_are_answered_with_the_known_ones(file: Write) -> None:
    with pytest.raises(EstimatorError) as error:
        own(f"{file(BROKEN['unknown argument'][0])}:own", there())
    for name, what in ARGUMENTS.items():
        assert f"{name} " in str(error.value) and what in str(error.value)


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("own.py", r"asked for a function in a file\. Write FILE\.py:FUNCTION"),
        ("own.py:", "asked for a function in a file"),
        ("own:f", "asked for a function in a file"),
        ("own.txt:f", "asked for a function in a file"),
        ("nowhere/own.py:f", r"there is no file nowhere/own\.py\. Check the path"),
    ],
)
def test_a_function_is_named_by_its_file(spec: str, wanted: str) -> None:
    with pytest.raises(EstimatorError, match=wanted):
        load(spec)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "own.py").mkdir()
    with pytest.raises(EstimatorError, match="there is no file"):
        load(f"{tmp_path / 'own.py'}:own")


def test_what_lies_beside_the_file_is_in_reach(file: Write, tmp_path: Path) -> None:
    import sys

    (tmp_path / "gradhat_test_beside.py").write_text("def own(returns): return returns")
    try:
        function = load(f"{file('from gradhat_test_beside import own')}:own")
        assert torch.equal(function(torch.ones(2)), torch.ones(2))
    finally:
        del sys.modules["gradhat_test_beside"]


def test_a_file_that_failed_leaves_nothing_behind(file: Write) -> None:
    import sys

    with pytest.raises(EstimatorError):
        load(f"{file('raise OSError')}:own")
    assert "gradhat_estimator_own" not in sys.modules
    assert torch.is_tensor(load(f"{file(SHELF['group_mean'])}:own")(torch.ones(2)))
