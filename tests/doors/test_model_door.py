"""Whatever a model folder, a GGUF file or a chat template holds: the outcome is a model or one of our
errors."""

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import damaged, trials
from hypothesis import given
from hypothesis import strategies as st

from gradhat.errors import GradhatError, ModelError
from gradhat.policies.language import template
from gradhat.policies.language.chat import Chat
from gradhat.policies.language.config import parse_config
from gradhat.policies.language.gguf import convert
from gradhat.policies.language.transformer import Transformer
from gradhat.policies.language.weights import convert_whole, load
from gradhat.rollouts.engine import Engine, Limits

sys.path.insert(0, str(Path(__file__).parents[1] / "policies" / "language"))
from tiny import TEMPLATE, write_gguf

pytestmark = pytest.mark.parametrize("examples", [30, pytest.param(500, marks=pytest.mark.slow)])

NUMBERS = st.one_of(
    st.integers(-3, 70),
    st.integers(),
    st.floats(),
    st.sampled_from([0, -8, 7, 8.0, 2.0, 1e-5, 2**31, 2**63, 10**30, True, False]),
)
TEXT = st.text(max_size=8) | st.sampled_from(["8", "1e-5", "big", "x", "default", "llama3", "llama", "qwen3"])
JSON = st.recursive(
    st.none() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
ROPE = st.fixed_dictionaries(
    {},
    optional={
        "rope_type": st.just("llama3") | JSON,
        "factor": JSON,
        "low_freq_factor": JSON,
        "high_freq_factor": JSON,
        "original_max_position_embeddings": JSON,
        "rope_theta": JSON,
    },
)
KEYS = [
    *("model_type", "hidden_act", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps"),
    *("rope_theta", "rope_scaling", "rope_parameters", "sliding_window", "use_sliding_window", "layer_types"),
    *(
        "max_window_layers",
        "attention_bias",
        "mlp_bias",
        "tie_word_embeddings",
        "eos_token_id",
        "num_experts",
    ),
    *("partial_rotary_factor", "quantization_config", "bos_token_id", "auto_map", "architectures"),
]
CONFIG = st.dictionaries(st.sampled_from(KEYS), JSON | ROPE, min_size=1, max_size=3)


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_model, tmp_path / "copy")
    return tmp_path / "copy"


def used(folder: Path) -> None:
    """Read the folder and sample from it."""
    chat, network = Chat.read(folder), load(folder)
    prompt = chat.encode([{"role": "user", "content": "3 + 4?"}])
    Engine(network, chat).sample([prompt], 1, Limits(2))


def tried(folder: Path) -> bool:
    """Whether the folder is a model; an error of this project says why not."""
    try:
        used(folder)
    except GradhatError as error:
        assert isinstance(error, ModelError) and len(str(error)) > 30
        return False
    return True


def test_the_folder_that_is_changed_is_a_model(copy: Path, examples: int) -> None:
    assert tried(copy)


def test_any_value_in_the_config(copy: Path, examples: int) -> None:
    described = json.loads((copy / "config.json").read_text())
    outcomes = set[bool]()

    @trials(examples)
    @given(changes=CONFIG)
    def run(changes: dict[str, Any]) -> None:
        (copy / "config.json").write_text(json.dumps(described | changes))
        outcomes.add(tried(copy))

    run()
    assert outcomes == {True, False}


def test_any_number_in_the_config_is_a_shape_or_an_error(tiny_model: Path, examples: int) -> None:
    """The shape is built too: what is accepted computes."""
    described = json.loads((tiny_model / "config.json").read_text()) | {
        "vocab_size": 8,
        "num_hidden_layers": 1,
    }
    keys = st.sampled_from(KEYS[2:10])

    @trials(examples)
    @given(changes=st.dictionaries(keys, st.integers(-2, 40) | JSON, max_size=4), family=st.integers(0, 2))
    def run(changes: dict[str, Any], family: int) -> None:
        name = ("llama", "qwen2", "qwen3")[family]
        try:
            config = parse_config(described | {"model_type": name} | changes, Path("folder"))
        except ModelError:
            return
        sizes = (config.hidden_size, config.intermediate_size, config.vocab_size, config.head_dim)
        if config.num_layers > 4 or max(sizes) > 512:
            return
        with torch.no_grad():
            one = torch.tensor([0])
            hidden = Transformer(config)(one, one, lambda _layer, q, _k, _v: q.flatten(1))
        assert hidden.shape == (1, config.hidden_size)

    run()


FILES = ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "added_tokens.json"]
TOKEN_KEYS = [
    *("tokenizer_class", "bos_token", "eos_token", "pad_token", "unk_token", "chat_template", "auto_map"),
    *("added_tokens_decoder", "extra_special_tokens", "additional_special_tokens", "model_max_length"),
    *(
        "add_prefix_space",
        "add_bos_token",
        "eos_token_id",
        "clean_up_tokenization_spaces",
        "<|im_end|>",
        "legacy",
    ),
    *("name_or_path", "tokenizer_file", "vocab_file", "split_special_tokens"),
]
CLASSES = st.sampled_from(["LlamaTokenizer", "Qwen2Tokenizer", "GPT2Tokenizer", "T5Tokenizer", "Nothing"])


def test_any_value_beside_the_tokenizer(copy: Path, examples: int) -> None:
    before = {name: (copy / name).read_text() if (copy / name).exists() else None for name in FILES}

    @trials(examples)
    @given(st.sampled_from(FILES), st.dictionaries(st.sampled_from(TOKEN_KEYS), JSON | CLASSES, max_size=3))
    def run(name: str, changes: dict[str, Any]) -> None:
        for kept, text in before.items():
            (copy / kept).unlink(missing_ok=True)
            if text is not None:
                (copy / kept).write_text(text)
        (copy / name).write_text(json.dumps(json.loads(before[name] or "{}") | changes))
        tried(copy)

    run()


def test_any_value_in_the_tokenizer(copy: Path, examples: int) -> None:
    described = (copy / "tokenizer.json").read_text()

    @trials(examples)
    @given(st.randoms(use_true_random=False), JSON, st.integers(1, 3))
    def run(chance: random.Random, value: Any, depth: int) -> None:
        changed = place = json.loads(described)
        for _ in range(depth):
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = chance.choice(keys)
            if not isinstance(place[key], dict | list) or not place[key]:
                break
            place, parent, last = place[key], place, key
        else:
            place, key = parent, last
        place[key] = value
        (copy / "tokenizer.json").write_text(json.dumps(changed))
        tried(copy)

    run()


def test_any_index(copy: Path, examples: int) -> None:
    (copy / "model.safetensors").rename(copy / "part.safetensors")
    names = st.sampled_from(["part.safetensors", "../part.safetensors", "config.json", "/dev/zero", ".", ""])

    @trials(examples)
    @given(JSON | st.dictionaries(TEXT, names | JSON, max_size=3))
    def run(listed: Any) -> None:
        (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
        whole = isinstance(listed, dict) and set(map(str, listed.values())) == {"part.safetensors"}
        assert tried(copy) == whole

    run()


def test_any_bytes_in_any_file(copy: Path, examples: int) -> None:
    kept = {file.name: file.read_bytes() for file in copy.iterdir()}

    @trials(examples)
    @given(st.sampled_from(sorted(kept)), st.data())
    def run(name: str, data: st.DataObject) -> None:
        for file, contents in kept.items():
            (copy / file).write_bytes(contents)
        (copy / name).write_bytes(damaged(kept[name], data))
        tried(copy)

    run()


def test_any_bytes_as_gguf(tmp_path: Path, examples: int) -> None:
    file, folder = tmp_path / "model.gguf", tmp_path / "folder"
    write_gguf(file, quantisation="Q8_0")
    whole = file.read_bytes()

    @trials(examples)
    @given(st.data())
    def run(data: st.DataObject) -> None:
        file.write_bytes(damaged(whole, data))
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            convert_whole(file, folder)
        except ModelError:
            return
        tried(folder)

    run()


GGUF_VALUES = st.one_of(NUMBERS.filter(lambda n: isinstance(n, int) and 0 <= n < 2**32), st.text(max_size=6))
GGUF_KEYS = [
    *("context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"),
    *("attention.head_count_kv", "attention.key_length", "expert_count", "rope.scaling.type"),
]


def test_any_value_in_gguf(tmp_path: Path, examples: int) -> None:
    file, folder = tmp_path / "model.gguf", tmp_path / "folder"

    @trials(examples)
    @given(st.dictionaries(st.sampled_from(GGUF_KEYS), GGUF_VALUES, max_size=2))
    def run(values: dict[str, Any]) -> None:
        file.unlink(missing_ok=True)
        write_gguf(file, metadata=values)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            convert(file, folder)
        except ModelError:
            return
        tried(folder)

    run()


PIECES = st.sampled_from(
    [
        TEMPLATE,
        "{% for m in messages %}",
        "{% endfor %}",
        "{{ m.content }}",
        "{{ messages[0].content | upper }}",
        "{{ messages[-1]['content'][0] }}",
        "{% set x = 'a' * 100000 %}{{ x ~ x ~ x }}",
        "{{ range(1000000) | list }}",
        "{{ 1 / 0 }}",
        "{% if x is defined %}",
        "{% endif %}",
        "{{ raise_exception('no') }}",
        "{{ messages | tojson }}",
        "{{ bos_token + eos_token }}",
        "{{ strftime_now('%Y') }}",
        "{% macro f(a) %}{{ f(a) }}{% endmacro %}{{ f(1) }}",
        "{% include 'x' %}",
        "{% generation %}{{ 1 }}{% endgeneration %}",
        "{{",
        "%}",
        "{% break %}",
        "{{ namespace(a=1).a }}{{ dict(b=2) }}{{ cycler('a').next() }}{{ joiner() }}",
    ]
)


def test_any_template(copy: Path, examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template, "SECONDS", 0.5)

    @trials(examples)
    @given(st.lists(PIECES | st.text(max_size=6), max_size=5).map("".join))
    def run(text: str) -> None:
        (copy / "chat_template.jinja").write_text(text, encoding="utf-8")
        tried(copy)

    run()
