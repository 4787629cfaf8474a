"""The CUDA target: its schedules over a grid of threads, and their launch on device arrays."""

from __future__ import annotations

import warnings

import numpy as np
from numba import config, cuda

from . import _geometry, _kernels
from ._flat import element_strides, flat_view, in_order, interface_of, reach
from ._geometry import empty_tables
from ._kernels import Strides

fill_row = cuda.jit(device=True)(_geometry.fill_row)
average_at = cuda.jit(device=True)(_kernels.average_at)

THREADS_PER_BLOCK = 128
LARGEST_LAUNCH = 1 << 20  # threads; a longer work list goes round in strides
# Bounds the scratch of a call to 64 MB (96 MB for float64), as long as one RoI's taps fit.
BATCH_SLOTS = 1 << 23


@cuda.jit
def copy_row(rois, n, row):
    if cuda.grid(1) == 0:
        for column in range(5):
            row[column] = rois[n, column]


@cuda.jit
def schedule_taps(rois, start, sampling, convention, images, y_taps, x_taps, zero):
    """Fill the tables of a batch, a thread per RoI."""
    count = min(images.shape[0], rois.shape[0] - start)
    for row in range(cuda.grid(1), count, cuda.gridsize(1)):
        fill_row(images, y_taps, x_taps, row, rois, start + row, sampling, convention, zero)


@cuda.jit
def schedule_outputs(
    features, strides, start, sampling, images, y_taps, x_taps, zero, out, out_strides, shape
):
    """Pool a batch, a thread per output element."""
    rois, channels = shape
    height, width = sampling.output_height, sampling.output_width
    for element in range(cuda.grid(1), rois * channels * height * width, cuda.gridsize(1)):
        rest, pw = element // width, element % width
        rest, ph = rest // height, rest % height
        n, c = rest // channels, rest % channels
        o = (start + n) * out_strides.image + c * out_strides.channel
        o += ph * out_strides.row + pw * out_strides.column
        out[np.uintp(o)] = average_at(features, strides, images, y_taps, x_taps, n, c, ph, pw, zero)


def over(kernel, work, stream):
    """Return a kernel configured with a thread for each work item, up to a bound."""
    blocks = -(-min(work, LARGEST_LAUNCH) // THREADS_PER_BLOCK)
    with warnings.catch_warnings():
        # Numba warns of small grids; a call on a few boxes is one and cannot help it.
        warnings.filterwarnings("ignore", message="Grid size")
        return kernel[blocks, THREADS_PER_BLOCK, stream]


class _Span:
    """The memory an array spans, as a flat array for Numba."""

    def __init__(self, pointer, elements, typestr, owner):
        self.owner = owner
        self.__cuda_array_interface__ = {
            "shape": (elements,),
            "typestr": typestr,
            "data": (pointer, False),
            "strides": None,
            "version": 3,
        }


def flat_device_view(array, layout, dtype):
    """Return a 1-D device view of the memory a 4-D array spans, and its `Strides`."""
    interface = interface_of(array)
    itemsize = 8 if dtype == "float64" else 4 if dtype == "float32" else 2
    shape = tuple(interface["shape"])
    strides = element_strides(shape, interface.get("strides"), itemsize)
    if strides is None:
        raise ValueError(
            "an array on a CUDA device with negative or odd strides cannot be read in place: "
            f"pass a contiguous copy (byte strides {interface.get('strides')})"
        )
    if config.ENABLE_CUDASIM:
        return flat_view(array._ary, layout)
    pointer, elements = interface["data"][0], reach(shape, strides)
    strides = Strides(*in_order(layout, strides))
    if dtype != "bfloat16":
        span = _Span(pointer, elements, np.dtype(dtype).str, array)
        return cuda.as_cuda_array(span, sync=False), strides
    import ml_dtypes  # numba-cuda knows the type by this dtype; the cuda extras bring it

    flat = cuda.as_cuda_array(_Span(pointer, elements, "<i2", array), sync=False)
    return flat.view(np.dtype(ml_dtypes.bfloat16)), strides


@cuda.jit
def copy_boxes(boxes, image, rois, first):
    """Write an image's boxes into rois from row `first` on: one thread per box."""
    for n in range(cuda.grid(1), boxes.shape[0], cuda.gridsize(1)):
        rois[first + n, 0] = image
        for column in range(4):
            rois[first + n, column + 1] = boxes[n, column]


def stack_boxes(boxes, stream):
    """Return per-image boxes as one device array, an image index before each box."""
    boxes = [as_numba(box) for box in boxes]
    stream = numba_stream(stream)
    count = sum(box.shape[0] for box in boxes)
    rois = cuda.device_array((count, 5), np.result_type(np.float32, *(b.dtype for b in boxes)))
    first = 0
    for image, box in enumerate(boxes):
        if box.shape[0]:
            over(copy_boxes, box.shape[0], stream)(box, image, rois, first)
        first += box.shape[0]
    return rois


def numba_stream(handle):
    return cuda.external_stream(handle) if handle else cuda.default_stream()


def fetch(array, stream):
    """Return a device array on the host, once the stream has come so far."""
    host = array.copy_to_host(stream=stream)
    stream.synchronize()
    return host


def row_of(rois, n, stream):
    """Return the values of one row of rois on the host."""
    row = cuda.device_array(5, np.float64)
    over(copy_row, 1, stream)(rois, n, row)
    return fetch(row, stream).tolist()


def as_numba(array):
    """Return a device array as Numba's own, without a copy and without waiting for a stream."""
    if hasattr(array, "__cuda_array_interface__"):
        return cuda.as_cuda_array(array, sync=False)
    return array  # the simulator's


def in_type(record, T):
    """Return a record of the geometry with its lengths in the type that a kernel computes in."""
    return record._make(T(field) if isinstance(field, float) else field for field in record)


def pool(features, rois, sampling, convention, out, layout, dtype, validate, stream):
    """Pool `rois` of `features` into `out`, all on one device, without waiting for it.

    An invalid row pools NaN. With `validate` on (None, the default, means off) the call waits for a
    check instead, and returns the first invalid row with its number, and nothing is written.
    """
    zero = np.float64(0) if dtype == "float64" else np.float32(0)
    stream = numba_stream(stream)
    rois = as_numba(rois)
    sampling, convention = in_type(sampling, type(zero)), in_type(convention, type(zero))
    count, channels = in_order(layout, out.shape)[:2]
    numbers, strides = flat_device_view(features, layout, dtype)
    pooled, out_strides = flat_device_view(out, layout, dtype)
    tables = empty_tables(cuda.device_array, count, sampling, zero.dtype, BATCH_SLOTS)
    images = tables[0]
    batches = range(0, count, images.shape[0])
    if validate:
        for start in batches:
            rows = min(images.shape[0], count - start)
            over(schedule_taps, rows, stream)(rois, start, sampling, convention, *tables, zero)
            invalid = np.flatnonzero(fetch(images, stream)[:rows] < 0)
            if invalid.size:
                n = start + int(invalid[0])
                return n, row_of(rois, n, stream)
    for start in batches:
        rows = min(images.shape[0], count - start)
        if len(batches) > 1 or not validate:
            over(schedule_taps, rows, stream)(rois, start, sampling, convention, *tables, zero)
        outputs = rows * channels * sampling.output_height * sampling.output_width
        over(schedule_outputs, outputs, stream)(
            numbers, strides, start, sampling, *tables, zero, pooled, out_strides, (rows, channels)
        )
    return None
