"""The CPU schedule of a maximum: one output element after the other, for any layout."""

from __future__ import annotations

import numpy as np
from numba import njit

from .. import _kernels
from .._kernels import Strides
from .arrays import array_at
from .job import INLINED, sample_tables, strides_in, strides_out
from .lanes import view
from .tasks import channels_of, task_of

largest_at = njit(**INLINED)(_kernels.largest_at)
element_at = njit(**INLINED)(_kernels.element_at)


@njit(**INLINED)
def argmax_strides(job):
    """Return the strides of the argmax: C order, in the layout of the pooled features."""
    height, width, channels = job.output_height, job.output_width, job.channels
    row, column, channel = width, 1, height * width
    if job.channels_last:
        row, column, channel = width * channels, channels, 1
    return Strides(height * width * channels, channel, row, column)


@njit(**INLINED)
def pool_bins(job, y_samples, x_samples, roi, first_channel, last_channel, first_bin, last_bin):
    """Pool rows of bins of some channels of a RoI, one bin at a time."""
    features, out = view(job.features, 0, (0,)), view(job.out, 0, (0,))
    strides, out_strides = strides_in(job), strides_out(job)
    images, n = array_at(job.table_images, (job.table_rows,)), job.start + roi
    for c in range(first_channel, last_channel):
        for ph in range(first_bin, last_bin):
            for pw in range(job.output_width):
                value, number = largest_at(
                    features, strides, images, y_samples, x_samples, roi, c, ph, pw,
                    job.mode, job.zero,
                )  # fmt: skip
                out[element_at(out_strides, n, c, ph, pw)] = value
                if job.keeps_argmax:
                    at = element_at(argmax_strides(job), n, c, ph, pw)
                    job.argmax[np.intp(at)] = number


def work(thread, job):
    """Pool a task."""
    task = task_of(thread, job)
    y_samples, x_samples = sample_tables(job)
    first, last = channels_of(job, task.block)
    for i in range(task.begin, task.end):
        pool_bins(job, y_samples, x_samples, job.order[i], first, last, task.low, task.high)
