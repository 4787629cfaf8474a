"""Kinds: what a schedule is compiled for, besides its lanes.

Each is one more signature to compile, and each that is told apart here spares those calls what the
others need: with packing and writing told apart, `average_channels` compiles in 0.7 of the time.
"""

from __future__ import annotations

from typing import NamedTuple

from numba import types

# Numba's types of what is stored and of what is summed; half types travel as their bits.
TYPES: dict[str, tuple[types.Number, types.Float]] = {
    "float16": (types.uint16, types.float32),
    "bfloat16": (types.int16, types.float32),
    "float32": (types.float32, types.float32),
    "float64": (types.float64, types.float64),
}
# What lies side by side: a pixel's channels, a channel's pixels, or neither.
PIXELS, PLANES, SCATTERED = "pixels", "planes", "scattered"


def bytes_of(kind):
    return kind.bitwidth // 8


class Kinds(NamedTuple):
    """Numba's types of a call, and what lies side by side in its arrays."""

    storage: types.Number  # read
    result: types.Number  # written
    number: types.Float  # summed
    reads: str | None = None  # PIXELS, or else PLANES; None where it does not matter
    writes: str | None = None

    @classmethod
    def of(cls, dtype, out_dtype):
        """Return the types of a call that reads and writes dtypes of these names."""
        storage, number = TYPES[dtype]
        return cls(storage, TYPES[out_dtype][0], number)

    def between(self, source, target, width):
        """Return the kinds of a call on arrays with these strides; the result is so wide."""
        reads = PIXELS if source.channel == 1 else PLANES
        writes = PLANES if (target.row, target.column) == (width, 1) else SCATTERED
        return self._replace(reads=reads, writes=PIXELS if target.channel == 1 else writes)

    @property
    def types(self):
        """The types alone."""
        return Kinds(*self[:3])

    @property
    def storage_bytes(self):
        return bytes_of(self.storage)

    @property
    def result_bytes(self):
        return bytes_of(self.result)

    @property
    def number_bytes(self):
        return bytes_of(self.number)
