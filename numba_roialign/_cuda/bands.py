"""The CUDA schedule of an average of many boxes: a block for a band of the map and some channels.

Boxes that lie on each other read the same pixels again and again, each time by way of the L2 cache.
Here a block packs some rows of the map into shared memory, four channels of a pixel side by side,
and pools from there whatever bins begin in its band: a tap of four channels is one load. Rows that
a bin taps beyond the band are read from the map.

A thread pools the bins of a stack that begin in the band, four channels of them. Neighbouring
threads take the next four channels, and then the next stack to the right.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import config, cuda

from .. import _kernels
from .box_tables import AT_ONCE
from .indices import quotient, split, this_thread
from .launches import bounded
from .lines import HELD
from .stacks import NO_REACH, STACK, bounds_at, column_at, halves_of, row_at, slots_of

element_at = cuda.jit(device=True)(_kernels.element_at)

QUAD = 4  # channels of a thread: of float32 16 bytes, which is the most that it loads at once
WARP = 32  # threads
PIXELS = 4  # of a quad, that a thread reads at once to pack them
PACKED = PIXELS * QUAD  # numbers
CHUNK = np.uint32(PIXELS * WARP)  # pixels, that a warp packs at once
WIDE_HELD = 6  # taps of a bin however wide, that a thread holds; it reads others for each row
TAPPED = WIDE_HELD * QUAD  # numbers, that a thread reads at once to pool
BAND_THREADS = 448  # of a block, at most: 64 times 7 bins; two blocks fit a multiprocessor
WIDE_THREADS = 384  # of bins however wide: 80 registers instead of 72
LISTED = 1024  # boxes, and stacks of their bins, that a block knows of at a time
LOOKS = 4  # boxes that a thread looks at, at once
SUMS = STACK * QUAD
# What a block lists of a stack, in 32 bits: the first of its bins, the last, and which it is.
BIN_BITS = 2


class Bands(NamedTuple):
    """How blocks divide a map and its boxes. In 32 bits."""

    height: int  # of the map
    width: int
    count: int  # bands of an image
    step: int  # rows from where one begins to where the next does
    of_row: int  # the reciprocal of that, by which a row is divided; in 64 bits
    rows: int  # of a band: it has those of the next that its bins may tap too
    quads: int  # of channels, of a block: as many threads share a bin
    apart: int  # pixels, from one quad's to the next's
    groups: int  # of such
    share: int  # boxes, of a block
    all: int  # boxes
    stacks: int  # of bins, of a box
    of_stacks: int  # the reciprocal of that; in 64 bits
    room: int  # boxes, of which a block can list all stacks


class Band(NamedTuple):
    """A band in shared memory, and what it is of the map."""

    numbers: np.ndarray  # (quads * apart * QUAD,), in the accumulator's type
    first: int  # its first row of the map
    rows: int
    width: int
    apart: int
    start: int  # of its image
    channel: int  # the first
    channels: int  # of the map


class Quad(NamedTuple):
    """The channels of a thread."""

    place: int  # of its pixels in the band
    channel: int  # the first
    start: int  # where this begins in the map
    there: int  # channels, of four; none behind the last of the map


if config.ENABLE_CUDASIM:  # which knows no alignment

    @cuda.jit(device=True)
    def asked_for(kind):
        return (cuda.shared.array(0, kind),)

else:

    @cuda.jit(device=True)
    def asked_for(kind):
        """Return the shared memory that a launch asks for, aligned to loads of 16 bytes.

        It is in a tuple, for an array alone Numba returns only if it is an argument.
        """
        return (cuda.shared.array(0, kind, 16),)


@cuda.jit(device=True)
def band_of(number, group, bands, strides, channels, numbers):
    """Return a band by its number among the maps', of a group of channels, still to be packed."""
    image, place = split(number, bands.count)
    first = np.uint32(min(np.uint32(place * bands.step), np.uint32(bands.height - bands.rows)))
    start = np.uintp(image) * np.uintp(strides.image)
    channel = np.uint32(group * bands.quads * QUAD)
    return Band(
        numbers, first, bands.rows, bands.width, bands.apart, start, channel, np.uint32(channels)
    )


@cuda.jit(device=True)
def quad_of(band, number, strides):
    """Return the channels of a quad of a band."""
    channel, there = np.uint32(band.channel + number * QUAD), np.uint32(0)
    if channel < band.channels:
        there = np.uint32(min(np.uint32(QUAD), np.uint32(band.channels - channel)))
    start = band.start + np.uintp(channel) * np.uintp(strides.channel)
    return Quad(np.uint32(number * band.apart), channel, start, there)


@cuda.jit(device=True)
def pack_quad(features, strides, band, cells, quad, starts, values, begin):
    """Read the pixels of a quad into shared memory: several of a thread at once.

    Rows of the map lie one after the other. A warp takes neighbouring pixels, at constant distances
    from those that it begins with: three instructions for a number, which were ten.
    """
    thread, threads = this_thread()
    (warp, lane), warps = split(thread - begin, WARP), split(threads - begin, WARP)[0]
    chunk, last = np.uint32(warp * CHUNK), np.uint32(cells - CHUNK)
    for k in range(QUAD):  # the last channel that there is, in place of others
        further = np.uint32(min(np.uint32(k), np.uint32(quad.there - 1)))
        starts[k] = quad.start + np.uintp(further) * np.uintp(strides.channel)
        starts[k] += np.uintp(band.first) * np.uintp(band.width)
    while chunk < cells and warp < warps:  # but for a warp that is not full
        place = np.uint32(min(chunk, last) + lane)
        for i in range(PIXELS):
            for k in range(QUAD):
                values[i * QUAD + k] = features[starts[k] + np.uintp(place) + np.uintp(i * WARP)]
        to = np.uintp(np.uint32(quad.place + place)) * np.uintp(QUAD)
        for i in range(PIXELS):
            if np.uint32(place + np.uint32(i * WARP)) >= chunk:
                for k in range(QUAD):
                    band.numbers[to + np.uintp(i * WARP * QUAD + k)] = values[i * QUAD + k]
        chunk = np.uint32(chunk + warps * CHUNK)


@cuda.jit(device=True)
def pack(features, strides, band, quads, zero, begin):
    """Read a band into shared memory, by the block's threads from one on."""
    starts, values = cuda.local.array(QUAD, np.uintp), cuda.local.array(PACKED, type(zero))
    cells, number = np.uint32(band.rows * band.width), np.uint32(0)
    while number < quads:
        quad = quad_of(band, number, strides)
        if quad.there > 0:
            pack_quad(features, strides, band, cells, quad, starts, values, begin)
        number = np.uint32(number + 1)


@cuda.jit(device=True)
def read_packed(band, origin, pixels, place, values):
    """Read `AT_ONCE` taps of a packed row, those from a place on."""
    for t in range(AT_ONCE):
        at = np.uintp(np.uint32(origin + pixels[place + t])) * np.uintp(QUAD)
        for k in range(QUAD):  # one load, since the memory is aligned
            values[(place + t) * QUAD + k] = band.numbers[at + np.uintp(k)]


@cuda.jit(device=True)
def read_beyond(features, strides, origin, there, pixels, place, values):
    """Read `AT_ONCE` taps of a row of the map, of the channels that there are."""
    Index, hop = type(strides.channel), np.uintp(strides.channel)
    for t in range(AT_ONCE):
        at = origin + np.uintp(Index(strides.column * Index(pixels[place + t])))
        for k in range(QUAD):
            values[(place + t) * QUAD + k] = 0
            if np.uint32(k) < there:
                values[(place + t) * QUAD + k] = features[at]
            at += hop


@cuda.jit(device=True)
def read_taps(features, strides, band, quad, origin, is_packed, pixels, place, values):
    """Read `AT_ONCE` taps of a row that begins at an index of the band, or of the map."""
    if is_packed:
        read_packed(band, np.uint32(origin), pixels, place, values)
    else:
        read_beyond(features, strides, origin, quad.there, pixels, place, values)


@cuda.jit(device=True)
def add_taps(weights, place, values, line):
    """Add `AT_ONCE` taps, those from a place on, to the sums of a quad."""
    for t in range(AT_ONCE):
        for k in range(QUAD):
            line[k] += weights[place + t] * values[(place + t) * QUAD + k]


@cuda.jit(device=True)
def hold(taps, first, end, pixels, weights, place):
    """Keep `AT_ONCE` taps of a bin in registers, if there are more from a slot on."""
    if first < end:
        for t in range(AT_ONCE):
            pixels[place + t], weights[place + t] = column_at(taps, first, t)


@cuda.jit(device=True)
def sum_taps(source, quad, row, taps, columns, held, line, more, zero):
    """Add to `line` the taps of a row.

    `row` is where it begins and, as a constant, whether it is packed.
    """
    others, shares = cuda.local.array(AT_ONCE, np.uint32), cuda.local.array(AT_ONCE, type(zero))
    values = cuda.local.array(TAPPED, type(zero))
    (first, end), (pixels, weights) = columns, held
    # All are read before any is added, where registers suffice: threads wait once for a row.
    for t in range(0, WIDE_HELD, AT_ONCE):
        if (more or t < HELD) and np.uint32(first + t) < end:
            read_taps(*source, quad, *row, pixels, t, values)
            if more:
                add_taps(weights, t, values, line)
    for t in range(0, HELD, AT_ONCE):
        if not more and np.uint32(first + t) < end:
            add_taps(weights, t, values, line)
    column = np.uint32(first + WIDE_HELD)
    while more and column < end:
        hold(taps, column, end, others, shares, 0)
        read_taps(*source, quad, *row, others, 0, values)
        add_taps(shares, 0, values, line)
        column = np.uint32(column + AT_ONCE)


@cuda.jit(device=True)
def sum_row(features, strides, band, quad, taps, row, columns, held, line, more, zero):
    """Write to `line` the sums of a quad of what a row of the map has at some columns.

    `columns` are the slots of their taps, of which the first few are `held`. `more`, whether there
    may be others, is a constant of a kernel.
    """
    Index, source = type(strides.channel), (features, strides, band)
    here = np.uint32(row - band.first)
    for k in range(QUAD):
        line[k] = 0
    if here < band.rows:
        origin = np.uintp(np.uint32(here * band.width + quad.place))
        sum_taps(source, quad, (origin, True), taps, columns, held, line, more, zero)
    else:
        origin = quad.start + np.uintp(Index(strides.row * Index(row)))
        sum_taps(source, quad, (origin, False), taps, columns, held, line, more, zero)


@cuda.jit(device=True)
def stack_sums(features, strides, band, quad, taps, row, rows, columns, sums, more, zero):
    """Write to `sums` those of the bins of a stack, by the slots of its rows and columns.

    Of a slot the row is known before it is read, for threads would wait for it.
    """
    pixels = cuda.local.array(WIDE_HELD, np.uint32)
    weights = cuda.local.array(WIDE_HELD, type(zero))
    line, (slot, last) = cuda.local.array(QUAD, type(zero)), rows
    for i in range(SUMS):
        sums[i] = 0
    for t in range(0, WIDE_HELD, AT_ONCE):
        if more or t < HELD:
            hold(taps, np.uint32(columns[0] + t), columns[1], pixels, weights, t)
    while slot < last and columns[0] < columns[1]:
        following, shares = row_at(taps, slot)
        held = pixels, weights
        sum_row(features, strides, band, quad, taps, row, columns, held, line, more, zero)
        for i in range(STACK):
            if shares[i] != 0:  # a bin that does not tap this row sees no infinity in it
                for k in range(QUAD):
                    sums[i * QUAD + k] += shares[i] * line[k]
        row, slot = following, np.uint32(slot + 1)


@cuda.jit(device=True)
def find_boxes(reaches, number, item, last, room, boxes, counts, looks):
    """List the boxes that reach a band, a thread those of some items, while there is room.

    Return the item at which the thread goes on when there is room again.
    """
    threads, is_full = this_thread()[1], False
    while item < last and not is_full:
        for i in range(LOOKS):
            at = np.uint32(item + np.uint32(i) * threads)
            looks[i] = reaches[np.uintp(at)] if at < last else NO_REACH
        for i in range(LOOKS):
            low, high = halves_of(looks[i])
            if low <= number and number <= high and not is_full:
                place = np.uint32(cuda.atomic.add(counts, 0, np.uint32(1)))
                is_full = place >= room
                if not is_full:
                    boxes[place] = item
            if not is_full:
                item = np.uint32(item + threads)
    return item


@cuda.jit(device=True)
def find_stacks(homes, number, boxes, found, bands, height, listed, counts):
    """List the stacks of boxes with bins whose home is a band, and the first and last of these.

    Stacks of a box stand side by side: threads of a warp then have as many rows of pixels to add,
    and fewer of them read the same banks (P2 took 0.92 of the time, simulated).
    """
    item, threads = this_thread()
    while item < np.uint32(found * bands.stacks):
        k = quotient(item, bands.of_stacks)
        stack = np.uint32(item - k * bands.stacks)
        box, first, last = boxes[k], np.uint32(STACK), np.uint32(0)
        for i in range(STACK):
            ph = np.uint32(stack * STACK + np.uint32(i))
            if ph < height and homes[np.uintp(np.uint32(box * height + ph))] == number:
                first, last = min(first, np.uint32(i)), np.uint32(i)
        if first < STACK:
            place = np.intp(cuda.atomic.add(counts, 1, np.uint32(1)))
            which = np.uint32(stack << np.uint32(2 * BIN_BITS))
            listed[0, place] = box
            listed[1, place] = which | np.uint32(last << np.uint32(BIN_BITS)) | first
        item = np.uint32(item + threads)


@cuda.jit(device=True)
def stack_at(listed, place):
    """Return what is listed: a box, a row of bins, and the first and the last bin of its stack."""
    box, which = listed[0, place], listed[1, place]
    mask, stack = np.uint32((1 << BIN_BITS) - 1), np.uint32(which >> np.uint32(2 * BIN_BITS))
    first, last = which & mask, np.uint32(which >> np.uint32(BIN_BITS)) & mask
    return box, np.uint32(stack * STACK), first, last


@cuda.jit(device=True)
def taps_at(taps, box, ph, first, last, pw, height):
    """Return the first row of some bins of a stack, and the slots of rows and of a bin of x."""
    # Upside down, the last bin has the first rows.
    one, one_end = bounds_at(taps, box, np.uint32(ph + first))
    other, other_end = bounds_at(taps, box, np.uint32(ph + last))
    (slot, row), end = halves_of(min(one, other)), max(one_end, other_end)
    column, last_column = bounds_at(taps, box, np.uint32(height + pw))
    to_rows, to_columns = slots_of(taps, box)
    rows = np.uint32(to_rows + slot), np.uint32(to_rows + end)
    columns = np.uint32(to_columns + column), np.uint32(to_columns + last_column)
    return row, rows, columns


@cuda.jit(device=True)
def write_quad(out, to, hop, there, sums, place):
    """Write the sums of a bin, for the channels that there are."""
    if there == QUAD:
        for k in range(QUAD):
            out[to + np.uintp(k) * hop] = sums[place + k]
    else:
        for k in range(QUAD):
            if np.uint32(k) < there:
                out[to + np.uintp(k) * hop] = sums[place + k]


@cuda.jit(device=True)
def write_stack(out, to, strides, there, sums, first, last):
    """Write the sums of some bins of a stack, the first of which stands at a place."""
    hop = np.uintp(strides.channel)
    for i in range(STACK):
        if first <= i and i <= last:
            write_quad(out, to, hop, there, sums, i * QUAD)
        to += np.uintp(strides.row)


@cuda.jit(device=True)
def pool_band(
    features, strides, start, bins, taps, bands, homes, zero, out, out_strides, channels, more
):
    """Pack the band of this block and pool the bins that begin in it, of its share of the RoIs."""
    number_type = cuda.local.array(1, type(zero))  # since the simulator wants a dtype
    (numbers,) = asked_for(number_type.dtype)
    boxes = cuda.shared.array(LISTED, np.uint32)
    listed = cuda.shared.array((2, LISTED), np.uint32)
    counts = cuda.shared.array(2, np.uint32)
    sums, looks = cuda.local.array(SUMS, type(zero)), cuda.local.array(LOOKS, np.uint32)
    height = np.uint32(bins[0])
    number, (part, group) = np.uint32(cuda.blockIdx.y), split(cuda.blockIdx.x, bands.groups)
    band = band_of(number, group, bands, strides, channels, numbers)
    thread = this_thread()[0]
    if thread == 0:
        counts[0] = counts[1] = 0
    cuda.syncthreads()
    pack(features, strides, band, bands.quads, zero, np.uint32(0))
    pw, place = split(cuda.threadIdx.x, bands.quads)
    quad = quad_of(band, place, strides)
    item = np.uint32(part * bands.share)
    last = np.uint32(min(bands.all, np.uint32(item + bands.share)))
    item, found = np.uint32(item + thread), np.uint32(bands.room + 1)
    while found > bands.room:
        item = find_boxes(homes.reaches, number, item, last, bands.room, boxes, counts, looks)
        cuda.syncthreads()
        found = np.uint32(counts[0])
        there = np.uint32(min(found, bands.room))
        find_stacks(homes.bins, number, boxes, there, bands, height, listed, counts)
        cuda.syncthreads()
        there, place = np.uint32(counts[1]), np.uint32(cuda.threadIdx.y)
        while place < there:
            box, ph, first_bin, last_bin = stack_at(listed, place)
            own = taps_at(taps, box, ph, first_bin, last_bin, pw, height)
            stack_sums(features, strides, band, quad, taps, *own, sums, more, zero)
            to = element_at(out_strides, start + np.intp(box), quad.channel, ph, pw)
            write_stack(out, to, out_strides, quad.there, sums, first_bin, last_bin)
            place = np.uint32(place + np.uint32(cuda.blockDim.y))
        if found > bands.room:
            cuda.syncthreads()
            if cuda.threadIdx.x == 0 and cuda.threadIdx.y == 0:  # `thread` would be kept for it
                counts[0] = counts[1] = 0
            cuda.syncthreads()


@cuda.jit(**bounded(BAND_THREADS, 2))
def schedule_bands(
    features, strides, start, bins, taps, bands, homes, zero, out, out_strides, channels
):
    """Pool RoIs whose bins a thread holds, by tables that are filled."""
    pool_band(
        features, strides, start, bins, taps, bands, homes, zero, out, out_strides, channels,
        False,
    )  # fmt: skip


@cuda.jit(**bounded(WIDE_THREADS, 2))
def schedule_wide_bands(
    features, strides, start, bins, taps, bands, homes, zero, out, out_strides, channels
):
    """As `schedule_bands`, of bins however wide."""
    pool_band(
        features, strides, start, bins, taps, bands, homes, zero, out, out_strides, channels,
        True,
    )  # fmt: skip
