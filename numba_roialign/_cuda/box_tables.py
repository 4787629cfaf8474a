"""The table of a box on a device: the taps of its bins, filled by the threads of a block."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import cuda

from .. import _geometry, _taps
from .._taps import tap_capacity

locate_axis = cuda.jit(device=True)(_geometry.locate_axis)
bin_of_taps = cuda.jit(device=True)(_taps.bin_of_taps)
first_slot = cuda.jit(device=True)(_taps.first_slot)
pad_bin = cuda.jit(device=True)(_taps.pad_bin)

AT_ONCE = 2  # taps of a row of pixels that are read at once: a bin of x has a multiple of them
TAPS_OF_LANE = 8  # of a wide bin's rows, for each thread that shares it
# What a table in shared memory has room for: 10 KB, or 26 KB for wide bins, in float32. The places
# are constants: a view that begins where an argument says is clamped again at each use.
SLOTS, WIDE_SLOTS, BOUNDS = 1024, 3072, 512


class Table(NamedTuple):
    """The taps of a box, the bins of y before those of x."""

    head: np.ndarray  # (2,) intp: the image, or -1; and the threads that may share a bin, or 0
    bounds: np.ndarray  # (2 * bins,) uint32: bin p holds slots bounds[2 * p] : bounds[2 * p + 1]
    pixels: np.ndarray  # (slots,) uint32: unsigned and narrow, for then an address is one multiply
    weights: np.ndarray  # (slots,) in the accumulator's type


@cuda.jit(device=True)
def shared_table(zero):
    """Return a table in shared memory."""
    return Table(
        cuda.shared.array(2, np.intp),
        cuda.shared.array(BOUNDS, np.uint32),
        cuda.shared.array(SLOTS, np.uint32),
        cuda.shared.array(SLOTS, type(zero)),
    )


@cuda.jit(device=True)
def wide_table(zero):
    """Return a table in shared memory for more taps."""
    return Table(
        cuda.shared.array(2, np.intp),
        cuda.shared.array(BOUNDS, np.uint32),
        cuda.shared.array(WIDE_SLOTS, np.uint32),
        cuda.shared.array(WIDE_SLOTS, type(zero)),
    )


@cuda.jit(device=True)
def table_of(tables, row):
    """Return one of several tables."""
    return Table(tables.head[row], tables.bounds[row], tables.pixels[row], tables.weights[row])


@cuda.jit(device=True)
def lanes_for(axis, most):
    """Return how many threads share a bin, each some of its columns: a power of two."""
    taps, lanes = min(2 * axis.samples, int(abs(axis.bin_size)) + 3), 1
    while TAPS_OF_LANE * lanes < taps and lanes < most:
        lanes *= 2
    return lanes


@cuda.jit(device=True)
def fill_table(table, rois, n, sampling, convention, slots, most_lanes, zero):
    """Fill the table of RoI `n`, a thread of the block for each bin of an axis."""
    p = cuda.threadIdx.x + cuda.threadIdx.y * cuda.blockDim.x
    while p < sampling.output_height + sampling.output_width:
        is_row = p < sampling.output_height
        # At one place in the code for all: compiled twice, it could round in two ways.
        image, axis = locate_axis(rois, n, is_row, sampling, convention, zero)
        axis_bin, origin, capacity, spare = p, 0, slots[0], 0
        if not is_row:
            axis_bin, origin, capacity = p - sampling.output_height, slots[0], slots[1]
            spare = AT_ONCE - 1
        is_valid = axis.samples >= 0
        if is_row and axis_bin == 0:
            table.head[0] = image if is_valid else -1
        elif axis_bin == 0:
            table.head[1] = lanes_for(axis, most_lanes) if is_valid else 0
        if is_valid:
            first = origin + first_slot(axis, axis_bin, capacity, spare)
            stop = origin + first_slot(axis, axis_bin + 1, capacity, spare)
            last = bin_of_taps(axis, table.pixels, table.weights, axis_bin, first, stop)
            if not is_row:
                last = pad_bin(table.pixels, table.weights, first, last, AT_ONCE)
            table.bounds[2 * p], table.bounds[2 * p + 1] = first, last
        p += cuda.blockDim.x * cuda.blockDim.y


@cuda.jit(device=True)
def bounds_of(table, p):
    """Return the first of a bin's slots, and the one after the last."""
    place = np.uint32(2) * np.uint32(p)
    return table.bounds[place], table.bounds[place + np.uint32(1)]


@cuda.jit(device=True)
def is_pooled(table):
    """Say whether the box of a table can be pooled."""
    return table.head[0] >= 0 and table.head[1] > 0


@cuda.jit
def schedule_tables(rois, start, sampling, convention, slots, most_lanes, tables, zero):
    """Fill the tables of the RoIs from `start` on, a block for each."""
    row = np.intp(cuda.blockIdx.x)
    table = table_of(tables, row)
    fill_table(table, rois, start + row, sampling, convention, slots, most_lanes, zero)


def table_bytes(is_wide, number):
    """Return the bytes of a table in shared memory."""
    return 16 + 4 * BOUNDS + (WIDE_SLOTS if is_wide else SLOTS) * (4 + number.itemsize)


def capacities(sampling):
    """Return how many slots a table has for each axis."""
    return (
        tap_capacity(sampling.output_height, sampling.samples_y, sampling.height),
        tap_capacity(sampling.output_width, sampling.samples_x, sampling.width, AT_ONCE - 1),
    )


def empty_tables(empty, rois, sampling, number, batch_bytes):
    """Allocate tables for a batch of boxes; `empty` makes an array on the device."""
    slots, bins = sum(capacities(sampling)), sampling.output_height + sampling.output_width
    row_bytes = slots * (4 + number.itemsize) + 8 * bins + 16
    rows = max(1, min(rois, batch_bytes // row_bytes))
    return Table(
        empty((rows, 2), np.intp),
        empty((rows, 2 * bins), np.uint32),
        empty((rows, slots), np.uint32),
        empty((rows, slots), number),
    )
