"""Index arithmetic of kernels."""

from __future__ import annotations

import numpy as np
from numba import cuda

MOST_DIVIDED = 1 << 16


@cuda.jit(device=True)
def split(item, size):
    """Return ``item // size`` and ``item % size``, all of them below 2**32.

    A kernel that divides 32 bits has 30 instructions, one of 64 bits 110, or 150 with signs. The
    results are never negative, and knowing it spares the compiler a select at each index.
    """
    item, size = np.uint32(item), np.uint32(size)
    quotient = np.uint32(item // size)
    return quotient, np.uint32(item - quotient * size)


def reciprocal_of(size):
    """Return a number by which `quotient` divides by a size up to `MOST_DIVIDED`."""
    return np.uint64(-(-(1 << 32) // size))


def in_32_bits(numbers):
    """Return a record of numbers as a kernel takes them: in 32 bits, but for reciprocals."""
    return numbers._make(n if isinstance(n, np.uint64) else np.uint32(n) for n in numbers)


@cuda.jit(device=True)
def quotient(item, reciprocal):
    """Return an item below `MOST_DIVIDED` divided by what `reciprocal_of` was told.

    It is a product, where a division is 30 instructions and 200 cycles to wait for.
    """
    return np.uint32((np.uint64(item) * reciprocal) >> np.uint64(32))


@cuda.jit(device=True)
def this_thread():
    """Return the number of this thread in its block, and how many there are."""
    across = np.uint32(cuda.blockDim.x)
    thread = np.uint32(np.uint32(cuda.threadIdx.x) + np.uint32(cuda.threadIdx.y) * across)
    return thread, np.uint32(across * np.uint32(cuda.blockDim.y))


def narrowed(strides):
    """Return the strides of rows and columns as 32 bits, where they fit.

    An address then is one multiplication.
    """
    if max(strides.row, strides.column) >= 1 << 32:
        return strides
    return strides._replace(row=np.uint32(strides.row), column=np.uint32(strides.column))


def narrowed_within(strides, sizes):
    """Return all strides within an image as 32 bits, where it reaches no further.

    `sizes` are its channels, rows and columns. An offset in it then is a number of 32 bits too.
    """
    within = strides.channel, strides.row, strides.column
    if sum(size * stride for size, stride in zip(sizes, within, strict=True)) >= 1 << 32:
        return strides
    return narrowed(strides)._replace(channel=np.uint32(strides.channel))
