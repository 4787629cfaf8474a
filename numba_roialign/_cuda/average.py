"""The CUDA schedules of an average: a block for a box and some channels.

A table holds the taps of a batch of boxes. It is filled by a thread for each bin of each axis: one
thread a box would leave all others waiting for the largest.

Where channels lie in planes, neighbouring threads that pooled neighbouring bins would each read
from a cache line of its own. So a block sums both axes one after the other, by the function that
sums them in the element kernel: first, with neighbouring threads on neighbouring pixels, the tapped
rows of each row of bins into a *line* in shared memory; then the taps of each bin from its line.
Where channels lie side by side, so do neighbouring threads, and the element kernel runs as it is.

Loops in strides are `while` loops: ``range`` with a step begins with a division of 64 bits.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import cuda

from .. import _geometry, _kernels, _taps
from .._taps import Taps, tap_capacity
from .launches import MOST_BLOCKS, configured, over

locate = cuda.jit(device=True)(_geometry.locate)
bin_of_taps = cuda.jit(device=True)(_taps.bin_of_taps)
first_slot = cuda.jit(device=True)(_taps.first_slot)
line_of = cuda.jit(device=True)(_taps.line_of)
weighted = cuda.jit(device=True)(_kernels.weighted)
weighted_of_four = cuda.jit(device=True)(_kernels.weighted_of_four)
average = cuda.jit(device=True)(_kernels.average)
element_at = cuda.jit(device=True)(_kernels.element_at)

# Numbers of a block's lines: 16 KB of float32, so that any device holds as many blocks as threads.
LINE_NUMBERS = 4096


class BinTable(NamedTuple):
    """The taps of a batch of RoIs, the bins of y before those of x.

    The slots of a RoI's row need not follow each other, so that each bin finds its own.
    """

    images: np.ndarray  # (rois,) intp: -1 where a row cannot be pooled
    lines: np.ndarray  # (rois, 2) int32: the first pixel of the lines, or -1; and their length
    bounds: np.ndarray  # (rois, 2 * bins) int32: bin p holds slots bounds[n, 2p] : bounds[n, 2p+1]
    pixels: np.ndarray  # (slots,) uint32: unsigned and narrow, for then an address is one multiply
    places: np.ndarray  # (slots,) uint32: of x, where in the line its pixel stands
    weights: np.ndarray  # (slots,) in the accumulator's type


class Part(NamedTuple):
    """What a block sums at once: some rows of bins of some channels."""

    row: int
    rows: int
    channel: int
    channels: int


@cuda.jit(device=True)
def split(item, size):
    """Return ``item // size`` and ``item % size``, both below 2**32.

    A kernel that divides 32 bits has 30 instructions, one of 64 bits 110, or 150 with signs. The
    results are never negative, and knowing it spares the compiler a select at each index.
    """
    quotient = np.uint32(item) // np.uint32(size)
    return np.uintp(quotient), np.uintp(item) - np.uintp(quotient) * np.uintp(size)


@cuda.jit(device=True)
def fill_bin(table, row, p, axis, axis_bin, origin, capacity):
    """Write the taps of a bin of an axis, whose slots start at `origin`; return their bounds."""
    begin = origin + first_slot(axis, axis_bin, capacity)
    stop = origin + first_slot(axis, axis_bin + 1, capacity)
    end = bin_of_taps(axis, table.pixels, table.weights, axis_bin, begin, stop)
    table.bounds[row, 2 * p], table.bounds[row, 2 * p + 1] = begin, end
    return begin, end, stop


@cuda.jit(device=True)
def fill_places(table, line, origin, begin, end, stop):
    """Write where in a line the taps of a bin stand."""
    low, length = line
    for slot in range(begin, end):
        place = slot - origin
        if low >= 0:  # clamped: the end of a box that lies far off is rounded to several pixels
            place = min(max(np.intp(table.pixels[slot]) - low, 0), length - 1)
        table.places[slot] = place
    if low < 0:
        for slot in range(end, stop):  # read with the others, and of no weight
            table.pixels[slot] = 0


@cuda.jit
def schedule_bins(rois, start, sampling, convention, y_slots, table, zero):
    """Fill the table with the batch that begins with RoI `start`, a thread per bin of an axis."""
    rows, slots = table.images.shape[0], table.pixels.shape[0] // table.images.shape[0]
    bins = sampling.output_height + sampling.output_width
    count = min(rows, rois.shape[0] - start)
    for item in range(cuda.grid(1), count * bins, cuda.gridsize(1)):
        row, p = split(item, bins)
        row, p = np.intp(row), np.intp(p)
        image, y, x = locate(rois, start + row, sampling, convention, zero)
        if image < 0:
            table.images[row], table.lines[row, 1] = -1, 0
            continue
        # At one place in the code for all: compiled twice, it could round in two ways.
        line = line_of(x, slots - y_slots)
        if p == 0:
            table.images[row] = image
            table.lines[row, 0], table.lines[row, 1] = line
        if p < y.bins:
            fill_bin(table, row, p, y, p, row * slots, y_slots)
        else:
            origin = row * slots + y_slots
            bounds = fill_bin(table, row, p, x, p - y.bins, origin, slots - y_slots)
            fill_places(table, line, origin, *bounds)


@cuda.jit(device=True)
def taps_of(pixels, table, n, p):
    """Return the taps of a bin, with their pixels or with their places."""
    first, last = table.bounds[n, np.uintp(2) * p], table.bounds[n, np.uintp(2) * p + np.uintp(1)]
    return Taps(pixels, table.weights, np.uintp(first), np.uintp(last))


@cuda.jit(device=True)
def share(cells):
    """Return a thread's first cell, which of its channels first, and how many go by at once.

    The cells of a channel go round the threads of a block, or as many channels as fit do at once.
    """
    thread, threads = np.uintp(cuda.threadIdx.x), np.uintp(cuda.blockDim.x)
    if cells >= threads or cells == np.uintp(0):
        return thread, np.uintp(0), np.uintp(1)
    group, cell = split(thread, cells)
    groups, _ = split(threads, cells)
    if group == groups:
        return cells, np.uintp(0), np.uintp(1)  # nothing is left for this thread
    return cell, group, groups


@cuda.jit(device=True)
def sum_rows(features, strides, table, n, part, x_slot, lines, zero):
    """Write to `lines` the sums of the tapped rows, for each row of bins of a part.

    Four channels at a time: a tap then takes 6 instructions a channel instead of 9, and 1.5 loads
    instead of 3.
    """
    low, length = np.intp(table.lines[n, 0]), np.uintp(table.lines[n, 1])
    cells = part.rows * length
    first, group, groups = share(cells)
    plane = np.uintp(table.images[n]) * np.uintp(strides.image)
    plane += (part.channel + group) * np.uintp(strides.channel)
    hop = groups * np.uintp(strides.channel)
    cell = first
    while cell < cells:
        row, column = split(cell, length)
        pixel = np.uintp(low) + column if low >= 0 else np.uintp(table.pixels[x_slot + column])
        taps = taps_of(table.pixels, table, n, part.row + row)
        origin = plane + np.uintp(strides.column) * pixel
        row_stride, step = np.uintp(strides.row), groups * cells
        place, last = group * cells + cell, part.channels * cells
        while place + np.uintp(3) * step < last:
            sums = weighted_of_four(features, origin, hop, row_stride, taps, zero)
            for k in range(4):
                lines[place] = sums[k]
                place += step
            origin += np.uintp(4) * hop
        while place < last:
            lines[place] = weighted(features, origin, row_stride, taps, zero)
            origin += hop
            place += step
        cell += np.uintp(cuda.blockDim.x)


@cuda.jit(device=True)
def sum_columns(lines, table, n, part, height, width, zero, out, out_strides, to_roi):
    """Write the bins of a part: of each the taps of its line, summed."""
    length, cells = np.uintp(table.lines[n, 1]), part.rows * width
    first, group, groups = share(cells)
    hop = groups * np.uintp(out_strides.channel)
    cell, plane, one = first, part.rows * length, np.uintp(1)
    while cell < cells:
        row, pw = split(cell, width)
        to = element_at(out_strides, to_roi, part.channel + group, part.row + row, pw)
        taps = taps_of(table.places, table, n, height + pw)
        c, line = group, group * plane + row * length
        while c + np.uintp(3) * groups < part.channels:
            sums = weighted_of_four(lines, line, groups * plane, one, taps, zero)
            for k in range(4):
                out[to] = sums[k]
                to += hop
            line += np.uintp(4) * groups * plane
            c += np.uintp(4) * groups
        while c < part.channels:
            out[to] = weighted(lines, line, one, taps, zero)
            to += hop
            line += groups * plane
            c += groups
        cell += np.uintp(cuda.blockDim.x)


@cuda.jit(device=True)
def write_nan(part, width, zero, out, out_strides, to_roi):
    """Write NaN to the bins of a part."""
    cells, item = part.rows * width, np.uintp(cuda.threadIdx.x)
    while item < part.channels * cells:
        c, cell = split(item, cells)
        row, pw = split(cell, width)
        to = element_at(out_strides, to_roi, part.channel + c, part.row + row, pw)
        out[to] = zero * type(zero)(math.nan)
        item += np.uintp(cuda.blockDim.x)


@cuda.jit(device=True)
def part_sizes(length, rows, channels, parts):
    """Return how many rows of bins and channels a block sums at once, in lines of a length.

    As many as its memory holds; or fewer, for `parts` parts, as long as all threads have work.
    """
    length = max(length, 1)
    lines = max(split(rows * channels, parts)[0], split(cuda.blockDim.x, length)[0], np.uintp(1))
    lines = min(lines, split(LINE_NUMBERS, length)[0])
    if lines < rows:
        return lines, np.uintp(1)
    return np.uintp(rows), min(np.uintp(channels), split(lines, rows)[0])


@cuda.jit
def schedule_lines(
    features, strides, start, bins, y_slots, table, zero, out, out_strides, channels
):
    """Pool a batch by lines: a column of blocks for a RoI, each taking some of its parts."""
    lines = cuda.shared.array(LINE_NUMBERS, type(zero))
    n, one = cuda.blockIdx.x, np.uintp(1)
    height, width = np.uintp(bins[0]), np.uintp(bins[1])
    x_slot = np.uintp(n * (table.pixels.shape[0] // table.images.shape[0]) + y_slots)
    rows, planes = part_sizes(table.lines[n, 1], height, channels, cuda.gridDim.y)
    down, deep = split(height + rows - one, rows)[0], split(channels + planes - 1, planes)[0]
    number = np.uintp(cuda.blockIdx.y)
    while number < down * deep:
        deep_number, down_number = split(number, down)
        row, c = down_number * rows, deep_number * planes
        part = Part(row, min(rows, height - row), c, min(planes, np.uintp(channels) - c))
        if table.images[n] < 0:
            write_nan(part, width, zero, out, out_strides, start + n)
        else:
            sum_rows(features, strides, table, n, part, x_slot, lines, zero)
            cuda.syncthreads()
            sum_columns(lines, table, n, part, height, width, zero, out, out_strides, start + n)
            cuda.syncthreads()
        number += np.uintp(cuda.gridDim.y)


@cuda.jit
def schedule_channels(
    features, strides, start, bins, y_slots, table, zero, out, out_strides, channels
):
    """Pool a batch, a thread per channel of a bin: neighbouring threads take neighbours."""
    n = cuda.blockIdx.x
    height, width = np.uintp(bins[0]), np.uintp(bins[1])
    row_stride, column_stride = np.uintp(strides.row), np.uintp(strides.column)
    plane_stride, channels = np.uintp(strides.channel), np.uintp(channels)
    image = table.images[n]
    plane = np.uintp(max(image, 0)) * np.uintp(strides.image)
    cell = np.uintp(cuda.threadIdx.y + cuda.blockIdx.y * cuda.blockDim.y)
    while cell < height * width:
        ph, pw = split(cell, width)
        rows = taps_of(table.pixels, table, n, ph)
        columns = taps_of(table.pixels, table, n, height + pw)
        c = np.uintp(cuda.threadIdx.x + cuda.blockIdx.z * cuda.blockDim.x)
        while c < channels:
            origin = plane + c * plane_stride
            total = zero * type(zero)(math.nan)
            if image >= 0:
                total = average(
                    features, origin, row_stride, column_stride, rows, columns, zero, zero
                )
            out[element_at(out_strides, start + n, c, ph, pw)] = total
            c += np.uintp(cuda.blockDim.x * cuda.gridDim.z)
        cell += np.uintp(cuda.blockDim.y * cuda.gridDim.y)


THREADS = 256
# Blocks of a launch, if there are so many parts: a few for each of some hundred multiprocessors.
BLOCKS = 4096


class Average:
    """The average of a call's boxes: its table, in batches, and how it is launched."""

    def __init__(self, rois, geometry, queue, batch_bytes):
        self.rois, self.queue = rois, queue
        self.sampling, self.convention, self.zero = geometry
        sampling, number = self.sampling, self.zero.dtype
        self.y_slots = tap_capacity(sampling.output_height, sampling.samples_y, sampling.height)
        self.x_slots = tap_capacity(sampling.output_width, sampling.samples_x, sampling.width)
        self.bins = sampling.output_height + sampling.output_width
        slots = self.y_slots + self.x_slots
        row_bytes = slots * (8 + number.itemsize) + 8 * self.bins + 16
        self.rows = max(1, min(rois.shape[0], batch_bytes // row_bytes))
        self.table = BinTable(
            queue.empty((self.rows,), np.intp),
            queue.empty((self.rows, 2), np.int32),
            queue.empty((self.rows, 2 * self.bins), np.int32),
            queue.empty((self.rows * slots,), np.uint32),
            queue.empty((self.rows * slots,), np.uint32),
            queue.empty((self.rows * slots,), number),
        )

    def count(self, start):
        """Return how many RoIs the batch has that begins with one."""
        return min(self.rows, self.rois.shape[0] - start)

    def fill(self, start):
        """Fill the table with the batch that begins with RoI `start`."""
        over(schedule_bins, self.count(start) * self.bins, self.queue)(
            self.rois, start, self.sampling, self.convention, self.y_slots, self.table, self.zero
        )

    def pool(self, start, source, target, channels):
        """Pool the batch; `source` and `target` are a flat array and its strides each."""
        (features, strides), (out, out_strides) = source, target
        longest = min(self.sampling.width, self.x_slots)
        in_planes = (strides.channel != 1 or channels == 1) and longest <= LINE_NUMBERS
        launch = self.by_lines if in_planes else self.by_channels
        bins = self.sampling.output_height, self.sampling.output_width
        launch(start, channels)(
            features, narrowed(strides), start, bins, self.y_slots, self.table, self.zero,
            out, out_strides, channels,
        )  # fmt: skip

    def by_lines(self, start, channels):
        """Return what launches the kernel for channels in planes."""
        most = self.sampling.output_height * channels
        columns = min(-(-BLOCKS // self.count(start)), most, MOST_BLOCKS)
        blocks = self.count(start), columns
        return configured(schedule_lines, blocks, THREADS, self.queue)

    def by_channels(self, start, channels):
        """Return what launches the kernel for channels side by side."""
        across = min(THREADS, 1 << (channels - 1).bit_length())
        along = THREADS // across
        deep = min(-(-channels // across), MOST_BLOCKS)
        most = -(-self.sampling.output_height * self.sampling.output_width // along)
        columns = min(max(1, BLOCKS // (self.count(start) * deep)), most, MOST_BLOCKS)
        blocks = self.count(start), columns, deep
        return configured(schedule_channels, blocks, (across, along), self.queue)


def narrowed(strides):
    """Return the strides of rows and columns as 32 bits, where they fit: see `BinTable.pixels`."""
    if max(strides.row, strides.column) >= 1 << 32:
        return strides
    return strides._replace(row=np.uint32(strides.row), column=np.uint32(strides.column))
