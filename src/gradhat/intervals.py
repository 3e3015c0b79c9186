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


RESAMPLES = 5000
"""Bootstrap samples: the ends of an interval then wander by about 2 % of its width."""


def interquartile_mean(values: Sequence[float]) -> float:
    """Return the mean of `values` without the lowest and the highest quarter.

    From each end ⌊n/4⌋ values are left out, as in Agarwal et al. 2021, "Deep Reinforcement Learning at the
    Edge of the Statistical Precipice", section 4: an outlier moves it less than the mean, and it needs fewer
    runs than the median.
    """
    from scipy.stats import trim_mean

    return float(trim_mean(values, 0.25))


def interquartile_interval(strata: Sequence[Sequence[float]], seed: int = 0) -> Interval:
    """Return the interquartile mean of all values of `strata` (the runs of each task) and its 95 % interval
    by a stratified bootstrap.

    Every stratum is drawn anew from itself, with replacement and as many as it has, so that tasks of
    different difficulty add nothing to the spread. The interval lies between the 2.5 % and the 97.5 %
    quantile (Agarwal et al. 2021, section 4). With fewer than about ten values it is narrower than it should
    be: five runs hold too few of the outcomes that could have been. A stratum of one cannot be drawn anew:
    the interval is unbounded.
    """
    import numpy as np
    from scipy.stats import trim_mean

    mean = interquartile_mean([value for values in strata for value in values])
    if min(map(len, strata)) == 1:
        return Interval(mean, -math.inf, math.inf)
    generator = np.random.default_rng(seed)
    drawn = [
        np.asarray(values, np.float64)[generator.integers(len(values), size=(RESAMPLES, len(values)))]
        for values in strata
    ]
    means = trim_mean(np.concatenate(drawn, axis=1), 0.25, axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(mean, float(low), float(high))
