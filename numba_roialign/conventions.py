"""The conventions in use, by the names of the systems that follow them."""

from __future__ import annotations

from ._geometry import Convention

TORCHVISION = Convention(minimum_size=1.0)
TORCHVISION_ALIGNED = Convention(shift_after=-0.5)
MINDSPORE_0 = Convention(minimum_size=1.0, floor_grid=True, round_image=True, skip_lines=True)
MINDSPORE_1 = Convention(end_pixel=1.0, floor_grid=True, round_image=True, skip_lines=True)

CONVENTIONS = {
    "torchvision": TORCHVISION,
    "torchvision_aligned": TORCHVISION_ALIGNED,
    "detectron2": TORCHVISION_ALIGNED,
    "mmcv": TORCHVISION_ALIGNED,
    "mmcv_unaligned": TORCHVISION,
    "mindspore_0": MINDSPORE_0,
    "mindspore_1": MINDSPORE_1,
    "onnx_half_pixel": TORCHVISION_ALIGNED,
    "onnx_output_half_pixel": TORCHVISION,
    "openvino_asymmetric": TORCHVISION,
    "openvino_half_pixel_for_nn": TORCHVISION_ALIGNED,
    "openvino_half_pixel": Convention(shift_before=0.5, shift_after=-0.5),
    "paddle": TORCHVISION_ALIGNED,
    "paddle_unaligned": TORCHVISION,
    "tvm_aligned": Convention(),
    "ascend_1": Convention(end_pixel=1.0, minimum_size=1.0),
    "ascend_2": TORCHVISION_ALIGNED,
    "ascend_3": Convention(shift_after=-0.5, minimum_size=1.0),
}
