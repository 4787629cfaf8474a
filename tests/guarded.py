"""Memory that tells on its users: around every array lie pages that nobody may touch.

An access outside ends the process. Memory that is allocated in `guarded` starts as a byte of the
test's choosing: a result that depends on it came from memory that nobody had written.
"""

import contextlib
import ctypes
import functools
import math
import mmap
from typing import NamedTuple
from unittest import mock

import numpy as np

from numba_roialign import _cpu, _families, _flat
from numba_roialign._cpu.job import ADDRESSES, POSITIONS

PAGE = mmap.PAGESIZE
PROT_NONE = 0
MOST_BYTES = 1 << 28


@functools.cache
def mprotect():
    function = ctypes.CDLL(None, use_errno=True).mprotect
    function.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    return function


def whole_pages(size):
    return -(-size // PAGE) * PAGE


def rooms(sizes, fill, at_end=True):
    """Return an array of bytes of each size, with a page that nobody may touch on both sides.

    The array ends where the page after it begins; or begins where the page before it ends.
    """
    total = sum(map(whole_pages, sizes)) + PAGE * (len(sizes) + 1)
    memory = np.frombuffer(mmap.mmap(-1, total), np.uint8)
    start, arrays, walls = 0, [], []
    for size in sizes:
        walls.append(start)
        first = start + PAGE + (whole_pages(size) - size if at_end else 0)
        arrays.append(memory[first : first + size])
        arrays[-1][...] = fill
        start += PAGE + whole_pages(size)
    for wall in [*walls, start]:
        if mprotect()(memory.ctypes.data + wall, PAGE, PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    return arrays


class MemoryLayout(NamedTuple):
    """What stands in for a layout; `job` has the numbers alone."""

    rows: int
    at_once: bool
    sizes: list[int]
    job: np.ndarray
    fill: int
    at_end: bool
    source: np.ndarray  # the job of the layout that it stands in for


class CallMemory(_cpu.call.CallMemory):
    """A call's memory, with a room for its job and one for each array."""

    def __init__(self, layout):
        sizes = [_cpu.call.JOB_BYTES, *layout.sizes]
        job, *self.arrays = rooms(sizes, layout.fill, layout.at_end)
        self.address = job.ctypes.data
        self.job = job.view(np.int64)[: len(_cpu.call.POSITIONS)]
        layout.job[: len(ADDRESSES)] = [array.ctypes.data for array in self.arrays]
        self.lay_out(layout, 0)

    @classmethod
    def borrow(cls, layout):
        return cls(layout)

    def give_back(self):
        """Let later calls know where machine code lies: then they enter it but once."""
        for name in ("dense_work", "apart_work", "sparse_work"):
            self.layout.source[POSITIONS[name]] = self.job[POSITIONS[name]]

    def table(self, name, count):
        return self.arrays[list(ADDRESSES).index(name)][: 8 * count].view(np.int64)


@contextlib.contextmanager
def guarded(fill, at_end=True, threaded=False):
    """Let the package allocate guarded memory, filled with a byte.

    Of what lies beyond an array, a page is guarded to the byte where arrays are `at_end`; of what
    lies before it, where they are not. Small calls are serial unless they are `threaded`.
    """
    run = _cpu.target.run

    def run_in_threads(plan, features, rois, out, threads, *options):
        return run(plan, features, rois, out, _cpu.target.usable_threads(), *options)

    def memory_layout(plan, rois, threads):
        rows, at_once, _, job = _cpu.plan.memory_layout(plan, rois, threads)
        sizes, source, job = _cpu.plan.memory_sizes(plan, rows, threads), job, job.copy()
        if threaded:
            job[POSITIONS["serial_work"]] = 0
            at_once = at_once and threads == 1
        return MemoryLayout(rows, at_once, sizes, job, fill, at_end, source)

    def empty_result(shape, dtype):
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        if size > MOST_BYTES:
            raise MemoryError(f"a test asks for {size} bytes")
        [memory] = rooms([size], fill, at_end)
        return memory.view(dtype).reshape(shape)

    with contextlib.ExitStack() as patches:
        for module in (_cpu.target, _families, _flat):
            patches.enter_context(mock.patch.object(module, "empty_result", empty_result))
        patches.enter_context(mock.patch.object(_cpu.call, "CallMemory", CallMemory))
        patches.enter_context(mock.patch.object(_cpu.call, "memory_layout", memory_layout))
        if threaded:
            patches.enter_context(mock.patch.object(_cpu.target, "run", run_in_threads))
            patches.enter_context(mock.patch.object(_cpu.plan, "SERIAL_BINS", 0))
        yield


def strided(shape, dtype, order, steps, gap=0, at_end=True):
    """Return an array of zeros in a room of its own, with strides of any kind.

    Axes lie in memory in an `order`, the last of it closest together; a step of n leaves n - 1
    elements out, a negative one runs backwards, and with 0 all along the axis are the same. After
    each element comes a `gap` in bytes.
    """
    dtype, strides, pitch = np.dtype(dtype), [0] * len(shape), np.dtype(dtype).itemsize + gap
    for axis in reversed(order):
        strides[axis] = steps[axis] * pitch
        pitch *= max(1, abs(steps[axis]) * shape[axis])
    reaches = [(size - 1) * stride for size, stride in zip(shape, strides, strict=True) if size]
    low = sum(reach for reach in reaches if reach < 0)
    high = sum(reach for reach in reaches if reach > 0)
    [memory] = rooms([high - low + dtype.itemsize], 0, at_end)
    return np.ndarray(shape, dtype, memory, -low, strides)
