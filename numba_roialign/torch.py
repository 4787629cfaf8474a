"""RoIAlign as an operator of PyTorch, with gradients; it needs PyTorch 2.4 or newer.

Three custom operators stand behind it, ``numba_roialign::roi_align`` and its two gradients, so that
``torch.compile`` traces through and exported graphs name them.
"""

from __future__ import annotations

from typing import Literal, SupportsIndex, TypeAlias, overload

import torch
from torch import Tensor

from . import _operator
from ._api import geometry_of
from ._arguments import MODES, check_rois, describe, integer, one_of, pair
from ._families import TorchCPU
from ._flat import LAYOUTS, in_order
from ._geometry import Convention
from ._operator import Geometry
from ._typing import Floats, Integers, Layout, Mode

__all__ = ["roi_align"]

RoIs: TypeAlias = Tensor | list[Tensor] | tuple[Tensor, ...]


@overload
def roi_align(
    features: Tensor, rois: RoIs, output_size: Integers, spatial_scale: Floats = ...,
    sampling_ratio: Integers = ..., aligned: bool = ..., *, mode: Mode = ...,
    convention: str | Convention | None = ..., max_sampling_ratio: SupportsIndex | None = ...,
    return_argmax: Literal[False] = ..., layout: Layout = ...,
    validate: bool | None = ...,
) -> Tensor: ...  # fmt: skip
@overload
def roi_align(
    features: Tensor, rois: RoIs, output_size: Integers, spatial_scale: Floats = ...,
    sampling_ratio: Integers = ..., aligned: bool = ..., *, mode: Mode = ...,
    convention: str | Convention | None = ..., max_sampling_ratio: SupportsIndex | None = ...,
    return_argmax: Literal[True], layout: Layout = ...,
    validate: bool | None = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def roi_align(
    features: Tensor,
    rois: RoIs,
    output_size: Integers,
    spatial_scale: Floats = 1.0,
    sampling_ratio: Integers = -1,
    aligned: bool = False,
    *,
    mode: Mode = "avg",
    convention: str | Convention | None = None,
    max_sampling_ratio: SupportsIndex | None = None,
    return_argmax: bool = False,
    layout: Layout = "NCHW",
    validate: bool | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Pool a fixed-size feature from each box of a feature map, with gradients.

    Parameters
    ----------
    features : Tensor of (N, C, H, W)
        On the CPU or a CUDA device; float16, bfloat16, float32 or float64, in any memory format.
    rois : Tensor of (K, 5), or list of Tensor of (L, 4)
        As in `numba_roialign.roi_align`, on the device of `features`.
    output_size, spatial_scale, sampling_ratio, aligned, mode, convention, max_sampling_ratio
        As in `numba_roialign.roi_align`.
    return_argmax, layout, validate
        As in `numba_roialign.roi_align`.

    Returns
    -------
    Tensor of (K, C, PH, PW)
        In the memory format of `features`, where that is channels last. It has gradients with
        respect to `features` and, with the mode "avg", to `rois`, both deterministic; twice
        differentiable with respect to `features`.
    Tensor of (K, C, PH, PW), int64
        With `return_argmax`.

    Raises
    ------
    TypeError, ValueError, InvalidRoIError
        As in `numba_roialign.roi_align`.
    NotImplementedError
        Backward asks for the gradient of boxes with one of the max modes.

    Examples
    --------
    >>> import torch
    >>> from numba_roialign.torch import roi_align
    >>> features = torch.arange(16.0).reshape(1, 1, 4, 4).requires_grad_()
    >>> rois = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
    >>> pooled = roi_align(features, rois, 1, aligned=True)
    >>> pooled.sum().backward()
    >>> features.grad[0, 0, 0]
    tensor([0.0625, 0.0625, 0.0625, 0.0625])
    """
    if not isinstance(features, Tensor):
        raise TypeError(f"features must be a Tensor, got {describe(features)}")
    if return_argmax and mode == "avg":
        raise ValueError("return_argmax has no meaning for mode='avg'")
    height, width = pair("output_size", output_size, integer, least=1)
    (scale_y, scale_x), (samples_y, samples_x), most, convention = geometry_of(
        spatial_scale, sampling_ratio, aligned, convention, max_sampling_ratio
    )
    pooled, argmax = _roi_align(
        features, stacked(rois, features), height, width, scale_y, scale_x, samples_y, samples_x,
        most, [float(field) for field in convention], one_of("mode", mode, MODES),
        one_of("layout", layout, LAYOUTS), validate,
    )  # fmt: skip
    return (pooled, argmax) if return_argmax else pooled


def stacked(rois, features):
    """Return rois as one tensor; a list holds each image's boxes."""
    if isinstance(rois, Tensor):
        return rois
    if not isinstance(rois, (list, tuple)):
        raise TypeError(f"rois must be a Tensor or a list of them, got {describe(rois)}")
    if not rois:
        return features.new_empty((0, 5))
    for image, boxes in enumerate(rois):
        if not isinstance(boxes, Tensor):
            raise TypeError(f"rois[{image}] must be a Tensor, got {describe(boxes)}")
        check_rois(boxes.shape, TorchCPU.dtype(boxes), columns=4, name=f"rois[{image}]")
    boxes = torch.cat(list(rois))
    if boxes.element_size() < 4:  # which would round the numbers of images
        boxes = boxes.float()
    images = [boxes.new_full((len(theirs), 1), image) for image, theirs in enumerate(rois)]
    return torch.cat([torch.cat(images), boxes], dim=1)


def empty(shape, like):
    """Return a tensor for a result, in the memory format of another."""
    last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    return torch.empty(
        shape,
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )


def geometry(scale_y, scale_x, samples_y, samples_x, most_samples, convention):
    """Return a `Geometry` from the arguments of an operator, which are numbers and lists."""
    kinds = [type(value) for value in Convention._field_defaults.values()]
    fields = (kind(value) for kind, value in zip(kinds, convention, strict=True))
    return Geometry((scale_y, scale_x), (samples_y, samples_x), most_samples, Convention(*fields))


def pooled_shape(features, rois, height, width, layout):
    return _operator.ordered(
        layout, rois.shape[0], in_order(layout, features.shape)[1], height, width
    )


@torch.library.custom_op("numba_roialign::roi_align", mutates_args=())
def _roi_align(
    features: Tensor, rois: Tensor, height: int, width: int, scale_y: float, scale_x: float,
    samples_y: int, samples_x: int, most_samples: int, convention: list[float], mode: str,
    layout: str, validate: bool | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    features, rois = features.detach(), rois.detach()
    how = geometry(scale_y, scale_x, samples_y, samples_x, most_samples, convention)
    options = {"mode": MODES[mode], "layout": layout, "validate": validate}
    if features.dim() == 4 and rois.dim() == 2:  # the operator says what is wrong with others
        options["out"] = empty(pooled_shape(features, rois, height, width, layout), features)
    if mode == "avg":
        pooled = _operator.roi_align(features, rois, (height, width), how, **options)
        return pooled, features.new_empty(0, dtype=torch.int64)
    return _operator.roi_align(features, rois, (height, width), how, return_argmax=True, **options)


@_roi_align.register_fake
def _(features, rois, height, width, *arguments):
    mode, layout, _ = arguments[-3:]
    shape = pooled_shape(features, rois, height, width, layout)
    argmax = 0 if mode == "avg" else shape
    return empty(shape, features), features.new_empty(argmax, dtype=torch.int64)


@torch.library.custom_op("numba_roialign::roi_align_backward", mutates_args=())
def _roi_align_backward(
    grad: Tensor, rois: Tensor, argmax: Tensor, feature_shape: list[int], scale_y: float,
    scale_x: float, samples_y: int, samples_x: int, most_samples: int, convention: list[float],
    mode: str, layout: str, validate: bool | None,
) -> Tensor:  # fmt: skip
    how = geometry(scale_y, scale_x, samples_y, samples_x, most_samples, convention)
    grad = materialized(grad)
    return _operator.roi_align_backward(
        grad, rois.detach(), tuple(feature_shape), how,
        mode=MODES[mode], layout=layout, argmax=None if mode == "avg" else argmax,
        out=empty(feature_shape, grad), validate=validate,
    )  # fmt: skip


@_roi_align_backward.register_fake
def _(grad, rois, argmax, feature_shape, *arguments):
    return empty(feature_shape, grad)


@torch.library.custom_op("numba_roialign::roi_align_box_backward", mutates_args=())
def _roi_align_box_backward(
    grad: Tensor, features: Tensor, rois: Tensor, scale_y: float, scale_x: float,
    samples_y: int, samples_x: int, most_samples: int, convention: list[float],
    layout: str, validate: bool | None,
) -> Tensor:  # fmt: skip
    how = geometry(scale_y, scale_x, samples_y, samples_x, most_samples, convention)
    gradient = _operator.roi_align_box_backward(
        materialized(grad), features.detach(), rois.detach(), how,
        layout=layout, validate=validate,
    )  # fmt: skip
    return gradient.to(rois.dtype)


@_roi_align_box_backward.register_fake
def _(grad, features, rois, *arguments):
    return rois.new_empty((rois.shape[0], 5))


def materialized(grad):
    """Return a gradient that lies in memory: autograd expands numbers with strides of 0."""
    return grad.detach().contiguous() if 0 in grad.stride() else grad.detach()


def _save(ctx, inputs, output):
    features, rois, _, _, *arguments = inputs
    *how, mode, layout, validate = arguments
    ctx.how, ctx.mode, ctx.layout, ctx.validate = how, mode, layout, validate
    ctx.feature_shape = list(features.shape)
    ctx.save_for_backward(rois, output[1], features if ctx.needs_input_grad[1] else None)


def _differentiate(ctx, grad, _):
    rois, argmax, features = ctx.saved_tensors
    grad_features = grad_rois = None
    if ctx.needs_input_grad[0]:
        grad_features = _roi_align_backward(
            grad, rois, argmax, ctx.feature_shape, *ctx.how, ctx.mode, ctx.layout, ctx.validate
        )
    if ctx.needs_input_grad[1]:
        if ctx.mode != "avg":
            raise NotImplementedError(f"boxes have no gradient with mode={ctx.mode!r}")
        grad_rois = _roi_align_box_backward(
            grad, features, rois, *ctx.how, ctx.layout, ctx.validate
        )
    return grad_features, grad_rois, *[None] * 11


_roi_align.register_autograd(_differentiate, setup_context=_save)


def _save_backward(ctx, inputs, output):
    grad, rois, _, _, *arguments = inputs
    *how, mode, layout, validate = arguments
    ctx.how, ctx.mode, ctx.layout, ctx.validate = how, mode, layout, validate
    ctx.save_for_backward(grad, rois)


def _differentiate_backward(ctx, grad):
    """Twice: the gradient is linear in what it is given, and its transpose is the pooling."""
    if ctx.mode != "avg":
        raise NotImplementedError(f"no second derivative with mode={ctx.mode!r}")
    grad_output, rois = ctx.saved_tensors
    height, width = in_order(ctx.layout, grad_output.shape)[2:]
    pooled = grad_rois = None
    if ctx.needs_input_grad[0]:
        pooled, _ = _roi_align(
            grad, rois, height, width, *ctx.how, ctx.mode, ctx.layout, ctx.validate
        )
    if ctx.needs_input_grad[1]:
        grad_rois = _roi_align_box_backward(
            grad_output, grad, rois, *ctx.how, ctx.layout, ctx.validate
        )
    return pooled, grad_rois, *[None] * 11


_roi_align_backward.register_autograd(_differentiate_backward, setup_context=_save_backward)
