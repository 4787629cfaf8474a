"""Compare the package with its peers on random cases: ``python -m bench.agreement``.

Each peer that is installed computes random cases of every operation and convention that it shares
with the package, and both are held against the float64 reference of the tests. The table shows the
largest difference to the peer and the largest error of each. Where a peer's result is undefined or
its own defect, the case is left out; `LEFT_OUT` says which and why.
"""

import argparse
import importlib.util
from functools import partial

import numpy as np
from tqdm import tqdm

from numba_roialign import ROIAlignGrad, onnx, roi_align, roi_align_backward
from tests import reference

SIZES = [(1, 1, 5, 7), (2, 3, 20, 31), (1, 17, 50, 76), (3, 4, 64, 48)]
# A Python loop over samples, such as ONNX's own evaluator, takes seconds on the larger ones.
SMALL = [(1, 1, 5, 7), (2, 2, 9, 12)]
LEFT_OUT = """
- torchvision: adaptive boxes with one negative side, for which it raises.
- onnxruntime: adaptive boxes with a negative side, for which it fails with an integer overflow.
- Paddle: adaptive boxes that are empty or negative, for which it divides by zero or aborts. Its
  gradient with `aligned=True` takes boxes as at least one pixel, which its forward does not (it is
  then the gradient of the convention `ascend_3`), so smaller boxes are left out of that.
- OpenVINO: the same boxes, which it divides by zero; its max starts from 0, so it is held against
  the larger of 0 and ours.
- MindSpore: adaptive boxes smaller than their bins, for which its grid is empty (NaN or 0), and
  boxes with `abs(x1)` and `abs(x2)` below 1e-3, which it leaves unwritten. Its gradient takes
  `roi_end_mode` as 1, so it is compared for that mode alone.
- ONNX's reference evaluator: opset 10, where it shifts boxes by half a pixel, which that version of
  the standard has not.
"""


class Case:
    """Features and boxes inside, outside, tiny, huge and with swapped corners, and a call's rest.

    With `positive` no corners are swapped and no box is empty.
    """

    def __init__(self, rng, adaptive, positive=False, sizes=SIZES):
        images, channels, height, width = self.shape = sizes[rng.integers(len(sizes))]
        self.scale = float(rng.choice([1.0, 0.5, 0.25, 0.0625, 0.3]))
        self.samples = 0 if adaptive else int(rng.integers(1, 4))
        self.features = rng.standard_normal(self.shape).astype(np.float32)
        count = int(rng.integers(1, 9))
        reach = np.array([width, height]) / self.scale
        corners = rng.uniform(-0.2, 1.1, (count, 2)) * reach
        sides = np.exp(rng.uniform(np.log(0.01), np.log(1.5), (count, 2))) * reach
        if not positive:
            sides *= rng.choice([1, 1, 1, 1, -0.1], (count, 2))
        image = np.sort(rng.integers(0, images, count))
        self.rois = np.column_stack([image, corners, corners + sides]).astype(np.float32)
        self.size = tuple(int(bins) for bins in rng.integers(1, 9, 2))
        self.gradient = rng.standard_normal((count, channels, *self.size)).astype(np.float32)

    @property
    def boxes(self):
        """The boxes alone, their images, and how many each image has."""
        images = self.rois[:, 0].astype(np.int64)
        counts = np.bincount(images, minlength=self.shape[0]).astype(np.int32)
        return np.ascontiguousarray(self.rois[:, 1:]), images, counts

    def ours(self, preset, mode="avg"):
        arguments = self.features, self.rois, self.size, self.scale, self.samples
        return roi_align(*arguments, convention=preset, mode=mode)

    def our_gradient(self, preset):
        arguments = self.gradient, self.rois, self.shape, self.scale, self.samples
        return roi_align_backward(*arguments, convention=preset)

    def truth(self, preset, mode="avg"):
        arguments = self.features, self.rois, self.size, self.scale, self.samples
        return reference.pool_boxes(*arguments, reference.CONVENTIONS[preset], mode)

    def true_gradient(self, preset):
        arguments = self.gradient, self.rois, self.shape, self.scale, self.samples
        return reference.pool_boxes_backward(*arguments, reference.CONVENTIONS[preset])


class Torchvision:
    package = "torchvision"
    presets = ("torchvision", "torchvision_aligned")

    def __init__(self):
        import torch
        from torchvision.ops import roi_align as pool

        self.torch, self.pool = torch, pool

    def kinds(self):
        for preset in self.presets:
            for operation in (self.forward, self.backward):
                yield operation.__name__, preset, partial(operation, preset)

    def case(self, rng, adaptive):
        case = Case(rng, adaptive)
        if adaptive:
            case.rois[:, 3:] = np.maximum(case.rois[:, 3:], case.rois[:, 1:3])
        return case

    def forward(self, preset, rng, adaptive):
        case = self.case(rng, adaptive)
        tensors = map(self.torch.from_numpy, (case.features, case.rois))
        theirs = self.pool(*tensors, case.size, case.scale, case.samples, "aligned" in preset)
        return case.ours(preset), theirs.numpy(), case.truth(preset)

    def backward(self, preset, rng, adaptive):
        case = self.case(rng, adaptive)
        features, rois = map(self.torch.from_numpy, (case.features, case.rois))
        features.requires_grad_()
        pooled = self.pool(features, rois, case.size, case.scale, case.samples, "aligned" in preset)
        pooled.backward(self.torch.from_numpy(case.gradient))
        return case.our_gradient(preset), features.grad.numpy(), case.true_gradient(preset)


class Onnx:
    """A model of one RoiAlign, run by onnxruntime or by ONNX's own evaluator."""

    sizes = SIZES

    def kinds(self):
        for mode in ("avg", "max"):
            for opset, transformation in self.versions:
                name = f"RoiAlign-{opset}, mode {mode}"
                preset = f"onnx_{transformation}"
                yield name, preset, partial(self.forward, mode, opset, transformation)

    def forward(self, mode, opset, transformation, rng, adaptive):
        from onnx import TensorProto, helper

        case = Case(rng, adaptive, positive=adaptive and self.refuses_negative, sizes=self.sizes)
        attributes = {
            "mode": mode,
            "output_height": case.size[0],
            "output_width": case.size[1],
            "sampling_ratio": case.samples,
            "spatial_scale": case.scale,
        }
        chosen = {"coordinate_transformation_mode": transformation}
        node = helper.make_node(
            "RoiAlign", ["X", "rois", "images"], ["Y"], **attributes, **chosen if opset > 10 else {}
        )
        kinds = [TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64]
        inputs = [
            helper.make_tensor_value_info(name, kind, [None] * axes)
            for name, kind, axes in zip(node.input, kinds, (4, 2, 1), strict=True)
        ]
        output = helper.make_tensor_value_info("Y", TensorProto.FLOAT, [None] * 4)
        graph = helper.make_graph([node], "graph", inputs, [output])
        version = [helper.make_opsetid("", opset)]
        boxes, images, _ = case.boxes
        arrays = case.features, boxes, images
        theirs = self.run(
            helper.make_model(graph, opset_imports=version, ir_version=8),
            dict(zip(node.input, arrays, strict=True)),
        )
        preset = f"onnx_{transformation}"
        ours = onnx.roi_align(*arrays, **attributes, **chosen)
        return ours, theirs, case.truth(preset, "corner_max" if mode == "max" else mode)


class OnnxRuntime(Onnx):
    package = "onnxruntime"
    refuses_negative = True
    versions = ((10, "output_half_pixel"), (16, "output_half_pixel"), (16, "half_pixel"))

    def run(self, model, feeds):
        import onnxruntime

        onnxruntime.set_default_logger_severity(4)  # it warns of max's definition in every session
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        return session.run(None, feeds)[0]


class OnnxReference(Onnx):
    package = "onnx"
    refuses_negative = False
    sizes = SMALL
    versions = tuple(
        (opset, transformation)
        for opset in (16, 22)
        for transformation in ("output_half_pixel", "half_pixel")
    )

    def run(self, model, feeds):
        from onnx.reference import ReferenceEvaluator

        return ReferenceEvaluator(model).run(None, feeds)[0]


class OpenVino:
    package = "openvino"

    def kinds(self):
        for mode in ("avg", "max"):
            for aligned_mode in ("asymmetric", "half_pixel_for_nn", "half_pixel"):
                preset = f"openvino_{aligned_mode}"
                yield f"ROIAlign-9, {mode}", preset, partial(self.forward, mode, aligned_mode)

    def forward(self, mode, aligned_mode, rng, adaptive):
        import openvino
        from openvino import opset9

        case = Case(rng, adaptive, positive=adaptive)
        boxes, images, _ = case.boxes
        arrays = case.features, boxes, images.astype(np.int32)
        parameters = [opset9.parameter(array.shape, array.dtype) for array in arrays]
        node = opset9.roi_align(
            *parameters, *case.size, case.samples, case.scale, mode, aligned_mode=aligned_mode
        )
        model = openvino.Model([node], parameters)
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        theirs = openvino.Core().compile_model(model, "CPU", settings)(arrays)[0]
        preset = f"openvino_{aligned_mode}"
        ours, truth = case.ours(preset, mode), case.truth(preset, mode)
        if mode == "max":
            ours, truth = np.maximum(ours, 0), np.maximum(truth, 0)
        return ours, theirs, truth


class Paddle:
    package = "paddle"
    presets = ("paddle", "paddle_unaligned")

    def __init__(self):
        import paddle

        paddle.set_device("cpu")
        self.paddle = paddle

    def kinds(self):
        for preset in self.presets:
            for operation in (self.forward, self.backward):
                yield operation.__name__, preset, partial(operation, preset)

    def pool(self, preset, case):
        boxes, _, counts = case.boxes
        features, boxes, counts = map(self.paddle.to_tensor, (case.features, boxes, counts))
        features.stop_gradient = False
        arguments = features, boxes, counts, case.size, case.scale, case.samples
        return features, self.paddle.vision.ops.roi_align(*arguments, aligned=preset == "paddle")

    def forward(self, preset, rng, adaptive):
        case = Case(rng, adaptive, positive=adaptive)
        return case.ours(preset), self.pool(preset, case)[1].numpy(), case.truth(preset)

    def backward(self, preset, rng, adaptive):
        case = Case(rng, adaptive, positive=adaptive)
        if preset == "paddle":
            case.rois[:, 3:] = np.maximum(case.rois[:, 3:], case.rois[:, 1:3] + 1.01 / case.scale)
        features, pooled = self.pool(preset, case)
        pooled.backward(self.paddle.to_tensor(case.gradient))
        return case.our_gradient(preset), features.grad.numpy(), case.true_gradient(preset)


class MindSpore:
    package = "mindspore"

    def __init__(self):
        import mindspore

        mindspore.set_device("CPU")
        self.mindspore = mindspore

    def kinds(self):
        for mode in (0, 1):
            yield "forward", f"mindspore_{mode}", partial(self.forward, mode)
        yield "backward", "mindspore_1", self.backward

    def case(self, mode, rng, adaptive):
        """Return a case without the boxes for which its result is undefined."""
        case = Case(rng, adaptive)
        rois = case.rois
        extent = (rois[:, [4, 3]] + mode - rois[:, [2, 1]]) * np.float32(case.scale)
        extent = np.maximum(extent, 1) if mode == 0 else extent
        defined = (extent >= np.array(case.size) * 1.001).all(axis=1) | (not adaptive)
        defined &= (np.abs(rois[:, [1, 3]]) >= 1e-3).any(axis=1)
        case.rois, case.gradient = rois[defined], case.gradient[defined]
        return case

    def forward(self, mode, rng, adaptive):
        case, preset = self.case(mode, rng, adaptive), f"mindspore_{mode}"
        if not len(case.rois):
            return (np.empty(0),) * 3
        peer = self.mindspore.ops.ROIAlign(*case.size, case.scale, case.samples, mode)
        theirs = peer(*map(self.mindspore.Tensor, (case.features, case.rois))).asnumpy()
        return case.ours(preset), theirs, case.truth(preset)

    def backward(self, rng, adaptive):
        from mindspore.ops.operations import _grad_ops

        case = self.case(1, rng, adaptive)
        if not len(case.rois):
            return (np.empty(0),) * 3
        arguments = *case.size, case.scale, case.samples
        tensors = map(self.mindspore.Tensor, (case.gradient, case.rois))
        theirs = _grad_ops.ROIAlignGrad(*arguments)(*tensors, case.shape).asnumpy()
        ours = ROIAlignGrad(case.shape, *arguments)(case.gradient, case.rois)
        return ours, theirs, case.true_gradient("mindspore_1")


PEERS = (Torchvision, OnnxRuntime, OnnxReference, OpenVino, Paddle, MindSpore)


def compare(cases, count, rng):
    """Return how many numbers were compared, their largest difference and the two errors."""
    figures = np.zeros(4)
    for _ in range(count):
        ours, theirs, truth = cases(rng)
        if ours.size:
            pairs = [(ours, theirs), (ours, truth), (theirs, truth)]
            differences = [np.abs(a - b).max() for a, b in pairs]
            figures[0] += ours.size
            figures[1:] = np.maximum(figures[1:], differences)  # NaN stays
    return figures


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.agreement", description=__doc__)
    parser.add_argument("--cases", type=int, default=200, help="of each kind (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=[peer.package for peer in PEERS])
    arguments = parser.parse_args()
    print("| peer | operation | convention | grid | numbers | difference | our error | its error |")
    print("|---|---|---|---|---:|---:|---:|---:|")
    for peer in PEERS:
        if arguments.only and peer.package not in arguments.only:
            continue
        if importlib.util.find_spec(peer.package) is None:
            print(f"| {peer.package} | not installed | | | | | | |")
            continue
        kinds = [(*kind, adaptive) for kind in peer().kinds() for adaptive in (False, True)]
        for operation, preset, cases, adaptive in tqdm(kinds, desc=peer.package, leave=False):
            rng = np.random.default_rng(arguments.seed)
            numbers, *rest = compare(partial(cases, adaptive=adaptive), arguments.cases, rng)
            name = f"| {peer.package} | {operation} | {preset} |"
            print(name, "adaptive |" if adaptive else "fixed |", f"{numbers:.0f} |", end=" ")
            print(*(f"{figure:.1e} |" for figure in rest), flush=True)
    print(f"\nLeft out:\n{LEFT_OUT}")


if __name__ == "__main__":
    main()
