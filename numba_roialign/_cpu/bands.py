"""Bands of the map: rows of bins in the order of the rows of the map in which they begin.

Large RoIs, one after the other, would each bring what they read into the caches again. Channels
last, where a bin is written for itself, their rows of bins come band by band instead, whichever
RoIs they are of: in place each band is a task, and packed a task goes through all of them.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numba.extending import overload

from .. import _taps
from .job import INLINED, INLINED_BY_LLVM, span_of
from .kinds import PIXELS

bin_taps = njit(**INLINED)(_taps.bin_taps)


@njit(**INLINED)
def first_row(y_taps, roi, ph, none):
    """Return the first row of the map that a row of bins taps, or `none`."""
    rows = bin_taps(y_taps, roi, ph)
    return np.intp(rows.pixels[rows.first]) if rows.first < rows.last else none


@njit(**INLINED)
def begins_in_task(job, task, y_taps, roi, ph):
    """Say whether a row of bins is for a task; in bands, one without taps is for the first."""
    place = first_row(y_taps, roi, ph, job.task_top) if job.banded else ph
    return task.low <= place and place < task.high


def bins_of_band(job, y_taps, roi, first, end, low, high):
    """Return the next rows of bins that begin in a band; one without taps where its RoI does."""
    top, bottom, _, _ = span_of(job, roi)
    if high <= top or max(bottom, 1) <= low:
        return end, end
    while first < end and not low <= first_row(y_taps, roi, first, top) < high:
        first += 1
    last = first
    while last < end and low <= first_row(y_taps, roi, last, top) < high:
        last += 1
    return first, last


def all_bins(job, y_taps, roi, first, end, low, high):
    """Return all rows of bins, which begin in the one band."""
    return first, end


def next_bins(job, y_taps, roi, first, end, low, high):
    """Return the next of the rows of bins ``first:end`` that begin in the band ``low:high``.

    For compiled code, which knows how the output lies: only channels last is there more than one.
    """
    raise NotImplementedError


@overload(next_bins, jit_options=INLINED_BY_LLVM)
def _next_bins(job, y_taps, roi, first, end, low, high):
    return bins_of_band if job.writes == PIXELS else all_bins
