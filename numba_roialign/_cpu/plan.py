"""A plan: what a CPU call does, as far as its arguments tell without the boxes.

Plans are kept: a call like one before computes nothing of this again.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import types

from .._flat import element_strides, in_order
from .._geometry import Sampling
from .._kernels import AVERAGE, Strides
from .._memory import LINE
from .._taps import sample_capacity, tap_capacity
from . import average_columns
from . import found as at
from .average_channels import CELLS, window_of
from .divide import DIGIT, divide_batch, divide_by_image
from .job import ADDRESSES, NUMBERS, POSITIONS, Compiled, compiled
from .kinds import PIXELS, Kinds
from .schedules import (
    Schedules,
    average_schedules,
    gradient_schedule,
    maximum_schedules,
)
from .tables import (
    fill_with_samples,
    fill_with_slopes,
    fill_with_taps,
    fill_with_turned_taps,
)
from .tasks import run_at_once

# Most bytes of a call's tables, unless those of one RoI take more.
BATCH_BYTES = 24 << 20
# The same of a gradient, which goes over the whole map once for each batch.
GRADIENT_BATCH_BYTES = 96 << 20
# A call of fewer multiplications runs on the calling thread alone: they take some 100 us, and
# waking threads takes 10 to 50 us, on a busy machine milliseconds.
SERIAL_WORK = 1 << 20
# With fewer bins in a batch, of all RoIs along both axes, one thread fills its tables.
SERIAL_BINS = 1 << 11


@dataclass(frozen=True, eq=False)
class Plan:
    """What a call does."""

    numbers: np.ndarray  # those fields of a job that all batches share, 0 for the others
    fill: Compiled
    divide: Compiled
    schedules: Schedules
    tables: dict[str, int]  # bytes of each table, per RoI
    batch_bytes: int  # of all tables
    channels: int
    sampling: Sampling
    y_capacity: int  # taps of a RoI
    x_capacity: int
    can_stream: bool  # results can go around the caches
    scratch_bytes: int  # of a thread
    staging_size: int  # of a thread, in elements
    numbers_size: int  # of a thread
    least_chunks: int  # whatever the RoIs
    result_bytes: int  # of an element

    @functools.cached_property
    def run_at_once(self):
        """`tasks.run_at_once`, compiled when it is first asked for."""
        return typeless(run_at_once).call

    @functools.cached_property
    def row_bytes(self):
        """Bytes of all tables, per RoI."""
        return sum(self.tables.values())

    @functools.cached_property
    def most_work(self):
        """The most multiplications of a RoI: of pixels that it reads or its bins tap."""
        taps = self.y_capacity * self.x_capacity
        pixels = min(self.sampling.height * self.sampling.width, self.schedules.limit * taps)
        return self.channels * max(taps, pixels)

    def is_small(self, rois, more=0):
        """Say whether one thread suits a call on so many RoIs, with `more` to do beside them."""
        return rois * self.most_work + more < SERIAL_WORK

    def filling_threads(self, rows, threads):
        """Return how many of a call's threads fill the tables with a batch of so many RoIs."""
        bins = rows * (self.sampling.output_height + self.sampling.output_width)
        return 1 if bins < SERIAL_BINS else threads

    def table_rows(self, rois):
        """Return how many of `rois` a batch has."""
        return min(rois, max(1, self.batch_bytes // self.row_bytes))


def whole_lines(strides, channels, lanes, storage_bytes):
    """Say whether vectors of channels that lie side by side are whole cache lines."""
    steps = (lanes, channels, strides.image, strides.row, strides.column)
    return all(step * storage_bytes % LINE == 0 for step in steps)


def staging_of(schedules, strides, channels, sampling, result_bytes):
    """Return how many results a thread gathers to write them around the caches by whole lines.

    None where they cannot be written so, and 0 where they are whole lines without.
    """
    dense, apart = schedules.dense, schedules.apart or schedules.dense
    height, width = sampling.output_height, sampling.output_width
    if dense.work is average_columns.work:  # a row of bins from each lane, of one channel or all
        inner = channels // dense.blocks
        row, beside = width * inner, inner == 1 or strides.channel == 1
        in_order = beside and (strides.row, strides.column) == (row, inner)
        return row * dense.lanes if in_order and row <= CELLS else None
    if dense.most_bins < height:
        return None
    if dense.kinds.writes == PIXELS:
        lanes = min(dense.lanes, apart.lanes)
        return 0 if whole_lines(strides, channels, lanes, result_bytes) else None
    in_order = strides[1:] == (height * width, width, 1)
    lanes = max(dense.lanes, apart.lanes)
    return height * width * lanes if schedules.packs and in_order else None


def tables_of(sampling, capacities, number_bytes, samples=False, turned=False):
    """Return how many bytes each table takes for a RoI; `capacities` are its taps in y and x."""
    tables = {"rois": 40, "table_images": 8, "spans": 32, "sparse_rows": 8, "order": 8, "chunks": 8}
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


@functools.cache
def typeless(function):
    """Return a function that touches no features, nor sums, compiled."""
    return compiled(function, Kinds(*[types.float32] * 3), 1)


def plan_of(
    kinds, source, target, channels, sampling, convention, schedules, fill, divide, mode, layout,
    *, batch_bytes, turned=False, can_stream=False, staging_size=0, numbers_size=0,
    least_chunks=0, **fields,
):  # fmt: skip
    """Return a plan; `source` and `target` are strides, and `fields` further ones of the job.

    `fill` and `divide` are not compiled yet.
    """
    capacity = tap_capacity if mode == AVERAGE else sample_capacity
    capacities = (
        capacity(sampling.output_height, sampling.samples_y, sampling.height),
        capacity(sampling.output_width, sampling.samples_x, sampling.width),
    )
    # Not contracted: multiply and add must not fuse in the geometry, where it would decide an
    # adaptive grid otherwise than the peers do.
    fill = compiled(fill, Kinds(*[kinds.number] * 3), 1, contracted=False)
    divide = typeless(divide)
    tables = tables_of(sampling, capacities, kinds.number_bytes, mode != AVERAGE, turned)
    numbers = numbers_of(
        **{f"in_{name}": stride for name, stride in source._asdict().items()},
        **{f"out_{name}": stride for name, stride in target._asdict().items()},
        **sampling._asdict(),
        **convention._asdict(),
        **schedules.fields(),
        **fields,
        fill=fill.address,
        divide=divide.address,
        channels=channels,
        channels_last=layout == "NHWC",
        mode=mode,
        staging_size=staging_size,
        numbers_size=numbers_size,
    )
    return Plan(
        numbers=numbers,
        fill=fill,
        divide=divide,
        schedules=schedules,
        tables=tables,
        batch_bytes=batch_bytes,
        channels=channels,
        sampling=sampling,
        y_capacity=capacities[0],
        x_capacity=capacities[1],
        can_stream=can_stream,
        scratch_bytes=schedules.scratch_size * kinds.number_bytes,
        staging_size=staging_size,
        numbers_size=numbers_size,
        least_chunks=least_chunks,
        result_bytes=kinds.result_bytes,
    )


@functools.lru_cache(1024)
def pooling_plan(
    layout, shape, strides, out_shape, out_strides, dtype, out_dtype, sampling, convention,
    mode, corner, keeps_argmax,
) -> Plan:  # fmt: skip
    """Return the plan of a call that pools; the output's shape is without the number of RoIs.

    `corner` is that of a slope, or None.
    """
    kinds = Kinds.of(dtype, out_dtype)
    channels = in_order(layout, shape)[1]
    source = strides_of(layout, shape, strides, kinds.storage_bytes)
    target = strides_of(layout, (1, *out_shape), out_strides, kinds.result_bytes)
    kinds = kinds.between(source, target, sampling.output_width)
    bins = sampling.output_height * sampling.output_width
    if mode == AVERAGE:
        schedules = average_schedules(kinds, source, channels, sampling)
        fill = fill_with_taps if corner is None else fill_with_slopes
    else:
        schedules = maximum_schedules(kinds, channels, sampling)
        fill = fill_with_samples
    dense = schedules.dense
    staging_size = staging_of(schedules, target, channels, sampling, kinds.result_bytes)
    return plan_of(
        kinds, source, target, channels, sampling, convention, schedules, fill,
        divide_batch, mode, layout,
        batch_bytes=BATCH_BYTES,
        can_stream=staging_size is not None,
        staging_size=staging_size or 0,
        numbers_size=bins * dense.lanes if keeps_argmax and dense.lanes > 1 else 0,
        window=window_of(sampling.height, sampling.width),
        serial_work=SERIAL_WORK,
        corner=corner or 0,
        keeps_argmax=keeps_argmax,
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
    kinds = Kinds.of(dtype, out_dtype)
    channels = in_order(layout, out_shape)[1]
    source = strides_of(layout, (1, *shape), strides, kinds.storage_bytes)
    target = strides_of(layout, out_shape, out_strides, kinds.result_bytes)
    kinds = kinds.between(source, target, sampling.width)
    schedule = gradient_schedule(kinds, channels, sampling, mode, batched)
    fill = fill_with_turned_taps if mode == AVERAGE else fill_with_samples
    can_stream = kinds.writes == PIXELS and whole_lines(
        target, channels, schedule.lanes, kinds.result_bytes
    )
    return plan_of(
        kinds, source, target, channels, sampling, convention, Schedules(schedule), fill,
        divide_by_image, mode, layout,
        batch_bytes=GRADIENT_BATCH_BYTES,
        turned=mode == AVERAGE,
        can_stream=can_stream,
        least_chunks=sampling.images,
    )  # fmt: skip


def memory_sizes(plan, rows, threads):
    """Return how many bytes each of the job's arrays takes, in the order of its addresses.

    `rows` is how many RoIs a batch has. The caller's arrays are among them, with 0.
    """
    sizes = {name: rows * size for name, size in plan.tables.items()}
    sizes |= {
        "found": threads * at.END * 8,
        "ends": (DIGIT + 2) * 8,
        "chunks": (max(rows, plan.least_chunks) + 1) * 8,
        "counter": 8,
        "scratch": threads * plan.scratch_bytes,
        "staging": threads * plan.staging_size * plan.result_bytes,
        "numbers": threads * plan.numbers_size * 8,
    }
    return [sizes.get(name, 0) for name in ADDRESSES]


class MemoryLayout(NamedTuple):
    """Where the job's own arrays lie, for calls that share it."""

    rows: int  # of a batch, at most
    at_once: bool  # one batch is all, and one thread suits its tables
    size: int  # bytes of all
    job: np.ndarray  # what calls start from; its addresses are relative to where the arrays begin


@functools.lru_cache(1024)
def memory_layout(plan, rois, threads):
    """Return the layout of a call on so many RoIs."""
    rows = plan.table_rows(rois)
    rooms = [-(-size // LINE) * LINE for size in memory_sizes(plan, rows, threads)]
    *starts, end = itertools.accumulate(rooms, initial=0)
    job = np.concatenate([np.array(starts, np.int64), plan.numbers])
    job[POSITIONS["table_rows"]] = rows
    job[POSITIONS["most_threads"]] = threads
    job[POSITIONS["y_slots"]] = rows * plan.y_capacity
    job[POSITIONS["x_slots"]] = rows * plan.x_capacity
    at_once = rows == rois and plan.filling_threads(rows, threads) == 1
    return MemoryLayout(rows, at_once, end, job)
