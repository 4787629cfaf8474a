"""roi_align against the reference, on each target with one body per fact."""

import inspect

import numba
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from numba_roialign import InvalidRoIError, _cpu, roi_align

from . import reference
from .conftest import (
    BFLOAT16,
    HALF_ULP,
    SIMULATOR,
    edge_of_grids,
    misaligned,
    random_case,
    random_features,
    random_rois,
)


def assert_roi_align(target, features, rois, size, scale=1.0, sampling=-1, aligned=False):
    grid_dtype = np.float64 if features.dtype == np.float64 else np.float32
    expected = reference.roi_align(
        features, rois, size, scale, sampling, aligned, grid_dtype=grid_dtype
    )
    placed = target.array(features), target.array(rois)
    result = roi_align(*placed, size, scale, sampling, aligned)
    target.assert_matches(result, expected, features, rois, scale)


def test_arguments_are_those_of_torchvision():
    parameters = list(inspect.signature(roi_align).parameters)
    torchvision = ["output_size", "spatial_scale", "sampling_ratio", "aligned"]
    assert parameters[:6] == ["features", "rois", *torchvision]


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling", [-1, 0, 1, 2, 3])
@pytest.mark.parametrize("scale", [1.0, 0.5, 0.3])
def test_random_boxes(target, rng, scale, sampling, aligned):
    features, rois = random_case(rng, target, scale=scale)
    assert_roi_align(target, features, rois, (2, 3), scale, sampling, aligned)


@pytest.mark.parametrize("dtype", [np.float16, BFLOAT16, np.float64], ids=str)
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling", [-1, 1, 2, 3])
def test_other_dtypes(target, rng, dtype, sampling, aligned):
    features, rois = random_case(rng, target, dtype)
    assert_roi_align(target, features, rois, (2, 2), 0.5, sampling, aligned)


def test_defaults(target, rng):
    features, rois = random_case(rng, target)
    result = roi_align(target.array(features), target.array(rois), 2)
    expected = reference.roi_align(features, rois, (2, 2))
    target.assert_matches(result, expected, features, rois)


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 2), (7, 7)])
def test_output_sizes(target, rng, size):
    size = tuple(min(bins, 3) for bins in size) if target.small else size
    features, rois = random_case(rng, target)
    assert_roi_align(target, features, rois, size, 1.0, 2)


def test_an_int_and_a_list_are_output_sizes(target, rng):
    features, rois = (target.array(values) for values in random_case(rng, target))
    pair = target.numpy(roi_align(features, rois, (2, 2)))
    assert_array_equal(target.numpy(roi_align(features, rois, 2)), pair)
    assert_array_equal(target.numpy(roi_align(features, rois, [2, 2])), pair)


def test_any_number_of_channels(target, rng):
    for channels in range(1, 4 if target.small else 36):
        features = random_features(rng, (1, channels, 3, 4))
        rois = random_rois(rng, 2, features.shape)
        assert_roi_align(target, features, rois, (1, 2), 1.0, 2)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2), (2, 8)], ids=str)
@pytest.mark.parametrize("sampling", [-1, 2])
def test_map_shapes(target, rng, shape, sampling):
    features = random_features(rng, (1, 2, *shape))
    rois = random_rois(rng, 2 if target.small else 20, features.shape)
    assert_roi_align(target, features, rois, (2, 2), 1.0, sampling, True)


def test_many_images(target, rng):
    images = 3 if target.small else 20
    features = random_features(rng, (images, 1, 3, 3))
    rois = random_rois(rng, images, features.shape)
    rois[:, 0] = rng.permutation(images)
    assert_roi_align(target, features, rois, (1, 1))


@pytest.mark.parametrize("aligned", [False, True])
def test_samples_on_the_border(target, aligned):
    # one sample per bin and numbers exact in float32: -1 and H, W are inside, the next are not
    features = np.arange(1, 21, dtype=np.float32).reshape(1, 1, 4, 5)
    shift = 0.5 if aligned else 0.0
    first, last = -2 + shift, 0 + shift
    beyond = 2.0**-10
    boxes = [
        (first, first, last, last),
        (first - beyond, first, last - beyond, last),
        (first, first - beyond, last, last - beyond),
        (first + 6, first + 5, last + 6, last + 5),
        (first + 6 + beyond, first + 5, last + 6 + beyond, last + 5),
        (first + 6, first + 5 + beyond, last + 6, last + 5 + beyond),
    ]
    rois = np.array([(0, *box) for box in boxes], np.float32)
    result = roi_align(target.array(features), target.array(rois), 1, 1.0, 1, aligned)
    assert_array_equal(target.numpy(result).ravel(), [1, 0, 0, 20, 0, 0])


@pytest.mark.parametrize("sampling", [-1, 1, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_boxes_without_and_with_negative_size(target, rng, sampling, aligned):
    features = random_features(rng, (1, 2, 4, 5))
    boxes = [(2, 2, 2, 2), (3, 3, 1, 1), (1, 3, 3, 1), (3.25, 1, 1.5, 3), (2, 1, 2, 3)]
    rois = np.array([(0, *box) for box in boxes], np.float32)
    rois = rois[:3] if target.small else rois
    assert_roi_align(target, features, rois, (2, 2), 1.0, sampling, aligned)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("scale", [0.3, 0.6, 1 / 3])
def test_the_adaptive_grid_is_decided_step_by_step(target, rng, scale, aligned):
    arguments = (1, 3), scale, -1, aligned
    features, rois, expected = edge_of_grids(rng, target, reference.roi_align, *arguments)
    result = roi_align(target.array(features), target.array(rois), *arguments)
    target.assert_matches(result, expected, features, rois, scale)


def test_an_empty_adaptive_grid_gives_0(target, rng):
    features = random_features(rng, (1, 2, 4, 5))
    rois = np.array([(0, 2, 2, 2, 2), (0, 3, 1, 1, 3), (0, 3, 3, 1, 1)], np.float32)
    result = roi_align(target.array(features), target.array(rois), 2, aligned=True)
    assert_array_equal(target.numpy(result), np.zeros((3, 2, 2, 2)))


def test_boxes_far_outside_give_0(target, rng):
    features = random_features(rng, (1, 2, 4, 5))
    boxes = [(-50, 0, -40, 3), (0, 40, 3, 44), (1e5, 1e5, 1e5 + 8, 1e5 + 8)]
    rois = np.array([(0, *box) for box in boxes], np.float32)
    for sampling in (-1, 2):
        result = roi_align(target.array(features), target.array(rois), 2, 1.0, sampling)
        assert_array_equal(target.numpy(result), np.zeros((3, 2, 2, 2)))


def test_boxes_much_larger_than_the_map(target, rng):
    reach = 6 if target.small else 60
    features = random_features(rng, (1, 2, 3, 4))
    boxes = [(-reach, -reach - 0.3, reach + 3.7, reach), (1, -reach, 2, reach), (0, 0, reach, 1)]
    rois = np.array([(0, *box) for box in boxes], np.float32)
    assert_roi_align(target, features, rois, (1, 2))


@pytest.mark.parametrize("sampling", [5, 30])
def test_many_samples_on_each_pixel(target, rng, sampling):
    # boxes both ways round, side by side in memory: what is kept per box must not outgrow its room
    features = random_features(rng, (1, 1, 3, 12))
    box = np.array([0, 0, 0.1, 11.3, 3.2])
    mirrored = box[[0, 3, 4, 1, 2]]
    rois = np.array([mirrored, box, mirrored], np.float32)
    rois = rois if target.small else np.tile(rois, (10, 1))
    assert_roi_align(target, features, rois, (1, 1), 1.0, sampling, True)


@pytest.mark.only("cpu")
def test_a_grid_of_a_hundred_thousand_samples(target, rng):
    features = random_features(rng, (1, 1, 3, 4))
    rois = np.array([(0, -5e4, 0, 5e4, 1)], np.float32)
    assert_roi_align(target, features, rois, (1, 1))


def test_the_largest_coordinates_are_read_with_fixed_sampling(target, rng):
    features = random_features(rng, (1, 1, 3, 4))
    rois = np.array([(0, 1e30, 0, 2e30, 1), (0, 0, -1e35, 1, -1e34)], np.float32)
    result = roi_align(target.array(features), target.array(rois), 2, 1.0, 2)
    assert_array_equal(target.numpy(result), np.zeros((2, 1, 2, 2)))


@pytest.mark.parametrize("index", [0, -0.0, 0.9, 1, 1.99])
def test_the_image_index_is_truncated(target, index):
    features = np.array([3, 5], np.float32).reshape(2, 1, 1, 1)
    rois = np.array([(index, 0, 0, 1, 1)], np.float32)
    result = roi_align(target.array(features), target.array(rois), 1)
    assert_array_equal(target.numpy(result), [[[[5 if index >= 1 else 3]]]])


ROI_DTYPES = [np.uint8, np.int8, np.int32, np.uint64, np.float16, np.float64, BFLOAT16]


@pytest.mark.parametrize("dtype", ROI_DTYPES, ids=lambda dtype: np.dtype(dtype).name)
def test_rois_of_any_real_dtype(target, rng, dtype):
    features = random_features(rng, (2, 1, 4, 4))
    rois = np.array([(0, 1, 0, 3, 2), (1, 0, 1, 2, 4)], dtype)
    result = roi_align(target.array(features), target.array(rois), 2)
    expected = reference.roi_align(features, rois, (2, 2))
    target.assert_matches(result, expected, features, rois)


def test_rois_are_not_narrowed_to_half_features(target, rng):
    # 2049.25 has no float16 of its own
    features = np.zeros((1, 1, 2, 2060), np.float16)
    features[..., 2049] = 1
    rois = np.array([(0, 2048.75, 0, 2049.75, 1)], np.float32)
    assert_roi_align(target, features, rois, (1, 1), 1.0, 1)


@pytest.mark.parametrize("container", [list, tuple])
def test_rois_as_one_array_per_image(target, rng, container):
    features = random_features(rng, (3, 2, 4, 5))
    boxes = [random_rois(rng, count, features.shape)[:, 1:] for count in (1, 0, 2)]
    index = np.repeat([0, 1, 2], [1, 0, 2])[:, None]
    rois = np.concatenate([index, np.concatenate(boxes)], axis=1).astype(np.float32)
    result = roi_align(
        target.array(features), container(target.array(entry) for entry in boxes), (2, 2)
    )
    expected = reference.roi_align(features, rois, (2, 2))
    target.assert_matches(result, expected, features, rois)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_lists_without_boxes(target, count):
    features = target.array(np.ones((2, 3, 4, 5), np.float32))
    result = roi_align(features, [target.array(np.zeros((0, 4), np.float32))] * count, (2, 1))
    assert target.numpy(result).shape == (0, 3, 2, 1)


@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 4, 5), (0, 3, 0, 0)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_no_boxes(target, shape, dtype):
    features = target.array(np.ones(shape, dtype))
    result = roi_align(features, target.array(np.zeros((0, 5), np.float32)), (2, 3))
    result = target.numpy(result)
    assert (result.shape, result.dtype) == ((0, shape[1], 2, 3), dtype)


def test_no_channels(target):
    features = target.array(np.ones((1, 0, 4, 5), np.float32))
    result = roi_align(features, target.array(np.zeros((2, 5), np.float32)), (2, 3))
    result = target.numpy(result)
    assert (result.shape, result.dtype) == ((2, 0, 2, 3), np.float32)


# how the memory is laid out, and the view of it that has the values asked for
LAYOUTS = {
    "channels last": (
        lambda x: x.transpose(0, 2, 3, 1),
        lambda target, base: target.permute(base, (0, 3, 1, 2)),
    ),
    "transposed map": (
        lambda x: x.transpose(0, 1, 3, 2),
        lambda target, base: target.permute(base, (0, 1, 3, 2)),
    ),
    "Fortran order": (
        lambda x: x.transpose(3, 2, 1, 0),
        lambda target, base: target.permute(base, (3, 2, 1, 0)),
    ),
    "every second column": (
        lambda x: np.repeat(x, 2, axis=3),
        lambda target, base: base[:, :, :, ::2],
    ),
    "every second channel": (
        lambda x: np.repeat(x, 2, axis=1),
        lambda target, base: base[:, ::2],
    ),
    "crop": (
        lambda x: np.pad(x, [(1, 1), (1, 0), (2, 1), (1, 2)], constant_values=np.nan),
        lambda target, base: base[1:-1, 1:, 2:-1, 1:-2],
    ),
}


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_layouts_of_features(target, rng, layout):
    features, rois = random_case(rng, target)
    prepare, view = LAYOUTS[layout]
    placed = view(target, target.array(np.ascontiguousarray(prepare(features))))
    result = roi_align(placed, target.array(rois), (2, 2), 1.0, 2)
    expected = reference.roi_align(features, rois, (2, 2), 1.0, 2)
    target.assert_matches(result, expected, features, rois)


def read_only(values):
    values = values.copy()
    values.flags.writeable = False
    return values


def reversed_memory(values):
    everywhere = (slice(None, None, -1),) * values.ndim
    return values[everywhere].copy()[everywhere]


HOST_LAYOUTS = {
    "reversed": reversed_memory,
    "read-only": read_only,
    "misaligned": misaligned,
    "big-endian": lambda values: values.astype(values.dtype.newbyteorder(">")),
}


@pytest.mark.only("cpu")
@pytest.mark.parametrize("layout", list(HOST_LAYOUTS))
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_host_layouts_of_features(target, rng, layout, dtype):
    features, rois = random_case(rng, target, dtype)
    result = roi_align(HOST_LAYOUTS[layout](features), rois, (2, 2), 1.0, 2)
    expected = reference.roi_align(features, rois, (2, 2), 1.0, 2)
    target.assert_matches(result, expected, features, rois)


@pytest.mark.only("cpu")
@pytest.mark.parametrize("layout", list(HOST_LAYOUTS))
def test_host_layouts_of_rois(target, rng, layout):
    features, rois = random_case(rng, target)
    assert_array_equal(
        roi_align(features, HOST_LAYOUTS[layout](rois), (2, 2)), roi_align(features, rois, (2, 2))
    )


def repeated(target, values, axis, count):
    """Return an array that reads the first of an axis so many times over, without a copy."""
    shape = tuple(count if number == axis else size for number, size in enumerate(values.shape))
    if target.name == "cpu":
        return np.broadcast_to(values.take([0], axis), shape)
    strides = tuple(0 if number == axis else step for number, step in enumerate(values.strides))
    array = target.array(values)
    return Foreign(array, {**interface_of(array), "shape": shape, "strides": strides})


@pytest.mark.parametrize("axis", range(4))
def test_broadcast_features(target, rng, axis):
    features, rois = random_case(rng, target)
    expected = np.broadcast_to(features.take([0], axis), features.shape)
    expected = reference.roi_align(expected, rois, (2, 2), 1.0, 2)
    x = repeated(target, features, axis, features.shape[axis])
    result = roi_align(x, target.array(rois), (2, 2), 1.0, 2)
    target.assert_matches(result, expected, features, rois)


def test_more_images_than_32_bits_number(target):
    x = repeated(target, np.arange(9.0).reshape(1, 1, 3, 3), 0, 2**31 + 3)
    rois = np.array([(image, 0, 0, 2, 2) for image in (0, 2**31, 2**31 + 2)])
    for mode in ("avg", "max"):
        for validate in (True, False):
            result = roi_align(x, target.array(rois), 1, 1.0, 1, mode=mode, validate=validate)
            assert_array_equal(target.numpy(result).ravel(), 4)
    rois[1, 0] = 2**31 + 3
    with pytest.raises(InvalidRoIError, match="row 1"):
        roi_align(x, target.array(rois), 1, 1.0, 1, validate=True)


@pytest.mark.only("cuda")
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_more_images_than_float32_numbers(target, mode):
    rois = target.array(np.array([(2**24 - 1, 0, 0, 2, 2)], np.float32))
    ones = np.ones((1, 1, 3, 3), np.float32)
    pooled = roi_align(repeated(target, ones, 0, 2**24), rois, 1, mode=mode, validate=True)
    assert_array_equal(target.numpy(pooled), 1)
    with pytest.raises(ValueError, match="16777216 images"):
        roi_align(repeated(target, ones, 0, 2**24 + 1), rois, 1, mode=mode)


def test_strided_rois(target, rng):
    features, rois = random_case(rng, target)
    wide = target.array(np.repeat(np.repeat(rois, 2, axis=0), 3, axis=1))
    result = roi_align(target.array(features), wide[::2, ::3], (2, 2))
    expected = reference.roi_align(features, rois, (2, 2))
    target.assert_matches(result, expected, features, rois)


@pytest.mark.only("cpu")
def test_inputs_are_left_alone(target, rng):
    features, rois = random_case(rng, target)
    copies = features.copy(), rois.copy()
    roi_align(features, rois, (2, 2))
    assert_array_equal(features, copies[0])
    assert_array_equal(rois, copies[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_out_is_filled_and_returned(target, rng, dtype):
    features, rois = random_case(rng, target, dtype)
    out = target.array(np.full((len(rois), features.shape[1], 2, 2), -7, dtype))
    result = roi_align(target.array(features), target.array(rois), 2, 1.0, 2, out=out)
    assert result is out
    expected = reference.roi_align(features, rois, (2, 2), 1.0, 2)
    target.assert_matches(out, expected, features, rois)


def test_out_may_be_strided(target, rng):
    features, rois = random_case(rng, target)
    shape = (len(rois), features.shape[1], 4, 6)
    whole = target.array(np.full(shape, -7, np.float32))
    out = whole[:, :, ::2, 1::3]
    assert roi_align(target.array(features), target.array(rois), 2, 1.0, 2, out=out) is out
    expected = np.full(shape, -7.0)
    expected[:, :, ::2, 1::3] = reference.roi_align(features, rois, (2, 2), 1.0, 2)
    target.assert_matches(whole, expected, features, rois)


@pytest.mark.only("cpu")
@pytest.mark.parametrize("layout", ["reversed", "misaligned", "big-endian"])
def test_host_layouts_of_out(target, rng, layout):
    features, rois = random_case(rng, target)
    expected = roi_align(features, rois, (2, 2))
    out = HOST_LAYOUTS[layout](np.full(expected.shape, -7, np.float32))
    out_features = HOST_LAYOUTS[layout](features)
    assert roi_align(out_features, rois, (2, 2), out=out) is out
    assert_array_equal(out, expected)


class Foreign:
    """An array on a device as another library has it. Where it is refused nobody reads it."""

    def __init__(self, array, interface=None):
        self.__cuda_array_interface__ = interface or array.__array_interface__
        self.dtype, self.array = array.dtype, array

    @property
    def shape(self):
        return self.__cuda_array_interface__["shape"]


BROADCAST = {"broadcast": lambda values: np.broadcast_to(values[:1], values.shape)}
REFUSED = {
    "features": ["reversed", "misaligned", "big-endian"],
    "rois": ["misaligned", "big-endian"],
    "out": ["reversed", "misaligned", "big-endian", "broadcast"],
}


@pytest.mark.only("cuda")
@pytest.mark.parametrize(
    ("argument", "layout"),
    [(argument, layout) for argument, layouts in REFUSED.items() for layout in layouts],
)
def test_what_a_device_does_not_read_or_write_in_place(target, rng, argument, layout):
    features, rois = random_case(rng, target)
    arrays = {"features": features, "rois": rois, "out": roi_align(features, rois, (2, 2))}
    given = {name: target.array(array) for name, array in arrays.items()}
    given[argument] = Foreign((HOST_LAYOUTS | BROADCAST)[layout](arrays[argument]))
    with pytest.raises(ValueError, match=r"CUDA device|share memory"):
        roi_align(**given, output_size=2)


@pytest.mark.only("cuda")
def test_arrays_that_only_an_interface_describes(target, rng):
    features, rois = random_case(rng, target)
    x, r = target.array(features), target.array(rois)
    expected = target.numpy(roi_align(x, r, 2))
    for dtype in (np.dtype(np.float32), np.float32, "float32"):
        foreign = Foreign(x, interface_of(x))
        foreign.dtype = dtype
        assert_array_equal(target.numpy(roi_align(foreign, r, 2)), expected)
    masked = Foreign(r, {**interface_of(r), "mask": foreign})
    with pytest.raises(TypeError, match="mask"):
        roi_align(x, masked, 2)
    nothing = Foreign(rois, {**interface_of(r), "shape": (0, 5), "data": (1, False)})
    assert roi_align(x, nothing, 2).shape == (0, *expected.shape[1:])


def interface_of(array):
    """Return how an array describes itself; the simulator's do not, but what they wrap does."""
    return array._ary.__array_interface__ if SIMULATOR else array.__cuda_array_interface__


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("sampling", [-1, 2])
def test_non_finite_features_stay_in_the_bins_that_lean_on_them(target, rng, value, sampling):
    features = random_features(rng, (1, 2, 4, 5))
    features[0, 0, 2, 2] = value
    rois = np.array([(0, 0, 0, 4, 4), (0, 2.5, 2.5, 3.5, 3.5), (0, 3, 3, 4, 4)], np.float32)
    expected = reference.roi_align(features, rois, (2, 2), 1.0, sampling)
    assert 0 < np.isfinite(expected[:, 0]).sum() < expected[:, 0].size
    assert np.isfinite(expected[:, 1]).all()
    result = roi_align(target.array(features), target.array(rois), 2, 1.0, sampling)
    target.assert_matches(result, expected, features, rois)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_pixel_of_weight_0_is_not_read(target, value):
    features = np.full((1, 1, 3, 3), value, np.float32)
    features[0, 0, 1, 1] = 5
    rois = np.array([(0, 1, 1, 2, 2)], np.float32)
    rois[:, 1:] += np.float32([0.5, 0.5, -0.5, -0.5])
    result = roi_align(target.array(features), target.array(rois), 1, 1.0, 1, True)
    assert_array_equal(target.numpy(result), [[[[5]]]])


@pytest.mark.parametrize("channels", [4, 5, 11])
def test_small_boxes_in_many_channels(target, rng, channels):
    """On a device a block sums several lines of such boxes at once, four channels at a time."""
    features = random_features(rng, (1, channels, 4, 5))
    boxes = [(1, 1, 2.5, 2.5), (0, 0, 1, 2), (3, 2, 3.5, 3), (4, 3, 2, 1), (-2, -2, 9, 9)]
    rois = np.array([(0, *box) for box in boxes], np.float32)
    assert_roi_align(target, features, rois, (2, 2), 1.0, 2, False)


@pytest.mark.only("cpu")
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_number_of_threads_does_not_change_a_bit(target, rng, planned_with, dtype):
    features = random_features(rng, (2, 19, 13, 11), dtype)
    rois = random_rois(rng, 23, features.shape)
    before = numba.get_num_threads()
    results = []
    try:
        with planned_with(_cpu.plan, SERIAL_WORK=0):  # else one thread computes so small a call
            for threads in (1, 2, 3):
                numba.set_num_threads(threads)
                results.append(roi_align(features, rois, (3, 3)))
    finally:
        numba.set_num_threads(before)
    for result in results[1:]:
        assert_array_equal(result.view(np.uint8), results[0].view(np.uint8))


@pytest.mark.only("cpu")
def test_float32_is_as_exact_as_its_sums_far_from_the_origin(target, rng):
    # float32 positions would be off by 2**-13 at column 2000, which is 250 times the tolerance
    features = random_features(rng, (1, 3, 4, 2048))
    rois = np.array([(0, 1990.3, 0.1, 2003.7, 3.3), (0, 1500.7, 1, 1600.1, 2)], np.float32)
    assert_roi_align(target, features, rois, (2, 5), 0.99, 2)


@pytest.mark.parametrize("channels", [3, 17])
def test_channels_last_is_the_same_with_the_axes_moved(target, rng, channels):
    shape = (2, 3, 5, 6) if target.small else (2, channels, 11, 14)
    features, rois = random_features(rng, shape), random_rois(rng, 3, shape)
    last = np.ascontiguousarray(features.transpose(0, 2, 3, 1))
    expected = reference.roi_align(features, rois, (2, 3), 0.7, 2).transpose(0, 2, 3, 1)
    arguments = (target.array(last), target.array(rois), (2, 3), 0.7, 2)
    pooled = roi_align(*arguments, layout="NHWC")
    target.assert_matches(pooled, expected, last, rois, scale=0.7)
    out = target.array(np.zeros(expected.shape, np.float32))
    assert roi_align(*arguments, layout="NHWC", out=out) is out
    assert_array_equal(target.numpy(out), target.numpy(pooled))


def test_layout_is_checked(target, rng):
    features, rois = random_features(rng, (1, 2, 3, 3)), random_rois(rng, 1, (1, 2, 3, 3))
    with pytest.raises(ValueError, match="layout"):
        roi_align(target.array(features), target.array(rois), 2, layout="CHWN")


@pytest.mark.only("cuda")
@pytest.mark.parametrize("sampling", [-1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=str)
def test_the_targets_differ_by_no_more_than_documented(target, rng, dtype, sampling):
    """See RELIABILITY.md: positions are float32 on CUDA and float64 on the CPU."""
    features = random_features(rng, (2, 2, 6, 7), dtype)
    rois = random_rois(rng, 6 if target.small else 500, features.shape)
    options = {"sampling_ratio": sampling, "aligned": True}
    here = roi_align(features, rois, 2, **options).astype(np.float64)
    there = target.numpy(roi_align(target.array(features), target.array(rois), 2, **options))
    largest, coordinate = np.abs(features.astype("f8")).max(), np.abs(rois[:, 1:]).max()
    bound = (48 + 32 * coordinate) * 2.0**-23 * largest
    ulp = 2 * HALF_ULP.get(features.dtype, 0)
    assert_allclose(there.astype(np.float64), here, rtol=ulp, atol=bound + 2.0**-24)


@pytest.mark.only("cpu")
def test_an_axis_of_one_may_have_any_stride(rng):
    features = random_features(rng, (1, 9, 1, 8), np.float32)
    rois = np.array([[0, 1, -1, 7, 1]], np.float32)
    turned = features[::-1, :, ::-1]  # C order as far as NumPy tells, with strides below zero
    assert_array_equal(roi_align(turned, rois, (1, 4)), roi_align(features, rois, (1, 4)))


@pytest.mark.only("cpu")
@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16, ">f4"], ids=str)
def test_calls_that_look_alike_pool_what_they_are_given(rng, mode, dtype):
    """Arguments are checked for the first of them; `out` has each checked."""
    shape = (2, 9, 12, 13)
    for count in (1, 12, 3, 12):
        features, rois = random_features(rng, shape, dtype), random_rois(rng, count, shape)
        for map_, boxes, layout in [
            (features, rois, "NCHW"),
            (features, rois.astype(np.float64), "NCHW"),
            (features[:, :, ::2, 1:], rois[::-1], "NCHW"),
            (features[:, :, ::-1], np.asfortranarray(rois), "NCHW"),
            (features.transpose(0, 2, 3, 1), rois, "NHWC"),
        ]:
            pooled = roi_align(map_, boxes, (3, 2), 0.7, 2, mode=mode, layout=layout)
            out = np.empty_like(pooled)
            roi_align(map_, boxes, (3, 2), 0.7, 2, mode=mode, layout=layout, out=out)
            assert_array_equal(pooled, out)
            assert pooled.dtype == map_.dtype


@pytest.mark.only("cpu")
def test_calls_that_look_alike_are_checked_for_what_they_hold(rng):
    features, rois = random_features(rng, (2, 3, 8, 9)), np.array([[1, 1, 1, 5, 5]] * 4, np.float32)
    valid = roi_align(features, rois, 2)
    rois[2, 3] = np.nan
    with pytest.raises(
        InvalidRoIError, match=r"row 2 is not finite: image 1, box \(1, 1, nan, 5\)"
    ):
        roi_align(features, rois, 2)
    pooled = roi_align(features, rois, 2, validate=False)
    assert np.isnan(pooled[2]).all()
    kept = [0, 1, 3]
    assert_array_equal(pooled[kept], valid[kept])
    assert_array_equal(roi_align(features, rois[kept], 2), valid[kept])
    assert roi_align(features, rois[:0], 2).shape == (0, 3, 2, 2)
    with pytest.raises(ValueError, match=r"\(K, 5\), .*, got shape \(3, 4\)"):
        roi_align(features, rois[kept, 1:], 2)
    with pytest.raises(TypeError, match="bool"):
        roi_align(features, rois[kept].astype(bool), 2)
