"""Element kernels: one value of a result from the features, the taps and its index.

Plain Python, generic in the number type: `features` is anything that gives a number for
``features[i]``, and the numbers need only ``weight * number``, ``number + number`` and, for maxima,
`take`. The same source runs on float32 and float64 arrays, on half-precision storage, on vectors
of lanes (`_cpu.lanes`), on CUDA, in the CUDA simulator and in the interpreter.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from ._geometry import compilable
from ._taps import bin_taps, inlined

AVERAGE, MAX, CORNER_MAX = 0, 1, 2  # modes


class Strides(NamedTuple):
    """Elements from one image, channel, row or column to the next in a flat array."""

    image: int  # of pooled features: from one RoI to the next
    channel: int
    row: int
    column: int


@inlined
def weighted(features, origin, stride, taps, zero):
    """Return the sum of the taps along one axis, of the line that starts at element `origin`."""
    # `range` of unsigned numbers takes CUDA's compiler three times the instructions.
    total, i, last = zero, np.uintp(taps.first), np.uintp(taps.last)
    while i < last:
        element = origin + stride * np.uintp(taps.pixels[i])
        total = total + taps.weights[i] * features[element]
        i += np.uintp(1)
    return total


@inlined
def average(features, origin, row_stride, column_stride, rows, columns, zero, total):
    """Add the taps of one bin, of the plane that starts at element `origin`, to `total`.

    One column is summed after the other, as in every schedule, some of which have these sums for a
    whole row of bins at once: no bit of a result tells which of them computed it.

    `zero` is the zero of the accumulator's number type, and `total` too but in a gradient, where
    bins add up.
    """
    i, last = np.uintp(columns.first), np.uintp(columns.last)
    while i < last:
        column = origin + column_stride * np.uintp(columns.pixels[i])
        line = weighted(features, column, row_stride, rows, zero)
        total = total + columns.weights[i] * line
        i += np.uintp(1)
    return total


@inlined
def average_at(features, strides, images, y_taps, x_taps, n, c, ph, pw, zero):
    """Return output ``[n, c, ph, pw]``, `n` being a row of the tables; NaN where it is invalid."""
    if images[n] < 0:
        return zero * type(zero)(math.nan)
    image, channel = np.uintp(images[n]), np.uintp(c)
    origin = image * np.uintp(strides.image) + channel * np.uintp(strides.channel)
    row_stride, column_stride = np.uintp(strides.row), np.uintp(strides.column)
    rows, columns = bin_taps(y_taps, n, ph), bin_taps(x_taps, n, pw)
    return average(features, origin, row_stride, column_stride, rows, columns, zero, zero)


@inlined
def sample(features, origin, row_stride, column_stride, rows, i, columns, j, zero):
    """Return the value of a sample: of taps `i` and `i` + 1 of rows, `j` and `j` + 1 of columns."""
    total = zero
    for a in range(i, i + 2):
        row_weight = rows.weights[np.uintp(a)]
        if row_weight != 0:
            line = zero
            row = origin + row_stride * np.uintp(rows.pixels[np.uintp(a)])
            for b in range(j, j + 2):
                weight = columns.weights[np.uintp(b)]
                if weight != 0:
                    element = row + column_stride * np.uintp(columns.pixels[np.uintp(b)])
                    line = line + weight * features[element]
            total = total + row_weight * line
    return total


@inlined
def corner(features, origin, row_stride, column_stride, rows, i, columns, j, zero):
    """Return a weighted corner of a sample, of row tap `i` and column tap `j`, and its weight."""
    i, j = np.uintp(i), np.uintp(j)
    weight = rows.weights[i] * columns.weights[j]
    if weight == 0:
        return zero, weight
    row = origin + row_stride * np.uintp(rows.pixels[i])
    return weight * features[row + column_stride * np.uintp(columns.pixels[j])], weight


def take(best, number, value, at, found):
    """Return the larger of two values, after its number: the first of equals, NaN before any.

    Nothing was `found` before the first value. It is all that a maximum asks of numbers beside what
    an average does, so vectors of lanes have it too.
    """
    if not found or value > best or (value != value and best == best):
        return value, at
    return best, number


@overload(take, jit_options={"_nrt": False, "forceinline": True})
def _take_scalars(best, number, value, at, found):
    return take if isinstance(value, types.Float) else None


@inlined
def largest(
    features, origin, row_stride, column_stride, rows, columns, first_y, first_x, grid_y, grid_x,
    mode, zero,
):  # fmt: skip
    """Return the largest sample or corner of a bin, of the plane that starts at element `origin`.

    And its number: samples count row by row, of a grid whose first inside the map is ``first_y``,
    ``first_x``; corners four times that. It is -1 where no pixel gave the value: a sample outside
    the map or a corner of weight 0 did, or there is none.
    """
    found = False
    best, number = take(zero, -1, zero, -1, found)
    first_row, last_row = np.intp(rows.first), np.intp(rows.last)
    first_column, last_column = np.intp(columns.first), np.intp(columns.last)
    for i in range(first_row, last_row, 2):
        line = (first_y + (i - first_row) // 2) * grid_x + first_x
        for j in range(first_column, last_column, 2):
            at = line + (j - first_column) // 2
            if mode == MAX:
                value = sample(
                    features, origin, row_stride, column_stride, rows, i, columns, j, zero
                )
                best, number = take(best, number, value, at, found)
                found = True
            else:
                for k in range(4):
                    value, weight = corner(
                        features, origin, row_stride, column_stride,
                        rows, i + k // 2, columns, j + k % 2, zero,
                    )  # fmt: skip
                    corner_at = 4 * at + k if weight != 0 else -1
                    best, number = take(best, number, value, corner_at, found)
                    found = True
    inside = (last_row - first_row) // 2 * ((last_column - first_column) // 2)
    if inside < grid_y * grid_x:
        best, number = take(best, number, zero, -1, found)
    return best, number


@compilable()
def largest_at(features, strides, images, y_samples, x_samples, n, c, ph, pw, mode, zero):
    """Return output ``[n, c, ph, pw]`` of a maximum and its number; NaN and -1 where invalid."""
    if images[n] < 0:
        return zero * type(zero)(math.nan), -1
    image, channel = np.uintp(images[n]), np.uintp(c)
    origin = image * np.uintp(strides.image) + channel * np.uintp(strides.channel)
    row_stride, column_stride = np.uintp(strides.row), np.uintp(strides.column)
    return largest(
        features, origin, row_stride, column_stride,
        bin_taps(y_samples, n, ph), bin_taps(x_samples, n, pw),
        y_samples.firsts[n, ph], x_samples.firsts[n, pw], y_samples.grids[n], x_samples.grids[n],
        mode, zero,
    )  # fmt: skip


@inlined
def reaches(spans, n, y, x):
    """Say whether the taps of RoI `n` of a batch reach around a pixel."""
    return spans[n, 0] <= y and y < spans[n, 1] and spans[n, 2] <= x and x < spans[n, 3]


@compilable()
def won_at(
    grad, strides, argmax, argmax_strides, start, nearby, count, spans, y_bins, x_bins,
    y_codes, x_codes, grids, c, y, x, mode, total,
):  # fmt: skip
    """Add to `total` what a batch of RoIs gives to the gradient of a feature, of pixel `y`, `x`.

    The tables are turned round: they hold for each pixel the samples that lean on it. Their bin
    counts where `argmax` says it took this pixel. The first `count` of `nearby` are the RoIs of the
    batch that may reach the pixel, in order; it begins with RoI `start`.
    """
    for k in range(count):
        n = np.intp(nearby[k])
        if reaches(spans, n, y, x):
            rows = bin_taps(y_bins, n, y - spans[n, 0])
            columns = bin_taps(x_bins, n, x - spans[n, 2])
            for i in range(rows.first, rows.last):
                for j in range(columns.first, columns.last):
                    number = (y_codes[i] // 2) * grids[n] + x_codes[j] // 2
                    if mode == CORNER_MAX:
                        number = 4 * number + 2 * (y_codes[i] % 2) + x_codes[j] % 2
                    ph, pw = rows.pixels[i], columns.pixels[j]
                    if argmax[element_at(argmax_strides, start + n, c, ph, pw)] == number:
                        weight = rows.weights[i] * columns.weights[j]
                        total = total + weight * grad[element_at(strides, start + n, c, ph, pw)]
    return total


@inlined
def element_at(strides, n, c, ph, pw):
    """Return where element ``[n, c, ph, pw]`` lies in a flat array."""
    element = np.uintp(n) * np.uintp(strides.image) + np.uintp(c) * np.uintp(strides.channel)
    return element + np.uintp(ph) * np.uintp(strides.row) + np.uintp(pw) * np.uintp(strides.column)
