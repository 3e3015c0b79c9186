"""Models in and out: from a name to a Hugging Face folder, from the folder to a `Transformer`, and back.

One table, `layout`, says which rows of which of our parameters a Hugging Face tensor is. Loading, saving and
the checks read it.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gradhat.errors import ModelError
from gradhat.policies.language.alias import ALIASES, cached, fetch_smollm2
from gradhat.policies.language.config import read_config, read_json
from gradhat.policies.language.gguf import convert
from gradhat.policies.language.transformer import Transformer, TransformerConfig

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


FLOATS = ("F32", "BF16", "F16", "F64")


def resolve(model: str) -> Path:
    """Return a Hugging Face folder on disk for a model's name.

    `model` is an alias (`smollm2-135m`), a folder, a `.gguf` file, or a hub id (`owner/name`). What is not a
    folder yet is fetched or converted once and kept in the cache. Raises ModelError when none of these fits,
    or what fits cannot be reached or used.
    """
    path = Path(model).expanduser()
    if model in ALIASES:
        return cached(model, fetch_smollm2)
    if path.is_dir():
        read_config(path)
        return path
    if path.is_file() and path.suffix == ".gguf":
        return cached(gguf_key(path), partial(convert, path))
    if not path.exists() and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model) and path.suffix != ".gguf":
        return from_hub(model)
    found = "a file that is not .gguf" if path.is_file() else "no such alias, folder or file"
    raise ModelError(
        f"The model {model!r} is unknown: {found}. Known aliases: {', '.join(ALIASES)}. "
        "Also accepted: a Hugging Face model folder, a .gguf file, a hub id such as owner/name."
    )


def gguf_key(file: Path) -> str:
    """Return the cache name of a GGUF file: another file, or the same one changed, has another."""
    stat = file.stat()
    mark = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    return f"{file.stem}-{hashlib.blake2b(mark.encode(), digest_size=6).hexdigest()}"


def from_hub(name: str) -> Path:
    """Download a model from the hub, or find it in the hub's own cache."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "model*.safetensors", "*.jinja", "merges.txt", "tokenizer.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["*/*"]))
    # The hub client lets errors of its HTTP library through: name, network, proxy, rights, disk.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"The model {name!r} is not a folder here, and the model hub could not give it: {reason}\n"
            "Check the name and the network (for a gated model also HF_TOKEN), or give a folder, a .gguf "
            f"file or an alias ({', '.join(ALIASES)})."
        ) from error


class Rows(NamedTuple):
    """Rows `start` to `stop` of our parameter `name`; all of them if these are None."""

    name: str
    start: int | None = None
    stop: int | None = None

    def of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return tensors[self.name][self.start : self.stop]


def layout(config: TransformerConfig) -> dict[str, Rows]:
    """Return, for each Hugging Face tensor name, the rows of our parameter that hold it."""
    table = {
        "model.embed_tokens.weight": Rows("embed.weight"),
        "model.norm.weight": Rows("norm.weight"),
    }
    if not config.tied:
        table["lm_head.weight"] = Rows("head.weight")
    q_end = config.num_heads * config.head_dim
    k_end = q_end + config.num_kv_heads * config.head_dim
    split = {"q": (0, q_end), "k": (q_end, k_end), "v": (k_end, None)}
    for layer in range(config.num_layers):
        theirs, ours = f"model.layers.{layer}", f"blocks.{layer}"
        for name, (start, stop) in split.items():
            for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
                table[f"{theirs}.self_attn.{name}_proj.{kind}"] = Rows(f"{ours}.qkv.{kind}", start, stop)
        if config.qk_norm:
            table[f"{theirs}.self_attn.q_norm.weight"] = Rows(f"{ours}.q_norm.weight")
            table[f"{theirs}.self_attn.k_norm.weight"] = Rows(f"{ours}.k_norm.weight")
        gate_up, middle = f"{ours}.gate_up.weight", config.intermediate_size
        table |= {
            f"{theirs}.input_layernorm.weight": Rows(f"{ours}.attention_norm.weight"),
            f"{theirs}.self_attn.o_proj.weight": Rows(f"{ours}.out.weight"),
            f"{theirs}.post_attention_layernorm.weight": Rows(f"{ours}.mlp_norm.weight"),
            f"{theirs}.mlp.gate_proj.weight": Rows(gate_up, 0, middle),
            f"{theirs}.mlp.up_proj.weight": Rows(gate_up, middle, None),
            f"{theirs}.mlp.down_proj.weight": Rows(f"{ours}.down.weight"),
        }
    return table


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Transformer:
    """Return the network in a Hugging Face `folder`, on the CPU, with weights of `dtype`.

    Raises ModelError when a file is missing or damaged, or holds other tensors than `config.json` leads to.
    """
    config = read_config(folder)
    model = uninitialised(config, dtype)
    parameters = {name: parameter.data for name, parameter in model.named_parameters()}
    places = {name: rows.of(parameters) for name, rows in layout(config).items()}
    files, missing = weight_files(folder), set(places)
    for file in files:
        try:
            missing -= copy_tensors(file, places)
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"Reading {file} failed: {error}. The file is damaged or cut short. "
                "Copy or download it again; a folder in gradhat's cache can be deleted, it is made again."
            ) from error
    if missing:
        raise ModelError(
            f"The weights in {folder} lack {some(missing)}, which its config.json promises. "
            "Copy the missing files, or correct config.json."
        )
    if config.tied:
        refuse_second_head(files, parameters["embed.weight"])
    return model


def copy_tensors(file: Path, places: Mapping[str, Tensor]) -> set[str]:
    """Copy the tensors in `file` to their places, converting their type. Return their names."""
    with safe_open(file, framework="pt") as tensors:
        # Some files carry what follows from the rest: the rotary frequencies, and the head when tied.
        found = {name for name in tensors.keys() if not name.endswith("rotary_emb.inv_freq")}  # noqa: SIM118
        names = found & set(places)
        if unexpected := found - names - {"lm_head.weight"}:
            raise ModelError(
                f"{file} holds {some(unexpected)}, for which its config.json has no place. "
                "Check that config.json belongs to these weights, and that they are not an adapter."
            )
        for name in names:
            check_tensor(name, tensors.get_slice(name), places[name], file)
            places[name].copy_(tensors.get_tensor(name))
    return names


class SkipInit(TorchFunctionMode):
    """Leave out every `torch.nn.init` function."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return None
        return func(*args, **(kwargs or {}))


def uninitialised(config: TransformerConfig, dtype: torch.dtype) -> Transformer:
    """Return a network whose weights hold whatever is in memory.

    Drawing initial values for 135M weights takes 2 s, ten times as long as reading the right ones. On the
    meta device it takes no time, but `normal_` there imports the compiler (1 s), and so does `to_empty`.
    """
    with torch.device("meta"), SkipInit():
        model = Transformer(config)
    storage = {name: torch.empty(place.shape, dtype=dtype) for name, place in model.named_parameters()}
    model.load_state_dict(storage, assign=True)
    return model


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder: one, or the shards that the index lists."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise ModelError(
            f"{folder} has neither {single.name} nor {index.name}. Supported: safetensors. "
            "Save the model again with save_pretrained, which writes them."
        )
    files = [folder / name for name in sorted(set(read_json(index).get("weight_map", {}).values()))]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise ModelError(
            f"{index} lists {some(absent)}, not found in the folder. Copy or download the missing files."
        )
    return files


def check_tensor(name: str, found: Any, place: Tensor, file: Path) -> None:
    """Raise ModelError when a tensor (a safetensors slice) has not the shape or kind that its place needs."""
    if found.get_shape() != list(place.shape):
        raise ModelError(
            f"{file}: {name} has the shape {found.get_shape()}, config.json leads to {list(place.shape)}. "
            "Check that config.json belongs to these weights."
        )
    if found.get_dtype() not in FLOATS:
        raise ModelError(
            f"{file}: {name} is stored as {found.get_dtype()}, so the weights are quantised. "
            f"Supported: {', '.join(FLOATS)}. Use the model's unquantised folder, or a .gguf file."
        )


def refuse_second_head(files: Iterable[Path], embedding: Tensor) -> None:
    """Raise ModelError when a file has a head that differs from the embedding it should be tied to."""
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            if "lm_head.weight" not in set(tensors.keys()):
                continue
            if not torch.equal(tensors.get_tensor("lm_head.weight").to(embedding.dtype), embedding):
                raise ModelError(
                    f"{file} holds an lm_head.weight other than the embedding, but config.json ties them. "
                    'Set "tie_word_embeddings": false in config.json.'
                )


def some(names: Iterable[str]) -> str:
    """Return up to three names and the count of the rest."""
    ordered = sorted(names)
    rest = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + rest


def save(state: Mapping[str, Tensor], config: TransformerConfig, folder: Path, source: Path) -> None:
    """Write `state` (our parameter names, any float type) as a Hugging Face model folder.

    The weights keep their type. Config, tokenizer and chat template come from the folder `source`; the type
    of the weights is noted in `config.json`, because transformers loads in the type that stands there.
    `folder` may exist: its weights file is replaced in one step. Raises OSError when `folder` cannot be
    written, ModelError when it is `source` itself.
    """
    if folder.resolve() == source.resolve():
        raise ModelError(f"Saving to {folder} would overwrite the model it came from. Give another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    described = {
        key: value for key, value in read_json(source / "config.json").items() if key != "torch_dtype"
    }
    described["dtype"] = str(state["embed.weight"].dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(described, indent=2), encoding="utf-8")
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    tensors = {name: rows.of(state).detach().cpu().contiguous() for name, rows in layout(config).items()}
    weights = folder / "model.safetensors"
    try:
        save_file(tensors, weights, metadata={"format": "pt"})
    # The library wraps what the system said: a full disk is no damaged tensor.
    except SafetensorError as error:
        raise OSError(f"{weights}: {error}") from error
    # The library makes the file readable for its owner alone.
    shutil.copymode(folder / "config.json", weights)
