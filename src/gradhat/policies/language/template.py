"""Chat templates: from messages to the text of a prompt, within limits."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradhat.errors import ConfigError, ModelError
from gradhat.worker import Worker, WorkerLost

Message = dict[str, str]
"""`{"role": "system" | "user" | "assistant", "content": text}`."""

SECONDS = 2.0
"""Of computing for one prompt; a template takes less than a thousandth of it."""
RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
"""Names that a template is given anyway."""
PROBE = "gradhat-question"


@functools.cache
def _worker() -> Worker:
    """The process that renders: one for all models."""
    return Worker(Path(__file__).with_name("template_worker.py"), {})


def render(
    template: str,
    variables: Mapping[str, Any],
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
) -> str:
    """Return the text that a chat template makes of `messages`: a function of them and of `variables` alone.

    A template is code of whoever made the model. It runs in Jinja's sandbox, in a process of its own that has
    `SECONDS` and half a gigabyte. ModelError when it fails, whatever it raises, or overruns.
    """
    request = {
        "template": template,
        "messages": messages,
        "variables": {**variables, "add_generation_prompt": add_generation_prompt},
    }
    roles = [turn["role"] for turn in messages]
    try:
        reply = _worker().call(request, SECONDS)
    except WorkerLost as lost:
        raise ModelError(
            f"The chat template fails on a conversation of {roles}: {lost}. It may take {SECONDS:g} s and "
            f"half a "
            "gigabyte. Use the template that the model was published with."
        ) from lost
    if "text" not in reply:
        reason = str(reply.get("error")).rstrip(".")
        raise ModelError(
            f"The chat template fails on a conversation of {roles}: {reason}. "
            "Use the roles, in the order, that the model was trained with."
        )
    return reply["text"]


def check(template: str, variables: Mapping[str, Any], where: Path) -> None:
    """Raise ModelError for a template that leaves out what the user says."""
    text = render(template, variables, [{"role": "user", "content": PROBE}], add_generation_prompt=True)
    if PROBE.casefold() not in text.casefold():
        raise ModelError(
            f"The chat template of {where} renders a prompt without the user's words. It may expect content "
            f"in "
            "parts, as models for images do; here content is text. Use the template of a text model."
        )


def arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Return the variables that NAME=VALUE texts give a template: JSON where a value is JSON, else text.

    ConfigError for a text of another form, and for a name that a template is given anyway.
    """
    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name.isidentifier() and equals) or name in RESERVED:
            raise ConfigError(
                f"--template-args {text}: found no NAME=VALUE with a name of the template's own. Write "
                "--template-args enable_thinking=false"
            )
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    constants = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in constants:
        return constants[text.lower()]
    try:
        return json.loads(text)
    except ValueError:
        return text
