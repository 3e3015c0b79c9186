"""Messages to token ids by the model's own chat template, and ids back to text."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradhat.errors import ModelError
from gradhat.policies.language.config import Json, read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Message = dict[str, str]
"""`{"role": "system" | "user" | "assistant", "content": text}`."""

MARK = "gradhat-answer"


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its chat template.

    Only prompts are tokenised. What a model sampled stays as ids: the text of them may tokenise to others.
    """

    tokenizer: "Tokenizer"
    template: str
    special_tokens: dict[str, str]
    stop_ids: frozenset[int]
    """End the model's turn: what the configs declare, and what the template writes after an answer."""

    @classmethod
    def read(cls, folder: Path) -> "Chat":
        """Return the chat of a Hugging Face `folder`.

        Raises ModelError when it has no tokenizer or no chat template, or one of them is damaged.
        """
        tokenizer = read_tokenizer(folder)
        file = folder / "tokenizer_config.json"
        config = read_json(file) if file.is_file() else {}
        template, special = read_template(folder, config), special_tokens(config)
        stops = declared_ends(folder, special, tokenizer) | end_of_turn(tokenizer, template, special)
        return cls(tokenizer, template, special, frozenset(stops))

    def encode(self, messages: list[Message]) -> list[int]:
        """Return the ids of a conversation, up to where the model's answer starts.

        Raises ModelError when the template refuses the conversation.
        """
        text = render(self.template, self.special_tokens, messages, add_generation_prompt=True)
        # The template writes the special tokens itself: none is added on top.
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int], *, special: bool = False) -> str:
        """Return the text of `ids`, with the special tokens or (default) without."""
        return self.tokenizer.decode(ids, skip_special_tokens=not special)


def read_tokenizer(folder: Path) -> "Tokenizer":
    """Return the tokenizer in `folder`: `tokenizer.json`, else what transformers makes of older files."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        return convert_tokenizer(folder)
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(file))
    # The library raises plain Exception for a file that it cannot read.
    except Exception as error:
        raise ModelError(
            f"Reading {file} failed: {error}. It is damaged. Copy or download the model again."
        ) from error


def convert_tokenizer(folder: Path) -> "Tokenizer":
    """Return the tokenizer that transformers makes of `vocab.json`, `merges.txt` or `tokenizer.model`."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder).backend_tokenizer
    # transformers reports missing and unusable files through many types, ImportError among them.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{folder} has no tokenizer.json, and transformers finds no other tokenizer there: {reason} "
            "Copy the tokenizer files of the model into the folder."
        ) from error


def read_template(folder: Path, config: Json) -> str:
    """Return the chat template: `chat_template.jinja`, else the entry of `tokenizer_config.json`."""
    file = folder / "chat_template.jinja"
    template = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if not template:
        raise ModelError(
            f"The tokenizer in {folder} has no chat template, so messages cannot be turned into tokens. "
            "Use the instruction-tuned version of the model, or put a chat_template.jinja into the folder."
        )
    return template


def special_tokens(config: Json) -> dict[str, str]:
    """Return the named special tokens that a template may write, such as `bos_token`."""
    found: dict[str, str] = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = config.get(name)
        if token is not None:
            found[name] = token["content"] if isinstance(token, dict) else token
    return found


def declared_ends(folder: Path, special: dict[str, str], tokenizer: "Tokenizer") -> set[int]:
    """Return the end tokens that generation_config.json, config.json and the tokenizer declare."""
    ends: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            token = read_json(folder / name).get("eos_token_id")
            ends.update(token if isinstance(token, list) else [] if token is None else [token])
    eos = tokenizer.token_to_id(special.get("eos_token", ""))
    return ends if eos is None else ends | {eos}


def end_of_turn(tokenizer: "Tokenizer", template: str, special: dict[str, str]) -> set[int]:
    """Return the first special token that `template` writes after an answer; the empty set if there is none.

    Some models declare only the end of a document, which they never sample in a conversation.
    """
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": MARK}]
    after = render(template, special, messages).partition(MARK)[2]
    known = {index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    ids = [index for index in tokenizer.encode(after, add_special_tokens=False).ids if index in known]
    return set(ids[:1])


def render(
    template: str, special: dict[str, str], messages: list[Message], *, add_generation_prompt: bool = False
) -> str:
    """Return the text that a chat template makes of `messages`.

    A template is code of whoever made the model; transformers runs it in a sandbox.
    """
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    variables: dict[str, Any] = {"add_generation_prompt": add_generation_prompt, **special}
    try:
        return render_jinja_template([messages], chat_template=template, **variables)[0][0]
    except TemplateError as error:
        raise ModelError(
            f"The chat template fails on a conversation of {[turn['role'] for turn in messages]}: {error}. "
            "Use the roles, in the order, that the model was trained with."
        ) from error
