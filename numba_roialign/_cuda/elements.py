"""CUDA schedules of a thread for each RoI, or for each element of a result.

They fill the tables, take maxima, sum the gradient of the boxes, copy and clear.
"""

from __future__ import annotations

import numpy as np
from numba import cuda

from .. import _geometry, _kernels, _taps

locate = cuda.jit(device=True)(_geometry.locate)
slots_of = cuda.jit(device=True)(_taps.slots_of)
axis_taps = cuda.jit(device=True)(_taps.axis_taps)
axis_samples = cuda.jit(device=True)(_taps.axis_samples)
fill_slopes = cuda.jit(device=True)(_taps.fill_slopes)
turn_taps = cuda.jit(device=True)(_taps.turn_taps)
average_at = cuda.jit(device=True)(_kernels.average_at)
largest_at = cuda.jit(device=True)(_kernels.largest_at)
element_at = cuda.jit(device=True)(_kernels.element_at)


@cuda.jit(device=True)
def index_of(element, channels, height, width):
    """Return where the `element`-th of an array of four axes lies: neighbours share all but x."""
    plane, pixel = element // (height * width), element % (height * width)
    return plane // channels, plane % channels, pixel // width, pixel % width


@cuda.jit
def schedule_images(rois, sampling, convention, images, zero):
    """Write the image of each RoI, or -1 where it cannot be pooled, a thread per RoI."""
    for n in range(cuda.grid(1), rois.shape[0], cuda.gridsize(1)):
        images[n], _, _ = locate(rois, n, sampling, convention, zero)


@cuda.jit
def schedule_taps(rois, start, sampling, convention, images, y_taps, x_taps, zero):
    """Fill the tables of a batch with taps, a thread per axis of a RoI."""
    count = min(images.shape[0], rois.shape[0] - start)
    for item in range(cuda.grid(1), 2 * count, cuda.gridsize(1)):
        row = item if item < count else item - count
        image, y, x = locate(rois, start + row, sampling, convention, zero)
        images[row] = image
        if image >= 0 and item < count:
            axis_taps(y, y_taps, row, *slots_of(y_taps, row))
        elif image >= 0:
            axis_taps(x, x_taps, row, *slots_of(x_taps, row))


@cuda.jit
def schedule_samples(rois, start, sampling, convention, images, y_samples, x_samples, zero):
    """Fill the tables of a batch with samples, a thread per axis of a RoI."""
    count = min(images.shape[0], rois.shape[0] - start)
    for item in range(cuda.grid(1), 2 * count, cuda.gridsize(1)):
        row = item if item < count else item - count
        image, y, x = locate(rois, start + row, sampling, convention, zero)
        images[row] = image
        if image >= 0 and item < count:
            axis_samples(y, y_samples, row, *slots_of(y_samples, row))
        elif image >= 0:
            axis_samples(x, x_samples, row, *slots_of(x_samples, row))


@cuda.jit
def schedule_slopes(rois, start, sampling, convention, images, y_taps, x_taps, zero, corner):
    """Fill the tables of a batch with the slopes for a corner, a thread per RoI."""
    count = min(images.shape[0], rois.shape[0] - start)
    for row in range(cuda.grid(1), count, cuda.gridsize(1)):
        n = start + row
        fill_slopes(images, y_taps, x_taps, row, rois, n, sampling, convention, zero, corner)


@cuda.jit
def schedule_turns(images, count, y_taps, x_taps, y_bins, x_bins, spans):
    """Turn the taps of a batch round, a thread per axis of a RoI."""
    for item in range(cuda.grid(1), 2 * count, cuda.gridsize(1)):
        row = item if item < count else item - count
        if images[row] < 0:
            continue
        if item < count:
            bins = y_taps.bounds.shape[1] - 1
            spans[row, 0], spans[row, 1] = turn_taps(y_taps, y_bins, row, bins)
        else:
            bins = x_taps.bounds.shape[1] - 1
            spans[row, 2], spans[row, 3] = turn_taps(x_taps, x_bins, row, bins)


@cuda.jit
def schedule_sample_turns(
    images, count, y_samples, x_samples, y_bins, x_bins, y_codes, x_codes, spans
):
    """Turn the samples of a batch round, a thread per axis of a RoI."""
    for item in range(cuda.grid(1), 2 * count, cuda.gridsize(1)):
        row = item if item < count else item - count
        if images[row] < 0:
            continue
        if item < count:
            bins = y_samples.bounds.shape[1] - 1
            spans[row, 0], spans[row, 1] = turn_taps(y_samples, y_bins, row, bins, y_codes)
        else:
            bins = x_samples.bounds.shape[1] - 1
            spans[row, 2], spans[row, 3] = turn_taps(x_samples, x_bins, row, bins, x_codes)


@cuda.jit
def schedule_outputs(
    features, strides, start, sampling, images, y_taps, x_taps, zero, out, out_strides, shape
):
    """Pool a batch, a thread per output element."""
    rois, channels = shape
    height, width = sampling.output_height, sampling.output_width
    for element in range(cuda.grid(1), rois * channels * height * width, cuda.gridsize(1)):
        n, c, ph, pw = index_of(element, channels, height, width)
        value = average_at(features, strides, images, y_taps, x_taps, n, c, ph, pw, zero)
        out[element_at(out_strides, start + n, c, ph, pw)] = value


@cuda.jit
def schedule_maxima(
    features, strides, start, sampling, images, y_samples, x_samples, zero,
    out, out_strides, argmax, argmax_strides, keeps_argmax, mode, shape,
):  # fmt: skip
    """Pool a batch by a maximum, a thread per output element."""
    rois, channels = shape
    height, width = sampling.output_height, sampling.output_width
    for element in range(cuda.grid(1), rois * channels * height * width, cuda.gridsize(1)):
        n, c, ph, pw = index_of(element, channels, height, width)
        value, number = largest_at(
            features, strides, images, y_samples, x_samples, n, c, ph, pw, mode, zero
        )
        out[element_at(out_strides, start + n, c, ph, pw)] = value
        if keeps_argmax:
            argmax[element_at(argmax_strides, start + n, c, ph, pw)] = number


@cuda.jit
def schedule_dots(slopes, slope_strides, grad, strides, start, sampling, zero, dots, shape):
    """Sum slopes times gradients over the bins of a channel of a RoI, a thread for each."""
    rois, channels = shape
    for element in range(cuda.grid(1), rois * channels, cuda.gridsize(1)):
        n, c = element // channels, element % channels
        total = zero
        for ph in range(sampling.output_height):
            for pw in range(sampling.output_width):
                slope = slopes[element_at(slope_strides, n, c, ph, pw)]
                total += slope * (zero + grad[element_at(strides, start + n, c, ph, pw)])
        dots[element] = total


@cuda.jit
def schedule_sums(dots, images, start, count, channels, zero, out, column):
    """Sum over the channels of a RoI into a column of the boxes' gradient, a thread per RoI."""
    for n in range(cuda.grid(1), count, cuda.gridsize(1)):
        total = zero
        if images[n] >= 0:
            for c in range(channels):
                total += dots[n * channels + c]
        out[start + n, 0] = zero
        out[start + n, column] = total


@cuda.jit
def schedule_copies(source, source_strides, out, out_strides, shape):
    """Copy an array of four axes, given in order."""
    images, channels, height, width = shape
    for element in range(cuda.grid(1), images * channels * height * width, cuda.gridsize(1)):
        n, c, y, x = index_of(element, channels, height, width)
        at = element_at(source_strides, n, c, y, x)
        out[element_at(out_strides, n, c, y, x)] = source[np.intp(at)]


@cuda.jit
def schedule_zeros(out, out_strides, shape):
    """Set an array of four axes, given in order, to zero."""
    images, channels, height, width = shape
    for element in range(cuda.grid(1), images * channels * height * width, cuda.gridsize(1)):
        out[element_at(out_strides, *index_of(element, channels, height, width))] = np.int32(0)
