"""The public functions, each thin over the one operator."""

from __future__ import annotations

from . import _operator
from ._geometry import MINDSPORE_0, MINDSPORE_1, TORCHVISION, TORCHVISION_ALIGNED
from ._operator import describe, integer, positive


def roi_align(
    features,
    rois,
    output_size,
    spatial_scale=1.0,
    sampling_ratio=-1,
    aligned=False,
    *,
    layout="NCHW",
    out=None,
    validate=None,
):
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
    spatial_scale : float, default 1.0
        Feature-map pixels per image pixel, e.g. 0.0625 for a map of stride 16.
    sampling_ratio : int, default -1
        Bilinear samples per bin and axis. Zero or less is adaptive: the bin size in feature-map
        pixels, rounded up; a bin without samples pools 0.
    aligned : bool, default False
        True puts pixel centres at half-integer image coordinates (a shift by -0.5); False is the
        older convention, without the shift and with boxes of at least one pixel.
    layout : {"NCHW", "NHWC"}
        "NHWC" is channels last: `features` is (N, H, W, C) and the result (K, PH, PW, C). Neither
        is transposed on the way.
    out : array of (K, C, PH, PW), optional
        Written and returned. It has the dtype, the family and the place of `features`.
    validate : bool, optional
        Whether to raise on a box that cannot be pooled. The default raises on the CPU and not on a
        GPU, where looking at the boxes would wait for the device. A row that is not raised on
        pools NaN, and nothing outside the arrays is ever read.

    Returns
    -------
    array of (K, C, PH, PW)
        Of the family and dtype of `features`, in C order.

    Raises
    ------
    TypeError
        An argument is not of the kind above, or `features` and `rois` live apart.
    ValueError
        A shape or a value does not fit.
    InvalidRoIError
        A ValueError: a box is not finite or too large, or an image index is out of range. It names
        the row, also in its attribute ``row``.

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
    size = output_size if isinstance(output_size, (tuple, list)) else (output_size, output_size)
    if len(size) != 2:
        raise ValueError(f"output_size must be an int or a pair of ints, got {output_size!r}")
    size = tuple(integer("output_size", bins, least=1) for bins in size)
    scale = positive("spatial_scale", spatial_scale)
    samples = integer("sampling_ratio", sampling_ratio)
    return _operator.roi_align(
        features,
        _operator.stacked(rois, features),
        size,
        (scale, scale),
        (samples, samples),
        TORCHVISION_ALIGNED if aligned else TORCHVISION,
        layout=layout,
        out=out,
        validate=validate,
    )


class ROIAlign:
    """MindSpore's operator: construct it once, then call it with features and rois.

    Parameters
    ----------
    pooled_height, pooled_width : int
        Bins per box.
    spatial_scale : float
        Feature-map pixels per image pixel.
    sample_num : int, default 2
        Bilinear samples per bin and axis. Zero or less is adaptive: the bin size in feature-map
        pixels, rounded down, but at least one.
    roi_end_mode : {1, 0}, default 1
        1: a box includes its last pixel, so its size is ``x2 + 1 - x1``. 0: the size is
        ``x2 - x1``, and at least one feature-map pixel. Neither shifts by half a pixel.

    Raises
    ------
    TypeError
        An argument is not of the type above; a bool is not an int here, an int not a float.
    ValueError
        A pooled size below 1, a scale that is not positive and finite, or an unknown mode.

    See Also
    --------
    roi_align : torchvision's signature and conventions.

    Notes
    -----
    The formulas are those of ``mindspore.ops.ROIAlign``, version 2.10. Where its result is
    undefined this one is defined: the adaptive grid is never empty, and a box with ``|x1|`` and
    ``|x2|`` below 1e-3, which MindSpore skips without writing, pools zeros.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_roialign import ROIAlign
    >>> features = np.array([[[[1, 2], [3, 4]]]], np.float32)
    >>> rois = np.array([[0, 0.2, 0.3, 0.2, 0.3]], np.float32)
    >>> ROIAlign(2, 2, 0.5, 2)(features, rois).round(3)
    array([[[[1.775, 2.025],
             [2.275, 2.525]]]], dtype=float32)
    """

    def __init__(self, pooled_height, pooled_width, spatial_scale, sample_num=2, roi_end_mode=1):
        integers = {
            "pooled_height": pooled_height,
            "pooled_width": pooled_width,
            "sample_num": sample_num,
            "roi_end_mode": roi_end_mode,
        }
        for name, value in integers.items():
            if type(value) is not int:
                raise TypeError(f"{name} must be an int, got {describe(value)}")
        if not isinstance(spatial_scale, float):
            raise TypeError(f"spatial_scale must be a float, got {describe(spatial_scale)}")
        self.pooled_height = integer("pooled_height", pooled_height, least=1)
        self.pooled_width = integer("pooled_width", pooled_width, least=1)
        self.spatial_scale = positive("spatial_scale", spatial_scale)
        self.sample_num = integer("sample_num", sample_num)
        if roi_end_mode not in (0, 1):
            raise ValueError(f"roi_end_mode must be 0 or 1, got {roi_end_mode}")
        self.roi_end_mode = roi_end_mode

    def __repr__(self):
        return (
            f"ROIAlign(pooled_height={self.pooled_height}, pooled_width={self.pooled_width}, "
            f"spatial_scale={self.spatial_scale}, sample_num={self.sample_num}, "
            f"roi_end_mode={self.roi_end_mode})"
        )

    def __call__(self, features, rois, *, out=None, validate=None):
        """Pool `rois` from `features`.

        Parameters
        ----------
        features : array of (N, C, H, W)
            float16, bfloat16, float32 or float64, in any layout.
        rois : array of (rois_n, 5)
            ``(image_index, x1, y1, x2, y2)`` in image pixels, of any real dtype. The image index
            lies in ``[0, N - 1]`` and is rounded to the nearest image, halves up.
        out, validate
            As in `roi_align`.

        Returns
        -------
        array of (rois_n, C, pooled_height, pooled_width)
            Of the family and dtype of `features`.

        Raises
        ------
        TypeError
            `features` or `rois` is not an array, or they live apart.
        ValueError, InvalidRoIError
            As in `roi_align`.
        """
        return _operator.roi_align(
            features,
            rois,
            (self.pooled_height, self.pooled_width),
            (self.spatial_scale, self.spatial_scale),
            (self.sample_num, self.sample_num),
            MINDSPORE_1 if self.roi_end_mode else MINDSPORE_0,
            out=out,
            validate=validate,
        )
