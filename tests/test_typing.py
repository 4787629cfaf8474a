"""Results are of the types that type checkers are told: run by pytest, and checked by mypy.

Each `assert_type` is mypy's, in the lane ``types``; the other assertions are pytest's. An ignored
error is one that mypy must find, since an ignore without one is an error itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typing_extensions import assert_type

import numba_roialign
from numba_roialign import CONVENTIONS, ROIAlign, ROIAlignGrad, onnx, scalar

pytestmark = pytest.mark.only("cpu")

FEATURES: NDArray[np.float32] = np.arange(32, dtype=np.float32).reshape(1, 2, 4, 4)
ROIS: NDArray[np.float64] = np.array([[0, 0, 0, 4, 4], [0, 1, 1, 3, 3]], np.float64)
GRADIENT: NDArray[np.float32] = np.ones((2, 2, 2, 2), np.float32)


def holds(array: NDArray[Any], dtype: type[np.generic], *shape: int) -> bool:
    return type(array) is np.ndarray and array.dtype == dtype and array.shape == shape


def test_pooling_has_the_type_of_the_features() -> None:
    pooled = numba_roialign.roi_align(FEATURES, ROIS, 2)
    assert_type(pooled, NDArray[np.float32])
    assert holds(pooled, np.float32, 2, 2, 2, 2)
    wide = numba_roialign.roi_align(FEATURES.astype(np.float64), [ROIS[:, 1:]], [2, 2])
    assert_type(wide, NDArray[np.float64])
    assert holds(wide, np.float64, 2, 2, 2, 2)


def test_argmax_comes_beside() -> None:
    pooled, argmax = numba_roialign.roi_align(FEATURES, ROIS, 2, mode="max", return_argmax=True)
    assert_type(pooled, NDArray[np.float32])
    assert holds(pooled, np.float32, 2, 2, 2, 2)
    assert holds(argmax, np.int64, 2, 2, 2, 2)


def test_gradients() -> None:
    features = numba_roialign.roi_align_backward(GRADIENT, ROIS, FEATURES.shape)
    assert_type(features, NDArray[np.float32])
    assert holds(features, np.float32, 1, 2, 4, 4)
    boxes = numba_roialign.roi_align_box_backward(GRADIENT, FEATURES, ROIS)
    assert_type(boxes, NDArray[np.floating[Any]])
    assert holds(boxes, np.float64, 2, 5)


def test_operators_of_other_systems() -> None:
    pooled = ROIAlign(2, 2, 0.5)(FEATURES, ROIS)
    assert_type(pooled, NDArray[np.float32])
    assert holds(pooled, np.float32, 2, 2, 2, 2)
    features = ROIAlignGrad((1, 2, 4, 4), 2, 2, 0.5)(GRADIENT, ROIS)
    assert_type(features, NDArray[np.float32])
    assert holds(features, np.float32, 1, 2, 4, 4)
    by_onnx = onnx.roi_align(FEATURES, ROIS[:, 1:], np.zeros(2, np.int64), output_height=2)
    assert_type(by_onnx, NDArray[np.float32])
    assert holds(by_onnx, np.float32, 2, 2, 2, 1)


def test_one_value_has_the_type_of_the_scale() -> None:
    place = FEATURES, 0, 0, (0.0, 0.0, 4.0, 4.0), (0, 0), (2, 2)
    wide = scalar.pooled_value(*place, 1.0, 2, CONVENTIONS["mmcv"])
    assert_type(wide, float)
    assert isinstance(wide, float)
    narrow = scalar.pooled_value(*place, np.float32(1), 2, CONVENTIONS["mmcv"])
    assert_type(narrow, np.float32)
    assert type(narrow) is np.float32


def test_what_raises_is_an_error_of_types_too() -> None:
    with pytest.raises(TypeError):
        numba_roialign.roi_align([[[[1.0]]]], ROIS, 2)  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        numba_roialign.roi_align(FEATURES, ROIS, 2.5)  # type: ignore[call-overload]
    with pytest.raises(ValueError):
        numba_roialign.roi_align(FEATURES, ROIS, 2, mode="median")  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        ROIAlign(2, 2, "0.5")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        onnx.roi_align(FEATURES, 0, ROIS[:, 0])  # type: ignore[arg-type]
