"""Hugging Face `config.json` to `TransformerConfig`, refusing what the network cannot compute."""

import json
from pathlib import Path
from typing import Any

from gradhat.errors import ModelError
from gradhat.policies.language.transformer import Llama3Rope, TransformerConfig

SUPPORTED = (
    "Supported: decoders with model_type llama, qwen2 or qwen3, hidden_act silu, full attention, "
    "rope type default or llama3, unquantised, without experts"
)
FAMILIES = ("llama", "qwen2", "qwen3")
EXPERT_KEYS = ("num_experts", "num_local_experts", "moe_intermediate_size")

Json = dict[str, Any]


def read_config(folder: Path) -> TransformerConfig:
    """Return the shape of the network in a Hugging Face `folder`.

    Raises ModelError when `config.json` is missing or unreadable, or describes something outside the shape.
    """
    return parse_config(read_json(folder / "config.json"), folder)


def read_json(path: Path) -> Json:
    """Return the object in a JSON file of a model folder."""
    if not path.is_file():
        raise ModelError(
            f"{path.parent} has no {path.name}. A Hugging Face model folder has one. "
            "Give the folder that from_pretrained would load, or a .gguf file itself."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ModelError(
            f"Reading {path} failed: {error}. It is damaged. Copy or download the model again."
        ) from error
    if not isinstance(found, dict):
        raise ModelError(
            f"{path} holds a {type(found).__name__}, not an object. It is damaged. Download the model again."
        )
    return found


def parse_config(config: Json, where: Path) -> TransformerConfig:
    """Return the shape that the contents of a `config.json` describe; `where` is named in errors."""
    refuse_unsupported(config, where)
    family = config["model_type"]
    hidden, heads = number(config, "hidden_size", where), number(config, "num_attention_heads", where)
    kv_heads = config.get("num_key_value_heads") or heads
    if heads % kv_heads:
        raise ModelError(
            f"{where} has {heads} query heads, which cannot share {kv_heads} key-value heads evenly. "
            "Correct config.json."
        )
    # What transformers takes where nothing is given: 128 for Qwen3, hidden_size / heads for the others.
    head_dim = config.get("head_dim") or (128 if family == "qwen3" else hidden // heads)
    theta, scaling = read_rope(config, where)
    return TransformerConfig(
        vocab_size=number(config, "vocab_size", where),
        hidden_size=hidden,
        intermediate_size=number(config, "intermediate_size", where),
        num_layers=number(config, "num_hidden_layers", where),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=number(config, "max_position_embeddings", where),
        rope_theta=theta,
        rope_scaling=scaling,
        rms_eps=config.get("rms_norm_eps", 1e-6),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        tied=config.get("tie_word_embeddings", False),
    )


def number(config: Json, key: str, where: Path) -> int:
    """Return a required positive integer of `config`."""
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise ModelError(
            f"{where}: {key} is needed as a positive integer, found {value!r}. Correct config.json."
        )
    return value


def refuse_unsupported(config: Json, where: Path) -> None:
    """Raise ModelError for the first thing in `config` that the network would compute wrongly."""
    family = config.get("model_type")
    checks = [
        (family not in FAMILIES, f"model_type {family!r}"),
        (
            config.get("hidden_act", "silu") not in ("silu", "swish"),
            f"hidden_act {config.get('hidden_act')!r}",
        ),
        (family != "qwen2" and bool(config.get("attention_bias")), "attention_bias"),
        (bool(config.get("mlp_bias")), "mlp_bias"),
        (slides(config), "sliding-window attention"),
        (any(config.get(key) for key in EXPERT_KEYS), "a mixture of experts"),
        (config.get("quantization_config") is not None, "quantised weights (quantization_config)"),
        (config.get("partial_rotary_factor", 1.0) != 1.0, "partial_rotary_factor"),
    ]
    for found, what in checks:
        if found:
            raise ModelError(f"{where} has {what}. {SUPPORTED}. Use a model of that shape.")


def slides(config: Json) -> bool:
    """Whether any layer sees only a window that is shorter than the context."""
    window = config.get("sliding_window")
    if window is None or window >= config.get("max_position_embeddings", 0):
        return False
    if (layers := config.get("layer_types")) is not None:
        return "sliding_attention" in layers
    return (
        bool(config.get("use_sliding_window"))
        and config.get("max_window_layers", 28) < config["num_hidden_layers"]
    )


def read_rope(config: Json, where: Path) -> tuple[float, Llama3Rope | None]:
    """Return the rotary base and scaling.

    transformers 5 writes `rope_parameters`, older versions `rope_theta` and `rope_scaling`.
    """
    rope: Json = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    # Models with several kinds of layers nest one set of parameters per kind.
    nested = any(isinstance(value, dict) for value in rope.values())
    kind = "one per layer type" if nested else rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ModelError(f"{where} has the rope type {kind!r}. {SUPPORTED}. Use a model of that shape.")
    try:
        original = rope.get("original_max_position_embeddings") or config["original_max_position_embeddings"]
        return theta, Llama3Rope(rope["factor"], rope["low_freq_factor"], rope["high_freq_factor"], original)
    except KeyError as error:
        raise ModelError(
            f"{where}: rope type llama3 needs {error}, which is not given. Correct config.json."
        ) from error
