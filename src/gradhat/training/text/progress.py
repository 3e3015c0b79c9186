"""What a person sees of a text run: its line of progress."""

import math
from collections.abc import Mapping

from gradhat.intervals import Interval, written
from gradhat.training.log import duration


def progress_line(
    step: int,
    num_steps: int,
    metrics: Mapping[str, float],
    seconds_left: float,
    *,
    scale: float,
) -> str:
    """Return the one line of progress. What has not been measured yet is left out.

    `scale` is the greatest size of a reward so far: it chooses the digits.
    """
    parts = [f"step {step}/{num_steps}"]
    if "held_out/reward" in metrics:
        parts.append(f"held-out {judged(metrics, 'held_out', scale)}")
    if "num_groups" in metrics:
        count = int(metrics["num_groups"])
        parts.append(f"reward {written(ends(metrics, 'reward'), count, scale)}")
    if metrics.get("num_replaced"):
        parts.append(f"replaced {metrics['num_replaced']:.0f}")
    if metrics.get("num_unjudged"):
        parts.append(f"unjudged {metrics['num_unjudged']:.0f}")
    for key, name, form in (
        ("completions/mean_length", "length", ".1f"),
        ("entropy", "entropy", "z.3f"),
        ("tokens_per_second", "tokens/s", ".0f"),
    ):
        if key in metrics:
            parts.append(f"{name} {metrics[key]:{form}}")
    if math.isfinite(seconds_left):
        parts.append(f"{duration(seconds_left)} left")
    return "  ".join(parts)


def judged(metrics: Mapping[str, float], prefix: str, scale: float) -> str:
    """Return what a measurement is judged by, as people read it: "accuracy 0.470 [0.410, 0.530]" where
    something says what solves a question, else "reward 3.75 [3.21, 4.29]".
    """
    name = "accuracy" if f"{prefix}/accuracy" in metrics else "reward"
    count = int(metrics[f"{prefix}/num_questions"])
    size = 1.0 if name == "accuracy" else scale
    return f"{name} {written(ends(metrics, f'{prefix}/{name}'), count, size)}"


def ends(metrics: Mapping[str, float], name: str) -> Interval:
    """Return the estimate `name` with its interval, unbounded where there is none."""
    return Interval(
        metrics[name], metrics.get(f"{name}_low", -math.inf), metrics.get(f"{name}_high", math.inf)
    )
