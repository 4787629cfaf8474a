"""Every convention in use against its own formula, on each target."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from numba_roialign import CONVENTIONS, Convention, onnx, roi_align

from . import reference
from .conftest import random_case, random_features, random_rois

# One name for each convention that differs from the others.
DISTINCT = {convention: name for name, convention in reversed(CONVENTIONS.items())}.values()


def test_the_reference_knows_every_name():
    assert list(CONVENTIONS) == list(reference.CONVENTIONS)
    for name, convention in CONVENTIONS.items():
        same = [other for other in CONVENTIONS if CONVENTIONS[other] == convention]
        formula = reference.CONVENTIONS[name]
        assert same == [n for n, other in reference.CONVENTIONS.items() if other == formula]


@pytest.mark.parametrize("sampling", [2, -1, (1, 3), (0, 2)], ids=str)
@pytest.mark.parametrize("name", DISTINCT)
def test_conventions(target, rng, name, sampling):
    features, rois = random_case(rng, target, scale=0.5)
    scale = (0.5, 0.3)
    expected = reference.pool_boxes(
        features, rois, (2, 3), scale, sampling, reference.CONVENTIONS[name]
    )
    placed = target.array(features), target.array(rois)
    for convention in (name, CONVENTIONS[name]):
        result = roi_align(*placed, (2, 3), scale, sampling, convention=convention)
        target.assert_matches(result, expected, features, rois, max(scale))


@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("name", ["torchvision_aligned", "mindspore_1"])
def test_a_cap_on_adaptive_samples(target, rng, name, most):
    features, rois = random_case(rng, target, scale=0.5)
    expected = reference.pool_boxes(
        features, rois, (1, 2), 0.5, -1, reference.CONVENTIONS[name], most=most
    )
    placed = target.array(features), target.array(rois)
    result = roi_align(*placed, (1, 2), 0.5, convention=name, max_sampling_ratio=most)
    target.assert_matches(result, expected, features, rois)
    fixed = roi_align(*placed, (1, 2), 0.5, 4, convention=name)
    capped = roi_align(*placed, (1, 2), 0.5, 4, convention=name, max_sampling_ratio=most)
    assert_array_equal(target.numpy(capped), target.numpy(fixed))


def test_a_cap_lets_any_finite_box_be_pooled(target):
    features = target.array(np.ones((1, 1, 4, 4), np.float32))
    rois = target.array(np.array([[0, -1e9, -1e9, 2e9, 2e9]], np.float32))
    with pytest.raises(ValueError, match=r"2\*\*30 samples"):
        roi_align(features, rois, 1, validate=True)
    result = roi_align(features, rois, 1, max_sampling_ratio=3, validate=True)
    assert target.numpy(result).shape == (1, 1, 1, 1)


def test_a_convention_of_ones_own(target, rng):
    features, rois = random_case(rng, target, scale=0.5)
    own = Convention(shift_before=1, shift_after=-1.5, end_pixel=2, minimum_size=3)
    formula = reference.Convention(before=1.0, offset=1.5, end_pixel=2.0, minimum=3.0)
    result = roi_align(target.array(features), target.array(rois), (2, 2), 0.5, 2, convention=own)
    expected = reference.pool_boxes(features, rois, (2, 2), 0.5, 2, formula)
    target.assert_matches(result, expected, features, rois)


@pytest.mark.parametrize(
    ("keywords", "error"),
    [
        ({"convention": "torch"}, ValueError),
        ({"convention": 1}, TypeError),
        ({"convention": Convention(shift_after="left")}, TypeError),
        ({"convention": Convention(shift_after=np.nan)}, ValueError),
        ({"convention": Convention(minimum_size=np.inf)}, ValueError),
        ({"convention": Convention(floor_grid="False")}, TypeError),
        ({"convention": Convention(floor_grid=1.0)}, TypeError),
        ({"aligned": "False"}, TypeError),
        ({"aligned": 2}, TypeError),
        ({"convention": "torchvision", "aligned": True}, ValueError),
        ({"max_sampling_ratio": 0}, ValueError),
        ({"max_sampling_ratio": 2.0}, TypeError),
    ],
)
def test_bad_conventions(keywords, error):
    features, rois = np.ones((1, 1, 2, 2), np.float32), np.zeros((1, 5), np.float32)
    roi_align(features, rois, 1, convention=Convention(floor_grid=True))  # is kept, and equals 1.0
    with pytest.raises(error, match=r"convention|max_sampling_ratio|aligned"):
        roi_align(features, rois, 1, **keywords)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("transformation", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize("sampling", [0, 2])
def test_onnx(target, rng, mode, transformation, sampling):
    features, rois = random_case(rng, target, scale=0.5)
    result = onnx.roi_align(
        target.array(features),
        target.array(rois[:, 1:]),
        target.array(rois[:, 0].astype(np.int64)),
        mode=mode,
        output_height=2,
        output_width=3,
        sampling_ratio=sampling,
        spatial_scale=0.5,
        coordinate_transformation_mode=transformation,
    )
    formula = reference.CONVENTIONS[f"onnx_{transformation}"]
    reduction = "corner_max" if mode == "max" else "avg"
    expected = reference.pool_boxes(features, rois, (2, 3), 0.5, sampling, formula, reduction)
    target.assert_matches(result, expected, features, rois)


def test_the_defaults_of_onnx(target, rng):
    features, rois = random_case(rng, target, scale=0.5)
    indices = target.array(rois[:, 0].astype(np.int32))
    result = onnx.roi_align(target.array(features), target.array(rois[:, 1:]), indices)
    expected = reference.pool_boxes(features, rois, (1, 1), 1.0, 0, reference.ALIGNED)
    target.assert_matches(result, expected, features, rois)
    none = onnx.roi_align(target.array(features), *(target.array(x) for x in NO_BOXES))
    assert none.shape == (0, features.shape[1], 1, 1)


@pytest.mark.only("cpu")
@pytest.mark.parametrize("opset", [10, 15, 16, 22])
def test_attributes_as_a_node_of_onnx_has_them(rng, opset):
    features = random_features(rng, (1, 2, 8, 8))
    rois, indices = random_rois(rng, 5, features.shape)[:, 1:], np.zeros(5, int)
    attributes = {"mode": b"max", "output_height": 2, "output_width": 3, "sampling_ratio": 2}
    result = onnx.roi_align(features, rois, indices, **attributes, opset=opset)
    expected = {
        name: onnx.roi_align(
            features, rois, indices, **attributes, coordinate_transformation_mode=name
        )
        for name in (b"half_pixel", b"output_half_pixel")
    }
    assert np.array_equal(result, expected[b"half_pixel"]) == (opset >= 16)
    assert np.array_equal(result, expected[b"output_half_pixel"]) == (opset < 16)


NO_BOXES = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)


@pytest.mark.parametrize(
    ("rois", "indices", "keywords", "match"),
    [
        (np.zeros((2, 5)), np.zeros(2, int), {}, "rois"),
        (np.zeros((2, 4)), np.zeros(3, int), {}, "batch_indices"),
        (np.zeros((2, 4)), np.zeros((2, 1), int), {}, "batch_indices"),
        (np.zeros((2, 4)), np.zeros(2), {}, "batch_indices"),
        (np.zeros((2, 4)), [0, 0], {}, "batch_indices"),
        (np.zeros((2, 4)), np.array([0, 1]), {}, "row 1 names an image outside"),
        (np.zeros((2, 4)), np.zeros(2, int), {"mode": "corner_max"}, "mode"),
        (np.zeros((2, 4)), np.zeros(2, int), {"sampling_ratio": -1}, "sampling_ratio"),
        (np.zeros((2, 4)), np.zeros(2, int), {"output_height": 0}, "output_height"),
        (np.zeros((2, 4)), np.zeros(2, int), {"opset": 9}, "opset"),
        (
            np.zeros((2, 4)),
            np.zeros(2, int),
            {"coordinate_transformation_mode": "asymmetric"},
            "coordinate_transformation_mode",
        ),
    ],
)
def test_bad_input_of_onnx(rois, indices, keywords, match):
    with pytest.raises((TypeError, ValueError), match=match):
        onnx.roi_align(np.ones((1, 1, 3, 3), np.float32), rois, indices, **keywords)
