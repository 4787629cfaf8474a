"""What is compared: one adapter per implementation, each living in a worker process of its own.

The rig reads `SPECS` only, so a library is imported by the worker that times it and by no one else.
This file needs nothing but NumPy, for an adapter may be run by another interpreter (``--python``).

Each is given its best: inputs in the library's own form are made before the clock starts, and the
conversion of a result to NumPy is not timed. What is timed allocates its result, as users call it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from time import perf_counter

import numpy as np

from . import plain_numpy


@dataclass(frozen=True)
class Spec:
    """An implementation by name. Ratios are those of kind "ours" to the fastest of kind "peer"."""

    name: str
    kind: str  # ours, variant (of ours), baseline or peer
    adapter: str  # module:Class
    options: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)
    python: str = sys.executable
    rounding: float = 0.0  # relative to the largest number, of a dtype narrower than float32
    compiles: bool = False  # by Numba: its first use ever is measured too


class Unsupported(Exception):
    """An implementation has no such operator; the message is shown in the tables."""


class Implementation:
    """An adapter: its constructor imports the library and sets its number of threads."""

    packages: tuple[str, ...] = ()

    def __init__(self, threads):
        self.threads = threads

    def versions(self):
        return {package: version(package) for package in self.packages}

    def prepare(self, problem):
        """Return a call without arguments that pools into a new array of the library's own kind."""
        raise NotImplementedError

    def prepare_backward(self, problem):
        """Return such a call for the gradient of the features, given that of the pooled ones."""
        raise Unsupported("it has no gradient")

    def array(self, result):
        """Return a result as NumPy, (K, C, bins, bins), or a gradient as (N, C, H, W)."""
        return np.asarray(result)

    def seconds(self, call, calls):
        """Return the seconds per call; on a device, by its own clock."""
        start = perf_counter()
        for _ in range(calls):
            call()
        return (perf_counter() - start) / calls

    def call_seconds(self, call, calls):
        """Return the seconds of a call from end to end, where a device's are not all of them."""
        return None


class Ours(Implementation):
    packages = ("numba_roialign", "numba", "llvmlite", "numpy")

    def __init__(self, threads, layout="NCHW", dtype="float32"):
        import numba

        import numba_roialign

        numba.set_num_threads(threads)
        self.roi_align = numba_roialign.roi_align
        self.roi_align_backward = numba_roialign.roi_align_backward
        self.layout, self.dtype = layout, dtype
        self.keywords = {} if layout == "NCHW" else {"layout": layout}

    def own(self, array):
        """Return an NCHW array in the layout and the dtype of this variant."""
        if self.layout == "NHWC":
            array = array.transpose(0, 2, 3, 1)
        return np.ascontiguousarray(array, self.dtype)

    def prepare(self, problem):
        features, rois, *arguments = problem
        features = self.own(features)
        return lambda: self.roi_align(features, rois, *arguments, **self.keywords)

    def prepare_backward(self, problem):
        features, rois, _bins, *arguments = problem
        grad, shape = self.own(problem.gradient()), self.own(features).shape
        return lambda: self.roi_align_backward(grad, rois, shape, *arguments, **self.keywords)

    def array(self, result):
        return result.transpose(0, 3, 1, 2) if self.layout == "NHWC" else result


class PlainNumpy(Implementation):
    packages = ("numpy",)

    def prepare(self, problem):
        return lambda: plain_numpy.roi_align(problem)


class Torchvision(Implementation):
    packages = ("torchvision", "torch")

    def __init__(self, threads):
        import torch
        from torchvision.ops import roi_align

        torch.set_num_threads(threads)
        self.torch, self.roi_align = torch, roi_align

    def prepare(self, problem):
        features, rois = map(self.torch.from_numpy, problem[:2])
        arguments = (problem.bins, problem.scale, problem.sampling, problem.aligned)

        @self.torch.inference_mode()
        def call():
            return self.roi_align(features, rois, *arguments)

        return call

    def prepare_backward(self, problem):
        grad, rois = map(self.torch.from_numpy, (problem.gradient(), problem.rois))
        shape = problem.features.shape
        arguments = (problem.scale, problem.bins, problem.bins, *shape, problem.sampling)
        backward = self.torch.ops.torchvision._roi_align_backward  # what autograd calls

        @self.torch.inference_mode()
        def call():
            return backward(grad, rois, *arguments, problem.aligned)

        return call


def split(rois):
    """Return boxes and image indices apart, each contiguous."""
    return np.ascontiguousarray(rois[:, 1:]), rois[:, 0].astype(np.int64)


class OnnxRuntime(Implementation):
    packages = ("onnxruntime",)

    def __init__(self, threads):
        import onnx
        import onnxruntime

        self.onnx, self.onnxruntime = onnx, onnxruntime
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = threads
        self.options.inter_op_num_threads = 1

    def model(self, problem):
        helper, float32 = self.onnx.helper, self.onnx.TensorProto.FLOAT
        node = helper.make_node(
            "RoiAlign",
            ["features", "boxes", "images"],
            ["pooled"],
            coordinate_transformation_mode="half_pixel" if problem.aligned else "output_half_pixel",
            output_height=problem.bins,
            output_width=problem.bins,
            sampling_ratio=problem.sampling,
            spatial_scale=problem.scale,
        )
        inputs = [
            helper.make_tensor_value_info("features", float32, [None] * 4),
            helper.make_tensor_value_info("boxes", float32, [None, 4]),
            helper.make_tensor_value_info("images", self.onnx.TensorProto.INT64, [None]),
        ]
        outputs = [helper.make_tensor_value_info("pooled", float32, [None] * 4)]
        graph = helper.make_graph([node], "roi_align", inputs, outputs)
        opset = [helper.make_opsetid("", 16)]
        return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()

    def prepare(self, problem):
        session = self.onnxruntime.InferenceSession(
            self.model(problem), self.options, providers=["CPUExecutionProvider"]
        )
        boxes, images = split(problem.rois)
        feeds = {"features": problem.features, "boxes": boxes, "images": images}
        return lambda: session.run(None, feeds)[0]


class OpenVino(Implementation):
    packages = ("openvino",)

    def __init__(self, threads):
        import openvino
        from openvino import opset9

        self.openvino, self.opset = openvino, opset9
        # f32: on a CPU with bfloat16 arithmetic it would otherwise compute in that
        self.settings = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }

    def prepare(self, problem):
        boxes, images = split(problem.rois)
        inputs = [problem.features, boxes, images.astype(np.int32)]
        parameters = [self.opset.parameter(array.shape, array.dtype) for array in inputs]
        node = self.opset.roi_align(
            *parameters,
            pooled_h=problem.bins,
            pooled_w=problem.bins,
            sampling_ratio=problem.sampling,
            spatial_scale=problem.scale,
            mode="avg",
            aligned_mode="half_pixel_for_nn" if problem.aligned else "asymmetric",
        )
        model = self.openvino.Model([node], parameters)
        request = self.openvino.Core().compile_model(model, "CPU", self.settings)
        request = request.create_infer_request()
        # shared outputs spare it a copy and an allocation that the others have: in its favour
        return lambda: request.infer(inputs, share_inputs=True, share_outputs=True)[0]


class MindSpore(Implementation):
    packages = ("mindspore",)

    def __init__(self, threads):
        import mindspore

        mindspore.set_device("CPU")
        mindspore.device_context.cpu.op_tuning.threads_num(threads)
        self.mindspore = mindspore

    def prepare(self, problem):
        if problem.aligned:
            raise Unsupported("its convention has no aligned=True")
        if problem.sampling <= 0:
            raise Unsupported("its adaptive grid is another")
        features, rois = map(self.mindspore.Tensor, problem[:2])
        pool = self.mindspore.ops.ROIAlign(
            problem.bins, problem.bins, problem.scale, problem.sampling, roi_end_mode=0
        )
        return lambda: pool(features, rois).asnumpy()  # a call may return before it has pooled

    def prepare_backward(self, problem):
        raise Unsupported("its gradient is that of roi_end_mode=1, another convention")


class Paddle(Implementation):
    packages = ("paddlepaddle",)

    def __init__(self, threads):
        import paddle

        paddle.set_device("cpu")  # its threads follow OMP_NUM_THREADS
        self.paddle = paddle

    def inputs(self, problem):
        """Return the features, the boxes and how many each image has."""
        boxes, images = split(problem.rois)
        counts = np.bincount(images, minlength=len(problem.features)).astype(np.int32)
        return tuple(map(self.paddle.to_tensor, (problem.features, boxes, counts)))

    def prepare(self, problem):
        rest = (problem.bins, problem.scale, problem.sampling, problem.aligned)
        arguments = (*self.inputs(problem), *rest)
        return lambda: self.paddle.vision.ops.roi_align(*arguments)

    def prepare_backward(self, problem):
        bins, *rest = problem[2:]
        grad = self.paddle.to_tensor(problem.gradient())
        arguments = (*self.inputs(problem), grad, bins, bins, *rest)
        return lambda: self.paddle._C_ops.roi_align_grad(*arguments)  # what autograd calls


def spec(name, kind, adapter, **rest):
    return Spec(name, kind, f"{__name__}:{adapter}", **rest)


SPECS = [
    spec("numba_roialign", "ours", "Ours", compiles=True),
    # the scalar element kernel, one channel at a time
    spec(
        "numba_roialign-scalar",
        "variant",
        "Ours",
        environment={"NUMBA_ROIALIGN_LANES": "1"},
        compiles=True,
    ),
    spec("numba_roialign-nhwc", "variant", "Ours", options={"layout": "NHWC"}, compiles=True),
    spec(
        "numba_roialign-float16",
        "variant",
        "Ours",
        options={"dtype": "float16"},
        rounding=2e-3,
        compiles=True,
    ),
    spec("numpy", "baseline", "PlainNumpy"),
    spec("torchvision", "peer", "Torchvision"),
    spec("onnxruntime", "peer", "OnnxRuntime"),
    spec("openvino", "peer", "OpenVino"),
    spec("mindspore", "peer", "MindSpore"),
    spec("paddle", "peer", "Paddle"),
]


def load(adapter, threads, options) -> Implementation:
    """Return the adapter that a spec names, its library imported."""
    module, _, name = adapter.partition(":")
    return getattr(import_module(module), name)(threads, **options)
