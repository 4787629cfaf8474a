"""The CPU schedule without lanes: one output element after the other, for any layout."""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from numba.extending import register_jitable

from . import _kernels
from ._cache import cached_njit
from ._cpu_tasks import INLINED, OPTIONS, UNCOUNTED, count_tasks, task_of
from ._lanes import as_numbers, fetch_add

average_at = njit(**INLINED)(_kernels.average_at)


@register_jitable
def scratch_size(shape, lanes):
    """Return how many numbers of scratch a thread has: none are needed."""
    return 0


@cached_njit(**UNCOUNTED)
def work(
    thread, features, strides, batch, y_taps, x_taps, unit, out, out_strides, shape, scratch, tag
):
    """Pool tasks until none is left."""
    channels, bins, width = shape.channels, shape.bins, shape.width
    zero = type(unit.weights[0])(0)
    numbers, pooled = as_numbers(features), as_numbers(out)
    images, order, blocks = batch.images, batch.order, batch.blocks
    while True:
        task = fetch_add(batch.counter, 1)
        if task >= count_tasks(batch):
            break
        block, chunk, share = task_of(task, batch, bins)
        for i in range(chunk[0], chunk[1]):
            row = order[i]
            for c in range(block * channels // blocks, (block + 1) * channels // blocks):
                plane = (batch.start + row) * out_strides.image + c * out_strides.channel
                for ph in range(share[0], share[1]):
                    for pw in range(width):
                        o = plane + ph * out_strides.row + pw * out_strides.column
                        pooled[np.uintp(o)] = average_at(
                            numbers, strides, images, y_taps, x_taps, row, c, ph, pw, zero
                        )


@cached_njit(parallel=True, **OPTIONS)
def work_in_threads(
    threads, features, strides, batch, y_taps, x_taps, unit, out, out_strides, shape, scratch, tag
):
    for thread in prange(threads):
        work(
            np.intp(thread), features, strides, batch, y_taps, x_taps, unit,
            out, out_strides, shape, scratch, tag,
        )  # fmt: skip
