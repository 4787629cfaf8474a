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
from numba.extending import overload

from .. import _kernels, _taps
from .._taps import Taps
from .bands import next_bins
from .job import INLINED, INLINED_BY_LLVM, axis_tables, map_at, out_at, span_of
from .lanes import add_parts, view, zero_of
from .packing import pack_rows
from .results import finish, put
from .tables import pixel_span
from .tasks import first_channel, task_of

average = njit(**INLINED)(_kernels.average)
weighted = njit(**INLINED)(_kernels.weighted)
bin_taps = njit(**INLINED)(_taps.bin_taps)

# A thread's scratch: pixels of packed rows, and bins of results. With 16 lanes of float32, which
# large maps take, that is 9 MB, of which a call touches only what it needs. A RoI with more bins
# comes in parts; one with more pixels is pooled by other schedules, from where they lie.
# With half as many pixels 300 boxes on a map of 270 x 480 took 2 to 3 times as long.
WINDOW = 1 << 17
CELLS = 1 << 12
# Channels last, rows of bins come in bands of so many rows of the map where the rows of the tallest
# RoI are more numbers than this. mixed_adaptive takes 0.86 of the time, also with 8 rows or 32; FPN
# levels, of fewer numbers, would take 1.0 to 1.05.
BAND_NUMBERS, BAND_ROWS = 1 << 19, 16
# With more pixels per tapped pixel than this, a RoI is sparse, and its window is not packed:
# few_samples_huge_map took 213 ms with its windows packed whole, and takes 0.4.
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


def pool_singly(job, numbers, origin, pitch, rows, columns):
    """Pool a bin, one column after the other."""
    zero, lanes = zero_of(numbers), np.uintp(len(job.tag))
    return average(numbers, origin, pitch, lanes, rows, columns, zero, zero)


def pool_severally(job, numbers, origin, pitch, rows, columns):
    """Pool a bin, several columns at a time as one vector while they lie side by side.

    Their sums do not wait for each other, and share each row's pixel and weight.
    """
    several, lanes = view(job.scratch, 0, job.wide), np.uintp(len(job.tag))
    zeros, total, step = zero_of(several), zero_of(numbers), np.uintp(len(job.wide)) // lanes
    i, last = columns.first, columns.last
    while i + step <= last:
        pixel = np.uintp(columns.pixels[i])
        if np.uintp(columns.pixels[i + step - np.uintp(1)]) - pixel >= step:
            break
        sums = weighted(several, origin + pixel * lanes, pitch, rows, zeros)
        total = add_parts(total, job.x_weights, i, sums)
        i += step
    left = Taps(columns.pixels, columns.weights, i, last)
    return average(numbers, origin, pitch, lanes, rows, left, zero_of(numbers), total)


def pool(job, numbers, origin, pitch, rows, columns):
    """Return a bin of packed rows that are `pitch` apart; pixel 0 of row 0 would be at `origin`.

    For compiled code, which knows how many vectors the registers hold.
    """
    raise NotImplementedError


@overload(pool, jit_options=INLINED_BY_LLVM)
def _pool(job, numbers, origin, pitch, rows, columns):
    return pool_severally if job.type_of("wide").count > job.lanes else pool_singly


@njit(**INLINED)
def pool_rows(job, window, pitch, y_taps, x_taps, roi, share, cells, at):
    """Pool some rows of bins from packed rows into `cells`, or to the output from `at` on.

    `window` says where pixel 0 of row 0 would lie in scratch, and `pitch` how far rows lie apart.
    """
    numbers, out = view(job.scratch, 0, job.tag), view(job.out, 0, job.tag)
    for ph in range(share[0], share[1]):
        rows = bin_taps(y_taps, roi, ph)
        for pw in range(job.output_width):
            columns = bin_taps(x_taps, roi, pw)
            number = pool(job, numbers, np.uintp(window), np.uintp(pitch), rows, columns)
            put(job, number, numbers, cells, out, at + pw * job.out_column)
            cells += len(job.tag)
        at += job.out_row


@njit(**INLINED)
def common_window(job, begin, end):
    """Return the columns of the common window of RoIs, and how many rows of the map are a band.

    Packing once what RoIs have in common pays while it is no more than packing for each, and the
    window must hold all rows of the tallest. Else each RoI takes its own: the columns are 0, 0.
    Where RoIs do not come in bands, the whole map is one.
    """
    low, high, left, right, alone, tallest = 1 << 60, 0, 1 << 60, 0, 0, 0
    for i in range(begin, end):
        y0, y1, x0, x1 = span_of(job, job.order[i])
        low, high, left, right = min(low, y0), max(high, y1), min(left, x0), max(right, x1)
        alone += (y1 - y0) * (x1 - x0)
        tallest = max(tallest, y1 - y0)
    columns, rows = right - left, high - low
    if rows * columns > alone or tallest * columns > job.window:
        return 0, 0, job.height
    # Channels first, where results are written once a RoI is pooled, it comes whole.
    tall = job.out_channel == 1 and tallest * columns * len(job.tag) > BAND_NUMBERS
    banded = tall and min(tallest + BAND_ROWS, rows) * columns <= job.window
    return left, right, BAND_ROWS if banded else job.height


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
def pool_bins(job, y_taps, x_taps, plane, roi, share, top, left, right, held, base, at):
    """Pool rows of bins of a RoI from packed rows, into scratch or to the output from `at` on.

    Returns which rows the window then holds; `held` are those that it holds at first, and `plane`
    is the block's first element in the RoI's image. The window begins at the first row that is
    tapped, or at `top` where that is above. All rows fit, or `tables.survey` has the RoI pooled
    elsewhere.
    """
    lanes, columns = len(job.tag), right - left
    capacity, pitch, cells = job.window // columns, columns * lanes, base + job.window * lanes
    low, high = pixel_span(y_taps, roi, share[0], share[1])
    low = min(low, top)
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
    lanes, task, width = len(job.tag), task_of(thread, job), job.output_width
    y_taps, x_taps = axis_tables(job)
    base = thread * job.scratch_size
    cells, staging = base + job.window * lanes, thread * job.staging_size
    c = first_channel(job, task.block)
    left, right, step = common_window(job, task.begin, task.end)
    common, held = right > left, (0, 0)
    for band in range(0, job.height, step):
        top = band if step < job.height else job.height
        for i in range(task.begin, task.end):
            roi = job.order[i]
            share = next_bins(job, y_taps, roi, task.low, task.high, band, band + step)
            while share[0] < share[1]:
                if not common:
                    held = 0, 0
                    left, right = own_columns(job, roi, len(job.square))
                plane, at = map_at(job, roi, c), out_at(job, roi, c, share[0])
                held = pool_bins(
                    job, y_taps, x_taps, plane, roi, share, top, left, right, held, base, at
                )
                finish(job, cells, staging, at, share[1] - share[0], width)
                share = next_bins(job, y_taps, roi, share[1], task.high, band, band + step)
