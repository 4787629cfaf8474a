"""The average of a call's boxes on a device: which kernel pools them, and how they are divided."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .._geometry import Sampling
from . import launches
from .box_tables import (
    capacities,
    empty_tables,
    schedule_tables,
    shared_places,
)
from .indices import narrowed_within
from .large import pool_large
from .launches import MOST_BLOCKS, TAKEN_BYTES, Limits, configured
from .lines import HELD
from .walks import (
    COLOURS,
    OWN,
    Division,
    schedule_boxes,
    schedule_colours,
    schedule_few,
    schedule_narrow,
    schedule_tabled,
    schedule_unheld,
)

THREADS = 128  # of a block
WIDE_THREADS = 256  # where rows of bins are long, or channels come last
WARP = 32  # threads; no bin has more
# Warps of a kernel that a multiprocessor holds, by the registers that float32 takes of its 2^16 for
# capability 9.0: up to a third less for others.
WARPS = {
    schedule_boxes: 28,
    schedule_colours: 28,
    schedule_unheld: 28,
    schedule_narrow: 28,
    schedule_tabled: 24,
}
# Rows of bins that a thread pools in the time in which a block fills its table: of one sample in a
# picture or in other maps, or of as many as a box has.
FILLING, MORE_FILLING, ADAPTIVE_FILLING = 3, 6, 2
UNEVEN = 1.4  # time of the largest boxes, by the mean
TAIL = 0.5  # of a block's time, in which the last ones of more than a wave run
SECOND = 1.8  # of a block's time: what a few blocks more than a wave take
# Threads that a device has room for at once. Of no more bins of a channel each has a thread.
RESIDENT = 1 << 18
SHARED_BYTES = launches.SHARED_BYTES - 16  # less what tables begin with
GROUPS_LAST = 32  # that take channels side by side: a warp
SHORT_ROW = 32  # bins, less than which are written in pieces of sectors
WIDE_TAPS = 16  # of a bin, from which on boxes of wide bins are left to `large`
STAGED_BYTES = 26 << 10  # of a part: with more, too few blocks fit on a multiprocessor


def ceil_div(size, by):
    return -(-size // by)


def time_of(blocks, at_once, cost, uneven, tail, second=0):
    """Return how long blocks take of which each takes so much, in the mean."""
    return cost * (uneven if blocks <= at_once else max(second, blocks / at_once + tail))


def batches_of(tables, rois):
    """Give the batches of RoIs for which there are tables: the first, and how many."""
    rows = tables.head.shape[0]
    for start in range(0, rois.shape[0], rows):
        yield start, min(rows, rois.shape[0] - start)


def most_taps(bins, samples, length):
    """Return how many taps a bin of an axis can have whose box lies in the map."""
    return 2 * samples if samples > 0 else length // bins + 3


class Case(NamedTuple):
    """What decides how a call is divided: a number for each, but for the limits of a device."""

    sampling: Sampling
    rois: int
    channels: int
    number_bytes: int  # of the accumulator's
    limits: Limits


def narrowed_source(source, case):
    """Return a flat array and its strides, in 32 bits where an image reaches no further."""
    features, strides = source
    sizes = case.channels, case.sampling.height, case.sampling.width
    return features, narrowed_within(strides, sizes)


class Average:
    """The average of a call's boxes: its kernel, how this divides boxes, and tables."""

    def __init__(self, rois, geometry, queue, case, batch_bytes, is_last, is_packed):
        self.rois, self.queue, self.case = rois, queue, case
        self.channels = case.channels
        self.is_last, self.is_packed = is_last, is_packed
        self.sampling, self.convention, self.zero = geometry
        self.bins = self.sampling.output_height, self.sampling.output_width
        self.slots, number = capacities(self.sampling), self.zero.dtype
        _, self.table_bytes = shared_places(self.sampling, number, 0)
        self.kernel = self.choose()
        self.own = COLOURS if self.kernel is schedule_colours else OWN
        self.numbers = 0  # that the threads of a block share
        if self.kernel is schedule_few:
            self.divide_bins()
        else:
            self.divide_columns()
        self.shared_bytes = self.shared_bytes_of(self.numbers)
        if self.kernel is not schedule_tabled:
            self.places, _ = shared_places(self.sampling, number, self.numbers)
        if self.kernel in (schedule_narrow, schedule_tabled):
            self.tables = empty_tables(
                queue.empty, rois.shape[0], self.sampling, number, batch_bytes
            )

    def most_taps(self):
        """Return how many taps a bin of a row can have whose box lies in the map."""
        sampling = self.sampling
        return most_taps(sampling.output_width, sampling.samples_x, sampling.width)

    @property
    def is_wide(self):
        """Whether boxes may have bins so wide that they are left to `large`."""
        return self.most_taps() > WIDE_TAPS and not self.is_last

    def choose(self):
        """Return the kernel: shared memory must hold the table, and a thread the taps of a bin."""
        if self.table_bytes > SHARED_BYTES:
            return schedule_tabled
        if self.is_wide:
            return schedule_narrow
        if self.rois.shape[0] * self.channels * math.prod(self.bins) <= RESIDENT:
            return schedule_few
        if not 0 < 2 * self.sampling.samples_x <= HELD:
            return schedule_unheld
        return schedule_colours if self.channels <= COLOURS else schedule_boxes

    def divide_bins(self):
        """Find how blocks divide boxes where each bin of a channel has a thread.

        A part is one block's, for the kernel has no loop over parts: `RESIDENT` leaves 2^13 of them
        at most, far below `MOST_BLOCKS`.
        """
        bins, channels = math.prod(self.bins), self.channels
        threads = WIDE_THREADS if self.is_last or channels * bins <= WIDE_THREADS else THREADS
        most = GROUPS_LAST if self.is_last else max(1, threads // bins)
        across = ceil_div(channels, most)
        groups = ceil_div(channels, across)
        columns = min(bins, threads // groups)
        down = ceil_div(bins, columns)
        self.threads = (groups, columns) if self.is_last else (columns, groups)
        self.parts = across * down
        numbers = across, down, groups, columns, 1, 1
        self.division = Division(*map(np.uint32, numbers), self.is_last, False)

    def divide_columns(self):
        """Find how blocks divide boxes where threads walk down columns of bins."""
        (height, width), rois = self.bins, self.rois.shape[0]
        owners = ceil_div(self.channels, self.own)
        threads = WIDE_THREADS if self.is_last or width >= SHORT_ROW else THREADS
        columns = min(width, threads // min(owners, GROUPS_LAST) if self.is_last else threads)
        walkers = threads // columns
        across = ceil_div(owners, min(walkers, GROUPS_LAST) if self.is_last else walkers)
        groups = ceil_div(owners, across)
        across = ceil_div(owners, groups)
        ways = []
        for part in {ceil_div(height, down) for down in range(1, height + 1)}:
            walks = min(part, max(1, walkers // groups))
            rows = ceil_div(part, walks)
            down = ceil_div(height, rows * walks)
            staged = self.staged(self.own * groups * walks * rows * width)
            at_once = self.blocks_at_once(groups * columns * walks, staged)
            cost = rows + self.filling()
            time = time_of(rois * across * down, at_once, cost, UNEVEN, TAIL, SECOND)
            ways.append((time, down, walks, rows, staged))
        _, down, walks, rows, staged = min(ways)
        along, self.parts = groups * walks, across * down
        self.threads = (groups, columns * walks) if self.is_last else (columns, along)
        numbers = across, down, groups, columns, walks, rows
        self.division = Division(*map(np.uint32, numbers), self.is_last, staged > 0)
        self.numbers = staged

    def filling(self):
        """Return how many rows of bins a thread pools while a block fills its table."""
        if self.sampling.samples_y <= 0:
            return ADAPTIVE_FILLING
        rows = FILLING if self.kernel is schedule_colours else MORE_FILLING
        return rows / self.sampling.samples_y

    def shared_bytes_of(self, numbers):
        """Return what a block asks for whose threads share so many numbers."""
        table_bytes = 0 if self.kernel is schedule_tabled else self.table_bytes
        return table_bytes + numbers * self.zero.itemsize

    def staged(self, numbers):
        """Return how many numbers of a part meet in shared memory: all of them or none."""
        is_short = self.is_packed and not self.is_last and self.bins[1] < SHORT_ROW
        room = min(STAGED_BYTES, SHARED_BYTES - self.shared_bytes_of(0))
        return numbers if is_short and numbers * self.zero.itemsize <= room else 0

    def blocks_at_once(self, threads, numbers):
        """Return how many blocks a device holds at once.

        A few more would run alone at the end: by the registers of then that is why `few_4x2048`
        took 1.35 times as long on an H200 with twice as many blocks.
        """
        warps, shared_bytes = ceil_div(threads, WARP), self.shared_bytes_of(numbers)
        fit = self.case.limits.shared_bytes // (shared_bytes + TAKEN_BYTES)
        return self.case.limits.multiprocessors * max(1, min(fit, WARPS[self.kernel] // warps))

    def pool(self, source, target):
        """Pool all boxes; `source` and `target` are a flat array and its strides each."""
        rois, source = self.rois, narrowed_source(source, self.case)
        if self.kernel not in (schedule_narrow, schedule_tabled):
            self.configured(self.kernel, rois.shape[0])(
                *source, rois, *self.how(), self.places, self.division, self.zero,
                *target, self.channels,
            )  # fmt: skip
            return
        for start, count in batches_of(self.tables, rois):
            if self.kernel is schedule_narrow:
                self.pool_narrow(source, target, start, count)
            else:
                self.pool_tabled(source, target, start, count)
            if self.is_wide:
                pool_large(
                    self.case, source, self.tables, start, count, self.queue, self.zero, target
                )

    def how(self):
        """Return what a box's table is filled by."""
        return self.sampling, self.convention, self.slots

    def pool_narrow(self, source, target, start, count):
        """Pool boxes of narrow bins, and keep the tables of the others."""
        self.configured(schedule_narrow, count)(
            *source, self.rois, start, *self.how(), self.places, self.division, self.tables,
            self.zero, *target, self.channels,
        )  # fmt: skip

    def pool_tabled(self, source, target, start, count):
        """Fill tables that shared memory does not hold, and pool boxes by them."""
        configured(schedule_tables, count, min(THREADS, sum(self.bins)), self.queue)(
            self.rois, start, *self.how(), self.tables, self.zero
        )
        most_lanes = 1 if self.is_wide else WARP
        self.configured(schedule_tabled, count)(
            *source, self.tables, start, self.bins, most_lanes, self.division, self.zero,
            *target, self.channels,
        )  # fmt: skip

    def configured(self, kernel, rois):
        """Return a function that launches a kernel on some boxes."""
        blocks = rois, min(self.parts, MOST_BLOCKS)
        return configured(kernel, blocks, self.threads, self.queue, self.shared_bytes)
