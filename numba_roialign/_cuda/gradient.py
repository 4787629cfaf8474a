"""The CUDA schedules of the gradient of a map: a thread for each of its elements, in tiles.

Nothing is added atomically. Each tile of the map first gets a list of the boxes that reach into it,
in their order, and each element sums what the boxes of its tile give to it: the same terms in the
same order in every run.
"""

from __future__ import annotations

import numpy as np
from numba import cuda

from .. import _kernels, _taps
from .indices import split
from .launches import MOST_BLOCKS, configured

average = cuda.jit(device=True)(_kernels.average)
reaches = cuda.jit(device=True)(_kernels.reaches)
bin_taps = cuda.jit(device=True)(_taps.bin_taps)
won_at = cuda.jit(device=True)(_kernels.won_at)
element_at = cuda.jit(device=True)(_kernels.element_at)

# The rows of a tile are as long as a warp, whose threads then read and write neighbours.
TILE_HEIGHT, TILE_WIDTH = 8, 32
# Threads that list the boxes of a tile: each adds up what all of them have found.
LISTERS = 32
THREADS = 256
# Sums of a block, 16 for each of its threads: with more a thread would meet boxes less often, but
# fewer blocks would fit on a multiprocessor.
SUM_NUMBERS = 16 * THREADS
BLOCKS = 2048  # of a launch, if there are so many: threads take fewer channels for it


@cuda.jit(device=True)
def corner_of(tile, sampling):
    """Return the image of a tile, and its first row and column."""
    across = (sampling.width + TILE_WIDTH - 1) // TILE_WIDTH
    down = (sampling.height + TILE_HEIGHT - 1) // TILE_HEIGHT
    line, column = tile // across, tile % across
    return line // down, line % down * TILE_HEIGHT, column * TILE_WIDTH


@cuda.jit
def schedule_tiles(images, spans, count, sampling, lists, counts):
    """List for each tile the RoIs of a batch that reach into it, in order: a block for a tile.

    Each thread looks at one of the next RoIs, and lists it after those of the threads before it.
    """
    found = cuda.shared.array(LISTERS, np.int32)
    tile, thread = cuda.blockIdx.x, cuda.threadIdx.x
    image, top, left = corner_of(tile, sampling)
    listed, begin = 0, 0
    while begin < count:
        n, reached = begin + thread, False
        if n < count and images[n] == image:
            down = spans[n, 0] < top + TILE_HEIGHT and spans[n, 1] > top
            reached = down and spans[n, 2] < left + TILE_WIDTH and spans[n, 3] > left
        found[thread] = reached
        cuda.syncthreads()
        place = listed
        for k in range(LISTERS):
            place += found[k] if k < thread else 0
            listed += found[k]
        if reached:
            lists[tile, place] = n
        cuda.syncthreads()
        begin += LISTERS
    if thread == 0:
        counts[tile] = listed


@cuda.jit(device=True)
def pixel_of(pixel, tile, sampling):
    """Return the image, the row and the column of a pixel of a tile, and whether the map has it."""
    image, top, left = corner_of(tile, sampling)
    row, column = split(pixel, TILE_WIDTH)
    y, x = top + np.intp(row), left + np.intp(column)
    return image, y, x, y < sampling.height and x < sampling.width


@cuda.jit(device=True)
def sum_boxes(
    grad, strides, start, boxes, count, spans, y_bins, x_bins, zero, first, here, y, x, sums
):
    """Add what the boxes of a tile give to a pixel to a thread's sums, of `here` channels.

    The tables are turned round: they hold for each pixel the bins that tap it, and so the average's
    own kernel sums the gradients of these bins.
    """
    row_stride, column_stride = np.uintp(strides.row), np.uintp(strides.column)
    hop = np.uintp(cuda.blockDim.x) * np.uintp(strides.channel)
    for listed in range(count):
        n = np.intp(boxes[listed])
        if reaches(spans, n, y, x):
            rows = bin_taps(y_bins, n, y - spans[n, 0])
            columns = bin_taps(x_bins, n, x - spans[n, 2])
            origin = np.uintp(start + n) * np.uintp(strides.image)
            origin += np.uintp(first) * np.uintp(strides.channel)
            for k in range(here):
                cell = cell_of(k)
                sums[cell] = average(
                    grad, origin, row_stride, column_stride, rows, columns, zero, sums[cell]
                )
                origin += hop


@cuda.jit(device=True)
def cell_of(k):
    """Return where a thread keeps the sum of its `k`-th channel: neighbours side by side."""
    thread = cuda.threadIdx.x + cuda.threadIdx.y * cuda.blockDim.x
    return np.uintp(thread + k * cuda.blockDim.x * cuda.blockDim.y)


@cuda.jit
def schedule_gradient(
    grad, strides, start, lists, counts, sampling, spans, y_bins, x_bins,
    zero, out, out_strides, channels, own, adds,
):  # fmt: skip
    """Add what a batch gives to the gradient of a map: a thread per pixel and `own` channels.

    A thread keeps its sums in its cells of shared memory, so that it meets each box once for all
    its channels.
    """
    sums = cuda.shared.array(SUM_NUMBERS, type(zero))
    tile, across = cuda.blockIdx.x, cuda.blockDim.x
    first = cuda.threadIdx.x + cuda.blockIdx.y * across * own
    while first < channels:
        here = min(own, (channels - first + across - 1) // across)
        pixel = cuda.threadIdx.y
        while pixel < TILE_HEIGHT * TILE_WIDTH:
            image, y, x, inside = pixel_of(pixel, tile, sampling)
            if inside:
                for k in range(here):
                    to = element_at(out_strides, image, first + k * across, y, x)
                    sums[cell_of(k)] = zero + out[to] if adds else zero
                sum_boxes(
                    grad, strides, start, lists[tile], counts[tile], spans, y_bins, x_bins,
                    zero, first, here, y, x, sums,
                )  # fmt: skip
                for k in range(here):
                    to = element_at(out_strides, image, first + k * across, y, x)
                    out[to] = sums[cell_of(k)]
            pixel += cuda.blockDim.y
        first += across * own * cuda.gridDim.y


@cuda.jit
def schedule_winners(
    grad, strides, argmax, argmax_strides, start, lists, counts, sampling, spans,
    y_bins, x_bins, y_codes, x_codes, grids, zero, out, out_strides, channels, adds, mode,
):  # fmt: skip
    """As `schedule_gradient`, for a maximum."""
    tile, pixel = cuda.blockIdx.x, cuda.threadIdx.y
    while pixel < TILE_HEIGHT * TILE_WIDTH:
        image, y, x, inside = pixel_of(pixel, tile, sampling)
        c = cuda.threadIdx.x + cuda.blockIdx.y * cuda.blockDim.x
        while c < channels and inside:
            to = element_at(out_strides, image, c, y, x)
            total = zero
            if adds:
                total = zero + out[to]
            out[to] = won_at(
                grad, strides, argmax, argmax_strides, start, lists[tile], counts[tile], spans,
                y_bins, x_bins, y_codes, x_codes, grids, c, y, x, mode, total,
            )  # fmt: skip
            c += cuda.blockDim.x * cuda.gridDim.y
        pixel += cuda.blockDim.y


def tiles_of(sampling):
    """Return how many tiles the maps of a call have."""
    down, across = -(-sampling.height // TILE_HEIGHT), -(-sampling.width // TILE_WIDTH)
    return sampling.images * down * across


class Tiles:
    """The lists of the tiles of a map."""

    def __init__(self, sampling, rows, queue):
        self.sampling, self.count, self.queue = sampling, tiles_of(sampling), queue
        self.lists = queue.empty((self.count, rows), np.int32)
        self.counts = queue.empty(self.count, np.int32)

    def fill(self, images, spans, count):
        """List the first `count` RoIs of a batch."""
        configured(schedule_tiles, self.count, LISTERS, self.queue)(
            images, spans, count, self.sampling, self.lists, self.counts
        )

    def over(self, kernel, channels, side_by_side, own=1):
        """Return what launches a kernel, a block for a tile and `own` channels of each thread."""
        across = self.across(channels, side_by_side)
        blocks = self.count, min(-(-channels // (across * own)), MOST_BLOCKS)
        return configured(kernel, blocks, (across, THREADS // across), self.queue)

    def across(self, channels, side_by_side):
        """Return how many threads of a block take neighbouring channels; others, pixels."""
        return min(THREADS, 1 << (channels - 1).bit_length()) if side_by_side else 1

    def own(self, channels, side_by_side):
        """Return how many channels a thread takes: many, as long as there are blocks enough."""
        columns = -(-channels // self.across(channels, side_by_side))
        wanted = -(-columns // -(-BLOCKS // self.count))
        return min(wanted, SUM_NUMBERS // THREADS)
