"""Sizes at the edge: what cannot fit is refused, what fits is right past 2**31 elements.

``python -m pytest -m huge -s`` runs those that take up to 14 GB and some minutes.
"""

import tracemalloc

import numba
import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided
from numpy.testing import assert_allclose, assert_array_equal

from numba_roialign import _cpu, _memory, roi_align, roi_align_backward, roi_align_box_backward

from .conftest import misaligned

pytestmark = pytest.mark.only("cpu")
FEATURES = np.ones((2, 3, 4, 5), np.float32)
ROIS = np.array([(0, 1, 1, 3, 3), (1, 0, 0, 2, 2)], np.float32)
HUGE = 2**31 - 1  # bins or pixels of a side


@pytest.mark.parametrize(
    ("call", "size"),
    [
        (lambda: roi_align(FEATURES, ROIS, HUGE), 2 * 3 * HUGE**2 * 4),
        (lambda: roi_align(FEATURES, ROIS, (1, HUGE), mode="max"), 2 * 3 * HUGE * 4),
        (lambda: roi_align(FEATURES, ROIS, (HUGE, 3)), 2 * 3 * HUGE * 3 * 4),
        (
            lambda: roi_align_backward(np.ones((2, 3, 2, 2)), ROIS, (HUGE, 3, HUGE, 7)),
            HUGE * 3 * HUGE * 7 * 8,
        ),
    ],
)
def test_what_cannot_fit_is_refused_in_bytes(monkeypatch, call, size):
    monkeypatch.setattr(_memory, "most_bytes", lambda: 1 << 30)
    with pytest.raises(MemoryError, match=r"needs (\d+) bytes") as raised:
        call()
    named = int(str(raised.value).split("needs ")[1].split()[0])
    assert size <= named <= size + _memory.GRAIN + _memory.LINE


def test_what_the_system_refuses_is_told_in_bytes(monkeypatch):
    monkeypatch.setattr(_memory, "most_bytes", lambda: 1 << 62)
    with pytest.raises(MemoryError, match=r"needs \d+ bytes at once, which the system refuses"):
        roi_align(FEATURES, ROIS, (HUGE, 1 << 20))


def test_scratch_that_cannot_fit_is_refused_before_anything_is_written(monkeypatch):
    monkeypatch.setattr(_memory, "most_bytes", lambda: 1 << 30)
    tall = np.broadcast_to(np.float32(1), (1, 1, HUGE, 1))
    out = np.full((1, 1, 2, 2), 7, np.float32)
    with pytest.raises(MemoryError, match=r"needs \d+ bytes"):  # tables of an adaptive box
        roi_align(tall, ROIS[:1], 2, out=out)
    assert_array_equal(out, 7)
    roi_align(tall, np.array([[0, 0, 9, 1, 12]]), 2, sampling_ratio=2, out=out)
    assert_array_equal(out, 1)


def test_sides_that_a_tap_cannot_number():
    wide = np.broadcast_to(np.float32(1), (1, 1, 1, 2**31))
    with pytest.raises(ValueError, match="features"):
        roi_align(wide, ROIS[:1], 2, sampling_ratio=2)


def test_out_that_overlaps_rois():
    memory = np.zeros(64, np.float32)
    memory[:10] = ROIS.ravel()
    with pytest.raises(ValueError, match="out overlaps rois"):
        roi_align(FEATURES, memory[:10].reshape(2, 5), 2, out=memory[4:28].reshape(2, 3, 2, 2))
    with pytest.raises(ValueError, match="out overlaps rois"):
        out = memory[9:19].reshape(1, 1, 2, 5)
        roi_align_backward(
            np.ones((2, 1, 1, 1), "f4"), memory[:10].reshape(2, 5), out.shape, out=out
        )


def test_out_whose_elements_overlap(rng):
    """They hold what an assignment of the result leaves in them, however threads take turns."""
    features = rng.standard_normal((1, 9, 8, 8)).astype(np.float32)
    pooled = roi_align(features, ROIS[:1], 4)
    windows, expected = (as_strided(np.zeros(99, "f4"), pooled.shape, (4,) * 4) for _ in range(2))
    roi_align(features, ROIS[:1], 4, out=windows)
    expected[...] = pooled
    assert_array_equal(windows, expected)


def test_misaligned_boxes_and_numbers_of_winners(rng):
    features = rng.standard_normal((2, 9, 8, 8)).astype(np.float32)

    wide = ROIS.astype(np.float64)
    pooled, argmax = roi_align(features, wide, 2, mode="max", return_argmax=True)
    assert_array_equal(roi_align(features, misaligned(wide), 2, mode="max"), pooled)
    options = {"feature_shape": features.shape, "mode": "max"}
    assert_array_equal(
        roi_align_backward(pooled, misaligned(wide), argmax=misaligned(argmax), **options),
        roi_align_backward(pooled, wide, argmax=argmax, **options),
    )


@pytest.mark.huge
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_more_features_than_32_bits_number(rng, layout):
    """The last of the images, all others being zeros that are never touched."""
    image = rng.standard_normal((1, 16, 256, 260)).astype(np.float16)
    if layout == "NHWC":
        image = np.ascontiguousarray(image.transpose(0, 2, 3, 1))
    count = 2**31 // image.size + 2
    features = np.zeros((count, *image.shape[1:]), np.float16)
    features[-1:] = image
    rois = np.array([(0, 3.3, -5, 250, 261), (0, 9, 200, 100, 250)])
    last = rois + np.eye(5)[0] * (count - 1)
    print(f"\n{features.size} elements of features")
    for options in ({}, {"sampling_ratio": 2}, {"mode": "max"}):
        pooled = roi_align(features, last, 7, layout=layout, **options)
        assert_array_equal(pooled, roi_align(image, rois, 7, layout=layout, **options))
    grad = rng.standard_normal(roi_align(image, rois, 7, layout=layout).shape).astype(np.float16)
    boxes = roi_align_box_backward(grad, features, last, layout=layout)
    assert_allclose(boxes, roi_align_box_backward(grad, image, rois, layout=layout))
    del features
    gradient = roi_align_backward(grad, last, (count, *image.shape[1:]), layout=layout)
    assert gradient.size > 2**31
    expected = roi_align_backward(grad, rois, image.shape, layout=layout)
    assert_array_equal(gradient[-1:], expected)
    assert not gradient[0].any()


@pytest.mark.huge
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_more_pooled_features_than_32_bits_number(rng, mode):
    channels, size = 1024, 14
    count = 2**31 // (channels * size * size) + 9
    features = rng.standard_normal((2, channels, 20, 20)).astype(np.float16)
    rois = np.column_stack([rng.integers(0, 2, count), rng.uniform(-2, 22, (count, 4))])
    options = {"sampling_ratio": 1, "mode": mode}
    pooled = roi_align(features, rois, size, **options)
    print(f"\n{pooled.size} elements of pooled features")
    assert pooled.size > 2**31
    for rows in (slice(0, 40), slice(count // 2, count // 2 + 40), slice(count - 40, count)):
        assert_array_equal(pooled[rows], roi_align(features, rois[rows], size, **options))
    if mode == "avg":
        # The adjoint identity: what all rows together give, in float64.
        rows = slice(count - 40, count)
        pooled[: count - 40] = 0
        gradient = roi_align_backward(pooled, rois, features.shape, sampling_ratio=1)
        expected = roi_align_backward(pooled[rows], rois[rows], features.shape, sampling_ratio=1)
        assert_allclose(gradient.astype("f4"), expected.astype("f4"), rtol=2e-3, atol=2e-3)


@pytest.mark.huge
def test_a_box_of_a_hundred_megapixels_takes_bounded_scratch():
    """On a ramp the average of a bin is the value at its centre, whatever the grid."""
    side = 10_000
    ramp = np.arange(side, dtype=np.float32) / side
    features = np.empty((1, 3, side, side), np.float32)
    features[:, 0], features[:, 1], features[:, 2] = ramp, ramp[:, None], ramp + ramp[:, None]
    rois = np.array([(0, 0.5, 0.5, side - 0.5, side - 0.5)])
    roi_align(features[:, :, :9, :9], rois, 7)  # compiled
    _cpu.call.CallMemory.spare.clear()
    tracemalloc.start()
    pooled = roi_align(features, rois, 7, aligned=True)
    scratch = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"\n{features.size} elements of features; {scratch} bytes of scratch")
    centres = (np.arange(7) + 0.5) * (side - 1) / 7 / side
    # A sum of 1430 terms of float32, of 1430 such sums.
    assert_allclose(pooled[0, 0], np.broadcast_to(centres, (7, 7)), atol=5e-5)
    assert_allclose(pooled[0, 1], np.broadcast_to(centres[:, None], (7, 7)), atol=5e-5)
    assert_allclose(pooled[0, 2], centres + centres[:, None], atol=1e-4)
    assert scratch < (24 << 20) + numba.get_num_threads() * (10 << 20)  # as the README says
