"""What a person sees of a control run: its line of progress."""

import math
from collections.abc import Mapping

from gradhat.intervals import Interval, number, written
from gradhat.training.control.evaluate import found_in
from gradhat.training.log import duration

SHOWN = (("q_error/max", "q_error", ".3g"), ("epsilon", "epsilon", ".3f"), ("entropy", "entropy", "z.3f"))
"""Metric, name on the line, form: what else a line shows where it is measured."""


def progress_line(
    metrics: Mapping[str, float], seconds_left: float, *, scale: float, eval_episodes: int
) -> str:
    """Return the one line of progress. What has not been measured yet is left out.

    `scale` is the greatest size of a return so far: it chooses the digits.
    """
    parts = [f"frames {metrics.get('num_frames', 0):,.0f}"]
    if measured := found_in(metrics):
        parts.append(f"{measured} {returned(metrics, eval_episodes, scale)}")
    if "episode/return" in metrics:
        parts.append(f"training {in_training(metrics, scale)}")
    if share := metrics.get(f"{measured}/cut"):
        parts.append(f"cut {share:.0%}")
    parts += [f"{name} {metrics[key]:{form}}" for key, name, form in SHOWN if key in metrics]
    if "frames_per_second" in metrics:
        parts.append(f"frames/s {metrics['frames_per_second']:,.0f}")
    if math.isfinite(seconds_left):
        parts.append(f"{duration(seconds_left)} left")
    return "  ".join(parts)


def returned(metrics: Mapping[str, float], eval_episodes: int, scale: float) -> str:
    """Return the measured return as people read it, beside the optimum where it is known."""
    measured = found_in(metrics)
    found = written(_ends(metrics, str(measured)), eval_episodes, scale)
    best = metrics.get("optimal_return")
    return found if best is None else f"{found}, optimal {number(best, scale)}"


def in_training(metrics: Mapping[str, float], scale: float) -> str:
    """Return the return of the training episodes of a line as people read it."""
    return written(_ends(metrics, "episode"), int(metrics["num_episodes"]), scale)


def _ends(metrics: Mapping[str, float], kind: str) -> Interval:
    """Return a mean return with its interval, unbounded where there is none."""
    return Interval(
        metrics[f"{kind}/return"],
        metrics.get(f"{kind}/low", -math.inf),
        metrics.get(f"{kind}/high", math.inf),
    )
