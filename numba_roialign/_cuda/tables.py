"""The tables of a batch of boxes on a device, a row for each: taps or samples of both axes."""

from __future__ import annotations

import functools

import numpy as np

from .._taps import empty_samples, empty_taps, sample_capacity, tap_capacity
from . import elements
from .gradient import tiles_of
from .launches import over

MOST_IMAGES = 1 << 24  # that float32 tells apart


def in_type(record, T):
    """Return a record of the geometry with its lengths in the type that a kernel computes in."""
    return record._make(T(field) if isinstance(field, float) else field for field in record)


@functools.lru_cache(256)
def typed_geometry(sampling, convention, dtype):
    """Return the geometry in the type that kernels compute in for a dtype, and that type's zero."""
    zero = np.float64(0) if dtype == "float64" else np.float32(0)
    if sampling.images > MOST_IMAGES and dtype != "float64":
        raise ValueError(
            f"a map of {dtype} on a CUDA device may have {MOST_IMAGES} images, whose numbers are "
            f"read as float32, got {sampling.images}"
        )
    return in_type(sampling, type(zero)), in_type(convention, type(zero)), zero


class Tables:
    """The tables of a batch of RoIs on the device, and how they are filled."""

    def __init__(
        self, rois, geometry, queue, batch_bytes, samples=False, turned=False, most=1 << 31
    ):
        self.sampling, self.convention, self.zero = geometry
        self.rois, self.queue = rois, queue
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
        self.rows = max(1, min(rois.shape[0], batch_bytes // max(1, row_bytes), most))
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
            over(elements.schedule_slopes, count, self.queue)(
                *arguments, *tables, self.zero, corner
            )
        elif self.samples:
            over(elements.schedule_samples, 2 * count, self.queue)(*arguments, *tables, self.zero)
        else:
            over(elements.schedule_taps, 2 * count, self.queue)(*arguments, *tables, self.zero)
        if self.turned and self.samples:
            over(elements.schedule_sample_turns, 2 * count, self.queue)(
                self.images, count, self.y, self.x, self.y_bins, self.x_bins,
                self.y_codes, self.x_codes, self.spans,
            )  # fmt: skip
        elif self.turned:
            over(elements.schedule_turns, 2 * count, self.queue)(
                self.images, count, self.y, self.x, self.y_bins, self.x_bins, self.spans
            )
