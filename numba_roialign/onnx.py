"""ONNX's operator RoiAlign, thin over the operator; it needs no package of ONNX."""

from __future__ import annotations

from typing import Any, Literal, SupportsFloat, SupportsIndex

from . import _dispatch, _operator
from ._arguments import (
    adopted,
    check_rois,
    describe,
    integer,
    most_samples,
    one_of,
    positive,
    sample_count,
)
from ._families import check_places, untraced
from ._kernels import AVERAGE, CORNER_MAX
from ._operator import Geometry
from ._typing import AnyArray, Array
from ._workspace import Workspace
from .conventions import CONVENTIONS

MODES = {"avg": AVERAGE, "max": CORNER_MAX}
TRANSFORMATIONS = {
    "half_pixel": CONVENTIONS["onnx_half_pixel"],
    "output_half_pixel": CONVENTIONS["onnx_output_half_pixel"],
}


@untraced
def roi_align(
    X: Array,
    rois: AnyArray,
    batch_indices: AnyArray,
    *,
    mode: Literal["avg", "max"] | bytes = "avg",
    output_height: SupportsIndex = 1,
    output_width: SupportsIndex = 1,
    sampling_ratio: SupportsIndex = 0,
    spatial_scale: SupportsFloat = 1.0,
    coordinate_transformation_mode: (
        Literal["half_pixel", "output_half_pixel"] | bytes | None
    ) = None,
    opset: SupportsIndex = 22,
    out: Array | None = None,
    validate: bool | None = None,
    stream: Any = None,
    workspace: Workspace | None = None,
) -> Array:
    """Evaluate ONNX's operator RoiAlign, with its inputs and attributes.

    Attributes may be given as a node holds them, texts as bytes.

    Parameters
    ----------
    X : array of (N, C, H, W)
        float16, bfloat16, float32 or float64.
    rois : array of (num_rois, 4)
        ``(x1, y1, x2, y2)`` in image pixels, of any real dtype.
    batch_indices : array of (num_rois,)
        The image of each box, of an integer dtype.
    mode : {"avg", "max"}
        The mean of a bin's samples; or, as the standard defines it, the largest of their four
        pixels, each times its bilinear weight.
    output_height, output_width : int, default 1
        Bins per box.
    sampling_ratio : int, default 0
        Samples per bin and axis; 0 is adaptive, the bin size rounded up.
    spatial_scale : float, default 1.0
        Feature-map pixels per image pixel.
    coordinate_transformation_mode : {"half_pixel", "output_half_pixel"}, optional
        "half_pixel" shifts boxes by -0.5 feature-map pixels; "output_half_pixel" does not, and its
        boxes have at least one pixel. The default is that of `opset`.
    opset : int, default 22
        That of the model. From 16 on "half_pixel" is the default; before, the operator has no such
        attribute and computes "output_half_pixel".
    out, validate, stream, workspace
        As in `numba_roialign.roi_align`.

    Returns
    -------
    array of (num_rois, C, output_height, output_width)
        Of the family and dtype of `X`.

    Raises
    ------
    TypeError, ValueError, InvalidRoIError
        As in `numba_roialign.roi_align`.

    References
    ----------
    The operator RoiAlign of the ONNX standard, versions 10, 16 and 22.

    Examples
    --------
    >>> import numpy as np
    >>> import numba_roialign.onnx
    >>> X = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    >>> rois = np.array([[0, 0, 4, 4]], np.float32)
    >>> numba_roialign.onnx.roi_align(X, rois, np.array([0]), output_height=2, output_width=2)
    array([[[[ 2.5,  4.5],
             [10.5, 12.5]]]], dtype=float32)
    """
    since_16 = integer("opset", opset, least=10) >= 16
    transformation = text(coordinate_transformation_mode)
    if transformation is None:
        transformation = "half_pixel" if since_16 else "output_half_pixel"
    convention = TRANSFORMATIONS[
        one_of("coordinate_transformation_mode", transformation, TRANSFORMATIONS)
    ]
    scale = positive("spatial_scale", spatial_scale)
    samples = sample_count("sampling_ratio", sampling_ratio, least=0)
    return _operator.roi_align(
        X,
        joined(rois, batch_indices, stream),
        (
            integer("output_height", output_height, least=1),
            integer("output_width", output_width, least=1),
        ),
        Geometry((scale, scale), (samples, samples), most_samples(None), convention),
        mode=MODES[one_of("mode", text(mode), MODES)],
        out=out,
        validate=validate,
        stream=stream,
        workspace=workspace,
    )


def text(attribute: Any) -> Any:
    """Return an attribute whose text may be bytes, as ONNX stores it."""
    return attribute.decode() if isinstance(attribute, bytes) else attribute


def joined(rois: AnyArray, batch_indices: AnyArray, stream: Any) -> Any:
    """Return boxes and the image of each as one array of (K, 5)."""
    family, rois = adopted("rois", rois)
    index_family, images = adopted("batch_indices", batch_indices)
    check_rois(rois.shape, family.dtype(rois), columns=4)
    check_places(("rois", family, rois), ("batch_indices", index_family, images))
    if not index_family.dtype(images).startswith(("int", "uint")):
        raise TypeError(f"batch_indices must be integers, got {index_family.dtype(images)}")
    if tuple(images.shape) != (rois.shape[0],):
        raise ValueError(
            f"batch_indices must be ({rois.shape[0]},), one for each box, got {describe(images)}"
        )
    with _dispatch.queue_for(family, rois, stream) as queue:
        target = _dispatch.target_of(family)
        return target.join_boxes(index_family.boxes(images), family.boxes(rois), queue)
