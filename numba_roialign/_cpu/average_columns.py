"""The CPU schedule for maps of few channels, such as photographs: columns, then rows, in lanes.

The sum over a bin's rows is the same for all bins of a row, at every column. So the element
kernel's inner half first sums rows, `L` neighbouring columns at a time, into one line for each of
`L` rows of bins; the lines are transposed; and then it sums columns, for the `L` rows at once.

Where channels lie side by side (channels last) a line holds all channels of its columns.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .. import _kernels, _taps
from .job import INLINED, INLINED_BY_LLVM, axis_tables, map_at, out_at, span_of, strides_out
from .lanes import tile, view, zero_of
from .results import write_lines
from .tasks import task_of

weighted = njit(**INLINED)(_kernels.weighted)
bin_taps = njit(**INLINED)(_taps.bin_taps)

# With more columns per tapped column than this, a RoI is sparse: many_1000x3 takes as long with any
# limit from 2 to 8.
SPARSE = 3


def scratch_size(line, results, lanes):
    """Return how many numbers of scratch a thread has: lines, those transposed, and results.

    `line` is how many numbers of the map a line may have, and `results` how many it gives.
    """
    return (2 * line + results) * lanes


@njit(**INLINED)
def sum_line(job, plane, rows, begin, end, line, to):
    """Sum some rows at elements ``begin:end`` of the map's row, which has `line`, to scratch.

    Four registers at a time where they fill half of them: with one, the RoIs of many_1000x3 that
    are not sparse took 1.5 times as long.
    """
    lanes, wide, row_stride = len(job.tag), len(job.wide), np.uintp(job.in_row)
    source, target = view(job.features, 0, job.tag), view(job.scratch, 0, job.tag)
    wide_source, wide_target = view(job.features, 0, job.wide), view(job.scratch, 0, job.wide)
    zero, wide_zero = zero_of(target), zero_of(wide_target)
    element = begin
    while element < end:  # the last vector may overlap the one before: it ends with the map's row
        if end - element > wide // 2 and line - begin >= wide:
            element = min(element, line - wide)
            origin = np.uintp(plane + element)
            wide_target[to + element] = weighted(wide_source, origin, row_stride, rows, wide_zero)
            element += wide
        else:
            element = min(element, line - lanes)
            origin = np.uintp(plane + element)
            target[to + element] = weighted(source, origin, row_stride, rows, zero)
            element += lanes


@njit(**INLINED_BY_LLVM)
def sum_rows(job, plane, roi, bins, begin, end, sums, lines):
    """Sum the rows of some rows of bins, a lane for each, at elements ``begin:end`` of the map.

    The sums of one row of bins after the other go to `sums`, and transposed to `lines`.
    """
    y_taps, _ = axis_tables(job)
    lanes, square = len(job.tag), len(job.square)
    line = job.width * (job.channels // job.blocks)
    squares = view(job.scratch, 0, job.square)
    for k in range(bins[1] - bins[0]):  # nobody reads what spare lanes then hold
        rows = bin_taps(y_taps, roi, bins[0] + k)
        sum_line(job, plane, rows, begin, end, line, sums + k * line - begin)
    for element in range(0, end - begin, square):
        element = min(element, line - begin - square)
        for k in range(0, lanes, square):
            at = sums + k * line + element
            tile(squares, at, line, squares, lines + element * lanes + k, lanes)


@njit(**INLINED_BY_LLVM)
def sum_columns(job, roi, begin, lines, results):
    """Sum the columns of all bins of lines that begin with the map's element `begin`."""
    _, x_taps = axis_tables(job)
    lanes, inner = len(job.tag), job.channels // job.blocks
    numbers = view(job.scratch, 0, job.tag)
    zero, stride = zero_of(numbers), np.uintp(inner * lanes)
    for pw in range(job.output_width):
        columns = bin_taps(x_taps, roi, pw)
        for c in range(inner):
            first = np.uintp(lines + (c - begin) * lanes)
            numbers[results] = weighted(numbers, first, stride, columns, zero)
            results += lanes


@njit(**INLINED_BY_LLVM)
def write_results(job, results, at, count, staging):
    """Write the first `count` of the lines' results to the output, from element `at` on."""
    strides, lanes, inner = strides_out(job), len(job.tag), job.channels // job.blocks
    in_order = strides.column == inner and (inner == 1 or strides.channel == 1)
    if in_order and count == lanes:
        write_lines(job, results, job.output_width * inner, staging, at)
        return
    numbers, out = view(job.scratch, 0, (0,)), view(job.out, 0, (0,))
    for pw in range(job.output_width):
        for c in range(inner):
            o = at + pw * strides.column + c * strides.channel
            for k in range(count):
                out[o + k * strides.row] = numbers[results + k]
            results += lanes


@njit(**INLINED)
def pool_lines(thread, job, plane, roi, share, at):
    """Pool rows of bins, as many at a time as there are lanes."""
    scratch, staging = thread * job.scratch_size, thread * job.staging_size
    lanes, inner = len(job.tag), job.channels // job.blocks
    line = job.width * inner
    _, _, left, right = span_of(job, roi)
    begin, end = min(left * inner, line - lanes), right * inner
    lines = scratch + line * lanes
    results = lines + line * lanes
    for first in range(share[0], share[1], lanes):
        first = max(min(first, share[1] - lanes), share[0])  # the last lines overlap others
        last = min(first + lanes, share[1])
        sum_rows(job, plane, roi, (first, last), begin, end, scratch, lines)
        sum_columns(job, roi, begin, lines, results)
        write_results(job, results, at + first * job.out_row, last - first, staging)


def work(thread, job):
    """Pool a task, whose block is a channel, or all of them."""
    task = task_of(thread, job)
    for i in range(task.begin, task.end):
        roi = job.order[i]
        plane, at = map_at(job, roi, task.block), out_at(job, roi, task.block, 0)
        pool_lines(thread, job, plane, roi, (task.low, task.high), at)
