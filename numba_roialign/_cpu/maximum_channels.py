"""The CPU schedule of a maximum with channels in the lanes, the twin of `average_channels`.

Each RoI's own window is packed, some rows of bins at a time: as many as fit. A RoI of few samples
that lie far apart, or so large that one row of bins does not fit, is pooled one output at a time.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .. import _kernels, _taps
from .average_channels import SPARSE, own_columns
from .job import INLINED, map_at, out_at, sample_tables, span_of
from .lanes import view, zero_of
from .maximum_scalar import argmax_strides, pool_bins
from .packing import pack_rows
from .results import finish, put
from .tables import pixel_span
from .tasks import first_channel, task_of

largest = njit(**INLINED)(_kernels.largest)
bin_taps = njit(**INLINED)(_taps.bin_taps)


def scratch_size(bins, width, window, lanes):
    """Return how many numbers of scratch a thread has: packed rows, and results."""
    return (window + bins * width) * lanes


@njit(**INLINED)
def rows_of(job, y_samples, roi, first_bin, last_bin):
    """Return the rows of the map that some rows of bins read; samples may run down."""
    low, high = pixel_span(y_samples, roi, first_bin, last_bin)
    if low == high:
        return low, high
    return max(low - 1, 0), min(high + 1, job.height)


@njit(**INLINED)
def fitting_bins(job, y_samples, roi, first_bin, last_bin, columns):
    """Return the end of the rows of bins from `first_bin` on whose rows of the map fit."""
    end = first_bin
    while end < last_bin:
        low, high = rows_of(job, y_samples, roi, first_bin, end + 1)
        if (high - low) * columns > job.window:
            break
        end += 1
    return end


@njit(**INLINED)
def pool_packed(job, y_samples, x_samples, roi, first_bin, last_bin, window, cells, numbers, at):
    """Pool rows of bins from packed rows of the map, into cells and their numbers.

    Or, as `put` does, to the output from element `at` on.
    """
    lanes = len(job.tag)
    features, results = view(job.scratch, 0, job.tag), view(job.numbers, 0, job.tag)
    zero, out = zero_of(features), view(job.out, 0, job.tag)
    origin, row_stride, column_stride = np.uintp(window[0]), np.uintp(window[1]), np.uintp(lanes)
    for ph in range(first_bin, last_bin):
        rows = bin_taps(y_samples, roi, ph)
        for pw in range(job.output_width):
            value, number = largest(
                features, origin, row_stride, column_stride,
                rows, bin_taps(x_samples, roi, pw),
                y_samples.firsts[roi, ph], x_samples.firsts[roi, pw],
                y_samples.grids[roi], x_samples.grids[roi], job.mode, zero,
            )  # fmt: skip
            put(job, value, features, cells, out, at + pw * job.out_column)
            if job.keeps_argmax:
                results[numbers] = number
            cells += lanes
            numbers += lanes
        at += job.out_row


@njit(**INLINED)
def write_argmax(job, roi, c, first_bin, last_bin, numbers):
    """Write the numbers of rows of bins of a block of channels."""
    strides, lanes, width = argmax_strides(job), len(job.tag), job.output_width
    at = (job.start + roi) * strides.image + c * strides.channel
    for p in range((last_bin - first_bin) * width):
        to = at + (first_bin + p // width) * strides.row + p % width * strides.column
        for k in range(lanes):
            job.argmax[to + k * strides.channel] = job.numbers[numbers + p * lanes + k]


@njit(**INLINED)
def is_sparse(job, y_samples, x_samples, roi):
    """Say whether a RoI's taps are few of its window's pixels."""
    y = y_samples.bounds[roi, job.output_height] - y_samples.bounds[roi, 0]
    x = x_samples.bounds[roi, job.output_width] - x_samples.bounds[roi, 0]
    top, bottom, left, right = span_of(job, roi)
    return (bottom - top) * (right - left) > SPARSE * y * x


@njit(**INLINED)
def pool_roi(job, y_samples, x_samples, roi, c, share, base, numbers):
    """Pool some rows of bins of a RoI in a block of channels.

    Whether they go without lanes depends on the RoI alone, so that the sign of a zero does too: of
    zeros of both signs, which are equal, lanes take the last and scalars the first.
    """
    lanes, sparse = len(job.tag), is_sparse(job, y_samples, x_samples, roi)
    left, right = own_columns(job, roi, len(job.square))
    left, right = max(left - 1, 0), min(right + 1, job.width)
    columns, cells = right - left, base + job.window * lanes
    plane = map_at(job, roi, c)
    begin = share[0]
    while begin < share[1]:
        end = begin if sparse else fitting_bins(job, y_samples, roi, begin, share[1], columns)
        if end == begin:
            end = share[1] if sparse else begin + 1
            pool_bins(job, y_samples, x_samples, roi, c, c + lanes, begin, end)
            begin = end
            continue
        low, high = rows_of(job, y_samples, roi, begin, end)
        at = out_at(job, roi, c, begin)
        pack_rows(job, plane + low * job.in_row + left * job.in_column, columns, base, high - low)
        window = base - (low * columns + left) * lanes, columns * lanes
        pool_packed(job, y_samples, x_samples, roi, begin, end, window, cells, numbers, at)
        finish(job, cells, 0, at, end - begin, job.output_width)
        if job.keeps_argmax:
            write_argmax(job, roi, c, begin, end, numbers)
        begin = end


def work(thread, job):
    """Pool a task."""
    task = task_of(thread, job)
    y_samples, x_samples = sample_tables(job)
    base, numbers = thread * job.scratch_size, thread * job.numbers_size
    c, share = first_channel(job, task.block), (task.low, task.high)
    for i in range(task.begin, task.end):
        pool_roi(job, y_samples, x_samples, job.order[i], c, share, base, numbers)
