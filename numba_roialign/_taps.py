"""Taps: which pixels the bins of a box read along an axis, and with which weights.

A bilinear weight factors into one number per axis, border clamp and out-of-map rule included, and
within a bin the samples that lean on the same pixel merge into one *tap*, a pixel with a weight::

    out[ph, pw] = sum_j x_weight[j] * sum_i y_weight[i] * features[y_pixel[i], x_pixel[j]]

Taps do not depend on the channel. They stand in tables, one row for each RoI of a batch. Beside
those of an average there are three kinds more: samples, which a maximum must not merge; slopes, how
the weights change when a corner of the box moves; and taps turned round, for each pixel the bins
that tap it, by which a gradient flows back.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ._geometry import clamp, compilable, grows, locate

# For functions that only pass arrays on: counting references to them made taps 1.6 times slower.
uncounted = compilable(_nrt=False)
# For the innermost: as calls, each with two records of arrays, they made a bin 1.2 times slower.
inlined = compilable(_nrt=False, forceinline=True)


class AxisTaps(NamedTuple):
    """The taps of a batch of RoIs along one axis."""

    pixels: np.ndarray  # (slots,) int32
    weights: np.ndarray  # (slots,) in the accumulator's type
    bounds: np.ndarray  # (rois, bins + 1): bin p of row n holds slots bounds[n, p : p + 2]


class AxisSamples(NamedTuple):
    """The samples of a batch of RoIs along one axis: those inside the map, two taps for each.

    The second has weight 0 where the sample lies on a pixel, and must not be read then.
    """

    pixels: np.ndarray
    weights: np.ndarray
    bounds: np.ndarray
    firsts: np.ndarray  # (rois, bins): the number in its bin of the first sample inside the map
    grids: np.ndarray  # (rois,): samples per bin, those outside included


class Taps(NamedTuple):
    """The taps of one bin along one axis: slots ``first:last`` of an axis' table."""

    pixels: np.ndarray
    weights: np.ndarray
    first: int
    last: int


def tap_capacity(bins: int, samples: int, length: int, spare: int = 0) -> int:
    """Return how many taps the bins of one axis can have together, and some to spare for each.

    Two per sample; or, since bins lie side by side, each pixel of the map once and three more per
    bin: two where neighbours overlap and one for rounding at a bin's edge.
    """
    side_by_side = length + 3 * bins
    taps = min(2 * samples * bins, side_by_side) if samples > 0 else side_by_side
    return taps + spare * bins


def sample_capacity(bins: int, samples: int, length: int) -> int:
    """Return how many taps the samples of one axis can have together.

    Adaptive samples lie more than half a pixel apart, or there is one per bin; they lie inside
    ``[-1, length]``, and one more per bin allows for rounding at a bin's edge. Only where float32
    makes the grid of a box some 1e9 pixels off are there more, and those are left out.
    """
    return 2 * samples * bins if samples > 0 else 2 * (2 * (length + 1) + 2 * bins)


def empty_taps(empty, rois: int, bins: int, capacity: int, weight_type) -> AxisTaps:
    """Allocate a table of taps; `empty` is ``numpy.empty`` or the like of it on a device."""
    slots = rois * capacity
    return AxisTaps(
        empty(slots, np.int32), empty(slots, weight_type), empty((rois, bins + 1), np.intp)
    )


def empty_samples(empty, rois: int, bins: int, capacity: int, weight_type) -> AxisSamples:
    """Allocate a table of samples."""
    taps = empty_taps(empty, rois, bins, capacity, weight_type)
    return AxisSamples(*taps, empty((rois, bins), np.intp), empty(rois, np.intp))


@compilable()
def samples_inside(edge, step, samples, length):
    """Return a range of the samples that holds all inside the map, without visiting the others.

    It makes the work of a box bounded by the map, however large the box. One sample more is kept
    on each side, so that rounding here drops none.
    """
    T = type(edge)
    near, far = (T(-1) - edge) / step, (T(length) - edge) / step
    if far < near:
        near, far = far, near
    first = clamp(near - T(1.5), T(0), T(samples))
    last = clamp(far + T(1.5), T(0), T(samples))
    return np.intp(first), np.intp(last)


@uncounted
def samples_of(axis, p, step):
    """Return where bin `p` starts, and a range of its samples that holds all inside the map."""
    T = type(axis.start)
    edge = axis.start + T(p) * axis.bin_size
    first, last = 0, axis.samples
    if abs(axis.bin_size) > T(axis.length + 2):
        first, last = samples_inside(edge, step, axis.samples, axis.length)
    return edge, first, last


@uncounted
def pixel_below(position, length):
    """Return the pixel below a sample and how far it lies beyond; -1 outside the map."""
    T = type(position)
    if not (position >= T(-1) and position <= T(length)):
        return -1, T(0)
    if position < T(0):
        return 0, T(0)
    pixel = np.intp(position)
    return (pixel, position - T(pixel)) if pixel < length - 1 else (length - 1, T(0))


@inlined
def new_tap(pixels, weights, slot, stop, pixel, weight):
    """Write a tap at a slot, and return where the next goes.

    None is written at `stop`, where the row of the table ends: float32 positions of a box that
    starts a million pixels off are so coarse that its bins can overlap.
    """
    if slot == stop:
        return slot
    pixels[np.uintp(slot)] = pixel
    weights[np.uintp(slot)] = weight
    return slot + 1


@inlined
def add_sample(pixels, weights, first, slot, stop, pixel, near, far):
    """Add a sample to the taps ``first:slot`` of a bin, whose pixels ascend; return the new end.

    `near` is the weight of a pixel and `far` that of the next. A pixel of weight zero is not read
    at all: an infinity there stays out of the bin.
    """
    # Unsigned, without the selects of a signed index, and with one pixel to compare `far` with,
    # filling tables takes 0.75 of the time.
    if near != 0:
        if slot > first and pixels[np.uintp(slot - 1)] == pixel:
            weights[np.uintp(slot - 1)] += near
        elif slot - 1 > first and pixels[np.uintp(slot - 2)] == pixel:
            weights[np.uintp(slot - 2)] += near
        else:
            slot = new_tap(pixels, weights, slot, stop, pixel, near)
    if far != 0:
        if slot > first and pixels[np.uintp(slot - 1)] == pixel + 1:
            weights[np.uintp(slot - 1)] += far
        else:
            slot = new_tap(pixels, weights, slot, stop, pixel + 1, far)
    return slot


@inlined
def add_tap(pixels, weights, slot, stop, pixel, weight):
    """As `new_tap`, unless the weight is zero."""
    return new_tap(pixels, weights, slot, stop, pixel, weight) if weight != 0 else slot


@inlined
def bin_of_taps(axis, pixels, weights, p, slot, stop):
    """Write the taps of bin `p` of an axis into slots ``slot:stop``; return their end."""
    T = type(axis.start)
    W = type(weights[0])
    samples = T(axis.samples) if axis.samples > 0 else T(1)
    step, share = axis.bin_size / samples, T(1) / samples
    edge, first, last = samples_of(axis, p, step)
    # Two pixels that further samples may lean on. Kept here and not in the table, a table takes 0.8
    # of the time on a device (simulated), where threads of other bins wait for each branch of one.
    here, weight, next_weight = -1, W(0), W(0)
    for k in range(first, last):
        i = k if step > T(0) else first + last - 1 - k
        pixel, beyond = pixel_below(edge + (T(i) + T(0.5)) * step, axis.length)
        if pixel >= 0:
            if pixel != here:
                slot = add_tap(pixels, weights, slot, stop, here, weight)
                if pixel != here + 1:
                    slot = add_tap(pixels, weights, slot, stop, here + 1, next_weight)
                    next_weight = W(0)
                here, weight, next_weight = pixel, next_weight, W(0)
            weight += W((T(1) - beyond) * share)
            next_weight += W(beyond * share)
    slot = add_tap(pixels, weights, slot, stop, here, weight)
    return add_tap(pixels, weights, slot, stop, here + 1, next_weight)


@compilable()
def tap_of_sample(axis, p, i, is_second, zero):
    """Return one of the two taps of sample `i` of bin `p`: a pixel, and its weight in the bin.

    The weight has the type of `zero`, and is zero where there is no such tap.
    """
    T = type(axis.start)
    W = type(zero)
    if i >= axis.samples:
        return 0, W(0)
    samples = T(axis.samples)
    step, share = axis.bin_size / samples, T(1) / samples
    edge = axis.start + T(p) * axis.bin_size
    pixel, beyond = pixel_below(edge + (T(i) + T(0.5)) * step, axis.length)
    if pixel < 0:
        return 0, W(0)
    if is_second:
        return pixel + 1, W(beyond * share)
    return pixel, W((T(1) - beyond) * share)


@uncounted
def axis_taps(axis, taps, row, slot, stop):
    """Write the taps of every bin of an axis into slots ``slot:stop`` of the table."""
    taps.bounds[row, 0] = slot
    for p in range(axis.bins):
        slot = bin_of_taps(axis, taps.pixels, taps.weights, p, slot, stop)
        taps.bounds[row, p + 1] = slot


@compilable()
def first_pixel(axis, p):
    """Return the pixel in which bin `p` of an axis starts, or the map's nearest to that."""
    T = type(axis.start)
    edge = axis.start + T(p) * axis.bin_size
    return np.intp(clamp(edge, T(0), T(axis.length - 1)))


@compilable()
def first_slot(axis, p, capacity, spare):
    """Return where the slots of bin `p` start, if each bin must know that without the others.

    There are `capacity` slots, as many as `tap_capacity` says. A bin taps the pixels that it
    covers, one more, and for rounding another.
    """
    if (2 * axis.samples + spare) * axis.bins <= capacity:
        return (2 * axis.samples + spare) * p
    return abs(first_pixel(axis, p) - first_pixel(axis, 0)) + (3 + spare) * p


@uncounted
def pad_bin(pixels, weights, first, slot, multiple):
    """Split the last tap of a bin until their number is a multiple, a power of two; return the end.

    Halves are exact, and no pixel is read that the bin does not tap: it could be infinite.
    """
    while first < slot and (slot - first) & (multiple - 1):
        half = weights[slot - 1] * type(weights[0])(0.5)
        weights[slot - 1] = weights[slot] = half
        pixels[slot] = pixels[slot - 1]
        slot += 1
    return slot


@uncounted
def axis_samples(axis, samples, row, slot, stop):
    """Write the samples of every bin of an axis into slots ``slot:stop`` of the table."""
    T = type(axis.start)
    W = type(samples.weights[0])
    pixels, weights, bounds = samples.pixels, samples.weights, samples.bounds
    step = axis.bin_size / (T(axis.samples) if axis.samples > 0 else T(1))
    samples.grids[row] = axis.samples
    bounds[row, 0] = slot
    for p in range(axis.bins):
        begin = slot
        edge, first, last = samples_of(axis, p, step)
        samples.firsts[row, p] = 0
        for i in range(first, last):
            pixel, beyond = pixel_below(edge + (T(i) + T(0.5)) * step, axis.length)
            if pixel >= 0 and slot + 1 < stop:
                if slot == begin:
                    samples.firsts[row, p] = i
                pixels[slot], weights[slot] = pixel, W(T(1) - beyond)
                pixels[slot + 1] = min(pixel + 1, axis.length - 1)
                weights[slot + 1] = W(beyond)
                slot += 2
        bounds[row, p + 1] = slot


@uncounted
def axis_slopes(axis, scale, corner, grown, taps, row, slot, stop):
    """Write as taps how the weights change when a corner of the box moves by an image pixel.

    `corner` is 0 for the lower end of the axis and 1 for the upper; a box that has `grown` to its
    least size moves with its lower end alone. At a kink, a sample on a pixel, it is the slope
    towards larger coordinates; a sample that is clamped to the map has none, and neither has the
    jump of a sample that leaves the map.
    """
    T = type(axis.start)
    W = type(taps.weights[0])
    pixels, weights, bounds = taps.pixels, taps.weights, taps.bounds
    samples = T(axis.samples) if axis.samples > 0 else T(1)
    step, share = axis.bin_size / samples, scale / samples
    bounds[row, 0] = slot
    for p in range(axis.bins):
        begin = slot
        edge, first, last = samples_of(axis, p, step)
        for k in range(first, last):
            i = k if step > T(0) else first + last - 1 - k
            position = edge + (T(i) + T(0.5)) * step
            pixel, _ = pixel_below(position, axis.length)
            if pixel >= 0 and pixel < axis.length - 1 and position >= T(0):
                # Where in the box the sample lies, from 0 to 1: it moves by so much of its end.
                part = (T(p) + (T(i) + T(0.5)) / samples) / T(axis.bins)
                if grown:
                    part = T(0)
                slope = W((part if corner else T(1) - part) * share)
                slot = add_sample(pixels, weights, begin, slot, stop, pixel, -slope, slope)
        bounds[row, p + 1] = slot


@uncounted
def pixel_counts(taps, ends, row, bins):
    """Prepare to turn a row of taps round: return the first pixel tapped, and the end.

    Afterwards ``ends[row, u + 1]`` is the slot where the bins of the `u`-th of these pixels begin.
    """
    begin, end = taps.bounds[row, 0], taps.bounds[row, bins]
    low, high = 0, 0
    for slot in range(begin, end):
        if taps.weights[slot] != 0:
            pixel = np.intp(taps.pixels[slot])
            low = pixel if high == 0 or pixel < low else low
            high = pixel + 1 if high <= pixel else high
    for u in range(high - low + 2):
        ends[row, u] = 0
    for slot in range(begin, end):
        if taps.weights[slot] != 0:
            ends[row, np.intp(taps.pixels[slot]) - low + 2] += 1
    ends[row, 0] = ends[row, 1] = begin
    for u in range(2, high - low + 2):
        ends[row, u] += ends[row, u - 1]
    return low, high


@uncounted
def turn_taps(taps, turned, row, bins, codes=None):
    """Write for each pixel which bins tap it; return the first such pixel, and the end.

    `turned` is a table in which pixels stand in for bins and bins, ascending, for pixels; its
    bounds have two columns more than the map has pixels. For samples, `codes` holds twice the
    sample's number, and 1 more at the second of its two pixels.
    """
    low, high = pixel_counts(taps, turned.bounds, row, bins)
    for p in range(bins):
        begin = taps.bounds[row, p]
        for slot in range(begin, taps.bounds[row, p + 1]):
            if taps.weights[slot] != 0:
                u = np.intp(taps.pixels[slot]) - low + 1
                to = turned.bounds[row, u]
                turned.pixels[to], turned.weights[to] = p, taps.weights[slot]
                if codes is not None:
                    codes[to] = 2 * taps.firsts[row, p] + slot - begin
                turned.bounds[row, u] = to + 1
    return low, high


@uncounted
def slots_of(taps, row):
    """Return the slots that a row of the table has."""
    capacity = taps.pixels.shape[0] // taps.bounds.shape[0]
    return row * capacity, (row + 1) * capacity


@compilable()
def fill_taps(images, y_taps, x_taps, row, rois, n, sampling, convention, zero):
    """Write the image and the taps of RoI `n` into a row of the tables."""
    image, y, x = locate(rois, n, sampling, convention, zero)
    images[row] = image
    if image >= 0:
        axis_taps(y, y_taps, row, *slots_of(y_taps, row))
        axis_taps(x, x_taps, row, *slots_of(x_taps, row))


@compilable()
def fill_samples(images, y_samples, x_samples, row, rois, n, sampling, convention, zero):
    """Write the image and the samples of RoI `n` into a row of the tables."""
    image, y, x = locate(rois, n, sampling, convention, zero)
    images[row] = image
    if image >= 0:
        axis_samples(y, y_samples, row, *slots_of(y_samples, row))
        axis_samples(x, x_samples, row, *slots_of(x_samples, row))


@compilable()
def fill_slopes(images, y_taps, x_taps, row, rois, n, sampling, convention, zero, corner):
    """As `fill_taps`, with slopes on the axis of a corner: x1, y1, x2 or y2, from 0 on."""
    T = type(sampling.scale_y)
    image, y, x = locate(rois, n, sampling, convention, zero)
    images[row] = image
    if image >= 0:
        y_slots, x_slots = slots_of(y_taps, row), slots_of(x_taps, row)
        if corner % 2:
            scale = sampling.scale_y
            grown = grows(T(rois[n, 2]), T(rois[n, 4]), scale, convention, zero)
            axis_slopes(y, scale, corner // 2, grown, y_taps, row, *y_slots)
            axis_taps(x, x_taps, row, *x_slots)
        else:
            scale = sampling.scale_x
            grown = grows(T(rois[n, 1]), T(rois[n, 3]), scale, convention, zero)
            axis_taps(y, y_taps, row, *y_slots)
            axis_slopes(x, scale, corner // 2, grown, x_taps, row, *x_slots)


@compilable()
def pixel_span(taps, row, first_bin, last_bin):
    """Return the first pixel that bins ``first_bin:last_bin`` tap, and the one after the last.

    Of samples, which run down where the box's corners are swapped, the span is then short by one
    pixel at each end.
    """
    low, high = 0, 0
    for p in range(first_bin, last_bin):
        first, last = taps.bounds[row, p], taps.bounds[row, p + 1]
        if first < last:
            one, other = taps.pixels[np.uintp(first)], taps.pixels[np.uintp(last - 1)]
            one, other = np.intp(one), np.intp(other)
            if other < one:
                one, other = other, one
            low = one if high == 0 or one < low else low
            high = other + 1 if high <= other else high
    return low, high


@inlined
def bin_taps(taps, row, p):
    """Return the taps of bin `p` of a row of the table."""
    # Unsigned: a signed index costs a wrap-around select at every load.
    first, last = np.uintp(taps.bounds[row, p]), np.uintp(taps.bounds[row, p + 1])
    return Taps(taps.pixels, taps.weights, first, last)
