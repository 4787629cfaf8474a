"""The sum of a row's taps on a device, for several channels at once, or for several rows.

It is the sum of `_kernels.weighted`, in the same order. All that some taps read is on its way
before any of it is used: the assembler may otherwise use a value as soon as it is there, and wait
for one after the other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import cuda

from .box_tables import AT_ONCE, pixel_of, weight_of

HELD = 2 * AT_ONCE  # taps that a thread can hold; and that are read at once
ROWS = 4  # of a bin, that are read at once where a thread has a bin of one channel
PATCH = ROWS * HELD  # what it reads at once


class Held(NamedTuple):
    """The taps of a bin that are the same for all rows, in registers: arrays of constant size."""

    offsets: np.ndarray  # (HELD,) from where a line starts, in the type of the strides
    weights: np.ndarray  # (HELD,)
    count: int  # that there are


@cuda.jit(device=True)
def read(features, origin, hop, there, values, place, count):
    """Read the same element of `count` lines, whose starts lie `hop` apart.

    Of the lines the first `there` exist; the last of them is read in place of others.
    """
    Index, furthest = type(hop), np.uint32(there - 1)
    for k in range(count):
        apart = Index(Index(min(np.uint32(k), furthest)) * hop)
        values[place * count + k] = features[origin + np.uintp(apart)]


@cuda.jit(device=True)
def add(weight, values, place, lines, count):
    """Add to sums what was read, times a weight."""
    for k in range(count):
        lines[k] += weight * values[place * count + k]


@cuda.jit(device=True)
def hold(table, first, last, stride, offsets, weights, zero):
    """Return the taps of a bin as a thread holds them, in the arrays that are given."""
    Index = type(stride)
    for t in range(HELD):
        offsets[t], weights[t] = 0, zero
        slot = np.uint32(first + t)
        if slot < last:
            offsets[t] = Index(stride * Index(pixel_of(table, slot)))
            weights[t] = weight_of(table, slot)
    return Held(offsets, weights, np.uint32(last - first))


@cuda.jit(device=True)
def held_lines(features, origin, hop, there, held, values, lines, count, zero):
    """Write to `lines` the sums of the taps that are held, of `count` lines."""
    for k in range(count):
        lines[k] = zero
    if held.count > 0:
        for t in range(AT_ONCE):
            read(features, origin + np.uintp(held.offsets[t]), hop, there, values, t, count)
        if held.count > AT_ONCE:
            for t in range(AT_ONCE, HELD):
                read(features, origin + np.uintp(held.offsets[t]), hop, there, values, t, count)
        for t in range(AT_ONCE):
            add(held.weights[t], values, t, lines, count)
        if held.count > AT_ONCE:
            for t in range(AT_ONCE, HELD):
                add(held.weights[t], values, t, lines, count)


@cuda.jit(device=True)
def held_pair(features, origin, other, hop, there, held, values, lines, others, count, zero):
    """As `held_lines`, for two rows at once where no more than `AT_ONCE` taps are held."""
    for t in range(AT_ONCE):
        offset = np.uintp(held.offsets[t])
        read(features, origin + offset, hop, there, values, t, count)
        read(features, other + offset, hop, there, values, AT_ONCE + t, count)
    for k in range(count):
        lines[k] = others[k] = zero
    for t in range(AT_ONCE):
        add(held.weights[t], values, t, lines, count)
        add(held.weights[t], values, AT_ONCE + t, others, count)


@cuda.jit(device=True)
def weighted_lines(
    features, origin, hop, there, stride, table, first, last, step, values, lines, count, zero
):
    """As `held_lines`, of slots ``first:last``: some of them, and then those a `step` further."""
    Index = type(stride)
    for k in range(count):
        lines[k] = zero
    while first < last:
        second = np.uint32(first + step)
        for t in range(AT_ONCE):
            offset = Index(stride * Index(pixel_of(table, np.uint32(first + t))))
            read(features, origin + np.uintp(offset), hop, there, values, t, count)
        if second < last:
            for t in range(AT_ONCE):
                offset = Index(stride * Index(pixel_of(table, np.uint32(second + t))))
                read(features, origin + np.uintp(offset), hop, there, values, AT_ONCE + t, count)
        for t in range(AT_ONCE):
            add(weight_of(table, np.uint32(first + t)), values, t, lines, count)
        if second < last:
            for t in range(AT_ONCE):
                add(weight_of(table, np.uint32(second + t)), values, AT_ONCE + t, lines, count)
        first = np.uint32(second + step)


@cuda.jit(device=True)
def read_patch(features, start, strides, table, slot, last, first, end, values):
    """Read what some rows and columns tap, at most `ROWS` and `HELD` of them, of one channel."""
    Index = type(strides.channel)
    for r in range(ROWS):
        row = np.uint32(slot + r)
        if row < last:
            origin = start + np.uintp(Index(strides.row * Index(pixel_of(table, row))))
            for t in range(HELD):
                column = np.uint32(first + t)
                if t < AT_ONCE or column < end:
                    offset = Index(strides.column * Index(pixel_of(table, column)))
                    values[r * HELD + t] = features[origin + np.uintp(offset)]


@cuda.jit(device=True)
def bin_sum(features, start, strides, table, rows, columns, zero):
    """Return the sum of a bin of one channel, by `rows` and `columns`, the slots of its taps.

    A thread waits once for `PATCH` elements.
    """
    values, lines = cuda.local.array(PATCH, type(zero)), cuda.local.array(ROWS, type(zero))
    total, (slot, last) = zero, rows
    while slot < last:
        for r in range(ROWS):
            lines[r] = zero
        first, end = columns
        while first < end:
            read_patch(features, start, strides, table, slot, last, first, end, values)
            for r in range(ROWS):
                if np.uint32(slot + r) < last:
                    for t in range(HELD):
                        column = np.uint32(first + t)
                        if t < AT_ONCE or column < end:
                            lines[r] += weight_of(table, column) * values[r * HELD + t]
            first = np.uint32(first + HELD)
        for r in range(ROWS):
            row = np.uint32(slot + r)
            if row < last:
                total += weight_of(table, row) * lines[r]
        slot = np.uint32(slot + ROWS)
    return total
