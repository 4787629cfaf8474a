"""The CPU schedule with channels in the lanes: a call of the element kernel pools `L` channels.

Taps are the same for all channels, so the kernel pools a block of `L` channels at once, on vectors.
The rows that the RoIs read are first packed into scratch, pixel by pixel with the block's channels
side by side: transposed in squares where channels lie apart in memory, copied where they lie side
by side (channels last). Results go the other way, channels last as soon as a bin is pooled. The
RoIs of a chunk stand in the order of their first rows, so that each row is packed once, just ahead
of its use.

Channels last, RoIs that read each pixel fewer than some ten times are pooled in place instead: see
`average_pixels`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .. import _kernels, _taps
from .job import INLINED, axis_tables, map_at, out_at, span_of
from .lanes import view, zero_of
from .packing import pack_rows
from .results import finish, put
from .tables import pixel_span
from .tasks import first_channel, task_of

average = njit(**INLINED)(_kernels.average)
bin_taps = njit(**INLINED)(_taps.bin_taps)

# A thread's scratch: pixels of packed rows, and bins of results. With 16 lanes of float32, which
# large maps take, that is 9 MB, of which a call touches only what it needs. A RoI with more bins
# comes in parts; one with more pixels is pooled by other schedules, from where they lie.
# With half as many pixels 300 boxes on a map of 270 x 480 took 2 to 3 times as long.
WINDOW = 1 << 17
CELLS = 1 << 12
# With more pixels per tapped pixel than this, a RoI is sparse, and its window is not packed:
# few_samples_huge_map took 213 ms with its windows packed whole, and takes 1.
SPARSE = 4


def most_rows(width):
    """Return how many rows of bins a part may have."""
    return max(1, CELLS // width)


def window_of(height, width):
    """Return how many pixels of such a map scratch holds."""
    return min(WINDOW, height * width)


def scratch_size(bins, width, window, lanes):
    """Return how many numbers of scratch a thread has."""
    return (window + min(bins, most_rows(width)) * width) * lanes


@njit(**INLINED)
def pool_rows(job, window, pitch, y_taps, x_taps, roi, share, cells, at):
    """Pool some rows of bins from packed rows into `cells`, or to the output from `at` on.

    `window` says where pixel 0 of row 0 would lie in scratch, and `pitch` how far rows lie apart.
    """
    lanes, width = len(job.tag), job.output_width
    numbers, out = view(job.scratch, 0, job.tag), view(job.out, 0, job.tag)
    zero = zero_of(numbers)
    origin, row_stride, column_stride = np.uintp(window), np.uintp(pitch), np.uintp(lanes)
    for ph in range(share[0], share[1]):
        rows = bin_taps(y_taps, roi, ph)
        for pw in range(width):
            columns = bin_taps(x_taps, roi, pw)
            number = average(numbers, origin, row_stride, column_stride, rows, columns, zero, zero)
            put(job, number, numbers, cells, out, at + pw * job.out_column)
            cells += lanes
        at += job.out_row


@njit(**INLINED)
def common_columns(job, begin, end):
    """Return the columns of a common window of RoIs, or 0, 0 where each RoI takes its own.

    Packing once what RoIs have in common pays while it is no more than packing for each, and the
    window must hold all rows of the tallest.
    """
    low, high, left, right, alone, tallest = 1 << 60, 0, 1 << 60, 0, 0, 0
    for i in range(begin, end):
        y0, y1, x0, x1 = span_of(job, job.order[i])
        low, high, left, right = min(low, y0), max(high, y1), min(left, x0), max(right, x1)
        alone += (y1 - y0) * (x1 - x0)
        tallest = max(tallest, y1 - y0)
    columns = right - left
    if (high - low) * columns <= alone and tallest * columns <= job.window:
        return left, right
    return 0, 0


@njit(**INLINED)
def own_columns(job, roi, least):
    """Return the columns of a RoI's own window: at least so many, where the map has them.

    For a window that is packed it is at most what `tables.survey` reckons with, `LEAST_COLUMNS`.
    """
    _, _, left, right = span_of(job, roi)
    least = min(least, job.width)
    if right - left < least:
        left = min(left, job.width - least)
        right = left + least
    return left, right


@njit(**INLINED)
def pool_roi(job, y_taps, x_taps, plane, roi, share, left, right, held, base, at):
    """Pool a RoI from packed rows, into scratch or to the output from element `at` on.

    Returns which rows the window then holds; `held` are those that it holds at first, and `plane`
    is the block's first element in the RoI's image. All rows fit, or `tables.survey` has the RoI
    pooled elsewhere.
    """
    lanes, columns = len(job.tag), right - left
    capacity, pitch, cells = job.window // columns, columns * lanes, base + job.window * lanes
    low, high = pixel_span(y_taps, roi, share[0], share[1])
    held_low, held_high = held
    if low < held_low or low > held_high or high > held_low + capacity:
        held_low, held_high = low, low
    if high > held_high:
        pack_rows(
            job, plane + held_high * job.in_row + left * job.in_column, columns,
            base + (held_high - held_low) * pitch, high - held_high,
        )  # fmt: skip
        held_high = high
    window = base - held_low * pitch - left * lanes
    pool_rows(job, window, pitch, y_taps, x_taps, roi, share, cells, at)
    return held_low, held_high


def work(thread, job):
    """Pool a task from packed rows of the map."""
    lanes, task = len(job.tag), task_of(thread, job)
    y_taps, x_taps = axis_tables(job)
    base = thread * job.scratch_size
    cells, staging = base + job.window * lanes, thread * job.staging_size
    c, share = first_channel(job, task.block), (task.low, task.high)
    left, right = common_columns(job, task.begin, task.end)
    common, held = right > left, (0, 0)
    for i in range(task.begin, task.end):
        roi = job.order[i]
        if not common:
            held = 0, 0
            left, right = own_columns(job, roi, len(job.square))
        plane, at = map_at(job, roi, c), out_at(job, roi, c, share[0])
        held = pool_roi(job, y_taps, x_taps, plane, roi, share, left, right, held, base, at)
        finish(job, cells, staging, at, share[1] - share[0], job.output_width)
