"""What config.json may say, and what it may not."""

from pathlib import Path
from typing import Any

import pytest

from gradhat.errors import ModelError
from gradhat.policies.language.config import parse_config, read_config
from gradhat.policies.language.transformer import Llama3Rope

WHERE = Path("some-model")
SMALL: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 512,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def parse(**changes: Any) -> Any:
    return parse_config(SMALL | changes, WHERE)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "mixtral"}, "model_type 'mixtral'"),
    ({"model_type": None}, "model_type None"),
    ({"attention_bias": True}, "attention_bias"),
    ({"model_type": "qwen3", "attention_bias": True}, "attention_bias"),
    ({"mlp_bias": True}, "mlp_bias"),
    ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    ({"num_local_experts": 8}, "experts"),
    ({"model_type": "qwen3", "num_experts": 8}, "experts"),
    ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope type 'yarn'"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope type 'linear'"),
    ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "rope"),
    ({"sliding_window": 128, "use_sliding_window": True, "max_window_layers": 1}, "sliding-window"),
    ({"sliding_window": 128, "layer_types": ["full_attention", "sliding_attention"]}, "sliding-window"),
]


@pytest.mark.parametrize(("changes", "named"), REFUSED, ids=[str(changes) for changes, _ in REFUSED])
def test_what_the_network_cannot_compute_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelError, match=rf"some-model.*{named}.*Supported.*llama, qwen2 or qwen3.*llama3"):
        parse(**changes)


UNUSED_WINDOWS: list[dict[str, Any]] = [
    {"sliding_window": None, "use_sliding_window": True, "max_window_layers": 0},
    {"sliding_window": 128, "use_sliding_window": False, "max_window_layers": 0},
    {"sliding_window": 128, "use_sliding_window": True, "max_window_layers": 2},
    {"sliding_window": 512, "use_sliding_window": True, "max_window_layers": 0},
    {"sliding_window": 128, "layer_types": ["full_attention", "full_attention"]},
]


@pytest.mark.parametrize("window", UNUSED_WINDOWS, ids=str)
def test_a_window_that_no_layer_uses_is_no_obstacle(window: dict[str, Any]) -> None:
    assert parse(model_type="qwen2", **window) == parse(model_type="qwen2")


def test_each_family_has_its_own_parts() -> None:
    parts = {name: parse(model_type=name) for name in ("llama", "qwen2", "qwen3")}
    assert {name: (c.qkv_bias, c.qk_norm) for name, c in parts.items()} == {
        "llama": (False, False),
        "qwen2": (True, False),
        "qwen3": (False, True),
    }


def test_what_is_not_given_is_what_transformers_takes() -> None:
    assert (parse().head_dim, parse(model_type="qwen3").head_dim, parse(head_dim=16).head_dim) == (8, 128, 16)
    assert (parse().num_kv_heads, parse(num_key_value_heads=2).num_kv_heads) == (8, 2)
    assert (parse().tied, parse(tie_word_embeddings=True).tied) == (False, True)
    assert (parse().rope_theta, parse().rms_eps) == (10_000.0, 1e-6)


SPELLINGS: list[dict[str, Any]] = [
    {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
    {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **LLAMA3}},
]


@pytest.mark.parametrize("spelling", SPELLINGS, ids=["rope_parameters", "rope_type", "type"])
def test_every_spelling_of_the_rope(spelling: dict[str, Any]) -> None:
    config = parse(**spelling)
    assert (config.rope_theta, config.rope_scaling) == (5e5, Llama3Rope(8.0, 1.0, 4.0, 128))


def test_an_incomplete_llama3_rope_names_what_it_lacks() -> None:
    with pytest.raises(ModelError, match="llama3 needs 'low_freq_factor'"):
        parse(rope_scaling={"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 128})


@pytest.mark.parametrize("value", [None, 0, "64", 64.0, True])
def test_a_size_must_be_a_positive_integer(value: object) -> None:
    with pytest.raises(ModelError, match="hidden_size is needed as a positive integer"):
        parse(hidden_size=value)


def test_query_heads_must_share_key_value_heads_evenly() -> None:
    with pytest.raises(ModelError, match=r"8 query heads.*3 key-value heads"):
        parse(num_key_value_heads=3)


@pytest.mark.parametrize(("text", "named"), [('{"model_type": "lla', "damaged"), ("[1]", "holds a list")])
def test_a_damaged_file(text: str, named: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=named):
        read_config(tmp_path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        read_config(tmp_path)


WRONG: dict[str, list[Any]] = {
    "num_key_value_heads": ["8", [2], -8, 2.0, 0, True],
    "head_dim": ["8", -8, 7, 0, 8.0, 2**40],
    "rms_norm_eps": ["1e-5", None, 0, -1e-5, float("nan"), float("inf"), True],
    "rope_theta": ["big", -1, float("nan"), [1]],
    "sliding_window": ["x", 0, 1.5],
    "rope_parameters": [[1], "llama3", 3],
    "rope_scaling": [[1], 7],
    "tie_word_embeddings": ["yes", 1, []],
    "attention_bias": ["no", 1],
    "mlp_bias": [1.0],
    "max_position_embeddings": ["512", -1, None],
    "intermediate_size": [96.0, "96"],
    "vocab_size": [2**40, 0],
    "num_hidden_layers": [10**6, -2],
    "hidden_act": [["silu"], 3],
    "model_type": [["llama"], {}],
    "num_attention_heads": [3, 7],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG.items() for value in values], ids=str
)
def test_any_wrong_value_is_an_error_with_a_sentence(key: str, value: Any) -> None:
    with pytest.raises(ModelError, match=r"some-model.*(Correct config\.json|Use a model of that shape)"):
        parse(**{key: value})


@pytest.mark.parametrize("key", LLAMA3)
@pytest.mark.parametrize("value", ["2", 0, -1.0, None, float("nan"), [], True])
def test_wrong_parameters_of_the_llama3_rope(key: str, value: Any) -> None:
    with pytest.raises(ModelError, match=rf"{key}.*Correct config\.json"):
        parse(rope_scaling={"rope_type": "llama3", **LLAMA3, key: value})


def test_frequencies_whose_order_is_wrong() -> None:
    with pytest.raises(ModelError, match="low_freq_factor 4 is not below high_freq_factor 4"):
        parse(rope_scaling={"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0})


def test_a_file_that_nests_without_end(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[" * 200_000)
    with pytest.raises(ModelError, match="damaged"):
        read_config(tmp_path)
