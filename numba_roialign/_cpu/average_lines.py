"""The CPU schedule for RoIs that have few pixels in common, channels in the lanes.

Packed, what each RoI reads would serve it alone. So it is summed first: the rows of a row of bins,
where they lie, for a square of pixels and planes at a time. Only these sums are transposed, a line
for a row of bins instead of every row of the map, and then their columns summed.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .. import _kernels, _taps
from .average_channels import own_columns
from .fetching import fetch_next_rows, leaves_caches
from .job import INLINED, axis_tables, map_at, out_at
from .lanes import planes_of, turn, view, zero_of
from .results import write
from .tasks import first_channel, task_of

weighted = njit(**INLINED)(_kernels.weighted)
bin_taps = njit(**INLINED)(_taps.bin_taps)


def scratch_size(bins, width, line, lanes):
    """Return how many numbers of scratch a thread has: a line of the map, and bins of results."""
    return (line + bins * width) * lanes


@njit(**INLINED)
def sum_rows(job, plane, rows, columns, line):
    """Sum some rows of a block's planes, `columns` from element `plane` on, into a line."""
    lanes, patch, row_stride = len(job.tag), len(job.patch), np.uintp(job.in_row)
    target = view(job.scratch, 0, job.patch)
    for k in range(0, lanes, patch):
        planes = planes_of(job.features, plane + k * job.in_channel, job.in_channel, job.patch)
        zero = zero_of(planes)
        for p in range(0, columns, patch):
            p = min(p, columns - patch)  # the last patch overlaps the one before
            turn(
                weighted(planes, np.uintp(p), row_stride, rows, zero),
                target, line + p * lanes + k, lanes,
            )  # fmt: skip


def work(thread, job):
    """Pool a task, each RoI by itself."""
    lanes, width, task = len(job.tag), job.output_width, task_of(thread, job)
    y_taps, x_taps = axis_tables(job)
    numbers, line = view(job.scratch, 0, job.tag), thread * job.scratch_size
    zero, stride = zero_of(numbers), np.uintp(lanes)
    cells, staging = line + job.width * lanes, thread * job.staging_size
    c, fetches = first_channel(job, task.block), leaves_caches(job)
    for i in range(task.begin, task.end):
        roi = job.order[i]
        left, right = own_columns(job, roi, len(job.patch))
        plane = map_at(job, roi, c) + left
        cell = cells
        for ph in range(task.low, task.high):
            if fetches:
                fetch_next_rows(thread, job, i, ph)
            sum_rows(job, plane, bin_taps(y_taps, roi, ph), right - left, line)
            for pw in range(width):
                first, columns = np.uintp(line - left * lanes), bin_taps(x_taps, roi, pw)
                numbers[cell] = weighted(numbers, first, stride, columns, zero)
                cell += lanes
        at = out_at(job, roi, c, task.low)
        write(job, cells, staging, at, task.high - task.low, width)
