"""RoIAlign written straight from its formulas, in NumPy float64: the oracle of the tests.

It loops over boxes, bins and samples and shares nothing with the package it judges. Only the
decision how many samples an adaptive bin takes is made in ``grid_dtype``, step by step as the
operators themselves do it: one rounding there changes a whole bin, so it is part of the definition.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


def ceil_grid(bin_size):
    """Adaptive samples of torchvision: an empty or negative bin takes none."""
    return max(math.ceil(bin_size), 0)


def floor_grid(bin_size):
    """Adaptive samples of MindSpore, with the package's floor of one sample."""
    return max(math.floor(bin_size), 1)


def truncated_index(index):
    return int(index)


def rounded_index(index):
    return int(np.rint(index + 7e-5))


class Convention(NamedTuple):
    """How a system lays its samples, in the terms of its own formulas."""

    grid: Callable = ceil_grid
    image_index: Callable = truncated_index
    before: float = 0.0  # added to image coordinates before scaling
    offset: float = 0.0  # subtracted from feature-map coordinates after scaling
    end_pixel: float = 0.0
    minimum: float | None = None
    skip: Callable = lambda roi: False


def is_line(roi):
    """Boxes that MindSpore skips: both x coordinates are close to 0."""
    return abs(roi[1]) < 1e-3 and abs(roi[3]) < 1e-3


LEGACY = Convention(minimum=1.0)
ALIGNED = Convention(offset=0.5)
MINDSPORE = [
    Convention(floor_grid, rounded_index, minimum=1.0, skip=is_line),
    Convention(floor_grid, rounded_index, end_pixel=1.0, skip=is_line),
]
# By the names of the package's presets.
CONVENTIONS = {
    "torchvision": LEGACY,
    "torchvision_aligned": ALIGNED,
    "detectron2": ALIGNED,
    "mmcv": ALIGNED,
    "mmcv_unaligned": LEGACY,
    "mindspore_0": MINDSPORE[0],
    "mindspore_1": MINDSPORE[1],
    "onnx_half_pixel": ALIGNED,
    "onnx_output_half_pixel": LEGACY,
    "openvino_asymmetric": LEGACY,
    "openvino_half_pixel_for_nn": ALIGNED,
    "openvino_half_pixel": Convention(before=0.5, offset=0.5),
    "paddle": ALIGNED,
    "paddle_unaligned": LEGACY,
    "tvm_aligned": Convention(),
    "ascend_1": Convention(end_pixel=1.0, minimum=1.0),
    "ascend_2": ALIGNED,
    "ascend_3": Convention(offset=0.5, minimum=1.0),
}


def laid_out(first, last, bins, scale, convention, t):
    """Where a box starts along an axis, and how large its bins are; every step rounded to ``t``."""
    scale, before, offset = t(scale), t(convention.before), t(convention.offset)
    start = (t(first) + before) * scale - offset
    end = (t(last) + t(convention.end_pixel) + before) * scale - offset
    size = end - start if convention.minimum is None else max(end - start, t(convention.minimum))
    return start, size / t(bins)


def sample_count(first, last, bins, scale, convention, grid_dtype):
    """Samples of one adaptive bin, decided in ``grid_dtype``."""
    return convention.grid(laid_out(first, last, bins, scale, convention, grid_dtype)[1])


def axis_samples(first, last, bins, scale, sampling, most, convention, grid_dtype):
    """Sample positions of a box along one axis: one list per bin."""
    count = sampling
    if sampling <= 0:
        count = sample_count(first, last, bins, scale, convention, grid_dtype)
        count = count if most is None else min(count, most)
    start, step = laid_out(first, last, bins, scale, convention, float)
    steps = [(i + 0.5) * step / count for i in range(count)]
    return [[start + p * step + part for part in steps] for p in range(bins)]


def corners(position, length):
    """The two pixels a position leans on and their weights; nothing outside [-1, length]."""
    if position < -1 or position > length:
        return []
    position = max(position, 0.0)
    low = int(position)
    if low >= length - 1:
        return [(length - 1, 1.0)]
    fraction = position - low
    return [(low, 1.0 - fraction), (low + 1, fraction)]


def bilinear(image, y, x):
    """Value of ``image`` (C, H, W) at (y, x) for each channel; pixels of weight 0 are not read."""
    value = np.zeros(image.shape[0])
    for row, weight_y in corners(y, image.shape[1]):
        for column, weight_x in corners(x, image.shape[2]):
            weight = weight_y * weight_x
            if weight != 0:
                value = value + weight * image[:, row, column]
    return value


def average_samples(image, ys, xs):
    """Average over the bin; samples outside the map add 0 and count, no samples give 0."""
    total = np.zeros(image.shape[0])
    for y in ys:
        for x in xs:
            total = total + bilinear(image, y, x)
    return total / max(len(ys) * len(xs), 1)


def largest_sample(image, ys, xs):
    """The largest sample of a bin; samples outside the map are 0, and so is an empty bin."""
    samples = [bilinear(image, y, x) for y in ys for x in xs]
    return np.max(samples, axis=0) if samples else np.zeros(image.shape[0])


def weighted_corners(image, y, x):
    """The four products of a sample that ONNX takes the largest of: upper row first."""
    height, width = image.shape[1:]
    rows, columns = corners(y, height), corners(x, width)
    rows, columns = (axis + [(0, 0.0)] * (2 - len(axis)) for axis in (rows, columns))
    products = []
    for row, weight_y in rows:
        for column, weight_x in columns:
            weight = weight_y * weight_x
            read = weight * image[:, row, column] if weight else np.zeros(image.shape[0])
            products.append(read)
    return products


def largest_corner(image, ys, xs):
    """ONNX's max: the largest weighted corner of all samples of a bin."""
    products = [product for y in ys for x in xs for product in weighted_corners(image, y, x)]
    return np.max(products, axis=0) if products else np.zeros(image.shape[0])


REDUCTIONS = {"avg": average_samples, "max": largest_sample, "corner_max": largest_corner}


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def bins_of(rois, output_size, scale, sampling, convention, most=None, grid_dtype=np.float32):
    """Each bin of each box: its row, its image, its place in the output, and its samples."""
    (height, width), (scale_y, scale_x) = output_size, pair(scale)
    sampling_y, sampling_x = pair(sampling)
    for k, roi in enumerate(np.asarray(rois).astype(np.float64)):
        if convention.skip(roi):
            continue
        index, x1, y1, x2, y2 = (float(number) for number in roi)
        shared = most, convention, grid_dtype
        ys = axis_samples(y1, y2, height, scale_y, sampling_y, *shared)
        xs = axis_samples(x1, x2, width, scale_x, sampling_x, *shared)
        for p in range(height):
            for q in range(width):
                yield k, convention.image_index(index), p, q, ys[p], xs[q]


def pool_boxes(
    features, rois, output_size, scale=1.0, sampling=-1, convention=LEGACY, mode="avg", **options
):
    """The common core: every system is a convention and a mode."""
    features = np.asarray(features).astype(np.float64)
    result = np.zeros((len(rois), features.shape[1], *output_size))
    bins = bins_of(rois, output_size, scale, sampling, convention, **options)
    for k, image, p, q, ys, xs in bins:
        result[k, :, p, q] = REDUCTIONS[mode](features[image], ys, xs)
    return result


def pool_boxes_backward(grad, rois, shape, scale=1.0, sampling=-1, convention=LEGACY, **options):
    """The gradient of the average: each bin's, spread over the pixels of its samples."""
    grad = np.asarray(grad).astype(np.float64)
    result = np.zeros(shape)
    bins = bins_of(rois, grad.shape[2:], scale, sampling, convention, **options)
    for k, image, p, q, ys, xs in bins:
        for y in ys:
            for x in xs:
                for row, weight_y in corners(y, shape[2]):
                    for column, weight_x in corners(x, shape[3]):
                        share = weight_y * weight_x / (len(ys) * len(xs))
                        if share != 0:
                            result[image, :, row, column] += share * grad[k, :, p, q]
    return result


def pool_boxes_max_backward(
    grad, features, rois, scale=1.0, sampling=-1, convention=LEGACY, mode="max", **options
):
    """The gradient of a maximum: each bin's, given to the first of its largest."""
    grad, features = (np.asarray(x).astype(np.float64) for x in (grad, features))
    height, width = features.shape[2:]
    result = np.zeros(features.shape)
    bins = bins_of(rois, grad.shape[2:], scale, sampling, convention, **options)
    for k, image, p, q, ys, xs in bins:
        for c in range(features.shape[1]):
            plane, candidates = features[image, [c]], []
            for y in ys:
                for x in xs:
                    taps = [
                        (row, column, weight_y * weight_x)
                        for row, weight_y in corners(y, height)
                        for column, weight_x in corners(x, width)
                    ]
                    if mode == "max":
                        candidates.append((bilinear(plane, y, x)[0], taps))
                    else:
                        candidates += [(w * plane[0, r, q2], [(r, q2, w)]) for r, q2, w in taps]
                        candidates += [(0.0, [])] * (4 - len(taps))
            if candidates:
                for row, column, weight in max(candidates, key=lambda candidate: candidate[0])[1]:
                    result[image, c, row, column] += weight * grad[k, c, p, q]
    return result


def roi_align(
    features,
    rois,
    output_size,
    spatial_scale=1.0,
    sampling_ratio=-1,
    aligned=False,
    *,
    grid_dtype=np.float32,
):
    """torchvision.ops.roi_align on (K, 5) rois."""
    convention = ALIGNED if aligned else LEGACY
    return pool_boxes(
        features, rois, output_size, spatial_scale, sampling_ratio, convention,
        grid_dtype=grid_dtype,
    )  # fmt: skip


def mindspore_roi_align(
    features,
    rois,
    output_size,
    spatial_scale,
    sample_num=2,
    roi_end_mode=1,
    *,
    grid_dtype=np.float32,
):
    """mindspore.ops.ROIAlign; boxes it leaves unwritten are zeros here."""
    return pool_boxes(
        features, rois, output_size, spatial_scale, sample_num, MINDSPORE[roi_end_mode],
        grid_dtype=grid_dtype,
    )  # fmt: skip
