"""The CPU schedule with columns in the lanes, for maps of few channels, such as photographs.

The sum over rows is the same for all bins of a row, at every column. So for each row of bins the
element kernel first sums the rows, `L` neighbouring columns at a time, into a line of scratch; then
it sums each bin's columns from that line. Both are the one element kernel, with a single tap of
weight one on the other axis.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from numba.extending import register_jitable

from . import _geometry, _kernels
from ._cache import cached_njit
from ._cpu_tasks import INLINED, OPTIONS, UNCOUNTED, count_tasks, task_of
from ._geometry import Taps
from ._lanes import fetch_add, view, zero_of

average = njit(**INLINED)(_kernels.average)
bin_taps = njit(**INLINED)(_geometry.bin_taps)


@register_jitable
def scratch_size(shape, lanes):
    """Return how many numbers of scratch a thread has: a line, to a multiple of the lanes."""
    return (shape.map_width + lanes - 1) // lanes * lanes


@cached_njit(**UNCOUNTED)
def work(
    thread, features, strides, batch, y_taps, x_taps, unit, out, out_strides, shape, scratch, tag
):
    """Pool tasks until none is left."""
    bins, width, map_width = shape.bins, shape.width, shape.map_width
    lanes, zero = len(tag), type(unit.weights[0])(0)
    source, numbers = view(features, 0, tag), view(features, 0, (0,))
    base = thread * scratch_size(shape, lanes)
    pooled, line, cells = view(out, 0, (0,)), view(scratch, base, tag), view(scratch, base, (0,))
    one = Taps(unit.pixels, unit.weights, np.uintp(0), np.uintp(1))
    row_stride, step = np.uintp(strides.row), np.uintp(1)
    vector_zero = zero_of(line)
    while True:
        task = fetch_add(batch.counter, 1)
        if task >= count_tasks(batch):
            break
        c, chunk, share = task_of(task, batch, bins)
        for i in range(chunk[0], chunk[1]):
            row = batch.order[i]
            first, last = batch.spans[row, 2], batch.spans[row, 3]
            begin = min(first, map_width - lanes)
            taps = x_taps.bounds[row, width] - x_taps.bounds[row, 0]
            # Far apart, the taps are fewer than the vectors that would cover the columns between.
            in_line = last - first <= lanes * taps
            origin = batch.images[row] * strides.image + c * strides.channel
            plane = (batch.start + row) * out_strides.image + c * out_strides.channel
            for ph in range(share[0], share[1]):
                rows = bin_taps(y_taps, row, ph)
                if in_line:
                    for x in range(first, last, lanes):
                        column = min(x, map_width - lanes)  # the last vector ends with the map
                        line[column - begin] = average(
                            source, np.uintp(origin + column), row_stride, step, rows, one,
                            vector_zero, vector_zero,
                        )  # fmt: skip
                for pw in range(width):
                    columns = bin_taps(x_taps, row, pw)
                    if in_line:
                        value = average(
                            cells, np.uintp(-begin), step, step, one, columns, zero, zero
                        )
                    else:
                        value = average(
                            numbers, np.uintp(origin), row_stride, step, rows, columns, zero, zero
                        )
                    pooled[plane + ph * out_strides.row + pw * out_strides.column] = value


@cached_njit(parallel=True, **OPTIONS)
def work_in_threads(
    threads, features, strides, batch, y_taps, x_taps, unit, out, out_strides, shape, scratch, tag
):
    for thread in prange(threads):
        work(
            np.intp(thread), features, strides, batch, y_taps, x_taps, unit,
            out, out_strides, shape, scratch, tag,
        )  # fmt: skip
