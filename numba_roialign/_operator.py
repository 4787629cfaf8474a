"""The operator behind every entry point: it checks the arrays and calls their target."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import _dispatch
from ._arguments import (
    adopted,
    check_features,
    check_layout,
    check_like,
    check_out,
    check_rois,
    validation,
)
from ._families import NumPy, check_places
from ._flat import in_order
from ._geometry import Convention, Sampling, image_of
from ._kernels import AVERAGE
from ._memory import most_bytes, results_of
from ._repeats import repeated


class InvalidRoIError(ValueError):
    """A row of rois that cannot be pooled: its number, its values and what is wrong."""

    def __init__(self, n, row, images, convention):
        self.row = n
        image, *box = row
        if not all(map(math.isfinite, row)):
            problem = "is not finite"
        elif image_of(image, images, convention) < 0:
            problem = f"names an image outside 0..{images - 1}"
        else:
            problem = "is too large: it overflows, or a bin takes 2**30 samples or more"
        corners = ", ".join(f"{corner:g}" for corner in box)
        self.problem = f"{problem}: image {image:g}, box ({corners})"
        super().__init__(f"rois row {n} {self.problem}")
        self._made_of = n, row, images, convention

    def __reduce__(self):  # an exception's own calls the class with the message alone
        return type(self), self._made_of


class Geometry(NamedTuple):
    """How boxes are sampled, whatever the map; pairs are y and x."""

    scale: tuple[float, float]
    samples: tuple[int, int]
    most_samples: int
    convention: Convention

    def sampling(self, images, height, width, output_size: tuple[int, int]) -> Sampling:
        return Sampling(
            images, height, width, *output_size, *self.scale, *self.samples, self.most_samples
        )


def stacked(rois, features, stream=None):
    """Return rois as one array; a list holds each image's boxes."""
    if not isinstance(rois, (list, tuple)):
        return rois
    if not rois:
        family, features = adopted("features", features)
        return family.empty((0, 5), features)
    adoptions = [adopted(f"rois[{image}]", boxes) for image, boxes in enumerate(rois)]
    for image, (family, boxes) in enumerate(adoptions):
        check_rois(boxes.shape, family.dtype(boxes), columns=4, name=f"rois[{image}]")
    families = {family for family, _ in adoptions}
    if len(families) > 1:
        names = ", ".join(sorted(family.__name__ for family in families))
        raise TypeError(f"rois mixes arrays of different families: {names}")
    family, boxes = families.pop(), [boxes for _, boxes in adoptions]
    with _dispatch.queue_for(family, boxes[0], stream) as queue:
        target = _dispatch.target_of(family)
        return target.stack_boxes([family.boxes(box) for box in boxes], queue)


def ordered(layout, batch, channels, height, width):
    """Return a shape in a layout."""
    if layout == "NHWC":
        return batch, height, width, channels
    return batch, channels, height, width


def received(name, features, rois):
    """Adopt a call's two arrays and check the boxes and where both live; return each after its
    family."""
    family, features = adopted(name, features)
    rois_family, rois = adopted("rois", rois)
    check_rois(rois.shape, rois_family.dtype(rois))
    check_places((name, family, features), ("rois", rois_family, rois))
    return family, features, rois_family, rois


def check_map(shape, any_rois, layout):
    """Return a map's sizes, and refuse one without pixels for boxes to pool."""
    images, channels, height, width = in_order(layout, shape)
    if any_rois and 0 in (images, height, width):
        raise ValueError(f"features of shape {tuple(shape)} has no pixels to pool")
    if max(height, width) >= 2**31:  # tables of taps number them in 32 bits
        raise ValueError(f"features of shape {tuple(shape)} has a side of 2**31 pixels or more")
    return images, channels, height, width


@functools.lru_cache(1024)
def pooled_from(layout, shape, dtype, any_rois, output_size, geometry):
    """Check a map of a shape; return the shape of a RoI's pooled features, and the sampling.

    It is kept for the next call, which then runs little of the interpreter's code: the kernels have
    taken its place in the caches.
    """
    check_features("features", shape, layout, dtype)
    images, channels, height, width = check_map(shape, any_rois, layout)
    pooled = ordered(layout, 0, channels, *output_size)[1:]
    return pooled, geometry.sampling(images, height, width, output_size)


class Alike(NamedTuple):
    """What is the same in all calls that `alike` tells from others."""

    results: Callable[[int], Any]  # makes the array for so many
    pool: Callable[..., Any]
    images: int


@functools.lru_cache(1024)
def alike(layout, shape, strides, dtype, aligned, columns, rois_dtype, output_size, geometry, mode):
    """Check NumPy arrays by what they look like; return what all calls on such have in common.

    None where they do not fit, or do not fit as they are: `roi_align` then goes its longer way.
    """
    check_layout(layout)
    if columns != (5,) or rois_dtype.kind not in "fiu":
        return None
    pooled, sampling = pooled_from(layout, shape, dtype.name, True, output_size, geometry)
    if not 0 < math.prod(pooled) * dtype.itemsize <= most_bytes():
        return None
    pool = _dispatch.target_of(NumPy).pooler_alike(
        layout, shape, strides, dtype, aligned, pooled, sampling, geometry.convention, mode
    )
    return pool and Alike(results_of(pooled, dtype), pool, sampling.images)


def raise_invalid(invalid: tuple[int, Any] | None, images, convention):
    """Raise where a target has found an invalid row."""
    if invalid is not None:
        raise InvalidRoIError(*invalid, images, convention)


def roi_align(
    features, rois, output_size, geometry: Geometry, *,
    mode=AVERAGE, return_argmax=False, layout="NCHW", out=None, validate=None, stream=None,
    workspace=None,
):  # fmt: skip
    """Pool `rois` from `features`.

    `output_size` is a pair, checked already, and `rois` an array of (K, 5). The public functions
    document the rest.
    """
    validate = validation(validate)
    if type(features) is type(rois) is np.ndarray and out is stream is workspace is None:
        # Most calls are like one before, which was checked: the interpreter takes 8 us this way,
        # and 30 the other.
        common = not return_argmax and rois.size and alike(
            layout, features.shape, features.strides, features.dtype, features.flags.aligned,
            rois.shape[1:], rois.dtype, output_size, geometry, mode,
        )  # fmt: skip
        if common:
            out = common.results(len(rois))
            invalid, _ = common.pool(features, rois, out, validate is not False)
            raise_invalid(invalid, common.images, geometry.convention)
            return out
    given, repeats = (features, rois, out, None), None
    if not validate:
        options = "pool", layout, output_size, geometry, mode, bool(return_argmax)
        made, repeats = repeated(features, given, stream, workspace, options)
        if made:
            return (made[2], made[3]) if return_argmax else made[2]
    check_layout(layout)
    family, features, rois_family, rois = received("features", features, rois)
    count, dtype = rois.shape[0], family.dtype(features)
    pooled, sampling = pooled_from(
        layout, tuple(features.shape), dtype, count > 0, output_size, geometry
    )
    shape = (count, *pooled)
    with _dispatch.queue_for(family, features, stream, workspace) as queue:
        source, boxes = family.array(features), rois_family.boxes(rois)
        if out is None:
            out = family.empty(shape, features)
        else:
            check_out(out, family, shape, dtype, features=source, rois=boxes)
            family.note_written(out)
        argmax = family.empty(shape, features, "int64") if return_argmax else None
        if 0 not in shape:
            result, winners = family.array(out), family.array(argmax) if return_argmax else None
            invalid = _dispatch.target_of(family).pool(
                source, boxes, sampling, geometry.convention, result,
                layout, dtype, validate, queue, mode, winners,
            )  # fmt: skip
            raise_invalid(invalid, sampling.images, geometry.convention)
            if repeats:
                repeats.learn(queue, given, (source, boxes, result, winners), out=2)
    return (out, argmax) if return_argmax else out


def roi_align_backward(
    grad_output, rois, feature_shape, geometry: Geometry, *,
    mode=AVERAGE, layout="NCHW", argmax=None, out=None, validate=None, stream=None,
    workspace=None,
):  # fmt: skip
    """Return the gradient of a map of a shape from that of the features pooled from it."""
    check_layout(layout)
    validate = validation(validate)
    given, repeats = (grad_output, rois, out, argmax), None
    if not validate:
        options = "gradient", layout, feature_shape, geometry, mode
        made, repeats = repeated(grad_output, given, stream, workspace, options)
        if made:
            return made[2]
    family, grad, rois_family, rois = received("grad_output", grad_output, rois)
    dtype = family.dtype(grad)
    check_features("grad_output", grad.shape, layout, dtype)
    count, channels, *output_size = in_order(layout, grad.shape)
    if count != rois.shape[0]:
        raise ValueError(f"grad_output has {count} rows and rois {rois.shape[0]}")
    images, map_channels, height, width = check_map(feature_shape, count, layout)
    if channels != map_channels:
        raise ValueError(f"grad_output has {channels} channels and feature_shape {map_channels}")
    if mode != AVERAGE:
        if argmax is None:
            raise ValueError("the gradient of a maximum needs argmax, which the forward returned")
        check_like("argmax", argmax, family, grad.shape, "int64")
    elif argmax is not None:
        raise ValueError("argmax has no meaning for mode='avg'")
    winners = None if argmax is None else family.array(argmax)
    target = _dispatch.target_of(family)
    with _dispatch.queue_for(family, grad, stream, workspace) as queue:
        source, boxes = family.array(grad), rois_family.boxes(rois)
        if out is None:
            out = family.empty(feature_shape, grad)
        else:
            read = {"grad_output": source, "rois": boxes, "argmax": winners}
            check_out(out, family, feature_shape, dtype, **read)
            family.note_written(out)
        if 0 in grad.shape:
            target.clear(family.array(out), queue)
        elif 0 not in feature_shape:
            sampling = geometry.sampling(images, height, width, output_size)
            result = family.array(out)
            invalid = target.pool_backward(
                source, boxes, sampling, geometry.convention, result,
                layout, dtype, validate, queue, mode, winners,
            )  # fmt: skip
            raise_invalid(invalid, images, geometry.convention)
            if repeats:
                repeats.learn(queue, given, (source, boxes, result, winners), out=2)
    return out


def roi_align_box_backward(
    grad_output, features, rois, geometry: Geometry, *,
    layout="NCHW", out=None, validate=None, stream=None, workspace=None,
):  # fmt: skip
    """Return the gradient of the boxes, (K, 5), from that of the features pooled from them."""
    check_layout(layout)
    validate = validation(validate)
    given, repeats = (grad_output, features, rois, out), None
    if not validate:
        options = "box gradient", layout, geometry
        made, repeats = repeated(features, given, stream, workspace, options)
        if made:
            return made[3]
    family, features, rois_family, rois = received("features", features, rois)
    grad_family, grad = adopted("grad_output", grad_output)
    dtype = family.dtype(features)
    check_features("features", features.shape, layout, dtype)
    check_places(("features", family, features), ("grad_output", grad_family, grad))
    if grad_family.dtype(grad) != dtype:
        raise TypeError(f"grad_output is {grad_family.dtype(grad)} and features {dtype}")
    check_features("grad_output", grad.shape, layout, dtype)
    images, channels, height, width = check_map(features.shape, rois.shape[0], layout)
    output_size = in_order(layout, grad.shape)[2:]
    shape = ordered(layout, rois.shape[0], channels, *output_size)
    if tuple(grad.shape) != shape:
        raise ValueError(f"grad_output must be of shape {shape}, got {tuple(grad.shape)}")
    target, rois_dtype = _dispatch.target_of(family), rois_family.dtype(rois)
    out_dtype = rois_dtype if rois_dtype in ("float32", "float64") else "float32"
    with _dispatch.queue_for(family, features, stream, workspace) as queue:
        weights, source = grad_family.array(grad), family.array(features)
        boxes = rois_family.boxes(rois)
        if out is None:
            out = family.empty((rois.shape[0], 5), features, out_dtype)
        else:
            read = {"grad_output": weights, "features": source, "rois": boxes}
            check_out(out, family, (rois.shape[0], 5), out_dtype, **read)
            family.note_written(out)
        if 0 in shape:
            target.clear(family.array(out), queue)
            return out
        sampling = geometry.sampling(images, height, width, output_size)
        result = family.array(out)
        invalid = target.box_backward(
            weights, source, boxes, sampling, geometry.convention,
            result, layout, dtype, validate, queue,
        )  # fmt: skip
        raise_invalid(invalid, images, geometry.convention)
        if repeats:
            repeats.learn(queue, given, (weights, source, boxes, result), out=3)
    return out
