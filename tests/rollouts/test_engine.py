"""The engine against one full forward for every token: what it samples, what it records, when it stops."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plain import ROOM, VOCAB, Pieces, chance, distribution, greedy, logits_of, network, prompts
from torch import Tensor

from gradhat.algorithms.ascend import Step, ascend
from gradhat.errors import ConfigError, ModelError
from gradhat.policies.language.cache import GROWTH, KVCache
from gradhat.policies.language.chat import Chat
from gradhat.policies.language.policy import LanguagePolicy
from gradhat.policies.language.transformer import Transformer
from gradhat.policies.language.weights import load, resolve
from gradhat.policies.policy import Evaluation
from gradhat.rollouts.engine import Completion, Engine, Limits
from gradhat.rollouts.episodes import pack
from gradhat.rollouts.sampling import Draw, draw
from gradhat.trajectories import Record, Trajectories, Verdict

STOPS = tuple(range(0, VOCAB, 12))
"""A twelfth of the tokens, so that completions have many lengths."""
CHOICES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.6},
    {"top_k": 7},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"temperature": 1.5, "top_k": 50, "top_p": 0.8, "min_p": 0.1},
]


def engine(
    model: Transformer, stop_ids: Sequence[int] = STOPS, num_slots: int = 64, chat: Any = None
) -> Engine:
    return Engine(model, chat or Pieces(stop_ids), num_slots=num_slots)


def recorded_and_naive(
    model: Transformer, prompt: Sequence[int], completion: Completion, limits: Limits
) -> tuple[np.ndarray, np.ndarray]:
    """The recorded log-probabilities, and those of one forward over prompt and completion."""
    whole = logits_of(model, [*prompt, *completion.tokens])[len(prompt) - 1 : -1]
    rows = zip(whole, completion.tokens, strict=True)
    return np.array(completion.logp), np.log([distribution(row, limits)[token] for row, token in rows])


# What is sampled


@pytest.mark.parametrize("num_slots", [1, 3, 64])
def test_greedy_is_the_argmax_of_full_forwards(num_slots: int) -> None:
    model = network()
    found = engine(model, num_slots=num_slots).sample(prompts(6), 2, Limits(12, temperature=0))
    lengths = set[int]()
    for prompt, group in zip(prompts(6), found, strict=True):
        wanted = greedy(model, prompt, 12, frozenset(STOPS))
        assert [c.tokens for c in group] == [tuple(wanted)] * 2
        assert all(c.logp == (0.0,) * len(wanted) for c in group)
        lengths.add(len(wanted))
    assert len(lengths) > 2


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_recorded_logp_is_that_of_one_full_forward(choice: dict[str, Any]) -> None:
    """A logp from before the temperature, or not renormalised after truncation, is off by tenths."""
    model, limits = network(torch.float32, sharpness=3), Limits(10, seed=5, **choice)
    groups = engine(model, num_slots=5).sample(prompts(5), 4, limits)
    for prompt, group in zip(prompts(5), groups, strict=True):
        for completion in group:
            recorded, naive = recorded_and_naive(model, prompt, completion, limits)
            assert np.abs(recorded - naive).max() <= 1e-4


def before_temperature_and_truncation(logits: Tensor, uniforms: Tensor, **choice: Any) -> Draw:
    """The same tokens, recorded with the log-probability that the network alone gives them: a known bug."""
    tokens = draw(logits, uniforms, **choice).tokens
    return Draw(tokens, logits.float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0])


@pytest.mark.parametrize("choice", CHOICES[1:], ids=str)
def test_a_logp_from_before_temperature_or_truncation_is_found(
    choice: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test above would say of such an engine."""
    monkeypatch.setattr("gradhat.rollouts.engine.draw", before_temperature_and_truncation)
    model, limits = network(torch.float32, sharpness=3), Limits(10, seed=5, **choice)
    gaps = [
        np.abs(np.subtract(*recorded_and_naive(model, prompt, completion, limits))).max()
        for prompt, group in zip(
            prompts(5), engine(model, num_slots=5).sample(prompts(5), 4, limits), strict=True
        )
        for completion in group
    ]
    assert max(gaps) > 0.1


def test_recorded_logp_of_smollm2_is_that_of_one_full_forward() -> None:
    folder = resolve("smollm2-135m")
    model, chat = load(folder), Chat.read(folder)
    prompt = chat.encode([{"role": "user", "content": "What is 3 + 4?"}])
    for limits in (Limits(6), Limits(6, temperature=0.8, top_k=400, top_p=0.9, min_p=0.01, seed=1)):
        for completion in engine(model, chat=chat).sample([prompt], 2, limits)[0]:
            recorded, naive = recorded_and_naive(model, prompt, completion, limits)
            assert np.abs(recorded - naive).max() <= 1e-4


@pytest.mark.parametrize("choice", [CHOICES[0], CHOICES[5]], ids=str)
def test_first_tokens_follow_the_distribution(choice: dict[str, Any]) -> None:
    """A right engine fails each case with probability 1e-3 per choice of seed; this seed is fixed."""
    model, count = network(sharpness=3), 6000
    limits, prompt = Limits(1, seed=1, **choice), prompts(3)[2]
    (group,) = engine(model).sample([prompt], count, limits)
    seen = np.bincount([c.tokens[0] for c in group], minlength=VOCAB)
    expected = distribution(logits_of(model, prompt)[-1], limits) * count
    assert chance(seen, expected) > 1e-3


def test_whole_completions_follow_the_distribution() -> None:
    """Reusing a uniform number for two tokens, or for two samples, would show. Fails as rarely as above."""
    model, count = network(sharpness=2), 6000
    limits, prompt = Limits(3, top_k=3, seed=2), prompts(3)[1]
    expected: dict[tuple[int, ...], float] = {(): float(count)}
    for _ in range(3):
        expected = {
            (*ids, int(token)): mass * float(probability[token])
            for ids, mass in expected.items()
            for probability in [distribution(logits_of(model, [*prompt, *ids])[-1], limits)]
            for token in probability.nonzero()[0]
        }
    (group,) = engine(model, stop_ids=()).sample([prompt], count, limits)
    seen = {ids: 0 for ids in expected}
    for completion in group:
        seen[completion.tokens] += 1
    assert len(expected) == 27
    assert chance(np.array(list(seen.values())), np.array(list(expected.values()))) > 1e-3


def test_nothing_depends_on_slots_order_or_neighbours() -> None:
    model, asked, limits = network(), prompts(7), Limits(15, seed=3)
    wanted = engine(model).sample(asked, 3, limits)
    assert len({len(c.tokens) for group in wanted for c in group}) > 5

    def agrees(found: list[list[Completion]], order: Sequence[int], n: int = 3) -> None:
        for place, group in zip(order, found, strict=True):
            assert [c.tokens for c in group] == [c.tokens for c in wanted[place][:n]]
            assert [c.text for c in group] == [c.text for c in wanted[place][:n]]
            for ours, theirs in zip(group, wanted[place], strict=False):
                np.testing.assert_allclose(ours.logp, theirs.logp, atol=1e-6)

    for num_slots in (1, 3, 20):
        agrees(engine(model, num_slots=num_slots).sample(asked, 3, limits), range(7))
    order = [4, 0, 6, 2, 5, 1, 3]
    agrees(engine(model, num_slots=3).sample([asked[i] for i in order], 3, limits), order)
    agrees(engine(model).sample([asked[4]], 2, limits), [4], n=2)


def test_every_sample_has_its_own_random_numbers() -> None:
    model, prompt = network(), prompts(3)[2]
    twice = engine(model, stop_ids=()).sample([prompt, prompt], 3, Limits(8))
    other = engine(model, stop_ids=()).sample([prompt], 3, Limits(8, seed=1))
    assert len({c.tokens for group in (*twice, *other) for c in group}) == 9
    assert twice == engine(model, stop_ids=()).sample([prompt, prompt], 3, Limits(8))


def test_two_prompts_do_not_share_random_numbers() -> None:
    """The same network state after both, so only the random numbers can tell them apart."""
    model = network()
    with torch.no_grad():
        model.embed.weight[1] = model.embed.weight[0]
    one, other = engine(model, stop_ids=()).sample([[0], [1]], 1, Limits(8))
    assert one[0].tokens != other[0].tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_samples_come_from_the_present_weights(temperature: float) -> None:
    model, limits = network(), Limits(6, temperature=temperature)
    kept = engine(model, stop_ids=())
    before = kept.sample(prompts(3), 1, limits)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(-0.9)
    after = kept.sample(prompts(3), 1, limits)
    assert after == engine(model, stop_ids=()).sample(prompts(3), 1, limits)
    assert after != before


# How much work it is


def forward_sizes(model: Transformer) -> list[int]:
    """A list that grows by the number of tokens of every forward."""
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    return sizes


@pytest.mark.parametrize("num_slots", [1, 4, 100])
def test_a_prompt_is_read_once_and_a_last_token_never(num_slots: int) -> None:
    model, asked = network(), prompts(6)
    sizes = forward_sizes(model)
    groups = engine(model, num_slots=num_slots).sample(asked, 5, Limits(10))
    continued = sum(len(c.tokens) - 1 for group in groups for c in group)
    assert sum(sizes) == sum(map(len, asked)) + continued


@pytest.mark.parametrize("num_slots", [1, 3, 8])
def test_a_finished_sequence_frees_its_slot_at_once(num_slots: int) -> None:
    """A replay: every slot draws, the finished leave, the others are one forward, the queue moves up."""
    model = network()
    sizes = forward_sizes(model)
    (group,) = engine(model, num_slots=num_slots).sample([prompts(3)[2]], 20, Limits(10))
    queue = [len(c.tokens) for c in group]
    assert len(set(queue)) > 4
    active, expected = list[int](), [len(prompts(3)[2])]
    while queue or active:
        while queue and len(active) < num_slots:
            active.append(queue.pop(0))
        active = [left - 1 for left in active if left > 1]
        expected += [len(active)] if active else []
    assert sizes == expected


SLOT = 2 * 2 * 2 * 6 * (8 + 15) * 8
"""Bytes of a slot for a prompt of 8 tokens and 15 more: keys and values, layers, heads, size, float64."""


@pytest.mark.parametrize(
    ("free", "slots"), [(2 * 3 * SLOT, 3), (2 * 3 * SLOT - 1, 2), (SLOT, 1), (10**12, 64)]
)
def test_as_many_slots_as_half_of_the_memory_holds_and_the_same_samples(
    free: int, slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked, limits = network(), prompts(6), Limits(15, seed=3)
    assert max(map(len, asked)) == 8
    wanted = engine(model, num_slots=slots).sample(asked, 4, limits)
    sizes = forward_sizes(model)
    engine(model, num_slots=slots).sample(asked, 4, limits)
    with_slots = sizes.copy()
    sizes.clear()
    monkeypatch.setattr("gradhat.rollouts.engine.available", lambda: free)
    assert engine(model).sample(asked, 4, limits) == wanted
    assert sizes == with_slots


def test_a_sequence_that_no_memory_holds_is_a_model_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradhat.rollouts.engine.available", lambda: SLOT - 1)
    with pytest.raises(ModelError, match=r"GiB are free\. Lower max_new_tokens"):
        engine(network()).sample(prompts(6), 1, Limits(15))


def test_memory_is_taken_as_sequences_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 slots for 4,000 tokens are asked for, and every completion ends after a few."""
    model, rooms = network(room=4096), list[int]()
    step = KVCache.step
    monkeypatch.setattr(
        KVCache, "step", lambda cache, *args: (step(cache, *args), rooms.append(cache.layers[0].shape[3]))[0]
    )
    engine(model, stop_ids=range(0, VOCAB, 2)).sample(prompts(6), 20, Limits(4000))
    assert max(rooms) < 8 + 2 * GROWTH


# When it stops


def test_any_stop_token_ends_a_completion_and_is_kept_but_not_shown() -> None:
    model, chat = network(), Pieces(STOPS)
    groups = engine(model, chat=chat).sample(prompts(8), 4, Limits(30))
    ends = [c for group in groups for c in group if c.stop == "end"]
    assert len({c.tokens[-1] for c in ends}) > 3
    for completion in ends:
        assert completion.tokens[-1] in STOPS and not set(completion.tokens[:-1]) & set(STOPS)
        assert len(completion.logp) == len(completion.tokens)
        assert completion.text == chat.decode(completion.tokens[:-1])


def test_the_limit_ends_what_nothing_else_did() -> None:
    model, chat = network(), Pieces(STOPS)
    completions = [c for group in engine(model, chat=chat).sample(prompts(8), 4, Limits(5)) for c in group]
    cut = [c for c in completions if c.stop == "length"]
    assert 0 < len(cut) < len(completions)
    assert all(len(c.tokens) == 5 and c.text == chat.decode(c.tokens) for c in cut)
    assert not any(set(c.tokens) & set(STOPS) for c in cut)


def test_a_stop_token_at_the_limit_is_an_end() -> None:
    completions = engine(network()).sample([prompts(3)[2]], 60, Limits(1))[0]
    assert {c.stop for c in completions} == {"end", "length"}
    assert all((c.stop == "end") == (c.tokens[0] in STOPS) for c in completions)


def test_a_stop_string_cuts_the_text_and_keeps_the_tokens() -> None:
    """The plain reading: the shortest run of tokens whose text holds a string, cut at the earliest one."""
    model, chat, strings = network(), Pieces(STOPS), ("bca", "abca", "ccb")
    free = engine(model, chat=chat).sample(prompts(8), 6, Limits(30, seed=4))
    held = engine(model, chat=chat).sample(prompts(8), 6, Limits(30, seed=4, stop_strings=strings))
    across, inside = 0, 0
    for whole, found in zip(chain(*free), chain(*held), strict=True):
        texts = [chat.decode(whole.tokens[: n + 1]) for n in range(len(whole.tokens) - (whole.stop == "end"))]
        hits = [n for n, text in enumerate(texts) if any(s in text for s in strings)]
        if not hits:
            assert found == whole
            continue
        text = texts[hits[0]]
        cut = min(text.index(s) for s in strings if s in text)
        assert (found.stop, found.text) == ("string", text[:cut])
        assert found.tokens == whole.tokens[: hits[0] + 1]
        assert found.logp == whole.logp[: hits[0] + 1]
        across += not any(s in chat.pieces[found.tokens[-1]] for s in strings)
        inside += not any(text.endswith(s) for s in strings)
    assert across > 3 and inside > 3


@pytest.mark.parametrize("shown", [True, False], ids=["shown", "hidden"])
def test_a_stop_string_that_is_a_special_token_ends_with_that_token(tiny_model: Path, shown: bool) -> None:
    """Whether or not the text of a completion shows it."""
    chat = Chat.read(tiny_model)
    special = chat.whole_token("<|im_start|>")
    assert special is not None and special in chat.hidden_ids
    if shown:
        chat = replace(chat, hidden_ids=chat.hidden_ids - {special})
    ids = [chat.tokenizer.encode(letter, add_special_tokens=False).ids[0] for letter in "abcd"]
    model = network()
    sampled = [*ids[:2], special, *ids[2:]]
    held = Engine(model, chat)
    for strings, wanted in (
        (("<|im_start|>",), (sampled[:3], "string", "ab")),
        (("zz", "<|im_start|>"), (sampled[:3], "string", "ab")),
        (("c",), (sampled[:4], "string", "ab<|im_start|>" if shown else "ab")),
        (("d", "b"), (sampled[:2], "string", "a")),
        (("<|im_end|>",), (sampled, "length", "ab<|im_start|>cd" if shown else "abcd")),
    ):
        with forced(sampled):
            ((found,),) = held.sample([[1]], 1, Limits(len(sampled), stop_strings=strings))
        assert (list(found.tokens), found.stop, found.text) == wanted


@contextmanager
def forced(tokens: Sequence[int]) -> Iterator[None]:
    """Let the engine draw these tokens."""
    left = iter(tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "gradhat.rollouts.engine.draw",
            lambda logits, *_, **__: Draw(torch.tensor([next(left)] * len(logits)), torch.zeros(len(logits))),
        )
        yield


# What it refuses


def test_a_prompt_longer_than_the_context_is_a_model_error() -> None:
    model = network()
    fits = [1] * (ROOM - 4)
    assert len(engine(model, stop_ids=()).sample([fits], 1, Limits(4))[0][0].tokens) == 4
    with pytest.raises(ModelError, match=rf"{ROOM - 4} tokens.*max_new_tokens=5.*{ROOM} tokens.*Shorten"):
        engine(model).sample([[1], fits], 1, Limits(5))


def test_an_empty_prompt_is_a_model_error() -> None:
    with pytest.raises(ModelError, match="empty prompt"):
        engine(network()).sample([[1], []], 1, Limits(5))


@pytest.mark.parametrize("token", [-1, VOCAB, 10**6])
def test_a_token_that_the_model_does_not_know_is_a_model_error(token: int) -> None:
    with pytest.raises(ModelError, match=rf"token {token} .*0 to {VOCAB - 1}.*tokenizer that belongs"):
        engine(network()).sample([[1], [1, token]], 1, Limits(5))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_has_diverged_is_a_model_error(temperature: float) -> None:
    model = network()
    with torch.no_grad():
        model.norm.weight[3] = torch.nan
    with pytest.raises(ModelError, match="not finite"):
        engine(model).sample(prompts(2), 2, Limits(5, temperature=temperature))


def test_nothing_asked_is_nothing_sampled() -> None:
    assert engine(network()).sample([], 3, Limits(5)) == []
    assert engine(network()).sample(prompts(2), 0, Limits(5)) == [[], []]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"temperature": -0.1},
        {"temperature": 1e-50},
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": -0.1},
        {"min_p": 1.0},
        {"stop_strings": ("a", "")},
    ],
    ids=str,
)
def test_limits_out_of_range_are_config_errors(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ConfigError, match=rf"{name}=.*out of range. Use"):
        Limits(**{"max_new_tokens": 5, **wrong})


def test_limits_at_the_ends_of_their_ranges_sample() -> None:
    edges = Limits(1, temperature=1e-6, top_k=1, top_p=1e-9, min_p=0.999)
    found = engine(network()).sample(prompts(4), 1, edges)
    assert found == engine(network()).sample(prompts(4), 1, Limits(1, temperature=0))


def test_an_engine_without_slots_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="num_slots=0"):
        engine(network(), num_slots=0)


# What training makes of it


class StandingStill:
    """An optimiser with a learning rate of 0."""

    def accumulate(self) -> None:
        pass

    def step(self) -> Step:
        return Step(0.0, False)


def sampled(model: Transformer, limits: Limits) -> Trajectories:
    completions = engine(model).sample(prompts(4), 3, limits)
    rows = [(tuple(p), c) for p, group in zip(prompts(4), completions, strict=True) for c in group]
    records = [Record("", c.text, Verdict(0.0, {}, ""), c.stop) for _, c in rows]
    return pack([p for p, _ in rows], [c for _, c in rows], records, torch.arange(12) // 3, 0)


def mean_logp(evaluation: Evaluation, part: Trajectories) -> Tensor:
    return (evaluation.logp * part.mask).mean()


SAMPLING = "sampling/sampling_logp_difference/", "sampling/importance_sampling_ratio/"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_finds_what_sampling_recorded(dtype: torch.dtype) -> None:
    """On-policy ratios are 1: in float32 to 1e-4, in bfloat16 to 1e-3."""
    model = network(dtype, sharpness=2)
    policy = LanguagePolicy(model, temperature=0.8, token_budget=60)
    metrics = ascend(policy, StandingStill(), sampled(model, Limits(12, temperature=0.8)), mean_logp)
    bound = 1e-4 if dtype == torch.float32 else 1e-3
    assert metrics[SAMPLING[0] + "max"] <= bound
    assert all(abs(metrics[SAMPLING[1] + name] - 1) <= bound for name in ("min", "mean", "max"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("lengths", "new"),
    [((330, 40), 230), ((490, 505), 40), ((1995, 20), 9)],
    ids=["past 512 keys", "around 512 keys", "2,000 keys"],
)
def test_sampler_and_trainer_agree_at_every_length_in_any_company(
    dtype: torch.dtype, lengths: tuple[int, ...], new: int
) -> None:
    """One arithmetic for both: with another kernel on one side the gap in bfloat16 is 0.03 to 0.06 here."""
    model, random = network(dtype, sharpness=2, room=2100), np.random.default_rng(0)
    asked = [random.integers(VOCAB, size=n).tolist() for n in lengths]
    groups = engine(model, stop_ids=()).sample(asked, 2, Limits(new, seed=1))
    rows = [(tuple(prompt), c) for prompt, group in zip(asked, groups, strict=True) for c in group]
    # One of the completions is cut short, so that a short answer shares the micro-batch of long ones.
    rows[3] = (rows[3][0], rows[3][1]._replace(tokens=rows[3][1].tokens[:7], logp=rows[3][1].logp[:7]))
    records = [Record("", c.text, Verdict(0.0, {}, ""), c.stop) for _, c in rows]
    batch = pack([p for p, _ in rows], [c for _, c in rows], records, torch.arange(4) // 2, 0)
    policy = LanguagePolicy(model, token_budget=10_000)
    with torch.no_grad():
        together = policy.evaluate(batch).logp
        alone = policy.evaluate(batch.select([3])).logp
    gap = (together - batch.logp)[batch.mask].abs()
    bound = 1e-4 if dtype == torch.float32 else 1e-3
    assert gap.max() <= bound, f"mean {gap.mean():.5f}, max {gap.max():.5f}"
    assert (alone[0, :7] - together[3, :7]).abs().max() <= bound


def test_training_measures_how_far_sampling_was() -> None:
    """Sampled in bfloat16 and trained in float32: the difference of every token, over all micro-batches."""
    batch = sampled(network(torch.bfloat16, sharpness=2), Limits(12))
    policy = LanguagePolicy(network(torch.bfloat16, sharpness=2).float(), token_budget=60)
    metrics = ascend(policy, StandingStill(), batch, mean_logp)
    gap = (policy.evaluate(batch).logp.detach() - batch.logp)[batch.mask]
    assert len(policy.split(batch)) > 2 and gap.abs().max() > 0.01
    wanted = {
        SAMPLING[0] + "mean": gap.abs().mean(),
        SAMPLING[0] + "max": gap.abs().max(),
        SAMPLING[1] + "min": gap.exp().min(),
        SAMPLING[1] + "mean": gap.exp().mean(),
        SAMPLING[1] + "max": gap.exp().max(),
    }
    for name, value in wanted.items():
        assert metrics[name] == pytest.approx(float(value), abs=1e-5), name


def test_training_finds_a_logp_from_before_the_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradhat.rollouts.engine.draw", before_temperature_and_truncation)
    model = network(torch.float32, sharpness=2)
    policy = LanguagePolicy(model, temperature=0.8, token_budget=60)
    metrics = ascend(policy, StandingStill(), sampled(model, Limits(12, temperature=0.8)), mean_logp)
    assert metrics[SAMPLING[0] + "mean"] > 0.1 and metrics[SAMPLING[0] + "max"] > 0.5


def test_training_finds_a_sampler_with_stale_weights() -> None:
    """The engine decodes from a copy that did not follow the last update, of a hundredth of each weight."""
    model = network(torch.float32, sharpness=2)
    stale = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + 0.01 * torch.randn(weight.shape, generator=generator))
    policy = LanguagePolicy(model, token_budget=60)
    gap = {
        name: ascend(policy, StandingStill(), sampled(sampler, Limits(12)), mean_logp)[SAMPLING[0] + "max"]
        for name, sampler in (("fresh", model), ("stale", stale))
    }
    assert gap["fresh"] <= 1e-4 and gap["stale"] > 0.1
