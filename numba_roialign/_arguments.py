"""Checks of single arguments: what does not fit raises, and says what was given."""

from __future__ import annotations

import math
import operator

import numpy as np

from ._families import family_of
from ._flat import LAYOUTS, overlap
from ._geometry import LARGEST_GRID, Convention
from ._kernels import AVERAGE, CORNER_MAX, MAX
from .conventions import CONVENTIONS, TORCHVISION, TORCHVISION_ALIGNED

FLOATS = ("float16", "bfloat16", "float32", "float64")
MODES = {"avg": AVERAGE, "max": MAX, "corner_max": CORNER_MAX}


def describe(x) -> str:
    """Name an argument as an error message should."""
    shape = getattr(x, "shape", None)
    name = type(x).__name__
    return f"{name} of shape {tuple(shape)}" if shape else f"{name} {x!r:.60}"


def adopted(name, x):
    """Return the family of an array, and the array."""
    family = family_of(x)
    if family is None:
        raise TypeError(f"{name} must be an array, got {describe(x)}")
    return family, family.adopt(x)


def integer(name, value, least=None):
    """Return an argument as an int; a bool is not one."""
    if type(value) is int and max(least or 1, 1) <= value < 2**31:  # the common case
        return value
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an int, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an int, got {describe(value)}") from None
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {number}")
    if not abs(number) < 2**31:
        raise ValueError(f"{name} must be below 2**31, got {number}")
    return number


def real(name, value):
    """Return an argument as a float; neither a bool nor a text is one."""
    if isinstance(value, (bool, np.bool_, str, bytes)):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a real number, got {describe(value)}") from None


def positive(name, value):
    """Return an argument as a positive, finite float."""
    number = real(name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {number}")
    return number


def pair(name, value, check, **options):
    """Return an argument that is one number, or two of them with that of y first, as two."""
    # Numbers first: those that torch.compile leaves open have no attributes to ask for.
    is_number = isinstance(value, (int, float))
    is_pair = isinstance(value, (tuple, list)) or (not is_number and getattr(value, "ndim", 0) > 0)
    values = value if is_pair else (value, value)
    if len(values) != 2:
        raise ValueError(f"{name} must be one number or a pair, got {value!r:.60}")
    return tuple(check(name, number, **options) for number in values)


def one_of(name, value, choices):
    """Return an argument that names one of some choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r:.60}")
    return value


def check_layout(layout):
    return one_of("layout", layout, LAYOUTS)


def check_features(name, shape, layout, dtype):
    if dtype not in FLOATS:
        raise TypeError(f"{name} must have dtype {', '.join(FLOATS)}, got {dtype}")
    if len(shape) != 4:
        raise ValueError(f"{name} must be ({', '.join(layout)}), got shape {tuple(shape)}")


def check_rois(shape, dtype, columns=5, name="rois"):
    if dtype == "bool" or not dtype.startswith(("float", "bfloat", "int", "uint")):
        raise TypeError(f"{name} must hold real numbers, got {dtype}")
    if len(shape) != 2 or shape[1] != columns:
        before = ", an image index before each box" if columns == 5 else ""
        raise ValueError(f"{name} must be (K, {columns}){before}, got shape {tuple(shape)}")


def check_like(name, x, family, shape, dtype):
    """Check that an array is of a family, a shape and a dtype."""
    if family_of(x) is not family:
        raise TypeError(f"{name} must be an array like the others, got {describe(x)}")
    if tuple(x.shape) != tuple(shape) or family.dtype(x) != dtype:
        raise ValueError(
            f"{name} must be {dtype} of shape {tuple(shape)}, got {family.dtype(x)} "
            f"of shape {tuple(x.shape)}"
        )


def check_out(out, family, shape, dtype, **read):
    """Check an array to write a result to, and that it lies apart from those that are read."""
    check_like("out", out, family, shape, dtype)
    memory = family.array(out)
    if family.target == "cpu" and not memory.flags.writeable:
        raise ValueError("out is read-only")
    for name, other in read.items():
        if other is not None and 0 not in shape and overlap(memory, other):
            raise ValueError(f"out overlaps {name}")


def map_shape(name, shape):
    """Return the shape of a map as a tuple of four sizes."""
    try:
        sizes = tuple(shape)
    except TypeError:
        raise TypeError(f"{name} must be a tuple, got {describe(shape)}") from None
    if len(sizes) != 4:
        raise ValueError(f"{name} must be four sizes, got {shape!r:.60}")
    return tuple(integer(name, size, least=0) for size in sizes)


def flag(name, value):
    """Return an argument as a bool; a word or an array is not one."""
    if not isinstance(value, (bool, np.bool_, int)) or value not in (0, 1):
        raise TypeError(f"{name} must be a bool, got {describe(value)}")
    return bool(value)


def validation(validate):
    """Return the argument `validate`: True, False, or None for the target's default."""
    return validate if validate is None else flag("validate", validate)


def convention_of(aligned, convention) -> Convention:
    """Return the convention that the arguments `aligned` and `convention` choose."""
    aligned = flag("aligned", aligned)
    if convention is None:
        return TORCHVISION_ALIGNED if aligned else TORCHVISION
    if aligned:
        raise ValueError("give either aligned=True or a convention, not both")
    return named_convention(convention)


def named_convention(convention) -> Convention:
    """Return a convention given by its name, or as a `Convention`."""
    if isinstance(convention, Convention):
        return Convention(**{name: field(name, n) for name, n in convention._asdict().items()})
    if not isinstance(convention, str):
        raise TypeError(f"convention must be a name or a Convention, got {convention!r:.60}")
    if convention not in CONVENTIONS:
        raise ValueError(
            f"convention must be one of {', '.join(CONVENTIONS)}; got {convention!r:.60}"
        )
    return CONVENTIONS[convention]


def field(name, value):
    """Return a field of a `Convention` as its type."""
    if isinstance(Convention._field_defaults[name], bool):
        return flag(f"convention.{name}", value)
    number = real(f"convention.{name}", value)
    if not (math.isfinite(number) or (name == "minimum_size" and number < 0)):
        raise ValueError(f"convention.{name} must be finite, got {number}")
    return number


def most_samples(max_sampling_ratio):
    """Return the argument `max_sampling_ratio` as a number of samples."""
    if max_sampling_ratio is None:
        return LARGEST_GRID
    return min(integer("max_sampling_ratio", max_sampling_ratio, least=1), LARGEST_GRID)


def sample_count(name, value, least=None):
    """Return an argument as a number of samples per bin and axis, or 0 or less for adaptive."""
    count = integer(name, value, least)
    if count >= LARGEST_GRID:
        raise ValueError(f"{name} must be below 2**30, got {count}")
    return count


def sampling_pair(sampling_ratio):
    """Return the argument `sampling_ratio` as samples per bin in y and x."""
    return pair("sampling_ratio", sampling_ratio, sample_count)
