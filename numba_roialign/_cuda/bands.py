"""The CUDA schedule of an average of many boxes: a block for a band of the map and some channels.

Boxes that lie on each other read the same pixels again and again, each time by way of the L2 cache.
Here a block packs some rows of the map into shared memory, four channels of a pixel side by side,
and pools from there whatever bins begin in its band: a tap of four channels is one load. Rows that
a bin taps beyond the band are read from the map.

Neighbouring threads take the next four channels of a bin, and then the next bin.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numba import config, cuda

from .. import _kernels
from .box_tables import (
    AT_ONCE,
    HALF_WARP,
    bounds_of,
    copy_table,
    fill_table,
    is_pooled,
    pixel_of,
    shared_table,
    table_of,
    weight_of,
)
from .indices import split, this_thread
from .launches import bounded
from .lines import HELD

element_at = cuda.jit(device=True)(_kernels.element_at)

QUAD = 4  # channels of a thread: of float32 16 bytes, which is the most that it loads at once
WARP = 32  # threads
PIXELS = 4  # of a quad, that a thread reads at once to pack them
PACKED = PIXELS * QUAD  # numbers
CHUNK = np.uint32(PIXELS * WARP)  # pixels, that a warp packs at once
TAPPED = AT_ONCE * QUAD  # numbers, that a thread reads at once to pool
BAND_THREADS = 448  # of a block, at most: 64 times 7 bins; two blocks fit a multiprocessor
LISTED = 1024  # rows of bins that a block knows of at a time
LOOKS = 4  # homes that a thread looks at, at once
HOUSED = 4  # rows of bins: one number of 64 bits has their homes
HOME_BITS = 16
NO_BAND = (1 << HOME_BITS) - 1
NOWHERE = np.uint64(0xFFFFFFFFFFFFFFFF)


class Bands(NamedTuple):
    """How blocks divide a map and its boxes. In 32 bits."""

    height: int  # of the map
    width: int
    count: int  # bands of an image
    step: int  # rows from where one begins to where the next does
    rows: int  # of a band: it has those of the next that its bins may tap too
    quads: int  # of channels, of a block: as many threads share a bin
    apart: int  # pixels, from one quad's to the next's
    groups: int  # of such
    share: int  # homes of boxes, of a block
    all: int  # homes, of all boxes
    homes: int  # of a box


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


class Taps(NamedTuple):
    """The taps of a batch of boxes, two numbers of 32 bits in each of 64: one load for both."""

    bounds: np.ndarray  # of each box the bins of y, and those of x: the first slot, and the end
    slots: np.ndarray  # the pixel, and the bits of the weight
    bins: int  # of a box, along y and x; in 32 bits
    apart: int  # slots, from one box's to the next's


@cuda.jit(device=True)
def joined(low, high):
    return np.uint64(np.uint64(low) | np.uint64(np.uint64(high) << np.uint64(32)))


@cuda.jit(device=True)
def parts_of(number):
    """Return the two numbers of 32 bits of one of 64."""
    return np.uint32(number & np.uint64(0xFFFFFFFF)), np.uint32(number >> np.uint64(32))


@cuda.jit(device=True)
def span_of(taps, row, p):
    """Return the first slot of a box's bin, and the one after the last."""
    first, end = parts_of(taps.bounds[np.uintp(np.uint32(row * taps.bins + p))])
    start = np.uint32(row * taps.apart)
    return np.uint32(start + first), np.uint32(start + end)


@cuda.jit(device=True)
def tap_of(taps, slot, further=0):
    """Return the pixel and the weight of a slot, or of one a constant number further."""
    pixel, bits = parts_of(taps.slots[np.uintp(slot) + np.uintp(further)])
    return pixel, bits.view(np.float32)


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
def pack_quad(features, strides, band, cells, quad, starts, values):
    """Read the pixels of a quad into shared memory: several of a thread at once.

    Rows of the map lie one after the other. A warp takes neighbouring pixels, at constant distances
    from those that it begins with: three instructions for a number, which were ten.
    """
    thread, threads = this_thread()
    (warp, lane), warps = split(thread, WARP), split(threads, WARP)[0]
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
def pack(features, strides, band, quads, zero):
    """Read a band into shared memory."""
    starts, values = cuda.local.array(QUAD, np.uintp), cuda.local.array(PACKED, type(zero))
    cells, number = np.uint32(band.rows * band.width), np.uint32(0)
    while number < quads:
        quad = quad_of(band, number, strides)
        if quad.there > 0:
            pack_quad(features, strides, band, cells, quad, starts, values)
        number = np.uint32(number + 1)


@cuda.jit(device=True)
def add_taps(band, origin, pixels, weights, place, values, line):
    """Add `AT_ONCE` taps of a packed row to the sums of a quad, those from a place on."""
    for t in range(AT_ONCE):
        at = np.uintp(np.uint32(origin + pixels[place + t])) * np.uintp(QUAD)
        for k in range(QUAD):  # one load, since the memory is aligned
            values[t * QUAD + k] = band.numbers[at + np.uintp(k)]
    for t in range(AT_ONCE):
        for k in range(QUAD):
            line[k] += weights[place + t] * values[t * QUAD + k]


@cuda.jit(device=True)
def hold(taps, first, end, pixels, weights, place):
    """Keep `AT_ONCE` taps of a bin in registers, if there are more from a slot on."""
    if first < end:
        for t in range(AT_ONCE):
            pixels[place + t], weights[place + t] = tap_of(taps, first, t)


@cuda.jit(device=True)
def add_beyond(features, origin, strides, there, taps, first, end, line):
    """Add the taps of a row that is not packed to the sums of a quad."""
    Index, hop = type(strides.channel), np.uintp(strides.channel)
    while first < end:
        pixel, weight = tap_of(taps, first)
        at = origin + np.uintp(Index(strides.column * Index(pixel)))
        for k in range(QUAD):
            if np.uint32(k) < there:
                line[k] += weight * features[at]
            at += hop
        first = np.uint32(first + 1)


@cuda.jit(device=True)
def bin_sums(features, strides, band, quad, taps, rows, columns, sums, more, zero):
    """Write to `sums` those of a bin, by `rows` and `columns`, the slots of its taps.

    `more`, whether it may have more columns than are held, is a constant of a kernel.
    """
    pixels, weights = cuda.local.array(HELD, np.uint32), cuda.local.array(HELD, type(zero))
    others, shares = cuda.local.array(AT_ONCE, np.uint32), cuda.local.array(AT_ONCE, type(zero))
    line, values = cuda.local.array(QUAD, type(zero)), cuda.local.array(TAPPED, type(zero))
    Index, (slot, last), (first, end) = type(strides.channel), rows, columns
    for k in range(QUAD):
        sums[k] = zero
    for t in range(0, HELD, AT_ONCE):
        hold(taps, np.uint32(first + t), end, pixels, weights, t)
    while slot < last and first < end:
        row, weight = tap_of(taps, slot)
        here = np.uint32(row - band.first)
        for k in range(QUAD):
            line[k] = zero
        if here < band.rows:
            origin = np.uint32(here * band.width + quad.place)
            for t in range(0, HELD, AT_ONCE):
                if np.uint32(first + t) < end:
                    add_taps(band, origin, pixels, weights, t, values, line)
            column = np.uint32(first + HELD)
            while more and column < end:
                hold(taps, column, end, others, shares, 0)
                add_taps(band, origin, others, shares, 0, values, line)
                column = np.uint32(column + AT_ONCE)
        else:
            origin = quad.start + np.uintp(Index(strides.row * Index(row)))
            add_beyond(features, origin, strides, quad.there, taps, first, end, line)
        for k in range(QUAD):
            sums[k] += weight * line[k]
        slot = np.uint32(slot + 1)


@cuda.jit(device=True)
def home_of(table, ph, bands):
    """Return the band in which a row of bins begins: the first, if it taps nothing."""
    row, (first, last) = np.uint32(0), bounds_of(table, ph)
    if first < last:
        row = pixel_of(table, first)
    return np.uint32(np.uint32(table.head[0]) * bands.count + split(row, bands.step)[0])


@cuda.jit(device=True)
def homes_of(table, ph, height, bands):
    """Return the homes of `HOUSED` rows of bins."""
    homes = np.uint64(0)
    for k in range(HOUSED):
        home, row = np.uint64(NO_BAND), np.uint32(ph + k)
        if row < height:
            home = np.uint64(home_of(table, row, bands))
        homes |= np.uint64(home << np.uint64(k * HOME_BITS))
    return homes


@cuda.jit(device=True)
def join_taps(taps, table, row, p, first, end):
    """Write the taps of a bin of a box as they are read."""
    taps.bounds[np.uintp(np.uint32(row * taps.bins + p))] = joined(first, end)
    while first < end:
        place = np.uintp(np.uint32(row * taps.apart + first))
        bits = weight_of(table, first).view(np.uint32)
        taps.slots[place] = joined(pixel_of(table, first), bits)
        first = np.uint32(first + 1)


@cuda.jit
def schedule_homes(
    rois, start, sampling, convention, slots, places, most_taps, tables, taps, bands,
    homes, zero, out, out_strides, channels,
):  # fmt: skip
    """Find the taps of the RoIs from `start` on, and in which band each row of bins begins.

    A block has a RoI. One that cannot be pooled has no home, and is written here. Nor has one with
    a bin of more rows or columns than `most_taps`: it alone is left to `schedule_large`, and its
    table is kept.
    """
    has_large = cuda.shared.array(1, np.uint32)
    row, (thread, threads) = np.uint32(cuda.blockIdx.x), this_thread()
    height, width = np.uint32(sampling.output_height), np.uint32(sampling.output_width)
    # In shared memory: of tables in the device's, threads wait 270 cycles to merge a tap.
    table, kept, item = shared_table(places, zero), table_of(tables, row), thread
    if thread == 0:
        has_large[0] = 0
    fill_table(table, rois, start + np.intp(row), sampling, convention, slots, zero)
    cuda.syncthreads()
    is_valid = is_pooled(table)
    while is_valid and item < height + width:
        first, end = bounds_of(table, item)
        if np.uint32(end - first) > most_taps:
            has_large[0] = 1
        join_taps(taps, table, row, item, first, end)
        item = np.uint32(item + threads)
    cuda.syncthreads()
    is_left, item = has_large[0] != 0, thread
    bins = sampling.output_height, sampling.output_width
    copy_table(table, kept, bins, max(table.head[1], HALF_WARP) if is_left else 1)
    while item < bands.homes:
        has_home, ph = is_valid and not is_left, np.uint32(item * HOUSED)
        found = homes_of(table, ph, height, bands) if has_home else NOWHERE
        homes[np.uintp(np.uint32(row * bands.homes + item))] = found
        item = np.uint32(item + threads)
    cells, item = np.uint32(height * width), thread
    while not is_valid and item < np.uint32(channels) * cells:
        channel, cell = split(item, cells)
        to = element_at(out_strides, start + np.intp(row), channel, *split(cell, width))
        out[to] = zero * type(zero)(math.nan)
        item = np.uint32(item + threads)


@cuda.jit(device=True)
def home_at(homes, k):
    """Return one of the homes in a number of 64 bits, a constant number of them further."""
    half = parts_of(homes)[0 if 2 * k < HOUSED else 1]
    return np.uint32(half >> np.uint32(k % 2 * HOME_BITS)) & np.uint32(NO_BAND)


@cuda.jit(device=True)
def list_rows(homes, number, first, place, done, listed):
    """List those of a few rows of bins whose home is a band, but for as many as are done.

    They take places from one on, of which there are `LISTED`.
    """
    for k in range(HOUSED):
        if home_at(homes, k) == number:
            if done > 0:
                done = np.uint32(done - 1)
            elif place < LISTED:
                listed[0, place] = np.uint32(first + k)
                place = np.uint32(place + 1)


@cuda.jit(device=True)
def find_rows(homes, number, item, done, last, listed, counts, looks):
    """List the rows of bins whose home is a band, a thread those of some items.

    Rows of a box stand side by side: threads of a warp then have as many rows of pixels to add, and
    fewer of them read the same banks (P2 takes 0.92 of the time, simulated). Return the item at
    which the thread goes on when there is room again, and how many of its rows are done.
    """
    threads, is_full = this_thread()[1], False
    while item < last and not is_full:
        for i in range(LOOKS):
            at = np.uint32(item + np.uint32(i) * threads)
            looks[i] = homes[np.uintp(at)] if at < last else NOWHERE
        for i in range(LOOKS):
            found = np.uint32(0)
            for k in range(HOUSED):
                found = np.uint32(found + np.uint32(home_at(looks[i], k) == number))
            if found > done and not is_full:
                place = np.uint32(cuda.atomic.add(counts, 0, np.uint32(found - done)))
                list_rows(looks[i], number, np.uint32(item * HOUSED), place, done, listed)
                room = np.uint32(max(np.uint32(LISTED), place) - place)
                is_full = np.uint32(found - done) > room
                if is_full:
                    done = np.uint32(done + room)
            if not is_full:
                item, done = np.uint32(item + threads), np.uint32(0)
    return item, done


@cuda.jit(device=True)
def split_rows(listed, found, rows):
    """Make a RoI and its row of bins of each place that is listed; a RoI has `rows` of them."""
    place, threads = this_thread()
    while place < found:
        listed[0, place], listed[1, place] = split(listed[0, place], rows)
        place = np.uint32(place + threads)


@cuda.jit(device=True)
def write_quad(out, to, hop, there, sums):
    """Write the sums of a bin, for the channels that there are."""
    if there == QUAD:
        for k in range(QUAD):
            out[to + np.uintp(k) * hop] = sums[k]
    else:
        for k in range(QUAD):
            if np.uint32(k) < there:
                out[to + np.uintp(k) * hop] = sums[k]


@cuda.jit(device=True)
def pool_band(
    features, strides, start, bins, taps, bands, homes, zero, out, out_strides, channels, more
):
    """Pack the band of this block and pool the bins that begin in it, of its share of the RoIs."""
    number_type = cuda.local.array(1, type(zero))  # since the simulator wants a dtype
    (numbers,) = asked_for(number_type.dtype)
    listed = cuda.shared.array((2, LISTED), np.uint32)
    counts = cuda.shared.array(1, np.uint32)
    sums, looks = cuda.local.array(QUAD, type(zero)), cuda.local.array(LOOKS, np.uint64)
    height = np.uint32(bins[0])
    number, (part, group) = np.uint32(cuda.blockIdx.y), split(cuda.blockIdx.x, bands.groups)
    band = band_of(number, group, bands, strides, channels, numbers)
    pack(features, strides, band, bands.quads, zero)
    thread, hop = this_thread()[0], np.uintp(out_strides.channel)
    pw, place = split(cuda.threadIdx.x, bands.quads)
    quad = quad_of(band, place, strides)
    origin = element_at(out_strides, start, quad.channel, 0, pw)
    item = np.uint32(part * bands.share)
    last = np.uint32(min(bands.all, np.uint32(item + bands.share)))
    item, done, found = np.uint32(item + thread), np.uint32(0), np.uint32(LISTED + 1)
    while found > LISTED:
        if thread == 0:
            counts[0] = 0
        cuda.syncthreads()
        item, done = find_rows(homes, number, item, done, last, listed, counts, looks)
        cuda.syncthreads()
        found, place = np.uint32(counts[0]), np.uint32(cuda.threadIdx.y)
        there = np.uint32(min(found, np.uint32(LISTED)))
        split_rows(listed, there, np.uint32(bands.homes * HOUSED))
        cuda.syncthreads()
        while place < there:
            row, ph = listed[0, place], listed[1, place]
            rows, columns = span_of(taps, row, ph), span_of(taps, row, np.uint32(height + pw))
            bin_sums(features, strides, band, quad, taps, rows, columns, sums, more, zero)
            to = origin + np.uintp(row) * np.uintp(out_strides.image)
            to += np.uintp(ph) * np.uintp(out_strides.row)
            write_quad(out, to, hop, quad.there, sums)
            place = np.uint32(place + np.uint32(cuda.blockDim.y))
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


@cuda.jit(**bounded(BAND_THREADS, 2))
def schedule_wide_bands(
    features, strides, start, bins, taps, bands, homes, zero, out, out_strides, channels
):
    """As `schedule_bands`, of bins however wide."""
    pool_band(
        features, strides, start, bins, taps, bands, homes, zero, out, out_strides, channels,
        True,
    )  # fmt: skip
