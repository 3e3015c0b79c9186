"""Memory that every step frees and takes again."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of `mallopt`'s parameters in glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Let glibc keep the large blocks that tensors free, instead of giving each back to the system.

    Every step allocates the same blocks again, and taking them from the system costs a page fault per 4 KiB:
    a fifth of the time of a training pass here (docs/log.md). Does nothing where there is no glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
