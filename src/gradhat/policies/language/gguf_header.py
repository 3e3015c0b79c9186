"""The header of a GGUF file, walked once before a library reads it: no count in it exceeds the file.

The library believes every count. One damaged byte would make it read, or keep, 10¹⁸ elements.
"""

import mmap
import struct
from pathlib import Path

from gradhat.errors import ModelError

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of each type of number, by the format's own code."""
STRING, ARRAY = 8, 9
LONGEST = 1 << 22
"""Elements of the longest array: sixteen times the largest vocabulary."""
DEEPEST = 4


def damaged(file: Path, why: object) -> ModelError:
    """Return the error for a file that cannot be read."""
    return ModelError(
        f"Reading {file} as GGUF failed: {why}. "
        "The file is damaged, cut short, or not GGUF. Copy or download it again."
    )


def check_counts(file: Path) -> None:
    """Raise ModelError unless every string, array and list that the header announces ends inside the file."""
    try:
        with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _Walk(data).header()
    except (ValueError, OSError, struct.error) as error:
        raise damaged(file, error) from error


class _Walk:
    """A place in the header that moves forward. ValueError where the header leads out of the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0
        self.order = "<"

    def header(self) -> None:
        if self.data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self.skip(4)
        # A version is a small number. Read in the wrong order of bytes, it is a large one.
        if self.number("I") & 0xFFFF == 0:
            self.order = ">"
        num_tensors, num_keys = self.number("Q"), self.number("Q")
        for _ in range(self.plausible(num_keys, 13)):
            self.string()
            self.value(self.number("I"), DEEPEST)
        for _ in range(self.plausible(num_tensors, 24)):
            self.string()
            self.skip(8 * self.number("I") + 12)

    def value(self, kind: int, depth: int) -> None:
        if kind in SIZES:
            self.skip(SIZES[kind])
        elif kind == STRING:
            self.string()
        elif kind == ARRAY and depth:
            inner, length = self.number("I"), self.number("Q")
            if length > LONGEST:
                raise ValueError(f"it announces an array of {length} elements")
            if inner in SIZES:
                self.skip(SIZES[inner] * length)
            else:
                for _ in range(self.plausible(length, 8)):
                    self.value(inner, depth - 1)
        else:
            raise ValueError(f"it holds a value of the unknown type {kind}")

    def string(self) -> None:
        self.skip(self.number("Q"))

    def number(self, kind: str) -> int:
        at = self.at
        self.skip(struct.calcsize(kind))
        return struct.unpack_from(self.order + kind, self.data, at)[0]

    def skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.data):
            raise ValueError("it ends in the middle of its header")

    def plausible(self, count: int, size: int) -> int:
        """Return `count`, of things of at least `size` bytes, if the rest of the file can hold them."""
        if count * size > len(self.data) - self.at:
            raise ValueError(f"it announces {count} entries, more than it has room for")
        return count
