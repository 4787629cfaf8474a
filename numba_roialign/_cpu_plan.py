"""A plan: what a CPU call does, as far as its arguments tell without the boxes.

Plans are kept: a call like one before computes nothing of this again.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import types

from . import (
    _cpu_channels,
    _cpu_columns,
    _cpu_found,
    _cpu_gradient,
    _cpu_lines,
    _cpu_max,
    _cpu_max_channels,
    _cpu_scalar,
    _cpu_sparse,
    _cpu_tables,
    _cpu_tasks,
    _cpu_winners,
)
from ._cpu_job import ADDRESSES, NUMBERS, POSITIONS, Compiled, compiled
from ._flat import element_strides, in_order
from ._geometry import Sampling
from ._kernels import AVERAGE, Strides
from ._lanes import REGISTER
from ._memory import LINE
from ._taps import sample_capacity, tap_capacity

# Bounds the tables of a call to 24 MB, as long as one RoI's fit.
BATCH_BYTES = 24 << 20
# A gradient goes over its map once for each batch, so it has larger ones.
GRADIENT_BATCH_BYTES = 96 << 20
# Below, in multiplications, a call runs on the calling thread alone. Waking threads takes 10 to
# 50 us, and milliseconds on a busy machine; this much work takes some 100 us.
SERIAL_WORK = 1 << 20
# Most lanes of a vector; 1 is the scalar schedule.
MOST_LANES = int(os.environ.get("NUMBA_ROIALIGN_LANES", "64"))
# A vector's bytes, four registers of AVX2: a tap's index and weight then serve four
# multiplications, which makes 50 x 76 maps 1.25 times faster than two registers do. With channels
# last twice that: each block of channels passes over all pixels, from which it reads twice as much,
# and 50 x 76 maps of 1024 channels are 1.3 times faster.
LANE_BYTES = 128
# With more pixels, half of either: the packed rows of a large map leave the cache, and a box of all
# of a 200 x 304 map took 1.3 times as long.
LARGE_MAP = 1 << 14
# The same for RoIs that have few pixels in common, whose scratch is a line, unless that is so long
# that it takes more than packed rows may.
LINES_LANE_BYTES = 256
# The same for a gradient.
GRADIENT_LANE_BYTES = 64
# The same for a maximum.
MAX_LANE_BYTES = 64
# Below, columns take the lanes instead of channels.
FEW_CHANNELS = 8

# Numba's types of what is stored and of what is summed; half types travel as their bits.
TYPES = {
    "float16": (types.uint16, types.float32),
    "bfloat16": (types.int16, types.float32),
    "float32": (types.float32, types.float32),
    "float64": (types.float64, types.float64),
}


@dataclass(frozen=True, eq=False)
class Schedule:
    """What computes some RoIs of a call: a function of a thread and a job, and in which types."""

    work: Callable
    storage: types.Type  # read
    result: types.Type  # written
    number: types.Type  # summed
    lanes: int
    blocks: int  # of channels
    most_bins: int  # rows of bins in a task, at most

    @functools.cached_property
    def compiled(self) -> Compiled:
        """Its machine code, which is made or loaded when it is first asked for."""
        return compiled(self.work, self.storage, self.result, self.number, self.lanes)


@dataclass(frozen=True, eq=False)
class Plan:
    """What a call does."""

    numbers: np.ndarray  # those fields of a job that all batches share, 0 for the others
    fill: Compiled
    divide: Compiled
    schedule: Schedule
    apart: Schedule | None  # of RoIs that have few pixels in common
    sparse: Schedule | None  # of RoIs that would read more pixels per tap than `limit`
    limit: int
    tables: dict[str, int]  # bytes of each table, per RoI
    batch_bytes: int  # of all tables
    channels: int
    sampling: Sampling
    bands: int  # of the map
    y_capacity: int  # taps of a RoI
    x_capacity: int
    can_stream: bool  # results can go around the caches
    scratch_bytes: int  # of a thread
    staging_size: int  # of a thread, in elements
    numbers_size: int  # of a thread
    result_bytes: int  # of an element

    @functools.cached_property
    def row_bytes(self):
        """Bytes of all tables, per RoI."""
        return sum(self.tables.values())

    @functools.cached_property
    def most_work(self):
        """The most pixels that a RoI reads, and those that its bins tap, whichever is more."""
        taps = self.y_capacity * self.x_capacity
        return max(taps, min(self.sampling.height * self.sampling.width, self.limit * taps))

    def table_rows(self, rois):
        """Return how many of `rois` a batch has."""
        return min(rois, max(1, self.batch_bytes // self.row_bytes))


def fitting_lanes(channels, most):
    """Return how many lanes suit some channels: the most that leave few idle in the last block."""
    lanes = most
    while lanes > channels or (lanes > most // 2 and -channels % lanes > channels / 4):
        lanes //= 2
    return lanes


def schedule_of(strides, channels, sampling, number_bytes):
    """Return the module of the schedule that suits a map, how many lanes and how many blocks."""
    lane_bytes = 2 * LANE_BYTES if strides.channel == 1 else LANE_BYTES
    if sampling.height * sampling.width > LARGE_MAP:
        lane_bytes //= 2
    most = min(MOST_LANES, lane_bytes // number_bytes)
    fits = max(sampling.height, sampling.width) <= _cpu_channels.WINDOW
    if most > 1 and channels >= FEW_CHANNELS and fits:
        lanes = fitting_lanes(channels, most)
        return _cpu_channels, lanes, -(-channels // lanes)
    beside = strides.channel == 1 and strides.column == channels  # channels last
    line = sampling.width * (channels if beside else 1)
    lanes = LINE // number_bytes
    lanes = min(MOST_LANES, lanes if sampling.output_height >= lanes else lanes // 2)
    if lanes > 1 and (beside or strides.column == 1) and lanes <= line <= _cpu_channels.WINDOW:
        return _cpu_columns, lanes, 1 if beside else channels
    return _cpu_scalar, 1, channels


def sparse_schedule_of(strides, channels, number_bytes, lanes, blocks):
    """Return the function that pools sparse RoIs, how many lanes and how many blocks.

    Channels that lie side by side keep the `lanes` and `blocks` that other RoIs have.
    """
    if strides.channel == 1 and channels >= FEW_CHANNELS:
        return _cpu_sparse.work_beside, lanes, blocks
    lanes = min(MOST_LANES, _cpu_sparse.MOST_COLUMNS, REGISTER // number_bytes)
    return _cpu_sparse.work, lanes, -(-channels // _cpu_sparse.BLOCK)


def max_schedule_of(channels, sampling, number_bytes):
    """As `schedule_of`, for a maximum."""
    most = min(MOST_LANES, MAX_LANE_BYTES // number_bytes)
    cells = sampling.output_height * sampling.output_width
    if most > 1 and channels >= FEW_CHANNELS and cells <= _cpu_channels.CELLS:
        lanes = fitting_lanes(channels, most)
        return _cpu_max_channels, lanes, -(-channels // lanes)
    return _cpu_max, 1, channels


def whole_lines(strides, channels, sampling, lanes, storage_bytes):
    """Say whether the channel schedule writes whole cache lines, whatever the RoI and the block."""
    if strides.channel == 1:
        steps = (lanes, channels, strides.image, strides.row, strides.column)
        return all(step * storage_bytes % LINE == 0 for step in steps)
    bins = sampling.output_height * sampling.output_width
    return strides[1:] == (bins, sampling.output_width, 1)


def tables_of(sampling, capacities, number_bytes, samples=False, turned=False):
    """Return how many bytes each table takes for a RoI; `capacities` are its taps in y and x."""
    tables = {"rois": 40, "table_images": 8, "spans": 32, "kinds": 8, "order": 8, "chunks": 8}
    bins = sampling.output_height, sampling.output_width
    lengths = sampling.height, sampling.width
    for axis, count, length, slots in zip("yx", bins, lengths, capacities, strict=True):
        tables[f"{axis}_pixels"] = 4 * slots
        tables[f"{axis}_weights"] = number_bytes * slots
        tables[f"{axis}_bounds"] = 8 * (count + 1)
        if samples:
            tables[f"{axis}_firsts"] = 8 * count
            tables[f"{axis}_grids"] = 8
        if turned:
            tables[f"{axis}_turned"] = 4 * slots
            tables[f"{axis}_turned_weights"] = number_bytes * slots
            tables[f"{axis}_turned_bounds"] = 8 * (length + 2)
    return tables


def numbers_of(**fields):
    """Return a job's numbers, 0 where none is given."""
    numbers = np.zeros(len(NUMBERS), np.int64)
    for position, (name, kind) in enumerate(NUMBERS.items()):
        typed = numbers.view(np.float64) if kind == types.float64 else numbers
        typed[position] = fields.get(name, 0)
    return numbers


def strides_of(layout, shape, strides, itemsize):
    """Return the strides of an array, given in bytes, in elements and in the order of `Strides`."""
    return Strides(*in_order(layout, element_strides(shape, strides, itemsize)))


def dividing(function):
    """Return a function of `_cpu_tasks`, whatever the types, compiled."""
    return compiled(function, types.float32, types.float32, types.float32, 1)


def shared_numbers(source, target, sampling, convention, **fields):
    """Return the numbers that every plan has: strides, geometry and some fields of its own."""
    return numbers_of(
        **{f"in_{name}": stride for name, stride in source._asdict().items()},
        **{f"out_{name}": stride for name, stride in target._asdict().items()},
        **sampling._asdict(),
        **convention._asdict(),
        **fields,
    )


@functools.lru_cache(1024)
def pooling_plan(
    layout, shape, strides, out_shape, out_strides, dtype, out_dtype, sampling, convention,
    mode, corner, keeps_argmax,
) -> Plan:  # fmt: skip
    """Return the plan of a call that pools; the output's shape is without the number of RoIs.

    `corner` is that of a slope, or None.
    """
    (storage, number), result = TYPES[dtype], TYPES[out_dtype][0]
    number_bytes, result_bytes = number.bitwidth // 8, result.bitwidth // 8
    channels = in_order(layout, shape)[1]
    source = strides_of(layout, shape, strides, storage.bitwidth // 8)
    target = strides_of(layout, (1, *out_shape), out_strides, result_bytes)
    bins, width = sampling.output_height, sampling.output_width
    if mode == AVERAGE:
        schedule, lanes, blocks = schedule_of(source, channels, sampling, number_bytes)
        fill, capacity = _cpu_tables.fill, tap_capacity
        if corner is not None:
            fill = _cpu_tables.fill_with_slopes
    else:
        schedule, lanes, blocks = max_schedule_of(channels, sampling, number_bytes)
        fill, capacity = _cpu_tables.fill_with_samples, sample_capacity
    window = min(_cpu_channels.WINDOW, sampling.height * sampling.width)
    most_bins, can_stream, scratch_size, staging_size, numbers_size = bins, False, 0, 0, 0
    limit, apart, sparse, sparse_numbers = 0, None, None, {}
    if schedule is _cpu_channels:
        most_bins = _cpu_channels.most_rows(width)
        scratch_size = _cpu_channels.scratch_size(bins, width, window, lanes)
        can_stream = most_bins >= bins
        can_stream &= whole_lines(target, channels, sampling, lanes, result_bytes)
        staging_size = bins * width * lanes if can_stream and target.channel != 1 else 0
        limit = _cpu_channels.SPARSE
    elif schedule is _cpu_columns:
        inner = channels // blocks
        limit = _cpu_columns.SPARSE
        scratch_size = _cpu_columns.scratch_size(sampling.width * inner, width * inner, lanes)
    elif schedule is _cpu_max_channels:
        scratch_size = _cpu_max_channels.scratch_size(bins, width, window, lanes)
        numbers_size = bins * width * lanes if keeps_argmax else 0
    kinds = storage, result, number
    squares = source.column == 1 and sampling.width * number_bytes >= REGISTER
    if schedule is _cpu_channels and (squares or source.channel == 1):
        lane_bytes = LINES_LANE_BYTES if 2 * sampling.width <= _cpu_channels.WINDOW else LANE_BYTES
        wide = fitting_lanes(channels, min(MOST_LANES, lane_bytes // number_bytes))
        apart = Schedule(_cpu_lines.work, *kinds, wide, -(-channels // wide), most_bins)
        needed = _cpu_lines.scratch_size(min(bins, most_bins), width, sampling.width, wide)
        scratch_size = max(scratch_size, needed)
        staging_size = max(staging_size, staging_size // lanes * wide)
    if limit:
        work, *split = sparse_schedule_of(source, channels, number_bytes, lanes, blocks)
        few = _cpu_channels.most_rows(width)
        sparse = Schedule(work, *kinds, *split, few)
        sparse_numbers = {"sparse_blocks": sparse.blocks, "sparse_most_bins": few}
        needed = _cpu_sparse.scratch_size(min(bins, few), width, sparse.lanes)
        scratch_size = max(scratch_size, needed)
    capacities = (
        capacity(bins, sampling.samples_y, sampling.height),
        capacity(width, sampling.samples_x, sampling.width),
    )
    return Plan(
        numbers=shared_numbers(
            source, target, sampling, convention,
            sparse=limit, reads_rows=schedule is _cpu_channels, shares=schedule is _cpu_channels,
            dense_blocks=blocks, apart_blocks=apart.blocks if apart else blocks,
            most_bins=most_bins, serial_work=SERIAL_WORK, **sparse_numbers,
            scratch_size=scratch_size, staging_size=staging_size, numbers_size=numbers_size,
            window=window,
            channels=channels, mode=mode, corner=corner or 0,
            keeps_argmax=keeps_argmax, channels_last=layout == "NHWC",
        ),
        # Not contracted: multiply and add must not fuse in the geometry, where it would decide an
        # adaptive grid otherwise than the peers do.
        fill=compiled(fill, number, number, number, 1, contracted=False),
        divide=dividing(_cpu_tasks.divide),
        schedule=Schedule(schedule.work, *kinds, lanes, blocks, most_bins),
        apart=apart,
        sparse=sparse,
        limit=limit,
        tables=tables_of(sampling, capacities, number_bytes, samples=mode != AVERAGE),
        batch_bytes=BATCH_BYTES,
        channels=channels,
        sampling=sampling,
        bands=1,
        y_capacity=capacities[0],
        x_capacity=capacities[1],
        can_stream=can_stream,
        scratch_bytes=scratch_size * number_bytes,
        staging_size=staging_size,
        numbers_size=numbers_size,
        result_bytes=result_bytes,
    )  # fmt: skip


@functools.lru_cache(1024)
def gradient_plan(
    layout, shape, strides, out_shape, out_strides, dtype, out_dtype, sampling, convention,
    mode, batched,
) -> Plan:  # fmt: skip
    """Return the plan of a gradient: from that of pooled features, whose shape is without the
    number of RoIs, to that of a map.

    Where it is computed in batches, each of which adds to the one before, blocks do not overlap.
    """
    (storage, number), result = TYPES[dtype], TYPES[out_dtype][0]
    number_bytes, result_bytes = number.bitwidth // 8, result.bitwidth // 8
    channels = in_order(layout, out_shape)[1]
    source = strides_of(layout, (1, *shape), strides, storage.bitwidth // 8)
    target = strides_of(layout, out_shape, out_strides, result_bytes)
    bins, width = sampling.output_height, sampling.output_width
    if mode == AVERAGE:
        schedule, fill, capacity = _cpu_gradient, _cpu_tables.fill_turned, tap_capacity
        narrow = sampling.width <= _cpu_channels.WINDOW
        most = min(MOST_LANES, GRADIENT_LANE_BYTES // number_bytes) if narrow else 1
        lanes = fitting_lanes(channels, most)
        if channels < FEW_CHANNELS and most >= FEW_CHANNELS:
            lanes = 1 << (channels - 1).bit_length()  # with some to spare
        elif batched:
            lanes = math.gcd(lanes, channels)
        rows = min(sampling.height, _cpu_gradient.band_rows(sampling.width, lanes))
        scratch_size = _cpu_gradient.scratch_size(rows, sampling.width, width, lanes)
    else:
        schedule, fill, capacity = _cpu_winners, _cpu_tables.fill_with_samples, sample_capacity
        lanes = 1
        rows = min(sampling.height, _cpu_gradient.band_rows(sampling.width, lanes))
        scratch_size = rows * sampling.width
    blocks = -(-channels // lanes)
    capacities = (
        capacity(bins, sampling.samples_y, sampling.height),
        capacity(width, sampling.samples_x, sampling.width),
    )
    return Plan(
        numbers=shared_numbers(
            source, target, sampling, convention,
            scratch_size=scratch_size, band_rows=rows, channels=channels,
            mode=mode, channels_last=layout == "NHWC",
        ),
        fill=compiled(fill, number, number, number, 1, contracted=False),
        divide=dividing(_cpu_tasks.divide_by_image),
        schedule=Schedule(schedule.work, storage, result, number, lanes, blocks, bins),
        apart=None,
        sparse=None,
        limit=0,
        tables=tables_of(
            sampling, capacities, number_bytes, samples=mode != AVERAGE, turned=mode == AVERAGE
        ),
        batch_bytes=GRADIENT_BATCH_BYTES,
        channels=channels,
        sampling=sampling,
        bands=-(-sampling.height // rows),
        y_capacity=capacities[0],
        x_capacity=capacities[1],
        can_stream=False,
        scratch_bytes=scratch_size * number_bytes,
        staging_size=0,
        numbers_size=0,
        result_bytes=result_bytes,
    )  # fmt: skip


def memory_sizes(plan, rows, threads):
    """Return how many bytes each of the job's own arrays takes, in the order of its addresses.

    `rows` is how many RoIs a batch has. The caller's arrays are among them, with 0.
    """
    sizes = {name: rows * size for name, size in plan.tables.items()}
    sizes |= {
        "found": threads * _cpu_found.END * 8,
        "ends": (_cpu_tasks.DIGIT + 2) * 8,
        "chunks": (max(rows, plan.sampling.images) + 1) * 8,
        "counter": 8,
        "scratch": threads * plan.scratch_bytes,
        "staging": threads * plan.staging_size * plan.result_bytes,
        "numbers": threads * plan.numbers_size * 8,
    }
    return [-(-sizes.get(name, 0) // LINE) * LINE for name in ADDRESSES]


class Layout(NamedTuple):
    """Where the job's own arrays lie, for calls that share it."""

    rows: int  # of a batch, at most
    size: int  # bytes of all
    job: np.ndarray  # what calls start from; its addresses are relative to where the arrays begin


@functools.lru_cache(1024)
def layout_of(plan, rois, threads):
    """Return the layout of a call on so many RoIs."""
    rows = plan.table_rows(rois)
    *starts, end = itertools.accumulate(memory_sizes(plan, rows, threads), initial=0)
    job = np.concatenate([np.array(starts, np.int64), plan.numbers])
    job[POSITIONS["table_rows"]] = rows
    job[POSITIONS["most_threads"]] = threads
    job[POSITIONS["y_slots"]] = rows * plan.y_capacity
    job[POSITIONS["x_slots"]] = rows * plan.x_capacity
    return Layout(rows, end, job)
