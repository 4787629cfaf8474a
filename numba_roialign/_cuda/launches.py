"""How kernels are launched: compiled for the kinds of their arguments, which are laid out here.

Numba looks at each argument of a launch anew, which takes 130 us for the arrays and numbers of a
kernel of ours. What their kinds decide is found once and kept.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import warnings
from typing import NamedTuple

import numpy as np
from numba import config, cuda

from .._flat import DeviceArray
from .arrays import POINTER, as_numba, kind_of, numbers_of, of_its_type

if not config.ENABLE_CUDASIM:
    from cuda.bindings import driver

    from .cache import compile_kernel

THREADS_PER_BLOCK = 128
LARGEST_LAUNCH = 1 << 20  # threads; a longer work list goes round in strides
MOST_BLOCKS = 65535  # blocks along the second and the third axis

# How a number of a type is laid out, in eight bytes.
CODES = {
    bool: "?7x", int: "q", np.uint32: "I4x", np.uint64: "q", np.float32: "f4x", float: "d",
    np.float64: "d",
}  # fmt: skip

SHARED_BYTES = 48 << 10  # that any device gives a block
DECLARED_BYTES = 13 << 10  # of these, at most, that a kernel has without its launch asking for them
TAKEN_BYTES = 1 << 10  # of each block, by the device itself

_compiled: dict = {}
_granted: dict = {}  # shared memory of kernels that asked for more


class Limits(NamedTuple):
    """What a device has for the blocks of a kernel."""

    multiprocessors: int
    shared_bytes: int  # of each
    block_bytes: int  # that a block may ask for


@functools.lru_cache(64)
def limits_of(device):
    """Return what a device has; the simulator is none."""
    if config.ENABLE_CUDASIM:
        return Limits(1, SHARED_BYTES, SHARED_BYTES)
    names, values = driver.CUdevice_attribute, []
    for name in (
        names.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
        names.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
        names.CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
    ):
        error, value = driver.cuDeviceGetAttribute(name, device)
        if error:
            raise RuntimeError(f"the driver did not say what a device has: {error!r}")
        values.append(int(value))
    return Limits(*values)


def bounded(threads, blocks):
    """Return options by which a kernel gets the registers that so many blocks leave it.

    Without, the assembler may save registers and wait for one load after the other.
    """
    return {} if config.ENABLE_CUDASIM else {"launch_bounds": (threads, blocks)}


class Layout:
    """What a launch's arguments are to the driver: eight bytes for each number."""

    def __init__(self, arguments):
        self.kinds, self.codes, self.values = [], "<", []
        self.places = []  # of addresses that count from a base: which number, and which base
        self.add(arguments)

    def add(self, argument):
        kind = type(argument)
        if kind in CODES:
            self.kinds.append(kind)
            self.codes += CODES[kind]
            self.values.append(argument)
        elif kind is DeviceArray:
            if argument.base is not None:
                self.places.append((len(self.values) + POINTER, argument.base, argument.pointer))
            numbers = numbers_of(argument)
            self.kinds.append(kind_of(argument))
            self.codes += "q" * len(numbers)
            self.values += numbers
        else:
            self.kinds += kind, len(argument)
            for item in argument:
                self.add(item)


def mapped(function, argument):
    """Return an argument of a launch with what a function makes of each array in it."""
    if isinstance(argument, DeviceArray):
        return function(argument)
    if not isinstance(argument, tuple):
        return argument
    items = [mapped(function, item) for item in argument]
    return argument._make(items) if hasattr(argument, "_make") else tuple(items)


def compiled(kernel, arguments, kinds):
    """Return the driver's handle of a kernel compiled for such arguments.

    It is None where Numba keeps it elsewhere, or has no driver.
    """
    if config.ENABLE_CUDASIM:  # it has no types
        return None
    key = kernel, current_device(), tuple(kinds)
    if key not in _compiled:
        own = compile_kernel(kernel, mapped(of_its_type, arguments))
        try:
            _compiled[key] = int(own._codelibrary.get_cufunc().handle)
        except AttributeError:
            _compiled[key] = None
    return _compiled[key]


def current_device():
    """Return the number of the current device, whose context is made where a thread has none."""
    if config.ENABLE_CUDASIM:
        return 0
    error, device = driver.cuCtxGetDevice()
    return cuda.get_current_device().id if error else int(device)


class Launch:
    """A launch of a kernel, to be made once or again."""

    def __init__(self, kernel, blocks, threads, shared, arguments):
        layout = Layout(arguments)
        self.kernel, self.handle = kernel, compiled(kernel, arguments, layout.kinds)
        self.blocks, self.threads, self.shared, self.arguments = blocks, threads, shared, arguments
        self.places, self.origins = layout.places, None
        if self.handle is not None:
            count = len(layout.values)
            self.numbers = (ctypes.c_int64 * count)()
            struct.pack_into(layout.codes, self.numbers, 0, *layout.values)
            start = ctypes.addressof(self.numbers)
            self.pointers = (ctypes.c_void_p * count)(*range(start, start + 8 * count, 8))
            self.sizes = *three(blocks), *three(threads), shared
            if shared > SHARED_BYTES - DECLARED_BYTES:
                self.ask_for(shared)

    def ask_for(self, shared):
        """Let the kernel's blocks have more shared memory than any device gives."""
        device = current_device()
        if shared <= _granted.get((self.handle, device), 0):
            return  # never less than a launch that is kept will ask for
        names = driver.CUfunction_attribute
        for name, value in [
            (names.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared),
            (names.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100),  # percent
        ]:
            # Numba's handle is of a library's kernel, of which each device has a function.
            (error,) = driver.cuKernelSetAttribute(name, value, self.handle, device)
            if error:
                raise RuntimeError(f"the driver did not give a kernel shared memory: {error!r}")
        _granted[self.handle, device] = shared

    def make(self, stream, origins=()):
        """Launch the kernel; `origins` are the addresses of the bases that arrays count from.

        One thread at a time, for the arguments are in one place.
        """
        if self.handle is None:
            return self.make_by_numba(stream, origins)
        if origins != self.origins:
            for place, base, offset in self.places:
                self.numbers[place] = origins[base] + offset
            self.origins = origins
        (error,) = driver.cuLaunchKernel(  # which has copied the arguments when it returns
            self.handle, *self.sizes, int(stream.handle), ctypes.addressof(self.pointers), 0
        )
        if error:
            raise RuntimeError(f"the driver did not launch a kernel: {error!r}")

    def make_by_numba(self, stream, origins):
        def placed(array):
            return as_numba(array if array.base is None else array.moved(origins[array.base]))

        with warnings.catch_warnings():
            # Numba warns of small grids; a call on a few boxes is one and cannot help it.
            warnings.filterwarnings("ignore", message=".*Grid size")
            configured = self.kernel[self.blocks, self.threads, stream, self.shared]
        configured(*mapped(placed, self.arguments))


def three(sizes):
    """Return the sizes of a grid or a block along three axes."""
    sizes = sizes if isinstance(sizes, tuple) else (sizes,)
    return sizes + (1,) * (3 - len(sizes))


def configured(kernel, blocks, threads, queue, shared=0):
    """Return a function of a kernel's arguments that launches it on a queue.

    Its blocks have so many bytes of shared memory, beside what the kernel declares.
    """
    return functools.partial(queue.launch, kernel, blocks, threads, shared)


def over(kernel, work, queue):
    """Return a function that launches a kernel with a thread for each work item, up to a bound."""
    return configured(
        kernel, -(-min(work, LARGEST_LAUNCH) // THREADS_PER_BLOCK), THREADS_PER_BLOCK, queue
    )
