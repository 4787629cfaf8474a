"""The table of a box on a device: the taps of its bins, filled by the threads of a block."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import cuda

from .. import _geometry, _taps
from .._taps import tap_capacity
from .indices import this_thread

locate_axis = cuda.jit(device=True)(_geometry.locate_axis)
locate_image = cuda.jit(device=True)(_geometry.locate_image)
bin_of_taps = cuda.jit(device=True)(_taps.bin_of_taps)
first_slot = cuda.jit(device=True)(_taps.first_slot)
pad_bin = cuda.jit(device=True)(_taps.pad_bin)

AT_ONCE = 2  # taps of a row of pixels that are read at once: a bin of x has a multiple of them
HALF_WARP = 16  # threads
NARROW_TAPS = 8  # of a bin's rows, that one thread adds up


class Places(NamedTuple):
    """Where a table's parts begin in its arrays. In 32 bits."""

    bounds: int
    pixels: int
    weights: int


class Table(NamedTuple):
    """The taps of a box, the bins of y before those of x.

    Its arrays have other things too, and `places` says where its parts begin: a view from there on
    would be clamped again, in 12 instructions, wherever it is read.
    """

    # (2,) intp: the image, or -1; and how many lanes, threads that share a bin, or 0. Each says
    # of one axis whether the box can be pooled along it.
    head: np.ndarray
    words: np.ndarray  # uint32, for then an address is one multiply: bounds and pixels
    numbers: np.ndarray  # in the accumulator's type: weights
    places: Places


class Tables(NamedTuple):
    """Tables in the device's memory, one after the other in the same arrays."""

    head: np.ndarray  # (rows, 2)
    words: np.ndarray
    numbers: np.ndarray
    places: Places  # of the first
    words_apart: int  # from one table to the next; in 32 bits
    numbers_apart: int


@cuda.jit(device=True)
def shared_table(places, zero):
    """Return a table in the shared memory that a launch asks for, of which each array is a view."""
    # Types by way of an array, since the simulator wants a dtype.
    word, number = cuda.local.array(1, np.uint32), cuda.local.array(1, type(zero))
    words, numbers = cuda.shared.array(0, word.dtype), cuda.shared.array(0, number.dtype)
    return Table(cuda.shared.array(2, np.intp), words, numbers, places)


@cuda.jit(device=True)
def table_of(tables, row):
    """Return one of several tables: its numbers are places in the arrays of all."""
    words, numbers = np.uint32(row * tables.words_apart), np.uint32(row * tables.numbers_apart)
    places = Places(
        np.uint32(tables.places.bounds + words),
        np.uint32(tables.places.pixels + words),
        np.uint32(tables.places.weights + numbers),
    )
    return Table(tables.head[np.intp(row)], tables.words, tables.numbers, places)


@cuda.jit(device=True)
def most_taps_of(axis):
    """Return how many taps a bin of an axis can have."""
    return min(2 * axis.samples, int(abs(axis.bin_size)) + 3)


@cuda.jit(device=True)
def lanes_for(axis):
    """Return how many threads are to share a bin: one, or of a wide one half a warp or all."""
    taps = most_taps_of(axis)
    if taps <= NARROW_TAPS:
        return 1
    return HALF_WARP if taps <= HALF_WARP else 2 * HALF_WARP


@cuda.jit(device=True)
def fill_table(table, rois, n, sampling, convention, slots, zero):
    """Fill the table of RoI `n`, a thread of the block for each bin of an axis."""
    pixels = table.words[np.intp(table.places.pixels) :]
    weights = table.numbers[np.intp(table.places.weights) :]
    p = cuda.threadIdx.x + cuda.threadIdx.y * cuda.blockDim.x
    while p < sampling.output_height + sampling.output_width:
        is_row = p < sampling.output_height
        # At one place in the code for all: compiled twice, it could round in two ways.
        axis = locate_axis(rois, n, is_row, sampling, convention, zero)
        axis_bin, origin, capacity, spare = p, 0, slots[0], 0
        if not is_row:
            axis_bin, origin, capacity = p - sampling.output_height, slots[0], slots[1]
            spare = AT_ONCE - 1
        is_valid = axis.samples >= 0
        if is_row and axis_bin == 0:
            # After the box: read before it, all threads would wait for the one and then the other.
            image = locate_image(rois, n, sampling, convention)
            table.head[0] = image if is_valid else -1
        elif axis_bin == 0:
            table.head[1] = lanes_for(axis) if is_valid else 0
        if is_valid:
            first = origin + first_slot(axis, axis_bin, capacity, spare)
            stop = origin + first_slot(axis, axis_bin + 1, capacity, spare)
            last = bin_of_taps(axis, pixels, weights, axis_bin, first, stop)
            if not is_row:
                last = pad_bin(pixels, weights, first, last, AT_ONCE)
            place = table.places.bounds + np.uint32(2 * p)
            table.words[place], table.words[place + np.uint32(1)] = first, last
        p += cuda.blockDim.x * cuda.blockDim.y


@cuda.jit(device=True)
def bounds_of(table, p):
    """Return the first of a bin's slots, and the one after the last."""
    place = table.places.bounds + np.uint32(2) * np.uint32(p)
    return table.words[place], table.words[place + np.uint32(1)]


@cuda.jit(device=True)
def pixel_of(table, slot):
    return table.words[table.places.pixels + slot]


@cuda.jit(device=True)
def weight_of(table, slot):
    return table.numbers[table.places.weights + slot]


@cuda.jit(device=True)
def lanes_of(table):
    """Return how many threads are to share a bin of a table's box; 0 if it cannot be pooled."""
    return table.head[1] if is_pooled(table) else 0


@cuda.jit(device=True)
def copy_table(table, kept, bins, lanes):
    """Keep a table in the device's memory, its bins if several lanes are to share them."""
    p, threads = this_thread()
    if p == 0:
        kept.head[0], kept.head[1] = table.head[0], lanes
    while lanes > 1 and p < bins[0] + bins[1]:
        slot, last = bounds_of(table, p)
        place = kept.places.bounds + np.uint32(2) * p
        kept.words[place], kept.words[place + np.uint32(1)] = slot, last
        while slot < last:
            kept.words[kept.places.pixels + slot] = pixel_of(table, slot)
            kept.numbers[kept.places.weights + slot] = weight_of(table, slot)
            slot = np.uint32(slot + 1)
        p = np.uint32(p + threads)


@cuda.jit(device=True)
def is_pooled(table):
    """Say whether the box of a table can be pooled."""
    return table.head[0] >= 0 and table.head[1] > 0


@cuda.jit
def schedule_tables(rois, start, sampling, convention, slots, tables, zero):
    """Fill the tables of the RoIs from `start` on, a block for each."""
    row = np.uint32(cuda.blockIdx.x)
    table = table_of(tables, row)
    fill_table(table, rois, start + np.intp(row), sampling, convention, slots, zero)


def capacities(sampling):
    """Return how many slots a table has for each axis."""
    return (
        tap_capacity(sampling.output_height, sampling.samples_y, sampling.height),
        tap_capacity(sampling.output_width, sampling.samples_x, sampling.width, AT_ONCE - 1),
    )


def shared_places(sampling, number, before):
    """Return the places of a table in shared memory, after so many numbers, and where it ends.

    The end is in bytes.
    """
    slots, bins = sum(capacities(sampling)), sampling.output_height + sampling.output_width
    bounds = (before + slots) * number.itemsize // 4
    pixels = bounds + 2 * bins
    return Places(*map(np.uint32, (bounds, pixels, before))), 4 * (pixels + slots)


def empty_tables(empty, rois, sampling, number, batch_bytes):
    """Allocate tables for a batch of boxes; `empty` makes an array on the device."""
    slots, bins = sum(capacities(sampling)), sampling.output_height + sampling.output_width
    row_bytes = slots * (4 + number.itemsize) + 8 * bins + 16
    rows = max(1, min(rois, batch_bytes // row_bytes))
    apart = 2 * bins + slots, slots
    return Tables(
        empty((rows, 2), np.intp),
        empty(rows * apart[0], np.uint32),
        empty(rows * apart[1], number),
        Places(*map(np.uint32, (0, 2 * bins, 0))),
        *map(np.uint32, apart),
    )
