"""Element kernels: one output value from the features, the taps and one output index.

Plain Python, generic in the number type: `features` is anything that gives a number for
``features[i]``, and the numbers need only ``weight * number`` and ``number + number``. The same
source runs on float32 and float64 arrays, on half-precision storage (``_halves``), on CUDA, in the
CUDA simulator and in the interpreter.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from ._geometry import bin_taps, inlined


class Strides(NamedTuple):
    """Elements from one image, channel, row or column to the next in a flat array."""

    image: int  # of an output: from one RoI to the next
    channel: int
    row: int
    column: int


@inlined
def weighted(features, origin, stride, taps, zero):
    """Return the sum of the taps along one axis, of the line that starts at element `origin`."""
    total = zero
    for i in range(taps.first, taps.last):
        element = origin + stride * np.uintp(taps.pixels[i])
        total = total + taps.weights[i] * features[element]
    return total


@inlined
def average(features, origin, row_stride, column_stride, rows, columns, zero, total):
    """Add the taps of one bin, of the plane that starts at element `origin`, to `total`.

    `zero` is the zero of the accumulator's number type, and `total` too unless the bin's rows come
    in several parts.
    """
    for i in range(rows.first, rows.last):
        row = origin + row_stride * np.uintp(rows.pixels[i])
        line = weighted(features, row, column_stride, columns, zero)
        total = total + rows.weights[i] * line
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
