"""The CUDA schedules of an average: a block for a box and some of its channels.

Each thread walks down a column of bins, for several channels: it sums the taps of a row of
pixels, adds the sum to the bin that taps the row, and keeps the sums of two rows, for these are all
that the next bin may tap again. So a row of pixels is read once for all bins of a column. Where
there are few bins for the device, each bin has a thread, which reads several rows at once.

Neighbouring threads take neighbouring bins of a row where channels lie in planes, and neighbouring
channels where these lie side by side. The bins of a part of narrow planes meet in shared memory:
written one row after the other, they would be pieces of sectors. Boxes of wide bins are left to
`large`.

A block fills the table of its box in shared memory. What this cannot hold a kernel fills before, in
the device's memory.

Loops in strides are `while` loops: ``range`` with a step begins with a division of 64 bits.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import cuda

from .. import _kernels
from .box_tables import (
    AT_ONCE,
    bounds_of,
    copy_table,
    fill_table,
    is_pooled,
    lanes_of,
    pixel_of,
    shared_table,
    table_of,
    weight_of,
)
from .indices import split, this_thread
from .launches import bounded
from .lines import HELD, Held, bin_sum, held_lines, held_pair, hold, weighted_lines

element_at = cuda.jit(device=True)(_kernels.element_at)

OWN = 4  # channels of a thread
COLOURS = 3  # of a thread, where there are no more
VALUES = HELD * OWN  # that a thread reads at once
FEW_THREADS = 256  # of a block, at most, of which the registers of three must fit
NO_ROW = np.uint32(0xFFFFFFFF)


class Division(NamedTuple):
    """How a block divides a box: into parts, and each part among its threads. In 32 bits."""

    across: int  # parts: of the channels
    down: int  # and of the rows of bins
    groups: int  # of threads that take other channels
    columns: int  # of bins, side by side
    walks: int  # one below the other
    rows: int  # of bins, of a walk
    is_last: bool  # whether channels come last: neighbouring threads then take these
    is_staged: bool  # whether bins meet in shared memory before they are written


class Place(NamedTuple):
    """What a thread takes of a part. In 32 bits."""

    group: int  # of channels
    column: int  # of bins
    walk: int
    works: bool  # whether there is anything for it


@cuda.jit(device=True)
def place_of(division):
    """Return what this thread takes of a part."""
    x = np.uint32(cuda.threadIdx.x)
    if division.is_last:
        walk, column = split(cuda.threadIdx.y, division.columns)
        return Place(x, column, walk, walk < division.walks)
    group, walk = split(cuda.threadIdx.y, division.walks)
    return Place(group, x, walk, group < division.groups)


@cuda.jit(device=True)
def write_staged(numbers, out, to, strides, channels, cells):
    """Write the bins of a part, `cells` for each of its channels, in the order that they lie in."""
    stride, column_stride = np.uintp(strides.channel), np.uintp(strides.column)
    place, threads = this_thread()
    channel, cell = split(place, cells)
    channel_step, cell_step = split(threads, cells)
    to += np.uintp(channel) * stride + np.uintp(cell) * column_stride
    step = np.uintp(channel_step) * stride + np.uintp(cell_step) * column_stride
    while place < channels * cells:
        out[to] = numbers[place]
        place, cell, to = np.uint32(place + threads), np.uint32(cell + cell_step), to + step
        if cell >= cells:
            cell = np.uint32(cell - cells)
            to += stride - np.uintp(cells) * column_stride


class Share(NamedTuple):
    """The channels and the rows of bins of a part, and those of a thread. In 32 bits."""

    first_channel: int  # of the part
    first_row: int
    channel: int  # of the thread, its first
    count: int  # of its channels


@cuda.jit(device=True)
def share_of(number, division, place, channels, own):
    """Return what a thread takes of a part, by the number of the part."""
    across, down = split(number, division.down)
    first_channel = np.uint32(across * own * division.groups)
    channel = np.uint32(first_channel + place.group)
    left, count = np.int32(channels) - np.int32(channel), np.uint32(0)
    while left > 0 and count < own:
        left, count = left - np.int32(division.groups), np.uint32(count + 1)
    return Share(first_channel, np.uint32(down * division.walks * division.rows), channel, count)


@cuda.jit(device=True)
def start_of(strides, table, channel):
    """Return where a channel begins, of the image of a table."""
    image = np.uintp(max(table.head[0], 0)) * np.uintp(strides.image)
    return image + np.uintp(channel) * np.uintp(strides.channel)


@cuda.jit(device=True)
def add_rows(
    features, start, hop, count, strides, table, ph, columns, held, kept_row, former_row,
    sums, kept, former, values, zero, holds, own,
):  # fmt: skip
    """Add the rows of a bin to its sums; return the last two rows that were summed.

    `kept` and `former` are their sums, at first those of the bin above.
    """
    Index = type(strides.channel)
    slot, last = bounds_of(table, ph)
    while slot < last:
        row, weight, after = pixel_of(table, slot), weight_of(table, slot), np.uint32(slot + 1)
        if row != kept_row and row != former_row:
            below = pixel_of(table, after) if holds and after < last else NO_ROW
            is_new = below != NO_ROW and below != kept_row and below != former_row
            origin = start + np.uintp(Index(strides.row * Index(row)))
            # Two rows of two taps take as many registers as a row of four.
            if holds and is_new and 0 < held.count <= AT_ONCE:
                other = start + np.uintp(Index(strides.row * Index(below)))
                held_pair(
                    features, origin, other, hop, count, held, values, former, kept, own, zero
                )
                former_row, kept_row = row, below
            else:
                for k in range(own):
                    former[k] = kept[k]
                former_row, kept_row = kept_row, row
                if holds:
                    held_lines(features, origin, hop, count, held, values, kept, own, zero)
                else:
                    weighted_lines(
                        features, origin, hop, count, strides.column, table, columns[0],
                        columns[1], AT_ONCE, values, kept, own, zero,
                    )  # fmt: skip
        if row == former_row:
            for k in range(own):
                sums[k] += weight * former[k]
        else:
            for k in range(own):
                sums[k] += weight * kept[k]
        slot = after
    return kept_row, former_row


@cuda.jit(device=True)
def pool_box(
    features, strides, table, n, bins, division, numbers, zero, out, out_strides, channels,
    holds, own,
):  # fmt: skip
    """Pool RoI `n`: some of its parts by this block.

    The last two are constants of a kernel, which is compiled for them: whether a thread holds the
    taps of a bin for all rows, and how many channels it has.
    """
    sums, kept = cuda.local.array(OWN, type(zero)), cuda.local.array(OWN, type(zero))
    former, values = cuda.local.array(OWN, type(zero)), cuda.local.array(VALUES, type(zero))
    offsets = cuda.local.array(HELD, type(strides.column))
    weights = cuda.local.array(HELD, type(zero))
    is_valid = is_pooled(table)
    height, width, channels = np.uint32(bins[0]), np.uint32(bins[1]), np.uint32(channels)
    place = place_of(division)
    Index = type(strides.channel)
    hop = Index(division.groups * strides.channel)
    out_hop = np.uintp(division.groups) * np.uintp(out_strides.channel)
    number, parts = np.uint32(cuda.blockIdx.y), np.uint32(division.across * division.down)
    while number < parts:
        share = share_of(number, division, place, channels, own)
        start = start_of(strides, table, share.channel)
        rows = np.uint32(min(np.uint32(division.walks * division.rows), height - share.first_row))
        cells, above = np.uint32(rows * width), np.uint32(place.walk * division.rows)
        planes_apart = np.uint32(division.groups * cells)
        first, base = np.uint32(share.first_row + above), np.uint32(0)
        stop = np.uint32(first + division.rows)
        while base < width:
            column = np.uint32(base + place.column)
            works = place.works and share.count > 0 and column < width
            begin, end = np.uint32(0), np.uint32(0)
            if works and is_valid:
                begin, end = bounds_of(table, height + column)
            held = Held(offsets, weights, np.uint32(0))
            if holds:
                held = hold(table, begin, end, strides.column, offsets, weights, zero)
            kept_row = former_row = NO_ROW
            to = element_at(out_strides, n, share.channel, first, column)
            at = np.uint32(place.group * cells + above * width + column)
            ph = first
            while ph < stop:
                for k in range(own):
                    sums[k] = zero if is_valid else zero * type(zero)(math.nan)
                if works and is_valid and ph < height:
                    kept_row, former_row = add_rows(
                        features, start, hop, share.count, strides, table, ph, (begin, end),
                        held, kept_row, former_row, sums, kept, former, values, zero, holds, own,
                    )  # fmt: skip
                if works and ph < height:
                    if division.is_staged:
                        for k in range(own):
                            numbers[at + np.uint32(k) * planes_apart] = sums[k]
                    else:
                        for k in range(own):
                            if np.uint32(k) < share.count:
                                out[to + np.uintp(k) * out_hop] = sums[k]
                to += np.uintp(out_strides.row)
                at, ph = np.uint32(at + width), np.uint32(ph + 1)
            base = np.uint32(base + division.columns)
        if division.is_staged:
            cuda.syncthreads()
            there = min(np.uint32(own * division.groups), channels - share.first_channel)
            to = element_at(out_strides, n, share.first_channel, share.first_row, 0)
            write_staged(numbers, out, to, out_strides, np.uint32(there), cells)
            cuda.syncthreads()
        number = np.uint32(number + np.uint32(cuda.gridDim.y))


@cuda.jit(device=True)
def pool_bins(features, strides, table, n, bins, division, zero, out, out_strides, channels):
    """As `pool_box`, a thread for each bin of a channel, without loops over them.

    The rows are added up in their order, as there: a box has the same bits however many boxes come
    along, but for what the compiler rounds otherwise in one kernel than in another.
    """
    height, width = np.uint32(bins[0]), np.uint32(bins[1])
    place = place_of(division)
    share = share_of(cuda.blockIdx.y, division, place, channels, np.uint32(1))
    ph, pw = split(share.first_row * division.columns + place.column, width)
    if place.works and share.count > 0 and ph < height:
        total = zero * type(zero)(math.nan)
        if is_pooled(table):
            start = start_of(strides, table, share.channel)
            rows, columns = bounds_of(table, ph), bounds_of(table, height + pw)
            total = bin_sum(features, start, strides, table, rows, columns, zero)
        out[element_at(out_strides, n, share.channel, ph, pw)] = total


@cuda.jit(device=True)
def pool_by_own_table(
    features, strides, rois, sampling, convention, slots, places, division, zero,
    out, out_strides, channels, holds, own,
):  # fmt: skip
    """Fill a table in shared memory and pool the RoI of this block by it."""
    table, n = shared_table(places, zero), np.intp(cuda.blockIdx.x)
    fill_table(table, rois, n, sampling, convention, slots, zero)
    cuda.syncthreads()
    pool_box(
        features, strides, table, n, (sampling.output_height, sampling.output_width), division,
        table.numbers, zero, out, out_strides, channels, holds, own,
    )  # fmt: skip


@cuda.jit
def schedule_boxes(
    features, strides, rois, sampling, convention, slots, places, division, zero,
    out, out_strides, channels,
):  # fmt: skip
    """Pool RoIs whose bins a thread holds, a column of blocks for each."""
    pool_by_own_table(
        features, strides, rois, sampling, convention, slots, places, division, zero,
        out, out_strides, channels, True, OWN,
    )  # fmt: skip


@cuda.jit
def schedule_unheld(
    features, strides, rois, sampling, convention, slots, places, division, zero,
    out, out_strides, channels,
):  # fmt: skip
    """As `schedule_boxes`, of bins whose taps a thread reads from the table, for each row anew."""
    pool_by_own_table(
        features, strides, rois, sampling, convention, slots, places, division, zero,
        out, out_strides, channels, False, OWN,
    )  # fmt: skip


@cuda.jit
def schedule_colours(
    features, strides, rois, sampling, convention, slots, places, division, zero,
    out, out_strides, channels,
):  # fmt: skip
    """As `schedule_boxes`, of so few channels as a picture has."""
    pool_by_own_table(
        features, strides, rois, sampling, convention, slots, places, division, zero,
        out, out_strides, channels, True, COLOURS,
    )  # fmt: skip


@cuda.jit
def schedule_narrow(
    features, strides, rois, start, sampling, convention, slots, places, division, tables, zero,
    out, out_strides, channels,
):  # fmt: skip
    """As `schedule_unheld`, from `start` on, but for boxes of wide bins, whose tables it keeps."""
    table, row = shared_table(places, zero), np.uint32(cuda.blockIdx.x)
    n, kept = start + np.intp(row), table_of(tables, row)
    fill_table(table, rois, n, sampling, convention, slots, zero)
    cuda.syncthreads()
    bins = sampling.output_height, sampling.output_width
    lanes = lanes_of(table)
    if cuda.blockIdx.y == 0:
        copy_table(table, kept, bins, lanes)
    if lanes <= 1:
        pool_box(
            features, strides, table, n, bins, division, table.numbers, zero,
            out, out_strides, channels, False, OWN,
        )  # fmt: skip


@cuda.jit(**bounded(FEW_THREADS, 3))
def schedule_few(
    features, strides, rois, sampling, convention, slots, places, division, zero,
    out, out_strides, channels,
):  # fmt: skip
    """As `schedule_boxes`, where there are few bins for the device."""
    table, n = shared_table(places, zero), np.intp(cuda.blockIdx.x)
    fill_table(table, rois, n, sampling, convention, slots, zero)
    cuda.syncthreads()
    bins = sampling.output_height, sampling.output_width
    pool_bins(features, strides, table, n, bins, division, zero, out, out_strides, channels)


@cuda.jit
def schedule_tabled(
    features, strides, tables, start, bins, most_lanes, division, zero, out, out_strides, channels
):
    """As `schedule_unheld`, by tables that are filled, of boxes with so many lanes at most."""
    numbers, row = cuda.shared.array(0, tables.numbers.dtype), np.uint32(cuda.blockIdx.x)
    table = table_of(tables, row)
    if lanes_of(table) <= most_lanes:
        pool_box(
            features, strides, table, start + np.intp(row), bins, division, numbers, zero,
            out, out_strides, channels, False, OWN,
        )  # fmt: skip
