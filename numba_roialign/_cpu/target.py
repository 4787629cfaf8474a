"""The CPU target: the operator and its gradients on NumPy arrays."""

from __future__ import annotations

import numpy as np

from .._flat import c_strides, in_place, is_in_place, place_for, plain, stacked_dtype
from .._kernels import AVERAGE
from .._memory import empty_result
from .call import run
from .halves import narrowed, widened
from .plan import gradient_plan, pooling_plan
from .threads import usable_threads

# Of the slopes that a box gradient holds at a time, as long as one RoI's fit.
SLOPE_BYTES = 16 << 20


def stack_boxes(boxes, queue=None):
    """Return per-image boxes as one array, an image index before each box."""
    images = np.repeat(np.arange(len(boxes)), [len(box) for box in boxes])
    rois = np.empty((len(images), 5), stacked_dtype(box.dtype for box in boxes))
    rois[:, 0], rois[:, 1:] = images, np.concatenate(boxes)
    return rois


def join_boxes(images, boxes, queue=None):
    """Return boxes and the image of each as one array."""
    return np.column_stack([images, boxes])


def clear(array, queue=None):
    """Set an array to zero."""
    array[...] = 0


def settle(target, out):
    """Copy a result to where the caller wants it, if it was not computed there."""
    if target is not out:
        out[...] = target.view(out.dtype.newbyteorder("="))


def pool(
    features, rois, sampling, convention, out, layout, dtype, validate, queue=None,
    mode=AVERAGE, argmax=None,
):  # fmt: skip
    """Pool `rois` of `features` into `out`, all NumPy arrays.

    With `validate` on (None, the default, means on) the first invalid row is returned with its
    number, and nothing is written; otherwise None, and an invalid row pools NaN. A maximum writes
    to `argmax` where it is given.
    """
    checked = validate is not False
    invalid, skipped = pool_into(
        features, rois, sampling, convention, out, layout, dtype, dtype, checked, np.nan, mode,
        argmax,
    )  # fmt: skip
    if skipped and argmax is not None:
        argmax[skipped] = -1
    return invalid


def pool_into(
    features, rois, sampling, convention, out, layout, dtype, out_dtype, validate, invalid_value,
    mode=AVERAGE, argmax=None, corner=None,
):  # fmt: skip
    """As `pool`, with `out` in any dtype, slopes for a `corner`, and a value for invalid rows.

    Returns the first invalid row where that is asked for, and all the rows that are.
    """
    source, target = in_place(features), place_for(out)
    plan = pooling_plan(
        layout, source.shape, source.strides, target.shape[1:], target.strides,
        dtype, out_dtype, sampling, convention,
        mode, corner, argmax is not None,
    )  # fmt: skip
    pool = pooler(plan, out_dtype, invalid_value)
    invalid, skipped = pool(source, rois, target, validate, argmax)
    if invalid is None:
        settle(target, out)
    return invalid, skipped


def pooler(plan, out_dtype, invalid_value=np.nan):
    """Return what pools by a plan, into results of a dtype, with a value for invalid rows."""

    def pool(features, rois, out, validate, argmax=None):
        threads = 1 if plan.is_small(len(rois)) else usable_threads()
        invalid, skipped = run(plan, features, rois, out, threads, validate, argmax)
        if skipped and invalid is None:
            value = np.full((1,) * out.ndim, invalid_value, np.float32)
            out[skipped] = narrowed(value, out_dtype, out.dtype)
        return invalid, skipped

    return pool


def pooler_alike(layout, shape, strides, dtype, aligned, pooled, sampling, convention, mode):
    """Return what pools all maps that look so into new results; None where they are copied.

    `pooled` is the shape of a RoI's pooled features.
    """
    if not is_in_place(shape, strides, dtype, aligned):
        return None
    plan = pooling_plan(
        layout, shape, strides, pooled, c_strides((1, *pooled), dtype.itemsize),
        dtype.name, dtype.name, sampling, convention, mode, None, False,
    )  # fmt: skip
    return pooler(plan, dtype.name)


def pool_backward(
    grad, rois, sampling, convention, out, layout, dtype, validate, queue=None,
    mode=AVERAGE, argmax=None,
):  # fmt: skip
    """Write the gradient of a map to `out`, from that of its pooled features.

    An invalid row gives nothing to it, where it does not raise as in `pool`.
    """
    source, target = in_place(grad), place_for(out)
    if mode != AVERAGE:
        argmax = plain(argmax, np.dtype(np.int64))

    def plan_for(target, out_dtype, batched):
        return gradient_plan(
            layout, source.shape[1:], source.strides, target.shape, target.strides,
            dtype, out_dtype, sampling, convention, mode, batched,
        )  # fmt: skip

    plan = plan_for(target, dtype, batched=False)
    if plan.table_rows(len(rois)) < len(rois):
        wide = dtype in ("float32", "float64")
        # Batches add up in the result, which then must be as exact as the sums.
        target = target if wide else empty_result(out.shape, np.float32)
        plan = plan_for(target, dtype if wide else "float32", batched=True)
    threads = 1 if plan.is_small(len(rois), more=out.size) else usable_threads()
    invalid, _ = run(plan, source, rois, target, threads, validate is not False, argmax)
    if invalid is not None:
        return invalid
    if target.dtype != out.dtype and target.dtype == np.float32:
        out[...] = narrowed(target, dtype, out.dtype)
    else:
        settle(target, out)
    return None


def box_backward(
    grad, features, rois, sampling, convention, out, layout, dtype, validate, queue=None
):
    """Write the gradient of the boxes, (K, 5), to `out`.

    The slope of a pooled value, when a corner moves, is the value pooled with the slopes of the
    taps' weights: four poolings, each summed over a RoI's channels and bins with its gradient. An
    invalid row has gradient 0, where it does not raise as in `pool`.
    """
    number = np.dtype("float64" if dtype == "float64" else "float32")
    pooled = grad.shape[1:]
    step = max(1, SLOPE_BYTES // (number.itemsize * int(np.prod(pooled))))
    slopes = empty_result((min(step, len(rois)), *pooled), number)
    gradients = np.zeros((len(rois), 5))
    for start in range(0, len(rois), step):
        rows = slice(start, start + step)
        weights = widened(grad[rows], dtype).reshape(len(rois[rows]), -1)
        values = slopes[: len(weights)]
        for corner in range(4):
            checked = corner == 0 and validate is not False
            invalid, skipped = pool_into(
                features, rois[rows], sampling, convention, values, layout, dtype, number.name,
                checked, 0, corner=corner,
            )  # fmt: skip
            if invalid is not None:
                return start + invalid[0], invalid[1]
            # not by einsum, which sums a row in another order where there are several
            with np.errstate(all="ignore"):
                products = np.multiply(values.reshape(weights.shape), weights, dtype=np.float64)
                gradients[rows, corner + 1] = products.sum(axis=1)
        gradients[[start + row for row in skipped]] = 0  # also where `grad` is not finite
    out[...] = gradients
    return None
