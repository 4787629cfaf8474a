"""Bad input is told by name, and nothing is written when it is."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from numba_roialign import InvalidRoIError, ROIAlign, roi_align

FEATURES = np.ones((2, 3, 4, 5), np.float32)
ROIS = np.array([(0, 1, 1, 3, 3), (1, 0, 0, 2, 2)], np.float32)


def placed(target, value):
    return target.array(value) if isinstance(value, np.ndarray) else value


FEATURES_ERRORS = [
    (None, TypeError),
    (3.0, TypeError),
    ("features", TypeError),
    (FEATURES.tolist(), TypeError),
    (FEATURES[0], ValueError),
    (FEATURES[None], ValueError),
    (FEATURES.astype(np.int32), TypeError),
    (FEATURES.astype(np.uint8), TypeError),
    (FEATURES.astype(bool), TypeError),
    (FEATURES.astype(np.complex64), TypeError),
]


@pytest.mark.parametrize(("features", "error"), FEATURES_ERRORS)
def test_features(target, features, error):
    features, rois = placed(target, features), target.array(ROIS)
    with pytest.raises(error, match="features"):
        roi_align(features, rois, 2)
    with pytest.raises(error, match="features"):
        ROIAlign(2, 2, 1.0)(features, rois)


@pytest.mark.only("cpu")
@pytest.mark.parametrize(
    "dtype", [object, np.longdouble, ml_dtypes.float8_e4m3fn, "M8[s]"], ids=str
)
def test_features_of_types_without_a_kernel(target, dtype):
    with pytest.raises(TypeError, match="features"):
        roi_align(np.zeros((1, 1, 2, 2), dtype), ROIS[:1], 2)


ROIS_ERRORS = [
    (None, TypeError),
    (3.0, TypeError),
    (ROIS[0], ValueError),
    (ROIS[:, :4], ValueError),
    (ROIS[:, [0, 1, 2, 3, 4, 4]], ValueError),
    (ROIS[None], ValueError),
    (ROIS.astype(bool), TypeError),
    (ROIS.astype(np.complex64), TypeError),
]


@pytest.mark.parametrize(("rois", "error"), ROIS_ERRORS)
def test_rois(target, rois, error):
    features, rois = target.array(FEATURES), placed(target, rois)
    with pytest.raises(error, match="rois"):
        roi_align(features, rois, 2)
    with pytest.raises(error, match="rois"):
        ROIAlign(2, 2, 1.0)(features, rois)


@pytest.mark.only("cpu")
def test_rois_of_objects(target):
    for dtype in (object, "U3", "M8[s]"):
        with pytest.raises(TypeError, match="rois"):
            roi_align(FEATURES, np.zeros((1, 5), dtype), 2)


def test_rois_of_mindspore_are_one_array(target):
    with pytest.raises(TypeError, match="rois"):
        ROIAlign(2, 2, 1.0)(target.array(FEATURES), [target.array(ROIS[:, 1:])])


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        (ROIS, ValueError),
        (ROIS[0, 1:], ValueError),
        (None, TypeError),
        ([[0, 0, 1, 1]], TypeError),
        (ROIS[:, 1:].astype(bool), TypeError),
    ],
)
def test_entries_of_a_list_of_rois(target, entry, error):
    rois = [target.array(ROIS[:, 1:]), placed(target, entry)]
    with pytest.raises(error, match=r"rois\[1\]|rois entry 1"):
        roi_align(target.array(FEATURES), rois, 2)


@pytest.mark.only("cpu")
def test_a_list_longer_than_the_batch(target):
    rois = [ROIS[:, 1:]] * 3
    with pytest.raises(ValueError, match="rois"):
        roi_align(FEATURES, rois, 2)


@pytest.mark.parametrize(
    ("size", "error"),
    [
        (2.0, TypeError),
        (True, TypeError),
        ("2", TypeError),
        (None, TypeError),
        ((2, 2.0), TypeError),
        ((2, True), TypeError),
        ((2,), (TypeError, ValueError)),
        ((2, 2, 2), (TypeError, ValueError)),
        (0, ValueError),
        (-1, ValueError),
        ((2, 0), ValueError),
        (np.array([2, 2, 2]), ValueError),
    ],
)
def test_output_size(target, size, error):
    with pytest.raises(error, match="output_size"):
        roi_align(target.array(FEATURES), target.array(ROIS), size)


@pytest.mark.only("cpu")
@pytest.mark.parametrize("pairs", [((2, 2), (2.0, 2.0)), ((1, 1), (True, True))], ids=str)
def test_a_pair_is_refused_whatever_was_called_before(target, pairs):
    good, bad = pairs
    roi_align(FEATURES, ROIS, good, 1.0, good)
    with pytest.raises(TypeError, match="output_size"):
        roi_align(FEATURES, ROIS, bad)
    with pytest.raises(TypeError, match="sampling_ratio"):
        roi_align(FEATURES, ROIS, good, 1.0, bad)


@pytest.mark.only("cpu")
def test_an_array_can_be_a_pair(target):
    expected = roi_align(FEATURES, ROIS, (2, 3), (0.5, 0.25), (1, 2))
    arrays = [np.array(pair) for pair in ((2, 3), (0.5, 0.25), (1, 2))]
    assert_array_equal(roi_align(FEATURES, ROIS, *arrays), expected)


@pytest.mark.parametrize(
    ("scale", "error"),
    [
        ("1", TypeError),
        (None, TypeError),
        (1j, TypeError),
        ((1.0, "1"), TypeError),
        ((1.0,), ValueError),
        ((1.0, 1.0, 1.0), ValueError),
        ((1.0, 0), ValueError),
        (0, ValueError),
        (-0.5, ValueError),
        (np.nan, ValueError),
        (np.inf, ValueError),
    ],
)
def test_spatial_scale(target, scale, error):
    with pytest.raises(error, match="spatial_scale"):
        roi_align(target.array(FEATURES), target.array(ROIS), 2, scale)


@pytest.mark.parametrize("sampling", [2.0, "2", None, (2, 2.0), (2,), (2, 2, 2), 2**30, (1, 2**30)])
def test_sampling_ratio(target, sampling):
    with pytest.raises((TypeError, ValueError), match="sampling_ratio"):
        roi_align(target.array(FEATURES), target.array(ROIS), 2, 1.0, sampling)


@pytest.mark.parametrize(
    ("argument", "value", "error"),
    [
        *[
            (argument, value, TypeError)
            for argument in ("pooled_height", "pooled_width", "sample_num", "roi_end_mode")
            for value in (2.0, True, "2", None)
        ],
        *[("spatial_scale", value, TypeError) for value in (1, True, "1", None)],
        *[("spatial_scale", value, ValueError) for value in (0.0, -1.0, np.nan, np.inf)],
        *[("roi_end_mode", value, ValueError) for value in (-1, 2)],
        *[("pooled_height", value, ValueError) for value in (0, -3)],
        *[("pooled_width", value, ValueError) for value in (0, -3)],
    ],
)
def test_mindspore_arguments_are_checked_at_construction(argument, value, error):
    good = {"pooled_height": 2, "pooled_width": 2, "spatial_scale": 1.0}
    with pytest.raises(error, match=argument):
        ROIAlign(**{**good, argument: value})


BAD_OUT = [
    (np.zeros((2, 3, 2, 3), np.float32), ValueError),
    (np.zeros((1, 3, 2, 2), np.float32), ValueError),
    (np.zeros((2, 3, 2, 2), np.float64), ValueError),
    ([0.0], TypeError),
    (3, TypeError),
]


@pytest.mark.parametrize(("out", "error"), BAD_OUT)
def test_out(target, out, error):
    with pytest.raises(error, match="out"):
        roi_align(target.array(FEATURES), target.array(ROIS), 2, out=placed(target, out))


@pytest.mark.only("cpu")
def test_out_that_cannot_be_written(target):
    out = np.full((2, 3, 2, 2), -7, np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out"):
        roi_align(FEATURES, ROIS, 2, out=out)
    assert_array_equal(out, -7)


def test_out_that_overlaps_features(target):
    memory = target.array(np.ones((2, 3, 4, 5), np.float32))
    with pytest.raises(ValueError, match="out"):
        roi_align(memory, target.array(ROIS), (4, 5), out=memory)
    assert_array_equal(target.numpy(memory), 1)


@pytest.mark.only("cpu")
def test_out_that_overlaps_features_in_part(target):
    memory = np.ones(200, np.float32)
    features, out = memory[:120].reshape(2, 3, 4, 5), memory[100:124].reshape(2, 3, 2, 2)
    with pytest.raises(ValueError, match="out"):
        roi_align(features, ROIS, 2, out=out)
    assert_array_equal(memory, 1)


@pytest.mark.parametrize("shape", [(2, 3, 0, 5), (2, 3, 4, 0)], ids=str)
def test_maps_without_pixels(target, shape):
    features = target.array(np.ones(shape, np.float32))
    with pytest.raises(ValueError, match="features"):
        roi_align(features, target.array(ROIS), 2)
    with pytest.raises(ValueError, match="features"):
        ROIAlign(2, 2, 1.0)(features, target.array(ROIS))


def test_no_images_but_boxes(target):
    features = target.array(np.ones((0, 3, 4, 5), np.float32))
    with pytest.raises(ValueError, match=r"features|rois row 0"):
        roi_align(features, target.array(ROIS), 2)


# operator, its bad row, and what the message quotes of it
VISION, ADAPTIVE = (
    (lambda *a, **k: roi_align(*a, 2, 1.0, 2, **k)),
    (lambda *a, **k: roi_align(*a, 2, **k)),
)
MINDSPORE, FLOOR = ROIAlign(2, 2, 1.0, 2), ROIAlign(2, 2, 1.0, 0)
HUGE = 2.0**34
BAD_ROWS = [
    *[
        (name, operator, row, quoted)
        for name, operator in [("vision", VISION), ("adaptive", ADAPTIVE), ("mindspore", MINDSPORE)]
        for row, quoted in [
            ((0, np.nan, 1, 2, 2), "nan"),
            ((0, 1, np.inf, 2, 2), "inf"),
            ((0, 1, 1, -np.inf, 2), "-inf"),
            ((0, 1, 1, 2, np.nan), "nan"),
            ((np.nan, 1, 1, 2, 2), "nan"),
            ((np.inf, 1, 1, 2, 2), "inf"),
            ((-1, 1, 1, 2, 2), "-1"),
            ((2, 1, 1, 2, 2), "2"),
            ((1e30, 1, 1, 2, 2), "1e"),
            ((-0.5, 1, 1, 2, 2), "-0.5"),
        ]
    ],
    ("mindspore", MINDSPORE, (1.25, 1, 1, 2, 2), "1.25"),
    ("mindspore skipped", MINDSPORE, (0, 0, np.nan, 0, 2), "nan"),
    ("adaptive", ADAPTIVE, (0, 0, 0, HUGE, 2), "samples"),
    ("adaptive", ADAPTIVE, (0, 0, -HUGE, 1, HUGE), "samples"),
    ("adaptive", ADAPTIVE, (0, 0, 0, 1e35, 1e35), "samples"),
    ("floor", FLOOR, (0, 0, 0, HUGE, 2), "samples"),
]
bad_rows = pytest.mark.parametrize(
    ("operator", "row", "quoted"),
    [pytest.param(*case, id=f"{name}-{case[1]}") for name, *case in BAD_ROWS],
)


def rows_with(row):
    rois = np.repeat(ROIS[:1], 3, axis=0)
    rois[1] = row
    return rois


@bad_rows
def test_a_bad_row_is_named_and_nothing_is_written(target, operator, row, quoted):
    out = target.array(np.full((3, 3, 2, 2), -7, np.float32))
    features, rois = target.array(FEATURES), target.array(rows_with(row))
    with pytest.raises(ValueError, match=rf"rois row 1\b.*{quoted}"):
        operator(features, rois, out=out, validate=True)
    assert_array_equal(target.numpy(out), -7)


@bad_rows
def test_a_bad_row_is_nan_where_nobody_validates(target, operator, row, quoted):
    features, rois = target.array(FEATURES), target.array(rows_with(row))
    result = target.numpy(operator(features, rois, validate=False))
    assert np.isnan(result[1]).all()
    assert_array_equal(result[[0, 2]], 1)


@pytest.mark.only("cpu")
def test_an_invalid_row_can_be_told_to_another_process(target):
    with pytest.raises(InvalidRoIError) as caught:
        roi_align(FEATURES, rows_with((7, 1, 1, 2, 2)), 2)
    error = caught.value
    for same in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (same.row, same.problem, str(same)) == (1, error.problem, str(error))


@pytest.mark.parametrize("validate", ["no", 2, 0.5, np.ones(2)], ids=str)
def test_validate(target, validate):
    with pytest.raises(TypeError, match="validate must be a bool"):
        roi_align(target.array(FEATURES), target.array(ROIS), 2, validate=validate)


@pytest.mark.parametrize("validate", [0, np.False_], ids=repr)
def test_other_words_for_no(target, validate):
    result = roi_align(
        target.array(FEATURES), target.array(rows_with((9, 1, 1, 2, 2))), 2, validate=validate
    )
    assert np.isnan(target.numpy(result)[1]).all()


@pytest.mark.only("cpu")
def test_masked_arrays(target):
    masked = np.ma.array(FEATURES, mask=True)
    for arguments in ((masked, ROIS), (FEATURES, np.ma.array(ROIS))):
        with pytest.raises(TypeError, match="filled"):
            roi_align(*arguments, 2)


@pytest.mark.parametrize("row", [(0, np.nan, 1, 2, 2), (7, 1, 1, 2, 2)], ids=str)
def test_the_default_validates_on_the_cpu_and_does_not_wait_for_a_device(target, row):
    features, rois = target.array(FEATURES), target.array(rows_with(row))
    if target.name == "cpu":
        with pytest.raises(ValueError, match="rois row 1"):
            VISION(features, rois)
    else:
        result = target.numpy(VISION(features, rois))
        assert np.isnan(result[1]).all()
        assert_array_equal(result[[0, 2]], 1)


def test_rows_of_a_list_are_named(target):
    boxes = np.array([(1, 1, 2, 2), (1, np.inf, 2, 2)], np.float32)
    rois = [target.array(boxes[:1]), target.array(boxes)]
    with pytest.raises(ValueError, match="rois"):
        roi_align(target.array(FEATURES), rois, 2, validate=True)


def test_a_bad_float64_row(target):
    features = target.array(FEATURES.astype(np.float64))
    with pytest.raises(ValueError, match="rois row 1"):
        ADAPTIVE(features, target.array(rows_with((0, 0, 0, HUGE, 2))), validate=True)
    result = ADAPTIVE(features, target.array(rows_with((0, 0, 0, np.inf, 2))), validate=False)
    assert np.isnan(target.numpy(result)[1]).all()


@pytest.mark.only("cpu")
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_a_bad_row_of_half_features_is_nan(target, dtype):
    result = roi_align(FEATURES.astype(dtype), rows_with((9, 1, 1, 2, 2)), 2, validate=False)
    result = result.astype(np.float32)
    assert np.isnan(result[1]).all()
    assert_array_equal(result[[0, 2]], 1)


@pytest.mark.only("cpu")
def test_wide_rois_that_overflow_float32_are_told(target):
    rois = rows_with((0, 1, 1, 2, 2)).astype(np.float64)
    rois[1, 3] = 1e300
    with pytest.raises(ValueError, match="rois row 1"):
        roi_align(FEATURES, rois, 2)


def test_a_tensor_of_paddle_that_requires_a_gradient(rng):
    class Tensor:
        def __init__(self, stop_gradient):
            self.stop_gradient = stop_gradient

        def __array__(self, dtype=None, copy=None):
            return np.ones((1, 1, 4, 4), np.float32)

    rois = np.array([[0, 0, 0, 4, 4]], np.float32)
    assert roi_align(Tensor(True), rois, 1) == 1
    with pytest.raises(TypeError, match="detach"):
        roi_align(Tensor(False), rois, 1)
