"""Small random models, as folders and GGUF files, for the tests of this room."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from gradhat.policies.language.transformer import Transformer

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
BYTES = list(bytes_to_unicode().values())
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ Ġ", "Ġ hello"]
END = 2
TOKENS = [*SPECIAL, *BYTES, *(merge.replace(" ", "") for merge in MERGES), "<tool>"]
TOKEN_TYPES = [3] * len(SPECIAL) + [1] * (len(BYTES) + len(MERGES)) + [4]

FAMILIES = {
    "llama": transformers.LlamaForCausalLM,
    "qwen2": transformers.Qwen2ForCausalLM,
    "qwen3": transformers.Qwen3ForCausalLM,
}


def peer(family: str, **changes: Any) -> Any:
    """A small random transformers model. Norms and biases too: their initial 1 and 0 would hide errors."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": len(TOKENS),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
        "eos_token_id": 2,
        "bos_token_id": 1,
    }
    kind = FAMILIES[family]
    model = kind(kind.config_class(**{**shape, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model


def dense(_layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of one sequence, every key repeated for its query heads: the obvious twin."""
    copies = q.shape[1] // k.shape[1]
    q, k, v = (x.transpose(0, 1) for x in (q, k.repeat_interleave(copies, 1), v.repeat_interleave(copies, 1)))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).reshape(q.shape[1], -1)


def our_logits(model: Transformer, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids, torch.arange(len(ids)), dense) @ model.head_weight.T


def peer_logits(model: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model(ids[None]).logits[0]


def peer_from_gguf(path: Path, family: str, **changes: Any) -> Any:
    """A transformers model with the weights of a GGUF file, as transformers dequantises them."""
    kind = FAMILIES[family]
    config = load_gguf_checkpoint(str(path))["config"] | changes
    model = kind(kind.config_class(**config)).eval()
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    absent, unknown = model.load_state_dict(tensors, strict=False)
    assert set(absent) <= {"lm_head.weight"}
    assert not unknown
    return model


def add_tokenizer(folder: Path) -> None:
    """Give a model folder a byte-level tokenizer with a chat template."""
    vocab = {token: index for index, token in enumerate(TOKENS)}
    added = [
        {"id": index, "content": token, "special": True, "single_word": False}
        | {"lstrip": False, "rstrip": False, "normalized": False}
        for index, token in enumerate(SPECIAL)
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    merges = [merge.split(" ") for merge in MERGES]
    tokenizer = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": level,
        "decoder": level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def change_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes a key."""
    merged = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in merged.items() if value is not None}))


def write_gguf(
    path: Path,
    architecture: str = "llama",
    *,
    quantisation: str = "Q8_0",
    tied: bool = True,
    metadata: dict[str, Any] | None = None,
    extra: dict[str, np.ndarray] | None = None,
    pre: str = "smollm",
) -> None:
    """Write a small random GGUF file: 2 layers, width 64, 4 query and 2 key-value heads of 16."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {
        "context_length": 128,
        "embedding_length": 64,
        "block_count": 2,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 16,
        **(metadata or {}),
    }.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint32
        add(f"{architecture}.{key}", value)
    writer.add_rope_freq_base(5000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_uint32(f"{architecture}.vocab_size", len(TOKENS))
    write_vocabulary(writer, pre)
    kind = gguf.GGMLQuantizationType[quantisation]
    for name, array in (gguf_tensors(architecture, tied) | (extra or {})).items():
        exact = array.ndim == 1
        data = array if exact else gguf.quants.quantize(array, kind)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.F32 if exact else kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_vocabulary(writer: gguf.GGUFWriter, pre: str) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types(TOKEN_TYPES)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(END)
    writer.add_chat_template(TEMPLATE)


def gguf_tensors(architecture: str, tied: bool) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.normal(0, 0.3, shape).astype(np.float32)

    tensors = {"token_embd.weight": normal(len(TOKENS), 64), "output_norm.weight": normal(64)}
    if not tied:
        tensors["output.weight"] = normal(len(TOKENS), 64)
    for layer in range(2):
        block = {
            "attn_norm.weight": normal(64),
            "attn_q.weight": normal(64, 64),
            "attn_k.weight": normal(32, 64),
            "attn_v.weight": normal(32, 64),
            "attn_output.weight": normal(64, 64),
            "ffn_norm.weight": normal(64),
            "ffn_gate.weight": normal(96, 64),
            "ffn_up.weight": normal(96, 64),
            "ffn_down.weight": normal(64, 96),
        }
        if architecture == "qwen2":
            block |= {"attn_q.bias": normal(64), "attn_k.bias": normal(32), "attn_v.bias": normal(32)}
        if architecture == "qwen3":
            block |= {"attn_q_norm.weight": normal(16), "attn_k_norm.weight": normal(16)}
        tensors |= {f"blk.{layer}.{name}": array for name, array in block.items()}
    return tensors
