"""Tokenizers as transformers reads them, and which of their tokens are no text."""

import json
import re
import secrets
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gradhat.errors import ModelError
from gradhat.policies.language.config import COMPANIONS, Json, own, read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Tokenizers that are what `tokenizer.json` says. The class of another one may change it."""


class Read(NamedTuple):
    """What a folder says of its tokenizer."""

    tokenizer: "Tokenizer"
    template: str
    """The chat template; empty where there is none."""
    special_tokens: dict[str, str]
    """The named ones that a template may write, such as `bos_token`."""


def read(folder: Path) -> Read:
    """Return the tokenizer in `folder`, as `transformers.AutoTokenizer` reads it.

    Nothing of the folder is executed: ModelError for one that needs code of its own, and for one without a
    tokenizer or with a damaged one.
    """
    present = [name for name in COMPANIONS if own(folder, name).exists()]
    objects = {name: read_json(folder / name) for name in present if name.endswith(".json")}
    config = objects.get("tokenizer_config.json", {})
    refuse_code(folder, config)
    try:
        return _from_transformers(folder, config)
    except (KeyboardInterrupt, SystemExit, ModelError):
        raise
    # The libraries report missing, damaged and odd files through many types; a panic in Rust is no Exception.
    except BaseException as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if (folder / "tokenizer.json").is_file():
            raise ModelError(
                f"Reading the tokenizer of {folder} failed: {reason}. tokenizer.json or a file beside it is "
                f"damaged. "
                "Copy or download the model again."
            ) from error
        raise ModelError(
            f"{folder} has no tokenizer.json, and transformers finds no other tokenizer there: {reason} "
            "Copy the tokenizer files of the model into the folder."
        ) from error


def refuse_code(folder: Path, config: Json) -> None:
    """Raise ModelError where the tokenizer is a class in a file of the folder."""
    named = config.get("auto_map")
    if named and not (folder / "tokenizer.json").is_file():
        raise ModelError(
            f"The tokenizer of {folder} is code in the folder itself ({json.dumps(named)}), and no code of "
            f"a model "
            "is executed. Save it once as tokenizer.json, where you trust it."
        )


def _from_transformers(folder: Path, config: Json) -> Read:
    from transformers.utils import logging

    # What it has to say about the folder is said by an error or not at all.
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        found = _load(folder, config)
    finally:
        logging.set_verbosity(level)
    template = found.get_chat_template() if found.chat_template else ""
    if not isinstance(template, str):
        raise ModelError(
            f"The chat template in {folder} is no text, but {template!r}. Copy or download the model again."
        )
    return Read(found.backend_tokenizer, template, dict(found.special_tokens_map))


def _load(folder: Path, config: Json) -> Any:
    # transformers takes tokens with attributes from special_tokens_map.json; here it wants its own mark on
    # them.
    named = {
        key: value["content"]
        for key, value in config.items()
        if key.endswith("_token") and isinstance(value, dict) and "content" in value and "__type" not in value
    }
    plain = (folder / "tokenizer.json").is_file() and config.get("tokenizer_class") in PLAIN_CLASSES
    if plain and _family(folder) in ("", "llama"):
        # The same in a third of the time: finding the class means to import a table of all models.
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True, **named)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **named)


def _family(folder: Path) -> str:
    file = folder / "config.json"
    return str(read_json(file).get("model_type", "")) if file.is_file() else ""


def added(tokenizer: "Tokenizer") -> dict[str, int]:
    """Return the tokens that are matched whole wherever they stand in a text, special or not, and their
    ids."""
    return {token.content: index for index, token in tokenizer.get_added_tokens_decoder().items()}


def special(tokenizer: "Tokenizer") -> dict[str, int]:
    """Return those that are declared special."""
    found = tokenizer.get_added_tokens_decoder().items()
    return {token.content: index for index, token in found if token.special}


def anyof(words: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that finds any of `words`, of two at one place the longer."""
    return re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))) or "(?!)")


class SecretSpelling(NamedTuple):
    """A tokenizer whose control tokens are spelt so that no text from elsewhere can spell them."""

    tokenizer: "Tokenizer"
    mark: str
    """Follows each control token."""


def secret_spelling(tokenizer: "Tokenizer", control: Collection[str]) -> SecretSpelling:
    """Return the same tokenizer, but for the spelling of the tokens `control`."""
    from tokenizers import Tokenizer

    mark = secrets.token_hex(8)
    described = json.loads(tokenizer.to_str())

    def spelt(piece: str) -> str:
        return piece + mark if piece in control else piece

    for token in described["added_tokens"]:
        token["content"] = spelt(token["content"])
    model = described["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {spelt(piece): index for piece, index in model["vocab"].items()}
    else:
        model["vocab"] = [[spelt(piece), score] for piece, score in model["vocab"]]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = spelt(model["unk_token"])
    described["post_processor"] = None
    return SecretSpelling(Tokenizer.from_str(json.dumps(described)), mark)
