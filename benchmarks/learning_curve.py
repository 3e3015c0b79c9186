"""Draw held-out accuracy against steps of training, one line a run, from the metrics of run folders.

python benchmarks/learning_curve.py OUT.png RUN [RUN ...]
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

INK, GREY = "#1b1b1b", "#8a8a8a"
LABEL_GAP = 0.06
"""Least distance of two labels, as a share of the height."""
LINES = ("#1f5fbf", "#d1495b", "#2a9d8f", "#e09f3e", "#7b5ea7")


def curve(run: Path) -> tuple[list[float], list[float], list[float], list[float]]:
    """Return steps, held-out accuracy and its interval, wherever it was measured."""
    points = dict[int, tuple[float, ...]]()
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        if "held_out/accuracy" in row:
            ends = (row[f"held_out/accuracy{end}"] for end in ("", "_low", "_high"))
            # What is measured after the last step takes the place of what was measured in it.
            points[row["step"]] = (row["step"], *ends)
    first, second, third, fourth = (list(column) for column in zip(*points.values(), strict=True))
    return first, second, third, fourth


def draw(out: Path, runs: list[Path]) -> None:
    """Write the picture."""
    figure, axes = plt.subplots(figsize=(7.2, 3.8), dpi=150)
    ends: list[tuple[float, str, str]] = []
    for run, colour in zip(runs, LINES, strict=False):
        steps, accuracy, low, high = curve(run)
        seed = json.loads((run / "config.json").read_text())["seed"]
        axes.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.plot(steps, accuracy, color=colour, linewidth=1.8, marker="o", markersize=3.5)
        ends.append((accuracy[-1], f"seed {seed}: {accuracy[-1]:.2f}", colour))
    height = 1.0
    for accuracy_at_end, label, colour in sorted(ends, reverse=True):
        height = min(accuracy_at_end, height - LABEL_GAP)
        where = {"xy": (1.02, height), "xycoords": axes.get_yaxis_transform()}
        axes.annotate(label, **where, color=colour, fontsize=9, va="center", annotation_clip=False)
    config = json.loads((runs[0] / "config.json").read_text())
    axes.set_title(
        f"{config['task']}: held-out accuracy at temperature 1", fontsize=10, color=INK, loc="left"
    )
    axes.set_xlabel("steps of training (band: 95 % interval over questions)", color=GREY)
    axes.set_ylim(0, 1)
    axes.set_xlim(left=0)
    axes.margins(x=0.02)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=GREY)
    figure.subplots_adjust(left=0.08, right=0.86, top=0.9, bottom=0.14)
    figure.savefig(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    args = parser.parse_args()
    draw(args.out, args.runs)
