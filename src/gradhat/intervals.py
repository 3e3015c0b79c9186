"""An estimate and how far it can be trusted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
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


FEWEST = 4
"""Independent values from which an interval is made. Of fewer the spread is a guess: two that happen to lie
close together would make it narrow, two that do not make it wider than the world."""
FEWEST_MIDDLE = 5
"""The same for an interquartile mean, which reads the middle half of them."""


def mean_interval(groups: Sequence[float], least: float = -math.inf, most: float = math.inf) -> Interval:
    """Return the mean of `groups` (the mean reward of each prompt, the return of each seed) and its
    95 % t-interval, cut where it leaves `least` to `most`, the possible values.

    Assumes they are drawn independently. With fewer than `FEWEST` all that is possible is the interval.
    Failure case: values that are nearly always equal. While only the common one was seen, nothing is spread.
    """
    count = len(groups)
    mean = math.fsum(groups) / count
    if count < FEWEST:
        return Interval(mean, least, most)
    half = student_t(count - 1) * _standard_error(groups)
    return Interval(mean, max(least, mean - half), min(most, mean + half))


def range_interval(values: Sequence[float], least: float, most: float) -> Interval:
    """Return the mean of `values` and its 95 % interval, where every value lies in `least` to `most`.

    It is that of a share (`binomial_interval`) on this scale, of as many trials as make a normal interval as
    long as the t-interval. In the middle of the range the two are alike; near an end, where the rare values
    that a sample lacks all lie on one side, this one is longer on that side.

    Assumes they are drawn independently. Simulated it covers 95 % or more, but for means within a tenth of an
    end and values that nearly all lie at it: 82 to 93 % there. Without a range it is `mean_interval`; so it
    is where all values are equal, and nothing is spread.
    """
    found, width = mean_interval(values, least, most), most - least
    half = student_t(len(values) - 1) * _standard_error(values) if len(values) >= FEWEST else 0.0
    if half == 0 or not 0 < width < math.inf:
        return found
    p = min(1.0, max(0.0, (found.mean - least) / width))
    return trial_interval(found.mean, p * (1 - p) * (Z * width / half) ** 2, least, most)


def trial_interval(mean: float, n: float, least: float, most: float) -> Interval:
    """Return the 95 % interval of a mean that tells as much as `n` independent trials, each of which gives
    `least` or `most`: that of a share (`binomial_interval`), on this scale."""
    width = most - least
    share = binomial_interval(min(1.0, max(0.0, (mean - least) / width)), n)
    return Interval(mean, least + width * share.low, least + width * share.high)


def _standard_error(values: Sequence[float]) -> float:
    count = len(values)
    mean = math.fsum(values) / count
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count * (count - 1)))


def share_interval(shares: Sequence[float], num_trials: int) -> Interval:
    """Return the mean of `shares` `[Q]`, each of some of `num_trials` trials in all, and its 95 % interval.

    The interval of Clopper and Pearson 1934 at the effective sample size of Korn and Graubard 1998:

        n_eff = p (1 - p) / Var(p) · (t_{n-1} / t_{Q-1})²      Var(p) = Σ (p_q - p)² / (Q (Q - 1))

    and at most n = `num_trials`. Trials of one question resemble each other, so Q questions with k samples
    are worth between Q and Q·k independent ones; the quotient of the 97.5 % quantiles pays for a variance
    that Q - 1 degrees of freedom say. Where all or none succeed the variance says nothing: n_eff = Q. With
    fewer than `FEWEST` questions the interval is [0, 1].

    Assumes questions drawn at random. Simulated it covers 95 % or more from one question on, but for shares
    below 0.05 or above 0.95 with many unlike samples of each question: 88 to 93 % there.
    """
    count = len(shares)
    p = math.fsum(shares) / count
    if count < FEWEST:
        return Interval(p, 0.0, 1.0)
    if p in (0.0, 1.0):
        return binomial_interval(p, count)
    variance = math.fsum((share - p) ** 2 for share in shares) / (count * (count - 1))
    trust = (student_t(num_trials - 1) / student_t(count - 1)) ** 2
    effective = min(num_trials, p * (1 - p) * trust / variance) if variance > 0 else num_trials
    return binomial_interval(p, effective)


def binomial_interval(p: float, n: float) -> Interval:
    """Return the 95 % interval of Clopper and Pearson 1934 for a share `p` of `n` independent trials.

    `n` need not be whole: the ends are quantiles of Beta(pn, n - pn + 1) and Beta(pn + 1, n - pn). Of all
    intervals for a share it is the one that never covers less than it says.
    """
    from scipy.special import betaincinv

    hits = p * n
    low = 0.0 if p == 0 else float(betaincinv(hits, n - hits + 1, 0.025))
    high = 1.0 if p == 1 else float(betaincinv(hits + 1, n - hits, 0.975))
    return Interval(p, low, high)


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
    different difficulty add nothing to the spread (Agarwal et al. 2021, section 4). What is drawn from a
    sample spreads less than what is drawn from the world, so less than 2.5 % is cut off at each end:
    Φ(-√(N / (N - S)) t_{N-S}) for N values in S strata (Hesterberg 2015, "What Teachers Should Know About
    the Bootstrap", section 4.3). Simulated it covers 92 % of five values, 95 % or more of six and more. With
    fewer than `FEWEST_MIDDLE` values, or in a stratum of one, little can be drawn anew: it is unbounded.
    """
    import numpy as np
    from scipy.special import ndtr
    from scipy.stats import trim_mean

    count = sum(map(len, strata))
    mean = interquartile_mean([value for values in strata for value in values])
    if count < FEWEST_MIDDLE or min(map(len, strata)) == 1:
        return Interval(mean, -math.inf, math.inf)
    generator = np.random.default_rng(seed)
    drawn = [
        np.asarray(values, np.float64)[generator.integers(len(values), size=(RESAMPLES, len(values)))]
        for values in strata
    ]
    means = trim_mean(np.concatenate(drawn, axis=1), 0.25, axis=1)
    freedom = count - len(strata)
    tail = float(ndtr(-math.sqrt(count / freedom) * student_t(freedom)))
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean, float(low), float(high))


ENOUGH = 20
"""Values after which their range is taken for that of all that can come."""


@dataclass
class Seen:
    """The range of the values that were seen so far: no mean is believed to lie outside of it."""

    least: float = math.inf
    most: float = -math.inf
    count: int = 0

    def take(self, values: Sequence[float]) -> None:
        """See some more."""
        self.least, self.most = min(self.least, *values), max(self.most, *values)
        self.count += len(values)

    def bounds(self) -> tuple[float, float]:
        """Return the least and the greatest value, unbounded before `ENOUGH` were seen."""
        return (self.least, self.most) if self.count >= ENOUGH else (-math.inf, math.inf)

    def scale(self) -> float:
        """Return the greatest size of a value, 0 before any was seen."""
        return max(abs(self.least), abs(self.most)) if self.count else 0.0


def places(scale: float) -> int:
    """Return the decimals that numbers of about this size are shown with: 0.733, 7.33, 73.3."""
    return 3 if abs(scale) <= 1 else 2 if abs(scale) <= 10 else 1


def number(value: float, scale: float) -> str:
    """Return `value` as people read it in a world of this scale. There is no -0.0."""
    return f"{value:z.{places(scale)}f}"


def written(found: Interval, count: int, scale: float) -> str:
    """Return an estimate from `count` independent values as people read it: "0.470 [0.410, 0.530]".

    Without an interval the number of values stands in its place, "0.470 (n=2)", and where they are all the
    same that is said: "500.0 (all 20)".
    """
    mean, low, high = (number(value, scale) for value in found)
    if count < FEWEST or not (math.isfinite(found.low) and math.isfinite(found.high)):
        return f"{mean} (n={count})"
    if math.isclose(found.low, found.high, rel_tol=1e-9):
        return f"{mean} (all {count})"
    return f"{mean} [{low}, {high}]"
