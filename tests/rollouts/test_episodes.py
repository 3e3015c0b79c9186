"""Episodes with a scripted sampler and a scripted world, so that every reward and every token is known."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from gradhat.errors import TaskError
from gradhat.estimators.group import silent
from gradhat.policies.language.chat import Chat, Message
from gradhat.policies.language.policy import LanguagePolicy
from gradhat.policies.language.weights import load
from gradhat.rollouts.engine import Completion, Engine, Limits
from gradhat.rollouts.episodes import MOST_TOO_LONG, Experience, Fitting, Start, collect, join, pack, play
from gradhat.trajectories import Record, Trajectories, Verdict

LIMITS = Limits(8, seed=100)
GROUP = 3


class World(gymnasium.Env[list[Message], str]):
    """Asks for the number that its seed is; what is worth how much is scripted by `rewards`."""

    def __init__(self, rewards: Callable[[int, str], float], named: str = "verdict") -> None:
        self.rewards = rewards
        self.named = named

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[list[Message], dict[str, Any]]:
        assert seed is not None
        self.number = seed
        return [{"role": "user", "content": f"Say {seed}"}], {}

    def step(self, action: str) -> tuple[list[Message], float, bool, bool, dict[str, Any]]:
        found: Any = self.rewards(self.number, action)
        verdict = found if isinstance(found, Verdict) else Verdict(found, {}, f"{self.number} {action}")
        return [], verdict.reward, True, False, {self.named: verdict}


class Script:
    """A sampler whose sample i of the k-th prompt it ever saw is `answer(k, i)`. It keeps what it was
    asked."""

    def __init__(self, answer: Callable[[int, int], Completion]) -> None:
        self.answer = answer
        self.calls: list[tuple[list[tuple[int, ...]], int, Limits]] = []

    def sample(self, prompts: Sequence[Sequence[int]], n: int, limits: Limits) -> list[list[Completion]]:
        before = sum(len(asked) for asked, _, _ in self.calls)
        self.calls.append(([tuple(p) for p in prompts], n, limits))
        return [[self.answer(before + k, i) for i in range(n)] for k in range(len(prompts))]


def says(text: str, length: int = 1) -> Completion:
    """`length` tokens that stand for `text`, each with a log-probability of its own."""
    tokens = tuple(range(10, 10 + length))
    return Completion(tokens, tuple(-0.5 * (t + 1) for t in range(length)), "end", text)


def by_sample(_k: int, i: int) -> Completion:
    return says(str(i), 1 + i)


@pytest.fixture(scope="module")
def chat(tiny_model: Path) -> Chat:
    return Chat.read(tiny_model)


def starts(rewards: Callable[[int, str], float], seeds: Sequence[int]) -> Iterator[Start]:
    return iter([Start(lambda: World(rewards), seed) for seed in seeds])


def gathered(
    chat: Chat,
    sampler: Script,
    rewards: Callable[[int, str], float],
    *,
    num_prompts: int = 4,
    max_replacements: int = 0,
    seeds: Iterator[Start] | None = None,
) -> Experience:
    return collect(
        seeds or starts(rewards, range(50)),
        chat,
        sampler,
        LIMITS,
        num_prompts=num_prompts,
        group_size=GROUP,
        version=7,
        silent=silent,
        max_replacements=max_replacements,
    )


# One round


def test_an_episode_is_laid_out_with_its_reward_at_the_last_token(chat: Chat) -> None:
    script = Script(by_sample)
    found = play(
        list(starts(lambda number, text: number + float(text) / 10, [4, 9])),
        chat,
        script,
        LIMITS,
        group_size=GROUP,
        first_group=5,
        version=7,
    )
    prompts = [tuple(chat.encode([{"role": "user", "content": f"Say {n}"}])) for n in (4, 9)]
    assert script.calls == [(prompts, GROUP, LIMITS)]
    assert found.observations == [p for p in prompts for _ in range(GROUP)]
    block = {
        "actions": [[10, 0, 0], [10, 11, 0], [10, 11, 12]],
        "mask": [[True, False, False], [True, True, False], [True, True, True]],
        "logp": [[-0.5, 0, 0], [-0.5, -1.0, 0], [-0.5, -1.0, -1.5]],
        "terminated": [[True, False, False], [False, True, False], [False, False, True]],
        "truncated": [[False] * 3] * 3,
    }
    for name, rows in block.items():
        assert getattr(found, name).tolist() == rows * 2, name
    rewards = torch.tensor([[4.0, 0, 0], [0, 4.1, 0], [0, 0, 4.2], [9.0, 0, 0], [0, 9.1, 0], [0, 0, 9.2]])
    torch.testing.assert_close(found.rewards, rewards)
    assert found.group.tolist() == [5, 5, 5, 6, 6, 6]
    assert found.version.tolist() == [7] * 6
    assert [(r.prompt, r.completion, r.verdict.why, r.stop) for r in found.records] == [
        (f"Say {n}", str(i), f"{n} {i}", "end") for n in (4, 9) for i in range(GROUP)
    ]


def test_the_types_are_those_of_the_nouns(chat: Chat) -> None:
    found = play(list(starts(lambda *_: 1.0, [1])), chat, Script(by_sample), LIMITS, group_size=GROUP)
    types = {name: getattr(found, name).dtype for name in ("actions", "group", "version")}
    assert set(types.values()) == {torch.int64}
    assert {found.logp.dtype, found.rewards.dtype} == {torch.float32}
    assert {found.mask.dtype, found.terminated.dtype, found.truncated.dtype} == {torch.bool}


def test_sampled_tokens_are_never_retokenised(chat: Chat) -> None:
    """Each of these texts tokenises to other ids than those that were sampled."""
    (end,) = chat.tokenizer.encode("<|im_end|>", add_special_tokens=False).ids
    spelled = [chat.tokenizer.encode(letter).ids[0] for letter in "<|im_end|>"]
    half_a_letter = chat.tokenizer.encode("é").ids[:1]
    sampled = [(*spelled, end), (*half_a_letter, end), (*half_a_letter, *half_a_letter)]
    texts = [chat.decode(list(ids[:-1])) for ids in sampled]
    for ids, text in zip(sampled, texts, strict=True):
        assert tuple(chat.tokenizer.encode(text).ids) not in (ids, ids[:-1])
    script = Script(lambda k, i: Completion(sampled[i], (-1.0,) * len(sampled[i]), "end", texts[i]))
    found = play(list(starts(lambda *_: 1.0, [1])), chat, script, LIMITS, group_size=3)
    assert [tuple(row[mask].tolist()) for row, mask in zip(found.actions, found.mask, strict=True)] == sampled
    assert [r.completion for r in found.records] == texts


def test_the_verdict_of_somebody_elses_environment_is_made_plain(chat: Chat) -> None:
    found: Any = Verdict(torch.tensor([0.5]), {"length": np.int64(3)}, "half \ud800")  # type: ignore[arg-type]
    batch = play(
        [Start(lambda: World(lambda *_: found), 1)], chat, Script(by_sample), LIMITS, group_size=GROUP
    )
    assert [record.verdict for record in batch.records] == [Verdict(0.5, {"length": 3.0}, "half ?")] * GROUP
    assert batch.returns().tolist() == [0.5] * GROUP


@pytest.mark.parametrize("reward", [math.nan, 1e39, None, "1"])
def test_a_verdict_that_is_no_number_is_a_task_error(chat: Chat, reward: Any) -> None:
    with pytest.raises(TaskError, match="a verdict into its info that cannot be used"):
        play([Start(lambda: World(lambda *_: reward), 1)], chat, Script(by_sample), LIMITS, group_size=GROUP)


def test_an_environment_without_a_verdict_is_a_task_error(chat: Chat) -> None:
    start = Start(lambda: World(lambda *_: 1.0, named="score"), 1)
    with pytest.raises(TaskError, match=r"\['score'\].*info\['verdict'\]"):
        play([start], chat, Script(by_sample), LIMITS, group_size=GROUP)


def test_a_completion_without_tokens_is_refused() -> None:
    """Its reward would stand in the last column, where the mask is false, and be lost."""
    records = [Record("", "", Verdict(1.0, {}, ""), "end")] * 2
    with pytest.raises(ValueError, match="without tokens"):
        pack([(1,), (1,)], [says("a", 2), says("", 0)], records, torch.tensor([0, 0]), 0)


# Rounds of replacements


def loud_where(loud: Sequence[int]) -> Callable[[int, str], float]:
    """Rewards that differ within the groups of `loud` start states; the others get 1 for all or 0 for all."""
    return lambda number, text: float(text == "1") if number in loud else float(number % 2)


def test_fresh_prompts_replace_silent_groups_until_the_batch_has_its_size(chat: Chat) -> None:
    """Starts 0 to 3, of which 2 are silent; then 4 and 5, of which 1 is; then 6."""
    script, rewards = Script(by_sample), loud_where([1, 2, 5, 6])
    remaining = starts(rewards, range(50))
    found = gathered(chat, script, rewards, max_replacements=10, seeds=remaining)
    assert [len(asked) for asked, _, _ in script.calls] == [4, 2, 1]
    assert next(remaining).seed == 7
    assert len(found.sampled) == 7 * GROUP
    assert found.sampled.group.tolist() == [g for g in range(7) for _ in range(GROUP)]
    chosen = found.sampled.select(found.chosen)
    assert chosen.group.tolist() == [g for g in (1, 2, 5, 6) for _ in range(GROUP)]
    assert [r.prompt for r in chosen.records[::GROUP]] == ["Say 1", "Say 2", "Say 5", "Say 6"]
    assert not silent(chosen.returns(), chosen.group).any()
    # What is said of the policy is said of every episode: the chosen ones are those that it half knows.
    means = found.sampled.returns().view(7, GROUP).mean(1)
    torch.testing.assert_close(means, torch.tensor([0, 1 / 3, 1 / 3, 1, 0, 1 / 3, 1 / 3]))


def test_after_the_last_replacement_silent_groups_fill_the_batch(chat: Chat) -> None:
    """Starts 0 to 3 hold one loud group, and the 2 replacements that are left one more."""
    script, rewards = Script(by_sample), loud_where([2, 5, 6])
    remaining = starts(rewards, range(50))
    found = gathered(chat, script, rewards, max_replacements=2, seeds=remaining)
    assert [len(asked) for asked, _, _ in script.calls] == [4, 2]
    assert next(remaining).seed == 6
    assert len(found.sampled) == 6 * GROUP
    assert found.sampled.select(found.chosen).group.tolist()[::GROUP] == [2, 5, 0, 1]
    assert len(found.chosen) == 4 * GROUP


@pytest.mark.parametrize("loud", [range(50), []])
def test_nothing_is_replaced_when_nothing_is_silent_or_nothing_may_be(
    chat: Chat, loud: Sequence[int]
) -> None:
    script, rewards = Script(by_sample), loud_where(loud)
    found = gathered(chat, script, rewards, max_replacements=10 if loud else 0)
    assert len(script.calls) == 1
    assert found.chosen.tolist() == list(range(4 * GROUP))
    assert found.sampled.version.tolist() == [7] * (4 * GROUP)


def test_all_silent_ends_at_the_last_replacement(chat: Chat) -> None:
    script, rewards = Script(by_sample), loud_where([])
    found = gathered(chat, script, rewards, max_replacements=9)
    assert [len(asked) for asked, _, _ in script.calls] == [4, 4, 4, 1]
    assert found.chosen.tolist() == list(range(4 * GROUP))


def test_rounds_of_different_lengths_are_padded_and_kept_apart(chat: Chat) -> None:
    """The second round is longer than the first, the third shorter: a row index must not slip, nor a
    column."""
    rewards = loud_where([4, 6])
    script = Script(lambda k, i: says(str(i), {4: 5, 5: 2, 6: 1}.get(k, 3)))
    found = gathered(chat, script, rewards, num_prompts=4, max_replacements=5)
    lengths = found.sampled.mask.sum(-1).tolist()
    assert found.sampled.mask.shape == (9 * GROUP, 5)
    assert lengths == [n for n in (3, 3, 3, 3, 5, 2, 1, 3, 3) for _ in range(GROUP)]
    assert found.sampled.select(found.chosen).group.tolist()[::GROUP] == [4, 6, 0, 1]


def test_the_first_draw_is_known_from_what_replaced_it(chat: Chat) -> None:
    found = gathered(chat, Script(by_sample), loud_where([1, 2, 5, 6]), max_replacements=10)
    assert found.first.tolist() == list(range(4 * GROUP))


@pytest.mark.parametrize("more", [0, 1])
def test_a_start_that_is_too_long_is_passed_over_and_counted(chat: Chat, more: int) -> None:
    """Seeds of one digit fit, those of two do not by one token."""
    (one,) = {len(chat.encode([{"role": "user", "content": f"Say {n}"}])) for n in range(10)}
    drawn = Fitting(starts(lambda *_: 1.0, [3, 10, 11, 4, 12, 5]), chat, one + more)
    assert [next(drawn).seed for _ in range(3)] == ([3, 10, 11] if more else [3, 4, 5])
    assert drawn.dropped == (0 if more else 3)


def test_starts_that_are_all_too_long_are_an_error(chat: Chat) -> None:
    seeds = [1, *range(10, 10 + MOST_TOO_LONG), 2]
    longest = len(chat.encode([{"role": "user", "content": "Say 1"}]))
    drawn = Fitting(starts(lambda *_: 1.0, seeds), chat, longest)
    next(drawn)
    with pytest.raises(TaskError, match=rf"100 in a row .* {longest + 2} tokens.*holds {longest}\. Shorten"):
        next(drawn)
    assert next(drawn).seed == 2


def test_a_group_is_never_cut(chat: Chat) -> None:
    """Members at their group's mean have no advantage. Without them the rest is a choice by reward."""
    with pytest.raises(ValueError, match=r"groups of 3: found a `silent` that differs within a group"):
        collect(
            starts(lambda _, text: float(text), range(50)),
            chat,
            Script(by_sample),
            LIMITS,
            num_prompts=4,
            group_size=GROUP,
            version=0,
            silent=lambda returns, _: returns == 1.0,
            max_replacements=4,
        )


def test_a_start_that_comes_again_in_a_later_round_is_answered_anew(chat: Chat, tiny_model: Path) -> None:
    engine = Engine(load(tiny_model), chat)
    again = iter([Start(lambda: World(lambda *_: 1.0), 3) for _ in range(6)])
    found = collect(
        again,
        chat,
        engine,
        LIMITS,
        num_prompts=2,
        group_size=2,
        version=0,
        silent=silent,
        max_replacements=4,
    )
    rows = {tuple(row.tolist()) for row in found.sampled.actions}
    assert len(rows) == len(found.sampled) == 12


# Batches


def batch_of(texts: Sequence[tuple[str, int]], first: int) -> Trajectories:
    completions = [says(text, length) for text, length in texts]
    records = [
        Record("?", c.text, Verdict(float(first + i), {}, ""), c.stop) for i, c in enumerate(completions)
    ]
    rows = [(first + i,) for i in range(len(texts))]
    return pack(rows, completions, records, torch.arange(len(texts)) + first, first)


def test_joining_pads_to_the_longest() -> None:
    short, long = batch_of([("a", 1), ("b", 2)], 0), batch_of([("c", 4)], 2)
    both = join([short, long])
    wanted = batch_of([("a", 1), ("b", 2), ("c", 4)], 0)
    for name in ("actions", "mask", "logp", "rewards", "terminated", "truncated", "group"):
        ours, theirs = getattr(both, name), getattr(wanted, name)
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), name
    assert both.observations == wanted.observations and both.records == wanted.records
    assert both.version.tolist() == [0, 0, 2]
    assert join([long]).actions.tolist() == long.actions.tolist()


# The whole way


def test_training_evaluates_the_episodes_as_they_were_sampled(chat: Chat, tiny_model: Path) -> None:
    """Engine, environment, layout and tree-packed forward agree on every token: log-ratios are 0 to 1e-4."""
    model, limits = load(tiny_model), Limits(12, temperature=0.8, seed=1)
    found = play(
        list(starts(lambda number, text: float(len(text)), [1, 22, 333])),
        chat,
        Engine(model, chat, num_slots=4),
        limits,
        group_size=5,
    )
    logp = LanguagePolicy(model, temperature=0.8, token_budget=10_000).evaluate(found).logp
    assert found.mask.sum() > 60
    assert (logp - found.logp).abs()[found.mask].max() <= 1e-4
    assert found.returns().tolist() == [float(len(r.completion)) for r in found.records]
