"""Device arrays as Numba and its kernels take them."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
from numba import config, cuda

from .._flat import c_strides, element_strides, in_order, overlaps_itself, reach
from .._kernels import Strides


def dtype_of(name):
    """Return a dtype by its name, also that which NumPy does not know."""
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes  # numba-cuda knows the type by this dtype; the cuda extras bring it

    return np.dtype(ml_dtypes.bfloat16)


def as_numba(array):
    """Return a device array as Numba's own, without a copy and without waiting for a stream."""
    is_half = array.dtype == "bfloat16"  # which the interface does not know
    interface = {
        "shape": array.shape,
        "typestr": "<i2" if is_half else np.dtype(array.dtype).str,
        "data": (array.pointer, False),
        "strides": array.strides,
        "version": 3,
    }
    names = "__array_interface__", "__cuda_array_interface__"
    memory = SimpleNamespace(owner=array.owner, **dict.fromkeys(names, interface))
    if config.ENABLE_CUDASIM:
        own = cuda.devicearray.FakeCUDAArray(np.asarray(memory))
    else:
        own = cuda.as_cuda_array(memory, sync=False)
    return own.view(dtype_of("bfloat16")) if is_half else own


def kind_of(array):
    """Return what decides the type that an array has in a kernel."""
    plain = c_strides(array.shape, array.itemsize)
    steps = zip(array.shape, array.strides, plain, strict=True)
    is_plain = all(size == 1 or stride == step for size, stride, step in steps)
    return array.dtype, len(array.shape), "C" if is_plain else "A"


def numbers_of(array):
    """Return the numbers that a kernel gets for an array."""
    # No reference counts, as it has no owner; its elements, and where they are.
    head = 0, 0, math.prod(array.shape), array.itemsize, array.pointer
    return *head, *array.shape, *array.strides


POINTER = 4  # its place among these


def of_its_type(array):
    """Return what Numba takes for an array when it compiles for one."""
    from numba.cuda import types
    from numba.cuda.np.numpy_support import from_dtype

    dtype, axes, order = kind_of(array)
    return SimpleNamespace(_numba_type_=types.Array(from_dtype(dtype_of(dtype)), axes, order))


def flat_view(array, layout):
    """Return the memory that a 4-D device array spans as a kernel reads it, and its `Strides`."""
    strides = element_strides(array.shape, array.strides, array.itemsize)
    if strides is None:
        raise ValueError(
            "an array on a CUDA device with negative or odd strides cannot be read in place: "
            f"pass a contiguous copy (byte strides {array.strides})"
        )
    return array.flat(reach(array.shape, strides)), Strides(*in_order(layout, strides))


def check_result(array):
    """Refuse an array to write to whose elements share memory."""
    if overlaps_itself(array.shape, array.strides, array.itemsize):
        raise ValueError(
            "elements of out share memory, so that they cannot be written "
            f"(shape {array.shape}, byte strides {array.strides})"
        )


def flat_result(array, layout):
    """As `flat_view`, of an array that is written."""
    check_result(array)
    return flat_view(array, layout)


def fetch(array, stream):
    """Return a device array on the host, once the stream has come so far."""
    host = as_numba(array).copy_to_host(stream=stream)
    stream.synchronize()
    return host
