"""A draw against a plain search, transformers' truncation, and the distribution that it stands for."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import chance, distribution
from torch import Tensor
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from gradhat.rollouts.engine import Limits
from gradhat.rollouts.sampling import BLOCK, HEADS, Draw, draw, greedy, inverse_cdf, keep_top_k, keep_top_p

BELOW_ONE = float(np.nextafter(1, 0))
OPEN: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
CHOICES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.5},
    {"temperature": 1.7},
    {"top_k": 1},
    {"top_k": 12},
    {"top_p": 0.6},
    {"top_p": 1e-6},
    {"min_p": 0.1},
    {"temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 2.0, "top_k": 100, "top_p": 0.8, "min_p": 0.3},
    {"top_k": 10_000},
]


def random_logits(rows: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, size, generator=generator, dtype=torch.float64) * 2


def plain_search(weights: np.ndarray, u: float) -> tuple[int, float]:
    """The first token whose running sum exceeds u · total, one after the other, and how near a border is."""
    running = np.cumsum(weights.astype(np.float64))
    target = u * running[-1]
    for token, reached in enumerate(running):
        if reached > target:
            return token, float(np.abs(running - target).min() / running[-1])
    raise AssertionError("u is at least 1")


@st.composite
def weights_and_uniform(draw_from: st.DrawFn) -> tuple[np.ndarray, float]:
    """A row of weights over one to three blocks, many of them 0, some of them tiny, and a uniform number."""
    size = draw_from(st.sampled_from([1, 2, 7, BLOCK - 1, BLOCK, BLOCK + 1, 300, 2 * BLOCK, 700]))
    random = np.random.default_rng(draw_from(st.integers(0, 2**32)))
    weights = random.random(size) * 10.0 ** -random.integers(0, 12, size)
    weights[random.random(size) < draw_from(st.sampled_from([0.0, 0.5, 0.99]))] = 0
    weights[draw_from(st.integers(0, size - 1))] = 0.5
    u = draw_from(st.one_of(st.sampled_from([0.0, BELOW_ONE]), st.floats(0, 1, exclude_max=True)))
    return weights, u


@settings(deadline=None, max_examples=300)
@given(weights_and_uniform())
def test_the_two_level_search_equals_a_plain_one(case: tuple[np.ndarray, float]) -> None:
    weights, u = case
    wanted, margin = plain_search(weights, u)
    found = inverse_cdf(torch.tensor(weights)[None], torch.tensor([u], dtype=torch.float64))
    token = int(found.tokens[0])
    assert weights[token] > 0
    # Sums in another order round differently: on a border, and only there, either side is right.
    assert token == wanted or margin < 1e-13
    assert float(found.logp[0]) == pytest.approx(np.log(weights[token] / weights.sum()), abs=1e-5)


@settings(deadline=None, max_examples=100)
@given(weights_and_uniform())
def test_float32_weights_only_blur_the_borders(case: tuple[np.ndarray, float]) -> None:
    weights, u = case[0].astype(np.float32), case[1]
    wanted, margin = plain_search(weights, u)
    token = int(inverse_cdf(torch.tensor(weights)[None], torch.tensor([u], dtype=torch.float64)).tokens[0])
    assert weights[token] > 0
    assert token == wanted or margin < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("places", [[0], [299], [3, 255], [256, 280], [5, 290], [0, 255, 256, 299]])
def test_the_ends_of_the_unit_interval_are_the_first_and_last_possible_token(
    places: list[int], dtype: torch.dtype
) -> None:
    weights = torch.zeros(2, 300, dtype=dtype)
    weights[:, places] = torch.rand(len(places), generator=torch.Generator().manual_seed(0)).to(dtype) + 0.1
    found = inverse_cdf(weights, torch.tensor([0.0, BELOW_ONE], dtype=torch.float64))
    assert found.tokens.tolist() == [places[0], places[-1]]


def test_rows_are_searched_on_their_own() -> None:
    weights, uniforms = random_logits(40, 700).exp(), torch.rand(40, dtype=torch.float64)
    whole = inverse_cdf(weights, uniforms)
    for row in range(40):
        alone = inverse_cdf(weights[row : row + 1], uniforms[row : row + 1])
        assert (alone.tokens[0], alone.logp[0]) == (whole.tokens[row], whole.logp[row])


def of_transformers(logits: Tensor, choice: dict[str, Any]) -> Tensor:
    """Probabilities by the warpers of transformers, in the order of its `generate`."""
    chosen = OPEN | choice
    scores = TemperatureLogitsWarper(chosen["temperature"])(None, logits)
    if chosen["top_k"]:
        scores = TopKLogitsWarper(chosen["top_k"])(None, scores)
    if chosen["top_p"] < 1:
        scores = TopPLogitsWarper(chosen["top_p"])(None, scores)
    if chosen["min_p"] > 0:
        scores = MinPLogitsWarper(chosen["min_p"])(None, scores)
    return scores.softmax(-1)


def drawn_at_every_token(logits: Tensor, probability: Tensor, choice: dict[str, Any]) -> Draw:
    """One draw in the middle of the stretch of [0, 1) that each possible token should have."""
    middles = probability.cumsum(0) - probability / 2
    possible = probability > 0
    return draw(logits.expand(int(possible.sum()), -1), middles[possible], **OPEN | choice)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@pytest.mark.parametrize("size", [5, 300, 512])
def test_truncation_equals_transformers(choice: dict[str, Any], size: int) -> None:
    logits = random_logits(4, size)
    for row, probability in zip(logits, of_transformers(logits, choice), strict=True):
        possible = (probability > 0).nonzero()[:, 0]
        found = drawn_at_every_token(row, probability, choice)
        # Every token that should be possible is, where it should be, and their probabilities leave none over.
        assert torch.equal(found.tokens, possible)
        torch.testing.assert_close(found.logp.double(), probability[possible].log(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_the_naive_truncation_equals_transformers(choice: dict[str, Any]) -> None:
    logits = random_logits(4, 300, seed=1)
    for row, probability in zip(logits, of_transformers(logits, choice), strict=True):
        np.testing.assert_allclose(distribution(row, Limits(1, **choice)), probability, atol=1e-12)


@pytest.mark.parametrize(
    "choice", [c for c in CHOICES if c.get("top_k") != 1 and c.get("top_p") != 1e-6], ids=str
)
def test_draws_follow_the_distribution(choice: dict[str, Any]) -> None:
    """A right sampler fails each case with probability 1e-3 per choice of seed; this seed is fixed."""
    count = 20_000
    logits = random_logits(1, 300, seed=2)
    uniforms = torch.rand(count, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    tokens = draw(logits.float().expand(count, -1), uniforms, **OPEN | choice).tokens
    seen = np.bincount(tokens, minlength=300)
    expected = distribution(logits[0], Limits(1, **choice)) * count
    assert chance(seen, expected) > 1e-3


@pytest.mark.parametrize("p", [0.3, 0.9, 0.999999])
def test_flat_rows_beside_sharp_ones_keep_the_smallest_set_that_reaches_p(p: float) -> None:
    """The first row reaches p within the first 256 weights, the second within 4096, the third beyond."""
    size = HEADS[-1] + 900
    spread = torch.tensor([[8.0], [2.0], [0.1]], dtype=torch.float64)
    weights = (
        torch.randn(3, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * spread
    ).exp()
    kept = keep_top_p(weights, p)
    needed = []
    for row, left in zip(weights, kept, strict=True):
        largest = row.sort(descending=True).values
        needed.append(int((largest.cumsum(0) < p * row.sum()).sum()) + 1)
        assert torch.equal(left, row * (row >= largest[needed[-1] - 1]))
    if p == 0.9:
        assert needed[0] < HEADS[0] < needed[1] < HEADS[1] < needed[2]


def test_top_k_keeps_exactly_k_of_equals() -> None:
    weights = torch.tensor([[0.5, 1.0, 0.5, 0.5, 0.1]])
    kept = keep_top_k(weights, 2)
    assert (kept > 0).sum() == 2
    assert kept[0, 1] == 1.0 and kept.sum() == 1.5


def test_narrow_logits_are_widened_first() -> None:
    """A softmax in bfloat16 has two digits: its sum over 512 tokens is wrong by percents."""
    narrow = random_logits(50, 512).bfloat16()
    uniforms = torch.rand(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    chosen = OPEN | {"temperature": 0.7, "top_p": 0.95}
    found, wide = draw(narrow, uniforms, **chosen), draw(narrow.float(), uniforms, **chosen)
    assert torch.equal(found.tokens, wide.tokens) and torch.equal(found.logp, wide.logp)
    assert found.logp.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_logits_are_left_as_they_were(dtype: torch.dtype) -> None:
    logits = random_logits(3, 300).to(dtype)
    before = logits.clone()
    draw(logits, torch.rand(3, dtype=torch.float64), **OPEN | CHOICES[8])
    assert torch.equal(logits, before)


def test_logits_of_any_level_are_the_same() -> None:
    """Without subtracting the largest, exp(1000) overflows."""
    logits, uniforms = random_logits(20, 300), torch.rand(20, dtype=torch.float64)
    low, high = (draw(logits + level, uniforms, **OPEN) for level in (-1000, 1000))
    assert torch.equal(low.tokens, high.tokens)
    torch.testing.assert_close(low.logp, high.logp)


def test_greedy_is_the_first_of_the_largest_and_certain() -> None:
    found = greedy(torch.tensor([[1.0, 3.0, 3.0], [2.0, 1.0, 0.0]], dtype=torch.bfloat16))
    assert found.tokens.tolist() == [1, 0]
    assert found.logp.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_show(broken: float) -> None:
    logits = random_logits(2, 300)
    logits[1, 7] = broken
    uniforms = torch.full((2,), 0.5, dtype=torch.float64)
    for found in (
        greedy(logits),
        draw(logits, uniforms, **OPEN),
        draw(logits, uniforms, **OPEN | CHOICES[8]),
    ):
        assert found.logp.isfinite().tolist() == [True, False]


def test_a_forbidden_token_is_never_drawn() -> None:
    logits = torch.full((1, 300), -torch.inf)
    logits[0, [4, 260]] = 0.0
    uniforms = torch.tensor([0.0, 0.49, 0.51, BELOW_ONE], dtype=torch.float64)
    assert draw(logits.expand(4, -1), uniforms, **OPEN).tokens.tolist() == [4, 4, 260, 260]
