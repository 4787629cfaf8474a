"""The CUDA schedule of large bins: neighbouring threads take neighbouring taps of a bin's rows.

Other schedules leave boxes of such bins to it, few or many of all. A bin of some channels has half
a warp or a whole one, so that a row of its pixels is read from neighbouring addresses, several rows
before any is used; the threads' sums meet in shared memory.
"""

from __future__ import annotations

import math

import numpy as np
from numba import cuda

from .. import _kernels
from .box_tables import HALF_WARP, bounds_of, lanes_of, pixel_of, table_of, weight_of
from .indices import split
from .launches import MOST_BLOCKS, bounded, configured

element_at = cuda.jit(device=True)(_kernels.element_at)

OWN = 4  # channels of a thread
ROWS = 4  # that a thread reads at once
VALUES = ROWS * OWN
THREADS = 256  # of a block
PITCH = THREADS + THREADS // HALF_WARP  # sums of a channel: bins begin in different banks
SUMS = OWN * PITCH
WAVES = 2  # of blocks: each has some items of many boxes, of which most may be pooled elsewhere
AT_ONCE = 3  # blocks of a multiprocessor


@cuda.jit(device=True)
def sum_column(features, start, hop, stride, count, table, rows, weight, sums, values, zero):
    """Add to `sums` what a column of pixels gives a bin, for `count` channels."""
    Index, (slot, last) = type(hop), rows
    column = cuda.local.array(OWN, type(zero))
    furthest = np.uint32(count - 1)
    for k in range(OWN):
        column[k] = zero
    while slot < last:
        for r in range(ROWS):
            row = np.uint32(slot + np.uint32(r))
            if row < last:
                origin = start + np.uintp(Index(stride * Index(pixel_of(table, row))))
                for k in range(OWN):  # the last channel that there is, in place of others
                    apart = Index(Index(min(np.uint32(k), furthest)) * hop)
                    values[r * OWN + k] = features[origin + np.uintp(apart)]
        for r in range(ROWS):
            row = np.uint32(slot + np.uint32(r))
            if row < last:
                for k in range(OWN):
                    column[k] += weight_of(table, row) * values[r * OWN + k]
        slot = np.uint32(slot + ROWS)
    for k in range(OWN):
        sums[k] += weight * column[k]


@cuda.jit(device=True)
def pool_item(features, strides, table, item, lane, lanes, bins, channels, sums, zero):
    """Sum in `sums` what a thread reads of an item, which is a bin of some channels."""
    values = cuda.local.array(VALUES, type(zero))
    height, width = np.uint32(bins[0]), np.uint32(bins[1])
    Index, (group, place) = type(strides.channel), split(item, height * width)
    ph, pw = split(place, width)
    channel = np.uint32(group * OWN)
    for k in range(OWN):
        sums[k] = zero
    if channel < channels:
        count = np.uint32(min(np.uint32(OWN), np.uint32(channels - channel)))
        start = np.uintp(table.head[0]) * np.uintp(strides.image)
        start += np.uintp(channel) * np.uintp(strides.channel)
        rows, (slot, last) = bounds_of(table, ph), bounds_of(table, height + pw)
        slot = np.uint32(slot + lane)
        while slot < last:
            column = start + np.uintp(Index(strides.column * Index(pixel_of(table, slot))))
            sum_column(
                features, column, strides.channel, strides.row, count, table, rows,
                weight_of(table, slot), sums, values, zero,
            )  # fmt: skip
            slot = np.uint32(slot + lanes)


@cuda.jit(device=True)
def sums_place(thread):
    """Return where in shared memory the sums of a thread stand, from those of the first on."""
    return np.uint32(thread + (thread // np.uint32(HALF_WARP)))


@cuda.jit(device=True)
def write_items(shared, out, n, strides, first, lanes, bins, channels, zero):
    """Write the bins of a block's items, each the sum of what its threads have."""
    height, width = np.uint32(bins[0]), np.uint32(bins[1])
    k, item = split(cuda.threadIdx.x, np.uint32(np.uint32(THREADS) // lanes))
    if k < OWN:
        group, place = split(first + item, height * width)
        channel = np.uint32(group * OWN + k)
        if channel < channels:
            total, thread = zero, np.uint32(item * lanes)
            for t in range(lanes):
                total += shared[np.uint32(k * PITCH + sums_place(np.uint32(thread + np.uint32(t))))]
            ph, pw = split(place, width)
            out[element_at(strides, n, channel, ph, pw)] = total


@cuda.jit(**bounded(THREADS, AT_ONCE))
def schedule_large(features, strides, tables, start, count, bins, zero, out, out_strides, channels):
    """Pool those of `count` boxes whose bins several lanes are to share, by tables that are filled.

    A column of blocks takes every so many of the boxes, and lists those that are left.
    """
    sums = cuda.local.array(OWN, type(zero))
    shared = cuda.shared.array(SUMS, sums.dtype)
    listed = cuda.shared.array(THREADS, np.uint32)
    counts = cuda.shared.array(1, np.uint32)
    thread, channels = np.uint32(cuda.threadIdx.x), np.uint32(channels)
    base, apart = np.uint32(cuda.blockIdx.y), np.uint32(cuda.gridDim.y)
    while base < np.uint32(count):
        if thread == 0:
            counts[0] = 0
        cuda.syncthreads()
        row = np.uint32(base + thread * apart)
        if row < np.uint32(count) and lanes_of(table_of(tables, row)) > 1:
            listed[cuda.atomic.add(counts, 0, 1)] = row
        cuda.syncthreads()
        left = counts[0]
        while left > 0:
            left = np.uint32(left - 1)
            row = listed[left]
            table = table_of(tables, row)
            lanes = np.uint32(table.head[1])
            item, lane = split(thread, lanes)
            first = np.uint32(cuda.blockIdx.x * np.uint32(np.uint32(THREADS) // lanes))
            item = np.uint32(first + item)
            pool_item(features, strides, table, item, lane, lanes, bins, channels, sums, zero)
            for k in range(OWN):
                shared[np.uint32(np.uint32(k * PITCH) + sums_place(thread))] = sums[k]
            cuda.syncthreads()
            write_items(
                shared, out, start + np.intp(row), out_strides, first, lanes, bins, channels, zero
            )
            cuda.syncthreads()
        cuda.syncthreads()
        base = np.uint32(base + np.uint32(THREADS) * apart)


def pool_large(case, source, tables, start, count, queue, zero, target):
    """Pool those boxes of a batch that others have left, which may be all or none."""
    bins = case.sampling.output_height, case.sampling.output_width
    items = -(-case.channels // OWN) * math.prod(bins)
    blocks = -(-items // (THREADS // (2 * HALF_WARP)))
    columns = -(-WAVES * AT_ONCE * case.limits.multiprocessors // blocks)
    configured(schedule_large, (blocks, min(columns, count, MOST_BLOCKS)), THREADS, queue)(
        *source, tables, start, count, bins, zero, *target, case.channels
    )
