"""MindSpore's operator and its gradient, each thin over the operator."""

from __future__ import annotations

from typing import Any, Literal

from . import _operator
from ._arguments import describe, integer, map_shape, positive, sample_count
from ._families import untraced
from ._geometry import LARGEST_GRID
from ._operator import Geometry
from ._typing import AnyArray, Array, Shape
from ._workspace import Workspace
from .conventions import MINDSPORE_0, MINDSPORE_1


class _Configured:
    """What both operators are constructed with; MindSpore is strict about the types."""

    def __init__(
        self,
        pooled_height: int,
        pooled_width: int,
        spatial_scale: float,
        sample_num: int,
        roi_end_mode: Literal[0, 1],
    ) -> None:
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
        self.sample_num = sample_count("sample_num", sample_num)
        if roi_end_mode not in (0, 1):
            raise ValueError(f"roi_end_mode must be 0 or 1, got {roi_end_mode}")

        self.roi_end_mode = roi_end_mode
        self.geometry = Geometry(
            (self.spatial_scale, self.spatial_scale),
            (self.sample_num, self.sample_num),
            LARGEST_GRID,
            MINDSPORE_1 if roi_end_mode else MINDSPORE_0,
        )

    def _arguments(self) -> str:
        return (
            f"pooled_height={self.pooled_height}, pooled_width={self.pooled_width}, "
            f"spatial_scale={self.spatial_scale}, sample_num={self.sample_num}, "
            f"roi_end_mode={self.roi_end_mode}"
        )


class ROIAlign(_Configured):
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
    ROIAlignGrad : the gradient.
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

    def __init__(
        self,
        pooled_height: int,
        pooled_width: int,
        spatial_scale: float,
        sample_num: int = 2,
        roi_end_mode: Literal[0, 1] = 1,
    ) -> None:
        super().__init__(pooled_height, pooled_width, spatial_scale, sample_num, roi_end_mode)

    def __repr__(self) -> str:
        return f"ROIAlign({self._arguments()})"

    @untraced
    def __call__(
        self,
        features: Array,
        rois: AnyArray,
        *,
        out: Array | None = None,
        validate: bool | None = None,
        stream: Any = None,
        workspace: Workspace | None = None,
    ) -> Array:
        """Pool `rois` from `features`.

        Parameters
        ----------
        features : array of (N, C, H, W)
            float16, bfloat16, float32 or float64, in any layout.
        rois : array of (rois_n, 5)
            ``(image_index, x1, y1, x2, y2)`` in image pixels, of any real dtype. The image index
            lies in ``[0, N - 1]`` and is rounded to the nearest image, halves up.
        out, validate, stream, workspace
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
            self.geometry,
            out=out,
            validate=validate,
            stream=stream,
            workspace=workspace,
        )


class ROIAlignGrad(_Configured):
    """The gradient of `ROIAlign` with respect to its features.

    The shape of the features is an argument here; MindSpore's operator, in version 2.10, takes it
    with the call: ``ROIAlignGrad(...)(dy, rois, xdiff_shape)``.

    Parameters
    ----------
    xdiff_shape : tuple of 4 int
        The shape of the features, (N, C, H, W).
    pooled_height, pooled_width, spatial_scale, sample_num
        As in `ROIAlign`.
    roi_end_mode : {1, 0}, default 1
        As in `ROIAlign`. MindSpore's own operator has no such argument and takes it as 1, so that
        its gradient of mode 0 is not that of its forward; here it is.

    Raises
    ------
    TypeError, ValueError
        As in `ROIAlign`, or `xdiff_shape` is not four sizes.

    Examples
    --------
    >>> import numpy as np
    >>> from numba_roialign import ROIAlignGrad
    >>> rois = np.array([[0, -0.5, -0.5, 0.5, 0.5]], np.float32)
    >>> ROIAlignGrad((1, 1, 2, 2), 1, 1, 1.0)(np.ones((1, 1, 1, 1), np.float32), rois)
    array([[[[0.25, 0.25],
             [0.25, 0.25]]]], dtype=float32)
    """

    def __init__(
        self,
        xdiff_shape: Shape,
        pooled_height: int,
        pooled_width: int,
        spatial_scale: float,
        sample_num: int = 2,
        roi_end_mode: Literal[0, 1] = 1,
    ) -> None:
        if not isinstance(xdiff_shape, (tuple, list)):
            raise TypeError(
                f"xdiff_shape, the first argument, must be a tuple, got {describe(xdiff_shape)}"
            )
        super().__init__(pooled_height, pooled_width, spatial_scale, sample_num, roi_end_mode)
        self.xdiff_shape = map_shape("xdiff_shape", xdiff_shape)

    def __repr__(self) -> str:
        return f"ROIAlignGrad(xdiff_shape={self.xdiff_shape}, {self._arguments()})"

    @untraced
    def __call__(
        self,
        dy: Array,
        rois: AnyArray,
        *,
        out: Array | None = None,
        validate: bool | None = None,
        stream: Any = None,
        workspace: Workspace | None = None,
    ) -> Array:
        """Return the gradient of the features.

        Parameters
        ----------
        dy : array of (rois_n, C, pooled_height, pooled_width)
            The gradient with respect to the pooled features.
        rois : array of (rois_n, 5)
            As in `ROIAlign`.
        out, validate, stream, workspace
            As in `roi_align_backward`.

        Returns
        -------
        array of `xdiff_shape`
            Of the family and dtype of `dy`. It is deterministic, which MindSpore's is not.

        Raises
        ------
        TypeError, ValueError, InvalidRoIError
            As in `roi_align_backward`.
        """
        size = self.pooled_height, self.pooled_width
        if tuple(getattr(dy, "shape", ()))[2:] != size:
            raise ValueError(f"dy must be (rois_n, C, {size[0]}, {size[1]}), got {describe(dy)}")
        return _operator.roi_align_backward(
            dy,
            rois,
            self.xdiff_shape,
            self.geometry,
            out=out,
            validate=validate,
            stream=stream,
            workspace=workspace,
        )
