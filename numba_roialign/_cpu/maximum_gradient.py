"""The CPU schedule of a maximum's gradient: each bin's goes to the sample or corner that won.

A task owns its part of the map, a band of rows of one channel, and goes through the RoIs in one
order, as in `average_gradient`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .. import _kernels
from .._kernels import CORNER_MAX
from .average_gradient import start_band
from .job import INLINED, sample_tables, span_of, strides_in
from .lanes import view
from .maximum_scalar import argmax_strides
from .results import write
from .tasks import task_of

element_at = njit(**INLINED)(_kernels.element_at)


@njit(**INLINED)
def taps_of(samples, roi, p, number):
    """Return the first tap of a bin's sample, or -1 where no such sample is inside the map."""
    begin, end = samples.bounds[roi, p], samples.bounds[roi, p + 1]
    inside = number - samples.firsts[roi, p]
    if inside < 0 or inside >= (end - begin) // 2:
        return -1
    return begin + 2 * inside


@njit(**INLINED)
def add_bin(job, y_samples, x_samples, roi, ph, pw, number, gradient, band, low, high):
    """Add a bin's gradient to a band where the sample or corner of that number taps it."""
    cells, corners, grid = view(job.scratch, 0, (0,)), job.mode == CORNER_MAX, x_samples.grids[roi]
    if grid <= 0:
        return
    corner = number % 4
    sample = number // 4 if corners else number
    i, j = taps_of(y_samples, roi, ph, sample // grid), taps_of(x_samples, roi, pw, sample % grid)
    if i < 0 or j < 0:
        return
    for a in range(2):
        y = np.intp(y_samples.pixels[i + a])
        for b in range(2):
            weight = y_samples.weights[i + a] * x_samples.weights[j + b]
            wanted = not corners or corner == 2 * a + b
            if wanted and weight != 0 and low <= y and y < high:
                cell = band + (y - low) * job.width + np.intp(x_samples.pixels[j + b])
                cells[cell] = cells[cell] + weight * gradient


def work(thread, job):
    """Compute a task."""
    grad, strides, task = view(job.features, 0, (0,)), strides_in(job), task_of(thread, job)
    y_samples, x_samples = sample_tables(job)
    band, c, low, high = thread * job.scratch_size, task.block, task.low, task.high
    plane = task.image * job.out_image + c * job.out_channel
    start_band(job, plane, band, low, high)
    for i in range(task.begin, task.end):
        roi = job.order[i]
        top, bottom, _, _ = span_of(job, roi)
        # Swapped corners turn a bin's samples round, and its span is off by one.
        if top - 1 < high and bottom + 1 > low:
            n = job.start + roi
            for ph in range(job.output_height):
                for pw in range(job.output_width):
                    number = job.argmax[np.intp(element_at(argmax_strides(job), n, c, ph, pw))]
                    if number >= 0:
                        gradient = grad[element_at(strides, n, c, ph, pw)]
                        add_bin(
                            job, y_samples, x_samples, roi, ph, pw, number, gradient,
                            band, low, high,
                        )  # fmt: skip
    write(job, band, 0, plane + low * job.out_row, high - low, job.width)
