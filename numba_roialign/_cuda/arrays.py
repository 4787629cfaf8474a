"""Device arrays for Numba's kernels: flat views of them, boxes brought together, and launches."""

from __future__ import annotations

import functools
import math
import warnings

import numpy as np
from numba import config, cuda

from .._flat import element_strides, flat_view, in_order, interface_of, reach, stacked_dtype
from .._kernels import Strides

THREADS_PER_BLOCK = 128
LARGEST_LAUNCH = 1 << 20  # threads; a longer work list goes round in strides
MOST_BLOCKS = 65535  # blocks along the second and the third axis


@functools.lru_cache(256)
def configuration(kernel, blocks, threads, stream):
    """Return a kernel configured for launches, kept for the next."""
    with warnings.catch_warnings():
        # Numba warns of small grids; a call on a few boxes is one and cannot help it.
        warnings.filterwarnings("ignore", message="Grid size")
        return kernel[blocks, threads, stream]


def kind_of(argument):
    """Return what decides the type of a kernel's argument: Numba's of an array, or Python's."""
    if isinstance(argument, tuple):
        return type(argument), *map(kind_of, argument)
    return getattr(argument, "_numba_type_", None) or type(argument)


_specialised: dict = {}


def specialised(kernel, arguments):
    """Return a kernel compiled for arguments like these.

    Numba finds the type of a named tuple anew at each launch, 30 to 40 us for one of ours; a
    specialised kernel is not asked.
    """
    key = kernel, cuda.get_current_device().compute_capability, kind_of(arguments)
    if key not in _specialised:
        _specialised[key] = kernel.specialize(*arguments)
    return _specialised[key]


def launch(kernel, blocks, threads, stream, *arguments):
    """Launch a kernel."""
    if config.ENABLE_CUDASIM:  # it has no types, and keeps the configuration in the kernel
        kernel[blocks, threads, stream](*arguments)
    else:
        configuration(specialised(kernel, arguments), blocks, threads, stream)(*arguments)


def configured(kernel, blocks, threads, stream):
    """Return a function of a kernel's arguments that launches it."""
    return functools.partial(launch, kernel, blocks, threads, stream)


def over(kernel, work, stream):
    """Return a function that launches a kernel with a thread for each work item, up to a bound."""
    return configured(
        kernel, -(-min(work, LARGEST_LAUNCH) // THREADS_PER_BLOCK), THREADS_PER_BLOCK, stream
    )


class _Span:
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
        span = _Span(pointer, shape, np.dtype(dtype).str, owner, strides)
        return cuda.as_cuda_array(span, sync=False)
    import ml_dtypes  # numba-cuda knows the type by this dtype; the cuda extras bring it

    bits = cuda.as_cuda_array(_Span(pointer, shape, "<i2", owner, strides), sync=False)
    return bits.view(np.dtype(ml_dtypes.bfloat16))


def typed(memory, shape, dtype):
    """Return the bytes of an array as one of a shape and a dtype."""
    if config.ENABLE_CUDASIM:
        own = memory._ary[: math.prod(shape) * dtype.itemsize].view(dtype)
        return type(memory)(own.reshape(shape))
    return spanned(interface_of(memory)["data"][0], shape, dtype.name, memory)


def flat_device_view(array, layout, dtype):
    """Return a 1-D device view of the memory a 4-D array spans, and its `Strides`."""
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
    return spanned(pointer, (elements,), dtype, array), Strides(*in_order(layout, strides))


@cuda.jit
def copy_boxes(boxes, image, rois, first):
    """Write an image's boxes into rois from row `first` on: one thread per box."""
    for n in range(cuda.grid(1), boxes.shape[0], cuda.gridsize(1)):
        rois[first + n, 0] = image
        for column in range(4):
            rois[first + n, column + 1] = boxes[n, column]


def stack_boxes(boxes, queue):
    """Return per-image boxes as one device array, an image index before each box."""
    boxes = [as_numba(box) for box in boxes]
    count = sum(box.shape[0] for box in boxes)
    rois = queue.empty((count, 5), stacked_dtype(boxes))
    first = 0
    for image, box in enumerate(boxes):
        if box.shape[0]:
            over(copy_boxes, box.shape[0], queue.stream)(box, image, rois, first)
        first += box.shape[0]
    return rois


@cuda.jit
def copy_indexed_boxes(images, boxes, rois):
    """Write boxes and the image of each into rois: one thread per box."""
    for n in range(cuda.grid(1), boxes.shape[0], cuda.gridsize(1)):
        rois[n, 0] = images[n]
        for column in range(4):
            rois[n, column + 1] = boxes[n, column]


def join_boxes(images, boxes, queue):
    """Return boxes and the image of each as one device array."""
    images, boxes = as_numba(images), as_numba(boxes)
    rois = queue.empty((boxes.shape[0], 5), np.result_type(np.float32, boxes.dtype))
    if boxes.shape[0]:
        over(copy_indexed_boxes, boxes.shape[0], queue.stream)(images, boxes, rois)
    return rois


def fetch(array, stream):
    """Return a device array on the host, once the stream has come so far."""
    host = array.copy_to_host(stream=stream)
    stream.synchronize()
    return host


@cuda.jit
def copy_row(rois, n, row):
    if cuda.grid(1) == 0:
        for column in range(5):
            row[column] = rois[n, column]


def row_of(rois, n, queue):
    """Return the values of one row of rois on the host."""
    row = queue.empty(5, np.float64)
    over(copy_row, 1, queue.stream)(rois, n, row)
    return fetch(row, queue.stream).tolist()


def as_numba(array):
    """Return a device array as Numba's own, without a copy and without waiting for a stream."""
    if hasattr(array, "__cuda_ndarray__"):
        return array
    if str(array.dtype) != "bfloat16":
        return cuda.as_cuda_array(array, sync=False)
    interface = array.__cuda_array_interface__  # which says that an element is two bytes, no more
    shape, strides = tuple(interface["shape"]), interface.get("strides")
    return spanned(interface["data"][0], shape, "bfloat16", array, strides)
