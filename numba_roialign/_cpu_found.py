"""What a batch of RoIs holds and how it is divided: a line of the job's table `found`."""

from __future__ import annotations

from typing import NamedTuple


class Found(NamedTuple):
    """The numbers of a line; first of a thread's share of the rows, then joined of all."""

    # added
    invalid: int  # rows that cannot be pooled
    sparse: int  # rows whose taps lie far apart
    taps: int  # pixels that all bins tap together
    alone: int  # pixels to read where each RoI is pooled for itself
    # the least
    first_invalid: int  # row
    low: int  # image
    top: int  # row of the maps
    left: int  # column
    # the largest
    high: int  # image
    bottom: int  # one more than the last row
    right: int
    # of the division: see `_cpu_tasks`
    threads: int
    chunks: int
    parts: int
    sparse_chunks: int
    sparse_parts: int


# Their places, for compiled code. A line is as long as two cache lines, so threads share none.
INVALID, SPARSE, TAPS, ALONE, FIRST_INVALID, LOW, TOP, LEFT, HIGH, BOTTOM, RIGHT = range(11)
THREADS, CHUNKS, PARTS, SPARSE_CHUNKS, SPARSE_PARTS, END = range(11, 17)
