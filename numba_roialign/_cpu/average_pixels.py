"""The CPU schedule for channels-last maps: whole pixels, where they lie.

A pixel's channels are a run of memory, which processors fetch ahead, and taps are the same for all
of them. So each bin is pooled for all channels before the next bin, along the rows of the map. With
a block of channels for all RoIs before the next block, as where planes are packed, a map comes in
by short runs: those of 62 MB and more took 1.6 to 2.7 times as long. Only where RoIs read a pixel
some ten times does packing pay.

Where RoIs read pixels more than once, all rows of bins that begin in a band of the map come before
those of the next band, whichever RoIs they are of: large RoIs, one after the other, would each
fetch the map into the caches again.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .. import _kernels, _taps
from .._taps import Taps
from .bands import begins_in_task
from .fetching import fetch_bin, has_wide_bins
from .job import INLINED, INLINED_BY_LLVM, axis_tables, map_at, out_at
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
# Bytes of a band. With 4 to 16 MB mixed_s2 takes 0.77 of the time that it takes box by box and
# beyond_cache 0.87; with 256 KB 0.82 and 1.15.
BAND_BYTES = 1 << 22


def pieces_of(channels, width):
    """Return into how many pieces the channels of a pixel are cut, for so many bins in a row."""
    return -(-channels // max(1, min(PIECE, CELLS // width)))


def scratch_size(width, piece):
    """Return how many numbers of scratch a thread has: a line, and the results of a row of bins."""
    return max(LINE, piece) + width * piece


def band_rows(row_bytes):
    """Return how many rows of the map a task may have, each of so many bytes."""
    return max(1, BAND_BYTES // row_bytes)


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
def pool_bins(job, y_taps, x_taps, roi, blocks, ph, x, line, cells, pitch):
    """Pool the bins ``x[0]:x[1]`` of a row of bins into cells."""
    plane, rows = map_at(job, roi, 0), bin_taps(y_taps, roi, ph)
    for pw in range(x[0], x[1]):
        columns = bin_taps(x_taps, roi, pw)
        pool_bin(job, plane, blocks, rows, columns, line, cells, pitch)
        cells += len(job.tag)


@njit(**INLINED)
def write_blocks(job, blocks, cells, pitch, staging, at, bins):
    """Write bins of a row, some blocks of channels, to the output, from element `at` on."""
    for block in range(blocks[0], blocks[1]):
        to = at + first_channel(job, block) * job.out_channel
        write(job, cells, staging, to, 1, bins)
        cells += pitch


def work(thread, job):
    """Pool a task, each RoI by itself."""
    lanes, width, task = len(job.tag), job.output_width, task_of(thread, job)
    y_taps, x_taps = axis_tables(job)
    line, staging = thread * job.scratch_size, thread * job.staging_size
    all_blocks, beside = -(-job.channels // lanes), job.out_channel == 1
    blocks = task.block * all_blocks // job.blocks, (task.block + 1) * all_blocks // job.blocks
    cells = line + max(LINE, (blocks[1] - blocks[0]) * lanes)
    # channels last, a bin is written before the next; else a row of bins
    wide = 1 if beside else width
    pitch = wide * lanes
    for i in range(task.begin, task.end):
        roi = job.order[i]
        fetches = blocks[1] - blocks[0] > 1 and has_wide_bins(job, roi)
        for y in range(job.output_height):
            if begins_in_task(job, task, y_taps, roi, y):
                for x in range(0, width, wide):
                    if fetches and x + wide < width:
                        fetch_bin(job, y_taps, x_taps, roi, y, x + wide)
                    pool_bins(
                        job, y_taps, x_taps, roi, blocks, y, (x, x + wide), line, cells, pitch
                    )
                    at = out_at(job, roi, 0, y) + x * job.out_column
                    write_blocks(job, blocks, cells, pitch, staging, at, wide)
