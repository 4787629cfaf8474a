"""The average of a small call on a device, one of few results, whose time is waiting.

Neighbouring threads have neighbouring taps of a row of bins, two for each sample, so that what they
read of a row of pixels lies side by side. Each finds its tap from the box itself, without a table,
and waits twice: for the box, and for the pixels. A few threads beside find the taps of the rows.
Threads meet in shared memory once for these, and once for the sums of a bin.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import cuda

from .. import _kernels, _taps
from .box_tables import locate_axis, locate_image
from .indices import narrowed_within, split
from .launches import MOST_BLOCKS, bounded, configured

tap_of = cuda.jit(device=True)(_taps.tap_of)
element_at = cuda.jit(device=True)(_kernels.element_at)

MOST_SAMPLES = 2  # of a bin and axis
TAPS = 2 * MOST_SAMPLES  # of a bin and axis
OWN = 4  # channels of a thread
WARP = 32  # threads side by side: for the taps of some bins, and those of their rows
MOST_ROWS = 8  # of bins, of a block
MOST_THREADS = 256  # of a block, of which the registers of four must fit
# Results of a call. Of more, those that read a row once for several bins have enough to do.
MOST_RESULTS = 1 << 18
VALUES = TAPS * OWN  # that a thread reads
SLOTS = TAPS * MOST_ROWS  # for the taps of a block's rows
SUMS = OWN * MOST_ROWS * WARP  # of a block
NO_ROW = np.uint32(0xFFFFFFFF)


class Parts(NamedTuple):
    """How blocks divide the bins of a box, and threads the taps of a bin. In 32 bits."""

    rows: int  # of bins, of a part
    columns: int
    along: int  # parts side by side
    taps_y: int  # of a bin
    taps_x: int


@cuda.jit(device=True)
def bin_of(lane, taps):
    """Return whose tap a thread has, and which: one of two or of four."""
    shift = np.uint32(taps >> np.uint32(1))
    return np.uint32(lane >> shift), np.uint32(lane & np.uint32(taps - np.uint32(1)))


@cuda.jit(device=True)
def read_rows(features, start, strides, count, pixels, weights, first, taps, values):
    """Read a column of pixels in the rows of `taps` slots from `first` on, of `count` channels."""
    Index = type(strides.channel)
    for r in range(TAPS):
        slot = np.uint32(first + np.uint32(r))
        if r < taps and weights[slot] != 0:
            line = start + np.uintp(Index(strides.row * Index(pixels[slot])))
            for k in range(OWN):
                if k < count:
                    hop = Index(strides.channel * Index(k))
                    values[r * OWN + k] = features[line + np.uintp(hop)]


@cuda.jit(**bounded(MOST_THREADS, 4))
def schedule_small(
    features, strides, rois, sampling, convention, parts, zero, out, out_strides, channels
):
    """Pool RoIs: some channels of a part of one by this block, a row of threads a row of bins."""
    values = cuda.local.array(VALUES, type(zero))
    pixels = cuda.shared.array(SLOTS, np.uint32)
    weights = cuda.shared.array(SLOTS, values.dtype)
    sums = cuda.shared.array(SUMS, values.dtype)
    n, lane, row = np.intp(cuda.blockIdx.x), np.uint32(cuda.threadIdx.x), cuda.threadIdx.y
    row, across = np.uint32(row), np.uint32(parts.columns * parts.taps_x)
    is_y = lane >= across
    # First of all: what else there is to find out, takes until the box has come.
    axis = locate_axis(rois, n, is_y, sampling, convention, zero)
    image = locate_image(rois, n, sampling, convention)
    down, along = split(cuda.blockIdx.z, parts.along)
    ph, first_column = np.uint32(down * parts.rows + row), np.uint32(along * parts.columns)
    column, tap = bin_of(lane, parts.taps_x)
    p = np.uint32(first_column + column)
    if is_y:
        p, tap = ph, np.uint32(lane - across)
    sample, is_second = np.intp(tap >> np.uint32(1)), (tap & np.uint32(1)) != 0
    pixel, weight = tap_of(axis, np.intp(p), sample, is_second, zero)
    first = np.uint32(row * TAPS)
    if is_y and tap < parts.taps_y:
        slot = np.uint32(first + tap)
        pixels[slot], weights[slot] = NO_ROW if axis.samples < 0 else np.uint32(pixel), weight
    cuda.syncthreads()

    channel = np.uint32(cuda.blockIdx.y * OWN)
    count = min(np.uint32(OWN), np.uint32(np.uint32(channels) - channel))
    is_valid = image >= 0 and axis.samples >= 0 and pixels[first] != NO_ROW
    for i in range(VALUES):
        values[i] = zero
    if is_valid and not is_y and weight != 0:
        Index = type(strides.channel)
        start = np.uintp(image) * np.uintp(strides.image)
        start += np.uintp(channel) * np.uintp(strides.channel)
        start += np.uintp(Index(strides.column * Index(pixel)))
        read_rows(features, start, strides, count, pixels, weights, first, parts.taps_y, values)
    for k in range(OWN):
        total = zero if is_valid else zero * type(zero)(math.nan)
        for r in range(TAPS):
            if r < parts.taps_y:
                total += weights[np.uint32(first + np.uint32(r))] * values[r * OWN + k]
        sums[np.uint32((row * OWN + np.uint32(k)) * WARP + lane)] = total * weight
    cuda.syncthreads()

    columns = min(parts.columns, np.uint32(np.uint32(sampling.output_width) - first_column))
    item = lane
    while ph < np.uint32(sampling.output_height) and item < np.uint32(count * columns):
        k, column = split(item, columns)
        slot, total = np.uint32((row * OWN + k) * WARP + column * parts.taps_x), zero
        for t in range(TAPS):
            if t < parts.taps_x:
                total += sums[np.uint32(slot + np.uint32(t))]
        out[element_at(out_strides, n, channel + k, ph, first_column + column)] = total
        item = np.uint32(item + np.uint32(cuda.blockDim.x))


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
        self.rois, self.queue, self.channels = rois, queue, case.channels
        self.sampling, self.convention, self.zero = geometry
        height, width = self.sampling.output_height, self.sampling.output_width
        taps_y, taps_x = 2 * self.sampling.samples_y, 2 * self.sampling.samples_x
        most_columns = max(1, (WARP - taps_y) // taps_x)
        down, along = -(-height // MOST_ROWS), -(-width // most_columns)
        rows, columns = -(-height // down), -(-width // along)
        self.parts = Parts(*map(np.uint32, (rows, columns, along, taps_y, taps_x)))
        self.blocks = rois.shape[0], -(-case.channels // OWN), down * along
        self.threads = columns * taps_x + taps_y, rows

    def pool(self, source, target):
        """Pool all boxes; `source` and `target` are a flat array and its strides each."""
        features, strides = source
        sizes = self.channels, self.sampling.height, self.sampling.width
        source = features, narrowed_within(strides, sizes)
        configured(schedule_small, self.blocks, self.threads, self.queue)(
            *source, self.rois, self.sampling, self.convention, self.parts, self.zero,
            *target, self.channels,
        )  # fmt: skip
