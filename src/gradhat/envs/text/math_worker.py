"""The other side of the pipe for math-verify: compares formulas in a process that can do little else.

Run as a script, never imported by the package. The library hands text to Python's own parser, so this process
can do little: confined.py.
"""

import importlib.util
import json
import logging
import sys
from pathlib import Path
from typing import Any


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return whether completion and answer are equal, and what was read of the completion."""
    from math_verify import parse, verify

    # The library's own limits need signals of this process; the kernel's limit on it does as well.
    gold = parse(request["answer"], parsing_timeout=0)
    gold = gold or parse(f"${request['answer']}$", parsing_timeout=0)
    if not gold:
        return {"broken": f"the right answer {request['answer'][:80]!r} is no formula"}
    found = parse(request["completion"], parsing_timeout=0)
    return {"right": bool(found) and verify(gold, found, timeout_seconds=0), "read": str(found[-1:])[:200]}


def main() -> None:
    """Import the library while that is still allowed, then answer."""
    spec = importlib.util.spec_from_file_location("confined", Path(__file__).with_name("confined.py"))
    assert spec is not None and spec.loader is not None
    rules = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rules)
    out = rules.replies()
    logging.disable()
    opening = json.loads(sys.stdin.readline())
    reply: dict[str, Any] = {"opened": True}
    try:
        answer({"answer": "1", "completion": "1"})
    except Exception as error:
        reply = {"error": "import", "cause": f"{type(error).__name__}: {error}"[:200]}
    print(json.dumps({**reply, "id": opening["id"]}), file=out, flush=True)
    if "error" not in reply:
        rules.serve(answer, out)


if __name__ == "__main__":
    main()
