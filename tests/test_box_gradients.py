"""The gradient of the boxes: finite differences, kinks, and the conventions' own rules."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from numba_roialign import InvalidRoIError, _cpu, roi_align, roi_align_box_backward

from .conftest import BFLOAT16, random_case, random_features, random_rois
from .test_conventions import DISTINCT


def case(rng, target, dtype=np.float64, size=(2, 3)):
    features, rois = random_case(rng, target, dtype, 0.5)
    grad = random_features(rng, (len(rois), features.shape[1], *size), dtype)
    return grad, features, rois.astype(np.float64)


def differences(target, grad, features, rois, *arguments, step=1e-6, **keywords):
    """The gradient of boxes by central differences."""
    result = np.zeros((len(rois), 5))
    for column in range(1, 5):
        sums = []
        for side in (step / 2, -step / 2):
            moved = rois.copy()
            moved[:, column] += side
            pooled = roi_align(
                target.array(features), target.array(moved), grad.shape[2:], *arguments, **keywords
            )
            sums.append((target.numpy(pooled) * grad).sum(axis=(1, 2, 3)))
        result[:, column] = (sums[0] - sums[1]) / step
    return result


@pytest.mark.parametrize("sampling", [2, -1, (3, 1)], ids=str)
@pytest.mark.parametrize("name", DISTINCT)
def test_finite_differences(target, rng, name, sampling):
    """Boxes at random: none of their samples lies within a step of a kink, of which rng is sure."""
    grad, features, rois = case(rng, target)
    arguments = (0.5, 0.3), sampling
    result = roi_align_box_backward(
        target.array(grad), target.array(features), target.array(rois), *arguments, convention=name
    )
    expected = differences(target, grad, features, rois, *arguments, convention=name)
    assert_allclose(target.numpy(result), expected, atol=1e-6)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float32], ids=str)
def test_dtypes_and_layouts(target, rng, dtype, layout):
    grad, features, rois = case(rng, target, dtype)
    expected = roi_align_box_backward(
        *(target.array(x.astype(np.float64)) for x in (grad, features, rois)), 0.5, 2
    )
    if layout == "NHWC":
        grad, features = (np.ascontiguousarray(x.transpose(0, 2, 3, 1)) for x in (grad, features))
    placed = target.array(grad), target.array(features)
    wide = roi_align_box_backward(*placed, target.array(rois), 0.5, 2, layout=layout)
    narrow = roi_align_box_backward(
        *placed, target.array(rois.astype(np.float32)), 0.5, 2, layout=layout
    )
    assert target.numpy(wide).dtype == np.float64
    assert target.numpy(narrow).dtype == np.float32
    assert_allclose(target.numpy(wide), target.numpy(expected), atol=1e-4)
    assert_allclose(target.numpy(narrow), target.numpy(expected), atol=1e-4)


@pytest.mark.parametrize("rois_dtype", [np.int32, np.float16])
def test_boxes_of_other_dtypes_have_float32_gradients(target, rois_dtype):
    features = target.array(np.ones((1, 1, 4, 4), np.float32))
    rois = target.array(np.array([[0, 1, 1, 3, 3]], rois_dtype))
    grad = target.array(np.ones((1, 1, 1, 1), np.float32))
    result = target.numpy(roi_align_box_backward(grad, features, rois))
    assert result.dtype == np.float32
    assert_array_equal(result, np.zeros((1, 5)))


def one_box(target, plane, box, *arguments, **keywords):
    features = target.array(np.asarray(plane, np.float64)[None, None])
    rois = target.array(np.array([[0, *box]], np.float64))
    grad = target.array(np.ones((1, 1, 1, 1)))
    return target.numpy(roi_align_box_backward(grad, features, rois, *arguments, **keywords))[0]


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_gradients_of_a_list_of_boxes_are_as_of_an_array(target, rng, dtype):
    features = target.array(random_features(rng, (2, 3, 6, 7), np.float32))
    boxes = [np.array([(1, 1, 4, 4)], dtype), np.zeros((0, 4), dtype)]
    grad = target.array(np.ones((1, 3, 2, 2), np.float32))
    gradient = roi_align_box_backward(grad, features, [target.array(b) for b in boxes])
    assert target.numpy(gradient).dtype == ("float64" if dtype == "float64" else "float32")


def test_a_kink_takes_the_slope_to_its_right(target):
    plane = np.tile([0.0, 1.0, 5.0, 5.0], (4, 1))
    # one sample, at x = 1: a slope of 1 to its left and of 4 to its right, half for each corner
    assert_array_equal(one_box(target, plane, [0, 0, 2, 2], 1.0, 1), [0, 2, 0, 2, 0])
    # at x = 0, where clamping begins, it is to the right; at the last pixel there is none
    assert_array_equal(one_box(target, plane, [-1, 0, 1, 2], 1.0, 1), [0, 0.5, 0, 0.5, 0])
    assert_array_equal(one_box(target, plane, [2, 0, 4, 2], 1.0, 1), [0, 0, 0, 0, 0])


def test_clamped_and_lost_samples_have_no_slope(target):
    plane = np.arange(16.0).reshape(4, 4)
    for x in (-1.6, -1.0, -0.9, 3.0, 3.5, 4.0, 4.5):
        box = [x - 0.5, 0.5, x + 0.5, 1.5]
        gradient = one_box(target, plane, box, 1.0, 1, convention="tvm_aligned")
        assert (gradient[[1, 3]] == 0).all()
        assert (gradient[[2, 4]] == (2 if -1 <= x <= 4 else 0)).all()


def test_a_box_at_its_least_size_moves_with_its_first_corner(target):
    plane = np.arange(16.0).reshape(4, 4)
    small = one_box(target, plane, [1.1, 1.2, 1.3, 1.4], 1.0, 2)
    assert_allclose(small, [0, 1, 4, 0, 0])
    free = one_box(target, plane, [1.1, 1.2, 1.3, 1.4], 1.0, 2, True)
    assert_allclose(free, [0, 0.5, 2, 0.5, 2])


@pytest.mark.only("cpu")
def test_batches_change_nothing(target, rng, monkeypatch):
    arguments = case(rng, target, np.float32)
    whole = roi_align_box_backward(*arguments, 0.5, 2)
    monkeypatch.setattr(_cpu.target, "SLOPE_BYTES", 1)
    assert_array_equal(roi_align_box_backward(*arguments, 0.5, 2), whole)


@pytest.mark.only("cpu")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_box_does_not_depend_on_the_others(rng, dtype):
    features = random_features(rng, (1, 256, 9, 9), dtype)
    rois = random_rois(rng, 4, features.shape, 1.0).astype(dtype)
    grad = rng.standard_normal((4, 256, 7, 7)).astype(dtype)  # 12544 numbers of a box
    together = roi_align_box_backward(grad, features, rois)
    alone = [roi_align_box_backward(grad[[n]], features, rois[[n]])[0] for n in range(4)]
    assert_array_equal(together, alone)


def test_an_invalid_row_raises_or_is_0(target, rng):
    grad, features, rois = case(rng, target)
    grad[1] = np.nan  # as a loss makes of the row's own NaN
    expected = roi_align_box_backward(*map(target.array, (grad, features, rois)), 0.5, 2)
    rois[1, 0] = 9
    placed = [target.array(x) for x in (grad, features, rois)]
    with pytest.raises(InvalidRoIError, match="row 1"):
        roi_align_box_backward(*placed, 0.5, 2, validate=True)
    result = target.numpy(roi_align_box_backward(*placed, 0.5, 2, validate=False))
    assert (result[1] == 0).all()
    assert_array_equal(result[[0, 2]], target.numpy(expected)[[0, 2]])


def test_no_boxes_and_no_channels(target):
    for count, channels in [(0, 3), (2, 0)]:
        features = target.array(np.zeros((1, channels, 4, 4), np.float32))
        grad = target.array(np.zeros((count, channels, 2, 2), np.float32))
        rois = target.array(np.zeros((count, 5), np.float32))
        result = target.numpy(roi_align_box_backward(grad, features, rois))
        assert_array_equal(result, np.zeros((count, 5), np.float32))


@pytest.mark.parametrize(
    ("keywords", "match"),
    [
        ({"grad_output": np.zeros((2, 3, 2, 2))}, "float64"),
        ({"grad_output": np.zeros((1, 3, 2, 2), np.float32)}, "grad_output"),
        ({"grad_output": np.zeros((2, 2, 2, 2), np.float32)}, "grad_output"),
        ({"grad_output": None}, "grad_output"),
        ({"features": np.zeros((1, 3, 4), np.float32)}, "features"),
        ({"rois": np.zeros((2, 4))}, "rois"),
        ({"layout": "N"}, "layout"),
    ],
)
def test_bad_input(keywords, match):
    arguments = {
        "grad_output": np.zeros((2, 3, 2, 2), np.float32),
        "features": np.zeros((1, 3, 4, 4), np.float32),
        "rois": np.zeros((2, 5)),
    }
    with pytest.raises((TypeError, ValueError), match=match):
        roi_align_box_backward(**{**arguments, **keywords})


@pytest.mark.only("cuda")
def test_a_device_does_not_write_elements_that_share_memory(target, rng):
    features, rois = random_case(rng, target)
    grad = np.ones((len(rois), features.shape[1], 1, 1), np.float32)

    class Shared:
        shape, dtype = rois.shape, rois.dtype
        __cuda_array_interface__ = np.broadcast_to(rois[:1], rois.shape).__array_interface__

    with pytest.raises(ValueError, match="share memory"):
        roi_align_box_backward(
            target.array(grad), target.array(features), target.array(rois), out=Shared()
        )
