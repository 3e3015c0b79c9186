"""Models in and out: from a name to a Hugging Face folder, from the folder to a `Transformer`, and back.

One table, `layout`, says which rows of which of our parameters a Hugging Face tensor is. Loading, saving and
the checks read it.
"""

import difflib
import hashlib
import json
import re
import shutil
from collections.abc import Collection, Generator, Iterable, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gradhat.errors import ModelError
from gradhat.places import exists, home, is_folder
from gradhat.policies.language.alias import ALIASES, cached, fetch_smollm2, kept
from gradhat.policies.language.config import COMPANIONS, own, read_config, read_json
from gradhat.policies.language.gguf import convert, described
from gradhat.policies.language.transformer import Transformer, TransformerConfig

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
FLOATS = ("F32", "BF16", "F16", "F64")


SAMPLE, SAMPLES = 1 << 12, 64
"""Bytes of a sample of a file of weights, and how many are taken of a large one."""
HUB = "hf:"
"""What a model of the hub begins with, as in hf:owner/name."""


def resolve(model: str) -> Path:
    """Return a Hugging Face folder on disk for a model's name.

    `model` is an alias (`smollm2-135m`), a folder, a `.gguf` file, or `hf:owner/name`, a model of the hub.
    What is not a folder yet is fetched or converted once and kept in the cache. Raises ModelError when none
    of these fits, or what fits cannot be reached or used.
    """
    if model in ALIASES:
        return cached(model, fetch_smollm2)
    if model.startswith(HUB):
        return from_hub(check_hub_name(model))
    path = home(model)
    if is_folder(path):
        read_config(path)
        return path
    if exists(path) and path.suffix == ".gguf":
        return cached(gguf_key(path), partial(convert_whole, path))
    found = "a file that is not .gguf" if exists(path) else "no such alias, folder or file"
    raise ModelError(
        f"The model {model!r} is unknown: {found}.{near(model)} Known aliases: {', '.join(ALIASES)}. "
        "Also accepted: a run, a Hugging Face model folder, a .gguf file, a hub id, which is written "
        "hf:owner/name."
    )


def at_hand(model: str) -> Path | None:
    """Return the folder of `resolve(model)` where nothing has to be fetched or converted for it, else None.

    ModelError for a name that is none, and for a GGUF file that is none.
    """
    if model in ALIASES:
        return kept(model)
    if model.startswith(HUB):
        check_hub_name(model)
        return None
    path = home(model)
    if exists(path) and path.suffix == ".gguf" and not path.is_dir():
        found = kept(gguf_key(path))
        if found is None:
            described(path)
        return found
    return resolve(model)


def near(model: str) -> str:
    """Return " Did you mean X?" for the aliases, the runs and what lies beside `model` that are most like
    it."""
    places = {home(model).parent, Path("runs")}
    known = [*ALIASES, *(str(path) for place in places if exists(place) for path in _folders(place))]
    found = difflib.get_close_matches(str(home(model)), known, n=3)
    return f" Did you mean {' or '.join(found)}?" if found else ""


def _folders(place: Path) -> list[Path]:
    try:
        return [path for path in place.iterdir() if path.is_dir() or path.suffix == ".gguf"]
    except OSError:  # a hint is worth no error of its own
        return []


def convert_whole(file: Path, folder: Path) -> None:
    """Convert a GGUF `file` into `folder`, and see that its tensors are those that its shape leads to.

    A folder that cannot be loaded is not kept.
    """
    convert(file, folder)
    _, missing = promised(folder)
    if missing:
        raise ModelError(
            f"{file} lacks {some(missing)}, which its shape promises. Copy or download it again."
        )


def outline(folder: Path) -> Transformer:
    """Return the network in a Hugging Face `folder` without memory for its weights.

    Only the headers of its files are read. Raises ModelError as `load` does for what they show.
    """
    network, missing = promised(folder)
    if missing:
        raise lacking(folder, missing)
    return network


def promised(folder: Path) -> tuple[Transformer, set[str]]:
    """Return the network that `config.json` leads to, without its weights, and which tensors its files lack.

    ModelError for tensors of other names, shapes or kinds.
    """
    config, files = read_config(folder), weight_files(folder)
    found = set[str]().union(*map(tensor_names, files))
    refuse_empty_promises(config, files)
    network = shapes(config)
    places = named(config, found, dict(network.named_parameters()))
    missing = set(places)
    for part in files:
        with opened(part) as tensors:
            missing -= matching(tensors, places, part)
    return network, missing


def fingerprint(folder: Path) -> str:
    """Return a hash of a model folder: of tokenizer and template, and of the size and some of the bytes of
    each file of weights.

    Cheap for large weights, and another one after any training. A copy elsewhere has the same.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in COMPANIONS:
        if own(folder, name).is_file():
            digest.update((folder / name).read_bytes())
    for file in weight_files(folder):
        size = file.stat().st_size
        digest.update(size.to_bytes(8))
        with file.open("rb") as content:
            for place in range(0, size, max(SAMPLE, size // SAMPLES)):
                content.seek(place)
                digest.update(content.read(SAMPLE))
    return digest.hexdigest()


def gguf_key(file: Path) -> str:
    """Return the cache name of a GGUF file: another file, or the same one changed, has another."""
    stat = file.stat()
    mark = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}"
    return f"{file.stem}-{hashlib.blake2b(mark.encode(), digest_size=6).hexdigest()}"


def check_hub_name(model: str) -> str:
    """Return "owner/name" of "hf:owner/name". ModelError where it is written otherwise."""
    name = model.removeprefix(HUB)
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is None:
        raise ModelError(
            f"The model {model} is unknown: a model of the hub is written {HUB}owner/name. "
            "Look its name up on the hub."
        )
    return name


def from_hub(name: str) -> Path:
    """Download the model `owner/name` from the hub, or find it in the hub's own cache."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "model*.safetensors", "*.jinja", "merges.txt", "tokenizer.model"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["*/*"]))
    # The hub client lets errors of its HTTP library through: name, network, proxy, rights, disk.
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"The model {name!r} was asked for, and the model hub could not give it: {reason}\n"
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
        EMBEDDING: Rows("embed.weight"),
        "model.norm.weight": Rows("norm.weight"),
    }
    if not config.tied:
        table[HEAD] = Rows("head.weight")
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
    config, files = read_config(folder), weight_files(folder)
    found = set[str]().union(*map(tensor_names, files))
    refuse_empty_promises(config, files)
    model = uninitialised(config, dtype)
    parameters = {name: parameter.data for name, parameter in model.named_parameters()}
    places = named(config, found, parameters)
    missing = set(places)
    for file in files:
        missing -= copy_tensors(file, places)
    if missing:
        raise lacking(folder, missing)
    if config.tied and EMBEDDING in places:
        refuse_second_head(files, parameters["embed.weight"])
    return model


def named(
    config: TransformerConfig, found: Collection[str], parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return rows of our `parameters` under the names that they have in files with the tensors `found`."""
    places = {name: rows.of(parameters) for name, rows in layout(config).items()}
    if config.tied and HEAD in found and EMBEDDING not in found:
        # What both share is stored once, under the name of the other.
        places[HEAD] = places.pop(EMBEDDING)
    return places


def lacking(folder: Path, missing: Iterable[str]) -> ModelError:
    return ModelError(
        f"The weights in {folder} lack {some(missing)}, which its config.json promises. "
        "Copy the missing files, or correct config.json."
    )


def refuse_empty_promises(config: TransformerConfig, files: Iterable[Path]) -> None:
    """Raise ModelError where `config` promises more numbers than its files have bytes, before memory for them
    is taken."""
    c = config
    heads, kv_heads = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    layer = c.hidden_size * (2 * heads + 2 * kv_heads + 3 * c.intermediate_size)
    promised = c.num_layers * layer + c.vocab_size * c.hidden_size * (1 if c.tied else 2)
    held = sum(file.stat().st_size for file in files)
    if promised > held:
        raise ModelError(
            f"config.json promises {promised:,} numbers, but {', '.join(file.name for file in files)} in "
            f"{next(iter(files)).parent} lack most of them: {held:,} bytes. A file is damaged or cut short, "
            f"or "
            "config.json is another model's."
        )


@contextmanager
def opened(file: Path) -> Generator[Any]:
    """Open a safetensors file. What the library says against it, then or later, becomes a ModelError."""
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(
            f"Reading {file} failed: {error}. The file is damaged or cut short. "
            "Copy or download it again; a folder in gradhat's cache can be deleted, it is made again."
        ) from error


def tensor_names(file: Path) -> set[str]:
    """Return the names of the tensors in `file`."""
    with opened(file) as tensors:
        return set(tensors.keys())


def matching(tensors: Any, places: Mapping[str, Tensor], file: Path) -> set[str]:
    """Return the names of the `tensors` of an open file that belong into `places`.

    ModelError for one that has no place, or another shape or kind than its place.
    """
    # Some files carry what follows from the rest: the rotary frequencies, and the head when tied.
    found = {name for name in tensors.keys() if not name.endswith("rotary_emb.inv_freq")}  # noqa: SIM118
    names = found & set(places)
    if unexpected := found - names - {HEAD}:
        raise ModelError(
            f"{file} holds {some(unexpected)}, for which its config.json has no place. "
            "Check that config.json belongs to these weights, and that they are not an adapter."
        )
    for name in names:
        check_tensor(name, tensors.get_slice(name), places[name], file)
    return names


def copy_tensors(file: Path, places: Mapping[str, Tensor]) -> set[str]:
    """Copy the tensors in `file` to their places, converting their type. Return their names."""
    with opened(file) as tensors:
        names = matching(tensors, places, file)
        for name in names:
            places[name].copy_(tensors.get_tensor(name))
    return names


class SkipInit(TorchFunctionMode):
    """Leave out every `torch.nn.init` function."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return None
        return func(*args, **(kwargs or {}))


def shapes(config: TransformerConfig) -> Transformer:
    """Return a network without memory for its weights."""
    with torch.device("meta"), SkipInit():
        return Transformer(config)


def uninitialised(config: TransformerConfig, dtype: torch.dtype) -> Transformer:
    """Return a network whose weights hold whatever is in memory.

    Drawing initial values for 135M weights takes 2 s, ten times as long as reading the right ones. On the
    meta device it takes no time, but `normal_` there imports the compiler (1 s), and so does `to_empty`.
    """
    model = shapes(config)
    storage = {name: torch.empty(place.shape, dtype=dtype) for name, place in model.named_parameters()}
    model.load_state_dict(storage, assign=True)
    return model


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a model folder: one, or the shards that the index lists."""
    single = own(folder, "model.safetensors")
    index = folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise ModelError(
            f"{folder} has neither {single.name} nor {index.name}. Supported: safetensors. "
            "Save the model again with save_pretrained, which writes them."
        )
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(n, str) for n in listed.values()):
        raise ModelError(
            f"{index} has no weight_map from tensors to files. It is damaged. Copy or download the model "
            f"again."
        )
    files = [own(folder, name) for name in sorted(set(listed.values()))]
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
        with opened(file) as tensors:
            if HEAD not in set(tensors.keys()):
                continue
            if not torch.equal(tensors.get_tensor(HEAD).to(embedding.dtype), embedding):
                raise ModelError(
                    f"{file} holds an lm_head.weight other than the embedding, but config.json ties them. "
                    'Set "tie_word_embeddings": false in config.json.'
                )


def some(names: Iterable[str]) -> str:
    """Return up to three names and the count of the rest."""
    ordered = sorted(names)
    rest = f" and {len(ordered) - 3} more" if len(ordered) > 3 else ""
    return ", ".join(ordered[:3]) + rest


def save(
    state: Mapping[str, Tensor],
    config: TransformerConfig,
    folder: Path,
    source: Path,
    *,
    stop_ids: Collection[int] = (),
) -> None:
    """Write `state` (our parameter names, any float type) as a Hugging Face model folder.

    The weights keep their type. Config, tokenizer and chat template come from the folder `source`; the type
    of the weights is noted in `config.json`, because transformers loads in the type that stands there, and
    `stop_ids` as the tokens that end an answer, so that every reader of the folder stops where this one does.
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
    for name in COMPANIONS:
        if own(source, name).is_file():
            shutil.copyfile(source / name, folder / name)
    if stop_ids:
        generation = folder / "generation_config.json"
        ends = {"eos_token_id": sorted(stop_ids)}
        described |= ends
        write_json(generation, (read_json(generation) if generation.is_file() else {}) | ends)
    write_json(folder / "config.json", described)
    tensors = {name: rows.of(state).detach().cpu().contiguous() for name, rows in layout(config).items()}
    weights = folder / "model.safetensors"
    try:
        save_file(tensors, weights, metadata={"format": "pt"})
    # The library wraps what the system said: a full disk is no damaged tensor.
    except SafetensorError as error:
        raise OSError(f"{weights}: {error}") from error
    # The library makes the file readable for its owner alone.
    shutil.copymode(folder / "config.json", weights)


def write_json(path: Path, contents: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(contents, indent=2), encoding="utf-8")
