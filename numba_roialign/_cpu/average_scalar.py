"""The CPU schedule without lanes: one output element after the other, for any layout."""

from __future__ import annotations

import numpy as np
from numba import njit

from .. import _kernels
from .arrays import array_at
from .job import INLINED, axis_tables, strides_in, strides_out
from .lanes import view
from .tasks import channels_of, task_of

average_at = njit(**INLINED)(_kernels.average_at)


@njit(**INLINED)
def pool_bins(job, roi, first_channel, last_channel, share):
    """Pool rows of bins of some channels of a RoI, one bin at a time."""
    features, out = view(job.features, 0, (0,)), view(job.out, 0, (0,))
    strides, out_strides, zero = strides_in(job), strides_out(job), job.zero
    images = array_at(job.table_images, (job.table_rows,))
    y_taps, x_taps = axis_tables(job)
    for c in range(first_channel, last_channel):
        plane = (job.start + roi) * out_strides.image + c * out_strides.channel
        for ph in range(share[0], share[1]):
            for pw in range(job.output_width):
                o = plane + ph * out_strides.row + pw * out_strides.column
                out[np.uintp(o)] = average_at(
                    features, strides, images, y_taps, x_taps, roi, c, ph, pw, zero
                )


def work(thread, job):
    """Pool a task."""
    task = task_of(thread, job)
    first, last = channels_of(job, task.block)
    for i in range(task.begin, task.end):
        pool_bins(job, job.order[i], first, last, (task.low, task.high))
