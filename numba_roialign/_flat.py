"""Flat views over strided memory, which kernels index by strides.

A kernel then needs one compiled form for every layout, and slices, transposes and channels-last
maps are read where they lie.
"""

from __future__ import annotations

import functools

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
    element size (a field of a record) between elements. `byte_strides` None means C order.
    """
    if byte_strides is None:
        return c_strides(shape)
    if any(stride < 0 or stride % itemsize for stride in byte_strides):
        return None
    return tuple(stride // itemsize for stride in byte_strides)


def reach(shape, strides) -> int:
    """Return how many elements lie from an array's first to its last, both included."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def interface_of(array) -> dict:
    """Return an array's description of its own memory, on the CPU or on a device."""
    if hasattr(array, "__cuda_array_interface__"):
        return array.__cuda_array_interface__
    # The CUDA simulator's arrays have no interface: what they wrap has.
    return getattr(array, "_ary", array).__array_interface__


def byte_range(array):
    """Return the first address of the memory an array spans, and the first after it."""
    interface = interface_of(array)
    shape, itemsize = interface["shape"], np.dtype(interface["typestr"]).itemsize
    # None means C order, in the interfaces' convention.
    strides = interface.get("strides") or c_strides(shape, itemsize)
    reaches = [(size - 1) * stride for size, stride in zip(shape, strides, strict=True)]
    first = interface["data"][0]
    low = first + sum(reach for reach in reaches if reach < 0)
    return low, first + sum(reach for reach in reaches if reach > 0) + itemsize


def overlap(one, other) -> bool:
    """Say whether the memory that two arrays span overlaps."""
    # The common case, in 1 us: describing the memory of both takes 40.
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return np.may_share_memory(one, other)
    (low, high), (other_low, other_high) = byte_range(one), byte_range(other)
    return low < other_high and other_low < high


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


def stacked_dtype(arrays):
    """Return the dtype of boxes from several arrays: theirs, unless it cannot count images."""
    joined = np.result_type(*(array.dtype for array in arrays))
    return joined if joined.itemsize >= 4 else np.dtype(np.float32)
