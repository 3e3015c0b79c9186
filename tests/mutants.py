"""Plant bugs in the files that are named, run the tests nearest to them, list what no test noticed.

    make mutants FILES="src/gradhat/training/text/*.py" ARGS="--share 0.25"

mutmut plants the bugs and decides which of the near tests pass through each function. It works in a copy of
the tree, so nothing here changes. A survivor is a bug that the near tests let through; with a share below 1 a
random part of the bugs is tried, the same one for the same seed. Lines that hold only text are left alone:
how a message is worded is no bug.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("README.md", "CONTRIBUTING.md", "Makefile", "constraints.txt", "benchmarks", "docs")
GOLDEN = ("algorithms", "training", "rollouts", "policies")
"""Rooms whose bugs the golden runs are meant to notice."""
ONLY_TEXT = r"""^\s*[rf]*["'].*["'][\s,)]*$"""
CHOSEN = ("-o", "addopts=", "-m", "not slow and not learning and not gpu")
"""The tests of `make test`, without the check of shapes: it wants to see the maths imported once only."""
SPINNER = re.compile(r"^[⠀-⣿] ")
KILLED = {"killed", "timeout", "segfault", "suspicious"}
"""A bug that hangs a test or ends its process was noticed too."""


def main() -> int:
    """Return 0 when at least `--wanted` of the planted bugs were noticed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="files of src/ to plant bugs in")
    parser.add_argument("--tests", nargs="+", help="tests to run instead of the nearest")
    parser.add_argument("--share", type=float, default=1.0, help="share of the bugs to try, at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--children", type=int, default=os.cpu_count())
    parser.add_argument("--wanted", type=float, default=0.8, help="share that must be noticed")
    asked = parser.parse_args()
    files = [file.resolve().relative_to(ROOT) for file in asked.files if file.name != "__init__.py"]
    tests = asked.tests or sorted({test for file in files for test in nearest(file)})
    print(f"tests: {' '.join(tests)}")
    with tempfile.TemporaryDirectory(prefix="gradhat-mutants-") as folder:
        place = copy(Path(folder), files, tests)
        planted = [name for file in files for name in names(place, file)]
        chosen = random.Random(asked.seed).sample(planted, max(1, round(asked.share * len(planted))))
        print(f"{len(planted)} bugs, {len(chosen)} of them tried")
        run(place, "run", "--max-children", str(asked.children), *chosen)
        verdicts = dict(re.findall(r"^ +(\S+): (.+)$", run(place, "results", "--all", "true"), re.M))
        survived = sorted(name for name in chosen if verdicts.get(name) not in KILLED)
        for name in survived:
            print(f"\n{verdicts.get(name)}\n{run(place, 'show', name).strip()}")
    share = 1 - len(survived) / len(chosen)
    tally = Counter(verdicts.get(name, "not tried") for name in chosen)
    print(f"\n{', '.join(f'{count} {verdict}' for verdict, count in tally.most_common())}")
    print(f"{len(chosen) - len(survived)} of {len(chosen)} noticed: {share:.2f}")
    return 0 if share >= asked.wanted else 1


def nearest(file: Path) -> Iterator[str]:
    """Yield the tests beside which `file` of src/ stands: its mirror folder, and the golden runs."""
    room = file.relative_to("src/gradhat").parent
    named = sorted((ROOT / "tests" / room).glob(f"test_{file.stem}.py"))
    yield str(named[0].relative_to(ROOT)) if room.parts[:1] == ("exact",) and named else f"tests/{room}"
    if room.parts and room.parts[0] in GOLDEN:
        yield "tests/golden"


def copy(place: Path, files: list[Path], tests: list[str]) -> Path:
    """Copy the tree to `place` with the settings of mutmut in its pyproject.toml. Returns `place`."""
    for name in ("src", "tests", *COPIED):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, place / name)
    settings = {
        "source_paths": ["src"],
        "only_mutate": [str(file) for file in files],
        "do_not_mutate_patterns": [ONLY_TEXT],
        "also_copy": list(COPIED),
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "-x", "-o", "filterwarnings=default", *CHOSEN],
        "pytest_add_cli_args_test_selection": tests,
        "process_isolation": "forkserver",
        "use_git_change_detection": False,
    }
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]  # TOML writes these alike
    whole = (ROOT / "pyproject.toml").read_text() + "\n[tool.mutmut]\n" + "\n".join(lines) + "\n"
    (place / "pyproject.toml").write_text(whole)
    return place


def names(place: Path, file: Path) -> list[str]:
    """Return the names of the bugs that mutmut plants in `file`, under the settings in `place`."""
    code = """
import sys
from pathlib import Path

from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.utils.format_utils import get_mutant_name

file = Path(sys.argv[1])
for name in mutate_file_contents(str(file), file.read_text()).mutant_names:
    print(get_mutant_name(file, name))
"""
    program = [sys.executable, "-c", code, str(file)]
    return subprocess.run(program, cwd=place, capture_output=True, text=True, check=True).stdout.split()


def run(place: Path, *words: str) -> str:
    """Run mutmut in `place` and return what it prints. Ends the program where mutmut cannot go on."""
    program = [str(Path(sys.executable).with_name("mutmut")), *words]
    # A test that starts a Python of its own must meet the same bugs there. Python never looks again into a
    # folder of its path that was not there when it started.
    source = place / "mutants" / "src"
    source.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(program, cwd=place, capture_output=True, text=True, env=environment)
    if done.returncode:
        # Its spinner writes thousands of lines that end without a line feed.
        said = [line for line in re.split(r"[\r\n]", done.stdout) if line.strip() and not SPINNER.match(line)]
        sys.exit(
            "\n".join([*said[-40:], done.stderr[-2000:], f"mutmut {words[0]}: exit code {done.returncode}"])
        )
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
