"""The sampling geometry and the element kernel, in the interpreter and compiled."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit
from numpy.testing import assert_allclose, assert_array_equal

from numba_roialign import _cpu, _geometry, _kernels, _taps
from numba_roialign._geometry import LARGEST_GRID, Axis
from numba_roialign._taps import AxisTaps
from numba_roialign.conventions import MINDSPORE_0, MINDSPORE_1, TORCHVISION, TORCHVISION_ALIGNED

F64, F32 = np.float64, np.float32
axis_taps = njit(**_cpu.job.OPTIONS)(_taps.axis_taps)


def taps_of(axis, fill=_taps.axis_taps, weight_type=F64):
    """Return the taps of each bin as {pixel: weight}, and how many slots they took."""
    bins, samples, length = axis.bins, axis.samples, axis.length
    capacity = _taps.tap_capacity(bins, samples, length)
    capacity = min(capacity, _taps.tap_capacity(bins, 0, length))
    guard = 4
    table = AxisTaps(
        np.full(capacity + guard, -7, np.int32),
        np.full(capacity + guard, np.nan, weight_type),
        np.zeros((1, bins + 1), np.intp),
    )
    fill(axis, table, 0, 0, capacity)
    assert (table.pixels[capacity:] == -7).all(), "written past the table's end"
    bounds = table.bounds[0]
    taps = [(table.pixels[a:b], table.weights[a:b]) for a, b in itertools.pairwise(bounds)]
    for pixels, _ in taps:
        assert (np.diff(pixels) > 0).all(), "pixels ascend and none stands twice"
        assert ((pixels >= 0) & (pixels < length)).all()
    return [dict(zip(p.tolist(), w.tolist(), strict=True)) for p, w in taps], bounds[-1]


def test_two_samples_share_their_pixels():
    # samples at 0.5 and 1.5: pixels 0, 1 and 1, 2, each with half of half a sample
    taps, slots = taps_of(Axis(F64(0), F64(2), 1, 2, 8))
    assert taps == [{0: 0.25, 1: 0.5, 2: 0.25}]
    assert slots == 3


def test_a_sample_on_a_pixel_reads_no_other():
    assert taps_of(Axis(F64(2.5), F64(1), 1, 1, 8))[0] == [{3: 1.0}]


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        (-1.001, {}),
        (-1.0, {0: 1.0}),
        (-0.25, {0: 1.0}),
        (6.75, {6: 0.25, 7: 0.75}),
        (7.5, {7: 1.0}),
        (8.0, {7: 1.0}),
        (8.001, {}),
    ],
)
def test_border(position, expected):
    assert taps_of(Axis(F64(position - 0.5), F64(1), 1, 1, 8))[0] == [expected]


def test_swapped_corners_mirror_the_bins():
    forward, _ = taps_of(Axis(F64(1.3), F64(1.5), 3, 2, 8))
    backward, _ = taps_of(Axis(F64(1.3 + 3 * 1.5), F64(-1.5), 3, 2, 8))
    for one, other in zip(forward, reversed(backward), strict=True):
        assert one.keys() == other.keys()
        assert_allclose([one[k] for k in one], [other[k] for k in one], rtol=1e-12)


def test_an_empty_grid_has_no_taps():
    assert taps_of(Axis(F64(1), F64(0), 2, 0, 8)) == ([{}, {}], 0)


@given(
    start=st.floats(-40, 40),
    bin_size=st.floats(-9, 9),
    bins=st.integers(1, 5),
    samples=st.integers(1, 9),
    length=st.integers(1, 17),
)
def test_taps_are_the_samples_merged(start, bin_size, bins, samples, length):
    axis = Axis(F64(start), F64(bin_size), bins, samples, length)
    taps, _ = taps_of(axis)
    for p in range(bins):
        expected = np.zeros(length)
        edge = axis.start + F64(p) * axis.bin_size
        for i in range(samples):
            position = edge + (F64(i) + 0.5) * (axis.bin_size / F64(samples))
            if -1 <= position <= length:
                at = min(max(position, 0), length - 1)
                low = min(int(at), length - 1)
                expected[low] += (1 - (at - low)) / samples
                expected[min(low + 1, length - 1)] += (at - low) / samples
        got = np.zeros(length)
        got[list(taps[p])] = list(taps[p].values())
        assert_allclose(got, expected, atol=1e-13)


@given(
    start=st.floats(-1e6, 1e6),
    bin_size=st.floats(0.01, 1e6),
    bins=st.integers(1, 4),
    length=st.integers(1, 40),
    mirrored=st.booleans(),
    weight_type=st.sampled_from([F32, F64]),
)
def test_adaptive_taps_fit_their_table(start, bin_size, bins, length, mirrored, weight_type):
    samples = math.ceil(bin_size)
    size = F64(-bin_size if mirrored else bin_size)
    interpreted = taps_of(Axis(F64(start), size, bins, samples, length), weight_type=weight_type)
    compiled = taps_of(Axis(F64(start), size, bins, samples, length), axis_taps, weight_type)
    assert_array_equal(compiled[1], interpreted[1])
    # the interpreter does not fuse multiply and add: a position differs in its last bit
    tolerance = 1e-15 * (abs(start) + bins * bin_size) + 1e-6
    for one, other in zip(interpreted[0], compiled[0], strict=True):
        assert one.keys() == other.keys()
        assert_allclose(list(one.values()), list(other.values()), atol=tolerance)


@pytest.mark.parametrize("T", [F32, F64])
def test_a_box_far_larger_than_the_map_visits_only_samples_near_it(T):
    # float32 holds every half pixel up to 2**23
    size = 2**22 if T is F32 else 2**30
    first, last = _taps.samples_inside(T(-size // 2), T(1), size, 100)
    assert 100 <= last - first <= 106
    taps, _ = taps_of(Axis(T(-size // 2), T(size), 1, size, 100))
    assert len(taps[0]) == 100
    assert_allclose(sum(taps[0].values()) * size, 101)


def test_clamp():
    values = [F64(value) for value in (-2, 3, 5.5, 9, math.inf, -math.inf, math.nan)]
    assert [_geometry.clamp(value, F64(3), F64(6)) for value in values] == [3, 3, 5.5, 6, 6, 3, 3]


@pytest.mark.parametrize(
    ("bin_size", "samples", "floor_grid", "expected"),
    [
        (2.0, -1, False, 2),
        (2.0001, -1, False, 3),
        (0.0, -1, False, 0),
        (-3.5, -1, False, 0),
        (2.9, 0, True, 2),
        (0.3, 0, True, 1),
        (-3.5, 0, True, 1),
        (-3.5, 4, False, 4),
        (math.nan, 4, False, -1),
        (math.inf, 4, False, -1),
        (1e300, 4, False, 4),
        (float(LARGEST_GRID), -1, False, -1),
        (-float(LARGEST_GRID), -1, False, -1),
        (1e9, -1, False, 10**9),
    ],
)
def test_samples_per_bin(bin_size, samples, floor_grid, expected):
    most = LARGEST_GRID
    assert _geometry.samples_per_bin(F64(bin_size), samples, most, floor_grid) == expected


@pytest.mark.parametrize(
    ("bin_size", "samples", "floor_grid", "expected"),
    [
        (2.5, -1, False, 3),
        (3.5, -1, False, 4),
        (4.5, -1, False, 4),
        (4.5, -1, True, 4),
        (5.5, -1, True, 4),
        (1e300, -1, False, 4),
        (-1e300, -1, False, 0),
        (-1e300, -1, True, 1),
        (9.5, 7, False, 7),
        (math.inf, -1, False, -1),
    ],
)
def test_samples_per_bin_with_a_cap(bin_size, samples, floor_grid, expected):
    assert _geometry.samples_per_bin(F64(bin_size), samples, 4, floor_grid) == expected


def test_the_grid_is_decided_in_the_accumulators_type():
    # 50 * 0.3 is 15 in float64 and a little more in float32, as in torchvision: 5 or 6 samples
    low, high = F64(0), F64(50)
    grids = [
        _geometry.axis_of(low, high, F64(0.3), 3, -1, LARGEST_GRID, 99, TORCHVISION, zero).samples
        for zero in (F32(0), F64(0))
    ]
    assert grids == [6, 5]


@pytest.mark.parametrize(
    ("convention", "expected"),
    [
        (TORCHVISION, (1.0, 1.0)),
        (TORCHVISION_ALIGNED, (0.5, 0.5)),
        (MINDSPORE_0, (1.0, 1.0)),
        (MINDSPORE_1, (1.0, 1.0)),
    ],
)
def test_span_of_a_small_box(convention, expected):
    start, size = _geometry.span(F64(2), F64(3), F64(0.5), convention, F64(0))
    assert (start, size) == expected


@pytest.mark.parametrize(
    ("index", "truncated", "rounded"),
    [
        (0.0, 0, 0),
        (0.49, 0, 0),
        (0.5, 0, 1),
        (1.0, 1, 1),
        (1.5, 1, -1),
        (2.0, -1, -1),
        (-0.1, -1, -1),
        (math.nan, -1, -1),
        (math.inf, -1, -1),
    ],
)
def test_image_of(index, truncated, rounded):
    assert _geometry.image_of(F64(index), 2, TORCHVISION) == truncated
    assert _geometry.image_of(F64(index), 2, MINDSPORE_0) == rounded


def test_the_element_kernel_runs_in_the_interpreter():
    features = np.arange(24, dtype=F32)
    rows = _taps.Taps(np.array([1, 2], np.int32), np.array([0.5, 0.5], F32), 0, 2)
    columns = _taps.Taps(np.array([0, 3], np.int32), np.array([0.25, 0.75], F32), 0, 2)
    plane = np.uintp(4), np.uintp(5), np.uintp(1)
    value = _kernels.average(features, *plane, rows, columns, F32(0), F32(0))
    image = features[4:19].reshape(3, 5)
    assert value == F32(0.5) * (image[1] + image[2])[[0, 3]] @ np.array([0.25, 0.75], F32)
    assert type(value) is F32
