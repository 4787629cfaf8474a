"""The average of many boxes on a device by bands of the map: when, and how blocks divide them."""

from __future__ import annotations

import numpy as np

from .average import batches_of, ceil_div, most_taps, narrowed_source, time_of
from .bands import (
    BAND_THREADS,
    CHUNK,
    LISTED,
    QUAD,
    WIDE_THREADS,
    Bands,
    schedule_bands,
    schedule_wide_bands,
)
from .box_tables import capacities, empty_tables
from .homes import FILLERS, Fillers, schedule_homes
from .indices import in_32_bits, narrowed, reciprocal_of
from .large import pool_large
from .launches import DECLARED_BYTES, TAKEN_BYTES, configured
from .lines import HELD
from .stacks import MOST_BANDS, MOST_HEIGHT, MOST_SLOTS, STACK, Homes, Taps

EIGHTH = 8  # of all banks are what one thread loads
BLOCKS_AT_ONCE = 2  # of a multiprocessor, which share its memory
RESERVED_BYTES = DECLARED_BYTES + TAKEN_BYTES  # of each block's, its list among them
BEYOND = 3  # rows of the next band that a band has too: those that most of its bins may tap
LEAST_ROWS = 4  # that begin in a band: with fewer, most of what is packed is packed twice
BINS_OF_PIXEL = 1 / 6  # of a channel, from which on packing all of the maps is worth it
LEAST_OUTPUTS = 1 << 20  # of a call: of few, a second launch is most of the time
MOST_COLOURS = 4  # channels, for which rows are long and threads read them as fast from the map
# Taps of a bin along an axis. With more, a band has not its rows, and several threads share it.
MOST_TAPS = 13
NEVER = 1 << 31  # taps
# What a bin of a quad costs, in pixels packed, where so many threads share it: by the conflicts of
# banks, and by the pieces in which it is written.
BIN_COSTS = {1: 6.8, 2: 5.8, 4: 5.2}
BEYOND_COST = 1.5  # rows of a band, in whose time a bin reads what it taps beyond
LOOK_COST = 0.2  # of a box that a block looks at, to find those that reach its band
LOOKS_OF_RESULT = 2  # at most: else most blocks look in vain
MOST_QUADS = 4  # of channels, of a block
UNEVEN = 1.4  # bins of the fullest of several bands, by the mean
PARTED = 1.15  # bins of the fullest of several parts of the boxes
TAIL = 0.3  # of a block's time, in which the last ones of more than a wave run
MOST_PARTS = 16  # of the boxes: each packs its bands anew


def is_held(sampling):
    """Say whether a thread holds the columns of a bin's taps."""
    return 0 < 2 * sampling.samples_x <= HELD


def threads_of(sampling):
    """Return how many threads a block has, at most."""
    return BAND_THREADS if is_held(sampling) else WIDE_THREADS


def rows_of(case, quads):
    """Return how many rows fit a band of so many quads of channels; 0 if too few."""
    sampling, limits = case.sampling, case.limits
    across = quads * sampling.output_width
    if quads >= 2 * ceil_div(case.channels, QUAD) or across > threads_of(sampling):
        return 0
    room = min(limits.shared_bytes // BLOCKS_AT_ONCE, limits.block_bytes) - RESERVED_BYTES
    rows = min(sampling.height, room // (case.number_bytes * QUAD * quads * sampling.width))
    return rows if rows >= min(sampling.height, LEAST_ROWS + BEYOND) else 0


def pixels_apart(pixels, quads):
    """Return how far a band's quads lie apart, so that threads that share a bin use other banks.

    Eight threads load at once, each four of 32 banks.
    """
    return pixels + (EIGHTH // quads - pixels) % EIGHTH


def divisions(case):
    """Give some ways to divide maps and boxes: first how long each may take, in pixels packed.

    Some, for a call with another number of boxes is planned anew: all took 3 ms.
    """
    sampling, at_once = case.sampling, BLOCKS_AT_ONCE * case.limits.multiprocessors
    height, width, rois = sampling.height, sampling.width, case.rois
    stacks = ceil_div(sampling.output_height, STACK)
    bins_of_box = sampling.output_height * sampling.output_width
    room = LISTED // stacks
    if not room:
        return
    for quads in [quads for quads in BIN_COSTS if quads <= MOST_QUADS]:
        fit, groups = rows_of(case, quads), ceil_div(case.channels, QUAD * quads)
        if not fit:
            continue
        least = 1 if fit == height else ceil_div(height, fit - BEYOND)
        for wanted in range(least, 2 * least + 1, ceil_div(least, 4)):
            step = ceil_div(height, wanted)
            count, rows = ceil_div(height, step), min(height, step + BEYOND)
            # A warp packs so many pixels at once: of a band with fewer it would read others.
            if rows * width < CHUNK or sampling.images * count >= MOST_BANDS:
                continue
            units = sampling.images * count * groups
            bin_cost = BIN_COSTS[quads] * (1 if count == 1 else 1 + BEYOND_COST / step)
            for parts in {min(n * at_once // units, MOST_PARTS, rois) for n in (1, 2)} | {1}:
                if parts < 1:
                    continue
                share = ceil_div(rois, parts)
                bins = share * bins_of_box / (sampling.images * count)
                cost = quads * (rows * width + bin_cost * bins) + LOOK_COST * share
                apart = pixels_apart(rows * width, quads)
                bands = Bands(
                    height, width, count, step, reciprocal_of(step), rows, quads, apart, groups,
                    share, rois, stacks, reciprocal_of(stacks), room,
                )  # fmt: skip
                uneven = UNEVEN if count > 2 else PARTED if parts > 1 else 1
                time = time_of(units * parts, at_once, cost, uneven, TAIL)
                yield time, (units, parts), bands


def division_of(case):
    """Return how blocks divide maps and boxes, and how many there are; None if they cannot."""
    found = min(divisions(case), default=None)
    return found and (in_32_bits(found[2]), found[1])


def bins_of(case):
    """Return how many bins a call has of each channel."""
    return case.rois * case.sampling.output_height * case.sampling.output_width


def is_packable(case, strides):
    """Say whether packing all pixels of the maps is worth it, which is of rows without gaps."""
    sampling = case.sampling
    return (
        case.number_bytes <= 4  # float64 would spill
        and (strides.row, strides.column) == (sampling.width, 1)
        and case.channels > MOST_COLOURS
        and bins_of(case) >= BINS_OF_PIXEL * sampling.images * sampling.height * sampling.width
        and sampling.height <= MOST_HEIGHT
        and max(capacities(sampling)) <= MOST_SLOTS
    )


def suits(case, strides):
    """Say whether a call goes by bands."""
    bins = bins_of(case)
    if bins * case.channels < LEAST_OUTPUTS or not is_packable(case, strides):
        return False
    if (division := division_of(case)) is None:
        return False
    # Blocks of a band look at all boxes to find theirs: for many images, mostly in vain.
    bands, (units, _) = division
    looks = units * int(bands.all)
    return looks <= LOOKS_OF_RESULT * bins * case.channels


def fillers_of(stacks):
    """Return how threads find the taps of so many stacks."""
    lanes = max(1, FILLERS // stacks)
    return in_32_bits(Fillers(lanes, reciprocal_of(lanes), FILLERS // lanes))


class Banded:
    """The average of a call's boxes by bands: tables, and how they are launched."""

    def __init__(self, rois, geometry, queue, case, batch_bytes, is_packed):
        self.rois, self.queue, self.case = rois, queue, case
        self.sampling, self.convention, self.zero = geometry
        self.bins = self.sampling.output_height, self.sampling.output_width
        self.slots, number = capacities(self.sampling), self.zero.dtype
        # Half of what a batch may take, for its taps are there twice.
        self.tables = empty_tables(
            queue.empty, rois.shape[0], self.sampling, number, batch_bytes // 2
        )
        boxes, bins = self.tables.head.shape[0], sum(self.bins)
        bounds = queue.empty(boxes * bins, np.uint64)
        rows, columns = (
            queue.empty(boxes * slots, np.uint64) for slots in (2 * self.slots[0], self.slots[1])
        )
        numbers = bins, *self.slots, 0, 0, 0
        self.taps = Taps(bounds, rows, columns, *map(np.uint32, numbers))
        reaches, homes = queue.empty(boxes, np.uint32), queue.empty(boxes * self.bins[0], np.uint32)
        self.homes = Homes(reaches, homes)
        self.kernel = schedule_bands if is_held(self.sampling) else schedule_wide_bands

    def has_large(self):
        """Say whether a box that lies in the map can have bins of more than `MOST_TAPS`."""
        sampling, (height, width) = self.sampling, self.bins
        down = most_taps(height, sampling.samples_y, sampling.height)
        return max(down, most_taps(width, sampling.samples_x, sampling.width)) > MOST_TAPS

    def pool(self, source, target):
        """Pool all boxes; `source` and `target` are a flat array and its strides each."""
        rois, (out, out_strides) = self.rois, target
        source = narrowed_source(source, self.case)
        most = np.uint32(MOST_TAPS if self.has_large() else NEVER)
        fillers = fillers_of(ceil_div(self.bins[0], STACK)), fillers_of(self.bins[1])
        how = self.sampling, self.convention, self.slots, fillers, most
        result = out, narrowed(out_strides)
        for start, count in batches_of(self.tables, rois):
            bands, (units, parts) = division_of(self.case._replace(rois=count))
            # Blocks that share a multiprocessor then have other bands, of which some are fuller: P4
            # takes 0.94 of the time that it took with parts of the boxes last, simulated.
            blocks = parts * int(bands.groups), units // int(bands.groups)
            across = int(bands.quads) * self.bins[1]
            threads = across, threads_of(self.sampling) // across
            numbers = int(bands.quads) * int(bands.apart) * QUAD
            call = self.taps, bands, self.homes, self.zero, *result, self.case.channels
            configured(schedule_homes, count, (FILLERS, 2), self.queue)(
                rois, start, *how, self.tables, *call
            )
            configured(
                self.kernel, blocks, threads, self.queue, numbers * self.zero.dtype.itemsize
            )(*source, start, self.bins, *call)
            if self.has_large():
                pool_large(
                    self.case, source, self.tables, start, count, self.queue, self.zero, target
                )
