"""Stands in for `gradhat train` in the tests of sweeps: a run folder in a tenth of a second, without torch.

--seed N is also the return of the run. --steps N: how many; --pause S: seconds of each. --trouble SEED:KIND
lets the run of that seed raise, exit silently, die, ignore Ctrl-C or answer it late.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def value(flag: str, default: str = "") -> str:
    return sys.argv[sys.argv.index(flag) + 1] if flag in sys.argv else default


def stop(*_: object) -> None:
    print("saved", flush=True)
    sys.exit(130)


def stop_slowly(*_: object) -> None:
    print("asked", flush=True)
    signal.signal(signal.SIGINT, lambda *_: print("asked again", flush=True))
    time.sleep(0.5)
    stop()


def main() -> None:
    signal.signal(signal.SIGINT, stop)
    resumed = value("--resume")
    folder = Path(resumed or value("--out"))
    if not resumed:
        (folder / "checkpoints").mkdir(parents=True)
        options = {key: value(f"--{key}", default) for key, default in DEFAULTS.items()}
        config = {"env": options["env"], "num_frames": int(options["steps"]), "seed": int(options["seed"])}
        config |= {"learning": {"network": {"lr": float(options["lr"])}}}
        (folder / "config.json").write_text(json.dumps({**options, **config}))
    config = json.loads((folder / "config.json").read_text())
    seed, kind = config["trouble"].partition(":")[::2]
    trouble = kind if int(seed or -1) == config["seed"] and not resumed else ""
    print("resumed" if resumed else "started", os.environ["OMP_NUM_THREADS"], flush=True)
    if trouble == "deaf":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if trouble == "slow":
        signal.signal(signal.SIGINT, stop_slowly)
    metrics = folder / "metrics.jsonl"
    done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    for step in range(done + 1, config["num_frames"] + 1):
        with metrics.open("a") as file:
            rate = {"num_frames": step, "frames_per_second": 100.0, "step_time": 0.01, "time/train": 0.01}
            returns = {"episode/return": float(step), "greedy/return": float(config["seed"])}
            file.write(json.dumps({"step": step, **rate, **returns}) + "\n")
        time.sleep(float(config["pause"]))
        if trouble == "raise":
            print("line 1\nline 2\n\nTaskError: the environment raised", flush=True)
            sys.exit(1)
        if trouble == "silent":
            os.truncate(1, 0)
            sys.exit(3)
        if trouble == "die":
            os.kill(os.getpid(), signal.SIGKILL)
    summary = {"after": {"greedy/return": float(config["seed"])}}
    (folder / "summary.json").write_text(json.dumps(summary))


DEFAULTS = {"env": "fake", "seed": "0", "steps": "2", "pause": "0", "trouble": "", "lr": "1"}

if __name__ == "__main__":
    main()
