"""Arrays, clocks and graphs of a CUDA device, by whichever library is there.

A kernel's time is that of a replayed graph of many calls, between two events: launched one by one,
short kernels would wait for the host, and its time be measured. Where a library has no graphs
(Numba alone, and so the simulator) the calls are launched one by one.
"""

from __future__ import annotations

import numpy as np

ROTATED_BYTES = 256_000_000  # of inputs in turn: several times the largest L2 cache


class Clock:
    """The device's own clock: time between two events."""

    def event(self):
        raise NotImplementedError

    def milliseconds(self, start, end):
        return start.elapsed_time(end)

    def elapsed(self, function, times):
        """Return the seconds that the device takes for a function, called so many times."""
        start, end = self.event(), self.event()
        start.record()
        for _ in range(times):
            function()
        end.record()
        end.synchronize()
        return self.milliseconds(start, end) / 1e3


class Torch(Clock):
    """PyTorch's tensors, events and graphs."""

    def __init__(self):
        import torch

        if not torch.cuda.is_available():
            raise RuntimeError("PyTorch sees no CUDA device")
        self.torch, self.versions = torch, {"torch": torch.__version__}

    def array(self, values):
        return self.torch.from_numpy(np.ascontiguousarray(values)).cuda()

    def empty(self, shape, dtype):
        return self.torch.empty(shape, dtype=getattr(self.torch, dtype), device="cuda")

    def numpy(self, array):
        return array.cpu().numpy()

    def copy(self, source, target):
        target.copy_(source)

    def synchronize(self):
        self.torch.cuda.synchronize()

    def captured(self, calls):
        """Return a function that replays a graph of calls."""
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph):
            results = [call() for call in calls]
        self.results = results  # a graph writes to them at each replay
        return graph.replay

    def event(self):
        return self.torch.cuda.Event(enable_timing=True)


class CuPy(Clock):
    """CuPy's arrays, events and graphs."""

    def __init__(self):
        import cupy

        cupy.cuda.Device().use()
        self.cupy, self.stream = cupy, cupy.cuda.Stream(non_blocking=True)
        self.stream.use()
        self.versions = {"cupy": cupy.__version__}

    def array(self, values):
        return self.cupy.asarray(np.ascontiguousarray(values))

    def empty(self, shape, dtype):
        return self.cupy.empty(shape, dtype)

    def numpy(self, array):
        return array.get()

    def copy(self, source, target):
        self.cupy.copyto(target, source)

    def synchronize(self):
        self.stream.synchronize()

    def captured(self, calls):
        self.results = [call() for call in calls]  # so that the pool has memory for those captured
        self.results = None
        self.stream.begin_capture()
        self.results = [call() for call in calls]
        graph = self.stream.end_capture()
        return lambda: graph.launch(self.stream)

    def event(self):
        return self.cupy.cuda.Event()

    def milliseconds(self, start, end):
        return self.cupy.cuda.get_elapsed_time(start, end)


class Numba(Clock):
    """Numba's own device arrays, or the simulator's; there are no graphs."""

    def __init__(self):
        from numba import cuda

        if not cuda.is_available():
            raise RuntimeError("Numba sees no CUDA device")
        self.cuda, self.versions = cuda, {}

    def array(self, values):
        return self.cuda.to_device(np.ascontiguousarray(values))

    def empty(self, shape, dtype):
        return self.cuda.device_array(shape, dtype)

    def numpy(self, array):
        return array.copy_to_host()

    def copy(self, source, target):
        target.copy_to_device(source)

    def synchronize(self):
        self.cuda.synchronize()

    def captured(self, calls):
        def replay():
            self.results = [call() for call in calls]

        return replay

    def event(self):
        return self.cuda.event()


LIBRARIES = {"torch": Torch, "cupy": CuPy, "numba": Numba}


def library(name=None):
    """Return a library by name, or the first that is installed and sees a device."""
    if name is not None:
        return LIBRARIES[name]()
    problems = []
    for make in LIBRARIES.values():
        try:
            return make()
        except (ImportError, RuntimeError) as problem:
            problems.append(str(problem))
    raise RuntimeError("; ".join(problems))


def copy_rate(megabytes=1024, repeats=20):
    """Return the rate of a copy on the device in GB/s, bytes read plus bytes written."""
    there = library()
    source = there.array(np.random.default_rng(0).random(megabytes * 1_000_000 // 8))
    target = there.array(np.zeros(source.shape))

    def copy():
        there.copy(source, target)

    there.elapsed(copy, 3)
    return 2 * source.nbytes * repeats / there.elapsed(copy, repeats) / 1e9
