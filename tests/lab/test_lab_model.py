"""What the Gram matrix says of a language model's gradients, against the gradients themselves."""

import itertools
import math
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from scipy.stats import t as student
from torch import Tensor, nn

from gradhat.algorithms import grpo
from gradhat.algorithms.ascend import Step
from gradhat.algorithms.grpo_family import FAMILY
from gradhat.envs.text.env import SingleTurn
from gradhat.envs.text.load import load_task
from gradhat.errors import ConfigError, ModelError
from gradhat.lab import model as lab
from gradhat.policies.language import weights
from gradhat.policies.language.chat import Chat
from gradhat.policies.language.policy import LanguagePolicy
from gradhat.policies.policy import Evaluation
from gradhat.policies.tabular import Logits, TabularPolicy
from gradhat.rollouts.engine import Engine, Limits
from gradhat.rollouts.episodes import Start
from gradhat.trajectories import Trajectories

F64 = torch.float64
K, PROMPTS, G, LENGTH = 5, 3, 4, 5
SETTINGS = grpo.Settings(length=LENGTH)
CHOSEN = "blocks.1.*"
LIMITS = Limits(LENGTH, stop_strings=tuple(string.ascii_uppercase + string.digits))


class Scene(NamedTuple):
    policy: LanguagePolicy
    batches: list[Trajectories]


@pytest.fixture(scope="module")
def scene(tiny_model: Path, letters_task: str) -> Scene:
    """Five batches of three prompts with four samples each, and the model that sampled them in float64."""
    task, chat = load_task(letters_task), Chat.read(tiny_model)
    starts = (Start(partial(SingleTurn, task), seed) for seed in itertools.count(0))
    engine = Engine(weights.load(tiny_model), chat, num_slots=12)
    sampled = lab.sample(starts, chat, engine, LIMITS, num_batches=K, num_prompts=PROMPTS, group_size=G)
    policy = LanguagePolicy(weights.load(tiny_model, F64), token_budget=70)
    return Scene(policy, [on_policy(policy, batch) for batch in sampled])


def on_policy(policy: LanguagePolicy, batch: Trajectories) -> Trajectories:
    """As sampled by this very forward, so that the trainer's ratios are 1 to the last bit."""
    logp = torch.zeros(batch.mask.shape, dtype=F64)
    for rows in policy.split(batch):
        logp[rows] = policy.evaluate(batch.select(rows)).logp.detach()
    return replace(batch, logp=logp)


class Recorder:
    """An optimiser that only keeps the gradient of the objective."""

    def __init__(self, chosen: Sequence[nn.Parameter], module: nn.Module) -> None:
        self.chosen, self.module = chosen, module
        self.vector = torch.zeros(sum(p.numel() for p in chosen), dtype=F64)

    def accumulate(self) -> None:
        self.vector -= torch.cat([p.grad.flatten() for p in self.chosen if p.grad is not None])
        self.module.zero_grad()

    def step(self) -> Step:
        return Step(0.0, False)


def trained(scene: Scene, row: grpo.Row, size: int) -> list[Tensor]:
    """The gradient of each batch as the trainer takes it, on the first members of each group alone."""
    module = scene.policy.module
    chosen = list(lab.choose(module, CHOSEN).values())
    vectors: list[Tensor] = []
    for batch in scene.batches:
        recorder = Recorder(chosen, module)
        first = [i for i in range(len(batch)) if i % G < size]
        credited = grpo.credit(row, SETTINGS, doubled(batch.select(first)))
        grpo.update(scene.policy, recorder, credited, row, SETTINGS)
        vectors.append(recorder.vector)
    return vectors


def doubled(batch: Trajectories) -> Trajectories:
    return replace(batch, rewards=batch.rewards.double())


@pytest.fixture(scope="module")
def lines(scene: Scene) -> dict[tuple[str, int], lab.Line]:
    chosen = lab.choose(scene.policy.module, CHOSEN)
    found = lab.measure(scene.policy, scene.batches, SETTINGS, chosen, group_sizes=(2, 4))
    return {(line.estimator, line.group_size): line for line in found}


def test_there_is_something_to_see(scene: Scene) -> None:
    returns = [batch.returns().reshape(PROMPTS, G) for batch in scene.batches]
    assert 0 < sum(float(r.mean()) for r in returns) < K
    lengths = {int(n) for batch in scene.batches for n in batch.mask.sum(-1)}
    assert len(lengths) > 1
    assert any(len(scene.policy.split(batch)) > 1 for batch in scene.batches)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", lab.ESTIMATORS)
def test_the_numbers_are_those_of_the_trainers_own_gradients(
    scene: Scene, lines: dict[tuple[str, int], lab.Line], name: str, size: int
) -> None:
    vectors = trained(scene, lab.ESTIMATORS[name], size)
    mean = torch.stack(vectors).mean(0)
    spread = sum(float((v - mean).square().sum()) for v in vectors) / (K - 1)
    pairs = [float(a @ b) for a, b in itertools.permutations(vectors, 2)]
    cosines = [
        float(nn.functional.cosine_similarity(sum_of(vectors, half), sum_of(vectors, rest), dim=0))
        for half in itertools.combinations(range(K), 2)
        for rest in [[k for k in range(K) if k not in half]]
    ]
    line = lines[name, size]
    expected = {
        "norm": float(mean.norm()),
        "signal": sum(pairs) / len(pairs),
        "variance_per_sample": spread * PROMPTS * size,
        "variance_per_group": spread * PROMPTS,
        "snr": sum(pairs) / len(pairs) / spread,
        "cosine": sum(cosines) / len(cosines),
    }
    found = {key: getattr(line, key).mean for key in expected}
    assert found == pytest.approx(expected, rel=1e-8, abs=1e-14)
    assert (line.num_groups, line.gram.shape) == (PROMPTS, (K, K))


def sum_of(vectors: Sequence[Tensor], places: Sequence[int]) -> Tensor:
    return torch.stack([vectors[k] for k in places]).sum(0)


def test_silent_groups_and_rewards_are_counted(scene: Scene, lines: dict[tuple[str, int], lab.Line]) -> None:
    returns = torch.stack([batch.returns().reshape(PROMPTS, G) for batch in scene.batches]).double()
    assert lab.reward(scene.batches).mean == pytest.approx(float(returns.mean()))
    for size in (2, 4):
        first = returns[..., :size]
        share = float((first.amax(-1) == first.amin(-1)).double().mean())
        assert lines["rloo", size].silent.mean == pytest.approx(share)
    assert lines["rloo", 2].silent.mean > lines["rloo", 4].silent.mean


def test_less_memory_takes_more_passes_and_changes_nothing(
    scene: Scene, lines: dict[tuple[str, int], lab.Line]
) -> None:
    """Four estimators are no multiple of another. With room for one at a time each has its own pass, over
    the trajectories that it gives a weight."""
    chosen = lab.choose(scene.policy.module, CHOSEN)
    passes: list[int] = []
    for memory in (lab.MEMORY, 1):
        counted = Counted(scene.policy)
        found = lab.measure(counted, scene.batches, SETTINGS, chosen, group_sizes=(4,), memory=memory)
        passes.append(counted.rows)
        for line in found:
            torch.testing.assert_close(line.gram, lines[line.estimator, 4].gram, rtol=1e-10, atol=1e-14)
    returns = torch.stack([batch.returns().reshape(PROMPTS, G) for batch in scene.batches])
    paid = returns != 0
    loud = (returns != returns[..., :1]).any(-1, keepdim=True).expand_as(paid)
    assert passes == [int((paid | loud).sum()), int(paid.sum()) + 3 * int(loud.sum())]
    assert passes[0] < passes[1]


@dataclass
class Counted:
    """A policy that counts the trajectories it evaluates."""

    policy: LanguagePolicy
    rows: int = 0

    @property
    def module(self) -> nn.Module:
        return self.policy.module

    def split(self, trajectories: Trajectories) -> list[list[int]]:
        return self.policy.split(trajectories)

    def evaluate(self, trajectories: Trajectories) -> Evaluation:
        self.rows += len(trajectories)
        return self.policy.evaluate(trajectories)


def test_the_model_is_left_as_it_was(scene: Scene) -> None:
    module = scene.policy.module
    module.embed.weight.requires_grad_(False)
    chosen = lab.choose(module, "*norm*")
    lab.measure(scene.policy, scene.batches, SETTINGS, chosen, rows=one("rloo"), group_sizes=(4,))
    assert [name for name, p in module.named_parameters() if not p.requires_grad] == ["embed.weight"]
    assert all(p.grad is None for p in module.parameters())
    module.embed.weight.requires_grad_(True)


def one(name: str) -> dict[str, grpo.Row]:
    return {name: lab.ESTIMATORS[name]}


def test_a_batch_is_answered_anew_although_its_prompts_come_again(
    tiny_model: Path, letters_task: str
) -> None:
    task, chat = load_task(letters_task), Chat.read(tiny_model)
    starts = (Start(partial(SingleTurn, task), 7) for _ in itertools.count())
    engine = Engine(weights.load(tiny_model), chat)
    batches = list(lab.sample(starts, chat, engine, Limits(6), num_batches=2, num_prompts=2, group_size=2))
    assert [len(b) for b in batches] == [4, 4]
    assert len({tuple(o) for b in batches for o in b.observations}) == 1
    assert len({tuple(row) for b in batches for row in b.actions.tolist()}) == 8


# Small worlds: one step, a table of logits, rewards of one's own.

THETA = torch.tensor([[0.2, -0.4, 0.1]], dtype=F64)


def batch_of(actions: Sequence[int], rewards: Sequence[float], size: int) -> Trajectories:
    number = len(actions)
    ones = torch.ones(number, 1, dtype=torch.bool)
    return Trajectories(
        observations=[(0,)] * number,
        actions=torch.tensor(actions)[:, None],
        mask=ones,
        logp=torch.zeros(number, 1),
        rewards=torch.tensor(rewards, dtype=torch.float32)[:, None],
        terminated=ones,
        truncated=~ones,
        group=torch.arange(number) // size,
        version=torch.zeros(number, dtype=torch.long),
    )


def seen(batches: Sequence[Trajectories], name: str, *sizes: int) -> list[lab.Line]:
    policy = TabularPolicy(Logits(THETA))
    chosen = lab.choose(policy.module, "theta")
    return lab.measure(policy, batches, grpo.Settings(length=1), chosen, rows=one(name), group_sizes=sizes)


def test_batches_that_agree_have_no_noise_and_batches_that_cancel_no_signal() -> None:
    same = [batch_of([0, 1], [1, 0], 2)] * 4
    (line,) = seen(same, "rloo", 2)
    assert line.cosine == pytest.approx((1, 1, 1))
    assert line.variance_per_sample.mean == pytest.approx(0, abs=1e-15)
    assert line.signal.mean == pytest.approx(line.norm.mean**2)
    assert line.snr.mean > 1e12
    opposite = [batch_of([0, 1], [1, 0], 2), batch_of([0, 1], [0, 1], 2)] * 2
    (line,) = seen(opposite, "rloo", 2)
    assert line.norm.mean == pytest.approx(0, abs=1e-8)
    assert line.signal.mean < 0 < line.variance_per_sample.mean
    assert line.noise_scale.mean == math.inf


def test_where_all_groups_are_silent_there_is_nothing_to_divide() -> None:
    (line,) = seen([batch_of([0, 1], [1, 1], 2)] * 4, "grpo", 2)
    assert line.silent.mean == 1
    assert line.norm.mean == line.cosine.mean == 0
    assert math.isnan(line.snr.mean)
    assert math.isnan(line.noise_scale.mean)


def test_groups_need_not_lie_together() -> None:
    """The first members of each group, whatever lies between them."""
    together = [batch_of([0, 1, 2, 2, 0, 1], [1, 0, k, 0.5, 2, k], 3) for k in range(4)]
    mixed = [batch.select([3, 0, 4, 1, 2, 5]) for batch in together]
    for a, b in zip(seen(together, "grpo", 2, 3), seen(mixed, "grpo", 2, 3), strict=True):
        torch.testing.assert_close(a.gram, b.gram, rtol=1e-12, atol=1e-14)


def test_signal_and_noise_are_unbiased() -> None:
    """Over every draw of four batches from three gradients of known mean and covariance."""
    vectors = torch.tensor([[1.0, 0.5, -1], [0.2, -2, 0], [0.3, 1, 1]], dtype=F64)
    chance = torch.tensor([0.5, 0.2, 0.3], dtype=F64)
    mean = chance @ vectors
    spread = chance @ (vectors - mean).square().sum(-1)
    found = torch.zeros(2, dtype=F64)
    for draw in itertools.product(range(3), repeat=4):
        gram = vectors[list(draw)] @ vectors[list(draw)].T
        found += chance[list(draw)].prod() * torch.stack([lab.signal(gram), lab.noise(gram)])
    torch.testing.assert_close(found, torch.stack([mean @ mean, spread]), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("size", "ways"), [(4, 3), (5, 10), (12, 462), (13, 1000)])
def test_halvings_are_all_there_are_or_many(size: int, ways: int) -> None:
    left = lab.halvings(size)
    assert left.shape == (ways, size)
    assert (left.sum(-1) == size // 2).all()
    cuts = {
        frozenset((frozenset(r.nonzero()[:, 0].tolist()), frozenset((1 - r).nonzero()[:, 0].tolist())))
        for r in left
    }
    assert len(cuts) == ways if size < 13 else len(cuts) > 0.4 * math.comb(13, 6)
    assert torch.equal(left, lab.halvings(size))


def test_the_interval_of_a_mean_is_students() -> None:
    values = [0.3, 1.2, -0.5, 0.8, 0.1, 2.0, 0.4]
    found = lab.mean(values)
    column = torch.tensor(values, dtype=F64)
    low, high = student.interval(0.95, 6, loc=column.mean(), scale=column.std() / math.sqrt(7))
    assert found == pytest.approx((float(column.mean()), low, high), abs=2e-3)


@pytest.mark.parametrize("freedom", [3, 4, 15, 63])
def test_the_quantile_is_students(freedom: int) -> None:
    values = torch.arange(freedom + 1.0)
    error = float(values.std()) / math.sqrt(freedom + 1)
    found = lab.mean(values.tolist())
    assert (found.high - found.mean) / error == pytest.approx(student.ppf(0.975, freedom), rel=0.01)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Gaussian gradients of known signal and noise, 300 times eight batches."""
    g = torch.Generator().manual_seed(0)
    mean = torch.zeros(200, dtype=F64)
    mean[:50] = 1.0
    statistics = {50.0: lab.signal, 1.0: lambda gram: lab.signal(gram) / lab.noise(gram)}
    held = dict.fromkeys(statistics, 0)
    for _ in range(300):
        vectors = mean + 0.5 * torch.randn(8, 200, generator=g, dtype=F64)
        gram = vectors @ vectors.T
        for truth, of in statistics.items():
            estimate = lab.jackknife(lambda kept, of=of, gram=gram: float(of(gram[kept][:, kept])), 8)
            held[truth] += estimate.low < truth < estimate.high
    assert all(0.9 < count / 300 < 0.99 for count in held.values()), held


def test_the_noise_scale_is_the_batch_at_which_signal_and_noise_are_equal() -> None:
    (line,) = seen([batch_of([0, 1, 2, 0], [1, k, 0.5, 0], 2) for k in (0, 1, 0.5, -2)], "rloo", 2)
    scale = line.noise_scale
    assert scale.mean == pytest.approx(line.variance_per_sample.mean / line.signal.mean)
    assert scale.high == pytest.approx(4 / line.snr.low) if line.snr.low > 0 else scale.high == math.inf
    assert scale.low == pytest.approx(4 / line.snr.high)


@pytest.mark.parametrize(
    ("batches", "sizes", "name", "message"),
    [
        ([batch_of([0, 1], [1, 0], 2)] * 3, [2], "rloo", r"batches=3: .* needs 4 or more\. Sample more"),
        ([batch_of([0, 1], [1, 0], 2)] * 4, [4], "rloo", r"group size 4: found groups of 2\. Use 1 to 2"),
        ([batch_of([0, 1], [1, 0], 2)] * 4, [1], "rloo", r"estimator rloo with groups of 1: group_size=1"),
        ([batch_of([0, 1, 2], [1, 0, 0], 2)] * 4, [2], "rloo", r"found groups of 1 to 2 samples\. Sample eq"),
        (
            [batch_of([0, 1], [1, 0], 2)] * 3 + [batch_of([0, 1], [1, 0], 1)],
            [1],
            "reinforce",
            r"found batches of \[\(1, 2\), \(2, 1\)\] prompts and samples\. Sample equal batches",
        ),
    ],
)
def test_what_cannot_be_measured_is_an_error(
    batches: list[Trajectories], sizes: list[int], name: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        seen(batches, name, *sizes)


def test_a_pattern_that_fits_nothing_lists_what_exists(scene: Scene) -> None:
    with pytest.raises(
        ConfigError, match=r"'blocks\.2\.\*': found none .*blocks\.N\.qkv\.weight.* 0 to 1\. Use"
    ):
        lab.choose(scene.policy.module, "blocks.2.*")
    with pytest.raises(ConfigError, match=r"The model has theta\. Use"):
        lab.choose(Logits(THETA), "logits")
    assert set(lab.choose(scene.policy.module, "*.qkv.weight")) == {
        "blocks.0.qkv.weight",
        "blocks.1.qkv.weight",
    }


def test_gradients_that_are_not_finite_are_an_error() -> None:
    policy = TabularPolicy(Logits(THETA * math.nan))
    chosen = lab.choose(policy.module, "*")
    batches = [batch_of([0, 1], [1, 0], 2)] * 4
    with pytest.raises(ModelError, match=r"found not finite\. The weights are damaged"):
        lab.measure(policy, batches, grpo.Settings(length=1), chosen, rows=one("rloo"), group_sizes=(2,))


def test_the_family_is_all_there() -> None:
    assert {"reinforce", *FAMILY} < set(lab.ESTIMATORS)
