"""The CPU schedule for RoIs whose taps lie far apart: large boxes with few samples.

Of their pixels only those tapped are read, each once for each bin, so that nothing is packed or
summed for its neighbours' sake. The element kernel's inner half sums `L` tapped columns at once:
one element of each, `L` loads that do not wait for each other. Channels last, `average_pixels`
reads no more than that either.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .. import _kernels, _taps
from .fetching import fetch_taps, leaves_caches
from .job import INLINED, axis_tables, map_at, out_at
from .lanes import lines_of, tile, view, zero_of
from .tasks import channels_of, task_of

average = njit(**INLINED)(_kernels.average)
weighted = njit(**INLINED)(_kernels.weighted)
bin_taps = njit(**INLINED)(_taps.bin_taps)

# Most lanes of tapped columns: each has an address of its own, and x86-64 has 16 registers.
MOST_COLUMNS = 8


def pitch_of(bins, lanes):
    """Return how many numbers a column of bins takes in scratch: whole vectors."""
    return -(-bins // lanes) * lanes


_pitch_of = njit(**INLINED)(pitch_of)


def scratch_size(bins, width, lanes):
    """Return how many numbers of scratch a thread has: results, and sums of columns both ways."""
    return (width + 2 * lanes) * pitch_of(bins, lanes)


@njit(**INLINED)
def pool_plane(job, plane, roi, share, at, results):
    """Pool rows of bins of one channel, from element `plane` of the map to `at` of the output."""
    lanes, width, bins = len(job.tag), job.output_width, share[1] - share[0]
    pitch = _pitch_of(bins, lanes)
    y_taps, x_taps = axis_tables(job)
    numbers, squares = view(job.scratch, 0, job.tag), view(job.scratch, 0, job.square)
    one, out, zero = view(job.scratch, 0, (0,)), view(job.out, 0, (0,)), zero_of(numbers)
    features, row_stride = view(job.features, plane, (0,)), np.uintp(job.in_row)
    rows = results + width * pitch
    sums = rows + lanes * pitch
    for element in range(results, rows, lanes):
        numbers[element] = zero
    pw, last_slot, fetches = 0, x_taps.bounds[roi, width], leaves_caches(job)
    for first_slot in range(x_taps.bounds[roi, 0], last_slot, lanes):
        end = min(first_slot + lanes, last_slot)
        lines = lines_of(features, job.in_column, job.x_pixels, first_slot, last_slot, job.tag)
        for p in range(bins):
            taps = bin_taps(y_taps, roi, share[0] + p)
            if fetches:
                fetch_taps(job, lines, taps)
            numbers[rows + p * lanes] = weighted(lines, np.uintp(0), row_stride, taps, zero)
        for p in range(0, bins, lanes):
            tile(squares, rows + p * lanes, lanes, squares, sums + p, pitch)
        for slot in range(first_slot, end):
            while slot >= x_taps.bounds[roi, pw + 1]:
                pw += 1
            weight = x_taps.weights[np.uintp(slot)]
            line, total = sums + (slot - first_slot) * pitch, results + pw * pitch
            for p in range(0, bins, lanes):
                numbers[total + p] = numbers[total + p] + weight * numbers[line + p]
    out_row, out_column = job.out_row, job.out_column
    for p in range(bins):
        for pw in range(width):
            out[at + p * out_row + pw * out_column] = one[results + pw * pitch + p]


@njit(**INLINED)
def pool_bin(job, plane, roi, ph, at):
    """Pool the one bin of a row of bins, in one channel, from element `plane` to `at`."""
    features, out = view(job.features, 0, (0,)), view(job.out, 0, (0,))
    y_taps, x_taps = axis_tables(job)
    out[at] = average(
        features, np.uintp(plane), np.uintp(job.in_row), np.uintp(job.in_column),
        bin_taps(y_taps, roi, ph), bin_taps(x_taps, roi, 0), job.zero, job.zero,
    )  # fmt: skip


def work(thread, job):
    """Pool a task.

    A single bin goes without lanes: it takes few instructions, and so the processor runs ahead to
    what later channels read. 64 boxes into 1 x 1 bins take 0.84 of the time.
    """
    task = task_of(thread, job)
    single = job.output_width == 1 and task.high - task.low == 1
    first, last = channels_of(job, task.block)
    for i in range(task.begin, task.end):
        roi = job.order[i]
        for c in range(first, last):
            plane, to = map_at(job, roi, c), out_at(job, roi, c, task.low)
            if single:
                pool_bin(job, plane, roi, task.low, to)
            else:
                pool_plane(job, plane, roi, (task.low, task.high), to, thread * job.scratch_size)
