"""The launches of a call: recorded without a device, their kernels compiled to machine code."""

from __future__ import annotations

import contextlib
import re
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
from numba import cuda

from numba_roialign._cuda import launches, target
from numba_roialign._cuda.arrays import of_its_type
from numba_roialign._flat import DeviceArray, c_strides, in_order
from numba_roialign._geometry import Sampling

from .instructions import parse
from .machine import simulate
from .state import Device

CAPABILITY = 9, 0
LIMITS = launches.Limits(Device().multiprocessors, 228 << 10, 227 << 10)
BASE = 1 << 40  # address of the simulated memory
SCRATCH = 64 << 20  # of it, beside a call's arrays
ALIGNED = 256  # bytes
PARAMETERS, SPARE = 0x210, 64  # where constants are a launch's arguments; what lies after them
RESERVED = 1 << 10  # of a kernel's shared memory, by the system
REGISTER_COUNT = 0x2F  # an attribute of a kernel, in its .nv.info


class Memory:
    """Arrays one after the other, each as the device has it and as NumPy sees it."""

    def __init__(self, size):
        self.bytes, self.end = np.zeros(-(-size // ALIGNED) * ALIGNED, np.uint8), 0
        self.in_l2 = np.zeros(self.bytes.size // 32, np.uint8)

    def new(self, shape, dtype):
        dtype, start = np.dtype(dtype), self.end
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self.end += -(-max(size, 1) // ALIGNED) * ALIGNED
        if self.end > self.bytes.size:
            raise MemoryError("the simulated memory is full")
        strides = c_strides(shape, dtype.itemsize)
        array = DeviceArray(BASE + start, shape, strides, dtype.name, dtype.itemsize)
        return array, self.bytes[start : start + size].view(dtype).reshape(shape)

    def copy(self, values):
        array, own = self.new(values.shape, values.dtype)
        own[...] = values
        return array


class Launch(NamedTuple):
    kernel: object
    blocks: tuple
    threads: tuple
    shared: int
    arguments: tuple

    @property
    def name(self):
        return self.kernel.py_func.__name__


class Queue:
    """What a call queues its work on: it notes the launches."""

    stream, device = None, 0

    def __init__(self, memory):
        self.memory, self.launches = memory, []

    def empty(self, shape, dtype):
        return self.memory.new(shape if isinstance(shape, tuple) else (shape,), dtype)[0]

    def reuse(self):
        pass

    def launch(self, kernel, blocks, threads, shared, *arguments):
        blocks, threads = launches.three(blocks), launches.three(threads)
        self.launches.append(Launch(kernel, blocks, threads, shared, arguments))


class Call(NamedTuple):
    """A call's launches, its memory, and its result there."""

    launches: list
    memory: Memory
    pooled: np.ndarray


def record(features, rois, bins, scale, samples, convention, layout="NCHW"):
    """Return what a call of `roi_align` launches; features are in the order of the layout."""
    images, channels, height, width = in_order(layout, features.shape)
    shape = (len(rois), channels, bins, bins)
    shape = shape if layout == "NCHW" else (len(rois), bins, bins, channels)
    memory = Memory(features.nbytes + rois.nbytes + 4 * int(np.prod(shape)) + SCRATCH)
    array, boxes = memory.copy(features), memory.copy(rois)
    out, pooled = memory.new(shape, np.float32)
    pooled[...] = np.nan
    sampling = Sampling(
        images, height, width, bins, bins, scale, scale, samples, samples, 2**31 - 1
    )
    how = target.How(sampling, convention, "float32", layout, target.BATCH_BYTES)
    queue = Queue(memory)
    with mock.patch.object(target, "limits_of", lambda _: LIMITS):
        target.queue_pooling(queue, array, boxes, out, None, how)
    return Call(queue.launches, memory, pooled)


def nvdisasm():
    """Return the path of the disassembler, of a wheel or of an installed toolkit, or None."""
    from cuda.pathfinder import find_nvidia_binary_utility

    return find_nvidia_binary_utility("nvdisasm")


@contextlib.contextmanager
def no_device():
    """Let numba-cuda compile for the simulated device where there is none, or another."""
    from numba.cuda import dispatcher

    class OfCapability:
        compute_capability = CAPABILITY

    with mock.patch.object(dispatcher, "get_current_device", lambda: OfCapability):
        yield


def linked(kernel, arguments, bounds=None):
    """Return a kernel's machine code for arguments of such types, as numba-cuda links it."""
    from cuda.bindings import nvjitlink
    from numba.cuda import types

    with no_device():
        code, _ = cuda.compile(
            kernel, types.void(*arguments), cc=CAPABILITY, device=False, abi="numba",
            output="ltoir", launch_bounds=bounds,
        )  # fmt: skip
    options = ["-arch=sm_{}{}".format(*CAPABILITY), "-lto"]
    handle = nvjitlink.create(len(options), options)
    try:
        nvjitlink.add_data(handle, nvjitlink.InputType.LTOIR, bytes(code), len(code), "kernel")
        nvjitlink.complete(handle)
        cubin = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, cubin)
    finally:
        nvjitlink.destroy(handle)
    return bytes(cubin)


def machine_code(launch):
    """Return the machine code of a launch's kernel."""
    from numba.cuda.typing.typeof import Purpose, typeof

    arguments = launches.mapped(of_its_type, launch.arguments)
    kinds = [typeof(argument, Purpose.argument) for argument in arguments]
    bounds = launch.kernel.targetoptions.get("launch_bounds")
    return linked(launch.kernel.py_func, kinds, bounds)


def disassembled(cubin):
    """Return the program that machine code is."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [nvdisasm(), "-hex", "-c", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return parse(done.stdout)


def sections(cubin):
    """Give name, contents and size of an ELF file's sections."""
    (table,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", cubin, table + k * size) for k in range(count)]
    for header in headers:
        start = headers[names][4] + header[0]
        name = cubin[start : cubin.index(b"\0", start)].decode()
        yield name, cubin[header[4] : header[4] + header[5]], header[5]


def needs(cubin):
    """Return a thread's registers, and a block's bytes of shared memory that the code declares."""
    registers = shared = 0
    for name, contents, size in sections(cubin):
        if name == ".nv.info":
            place = 0
            while place < len(contents):
                form, attribute, length = struct.unpack_from("<BBH", contents, place)
                if (form, attribute) == (4, REGISTER_COUNT):
                    _, registers = struct.unpack_from("<II", contents, place + 4)
                place += 4 + (length if form == 4 else 0)
        elif name.startswith(".nv.shared.") and "reserved" not in name:
            shared = max(shared, size - RESERVED)
    return registers, shared


def constants_of(launch):
    """Return the constants that a launch's code reads: sizes, then the arguments."""
    bank = bytearray(PARAMETERS)
    struct.pack_into("<6I", bank, 0, *launch.threads, *launch.blocks)
    struct.pack_into("<I", bank, 0x2C, launch.shared)
    layout = launches.Layout(launch.arguments)
    codes = re.findall(r"([?Iifqd])(?:\dx)?", layout.codes)
    for code, value in zip(codes, layout.values, strict=True):
        bank += bytes(-(len(bank) - PARAMETERS) % struct.calcsize(code))
        bank += struct.pack("<" + code, value)
    return np.frombuffer(bank + bytes(SPARE), np.uint8)


def run(launch, memory, device=None):
    """Simulate a launch, and return what it took."""
    cubin = machine_code(launch)
    registers, shared = needs(cubin)
    return simulate(
        disassembled(cubin), constants_of(launch), memory.bytes, BASE, memory.in_l2,
        launch.blocks, launch.threads, registers, shared + launch.shared, device,
    )  # fmt: skip
