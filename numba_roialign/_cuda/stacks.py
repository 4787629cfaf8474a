"""What bands pool, found box by box: the taps of stacks of bins, and the band each bin begins in.

A stack is a few bins below each other. They tap many rows in common, more than half of all where
bins are a pixel high, and a thread that pools all of them reads each row once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import cuda

from .. import _kernels
from .box_tables import (
    HALF_WARP,
    bounds_of,
    copy_table,
    fill_table,
    is_pooled,
    pixel_of,
    shared_table,
    table_of,
    weight_of,
)
from .indices import split, this_thread

element_at = cuda.jit(device=True)(_kernels.element_at)

STACK = 3  # bins: their weights and a row are two numbers of 64 bits
HALF = 16  # bits
LOW = (1 << HALF) - 1
MOST_BANDS = MOST_HEIGHT = LOW  # that half a number can tell; slots of a shared table are fewer
NO_REACH = np.uint32(LOW)  # from the last band to the first


class Homes(NamedTuple):
    """In which of the maps' bands the bins of a batch of boxes begin."""

    reaches: np.ndarray  # of a box the first of them, and in the upper half the last
    bins: np.ndarray  # of each row of bins of a box


class Taps(NamedTuple):
    """The taps of a batch of boxes, two numbers of 32 bits in each of 64: one load for both."""

    # Of each box the bins of y, and then those of x: the first slot, and the one after the last. Of
    # a bin of y the upper half of the first is its row.
    bounds: np.ndarray
    rows: np.ndarray  # two of a slot: the row of the next, and the bits of the weights of a stack
    columns: np.ndarray  # of a slot the pixel and the bits of the weight
    bins: int  # of a box, along y and x; in 32 bits
    rows_apart: int  # slots, from one box's to the next's
    columns_apart: int


class Span(NamedTuple):
    """The taps of a bin of y in a table, and in its stack. In 32 bits."""

    first: int  # slot of the table
    count: int
    start: int  # slot among those of its stack


@cuda.jit(device=True)
def joined(low, high):
    return np.uint64(np.uint64(low) | np.uint64(np.uint64(high) << np.uint64(32)))


@cuda.jit(device=True)
def parts_of(number):
    """Return the two numbers of 32 bits of one of 64."""
    return np.uint32(number & np.uint64(0xFFFFFFFF)), np.uint32(number >> np.uint64(32))


@cuda.jit(device=True)
def halves_of(number):
    """Return the lower and the upper half of a number of 32 bits."""
    return np.uint32(number & np.uint32(LOW)), np.uint32(number >> np.uint32(HALF))


@cuda.jit(device=True)
def bounds_at(taps, box, p):
    """Return the first slot of a box's bin, and the one after the last."""
    return parts_of(taps.bounds[np.uintp(np.uint32(box * taps.bins + p))])


@cuda.jit(device=True)
def column_at(taps, slot, further=0):
    """Return the pixel and the weight of a slot, or of one a constant number further."""
    pixel, bits = parts_of(taps.columns[np.uintp(slot) + np.uintp(further)])
    return pixel, bits.view(np.float32)


@cuda.jit(device=True)
def row_at(taps, slot):
    """Return the row of the next slot, and the weights of this one's in the bins of its stack."""
    place = np.uintp(slot) * np.uintp(2)
    following, first = parts_of(taps.rows[place])
    second, third = parts_of(taps.rows[place + np.uintp(1)])
    return following, (first.view(np.float32), second.view(np.float32), third.view(np.float32))


@cuda.jit(device=True)
def are_same(table, slot, other):
    """Say whether two slots of a table have the same row."""
    return pixel_of(table, slot) == pixel_of(table, other)


@cuda.jit(device=True)
def shared_rows(table, above, first, count):
    """Return how many of a bin's rows are the last of the one above: two at most.

    Its first sample is not above the last of the other, which has that sample's two rows.
    """
    most, end = min(above.count, count), np.uint32(above.first + above.count)
    has_last = most > 0 and are_same(table, np.uint32(end - 1), first)
    has_both = most > 1 and are_same(table, np.uint32(end - 2), first)
    if has_both and are_same(table, np.uint32(end - 1), np.uint32(first + 1)):
        return np.uint32(2)
    return np.uint32(has_last)


@cuda.jit(device=True)
def span_below(table, p, height, above):
    """Return the taps of a bin of y, by those of the one above it in its stack."""
    first, last = np.uint32(0), np.uint32(0)
    if p < height:
        first, last = bounds_of(table, p)
    count = np.uint32(last - first)
    shared = shared_rows(table, above, first, count)
    return Span(first, count, np.uint32(np.uint32(above.start + above.count) - shared))


@cuda.jit(device=True)
def spans_of(table, ph, height):
    """Return the taps of a stack of bins."""
    start, nothing = bounds_of(table, ph)[0], np.uint32(0)
    first = span_below(table, ph, height, Span(nothing, nothing, start))
    second = span_below(table, np.uint32(ph + 1), height, first)
    return first, second, span_below(table, np.uint32(ph + 2), height, second)


@cuda.jit(device=True)
def tap_of(table, slot, span):
    """Return the row of a slot of a stack and the bits of its weight in a bin, or zeros."""
    if span.start <= slot and slot < np.uint32(span.start + span.count):
        place = np.uint32(span.first + np.uint32(slot - span.start))
        return pixel_of(table, place), weight_of(table, place).view(np.uint32)
    return np.uint32(0), np.uint32(0)


@cuda.jit(device=True)
def row_of(table, slot, spans):
    """Return the row of a slot of a stack."""
    return (
        tap_of(table, slot, spans[0])[0]
        | tap_of(table, slot, spans[1])[0]
        | tap_of(table, slot, spans[2])[0]
    )


@cuda.jit(device=True)
def join_rows(taps, table, box, p, height):
    """Write the rows of a bin that none above it in its stack has, with the weights of all.

    Return how many rows the bin has.
    """
    g = np.uint32(p % np.uint32(STACK))
    spans = spans_of(table, np.uint32(p - g), height)
    span, slot = spans[0], spans[0].start
    if g == 1:
        span, slot = spans[1], np.uint32(spans[0].start + spans[0].count)
    elif g == 2:
        span, slot = spans[2], np.uint32(spans[1].start + spans[1].count)
    slot, end = max(slot, span.start), np.uint32(span.start + span.count)
    first = np.uint32(span.start | np.uint32(row_of(table, span.start, spans) << np.uint32(HALF)))
    taps.bounds[np.uintp(np.uint32(box * taps.bins + p))] = joined(first, end)
    while slot < end:
        following = row_of(table, np.uint32(slot + 1), spans)
        a, b = tap_of(table, slot, spans[0])[1], tap_of(table, slot, spans[1])[1]
        place = np.uintp(np.uint32(box * taps.rows_apart + slot)) * np.uintp(2)
        taps.rows[place] = joined(following, a)
        taps.rows[place + np.uintp(1)] = joined(b, tap_of(table, slot, spans[2])[1])
        slot = np.uint32(slot + 1)
    return span.count


@cuda.jit(device=True)
def join_columns(taps, table, box, p, origin):
    """Write the taps of a bin of x of a box, whose slots begin at an origin. Return how many."""
    first, end = bounds_of(table, p)
    start, last = np.uint32(first - origin), np.uint32(end - origin)
    taps.bounds[np.uintp(np.uint32(box * taps.bins + p))] = joined(start, last)
    place = np.uint32(box * taps.columns_apart + start)
    while first < end:
        bits = weight_of(table, first).view(np.uint32)
        taps.columns[np.uintp(place)] = joined(pixel_of(table, first), bits)
        first, place = np.uint32(first + 1), np.uint32(place + 1)
    return np.uint32(last - start)


@cuda.jit(device=True)
def home_of(table, ph, bands):
    """Return the band in which a row of bins begins: the first, if it taps nothing."""
    row, (first, last) = np.uint32(0), bounds_of(table, ph)
    if first < last:
        row = pixel_of(table, first)
    return np.uint32(np.uint32(table.head[0]) * bands.count + split(row, bands.step)[0])


@cuda.jit(device=True)
def reach_of(table, height, bands):
    """Return the first of the bands in which a box's bins begin, and in the upper half the last.

    From bin to bin they only rise, or only fall, but for bins that tap nothing, and those are the
    first or the last: then it is all bands of the image.
    """
    low = np.uint32(np.uint32(table.head[0]) * bands.count)
    high, bottom = np.uint32(low + bands.count - 1), np.uint32(height - 1)
    (first, end), (start, last) = bounds_of(table, 0), bounds_of(table, bottom)
    if first < end and start < last:
        above, below = home_of(table, 0, bands), home_of(table, bottom, bands)
        low, high = min(above, below), max(above, below)
    return np.uint32(low | np.uint32(high << np.uint32(HALF)))


@cuda.jit
def schedule_homes(
    rois, start, sampling, convention, slots, places, most_taps, tables, taps, bands,
    homes, zero, out, out_strides, channels,
):  # fmt: skip
    """Find the taps of the RoIs from `start` on, and in which band each row of bins begins.

    A block has a RoI. One that cannot be pooled reaches no band, and is written here. Nor does one
    with a bin of more rows or columns than `most_taps`: it alone is left to `schedule_large`, and
    its table is kept.
    """
    has_large = cuda.shared.array(1, np.uint32)
    row, (thread, threads) = np.uint32(cuda.blockIdx.x), this_thread()
    height, width = np.uint32(sampling.output_height), np.uint32(sampling.output_width)
    # In shared memory: of tables in the device's, threads wait 270 cycles to merge a tap.
    table, kept, item = shared_table(places, zero), table_of(tables, row), thread
    if thread == 0:
        has_large[0] = 0
    fill_table(table, rois, start + np.intp(row), sampling, convention, slots, zero)
    cuda.syncthreads()
    is_valid = is_pooled(table)
    while is_valid and item < height:
        homes.bins[np.uintp(np.uint32(row * height + item))] = home_of(table, item, bands)
        if join_rows(taps, table, row, item, height) > most_taps:
            has_large[0] = 1
        item = np.uint32(item + threads)
    item = np.uint32(height + (threads - thread) - 1)  # by another warp
    while is_valid and item < height + width:
        if join_columns(taps, table, row, item, np.uint32(slots[0])) > most_taps:
            has_large[0] = 1
        item = np.uint32(item + threads)
    cuda.syncthreads()
    is_left, bins = has_large[0] != 0, (sampling.output_height, sampling.output_width)
    copy_table(table, kept, bins, max(table.head[1], HALF_WARP) if is_left else 1)
    if thread == 0:
        is_here = is_valid and not is_left
        homes.reaches[np.uintp(row)] = reach_of(table, height, bands) if is_here else NO_REACH
    cells, item = np.uint32(height * width), thread
    while not is_valid and item < np.uint32(channels) * cells:
        channel, cell = split(item, cells)
        to = element_at(out_strides, start + np.intp(row), channel, *split(cell, width))
        out[to] = zero * type(zero)(math.nan)
        item = np.uint32(item + threads)
