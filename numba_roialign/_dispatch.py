"""The dispatcher: arrays run where they live.

The CUDA target is imported with the first array on a device, so that a CPU process never pays for
it nor needs it installed.
"""

from __future__ import annotations

from . import _cpu


def target_of(family):
    """Return the module of a family's target."""
    if family.target == "cpu":
        return _cpu
    from . import _cuda

    return _cuda


def stack_boxes(family, boxes):
    """Return per-image boxes, arrays of (L, 4) on one target, as one array of (K, 5)."""
    stream = family.stream(boxes[0])
    return target_of(family).stack_boxes([family.boxes(box) for box in boxes], stream)


def pool(family, features, rois, sampling, convention, out, layout, dtype, validate):
    """Pool on the target of `family`; see the targets' `pool`."""
    return target_of(family).pool(
        family.array(features), rois, sampling, convention, family.array(out),
        layout, dtype, validate, family.stream(features),
    )  # fmt: skip
