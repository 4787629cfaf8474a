"""What bands pool, as tables in the device's memory: stacks of bins, and where each bin begins.

A stack is a few bins below each other. They tap many rows in common, more than half of all where
bins are a pixel high, and a thread that pools all of them reads each row once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import cuda

STACK = 3  # bins: their weights and a row are two numbers of 64 bits
HALF = 16  # bits
LOW = (1 << HALF) - 1
MOST_BANDS = MOST_HEIGHT = MOST_SLOTS = LOW  # that half a number can tell
NO_REACH = np.uint32(LOW)  # from the last band to the first


class Homes(NamedTuple):
    """In which of the maps' bands the bins of a batch of boxes begin."""

    reaches: np.ndarray  # of a box the first of them, and in the upper half the last
    bins: np.ndarray  # of each row of bins of a box


class Taps(NamedTuple):
    """The taps of a batch of boxes, two numbers of 32 bits in each of 64: one load for both."""

    # Of each box the bins of y, and then those of x: the first slot, and the one after the last. Of
    # a bin of y the upper half of the first is its row. One that taps nothing has all of its stack,
    # so that from the first to the last of several bins there is whatever lies between.
    bounds: np.ndarray
    rows: np.ndarray  # two of a slot: the row of the next, and the bits of the weights of a stack
    columns: np.ndarray  # of a slot the pixel and the bits of the weight
    # In 32 bits: bins of a box, along y and x; slots from one box's to the next's; and in which
    # places of the arrays the first box's begin.
    bins: int
    rows_apart: int
    columns_apart: int
    first_bound: int
    first_row: int
    first_column: int


@cuda.jit(device=True)
def joined(low, high):
    return np.uint64(np.uint64(low) | np.uint64(np.uint64(high) << np.uint64(32)))


@cuda.jit(device=True)
def parts_of(number):
    """Return the two numbers of 32 bits of one of 64."""
    return np.uint32(number & np.uint64(0xFFFFFFFF)), np.uint32(number >> np.uint64(32))


@cuda.jit(device=True)
def halves_of(number):
    """Return the lower and the upper half of a number of 32 bits."""
    return np.uint32(number & np.uint32(LOW)), np.uint32(number >> np.uint32(HALF))


@cuda.jit(device=True)
def bound_place(taps, box, p):
    return np.uint32(taps.first_bound + box * taps.bins + p)


@cuda.jit(device=True)
def slots_of(taps, box):
    """Return the first slot of rows of a box, and that of columns."""
    rows = np.uint32(taps.first_row + box * taps.rows_apart)
    return rows, np.uint32(taps.first_column + box * taps.columns_apart)


@cuda.jit(device=True)
def bounds_at(taps, box, p):
    """Return the first slot of a box's bin, and the one after the last."""
    return parts_of(taps.bounds[np.uintp(bound_place(taps, box, p))])


@cuda.jit(device=True)
def column_at(taps, slot, further=0):
    """Return the pixel and the weight of a slot, or of one a constant number further."""
    pixel, bits = parts_of(taps.columns[np.uintp(slot) + np.uintp(further)])
    return pixel, bits.view(np.float32)


@cuda.jit(device=True)
def row_at(taps, slot):
    """Return the row of the next slot, and the weights of this one's in the bins of its stack."""
    place = np.uintp(slot) * np.uintp(2)
    following, first = parts_of(taps.rows[place])
    second, third = parts_of(taps.rows[place + np.uintp(1)])
    return following, (first.view(np.float32), second.view(np.float32), third.view(np.float32))


@cuda.jit(device=True)
def write_row(taps, place, following, weights):
    """Write a slot of rows, and with it the row of the next."""
    first, second, third = weights[0], weights[1], weights[2]
    place = np.uintp(place) * np.uintp(2)
    taps.rows[place] = joined(following, first.view(np.uint32))
    taps.rows[place + np.uintp(1)] = joined(second.view(np.uint32), third.view(np.uint32))


@cuda.jit(device=True)
def write_columns(taps, place, is_last, pixel, weight, next_pixel, next_weight):
    """Write two slots of columns; if there is only one more, in halves, which are exact."""
    if is_last:
        weight *= type(weight)(0.5)
        next_pixel, next_weight = pixel, weight
    taps.columns[np.uintp(place)] = joined(pixel, weight.view(np.uint32))
    taps.columns[np.uintp(place) + np.uintp(1)] = joined(next_pixel, next_weight.view(np.uint32))
