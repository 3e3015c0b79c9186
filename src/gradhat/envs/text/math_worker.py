"""The other side of the pipe for math-verify: compares formulas in a process that can do little else.

Run as a script, never imported by the package. The library hands text to Python's own parser, so this process
can do little: confined.py.
"""

import importlib.util
import json
import logging
import math
import sys
from pathlib import Path
from typing import Any

MOST_DIGITS = 10_000
"""Of a number that is worth computing."""
LATEX = "^_\\{!"
"""Signs that only a formula has."""
FACTORIALS = ("factorial", "factorial2", "subfactorial", "gamma")


def digits(formula: Any) -> float:
    """Return about how many digits a formula comes to at most, infinitely many for a tower of powers.

    Nothing of it is computed: 9**9**9**9 is a few nodes until somebody asks for its value. A letter counts as
    one digit, what a function makes of a number as many as the number has.
    """
    if getattr(formula, "is_Number", False):
        return _length(formula)
    parts = [digits(part) for part in getattr(formula, "args", ())]
    match type(formula).__name__, parts:
        case "Pow", [base, power]:
            return base * _value(power) if base else 0.0
        case "exp", [size]:
            return _value(size)
        case kind, [size] if kind in FACTORIALS:
            return _value(size) * max(size, 1.0)
        case "Mul", _:
            return sum(parts)
        case _:
            return max(parts, default=1.0) + math.log10(max(len(parts), 1))


def _length(number: Any) -> float:
    """Return the digits of a number, of the longer one of a fraction's two."""
    if not number.is_finite:
        return 1.0
    pair = (int(number.p), int(number.q)) if number.is_Rational else (float(number),)
    return max(abs(math.log10(abs(n))) if n else 0.0 for n in pair)


def _value(size: float) -> float:
    """Return the largest number of so many digits, as far as a float can tell."""
    return 10.0 ** min(size, 300.0)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Return whether completion and answer are equal, and what was read of the completion.

    What comes to more than `MOST_DIGITS` is not computed: it equals what is written alike, and nothing else.
    """
    from math_verify import parse, verify

    # The library's own limits need signals of this process; the kernel's limit on it does as well.
    text = request["answer"]
    # Outside of dollars the library takes the first number that it finds, of 2^{10} the 2.
    is_bare = "$" not in text and any(sign in text for sign in LATEX)
    gold = parse(f"${text}$", parsing_timeout=0) if is_bare else parse(text, parsing_timeout=0)
    gold = gold or parse(text if is_bare else f"${text}$", parsing_timeout=0)
    if not gold:
        return {"broken": f"the right answer {text[:80]!r} is no formula"}
    found = parse(request["completion"], parsing_timeout=0)
    if found and max(digits(gold[0]), digits(found[0])) > MOST_DIGITS:
        return {"right": found[0] == gold[0], "read": f"a number of more than {MOST_DIGITS} digits"}
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
