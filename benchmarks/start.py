"""How long a user waits for the help text, and for the first sampled token. Prints one JSON line.

python benchmarks/start.py [--runs 5]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

FIRST_TOKEN = """
from gradhat.recipes.first_light import first_light
from gradhat.rollouts.engine import Limits
from gradhat.training.text.loop import prepare

session = prepare(first_light())
start = next(session.source)
messages, _ = start.make().reset(seed=start.seed)
session.engine.sample([session.chat.encode(messages)], 1, Limits(max_new_tokens=1))
"""
"""What `gradhat train first_light` does until its first token, without the run folder."""


def seconds(command: list[str], runs: int) -> float:
    """Return the median wall time of a command, the first run left out."""
    took: list[float] = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        took.append(time.perf_counter() - start)
    return statistics.median(took[1:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    print(
        json.dumps(
            {
                "gradhat --help": round(
                    seconds([sys.executable, "-m", "gradhat.cli.main", "--help"], runs), 3
                ),
                "to the first sampled token": round(seconds([sys.executable, "-c", FIRST_TOKEN], runs), 2),
            }
        )
    )
