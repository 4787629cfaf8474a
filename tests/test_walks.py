"""The kernels of an average on a device: which one pools what, and that all give the same."""

from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

from numba_roialign import roi_align
from numba_roialign._geometry import Axis
from numba_roialign._taps import bin_of_taps, pad_bin

from . import reference
from .conftest import random_features, random_rois

needs_cuda = pytest.mark.skipif(find_spec("numba_cuda") is None, reason="needs numba-cuda")


@pytest.fixture
def patched(monkeypatch):
    """Return a function that sets constants of a module of kernels, and forgets kept plans."""
    from numba_roialign._cuda import average, plans
    from numba_roialign._repeats import repeats_of

    def forget():
        plans.plan_of.cache_clear()
        repeats_of.cache_clear()

    def patch(**constants):
        forget()
        for name, value in constants.items():
            monkeypatch.setattr(average, name, value)

    yield patch
    forget()


@pytest.mark.only("cpu")
@needs_cuda
@pytest.mark.parametrize(
    ("shape", "rois", "bins", "samples", "layout", "name"),
    [
        ((1, 256, 200, 304), 1000, 7, 2, "NCHW", "schedule_boxes"),
        ((1, 256, 200, 304), 1000, 7, 2, "NHWC", "schedule_boxes"),
        ((1, 3, 600, 512), 256, 96, 1, "NCHW", "schedule_boxes"),
        ((1, 256, 25, 38), 300, 7, 8, "NCHW", "schedule_wide"),
        ((1, 256, 25, 38), 300, 7, 0, "NCHW", "schedule_wide"),
        ((1, 256, 200, 304), 500, 7, 0, "NCHW", "schedule_wide"),
        ((1, 32, 1080, 1920), 1, 7, 0, "NCHW", "schedule_wide"),
        ((1, 64, 50, 76), 8, 7, 2, "NCHW", "schedule_few"),
        ((1, 3, 800, 1216), 1000, 7, 2, "NCHW", "schedule_few"),
        ((1, 70, 50, 76), 3, 30, 1, "NHWC", "schedule_few"),
        ((1, 2, 4000, 4000), 9, 7, 0, "NCHW", "schedule_tabled"),
        ((1, 2, 40, 40), 9, 1000, 2, "NCHW", "schedule_tabled"),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_kernel_of_a_call(shape, rois, bins, samples, layout, name, dtype):
    from numba_roialign._cuda import average
    from numba_roialign._geometry import Sampling

    images, channels, height, width = shape
    sampling = Sampling(
        images, height, width, bins, bins, 1.0, 1.0, samples, samples, most_samples=1 << 30
    )
    queue = SimpleNamespace(empty=lambda shape, dtype: np.empty(shape, dtype))
    zero, boxes = np.dtype(dtype).type(0), SimpleNamespace(shape=(rois, 5))
    is_last = layout == "NHWC"
    own = average.Average(boxes, (sampling, None, zero), queue, 1 << 26, channels, is_last, True)
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
        assert division.across * division.groups * average.OWN >= channels
        assert division.down * division.walks * division.rows >= bins
    places = own.threads[0] if is_last else own.threads[1]
    assert places >= division.groups
    assert own.shared_bytes <= average.SHARED_BYTES


@pytest.mark.only("cuda")
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("sampling", [2, 5, -1])
@pytest.mark.parametrize(
    "constants",
    [
        {"RESIDENT": 0},  # a thread walks down a column of bins
        {"RESIDENT": 1 << 30, "WIDE_TAPS": 99},  # a thread for each bin
        {"STAGED_BYTES": 0, "RESIDENT": 0},  # written where it is summed
        {"narrowed_within": lambda strides, _: strides},  # offsets of 64 bits
        {"WIDE_TAPS": 1, "TAPS_OF_LANE": 1},  # shared by columns
        {"SHARED_BYTES": 0},  # tables in the device's memory
        {"SHARED_BYTES": 0, "WIDE_TAPS": 1},
    ],
    ids=["boxes", "few", "unstaged", "long strides", "wide", "tabled", "wide tabled"],
)
def test_every_kernel_pools_the_same(target, rng, patched, constants, sampling, layout):
    shape = (2, 6, 8, 17)
    features, rois = random_features(rng, shape), random_rois(rng, 5, shape)
    expected = reference.roi_align(features, rois, (3, 2), 1.0, sampling)
    if layout == "NHWC":
        features, expected = (np.moveaxis(values, 1, 3).copy() for values in (features, expected))
    patched(**constants)
    found = roi_align(
        target.array(features), target.array(rois), (3, 2), 1.0, sampling, layout=layout
    )
    target.assert_matches(found, expected, features, rois)


@pytest.mark.only("cpu")
@pytest.mark.parametrize("multiple", [2, 4])
def test_padding_reads_no_other_pixel_and_keeps_the_weight(rng, multiple):
    for samples in range(4):
        pixels, weights = np.zeros(32, np.uint32), np.zeros(32, np.float32)
        axis = Axis(rng.uniform(0, 20), rng.uniform(0.1, 9), 1, samples, 30)
        last = bin_of_taps(axis, pixels, weights, 0, 3, 29)
        before = dict.fromkeys(pixels[3:last].tolist(), 0.0)
        for pixel, weight in zip(pixels[3:last].tolist(), weights[3:last].tolist(), strict=True):
            before[pixel] += weight
        padded = pad_bin(pixels, weights, 3, last, multiple)
        assert (padded - 3) % multiple == 0
        assert padded - last < multiple
        after = dict.fromkeys(pixels[3:padded].tolist(), 0.0)
        for pixel, weight in zip(
            pixels[3:padded].tolist(), weights[3:padded].tolist(), strict=True
        ):
            after[pixel] += weight
        assert after == before
        assert (padded > 3) == (last > 3)
