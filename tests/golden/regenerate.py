"""Write the golden numbers anew: `python tests/golden/regenerate.py [NAME ...]`, all of them without a name.

Do so only for a change that is meant to change what algorithms compute, and say why in the commit.
"""

import sys

from golden_runs import RUNS, file_of, write


def main(names: list[str]) -> int:
    """Write the named runs, or all; remove files of runs that are gone. Returns the exit code."""
    unknown = sorted(set(names) - set(RUNS))
    if unknown:
        print(f"{', '.join(unknown)}: no such golden run. Known: {', '.join(RUNS)}.", file=sys.stderr)
        return 2
    for name in names or RUNS:
        write(name)
        print(f"written {file_of(name).name}")
    for file in file_of("any").parent.glob("*.json"):
        if file.stem not in RUNS:
            file.unlink()
            print(f"removed {file.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
