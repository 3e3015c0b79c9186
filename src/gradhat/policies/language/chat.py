"""Messages to token ids by the model's own chat template, and ids back to text."""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradhat.errors import ModelError
from gradhat.policies.language import template as templates
from gradhat.policies.language import tokenizer as tokenizers
from gradhat.policies.language.config import read_json
from gradhat.policies.language.template import Message, render

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MARK = "gradhat-answer"
ANSWER, TOKEN, END = "\ue001", "\ue002", "\ue003"
"""Signs without a meaning of their own, around what stands for an answer or a token."""


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
    template_args: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Switches of the template, such as `enable_thinking`."""
    hidden_ids: frozenset[int] = frozenset()
    """Control tokens: not part of what a completion says."""

    @classmethod
    def read(cls, folder: Path, template_args: Sequence[str] = ()) -> "Chat":
        """Return the chat of a Hugging Face `folder`, its template switched by NAME=VALUE texts.

        Raises ModelError when it has no tokenizer or no chat template, when one of them is damaged, or the
        template leaves out what is said.
        """
        tokenizer, template, special = tokenizers.read(folder)
        if not template:
            raise ModelError(
                f"The tokenizer in {folder} has no chat template, so messages cannot be turned into tokens. "
                "Use the instruction-tuned version of the model, or put a chat_template.jinja into the "
                "folder."
            )
        switches = templates.arguments(template_args)
        variables = special | switches
        before, after = answered(template, variables)
        templates.check(template, variables, folder)
        stops = declared_ends(folder, special, tokenizer) | set(special_ids(tokenizer, after)[:1])
        named = [tokenizer.token_to_id(token) for token in special.values()]
        hidden = stops | {i for i in named if i is not None} | set(special_ids(tokenizer, before + after))
        return cls(tokenizer, template, special, frozenset(stops), switches, frozenset(hidden))

    def encode(self, messages: Sequence[Message], answers: Sequence[Sequence[int]] = ()) -> list[int]:
        """Return the ids of a conversation, up to where the model's answer starts.

        They are those of `transformers.AutoTokenizer`, where no message spells a control token: that is
        ordinary text here, and no control. `answers` are the ids of the assistant's turns, in order: they
        stay what was sampled, without the stop token. Raises ModelError when the template refuses the
        conversation.
        """
        said = [self._safe(message) for message in messages]
        of_answers = [turn for turn in said if turn["role"] == "assistant"] if answers else []
        for turn, place in zip(of_answers, range(len(answers)), strict=True):
            turn["content"] = self._place(ANSWER, place)
        text = render(
            self.template,
            self.special_tokens | dict(self.template_args),
            said,
            add_generation_prompt=True,
        )
        ids: list[int] = []
        pieces = re.split(self._place(ANSWER, r"(\d+)"), text)
        for at, piece in enumerate(pieces):
            ids += self._sampled(answers[int(piece)]) if at % 2 else self._ids(piece)
        return ids

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Return the text of `ids`, with the control tokens or (default) without."""
        shown = [i for i in ids if special or i not in self.hidden_ids]
        return self.tokenizer.decode(shown, skip_special_tokens=False)

    def whole_token(self, text: str) -> int | None:
        """Return the id of the token that is matched whole and spelt `text`; None where there is none."""
        return tokenizers.added(self.tokenizer).get(text)

    @cached_property
    def _control(self) -> tuple[str, ...]:
        """How the tokens are spelt that a template writes and nobody else may."""
        special = tokenizers.special(self.tokenizer)
        written = [t for t in tokenizers.added(self.tokenizer) if t.strip() and t in self.template]
        return tuple(dict.fromkeys([*special, *written]))

    @cached_property
    def _spelling(self) -> tokenizers.SecretSpelling:
        return tokenizers.secret_spelling(self.tokenizer, frozenset(self._control))

    @cached_property
    def _nonce(self) -> str:
        # Digits and private signs only: no filter of a template changes them.
        return f"{secrets.randbits(64)}"

    def _place(self, kind: str, number: object) -> str:
        """Return what stands for an answer or a token in a text while the template has it."""
        return f"{kind}{self._nonce}-{number}{END}"

    def _safe(self, message: Message) -> Message:
        """Return `message` with stand-ins for what spells a control token."""
        content = message["content"]
        try:
            content.encode()
        except UnicodeEncodeError as error:
            raise ModelError(
                f"A message holds half of a surrogate pair, which no tokenizer knows: {error}. Clean the "
                f"text."
            ) from error
        places = {token: self._place(TOKEN, place) for place, token in enumerate(self._control)}
        safe = tokenizers.anyof(places).sub(lambda found: places[found[0]], content)
        return {**message, "content": safe}

    def _ids(self, text: str) -> list[int]:
        """Tokenise a piece of what the template wrote. It writes the special tokens itself: none is added."""
        place = re.compile(self._place(TOKEN, r"(\d+)"))
        if place.search(text) is None:
            return self.tokenizer.encode(text, add_special_tokens=False).ids
        spelling = self._spelling
        secret = tokenizers.anyof(self._control).sub(lambda found: found[0] + spelling.mark, text)
        plain = place.sub(lambda found: self._control[int(found[1])], secret)
        return spelling.tokenizer.encode(plain, add_special_tokens=False).ids

    def _sampled(self, ids: Sequence[int]) -> list[int]:
        """Return an answer without the stop token: the template writes its own."""
        return list(ids[:-1] if ids and ids[-1] in self.stop_ids else ids)


def declared_ends(folder: Path, special: Mapping[str, str], tokenizer: "Tokenizer") -> set[int]:
    """Return the end tokens that generation_config.json, config.json and the tokenizer declare."""
    ends: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        if (folder / name).is_file():
            token = read_json(folder / name).get("eos_token_id")
            tokens = token if isinstance(token, list) else [] if token is None else [token]
            if not all(type(t) is int and t >= 0 for t in tokens):
                raise ModelError(
                    f"{folder / name}: eos_token_id is needed as a token id or a list of them, found "
                    f"{token!r}. "
                    f"Correct {name}."
                )
            ends.update(tokens)
    eos = tokenizer.token_to_id(special.get("eos_token", ""))
    return ends if eos is None else ends | {eos}


def answered(template: str, variables: Mapping[str, Any]) -> tuple[str, str]:
    """Return what `template` writes before and after an answer; nothing behind where it rewrites answers."""
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": MARK}]
    before, _, after = render(template, variables, messages).partition(MARK)
    return before, after


def special_ids(tokenizer: "Tokenizer", text: str) -> list[int]:
    """Return the special tokens in `text`, in order.

    The first one behind an answer ends it. Some models declare only the end of a document, which they never
    sample in a conversation.
    """
    known = set(tokenizers.special(tokenizer).values())
    return [index for index in tokenizer.encode(text, add_special_tokens=False).ids if index in known]
