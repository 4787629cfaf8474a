"""The CPU schedule for channels-last maps: whole pixels, where they lie.

A pixel's channels are a run of memory, which processors fetch ahead, and taps are the same for all
of them. So each bin is pooled for all channels before the next bin, along the rows of the map. With
a block of channels for all RoIs before the next block, as where planes are packed, a map comes in
by short runs: those of 62 MB and more took 1.6 to 2.7 times as long. Only where RoIs read a pixel
some dozens of times does packing pay.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .. import _kernels, _taps
from .._taps import Taps
from .job import INLINED, INLINED_BY_LLVM, axis_tables
from .lanes import view, zero_of
from .results import write
from .tasks import first_channel, task_of

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


@njit(**INLINED_BY_LLVM)
def sum_rows(job, plane, blocks, rows, pixels, first, last, line):
    """Sum the rows of the columns ``pixels[first:last]``, a few rows at a time, into a line."""
    lanes, row_stride = len(job.tag), np.uintp(job.in_row)
    source, numbers = view(job.features, 0, job.tag), view(job.scratch, 0, job.tag)
    zero, top, bottom = zero_of(numbers), np.intp(rows.first), np.intp(rows.last)
    for low in range(top, bottom, ROWS):
        some = Taps(rows.pixels, rows.weights, np.uintp(low), np.uintp(min(low + ROWS, bottom)))
        at = line
        for i in range(first, last):
            pixel = plane + job.in_column * pixels[np.uintp(i)]
            for block in range(blocks[0], blocks[1]):
                origin = np.uintp(pixel + first_channel(job, block))
                total = zero if low == top else numbers[at]
                numbers[at] = weighted(source, origin, row_stride, some, total)
                at += lanes


@njit(**INLINED)
def pool_bin(job, plane, blocks, rows, columns, line, cell, pitch):
    """Pool a bin, its blocks of channels into cells that are `pitch` apart."""
    lanes, count = len(job.tag), blocks[1] - blocks[0]
    source, numbers = view(job.features, 0, job.tag), view(job.scratch, 0, job.tag)
    zero, row_taps = zero_of(numbers), np.intp(rows.last) - np.intp(rows.first)
    if count == 1 and row_taps <= ROWS:  # sums that fit the registers
        numbers[cell] = average(
            source, np.uintp(plane + first_channel(job, blocks[0])), np.uintp(job.in_row),
            np.uintp(job.in_column), rows, columns, zero, zero,
        )  # fmt: skip
        return
    for b in range(count):
        numbers[cell + b * pitch] = zero
    if row_taps == 0:
        return
    step, right = max(1, LINE // (count * lanes)), np.intp(columns.last)
    for first in range(np.intp(columns.first), right, step):
        last = min(first + step, right)
        sum_rows(job, plane, blocks, rows, columns.pixels, first, last, line)
        for b in range(count):
            total, at = numbers[cell + b * pitch], line + b * lanes
            for i in range(first, last):
                total = total + columns.weights[np.uintp(i)] * numbers[at]
                at += count * lanes
            numbers[cell + b * pitch] = total


@njit(**INLINED)
def pool_bins(job, y_taps, x_taps, roi, blocks, y, x, line, cells, pitch):
    """Pool the bins of rows ``y[0]:y[1]`` and columns ``x[0]:x[1]`` into cells."""
    plane = job.table_images[roi] * job.in_image
    for ph in range(y[0], y[1]):
        rows = bin_taps(y_taps, roi, ph)
        for pw in range(x[0], x[1]):
            columns = bin_taps(x_taps, roi, pw)
            pool_bin(job, plane, blocks, rows, columns, line, cells, pitch)
            cells += len(job.tag)


@njit(**INLINED)
def write_blocks(job, blocks, cells, pitch, staging, at, rows, width):
    """Write rows of bins of some blocks of channels to the output, from element `at` on."""
    for block in range(blocks[0], blocks[1]):
        to = at + first_channel(job, block) * job.out_channel
        write(job, cells, staging, to, rows, width)
        cells += pitch


def work(thread, job):
    """Pool a task, each RoI by itself."""
    lanes, width, task = len(job.tag), job.output_width, task_of(thread, job)
    y_taps, x_taps = axis_tables(job)
    line, staging = thread * job.scratch_size, thread * job.staging_size
    all_blocks, beside = -(-job.channels // lanes), job.out_channel == 1
    blocks = task.block * all_blocks // job.blocks, (task.block + 1) * all_blocks // job.blocks
    cells = line + max(LINE, (blocks[1] - blocks[0]) * lanes)
    # channels last, a bin is written before the next; else a RoI
    high, wide = (1, 1) if beside else (task.high - task.low, width)
    pitch = high * wide * lanes
    for i in range(task.begin, task.end):
        roi = job.order[i]
        for y in range(task.low, task.high, high):
            for x in range(0, width, wide):
                pool_bins(
                    job, y_taps, x_taps, roi, blocks, (y, y + high), (x, x + wide), line,
                    cells, pitch,
                )  # fmt: skip
                at = (job.start + roi) * job.out_image + y * job.out_row + x * job.out_column
                write_blocks(job, blocks, cells, pitch, staging, at, high, wide)
