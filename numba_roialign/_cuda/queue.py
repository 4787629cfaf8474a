"""Where the work of a CUDA call goes: a stream, its device, and memory for scratch."""

from __future__ import annotations

import functools
from contextlib import contextmanager

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
    """A stream to launch on, and memory of its device that lasts as long as the launches need.

    It is a context: one call's at a time, where it has a workspace.
    """

    call = None  # what was asked of it last, as `plans` keeps it

    def __init__(self, stream, device, family, like, workspace):
        self.stream, self.device, self.workspace = stream, device, workspace
        self.family, self.like = family, like  # whose library gives memory, without a workspace

    def __enter__(self):
        if self.workspace is not None:
            self.workspace._begin()
        return self

    def __exit__(self, kind, error, trace):
        if self.workspace is not None:
            self.workspace._end()

    def allocate(self, size):
        """Return a new array of so many bytes."""
        memory = self.family.empty((size,), self.like, "uint8")
        return DeviceArray(self.family.pointer(memory), (size,), (1,), "uint8", 1, memory)

    def empty(self, shape, dtype):
        """Return a device array for use on the stream."""
        memory = self.bytes(max(1, DeviceArray.new(0, shape, dtype).nbytes))
        return DeviceArray.new(memory.pointer, shape, dtype, memory)

    def bytes(self, size):
        """Return memory for use on the stream."""
        if self.workspace is None:
            return self.allocate(size)
        return self.workspace._bytes(size, self.allocate)

    def reuse(self):
        """Let the memory given so far be given again: nothing on the stream uses it any more."""
        if self.workspace is not None:
            self.workspace._taken = 0

    def launch(self, kernel, blocks, threads, shared, *arguments):
        Launch(kernel, blocks, threads, shared, arguments).make(self.stream)


def queue_for(family, x, stream, workspace):
    """Queue work on the device of an array of a family: on the array's stream or on another.

    Memory that the family allocates meanwhile is that stream's own.
    """
    if workspace is not None and not isinstance(workspace, Workspace):
        raise TypeError(f"workspace must be a Workspace, got {workspace!r:.60}")
    handle = family.stream(x) if stream is None else handle_of(stream)
    device, current = family.device(x), current_device()
    if device is None:
        device = current
    queue = Queue(numba_stream(handle), device, family, x, workspace)
    if stream is not None:
        queue = beside(family.allocating(x, handle), queue)
    return queue if device == current else beside(cuda.gpus[device], queue)


@contextmanager
def beside(context, queue):
    """Return the context of a queue within another."""
    with context, queue as entered:
        yield entered
