"""The CPU schedule without lanes: one output element after the other, for any layout."""

from __future__ import annotations

import numpy as np
from numba import njit

from . import _kernels
from ._cpu_job import INLINED, array_at, axis_tables, strides_in, strides_out
from ._cpu_tasks import next_task
from ._lanes import view

average_at = njit(**INLINED)(_kernels.average_at)


def scratch_size(job):
    """Return how many numbers of scratch a thread has: none are needed."""
    return 0


def work(thread, job):
    """Pool tasks until none is left."""
    blocks, channels, width, zero = job.blocks, job.channels, job.output_width, job.zero
    features, out = view(job.features, 0, (0,)), view(job.out, 0, (0,))
    strides, out_strides = strides_in(job), strides_out(job)
    images, y_taps, x_taps = array_at(job.table_images, (job.table_rows,)), *axis_tables(job)
    while True:
        block, chunk, share = next_task(job)
        if block < 0:
            break
        for i in range(chunk[0], chunk[1]):
            row = job.order[i]
            for c in range(block * channels // blocks, (block + 1) * channels // blocks):
                plane = (job.start + row) * out_strides.image + c * out_strides.channel
                for ph in range(share[0], share[1]):
                    for pw in range(width):
                        o = plane + ph * out_strides.row + pw * out_strides.column
                        out[np.uintp(o)] = average_at(
                            features, strides, images, y_taps, x_taps, row, c, ph, pw, zero
                        )
