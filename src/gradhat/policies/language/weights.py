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
    """Rows `start` to `stop` of our parameter `name`, and the shape they have."""

    name: str
    start: int
    stop: int
    columns: int | None

    def of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return tensors[self.name][self.start : self.stop]

    @property
    def shape(self) -> list[int]:
        return [self.stop - self.start] + ([] if self.columns is None else [self.columns])


def layout(config: TransformerConfig) -> dict[str, Rows]:
    """Return, for each Hugging Face tensor name, the rows of our parameter that hold it."""
    c, width, inner = config, config.hidden_size, config.intermediate_size
    heads, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    table = {
        "model.embed_tokens.weight": Rows("embed.weight", 0, c.vocab_size, width),
        "model.norm.weight": Rows("norm.weight", 0, width, None),
    }
    if not c.tied:
        table["lm_head.weight"] = Rows("head.weight", 0, c.vocab_size, width)
    for layer in range(c.num_layers):
        theirs, ours = f"model.layers.{layer}", f"blocks.{layer}"
        table[f"{theirs}.input_layernorm.weight"] = Rows(f"{ours}.attention_norm.weight", 0, width, None)
        table[f"{theirs}.post_attention_layernorm.weight"] = Rows(f"{ours}.mlp_norm.weight", 0, width, None)
        for name, start, stop in (
            ("q", 0, heads),
            ("k", heads, heads + kv),
            ("v", heads + kv, heads + 2 * kv),
        ):
            table[f"{theirs}.self_attn.{name}_proj.weight"] = Rows(f"{ours}.qkv.weight", start, stop, width)
            if c.qkv_bias:
                table[f"{theirs}.self_attn.{name}_proj.bias"] = Rows(f"{ours}.qkv.bias", start, stop, None)
        if c.qk_norm:
            table[f"{theirs}.self_attn.q_norm.weight"] = Rows(f"{ours}.q_norm.weight", 0, c.head_dim, None)
            table[f"{theirs}.self_attn.k_norm.weight"] = Rows(f"{ours}.k_norm.weight", 0, c.head_dim, None)
        table[f"{theirs}.self_attn.o_proj.weight"] = Rows(f"{ours}.out.weight", 0, width, heads)
        table[f"{theirs}.mlp.gate_proj.weight"] = Rows(f"{ours}.gate_up.weight", 0, inner, width)
        table[f"{theirs}.mlp.up_proj.weight"] = Rows(f"{ours}.gate_up.weight", inner, 2 * inner, width)
        table[f"{theirs}.mlp.down_proj.weight"] = Rows(f"{ours}.down.weight", 0, width, inner)
    return table


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Transformer:
    """Return the network in a Hugging Face `folder`, on the CPU, with weights of `dtype`.

    Raises ModelError when a file is missing or damaged, or holds other tensors than `config.json` leads to.
    """
    config = read_config(folder)
    table = layout(config)
    model = uninitialised(config, dtype)
    parameters = {name: parameter.data for name, parameter in model.named_parameters()}
    missing = set(table)
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                names = expected_names(tensors.keys(), table, config, file)
                for name in names:
                    check_tensor(name, tensors.get_slice(name), table[name], file)
                    table[name].of(parameters).copy_(tensors.get_tensor(name))
                missing.difference_update(names)
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
    return model


class SkipInit(TorchFunctionMode):
    """Leave out every `torch.nn.init` function."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return None
        return func(*args, **(kwargs or {}))


def uninitialised(config: TransformerConfig, dtype: torch.dtype) -> Transformer:
    """Return a network whose weights hold whatever is in memory.

    Drawing initial values for 135M weights takes 2 s, ten times as long as reading the right ones. Drawing
    them on the meta device costs nothing, but its `normal_` imports the compiler: 1 s.
    """
    with torch.device("meta"), SkipInit():
        model = Transformer(config)
    return model.to(dtype).to_empty(device="cpu")


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
    files = [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise ModelError(
            f"{index} lists {some(absent)}, not found in the folder. Copy or download the missing files."
        )
    return files


def expected_names(
    names: list[str], table: Mapping[str, Rows], config: TransformerConfig, file: Path
) -> list[str]:
    """Return the names in `file` that are loaded. Raises ModelError for one that has no place."""
    # Some files carry what follows from the rest: the rotary frequencies, and the head when tied.
    derived = {"lm_head.weight"} if config.tied else set[str]()
    unexpected = [
        name
        for name in names
        if name not in table and name not in derived and not name.endswith("rotary_emb.inv_freq")
    ]
    if unexpected:
        raise ModelError(
            f"{file} holds {some(unexpected)}, for which its config.json has no place. "
            "Check that config.json belongs to these weights, and that they are not quantised or an adapter."
        )
    return [name for name in names if name in table]


def check_tensor(name: str, found: Any, rows: Rows, file: Path) -> None:
    """Raise ModelError when a tensor (a safetensors slice) has not the shape or kind that `rows` needs."""
    if found.get_shape() != rows.shape:
        raise ModelError(
            f"{file}: {name} has the shape {found.get_shape()}, config.json leads to {rows.shape}. "
            "Check that config.json belongs to these weights."
        )
    if found.get_dtype() not in FLOATS:
        raise ModelError(
            f"{file}: {name} is stored as {found.get_dtype()}, so the weights are quantised. "
            f"Supported: {', '.join(FLOATS)}. Use the model's unquantised folder, or a .gguf file."
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
