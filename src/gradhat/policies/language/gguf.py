"""GGUF files, llama.cpp's single-file format, turned into Hugging Face folders.

Weights are dequantised and stored as float32, because the 16-bit types lose some of them: a Q4_1 weight is
`d · q + m` with half-precision `d` and `m`, so it can need more than the 8 significant bits of bfloat16 or
the 11 of float16.
"""

import json
import re
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gradhat.errors import ModelError
from gradhat.policies.language.config import Json, parse_config
from gradhat.policies.language.gguf_header import check_counts, damaged

if TYPE_CHECKING:
    from gguf import ReaderTensor
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
COUNTS = ("embedding_length", "feed_forward_length", "block_count", "attention.head_count", "context_length")

SHARD = 1 << 30
"""Bytes of dequantised weights that are in memory at once, and in one file."""
FLOAT = 4
TOP_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

PRE_TOKENIZERS = ("gpt-2", "smollm", "qwen2", "deepseek-r1-qwen", "llama-bpe")
# Text is cut before the merges as it was when they were learned. Patterns of the models' tokenizer.json.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")

CONTROL, USER_DEFINED = 3, 4
"""Types of tokens that are matched whole in the text; only control tokens are special."""


def convert(file: Path, folder: Path) -> None:
    """Write the weights, config, tokenizer and chat template of a GGUF `file` into the existing `folder`.

    Raises ModelError for a damaged file, an architecture outside the shape, or an unsupported tokenizer.
    """
    found = described(file)
    config = found.config
    write_json(folder / "config.json", config)
    ends = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}
    write_json(folder / "generation_config.json", ends)
    found.tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", found.tokenizer_config)
    write_tensors(file, config, found.tensors, folder)


class Described(NamedTuple):
    """What a GGUF file says of its model. The tensors are still quantised, and memory-mapped."""

    config: Json
    tokenizer: "Tokenizer"
    tokenizer_config: Json
    tensors: list["ReaderTensor"]


def described(file: Path) -> Described:
    """Read all of a GGUF `file` but its weights. ModelError as of `convert`."""
    metadata, tensors = read(file)
    with sound(file):
        config = hugging_face_config(file, metadata, tensors)
        parse_config(config, file)
        return Described(config, build_tokenizer(file, metadata), tokenizer_config(metadata), tensors)


@contextmanager
def sound(file: Path) -> Generator[None]:
    """Turn what the contents of `file` raise into a ModelError: they may hold anything in any place."""
    try:
        yield
    except (ModelError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    # The libraries answer damage with any type of error; a panic in Rust is no Exception.
    except BaseException as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise damaged(file, reason) from error


def write_json(path: Path, contents: Json) -> None:
    path.write_text(json.dumps(contents, indent=2), encoding="utf-8")


def read(file: Path) -> tuple[Json, list["ReaderTensor"]]:
    """Return the metadata and the tensors (still quantised, memory-mapped) of `file`."""
    from gguf import GGUFReader

    check_counts(file)
    with sound(file):
        reader = GGUFReader(file)
        metadata: Json = {name: field.contents() for name, field in reader.fields.items()}
        return metadata, list(reader.tensors)


def hugging_face_config(file: Path, metadata: Json, tensors: list["ReaderTensor"]) -> Json:
    """Return the contents of `config.json` for a GGUF file."""
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"{file} holds the architecture {architecture!r}. Supported: {', '.join(ARCHITECTURES)}. "
            "Use a model of one of these."
        )
    own = {name.removeprefix(f"{architecture}."): value for name, value in metadata.items()}
    if lacking := [name for name in COUNTS if type(own.get(name)) is not int or own[name] < 1]:
        raise ModelError(
            f"{file} does not say its {', '.join(lacking)}. Convert or download the model again."
        )
    width, inner, layers, heads, context = (own[name] for name in COUNTS)
    names = {tensor.name for tensor in tensors}
    config: Json = {
        "architectures": [ARCHITECTURES[architecture]],
        "model_type": architecture,
        "vocab_size": len(own.get("tokenizer.ggml.tokens", [])),
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": own.get("attention.head_count_kv", heads),
        "head_dim": own.get("attention.key_length", width // heads),
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": shortest(own.get("attention.layer_norm_rms_epsilon", 1e-6)),
        "rope_theta": shortest(own.get("rope.freq_base", 10_000.0)),
        "rope_scaling": rope_scaling(file, own, tensors),
        "attention_bias": architecture == "llama" and "blk.0.attn_q.bias" in names,
        "tie_word_embeddings": "output.weight" not in names,
        "dtype": "float32",
    }
    if own.get("expert_count"):
        config["num_local_experts"] = own["expert_count"]
    for ours, theirs in {"bos": "bos", "eos": "eos", "pad": "padding"}.items():
        if (token := own.get(f"tokenizer.ggml.{theirs}_token_id")) is not None:
            if type(token) is not int or not 0 <= token < config["vocab_size"]:
                raise damaged(file, f"its {theirs} token is {token!r}, outside its vocabulary")
            config[f"{ours}_token_id"] = token
    return config


def shortest(value: float) -> float:
    """Return the shortest decimal of the same float32: 9.99999974e-06 is the 1e-05 of the original config."""
    return float(str(np.float32(value)))


def rope_scaling(file: Path, own: Json, tensors: list["ReaderTensor"]) -> Json | None:
    """Return the `rope_scaling` entry of `config.json`.

    GGUF stores Llama 3's scaling as the finished divisor of each frequency. The published models differ only
    in the factor, which is the largest divisor. It is believed only if it gives back every other divisor.
    """
    kind = own.get("rope.scaling.type", "none")
    if kind != "none":
        return {"rope_type": kind, "factor": own.get("rope.scaling.factor")}
    divisors = next((tensor.data for tensor in tensors if tensor.name == "rope_freqs.weight"), None)
    if divisors is None:
        return None
    scaling: Json = {
        "rope_type": "llama3",
        "factor": float(divisors.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    expected = llama3_divisors(scaling, 2 * len(divisors), own.get("rope.freq_base", 10_000.0))
    if not np.allclose(expected, divisors, rtol=1e-4):
        raise ModelError(
            f"{file} scales its rotary frequencies, but not as Llama 3 does. "
            "Supported: no scaling, or Llama 3's. Use the model's Hugging Face folder."
        )
    return scaling


def llama3_divisors(scaling: Json, size: int, theta: float) -> NDArray[np.float64]:
    """Return what Llama 3.1 divides each of the `size / 2` rotary frequencies by."""
    wavelength = 2 * np.pi * theta ** (np.arange(0, size, 2) / size)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    keep = np.clip((scaling["original_max_position_embeddings"] / wavelength - low) / (high - low), 0, 1)
    return 1 / ((1 - keep) / scaling["factor"] + keep)


def write_tensors(file: Path, config: Json, tensors: list["ReaderTensor"], folder: Path) -> None:
    """Dequantise `tensors` and write them under their Hugging Face names.

    In one file, or in several of about `SHARD` bytes with an index: no more than that is in memory at once.
    """
    shards: list[list[ReaderTensor]] = []
    size = SHARD
    for tensor in tensors:
        if tensor.name == "rope_freqs.weight":  # it is in the config
            continue
        if size + FLOAT * tensor.n_elements > SHARD:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += FLOAT * tensor.n_elements
    places: dict[str, str] = {}
    for at, shard in enumerate(shards, start=1):
        whole = len(shards) == 1
        name = "model.safetensors" if whole else f"model-{at:05}-of-{len(shards):05}.safetensors"
        places |= dict.fromkeys(write_shard(file, config, shard, folder / name), name)
    if len(shards) > 1:
        write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})


def write_shard(file: Path, config: Json, tensors: list["ReaderTensor"], path: Path) -> list[str]:
    """Write some of the tensors to `path`; return their Hugging Face names."""
    from gguf.quants import dequantize
    from safetensors.numpy import save_file

    arrays: dict[str, NDArray[np.float32]] = {}
    for tensor in tensors:
        name = hugging_face_name(file, tensor.name)
        try:
            with sound(file):
                array = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
                if config["model_type"] == "llama" and re.search(r"[qk]_proj", name):
                    array = halves_from_pairs(array, config["head_dim"])
                arrays[name] = np.ascontiguousarray(array)
        except ModelError as error:
            if not isinstance(error.__cause__, NotImplementedError):
                raise
            raise ModelError(
                f"{file} stores {tensor.name} as {tensor.tensor_type.name}, which cannot be dequantised. "
                "Use a file of the model in F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5 or a K-quant."
            ) from error
    save_file(arrays, path, metadata={"format": "pt"})
    # The library makes the file readable for its owner alone; a cache may be shared.
    shutil.copymode(path.parent / "config.json", path)
    return list(arrays)


def hugging_face_name(file: Path, name: str) -> str:
    """Return the Hugging Face name of a GGUF tensor."""
    if name in TOP_TENSORS:
        return TOP_TENSORS[name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in BLOCK_TENSORS:
        raise ModelError(
            f"{file} holds the tensor {name}, which no supported architecture has. "
            f"Use a plain decoder of the architecture {' or '.join(ARCHITECTURES)}."
        )
    return f"model.layers.{match[1]}.{BLOCK_TENSORS[match[2]]}.{match[3]}"


def halves_from_pairs(rows: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
    """Reorder the rows of each head of a query or key matrix from x₀ y₀ x₁ y₁ ... to x₀ x₁ ... y₀ y₁ ...

    In Llama models llama.cpp rotates neighbouring channels, Hugging Face rotates channel i with i + D/2.
    """
    return rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def build_tokenizer(file: Path, metadata: Json) -> "Tokenizer":
    """Return the byte-level BPE tokenizer that a GGUF file describes (Sennrich et al. 2016, algorithm 1)."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    kind, pre = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2" or pre not in PRE_TOKENIZERS:
        raise ModelError(
            f"{file} has the tokenizer model {kind!r} with the pre-tokenizer {pre!r}. Supported: 'gpt2' with "
            f"{', '.join(PRE_TOKENIZERS)}. Use the model's Hugging Face folder."
        )
    tokens = texts(file, metadata, "tokens")
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [merge_of(file, merge, vocab) for merge in texts(file, metadata, "merges")]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre == "llama-bpe"))
    if pre in ("qwen2", "deepseek-r1-qwen"):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer(pre)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(whole_tokens(metadata, CONTROL))
    tokenizer.add_tokens(whole_tokens(metadata, USER_DEFINED))
    if metadata.get("tokenizer.ggml.add_bos_token"):
        bos = metadata["tokenizer.ggml.bos_token_id"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens[bos]} $A", special_tokens=[(tokens[bos], bos)]
        )
    return tokenizer


def texts(file: Path, metadata: Json, name: str) -> list[str]:
    """Return a list of texts of the tokenizer."""
    found = metadata.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or not found or not all(isinstance(text, str) for text in found):
        raise damaged(file, f"tokenizer.ggml.{name} is no list of texts")
    return found


def merge_of(file: Path, merge: str, vocab: Mapping[str, int]) -> tuple[str, str]:
    """Return the two pieces that a merge joins."""
    left, _, right = merge.partition(" ")
    if not {left, right, left + right} <= vocab.keys():
        raise damaged(file, f"the merge {merge!r} joins no two tokens of the vocabulary to a third")
    return left, right


def pre_tokenizer(pre: str) -> "PreTokenizer":
    """Return what cuts text into pieces before the merges."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    if pre == "gpt-2":
        return ByteLevel(add_prefix_space=False)
    if pre == "smollm":
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    split = LLAMA3_SPLIT if pre == "llama-bpe" else QWEN2_SPLIT
    return Sequence(
        [Split(Regex(split), behavior="isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )


def whole_tokens(metadata: Json, kind: int) -> "list[AddedToken]":
    """Return the tokens of type `kind`, which are matched whole before the text is cut."""
    from tokenizers import AddedToken

    types, tokens = metadata.get("tokenizer.ggml.token_type", []), metadata["tokenizer.ggml.tokens"]
    return [
        AddedToken(token, normalized=False)
        for token, token_type in zip(tokens, types, strict=False)
        if token_type == kind
    ]


def tokenizer_config(metadata: Json) -> Json:
    """Return the contents of `tokenizer_config.json`, with the chat template if the file has one."""
    config: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata[f"{metadata['general.architecture']}.context_length"],
    }
    for ours, theirs in {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}.items():
        if (index := metadata.get(f"tokenizer.ggml.{theirs}_token_id")) is not None:
            config[f"{ours}_token"] = metadata["tokenizer.ggml.tokens"][index]
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata["tokenizer.chat_template"]
    return config
