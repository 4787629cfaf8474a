"""The public functions in torchvision's signature, each thin over the operator."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, SupportsIndex, overload

from numpy import floating
from numpy.typing import NDArray

from . import _operator
from ._arguments import (
    MODES,
    check_layout,
    convention_of,
    integer,
    map_shape,
    most_samples,
    one_of,
    pair,
    positive,
    sampling_pair,
)
from ._families import untraced
from ._geometry import Convention
from ._operator import Geometry
from ._typing import AnyArray, Array, Floats, Integers, Layout, Mode, RoIs, Shape
from ._workspace import Workspace


def geometry_of(
    spatial_scale: Floats,
    sampling_ratio: Integers,
    aligned: bool,
    convention: str | Convention | None,
    max_sampling_ratio: SupportsIndex | None,
) -> Geometry:
    """Return what these arguments say of how boxes are sampled."""
    return Geometry(
        pair("spatial_scale", spatial_scale, positive),
        sampling_pair(sampling_ratio),
        most_samples(max_sampling_ratio),
        convention_of(aligned, convention),
    )


def types_in_pairs(arguments: tuple[Any, ...]) -> list[type]:
    """Return the types of what tuples hold among some arguments."""
    return [type(item) for pair in arguments if isinstance(pair, tuple) for item in pair]


def kept(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep what a function of small arguments returns, for the next call with the same ones.

    Checking them takes 10 us of every call.
    """

    @functools.lru_cache(256, typed=True)
    def keeping(*arguments: Any) -> Any:
        return types_in_pairs(arguments), function(*arguments)

    @functools.wraps(function)
    def answer(*arguments: Any) -> Any:
        try:
            types, result = keeping(*arguments)
        except TypeError:  # a list, which no cache holds; or what the checks refuse
            return function(*arguments)
        # `typed` does not look into tuples, where 3.0 then passes for a 3 of an earlier call.
        return function(*arguments) if types and types != types_in_pairs(arguments) else result

    return answer


kept_geometry = kept(geometry_of)


@kept
def pooling_of(
    output_size: Integers, mode: Mode, return_argmax: bool, layout: Layout, *geometry: Any
) -> Any:
    """Return what these arguments say: the bins in y and x, the mode and the geometry."""
    check_layout(layout)
    number = MODES[one_of("mode", mode, MODES)]
    if return_argmax and mode == "avg":
        raise ValueError("return_argmax has no meaning for mode='avg'")
    return pair("output_size", output_size, integer, least=1), number, geometry_of(*geometry)


@overload
def roi_align(
    features: Array, rois: RoIs, output_size: Integers, spatial_scale: Floats = ...,
    sampling_ratio: Integers = ..., aligned: bool = ..., *, mode: Mode = ...,
    convention: str | Convention | None = ..., max_sampling_ratio: SupportsIndex | None = ...,
    return_argmax: Literal[False] = ..., layout: Layout = ..., out: Array | None = ...,
    validate: bool | None = ..., stream: Any = ..., workspace: Workspace | None = ...,
) -> Array: ...  # fmt: skip
@overload
def roi_align(
    features: Array, rois: RoIs, output_size: Integers, spatial_scale: Floats = ...,
    sampling_ratio: Integers = ..., aligned: bool = ..., *, mode: Mode = ...,
    convention: str | Convention | None = ..., max_sampling_ratio: SupportsIndex | None = ...,
    return_argmax: Literal[True], layout: Layout = ..., out: Array | None = ...,
    validate: bool | None = ..., stream: Any = ..., workspace: Workspace | None = ...,
) -> tuple[Array, Any]: ...  # fmt: skip
@untraced
def roi_align(
    features: Any,
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
    out: Any = None,
    validate: bool | None = None,
    stream: Any = None,
    workspace: Workspace | None = None,
) -> Any:
    """Pool a fixed-size feature from each box of a feature map, without rounding coordinates.

    The arguments stand in the order of ``torchvision.ops.roi_align`` and mean the same. The call
    runs where the arrays live: NumPy arrays on the CPU, device arrays on their GPU.

    Parameters
    ----------
    features : array of (N, C, H, W)
        float16, bfloat16, float32 or float64, in any layout. The half types are storage only:
        sums are at least float32.
    rois : array of (K, 5), or list of arrays of (L, 4)
        ``(image_index, x1, y1, x2, y2)`` in image pixels, of any real dtype; or for each image its
        boxes ``(x1, y1, x2, y2)``. A fractional image index is truncated.
    output_size : int or (int, int)
        Bins per box: pooled height and width.
    spatial_scale : float or (float, float), default 1.0
        Feature-map pixels per image pixel, e.g. 0.0625 for a map of stride 16; a pair is that of y
        and that of x.
    sampling_ratio : int or (int, int), default -1
        Bilinear samples per bin and axis, a pair for y and x. Zero or less is adaptive: the bin
        size in feature-map pixels, rounded up; a bin without samples pools 0.
    aligned : bool, default False
        True puts pixel centres at half-integer image coordinates (a shift by -0.5); False is the
        older convention, without the shift and with boxes of at least one pixel.
    mode : {"avg", "max", "corner_max"}
        What a bin takes of its samples: their mean; the largest; or the largest of their four
        pixels, each times its bilinear weight, as ONNX defines max. A sample outside the map counts
        as 0 in each, and NaN is larger than any number.
    convention : str or Convention, optional
        Instead of `aligned`: how some system lays its samples, by its name in `CONVENTIONS`, or as
        a `Convention` of your own.
    max_sampling_ratio : int, optional
        The most samples that an adaptive bin takes per axis.
    return_argmax : bool, default False
        Return also which sample won, for `roi_align_backward`. Not with the mode "avg".
    layout : {"NCHW", "NHWC"}
        "NHWC" is channels last: `features` is (N, H, W, C) and the result (K, PH, PW, C). Neither
        is transposed on the way.
    out : array of (K, C, PH, PW), optional
        Written and returned. It has the dtype, the family and the place of `features`.
    validate : bool, optional
        Whether to raise on a box that cannot be pooled. The default raises on the CPU and not on a
        GPU, where looking at the boxes would wait for the device. A row that is not raised on
        pools NaN, and nothing outside the arrays is ever read.
    stream : stream or int, optional
        On a GPU, where the work is queued instead of on the stream of `features`: a stream of
        Numba, CuPy or PyTorch, any with ``__cuda_stream__``, or a handle. That it comes after what
        makes the inputs, and before what reads the result, is then the caller's to see to.
    workspace : Workspace, optional
        On a GPU, scratch kept from call to call.

    Returns
    -------
    array of (K, C, PH, PW)
        Of the family and dtype of `features`, in C order.
    array of (K, C, PH, PW), int64
        With `return_argmax`: the number of the winning sample in its bin, row by row; with the mode
        "corner_max" four times that, and 1 more for the right corners, 2 more for the lower; -1
        where no pixel of the map gave the value. The first of several winners is named.

    Raises
    ------
    TypeError
        An argument is not of the kind above, `features` and `rois` live apart, or `stream` or
        `workspace` is given for arrays on the CPU.
    ValueError
        A shape or a value does not fit.
    InvalidRoIError
        A ValueError: a box is not finite or too large, or an image index is out of range. It names
        the row, also in its attribute ``row``.

    See Also
    --------
    roi_align_backward, roi_align_box_backward : the gradients.

    Notes
    -----
    With ``s`` the scale, ``y0 = y1 * s`` (``- 0.5`` if aligned), bin height ``b`` and ``g`` samples
    per bin, sample ``i`` of bin ``p`` lies at ``y0 + p * b + (i + 0.5) * b / g``, likewise in x.
    A sample beyond ``[-1, H]`` counts as 0, any other is clamped to the map, and the output is the
    mean of the bilinear samples [1]_.

    References
    ----------
    .. [1] K. He, G. Gkioxari, P. Dollár, R. Girshick, "Mask R-CNN", ICCV 2017, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_roialign import roi_align
    >>> features = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    >>> rois = np.array([[0, 0, 0, 4, 4]], np.float32)
    >>> roi_align(features, rois, 2, aligned=True)
    array([[[[ 2.5,  4.5],
             [10.5, 12.5]]]], dtype=float32)
    """
    bins, number, geometry = pooling_of(
        output_size, mode, return_argmax, layout,
        spatial_scale, sampling_ratio, aligned, convention, max_sampling_ratio,
    )  # fmt: skip
    return _operator.roi_align(
        features,
        _operator.stacked(rois, features, stream),
        bins,
        geometry,
        mode=number,
        return_argmax=return_argmax,
        layout=layout,
        out=out,
        validate=validate,
        stream=stream,
        workspace=workspace,
    )


@untraced
def roi_align_backward(
    grad_output: Array,
    rois: RoIs,
    feature_shape: Shape,
    spatial_scale: Floats = 1.0,
    sampling_ratio: Integers = -1,
    aligned: bool = False,
    *,
    mode: Mode = "avg",
    convention: str | Convention | None = None,
    max_sampling_ratio: SupportsIndex | None = None,
    argmax: AnyArray | None = None,
    layout: Layout = "NCHW",
    out: Array | None = None,
    validate: bool | None = None,
    stream: Any = None,
    workspace: Workspace | None = None,
) -> Array:
    """Return the gradient of `roi_align` with respect to its features.

    It is deterministic: the same bits for any number of threads and in every run. Nothing is added
    atomically, and scratch grows neither with the result nor with the channels.

    Parameters
    ----------
    grad_output : array of (K, C, PH, PW)
        The gradient with respect to the pooled features, of a dtype that features may have.
    rois : array of (K, 5), or list of arrays of (L, 4)
        As in `roi_align`.
    feature_shape : (int, int, int, int)
        The shape of the features, (N, C, H, W) or that of `layout`.
    spatial_scale, sampling_ratio, aligned, mode, convention, max_sampling_ratio
        As the forward call had them.
    argmax : array of (K, C, PH, PW), int64, optional
        What `roi_align` returned with `return_argmax`; needed with the two max modes. A number that
        names no sample inside the map counts as -1: it gives nothing.
    layout : {"NCHW", "NHWC"}
        Of `grad_output`, `argmax` and the result.
    out : array of `feature_shape`, optional
        Written and returned. It has the dtype, the family and the place of `grad_output`.
    validate : bool, optional
        As in `roi_align`; a row that is not raised on gives nothing.
    stream : stream or int, optional
        As in `roi_align`, instead of the stream of `grad_output`.
    workspace : Workspace, optional
        As in `roi_align`.

    Returns
    -------
    array of `feature_shape`
        Of the family and dtype of `grad_output`, in C order.

    Raises
    ------
    TypeError, ValueError, InvalidRoIError
        As in `roi_align`.

    Notes
    -----
    Pooling an average is linear in the features, ``out = A @ features``, and this is
    ``A.T @ grad_output``.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_roialign import roi_align_backward
    >>> rois = np.array([[0, 0, 0, 2, 2]], np.float32)
    >>> roi_align_backward(np.ones((1, 1, 1, 1), np.float32), rois, (1, 1, 2, 2), aligned=True)
    array([[[[0.25, 0.25],
             [0.25, 0.25]]]], dtype=float32)
    """
    return _operator.roi_align_backward(
        grad_output,
        _operator.stacked(rois, grad_output, stream),
        map_shape("feature_shape", feature_shape),
        kept_geometry(spatial_scale, sampling_ratio, aligned, convention, max_sampling_ratio),
        mode=MODES[one_of("mode", mode, MODES)],
        layout=layout,
        argmax=argmax,
        out=out,
        validate=validate,
        stream=stream,
        workspace=workspace,
    )


@overload
def roi_align_box_backward(
    grad_output: NDArray[Any], features: NDArray[Any], rois: RoIs, spatial_scale: Floats = ...,
    sampling_ratio: Integers = ..., aligned: bool = ..., *,
    convention: str | Convention | None = ..., max_sampling_ratio: SupportsIndex | None = ...,
    layout: Layout = ..., out: NDArray[Any] | None = ..., validate: bool | None = ...,
    stream: Any = ..., workspace: Workspace | None = ...,
) -> NDArray[floating[Any]]: ...  # fmt: skip
@overload
def roi_align_box_backward(
    grad_output: AnyArray, features: Array, rois: RoIs, spatial_scale: Floats = ...,
    sampling_ratio: Integers = ..., aligned: bool = ..., *,
    convention: str | Convention | None = ..., max_sampling_ratio: SupportsIndex | None = ...,
    layout: Layout = ..., out: Array | None = ..., validate: bool | None = ...,
    stream: Any = ..., workspace: Workspace | None = ...,
) -> Array: ...  # fmt: skip
@untraced
def roi_align_box_backward(
    grad_output: Any,
    features: Any,
    rois: RoIs,
    spatial_scale: Floats = 1.0,
    sampling_ratio: Integers = -1,
    aligned: bool = False,
    *,
    convention: str | Convention | None = None,
    max_sampling_ratio: SupportsIndex | None = None,
    layout: Layout = "NCHW",
    out: Any = None,
    validate: bool | None = None,
    stream: Any = None,
    workspace: Workspace | None = None,
) -> Any:
    """Return the gradient of `roi_align`, mode "avg", with respect to its boxes.

    Parameters
    ----------
    grad_output : array of (K, C, PH, PW)
        The gradient with respect to the pooled features, of the dtype of `features`.
    features : array of (N, C, H, W)
        As in `roi_align`.
    rois : array of (K, 5), or list of arrays of (L, 4)
        As in `roi_align`.
    spatial_scale, sampling_ratio, aligned, convention, max_sampling_ratio, layout
        As the forward call had them.
    out : array of (K, 5), optional
        Written and returned; of the dtype that is returned without it.
    validate : bool, optional
        As in `roi_align`; a row that is not raised on has gradient 0.
    stream : stream or int, optional
        As in `roi_align`.
    workspace : Workspace, optional
        As in `roi_align`.

    Returns
    -------
    array of (K, 5)
        Per image pixel; the first column, of the image index, is 0. float64 where `rois` is, else
        float32; of the family of `features`.

    Raises
    ------
    TypeError, ValueError, InvalidRoIError
        As in `roi_align`.

    Notes
    -----
    It is the derivative of the sampled definition. The bilinear surface has kinks, and where a
    sample lies on a pixel it is the slope towards larger coordinates. A sample clamped to the map
    has slope 0. The number of adaptive samples and the drop to 0 of a sample that leaves the map
    are constants to it, as is the size of a box at the least size of its convention.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_roialign import roi_align_box_backward
    >>> features = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)  # 4 * y + x
    >>> rois = np.array([[0, 0.5, 0.25, 2.5, 3.0]], np.float32)
    >>> roi_align_box_backward(np.ones((1, 1, 1, 1), np.float32), features, rois).round(3)
    array([[0. , 0.5, 2. , 0.5, 2. ]], dtype=float32)
    """
    return _operator.roi_align_box_backward(
        grad_output,
        features,
        _operator.stacked(rois, features, stream),
        kept_geometry(spatial_scale, sampling_ratio, aligned, convention, max_sampling_ratio),
        layout=layout,
        out=out,
        validate=validate,
        stream=stream,
        workspace=workspace,
    )
