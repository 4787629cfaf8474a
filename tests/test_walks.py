"""The kernels of an average on a device: which one pools what, and that all give the same."""

import re
from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from numba_roialign import roi_align
from numba_roialign._geometry import Axis
from numba_roialign._kernels import Strides
from numba_roialign._taps import bin_of_taps, pad_bin, tap_of_sample

from . import reference
from .conftest import random_features, random_rois

H200 = 132, 228 << 10, 227 << 10  # multiprocessors, bytes shared by each and asked by a block
needs_cuda = pytest.mark.skipif(find_spec("numba_cuda") is None, reason="needs numba-cuda")


@pytest.fixture
def patched(monkeypatch):
    """Return a function that sets constants of a module of kernels, and forgets kept plans."""
    from numba_roialign._cuda import average, banded, plans, small, target, whole
    from numba_roialign._repeats import repeats_of

    def forget():
        plans.plan_of.cache_clear()
        repeats_of.cache_clear()

    def patch(**constants):
        forget()
        for name, value in constants.items():
            for module in (average, banded, small, target, whole):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, value)

    yield patch
    forget()


QUEUE = SimpleNamespace(empty=lambda shape, dtype: np.empty(shape, dtype))


def case_of(shape, rois, bins, samples, number_bytes=4):
    """Return what decides how an H200 is given a call."""
    from numba_roialign._cuda.average import Case
    from numba_roialign._cuda.launches import Limits
    from numba_roialign._geometry import Sampling

    images, channels, height, width = shape
    sampling = Sampling(
        images, height, width, bins, bins, 1.0, 1.0, samples, samples, most_samples=1 << 30
    )
    return Case(sampling, rois, channels, number_bytes, Limits(*H200))


def average_of(case, layout="NCHW", dtype="float32"):
    from numba_roialign._cuda.average import Average

    geometry, boxes = (case.sampling, None, np.dtype(dtype).type(0)), boxes_of(case)
    is_last = layout == "NHWC"
    return Average(boxes, geometry, QUEUE, case, 1 << 26, is_last, True)


def boxes_of(case):
    return SimpleNamespace(shape=(case.rois, 5))


@pytest.mark.only("cpu")
@needs_cuda
@pytest.mark.parametrize(
    ("shape", "rois", "bins", "samples", "layout", "name"),
    [
        ((1, 256, 200, 304), 1000, 7, 2, "NCHW", "schedule_boxes"),
        ((1, 256, 200, 304), 1000, 7, 2, "NHWC", "schedule_boxes"),
        ((1, 3, 600, 512), 256, 96, 1, "NCHW", "schedule_colours"),
        ((1, 256, 25, 38), 300, 7, 8, "NCHW", "schedule_unheld"),
        ((1, 256, 25, 38), 300, 7, 0, "NCHW", "schedule_unheld"),
        ((1, 2048, 25, 38), 4, 7, 0, "NCHW", "schedule_unheld"),
        ((1, 256, 200, 304), 500, 7, 0, "NCHW", "schedule_narrow"),
        ((1, 32, 1080, 1920), 1, 7, 0, "NCHW", "schedule_narrow"),
        ((1, 64, 50, 76), 8, 7, 0, "NCHW", "schedule_few"),
        ((1, 3, 800, 1216), 1000, 7, 4, "NCHW", "schedule_few"),
        ((1, 70, 50, 76), 3, 30, 1, "NHWC", "schedule_few"),
        ((1, 2, 4000, 4000), 9, 7, 0, "NCHW", "schedule_tabled"),
        ((1, 2, 40, 40), 9, 1000, 2, "NCHW", "schedule_tabled"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_kernel_of_a_call(shape, rois, bins, samples, layout, name, dtype):
    from numba_roialign._cuda import average

    own, channels = average_of(case_of(shape, rois, bins, samples), layout, dtype), shape[1]
    assert own.kernel.py_func.__name__ == name
    threads, division = np.prod(own.threads), own.division
    assert 0 < threads <= 256
    assert own.parts >= division.across * division.down
    # No channel, row or column is left out.
    if name == "schedule_few":
        assert own.parts == division.across * division.down
        assert division.across * division.groups >= channels
        assert division.down * division.columns >= bins**2
    else:
        assert division.across * division.groups * own.own >= channels
        assert division.down * division.walks * division.rows >= bins
    places = own.threads[0] if layout == "NHWC" else own.threads[1]
    assert places >= division.groups
    assert own.shared_bytes <= average.SHARED_BYTES


@pytest.mark.only("cpu")
@needs_cuda
@pytest.mark.parametrize(
    ("shape", "rois", "bins", "samples"),
    [
        ((1, 2048, 25, 38), 4, 7, 0),
        ((1, 3, 1080, 1920), 64, 112, 2),
        ((1, 256, 100, 152), 60, 7, 2),
    ],
)
def test_a_device_holds_all_blocks_of_a_few_boxes_at_once(shape, rois, bins, samples):
    own = average_of(case_of(shape, rois, bins, samples))
    at_once = own.blocks_at_once(np.prod(own.threads), own.numbers)
    assert 3 / 4 * at_once < own.parts * rois <= at_once


@pytest.mark.only("cpu")
@needs_cuda
@pytest.mark.parametrize(
    ("shape", "rois", "bins", "samples", "fits"),
    [
        ((1, 64, 50, 76), 8, 7, 2, True),
        ((1, 3, 800, 1216), 1000, 7, 1, True),
        ((1, 2, 50, 76), 3, 30, 2, True),
        ((1, 2, 50, 76), 1, 200, 1, True),
        ((1, 64, 50, 76), 8, 7, 0, False),
        ((1, 64, 50, 76), 8, 7, 3, False),
        ((1, 256, 50, 76), 80, 7, 2, False),
        ((1, 1 << 18, 3, 3), 1, 1, 1, False),
    ],
)
def test_the_parts_of_a_small_call(shape, rois, bins, samples, fits):
    from numba_roialign._cuda import small

    case = case_of(shape, rois, bins, samples)
    assert small.is_small(case) == fits
    if not fits:
        return
    own = small.Small(boxes_of(case), (case.sampling, None, np.float32(0)), QUEUE, case)
    (boxes, groups, places), parts = own.blocks, own.parts
    # No box, channel, row or column is left out, and each tap of a row of bins has a thread.
    assert boxes == rois
    assert groups * small.OWN >= case.channels
    assert parts.along * parts.columns >= bins
    assert places // parts.along * parts.rows >= bins
    assert parts.taps == 2 * samples
    assert parts.columns * parts.taps <= own.threads[0] <= small.LANES
    assert own.threads[1] == parts.rows <= small.MOST_ROWS


@pytest.mark.only("cpu")
@needs_cuda
@pytest.mark.parametrize(
    ("shape", "rois", "bins", "samples", "kernel"),
    [
        ((1, 256, 200, 304), 1000, 7, 2, "schedule_bands"),
        ((1, 256, 200, 304), 1000, 7, 0, "schedule_wide_bands"),
        ((1, 256, 25, 38), 300, 7, 2, "schedule_bands"),
        ((2, 1023, 50, 76), 300, 14, 0, "schedule_wide_bands"),
        ((1, 64, 50, 76), 8, 7, 2, None),  # few results
        ((4, 3, 600, 512), 256, 96, 1, None),  # pictures
        ((4, 256, 200, 304), 600, 7, 2, None),  # few boxes for such maps
        ((1, 64, 100, 20_000), 90_000, 7, 2, None),  # rows too long
        ((1, 64, 65_536, 4), 2000, 7, 2, None),  # a row does not fit 16 bits
        ((1, 64, 65_535, 4), 2000, 7, 2, "schedule_bands"),
        ((4000, 256, 14, 14), 4000, 7, 2, None),  # a block for an image would look at all boxes
    ],
)
def test_the_bands_of_a_call(shape, rois, bins, samples, kernel):
    from numba_roialign._cuda import banded, launches
    from numba_roialign._cuda.bands import CHUNK, LISTED
    from numba_roialign._cuda.stacks import STACK

    case = case_of(shape, rois, bins, samples)
    images, channels, height, width = shape
    planes = Strides(channels * height * width, height * width, width, 1)
    assert banded.suits(case, planes) == (kernel is not None)
    assert not banded.suits(case._replace(number_bytes=8), planes)
    assert not banded.suits(case, planes._replace(row=width + 1))
    if kernel is None:
        return
    geometry = case.sampling, None, np.float32(0)
    own = banded.Banded(boxes_of(case), geometry, QUEUE, case, 1 << 26, True)
    assert own.kernel.py_func.__name__ == kernel
    bands, (units, parts) = banded.division_of(case)
    # No image, row, channel or row of bins is left out.
    assert units == images * bands.count * bands.groups
    assert bands.count * bands.step >= height
    rows = np.arange(height)
    assert_array_equal(rows * int(bands.of_row) >> 32, rows // bands.step)
    assert height >= bands.rows >= min(height, bands.step)
    assert bands.rows * width >= CHUNK
    assert bands.groups * bands.quads * banded.QUAD >= channels
    assert bands.stacks * STACK >= bins
    items = np.arange(int(bands.room) * int(bands.stacks))
    assert_array_equal(items * int(bands.of_stacks) >> 32, items // bands.stacks)
    assert bands.room * bands.stacks <= LISTED
    assert bands.all == rois
    assert parts * bands.share >= bands.all
    assert bands.quads * bins <= banded.threads_of(case.sampling)
    # Two blocks fit a multiprocessor, their lists and what it takes itself included.
    assert bands.apart >= bands.rows * width
    number_bytes = 4 * banded.QUAD * bands.quads * bands.apart
    declared = 4 * (3 * LISTED + 2)
    assert declared <= launches.DECLARED_BYTES
    assert banded.BLOCKS_AT_ONCE * (number_bytes + declared + 1024) <= case.limits.shared_bytes


@pytest.mark.only("cpu")
@needs_cuda
@pytest.mark.parametrize(
    ("shape", "rois", "bins", "quads"),
    [
        ((1, 2048, 25, 38), 4, 7, 2),
        ((1, 256, 25, 38), 8, 7, 1),
        ((1, 4096, 14, 14), 4, 7, 4),
        ((1, 2048, 25, 38), 9, 7, None),  # too many boxes for each block
        ((1, 2048, 50, 76), 4, 7, None),  # few for such a map
        ((1, 64, 90, 90), 2, 30, None),  # a map that does not fit
        ((1, 64, 5, 5), 2, 7, None),  # fewer pixels than a warp packs
        ((1, 3, 25, 38), 4, 7, None),  # pictures
    ],
)
def test_whole_maps_of_a_call(shape, rois, bins, quads):
    from numba_roialign._cuda import whole

    case = case_of(shape, rois, bins, 0)
    _, channels, height, width = shape
    planes = Strides(channels * height * width, height * width, width, 1)
    assert whole.suits(case, planes) == (quads is not None)
    assert not whole.suits(case._replace(number_bytes=8), planes)
    if quads is None:
        return
    _, division, counts, size = whole.division_of(case)
    assert division.quads == quads
    assert division.at_once * quads * bins <= whole.WIDE_THREADS
    # Two blocks fit a multiprocessor; tables follow the map, and one another.
    _, *slots, bound, row, column = counts
    assert whole.AT_ONCE * (size + whole.DECLARED_BYTES + 1024) <= case.limits.shared_bytes
    assert division.apart >= height * width
    assert 8 * bound >= 4 * whole.QUAD * quads * division.apart
    assert 2 * row >= bound + 2 * bins * rois
    assert column >= 2 * (row + slots[0] * rois)
    assert size >= 8 * (column + slots[1] * rois)


@pytest.mark.only("cpu")
@needs_cuda
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8, 16])
def test_no_band_has_fewer_pixels_than_a_warp_packs(width):
    from numba_roialign._cuda import banded
    from numba_roialign._cuda.bands import CHUNK

    divisions = [*banded.divisions(case_of((1, 256, 50, width), 1000, 7, 2))]
    assert bool(divisions) == (50 * width >= CHUNK)
    for _, _, bands in divisions:
        assert bands.rows * bands.width >= CHUNK


@pytest.fixture
def pooled_by(target, rng, patched, monkeypatch):
    """Return a function that pools with constants and checks it.

    That returns the names of what was launched, and the last division by bands.
    """

    def pool(constants, sampling, layout="NCHW", channels=6):
        from numba_roialign._cuda import average, banded, large, small, whole

        def noted(kernel, *rest):
            names.append(getattr(kernel, "py_func", kernel).__name__)
            return configured(kernel, *rest)

        def noted_division(case):
            divisions.append(division_of(case))
            return divisions[-1]

        divisions, division_of = [None], banded.division_of
        names, configured, shape = [], average.configured, (2, channels, 8, 17)
        features, rois = random_features(rng, shape), random_rois(rng, 5, shape)
        expected = reference.roi_align(features, rois, (3, 2), 1.0, sampling)
        if layout == "NHWC":
            features, expected = (np.moveaxis(x, 1, 3).copy() for x in (features, expected))
        others = {"BINS_OF_PIXEL": np.inf, "MOST_BOXES": 0, "MOST_RESULTS": 0}
        patched(**{**others, **constants})
        for module in (average, banded, large, small, whole):
            monkeypatch.setattr(module, "configured", noted)
        monkeypatch.setattr(banded, "division_of", noted_division)
        found = roi_align(
            target.array(features), target.array(rois), (3, 2), 1.0, sampling, layout=layout
        )
        target.assert_matches(found, expected, features, rois)
        return " ".join(names), divisions[-1]

    return pool


@pytest.mark.only("cuda")
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("sampling", [1, 2, 5, -1])
@pytest.mark.parametrize(
    ("kernels", "constants"),
    [
        pytest.param("boxes|unheld|narrow", {"RESIDENT": 0}, id="columns of bins"),
        pytest.param("few", {"RESIDENT": 1 << 30, "WIDE_TAPS": 99}, id="few"),
        pytest.param("boxes|unheld|narrow", {"STAGED_BYTES": 0, "RESIDENT": 0}, id="not staged"),
        pytest.param("", {"narrowed_within": lambda strides, _: strides}, id="offsets of 64 bits"),
        pytest.param("narrow schedule_large", {"WIDE_TAPS": 1}, id="large boxes apart"),
        pytest.param(
            "narrow schedule_large schedule_narrow schedule_large",
            {"WIDE_TAPS": 1, "BATCH_BYTES": 1},
            id="a batch for each box",
        ),
        pytest.param("tabled", {"SHARED_BYTES": 0}, id="tabled"),
        pytest.param("tabled", {"SHARED_BYTES": 0, "WIDE_TAPS": 1}, id="tabled, shared"),
    ],
)
def test_every_kernel_pools_the_same(pooled_by, constants, kernels, sampling, layout):
    launched, _ = pooled_by(constants, sampling, layout)
    if "large" in kernels and layout == "NHWC":
        kernels = "few"  # where channels come last no box is left
    assert re.search(f"schedule_.*({kernels})", launched), launched


@pytest.mark.only("cuda")
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("sampling", [1, 2])
def test_pictures_pool_the_same(pooled_by, sampling, layout):
    launched, _ = pooled_by({"RESIDENT": 0}, sampling, layout, channels=3)
    assert launched == "schedule_colours"


@pytest.mark.only("cuda")
@pytest.mark.parametrize("sampling", [1, 2, (2, 1), 3, -1])
@pytest.mark.parametrize(
    "constants",
    [
        pytest.param({}, id="as it comes"),
        pytest.param({"LANES": 4, "MOST_ROWS": 1}, id="a block for each bin"),
        pytest.param({"narrowed_within": lambda strides, _: strides}, id="offsets of 64 bits"),
    ],
)
def test_small_calls_pool_the_same(pooled_by, constants, sampling):
    launched, _ = pooled_by({"MOST_RESULTS": 1 << 30, **constants}, sampling)
    has_few_samples = sampling not in (3, -1)
    assert ("schedule_small" in launched) == has_few_samples, launched


@pytest.mark.only("cuda")
@pytest.mark.parametrize("sampling", [2, -1])
@pytest.mark.parametrize(
    ("numbers", "constants"),
    [
        pytest.param({}, {}, id="as it comes"),
        pytest.param({"quads": 2}, {"BIN_COSTS": {2: 1}, "RESERVED_BYTES": 22_000}, id="two quads"),
        pytest.param({"count": 1, "rows": 8}, {"RESERVED_BYTES": 0}, id="whole maps"),
        pytest.param(
            {"count": 4, "rows": 3}, {"rows_of": lambda *_: 3, "BEYOND": 1}, id="three rows"
        ),
        pytest.param({}, {"MOST_TAPS": 3}, id="large boxes apart"),
        pytest.param({"all": 1}, {"BATCH_BYTES": 1}, id="a batch for each box"),
        pytest.param({}, {"narrowed_within": lambda strides, _: strides}, id="offsets of 64 bits"),
    ],
)
def test_bands_pool_the_same(pooled_by, numbers, constants, sampling):
    bands = {"BINS_OF_PIXEL": 0, "LEAST_OUTPUTS": 0}
    launched, division = pooled_by({**bands, **constants}, sampling)
    assert re.search(r"schedule_homes schedule_(wide_)?bands", launched), launched
    assert {name: getattr(division[0], name) for name in numbers} == numbers
    assert "MOST_TAPS" not in constants or "schedule_large" in launched


@pytest.mark.only("cuda")
@pytest.mark.parametrize("sampling", [2, -1])
@pytest.mark.parametrize(
    "constants",
    [
        pytest.param({}, id="as it comes"),
        pytest.param({"QUADS": (2,)}, id="two quads"),
        pytest.param({"narrowed_within": lambda strides, _: strides}, id="offsets of 64 bits"),
    ],
)
def test_a_few_boxes_pool_the_same(pooled_by, constants, sampling):
    launched, _ = pooled_by({"BINS_OF_PIXEL": 0, "MOST_BOXES": 5, **constants}, sampling)
    assert launched == "schedule_whole"


@pytest.mark.only("cuda")
@pytest.mark.parametrize("sampling", [2, -1])
def test_bins_that_share_rows_pool_the_same(target, rng, patched, sampling):
    """Bins below each other, in one band or several, upside down, and beside the map."""
    from numba_roialign._cuda import banded

    patched(BINS_OF_PIXEL=0, LEAST_OUTPUTS=0, MOST_RESULTS=0)
    features, count = random_features(rng, (2, 6, 8, 17)), 30
    tops, heights = rng.uniform(-4, 9, count), np.geomspace(0.1, 14, count)
    heights[::3] *= -1
    left = rng.uniform(-1, 15, count)
    rois = np.stack([np.arange(count) % 2, left, tops, left + 3, tops + heights], 1)
    expected = reference.roi_align(features, rois, (7, 2), 1.0, sampling, aligned=True)
    with mock.patch.object(banded, "configured", wraps=banded.configured) as launched:
        found = roi_align(
            target.array(features), target.array(rois), (7, 2), 1.0, sampling, aligned=True
        )
    assert launched.called
    target.assert_matches(found, expected, features, rois)


@pytest.mark.only("cuda")
def test_wide_bins_beyond_their_band_pool_the_same(target, rng, patched):
    """Bins of as many taps as bands bear, more than a thread holds, in bands of three rows."""
    from numba_roialign._cuda import banded, bands

    size = banded.MOST_TAPS - 2.6  # of a bin
    assert size + 1 > bands.WIDE_HELD
    patched(BINS_OF_PIXEL=0, LEAST_OUTPUTS=0, MOST_RESULTS=0, MOST_BOXES=0)
    patched(BEYOND=1, rows_of=lambda *_: 3)
    features, corners = random_features(rng, (1, 6, 24, 48)), rng.uniform(0, 3, (20, 2))
    rois = np.column_stack([np.zeros(20), corners, corners + np.array([3 * size, 2 * size])])
    expected = reference.roi_align(features, rois, (2, 3), 1.0, -1)
    with mock.patch.object(banded, "configured", wraps=banded.configured) as launched:
        found = roi_align(target.array(features), target.array(rois), (2, 3), 1.0)
    kernels = [call.args[0] for call in launched.call_args_list]
    assert kernels == [banded.schedule_homes, bands.schedule_wide_bands]
    target.assert_matches(found, expected, features, rois)


@pytest.mark.only("cuda")
@pytest.mark.parametrize(("module", "most"), [("banded", 0), ("whole", 3)])
def test_a_bin_does_not_see_the_rows_of_its_neighbours(target, rng, patched, module, most):
    module = import_module(f"numba_roialign._cuda.{module}")
    patched(BINS_OF_PIXEL=0, LEAST_OUTPUTS=0, MOST_RESULTS=0, MOST_BOXES=most)
    features = random_features(rng, (1, 6, 8, 17))
    features[:, :, 4] = np.inf
    # Bins of a row each, which begin in rows 0, 1 and 2: two of a stack in a band whichever it is.
    rois = np.array([[0, 2, top, 9, top + 7] for top in (0.1, 1.1, 2.1)], np.float32)
    with mock.patch.object(module, "configured", wraps=module.configured) as launched:
        found = target.numpy(roi_align(target.array(features), target.array(rois), (7, 2), 1.0, 2))
    assert launched.called
    first = np.add.outer(np.arange(3), np.arange(7))  # and the next: the rows of a bin
    expected = (first != 3) & (first != 4)
    assert_array_equal(np.isfinite(found).all((1, 3)), expected)
    assert_array_equal(np.isfinite(found).any((1, 3)), expected)


@pytest.mark.only("cuda")
@pytest.mark.parametrize(
    ("kernels", "constants"),
    [
        pytest.param("narrow schedule_large", {"WIDE_TAPS": 1}, id="narrow"),
        pytest.param("tabled schedule_large", {"WIDE_TAPS": 1, "SHARED_BYTES": 0}, id="tabled"),
        pytest.param(
            "bands schedule_large",
            {"BINS_OF_PIXEL": 0, "LEAST_OUTPUTS": 0, "MOST_TAPS": 3},
            id="bands",
        ),
        pytest.param("whole", {"BINS_OF_PIXEL": 0, "MOST_BOXES": 6}, id="whole"),
    ],
)
def test_a_wide_box_that_cannot_be_pooled_is_not_left(target, rng, patched, kernels, constants):
    """Its image or its rows are nowhere: what pools wide boxes would read beside the map."""
    from numba_roialign._cuda.launches import Launch

    patched(**{"BINS_OF_PIXEL": np.inf, "MOST_BOXES": 0, "MOST_RESULTS": 0, **constants})
    shape, nan, inf = (2, 6, 8, 17), np.nan, np.inf
    features, names, make = random_features(rng, shape), [], Launch.make

    def noted(launch, *arguments):
        names.append(getattr(launch.kernel, "py_func", launch.kernel).__name__)
        return make(launch, *arguments)

    rois = np.array(
        [
            [1, 0, 0, 17, 8],
            [9, 0, 0, 17, 8],
            [-1, 0, 0, 17, 8],
            [nan, 0, 0, 17, 8],
            [1, 0, nan, 17, 8],
            [1, 0, 0, 17, inf],
        ],
        np.float32,
    )
    with mock.patch.object(Launch, "make", noted):
        found = target.numpy(roi_align(target.array(features), target.array(rois), (3, 2)))
    assert re.search(f"schedule_.*{kernels}", " ".join(names)), names
    assert np.isnan(found[1:]).all()
    expected = reference.roi_align(features, rois[:1], (3, 2), 1.0, -1)
    np.testing.assert_allclose(found[:1], expected, rtol=1e-4, atol=1e-5)


def weights_of(pixels, weights):
    """Return the weight of each pixel that is tapped."""
    found = dict.fromkeys(np.asarray(pixels).tolist(), 0.0)
    for pixel, weight in zip(pixels, weights, strict=True):
        found[int(pixel)] += float(weight)
    return found


@pytest.mark.only("cpu")
@pytest.mark.parametrize("multiple", [2, 4])
def test_padding_reads_no_other_pixel_and_keeps_the_weight(rng, multiple):
    for samples in range(4):
        pixels, weights = np.zeros(32, np.uint32), np.zeros(32, np.float32)
        axis = Axis(rng.uniform(0, 20), rng.uniform(0.1, 9), 1, samples, 30)
        last = bin_of_taps(axis, pixels, weights, 0, 3, 29)
        before = weights_of(pixels[3:last], weights[3:last])
        padded = pad_bin(pixels, weights, 3, last, multiple)
        assert (padded - 3) % multiple == 0
        assert padded - last < multiple
        assert weights_of(pixels[3:padded], weights[3:padded]) == before
        assert (padded > 3) == (last > 3)


@pytest.mark.only("cpu")
@pytest.mark.parametrize("start", [-4.0, -1.25, -0.75, 0.0, 2.0, 2.3, 7.5, 8.0, 9.1])
@pytest.mark.parametrize("size", [0.0, 0.4, 1.0, 3.0, 20.0, -1.7])
@pytest.mark.parametrize("samples", [0, 1, 2])
def test_taps_found_one_by_one_are_those_of_the_bin(start, size, samples):
    axis = Axis(start, size, 3, samples, 10)
    for p in range(3):
        pixels, weights = np.zeros(32, np.uint32), np.zeros(32, np.float32)
        last = bin_of_taps(axis, pixels, weights, p, 0, 32)
        both, zero = (0, 1), np.float32(0)
        taps = [tap_of_sample(axis, p, i, above, zero) for i in both for above in both]
        found = np.array([tap for tap in taps if tap[1] != 0]).reshape(-1, 2).T
        expected = weights_of(pixels[:last], weights[:last])
        assert weights_of(*found) == pytest.approx(expected, rel=1e-6)
