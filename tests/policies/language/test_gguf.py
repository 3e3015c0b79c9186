"""GGUF files against transformers' own reading of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from tiny import TEMPLATE, TOKENS, our_logits, peer_from_gguf, peer_logits, write_gguf
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers.integrations.gguf import gguf_tokenizer_mapping
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from gradhat.errors import ModelError
from gradhat.policies.language.config import parse_config
from gradhat.policies.language.gguf import (
    LLAMA3_SPLIT,
    QWEN2_SPLIT,
    convert,
    hugging_face_config,
    pre_tokenizer,
    read,
)
from gradhat.policies.language.transformer import rope_frequencies
from gradhat.policies.language.weights import load, resolve

IDS = torch.randint(0, len(TOKENS), (64,), generator=torch.Generator().manual_seed(1))
FILES = {
    "llama, Q4_1": {"architecture": "llama", "quantisation": "Q4_1"},
    "llama, Q8_0, untied": {"architecture": "llama", "quantisation": "Q8_0", "tied": False},
    "qwen2, F16": {"architecture": "qwen2", "quantisation": "F16"},
    "qwen3, Q8_0": {"architecture": "qwen3", "quantisation": "Q8_0"},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADHAT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", FILES)
def test_logits_equal_transformers(name: str, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(file, **FILES[name])
    theirs = peer_from_gguf(file, FILES[name]["architecture"], head_dim=16)
    folder = resolve(str(file))
    assert (our_logits(load(folder), IDS) - peer_logits(theirs, IDS)).abs().max() <= 1e-4
    converted = AutoModelForCausalLM.from_pretrained(folder)
    assert converted.dtype == torch.float32
    weights = converted.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in theirs.state_dict().items())


def test_a_changed_file_is_converted_again_and_an_unchanged_one_is_not(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(file)
    first = resolve(str(file))
    made = (first / "config.json").stat().st_mtime_ns
    assert resolve(str(file)) == first
    assert (first / "config.json").stat().st_mtime_ns == made
    write_gguf(file, quantisation="F32")
    assert resolve(str(file)) != first
    assert cache in first.parents


def test_the_tokenizer_cuts_special_tokens_digits_and_words(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf")
    convert(tmp_path / "model.gguf", tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "<|im_start|>hello<tool>  5 12<|im_end|>"
    tokens = ["<|im_start|>", "hello", "<tool>", "ĠĠ", "5", "Ġ", "1", "2", "<|im_end|>"]
    assert tokenizer.encode(text).tokens == tokens
    assert tokenizer.encode(text).ids == [TOKENS.index(token) for token in tokens]
    assert tokenizer.decode(tokenizer.encode("hé  5\n").ids) == "hé  5\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == "hello<tool>  5 12"
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode(text) == tokenizer.encode(text).ids
    assert theirs.chat_template == TEMPLATE
    assert (theirs.bos_token, theirs.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"] == 2


def test_the_config_has_the_decimals_of_the_original(tmp_path: Path) -> None:
    # GGUF keeps float32: read plainly, 1e-5 comes back as 9.999999747378752e-06.
    write_gguf(tmp_path / "model.gguf")
    convert(tmp_path / "model.gguf", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["rms_norm_eps"], config["rope_theta"]) == (1e-5, 5000.0)


def test_the_split_patterns_are_those_of_the_models() -> None:
    assert gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS["qwen2"] == QWEN2_SPLIT
    assert gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"] == LLAMA3_SPLIT


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["I", "'ll", "Ġpay", "Ġ12345"]),
        ("smollm", ["I", "'ll", "Ġpay", "Ġ", "1", "2", "3", "4", "5"]),
        ("qwen2", ["I", "'ll", "Ġpay", "Ġ", "1", "2", "3", "4", "5"]),
        ("llama-bpe", ["I", "'ll", "Ġpay", "Ġ", "123", "45"]),
    ],
)
def test_text_is_cut_as_each_vocabulary_expects(pre: str, pieces: list[str]) -> None:
    assert [piece for piece, _ in pre_tokenizer(pre).pre_tokenize_str("I'll pay 12345")] == pieces


def divisors(factor: float = 32.0, size: int = 16, theta: float = 5000.0, original: int = 8192) -> np.ndarray:
    """What Llama 3's scaling divides each frequency by, according to transformers."""
    rope = {"rope_theta": theta, "rope_type": "default"}
    scaled = rope | {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled["original_max_position_embeddings"] = original
    fast = theta ** -(torch.arange(0, size, 2) / size)
    slow, _ = ROPE_INIT_FUNCTIONS["llama3"](
        LlamaConfig(head_dim=size, rope_parameters=scaled), torch.device("cpu")
    )
    return (fast / slow).numpy()


def test_llama3_scaling_is_read_back_from_its_divisors(tmp_path: Path) -> None:
    theirs = divisors()
    assert np.unique(theirs).size > 1, "the test needs scaled and unscaled frequencies"
    write_gguf(tmp_path / "model.gguf", extra={"rope_freqs.weight": theirs})
    metadata, tensors = read(tmp_path / "model.gguf")
    config = parse_config(hugging_face_config(tmp_path, metadata, tensors), tmp_path)
    plain = 5000.0 ** -(torch.arange(0, 16, 2) / 16)
    assert torch.allclose(rope_frequencies(config), plain / torch.from_numpy(theirs))
    convert(tmp_path / "model.gguf", tmp_path)
    load(tmp_path)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"architecture": "phi3"}, "architecture 'phi3'. Supported: llama, qwen2, qwen3"),
    "experts": ({"metadata": {"expert_count": 8}}, "experts"),
    "rope": ({"metadata": {"rope.scaling.type": "yarn"}}, "rope type 'yarn'"),
    "other rope divisors": ({"extra": {"rope_freqs.weight": divisors() + 0.1}}, "not as Llama 3 does"),
    "tensor": ({"extra": {"blk.0.ssm_in.weight": np.ones((32, 32), np.float32)}}, r"tensor blk\.0\.ssm_in"),
    "tokenizer": ({"pre": "tekken"}, "pre-tokenizer 'tekken'. Supported: 'gpt2' with gpt-2, smollm"),
    "size": ({"metadata": {"embedding_length": "wide"}}, "does not say its embedding_length"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_outside_the_shape_is_refused(name: str, tmp_path: Path, cache: Path) -> None:
    settings, message = BAD[name]
    write_gguf(tmp_path / "model.gguf", **settings)
    with pytest.raises(ModelError, match=message):
        resolve(str(tmp_path / "model.gguf"))
    assert [path.name for path in (cache / "models").iterdir() if not path.name.endswith(".lock")] == []


@pytest.mark.parametrize("kept", [0, 3, 30, 2000, -5000])
def test_a_damaged_file_says_so(kept: int, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelError, match="damaged, cut short, or not GGUF"):
        resolve(str(file))


ODD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "merge of one word": ({"MERGES": ["hello"]}, {}, "merge 'hello' joins no two tokens"),
    "merge of unknown tokens": ({"MERGES": ["q x"]}, {}, "merge 'q x' joins no two tokens"),
    "no merges": ({"MERGES": []}, {}, "tokenizer.ggml.merges is no list of texts"),
    "end outside the vocabulary": ({"END": 10**6}, {}, "eos token is 1000000, outside its vocabulary"),
    "key_length 0": (
        {},
        {"metadata": {"attention.key_length": 0}},
        "head_dim is needed as a positive integer",
    ),
    "key_length odd": ({}, {"metadata": {"attention.key_length": 7}}, "heads of size 7"),
    "key-value heads text": (
        {},
        {"metadata": {"attention.head_count_kv": "2"}},
        "num_key_value_heads is needed",
    ),
    "no heads": ({}, {"metadata": {"attention.head_count": 0}}, "does not say its attention.head_count"),
    "rows that are no heads": (
        {},
        {"extra": {"blk.0.attn_q.weight": np.ones((60, 64), np.float32)}},
        r"q_proj.weight|damaged",
    ),
    "a layer less": ({}, {"metadata": {"block_count": 3}}, r"lack|numbers"),
    "another width": ({}, {"metadata": {"feed_forward_length": 64}}, "has the shape"),
}


@pytest.mark.parametrize("name", ODD)
def test_any_wrong_value_is_an_error_with_a_sentence(
    name: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants, settings, message = ODD[name]
    for constant, value in constants.items():
        monkeypatch.setattr(tiny, constant, value)
    write_gguf(tmp_path / "model.gguf", **settings)
    with pytest.raises(ModelError, match=message):
        resolve(str(tmp_path / "model.gguf"))
    assert not [path for path in (cache / "models").glob("*") if not path.name.endswith(".lock")]


@pytest.mark.parametrize("at", [8, 16, 24])
def test_counts_that_the_file_cannot_hold_cost_no_time(at: int, tmp_path: Path) -> None:
    """The number of tensors, of keys, and the length of the first key: each as large as can be written."""
    file = tmp_path / "model.gguf"
    write_gguf(file)
    contents = bytearray(file.read_bytes())
    contents[at : at + 8] = b"\xff" * 7 + b"\x7f"
    file.write_bytes(contents)
    with pytest.raises(ModelError, match="damaged, cut short, or not GGUF"):
        resolve(str(file))


def test_an_array_that_is_longer_than_the_file_costs_no_time(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(file)
    contents = bytearray(file.read_bytes())
    key = contents.index(b"tokenizer.ggml.token_type") + len(b"tokenizer.ggml.token_type")
    contents[key + 8 : key + 16] = (2**61).to_bytes(8, "little")
    file.write_bytes(contents)
    with pytest.raises(ModelError, match="announces an array of"):
        resolve(str(file))


@pytest.mark.parametrize("size", [0, 70_000, 1 << 30])
def test_weights_are_written_in_parts_of_bounded_size(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(tmp_path / "model.gguf", tied=False)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    convert(tmp_path / "model.gguf", tmp_path / "whole")
    monkeypatch.setattr("gradhat.policies.language.gguf.SHARD", size)
    convert(tmp_path / "model.gguf", tmp_path / "parts")
    written = sorted((tmp_path / "parts").glob("*.safetensors"))
    largest = 4 * len(tiny.TOKENS) * 64
    assert len(written) == 1 if size == 1 << 30 else len(written) > 3
    assert all(file.stat().st_size <= max(size, largest) + 4096 for file in written) or size == 1 << 30
    whole, parts = (load(tmp_path / name).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
