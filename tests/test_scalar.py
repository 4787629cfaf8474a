"""The scalar kernel inside kernels of the user's own, on each target."""

from importlib.util import find_spec

import numpy as np
import pytest
from numba import njit, prange
from numpy.testing import assert_allclose

from numba_roialign import CONVENTIONS, roi_align
from numba_roialign.scalar import pooled_value

from .conftest import random_features, random_rois

ALIGNED = CONVENTIONS["torchvision_aligned"]
MINDSPORE = CONVENTIONS["mindspore_1"]


def case(rng, dtype=np.float64):
    features = random_features(rng, (2, 3, 6, 7), dtype)
    return features, random_rois(rng, 4, features.shape, 0.5).astype(dtype)


@njit
def pool_mindspore(features, rois, scale, samples, out):
    for n, c, ph, pw in np.ndindex(out.shape):
        box = (rois[n, 1], rois[n, 2], rois[n, 3], rois[n, 4])
        out[n, c, ph, pw] = pooled_value(
            features, int(rois[n, 0]), c, box, (ph, pw), out.shape[2:], scale, samples, MINDSPORE
        )


@pytest.mark.only("cpu")
@pytest.mark.parametrize("samples", [2, 0])
@pytest.mark.parametrize("compiled", [True, False])
def test_it_is_the_operator(rng, samples, compiled):
    features, rois = case(rng)
    rois[0, [1, 3]] = 0  # a line, which MindSpore skips
    out = np.empty((4, 3, 2, 3))
    pool = pool_mindspore if compiled else pool_mindspore.py_func
    pool(features, rois, np.float64(0.5), samples, out)
    expected = roi_align(features, rois, (2, 3), 0.5, samples, convention="mindspore_1")
    assert_allclose(out, expected, atol=1e-12)
    assert not out[0].any()


@pytest.mark.only("cpu")
@pytest.mark.parametrize("scale", [1, np.int32(1)])
@pytest.mark.parametrize("compiled", [True, False])
def test_a_scale_that_is_an_integer(rng, scale, compiled):
    features, rois = case(rng)
    out = np.empty((4, 3, 2, 3))
    pool = pool_mindspore if compiled else pool_mindspore.py_func
    pool(features, rois, scale, 2, out)
    assert_allclose(out, roi_align(features, rois, (2, 3), 1, 2, convention="mindspore_1"))


@njit(parallel=True)
def scores_of(features, rois, weights):
    """Pool, rectify and classify in one compiled function, without an array of pooled features."""
    scores = np.zeros((len(rois), len(weights)))
    for n in prange(len(rois)):
        box = (rois[n, 1], rois[n, 2], rois[n, 3], rois[n, 4])
        for c in range(features.shape[1]):
            for ph in range(2):
                for pw in range(2):
                    value = pooled_value(
                        features, int(rois[n, 0]), c, box, (ph, pw), (2, 2), 0.5, 2, ALIGNED
                    )
                    for k in range(len(weights)):
                        scores[n, k] += weights[k, c, ph, pw] * max(value, 0.0)
    return scores


@pytest.mark.only("cpu")
def test_a_pipeline_compiled_end_to_end(rng):
    features, rois = case(rng)
    weights = rng.standard_normal((5, 3, 2, 2))
    pooled = np.maximum(roi_align(features, rois, 2, 0.5, 2, True), 0)
    assert_allclose(
        scores_of(features, rois, weights), np.einsum("nchw,kchw->nk", pooled, weights), atol=1e-12
    )


if find_spec("numba_cuda") is not None:
    from numba import cuda

    @cuda.jit
    def masks_of(logits, rois, scale, threshold, masks):
        """Pool a mask and threshold it in the same launch: a thread per pixel of it."""
        height, width = masks.shape[1], masks.shape[2]
        for element in range(cuda.grid(1), masks.size, cuda.gridsize(1)):
            rest, pw = element // width, element % width
            n, ph = rest // height, rest % height
            box = (rois[n, 1], rois[n, 2], rois[n, 3], rois[n, 4])
            value = pooled_value(
                logits, int(rois[n, 0]), 0, box, (ph, pw), (height, width), scale, 2, ALIGNED
            )
            masks[n, ph, pw] = value > threshold


@pytest.mark.only("cuda")
@pytest.mark.filterwarnings("ignore:.*Grid size")  # which a device has more blocks for
def test_a_cuda_kernel_that_pools_and_goes_on(target, rng):
    logits, rois = case(rng, np.float32)
    masks = target.array(np.zeros((4, 3, 3), np.bool_))
    scale, threshold = np.float32(0.5), np.float32(0.1)
    target.launch(
        masks_of, 1, 32, target.array(logits), target.array(rois), scale, threshold, masks
    )
    pooled = roi_align(logits[:, :1], rois, 3, 0.5, 2, True)[:, 0]
    assert not (np.abs(pooled - 0.1) < 1e-4).any(), "no value on the edge"
    np.testing.assert_array_equal(masks.copy_to_host(), pooled > 0.1)


@pytest.mark.only("cpu")
def test_boxes_that_cannot_be_pooled_give_nan():
    features = np.ones((1, 1, 4, 4))
    for box in [(np.nan, 0.0, 1.0, 1.0), (0.0, 0.0, np.inf, 1.0), (0.0, -1e300, 1.0, 1e300)]:
        value = pooled_value(features, 0, 0, box, (0, 0), (1, 1), np.float64(1), -1, ALIGNED)
        assert np.isnan(value)
