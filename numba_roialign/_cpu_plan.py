"""A plan: what a CPU call does, as far as its arguments tell without the boxes.

Plans are kept: a call like one before computes nothing of this again.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

import numpy as np
from numba import types

from . import _cpu_channels, _cpu_columns, _cpu_scalar, _cpu_tables
from ._cpu_job import ADDRESSES, FOUND, NUMBERS, Compiled, compiled
from ._flat import element_strides, in_order
from ._geometry import tap_capacity
from ._kernels import Strides
from ._memory import LINE

# Bounds the tap tables of a call to 12 MB (24 MB for float64), as long as one RoI's taps fit.
BATCH_SLOTS = 1 << 20
# Most lanes of a vector; 1 is the scalar schedule.
MOST_LANES = int(os.environ.get("NUMBA_ROIALIGN_LANES", "32"))
# A vector's bytes, four registers of AVX2: a tap's index and weight then serve four
# multiplications, which makes 50 x 76 maps 1.25 times faster than two registers do.
LANE_BYTES = 128
# With more pixels, half of that: the packed rows of a large map leave the cache, and a box of all
# of a 200 x 304 map took 1.3 times as long. Not with channels last: each block of channels passes
# over all pixels, and twice as many blocks took 1.2 times as long.
LARGE_MAP = 1 << 14
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
class Plan:
    """What a call does."""

    numbers: np.ndarray  # those fields of a job that all batches share, 0 for the others
    fill: Compiled
    work: Compiled
    channels: int
    blocks: int  # of channels
    output_height: int
    output_width: int
    most_rows: int  # of bins in a task
    y_capacity: int  # taps of a RoI
    x_capacity: int
    can_stream: bool  # results can go around the caches
    scratch_size: int  # of a thread, in numbers
    staging_size: int  # of a thread, in elements
    number_bytes: int
    storage_bytes: int

    @property
    def most_taps(self):
        """The most pixels that all bins of a RoI tap together."""
        return self.y_capacity * self.x_capacity

    def table_rows(self, rois):
        """Return how many of `rois` a batch has."""
        return min(rois, max(1, BATCH_SLOTS // (self.y_capacity + self.x_capacity)))


def fitting_lanes(channels, most):
    """Return how many lanes suit some channels: the most that leave few idle in the last block."""
    lanes = most
    while lanes > channels or (lanes > most // 2 and -channels % lanes > channels / 4):
        lanes //= 2
    return lanes


def schedule_of(strides, channels, sampling, number_bytes, most_lanes):
    """Return the module of the schedule that suits a map, how many lanes and how many blocks."""
    large = sampling.height * sampling.width > LARGE_MAP and strides.channel != 1
    most = min(most_lanes, LANE_BYTES // number_bytes // (2 if large else 1))
    if most > 1 and channels >= FEW_CHANNELS and sampling.width <= _cpu_channels.WINDOW:
        lanes = fitting_lanes(channels, most)
        return _cpu_channels, lanes, -(-channels // lanes)
    beside = strides.channel == 1 and strides.column == channels  # channels last
    line = sampling.width * (channels if beside else 1)
    lanes = LINE // number_bytes
    lanes = min(most_lanes, lanes if sampling.output_height >= lanes else lanes // 2)
    if lanes > 1 and (beside or strides.column == 1) and lanes <= line <= _cpu_channels.WINDOW:
        return _cpu_columns, lanes, 1 if beside else channels
    return _cpu_scalar, 1, channels


def whole_lines(strides, channels, sampling, lanes, storage_bytes):
    """Say whether the channel schedule writes whole cache lines, whatever the RoI and the block."""
    if strides.channel == 1:
        steps = (lanes, channels, strides.image, strides.row, strides.column)
        return all(step * storage_bytes % LINE == 0 for step in steps)
    bins = sampling.output_height * sampling.output_width
    return strides[1:] == (bins, sampling.output_width, 1)


@functools.lru_cache(1024)
def plan_of(
    layout, shape, strides, out_shape, out_strides, dtype, sampling, convention, most_lanes
) -> Plan:
    """Return the plan of a call; the output's shape is without the number of RoIs."""
    storage, number = TYPES[dtype]
    storage_bytes, number_bytes = storage.bitwidth // 8, number.bitwidth // 8
    channels = in_order(layout, shape)[1]
    strides = Strides(*in_order(layout, element_strides(shape, strides, storage_bytes)))
    out_strides = element_strides((1, *out_shape), out_strides, storage_bytes)
    out_strides = Strides(*in_order(layout, out_strides))
    schedule, lanes, blocks = schedule_of(strides, channels, sampling, number_bytes, most_lanes)
    bins, width = sampling.output_height, sampling.output_width
    window = min(_cpu_channels.WINDOW, sampling.height * sampling.width)
    most_rows, scratch_size, staging_size, can_stream = bins, 0, 0, False
    if schedule is _cpu_channels:
        most_rows = _cpu_channels.most_rows(width)
        scratch_size = _cpu_channels.scratch_size(bins, width, window, lanes)
        can_stream = most_rows >= bins
        can_stream &= whole_lines(out_strides, channels, sampling, lanes, storage_bytes)
        staging_size = bins * width * lanes if can_stream and out_strides.channel != 1 else 0
    elif schedule is _cpu_columns:
        inner = channels // blocks
        scratch_size = _cpu_columns.scratch_size(sampling.width * inner, width * inner, lanes)
    y_capacity = tap_capacity(bins, sampling.samples_y, sampling.height)
    x_capacity = tap_capacity(width, sampling.samples_x, sampling.width)
    shared = {
        "scratch_size": scratch_size,
        "window": window,
        "staging_size": staging_size,
        "channels": channels,
        "blocks": blocks,
        **{f"in_{name}": stride for name, stride in strides._asdict().items()},
        **{f"out_{name}": stride for name, stride in out_strides._asdict().items()},
        **sampling._asdict(),
        **convention._asdict(),
    }
    numbers = np.zeros(len(NUMBERS), np.int64)
    for position, (name, kind) in enumerate(NUMBERS.items()):
        typed = numbers.view(np.float64) if kind == types.float64 else numbers
        typed[position] = shared.get(name, 0)
    return Plan(
        numbers=numbers,
        # Not contracted: multiply and add must not fuse in the geometry, where it would decide an
        # adaptive grid otherwise than the peers do.
        fill=compiled(_cpu_tables.fill, number, number, 1, contracted=False),
        work=compiled(schedule.work, storage, number, lanes),
        channels=channels,
        blocks=blocks,
        output_height=bins,
        output_width=width,
        most_rows=most_rows,
        y_capacity=y_capacity,
        x_capacity=x_capacity,
        can_stream=can_stream,
        scratch_size=scratch_size,
        staging_size=staging_size,
        number_bytes=number_bytes,
        storage_bytes=storage_bytes,
    )


@functools.lru_cache(256)
def memory_layout(plan, rows, threads):
    """Return how many bytes a call's memory has after its job, and where each array begins there.

    `rows` is how many rows the tables have. The arrays are in the order of `ADDRESSES`; the
    caller's arrays are not among them and begin at 0.
    """
    weight, scratch = plan.number_bytes, plan.scratch_size * plan.number_bytes
    sizes = {
        "table_images": rows * 8,
        "spans": rows * 32,
        "y_pixels": rows * plan.y_capacity * 4,
        "y_weights": rows * plan.y_capacity * weight,
        "y_bounds": rows * (plan.output_height + 1) * 8,
        "x_pixels": rows * plan.x_capacity * 4,
        "x_weights": rows * plan.x_capacity * weight,
        "x_bounds": rows * (plan.output_width + 1) * 8,
        "found": threads * FOUND * 8,
        "order": rows * 8,
        "chunks": (rows + 1) * 8,
        "counter": 8,
        "scratch": threads * scratch,
        "staging": threads * plan.staging_size * plan.storage_bytes,
    }
    starts, end = [], 0
    for name in ADDRESSES:
        starts.append(end)
        end += -(-sizes.get(name, 0) // LINE) * LINE
    return end, np.array(starts, np.int64)
