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
COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
"""Files beside the weights and their config."""
LARGEST = 1 << 31
"""No number of a network's shape is larger."""
MOST_LAYERS = 1 << 12
EXPERT_KEYS = ("num_experts", "num_local_experts", "moe_intermediate_size")

Json = dict[str, Any]


def read_config(folder: Path) -> TransformerConfig:
    """Return the shape of the network in a Hugging Face `folder`.

    Raises ModelError when `config.json` is missing or unreadable, or describes something outside the shape.
    """
    return parse_config(read_json(folder / "config.json"), folder)


def own(folder: Path, name: str) -> Path:
    """Return the path of the file `name` in a model folder, which may be missing.

    ModelError when it leads out of the folder, by its name or as a link: what a model's files name is read,
    and copied into checkpoints. The hub's cache keeps a model's files beside its folders and links to them.
    """
    path, root = folder / name, folder.resolve()
    cache = root.parent.parent / "blobs"
    inside = path.resolve().is_relative_to(root)
    linked = root.parent.name == "snapshots" and path.resolve().parent == cache
    if Path(name).name != name or not (inside or linked):
        raise ModelError(
            f"{folder} names the file {name!r}, which lies outside the folder. Copy it into the folder."
        )
    return path


def read_json(path: Path) -> Json:
    """Return the object in a JSON file of a model folder."""
    if not own(path.parent, path.name).is_file():
        raise ModelError(
            f"{path.parent} has no {path.name}. A Hugging Face model folder has one. "
            "Give the folder that from_pretrained would load, or a .gguf file itself."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
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
    hidden, heads = count(config, "hidden_size", where), count(config, "num_attention_heads", where)
    kv_heads = count(config, "num_key_value_heads", where, heads)
    if heads % kv_heads:
        raise ModelError(
            f"{where} has {heads} query heads, which cannot share {kv_heads} key-value heads evenly. "
            "Correct config.json."
        )
    # What transformers takes where nothing is given: 128 for Qwen3, hidden_size / heads for the others.
    head_dim = count(config, "head_dim", where, 128 if family == "qwen3" else hidden // heads)
    if head_dim % 2 or not head_dim:
        raise ModelError(
            f"{where} leads to heads of size {head_dim}. Rotary positions need an even size. Correct "
            f"config.json."
        )
    if config.get("head_dim") is None and family != "qwen3" and hidden % heads:
        raise ModelError(
            f"{where} gives {heads} heads no even share of hidden_size {hidden}, and no head_dim. Correct "
            f"config.json."
        )
    theta, scaling = read_rope(config, where)
    return TransformerConfig(
        vocab_size=count(config, "vocab_size", where),
        hidden_size=hidden,
        intermediate_size=count(config, "intermediate_size", where),
        num_layers=count(config, "num_hidden_layers", where, most=MOST_LAYERS),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=count(config, "max_position_embeddings", where),
        rope_theta=theta,
        rope_scaling=scaling,
        rms_eps=positive(config, "rms_norm_eps", where, 1e-6),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        tied=switch(config, "tie_word_embeddings", where),
    )


def count(config: Json, key: str, where: Path, default: int | None = None, *, most: int = LARGEST) -> int:
    """Return a positive integer of `config`, at most `most`; without a default it is required."""
    value = config.get(key)
    if value is None and default is not None:
        return default
    if type(value) is not int or not 0 < value <= most:
        raise ModelError(
            f"{where}: {key} is needed as a positive integer, found {value!r}. Correct config.json."
        )
    return value


def positive(config: Json, key: str, where: Path, default: float | None = None) -> float:
    """Return a positive finite number of `config`; without a default it is required."""
    value = config.get(key, default)
    if type(value) not in (int, float) or not 0 < value < LARGEST:
        raise ModelError(
            f"{where}: {key} is needed as a positive number, found {value!r}. Correct config.json."
        )
    return float(value)


def switch(config: Json, key: str, where: Path) -> bool:
    """Return a truth value of `config`, false where there is none."""
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise ModelError(f"{where}: {key} is needed as true or false, found {value!r}. Correct config.json.")
    return bool(value)


def refuse_unsupported(config: Json, where: Path) -> None:
    """Raise ModelError for the first thing in `config` that the network would compute wrongly."""
    family = config.get("model_type")
    checks = [
        (family not in FAMILIES, f"model_type {family!r}"),
        (
            config.get("hidden_act", "silu") not in ("silu", "swish"),
            f"hidden_act {config.get('hidden_act')!r}",
        ),
        (family != "qwen2" and switch(config, "attention_bias", where), "attention_bias"),
        (switch(config, "mlp_bias", where), "mlp_bias"),
        (slides(config, where), "sliding-window attention"),
        (any(config.get(key) for key in EXPERT_KEYS), "a mixture of experts"),
        (config.get("quantization_config") is not None, "quantised weights (quantization_config)"),
        (config.get("partial_rotary_factor", 1.0) != 1.0, "partial_rotary_factor"),
    ]
    for found, what in checks:
        if found:
            raise ModelError(f"{where} has {what}. {SUPPORTED}. Use a model of that shape.")


def slides(config: Json, where: Path) -> bool:
    """Whether any layer sees only a window that is shorter than the context."""
    if config.get("sliding_window") is None:
        return False
    if count(config, "sliding_window", where) >= count(config, "max_position_embeddings", where):
        return False
    if (layers := config.get("layer_types")) is not None:
        return not isinstance(layers, list) or "sliding_attention" in layers
    first = config.get("max_window_layers", 28)
    if type(first) is not int:
        raise ModelError(
            f"{where}: max_window_layers is needed as an integer, found {first!r}. Correct config.json."
        )
    return switch(config, "use_sliding_window", where) and first < count(config, "num_hidden_layers", where)


def read_rope(config: Json, where: Path) -> tuple[float, Llama3Rope | None]:
    """Return the rotary base and scaling.

    transformers 5 writes `rope_parameters`, older versions `rope_theta` and `rope_scaling`.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ModelError(f"{where}: the parameters of rope are no object, but {rope!r}. Correct config.json.")
    given = rope if rope.get("rope_theta") is not None else config
    theta = positive(given, "rope_theta", where, None if given.get("rope_theta") is not None else 10_000.0)
    # Models with several kinds of layers nest one set of parameters per kind.
    nested = any(isinstance(value, dict) for value in rope.values())
    kind = "one per layer type" if nested else rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ModelError(f"{where} has the rope type {kind!r}. {SUPPORTED}. Use a model of that shape.")
    return theta, llama3_rope({**config, **rope}, where)


def llama3_rope(rope: Json, where: Path) -> Llama3Rope:
    """Return the parameters of Llama 3's scaling."""
    for key in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
        if key not in rope:
            raise ModelError(
                f"{where}: rope type llama3 needs '{key}', which is not given. Correct config.json."
            )
    low, high = positive(rope, "low_freq_factor", where), positive(rope, "high_freq_factor", where)
    if low >= high:
        raise ModelError(
            f"{where}: low_freq_factor {low:g} is not below high_freq_factor {high:g}. Correct config.json."
        )
    original = count(rope, "original_max_position_embeddings", where)
    return Llama3Rope(positive(rope, "factor", where), low, high, original)
