"""RoIAlign written straight from its formulas, in NumPy float64: the oracle of the tests.

It loops over boxes, bins and samples and shares nothing with the package it judges. Only the
decision how many samples an adaptive bin takes is made in ``grid_dtype``, step by step as the
operators themselves do it: one rounding there changes a whole bin, so it is part of the definition.
"""

import math

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


def sample_count(first, last, bins, scale, *, offset, end_pixel, minimum, grid, grid_dtype):
    """Samples of one adaptive bin, every step rounded to ``grid_dtype``."""
    t = grid_dtype
    scale, offset = t(scale), t(offset)
    start = t(first) * scale - offset
    end = (t(last) + t(end_pixel)) * scale - offset
    size = end - start if minimum is None else max(end - start, t(minimum))
    return grid(size / t(bins))


def axis_samples(first, last, bins, scale, sampling, **convention):
    """Sample positions of a box along one axis: one list per bin."""
    count = sampling
    if sampling <= 0:
        count = sample_count(first, last, bins, scale, **convention)
    offset, minimum = convention["offset"], convention["minimum"]
    start = first * scale - offset
    size = (last + convention["end_pixel"]) * scale - offset - start
    if minimum is not None:
        size = max(size, minimum)
    step = size / bins
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


def pool_boxes(
    features,
    rois,
    output_size,
    scale,
    sampling,
    *,
    offset,
    end_pixel,
    minimum,
    grid,
    image_index,
    skip=lambda roi: False,
    reduce=average_samples,
    grid_dtype=np.float32,
):
    """The common core: every convention is one choice of the keyword arguments."""
    pooled_height, pooled_width = output_size
    features = np.asarray(features).astype(np.float64)
    rois = np.asarray(rois).astype(np.float64)
    result = np.zeros((len(rois), features.shape[1], pooled_height, pooled_width))
    convention = {
        "offset": offset,
        "end_pixel": end_pixel,
        "minimum": minimum,
        "grid": grid,
        "grid_dtype": grid_dtype,
    }
    for k, roi in enumerate(rois):
        if skip(roi):
            continue
        index, x1, y1, x2, y2 = (float(number) for number in roi)
        image = features[image_index(index)]
        ys = axis_samples(y1, y2, pooled_height, scale, sampling, **convention)
        xs = axis_samples(x1, x2, pooled_width, scale, sampling, **convention)
        for p in range(pooled_height):
            for q in range(pooled_width):
                result[k, :, p, q] = reduce(image, ys[p], xs[q])
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
    return pool_boxes(
        features,
        rois,
        output_size,
        spatial_scale,
        sampling_ratio,
        offset=0.5 if aligned else 0.0,
        end_pixel=0.0,
        minimum=None if aligned else 1.0,
        grid=ceil_grid,
        image_index=truncated_index,
        grid_dtype=grid_dtype,
    )


def is_line(roi):
    """Boxes that MindSpore skips: both x coordinates are close to 0."""
    return abs(roi[1]) < 1e-3 and abs(roi[3]) < 1e-3


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
        features,
        rois,
        output_size,
        spatial_scale,
        sample_num,
        offset=0.0,
        end_pixel=float(roi_end_mode),
        minimum=None if roi_end_mode else 1.0,
        grid=floor_grid,
        image_index=rounded_index,
        skip=is_line,
        grid_dtype=grid_dtype,
    )
