"""The CPU schedule of the average's gradient: channels in the lanes, and a band of the map a task.

The transpose of pooling is as separable as pooling itself. For each RoI the gradients of a row of
bins are first spread over the columns of the map, into a line; then each row of the map sums the
lines of the bins that tap it. Both are the element kernel's inner sum over taps turned round, which
hold for a pixel the bins that tap it.

A task owns its part of the map, a band of rows in a block of channels, and goes through the RoIs in
one order. So nothing is added atomically, and the result has the same bits for any number of
threads.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from . import _kernels, _taps
from ._cpu_channels import clipped, pack_rows
from ._cpu_job import INLINED, axis_tables, turned_tables
from ._cpu_results import write
from ._cpu_tasks import chunk_of, next_task, part_of
from ._lanes import view, zero_of

weighted = njit(**INLINED)(_kernels.weighted)
bin_taps = njit(**INLINED)(_taps.bin_taps)

# A band's numbers: 256 KB of float32, which a core's cache holds beside the lines.
BAND = 1 << 16
# Bins, and pixels of lines, that a RoI's pass over a band holds at a time. What is more comes in
# parts.
CELLS = 1 << 12
# With more columns per tap than this, bins are spread one by one: few of a line's columns count.
SPARSE = 2


def band_rows(width, lanes):
    """Return how many rows of the map a band may have."""
    return max(1, BAND // (width * lanes))


def scratch_size(rows, width, output_width, lanes):
    """Return how many numbers of scratch a thread has: its band, bins and lines."""
    return (rows * width + max(CELLS, output_width) + CELLS) * lanes


@njit(**INLINED)
def start_band(job, plane, band, low, high):
    """Set a band to what earlier batches gave, or to zero."""
    lanes, width = len(job.tag), job.width
    numbers = view(job.scratch, 0, job.tag)
    zero = zero_of(numbers)
    for p in range((high - low) * width):
        numbers[band + p * lanes] = zero
    if job.adds:
        one, out = view(job.scratch, 0, (0,)), view(job.out, 0, (0,))
        for p in range((high - low) * width):
            o = plane + (low + p // width) * job.out_row + p % width * job.out_column
            for k in range(lanes):
                one[band + p * lanes + k] = out[o + k * job.out_channel]


@njit(**INLINED)
def reaching_bins(y_bins, row, first, last):
    """Return the first row of bins, and the end, that tap pixels ``first:last`` of the span."""
    low, high = 1 << 60, 0
    for u in range(first, last):
        begin, end = y_bins.bounds[row, u], y_bins.bounds[row, u + 1]
        if begin < end:
            low = min(low, np.intp(y_bins.pixels[begin]))
            high = max(high, np.intp(y_bins.pixels[end - 1]) + 1)
    return low, high


@njit(**INLINED)
def spread(job, x_bins, row, bins, count, columns, lines):
    """Spread `count` rows of bins over columns of a RoI's span, into lines."""
    lanes, width = len(job.tag), job.output_width
    numbers = view(job.scratch, 0, job.tag)
    zero = zero_of(numbers)
    for k in range(count):
        origin = np.uintp(bins + k * width * lanes)
        for u in range(columns[0], columns[1]):
            taps = bin_taps(x_bins, row, u)
            numbers[lines] = weighted(numbers, origin, np.uintp(lanes), taps, zero)
            lines += lanes


@njit(**INLINED)
def gather(job, y_bins, row, rows, first_bin, last_bin, top, cell, lines, count):
    """Add to `count` cells of each of some rows of the span the lines of the bins that tap it."""
    lanes = len(job.tag)
    numbers = view(job.scratch, 0, job.tag)
    pitch = np.uintp(count * lanes)
    for u in range(rows[0], rows[1]):
        taps = clipped(bin_taps(y_bins, row, u), first_bin, last_bin)
        if taps.first < taps.last:
            origin = lines - first_bin * count * lanes
            to = cell + (top + u) * job.width * lanes
            for v in range(count):
                at = to + v * lanes
                numbers[at] = weighted(
                    numbers, np.uintp(origin + v * lanes), pitch, taps, numbers[at]
                )


@njit(**INLINED)
def scatter(job, y_taps, x_taps, row, bins, first_bin, last_bin, band, low, high):
    """Add each of some rows of bins to the cells that it taps, one by one."""
    lanes = len(job.tag)
    numbers = view(job.scratch, 0, job.tag)
    for ph in range(first_bin, last_bin):
        rows = clipped(bin_taps(y_taps, row, ph), low, high)
        for pw in range(job.output_width):
            columns = bin_taps(x_taps, row, pw)
            gradient = numbers[bins]
            bins += lanes
            for i in range(rows.first, rows.last):
                line = band + (np.intp(rows.pixels[i]) - low) * job.width * lanes
                for j in range(columns.first, columns.last):
                    cell = line + np.intp(columns.pixels[j]) * lanes
                    weight = rows.weights[i] * columns.weights[j]
                    numbers[cell] = numbers[cell] + weight * gradient


@njit(**INLINED)
def add_roi(job, taps, turned, row, c, band, low, high):
    """Add a RoI's gradient to a band, rows ``low:high`` of the map."""
    lanes, width = len(job.tag), job.output_width
    (y_taps, x_taps), (y_bins, x_bins) = taps, turned
    span = 4 * row
    top, bottom, left, right = (
        job.spans[span], job.spans[span + 1], job.spans[span + 2], job.spans[span + 3]
    )  # fmt: skip
    rows = max(top, low) - top, min(bottom, high) - top
    first, last = reaching_bins(y_bins, row, rows[0], rows[1])
    group = max(1, CELLS // width)
    bins = band + job.band_rows * job.width * lanes
    lines = bins + max(CELLS, width) * lanes
    plane = (job.start + row) * job.in_image + c * job.in_channel
    for begin in range(first, last, group):
        count = min(group, last - begin)
        pack_rows(job, plane + begin * job.in_row, width, bins, count)
        if right - left > SPARSE * (x_taps.bounds[row, width] - x_taps.bounds[row, 0]):
            scatter(job, y_taps, x_taps, row, bins, begin, begin + count, band, low, high)
            continue
        most = max(1, CELLS // count)
        for u in range(0, right - left, most):
            columns = u, min(u + most, right - left)
            spread(job, x_bins, row, bins, count, columns, lines)
            cell = band + (left + u - low * job.width) * lanes
            gather(
                job, y_bins, row, rows, begin, begin + count, top, cell, lines,
                columns[1] - columns[0],
            )  # fmt: skip


def work(thread, job):
    """Compute tasks until none is left."""
    lanes = len(job.tag)
    taps, turned = axis_tables(job), turned_tables(job)
    band = thread * job.scratch_size
    while True:
        block, image, part = next_task(job)
        if block < 0:
            break
        chunk, (low, high) = chunk_of(job, image), part_of(job, part, job.height)
        c = min(block * lanes, job.channels - lanes)  # the last block overlaps the one before
        plane = image * job.out_image + c * job.out_channel
        start_band(job, plane, band, low, high)
        for i in range(chunk[0], chunk[1]):
            row = job.order[i]
            if job.spans[4 * row] >= high:
                break  # they stand in the order of their first rows
            if job.spans[4 * row + 1] > low:
                add_roi(job, taps, turned, row, c, band, low, high)
        write(job, band, 0, plane + low * job.out_row, high - low, job.width)
