"""The oracle itself, against numbers worked out by hand or taken from the operators' documents."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from . import reference

RAMP = np.arange(30.0).reshape(1, 1, 5, 6)  # value = 6 * y + x


def test_mindspore_docstring_example():
    features = np.array([[[[1.0, 2.0], [3.0, 4.0]]]])
    result = reference.mindspore_roi_align(features, [[0, 0.2, 0.3, 0.2, 0.3]], (2, 2), 0.5, 2)
    assert_allclose(result, [[[[1.775, 2.025], [2.275, 2.525]]]], rtol=0, atol=1e-6)


def test_ramp_gives_the_ramp_at_bin_centres():
    # torchvision 0.29.2 returns these four numbers
    result = reference.roi_align(RAMP, [[0, 1, 1, 4, 3]], (2, 2), 1.0, 2)
    assert_allclose(result[0, 0], [[10.75, 12.25], [16.75, 18.25]])


def test_aligned_shifts_by_half_a_pixel():
    result = reference.roi_align(RAMP, [[0, 1, 1, 4, 3]], (2, 2), 1.0, 2, True)
    assert_allclose(result[0, 0], [[7.25, 8.75], [13.25, 14.75]])


@pytest.mark.parametrize(
    ("x", "value"), [(-1.001, 0), (-1, 12), (-0.5, 12), (5, 17), (5.5, 17), (6, 17), (6.001, 0)]
)
def test_a_point_clamps_to_the_border_and_ends_one_pixel_beyond(x, value):
    # row 2 holds 12..17; a box without size and one sample is a point
    roi = [[0, x + 0.5, 2.5, x + 0.5, 2.5]]
    assert_allclose(reference.roi_align(RAMP, roi, (1, 1), 1.0, 1, True)[0, 0, 0, 0], value)


def test_samples_outside_count_in_the_divisor():
    # samples at x = -2.5 and 0.5 in row 0: (0 + 0.5) / 2, twice over in y
    result = reference.roi_align(RAMP, [[0, -4, 0, 2, 1]], (1, 1), 1.0, 2)
    assert_allclose(result[0, 0, 0, 0], (0.5 + 6 * 0.5) / 2)


@pytest.mark.parametrize(
    ("box", "count"), [((0, 1), 1), ((0, 4), 2), ((0, 4.1), 3), ((3, 3), 0), ((3, 0), 0)]
)
def test_ceil_grid(box, count):
    assert reference.sample_count(*box, 2, 1.0, reference.ALIGNED, np.float32) == count


@pytest.mark.parametrize(("box", "count"), [((0, 3), 2), ((0, 4.9), 2), ((0, 0), 1), ((9, 2), 1)])
def test_floor_grid_takes_at_least_one_sample(box, count):
    assert reference.sample_count(*box, 2, 1.0, reference.MINDSPORE[1], np.float32) == count


def test_the_grid_is_decided_in_the_given_type():
    # 0.3f rounds up: ten bins of 10 * 0.3f are one float32 step, and a hair more in float64
    scale, convention = float(np.float32(0.3)), reference.Convention()
    narrow = reference.sample_count(0, 10, 3, scale, convention, np.float32)
    wide = reference.sample_count(0, 10, 3, scale, convention, np.float64)
    assert (narrow, wide) == (1, 2)


def test_mode_0_keeps_one_pixel_and_mode_1_adds_one():
    # both boxes have no size; mode 0 makes them 1 x 1 pixel, mode 1 half a pixel at scale 0.5
    roi = [[0, 4, 4, 4, 4]]
    mode_0 = reference.mindspore_roi_align(RAMP, roi, (1, 1), 0.5, 1, 0)
    mode_1 = reference.mindspore_roi_align(RAMP, roi, (1, 1), 0.5, 1, 1)
    assert_allclose([mode_0[0, 0, 0, 0], mode_1[0, 0, 0, 0]], [7 * 2.5, 7 * 2.25])


def test_mindspore_skips_lines_and_rounds_the_image_index():
    features = np.stack([np.ones((1, 4, 4)), np.full((1, 4, 4), 2.0)])
    rois = [[0.49, 1, 1, 2, 2], [0.5, 1, 1, 2, 2], [1, 9e-4, 0, -9e-4, 3]]
    result = reference.mindspore_roi_align(features, rois, (1, 1), 1.0)
    assert_allclose(result.ravel(), [1, 2, 0])


def test_pixels_of_weight_zero_are_not_read():
    features = np.full((1, 1, 3, 3), np.nan)
    features[0, 0, 1, 1] = 5
    roi = [[0, 1.5, 1.5, 1.5, 1.5]]
    assert_array_equal(reference.roi_align(features, roi, (1, 1), 1.0, 1, True), [[[[5.0]]]])


def test_maxima_of_a_bin_by_hand():
    # two samples in row 0, at x = 0.25 and 0.75 of pixels 4 and 8: 5 and 7 interpolated
    row = np.array([[[[4.0, 8.0], [0.0, 0.0]]]])
    roi = [[0, 0, -0.5, 1, 0.5]]
    arguments = row, roi, (1, 1), 1.0, (1, 2), reference.Convention()
    assert reference.pool_boxes(*arguments, "max") == 7
    # their corners weigh 0.75 * 4 = 3, 0.25 * 8 = 2 and 0.25 * 4 = 1, 0.75 * 8 = 6
    assert reference.pool_boxes(*arguments, "corner_max") == 6
    assert reference.pool_boxes(-row, *arguments[1:], "max") == -5
    assert reference.pool_boxes(-row, *arguments[1:], "corner_max") == 0  # the row of weight 0


def test_the_gradient_is_the_transpose():
    rng = np.random.default_rng(0)
    features, grad = rng.standard_normal((1, 1, 4, 5)), rng.standard_normal((2, 1, 2, 3))
    rois = [[0, 0.3, 0.2, 3.1, 2.9], [0, -2, 1, 9, 3]]
    pooled = reference.pool_boxes(features, rois, (2, 3), 1.0, 2)
    spread = reference.pool_boxes_backward(grad, rois, features.shape, 1.0, 2)
    assert_allclose((pooled * grad).sum(), (features * spread).sum())
