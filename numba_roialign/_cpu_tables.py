"""The CPU's tap tables: the taps of a batch of RoIs, and what schedules need to know of them."""

from __future__ import annotations

from numba import njit

from . import _geometry
from ._cpu_job import FOUND, UNCOUNTED, array_at, axis_tables
from ._geometry import Convention, Sampling

fill_row = njit(**UNCOUNTED)(_geometry.fill_row)
pixel_span = njit(**UNCOUNTED)(_geometry.pixel_span)


def fill(thread, job):
    """Fill a thread's share of the rows, and note what it found there.

    That is, in the thread's line of `found`: how many rows cannot be pooled and the first of them,
    the lowest and the highest image, and how many pixels all bins tap together.
    """
    rows, threads, start = job.rows, job.threads, job.start
    images = array_at(job.table_images, (job.table_rows,))
    spans, order = array_at(job.spans, (job.table_rows, 4)), array_at(job.order, (job.table_rows,))
    rois = array_at(job.rois, (start + rows, 5))
    y_taps, x_taps = axis_tables(job)
    sampling = Sampling(
        job.images, job.height, job.width, job.output_height, job.output_width,
        job.scale_y, job.scale_x, job.samples_y, job.samples_x,
    )  # fmt: skip
    convention = Convention(
        job.shift_before, job.shift_after, job.end_pixel, job.minimum_size,
        job.floor_grid, job.round_image, job.skip_lines,
    )  # fmt: skip
    bins, width = job.output_height, job.output_width
    invalid, first_invalid, low, high, taps = 0, rows, job.images, -1, 0
    for row in range(thread * rows // threads, (thread + 1) * rows // threads):
        fill_row(images, y_taps, x_taps, row, rois, start + row, sampling, convention, job.zero)
        image = images[row]
        order[row] = row
        low, high = min(low, image), max(high, image)
        if image < 0:
            invalid += 1
            first_invalid = min(first_invalid, row)
            continue
        spans[row, 0], spans[row, 1] = pixel_span(y_taps, row, 0, bins)
        spans[row, 2], spans[row, 3] = pixel_span(x_taps, row, 0, width)
        y = y_taps.bounds[row, bins] - y_taps.bounds[row, 0]
        taps += y * (x_taps.bounds[row, width] - x_taps.bounds[row, 0])
    if thread == 0:  # one chunk of all rows, and no task taken, until Python says otherwise
        job.chunks[0], job.chunks[1], job.counter[0] = 0, rows, 0
    found = array_at(job.found, (threads, FOUND))
    found[thread, 0], found[thread, 1] = invalid, first_invalid
    found[thread, 2], found[thread, 3], found[thread, 4] = low, high, taps
