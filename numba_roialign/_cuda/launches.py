"""How kernels are launched: compiled for the kinds of their arguments, which are laid out here.

Numba looks at each argument of a launch anew, which takes 130 us for the arrays and numbers of a
kernel of ours. What their kinds decide is found once and kept; a launch fills in the numbers.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import threading
import warnings
import weakref

import numpy as np
from numba import config, cuda

from .arrays import Span

if not config.ENABLE_CUDASIM:
    from cuda.bindings import driver

THREADS_PER_BLOCK = 128
LARGEST_LAUNCH = 1 << 20  # threads; a longer work list goes round in strides
MOST_BLOCKS = 65535  # blocks along the second and the third axis

# How a number of a type is laid out, in eight bytes.
CODES = {bool: "?7x", int: "q", np.uint32: "I4x", np.float32: "f4x", float: "d", np.float64: "d"}

_descriptions: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # of Numba's arrays
_compiled: dict = {}


def described(array):
    """Return what decides the type of an array, and the numbers that a kernel gets for it."""
    if isinstance(array, Span):
        numbers = 0, 0, array.count, array.itemsize, array.pointer, array.count, array.itemsize
        return (array.dtype, 1, "C"), numbers
    description = _descriptions.get(array)
    if description is None:
        kind = array.dtype.name, array.ndim, array._numba_type_.layout
        pointer = array.device_ctypes_pointer.value or 0
        # No reference counts, as it has no owner; its elements, and where they are.
        head = 0, 0, array.size, array.dtype.itemsize, pointer
        description = _descriptions[array] = kind, (*head, *array.shape, *array.strides)
    return description


def read(argument, kinds, codes, values):
    """Add to three lists the kinds that decide an argument's type, its layout and its numbers."""
    kind = type(argument)
    if kind in CODES:
        kinds.append(kind)
        codes.append(CODES[kind])
        values.append(argument)
    elif isinstance(argument, tuple):
        kinds += kind, len(argument)
        for item in argument:
            read(item, kinds, codes, values)
    else:
        kind, numbers = described(argument)
        kinds.append(kind)
        codes.append("q" * len(numbers))
        values += numbers


def as_given(argument):
    """Return an argument as Numba takes it."""
    return argument.as_numba() if isinstance(argument, Span) else argument


class Compiled:
    """A kernel compiled for arguments of some kinds, and memory that holds them at a launch."""

    def __init__(self, kernel, arguments, codes):
        self.kernel = kernel.specialize(*map(as_given, arguments))
        self.function = function_of(self.kernel)
        self.layout = struct.Struct("<" + "".join(codes))
        self.memory = ctypes.create_string_buffer(self.layout.size)
        start = ctypes.addressof(self.memory)
        places = range(start, start + self.layout.size, 8)
        self.pointers = (ctypes.c_void_p * len(places))(*places)
        self.lock = threading.Lock()  # a launch copies the arguments before it returns

    def launch(self, blocks, threads, stream, arguments, values):
        if self.function is None:
            with warnings.catch_warnings():
                # Numba warns of small grids; a call on a few boxes is one and cannot help it.
                warnings.filterwarnings("ignore", message="Grid size")
                configured = self.kernel[blocks, threads, stream]
            configured(*map(as_given, arguments))
            return
        with self.lock:
            self.layout.pack_into(self.memory, 0, *values)
            (error,) = driver.cuLaunchKernel(
                self.function, *three(blocks), *three(threads), 0, int(stream.handle),
                ctypes.addressof(self.pointers), 0,
            )  # fmt: skip
        if int(error):
            raise RuntimeError(f"the driver did not launch a kernel: {error!r}")


def function_of(kernel):
    """Return the driver's handle of a specialised kernel; None where Numba keeps it elsewhere."""
    try:
        (overload,) = kernel.overloads.values()
        return int(overload._codelibrary.get_cufunc().handle)
    except AttributeError:
        return None


def current_device():
    """Return the number of the current device, whose context is made where a thread has none."""
    error, device = driver.cuCtxGetDevice()
    return cuda.get_current_device().id if int(error) else int(device)


def three(sizes):
    """Return the sizes of a grid or a block along three axes."""
    sizes = sizes if isinstance(sizes, tuple) else (sizes,)
    return sizes + (1,) * (3 - len(sizes))


def launch(kernel, blocks, threads, stream, *arguments):
    """Launch a kernel."""
    if config.ENABLE_CUDASIM:  # it has no types
        kernel[blocks, threads, stream](*arguments)
        return
    kinds, codes, values = [], [], []
    read(arguments, kinds, codes, values)
    key = kernel, current_device(), tuple(kinds)
    if key not in _compiled:
        _compiled[key] = Compiled(kernel, arguments, codes)
    _compiled[key].launch(blocks, threads, stream, arguments, values)


def configured(kernel, blocks, threads, stream):
    """Return a function of a kernel's arguments that launches it."""
    return functools.partial(launch, kernel, blocks, threads, stream)


def over(kernel, work, stream):
    """Return a function that launches a kernel with a thread for each work item, up to a bound."""
    return configured(
        kernel, -(-min(work, LARGEST_LAUNCH) // THREADS_PER_BLOCK), THREADS_PER_BLOCK, stream
    )
