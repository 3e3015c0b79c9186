"""What a task answers, made plain: numbers of any library to floats, verdicts that can be stored.

Every door through which a reward comes in uses these: tasks, environments of somebody else's, reward
functions.
"""

import math
from collections.abc import Mapping
from typing import cast

from gradhat.trajectories import Verdict

MAX_REWARD = (2 - 2**-23) * 2.0**127
"""The largest finite float32, 3.4e38: rewards are computed with in that type."""


def number(found: object) -> float | None:
    """Return a finite number as a float, and None for everything else.

    A number is a scalar of Python, decimal, fractions, numpy, torch or their like, also as an array or a
    tensor of one element. Text, lists, complex numbers, NaN and infinities are none.
    """
    if isinstance(found, str | bytes | complex):
        return None
    try:
        item = getattr(found, "item", None)
        value: object = item() if callable(item) else found
        known = math.nan if isinstance(value, str | bytes) else float(cast(float, value))
    except Exception:  # several elements, a number beyond float64, a class of somebody else's
        return None
    return known + 0.0 if math.isfinite(known) else None  # -0.0 + 0.0 is 0.0


def plain(found: object) -> Verdict:
    """Return `found`, a number or a Verdict of numbers, as a Verdict of floats and text that can be stored.

    Half characters (lone surrogates) in its text become "?". ValueError says what is wrong with it.
    """
    if not isinstance(found, Verdict):
        return Verdict(_reward(found), {}, "")
    parts = cast(object, found.parts)  # a user's code is not type checked
    if not isinstance(parts, Mapping):
        raise ValueError("its parts are no dictionary. Return a finite number or a Verdict of such")
    return Verdict(
        _reward(found.reward),
        {_text(name): _part(name, value) for name, value in cast(Mapping[object, object], parts).items()},
        _text(found.why),
    )


def writable(text: str) -> str:
    """Return `text`, a "?" in place of every half character (lone surrogate), which no file can hold."""
    return str(text).encode(errors="replace").decode()


def _reward(found: object) -> float:
    reward = number(found)
    if reward is None:
        raise ValueError("return a finite number or a Verdict of such")
    if abs(reward) > MAX_REWARD:
        raise ValueError(f"rewards are float32: at most {MAX_REWARD:.1e} either way. Scale them")
    return reward


def _part(name: object, found: object) -> float:
    value = number(found)
    if value is None:
        raise ValueError(f"its part {name!r} is no finite number. Give every part a finite number")
    return value


def _text(found: object) -> str:
    if not isinstance(found, str):
        raise ValueError(
            "the reason and the names of parts are text. Return Verdict(1, {'name': 1}, 'reason')"
        )
    return writable(found)
