"""What is fetched into the second cache ahead of its use, where no processor foresees it.

It foresees runs of memory and steps of the same size, a few at a time. What schedules read where it
lies is a line or two here and there. Packing, which knows a run's next pixels, fetches them itself.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from .. import _taps
from .job import INLINED, INLINED_BY_LLVM, UNCOUNTED, axis_tables, map_at, span_of
from .lanes import fetch, fetch_lines, view
from .tasks import first_channel, task_of

bin_taps = njit(**INLINED)(_taps.bin_taps)

# Maps of more elements than this leave the caches from one call to the next. With planes fetched
# ahead 100 boxes on fpn_p2_s2's map take 0.6 of the time, one_enormous 0.8 and few_samples_huge_map
# 0.6; where the map stays in the caches small_8x64 would take 1.2 and many_1000x3 1.35.
IN_CACHES = 1 << 22
# A row of bins is fetched where it has at most about so many lines of the cache.
MOST_LINES = 1 << 13
# Channels last, a bin is fetched where it has at most so many taps of all channels, and its RoI's
# bins have more columns than so many. mixed_s2 and beyond_cache take 0.93 of the time; with smaller
# bins too fpn_p2_s2 would take 1.04.
MOST_NUMBERS, FORESEEN = 1 << 12, 3


@njit(**INLINED)
def leaves_caches(job):
    """Say whether a map is so large that fetching planes pays."""
    return job.channels * job.height * job.width > IN_CACHES


@njit(**INLINED)
def last_pixel(taps):
    """Return the last pixel of some taps, which ascend, or -1."""
    return np.intp(taps.pixels[taps.last - np.uintp(1)]) if taps.first < taps.last else np.intp(-1)


@njit(**INLINED)
def fetch_rows(job, c, roi, ph, past):
    """Fetch the rows of the map after `past` that a row of bins taps, of a block of channels."""
    line, rows = len(job.line), bin_taps(axis_tables(job)[0], roi, ph)
    _, _, left, right = span_of(job, roi)
    if np.intp(rows.last - rows.first) * (right - left) * len(job.tag) > MOST_LINES * line:
        return
    source = view(job.features, map_at(job, roi, c), job.tag)
    for i in range(np.intp(rows.first), np.intp(rows.last)):
        y = np.intp(rows.pixels[np.uintp(i)])
        if y > past:
            for k in range(len(job.tag)):
                row = y * job.in_row + k * job.in_channel
                for x in range(left, right, line):
                    fetch(source, np.uintp(row + x))
                fetch(source, np.uintp(row + right - 1))


@njit(**UNCOUNTED)
def fetch_next_rows(thread, job, i, ph):
    """Fetch what a task reads after a row of bins of RoI `i` of the order, channels first.

    That is the next row of bins, or the first of the next RoI. It is a call: with its code among
    that of the sums small_8x64, which fetches nothing, took 1.05 times as long.
    """
    task, roi, past = task_of(thread, job), job.order[i], np.intp(-1)
    if ph + 1 < task.high:
        past = last_pixel(bin_taps(axis_tables(job)[0], roi, ph))
        ph += 1
    elif i + 1 < task.end:
        roi, ph = job.order[i + 1], task.low
    else:
        return
    fetch_rows(job, first_channel(job, task.block), roi, ph, past)


@njit(**INLINED)
def fetch_taps(job, lines, rows):
    """Fetch what some rows tap in several columns, whose lines begin in a channel, of the next one.

    Twice what lies on one line of the cache: to find out which do costs as much as the sums.
    """
    for i in range(np.intp(rows.first), np.intp(rows.last)):
        row = job.in_row * rows.pixels[np.uintp(i)]
        fetch_lines(lines, np.uintp(job.in_channel + row))


@njit(**INLINED)
def has_wide_bins(job, roi):
    """Say whether fetching a RoI's bins pays, channels last."""
    _, _, left, right = span_of(job, roi)
    return right - left > FORESEEN * job.output_width


@njit(**INLINED_BY_LLVM)
def fetch_bin(job, y_taps, x_taps, roi, ph, pw):
    """Fetch the pixels of a bin, but those that the bin before taps, channels last."""
    source, line = view(job.features, map_at(job, roi, 0), job.tag), len(job.line)
    rows = bin_taps(y_taps, roi, ph)
    columns, past = bin_taps(x_taps, roi, pw), last_pixel(bin_taps(x_taps, roi, pw - 1))
    taps = np.intp(rows.last - rows.first) * np.intp(columns.last - columns.first)
    if taps * job.channels > MOST_NUMBERS:
        return
    for i in range(np.intp(rows.first), np.intp(rows.last)):
        row = job.in_row * rows.pixels[np.uintp(i)]
        for j in range(np.intp(columns.first), np.intp(columns.last)):
            pixel = np.intp(columns.pixels[np.uintp(j)])
            if pixel > past:
                for c in range(0, job.channels, line):
                    fetch(source, np.uintp(row + job.in_column * pixel + c))
