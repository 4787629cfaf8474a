"""What the hostile tests draw, and what the answers to it must be."""

import math
from typing import NamedTuple

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from numba_roialign import CONVENTIONS

from . import reference
from .conftest import HALF_ULP
from .guarded import strided

# Per box and axis, for the reference takes 10 us for each pair of them.
MOST_SAMPLES = 60

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
small = st.integers(1, 4)
bins = small | st.sampled_from([7, 17])
# Some lines fill several vectors, and a vector may begin anywhere in them.
sides = st.integers(1, 9) | st.sampled_from([17, 40, 70])
channels = st.sampled_from([1, 2, 3, 7, 8, 9, 17, 33])
features_dtypes = st.sampled_from(["f4", "f4", "f4", "f2", "f8", BFLOAT16])
rois_dtypes = st.sampled_from(["f8", "f8", "f4", "f2", "i8", "i4", "u1", "i2", BFLOAT16])

# Numbers exact in every dtype of boxes and at these scales: samples fall on borders and pixels.
exact_scales = st.sampled_from([1.0, 0.5, 0.25, (2.0, 0.125)])
exact_coordinates = (st.integers(-40, 60) | st.integers(60, 320)).map(lambda n: n / 4)
exact_images = st.integers(0, 3).map(float)
# Any others.
scales = exact_scales | st.sampled_from([0.3, (0.7, 1e-3), 1e-30, 1e30, 1e-310])
coordinates = st.one_of(
    exact_coordinates,
    st.floats(-20, 20),
    st.floats(20, 80),
    st.floats(),
    st.sampled_from([-0.0, 1e30, -1e30, 3e38, 1e300, 2.0**30, -(2.0**31), 1e-42, 5e-324, 1e6]),
)
images = exact_images | st.sampled_from([-1.0, 0.5, 4.0, -0.5, 1e30, math.nan, math.inf])


class Case(NamedTuple):
    """A call but for where its arrays lie."""

    shape: tuple[int, int, int, int]  # of the map, in the order NCHW
    size: tuple[int, int]
    boxes: list
    is_exact: bool
    dtype: np.dtype
    rois_dtype: np.dtype
    seed: int
    layout: str
    options: dict

    @property
    def number(self):
        """The type of sums, and of the decision on adaptive grids."""
        return np.float64 if self.dtype == np.float64 else np.float32

    def ordered(self, batch, height, width):
        """Return a shape in the layout."""
        shape = batch, self.shape[1], height, width
        return shape if self.layout == "NCHW" else (batch, height, width, self.shape[1])

    def numbers(self, shape):
        """Return random numbers; where samples are exact, some are huge, tiny or not finite."""
        rng = np.random.default_rng(self.seed)
        values = rng.standard_normal(shape)
        if self.is_exact:
            odd = rng.choice([np.nan, np.inf, -np.inf, 3e4, 1e-40, 0.0], shape)
            values = np.where(rng.random(shape) < self.seed % 4 / 20, odd, values)
        return values.astype(self.dtype)

    def rois(self):
        """Return the boxes as numbers that their dtype holds."""
        rois = np.array(self.boxes)
        if self.rois_dtype.kind in "iu":
            limits = np.iinfo(self.rois_dtype)
            rois = np.clip(np.nan_to_num(rois), limits.min // 2, limits.max // 2)
        with np.errstate(over="ignore"):
            return rois.astype(self.rois_dtype)

    def axes(self, roi):
        """Return the reference's arguments for the samples along y and x of a box."""
        pairs = (
            reference.pair(self.options["spatial_scale"]),
            reference.pair(self.options["sampling_ratio"]),
        )
        for axis, (scale, sampling) in enumerate(zip(*pairs, strict=True)):
            yield float(roi[2 - axis]), float(roi[4 - axis]), self.size[axis], scale, sampling

    @property
    def convention(self):
        return reference.CONVENTIONS[self.options["convention"]]


@st.composite
def cases(draw):
    is_exact = draw(st.booleans())
    image, coordinate = (exact_images, exact_coordinates) if is_exact else (images, coordinates)
    options = {
        "spatial_scale": draw(exact_scales if is_exact else scales),
        "sampling_ratio": draw(st.sampled_from([-1, 0, 1, 2, 3, (2, 0), (-1, 3)])),
        "convention": draw(st.sampled_from(sorted(CONVENTIONS))),
        "max_sampling_ratio": draw(st.sampled_from([None, None, 1, 5])),
    }
    boxes = st.lists(st.tuples(image, *[coordinate] * 4), min_size=1, max_size=5)
    return Case(
        shape=draw(st.tuples(small, channels, sides, sides)),
        size=draw(st.tuples(bins, bins)),
        boxes=draw(boxes),
        is_exact=is_exact,
        dtype=np.dtype(draw(features_dtypes)),
        rois_dtype=np.dtype(draw(rois_dtypes)),
        seed=draw(st.integers(0, 2**32 - 1)),
        layout=draw(st.sampled_from(["NCHW", "NHWC"])),
        options=options,
    )


@st.composite
def memories(draw, axes=4, written=False):
    """How an array lies in memory, for `placed`."""
    steps = [1, 1, 1, 2, 3, -1, -2] + ([] if written else [0])
    is_plain = draw(st.booleans())
    return {
        "order": range(axes) if is_plain else draw(st.permutations(range(axes))),
        "steps": [1] * axes if is_plain else draw(st.tuples(*[st.sampled_from(steps)] * axes)),
        "gap": 0 if is_plain else draw(st.sampled_from([0, 0, 0, 1, 16])),
        "at_end": draw(st.booleans()),
        "is_swapped": draw(st.sampled_from([False, False, True])),
        "is_frozen": not written and draw(st.booleans()),
    }


def placed(values, is_swapped=False, is_frozen=False, **memory):
    """Return an array of these values in a room of its own; along a stride of 0, of the last."""
    dtype = values.dtype.newbyteorder() if is_swapped else values.dtype
    array = strided(values.shape, dtype, **memory)
    array[...] = values
    array.flags.writeable = not is_frozen
    return array


@np.errstate(all="ignore")
def is_valid(case, roi):
    """Say whether a row can be pooled, in the words of the README's table."""
    index, count, convention = float(roi[0]), case.shape[0], case.convention
    if not np.isfinite(roi).all() or index < 0 or index >= count:
        return False
    if convention.image_index is reference.rounded_index and index > count - 1:
        return False
    for first, last, bins, scale, sampling in case.axes(roi):
        laid = reference.laid_out(first, last, bins, scale, convention, case.number)
        if not np.isfinite([case.number(first), case.number(last), *laid]).all():
            return False
        bin_size = laid[1]
        adaptive = sampling <= 0 and case.options["max_sampling_ratio"] is None
        if adaptive and abs(bin_size) >= 2**30:
            return False
    return True


@np.errstate(all="ignore")
def samples(case, roi):
    """Return how many samples a bin has along y and x."""
    counts, most = [], case.options["max_sampling_ratio"]
    for first, last, bins, scale, sampling in case.axes(roi):
        count = sampling
        if sampling <= 0:
            arguments = first, last, bins, scale, case.convention, case.number
            count = min(reference.sample_count(*arguments), most or 2**30)
        counts.append(count)
    return counts


@np.errstate(all="ignore")
def is_certain(case, roi, unit):
    """Say whether the reference knows the answer for a box, positions being exact to `unit`.

    It does not where a sample lies so close to the map's end that rounding decides whether it
    counts, nor so close to a pixel that it decides whether a value not finite is read. Numbers are
    exact where all divisions are by powers of two.
    """
    counts = samples(case, roi)
    if max(counts) > MOST_SAMPLES:
        return False
    for length, count, (first, last, bins, scale, _) in zip(
        case.shape[2:], counts, case.axes(roi), strict=True
    ):
        if case.is_exact and all(divisor.bit_count() == 1 for divisor in (bins, max(count, 1))):
            continue
        start, step = reference.laid_out(first, last, bins, scale, case.convention, np.float64)
        positions = start + (np.arange(bins * count) + 0.5) / max(count, 1) * step
        slack = 8 * unit * max(1, abs(start), abs(step) * bins)
        doubtful = np.minimum(abs(positions + 1), abs(positions - length)) <= slack
        if case.is_exact:  # some values are not finite
            doubtful |= abs(positions - np.rint(positions)) <= slack
        if doubtful.any():
            return False
    return True


@np.errstate(all="ignore")
def pooled(case, features, roi, mode):
    """Return what a valid box pools, (C, PH, PW), by the reference."""
    return reference.pool_boxes(
        features, [roi], case.size, case.options["spatial_scale"],
        case.options["sampling_ratio"], case.convention, mode,
        most=case.options["max_sampling_ratio"], grid_dtype=case.number,
    )[0]  # fmt: skip


@np.errstate(all="ignore")
def gradient(case, grad, rois):
    """Return what valid boxes give to the gradient of a map, in the order NCHW."""
    return reference.pool_boxes_backward(
        grad, rois, case.shape, case.options["spatial_scale"], case.options["sampling_ratio"],
        case.convention, most=case.options["max_sampling_ratio"], grid_dtype=case.number,
    )  # fmt: skip


def assert_close(case, result, truth, values, rois, position_unit, terms=1):
    """Compare with the reference, to the rounding of positions and of sums of some `terms`."""
    finite = np.abs(values, where=np.isfinite(values), out=np.zeros(values.shape))
    unit = 2.0**-52 if case.number is np.float64 else 2.0**-23
    scale = max(reference.pair(case.options["spatial_scale"]))
    position_error = 8 * position_unit * (np.abs(rois[..., 1:]).max(initial=0) * scale + 1)
    atol = (16 * unit + 4 * position_error) * terms * finite.max(initial=0) + 2.0**-25
    # sums of float16's large numbers may leave its range
    leaves = np.abs(truth) + atol >= float(ml_dtypes.finfo(case.dtype).max)
    truth = np.where(leaves & np.isinf(result), np.copysign(np.inf, truth), truth)
    assert_allclose(result, truth, rtol=HALF_ULP.get(case.dtype, 0), atol=atol)
