"""Our network and files against transformers', and every way a model folder can be wrong."""

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import add_tokenizer, change_json, our_logits, peer, peer_logits
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradhat.errors import ModelError
from gradhat.policies.language.config import read_json
from gradhat.policies.language.weights import load, read_config, resolve, save

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS = {
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, untied, one key-value head": ("llama", {"num_key_value_heads": 1}),
    "llama, no grouping": ("llama", {"num_key_value_heads": 4}),
    "llama, wide heads": ("llama", {"head_dim": 16}),
    "llama, llama3 rope": ("llama", {"rope_parameters": LLAMA3}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, untied": ("qwen2", {}),
    "qwen3, tied": ("qwen3", {"tie_word_embeddings": True, "head_dim": 16}),
    "qwen3, untied": ("qwen3", {"rms_norm_eps": 1e-3}),
}
IDS = torch.randint(0, 200, (96,), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole small Llama folder, for the tests to damage."""
    folder = tmp_path / "model"
    peer("llama").save_pretrained(folder)
    add_tokenizer(folder)
    return folder


def test_smollm2_logits_equal_transformers() -> None:
    folder = resolve("smollm2-135m")
    text = "<|im_start|>user\nWhat is 12 + 30?<|im_end|>\n<|im_start|>assistant\n12 + 30 = 42.<|im_end|>\n"
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids[0]
    theirs = peer_logits(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), ids)
    ours = our_logits(load(folder), ids)
    assert (ours - theirs).abs().max() <= 1e-4


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shards", ["1GB", "20KB"])
def test_logits_equal_transformers(name: str, shards: str, tmp_path: Path) -> None:
    family, changes = MODELS[name]
    model = peer(family, **changes)
    model.save_pretrained(tmp_path, max_shard_size=shards)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shards == "20KB")
    assert (our_logits(load(tmp_path), IDS) - peer_logits(model, IDS)).abs().max() <= 1e-4


def test_rope_of_older_configs_means_the_same(tmp_path: Path) -> None:
    model = peer("llama", rope_parameters=LLAMA3)
    model.save_pretrained(tmp_path)
    scaling = {key: value for key, value in LLAMA3.items() if key not in ("rope_theta", "rope_type")}
    change_json(
        tmp_path / "config.json",
        rope_parameters=None,
        rope_theta=LLAMA3["rope_theta"],
        rope_scaling={"type": "llama3", **scaling},
    )
    assert (our_logits(load(tmp_path), IDS) - peer_logits(model, IDS)).abs().max() <= 1e-4


@pytest.mark.parametrize("name", MODELS)
def test_transformers_loads_what_save_writes(name: str, tmp_path: Path) -> None:
    family, changes = MODELS[name]
    peer(family, **changes).save_pretrained(tmp_path / "source")
    add_tokenizer(tmp_path / "source")
    model = load(tmp_path / "source")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    save(model.state_dict(), model.config, tmp_path / "saved", tmp_path / "source")
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert (our_logits(model, IDS) - peer_logits(theirs, IDS)).abs().max() <= 1e-4
    messages = [{"role": "user", "content": "hello"}]
    before, after = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("source", "saved"))
    assert before.apply_chat_template(messages) == after.apply_chat_template(messages)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_save_keeps_the_type_of_the_weights(dtype: torch.dtype, folder: Path, tmp_path: Path) -> None:
    # The source says float32. If the copy said so too, transformers would change the weights' type.
    state = load(folder, dtype).state_dict()
    save(state, read_config(folder), tmp_path / "saved", folder)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert theirs.dtype == dtype
    assert torch.equal(theirs.model.embed_tokens.weight, state["embed.weight"])


def test_float32_masters_of_a_bfloat16_model_are_saved_whole(folder: Path, tmp_path: Path) -> None:
    change_json(folder / "config.json", dtype=None, torch_dtype="bfloat16")
    state = load(folder).state_dict()
    save(state, read_config(folder), tmp_path / "saved", folder)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(theirs.model.embed_tokens.weight, state["embed.weight"])
    # Readers of the older spelling would still narrow them.
    assert "torch_dtype" not in read_json(tmp_path / "saved" / "config.json")


def test_saved_weights_are_as_readable_as_the_config(folder: Path, tmp_path: Path) -> None:
    save(load(folder).state_dict(), read_config(folder), tmp_path / "saved", folder)
    modes = {(tmp_path / "saved" / name).stat().st_mode for name in ("config.json", "model.safetensors")}
    assert len(modes) == 1


def test_saving_over_the_source_is_refused(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(ModelError, match="overwrite"):
        save(load(folder).state_dict(), read_config(folder), folder / ".." / "model", folder)
    assert (folder / "model.safetensors").read_bytes() == before


def test_saving_where_nothing_can_be_written_is_an_os_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "saved" / "model.safetensors").mkdir(parents=True)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        save(load(folder).state_dict(), read_config(folder), tmp_path / "saved", folder)


def test_load_converts_to_the_asked_type_by_rounding(folder: Path) -> None:
    wide, narrow = load(folder).state_dict(), load(folder, torch.bfloat16).state_dict()
    assert all(torch.equal(wide[name].bfloat16(), narrow[name]) for name in wide)


def test_loaded_weights_do_not_live_in_the_file(folder: Path) -> None:
    model = load(folder)
    with torch.no_grad():
        model.embed.weight.zero_()
    assert load(folder).embed.weight.abs().sum() > 0


# --- names that resolve, and names that do not -------------------------------------------------------------


def test_a_folder_resolves_to_itself(folder: Path) -> None:
    assert resolve(str(folder)) == folder


@pytest.mark.parametrize("name", ["smollm3", "./absent/model", "/absent/model", "absent.gguf", "a/b/c"])
def test_an_unknown_name_lists_what_is_accepted(name: str) -> None:
    with pytest.raises(ModelError, match=r"(?s)unknown.*smollm2-135m.*folder.*\.gguf.*hub id"):
        resolve(name)


def test_a_file_is_not_a_folder(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"a file that is not \.gguf"):
        resolve(str(folder / "model.safetensors"))


def test_a_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelError, match=r"(?s)'someone/some-model'.*hub could not give it.*network.*smollm2-135m"
    ):
        resolve("someone/some-model")


def test_a_model_in_the_hub_cache_needs_no_network(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    kept = tmp_path / "hub" / "models--someone--some-model"
    shutil.copytree(folder, kept / "snapshots" / "0123abc")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0123abc")
    assert read_config(resolve("someone/some-model")) == read_config(folder)


# --- damaged folders ---------------------------------------------------------------------------------------


def test_a_folder_without_config_json(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve(str(folder))


@pytest.mark.parametrize("kept", [0, 4, 1000, -100])
def test_truncated_safetensors(kept: int, folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"model\.safetensors failed.*damaged or cut short"):
        load(folder)


def test_no_safetensors_at_all(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        load(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    peer("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    shard = min(tmp_path.glob("model-*.safetensors"))
    shard.unlink()
    with pytest.raises(ModelError, match=rf"{shard.name}, not found"):
        load(tmp_path)


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors of a folder's weights; None removes one. Dots are written as double underscores."""
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in changes.items():
        name = name.replace("__", ".")
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")


def test_a_missing_tensor_is_named(folder: Path) -> None:
    rewrite(folder, model__layers__1__mlp__up_proj__weight=None)
    with pytest.raises(ModelError, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
        load(folder)


def test_an_unexpected_tensor_is_named(folder: Path) -> None:
    rewrite(folder, model__layers__0__self_attn__q_proj__bias=torch.zeros(32))
    with pytest.raises(ModelError, match=r"holds model\.layers\.0\.self_attn\.q_proj\.bias.*no place"):
        load(folder)


def test_a_misshaped_tensor_is_named_with_both_shapes(folder: Path) -> None:
    rewrite(folder, model__layers__0__self_attn__k_proj__weight=torch.zeros(32, 32))
    with pytest.raises(ModelError, match=r"k_proj\.weight has the shape \[32, 32\].*\[16, 32\]"):
        load(folder)


def test_quantised_weights_are_not_read_as_numbers(folder: Path) -> None:
    rewrite(folder, model__layers__0__mlp__up_proj__weight=torch.ones(48, 32, dtype=torch.int8))
    with pytest.raises(ModelError, match=r"up_proj\.weight is stored as I8.*quantised"):
        load(folder)


def test_rotary_frequencies_of_old_files_are_passed_over(folder: Path) -> None:
    before = load(folder).state_dict()
    rewrite(folder, model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4))
    after = load(folder).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("difference", [0.0, 1.0])
def test_a_tied_model_with_a_head_of_its_own(difference: float, folder: Path) -> None:
    tensors: dict[str, Any] = load_file(folder / "model.safetensors")
    rewrite(folder, lm_head__weight=tensors["model.embed_tokens.weight"] + difference)
    change_json(folder / "config.json", tie_word_embeddings=True)
    if difference:
        with pytest.raises(ModelError, match=r"lm_head\.weight other than the embedding"):
            load(folder)
    else:
        assert load(folder).head is None
