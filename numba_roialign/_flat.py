"""Flat views over strided memory, which kernels index by strides.

A kernel then needs one compiled form for every layout, and slices, transposes and channels-last
maps are read where they lie.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from ._kernels import Strides
from ._memory import empty_result

# Where the image (of an output: the RoI), channel, row and column stand in an array's shape.
LAYOUTS = {"NCHW": (0, 1, 2, 3), "NHWC": (0, 3, 1, 2)}


def in_order(layout, shape):
    """Return the sizes or strides of a 4-D array as those of N, C, H and W."""
    return tuple(shape[axis] for axis in LAYOUTS[layout])


@functools.lru_cache(1024)
def c_strides(shape, itemsize=1):
    """Return the strides of an array of this shape in C order."""
    return tuple(int(stride) for stride in np.cumprod((itemsize, *shape[:0:-1]))[::-1])


@functools.lru_cache(1024)
def element_strides(shape, byte_strides, itemsize):
    """Return the strides of an array in elements, or None where a flat view cannot have them.

    A stride below zero would run before the first element, and one that is no multiple of the
    element size (a field of a record) between elements.
    """
    if any(stride < 0 or stride % itemsize for stride in byte_strides):
        return None
    return tuple(stride // itemsize for stride in byte_strides)


def reach(shape, strides) -> int:
    """Return how many elements lie from an array's first to its last, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


class DeviceArray:
    """An array on a device by what it looks like and where it lies, which is all that kernels need.

    Numba takes 20 us to make one of its own. `strides` are in bytes, `dtype` is a name, `owner`
    keeps the memory. `pointer` is an address or, where there is a `base`, counts from where that
    one begins of a call's arrays, which are not there yet.
    """

    __slots__ = "base", "dtype", "itemsize", "owner", "pointer", "shape", "strides"

    def __init__(self, pointer, shape, strides, dtype, itemsize, owner=None, base=None):
        if pointer % itemsize and 0 not in shape:
            raise ValueError(
                "a misaligned array on a CUDA device cannot be read in place: pass a copy"
            )
        self.pointer, self.shape, self.strides = pointer, shape, strides
        self.dtype, self.itemsize, self.owner, self.base = dtype, itemsize, owner, base

    @classmethod
    def new(cls, pointer, shape, dtype, owner=None, base=None):
        """Return an array in C order, of a dtype of NumPy's."""
        shape, dtype = shape if isinstance(shape, tuple) else (shape,), np.dtype(dtype)
        strides = c_strides(shape, dtype.itemsize)
        return cls(pointer, shape, strides, dtype.name, dtype.itemsize, owner, base)

    @property
    def nbytes(self):
        return math.prod(self.shape) * self.itemsize

    def flat(self, count):
        """Return numbers side by side, from the first on."""
        return self.shaped((count,), (self.itemsize,))

    def shaped(self, shape, strides):
        """Return the array in another shape."""
        return DeviceArray(
            self.pointer, shape, strides, self.dtype, self.itemsize, self.owner, self.base
        )

    def moved(self, origin):
        """Return the array where it lies, once its base lies at an address."""
        pointer = origin + self.pointer
        return DeviceArray(pointer, self.shape, self.strides, self.dtype, self.itemsize, self.owner)

    @property
    def look(self):
        """What arrays have in common that a kernel reads alike."""
        return self.shape, self.strides, self.dtype, self.itemsize


@functools.lru_cache(1024)
def extent(shape, strides, itemsize):
    """Return from which byte on an array reaches to before which, as seen from its first."""
    reaches = [(size - 1) * stride for size, stride in zip(shape, strides, strict=True)]
    low = sum(reach for reach in reaches if reach < 0)
    return low, sum(reach for reach in reaches if reach > 0) + itemsize


def overlap(one, other) -> bool:
    """Say whether the memory that two arrays span overlaps."""
    if isinstance(one, np.ndarray):
        return np.may_share_memory(one, other)
    low, high = overlap_range(one, other)
    return low < other.pointer - one.pointer < high


def overlap_range(one, other):
    """Return the distances, both excluded, between which device arrays that look so overlap.

    They are counted in bytes from where the first begins to where the other does.
    """
    low, high = extent(one.shape, one.strides, one.itemsize)
    other_low, other_high = extent(other.shape, other.strides, other.itemsize)
    return low - other_high, high - other_low


def flat_view(array: np.ndarray, layout: str):
    """Return a 1-D view of the memory a 4-D array spans, and its `Strides`."""
    strides = element_strides(array.shape, array.strides, array.itemsize)
    span = (reach(array.shape, strides),)
    flat = np.lib.stride_tricks.as_strided(array, span, (array.itemsize,))
    return flat, Strides(*in_order(layout, strides))


@functools.lru_cache(1024)
def overlaps_itself(shape, strides, itemsize) -> bool:
    """Say whether elements of an array may share memory, as those of a broadcast do."""
    reached = itemsize
    for stride, size in sorted(zip(map(abs, strides), shape, strict=True)):
        if size > 1 and stride < reached:
            return True
        reached += (size - 1) * stride
    return False


def in_place(array):
    """Return an array whose elements a flat view reaches: itself where that can be, or a copy.

    A copy where strides are negative or odd, or elements misaligned or byte-swapped.
    """
    return array if _is_flat(array) else _copied(array, array.dtype.newbyteorder("="))


def is_in_place(shape, strides, dtype, aligned) -> bool:
    """Say whether `in_place` returns an array itself that looks so."""
    return (
        element_strides(shape, strides, dtype.itemsize) is not None and aligned and dtype.isnative
    )


def plain(array, dtype: np.dtype):
    """Return an array in C order, aligned and of a dtype: itself, or a copy."""
    flags = array.flags
    is_plain = array.dtype == dtype and flags.c_contiguous and flags.aligned
    return array if is_plain else _copied(array, dtype)


def _copied(array, dtype):
    copy = empty_result(array.shape, dtype)
    copy[...] = array
    return copy


def place_for(out):
    """Return where to write what is meant for an array: there, or where a flat view reaches."""
    if _is_flat(out) and not overlaps_itself(out.shape, out.strides, out.itemsize):
        return out
    return empty_result(out.shape, out.dtype.newbyteorder("="))


def _is_flat(array) -> bool:
    return is_in_place(array.shape, array.strides, array.dtype, array.flags.aligned)


def stacked_dtype(dtypes):
    """Return the dtype of boxes from several arrays: theirs, unless it cannot count images."""
    joined = np.result_type(*dtypes)
    return joined if joined.itemsize >= 4 else np.dtype(np.float32)
