"""The CPU target: which schedule suits a call, and its launch on NumPy arrays."""

from __future__ import annotations

import os

import numpy as np
from numba import get_num_threads, njit, prange

from . import _cpu_channels, _cpu_scalar, _geometry
from ._cache import cached_njit
from ._cpu_tasks import OPTIONS, cut
from ._flat import flat_view
from ._geometry import empty_tables
from ._halves import HALF_STORAGE

# Not contracted: multiply and add must not fuse in the geometry, where it would decide an adaptive
# grid otherwise than the peers do.
fill_row = njit(**OPTIONS)(_geometry.fill_row)
pixel_span = njit(**OPTIONS)(_geometry.pixel_span)

# Bounds the tap tables of a call to 12 MB (24 MB for float64), as long as one RoI's taps fit.
BATCH_SLOTS = 1 << 20
# Below, a call runs on the calling thread alone: in outputs times the taps of one. Waking threads
# takes 10 to 50 us, and milliseconds on a busy machine; this much work takes some 100 us.
SERIAL_WORK = 1 << 20
# The same for the tap tables, in bins of RoIs.
SERIAL_BINS = 1 << 11
# Most lanes of a vector, in bytes; 1 lane is the scalar schedule. Twice a register of AVX2: a tap's
# index and weight then serve two multiplications, and 16 lanes take 0.6 times what two 8 take.
LANE_BYTES = 64
MOST_LANES = int(os.environ.get("NUMBA_ROIALIGN_LANES", "16"))


@cached_njit(**OPTIONS)
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

    def __init__(self, features, rois, sampling, convention, out, dtype):
        self.zero = np.float64(0) if dtype == "float64" else np.float32(0)
        storage = HALF_STORAGE.get(dtype)
        self.rois = np.ascontiguousarray(rois, np.float64)
        self.features, self.strides = flat_view(features, storage)
        self.features.flags.writeable = False  # one signature, whether the caller's is or not
        self.pooled, self.out_strides = flat_view(out, storage)
        self.out = out
        self.sampling, self.convention = sampling, convention
        self.tables = empty_tables(np.empty, len(rois), sampling, self.zero.dtype, BATCH_SLOTS)
        self.spans = np.zeros((len(self.tables[0]), 4), np.intp)
        self.shape = out.shape[1:]
        self.invalid = []  # RoIs found so that cannot be pooled
        self.batches = range(0, len(rois), len(self.tables[0]))

    def rows(self, start):
        return min(len(self.tables[0]), len(self.rois) - start)

    def fill(self, start):
        """Fill the tables with the batch that starts at a RoI."""
        rows = self.rows(start)
        arguments = (self.rois, start, self.sampling, self.convention, *self.tables, self.zero)
        if rows * (self.shape[1] + self.shape[2]) < SERIAL_BINS or get_num_threads() == 1:
            fill_rows(0, rows, *arguments, self.spans)
        else:
            fill_rows_in_threads(get_num_threads(), rows, *arguments, self.spans)

    def first_invalid(self, start):
        """Return the first RoI of the batch in the tables that cannot be pooled, or None."""
        invalid = np.flatnonzero(self.tables[0][: self.rows(start)] < 0)
        return start + int(invalid[0]) if invalid.size else None

    def lanes(self):
        """Return how many channels a vector holds, 1 where the scalar schedule suits better."""
        channels, _, _ = self.shape
        lanes = min(MOST_LANES, LANE_BYTES // self.zero.itemsize)
        while lanes > max(channels, 1):
            lanes //= 2
        if lanes < 4 or self.sampling.width > _cpu_channels.WINDOW:
            return 1
        return lanes

    def pool(self, start):
        """Pool the batch in the tables."""
        channels, bins, width = self.shape
        rows, lanes = self.rows(start), self.lanes()
        images, y_taps, x_taps = self.tables
        taps = (y_taps.bounds[0, -1] - y_taps.bounds[0, 0]) * (
            x_taps.bounds[0, -1] - x_taps.bounds[0, 0]
        )
        work = rows * channels * max(int(taps), bins * width)
        threads = 1 if work < SERIAL_WORK else get_num_threads()
        if lanes > 1:
            blocks, most_bins = -(-channels // lanes), max(1, _cpu_channels.CELLS // width)
        else:
            blocks, most_bins = min(channels, threads), bins
        batch = cut(start, images[:rows], self.spans[:rows], blocks, bins, most_bins, threads)
        self.invalid += (start + np.flatnonzero(images[:rows] < 0)).tolist()
        arguments = (self.features, self.strides, batch, y_taps, x_taps)
        outputs = (self.pooled, self.out_strides, self.shape)
        if lanes == 1:
            arguments += (self.zero, *outputs)
            if threads == 1:
                _cpu_scalar.work(*arguments)
            else:
                _cpu_scalar.work_in_threads(threads, *arguments)
            return
        scratch = aligned_empty(threads * _cpu_channels.scratch_size(width, lanes), self.zero.dtype)
        arguments += (*outputs, scratch, (0,) * lanes)
        in_place = self.strides.channel == 1
        if threads == 1:
            work = _cpu_channels.work_in_place if in_place else _cpu_channels.work_packed
            work(0, *arguments)
        elif in_place:
            _cpu_channels.work_in_place_in_threads(threads, *arguments)
        else:
            _cpu_channels.work_packed_in_threads(threads, *arguments)

    def finish(self):
        """Write what the schedules left out."""
        if not np.may_share_memory(self.pooled, self.out):  # a layout that no flat view reaches
            native = self.out.dtype.newbyteorder("=")
            self.out[...] = self.pooled.view(native).reshape(self.out.shape)
        self.out[self.invalid] = np.nan


def pool(features, rois, sampling, convention, out, dtype, validate, stream=None):
    """Pool `rois` of `features` into `out`, all NumPy arrays.

    With `validate` on (None, the default, means on) the first invalid row is returned with its
    number, and nothing is written; otherwise None, and an invalid row pools NaN.
    """
    call = Call(features, rois, sampling, convention, out, dtype)
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
