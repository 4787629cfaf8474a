"""The CPU's schedules hold together: lanes, one element at a time, and the interpreter."""

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numba
import numpy as np
import pytest
from numba.core import ccallback
from numpy.testing import assert_allclose, assert_array_equal

import numba_roialign
from numba_roialign import (
    _cpu,
    _geometry,
    _kernels,
    _memory,
    _taps,
    roi_align,
    roi_align_backward,
)
from numba_roialign._cpu.arrays import array_at
from numba_roialign.conventions import TORCHVISION

from . import reference
from .conftest import random_features, random_rois

pytestmark = pytest.mark.only("cpu")
LAYOUTS = {
    "channels first": lambda features: features,
    "channels last": lambda features: np.ascontiguousarray(
        features.transpose(0, 2, 3, 1)
    ).transpose(0, 3, 1, 2),
    "every other column": lambda features: np.repeat(features, 2, axis=3)[..., ::2],
    "cropped": lambda features: np.pad(features, 3, mode="wrap")[3:-3, 3:-3, 3:-3, 3:-3],
}


@pytest.fixture
def without_lanes(planned_with):
    """Return `roi_align` on the scalar schedule."""

    def pool(*arguments, **keywords):
        with planned_with(_cpu.schedules, MOST_LANES=1):
            return roi_align(*arguments, **keywords)

    return pool


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 16, 1, 1),
        (1, 17, 1, 9),
        (1, 8, 9, 1),
        (2, 33, 3, 4),
        (2, 16, 40, 37),
        (1, 70, 5, 6),
        *[(1, channels, 5, 18) for channels in range(1, 18)],
    ],
    ids=str,
)
def test_lanes_equal_the_scalar_schedule(rng, without_lanes, layout, shape):
    features = LAYOUTS[layout](random_features(rng, shape, np.float32))
    rois = random_rois(rng, 9, shape)
    for size, samples in [((7, 7), 2), ((1, 2), -1), ((5, 9), 1)]:
        arguments = (rois, size, 1.0, samples, True)
        pooled = roi_align(features, *arguments)
        assert_array_equal(pooled, without_lanes(features, *arguments))
        assert_allclose(pooled, reference.roi_align(features, *arguments), rtol=0, atol=3e-6)


@pytest.mark.parametrize("layout", ["channels first", "channels last"])
def test_results_lie_anyhow(rng, planned_with, without_lanes, schedules_run, layout):
    """Where a pixel's channels, a channel's bins, or nothing lies side by side."""
    features = LAYOUTS[layout](random_features(rng, (1, 19, 12, 21), np.float32))
    corner = rng.uniform(0, [12, 4], (60, 2))
    rois = np.column_stack([np.zeros(60), corner, corner + rng.uniform(5, 9, (60, 2))])
    scalar = without_lanes(features, rois, (5, 4))
    for lie in LAYOUTS.values():
        out = lie(np.full(scalar.shape, np.nan, np.float32))
        with planned_with(_cpu.schedules, PIXELS_READS=0.001):  # packed, also channels last
            roi_align(features, rois, (5, 4), out=out)
        assert_array_equal(out, scalar)
    assert schedules_run[-len(LAYOUTS) :] == ["average_channels"] * len(LAYOUTS)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
@pytest.mark.parametrize("layout", ["channels first", "channels last"])
def test_lanes_of_every_dtype(rng, without_lanes, dtype, layout):
    features = LAYOUTS[layout](random_features(rng, (2, 19, 12, 21), dtype))
    rois = random_rois(rng, 9, features.shape)
    pooled = roi_align(features, rois, 6)
    assert pooled.dtype == dtype
    assert_array_equal(pooled, without_lanes(features, rois, 6))


def test_lanes_equal_the_interpreter(rng):
    features = random_features(rng, (2, 16, 6, 7), np.float32)
    rois = random_rois(rng, 3, features.shape).astype(np.float64)
    sampling = _geometry.Sampling(2, 6, 7, 2, 3, *np.float64([1, 1]), 2, 2, 99)
    zero = np.float32(0)
    y_taps, x_taps = (
        _taps.empty_taps(np.empty, 3, bins, 2 * 2 * bins, np.float32) for bins in (2, 3)
    )
    tables = np.empty(3, np.intp), y_taps, x_taps
    for n in range(3):
        _taps.fill_taps(*tables, n, rois, n, sampling, TORCHVISION, zero)
    strides = _kernels.Strides(16 * 6 * 7, 6 * 7, 7, 1)
    pooled = roi_align(features, rois, (2, 3), 1.0, 2)
    for index in np.ndindex(pooled.shape):
        value = _kernels.average_at(features.reshape(-1), strides, *tables, *index, zero)
        assert_allclose(pooled[index], value, rtol=0, atol=1e-6)


def test_few_channels_whose_taps_lie_far_apart(rng, without_lanes):
    features = random_features(rng, (1, 3, 9, 400), np.float32)
    rois = np.array([[0, 0, 0, 399, 9], [0, 7, 1, 50, 8], [0, -30, 0, 900, 9]], np.float32)
    for arguments in [(rois, (2, 3), 1.0, 1), (rois, (2, 90), 1.0, 1)]:
        assert_array_equal(roi_align(features, *arguments), without_lanes(features, *arguments))


@pytest.fixture
def schedules_run(monkeypatch):
    """Return the modules of the schedules that compute calls, one call after the other."""
    names, run = [], _cpu.target.run

    def noting(plan, *arguments):
        result = run(plan, *arguments)
        memory = _cpu.call.CallMemory.spare[-1]  # which the call has just given back
        needed = plan.schedules.needed(memory.found)
        bands = " in bands" if memory.job[_cpu.job.POSITIONS["banded"]] else ""
        names.extend(
            schedule.work.__module__.split(".")[-1] + bands for schedule in needed.values()
        )
        return result

    monkeypatch.setattr(_cpu.target, "run", noting)
    return names


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64], ids=lambda t: t.__name__)
@pytest.mark.parametrize("channels", [3, 19])
@pytest.mark.parametrize("layout", ["channels first", "channels last"])
def test_sparse_rois_among_others(rng, without_lanes, schedules_run, layout, channels, dtype):
    features = LAYOUTS[layout](random_features(rng, (3, channels, 70, 90), dtype))
    rois = random_rois(rng, 12, features.shape)
    small = rois[:, 1:3] + rng.uniform(1, 9, (12, 2)).astype(np.float32)
    rois = np.concatenate([rois, np.column_stack([rois[:, :3], small])])[rng.permutation(24)]
    rois[5, 1], rois[17, 0] = np.nan, 3
    for size, samples in [((9, 10), 1), ((1, 1), 2), ((2, 17), 1)]:
        arguments = (size, 1.0, samples, True)
        whole = roi_align(features, rois, *arguments, validate=False)
        kinds = 1 if channels == 19 and layout == "channels last" else 2
        assert len(schedules_run) == kinds
        assert np.isnan(whole[[5, 17]]).all()
        scalar = without_lanes(features, rois, *arguments, validate=False)
        assert_array_equal(whole, scalar)
        for n in range(24):
            one = roi_align(features, rois[n : n + 1], *arguments, validate=False)
            assert_array_equal(one, whole[n : n + 1])
        schedules_run.clear()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64], ids=lambda t: t.__name__)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rois_apart_and_together(rng, without_lanes, schedules_run, layout, dtype):
    """A RoI has the same bits by itself, among others far away, among some, or in a crowd."""
    features = LAYOUTS[layout](random_features(rng, (2, 19, 40, 60), dtype))
    corner = rng.uniform(0, [6, 5], (9, 2))
    box = np.column_stack([corner, corner + rng.uniform(8, 20, (9, 2))])
    together = np.column_stack([np.zeros(9), box])
    apart = np.array([(0, 1, 2, 9, 12), (0, 40, 20, 59, 40), (1, 0.5, 29, 70, 44), together[4]])
    crowd, read = np.tile(together, (20, 1)), {}
    for size, samples in [((7, 7), 2), ((3, 12), -1), ((9, 8), 1)]:
        arguments = (size, 1.0, samples, True)
        for rois in together, apart, crowd:
            schedules_run.clear()
            pooled = roi_align(features, rois, *arguments)
            read.setdefault(len(rois), set()).update(schedules_run)
            assert_array_equal(pooled, without_lanes(features, rois, *arguments))
    assert read[len(crowd)] == {"average_channels"}
    last = layout == "channels last"
    assert read[len(together)] == {"average_pixels" if last else "average_channels"}
    squares = "average_lines" if layout in ("channels first", "cropped") else "average_channels"
    assert read[len(apart)] == {"average_pixels" if last else squares}


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", [8, 70, 300])
def test_whole_pixels(rng, planned_with, without_lanes, schedules_run, layout, channels):
    """Bins with more taps than a line or a few rows hold, and none; pixels and results in parts."""
    features = LAYOUTS["channels last"](random_features(rng, (2, channels, 50, 60), np.float32))
    rois = random_rois(rng, 6, features.shape)
    rois[:3, 1:] = [1, 2, 58, 49], [-20, 5, 70, 40], [70, 3, 90, 30]
    for size, samples in [((1, 2), -1), ((2, 1), 30), ((7, 7), 2)]:
        arguments = (size, 1.0, samples, True)
        scalar = without_lanes(features, rois, *arguments)
        schedules_run.clear()
        source = features if layout == "NCHW" else features.transpose(0, 2, 3, 1)
        for changed in {}, {"PIECE": 64}, {"CELLS": 64}:
            with planned_with(_cpu.average_pixels, **changed):
                pooled = roi_align(source, rois, *arguments, layout=layout)
            in_order = pooled if layout == "NCHW" else pooled.transpose(0, 3, 1, 2)
            assert_array_equal(in_order, scalar)
        assert len([name for name in schedules_run if "average_pixels" in name]) == 3


@pytest.mark.parametrize("out_layout", ["NCHW", "NHWC"])
def test_bands_of_the_map(rng, monkeypatch, planned_with, without_lanes, schedules_run, out_layout):
    """Of RoIs on some images and beside the map, for any number of threads, around the caches."""
    features = random_features(rng, (5, 60, 40, 16), np.float32)  # channels last
    rois = random_rois(rng, 120, (4, 16, 60, 40))
    rois[:, 0] = np.where(rois[:, 0] < 2, 1, 3)
    rois[5:8, 1:] = [-90, -90, -50, -50], [0, 59, 39, 0], [-5, -5, 45, 65]
    arguments = (5, 4), 1.0, 2, True
    expected = without_lanes(features.transpose(0, 3, 1, 2), rois, *arguments)
    out = np.empty((120, 16, 5, 4) if out_layout == "NCHW" else (120, 5, 4, 16), np.float32)
    last = out.transpose(0, 2, 3, 1) if out_layout == "NCHW" else out
    monkeypatch.setattr(_cpu.call, "STREAM_BYTES", 0)
    before = numba.get_num_threads()
    for band_bytes, threads in (1, 1), (1, 3), (30_000, 2), (30_000, 4):
        out[...] = np.nan
        try:
            numba.set_num_threads(threads)
            constants = planned_with(_cpu.average_pixels, BAND_BYTES=band_bytes)
            with planned_with(_cpu.plan, SERIAL_WORK=0), constants:
                roi_align(features, rois, *arguments, layout="NHWC", out=last)
        finally:
            numba.set_num_threads(before)
        assert_array_equal(last.transpose(0, 3, 1, 2), expected)
    assert schedules_run[-4:] == ["average_pixels in bands"] * 4


@pytest.mark.parametrize("channels", [4, 16])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_stays_in_its_bins(rng, without_lanes, value, channels):
    features = random_features(rng, (1, channels, 20, 20), np.float32)
    features[0, 3, 8, 9] = value
    rois = random_rois(rng, 30, features.shape)
    pooled = roi_align(features, rois, 5)
    scalar = without_lanes(features, rois, 5)
    assert 0 < np.count_nonzero(~np.isfinite(pooled)) < pooled[:, 3].size
    assert np.isfinite(np.delete(pooled, 3, axis=1)).all()
    assert_array_equal(pooled, scalar)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_box_that_taps_few_of_its_pixels(rng, without_lanes, layout):
    features = LAYOUTS[layout](random_features(rng, (1, 16, 90, 80), np.float32))
    features[0, 3, 45, 40] = np.nan  # in the window, and not tapped
    rois = np.array([[0, 2, 3, 70, 85], [0, 30, 30, 34, 33], [0, -20, 9, 99, 88]], np.float32)
    for size, samples in [((1, 1), 2), ((2, 3), 1)]:
        arguments = (rois, size, 1.0, samples)
        pooled = roi_align(features, *arguments)
        assert np.isfinite(pooled).all()
        assert_array_equal(pooled, without_lanes(features, *arguments))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 3, 7])
def test_rows_of_bins_in_lanes(rng, without_lanes, layout, channels):
    """More rows of bins than lanes, fewer, and a last group that overlaps the one before."""
    features = LAYOUTS[layout](random_features(rng, (2, channels, 21, 45), np.float32))
    rois = random_rois(rng, 9, features.shape)
    for size in [(8, 8), (20, 9), (16, 33)]:
        arguments = (rois, size, 1.0, 2, True)
        pooled = roi_align(features, *arguments)
        out = np.zeros((*pooled.shape[:2], size[1], size[0]), np.float32).swapaxes(2, 3)
        roi_align(features, *arguments, out=out)
        assert_array_equal(out, pooled)
        assert_array_equal(pooled, without_lanes(features, *arguments))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [32, 40])
@pytest.mark.parametrize(("layout", "mode"), [("NCHW", "avg"), ("NHWC", "avg"), ("NHWC", "max")])
def test_results_go_around_the_caches_unchanged(rng, monkeypatch, dtype, channels, layout, mode):
    shape = (2, channels, 9, 11) if layout == "NCHW" else (2, 9, 11, channels)
    features = random_features(rng, shape, dtype)
    rois = random_rois(rng, 20, (2, channels, 9, 11))
    options = {"layout": layout, "mode": mode}
    expected = roi_align(features, rois, (5, 7), **options)
    monkeypatch.setattr(_cpu.call, "STREAM_BYTES", 0)
    for skip in (0, 1, 5):  # elements, so that runs begin anywhere in a cache line
        memory = _memory.aligned_empty(((expected.size + skip) * expected.itemsize,))
        out = memory.view(dtype)[skip:].reshape(expected.shape)
        roi_align(features, rois, (5, 7), **options, out=out)
        assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_rows_of_bins_go_around_the_caches_unchanged(rng, monkeypatch, dtype, layout):
    """Rows of whole cache lines and others, in an output that begins anywhere in one."""
    shape = (2, 3, 21, 45) if layout == "NCHW" else (2, 21, 45, 3)
    features, rois = random_features(rng, shape, dtype), random_rois(rng, 9, (2, 3, 21, 45))
    streamed, may_stream = [], _cpu.call.may_stream

    def recorded(*arguments):
        streamed.append(may_stream(*arguments))
        return streamed[-1]

    monkeypatch.setattr(_cpu.call, "may_stream", recorded)
    for size in [(20, 9), (19, 64)]:
        expected = roi_align(features, rois, size, layout=layout)
        assert streamed.pop() is False
        with monkeypatch.context() as patch:
            patch.setattr(_cpu.call, "STREAM_BYTES", 0)
            for skip in (0, 1, 5):
                memory = _memory.aligned_empty(((expected.size + skip) * expected.itemsize,))
                out = memory.view(dtype)[skip:].reshape(expected.shape)
                roi_align(features, rois, size, layout=layout, out=out)
                assert_array_equal(out, expected)
                assert streamed.pop() is True


@pytest.mark.parametrize("channels", [32, 40])
def test_gradients_go_around_the_caches_unchanged(rng, monkeypatch, channels):
    grad = random_features(rng, (20, 5, 7, channels), np.float32)
    rois, shape = random_rois(rng, 20, (2, channels, 9, 11)), (2, 9, 11, channels)
    expected = roi_align_backward(grad, rois, shape, layout="NHWC")
    monkeypatch.setattr(_cpu.call, "STREAM_BYTES", 0)
    for skip in (0, 1):
        memory = _memory.aligned_empty(((expected.size + skip) * expected.itemsize,))
        out = memory.view(np.float32)[skip:].reshape(shape)
        roi_align_backward(grad, rois, shape, layout="NHWC", out=out)
        assert_array_equal(out, expected)


def take_item(pointer, row, column):
    return array_at(pointer, (3, 4))[row, column]


@pytest.mark.parametrize(("row", "column"), [(2, 3), (3, 0), (0, 4), (-1, 0)])
def test_plain_arrays_check_bounds_where_numba_is_asked_to(monkeypatch, row, column):
    signature, memory, raised = "int64(CPointer(int64), intp, intp)", np.arange(12), []
    take = numba.cfunc(signature, boundscheck=True)(take_item).ctypes
    # what is raised in a C callback has nowhere to go
    monkeypatch.setattr(sys, "unraisablehook", lambda event: raised.append(event.exc_type))
    value = take(memory.ctypes.data_as(take.argtypes[0]), row, column)
    assert (value, raised) == ((11, []) if (row, column) == (2, 3) else (0, [IndexError]))


def test_where_arrays_begin(tmp_path):
    """It is read from the place that NumPy's C interface gives it."""
    whole = np.arange(24.0).reshape(2, 3, 4)
    mapped = np.memmap(tmp_path / "map", np.float32, "w+", shape=(5, 6))
    views = [whole[1:, :, 2], whole[::-1, :, ::-2], whole.T, whole[:0]]
    for array in [whole, mapped, mapped[2:], np.ma.masked_array(whole), np.empty(0), *views]:
        assert _memory.address_of(array) == array.__array_interface__["data"][0]


def test_results_of_any_number_are_made_as_one_result_is():
    results = _memory.results_of((3, 5), np.dtype(np.float16))
    aligned = -(-_memory.LARGE_RESULT // 30)
    for count in (1, aligned - 1, aligned, aligned + 1):
        made = results(count)
        assert (made.shape, made.dtype) == ((count, 3, 5), np.float16)
        assert made.flags.c_contiguous
        if count >= aligned:
            assert _memory.address_of(made) % _memory.LINE == 0


@pytest.mark.parametrize("collects", [True, False])
def test_the_collector_pauses_while_a_function_compiles(monkeypatch, collects):
    states = []

    def compile_and_fail(code):
        states.append(gc.isenabled())
        raise ArithmeticError

    monkeypatch.setattr(ccallback.CFunc, "compile", compile_and_fail)
    before = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        with pytest.raises(ArithmeticError):
            _cpu.job.compiled(_cpu.divide.divide_batch, _cpu.kinds.Kinds.of(*["float32"] * 2), 3)
        states.append(gc.isenabled())
    finally:
        (gc.enable if before else gc.disable)()
    assert states == [False, collects]


def test_memory_of_large_results_is_used_again_only_when_they_are_gone(monkeypatch):
    monkeypatch.setattr(_memory._Lease, "kept", {})
    shape = (_memory.LENT_RESULT // 4 + 3,)
    result = _memory.empty_result(shape, np.float32)
    assert _memory.address_of(result) % _memory.LINE == 0
    address, view = _memory.address_of(result), result[5:9]
    del result
    other = _memory.empty_result(shape, np.float32)
    assert _memory.address_of(other) != address
    view[:] = 1
    assert view.sum() == 4
    del view
    assert _memory.address_of(_memory.empty_result(shape, np.float32)) == address


@pytest.mark.parametrize("channels", [3, 40])
def test_batches_and_chunks_change_no_bit(rng, planned_with, channels):
    features = random_features(rng, (2, channels, 30, 40))
    rois = random_rois(rng, 60, features.shape)
    whole = roi_align(features, rois, 7)
    chunks = [roi_align(features, rois[n : n + 7], 7) for n in range(0, 60, 7)]
    assert_array_equal(np.concatenate(chunks), whole)
    with planned_with(_cpu.plan, BATCH_BYTES=20_000):  # some RoIs
        assert_array_equal(roi_align(features, rois, 7), whole)


def test_rows_as_wide_as_the_scratch(rng, without_lanes):
    width = _cpu.schedules.LONGEST_LINE  # of which a window holds two
    features = np.broadcast_to(random_features(rng, (1, 9, 8, 1), np.float32), (1, 9, 8, width))
    rois = np.array([[0, 0, 0, width, 8], [0, 3, 1, width, 7]], np.float32)
    arguments = (rois, (3, 4), 1.0, 8)
    assert_array_equal(roi_align(features, *arguments), without_lanes(features, *arguments))


def test_a_tall_map_too_narrow_for_squares(rng, without_lanes, schedules_run):
    height = _cpu.average_channels.WINDOW // 4
    features = random_features(rng, (1, 9, height + 9, 5), np.float32)
    rois = np.array([[0, 0, 0, 5, height + 9], [0, 1, 3, 4, 90]], np.float32)
    for samples in 2, -1:
        pooled = roi_align(features, rois, (3, 2), 1.0, samples)
        assert_array_equal(pooled, without_lanes(features, rois, (3, 2), 1.0, samples))
    assert schedules_run.count("average_sparse") == 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_window_that_does_not_hold_a_roi_changes_no_bit(
    rng, planned_with, without_lanes, schedules_run, layout
):
    features = LAYOUTS[layout](random_features(rng, (2, 11, 40, 50), np.float32))
    corner = rng.uniform(-3, 15, (30, 2))
    box = np.column_stack([corner, corner + rng.uniform(5, 40, (30, 2))])
    rois = np.column_stack([np.arange(30) % 2, box])
    for arguments in [(rois, (5, 4)), (rois, (2, 3), 1.0, 9), (rois, (1, 1), 1.0, 30, True)]:
        scalar = without_lanes(features, *arguments)
        schedules_run.clear()
        for window in (1 << 17, 900, 90):  # that holds all RoIs, some, and none
            with (
                planned_with(_cpu.average_channels, WINDOW=window),
                planned_with(_cpu.schedules, PIXELS_READS=0.001),  # packed, also channels last
            ):
                assert_array_equal(roi_align(features, *arguments), scalar)
        assert schedules_run[0] == "average_channels"
        unpacked = {"channels last": "average_pixels", "every other column": "average_sparse"}
        assert schedules_run[-1] == unpacked.get(layout, "average_lines")


@pytest.mark.parametrize("window", [1 << 17, 44_000], ids=["whole map", "fewer rows"])
def test_bands_of_the_map_change_no_bit(rng, monkeypatch, planned_with, schedules_run, window):
    """Tall RoIs, channels last: also swapped corners, and bins or RoIs outside the map."""
    shape, tallest = (1, 16, 300, 200), 200
    features = random_features(rng, shape, np.float32)
    corner = rng.uniform([-20, -50], [120, 150], (60, 2))
    rois = np.column_stack([np.zeros(60), corner, corner + rng.uniform(4, tallest, (60, 2))])
    rois[0, 1:] = 0, 30, 199, 30 + tallest - 1
    rois[1:5] = rois[1:5][:, [0, 3, 4, 1, 2]]
    rois[5:7, 1:] = [[-90, -90, -50, -50], [400, 900, 500, 999]]
    average_channels, arguments = _cpu.average_channels, (rois, (7, 5), 1.0, 0, True)
    assert (tallest + average_channels.BAND_ROWS) * shape[3] <= 44_000 < shape[2] * shape[3]
    x0, y0, x1, y1 = np.sort(rois[:, 1:].reshape(60, 2, 2), axis=1).reshape(60, 4).T.clip(0)
    spans = np.column_stack([y0, y1.clip(max=300), x0, x1.clip(max=200)]).astype(int)
    job = SimpleNamespace(order=range(60), window=window, height=300, out_channel=1, tag=range(16))
    before = numba.get_num_threads()
    with (
        planned_with(average_channels, WINDOW=window),
        planned_with(_cpu.schedules, PIXELS_READS_ADAPTIVE=0.001),  # packed
    ):
        try:
            numba.set_num_threads(1)  # one task, of all RoIs
            last = roi_align(LAYOUTS["channels last"](features), *arguments)
        finally:
            numba.set_num_threads(before)
        in_tasks = roi_align(LAYOUTS["channels last"](features), *arguments)
    monkeypatch.setattr(average_channels, "span_of", lambda job, roi: spans[roi])
    rows = average_channels.common_window.py_func(job, 0, 60)[2]
    assert rows == average_channels.BAND_ROWS
    assert set(schedules_run) == {"average_channels"}
    assert_array_equal(last, roi_align(features, *arguments))
    assert_array_equal(last, in_tasks)


@pytest.mark.parametrize("arguments", [((7, 5), 1.0, 0), ((3, 2), 1.0, 1)], ids=["large", "sparse"])
def test_what_is_fetched_ahead_changes_no_bit(rng, without_lanes, schedules_run, arguments):
    features = random_features(rng, (1, 8, 800, 700), np.float32)
    assert features.size > _cpu.fetching.IN_CACHES
    corner = rng.uniform([-9, -9], [600, 700], (12, 2))
    rois = np.column_stack([np.zeros(12), corner, corner + rng.uniform(2, 120, (12, 2))])
    pooled = roi_align(features, rois, *arguments)
    assert schedules_run[-1] == ("average_lines" if arguments[2] == 0 else "average_sparse")
    assert_array_equal(pooled, without_lanes(features, rois, *arguments))


def test_more_bins_than_the_scratch_come_in_parts(rng, without_lanes):
    features = random_features(rng, (1, 8, 9, 9), np.float32)
    rois = np.array([[0, 1, 1, 8, 8]], np.float32)
    size = (_cpu.average_channels.CELLS // 64 + 3, 130)
    assert_array_equal(roi_align(features, rois, size), without_lanes(features, rois, size))


@pytest.mark.parametrize("channels", [3, 8])
def test_more_bins_of_a_sparse_roi_than_the_scratch(rng, without_lanes, channels):
    features = random_features(rng, (1, channels, 700, 500), np.float32)
    rois = np.array([[0, 1, 1, 490, 690]], np.float32)
    size = (_cpu.average_channels.CELLS // 64 + 3, 66)
    arguments = (rois, size, 1.0, 1)
    assert_array_equal(roi_align(features, *arguments), without_lanes(features, *arguments))


def test_invalid_rows_pool_nan_in_any_layout_of_out(rng):
    features = random_features(rng, (1, 16, 9, 9), np.float32)
    rois = np.array([[0, 1, 1, 8, 8], [4, 1, 1, 8, 8], [0, 2, 2, 5, 5]], np.float32)
    out = np.zeros((3, 16, 2, 2), np.float32)[:, ::-1]
    roi_align(features, rois, 2, out=out, validate=False)
    assert np.isnan(out[1]).all()
    assert_array_equal(out[[0, 2]], roi_align(features, rois[[0, 2]], 2))


POOL = """
import sys, numpy as np
from numba import float32
numbas = set(sys.modules)
import numba_roialign
from numba_roialign import _cpu
features = np.ones((1, 16, 8, 8), np.float32)
pooled = numba_roialign.roi_align(features, np.array([[0, 0, 0, 8, 8]] * 2, np.float32), 2)
kinds = _cpu.kinds.Kinds(float32, float32, float32, "planes", "planes")
code = _cpu.job.compiled(_cpu.average_channels.work, kinds, 16).owner
print(float(pooled.mean()), code.cache_hits, "numba.np.arrayobj" in set(sys.modules) - numbas)
"""


def test_the_cache_is_used_and_never_stale(tmp_path):
    """A change to a file that no cached function stands in must compile anew."""
    package = tmp_path / "numba_roialign"
    source = Path(numba_roialign.__file__).parent
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__"))

    def run():
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
        command = [sys.executable, "-c", POOL]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        mean, hits, compiles = done.stdout.split()
        return float(mean), int(hits), compiles == "True"

    assert run() == (1.0, 0, True)
    assert run() == (1.0, 1, False)  # nor is imported what compiling needs
    kernels = package / "_kernels.py"
    changed = kernels.read_text().replace(
        "total = total + taps.weights[i] * features[element]",
        "total = total + taps.weights[i] * features[element] + taps.weights[i] * features[element]",
    )
    assert changed != kernels.read_text()
    kernels.write_text(changed)
    assert run() == (2.0, 0, True)
