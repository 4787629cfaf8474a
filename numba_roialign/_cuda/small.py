"""The average of a small call on a device, one of few results, whose time is waiting.

Neighbouring threads have neighbouring taps of a row of bins, two for each sample, so that what they
read of a row of pixels lies side by side. Each tap is found from the box by a thread of its own: no
taps are merged, and a call waits twice, for the box and for the pixels. Threads meet in shared
memory once for the taps, and once for the sums of a bin.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import cuda

from .. import _kernels, _taps
from .average import WARP, ceil_div, narrowed_source
from .box_tables import locate_axis, locate_image
from .indices import split, this_thread
from .launches import MOST_BLOCKS, bounded, configured

tap_of_sample = cuda.jit(device=True)(_taps.tap_of_sample)
element_at = cuda.jit(device=True)(_kernels.element_at)

MOST_SAMPLES = 2  # of a bin and axis
TAPS = 2 * MOST_SAMPLES  # of a bin and axis
OWN = 4  # channels of a thread
VALUES = TAPS * OWN  # that a thread reads
LANES = WARP  # threads side by side, at most: those of the taps of some bins
MOST_ROWS = 8  # of bins, of a block
SLOTS = WARP + TAPS * MOST_ROWS  # for the taps of a block's columns, and then of its rows
SUMS = OWN * MOST_ROWS * WARP  # of a block
# Results of a call. Of more, those that read a row once for several bins have enough to do.
MOST_RESULTS = 1 << 18


class Parts(NamedTuple):
    """How blocks divide the bins of a box, and threads the taps of a bin. In 32 bits."""

    rows: int  # of bins, of a part
    columns: int
    along: int  # parts side by side
    taps: int  # of the columns of a bin: two or four; its rows have four, but some without weight


@cuda.jit(device=True)
def first_bin(parts):
    """Return the row and the column of the first bin of this block's part."""
    down, along = split(cuda.blockIdx.z, parts.along)
    return np.uint32(down * parts.rows), np.uint32(along * parts.columns)


@cuda.jit(device=True)
def find_taps(states, pixels, weights, parts, rois, n, sampling, convention, zero):
    """Find the taps of a part, one by a thread: those of its columns, and then of its rows.

    `states` of the axes are whether the box can be pooled.
    """
    item, threads = this_thread()
    across = np.uint32(cuda.blockDim.x)
    while item < np.uint32(across + np.uint32(parts.rows * TAPS)):
        is_y = item >= across
        # Before what else there is to find out: divisions take 60 to 80 cycles each.
        axis = locate_axis(rois, n, is_y, sampling, convention, zero)
        row, column = first_bin(parts)
        taps, place, first, slot = parts.taps, item, column, item
        if is_y:
            taps, place, first = np.uint32(TAPS), np.uint32(item - across), row
            slot = np.uint32(WARP + place)
        p, tap = split(place, taps)
        sample, is_second = np.intp(tap >> np.uint32(1)), (tap & np.uint32(1)) != 0
        axis_bin = np.intp(np.uint32(first + p))
        pixel, weight = tap_of_sample(axis, axis_bin, sample, is_second, zero)
        if not is_y and p >= parts.columns:
            weight = zero  # a thread beside the last bin, which so reads nothing
        pixels[slot], weights[slot] = pixel, weight
        if place == 0:
            states[np.uint32(is_y)] = axis.samples >= 0
        item = np.uint32(item + threads)


@cuda.jit(device=True)
def sum_rows(features, strides, image, channel, count, is_valid, pixels, weights, sums, zero):
    """Sum what a thread's tap reads in the rows of a bin, for `count` channels."""
    values, ys = cuda.local.array(VALUES, type(zero)), cuda.local.array(TAPS, type(zero))
    lane, row = np.uint32(cuda.threadIdx.x), np.uint32(cuda.threadIdx.y)
    weight, Index = weights[lane], type(strides.channel)
    start = np.uintp(image) * np.uintp(strides.image)
    start += np.uintp(channel) * np.uintp(strides.channel)
    start += np.uintp(Index(strides.column * Index(pixels[lane])))
    for r in range(TAPS):
        slot = np.uint32(WARP + row * TAPS + np.uint32(r))
        ys[r] = weights[slot]
        line = start + np.uintp(Index(strides.row * Index(pixels[slot])))
        is_tapped = is_valid and weight != 0 and ys[r] != 0
        for k in range(OWN):
            values[r * OWN + k] = zero
            if is_tapped & (k < count):  # one condition: a load with a predicate, not a branch
                values[r * OWN + k] = features[line + np.uintp(Index(strides.channel * Index(k)))]
    for k in range(OWN):
        total = zero if is_valid else zero * type(zero)(math.nan)
        for r in range(TAPS):
            total += ys[r] * values[r * OWN + k]
        sums[np.uint32((row * OWN + np.uint32(k)) * WARP + lane)] = total * weight


@cuda.jit(device=True)
def write_bins(sums, parts, n, channel, count, sampling, out, strides, zero):
    """Write a row of bins, each the sum of what its threads have, for `count` channels."""
    row, (first_row, first_column) = np.uint32(cuda.threadIdx.y), first_bin(parts)
    ph, item = np.uint32(first_row + row), np.uint32(cuda.threadIdx.x)
    columns = min(parts.columns, np.uint32(np.uint32(sampling.output_width) - first_column))
    while ph < np.uint32(sampling.output_height) and item < np.uint32(count * columns):
        k, column = split(item, columns)
        slot, total = np.uint32((row * OWN + k) * WARP + column * parts.taps), zero
        for t in range(TAPS):
            if t < parts.taps:
                total += sums[np.uint32(slot + np.uint32(t))]
        out[element_at(strides, n, channel + k, ph, first_column + column)] = total
        item = np.uint32(item + np.uint32(cuda.blockDim.x))


@cuda.jit(**bounded(WARP * MOST_ROWS, 4))
def schedule_small(
    features, strides, rois, sampling, convention, parts, zero, out, out_strides, channels
):
    """Pool RoIs: some channels of a part of one by this block, a row of threads a row of bins."""
    number = cuda.local.array(1, type(zero))  # a type by way of an array: the simulator wants it
    images = cuda.shared.array(1, np.intp)  # a line for each array: the simulator tells them so
    states = cuda.shared.array(2, np.uint32)
    pixels = cuda.shared.array(SLOTS, np.uint32)
    weights = cuda.shared.array(SLOTS, number.dtype)
    sums = cuda.shared.array(SUMS, number.dtype)
    n, last = np.intp(cuda.blockIdx.x), cuda.blockDim.y - 1
    find_taps(states, pixels, weights, parts, rois, n, sampling, convention, zero)
    if cuda.threadIdx.x == 0 and cuda.threadIdx.y == last:  # of a warp that finds no taps, if any
        images[0] = locate_image(rois, n, sampling, convention)
    cuda.syncthreads()
    image, channel = images[0], np.uint32(cuda.blockIdx.y * OWN)
    is_valid = image >= 0 and states[0] > 0 and states[1] > 0
    count = min(np.uint32(OWN), np.uint32(np.uint32(channels) - channel))
    image = max(image, 0)
    sum_rows(features, strides, image, channel, count, is_valid, pixels, weights, sums, zero)
    cuda.syncthreads()
    write_bins(sums, parts, n, channel, count, sampling, out, out_strides, zero)


def is_small(case):
    """Say whether a call has few results, of bins with few samples."""
    sampling = case.sampling
    results = case.rois * case.channels * sampling.output_height * sampling.output_width
    samples = sampling.samples_y, sampling.samples_x
    return (
        min(samples) > 0
        and max(samples) <= MOST_SAMPLES
        and results <= MOST_RESULTS
        and case.channels <= OWN * MOST_BLOCKS
    )


class Small:
    """The average of a small call: how blocks divide its boxes."""

    def __init__(self, rois, geometry, queue, case):
        self.rois, self.queue, self.case = rois, queue, case
        self.sampling, self.convention, self.zero = geometry
        height, width = self.sampling.output_height, self.sampling.output_width
        taps = 2 * self.sampling.samples_x
        down, along = ceil_div(height, MOST_ROWS), ceil_div(width, LANES // taps)
        rows, columns = ceil_div(height, down), ceil_div(width, along)
        self.parts = Parts(*map(np.uint32, (rows, columns, along, taps)))
        self.blocks = rois.shape[0], ceil_div(case.channels, OWN), down * along
        across = columns * taps
        self.threads = LANES if across > LANES // 2 else across, rows

    def pool(self, source, target):
        """Pool all boxes; `source` and `target` are a flat array and its strides each."""
        source = narrowed_source(source, self.case)
        configured(schedule_small, self.blocks, self.threads, self.queue)(
            *source, self.rois, self.sampling, self.convention, self.parts, self.zero,
            *target, self.case.channels,
        )  # fmt: skip
