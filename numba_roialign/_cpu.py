"""The CPU target: its schedule over Numba's threads, and its launch on NumPy arrays."""

from __future__ import annotations

import numpy as np
from numba import get_num_threads, njit, prange

from . import _geometry, _kernels
from ._flat import flat_view
from ._geometry import empty_tables
from ._halves import HALF_STORAGE, as_numbers

# error_model="numpy": a division by zero is an infinity, as on CUDA, and not an exception.
OPTIONS = {"error_model": "numpy", "nogil": True}

fill_row = njit(**OPTIONS)(_geometry.fill_row)
# contract: multiply and add fuse, as on CUDA; the order of operations stays as written. Not in the
# geometry, where it would decide an adaptive grid otherwise than the peers do.
average_at = njit(forceinline=True, fastmath={"contract"}, **OPTIONS)(_kernels.average_at)

# Bounds the scratch of a call to 12 MB (24 MB for float64), as long as the taps of one RoI fit.
BATCH_SLOTS = 1 << 20
# A task is one RoI on a block of channels; with few RoIs there are this many tasks per thread.
TASKS_PER_THREAD = 4


@njit(parallel=True, **OPTIONS)
def schedule_taps(rois, start, sampling, convention, images, y_taps, x_taps, zero):
    """Fill the tables of a batch, a task per RoI."""
    for task in prange(min(images.shape[0], rois.shape[0] - start)):
        row = np.intp(task)  # prange's own type would have fill_row compiled a second time
        fill_row(images, y_taps, x_taps, row, rois, start + row, sampling, convention, zero)


@njit(parallel=True, **OPTIONS)
def schedule_outputs(
    features, strides, start, sampling, images, y_taps, x_taps, zero, out, out_strides, shape, block
):
    """Pool a batch, a task per RoI and block of channels."""
    rois, channels = shape
    blocks = (channels + block - 1) // block
    for task in prange(rois * blocks):
        row = np.intp(task) // blocks
        first = (np.intp(task) - row * blocks) * block
        numbers, pooled = as_numbers(features), as_numbers(out)
        for c in range(first, min(first + block, channels)):
            plane = (start + row) * out_strides.image + c * out_strides.channel
            for ph in range(sampling.output_height):
                for pw in range(sampling.output_width):
                    o = plane + ph * out_strides.row + pw * out_strides.column
                    pooled[np.uintp(o)] = average_at(
                        numbers, strides, images, y_taps, x_taps, row, c, ph, pw, zero
                    )


def stack_boxes(boxes, stream=None):
    """Return per-image boxes as one array, an image index before each box."""
    images = np.repeat(np.arange(len(boxes)), [len(box) for box in boxes])
    return np.column_stack([images, np.concatenate(boxes)])


def pool(features, rois, sampling, convention, out, dtype, validate, stream=None):
    """Pool `rois` of `features` into `out`, all NumPy arrays.

    With `validate` on (None, the default, means on) the first invalid row is returned with its
    number, and nothing is written; otherwise None, and an invalid row pools NaN.
    """
    zero = np.float64(0) if dtype == "float64" else np.float32(0)
    storage = HALF_STORAGE.get(dtype)
    rois = np.ascontiguousarray(rois, np.float64)
    numbers, strides = flat_view(features, storage)
    numbers.flags.writeable = False  # one compiled signature, whether the caller's is or not
    pooled, out_strides = flat_view(out, storage)
    count, channels = out.shape[:2]
    blocks = max(1, TASKS_PER_THREAD * get_num_threads() // count)
    block = -(-channels // blocks)
    tables = empty_tables(np.empty, count, sampling, zero.dtype, BATCH_SLOTS)
    images = tables[0]
    batches = range(0, count, len(images))
    if validate or validate is None:
        for start in batches:
            schedule_taps(rois, start, sampling, convention, *tables, zero)
            invalid = np.flatnonzero(images[: count - start] < 0)
            if invalid.size:
                n = start + int(invalid[0])
                return n, rois[n].tolist()
    for start in batches:
        rows = min(len(images), count - start)
        if len(batches) > 1 or validate is False:
            schedule_taps(rois, start, sampling, convention, *tables, zero)
        schedule_outputs(
            numbers, strides, start, sampling, *tables, zero,
            pooled, out_strides, (rows, channels), block,
        )  # fmt: skip
    if not np.may_share_memory(pooled, out):  # a layout that no flat view reaches
        out[...] = pooled.view(out.dtype.newbyteorder("=")).reshape(out.shape)
    return None
