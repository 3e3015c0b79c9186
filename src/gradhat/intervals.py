"""An estimate and how far it can be trusted."""

import math
from collections.abc import Sequence
from typing import NamedTuple

Z = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    mean: float
    low: float
    high: float


def student_t(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t (Abramowitz and Stegun 1964, 26.7.5); within 1 % from 3
    degrees up.

    One and two degrees have closed forms, and the series is wrong for them.
    """
    if freedom == 1:
        return math.tan(math.pi * 0.475)
    if freedom == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z, v = Z, float(freedom)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )


def mean_interval(groups: Sequence[float]) -> Interval:
    """Return the mean of `groups` (the mean reward of each prompt, the return of each seed) and its
    95 % t-interval.

    Assumes they are drawn independently. One has no spread to measure: the interval is unbounded.
    """
    count = len(groups)
    mean = sum(groups) / count
    if count == 1:
        return Interval(mean, -math.inf, math.inf)
    deviation = math.sqrt(sum((g - mean) ** 2 for g in groups) / (count - 1))
    half = student_t(count - 1) * deviation / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)
