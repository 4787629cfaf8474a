"""Which schedules compute a CPU call: by its types, the map's strides and shape, and the bins.

Lanes are chosen here too, and how much scratch a thread needs.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from .._kernels import AVERAGE
from .._memory import LINE
from . import (
    average_channels,
    average_columns,
    average_gradient,
    average_lines,
    average_pixels,
    average_scalar,
    average_sparse,
    maximum_channels,
    maximum_gradient,
    maximum_scalar,
)
from . import found as at
from .job import PATCH, Compiled, compiled
from .kinds import Kinds
from .lanes import REGISTER

# Most lanes of a vector; 1 is the scalar schedule.
MOST_LANES = int(os.environ.get("NUMBA_ROIALIGN_LANES", "64"))
# Bytes of a vector of channels: four registers of AVX2. The index and the weight of a tap then
# serve four multiplications, and 50 x 76 maps are 1.25 times faster than with two registers.
LANE_BYTES = 128
# The same for packed maps with channels last: each block of channels passes over all pixels, from
# which it then reads more; 50 x 76 maps of 1024 channels are 1.3 times faster.
LANE_BYTES_LAST = 256
# The same for packed maps of more pixels than this, in either layout: their rows leave the caches.
# With 128 a box of all of a 200 x 304 map took 1.3 times as long, and with channels last
# mixed_adaptive 1.04 to 1.3; with 256 it took 2.7.
LARGE_MAP, LANE_BYTES_LARGE = 1 << 14, 64
# The same for whole pixels, channels last; for a gradient; for a maximum.
PIXELS_LANE_BYTES, GRADIENT_LANE_BYTES, MAX_LANE_BYTES = 256, 64, 64
# Packing what RoIs have in common pays where they read it at least so often: in 25 cases measured
# from 1.1 to 2 times on. Channels last, in 404 cases, from 5 to 12 times on, but from 8 or more
# where a pixel is one vector, which is read in place; on large maps, in 108 cases, from 9 to 20
# times on with adaptive samples, which tap columns side by side, and else from 15 to more than 40.
LINES_READS, PIXELS_READS, PIXELS_READS_WHOLE, PIXELS_READS_ADAPTIVE = 1.25, 9, 24, 14
# The longest row of a map of which a thread's scratch has a line.
LONGEST_LINE = 1 << 16
# Of fewer channels than these, columns take the lanes.
FEW_CHANNELS = 8


@dataclass(frozen=True, eq=False)
class Schedule:
    """What computes some RoIs of a call: a function of a thread and a job, and of which kinds."""

    work: Callable
    kinds: Kinds
    lanes: int
    blocks: int  # of channels; 0 where they are those of another schedule
    most_bins: int  # rows of bins in a task, at most
    scratch_size: int = 0  # of a thread, in numbers
    band_rows: int = 0  # of the map in a task, at most, where the map is cut into bands

    @functools.cached_property
    def compiled(self) -> Compiled:
        """Its machine code, which is made or loaded when it is first asked for."""
        return compiled(self.work, self.kinds, self.lanes)


class Schedules(NamedTuple):
    """What computes the RoIs of a call; a gradient's are all in `dense`."""

    dense: Schedule
    apart: Schedule | None = None  # where RoIs have few pixels in common
    reads: float = 0  # how often RoIs read at least what they have in common, else they are apart
    sparse: Schedule | None = None  # of RoIs that would read more pixels per tap than `limit`
    limit: int = 0
    packs: bool = False  # `dense` reads whole windows, and once what RoIs have in common

    def needed(self, found):
        """Return which compute a batch, by the field of a job that holds their address."""
        needed = {}
        if found[at.DENSE]:
            apart = found[at.APART]
            needed["apart_work" if apart else "dense_work"] = self.apart if apart else self.dense
        if found[at.SPLIT]:
            needed["sparse_work"] = self.sparse
        return needed

    @property
    def scratch_size(self):
        """What a thread needs for any of them, in numbers."""
        return max(s.scratch_size for s in (self.dense, self.apart, self.sparse) if s)

    def fields(self):
        """Return the fields of a job by which a batch is divided among them."""
        dense, apart, sparse = self.dense, self.apart or self.dense, self.sparse
        return {
            "apart_reads": self.reads, "sparse_limit": self.limit, "packs": self.packs,
            "dense_blocks": dense.blocks, "apart_blocks": apart.blocks,
            "most_bins": dense.most_bins, "apart_most_bins": apart.most_bins,
            "band_rows": apart.band_rows,
            "sparse_most_bins": sparse.most_bins if sparse else 0,
            "scratch_size": self.scratch_size,
        }  # fmt: skip


def most_lanes(kinds, size):
    """Return how many lanes a vector of some bytes has."""
    return min(MOST_LANES, size // kinds.number_bytes)


def fitting_lanes(channels, most):
    """Return how many lanes suit some channels: the most that leave few idle in the last block."""
    lanes = most
    while lanes > channels or (lanes > most // 2 and -channels % lanes > channels / 4):
        lanes //= 2
    return lanes


def average_schedules(kinds, strides, channels, sampling):
    """Return the schedules of an average; `strides` are the map's."""
    if MOST_LANES > 1 and channels >= FEW_CHANNELS and sampling.width <= LONGEST_LINE:
        packed = by_channels(kinds, strides, channels, sampling)
        if strides.channel == 1:
            apart = by_pixels(kinds, channels, sampling)
            return Schedules(packed, apart, pixels_reads(packed, kinds, sampling), packs=True)
        apart = by_lines(kinds, strides, channels, sampling)
        reads = LINES_READS if apart else 0
        sparse, limit = by_taps(kinds, sampling), average_channels.SPARSE
        return Schedules(packed, apart, reads, sparse, limit, packs=True)
    dense = by_columns(kinds, strides, channels, sampling)
    if dense:
        return Schedules(dense, sparse=by_taps(kinds, sampling), limit=average_columns.SPARSE)
    bins = sampling.output_height
    return Schedules(Schedule(average_scalar.work, kinds.types, 1, channels, bins))


def pixels_reads(packed, kinds, sampling):
    """Return how often RoIs must read pixels, channels last, for packing to pay."""
    if sampling.height * sampling.width > LARGE_MAP:
        return PIXELS_READS_WHOLE if sampling.samples_y > 0 else PIXELS_READS_ADAPTIVE
    whole = packed.blocks == 1 and packed.lanes * kinds.number_bytes == PIXELS_LANE_BYTES
    return PIXELS_READS_WHOLE if whole else PIXELS_READS


def by_channels(kinds, strides, channels, sampling):
    """Return the schedule of RoIs that have many pixels in common."""
    size = LANE_BYTES_LAST if strides.channel == 1 else LANE_BYTES
    if sampling.height * sampling.width > LARGE_MAP:
        size = LANE_BYTES_LARGE
    lanes = fitting_lanes(channels, most_lanes(kinds, size))
    bins, width = sampling.output_height, sampling.output_width
    window = average_channels.window_of(sampling.height, sampling.width)
    return Schedule(
        average_channels.work,
        kinds,
        lanes,
        blocks=-(-channels // lanes),
        most_bins=average_channels.most_rows(width),
        scratch_size=average_channels.scratch_size(bins, width, window, lanes),
    )


def by_lines(kinds, strides, channels, sampling):
    """Return the schedule of RoIs apart, or None where the map has no squares of columns."""
    if strides.column != 1 or sampling.width * kinds.number_bytes < PATCH:
        return None
    lanes = fitting_lanes(channels, most_lanes(kinds, LANE_BYTES))
    width, line = sampling.output_width, sampling.width
    most_bins = average_channels.most_rows(width)
    bins = min(sampling.output_height, most_bins)
    return Schedule(
        average_lines.work,
        kinds,
        lanes,
        blocks=-(-channels // lanes),
        most_bins=most_bins,
        scratch_size=average_lines.scratch_size(bins, width, line, lanes),
    )


def by_pixels(kinds, channels, sampling):
    """Return the schedule of RoIs apart, where channels lie side by side."""
    lanes = fitting_lanes(channels, most_lanes(kinds, PIXELS_LANE_BYTES))
    bins, width, vectors = sampling.output_height, sampling.output_width, -(-channels // lanes)
    pieces = min(vectors, average_pixels.pieces_of(channels, width))
    piece = -(-vectors // pieces) * lanes
    return Schedule(
        average_pixels.work,
        kinds,
        lanes,
        blocks=pieces,
        most_bins=bins,
        scratch_size=average_pixels.scratch_size(width, piece),
        band_rows=average_pixels.band_rows(sampling.width * piece * kinds.storage_bytes),
    )


def by_columns(kinds, strides, channels, sampling):
    """Return the schedule of few channels, or None where lines are too short, long or scattered."""
    beside = strides.channel == 1 and strides.column == channels  # channels last
    inner = channels if beside else 1
    line, results = sampling.width * inner, sampling.output_width * inner
    bins, most = sampling.output_height, LINE // kinds.number_bytes
    lanes = min(MOST_LANES, most if bins >= most else most // 2)
    if lanes == 1 or not (beside or strides.column == 1):
        return None
    if not lanes <= line <= LONGEST_LINE:
        return None
    return Schedule(
        average_columns.work,
        kinds.types,
        lanes,
        blocks=channels // inner,
        most_bins=bins,
        scratch_size=average_columns.scratch_size(line, results, lanes),
    )


def by_taps(kinds, sampling):
    """Return the schedule of sparse RoIs, which come among those of another."""
    lanes = min(average_sparse.MOST_COLUMNS, most_lanes(kinds, REGISTER))
    width = sampling.output_width
    most_bins = average_channels.most_rows(width)
    bins = min(sampling.output_height, most_bins)
    return Schedule(
        average_sparse.work,
        kinds.types,
        lanes,
        blocks=0,
        most_bins=most_bins,
        scratch_size=average_sparse.scratch_size(bins, width, lanes),
    )


def maximum_schedules(kinds, channels, sampling):
    """Return the schedules of a maximum."""
    most = most_lanes(kinds, MAX_LANE_BYTES)
    bins, width = sampling.output_height, sampling.output_width
    if most == 1 or channels < FEW_CHANNELS or bins * width > average_channels.CELLS:
        return Schedules(Schedule(maximum_scalar.work, kinds.types, 1, channels, bins))
    lanes = fitting_lanes(channels, most)
    window = average_channels.window_of(sampling.height, sampling.width)
    return Schedules(
        Schedule(
            maximum_channels.work,
            kinds,
            lanes,
            blocks=-(-channels // lanes),
            most_bins=bins,
            scratch_size=maximum_channels.scratch_size(bins, width, window, lanes),
        )
    )


def gradient_schedule(kinds, channels, sampling, mode, batched):
    """Return the schedule of a gradient.

    Where it is computed in batches, each of which adds to the one before, blocks do not overlap.
    """
    narrow, lanes = sampling.width <= LONGEST_LINE, 1
    most = most_lanes(kinds, GRADIENT_LANE_BYTES)
    if mode == AVERAGE and narrow:
        lanes = fitting_lanes(channels, most)
        if channels < FEW_CHANNELS <= most:
            lanes = 1 << (channels - 1).bit_length()  # with some to spare
        elif batched:
            lanes = math.gcd(lanes, channels)
    rows = min(sampling.height, average_gradient.band_rows(sampling.width, lanes))
    bins, width = sampling.output_height, sampling.output_width
    work, scratch_size = maximum_gradient.work, rows * sampling.width
    if mode == AVERAGE:
        work = average_gradient.work
        scratch_size = average_gradient.scratch_size(rows, sampling.width, width, lanes)
    return Schedule(work, kinds, lanes, -(-channels // lanes), bins, scratch_size, rows)
