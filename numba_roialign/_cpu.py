"""The CPU target: which schedule suits a call, and its launch on NumPy arrays."""

from __future__ import annotations

import os

import numpy as np
from numba import get_num_threads, njit, prange

from . import _cpu_channels, _cpu_columns, _cpu_scalar, _geometry
from ._cache import cached_njit
from ._cpu_tasks import OPTIONS, UNCOUNTED, Shape, cut
from ._flat import flat_view, in_order
from ._geometry import Taps, empty_tables
from ._halves import HALF_STORAGE

# Not contracted: multiply and add must not fuse in the geometry, where it would decide an adaptive
# grid otherwise than the peers do.
fill_row = njit(**UNCOUNTED)(_geometry.fill_row)
pixel_span = njit(**UNCOUNTED)(_geometry.pixel_span)

# Bounds the tap tables of a call to 12 MB (24 MB for float64), as long as one RoI's taps fit.
BATCH_SLOTS = 1 << 20
# Below, in multiplications, a call runs on the calling thread alone. Waking threads takes 10 to
# 50 us, and milliseconds on a busy machine; this much work takes some 100 us.
SERIAL_WORK = 1 << 20
# The same for the tap tables, in bins of RoIs.
SERIAL_BINS = 1 << 11
# Most lanes of a vector, in bytes; 1 lane is the scalar schedule. Twice a register of AVX2: a tap's
# index and weight then serve two multiplications, and 16 lanes take 0.6 times what two 8 take.
LANE_BYTES = 64
MOST_LANES = int(os.environ.get("NUMBA_ROIALIGN_LANES", "16"))
# Below, columns take the lanes instead of channels.
FEW_CHANNELS = 8

# Each schedule's function for one thread, for all, and what scratch it takes. All have the same
# arguments, which a schedule may not need.
SCHEDULES = {
    "channels": (_cpu_channels.work, _cpu_channels.work_in_threads, _cpu_channels.scratch_size),
    "columns": (_cpu_columns.work, _cpu_columns.work_in_threads, _cpu_columns.scratch_size),
    "scalar": (_cpu_scalar.work, _cpu_scalar.work_in_threads, _cpu_scalar.scratch_size),
}


@cached_njit(**UNCOUNTED)
def fill_rows(first, last, rois, start, sampling, convention, images, y_taps, x_taps, zero, spans):
    """Fill rows of the tables of a batch, and note the rows and columns of the map they read."""
    for row in range(first, last):
        fill_row(images, y_taps, x_taps, row, rois, start + row, sampling, convention, zero)
        if images[row] >= 0:
            spans[row, 0], spans[row, 1] = pixel_span(y_taps, row, 0, sampling.output_height)
            spans[row, 2], spans[row, 3] = pixel_span(x_taps, row, 0, sampling.output_width)


@cached_njit(parallel=True, **OPTIONS)
def fill_rows_in_threads(
    threads, last, rois, start, sampling, convention, images, y_taps, x_taps, zero, spans
):
    for thread in prange(threads):
        fill_rows(
            np.intp(thread) * last // threads, (np.intp(thread) + 1) * last // threads,
            rois, start, sampling, convention, images, y_taps, x_taps, zero, spans,
        )  # fmt: skip


def stack_boxes(boxes, stream=None):
    """Return per-image boxes as one array, an image index before each box."""
    images = np.repeat(np.arange(len(boxes)), [len(box) for box in boxes])
    return np.column_stack([images, np.concatenate(boxes)])


def aligned_empty(count, dtype):
    """Return an array that starts on a cache line, which no vector of lanes then straddles."""
    array = np.empty(count + 64, dtype)
    skip = -array.ctypes.data % 64 // array.itemsize
    return array[skip : skip + count]


class Call:
    """One call's arrays and geometry, in the forms that kernels take."""

    def __init__(self, features, rois, sampling, convention, out, layout, dtype):
        self.zero = np.float64(0) if dtype == "float64" else np.float32(0)
        storage = HALF_STORAGE.get(dtype)
        self.rois = np.ascontiguousarray(rois, np.float64)
        self.features, self.strides = flat_view(features, layout, storage)
        self.features.flags.writeable = False  # one signature, whether the caller's is or not
        self.pooled, self.out_strides = flat_view(out, layout, storage)
        self.out = out
        self.sampling, self.convention = sampling, convention
        self.tables = empty_tables(np.empty, len(rois), sampling, self.zero.dtype, BATCH_SLOTS)
        self.spans = np.zeros((len(self.tables[0]), 4), np.intp)
        window = min(_cpu_channels.WINDOW, sampling.height * sampling.width)
        self.shape = Shape(*in_order(layout, out.shape)[1:], sampling.width, window)
        self.unit = Taps(np.zeros(1, np.int32), np.ones(1, self.zero.dtype), 0, 1)
        self.invalid = []  # RoIs found so that cannot be pooled
        self.batches = range(0, len(rois), len(self.tables[0]))

    def rows(self, start):
        return min(len(self.tables[0]), len(self.rois) - start)

    def fill(self, start):
        """Fill the tables with the batch that starts at a RoI."""
        rows = self.rows(start)
        arguments = (self.rois, start, self.sampling, self.convention, *self.tables, self.zero)
        if rows * (self.shape.bins + self.shape.width) < SERIAL_BINS or get_num_threads() == 1:
            fill_rows(0, rows, *arguments, self.spans)
        else:
            fill_rows_in_threads(get_num_threads(), rows, *arguments, self.spans)

    def first_invalid(self, start):
        """Return the first RoI of the batch in the tables that cannot be pooled, or None."""
        row = int(self.tables[0][: self.rows(start)].argmin())
        return start + row if self.tables[0][row] < 0 else None

    def schedule(self):
        """Return the name of the schedule that suits the map, and how many lanes it has."""
        lanes = min(MOST_LANES, LANE_BYTES // self.zero.itemsize)
        channels, width = self.shape.channels, self.shape.map_width
        if lanes > 1 and width <= _cpu_channels.WINDOW:
            if channels >= FEW_CHANNELS:
                while lanes > channels:
                    lanes //= 2
                return "channels", lanes
            if self.strides.column == 1 and width >= lanes:
                return "columns", lanes
        return "scalar", 1

    def multiplications(self, rows):
        """Return about how many multiplications the batch takes."""
        images, *tables = self.tables
        y, x = (axis.bounds[:rows, -1] - axis.bounds[:rows, 0] for axis in tables)
        taps = int(np.dot(y * (images[:rows] >= 0), x))  # an invalid row has no bounds
        return self.shape.channels * max(taps, rows * self.shape.bins * self.shape.width)

    def pool(self, start):
        """Pool the batch in the tables."""
        shape, rows = self.shape, self.rows(start)
        images, y_taps, x_taps = self.tables
        images, spans = images[:rows], self.spans[:rows]
        if images.min() < 0:
            self.invalid += (start + np.flatnonzero(images < 0)).tolist()
        name, lanes = self.schedule()
        work, work_in_threads, scratch_size = SCHEDULES[name]
        blocks, most_bins = shape.channels, shape.bins
        if name == "channels":
            blocks, most_bins = -(-blocks // lanes), max(1, _cpu_channels.CELLS // shape.width)
        threads = 1 if self.multiplications(rows) < SERIAL_WORK else get_num_threads()
        batch = cut(start, images, spans, blocks, shape.bins, most_bins, threads)
        arguments = (
            self.features, self.strides, batch, y_taps, x_taps, self.unit,
            self.pooled, self.out_strides, shape,
            aligned_empty(threads * scratch_size(shape, lanes), self.zero.dtype), (0,) * lanes,
        )  # fmt: skip
        if threads == 1:
            work(0, *arguments)
        else:
            work_in_threads(threads, *arguments)

    def finish(self):
        """Write what the schedules left out."""
        flags = self.out.flags
        plain = flags.c_contiguous and flags.aligned and self.out.dtype.isnative
        if not plain and not np.may_share_memory(self.pooled, self.out):  # flat_view copied
            native = self.out.dtype.newbyteorder("=")
            self.out[...] = self.pooled.view(native).reshape(self.out.shape)
        if self.invalid:
            self.out[self.invalid] = np.nan


def pool(features, rois, sampling, convention, out, layout, dtype, validate, stream=None):
    """Pool `rois` of `features` into `out`, all NumPy arrays.

    With `validate` on (None, the default, means on) the first invalid row is returned with its
    number, and nothing is written; otherwise None, and an invalid row pools NaN.
    """
    call = Call(features, rois, sampling, convention, out, layout, dtype)
    validate = validate is not False
    if validate:
        for start in call.batches:
            call.fill(start)
            n = call.first_invalid(start)
            if n is not None:
                return n, call.rois[n].tolist()
    for start in call.batches:
        if len(call.batches) > 1 or not validate:
            call.fill(start)
        call.pool(start)
    call.finish()
    return None
