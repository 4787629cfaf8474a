"""The gradient of the features: the reference, the adjoint identity, and the same bits always."""

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from numba_roialign import (
    CONVENTIONS,
    InvalidRoIError,
    ROIAlign,
    ROIAlignGrad,
    _cpu,
    roi_align,
    roi_align_backward,
)

from . import reference
from .conftest import BFLOAT16, random_case, random_features, random_rois
from .test_conventions import DISTINCT

MODES = ["avg", "max", "corner_max"]


def case(rng, target, dtype=np.float32, size=(2, 3)):
    features, rois = random_case(rng, target, dtype, 0.5)
    grad = random_features(rng, (len(rois), features.shape[1], *size), dtype)
    return grad, rois, features.shape


def assert_gradient(result, expected, dtype=np.float32):
    """Within rounding of sums of some hundred terms, and of half an ulp where it is stored so."""
    exact = {np.dtype(np.float16): 1e-3, BFLOAT16: 8e-3, np.dtype(np.float64): 1e-12}
    relative = exact.get(np.dtype(dtype), 0)
    assert result.dtype == dtype
    tolerance = 1e-12 if dtype == np.float64 else 2e-5
    assert_allclose(result.astype(np.float64), expected, rtol=relative, atol=tolerance)


@pytest.mark.parametrize("sampling", [2, -1, (1, 3)], ids=str)
@pytest.mark.parametrize("name", DISTINCT)
def test_the_average(target, rng, name, sampling):
    grad, rois, shape = case(rng, target)
    result = roi_align_backward(
        target.array(grad), target.array(rois), shape, (0.5, 0.3), sampling, convention=name
    )
    formula = reference.CONVENTIONS[name]
    expected = reference.pool_boxes_backward(grad, rois, shape, (0.5, 0.3), sampling, formula)
    assert_gradient(target.numpy(result), expected)


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float64], ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_other_dtypes_and_layouts(target, rng, dtype, layout):
    grad, rois, shape = case(rng, target, dtype)
    wide = np.float64 if dtype == np.float64 else np.float32
    expected = reference.pool_boxes_backward(grad, rois, shape, sampling=2, grid_dtype=wide)
    if layout == "NHWC":
        grad = np.ascontiguousarray(grad.transpose(0, 2, 3, 1))
        shape, expected = tuple(np.take(shape, [0, 2, 3, 1])), expected.transpose(0, 2, 3, 1)
    result = roi_align_backward(
        target.array(grad), target.array(rois), shape, 1.0, 2, layout=layout
    )
    assert_gradient(target.numpy(result), expected, dtype)


@pytest.mark.parametrize("mode", ["max", "corner_max"])
@pytest.mark.parametrize("sampling", [2, -1, (3, 1)], ids=str)
@pytest.mark.parametrize("name", ["torchvision", "torchvision_aligned", "mindspore_1"])
def test_the_maxima(target, rng, name, sampling, mode):
    """In float64, where samples that are equal by symmetry are so for the reference too."""
    grad, rois, shape = case(rng, target, np.float64)
    features = random_features(rng, shape, np.float64)
    arguments = 0.5, sampling
    keywords = {"convention": name, "mode": mode}
    placed = target.array(rois)
    _, argmax = roi_align(
        target.array(features), placed, (2, 3), *arguments, **keywords, return_argmax=True
    )
    result = roi_align_backward(
        target.array(grad), placed, shape, *arguments, **keywords, argmax=argmax
    )
    expected = reference.pool_boxes_max_backward(
        grad, features, rois, *arguments, reference.CONVENTIONS[name], mode, grid_dtype=np.float64
    )
    assert_allclose(target.numpy(result), expected, atol=1e-5)


def forward_and_backward(target, mode, layout, features, grad, rois, *arguments, **keywords):
    """The result of pooling and the gradient, as NumPy arrays, channels first."""
    to, back = (0, 2, 3, 1), (0, 3, 1, 2)
    if layout == "NHWC":
        features, grad = (np.ascontiguousarray(x.transpose(to)) for x in (features, grad))
    keywords = {**keywords, "mode": mode, "layout": layout}
    size = grad.shape[2:] if layout == "NCHW" else grad.shape[1:3]
    rois, argmax = target.array(rois), None
    pooled = roi_align(
        target.array(features), rois, size, *arguments, **keywords, return_argmax=mode != "avg"
    )
    if mode != "avg":
        pooled, argmax = pooled
    spread = roi_align_backward(
        target.array(grad), rois, features.shape, *arguments, **keywords, argmax=argmax
    )
    pooled, spread = target.numpy(pooled), target.numpy(spread)
    if layout == "NHWC":
        pooled, spread = pooled.transpose(back), spread.transpose(back)
    return pooled, spread


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("mode", MODES)
@given(
    name=st.sampled_from(sorted(CONVENTIONS)),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 20), st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    sampling=st.tuples(st.integers(-1, 3), st.integers(-1, 3)),
    count=st.integers(1, 8),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_adjoint_identity(target, mode, layout, name, shape, size, sampling, count, seed):
    """<roi_align(F), G> is <F, backward(G)>: a maximum too is linear where its winners are."""
    if target.small:
        shape, count = (*np.minimum(shape, [2, 2, 4, 4]).tolist(),), min(count, 2)
    rng = np.random.default_rng(seed)
    features = random_features(rng, shape, np.float64)
    rois = random_rois(rng, count, shape, 0.5)
    grad = rng.standard_normal((count, shape[1], *size))
    pooled, spread = forward_and_backward(
        target, mode, layout, features, grad, rois, 0.5, sampling, convention=name
    )
    one, other = (pooled * grad).sum(), (features * spread).sum()
    assert_allclose(one, other, atol=1e-11 * (1 + np.abs(pooled * grad).sum()))


@pytest.mark.parametrize("mode", MODES)
def test_finite_differences(target, rng, mode):
    """Half a step up and down: what is linear between them has no other error than rounding."""
    shape, step = (1, 2, 3, 4), 1e-6
    features, rois = random_features(rng, shape, np.float64), random_rois(rng, 4, shape)
    grad = rng.standard_normal((4, 2, 2, 2))
    _, spread = forward_and_backward(target, mode, "NCHW", features, grad, rois, 1.0, 2)
    numeric = np.empty(shape)
    for index in np.ndindex(shape):
        sums = []
        for side in (step / 2, -step / 2):
            moved = features.copy()
            moved[index] += side
            pooled = roi_align(target.array(moved), target.array(rois), 2, 1.0, 2, mode=mode)
            sums.append((target.numpy(pooled) * grad).sum())
        numeric[index] = (sums[0] - sums[1]) / step
    assert_allclose(spread, numeric, atol=1e-7)


@pytest.mark.only("cpu")
@pytest.mark.parametrize("mode", MODES)
def test_the_same_bits_for_any_threads_and_every_run(target, rng, mode, planned_with):
    shape = (2, 19, 60, 50)
    features, rois = random_features(rng, shape), random_rois(rng, 40, shape)
    grad = random_features(rng, (40, 19, 5, 5))
    bits = set()
    try:
        with planned_with(_cpu.average_gradient, BAND=1 << 12):
            for threads in (1, 2, 3):
                numba.set_num_threads(threads)
                for _ in range(50 if mode == "avg" else 10):
                    _, spread = forward_and_backward(target, mode, "NCHW", features, grad, rois)
                    bits.add(spread.tobytes())
    finally:
        numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    assert len(bits) == 1


@pytest.mark.only("cpu")
@pytest.mark.parametrize("mode", MODES)
def test_bands_and_batches_change_no_bit(target, rng, mode, planned_with):
    shape = (2, 9, 40, 33)
    features, rois = random_features(rng, shape), random_rois(rng, 30, shape)
    rois = rois[np.argsort(rois[:, 0], kind="stable")]
    grad = random_features(rng, (30, 9, 5, 5))
    arguments = target, mode, "NCHW", features, grad, rois
    _, whole = forward_and_backward(*arguments)
    with planned_with(_cpu.average_gradient, BAND=200):  # some rows
        _, banded = forward_and_backward(*arguments)
        with planned_with(_cpu.plan, GRADIENT_BATCH_BYTES=20_000):  # some RoIs
            _, batched = forward_and_backward(*arguments)
    assert_array_equal(banded, whole)
    # batches go through the RoIs in another order: by first row within each
    assert_allclose(batched, whole, atol=1e-5)


@pytest.mark.only("cpu")
@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16], ids=str)
def test_batches_of_half_types_add_up_in_float32(rng, planned_with, dtype):
    shape = (1, 9, 10, 11)
    rois = random_rois(rng, 200, shape, is_sorted=True)
    grad = random_features(rng, (200, 9, 3, 3), dtype)
    whole = roi_align_backward(grad, rois, shape, 1.0, 2)
    with planned_with(_cpu.plan, GRADIENT_BATCH_BYTES=20_000):
        batched = roi_align_backward(grad, rois, shape, 1.0, 2)
    ulp = {np.dtype(np.float16): 2.0**-10, BFLOAT16: 2.0**-7}[np.dtype(dtype)]
    expected = whole.astype(np.float64)
    assert_allclose(batched.astype(np.float64), expected, rtol=ulp, atol=1e-4)


@pytest.mark.only("cpu")
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_one_channel_of_a_half_type(rng, layout):
    rois, grad = random_rois(rng, 4, (2, 1, 6, 7)), random_features(rng, (4, 1, 2, 3), BFLOAT16)
    shape = (2, 1, 6, 7) if layout == "NCHW" else (2, 6, 7, 1)
    given = grad if layout == "NCHW" else np.ascontiguousarray(grad.transpose(0, 2, 3, 1))
    result = roi_align_backward(given, rois, shape, layout=layout)
    expected = reference.pool_boxes_backward(grad, rois, (2, 1, 6, 7))
    assert_allclose(result.reshape(2, 1, 6, 7).astype("f8"), expected, rtol=2**-8, atol=1e-5)


@pytest.mark.only("cpu")
def test_more_bins_than_the_scratch_holds(rng):
    side = int(_cpu.average_gradient.CELLS**0.5) + 6
    shape, size = (1, 9, 20, 90), (side, side)
    rois = np.array([[0, 1, 1, 80, 19], [0, 60, 18, 2, 3]], np.float32)
    grad = random_features(rng, (2, 9, *size))
    result = roi_align_backward(grad, rois, shape, 1.0, 1, True)
    expected = reference.pool_boxes_backward(grad, rois, shape, 1.0, 1, reference.ALIGNED)
    assert_allclose(result, expected, atol=1e-4)


@pytest.mark.only("cpu")
def test_a_map_wider_than_the_longest_line(rng):
    width = _cpu.schedules.LONGEST_LINE + 5
    rois = np.array([[0, 1, 0, width, 2], [0, width - 9, 0, width, 2]], np.float32)
    grad = random_features(rng, (2, 8, 2, 3))
    result = roi_align_backward(grad, rois, (1, 8, 2, width), 1.0, 2)
    expected = reference.pool_boxes_backward(grad, rois, (1, 8, 2, width), 1.0, 2)
    assert_allclose(result, expected, atol=1e-5)


def test_images_and_rows_without_boxes_are_zeros(target, rng):
    grad, rois, shape = case(rng, target)
    rois[:, 0] = 1
    rois[0, 1:] = 0, 0, 6, 6
    result = target.numpy(
        roi_align_backward(target.array(grad), target.array(rois), (3, *shape[1:]))
    )
    assert (result[[0, 2]] == 0).all()
    assert (result[1] != 0).any()
    none = target.array(grad[:0]), target.array(rois[:0])
    for layout in ("NCHW", "NHWC"):
        wanted = shape if layout == "NCHW" else tuple(np.take(shape, [0, 2, 3, 1]))
        empty = target.array(np.zeros((0, *np.take(grad.shape, [2, 3, 1])), np.float32))
        given_ = none[0] if layout == "NCHW" else empty
        result = roi_align_backward(given_, none[1], wanted, layout=layout)
        assert_array_equal(target.numpy(result), np.zeros(wanted, np.float32))


def test_an_invalid_row_raises_or_gives_nothing(target, rng):
    grad, rois, shape = case(rng, target)
    rois[1, 2] = np.nan
    placed = target.array(grad), target.array(rois)
    with pytest.raises(InvalidRoIError, match="row 1"):
        roi_align_backward(*placed, shape, 1.0, 2, validate=True)
    result = target.numpy(roi_align_backward(*placed, shape, 1.0, 2, validate=False))
    rows = np.arange(len(rois)) != 1
    without = roi_align_backward(target.array(grad[rows]), target.array(rois[rows]), shape, 1.0, 2)
    assert_array_equal(result, target.numpy(without))


@pytest.mark.parametrize("mode", ["max", "corner_max"])
def test_an_argmax_of_any_numbers_reads_nothing_outside(target, rng, mode):
    grad, rois, shape = case(rng, target)
    edges = np.iinfo(np.int64)
    for numbers in (
        rng.integers(-3, 40, grad.shape),
        rng.integers(edges.min, edges.max, grad.shape),
        np.full(grad.shape, edges.max),
    ):
        result = roi_align_backward(
            target.array(grad), target.array(rois), shape, argmax=target.array(numbers), mode=mode
        )
        assert np.isfinite(target.numpy(result)).all()


def test_swapped_corners_reach_every_band(target, rng):
    """A maximum's gradient finds its pixels where samples run up, not down."""
    shape = (1, 1, 6, 6)
    features = random_features(rng, shape, np.float64)
    rois = np.array([[0, 5.3, 5.1, 0.2, 0.4], [0, 0.2, 4.9, 5.5, 0.1]], np.float32)
    grad = rng.standard_normal((2, 1, 2, 2))
    pooled, spread = forward_and_backward(target, "max", "NCHW", features, grad, rois, 1.0, 3, True)
    assert_allclose((pooled * grad).sum(), (features * spread).sum())


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("samples", [0, 2])
def test_the_gradient_of_mindspore_is_that_of_its_forward(target, rng, samples, mode):
    grad, rois, shape = case(rng, target, np.float64)
    features = random_features(rng, shape, np.float64)
    arguments = 2, 3, 0.5, samples, mode
    pooled = ROIAlign(*arguments)(target.array(features), target.array(rois))
    spread = ROIAlignGrad(shape, *arguments)(target.array(grad), target.array(rois))
    assert_allclose((target.numpy(pooled) * grad).sum(), (features * target.numpy(spread)).sum())


def test_mindsporegrad_says_what_it_is():
    operator = ROIAlignGrad((1, 2, 3, 4), 5, 6, 0.5)
    assert eval(repr(operator)).xdiff_shape == (1, 2, 3, 4)
    for shape, error in [((1, 2, 3), ValueError), ("abcd", TypeError), (4, TypeError)]:
        with pytest.raises(error, match="xdiff_shape"):
            ROIAlignGrad(shape, 5, 6, 0.5)
    with pytest.raises(ValueError, match="dy"):
        operator(np.zeros((1, 2, 5, 5), np.float32), np.zeros((1, 5)))


def test_out(target, rng):
    grad, rois, shape = case(rng, target)
    placed = target.array(grad), target.array(rois)
    expected = target.numpy(roi_align_backward(*placed, shape, 1.0, 2))
    out = target.array(np.full(shape, np.nan, np.float32))
    assert roi_align_backward(*placed, shape, 1.0, 2, out=out) is out
    assert_array_equal(target.numpy(out), expected)


@pytest.mark.only("cpu")
def test_strided_arrays(target, rng):
    grad, rois, shape = case(rng, target, size=(4, 6))
    expected = roi_align_backward(np.ascontiguousarray(grad[..., ::2]), rois, shape, 1.0, 2)
    assert_array_equal(roi_align_backward(grad[..., ::2], rois, shape, 1.0, 2), expected)
    reversed_grad = np.ascontiguousarray(grad[:, ::-1, :, ::2])[:, ::-1]
    assert_array_equal(roi_align_backward(reversed_grad, rois, shape, 1.0, 2), expected)
    for out in (
        np.empty((*shape[:2], *shape[:1:-1]), np.float32).swapaxes(2, 3),
        np.empty((shape[0], *shape[2:], shape[1]), np.float32).transpose(0, 3, 1, 2),
        np.empty((*shape[:3], 2 * shape[3]), np.float32)[..., ::2],
        np.empty(shape, np.float32)[:, ::-1],
        np.empty(shape, ">f4"),
    ):
        assert roi_align_backward(grad[..., ::2], rois, shape, 1.0, 2, out=out) is out
        assert_array_equal(out, expected)


@pytest.mark.parametrize(
    ("keywords", "match"),
    [
        ({"feature_shape": (2, 5, 9)}, "feature_shape"),
        ({"feature_shape": (2, 5, 9, 1.0)}, "feature_shape"),
        ({"feature_shape": None}, "feature_shape"),
        ({"feature_shape": (2, 6, 9, 9)}, "channels"),
        ({"feature_shape": (2, 5, 0, 9)}, "no pixels"),
        ({"rois": np.zeros((3, 5))}, "rows"),
        ({"mode": "max"}, "argmax"),
        ({"mode": "max", "argmax": np.zeros((2, 5, 2, 2), np.int32)}, "argmax"),
        ({"mode": "max", "argmax": np.zeros((2, 5, 2, 1), np.int64)}, "argmax"),
        ({"argmax": np.zeros((2, 5, 2, 2), np.int64)}, "argmax"),
        ({"out": np.zeros((2, 5, 9, 8), np.float32)}, "out"),
        ({"out": np.zeros((2, 5, 9, 9), np.float64)}, "out"),
        ({"grad_output": np.zeros((2, 5, 2, 2), np.int32)}, "grad_output"),
        ({"grad_output": np.zeros((2, 5, 2), np.float32)}, "grad_output"),
        ({"layout": "CHWN"}, "layout"),
    ],
)
def test_bad_input(keywords, match):
    arguments = {
        "grad_output": np.zeros((2, 5, 2, 2), np.float32),
        "rois": np.zeros((2, 5)),
        "feature_shape": (2, 5, 9, 9),
    }
    with pytest.raises((TypeError, ValueError), match=match):
        roi_align_backward(**{**arguments, **keywords})


@pytest.mark.only("cuda")
def test_batches_on_a_device(target, rng, monkeypatch):
    from numba_roialign._cuda import target as cuda_target
    from numba_roialign._repeats import repeats_of

    for dtype, mode in [(np.float32, "avg"), (np.float16, "avg"), (np.float32, "max")]:
        grad, rois, shape = case(rng, target, dtype)
        features = random_features(rng, shape, dtype)
        arguments = target, mode, "NCHW", features, grad, rois, 1.0, 2
        with monkeypatch.context() as patch:
            pooled, whole = forward_and_backward(*arguments)
            patch.setattr(cuda_target, "BATCH_BYTES", 1)
            repeats_of.cache_clear()
            batch_pooled, batched = forward_and_backward(*arguments)
        repeats_of.cache_clear()
        assert_array_equal(batch_pooled, pooled)
        assert_allclose(batched, whole, atol=1e-3 if dtype == np.float16 else 1e-6)
