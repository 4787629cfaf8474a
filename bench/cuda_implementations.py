"""What is compared on a CUDA device: adapters like those of `implementations`, on device arrays.

Each pools from several copies of the inputs in turn, together larger than the L2 cache. The seconds
of a call are the device's; those from a call to its result on the device are kept beside them.
"""

from __future__ import annotations

import math
from time import perf_counter

import numpy as np

from .cuda_arrays import ROTATED_BYTES, library
from .implementations import Implementation, Ours, Spec, Unsupported

CALLS_PER_GRAPH = 20  # at least: all copies of the inputs take their turn
MOST_COPIES = 512
LARGEST_LATENCY_ROUND = 50  # calls that the host times, each waited for


class Rotation:
    """A call on one set of inputs after the other."""

    def __init__(self, calls):
        self.calls, self.turn = calls, 0

    def __call__(self):
        self.turn = (self.turn + 1) % len(self.calls)
        return self.calls[self.turn]()


class OnDevice(Implementation):
    """An adapter whose clock is the device's."""

    def __init__(self, threads, there=None):
        super().__init__(threads)
        self.there = library(there)

    def versions(self):
        return super().versions() | self.there.versions

    def rotation(self, arrays, shape, make):
        """Return a call that takes copies of arrays in turn; `make` returns a call on one copy.

        A call writes a result of that `shape`, which counts too: each copy may have one of its own.
        """
        self.replay = None
        size = sum(array.nbytes for array in arrays) + math.prod(shape) * arrays[0].itemsize
        copies = min(-(-ROTATED_BYTES // size), MOST_COPIES)
        sets = [[self.there.array(array) for array in arrays] for _ in range(copies)]
        self.there.synchronize()
        return Rotation([make(*arrays) for arrays in sets])

    def array(self, result):
        return self.there.numpy(result)

    def seconds(self, call, calls):
        """Return the seconds that the device takes for a call."""
        if self.replay is None:
            for _ in range(3):
                call()
            self.there.synchronize()
            in_graph = -(-CALLS_PER_GRAPH // len(call.calls)) * len(call.calls)
            self.replay, self.in_graph = self.there.captured([call] * in_graph), in_graph
            self.there.elapsed(self.replay, 1)
        replays = -(-calls // self.in_graph)
        return self.there.elapsed(self.replay, replays) / (replays * self.in_graph)

    def call_seconds(self, call, calls):
        """Return the seconds from a call to its result, the host's work and the wait included."""
        calls = min(calls, LARGEST_LATENCY_ROUND)
        self.there.synchronize()
        start = perf_counter()
        for _ in range(calls):
            call()
            self.there.synchronize()
        return (perf_counter() - start) / calls


class OursOnDevice(OnDevice):
    packages = ("numba_roialign", "numba", "numba-cuda")

    def __init__(self, threads, layout="NCHW", dtype="float32", workspace=False, there=None):
        super().__init__(threads, there)
        import numba_roialign

        self.package, self.layout, self.dtype = numba_roialign, layout, dtype
        self.has_workspace = workspace

    own = Ours.own

    def kept(self, shape):
        """Return what a call of a program in a steady state is given beside its inputs."""
        if not self.has_workspace:
            return {}
        return {
            "out": self.there.empty(shape, self.dtype),
            "workspace": self.package.Workspace(),
        }

    def prepare(self, problem):
        _, channels, *_ = problem.features.shape
        shape = Ours.own(self, np.empty((1, channels, problem.bins, problem.bins), bool)).shape[1:]

        def make(features, rois):
            keywords = {"layout": self.layout, **self.kept((len(problem.rois), *shape))}
            return lambda: self.package.roi_align(features, rois, *problem[2:], **keywords)

        return self.rotation((self.own(problem.features), problem.rois), problem.pooled_shape, make)

    def prepare_backward(self, problem):
        shape = self.own(problem.features).shape

        def make(grad, rois):
            keywords = {"layout": self.layout, **self.kept(shape)}
            return lambda: self.package.roi_align_backward(
                grad, rois, shape, *problem[3:], **keywords
            )

        return self.rotation((self.own(problem.gradient()), problem.rois), shape, make)

    def array(self, result):
        result = super().array(result)
        return result.transpose(0, 3, 1, 2) if self.layout == "NHWC" else result


class TorchvisionOnDevice(OnDevice):
    packages = ("torchvision",)

    def __init__(self, threads):
        super().__init__(threads, "torch")
        import torchvision

        self.operators = self.there.torch.ops.torchvision
        del torchvision  # it has registered its operators

    def prepare(self, problem):
        arguments = problem.scale, problem.bins, problem.bins, problem.sampling, problem.aligned

        def make(features, rois):
            return lambda: self.operators.roi_align(features, rois, *arguments)

        return self.rotation((problem.features, problem.rois), problem.pooled_shape, make)

    def prepare_backward(self, problem):
        shape, bins = problem.features.shape, problem.bins
        arguments = problem.scale, bins, bins, *shape, problem.sampling, problem.aligned

        def make(grad, rois):
            return lambda: self.operators._roi_align_backward(grad, rois, *arguments)

        return self.rotation((problem.gradient(), problem.rois), shape, make)


# A thread for each output that goes through its samples: what one writes first.
RAW_KERNEL = r"""
__device__ float bilinear(const float* plane, int height, int width, float y, float x) {
  if (y < -1.f || y > height || x < -1.f || x > width) return 0.f;
  y = fmaxf(y, 0.f);
  x = fmaxf(x, 0.f);
  int top = min((int)y, height - 1), left = min((int)x, width - 1);
  int below = min(top + 1, height - 1), right = min(left + 1, width - 1);
  float down = top < height - 1 ? y - top : 0.f, across = left < width - 1 ? x - left : 0.f;
  const float* one = plane + (long long)top * width;
  const float* other = plane + (long long)below * width;
  return (1 - down) * ((1 - across) * one[left] + across * one[right]) +
         down * ((1 - across) * other[left] + across * other[right]);
}

extern "C" __global__ void pool(const float* features, const float* rois, float* out, int channels,
                                int height, int width, int bins, float scale, int sampling,
                                int aligned, long long outputs) {
  long long element = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (element >= outputs) return;
  int pw = element % bins, ph = element / bins % bins;
  int c = element / bins / bins % channels, n = element / bins / bins / channels;
  const float* roi = rois + n * 5;
  float shift = aligned ? 0.5f : 0.f;
  float left = roi[1] * scale - shift, top = roi[2] * scale - shift;
  float across = roi[3] * scale - shift - left, down = roi[4] * scale - shift - top;
  if (!aligned) {
    across = fmaxf(across, 1.f);
    down = fmaxf(down, 1.f);
  }
  across /= bins;
  down /= bins;
  int rows = sampling > 0 ? sampling : (int)ceilf(down);
  int columns = sampling > 0 ? sampling : (int)ceilf(across);
  const float* plane = features + ((long long)roi[0] * channels + c) * height * width;
  float sum = 0.f;
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < columns; j++)
      sum += bilinear(plane, height, width, top + (ph + (i + 0.5f) / rows) * down,
                      left + (pw + (j + 0.5f) / columns) * across);
  out[element] = sum / max(rows * columns, 1);
}
"""


class RawKernel(OnDevice):
    """CUDA C through CuPy, a thread for each output: the baseline of the tables."""

    def __init__(self, threads):
        super().__init__(threads, "cupy")
        self.kernel = self.there.cupy.RawKernel(RAW_KERNEL, "pool")

    def prepare(self, problem):
        _, channels, height, width = problem.features.shape
        shape, i32 = problem.pooled_shape, np.int32
        outputs = int(np.prod(shape))
        arguments = [i32(channels), i32(height), i32(width), i32(problem.bins)]
        arguments += [np.float32(problem.scale), i32(problem.sampling), i32(problem.aligned)]

        def make(features, rois):
            def call():
                out = self.there.empty(shape, "float32")
                given = (features, rois, out, *arguments, np.int64(outputs))
                self.kernel((-(-outputs // 256),), (256,), given)
                return out

            return call

        return self.rotation((problem.features, problem.rois), problem.pooled_shape, make)

    def prepare_backward(self, problem):
        raise Unsupported("the baseline has no gradient")


def spec(name, kind, adapter, **rest):
    return Spec(name, kind, f"{__name__}:{adapter}", **rest)


SPECS = [
    spec("numba_roialign", "ours", "OursOnDevice", compiles=True),
    spec("numba_roialign-kept", "variant", "OursOnDevice", options={"workspace": True}),
    spec("numba_roialign-nhwc", "variant", "OursOnDevice", options={"layout": "NHWC"}),
    spec(
        "numba_roialign-float16",
        "variant",
        "OursOnDevice",
        options={"dtype": "float16"},
        rounding=2e-3,
    ),
    spec("cupy-rawkernel", "baseline", "RawKernel"),
    spec("torchvision", "peer", "TorchvisionOnDevice"),
]
