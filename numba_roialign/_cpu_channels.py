"""The CPU schedule with channels in the lanes: a call of the element kernel pools `L` channels.

Taps are the same for all channels, so the kernel pools a block of `L` channels at once, on vectors.
The rows that the RoIs read are first packed into scratch, pixel by pixel with the block's channels
side by side: transposed in squares where channels lie apart in memory, copied where they lie side
by side (channels last). Results go the other way. The RoIs of a chunk stand in the order of their
first rows, so that each row is packed once, just ahead of its use.

Reading channels-last maps in place instead was slower, up to 5 times with large boxes on 256
channels: pixels a power of two apart share a few sets of the cache.
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from numba.extending import register_jitable

from . import _geometry, _kernels
from ._cache import cached_njit
from ._cpu_tasks import INLINED, OPTIONS, UNCOUNTED, count_tasks, task_of
from ._geometry import Taps
from ._lanes import fetch_add, tile, view, zero_of

average = njit(**INLINED)(_kernels.average)
bin_taps = njit(**INLINED)(_geometry.bin_taps)
pixel_span = njit(**UNCOUNTED)(_geometry.pixel_span)

# A thread's scratch: pixels of packed rows, and bins of results. With 16 lanes of float32 that is
# 8.6 MB, of which a call touches only what it needs. A RoI with more rows than fit is pooled from
# bands of rows, one with more bins in parts.
WINDOW = 1 << 17
CELLS = 1 << 12


@register_jitable
def scratch_size(shape, lanes):
    """Return how many numbers of scratch a thread has."""
    return (shape.window + max(min(CELLS, shape.bins * shape.width), shape.width)) * lanes


@njit(**INLINED)
def pack(source, wide, origin, strides, window, numbers, to, pixels, lanes):
    """Copy a run of pixels of `lanes` planes to scratch, the planes side by side.

    `source` and `wide` are views of the map, of one lane and of `lanes`; so are `numbers` and
    `window` of the scratch.
    """
    channel_stride, column_stride = strides.channel, strides.column
    done = 0
    if channel_stride == 1:
        for p in range(pixels):
            window[to + p * lanes] = wide[origin + p * column_stride]
        return
    if column_stride == 1 and pixels >= lanes:
        while done < pixels:
            done = min(done, pixels - lanes)  # the last square overlaps the one before
            tile(source, origin + done, channel_stride, window, to + done * lanes, lanes)
            done += lanes
    for p in range(done, pixels):
        for k in range(lanes):
            numbers[to + p * lanes + k] = source[origin + p * column_stride + k * channel_stride]


@njit(**INLINED)
def pack_rows(source, wide, origin, strides, columns, window, numbers, to, rows, lanes):
    """Copy rows of `columns` pixels of `lanes` planes to scratch, where they lie end to end."""
    if strides.row == columns * strides.column:  # and in the map they do too
        rows, columns = 1, rows * columns
    for row in range(rows):
        pack(
            source, wide, origin + row * strides.row, strides, window, numbers,
            to + row * columns * lanes, columns, lanes,
        )  # fmt: skip


@njit(**INLINED)
def unpack(cells, numbers, out, out_numbers, at, strides, bins, width, lanes):
    """Copy results, the planes side by side, to rows of bins of `lanes` planes."""
    pixels, done = bins * width, 0
    if strides.channel == 1:
        for p in range(pixels):
            o = at + (p // width) * strides.row + (p % width) * strides.column
            out[o] = cells[p * lanes]
        return
    if strides.column == 1 and strides.row == width and pixels >= lanes:
        while done + 2 < pixels:  # a bin or two are cheaper one by one
            done = min(done, pixels - lanes)
            tile(cells, done * lanes, lanes, out_numbers, at + done, strides.channel)
            done += lanes
    for p in range(done, pixels):
        o = at + (p // width) * strides.row + (p % width) * strides.column
        for k in range(lanes):
            out_numbers[o + k * strides.channel] = numbers[p * lanes + k]


@njit(**INLINED)
def clipped(taps, low, high):
    """Return the taps of a bin whose pixels lie in ``low:high``."""
    first, last = np.intp(taps.first), np.intp(taps.last)
    while first < last and taps.pixels[first] < low:
        first += 1
    while first < last and taps.pixels[last - 1] >= high:
        last -= 1
    return Taps(taps.pixels, taps.weights, np.uintp(first), np.uintp(last))


@njit(**INLINED)
def pool_rows(
    features, origin, row_stride, column_stride, y_taps, x_taps, row, share, low, high, cells,
    fresh, lanes,
):  # fmt: skip
    """Pool what rows ``low:high`` of the map give to some rows of bins, or add it to `cells`."""
    width = x_taps.bounds.shape[1] - 1
    zero = zero_of(cells)
    origin, cell = np.uintp(origin), 0
    row_stride, column_stride = np.uintp(row_stride), np.uintp(column_stride)
    for ph in range(share[0], share[1]):
        rows = clipped(bin_taps(y_taps, row, ph), low, high)
        for pw in range(width):
            columns = bin_taps(x_taps, row, pw)
            total = zero if fresh else cells[cell]
            cells[cell] = average(
                features, origin, row_stride, column_stride, rows, columns, zero, total
            )
            cell += lanes


@njit(**INLINED)
def common_columns(batch, chunk):
    """Return the columns of a chunk's common window, or 0, 0 where each RoI takes its own.

    Packing once what RoIs have in common pays while it is no more than packing for each.
    """
    low, high, left, right, alone = 1 << 60, 0, 1 << 60, 0, 0
    for i in range(chunk[0], chunk[1]):
        y0, y1, x0, x1 = batch.spans[batch.order[i]]
        low, high, left, right = min(low, y0), max(high, y1), min(left, x0), max(right, x1)
        alone += (y1 - y0) * (x1 - x0)
    if (high - low) * (right - left) <= alone:
        return left, right
    return 0, 0


@cached_njit(**UNCOUNTED)
def work(
    thread, features, strides, batch, y_taps, x_taps, unit, out, out_strides, shape, scratch, tag
):
    """Pool tasks until none is left, from packed rows of the map."""
    channels, bins, width = shape.channels, shape.bins, shape.width
    lanes = len(tag)
    source, wide = view(features, 0, (0,)), view(features, 0, tag)
    pooled, pooled_numbers = view(out, 0, tag), view(out, 0, (0,))
    base = thread * scratch_size(shape, lanes)
    window, window_numbers = view(scratch, base, tag), view(scratch, base, (0,))
    base += shape.window * lanes
    cells, cell_numbers = view(scratch, base, tag), view(scratch, base, (0,))
    while True:
        task = fetch_add(batch.counter, 1)
        if task >= count_tasks(batch):
            break
        block, chunk, share = task_of(task, batch, bins)
        c = min(block * lanes, channels - lanes)  # the last block overlaps the one before
        left, right = common_columns(batch, chunk)
        common = right > left
        held_low, held_high = 0, 0  # the rows that the window holds
        for i in range(chunk[0], chunk[1]):
            row = batch.order[i]
            if not common:
                left, right = batch.spans[row, 2], batch.spans[row, 3]
                held_low, held_high = 0, 0
            columns = max(right - left, 1)
            capacity = shape.window // columns
            origin = batch.images[row] * strides.image + c * strides.channel
            origin += left * strides.column
            low, high = pixel_span(y_taps, row, share[0], share[1])
            fresh = True
            while fresh or low < high:
                upto = min(low + capacity, high)
                if low < held_low or low > held_high or upto > held_low + capacity:
                    held_low, held_high = low, low
                if upto > held_high:
                    to = (held_high - held_low) * columns * lanes
                    pack_rows(
                        source, wide, origin + held_high * strides.row, strides, columns,
                        window, window_numbers, to, upto - held_high, lanes,
                    )  # fmt: skip
                    held_high = upto
                pool_rows(
                    window, -(held_low * columns + left) * lanes, columns * lanes, lanes,
                    y_taps, x_taps, row, share, low, upto, cells, fresh, lanes,
                )  # fmt: skip
                low, fresh = upto, False
            o = (batch.start + row) * out_strides.image + c * out_strides.channel
            o += share[0] * out_strides.row
            unpack(
                cells, cell_numbers, pooled, pooled_numbers, o, out_strides,
                share[1] - share[0], width, lanes,
            )  # fmt: skip


@cached_njit(parallel=True, **OPTIONS)
def work_in_threads(
    threads, features, strides, batch, y_taps, x_taps, unit, out, out_strides, shape, scratch, tag
):
    for thread in prange(threads):
        work(
            np.intp(thread), features, strides, batch, y_taps, x_taps, unit,
            out, out_strides, shape, scratch, tag,
        )  # fmt: skip
