"""The CUDA target: the operator and its gradients on device arrays."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .._flat import in_order
from .._geometry import Convention, Sampling
from .._kernels import AVERAGE, Strides
from . import banded, elements, plans, whole
from .arrays import check_result, fetch, flat_result, flat_view
from .average import Average, Case
from .boxes import join_boxes, row_of, stack_boxes
from .gradient import Tiles, schedule_gradient, schedule_winners
from .indices import narrowed
from .launches import limits_of, over
from .small import Small, is_small
from .tables import Tables, typed_geometry

__all__ = ["box_backward", "clear", "join_boxes", "pool", "pool_backward", "stack_boxes"]

# Bounds the tables of a call, and the slopes of a box gradient, as long as one RoI's fit.
BATCH_BYTES = 64 << 20


class How(NamedTuple):
    """What a call is asked for, but for its arrays."""

    sampling: Sampling
    convention: Convention
    dtype: str
    layout: str
    batch_bytes: int
    mode: int = AVERAGE


def first_invalid(rois, how, queue):
    """Return the first RoI that cannot be pooled, with its number, or None; it waits."""
    *geometry, zero = typed_geometry(how.sampling, how.convention, how.dtype)
    images = queue.empty(rois.shape[0], np.intp)
    over(elements.schedule_images, rois.shape[0], queue)(rois, *geometry, images, zero)
    invalid = np.flatnonzero(fetch(images, queue.stream) < 0)
    if not invalid.size:
        queue.reuse()
        return None
    n = int(invalid[0])
    return n, row_of(rois, n, queue)


def batches_of(tables):
    """Fill the tables with one batch of RoIs after the other, and give the number of its first."""
    for start in range(0, tables.rois.shape[0], tables.rows):
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
    how = How(sampling, convention, dtype, layout, BATCH_BYTES, mode)
    if validate and (invalid := first_invalid(rois, how, queue)) is not None:
        return invalid
    plans.run(queue_pooling, queue, (features, rois, out, argmax), how)
    return None


def queue_pooling(queue, features, rois, out, argmax, how):
    """Queue the pooling of all RoIs."""
    geometry, layout = typed_geometry(how.sampling, how.convention, how.dtype), how.layout
    source, target = flat_view(features, layout), flat_result(out, layout)
    channels = in_order(layout, out.shape)[1]
    if how.mode == AVERAGE:
        is_last = source[1].channel == 1 and channels > 1
        is_packed = target[1].row == out.shape[-1] * target[1].column
        (sampling, _, zero), limits = geometry, limits_of(queue.device)
        case = Case(sampling, rois.shape[0], channels, zero.dtype.itemsize, limits)
        call = rois, geometry, queue, case
        if not is_last and is_small(case):
            average = Small(*call)
        elif not is_last and whole.suits(case, source[1]):
            average = whole.WholeMaps(*call)
        elif not is_last and banded.suits(case, source[1]):
            average = banded.Banded(*call, how.batch_bytes, is_packed)
        else:
            average = Average(*call, how.batch_bytes, is_last, is_packed)
        average.pool(source, target)
        return
    tables = Tables(rois, geometry, queue, how.batch_bytes, samples=True)
    if argmax is not None:
        winners = flat_result(argmax, layout)
    else:
        winners = queue.empty(1, np.int64), Strides(0, 0, 0, 0)  # not written
    for start in batches_of(tables):
        count = tables.count(start)
        over(elements.schedule_maxima, count * math.prod(out.shape[1:]), queue)(
            *source, start, tables.sampling, tables.images, tables.y, tables.x, tables.zero,
            *target, *winners, argmax is not None, how.mode, (count, channels),
        )  # fmt: skip


def pool_backward(
    grad, rois, sampling, convention, out, layout, dtype, validate, queue,
    mode=AVERAGE, argmax=None,
):  # fmt: skip
    """Write the gradient of a map to `out`, from that of its pooled features.

    An invalid row gives nothing to it, where it does not raise as in `pool`.
    """
    how = How(sampling, convention, dtype, layout, BATCH_BYTES, mode)
    if validate and (invalid := first_invalid(rois, how, queue)) is not None:
        return invalid
    plans.run(queue_gradient, queue, (grad, rois, out, argmax), how)
    return None


def queue_gradient(queue, grad, rois, out, argmax, how):
    """Queue the gradient of a map."""
    geometry, layout = typed_geometry(how.sampling, how.convention, how.dtype), how.layout
    tables = Tables(
        rois, geometry, queue, how.batch_bytes, samples=how.mode != AVERAGE, turned=True
    )
    (source, strides), sums = flat_view(grad, layout), out
    if tables.rows < rois.shape[0] and how.dtype not in ("float32", "float64"):
        # Batches add up in the result, which then must be as exact as the sums.
        sums = queue.empty(out.shape, np.float32)
    target, out_strides = flat_result(sums, layout)
    channels = in_order(layout, out.shape)[1]
    tiles, last = Tiles(tables.sampling, tables.rows, queue), out_strides.channel == 1
    if how.mode != AVERAGE:
        winners = flat_view(argmax, layout)
    for start in batches_of(tables):
        tiles.fill(tables.images, tables.spans, tables.count(start))
        batch = start, tiles.lists, tiles.counts, tables.sampling, tables.spans
        bins = tables.y_bins, tables.x_bins
        result = tables.zero, target, out_strides, channels
        if how.mode == AVERAGE:
            own = tiles.own(channels, last)
            tiles.over(schedule_gradient, channels, last, own)(
                source, narrowed(strides), *batch, *bins, *result, own, start > 0
            )
        else:
            tiles.over(schedule_winners, channels, last)(
                source, strides, *winners, *batch, *bins, tables.y_codes, tables.x_codes,
                tables.x.grids, *result, start > 0, how.mode,
            )  # fmt: skip
    if sums is not out:
        shape = in_order(layout, out.shape)
        over(elements.schedule_copies, math.prod(shape), queue)(
            target, out_strides, *flat_result(out, layout), shape
        )


def box_backward(grad, features, rois, sampling, convention, out, layout, dtype, validate, queue):
    """Write the gradient of the boxes, (K, 5), to `out`; see the CPU's.

    An invalid row has gradient 0, where it does not raise as in `pool`.
    """
    how = How(sampling, convention, dtype, layout, BATCH_BYTES)
    if validate and (invalid := first_invalid(rois, how, queue)) is not None:
        return invalid
    plans.run(queue_box_gradient, queue, (grad, features, rois, out), how)
    return None


def queue_box_gradient(queue, grad, features, rois, out, how):
    """Queue the gradient of the boxes."""
    check_result(out)
    geometry, layout = typed_geometry(how.sampling, how.convention, how.dtype), how.layout
    number = geometry[-1].dtype
    channels, bins = in_order(layout, grad.shape)[1], math.prod(grad.shape[1:])
    most = max(1, how.batch_bytes // (number.itemsize * bins))
    tables = Tables(rois, geometry, queue, how.batch_bytes, most=most)
    source, weights = flat_view(features, layout), flat_view(grad, layout)
    slopes = flat_view(queue.empty((tables.rows, *grad.shape[1:]), number), layout)
    dots = queue.empty(tables.rows * channels, number)
    for start in range(0, rois.shape[0], tables.rows):
        shape = tables.count(start), channels
        for corner in range(4):
            tables.fill(start, corner)
            over(elements.schedule_outputs, shape[0] * bins, queue)(
                *source, 0, tables.sampling, tables.images, tables.y, tables.x, tables.zero,
                *slopes, shape,
            )  # fmt: skip
            over(elements.schedule_dots, math.prod(shape), queue)(
                *slopes, *weights, start, tables.sampling, tables.zero, dots, shape
            )
            over(elements.schedule_sums, shape[0], queue)(
                dots, tables.images, start, *shape, tables.zero, out, corner + 1
            )


def clear(array, queue):
    """Set an array to zero."""
    if 0 not in array.shape:
        plans.run(queue_zeros, queue, (array,))


def queue_zeros(queue, array):
    """Queue the clearing of an array of up to four axes."""
    more = 4 - len(array.shape)
    shape, strides = array.shape + (1,) * more, array.strides + (array.itemsize,) * more
    target, strides = flat_view(array.shaped(shape, strides), "NCHW")
    over(elements.schedule_zeros, math.prod(shape), queue)(target, strides, shape)
