"""The CUDA schedules of the gradient of a map: a thread for each of its elements, in tiles.

Nothing is added atomically. Each tile of the map first gets a list of the boxes that reach into it,
in their order, and each element sums what the boxes of its tile give to it: the same terms in the
same order in every run.
"""

from __future__ import annotations

import numpy as np
from numba import cuda

from . import _kernels
from ._cuda_arrays import LARGEST_GRID, configured, over
from ._cuda_forward import split

gradient_at = cuda.jit(device=True)(_kernels.gradient_at)
won_at = cuda.jit(device=True)(_kernels.won_at)
element_at = cuda.jit(device=True)(_kernels.element_at)

# The rows of a tile are as long as a warp, whose threads then read and write neighbours.
TILE_HEIGHT, TILE_WIDTH = 8, 32


@cuda.jit(device=True)
def corner_of(tile, sampling):
    """Return the image of a tile, and its first row and column."""
    across = (sampling.width + TILE_WIDTH - 1) // TILE_WIDTH
    down = (sampling.height + TILE_HEIGHT - 1) // TILE_HEIGHT
    line, column = tile // across, tile % across
    return line // down, line % down * TILE_HEIGHT, column * TILE_WIDTH


@cuda.jit
def schedule_tiles(images, spans, count, sampling, lists, counts):
    """List for each tile the RoIs of a batch that reach into it, a thread per tile."""
    for tile in range(cuda.grid(1), counts.shape[0], cuda.gridsize(1)):
        image, top, left = corner_of(tile, sampling)
        found = 0
        for n in range(count):
            down = spans[n, 0] < top + TILE_HEIGHT and spans[n, 1] > top
            across = spans[n, 2] < left + TILE_WIDTH and spans[n, 3] > left
            if images[n] == image and down and across:
                lists[tile, found] = n
                found += 1
        counts[tile] = found


@cuda.jit(device=True)
def pixel_of(pixel, tile, sampling):
    """Return the image, the row and the column of a pixel of a tile, and whether the map has it."""
    image, top, left = corner_of(tile, sampling)
    row, column = split(pixel, TILE_WIDTH)
    y, x = top + np.intp(row), left + np.intp(column)
    return image, y, x, y < sampling.height and x < sampling.width


@cuda.jit
def schedule_gradient(
    grad, strides, start, lists, counts, sampling, spans, y_bins, x_bins,
    zero, out, out_strides, channels, adds,
):  # fmt: skip
    """Add what a batch gives to the gradient of a map: blocks of a tile and some channels."""
    tile, pixel = cuda.blockIdx.x, cuda.threadIdx.y
    while pixel < TILE_HEIGHT * TILE_WIDTH:
        image, y, x, inside = pixel_of(pixel, tile, sampling)
        c = cuda.threadIdx.x + cuda.blockIdx.y * cuda.blockDim.x
        while c < channels and inside:
            to = element_at(out_strides, image, c, y, x)
            total = zero
            if adds:
                total = zero + out[to]
            out[to] = gradient_at(
                grad, strides, start, lists[tile], counts[tile], spans, y_bins, x_bins,
                c, y, x, zero, total,
            )  # fmt: skip
            c += cuda.blockDim.x * cuda.gridDim.y
        pixel += cuda.blockDim.y


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
        self.sampling, self.count, self.stream = sampling, tiles_of(sampling), queue.stream
        self.lists = queue.empty((self.count, rows), np.int32)
        self.counts = queue.empty(self.count, np.int32)

    def fill(self, images, spans, count):
        """List the first `count` RoIs of a batch."""
        over(schedule_tiles, self.count, self.stream)(
            images, spans, count, self.sampling, self.lists, self.counts
        )

    def over(self, kernel, channels, side_by_side):
        """Return what launches a kernel, a block for a tile and as many channels as suit it."""
        threads = TILE_HEIGHT * TILE_WIDTH
        across = min(threads, 1 << (channels - 1).bit_length()) if side_by_side else 1
        blocks = self.count, min(-(-channels // across), LARGEST_GRID)
        return configured(kernel, blocks, (across, threads // across), self.stream)
