"""CUDA kernels as Numba compiles them, run on a machine without a device.

The simulator runs Python: it has no narrow integers, no multiply-add that rounds once, and no
parameters in bytes. Here runs the LLVM IR that numba-cuda hands to NVIDIA's compiler, which
`compiled_ir` makes machine code of this processor. Kernels are launched by the package's own
launches, in blocks whose threads go in any order between barriers, on memory between pages that
nobody may touch. What NVIDIA's compiler and driver make of them, this cannot show.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import math
import random
import threading
from types import SimpleNamespace
from unittest import mock

import llvmlite
import llvmlite.binding as llvm
import numpy as np

from numba_roialign import _families
from numba_roialign._cuda import arrays, launches, plans, queue

from .compiled_ir import MOST_ASKED_FOR, MachineCode, ir_of
from .guarded import rooms

POISON = 0xFF  # what memory holds that nobody has written, as NaN or -1
BEHIND = 256  # bytes behind shared memory, which must stay so
RANDOM = random.Random(0)
STREAM = SimpleNamespace(handle=0, synchronize=lambda: None)
# How a launch lays out numbers of a parameter's type.
CODES = {"i8": "?7x", "i32": "I4x", "i64": "q", "ptr": "q", "float": "f4x", "double": "d"}


class Kernel(MachineCode):
    """A kernel, and how it runs over a grid."""

    def launch(self, blocks, threads, shared, parameters):
        """Run the blocks, from any first one on, and their threads in any order.

        Blocks have as many bytes of shared memory as were asked for, and must not write behind.
        """
        self.place[3:6], self.place[9:12] = threads, blocks
        grid, block = ([*itertools.product(*map(range, sizes))] for sizes in (blocks, threads))
        first = RANDOM.randrange(len(grid))
        memory = self.shared
        if self.asked_for is not None:
            memory = [*memory, (self.asked_for, shared + BEHIND)]
        for self.place[6:9] in grid[first:] + grid[:first]:
            for address, size in memory:
                ctypes.memset(address, POISON, size)
            if self.has_barriers:
                self.run_between_barriers(block, parameters)
            else:
                RANDOM.shuffle(block)
                for self.place[:3] in block:
                    self.enter(parameters)
            if self.asked_for is not None:
                behind = ctypes.string_at(self.asked_for + shared, BEHIND)
                assert behind == bytes([POISON]) * BEHIND, "a kernel wrote behind its shared memory"

    def run_between_barriers(self, block, parameters):
        """Run the threads of a block, all to their next barrier before any goes on from there."""
        runners = [Runner.spare.pop() if Runner.spare else Runner() for _ in block]
        for runner, thread in zip(runners, block, strict=True):
            runner.work, runner.ended = (self, thread, parameters), False
        while not runners[0].ended:
            RANDOM.shuffle(runners)
            for runner in runners:
                runner.go_on()
            ends = {runner.ended for runner in runners}
            assert len(ends) == 1, "not all threads of a block reach a barrier"
        Runner.spare += runners


class Runner(threading.Thread):
    """What a thread of a block runs on. Of all runners one is at work at a time."""

    spare: list[Runner] = []  # noqa: RUF012
    at_work: Runner
    paused = threading.Semaphore(0)

    def __init__(self):
        super().__init__(daemon=True)
        self.going = threading.Semaphore(0)
        self.start()

    def go_on(self):
        """Run to the next barrier or to the end."""
        kernel, thread, _ = self.work
        kernel.place[:3], Runner.at_work = thread, self
        self.going.release()
        Runner.paused.acquire()

    def pause(self):
        Runner.paused.release()
        self.going.acquire()

    def run(self):
        self.going.acquire()
        while True:
            kernel, _, parameters = self.work
            kernel.enter(parameters)
            self.ended = True
            self.pause()


@ctypes.CFUNCTYPE(None)
def barrier():
    Runner.at_work.pause()


class Driver:
    """What launches ask the driver for: of a device with two multiprocessors."""

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT=2,
        CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR=48 << 10,
        CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN=48 << 10,
    )

    def __init__(self):
        self.kernels, self.handles = [], {}

    def cuCtxGetDevice(self):
        return 0, 0

    def cuDeviceGetAttribute(self, attribute, device):
        return 0, attribute

    def cuLaunchKernel(self, handle, *rest):
        *sizes, shared, _, parameters, extra = rest
        blocks, threads = sizes[:3], sizes[3:]
        assert extra == 0
        kernel = self.kernels[handle]
        assert shared + sum(size for _, size in kernel.shared) <= MOST_ASKED_FOR
        assert 0 < math.prod(threads) <= 1024
        assert min(blocks) > 0
        assert max(blocks[1:]) <= launches.MOST_BLOCKS
        kernel.launch(blocks, threads, shared, parameters)
        return (0,)

    def compiled(self, kernel, arguments, kinds):
        """Return a handle of a kernel, as `launches.compiled`."""
        from numba.cuda.typing.typeof import Purpose, typeof

        given = launches.mapped(arrays.of_its_type, arguments)
        key = kernel, *[typeof(argument, Purpose.argument) for argument in given]
        if key not in self.handles:
            self.handles[key] = len(self.kernels)
            self.kernels.append(Kernel(ir_of(kernel.py_func, key[1:])))
        types = self.kernels[self.handles[key]].types
        assert launches.Layout(arguments).codes == "<" + "".join(map(CODES.get, types))
        return self.handles[key]


class Array:
    """A device array, in guarded memory."""

    __cuda_ndarray__ = True
    stream = 0
    fill, at_end = POISON, True  # see `guarded`

    def __init__(self, own):
        self.own, self.shape, self.strides, self.dtype = own, own.shape, own.strides, own.dtype

    @classmethod
    def empty(cls, shape, dtype):
        dtype = np.dtype(dtype)
        size = math.prod(shape) * dtype.itemsize
        [memory] = rooms([-(-size // 8) * 8], cls.fill, cls.at_end)
        return cls(memory[:size].view(dtype).reshape(shape))

    @classmethod
    def of(cls, values):
        values = np.asarray(values)
        array = cls.empty(values.shape, values.dtype)
        array.own[...] = values
        return array

    @property
    def __cuda_array_interface__(self):
        return self.own.__array_interface__

    def __array__(self, dtype=None, copy=None):
        return self.own.astype(dtype or self.dtype)

    def __getitem__(self, key):
        return Array(self.own[key])

    def view(self, dtype):
        return Array(self.own.view(dtype))

    def transpose(self, axes):
        return Array(self.own.transpose(axes))

    def copy_to_host(self, stream=None):
        return self.own.copy()


@contextlib.contextmanager
def guarded(fill, at_end=True, at_once=False):
    """Let new memory hold a byte, with its end or its start at a page that nobody may touch.

    With `at_once` the arrays of a call's scratch have pages of their own, for no plan makes them
    one block.
    """
    with contextlib.ExitStack() as patches:
        patches.enter_context(mock.patch.multiple(Array, fill=fill, at_end=at_end))
        if at_once:
            patches.enter_context(mock.patch.object(plans, "plan_of", lambda *_: None))
        yield


def launch(kernel, blocks, threads, *arguments):
    """Launch a kernel on arrays and numbers."""
    given = tuple(
        _families.NumbaCUDA.array(argument) if isinstance(argument, Array) else argument
        for argument in arguments
    )
    launches.Launch(kernel, blocks, threads, 0, given).make(STREAM)


def empty(shape, like, dtype=None):
    return Array.empty(shape, dtype or like.dtype)


def install():
    """Let the package run its kernels here."""
    assert not llvmlite.ir_layer_typed_pointers_enabled, "set what the lane sets"
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    llvm.add_symbol("nvvm.barrier0", ctypes.cast(barrier, ctypes.c_void_p).value)
    driver = Driver()
    launches.driver, launches.compiled = driver, driver.compiled
    queue.numba_stream = lambda handle: STREAM
    arrays.cuda = SimpleNamespace(as_cuda_array=lambda memory, sync: Array(np.asarray(memory)))
    _families.NumbaCUDA.empty = staticmethod(empty)
