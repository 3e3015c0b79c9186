"""Reading prompts at once and continuing them token by token, against one full forward for each sequence."""

import pytest
import torch
from small import SHAPES, VOCAB, causal, network, tokens
from torch import Tensor

from gradhat.policies.language import cache
from gradhat.policies.language.cache import PROMPTS_AT_ONCE, KVCache, read
from gradhat.policies.language.transformer import Transformer

ROOM = 40
PROMPTS = {"long": tokens(9), "one": tokens(1), "middle": tokens(4, 1)}
# What happens before each step: whom to admit, which slots to release. Slots are reused by shorter and
# by longer sequences; the first, the last, a middle one and all of them are released.
SCHEDULE: list[tuple[list[str], list[int]]] = [
    (["long", "one"], []),
    ([], []),
    (["middle", "middle"], [0]),
    ([], [2, 1]),
    (["one", "one", "long"], []),
    ([], [3]),
    (["middle"], [2, 1, 0]),
    ([], []),
]


def last_state(model: Transformer, ids: tuple[int, ...]) -> Tensor:
    return model(torch.tensor(ids), torch.arange(len(ids)), causal)[-1]


@pytest.mark.parametrize("growth", [cache.GROWTH, 1, 5], ids=["whole", "token by token", "in fives"])
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_a_step_equals_a_full_forward_however_slots_come_and_go(
    shape: str, growth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "GROWTH", growth)
    model = network(shape)
    trunks = dict(zip(PROMPTS, read(model, [list(p) for p in PROMPTS.values()]), strict=True))
    slots = KVCache(model.config, 5, ROOM, model.embed.weight)
    expected: list[tuple[int, ...]] = []
    for time, (admitted, released) in enumerate(SCHEDULE):
        for slot in released:
            slots.release(slot)
            expected[slot] = expected[-1]
            expected.pop()
        for name in admitted:
            slots.admit(trunks[name].store, 1)
            expected.append(PROMPTS[name])
        drawn = tokens(len(expected), seed=time)
        expected = [(*ids, token) for ids, token in zip(expected, drawn, strict=True)]
        found = slots.step(model, torch.tensor(drawn))
        wanted = torch.stack([last_state(model, ids) for ids in expected])
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
        assert slots.lengths.tolist() == [len(ids) for ids in expected] + [0] * (5 - len(expected))


@torch.no_grad()
def test_copies_of_a_prompt_go_their_own_ways() -> None:
    model = network()
    (trunk,) = read(model, [list(PROMPTS["long"])])
    slots = KVCache(model.config, 3, ROOM, model.embed.weight)
    slots.admit(trunk.store, 3)
    branches = torch.tensor([tokens(4, seed=i) for i in range(3)])
    for column in branches.T:
        found = slots.step(model, column)
    wanted = torch.stack([last_state(model, (*PROMPTS["long"], *b)) for b in branches.tolist()])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)


@torch.no_grad()
def test_the_last_place_of_a_slot_can_be_used() -> None:
    model = network()
    (trunk,) = read(model, [list(PROMPTS["middle"])])
    slots = KVCache(model.config, 1, 6, model.embed.weight)
    slots.admit(trunk.store, 1)
    slots.step(model, torch.tensor([1]))
    found = slots.step(model, torch.tensor([2]))
    torch.testing.assert_close(found[0], last_state(model, (*PROMPTS["middle"], 1, 2)), rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_prompts_read_at_once_equal_prompts_read_alone(shape: str) -> None:
    model = network(shape)
    prompts = [tokens(1 + 5 * i % 13, seed=i) for i in range(2 * PROMPTS_AT_ONCE + 3)]
    for prompt, trunk in zip(prompts, read(model, [list(p) for p in prompts]), strict=True):
        torch.testing.assert_close(trunk.state, last_state(model, prompt), rtol=0, atol=1e-10)
        (alone,) = read(model, [list(prompt)])
        torch.testing.assert_close(trunk.store, alone.store, rtol=0, atol=1e-10)
        assert trunk.store.shape[3] == len(prompt)


def test_every_prompt_token_is_read_once_in_forwards_of_bounded_size() -> None:
    model, read_at_once = network(), list[int]()
    model.register_forward_pre_hook(lambda _, args: read_at_once.append(len(args[0])))
    count = 2 * PROMPTS_AT_ONCE + 1
    read(model, [[i % VOCAB] * 3 for i in range(count)])
    assert read_at_once == [3 * PROMPTS_AT_ONCE, 3 * PROMPTS_AT_ONCE, 3]
    assert read(model, []) == []
