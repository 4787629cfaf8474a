"""Sampling geometry: from a box to its bins and samples.

Everything RoIAlign knows about coordinates is here, as plain Python on scalars. Each target
compiles these functions for itself; the coordinate type is whatever the caller passes
(float64 on the CPU, float32 or float64 on CUDA), and ``T = type(x)`` keeps the constants in it, so
that a float32 kernel holds no float64 instruction.

The samples of a box form a tensor product, so its two axes are treated apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
from numba import types
from numba.extending import overload, register_jitable

# Adaptive samples per bin and axis, none of which may be more: a sample's number in its bin, times
# four for its corners, then fits an int64.
LARGEST_GRID = 2**30


Function = TypeVar("Function", bound=Callable)


def compilable(**options: bool) -> Callable[[Function], Function]:
    """Let compiled code call a function, as `numba.extending.register_jitable` does.

    Without the C wrapper that nobody calls: a first call compiles its tables in 2.8 s instead of 4.
    """
    return register_jitable(no_cfunc_wrapper=True, **options)


class Convention(NamedTuple):
    """How one system lays its sampling grid over a box.

    With ``s`` the spatial scale, a box starts at ``(x1 + shift_before) * s + shift_after`` and
    reaches as far as ``(x2 + end_pixel + shift_before) * s + shift_after``, but at least
    `minimum_size`. Lengths are in image pixels before scaling and in feature-map pixels after it.

    Every field is a number, so the record travels into kernels as it is. `CONVENTIONS` has those
    in use by name.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_roialign import Convention, roi_align
    >>> features = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    >>> inclusive = Convention(end_pixel=1.0)
    >>> rois = np.array([[0, 0, 0, 1, 1]], np.float32)
    >>> roi_align(features, rois, 1, convention=inclusive)
    array([[[[5.]]]], dtype=float32)
    """

    shift_before: float = 0.0  # added to image coordinates before scaling
    shift_after: float = 0.0  # added to feature-map coordinates after scaling
    end_pixel: float = 0.0  # added to x2 and y2: 1 where a box includes its last pixel
    minimum_size: float = -math.inf  # a smaller box grows to this, in feature-map pixels
    floor_grid: bool = False  # adaptive grid: floor of the bin size, at least 1; else ceil
    round_image: bool = False  # image index to the nearest image; else truncated
    skip_lines: bool = False  # a box with x1 and x2 within 1e-3 of 0 pools zeros


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
    most_samples: int  # of an adaptive grid, per bin and axis


class Axis(NamedTuple):
    """One box along one axis, in feature-map pixels."""

    start: float
    bin_size: float  # negative where the box's corners are swapped
    bins: int
    samples: int  # per bin
    length: int  # of the map


def real(number):
    """Return an integer as a float64, and another number as it is."""
    return float(number) if isinstance(number, (int, np.integer)) else number


@overload(real)
def _real(number):
    if isinstance(number, types.Integer):
        return lambda number: float(number)
    return lambda number: number


@compilable()
def clamp(number, low, high):
    """Return the nearest number from `low` to `high`, and `low` for a NaN.

    Numba compiles `min` and `max` anew for each pair of types, of constants apart, and for each
    set of options: 16 functions of a first call's tables, 0.02 s each.
    """
    if not number > low:
        return low
    return number if number < high else high


@compilable()
def image_of(index, images, convention):
    """Return the image a RoI's first column names, or -1 when there is none."""
    T = type(index)
    if not (index >= T(0) and index < T(images)):
        return -1
    if not convention.round_image:
        return np.intp(index)
    if index > T(images - 1):
        return -1
    # 7e-5 is MindSpore's own: it rounds rint(index + 7e-5).
    return np.intp(index + T(0.5) + T(7e-5))


@compilable()
def ends_of(low, high, scale, convention, zero):
    """Return where a box starts and ends along an axis, in feature-map pixels.

    The order of the operations is that of torchvision and MindSpore, which matters where the size
    falls on a whole number of pixels and decides the adaptive grid. CUDA fuses a product with what
    is added to it, unrounded: here that is `zero`, with which the sum is the rounded product.
    """
    T = type(low)
    shift_before, shift_after = T(convention.shift_before), T(convention.shift_after)
    start = ((low + shift_before) * scale + T(zero)) + shift_after
    end = ((high + T(convention.end_pixel) + shift_before) * scale + T(zero)) + shift_after
    return start, end


@compilable()
def span(low, high, scale, convention, zero):
    """Return where a box starts and how far it reaches, in feature-map pixels."""
    start, end = ends_of(low, high, scale, convention, zero)
    size, least = end - start, type(low)(convention.minimum_size)
    return start, least if size < least else size


@compilable()
def grows(low, high, scale, convention, zero):
    """Say whether a box is smaller than the least size, to which it grows at its upper end."""
    start, end = ends_of(low, high, scale, convention, zero)
    return end - start < type(low)(convention.minimum_size)


@compilable()
def samples_per_bin(bin_size, samples, most, floor_grid):
    """Return the grid of one axis, or -1 when the bin is not finite or the grid too large."""
    T = type(bin_size)
    if not abs(bin_size) < T(math.inf):
        return -1
    if samples > 0:
        return samples
    if most >= LARGEST_GRID and abs(bin_size) >= T(LARGEST_GRID):
        return -1
    size = clamp(bin_size, T(0), T(most))
    whole = np.intp(size)
    if floor_grid:
        least = np.intp(1)
        return clamp(whole, least, most)
    grid = whole + 1 if T(whole) < size else whole
    return grid if grid < most else most


@compilable()
def axis_of(low, high, scale, bins, samples, most, length, convention, zero):
    """Lay one axis of a box over the map; ``samples == -1`` marks a box that cannot be pooled.

    That, and the adaptive grid, are decided in the type of `zero`, the accumulator: a size that is
    a whole number in float32 then chooses the same grid on every target and in every peer, while
    the sample positions keep the wider type of `low`.
    """
    G = type(zero)
    T = type(low)
    start, size = span(G(low), G(high), G(scale), convention, zero)
    grid = samples_per_bin(size / G(bins), samples, most, convention.floor_grid)
    finite = abs(G(low)) < G(math.inf) and abs(G(high)) < G(math.inf)
    if not (finite and abs(start) < G(math.inf)):
        grid = -1
    start, size = span(low, high, scale, convention, zero)
    return Axis(start, size / T(bins), bins, grid, length)


@compilable()
def skips(x1, x2, convention):
    """Say whether a convention pools zeros from a box, whatever else the box is."""
    T = type(x1)
    return convention.skip_lines and abs(x1) < T(1e-3) and abs(x2) < T(1e-3)


@compilable()
def locate_image(rois, n, sampling, convention):
    """Return the image that RoI `n` names, or -1 when there is none."""
    T = type(sampling.scale_y)
    return image_of(T(rois[n, 0]), sampling.images, convention)


@compilable()
def locate(rois, n, sampling, convention, zero):
    """Return the image and the two axes of RoI `n`; image -1 marks a row that cannot be pooled."""
    T = type(sampling.scale_y)
    x1, y1, x2, y2 = T(rois[n, 1]), T(rois[n, 2]), T(rois[n, 3]), T(rois[n, 4])
    image = locate_image(rois, n, sampling, convention)
    y = axis_of(
        y1, y2, sampling.scale_y, sampling.output_height, sampling.samples_y,
        sampling.most_samples, sampling.height, convention, zero,
    )  # fmt: skip
    x = axis_of(
        x1, x2, sampling.scale_x, sampling.output_width, sampling.samples_x,
        sampling.most_samples, sampling.width, convention, zero,
    )  # fmt: skip
    if y.samples < 0 or x.samples < 0:
        image = -1
    if skips(x1, x2, convention):
        x = Axis(x.start, x.bin_size, x.bins, 0, x.length)
    return image, y, x


@compilable()
def locate_axis(rois, n, is_y, sampling, convention, zero):
    """As `locate`, of one axis alone, which has -1 samples where the row cannot be pooled."""
    T = type(sampling.scale_y)
    column, scale = 1, sampling.scale_x
    bins, samples, length = sampling.output_width, sampling.samples_x, sampling.width
    if is_y:
        column, scale = 2, sampling.scale_y
        bins, samples, length = sampling.output_height, sampling.samples_y, sampling.height
    low, high = T(rois[n, column]), T(rois[n, column + 2])
    axis = axis_of(low, high, scale, bins, samples, sampling.most_samples, length, convention, zero)
    if not is_y and axis.samples >= 0 and skips(low, high, convention):
        axis = Axis(axis.start, axis.bin_size, axis.bins, 0, axis.length)
    return axis
