"""What holds for every RoIAlign, whatever the numbers: hypothesis draws the shapes and modes.

Coordinates come from a seeded generator: samples that fall within a rounding error of the border
are where the operator jumps, and hypothesis would look for exactly these. They have tests of their
own, with numbers that are exact.
"""

from typing import NamedTuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from numba_roialign import ROIAlign, roi_align

from . import reference
from .conftest import SIMULATOR, random_features, random_rois


class Pooling(NamedTuple):
    """One way to call the package, and the same call of the reference."""

    kind: str  # torchvision, aligned, mode 0, mode 1
    size: tuple[int, int]
    scale: float
    sampling: int

    def __call__(self, target, features, rois):
        features, rois = target.array(features), target.array(rois)
        if self.kind.startswith("mode"):
            operator = ROIAlign(*self.size, self.scale, self.sampling, int(self.kind[-1]))
            return target.numpy(operator(features, rois))
        aligned = self.kind == "aligned"
        return target.numpy(
            roi_align(features, rois, self.size, self.scale, self.sampling, aligned)
        )

    def expected(self, features, rois):
        arguments = features, rois, self.size, self.scale, self.sampling
        if self.kind.startswith("mode"):
            return reference.mindspore_roi_align(*arguments, int(self.kind[-1]))
        return reference.roi_align(*arguments, self.kind == "aligned")


poolings = st.builds(
    Pooling,
    st.sampled_from(["torchvision", "aligned", "mode 0", "mode 1"]),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from([1.0, 0.5, 0.25, 0.3]),
    st.integers(-1, 3),
)
seeds = st.integers(0, 2**32 - 1)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 8), st.integers(1, 8))
counts = st.integers(1, 5)


def draw_case(target, seed, shape, count, scale):
    if target.small:
        shape, count = (*np.minimum(shape, [3, 2, 4, 4]),), min(count, 2)
    rng = np.random.default_rng(seed)
    features = random_features(rng, shape)
    return features, random_rois(rng, count, features.shape, scale), rng


@given(poolings, shapes, counts, seeds)
def test_every_case_is_the_reference(target, pooling, shape, count, seed):
    features, rois, _ = draw_case(target, seed, shape, count, pooling.scale)
    result = pooling(target, features, rois)
    tolerance = target.tolerance(features, rois, pooling.scale)
    assert_allclose(result, pooling.expected(features, rois), rtol=0, atol=tolerance)


def rois_inside(rng, count, shape, scale):
    """Boxes with a size, so that all samples are inside the map even one pixel further on."""
    images, _, height, width = shape
    extent = np.array([width, height]) / scale
    first = rng.uniform(0, 0.25, (count, 2)) * extent
    last = first + rng.uniform(0.05, 0.25, (count, 2)) * extent
    index = rng.integers(0, images, (count, 1))
    return np.concatenate([index, first, last], axis=1).astype(np.float32)


@given(poolings, shapes, counts, seeds, st.floats(-1e4, 1e4, width=32))
def test_a_constant_stays_inside_and_shrinks_outside(target, pooling, shape, count, seed, value):
    shape = (*shape[:2], shape[2] + 2, shape[3] + 2)
    features, rois, rng = draw_case(target, seed, shape, count, pooling.scale)
    features = np.full_like(features, value)
    slack = abs(value) * 2.0**-20 + 1e-37  # float32 loses relative precision below
    inside = rois_inside(rng, len(rois), features.shape, pooling.scale)
    assert_allclose(pooling(target, features, inside), value, rtol=0, atol=slack)
    anywhere = pooling(target, features, rois) * np.sign(value)
    assert (anywhere >= -slack).all()
    assert (anywhere <= abs(value) + slack).all()


@given(poolings, shapes, counts, seeds, st.floats(-8, 8, width=16), st.floats(-8, 8, width=16))
def test_it_is_linear_in_the_features(target, pooling, shape, count, seed, a, b):
    first, rois, rng = draw_case(target, seed, shape, count, pooling.scale)
    second = random_features(rng, first.shape)
    mixed = (a * first.astype(np.float64) + b * second).astype(np.float32)
    parts = a * pooling(target, first, rois).astype(np.float64) + b * pooling(target, second, rois)
    largest = abs(a) * np.abs(first).max() + abs(b) * np.abs(second).max()
    assert_allclose(pooling(target, mixed, rois), parts, rtol=0, atol=2.0**-18 * largest)


@given(poolings, shapes, counts, seeds)
def test_channels_do_not_touch_each_other(target, pooling, shape, count, seed):
    shape = (shape[0], shape[1] + 1, *shape[2:])
    features, rois, rng = draw_case(target, seed, shape, count, pooling.scale)
    together = pooling(target, features, rois)
    channel = int(rng.integers(features.shape[1]))
    alone = pooling(target, features[:, [channel]], rois)
    tolerance = target.tolerance(features, rois, pooling.scale)
    assert_allclose(alone[:, 0], together[:, channel], rtol=0, atol=tolerance)
    others = np.arange(features.shape[1]) != channel
    features[:, others] = np.nan
    assert_array_equal(pooling(target, features, rois)[:, channel], together[:, channel])


@given(poolings, shapes, counts, seeds)
def test_each_box_is_pooled_by_itself(target, pooling, shape, count, seed):
    features, rois, rng = draw_case(target, seed, shape, count + 1, pooling.scale)
    result = pooling(target, features, rois)
    order = rng.permutation(len(rois))
    assert_array_equal(pooling(target, features, rois[order]), result[order])
    alone = pooling(target, features, rois[:1])
    if target.name == "cpu" or SIMULATOR:
        assert_array_equal(alone, result[:1])
    else:  # few boxes have a kernel of their own there, which the compiler may round otherwise
        assert_allclose(alone, result[:1], rtol=1e-5, atol=1e-5)


@given(poolings, shapes, counts, seeds)
def test_images_are_told_by_their_index_only(target, pooling, shape, count, seed):
    shape = (shape[0] + 1, *shape[1:])
    features, rois, rng = draw_case(target, seed, shape, count, pooling.scale)
    result = pooling(target, features, rois)
    order = rng.permutation(len(features))
    moved = rois.copy()
    moved[:, 0] = np.argsort(order)[rois[:, 0].astype(int)]
    assert_array_equal(pooling(target, features[order], moved), result)


@given(poolings, shapes, counts, seeds, st.integers(0, 3), st.integers(0, 3))
def test_a_box_moves_with_the_picture(target, pooling, shape, count, seed, down, right):
    # by whole pixels of the map, so that samples keep their weights
    shape = (*shape[:2], shape[2] + 2, shape[3] + 2)
    features, rois, rng = draw_case(target, seed, shape, count, pooling.scale)
    rois = rois_inside(rng, len(rois), features.shape, pooling.scale)
    rois[:, 1:] += 1 / pooling.scale  # off the border, where the larger map has more to read
    picture = np.pad(features, [(0, 0), (0, 0), (1, 1), (1, 1)])
    moved = rois + np.float32([0, right, down, right, down]) / np.float32(pooling.scale)
    result = pooling(target, np.pad(picture, [(0, 0), (0, 0), (down, 0), (right, 0)]), moved)
    assert_allclose(result, pooling(target, picture, rois), rtol=0, atol=1e-4)
