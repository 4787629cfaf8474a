"""Sampling geometry: from a box to its bins, samples and taps.

Everything RoIAlign knows about coordinates is here, as plain Python on scalars. Each target
compiles these functions for itself; the coordinate type is whatever the caller passes
(float64 on the CPU, float32 or float64 on CUDA), and ``T = type(x)`` keeps the constants in it, so
that a float32 kernel holds no float64 instruction.

The samples of a box form a tensor product and a bilinear weight factors into one number per axis,
border clamp and out-of-map rule included. So the two axes are treated apart, and within a bin the
samples that lean on the same pixel merge into one *tap*, a pixel with a weight::

    out[ph, pw] = sum_i y_weight[i] * sum_j x_weight[j] * features[y_pixel[i], x_pixel[j]]
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

LARGEST_GRID = 2**31

# For functions that only pass arrays on: counting references to them made taps 1.6 times slower.
uncounted = register_jitable(_nrt=False)
# For the innermost: as calls, each with two records of arrays, they made a bin 1.2 times slower.
inlined = register_jitable(_nrt=False, forceinline=True)


class Convention(NamedTuple):
    """How one system lays its sampling grid over a box.

    Every field is a number, so the record travels into kernels as it is. Lengths are in image
    pixels before scaling and in feature-map pixels after it.
    """

    shift_before: float = 0.0  # added to image coordinates before scaling
    shift_after: float = 0.0  # added to feature-map coordinates after scaling
    end_pixel: float = 0.0  # added to x2 and y2: 1 where a box includes its last pixel
    minimum_size: float = -math.inf  # a smaller box grows to this, in feature-map pixels
    floor_grid: bool = False  # adaptive grid: floor of the bin size, at least 1; else ceil
    round_image: bool = False  # image index to the nearest image; else truncated
    skip_lines: bool = False  # a box with x1 and x2 within 1e-3 of 0 pools zeros


TORCHVISION = Convention(minimum_size=1.0)
TORCHVISION_ALIGNED = Convention(shift_after=-0.5)
MINDSPORE_0 = Convention(minimum_size=1.0, floor_grid=True, round_image=True, skip_lines=True)
MINDSPORE_1 = Convention(end_pixel=1.0, floor_grid=True, round_image=True, skip_lines=True)


class Sampling(NamedTuple):
    """One call's geometry: the map, the output, the scale and the grid."""

    images: int
    height: int
    width: int
    output_height: int
    output_width: int
    scale_y: float
    scale_x: float
    samples_y: int  # per bin; <= 0: adaptive
    samples_x: int


class Axis(NamedTuple):
    """One box along one axis, in feature-map pixels."""

    start: float
    bin_size: float  # negative where the box's corners are swapped
    bins: int
    samples: int  # per bin
    length: int  # of the map


@register_jitable
def image_of(index, images, convention):
    """Return the image a RoI's first column names, or -1 when there is none."""
    T = type(index)
    if not (index >= T(0) and index < T(images)):
        return -1
    if not convention.round_image:
        return int(index)
    if index > T(images - 1):
        return -1
    # 7e-5 is MindSpore's own: it rounds rint(index + 7e-5).
    return int(index + T(0.5) + T(7e-5))


@register_jitable
def span(low, high, scale, convention):
    """Return where a box starts and how far it reaches, in feature-map pixels.

    The order of the operations is that of torchvision and MindSpore, which matters where the size
    falls on a whole number of pixels and decides the adaptive grid.
    """
    T = type(low)
    shift_before, shift_after = T(convention.shift_before), T(convention.shift_after)
    start = (low + shift_before) * scale + shift_after
    end = (high + T(convention.end_pixel) + shift_before) * scale + shift_after
    return start, max(end - start, T(convention.minimum_size))


@register_jitable
def samples_per_bin(bin_size, samples, floor_grid):
    """Return the grid of one axis, or -1 when the bin is not finite or the grid too large."""
    T = type(bin_size)
    if not abs(bin_size) < T(math.inf):
        return -1
    if samples > 0:
        return samples
    if not abs(bin_size) < T(LARGEST_GRID - 128):  # 128: the spacing of float32 there
        return -1
    whole = int(bin_size)
    if floor_grid:
        return max(whole, 1)
    return max(whole + 1 if T(whole) < bin_size else whole, 0)


@register_jitable
def axis_of(low, high, scale, bins, samples, length, convention, zero):
    """Lay one axis of a box over the map; ``samples == -1`` marks a box that cannot be pooled.

    The adaptive grid is decided in the type of `zero`, the accumulator: a size that is a whole
    number in float32 then chooses the same grid on every target and in every peer, while the
    sample positions keep the wider type of `low`.
    """
    G = type(zero)
    T = type(low)
    _, size = span(G(low), G(high), G(scale), convention)
    grid = samples_per_bin(size / G(bins), samples, convention.floor_grid)
    start, size = span(low, high, scale, convention)
    finite = abs(low) < T(math.inf) and abs(high) < T(math.inf)
    if not (finite and abs(start) < T(math.inf) and abs(size) < T(math.inf)):
        grid = -1
    return Axis(start, size / T(bins), bins, grid, length)


@register_jitable
def locate(rois, n, sampling, convention, zero):
    """Return the image and the two axes of RoI `n`; image -1 marks a row that cannot be pooled."""
    T = type(sampling.scale_y)
    x1, y1, x2, y2 = T(rois[n, 1]), T(rois[n, 2]), T(rois[n, 3]), T(rois[n, 4])
    image = image_of(T(rois[n, 0]), sampling.images, convention)
    y = axis_of(
        y1, y2, sampling.scale_y, sampling.output_height, sampling.samples_y,
        sampling.height, convention, zero,
    )  # fmt: skip
    x = axis_of(
        x1, x2, sampling.scale_x, sampling.output_width, sampling.samples_x,
        sampling.width, convention, zero,
    )  # fmt: skip
    if y.samples < 0 or x.samples < 0:
        image = -1
    if convention.skip_lines and abs(x1) < T(1e-3) and abs(x2) < T(1e-3):
        x = Axis(x.start, x.bin_size, x.bins, 0, x.length)
    return image, y, x


@register_jitable
def samples_inside(edge, step, samples, length):
    """Return a range of the samples that holds all inside the map, without visiting the others.

    It makes the work of a box bounded by the map, however large the box. One sample more is kept
    on each side, so that rounding here drops none.
    """
    T = type(edge)
    near, far = (T(-1) - edge) / step, (T(length) - edge) / step
    most = T(samples)
    first = min(max(min(near, far) - T(1.5), T(0)), most)
    last = min(max(max(near, far) + T(1.5), T(0)), most)
    return int(first), int(last)


@uncounted
def add_tap(pixels, weights, first, slot, pixel, weight):
    """Add to the taps ``first:slot`` of a bin, whose pixels ascend; return the new end.

    A pixel of weight zero is not read at all: an infinity there stays out of the bin.
    """
    if weight == 0:
        return slot
    if slot > first and pixels[slot - 1] == pixel:
        weights[slot - 1] += weight
        return slot
    if slot - 1 > first and pixels[slot - 2] == pixel:
        weights[slot - 2] += weight
        return slot
    pixels[slot] = pixel
    weights[slot] = weight
    return slot + 1


@uncounted
def axis_taps(axis, taps, row, slot):
    """Write the taps of every bin of an axis into a row of the table, from `slot` on."""
    T = type(axis.start)
    W = type(taps.weights[0])
    pixels, weights, bounds = taps.pixels, taps.weights, taps.bounds
    step = axis.bin_size / T(max(axis.samples, 1))
    share = T(1) / T(max(axis.samples, 1))
    bounds[row, 0] = slot
    for p in range(axis.bins):
        begin = slot
        edge = axis.start + T(p) * axis.bin_size
        first, last = 0, axis.samples
        if abs(axis.bin_size) > T(axis.length + 2):
            first, last = samples_inside(edge, step, axis.samples, axis.length)
        for k in range(first, last):
            i = k if step > T(0) else first + last - 1 - k
            position = edge + (T(i) + T(0.5)) * step
            if position >= T(-1) and position <= T(axis.length):
                position = max(position, T(0))
                pixel = min(int(position), axis.length - 1)
                beyond = position - T(pixel) if pixel < axis.length - 1 else T(0)
                slot = add_tap(pixels, weights, begin, slot, pixel, W((T(1) - beyond) * share))
                slot = add_tap(pixels, weights, begin, slot, pixel + 1, W(beyond * share))
        bounds[row, p + 1] = slot


class AxisTaps(NamedTuple):
    """The taps of a batch of RoIs along one axis."""

    pixels: np.ndarray  # (slots,) int32
    weights: np.ndarray  # (slots,) in the accumulator's type
    bounds: np.ndarray  # (rois, bins + 1): bin p of row n holds slots bounds[n, p : p + 2]


def tap_capacity(bins: int, samples: int, length: int) -> int:
    """Return how many taps the bins of one axis can have together.

    Two per sample; or, since bins lie side by side, each pixel of the map once and three more per
    bin: two where neighbours overlap and one for rounding at a bin's edge.
    """
    side_by_side = length + 3 * bins
    return min(2 * samples * bins, side_by_side) if samples > 0 else side_by_side


def empty_tables(empty, rois: int, sampling: Sampling, weight_type, slots: int):
    """Allocate what a batch of RoIs needs: as many of `rois` as fit `slots`, but at least one.

    Returns the image of each row, -1 where it cannot be pooled, and its `AxisTaps` in y and in x.
    `empty` is ``numpy.empty`` or the like of it on a device.
    """
    y_capacity = tap_capacity(sampling.output_height, sampling.samples_y, sampling.height)
    x_capacity = tap_capacity(sampling.output_width, sampling.samples_x, sampling.width)
    batch = min(rois, max(1, slots // (y_capacity + x_capacity)))

    def axis(capacity, bins):
        return AxisTaps(
            empty(batch * capacity, np.int32),
            empty(batch * capacity, weight_type),
            empty((batch, bins + 1), np.intp),
        )

    y = axis(y_capacity, sampling.output_height)
    x = axis(x_capacity, sampling.output_width)
    return empty(batch, np.intp), y, x


@register_jitable
def fill_row(images, y_taps, x_taps, row, rois, n, sampling, convention, zero):
    """Write the image and the taps of RoI `n` into a row of the tables."""
    image, y, x = locate(rois, n, sampling, convention, zero)
    images[row] = image
    if image >= 0:
        rows = images.shape[0]
        axis_taps(y, y_taps, row, row * (y_taps.pixels.shape[0] // rows))
        axis_taps(x, x_taps, row, row * (x_taps.pixels.shape[0] // rows))


class Taps(NamedTuple):
    """The taps of one bin along one axis: slots ``first:last`` of an axis' table."""

    pixels: np.ndarray
    weights: np.ndarray
    first: int
    last: int


@register_jitable
def pixel_span(taps, row, first_bin, last_bin):
    """Return the first pixel that bins ``first_bin:last_bin`` tap, and the one after the last."""
    low, high = 0, 0
    for p in range(first_bin, last_bin):
        first, last = taps.bounds[row, p], taps.bounds[row, p + 1]
        if first < last:
            below, above = np.intp(taps.pixels[first]), np.intp(taps.pixels[last - 1]) + 1
            low = below if high == 0 else min(low, below)
            high = max(high, above)
    return low, high


@inlined
def bin_taps(taps, row, p):
    """Return the taps of bin `p` of a row of the table."""
    # Unsigned: a signed index costs a wrap-around select at every load.
    first, last = np.uintp(taps.bounds[row, p]), np.uintp(taps.bounds[row, p + 1])
    return Taps(taps.pixels, taps.weights, first, last)
