"""Where the work of a CUDA call goes: a stream, its device, and memory for scratch."""

from __future__ import annotations

import functools
from contextlib import contextmanager, nullcontext

import numpy as np
from numba import config, cuda

from .._flat import DeviceArray
from .._workspace import Workspace
from .launches import Launch, current_device


def handle_of(stream) -> int:
    """Return the handle of a stream of Numba, CuPy, PyTorch or another library, or a handle."""
    if isinstance(stream, (int, np.integer)) and not isinstance(stream, (bool, np.bool_)):
        return int(stream)
    if hasattr(stream, "__cuda_stream__"):  # (version of the protocol, handle)
        return int(stream.__cuda_stream__()[1])
    for name in ("cuda_stream", "ptr"):  # PyTorch's, CuPy's
        if isinstance(getattr(stream, name, None), int):
            return getattr(stream, name)
    if hasattr(stream, "handle"):  # Numba's, an integer or one of ctypes'
        handle = getattr(stream.handle, "value", stream.handle)
        return int(handle or 0)
    raise TypeError(
        "stream must be a stream of Numba, CuPy or PyTorch, an object with __cuda_stream__, "
        f"or the handle of a stream, got {stream!r:.60}"
    )


@functools.lru_cache(64)
def numba_stream(handle):
    """Return a handle as a stream of Numba's; the simulator has but one."""
    if not handle or config.ENABLE_CUDASIM:
        return cuda.default_stream()
    return cuda.external_stream(handle)


class Queue:
    """A stream to launch on, and memory of its device that lasts as long as the launches need."""

    def __init__(self, stream, allocate, workspace=None):
        self.stream = stream
        self.allocate = allocate  # returns an array of so many bytes
        self.workspace = workspace

    def empty(self, shape, dtype):
        """Return a device array for use on the stream."""
        memory = self.bytes(DeviceArray.new(0, shape, dtype).nbytes)
        return DeviceArray.new(memory.pointer, shape, dtype, memory)

    def bytes(self, size):
        """Return memory for use on the stream."""
        size = max(1, size)
        if self.workspace is None:
            return self.allocate(size)
        return self.workspace._bytes(size, self.allocate)

    def reuse(self):
        """Let the memory given so far be given again: nothing on the stream uses it any more."""
        if self.workspace is not None:
            self.workspace._taken = 0

    def launch(self, kernel, blocks, threads, *arguments):
        Launch(kernel, blocks, threads, arguments).make(self.stream)


def on_device(number):
    """Return a context in which Numba launches on a device; None is the current one."""
    if number is None or number == current_device():
        return nullcontext()
    return cuda.gpus[number]


@contextmanager
def queue_for(family, x, stream, workspace):
    """Queue work on the device of an array of a family: on the array's stream or on another.

    Memory that the family allocates meanwhile is that stream's own.
    """
    if not isinstance(workspace, (Workspace, type(None))):
        raise TypeError(f"workspace must be a Workspace, got {workspace!r:.60}")
    handle = family.stream(x) if stream is None else handle_of(stream)
    given = None if stream is None else handle
    serving = workspace._serving() if workspace else nullcontext()

    def allocate(size):
        return family.array(family.empty((size,), x, "uint8"))

    with on_device(family.device(x)), family.allocating(x, given), serving:
        yield Queue(numba_stream(handle), allocate, workspace)
