"""The other side of the pipe: renders chat templates, which are code of whoever made the model.

Run as a script, never imported by the package; it needs nothing of gradhat. Jinja's sandbox keeps a template
from the machine, the process limits its time and memory. The environment is the one that transformers gives
to templates (`transformers.utils.chat_template_utils`), without what would make a prompt more than a
function of its messages: the present date and random choices.
"""

import functools
import json
import resource
import sys
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes, sandbox
from jinja2.parser import Parser

MEMORY_BYTES = 1 << 29
LONGEST = 1 << 19
"""Characters of the longest prompt: far more than any context holds."""


class Generation(jinja2.ext.Extension):
    """The tag `generation`, with which some templates mark the model's words. It changes nothing here."""

    tags: set[str] = {"generation"}  # noqa: RUF012 -- as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

    def _as_it_is(self, caller: Any) -> str:
        return caller()


class Namespace(jinja2.utils.Namespace):
    """`namespace(...)`, without names that lead into Python."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        for name in dict(*args, **kwargs):
            Namespace.check(name)
        jinja2.utils.Namespace.__init__(self, *args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        Namespace.check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def check(name: str) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"namespace: the name {name!r} begins with an underscore")


class Dictionary:
    """`dict(...)` and `dict.fromkeys(...)`, and nothing else of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def fail(message: object) -> NoReturn:
    """`raise_exception`: what a template calls to refuse a conversation."""
    raise jinja2.TemplateError(str(message))


def present_date(_form: object) -> NoReturn:
    raise jinja2.TemplateError(
        "it asks for the present date, so that a prompt would be another one tomorrow: give the date, as in "
        "--template-args date_string='26 Jul 2024', under the name that the template reads"
    )


def choose(*_args: object, **_kwargs: object) -> NoReturn:
    raise jinja2.TemplateError("it draws at random: a prompt is a function of its messages")


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson` without Jinja's escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@functools.lru_cache(maxsize=8)
def compiled(template: str) -> jinja2.Template:
    environment = sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters.update(tojson=to_json, random=choose)
    names: dict[str, Any] = environment.globals
    names.update(
        raise_exception=fail,
        strftime_now=present_date,
        dict=Dictionary(),
        namespace=Namespace,
        lipsum=choose,
    )
    return environment.from_string(template)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return the text, or why there is none."""
    if "template" not in request:
        return {}
    try:
        text = compiled(request["template"]).render(
            messages=request["messages"], tools=None, documents=None, **request["variables"]
        )
    # A template may raise anything, MemoryError and RecursionError among it.
    except Exception as error:
        return {"error": str(error)[:500] or type(error).__name__}
    if len(text) > LONGEST:
        return {"error": f"it writes {len(text)} characters"}
    return {"text": text}


def limit_time(seconds: float) -> None:
    """Let the kernel end this process when it computes for more than `seconds`, rounded up, from now."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(usage.ru_utime + usage.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def main() -> None:
    """Answer each line of input until it ends."""
    for limit, value in ((resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_FSIZE, 0)):
        try:
            resource.setrlimit(limit, (value, value))
        except (ValueError, OSError):
            continue  # macOS knows no RLIMIT_AS; the time limit remains
    for line in sys.stdin:
        request = json.loads(line)
        limit_time(request.get("seconds", 60))
        print(json.dumps({"id": request["id"], **answer(request)}), flush=True)


if __name__ == "__main__":
    main()
