"""The two maxima against the reference, and which sample won, on each target."""

import itertools

import numba
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from numba_roialign import _cpu, roi_align

from . import reference
from .conftest import BFLOAT16, random_case, random_features, random_rois

MODES = ["max", "corner_max"]


def case(rng, target, dtype=np.float32):
    features, rois = random_case(rng, target, dtype, 0.5)
    rois[0, 1:] = 1, 1, 6, 6
    return features, rois


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sampling", [1, 2, -1, (3, 1)], ids=str)
@pytest.mark.parametrize("name", ["torchvision", "torchvision_aligned", "mindspore_1"])
def test_random_boxes(target, rng, name, sampling, mode):
    features, rois = case(rng, target)
    result = roi_align(
        target.array(features), target.array(rois), (2, 3), 0.5, sampling,
        convention=name, mode=mode,
    )  # fmt: skip
    formula = reference.CONVENTIONS[name]
    expected = reference.pool_boxes(features, rois, (2, 3), 0.5, sampling, formula, mode)
    target.assert_matches(result, expected, features, rois)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float64], ids=str)
def test_other_dtypes_and_layouts(target, rng, dtype, mode):
    features, rois = case(rng, target, dtype)
    wide = np.float64 if dtype == np.float64 else np.float32
    expected = reference.pool_boxes(features, rois, (2, 2), mode=mode, grid_dtype=wide)
    result = roi_align(target.array(features), target.array(rois), 2, mode=mode)
    target.assert_matches(result, expected, features, rois)
    last = np.ascontiguousarray(features.transpose(0, 2, 3, 1))
    result, winners = roi_align(
        target.array(last), target.array(rois), 2, mode=mode, layout="NHWC", return_argmax=True
    )
    target.assert_matches(result, expected.transpose(0, 2, 3, 1), last, rois)
    _, others = roi_align(
        target.array(features), target.array(rois), 2, mode=mode, return_argmax=True
    )
    assert_array_equal(target.numpy(winners), target.numpy(others).transpose(0, 2, 3, 1))


def value_of(features, roi, ys, xs, number, mode, channel):
    """The value that a number names: of a sample of the bin, or of one of its corners."""
    sample = number // 4 if mode == "corner_max" else number
    y, x = ys[sample // len(xs)], xs[sample % len(xs)]
    plane = features[int(roi[0])][[channel]].astype(np.float64)
    if mode == "max":
        return reference.bilinear(plane, y, x)[0]
    return reference.weighted_corners(plane, y, x)[number % 4][0]


@pytest.mark.parametrize("mode", MODES)
def test_the_argmax_names_the_winner(target, rng, mode):
    features, rois = case(rng, target)
    placed = target.array(features), target.array(rois)
    result, winners = roi_align(*placed, (2, 2), 0.5, 2, mode=mode, return_argmax=True)
    result, winners = target.numpy(result), target.numpy(winners)
    assert winners.dtype == np.int64
    assert_array_equal(result, target.numpy(roi_align(*placed, (2, 2), 0.5, 2, mode=mode)))
    shown = 0
    for k, _, p, q, ys, xs in reference.bins_of(rois, (2, 2), 0.5, 2, reference.LEGACY):
        for c in range(features.shape[1]):
            if winners[k, c, p, q] >= 0:
                value = value_of(features, rois[k], ys, xs, winners[k, c, p, q], mode, c)
                assert abs(value - result[k, c, p, q]) < 1e-5
                shown += 1
            else:
                assert result[k, c, p, q] == 0
    assert 0 < shown < winners.size or target.small


@pytest.mark.parametrize("mode", MODES)
def test_it_starts_below_any_number(target, mode):
    """An interpolated maximum may be negative, and far below what others start from."""
    features = target.array(np.full((1, 1, 4, 4), -1e30, np.float32))
    inside, across, outside = [0, 0.7, 0.7, 2.2, 2.2], [0, -3, 1, 3, 2], [0, 8, 8, 9, 9]
    rois = target.array(np.array([inside, across, outside], np.float32))
    result, winners = roi_align(features, rois, 1, 1.0, 2, mode=mode, return_argmax=True)
    result, winners = target.numpy(result).ravel(), target.numpy(winners).ravel()
    assert result[0] < -1e27
    assert_array_equal(result[1:], [0, 0])
    assert winners[0] >= 0
    assert_array_equal(winners[1:], [-1, -1])


@pytest.mark.parametrize("mode", MODES)
def test_an_empty_bin_is_0(target, mode):
    features = target.array(np.ones((1, 1, 4, 4), np.float32))
    rois = target.array(np.array([[0, 2, 2, 2, 2]], np.float32))
    result, winners = roi_align(features, rois, 2, aligned=True, mode=mode, return_argmax=True)
    assert (target.numpy(result) == 0).all()
    assert (target.numpy(winners) == -1).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(target, mode, value):
    """NaN and infinity win; each stays in the bins whose samples give it weight."""
    features = np.zeros((1, 1, 6, 6), np.float32)
    features[0, 0, 2, 2] = value
    rois = np.array([[0, 0, 0, 6, 6]], np.float32)
    result = target.numpy(
        roi_align(target.array(features), target.array(rois), 6, 1.0, 1, mode=mode)
    )
    # a bin's one sample lies between pixels: pixel 2, 2 counts in the bins of 1.5 and 2.5
    expected = np.zeros((6, 6), np.float32)
    expected[1:3, 1:3] = value if mode == "max" or not value < 0 else 0
    assert_array_equal(result[0, 0], expected)


def test_an_infinity_of_weight_zero_is_not_read(target):
    features = np.zeros((1, 1, 4, 4), np.float32)
    features[0, 0, 2, :] = features[0, 0, :, 2] = np.inf
    features[0, 0, 1, 1] = 5
    rois = np.array([[0, 0.5, 0.5, 1.5, 1.5]], np.float32)  # its sample is pixel 1, 1
    for mode in MODES:
        result = roi_align(target.array(features), target.array(rois), 1, 1.0, 1, mode=mode)
        assert target.numpy(result) == 5


def test_the_first_of_equals_wins(target):
    features = target.array(np.ones((1, 1, 8, 8), np.float32))
    rois = target.array(np.array([[0, 1, 1, 5, 5]], np.float32))
    _, winners = roi_align(features, rois, 1, 1.0, 2, mode="max", return_argmax=True)
    assert target.numpy(winners) == 0


def test_numbers_count_the_samples_outside_too(target):
    features = target.array(np.ones((1, 1, 4, 4), np.float32))
    # samples at -3, -1.5, 0, 1.5 along x, at 1 and 2 along y: the third of the first row wins
    rois = target.array(np.array([[0, -3.75, 0.5, 2.25, 2.5]], np.float32))
    _, winners = roi_align(features, rois, 1, 1.0, (2, 4), mode="max", return_argmax=True)
    assert target.numpy(winners) == 2


def test_swapped_corners_number_samples_in_their_own_order(target):
    features = np.arange(8, dtype=np.float32).reshape(1, 1, 1, 8)
    rois = np.array([[0, 6.5, 0, 2.5, 0]], np.float32)  # samples at 6, 5, 4, 3
    result, winners = roi_align(
        target.array(features), target.array(rois), 1, 1.0, (1, 4),
        aligned=True, mode="max", return_argmax=True,
    )  # fmt: skip
    assert target.numpy(winners) == 0
    assert target.numpy(result) == 5.5


@pytest.mark.parametrize("mode", MODES)
def test_an_invalid_row_pools_nan(target, rng, mode):
    features, rois = case(rng, target)
    rois[1, 0] = 7
    placed = target.array(features), target.array(rois)
    with pytest.raises(ValueError, match="row 1"):
        roi_align(*placed, 2, mode=mode, validate=True)
    result, winners = roi_align(*placed, 2, mode=mode, validate=False, return_argmax=True)
    assert np.isnan(target.numpy(result)[1]).all()
    assert (target.numpy(winners)[1] == -1).all()
    assert np.isfinite(target.numpy(result)[[0, 2]]).all()


@pytest.mark.only("cpu")
@pytest.mark.parametrize("mode", MODES)
def test_out_and_strides(rng, mode):
    features = random_features(rng, (2, 3, 9, 12))
    rois = random_rois(rng, 20, features.shape)
    expected = roi_align(features, rois, (2, 3), mode=mode)
    out = np.empty((20, 3, 3, 2), np.float32).swapaxes(2, 3)
    assert roi_align(features[..., ::-1][..., ::-1], rois, (2, 3), mode=mode, out=out) is out
    assert_array_equal(out, expected)


def test_bad_modes():
    features, rois = np.ones((1, 1, 2, 2), np.float32), np.zeros((1, 5), np.float32)
    for mode in ("mean", "MAX", None, 1):
        with pytest.raises(ValueError, match="mode"):
            roi_align(features, rois, 1, mode=mode)
    with pytest.raises(ValueError, match="return_argmax"):
        roi_align(features, rois, 1, return_argmax=True)


def test_every_corner_has_its_number(target):
    """One bright pixel after the other, around a sample that leans on four."""
    rois = target.array(np.array([[0, 0.6, 0.7, 1.6, 1.7]], np.float32))  # its sample: 1.1, 1.2
    for number, (row, column) in enumerate(itertools.product((1, 2), (1, 2))):
        features = np.zeros((1, 1, 4, 4), np.float32)
        features[0, 0, row, column] = 1
        _, winners = roi_align(
            target.array(features), rois, 1, 1.0, 1, mode="corner_max", return_argmax=True
        )
        assert target.numpy(winners) == number


@pytest.mark.only("cpu")
@pytest.mark.parametrize("mode", MODES)
def test_bits_do_not_depend_on_threads_or_other_boxes(rng, planned_with, mode):
    """Not even the sign of a zero, of two that are equal, where one row of bins does not fit."""
    features = np.copysign(0, random_features(rng, (1, 16, 60, 50), np.float32))
    rois = np.array([[0, 0, 0, 50, 110]], np.float32)  # the lower rows of bins read less
    with planned_with(_cpu.average_channels, WINDOW=1000), planned_with(_cpu.plan, SERIAL_WORK=0):
        threads = numba.get_num_threads()
        numba.set_num_threads(1)
        try:
            alone = roi_align(features, rois, (6, 3), mode=mode)
        finally:
            numba.set_num_threads(threads)
        others = roi_align(features, np.repeat(rois, 9, axis=0), (6, 3), mode=mode)
        assert_array_equal(others.view(np.int32), np.repeat(alone.view(np.int32), 9, axis=0))
        parts = roi_align(features, rois, (6, 3), mode=mode)
    assert_array_equal(parts.view(np.int32), alone.view(np.int32))


@pytest.mark.only("cpu")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", [8, 19, 32])
def test_lanes_equal_the_scalar_schedule(rng, planned_with, mode, layout, channels):
    """Also with NaN, with equals, and for boxes of which not all rows of bins fit the scratch."""
    features = random_features(rng, (2, channels, 30, 41)).round(1)
    features[1, 3, 8:20, 9:30] = np.nan
    features[0, :, 5] = -np.inf
    if layout == "NHWC":
        features = np.ascontiguousarray(features.transpose(0, 2, 3, 1))
    rois = random_rois(rng, 40, (2, channels, 30, 41))
    for size, samples, window in [((3, 4), 2, 1 << 16), ((7, 7), -1, 300), ((5, 2), (1, 9), 99)]:
        arguments = (features, rois, size, 1.0, samples)
        keywords = {"mode": mode, "layout": layout, "return_argmax": True}
        with planned_with(_cpu.average_channels, WINDOW=window):
            pooled, numbers = roi_align(*arguments, **keywords)
            bare = roi_align(*arguments, mode=mode, layout=layout)
        with planned_with(_cpu.schedules, MOST_LANES=1):
            scalar, scalar_numbers = roi_align(*arguments, **keywords)
        assert_array_equal(pooled, scalar)
        assert_array_equal(numbers, scalar_numbers)
        assert_array_equal(bare, scalar)
    assert np.isnan(pooled).any()
