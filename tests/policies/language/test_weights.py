"""Our network and files against transformers', and every way a model folder can be wrong."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import add_tokenizer, change_json, our_logits, peer, peer_logits, write_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from gradhat.errors import ModelError
from gradhat.policies.language.chat import Chat
from gradhat.policies.language.config import COMPANIONS, read_json
from gradhat.policies.language.weights import (
    at_hand,
    fingerprint,
    gguf_key,
    load,
    outline,
    read_config,
    resolve,
    save,
)

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
        resolve("hf:someone/some-model")


def test_a_model_in_the_hub_cache_needs_no_network(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    kept = tmp_path / "hub" / "models--someone--some-model"
    shutil.copytree(folder, kept / "snapshots" / "0123abc")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0123abc")
    assert read_config(resolve("hf:someone/some-model")) == read_config(folder)


def test_a_model_of_the_hub_is_asked_for_by_its_prefix_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run's name that is mistyped goes to no network, and the right one is named."""

    def fetched(*_: object, **__: object) -> str:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetched)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "first_light").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"unknown.*Did you mean runs/first_light\?.*hf:owner/name"):
        resolve("runs/first_ligth")
    with pytest.raises(ModelError, match=r"unknown.*Did you mean smollm2-135m"):
        resolve("smolm2-135m")
    for odd in ("a" * 5000, "~nobody-of-that-name/x", "a\0b", ""):
        with pytest.raises(ModelError, match=r"unknown|no config\.json"):
            resolve(odd)
    for odd in ("hf:", "hf:runs", "hf:../x/y", "hf:a/b/c", "hf:https://x/y"):
        with pytest.raises(ModelError, match=r"hf:owner/name"):
            resolve(odd)


def test_the_home_folder_has_a_short_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert resolve("~/model") == folder


# --- files outside the folder ------------------------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    peer("llama").save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    return tmp_path / "sharded"


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "link.safetensors", "a/b", ".."])
def test_weights_outside_the_folder_are_not_read(name: str, sharded: Path) -> None:
    outside = sharded.parent / "outside.safetensors"
    shutil.copyfile(min(sharded.glob("model-*.safetensors")), outside)
    (sharded / "link.safetensors").symlink_to(outside)
    index = sharded / "model.safetensors.index.json"
    listed = json.loads(index.read_text())["weight_map"]
    change_json(index, weight_map=listed | {next(iter(listed)): name})
    with pytest.raises(ModelError, match="outside the folder"):
        load(sharded)


@pytest.mark.parametrize("wrong", [None, [], {}, "x", {"a": 1}, {"a": None}, [["a", "b"]]])
def test_an_index_that_is_none(wrong: object, sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": wrong}))
    with pytest.raises(ModelError, match="no weight_map"):
        load(sharded)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", *COMPANIONS])
def test_links_out_of_the_folder_are_not_followed(name: str, folder: Path, tmp_path: Path) -> None:
    """A link named tokenizer.model would else be copied into every checkpoint, and with it what it points
    to."""
    add_tokenizer(folder)
    secret = tmp_path / "secret"
    secret.write_bytes((folder / name).read_bytes() if (folder / name).exists() else b"{}")
    state, config = load(folder).state_dict(), read_config(folder)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(secret)
    with pytest.raises(ModelError, match="outside the folder"):
        load(folder)
        Chat.read(folder)
    if name != "model.safetensors":
        with pytest.raises(ModelError, match="outside the folder"):
            save(state, config, tmp_path / "saved", folder)


def test_links_within_the_folder_and_to_the_folder_are_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")
    (tmp_path / "named").symlink_to(folder)
    assert load(tmp_path / "named").config == read_config(folder)


def test_the_hub_cache_keeps_files_beside_its_folders(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "models--a--b"
    (kept / "blobs").mkdir(parents=True)
    (kept / "snapshots" / "0").mkdir(parents=True)
    for file in folder.iterdir():
        shutil.copyfile(file, kept / "blobs" / f"hash-{file.name}")
        (kept / "snapshots" / "0" / file.name).symlink_to(f"../../blobs/hash-{file.name}")
    assert load(kept / "snapshots" / "0").config == read_config(folder)


# --- what a saved folder says ------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [True, False], ids=["a generation config", "none"])
def test_transformers_stops_where_a_saved_model_learned_to_stop(
    kept: bool, folder: Path, tmp_path: Path
) -> None:
    """A base model declares the end of a document; it was trained to end an answer with another token."""
    change_json(folder / "config.json", eos_token_id=0)
    if kept:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, "temperature": 0.5}))
    model = load(folder)
    save(model.state_dict(), model.config, tmp_path / "saved", folder, stop_ids={2, 0})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert theirs.generation_config.eos_token_id == theirs.config.eos_token_id == [0, 2]
    assert theirs.generation_config.temperature == (0.5 if kept else theirs.generation_config.temperature)
    ends = IDS[None, :3]
    with torch.no_grad():
        theirs.lm_head.weight.zero_()
        theirs.lm_head.weight[2] = theirs.model(ends).last_hidden_state[0, -1]
    assert theirs.generate(ends, max_new_tokens=5, do_sample=False).shape[1] == 4


def test_a_tied_model_that_stores_its_head_alone(folder: Path) -> None:
    tensors: dict[str, Any] = load_file(folder / "model.safetensors")
    shared = tensors["model.embed_tokens.weight"]
    rewrite(folder, lm_head__weight=shared, model__embed_tokens__weight=None)
    with pytest.raises(ModelError, match=r"lack model\.embed_tokens\.weight"):
        load(folder)
    change_json(folder / "config.json", tie_word_embeddings=True)
    model = load(folder)
    assert model.head is None and torch.equal(model.embed.weight, shared)


# --- damaged folders ---------------------------------------------------------------------------------------


def test_promises_that_the_files_cannot_hold_take_no_memory_and_no_time(folder: Path) -> None:
    for promise in ({"num_hidden_layers": 10**9}, {"vocab_size": 2**31}, {"hidden_size": 2**30}):
        before = (folder / "config.json").read_text()
        change_json(folder / "config.json", **promise)
        with pytest.raises(ModelError, match=r"promises .* numbers|outside|Correct"):
            load(folder)
        (folder / "config.json").write_text(before)


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


@pytest.mark.parametrize("name", MODELS)
def test_an_outline_is_the_network_without_its_weights(name: str, tmp_path: Path) -> None:
    kind, changes = MODELS[name]
    peer(kind, **changes).save_pretrained(tmp_path)
    drawn, whole = outline(tmp_path), load(tmp_path)
    assert {n: p.shape for n, p in drawn.named_parameters()} == {
        n: p.shape for n, p in whole.named_parameters()
    }
    assert all(parameter.is_meta for parameter in drawn.parameters())


def test_an_outline_has_the_errors_of_the_whole(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    for changes in (
        {"model.norm.weight": None},
        {"model.norm.weight": torch.zeros(3)},
        {"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)},
    ):
        damaged = {name: t for name, t in (tensors | changes).items() if t is not None}
        save_file(damaged, folder / "model.safetensors", metadata={"format": "pt"})
        errors = []
        for read in (load, outline):
            with pytest.raises(ModelError) as error:
                read(folder)
            errors.append(str(error.value))
        assert errors[0] == errors[1]


def test_a_fingerprint_is_that_of_what_is_in_a_folder(folder: Path, tmp_path: Path) -> None:
    before = fingerprint(folder)
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert fingerprint(copy) == before
    tensors = load_file(copy / "model.safetensors")
    for name, tensor in tensors.items():
        save_file(tensors | {name: tensor + 1}, copy / "model.safetensors", metadata={"format": "pt"})
        assert fingerprint(copy) != before, name
    shutil.copy(folder / "model.safetensors", copy / "model.safetensors")
    assert fingerprint(copy) == before
    change_json(copy / "tokenizer_config.json", model_max_length=7)
    assert fingerprint(copy) != before


def test_a_fingerprint_of_a_large_file_takes_samples(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradhat.policies.language.weights.SAMPLE", 16)
    file = folder / "model.safetensors"
    size, step = file.stat().st_size, file.stat().st_size // 64
    assert step > 16
    before, data = fingerprint(folder), file.read_bytes()
    for place in (0, 15, step, step + 15, 63 * step):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert fingerprint(folder) != before, place
    file.write_bytes(data[:17] + bytes([data[17] ^ 1]) + data[18:])
    assert fingerprint(folder) == before
    with file.open("r+b") as content:
        content.truncate(size - 1)
    assert fingerprint(folder) != before


def test_what_is_at_hand_is_what_needs_no_fetching(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADHAT_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "small.gguf"
    write_gguf(file)
    assert at_hand(str(folder)) == folder
    assert [at_hand(name) for name in ("smollm2-135m", str(file), "hf:owner/name")] == [None, None, None]
    models = tmp_path / "cache" / "models"
    for name in ("smollm2-135m", gguf_key(file)):
        (models / name).mkdir(parents=True)
    assert at_hand("smollm2-135m") == models / "smollm2-135m"
    assert at_hand(str(file)) == models / gguf_key(file)
    with pytest.raises(ModelError, match="unknown"):
        at_hand(str(tmp_path / "nothing"))
    with pytest.raises(ModelError, match=r"hf:owner is unknown: a model of the hub is written hf:owner/name"):
        at_hand("hf:owner")
    (tmp_path / "torn.gguf").write_bytes(file.read_bytes()[:200])
    with pytest.raises(ModelError, match=r"torn\.gguf as GGUF failed"):
        at_hand(str(tmp_path / "torn.gguf"))
    file.write_bytes(file.read_bytes().replace(b"llama", b"camel"))
    with pytest.raises(ModelError, match="holds the architecture 'camel'"):
        at_hand(str(file))
