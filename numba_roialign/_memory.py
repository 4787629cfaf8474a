"""Memory of NumPy arrays: aligned to cache lines, and that of large results used again.

What cannot fit is refused before any of it is used. A system may promise more memory than there is,
and end the process that uses it.
"""

from __future__ import annotations

import ctypes
import functools
import math
import os
from pathlib import Path
from typing import ClassVar

import numpy as np

LINE = 64  # bytes of a cache line
# Results below stay in the caches, where neither alignment nor new pages matter.
LARGE_RESULT = 1 << 20
# The memory of results from this size on is kept for later results once the caller lets go of it,
# this much in all. An allocator would return it to the system, which clears new pages for the next
# result: 5 ms for 50 MB, which take 10 to compute.
LENT_RESULT = 1 << 25
KEPT_BYTES = 1 << 28
GRAIN = 1 << 22  # sizes are rounded up to it, so that a result a little larger fits as well


_pointer_at = ctypes.c_void_p.from_address
# In NumPy's C interface the address of an array's memory follows the head of any Python object.
DATA_OFFSET = object.__basicsize__


def address_of(array) -> int:
    """Return where an array begins; from ``__array_interface__`` it takes 5 times as long."""
    return _pointer_at(id(array) + DATA_OFFSET).value or 0


@functools.cache
def most_bytes() -> int:
    """Return how much memory the process can ever have: its machine's, or its container's."""
    limits = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")
    sizes = [path.read_text().strip() for path in limits if path.is_file()]
    most = [int(size) for size in sizes if size.isdigit()]  # "max" is none
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        most.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(most, default=1 << 62)


def check_size(size):
    """Refuse a size that cannot fit."""
    if size > most_bytes():
        raise MemoryError(f"a call needs {size} bytes at once, and there are {most_bytes()} in all")


def aligned_empty(shape, dtype=np.uint8):
    """Return an array that starts on a cache line, which no vector then straddles."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize + LINE
    check_size(size)
    try:
        memory = np.empty(size, np.uint8)
    except MemoryError:
        raise MemoryError(f"a call needs {size} bytes at once, which the system refuses") from None
    return np.ndarray(shape, dtype, memory, -address_of(memory) % LINE)


class _Lease:
    """Memory lent to one result: NumPy holds on to it for as long as any view of the result."""

    kept: ClassVar[dict[int, np.ndarray]] = {}  # not lent; oldest first

    def __init__(self, memory):
        self.memory = memory
        self.__array_interface__ = memory.__array_interface__

    @classmethod
    def take(cls, size):
        """Return kept memory that suits a size, or new memory."""
        for key, memory in list(cls.kept.items()):
            if size <= memory.size <= 2 * size and cls.kept.pop(key, None) is not None:
                return memory
        return aligned_empty((-(-size // GRAIN) * GRAIN,))

    def __del__(self):
        for key in list(self.kept):  # lists, since other threads may change it meanwhile
            sizes = [memory.size for memory in list(self.kept.values())]
            if sum(sizes) + self.memory.size <= KEPT_BYTES:
                break
            self.kept.pop(key, None)
        if self.memory.size <= KEPT_BYTES:
            self.kept[id(self.memory)] = self.memory


def results_of(shape, dtype):
    """Return a function that makes arrays of so many results of a shape.

    Small ones with little of the interpreter's code: it takes 0.3 us, and `empty_result` 0.7.
    """
    most = (LARGE_RESULT - 1) // (math.prod(shape) * dtype.itemsize)

    def results(count):
        make = np.empty if count <= most else empty_result
        return make((count, *shape), dtype)

    return results


def empty_result(shape, dtype):
    """Return an array to write a result to, final or not."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    if size < LARGE_RESULT:
        return np.empty(shape, dtype)
    if size < LENT_RESULT:
        return aligned_empty(shape, dtype)
    return np.ndarray(shape, dtype, np.asarray(_Lease(_Lease.take(size))))
