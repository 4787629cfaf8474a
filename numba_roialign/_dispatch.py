"""The dispatcher: arrays run where they live.

The CUDA target is imported with the first array on a device, so that a CPU process never pays for
it nor needs it installed.
"""

from __future__ import annotations

from contextlib import nullcontext

from . import _cpu

_NO_QUEUE = nullcontext()

plan_alike = _cpu.plan_alike


def target_of(family):
    """Return the module of a family's target."""
    if family.target == "cpu":
        return _cpu
    from . import _cuda

    return _cuda


def queue_for(family, x, stream, workspace=None):
    """Return a context that gives what a call on an array runs on: None, or a stream and scratch.

    The order of CPU calls is that of the program, so they have no stream, and their scratch is kept
    without being asked for.
    """
    if family.target == "cuda":
        from . import _cuda_queue

        return _cuda_queue.queue_for(family, x, stream, workspace)
    if stream is not None or workspace is not None:
        name = "workspace" if stream is None else "stream"
        raise TypeError(f"{name}= is for arrays on a CUDA device, and these are on the CPU")
    return _NO_QUEUE


def stack_boxes(family, boxes, queue):
    """Return per-image boxes, arrays of (L, 4) on one target, as one array of (K, 5)."""
    return target_of(family).stack_boxes([family.boxes(box) for box in boxes], queue)


def join_boxes(family, images, boxes, queue):
    """Return boxes, (K, 4), and the image of each, (K,), as one array of (K, 5)."""
    return target_of(family).join_boxes(family.boxes(images), family.boxes(boxes), queue)


def pool(
    family, features, rois, sampling, convention, out, layout, dtype, validate, queue, mode, argmax
):
    """Pool on the target of `family`; see the targets' `pool`."""
    return target_of(family).pool(
        family.array(features), rois, sampling, convention, family.array(out),
        layout, dtype, validate, queue, mode, argmax_of(family, argmax),
    )  # fmt: skip


def pool_alike(plan, features, rois, out, dtype, validate):
    """Pool NumPy arrays by what `plan_alike` returned for such; return as `pool` does."""
    return _cpu.pool_by(plan, features, rois, out, dtype, validate is not False)[0]


def pool_backward(
    family, grad, rois, sampling, convention, out, layout, dtype, validate, queue, mode, argmax
):
    """Compute the gradient of a map; see the targets' `pool_backward`."""
    return target_of(family).pool_backward(
        family.array(grad), rois, sampling, convention, family.array(out),
        layout, dtype, validate, queue, mode, argmax_of(family, argmax),
    )  # fmt: skip


def box_backward(
    family, grad, features, rois, sampling, convention, out, layout, dtype, validate, queue
):
    """Compute the gradient of the boxes; see the targets' `box_backward`."""
    return target_of(family).box_backward(
        family.array(grad), family.array(features), rois, sampling, convention,
        family.array(out), layout, dtype, validate, queue,
    )  # fmt: skip


def clear(family, x, queue):
    """Set an array to zero on its target."""
    target_of(family).clear(family.array(x), family.dtype(x), queue)


def argmax_of(family, argmax):
    return None if argmax is None else family.array(argmax)
