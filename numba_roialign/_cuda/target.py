"""The CUDA target: the operator and its gradients on device arrays."""

from __future__ import annotations

import functools

import numpy as np

from .._flat import in_order
from .._kernels import AVERAGE, Strides
from .._taps import empty_samples, empty_taps, sample_capacity, tap_capacity
from . import elements
from .arrays import as_numba, fetch, flat_device_view
from .average import Average, narrowed
from .boxes import join_boxes, row_of, stack_boxes
from .gradient import Tiles, schedule_gradient, schedule_winners, tiles_of
from .launches import over

__all__ = ["box_backward", "clear", "join_boxes", "pool", "pool_backward", "stack_boxes"]

# Bounds the tables of a call, and the slopes of a box gradient, as long as one RoI's fit.
BATCH_BYTES = 64 << 20


def in_type(record, T):
    """Return a record of the geometry with its lengths in the type that a kernel computes in."""
    return record._make(T(field) if isinstance(field, float) else field for field in record)


class Tables:
    """The tables of a batch of RoIs on the device, and how they are filled."""

    def __init__(self, rois, geometry, queue, samples=False, turned=False, most=1 << 31):
        self.sampling, self.convention, self.zero = geometry
        self.rois, self.stream = rois, queue.stream
        sampling, number = self.sampling, self.zero.dtype
        capacity = sample_capacity if samples else tap_capacity
        axes = [
            (bins, length, capacity(bins, grid, length))
            for bins, length, grid in [
                (sampling.output_height, sampling.height, sampling.samples_y),
                (sampling.output_width, sampling.width, sampling.samples_x),
            ]
        ]
        copies = 1 + turned  # of the slots: as they are, and turned round
        row_bytes = sum(
            copies * (4 + number.itemsize) * slots + 16 * bins + turned * (8 * length + 4 * slots)
            for bins, length, slots in axes
        )
        row_bytes += turned * 4 * tiles_of(sampling)
        self.rows = max(1, min(rois.shape[0], BATCH_BYTES // max(1, row_bytes), most))
        empty = empty_samples if samples else empty_taps
        self.images = queue.empty(self.rows, np.intp)
        self.y, self.x = (
            empty(queue.empty, self.rows, bins, slots, number) for bins, _, slots in axes
        )
        if turned:
            self.y_bins, self.x_bins = (
                empty_taps(queue.empty, self.rows, length + 1, slots, number)
                for _, length, slots in axes
            )
            self.spans = queue.empty((self.rows, 4), np.intp)
            if samples:
                self.y_codes, self.x_codes = (
                    queue.empty(self.rows * slots, np.int32) for _, _, slots in axes
                )
        self.samples, self.turned = samples, turned

    def count(self, start):
        """Return how many RoIs the batch has that begins with one."""
        return min(self.rows, self.rois.shape[0] - start)

    def fill(self, start, corner=None):
        """Fill the tables with the batch that begins with RoI `start`."""
        count = self.count(start)
        if not count:
            return
        arguments = self.rois, start, self.sampling, self.convention
        tables = self.images, self.y, self.x
        if corner is not None:
            over(elements.schedule_slopes, count, self.stream)(
                *arguments, *tables, self.zero, corner
            )
        elif self.samples:
            over(elements.schedule_samples, 2 * count, self.stream)(*arguments, *tables, self.zero)
        else:
            over(elements.schedule_taps, 2 * count, self.stream)(*arguments, *tables, self.zero)
        if self.turned and self.samples:
            over(elements.schedule_sample_turns, 2 * count, self.stream)(
                self.images, count, self.y, self.x, self.y_bins, self.x_bins,
                self.y_codes, self.x_codes, self.spans,
            )  # fmt: skip
        elif self.turned:
            over(elements.schedule_turns, 2 * count, self.stream)(
                self.images, count, self.y, self.x, self.y_bins, self.x_bins, self.spans
            )


@functools.lru_cache(256)
def typed_geometry(sampling, convention, dtype):
    """Return the geometry in the type that kernels compute in for a dtype, and that type's zero."""
    zero = np.float64(0) if dtype == "float64" else np.float32(0)
    return in_type(sampling, type(zero)), in_type(convention, type(zero)), zero


def first_invalid(tables, queue):
    """Return the first RoI that cannot be pooled, with its number, or None; it waits."""
    for start in range(0, tables.rois.shape[0], tables.rows):
        tables.fill(start)
        images = fetch(tables.images, queue.stream)[: tables.count(start)]
        invalid = np.flatnonzero(images < 0)
        if invalid.size:
            n = start + int(invalid[0])
            return n, row_of(tables.rois, n, queue)
    return None


def batches_of(tables, validate):
    """Fill the tables with one batch of RoIs after the other, and give the number of its first."""
    batches = range(0, tables.rois.shape[0], tables.rows)
    for start in batches:
        if len(batches) > 1 or not validate:  # else the check has filled them
            tables.fill(start)
        yield start


def pool(
    features, rois, sampling, convention, out, layout, dtype, validate, queue,
    mode=AVERAGE, argmax=None,
):  # fmt: skip
    """Pool `rois` of `features` into `out`, all on one device, without waiting for it.

    An invalid row pools NaN. With `validate` on (None, the default, means off) the call waits for a
    check instead, and returns the first invalid row with its number, and nothing is written.
    """
    rois, geometry = as_numba(rois), typed_geometry(sampling, convention, dtype)
    if mode == AVERAGE:
        tables = Average(rois, geometry, queue, BATCH_BYTES)
    else:
        tables = Tables(rois, geometry, queue, samples=True)
    if validate and (invalid := first_invalid(tables, queue)) is not None:
        return invalid
    source = flat_device_view(features, layout, dtype)
    target = flat_device_view(out, layout, dtype)
    channels = in_order(layout, out.shape)[1]
    if argmax is not None:
        winners = flat_device_view(argmax, layout, "int64")
    elif mode != AVERAGE:
        winners = queue.empty(1, np.int64), Strides(0, 0, 0, 0)  # not written
    for start in batches_of(tables, validate):
        if mode == AVERAGE:
            tables.pool(start, source, target, channels)
            continue
        shape = tables.count(start), channels
        outputs = shape[0] * channels * sampling.output_height * sampling.output_width
        over(elements.schedule_maxima, outputs, queue.stream)(
            *source, start, tables.sampling, tables.images, tables.y, tables.x, tables.zero,
            *target, *winners, argmax is not None, mode, shape,
        )  # fmt: skip
    return None


def pool_backward(
    grad, rois, sampling, convention, out, layout, dtype, validate, queue,
    mode=AVERAGE, argmax=None,
):  # fmt: skip
    """Write the gradient of a map to `out`, from that of its pooled features.

    An invalid row gives nothing to it, where it does not raise as in `pool`.
    """
    geometry = typed_geometry(sampling, convention, dtype)
    tables = Tables(as_numba(rois), geometry, queue, samples=mode != AVERAGE, turned=True)
    if validate and (invalid := first_invalid(tables, queue)) is not None:
        return invalid
    source, strides = flat_device_view(grad, layout, dtype)
    sums, sums_dtype = out, dtype
    if tables.rows < rois.shape[0] and dtype not in ("float32", "float64"):
        # Batches add up in the result, which then must be as exact as the sums.
        sums, sums_dtype = queue.empty(out.shape, np.float32), "float32"
    target, out_strides = flat_device_view(sums, layout, sums_dtype)
    channels = in_order(layout, out.shape)[1]
    tiles, last = Tiles(sampling, tables.rows, queue), out_strides.channel == 1
    if mode != AVERAGE:
        winners = flat_device_view(argmax, layout, "int64")
    for start in batches_of(tables, validate):
        tiles.fill(tables.images, tables.spans, tables.count(start))
        batch = start, tiles.lists, tiles.counts, tables.sampling, tables.spans
        bins = tables.y_bins, tables.x_bins
        result = tables.zero, target, out_strides, channels
        if mode == AVERAGE:
            own = tiles.own(channels, last)
            tiles.over(schedule_gradient, channels, last, own)(
                source, narrowed(strides), *batch, *bins, *result, own, start > 0
            )
        else:
            tiles.over(schedule_winners, channels, last)(
                source, strides, *winners, *batch, *bins, tables.y_codes, tables.x_codes,
                tables.x.grids, *result, start > 0, mode,
            )  # fmt: skip
    if sums is not out:
        copy(target, out_strides, out, layout, dtype, queue.stream)
    return None


def box_backward(grad, features, rois, sampling, convention, out, layout, dtype, validate, queue):
    """Write the gradient of the boxes, (K, 5), to `out`; see the CPU's.

    An invalid row has gradient 0, where it does not raise as in `pool`.
    """
    stream, geometry = queue.stream, typed_geometry(sampling, convention, dtype)
    number = geometry[-1].dtype
    channels, bins = in_order(layout, grad.shape)[1], int(np.prod(grad.shape[1:]))
    most = max(1, BATCH_BYTES // (number.itemsize * bins))
    tables = Tables(as_numba(rois), geometry, queue, most=most)
    if validate and (invalid := first_invalid(tables, queue)) is not None:
        return invalid
    source, strides = flat_device_view(features, layout, dtype)
    weights, grad_strides = flat_device_view(grad, layout, dtype)
    slopes, slope_strides = flat_device_view(
        queue.empty((tables.rows, *grad.shape[1:]), number), layout, number.name
    )
    dots, boxes = queue.empty(tables.rows * channels, number), as_numba(out)
    for start in range(0, rois.shape[0], tables.rows):
        count = tables.count(start)
        for corner in range(4):
            tables.fill(start, corner)
            over(elements.schedule_outputs, count * bins, stream)(
                source, strides, 0, tables.sampling, tables.images, tables.y, tables.x,
                tables.zero, slopes, slope_strides, (count, channels),
            )  # fmt: skip
            over(elements.schedule_dots, count * channels, stream)(
                slopes, slope_strides, weights, grad_strides, start, tables.sampling,
                tables.zero, dots[: count * channels], channels,
            )  # fmt: skip
            over(elements.schedule_sums, count, stream)(
                dots, tables.images, start, count, channels, tables.zero, boxes, corner + 1
            )
    return None


def copy(source, strides, out, layout, dtype, stream):
    """Copy elements of a flat array to an array of four axes."""
    target, out_strides = flat_device_view(out, layout, dtype)
    shape = in_order(layout, out.shape)
    over(elements.schedule_copies, int(np.prod(shape)), stream)(
        source, strides, target, out_strides, shape
    )


def clear(array, dtype, queue):
    """Set an array to zero."""
    if 0 not in array.shape:
        array = array.reshape((*array.shape, *[1] * (4 - len(array.shape))))
        target, strides = flat_device_view(array, "NCHW", dtype)
        over(elements.schedule_zeros, int(np.prod(array.shape)), queue.stream)(
            target, strides, array.shape
        )
