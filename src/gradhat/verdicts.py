"""What a task answers, made plain: numbers of any library to floats, verdicts that can be stored.

Every door through which a reward comes in uses these: tasks, environments of somebody else's, reward
functions.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from gradhat.errors import TaskError
from gradhat.trajectories import Verdict

PATIENCE = 16
"""Failed verdicts in a row that a run bears, less one, where nobody chose another number."""
MAX_REWARD = (2 - 2**-23) * 2.0**127
"""The largest finite float32, 3.4e38: rewards are computed with in that type."""
LIMIT = f"rewards are float32: at most {MAX_REWARD:.1e} either way"


def number(found: object) -> float | None:
    """Return a finite number as a float, and None for everything else.

    A number is a scalar of Python, decimal, fractions, numpy, torch or their like, also as an array or a
    tensor of one element. Text, lists, complex numbers, NaN, infinities and what NumPy masks are none.
    """
    if isinstance(found, str | bytes | complex):
        return None
    try:
        if _masked(found):
            return None
        item = getattr(found, "item", None)
        value: object = item() if callable(item) else found
        known = math.nan if isinstance(value, str | bytes) else float(cast(float, value))
    except Exception:  # several elements, a number beyond float64, a class of somebody else's
        return None
    return known + 0.0 if math.isfinite(known) else None  # -0.0 + 0.0 is 0.0


def _masked(found: object) -> bool:
    """Return whether a value is marked as missing, as one of a masked array is: it reads as 0.0."""
    mask: Any = getattr(found, "mask", False)
    return not callable(mask) and bool(mask)


def plain(found: object) -> Verdict:
    """Return `found`, a number or a Verdict of numbers, as a Verdict of floats and text that can be stored.

    Half characters (lone surrogates) in its text become "?". ValueError says what is wrong with it.
    """
    if not isinstance(found, Verdict):
        return Verdict(_reward(found), {}, "")
    parts, why = cast(object, found.parts), cast(object, found.why)  # a user's code is not type checked
    if number(found.reward) is None and isinstance(why, str) and why:
        raise ValueError(f"return a finite number or a Verdict of such. It says: {writable(why)}")
    if not isinstance(parts, Mapping):
        raise ValueError("its parts are no dictionary. Return a finite number or a Verdict of such")
    return Verdict(
        _reward(found.reward),
        {_text(name): _part(name, value) for name, value in cast(Mapping[object, object], parts).items()},
        _text(why),
    )


@dataclass
class Failures:
    """Failed verdicts are data, until there are `most` in a row: then whoever judges is gone for good."""

    most: int = 1
    in_a_row: int = 0

    def bear(self, judge: Callable[[], Verdict]) -> Verdict:
        """Return the verdict of `judge()`, one without a reward where it is a TaskError that can be borne."""
        try:
            verdict = judge()
        except TaskError as error:
            return self.failed(error)
        self.in_a_row = 0
        return verdict

    def failed(self, error: TaskError) -> Verdict:
        """Return the verdict of a call that failed. The last of `most` in a row is a TaskError."""
        self.in_a_row += 1
        if self.in_a_row < self.most:
            return Verdict(math.nan, {}, writable(str(error)))
        if self.most == 1:
            raise error
        raise TaskError(f"{error} No verdict came {self.most} times in a row: the run stops.") from error


def writable(text: str) -> str:
    """Return `text`, a "?" in place of every half character (lone surrogate), which no file can hold."""
    return str(text).encode(errors="replace").decode()


def _reward(found: object) -> float:
    reward = number(found)
    if reward is None:
        raise ValueError("return a finite number or a Verdict of such")
    if abs(reward) > MAX_REWARD:
        raise ValueError(f"{LIMIT}. Scale them")
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
