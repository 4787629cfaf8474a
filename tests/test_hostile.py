"""Hostile input: the answer is the reference's or a documented exception, whatever comes in.

Hypothesis draws arrays of every stride, dtype, byte order and alignment, boxes of every value that
a float can have, and arguments of every kind. On the CPU every array, the package's own too, lies
between pages that nobody may touch, and a result is computed three times: where such a page begins
with the byte after an array, where it ends with the byte before, and in threads; in memory that
starts with other bytes (`guarded`). So it is with CUDA kernels in the lane ``compiled``. The lane
``checked`` compiles the CPU's kernels with Numba's bounds checks too.

``python -m pytest --hypothesis-profile=fuzz tests/test_hostile.py`` draws 3000 of each.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from numba_roialign import (
    InvalidRoIError,
    ROIAlign,
    roi_align,
    roi_align_backward,
    roi_align_box_backward,
)

from .guarded import guarded
from .hostile import (
    assert_close,
    cases,
    gradient,
    is_certain,
    is_valid,
    memories,
    placed,
    pooled,
)

# The simulator computes with NumPy's scalars, which tell of overflow.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")
ODD = 0xA5  # a byte: numbers that consist of it are small in no dtype

modes = st.sampled_from(["avg", "avg", "max", "corner_max"])
validations = st.sampled_from([None, False, True])


def bits(array):
    return np.ascontiguousarray(array).view(np.uint8)


def repeated(target, call):
    """Return the results of a call, which neither other bytes in new memory nor threads change."""
    results = []
    for memory in target.memories(ODD):
        with memory:
            results.append([target.numpy(result) for result in call()])
    for first, *others in zip(*results, strict=True):
        for other in others:
            assert_array_equal(bits(first), bits(other))
    return results[0]


def reduced(target, case):
    """Return a case that the target can run."""
    if not target.small:
        return case
    shape = tuple(min(n, most) for n, most in zip(case.shape, (2, 2, 5, 5), strict=True))
    return case._replace(shape=shape, size=tuple(min(n, 2) for n in case.size))


def given_to(target, values, memory):
    """Return values as the target's array; on the CPU they lie in memory as drawn."""
    return placed(values, **memory) if target.name == "cpu" else target.array(values)


def host(array):
    """Return the values of an array as float64."""
    return np.array(getattr(array, "_ary", array)).astype(np.float64)


def as_nchw(case, array):
    array = np.asarray(array).astype(np.float64)
    return array if case.layout == "NCHW" else array.transpose(0, 3, 1, 2)


def outcome(target, case, rois, validate, call):
    """Return the results of a call and which rows are valid; or None where it must raise."""
    valid = [is_valid(case, roi) for roi in rois]
    if all(valid) or not (target.name == "cpu" if validate is None else validate):
        return repeated(target, call), valid
    with target.memories(ODD)[-1], pytest.raises(InvalidRoIError) as raised:
        call()
    assert raised.value.row == valid.index(False)
    return None, valid


def position_unit(target, case):
    return 2.0**-23 if target.rounds_positions and case.number is np.float32 else 2.0**-52


@given(cases(), modes, validations, memories(), memories(2), st.none() | memories(written=True))
def test_pooling(target, case, mode, validate, features_memory, rois_memory, out_memory):
    case = reduced(target, case)
    images, _, height, width = case.shape
    features = given_to(target, case.numbers(case.ordered(images, height, width)), features_memory)
    rois = given_to(target, case.rois(), rois_memory)
    blank = np.full(case.ordered(len(case.boxes), *case.size), 7, case.dtype)
    options = {**case.options, "mode": mode, "layout": case.layout, "validate": validate}

    def call():
        out = given_to(target, blank, out_memory) if out_memory else None
        try:
            result = roi_align(
                features, rois, case.size, **options, out=out, return_argmax=mode != "avg"
            )
        except InvalidRoIError:
            assert out is None or (host(out) == 7).all()
            raise
        return result if mode != "avg" else [result]

    results, valid = outcome(target, case, host(rois), validate, call)
    if results is None:
        return
    result, values = as_nchw(case, results[0]), as_nchw(case, host(features))
    unit = position_unit(target, case)
    for n, roi in enumerate(host(rois)):
        if not valid[n]:
            assert np.isnan(result[n]).all()
        elif is_certain(case, roi, unit):
            truth = pooled(case, values, roi, mode)
            assert_close(case, result[n], truth, values, roi, unit)


@given(cases(), validations, memories(), memories(2), st.none() | memories(written=True))
def test_the_gradient_of_features(target, case, validate, grad_memory, rois_memory, out_memory):
    case = reduced(target, case)
    images, _, height, width = case.shape
    shape = case.ordered(images, height, width)
    grad = given_to(target, case.numbers(case.ordered(len(case.boxes), *case.size)), grad_memory)
    rois = given_to(target, case.rois(), rois_memory)

    def call():
        out = given_to(target, np.full(shape, 7, case.dtype), out_memory) if out_memory else None
        options = {**case.options, "layout": case.layout, "validate": validate, "out": out}
        return [roi_align_backward(grad, rois, shape, **options)]

    results, valid = outcome(target, case, host(rois), validate, call)
    unit, wide = position_unit(target, case), host(rois)
    if results is None or not all(is_certain(case, roi, unit) for roi in wide[valid]):
        return
    values = as_nchw(case, host(grad))
    truth = gradient(case, values[valid], wide[valid])
    result = as_nchw(case, results[0])
    assert_close(case, result, truth, values, wide[valid], unit, terms=values[:, 0].size)


@given(
    cases(), st.sampled_from(["max", "corner_max"]), memories(), memories(2), memories(),
    st.integers(-(2**63), 2**63 - 1),
)  # fmt: skip
def test_the_gradient_of_a_maximum_reads_any_argmax(
    target, case, mode, grad_memory, rois_memory, argmax_memory, odd
):
    case = reduced(target, case)
    images, _, height, width = case.shape
    pooled_shape = case.ordered(len(case.boxes), *case.size)
    rng = np.random.default_rng(case.seed)
    beyond = (odd if odd >= 0 else ~odd) | 1 << 62  # no grid has as many samples
    numbers = rng.choice([0, 1, 2, 5, 30, -1, odd, beyond], pooled_shape)
    grad = given_to(target, rng.standard_normal(pooled_shape).astype(case.dtype), grad_memory)
    argmax = given_to(target, numbers.astype(np.int64), argmax_memory)
    rois = given_to(target, case.rois(), rois_memory)
    options = {**case.options, "mode": mode, "layout": case.layout, "validate": False}

    def call(argmax=argmax):
        shape = case.ordered(images, height, width)
        return [roi_align_backward(grad, rois, shape, argmax=argmax, **options)]

    [result] = repeated(target, call)
    assert np.isfinite(result.astype(np.float64)).all()
    held = np.array(getattr(argmax, "_ary", argmax), np.int64)
    nobody = target.array(np.where(held == beyond, -1, held))
    assert_array_equal(result, host(call(nobody)[0]))


@given(cases(), validations, memories(), memories(), memories(2))
def test_the_gradient_of_boxes(target, case, validate, grad_memory, features_memory, rois_memory):
    case = reduced(target, case._replace(seed=case.seed // 4 * 4))  # no number that is not finite
    images, _, height, width = case.shape
    features = given_to(target, case.numbers(case.ordered(images, height, width)), features_memory)
    grad = given_to(target, case.numbers(case.ordered(len(case.boxes), *case.size)), grad_memory)
    rois = given_to(target, case.rois(), rois_memory)
    options = {**case.options, "layout": case.layout, "validate": validate}
    results, valid = outcome(
        target, case, host(rois), validate,
        lambda: [roi_align_box_backward(grad, features, rois, **options)],
    )  # fmt: skip
    if results is not None:
        gradients = results[0].astype(np.float64)
        assert not gradients[:, 0].any()
        assert not gradients[~np.array(valid)].any()


@pytest.mark.only("cpu")
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", [1, 3, 8, 33])
@pytest.mark.parametrize("dtype", ["f4", "f2", "f8"])
def test_boxes_of_every_width_at_both_ends_of_a_line(target, rng, dtype, channels, layout):
    """Where the last vector overlaps the one before, or there is none before."""
    length, offsets = 70, np.arange(70.0)
    left = np.column_stack([np.zeros((len(offsets), 3)), offsets + 0.5, np.full(len(offsets), 4.0)])
    right = left[:, [0, 3, 1, 2, 4]] + (0, 0, 0, length, 0)
    rois = np.concatenate([left, right])
    shape = (1, channels, 4, length) if layout == "NCHW" else (1, 4, length, channels)
    features = rng.standard_normal(shape).astype(dtype)

    def run(**options):
        result = roi_align(features, rois, (4, 9), layout=layout, **options)
        if "mode" in options:
            return [result]
        return [result, roi_align_backward(result, rois, shape, layout=layout, **options)]

    repeated(target, lambda: run(sampling_ratio=1))
    repeated(target, run)
    repeated(target, lambda: run(mode="max"))


junk_numbers = st.sampled_from(
    [-(10**30), -1, 0, 1, 2, 2**31 - 1, 2**31, 2**63, 10**30, 0.5, math.nan, math.inf, 1j, True]
)
junk_words = ["", "avg", "NCHW", "mindspore_1", b"max", None, object(), {}, set(), int, ...]
junk_arrays = st.builds(
    np.zeros,
    st.sampled_from([(), (0,), (5,), (2, 5), (1, 5, 1), (1, 2, 3, 4), (2, 0, 3, 4)]),
    st.sampled_from(["O", "c16", "M8[s]", "S3", "?", "f4,i4", "g", "f4", "f8", "i8"]),
)
junk = st.one_of(
    junk_numbers,
    junk_numbers.map(np.array),
    st.tuples(junk_numbers, junk_numbers),
    st.lists(junk_numbers, max_size=3),
    st.sampled_from(junk_words),
    junk_arrays,
)
FEATURES, GRAD = np.ones((1, 2, 3, 4), np.float32), np.ones((1, 2, 2, 2), np.float32)
SHARED = {
    "rois": np.array([(0, 0.0, 0, 2, 2)]),
    "spatial_scale": 1.0,
    "sampling_ratio": 2,
    "aligned": False,
    "convention": None,
    "layout": "NCHW",
    "max_sampling_ratio": None,
    "validate": None,
}
MODE = {"mode": "avg", "out": None}
POOL = {**SHARED, **MODE, "features": FEATURES, "output_size": 2, "return_argmax": False}
BACKWARD = {**SHARED, **MODE, "grad_output": GRAD, "feature_shape": (1, 2, 3, 4), "argmax": None}
BOX_BACKWARD = {**SHARED, "grad_output": GRAD, "features": FEATURES}
CALLS = [(roi_align, POOL), (roi_align_backward, BACKWARD), (roi_align_box_backward, BOX_BACKWARD)]
DOCUMENTED = TypeError, ValueError, MemoryError


@pytest.mark.only("cpu")
@given(st.data())
def test_arguments_of_any_kind(data):
    function, arguments = data.draw(st.sampled_from(CALLS))
    names = data.draw(st.lists(st.sampled_from(sorted(arguments)), min_size=1, max_size=2))
    wrong = {name: data.draw(junk) for name in names}
    with guarded(ODD):
        try:
            result = function(**{**arguments, **wrong})
        except DOCUMENTED as error:
            assert str(error)
        else:
            assert isinstance(result, (np.ndarray, tuple))


@pytest.mark.only("cpu")
@given(st.lists(junk, min_size=5, max_size=5), st.integers(0, 4))
def test_mindspore_arguments_of_any_kind(values, place):
    arguments = [2, 2, 1.0, 2, 1]
    arguments[place] = values[place]
    with guarded(ODD):
        try:
            ROIAlign(*arguments)(FEATURES, SHARED["rois"])
        except DOCUMENTED as error:
            assert str(error)
