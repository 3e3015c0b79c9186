"""Seeds are a pure function of their path, and neighbours share nothing."""

import subprocess
import sys

from gradhat.training.seed import derive


def test_the_same_path_gives_the_same_seed_in_another_process() -> None:
    code = "from gradhat.training.seed import derive; print(derive(3, 'sample', 7))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(there.stdout) == derive(3, "sample", 7)


def test_no_two_of_many_neighbouring_paths_collide() -> None:
    # Catches seed + step, where (0, 1) and (1, 0) are one stream, and paths joined without a separator.
    seeds = {derive(seed, name, step) for seed in range(30) for name in ("a", "b") for step in range(30)}
    assert len(seeds) == 30 * 2 * 30
    assert derive(0, "1", 2) != derive(0, 1, 2)
    assert derive(0, 1, 12) != derive(0, 11, 2)


def test_seeds_fill_63_bits_and_are_never_negative() -> None:
    seeds = [derive(0, step) for step in range(200)]
    assert min(seeds) >= 0
    assert 2**62 < max(seeds) < 2**63
    assert 0.3 < sum(s & 1 for s in seeds) / len(seeds) < 0.7
