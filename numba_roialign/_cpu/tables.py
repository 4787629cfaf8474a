"""The CPU's tables: the taps of a batch of RoIs, and what schedules need to know of them."""

from __future__ import annotations

import numpy as np
from numba import njit

from .. import _taps
from .._geometry import Convention, Sampling
from . import found as at
from .arrays import array_at
from .job import UNCOUNTED, axis_tables, sample_tables, span_of, turned_tables
from .lanes import REGISTER

# The gradient of a RoI with more columns than this per tap is spread bin by bin: a line would be
# mostly zeros. With half of it fpn_p2_s2 took 1.6 times as long, with twice of it many_1000x3 1.2.
COLUMNS_PER_TAP = 2
# A packed window has no fewer columns, where the map has them, than numbers fit a register: so many
# of float32.
LEAST_COLUMNS = REGISTER // 4

fill_taps = njit(**UNCOUNTED)(_taps.fill_taps)
fill_samples = njit(**UNCOUNTED)(_taps.fill_samples)
fill_slopes = njit(**UNCOUNTED)(_taps.fill_slopes)
turn_taps = njit(**UNCOUNTED)(_taps.turn_taps)
pixel_span = njit(**UNCOUNTED)(_taps.pixel_span)


@njit(**UNCOUNTED)
def arguments_of(job):
    """Return the images' and the boxes' arrays, and the geometry of the call."""
    images = array_at(job.table_images, (job.table_rows,))
    rois = array_at(job.rois, (job.table_rows, 5))
    sampling = Sampling(
        job.images, job.height, job.width, job.output_height, job.output_width,
        job.scale_y, job.scale_x, job.samples_y, job.samples_x, job.most_samples,
    )  # fmt: skip
    convention = Convention(
        job.shift_before, job.shift_after, job.end_pixel, job.minimum_size,
        job.floor_grid, job.round_image, job.skip_lines,
    )  # fmt: skip
    return images, rois, sampling, convention


@njit(**UNCOUNTED)
def share_of(thread, job):
    """Return a thread's share of the rows."""
    return thread * job.rows // job.threads, (thread + 1) * job.rows // job.threads


@njit(**UNCOUNTED)
def survey(thread, job):
    """Note what a thread's share of the rows holds, in its line of `found`; mark sparse rows.

    Those too large to pack are among them where no schedule of RoIs apart pools them.
    """
    images, spans, sparse_rows = job.table_images, job.spans, job.sparse_rows
    y_taps, x_taps = axis_tables(job)
    bins, width, limit = job.output_height, job.output_width, job.sparse_limit
    least = min(LEAST_COLUMNS, job.width)
    none = np.intp(0)  # for a literal 0 `pixel_span` would be compiled once more
    invalid, first_invalid, sparse, large, taps, alone = 0, job.rows, 0, 0, 0, 0
    low, high, top, bottom, left, right = job.images, -1, job.height, 0, job.width, 0
    first, last = share_of(thread, job)
    for row in range(first, last):
        image = images[row]
        sparse_rows[row] = 0
        if image < 0:
            invalid += 1
            first_invalid = min(first_invalid, row)
            continue
        y0, y1 = pixel_span(y_taps, row, none, bins)
        x0, x1 = pixel_span(x_taps, row, none, width)
        span = 4 * row
        spans[span], spans[span + 1], spans[span + 2], spans[span + 3] = y0, y1, x0, x1
        y = y_taps.bounds[row, bins] - y_taps.bounds[row, 0]
        x = x_taps.bounds[row, width] - x_taps.bounds[row, 0]
        taps += y * x
        is_large = job.packs and (y1 - y0) * max(x1 - x0, least) > job.window
        pixels, is_sparse = y * x, is_large and job.apart_reads == 0
        if limit > 0:
            pixels = (y1 - y0 if job.packs else y) * (x1 - x0)
            if pixels > limit * y * x:
                pixels, is_sparse = limit * y * x, True
        sparse_rows[row] = is_sparse
        large += is_large
        sparse += is_sparse
        alone += pixels
        low, top, left = min(low, image), min(top, y0), min(left, x0)
        high, bottom, right = max(high, image), max(bottom, y1), max(right, x1)
    found, line = job.found, thread * at.END
    found[line + at.INVALID], found[line + at.FIRST_INVALID] = invalid, first_invalid
    found[line + at.SPARSE], found[line + at.LARGE] = sparse, large
    found[line + at.TAPS], found[line + at.ALONE] = taps, alone
    found[line + at.LOW], found[line + at.TOP], found[line + at.LEFT] = low, top, left
    found[line + at.HIGH], found[line + at.BOTTOM], found[line + at.RIGHT] = high, bottom, right


@njit(inline="always", **UNCOUNTED)
def fill_rows(thread, job, fill_row, tables, corner):
    """Fill a thread's share of the rows by a function of `_taps`, and survey them."""
    images, rois, sampling, convention = arguments_of(job)
    y, x = tables
    first, last = share_of(thread, job)
    for row in range(first, last):
        fill_row(images, y, x, row, rois, row, sampling, convention, job.zero, *corner)
    survey(thread, job)


def fill_with_taps(thread, job):
    """Fill a thread's share of the rows with taps."""
    fill_rows(thread, job, fill_taps, axis_tables(job), ())


def fill_with_samples(thread, job):
    """Fill a thread's share of the rows with samples."""
    fill_rows(thread, job, fill_samples, sample_tables(job), ())


def fill_with_slopes(thread, job):
    """Fill a thread's share of the rows with taps on one axis and slopes on the other."""
    fill_rows(thread, job, fill_slopes, axis_tables(job), (job.corner,))


@njit(**UNCOUNTED)
def spreads(job, x_taps, row):
    """Say whether `average_gradient` spreads a RoI over lines, and not bin by bin."""
    taps = x_taps.bounds[row, job.output_width] - x_taps.bounds[row, 0]
    _, _, left, right = span_of(job, row)
    return right - left <= COLUMNS_PER_TAP * taps


def fill_with_turned_taps(thread, job):
    """Fill a thread's share of the rows with taps, and with the same turned round where needed."""
    fill_rows(thread, job, fill_taps, axis_tables(job), ())
    images = array_at(job.table_images, (job.table_rows,))
    y_taps, x_taps = axis_tables(job)
    y_bins, x_bins = turned_tables(job)
    first, last = share_of(thread, job)
    for row in range(first, last):
        if images[row] >= 0 and spreads(job, x_taps, row):
            turn_taps(y_taps, y_bins, row, job.output_height)
            turn_taps(x_taps, x_bins, row, job.output_width)
