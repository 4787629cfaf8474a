"""Device arrays as Numba's kernels take them."""

from __future__ import annotations

import math

import numpy as np
from numba import config, cuda

from .._flat import element_strides, flat_view, in_order, interface_of, reach
from .._kernels import Strides


class _Memory:
    """Memory from an address on, as an array for Numba: in C order, or with strides in bytes."""

    def __init__(self, pointer, shape, typestr, owner, strides=None):
        self.owner = owner
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": typestr,
            "data": (pointer, False),
            "strides": strides,
            "version": 3,
        }


def spanned(pointer, shape, dtype, owner, strides=None):
    """Return memory from an address on as Numba's array of a dtype, given by name."""
    if dtype != "bfloat16":
        memory = _Memory(pointer, shape, np.dtype(dtype).str, owner, strides)
        return cuda.as_cuda_array(memory, sync=False)
    import ml_dtypes  # numba-cuda knows the type by this dtype; the cuda extras bring it

    bits = cuda.as_cuda_array(_Memory(pointer, shape, "<i2", owner, strides), sync=False)
    return bits.view(np.dtype(ml_dtypes.bfloat16))


class Span:
    """Numbers side by side in device memory, for a launch: a 1-D array, but for its making.

    Numba takes 20 us to make one, which a kernel needs only when it is compiled for such.
    """

    def __init__(self, pointer, count, dtype, itemsize, owner):
        self.pointer, self.count, self.dtype, self.owner = pointer, count, dtype, owner
        self.itemsize = itemsize

    def as_numba(self):
        return spanned(self.pointer, (self.count,), self.dtype, self.owner)


def typed(memory, shape, dtype):
    """Return the bytes of an array as one of a shape and a dtype."""
    if config.ENABLE_CUDASIM:
        own = memory._ary[: math.prod(shape) * dtype.itemsize].view(dtype)
        return type(memory)(own.reshape(shape))
    return spanned(interface_of(memory)["data"][0], shape, dtype.name, memory)


def flat_device_view(array, layout, dtype):
    """Return the memory that a 4-D array spans as a kernel takes it, and its `Strides`."""
    interface = interface_of(array)
    itemsize = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
    shape = tuple(interface["shape"])
    strides = element_strides(shape, interface.get("strides"), itemsize)
    if strides is None:
        raise ValueError(
            "an array on a CUDA device with negative or odd strides cannot be read in place: "
            f"pass a contiguous copy (byte strides {interface.get('strides')})"
        )
    if config.ENABLE_CUDASIM:
        flat, strides = flat_view(array._ary, layout)
        return type(array)(flat), strides
    pointer, elements = interface["data"][0], reach(shape, strides)
    span = Span(pointer, elements, dtype, itemsize, array)
    return span, Strides(*in_order(layout, strides))


def as_numba(array):
    """Return a device array as Numba's own, without a copy and without waiting for a stream."""
    if hasattr(array, "__cuda_ndarray__"):
        return array
    if str(array.dtype) != "bfloat16":
        return cuda.as_cuda_array(array, sync=False)
    interface = array.__cuda_array_interface__  # which says that an element is two bytes, no more
    shape, strides = tuple(interface["shape"]), interface.get("strides")
    return spanned(interface["data"][0], shape, "bfloat16", array, strides)


def fetch(array, stream):
    """Return a device array on the host, once the stream has come so far."""
    host = array.copy_to_host(stream=stream)
    stream.synchronize()
    return host
