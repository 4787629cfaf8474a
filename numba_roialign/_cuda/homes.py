"""The tables of bands, found box by box: taps of stacks of bins, and the band each bin begins in.

Each two slots of a stack, rows and their weights in its bins, are found by a thread of their own,
which goes through the samples: a box waits for one such walk, however many rows it has.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import cuda

from .. import _kernels, _taps
from .box_tables import (
    AT_ONCE,
    HALF_WARP,
    fill_table,
    first_slot,
    locate_axis,
    locate_image,
    most_taps_of,
    table_of,
)
from .indices import quotient, split, this_thread
from .launches import bounded
from .stacks import (
    HALF,
    LOW,
    NO_REACH,
    STACK,
    bound_place,
    joined,
    slots_of,
    write_columns,
    write_row,
)

element_at = cuda.jit(device=True)(_kernels.element_at)
samples_inside = cuda.jit(device=True)(_taps.samples_inside)

FILLERS = 32  # threads of a box, that find its taps along an axis: a warp goes one way
AT_LEAST = 12  # blocks of a multiprocessor
NO_HOME = np.uint32(LOW)
INVALID, LARGE, STATES = range(3)  # of a box: whether it cannot be pooled, or has a large bin


class Box(NamedTuple):
    """A box that can be pooled. In 32 bits."""

    number: int  # in its batch
    image: int
    height: int  # rows of bins


class Fillers(NamedTuple):
    """The threads that find the taps of an axis. In 32 bits."""

    lanes: int  # that share a stack, each some pairs of its slots
    of_lanes: int  # the reciprocal of that; in 64 bits
    apart: int  # stacks, from one of theirs to the next: how many they find at once


class Pair(NamedTuple):
    """Two slots of a stack, one after the other, and what their thread knows beside. In 32 bits."""

    rows: int  # of the stack: slots from there on are empty
    lowest: int  # the first of these
    row: int  # of the map, of the first slot
    next_row: int
    following: int  # the row of the slot after these
    # Of the bin whose number in the stack is the pair's: its first slot, the one after the last,
    # which is 0 if it taps nothing, and its first row.
    first: int
    end: int
    top: int


@cuda.jit(device=True)
def find_pair(axis, p, count, number, weights, next_weights, zero):
    """Find a pair of slots of the stack of `count` bins from `p` on, and their weights in them.

    Samples ascend, and where rounding says otherwise, one lies where the last one did. The chain of
    a sample is what a box waits for: hence no branch, and all integers of 32 bits with a sign, for
    Numba mixes others to 64.
    """
    T, W = type(axis.start), type(zero)
    samples, length = T(axis.samples) if axis.samples > 0 else T(1), T(axis.length)
    step, part = axis.bin_size / samples, T(1) / samples
    is_huge, lowest_position = abs(axis.bin_size) > T(axis.length + 2), T(0)
    slot = np.int32(2 * number)
    next_slot, last_slot = np.int32(slot + 1), np.int32(slot + 2)
    bin_of_box, hop = p, np.int32(1)
    if not step > T(0):
        bin_of_box, hop = np.int32(p + count - 1), np.int32(-1)
    rows = first = end = top = np.int32(0)
    highest = lowest = row = next_row = following = np.int32(-1)
    for k in range(STACK):
        weights[k] = next_weights[k] = zero
    while count > 0:
        edge = axis.start + T(bin_of_box) * axis.bin_size
        begin, stop = np.int32(0), np.int32(axis.samples)
        if is_huge:
            inside = samples_inside(edge, step, axis.samples, axis.length)
            begin, stop = np.int32(inside[0]), np.int32(inside[1])
        i, weight, next_weight = begin if hop > 0 else np.int32(stop - 1), zero, zero
        rows_before, highest_before = rows, highest
        own_top = own_last = np.int32(-1)  # rows, of the first sample of the bin and of the last
        while begin < stop:
            # As `pixel_below`, but for its branches.
            position = edge + (T(i) + T(0.5)) * step
            is_inside = (position >= T(-1)) & (position <= length)
            position = max(min(max(position, T(0)), length - T(1)), lowest_position)
            lowest_position, here = position, np.int32(position)
            share, beyond = part if is_inside else T(0), position - T(here)
            near, far, below = W((T(1) - beyond) * share), W(beyond * share), np.int32(here + 1)
            is_new = is_inside & (here > highest)
            row = here if is_new & (rows == slot) else row
            next_row = here if is_new & (rows == next_slot) else next_row
            following = here if is_new & (rows == last_slot) else following
            rows, highest = np.int32(rows + np.int32(is_new)), here if is_new else highest
            has_below = far != 0
            is_new = has_below & (here == highest)
            row = below if is_new & (rows == slot) else row
            next_row = below if is_new & (rows == next_slot) else next_row
            following = below if is_new & (rows == last_slot) else following
            rows, highest = np.int32(rows + np.int32(is_new)), below if is_new else highest
            weight += (near if here == row else zero) + (far if below == row else zero)
            next_near = near if here == next_row else zero
            next_weight += next_near + (far if below == next_row else zero)
            own_top = here if is_inside & (own_top < 0) else own_top
            own_last = np.int32(here + np.int32(has_below)) if is_inside else own_last
            begin, i = np.int32(begin + 1), np.int32(i + hop)
        which, is_tapped = np.int32(bin_of_box - p), own_top >= 0
        lowest = own_top if lowest < 0 else lowest
        for k in range(STACK):
            weights[k] = weight if which == np.int32(k) else weights[k]
            next_weights[k] = next_weight if which == np.int32(k) else next_weights[k]
        if is_tapped & (which == number):
            top, end = own_top, np.int32(rows - np.int32(highest - own_last))
            first = np.int32(rows_before - 1 - np.int32(highest_before - own_top))
            first = rows_before if own_top > highest_before else first
        count, bin_of_box = np.int32(count - 1), np.int32(bin_of_box + hop)
    return Pair(
        np.uint32(rows), np.uint32(lowest), np.uint32(row), np.uint32(next_row),
        np.uint32(following), np.uint32(first), np.uint32(end), np.uint32(top),
    )  # fmt: skip


@cuda.jit(device=True)
def write_bin(taps, homes, edges, box, is_y, p, start, room, pair, bands):
    """Write the slots of a bin and, of y, the band in which it begins."""
    end = np.uint32(min(pair.end, room))
    first = np.uint32(start + min(pair.first, end))
    place = bound_place(taps, box.number, p)
    if is_y:
        if homes is not None:
            home = np.uint32(box.image * bands.count + quotient(pair.top, bands.of_row))
            homes.bins[np.uintp(np.uint32(box.number * box.height + p))] = home
            if p == 0:
                edges[0] = home if end > 0 else NO_HOME
            if p == box.height - 1:
                edges[1] = home if end > 0 else NO_HOME
        top = pair.top
        if end == 0:
            top, end = pair.lowest, np.uint32(min(pair.rows, room))
        first |= np.uint32(top << np.uint32(HALF))
    else:
        place = np.uint32(place + box.height)
        end = np.uint32(end + end % np.uint32(AT_ONCE))
    taps.bounds[np.uintp(place)] = joined(first, np.uint32(start + end))


@cuda.jit(device=True)
def find_taps(taps, homes, edges, box, is_y, axis, filler, fillers, slots, bands, arrays, zero):
    """Find and write the taps of a box along an axis: a few threads those of each stack.

    `filler` is which of them this thread is.
    """
    weights, next_weights = arrays
    bins, most, capacity, spare = np.uint32(axis.bins), np.uint32(STACK), slots[0], 0
    origin, other = slots_of(taps, box.number)
    if not is_y:
        most, capacity, spare, origin = np.uint32(1), slots[1], AT_ONCE - 1, other
    stack = quotient(filler, fillers.of_lanes)
    lane = np.uint32(filler - stack * fillers.lanes)
    p = np.uint32(stack * most)
    while p < bins and stack < fillers.apart:
        count = np.uint32(min(most, np.uint32(bins - p)))
        start = np.uint32(first_slot(axis, np.intp(p), capacity, spare))
        stop = np.uint32(first_slot(axis, np.intp(p + count), capacity, spare))
        room, number, left = np.uint32(stop - spare - start), lane, True
        while left:
            pair = find_pair(
                axis, np.int32(p), np.int32(count), np.int32(number), weights, next_weights, zero
            )
            rows, slot = np.uint32(min(pair.rows, room)), np.uint32(number * np.uint32(2))
            place, is_last = np.uint32(origin + start + slot), np.uint32(slot + 1) == rows
            if slot < rows and is_y:
                write_row(taps, place, pair.next_row, weights)
                if not is_last:
                    write_row(taps, np.uint32(place + 1), pair.following, next_weights)
            elif slot < rows:
                one, other = (pair.row, weights[0]), (pair.next_row, next_weights[0])
                write_columns(taps, place, is_last, *one, *other)
            if number < count:
                q = np.uint32(p + number)
                write_bin(taps, homes, edges, box, is_y, q, start, room, pair, bands)
            number = np.uint32(number + fillers.lanes)
            left = np.uint32(number * np.uint32(2)) < rows or number < count
        p = np.uint32(p + fillers.apart * most)


@cuda.jit(device=True)
def reach_of(image, edges, bands):
    """Return the first of the bands in which a box's bins begin, and in the upper half the last.

    From bin to bin they only rise, or only fall, but for bins that tap nothing, and those are the
    first or the last: then it is all bands of the image.
    """
    low = np.uint32(image * bands.count)
    high = np.uint32(low + bands.count - 1)
    if edges[0] != NO_HOME and edges[1] != NO_HOME:
        low, high = min(edges[0], edges[1]), max(edges[0], edges[1])
    return np.uint32(low | np.uint32(high << np.uint32(HALF)))


@cuda.jit(**bounded(2 * FILLERS, AT_LEAST))
def schedule_homes(
    rois, start, sampling, convention, slots, fillers, most_taps, tables, taps, bands, homes, zero,
    out, out_strides, channels,
):  # fmt: skip
    """Find the taps of the RoIs from `start` on, and in which band each row of bins begins.

    A block has a RoI. One that cannot be pooled reaches no band, and is written here. Nor does one
    with a bin of more rows or columns than `most_taps`: it alone is left to `schedule_large`, and
    has a table.
    """
    states = cuda.shared.array(STATES, np.uint32)
    edges = cuda.shared.array(2, np.uint32)
    weights = cuda.local.array(STACK, type(zero))
    next_weights = cuda.local.array(STACK, type(zero))
    row, (thread, threads) = np.uint32(cuda.blockIdx.x), this_thread()
    n, is_y = start + np.intp(row), cuda.threadIdx.y == 0
    # At one place in the code for both axes: compiled twice, it could round in two ways.
    axis = locate_axis(rois, n, is_y, sampling, convention, zero)
    image = locate_image(rois, n, sampling, convention)
    if thread < STATES:
        states[thread] = 0
    cuda.syncthreads()
    if image < 0 or axis.samples < 0:
        states[INVALID] = 1
    elif most_taps_of(axis) > most_taps:
        states[LARGE] = 1
    else:
        box = Box(row, np.uint32(image), np.uint32(sampling.output_height))
        own = fillers[0] if is_y else fillers[1]
        arrays = weights, next_weights
        filler, how = np.uint32(cuda.threadIdx.x), (own, slots, bands)
        find_taps(taps, homes, edges, box, is_y, axis, filler, *how, arrays, zero)
    cuda.syncthreads()
    is_valid, kept = states[INVALID] == 0, table_of(tables, row)
    is_left = is_valid and states[LARGE] != 0
    if is_left:
        fill_table(kept, rois, n, sampling, convention, slots, zero)
        cuda.syncthreads()
    if thread == 0:
        if is_left:
            kept.head[1] = max(kept.head[1], HALF_WARP)
        else:
            kept.head[0] = -1
        reach = NO_REACH
        if is_valid and not is_left:
            reach = reach_of(np.uint32(image), edges, bands)
        homes.reaches[np.uintp(row)] = reach
    width, item = np.uint32(sampling.output_width), thread
    cells = np.uint32(np.uint32(sampling.output_height) * width)
    while not is_valid and item < np.uint32(channels) * cells:
        channel, cell = split(item, cells)
        to = element_at(out_strides, n, channel, *split(cell, width))
        out[to] = zero * type(zero)(math.nan)
        item = np.uint32(item + threads)
