"""ROIAlign against the reference of MindSpore's operator, on each target."""

import inspect

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from numba_roialign import ROIAlign

from . import reference
from .conftest import BFLOAT16, edge_of_grids, random_case, random_features


def assert_mindspore(target, features, rois, size, scale=1.0, sample_num=2, mode=1):
    grid_dtype = np.float64 if features.dtype == np.float64 else np.float32
    expected = reference.mindspore_roi_align(
        features, rois, size, scale, sample_num, mode, grid_dtype=grid_dtype
    )
    result = ROIAlign(*size, scale, sample_num, mode)(target.array(features), target.array(rois))
    target.assert_matches(result, expected, features, rois, scale)


def test_arguments_are_those_of_mindspore():
    parameters = inspect.signature(ROIAlign).parameters
    names = ["pooled_height", "pooled_width", "spatial_scale", "sample_num", "roi_end_mode"]
    assert list(parameters)[:5] == names
    assert [parameters[name].default for name in names[3:]] == [2, 1]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_docstring_example(target, dtype):
    features = target.array(np.array([[[[1, 2], [3, 4]]]], dtype))
    rois = target.array(np.array([[0, 0.2, 0.3, 0.2, 0.3]], np.float32))
    result = target.numpy(ROIAlign(2, 2, 0.5, 2)(features, rois))
    expected = np.array([[[[1.775, 2.025], [2.275, 2.525]]]]).astype(dtype)
    assert_allclose(result, expected, rtol=1e-3 if dtype == np.float16 else 3e-7)


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("sample_num", [-1, 0, 1, 2, 3])
@pytest.mark.parametrize("scale", [1.0, 0.5, 0.3])
def test_random_boxes(target, rng, scale, sample_num, mode):
    features, rois = random_case(rng, target, scale=scale)
    assert_mindspore(target, features, rois, (2, 3), scale, sample_num, mode)


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float64], ids=str)
@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("sample_num", [0, 2])
def test_other_dtypes(target, rng, dtype, sample_num, mode):
    features, rois = random_case(rng, target, dtype)
    assert_mindspore(target, features, rois, (2, 2), 0.5, sample_num, mode)


def test_defaults_are_two_samples_and_mode_1(target, rng):
    features, rois = random_case(rng, target)
    result = ROIAlign(2, 2, 1.0)(target.array(features), target.array(rois))
    expected = reference.mindspore_roi_align(features, rois, (2, 2), 1.0, 2, 1)
    target.assert_matches(result, expected, features, rois)


@pytest.mark.parametrize("mode", [0, 1])
def test_the_adaptive_grid_is_floored_to_at_least_one_sample(target, rng, mode):
    # bins of 3.8, 0.8, 0 and negative pixels: 3, 1, 1 and 1 samples
    features = random_features(rng, (1, 2, 6, 6))
    sides = [3.8, 0.8, 0, -3]
    rois = np.array([(0, 1, 1, 1 + side - mode, 3) for side in sides], np.float32)
    rois = rois[:3] if target.small else rois
    assert_mindspore(target, features, rois, (1, 1), 1.0, 0, mode)


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("scale", [0.3, 0.6, 1 / 3])
def test_the_adaptive_grid_is_decided_step_by_step(target, rng, scale, mode):
    arguments = (1, 3), scale, 0, mode
    features, rois, expected = edge_of_grids(rng, target, reference.mindspore_roi_align, *arguments)
    result = ROIAlign(1, 3, scale, 0, mode)(target.array(features), target.array(rois))
    target.assert_matches(result, expected, features, rois, scale)


@pytest.mark.parametrize("mode", [0, 1])
def test_the_smallest_adaptive_boxes_are_one_sample(target, mode):
    features = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    rois = np.array([(0, 1, 1, 1, 1)], np.float32)
    result = ROIAlign(1, 1, 1.0, 0, mode)(target.array(features), target.array(rois))
    assert_array_equal(target.numpy(result), [[[[7.5]]]])


def test_boxes_that_are_lines_at_0_give_zeros(target):
    features = np.ones((1, 2, 4, 4), np.float32)
    boxes = [(9e-4, 0, -9e-4, 3), (0, 1, 0, 2), (1.1e-3, 0, 0, 3), (0, 0, 1.1e-3, 3), (0, 0, 1, 0)]
    rois = np.array([(0, *box) for box in boxes], np.float32)
    result = ROIAlign(1, 1, 1.0)(target.array(features), target.array(rois))
    expected = np.repeat([0, 0, 1, 1, 1], 2).reshape(5, 2, 1, 1)
    assert_allclose(target.numpy(result), expected, rtol=3e-7)


def test_skipped_boxes_are_told_before_scaling(target):
    features = np.ones((1, 1, 4, 4), np.float32)
    rois = np.array([(0, 5e-4, 0, 5e-4, 2)], np.float32)
    result = ROIAlign(1, 1, 1000.0)(target.array(features), target.array(rois))
    assert_array_equal(target.numpy(result), np.zeros((1, 1, 1, 1)))


def test_skipped_boxes_overwrite_out_with_zeros(target):
    features = target.array(np.ones((1, 1, 4, 4), np.float32))
    rois = target.array(np.array([(0, 0, 0, 0, 2)], np.float32))
    out = target.array(np.full((1, 1, 1, 1), -7, np.float32))
    assert ROIAlign(1, 1, 1.0)(features, rois, out=out) is out
    assert_array_equal(target.numpy(out), np.zeros((1, 1, 1, 1)))


@pytest.mark.parametrize(
    ("index", "image"),
    [(0, 0), (-0.0, 0), (0.4999, 0), (0.49995, 1), (0.5, 1), (0.6, 1), (1, 1), (1.6, 2), (2, 2)],
)
def test_the_image_index_is_rounded(target, index, image):
    features = np.array([3, 5, 7], np.float32).reshape(3, 1, 1, 1)
    rois = np.array([(index, 0.25, 0, 0.5, 0)], np.float32)
    result = ROIAlign(1, 1, 1.0, 1, 0)(target.array(features), target.array(rois))
    assert_array_equal(target.numpy(result).ravel(), features[image].ravel())


@pytest.mark.parametrize("mode", [0, 1])
def test_samples_on_the_border(target, mode):
    # one sample in the middle of the box; exact in float32: -1, H and W are the last ones inside
    features = np.arange(1, 21, dtype=np.float32).reshape(1, 1, 4, 5)
    beyond = 2.0**-10
    points = [(-1, -1), (-1 - beyond, -1), (-1, -1 - beyond), (5, 4), (5 + beyond, 4)]
    half = 1.0
    rois = np.array(
        [(0, x - half, y - half, x + half - mode, y + half - mode) for x, y in points], np.float32
    )
    result = ROIAlign(1, 1, 1.0, 1, mode)(target.array(features), target.array(rois))
    assert_array_equal(target.numpy(result).ravel(), [1, 0, 0, 20, 0])


def test_one_operator_serves_many_calls(target, rng):
    operator = ROIAlign(2, 2, 0.5)
    for _ in range(2):
        features, rois = random_case(rng, target)
        expected = reference.mindspore_roi_align(features, rois, (2, 2), 0.5)
        result = operator(target.array(features), target.array(rois))
        target.assert_matches(result, expected, features, rois)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 4, 5), (1, 2, 0, 3)], ids=str)
def test_no_boxes(target, shape):
    features = target.array(np.ones(shape, np.float32))
    result = ROIAlign(2, 3, 1.0)(features, target.array(np.zeros((0, 5), np.float32)))
    result = target.numpy(result)
    assert (result.shape, result.dtype) == ((0, shape[1], 2, 3), np.float32)
