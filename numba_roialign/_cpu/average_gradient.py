"""The CPU schedule of the average's gradient: channels in the lanes, and a band of the map a task.

The transpose of pooling is as separable as pooling itself. For each RoI the gradients of a row of
bins are first spread over the columns of the map, into a line; then each row of the map sums the
lines of the bins that tap it. Both are the element kernel's inner sum over taps turned round, which
hold for a pixel the bins that tap it. Of a RoI whose taps lie far apart most of a line would be
zeros: its bins are added to the pixels that they tap, one by one.

Fewer channels than lanes leave lanes idle: the three of a photograph take four.

A task owns its part of the map, a band of rows in a block of channels, and goes through the RoIs in
one order. So nothing is added atomically, and the result has the same bits for any number of
threads.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .. import _kernels, _taps
from .._taps import Taps
from .job import (
    CONTRACTED,
    INLINED,
    INLINED_BY_LLVM,
    axis_tables,
    span_of,
    strides_in,
    strides_out,
    turned_tables,
)
from .lanes import view, zero_of
from .packing import pack_rows
from .results import write
from .tables import spreads
from .tasks import first_channel, task_of

weighted = njit(**INLINED)(_kernels.weighted)
bin_taps = njit(**INLINED)(_taps.bin_taps)

# A band's numbers: 512 KB of float32. fpn_p2_s2 took 1.15 times as long with half, and crops longer
# with twice as many.
BAND = 1 << 17
# Bins, and pixels of lines, that a RoI's pass over a band holds at a time. What is more comes in
# parts.
CELLS = 1 << 12


def band_rows(width, lanes):
    """Return how many rows of the map a band may have."""
    return max(1, BAND // (width * lanes))


def scratch_size(rows, width, output_width, lanes):
    """Return how many numbers of scratch a thread has: its band, bins and lines."""
    return (rows * width + max(CELLS, output_width) + CELLS) * lanes


@njit(**CONTRACTED)
def start_band(job, plane, band, low, high):
    """Set a band to what earlier batches gave, or to zero."""
    lanes, width = len(job.tag), job.width
    numbers = view(job.scratch, 0, job.tag)
    zero = zero_of(numbers)
    for p in range((high - low) * width):
        numbers[band + p * lanes] = zero
    if job.start > 0:
        one, out = view(job.scratch, 0, (0,)), view(job.out, 0, (0,))
        for p in range((high - low) * width):
            o = plane + (low + p // width) * job.out_row + p % width * job.out_column
            for k in range(min(lanes, job.channels)):
                one[band + p * lanes + k] = out[o + k * job.out_channel]


@njit(**INLINED)
def pack_bins(job, origin, to, rows):
    """Copy rows of bins of a block of channels to scratch, the channels of each side by side."""
    lanes, width = len(job.tag), job.output_width
    if lanes <= job.channels:
        pack_rows(job, origin, width, to, rows)
        return
    numbers, one = view(job.scratch, 0, job.tag), view(job.scratch, 0, (0,))
    grad, zero, strides, channels = (
        view(job.features, 0, (0,)), zero_of(numbers), strides_in(job), job.channels
    )  # fmt: skip
    for ph in range(rows):
        for pw in range(width):
            numbers[to] = zero  # lanes to spare stay 0
            element = origin + ph * strides.row + pw * strides.column
            for k in range(channels):
                one[to + k] = grad[element + k * strides.channel]
            to += lanes


@njit(**INLINED)
def write_band(job, band, plane, low, high):
    """Write a band of rows to the result."""
    lanes = len(job.tag)
    at = plane + low * job.out_row
    if lanes <= job.channels:
        write(job, band, 0, at, high - low, job.width)
        return
    numbers, out = view(job.scratch, 0, (0,)), view(job.out, 0, (0,))
    strides, width = strides_out(job), job.width  # read once: the result might be the job
    for y in range(high - low):
        for k in range(job.channels):
            cell, o = band + y * width * lanes + k, at + y * strides.row + k * strides.channel
            for x in range(width):
                out[o + x * strides.column] = numbers[cell + x * lanes]


@njit(**INLINED_BY_LLVM)
def clipped(taps, low, high):
    """Return the taps of a bin whose pixels lie in ``low:high``."""
    first, last = np.intp(taps.first), np.intp(taps.last)
    while first < last and taps.pixels[first] < low:
        first += 1
    while first < last and taps.pixels[last - 1] >= high:
        last -= 1
    return Taps(taps.pixels, taps.weights, np.uintp(first), np.uintp(last))


@njit(**INLINED)
def reaching_bins(job, y_taps, roi, low, high):
    """Return the first row of bins that reaches into rows ``low:high`` of the map, and the end."""
    first, end = job.output_height, 0
    for ph in range(job.output_height):
        rows = bin_taps(y_taps, roi, ph)
        begins_above = rows.first < rows.last and rows.pixels[rows.first] < high
        if begins_above and rows.pixels[rows.last - np.uintp(1)] >= low:
            first, end = min(first, ph), ph + 1
    return first, end


@njit(**INLINED)
def spread(job, x_bins, roi, bins, count, columns, lines):
    """Spread `count` rows of bins over columns of a RoI's span, into lines."""
    lanes, width = len(job.tag), job.output_width
    numbers = view(job.scratch, 0, job.tag)
    zero = zero_of(numbers)
    for k in range(count):
        origin = np.uintp(bins + k * width * lanes)
        for u in range(columns[0], columns[1]):
            taps = bin_taps(x_bins, roi, u)
            numbers[lines] = weighted(numbers, origin, np.uintp(lanes), taps, zero)
            lines += lanes


@njit(**INLINED)
def gather(job, y_bins, roi, rows, first_bin, last_bin, top, cell, lines, count):
    """Add to `count` cells of each of some rows of the span the lines of the bins that tap it."""
    lanes = len(job.tag)
    numbers = view(job.scratch, 0, job.tag)
    pitch = np.uintp(count * lanes)
    for u in range(rows[0], rows[1]):
        taps = clipped(bin_taps(y_bins, roi, u), first_bin, last_bin)
        if taps.first < taps.last:
            origin = lines - first_bin * count * lanes
            to = cell + (top + u) * job.width * lanes
            for v in range(count):
                at = to + v * lanes
                numbers[at] = weighted(
                    numbers, np.uintp(origin + v * lanes), pitch, taps, numbers[at]
                )


@njit(**INLINED)
def add_by_lines(job, turned, roi, begin, count, bins, band, low, high):
    """Add `count` rows of bins to a band, rows ``low:high`` of the map, by lines."""
    lanes, width = len(job.tag), job.output_width
    top, bottom, left, right = span_of(job, roi)
    y_bins, x_bins = turned
    rows = max(top, low) - top, min(bottom, high) - top
    lines, most = bins + max(CELLS, width) * lanes, max(1, CELLS // count)
    for u in range(0, right - left, most):
        end = min(u + most, right - left)
        spread(job, x_bins, roi, bins, count, (u, end), lines)
        cell = band + (left + u - low * job.width) * lanes
        gather(job, y_bins, roi, rows, begin, begin + count, top, cell, lines, end - u)


@njit(**INLINED)
def add_by_bins(job, taps, roi, begin, count, bins, band, low, high):
    """Add `count` rows of bins to a band, each bin to the cells that it taps."""
    lanes = len(job.tag)
    numbers = view(job.scratch, 0, job.tag)
    y_taps, x_taps = taps
    for ph in range(begin, begin + count):
        rows = clipped(bin_taps(y_taps, roi, ph), low, high)
        for pw in range(job.output_width):
            columns = bin_taps(x_taps, roi, pw)
            gradient = numbers[bins]
            bins += lanes
            for i in range(rows.first, rows.last):
                line = band + (np.intp(rows.pixels[i]) - low) * job.width * lanes
                share = rows.weights[i] * gradient
                for j in range(columns.first, columns.last):
                    cell = line + np.intp(columns.pixels[j]) * lanes
                    numbers[cell] = numbers[cell] + columns.weights[j] * share


@njit(**CONTRACTED)
def add_roi(job, taps, turned, roi, grad, band, low, high):
    """Add a RoI's gradient to a band; `grad` is its first element in the block of channels."""
    width = job.output_width
    bins = band + job.band_rows * job.width * len(job.tag)
    first, last = reaching_bins(job, taps[0], roi, low, high)
    group = max(1, CELLS // width)
    for begin in range(first, last, group):
        count = min(group, last - begin)
        pack_bins(job, grad + begin * job.in_row, bins, count)
        if spreads(job, taps[1], roi):
            add_by_lines(job, turned, roi, begin, count, bins, band, low, high)
        else:
            add_by_bins(job, taps, roi, begin, count, bins, band, low, high)


def work(thread, job):
    """Compute a task."""
    taps, turned, task = axis_tables(job), turned_tables(job), task_of(thread, job)
    band, c, low, high = (
        thread * job.scratch_size, first_channel(job, task.block), task.low, task.high
    )  # fmt: skip
    plane = task.image * job.out_image + c * job.out_channel
    start_band(job, plane, band, low, high)
    for i in range(task.begin, task.end):
        roi = job.order[i]
        top, bottom, _, _ = span_of(job, roi)
        if top >= high:
            break  # they stand in the order of their first rows
        if bottom > low:
            grad = (job.start + roi) * job.in_image + c * job.in_channel
            add_roi(job, taps, turned, roi, grad, band, low, high)
    write_band(job, band, plane, low, high)
