"""Ours against a peer, run in turn in one sitting (peer, ours, peer, ours ...): figures and ratio of medians.

    python benchmarks/paired.py --peers-python .peers/bin/python [--rounds 3] [step generate train]

Peers are set up once:

    python3 -m venv .peers && .peers/bin/pip install torch==2.13.0 && \\
    .peers/bin/pip install -r benchmarks/peers/requirements.txt
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from gradhat.policies.language.weights import resolve

HERE = Path(__file__).parent

PAIRS = {
    "step": ("trl_grpo.py", "step_seconds_median", "step_seconds_median", "seconds a step, TRL / ours"),
    "generate": (
        "hf_generate.py",
        "tokens_per_second",
        "tokens_per_second",
        "tokens/s, ours / transformers generate",
    ),
    "train": ("hf_train.py", "tokens_per_second", "tokens_per_second", "tokens/s, ours / transformers"),
}
"""Measurement → peer program, its figure, our figure, what the ratio says."""


def run(command: list[str]) -> tuple[dict[str, object], float]:
    """Return the JSON line that a program prints last, and the most memory it held in GiB."""
    done = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert done.stdout is not None
    lines = done.stdout.read().splitlines()
    _, status, usage = os.wait4(done.pid, 0)
    if status:
        sys.exit(f"{' '.join(command)} failed with status {status}.")
    return json.loads([line for line in lines if line.startswith("{")][-1]), usage.ru_maxrss / 2**20


def compare(name: str, peers_python: str, model: str, rounds: int) -> None:
    """Run one pair in turn and print what came out."""
    program, their_key, our_key, meaning = PAIRS[name]
    theirs: list[float] = []
    ours: list[float] = []
    memory: list[tuple[float, float]] = []
    for _ in range(rounds):
        peer, peer_gib = run([peers_python, str(HERE / "peers" / program), model])
        mine, my_gib = run([sys.executable, str(HERE / "ours.py"), name, model])
        print(json.dumps(peer), json.dumps(mine), sep="\n", flush=True)
        theirs.append(float(str(peer[their_key])))
        ours.append(float(str(mine[our_key])))
        memory.append((peer_gib, my_gib))
    a, b = statistics.median(theirs), statistics.median(ours)
    ratio = a / b if name == "step" else b / a
    peer_gib, my_gib = (statistics.median(column) for column in zip(*memory, strict=True))
    print(f"{meaning}: {ratio:.2f} (peer {a:.4g}, ours {b:.4g}, medians of {rounds})")
    print(
        f"peak memory, ours / peer: {my_gib / peer_gib:.2f} (peer {peer_gib:.2f} GiB, ours {my_gib:.2f} GiB)",
        flush=True,
    )


def main() -> None:
    """Run the pairs named, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="*", default=list(PAIRS), help=", ".join(PAIRS))
    parser.add_argument("--peers-python", default=".peers/bin/python")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    for name in args.what:
        compare(name, args.peers_python, str(resolve("smollm2-135m")), args.rounds)


if __name__ == "__main__":
    main()
