"""Prompts as transformers tokenises them, and where an answer ends."""

import json
from pathlib import Path

import pytest
from tiny import BYTES, MERGES, SPECIAL, TEMPLATE, TOKENS, add_tokenizer, change_json
from transformers import AutoTokenizer

from gradhat.errors import ModelError
from gradhat.policies.language.chat import Chat
from gradhat.policies.language.weights import resolve

CONVERSATION = [
    {"role": "system", "content": "Answer with a number. "},
    {"role": "user", "content": "  What is 12+345 ?\n\n\tλ 漢字 🙂 it's"},
    {"role": "assistant", "content": "357"},
    {"role": "user", "content": "Sure?"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    add_tokenizer(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def smollm2() -> Chat:
    return Chat.read(resolve("smollm2-135m"))


@pytest.mark.parametrize("messages", [CONVERSATION, CONVERSATION[:2], CONVERSATION[1:2]])
def test_smollm2_prompts_equal_transformers(smollm2: Chat, messages: list[dict[str, str]]) -> None:
    theirs = AutoTokenizer.from_pretrained(resolve("smollm2-135m"))
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert smollm2.encode(messages) == ids
    assert smollm2.decode(ids, special=True) == theirs.decode(ids, skip_special_tokens=False)
    assert smollm2.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_smollm2_special_tokens_and_digits(smollm2: Chat) -> None:
    ids = smollm2.encode([{"role": "system", "content": "x"}, {"role": "user", "content": "x  907"}])
    assert (ids[0], ids.count(1), ids.count(2)) == (1, 3, 2)
    assert smollm2.stop_ids == {2}
    end = ids.index(2, ids.index(2) + 1)
    assert [smollm2.decode([index]) for index in ids[end - 4 : end]] == ["  ", "9", "0", "7"]
    assert smollm2.decode(ids[-3:]) == "assistant\n"


def test_an_answer_ends_where_the_template_ends_it(folder: Path) -> None:
    # Some models declare only the end of a document, which they never sample in a conversation.
    change_json(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
    assert Chat.read(folder).stop_ids == {0, 2}


def test_only_the_first_token_after_an_answer_is_an_end(folder: Path) -> None:
    template = TEMPLATE.replace("<|im_end|>", "<|im_end|><|im_start|>")
    change_json(folder / "tokenizer_config.json", chat_template=template, eos_token="<|endoftext|>")
    assert Chat.read(folder).stop_ids == {0, 2}


def test_every_declared_end_is_a_stop(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 5}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    assert Chat.read(folder).stop_ids == {2, 5, 7, 9}


def test_a_template_that_rewrites_the_answer_adds_no_stop(folder: Path) -> None:
    # The answer is not found again. The first special token of the whole text would be a wrong end.
    template = TEMPLATE.replace("{{ message['content'] }}", "{{ message['content'] | upper }}")
    change_json(folder / "tokenizer_config.json", chat_template=template, eos_token="<|endoftext|>")
    assert Chat.read(folder).stop_ids == {0}


def test_no_special_token_is_added_to_what_the_template_writes(folder: Path) -> None:
    plain = Chat.read(folder).encode(CONVERSATION)
    bos = {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
    pieces = [
        {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
    ]
    processor = {"type": "TemplateProcessing", "single": pieces, "pair": pieces}
    change_json(
        folder / "tokenizer.json", post_processor=processor | {"special_tokens": {"<|endoftext|>": bos}}
    )
    assert Chat.read(folder).tokenizer.encode("x").ids[0] == 0
    assert Chat.read(folder).encode(CONVERSATION) == plain


@pytest.mark.parametrize("place", ["file", "list", "string"])
def test_a_template_is_found_wherever_it_is_kept(place: str, folder: Path) -> None:
    template = "{{ bos_token }}" + TEMPLATE
    bos = {"bos_token": {"content": "<|endoftext|>", "lstrip": False}}
    if place == "file":
        (folder / "chat_template.jinja").write_text(template)
        change_json(folder / "tokenizer_config.json", **bos)
    else:
        named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": template}]
        kept = named if place == "list" else template
        change_json(folder / "tokenizer_config.json", chat_template=kept, **bos)
    ids = Chat.read(folder).encode([{"role": "user", "content": "hello"}])
    assert ids[:2] == [0, 1]


def test_a_tokenizer_without_tokenizer_json(folder: Path) -> None:
    fast = Chat.read(folder).encode(CONVERSATION)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(TOKENS)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]))
    added = {str(index): {"content": token, "special": True} for index, token in enumerate(SPECIAL)}
    change_json(
        folder / "tokenizer_config.json",
        tokenizer_class="GPT2Tokenizer",
        added_tokens_decoder=added,
        unk_token="<|endoftext|>",
    )
    assert Chat.read(folder).encode(CONVERSATION) == fast


def test_no_chat_template(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", chat_template=None)
    with pytest.raises(ModelError, match=r"no chat template.*instruction-tuned"):
        Chat.read(folder)


def test_no_tokenizer_config_is_no_chat_template(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="no chat template"):
        Chat.read(folder)


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no tokenizer\.json.*Copy the tokenizer files"):
        Chat.read(tmp_path)


def test_a_damaged_tokenizer(folder: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text[: len(text) // 2])
    with pytest.raises(ModelError, match=r"tokenizer\.json failed.*damaged"):
        Chat.read(folder)


@pytest.mark.parametrize(
    "template",
    ["{% for x in messages %}", "{{ raise_exception('no system role') }}", "{{ messages[9]['role'] }}"],
)
def test_a_template_that_fails(template: str, folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", chat_template=template)
    with pytest.raises(ModelError, match=r"chat template fails.*\['user', 'assistant'\]"):
        Chat.read(folder)


def test_the_conversation_that_a_template_refuses_is_named(folder: Path) -> None:
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    change_json(folder / "tokenizer_config.json", chat_template=refuses + TEMPLATE)
    chat = Chat.read(folder)
    with pytest.raises(ModelError, match=r"\['system', 'user'\]: no system role"):
        chat.encode(CONVERSATION[:2])


def test_bytes_that_are_no_text_decode_without_an_error(folder: Path) -> None:
    half = TOKENS.index(BYTES[BYTES.index("â")])
    assert Chat.read(folder).decode([half]) == "\N{REPLACEMENT CHARACTER}"
