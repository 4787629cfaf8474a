"""The CPU schedule for channels-last maps: whole pixels, where they lie.

A pixel's channels are a run of memory, which processors fetch ahead, and taps are the same for all
of them. So each bin is pooled for all channels before the next bin, along the rows of the map. With
a block of channels for all RoIs before the next block, as where planes are packed, a map comes in
by short runs: those beyond the caches took 1.5 to 6 times as long. Only where RoIs read a pixel
some dozens of times does packing pay.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from . import _kernels, _taps
from ._cpu_job import INLINED, axis_tables
from ._cpu_results import write
from ._cpu_tasks import next_task
from ._lanes import fence, view, zero_of
from ._taps import Taps

average = njit(**INLINED)(_kernels.average)
weighted = njit(**INLINED)(_kernels.weighted)
bin_taps = njit(**INLINED)(_taps.bin_taps)

# Most numbers of a line: so many of a bin's columns have their rows summed together, within the
# first cache. Rows come few at a time, since they may all lie in the same sets of that cache.
LINE = 1 << 11
ROWS = 8
# Most channels that are pooled together, and most numbers of results in scratch.
PIECE = 1 << 11
CELLS = 1 << 20


def pieces_of(channels, width):
    """Return into how many pieces the channels of a pixel are cut, for so many bins in a row."""
    return -(-channels // max(1, min(PIECE, CELLS // width)))


def most_rows(width, piece):
    """Return how many rows of bins a part may have, for pieces of so many channels."""
    return max(1, CELLS // (width * piece))


def scratch_size(bins, width, piece):
    """Return how many numbers of scratch a thread has: a line, and results."""
    return max(LINE, piece) + min(bins, most_rows(width, piece)) * width * piece


@njit(**INLINED)
def pool_bin(job, plane, blocks, rows, columns, line, cell, pitch):
    """Pool a bin, its blocks of channels into cells that are `pitch` apart."""
    lanes, count, last_channel = len(job.tag), blocks[1] - blocks[0], job.channels - len(job.tag)
    source, numbers = view(job.features, 0, job.tag), view(job.scratch, 0, job.tag)
    zero, row_stride, column_stride = zero_of(numbers), np.uintp(job.in_row), job.in_column
    top, bottom = np.intp(rows.first), np.intp(rows.last)
    left, right = np.intp(columns.first), np.intp(columns.last)
    if count == 1 and bottom - top <= ROWS:  # sums that fit the registers
        origin = np.uintp(plane + min(blocks[0] * lanes, last_channel))
        numbers[cell] = average(
            source, origin, row_stride, np.uintp(column_stride), rows, columns, zero, zero
        )
        return
    for b in range(count):
        numbers[cell + b * pitch] = zero
    if top == bottom:  # no taps
        return
    step = max(1, LINE // (count * lanes))
    for first in range(left, right, step):
        last = min(first + step, right)
        for low in range(top, bottom, ROWS):
            some = Taps(rows.pixels, rows.weights, np.uintp(low), np.uintp(min(low + ROWS, bottom)))
            for i in range(first, last):
                pixel = plane + column_stride * columns.pixels[np.uintp(i)]
                for b in range(count):
                    at = line + ((i - first) * count + b) * lanes
                    # the last block overlaps the one before
                    origin = np.uintp(pixel + min((blocks[0] + b) * lanes, last_channel))
                    total = zero if low == top else numbers[at]
                    numbers[at] = weighted(source, origin, row_stride, some, total)
        for b in range(count):
            total = numbers[cell + b * pitch]
            for i in range(first, last):
                at = line + ((i - first) * count + b) * lanes
                total = total + columns.weights[np.uintp(i)] * numbers[at]
            numbers[cell + b * pitch] = total


@njit(**INLINED)
def write_blocks(job, blocks, cells, pitch, staging, at, rows, width):
    """Write rows of bins of some blocks of channels to the output, from element `at` on."""
    lanes = len(job.tag)
    for b in range(blocks[1] - blocks[0]):
        c = min((blocks[0] + b) * lanes, job.channels - lanes)
        write(job, cells + b * pitch, staging, at + c * job.out_channel, rows, width)


def work(thread, job):
    """Pool tasks until none is left, each RoI by itself."""
    lanes, width = len(job.tag), job.output_width
    y_taps, x_taps = axis_tables(job)
    line, staging = thread * job.scratch_size, thread * job.staging_size
    all_blocks, beside = -(-job.channels // lanes), job.out_channel == 1
    while True:
        piece, _, (begin, end), share = next_task(job, job.output_height)
        if piece < 0:
            break
        blocks = piece * all_blocks // job.blocks, (piece + 1) * all_blocks // job.blocks
        count = blocks[1] - blocks[0]
        cells = line + max(LINE, count * lanes)
        # channels last, a bin is written before the next; else a RoI
        high, wide = (1, 1) if beside else (share[1] - share[0], width)
        pitch = high * wide * lanes
        for i in range(begin, end):
            row = job.order[i]
            plane = job.table_images[row] * job.in_image
            to = (job.start + row) * job.out_image
            for y in range(share[0], share[1], high):
                for x in range(0, width, wide):
                    cell = cells
                    for ph in range(y, y + high):
                        rows = bin_taps(y_taps, row, ph)
                        for pw in range(x, x + wide):
                            columns = bin_taps(x_taps, row, pw)
                            pool_bin(job, plane, blocks, rows, columns, line, cell, pitch)
                            cell += lanes
                    at = to + y * job.out_row + x * job.out_column
                    write_blocks(job, blocks, cells, pitch, staging, at, high, wide)
    fence()
