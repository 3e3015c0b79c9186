"""The control worlds against Stable-Baselines3, in turn in one sitting, and what a step costs.

    python benchmarks/control.py solve --peers-python .peers/bin/python [--rounds 3] [ppo a2c dqn]
    python benchmarks/control.py throughput [--rounds 3]

`solve` trains on CartPole-v1 with the settings of `gradhat train ALGORITHM --env CartPole-v1`, stopped at
`FRAMES`, and counts only where both sides are at a greedy return of 500 over 100 episodes.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from gradhat.recipes.tuned import control
from gradhat.training.control import session
from gradhat.training.control.config import ControlConfig

HERE = Path(__file__).parent
FRAMES = {"ppo": 100_000, "a2c": 200_000, "dqn": 50_000}
"""Frames after which nearly all our seeds hold 500; Stable-Baselines3 has the RL Zoo's 100k, 200k, 50k."""
ENVS = (1, 8, 64, 512)
SAMPLES = 2048
"""Frames of one PPO batch in `throughput`."""


def train(config: ControlConfig, *, warm: int = 0) -> dict[str, float]:
    """Train without measurements in between; return seconds, frames a second and the greedy return."""
    run = session.prepare(config)
    run.agent.advance(warm)
    start, before = time.perf_counter(), run.agent.num_frames
    run.agent.advance(config.num_frames)
    seconds = time.perf_counter() - start
    frames = run.agent.num_frames - before
    found = run._measure()
    run.close()
    return {"frames": frames, "seconds": seconds, "frames_per_second": frames / seconds, **found}


def solve_one(algorithm: str, seed: int, threads: int) -> None:
    config = control(algorithm, "CartPole-v1")
    config = replace(config, num_frames=FRAMES[algorithm], seed=seed, num_threads=threads)
    print(json.dumps({"algorithm": algorithm, "seed": seed, **train(config)}))


def solve(algorithms: list[str], peers_python: str, rounds: int) -> None:
    for name in algorithms:
        theirs: list[float] = []
        ours: list[float] = []
        for seed in range(rounds):
            peer = _run([peers_python, str(HERE / "peers/sb3_control.py"), name, "--seed", str(seed)])
            mine = _run([sys.executable, __file__, "one", name, "--seed", str(seed)])
            print(json.dumps(peer), json.dumps(mine), sep="\n", flush=True)
            theirs.append(peer["seconds"])
            ours.append(mine["seconds"])
        a, b = statistics.median(theirs), statistics.median(ours)
        print(f"{name}: {a / b:.1f} times (SB3 {a:.1f} s, ours {b:.1f} s, medians of {rounds})", flush=True)


def throughput(rounds: int, threads: int) -> None:
    """PPO on CartPole-v1, training included: the same batch of frames, spread over more environments."""
    base = control("ppo", "CartPole-v1")
    for num_envs in ENVS:
        steps = max(1, SAMPLES // num_envs)
        learning = replace(base.learning, num_steps=steps)
        frames = num_envs * steps
        config = replace(
            base, learning=learning, num_envs=num_envs, num_frames=12 * frames, num_threads=threads
        )
        found = [train(replace(config, seed=i), warm=2 * frames)["frames_per_second"] for i in range(rounds)]
        print(
            f"{num_envs} environments: {statistics.median(found):,.0f} frames/s, "
            f"{1e6 / statistics.median(found):.1f} µs a frame",
            flush=True,
        )


def _run(command: list[str]) -> dict[str, float]:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])


def main() -> None:
    """Run what is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["solve", "one", "throughput"])
    parser.add_argument("algorithms", nargs="*", default=list(FRAMES))
    parser.add_argument("--peers-python", default=".peers/bin/python")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_intermixed_args()
    if args.what == "one":
        solve_one(args.algorithms[0], args.seed, args.threads)
    elif args.what == "solve":
        solve(args.algorithms, args.peers_python, args.rounds)
    else:
        throughput(args.rounds, args.threads)


if __name__ == "__main__":
    main()
