"""The one operator behind every entry point: it checks the arrays and calls their target."""

from __future__ import annotations

import math
import operator

import numpy as np

from ._dispatch import pool, stack_boxes
from ._families import check_places, family_of
from ._flat import LAYOUTS, in_order, overlap
from ._geometry import LARGEST_GRID, Convention, Sampling, image_of

FLOATS = ("float16", "bfloat16", "float32", "float64")


def describe(x) -> str:
    """Name an argument as an error message should."""
    shape = getattr(x, "shape", None)
    name = type(x).__name__
    return f"{name} of shape {tuple(shape)}" if shape is not None else f"{name} {x!r:.60}"


def adopted(name, x):
    """Return the family of an array, and the array."""
    family = family_of(x)
    if family is None:
        raise TypeError(f"{name} must be an array, got {describe(x)}")
    return family, family.adopt(x)


def check_features(features, layout, dtype):
    if dtype not in FLOATS:
        raise TypeError(f"features must be one of {', '.join(FLOATS)}, got {dtype}")
    if len(features.shape) != 4:
        axes = ", ".join(layout)
        raise ValueError(f"features must be ({axes}), got shape {tuple(features.shape)}")


def check_rois(rois, dtype, columns=5, name="rois"):
    if dtype == "bool" or not dtype.startswith(("float", "bfloat", "int", "uint")):
        raise TypeError(f"{name} must hold real numbers, got {dtype}")
    if len(rois.shape) != 2 or rois.shape[1] != columns:
        raise ValueError(f"{name} must be (K, {columns}), got shape {tuple(rois.shape)}")


def stacked(rois, features):
    """Return rois as one array; a list holds each image's boxes."""
    if not isinstance(rois, (list, tuple)):
        return rois
    if not rois:
        family, features = adopted("features", features)
        return family.empty((0, 5), features)
    adoptions = [adopted(f"rois[{image}]", boxes) for image, boxes in enumerate(rois)]
    for image, (family, boxes) in enumerate(adoptions):
        check_rois(boxes, family.dtype(boxes), columns=4, name=f"rois[{image}]")
    families = {family for family, _ in adoptions}
    if len(families) > 1:
        names = ", ".join(sorted(family.__name__ for family in families))
        raise TypeError(f"rois mixes arrays of different families: {names}")
    return stack_boxes(families.pop(), [boxes for _, boxes in adoptions])


def check_out(out, family, features, shape, dtype):
    if family_of(out) is not family:
        raise TypeError(f"out must be an array like features, got {describe(out)}")
    if tuple(out.shape) != shape or family.dtype(out) != dtype:
        raise ValueError(
            f"out must be {dtype} of shape {shape}, got {family.dtype(out)} "
            f"of shape {tuple(out.shape)}"
        )
    memory = family.array(out)
    if family.target == "cpu" and not memory.flags.writeable:
        raise ValueError("out is read-only")
    if 0 not in shape and overlap(memory, family.array(features)):
        raise ValueError("out overlaps features")


def integer(name, value, least=None):
    """Return an argument as an int; a bool is not one."""
    if type(value) is int and max(least or 1, 1) <= value < LARGEST_GRID:  # the common case
        return value
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an int, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {describe(value)}") from None
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    if not abs(number) < LARGEST_GRID:
        raise ValueError(f"{name} must be below 2**31, got {number}")
    return number


def positive(name, value):
    """Return an argument as a positive, finite float."""
    if isinstance(value, (bool, np.bool_, str, bytes)):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a real number, got {describe(value)}") from None
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {number}")
    return number


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
            problem = "is too large: it overflows, or a bin takes 2**31 samples or more"
        corners = ", ".join(f"{corner:g}" for corner in box)
        self.problem = f"{problem}: image {image:g}, box ({corners})"
        super().__init__(f"rois row {n} {self.problem}")


def roi_align(
    features, rois, output_size, scale, samples, convention: Convention, *,
    layout="NCHW", out=None, validate=None,
):  # fmt: skip
    """Pool `rois` from `features` under a convention.

    `output_size`, `scale` and `samples` are pairs (height or y first), checked already; `rois` is
    an array of (K, 5). The public functions document the rest.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    family, features = adopted("features", features)
    rois_family, rois = adopted("rois", rois)
    dtype, rois_dtype = family.dtype(features), rois_family.dtype(rois)
    check_features(features, layout, dtype)
    check_rois(rois, rois_dtype)
    check_places((family, features), (rois_family, rois))
    images, channels, height, width = in_order(layout, features.shape)
    count = rois.shape[0]
    pooled = (channels, *output_size) if layout == "NCHW" else (*output_size, channels)
    shape = (count, *pooled)
    if count and 0 in (images, height, width):
        raise ValueError(f"features of shape {tuple(features.shape)} has no pixels to pool")
    if out is None:
        out = family.empty(shape, features)
    else:
        check_out(out, family, features, shape, dtype)
    if 0 in shape:
        return out
    sampling = Sampling(images, height, width, *output_size, *scale, *samples)
    boxes = rois_family.boxes(rois)
    invalid = pool(family, features, boxes, sampling, convention, out, layout, dtype, validate)
    if invalid is not None:
        raise InvalidRoIError(*invalid, images, convention)
    return out
