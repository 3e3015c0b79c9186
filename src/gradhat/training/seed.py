"""Where randomness comes from: a pure function of the run's seed and a path, so nothing needs storing."""

import hashlib


def derive(seed: int, *path: str | int) -> int:
    """Return a seed in [0, 2^63) for `path`, for example `derive(seed, "sample", step)`.

    A keyed hash: two paths share a seed with probability 2^-63, and neighbouring steps get unrelated ones,
    which `seed + step` does not give (the streams of seed 0, step 1 and seed 1, step 0 would be one).
    """
    text = repr((seed, *path)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 1
